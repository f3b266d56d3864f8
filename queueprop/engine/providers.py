"""OpenTelemetry's global providers, as they are asked for every message.

While none is set the API looks a variable up in the environment each time that it is asked, for a program without
metrics at each message. So its answer is kept until a provider is set. What says whether one is set is no public name;
where there is no such name the API is asked each time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opentelemetry import metrics, trace


def kept_until_set(ask: Callable[[], Any], values: dict[str, Any], name: str) -> Callable[[], Any]:
    """Asks for a global provider, once for as long as none is set. Raises what ``ask`` raises.

    Args:
        ask: gives the provider that is set, or a stand-in.
        values: the names of the module in which the API keeps the one that is set.
        name: its name there, which is None while there is none.
    """
    stand_in: Any = None

    def provider() -> Any:
        nonlocal stand_in
        found = values.get(name)
        if found is not None:
            return found
        if stand_in is not None and name in values:
            return stand_in
        found = ask()
        if values.get(name, _UNKNOWN) is None:
            stand_in = found
        return found

    return provider


_UNKNOWN = object()


def _home_of(function: Callable[..., object]) -> dict[str, Any]:
    """The names beside it, one of which is that of what it answers."""
    return getattr(function, "__globals__", {})


get_tracer_provider = kept_until_set(
    trace.get_tracer_provider, _home_of(trace.get_tracer_provider), "_TRACER_PROVIDER"
)
get_meter_provider = kept_until_set(
    metrics.get_meter_provider, _home_of(metrics.get_meter_provider), "_METER_PROVIDER"
)
