"""Other instrumentations of a library: which there are, whether one is at work, and what is said of it."""

from __future__ import annotations

import sys
from typing import NamedTuple

from queueprop import guard
from queueprop.kit import checks


class Rival(NamedTuple):
    """Another instrumentation of a library."""

    instrumentor: str
    """``module:Class``"""

    distribution: str
    """What pip knows it as."""

    entry_point: str | None = None
    """What ``opentelemetry-instrument`` knows it as; None for one that programs instrument by themselves."""

    mark: str | None = None
    """``module:Class.attribute``, which is true while it instruments: of one that is not made as theirs are."""

    switch: str | None = None
    """How that one is switched off: ``DD_TRACE_CELERY_ENABLED=false``."""

    @classmethod
    def contrib(cls, module: str, instrumentor: str) -> Rival:
        """One of OpenTelemetry's own, which are all named by the library's module."""
        name = module.replace("_", "-")
        return cls(
            f"opentelemetry.instrumentation.{module}:{instrumentor}",
            f"opentelemetry-instrumentation-{name}",
            name,
        )


class Rivals:
    """Other instrumentations of a library. Whichever was first, they keep it."""

    def __init__(self, library: str, *rivals: Rival) -> None:
        self.known = rivals
        self.modules = tuple(rival.instrumentor.partition(":")[0] for rival in rivals)
        self._where = f"instrumenting {library}"
        self._looked_for = [
            (*rival.instrumentor.split(":"), _stands_down(library, rival) + how_to_choose(library, rival))
            for rival in rivals
        ]

    def active(self) -> bool:
        """Whether one of them is instrumenting now. The first time, a line says how to switch it off, or ours."""
        for rival, (module, name, text) in zip(self.known, self._looked_for, strict=True):
            instance = getattr(getattr(sys.modules.get(module), name, None), "_instance", None)
            if (instance is not None and instance.is_instrumented_by_opentelemetry) or _is_marked(rival):
                guard.mistake(self._where, text)
                return True
        return False


def _is_marked(rival: Rival) -> bool:
    if rival.mark is None:
        return False
    module, _, path = rival.mark.partition(":")
    owner, _, attribute = path.rpartition(".")
    found = getattr(sys.modules.get(module), owner, None) if owner else sys.modules.get(module)
    return bool(getattr(found, attribute, False))


def _stands_down(library: str, rival: Rival) -> str:
    name = rival.instrumentor.replace(":", ".")
    return (
        f"{name} instruments it already, so queueprop stands down, and no span of {library} is queueprop's; "
    )


def how_to_choose(library: str, rival: Rival) -> str:
    """How a person gets queueprop's spans, or keeps the other's and is told no more."""
    disable = f"disable it: {rival.switch or f'{_DISABLED}={rival.entry_point}'}"
    if rival.entry_point is None and rival.switch is None:
        disable = f"do not call instrument() of its {rival.instrumentor.partition(':')[2]}"
    return (
        f"to have queueprop's, uninstall {rival.distribution} or {disable}; "
        f"to keep the other's, disable queueprop's: {_DISABLED}=queueprop_{checks.module_of(library)}"
    )


_DISABLED = "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"
