"""OpenTelemetry's global providers, as they are asked for every message.

While none is set the API looks a variable up in the environment each time that it is asked, which takes a microsecond:
more than a message of a program without metrics costs else. So its answer is kept until a provider is set. What says
whether one is set is no public name; where there is no such name the API is asked each time.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.metrics import _internal


def kept_until_set(ask: Callable[[], Any], module: ModuleType, name: str) -> Callable[[], Any]:
    """Asks for a global provider, once for as long as none is set. Raises what ``ask`` raises.

    Args:
        ask: gives the provider that is set, or a stand-in.
        module: where the API keeps the one that is set.
        name: under this name, which is None while there is none.
    """
    stand_in: Any = None
    values = vars(module)

    def provider() -> Any:
        nonlocal stand_in
        found = values.get(name, _UNKNOWN)
        if found is None and stand_in is not None:
            return stand_in
        if found is None or found is _UNKNOWN:
            found = ask()
            if values.get(name, _UNKNOWN) is None:
                stand_in = found
        return found

    return provider


_UNKNOWN = object()

get_tracer_provider = kept_until_set(trace.get_tracer_provider, trace, "_TRACER_PROVIDER")
get_meter_provider = kept_until_set(metrics.get_meter_provider, _internal, "_METER_PROVIDER")
