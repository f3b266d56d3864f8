"""Names of a package that are imported where somebody asks for them (PEP 562): an adapter's instrumentor.

A program that traces by the words of the explicit API needs neither OpenTelemetry's ``BaseInstrumentor`` nor wrapt,
and these take longer to import than all else of an adapter.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any


def on_demand(package: str, **modules: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package, for names that lie in modules of it::

        if TYPE_CHECKING:
            from queueprop.adapters.pika.instrumentor import PikaInstrumentor
        else:  # hidden from type checkers, to which a package with a __getattr__ has every name
            __getattr__, __dir__ = on_demand(__name__, PikaInstrumentor="instrumentor")

    A name that was asked for is the package's from then on.
    """
    its_own = vars(sys.modules[package])

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = its_own[name] = getattr(import_module(f"{package}.{modules[name]}"), name)
        return value

    def listed() -> list[str]:
        return sorted({*its_own, *modules})

    return get, listed
