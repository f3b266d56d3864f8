"""What every library's instrumentor shares: patching and restoring, standing down, and who is installed.

An adapter derives from ``Adapter``, names its library, and says in ``patches`` which functions it wraps with what.
"""

from __future__ import annotations

import inspect
import sys
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable
from typing import Any, ClassVar, NamedTuple, ParamSpec, TypeVar

import wrapt
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider

from queueprop import guard
from queueprop.engine.engine import Engine, engine_for
from queueprop.kit import checks
from queueprop.kit.calls import Hook
from queueprop.kit.libraries import (
    explains_options,
    say_what_stays,
    settings_with,
)
from queueprop.settings import Settings, SpanHook

P = ParamSpec("P")
R = TypeVar("R")


class Patch(NamedTuple):
    """One function of a library, and the hook around it."""

    owner: Any
    name: str
    wrapper: Hook


class Rival(NamedTuple):
    """Another instrumentation of a library."""

    instrumentor: str
    """``module:Class``"""

    distribution: str
    """What pip knows it as."""

    entry_point: str | None = None
    """What ``opentelemetry-instrument`` knows it as; None for one that programs instrument by themselves."""

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
        for module, name, text in self._looked_for:
            instance = getattr(getattr(sys.modules.get(module), name, None), "_instance", None)
            if instance is not None and instance.is_instrumented_by_opentelemetry:
                guard.mistake(self._where, text)
                return True
        return False


def _stands_down(library: str, rival: Rival) -> str:
    name = rival.instrumentor.replace(":", ".")
    return (
        f"{name} instruments it already, so queueprop stands down, and no span of {library} is queueprop's; "
    )


def how_to_choose(library: str, rival: Rival) -> str:
    """How a person gets queueprop's spans, or keeps the other's and is told no more."""
    disable = f"disable it: {_DISABLED}={rival.entry_point}"
    if rival.entry_point is None:
        disable = f"do not call instrument() of its {rival.instrumentor.partition(':')[2]}"
    return (
        f"to have queueprop's, uninstall {rival.distribution} or {disable}; "
        f"to keep the other's, disable queueprop's: {_DISABLED}=queueprop_{checks.module_of(library)}"
    )


_DISABLED = "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"


class Adapter(BaseInstrumentor):  # type: ignore[misc]
    """The instrumentor of one library. It patches what ``patches`` names, and puts the very same functions back."""

    library: ClassVar[str]
    """The name of the library, as its users call it, and of the extra."""

    requires: ClassVar[Collection[str]]
    """The versions that it supports, as in requirements.txt."""

    rivals: ClassVar[Rivals]
    """Other instrumentations of the same library."""

    engine: Engine
    """Makes the operations, by the settings that ``instrument`` was given."""

    def instrumentation_dependencies(self) -> Collection[str]:
        return self.requires

    @abstractmethod
    def patches(self) -> Iterable[Patch]:
        """The functions to wrap; ``self.engine`` is there already."""

    @property
    def is_active(self) -> bool:
        """Whether calls are traced: instrumented, and no other instrumentation of the library is."""
        if not self._installed:
            return False
        for module in self.rivals.modules:  # asked at each message, and nearly nobody has one of them
            if module in sys.modules:
                return not self.rivals.active()
        return True

    @explains_options
    def instrument(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        *,
        settings: Settings | None = None,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        publish_hook: SpanHook | None = None,
        consume_hook: SpanHook | None = None,
        skip_dep_check: bool = False,
        raise_exception_on_conflict: bool = False,
    ) -> None:
        """Instruments the library, once: a second call changes nothing, and says so where it asks for other settings.

        Args:
            settings: instead of those of the environment.
            tracer_provider, meter_provider, publish_hook, consume_hook: instead of those of ``settings``.
            skip_dep_check, raise_exception_on_conflict: for ``opentelemetry-instrument``. Without them a version of
                the library that is not supported is an error in the log, and is not instrumented.

        Raises ``TypeError`` for an argument of another type.
        """
        wanted = settings_with(
            settings,
            tracer_provider=tracer_provider,
            meter_provider=meter_provider,
            publish_hook=publish_hook,
            consume_hook=consume_hook,
        )
        say_what_stays([self], wanted)
        super().instrument(
            settings=wanted,
            skip_dep_check=skip_dep_check,
            raise_exception_on_conflict=raise_exception_on_conflict,
        )

    def differs_from(self, wanted: Settings) -> bool:
        """Whether it is instrumented, with other settings than these."""
        return bool(self.is_instrumented_by_opentelemetry) and wanted != self.engine.settings

    def _instrument(self, settings: Settings | None = None, **options: Any) -> None:
        self.engine = engine_for(settings)
        self._installed = True
        self._undo = []
        try:
            self._undo.extend(map(self._patch, self.patches()))
        except BaseException:
            self._uninstrument()  # all or nothing: a version of the library that lacks one of the functions
            raise
        self.rivals.active()  # its warning belongs here, not behind the first message

    def _uninstrument(self, **options: Any) -> None:
        self._installed = False
        for undo in reversed(self._undo):
            undo()
        self._undo = []

    _installed = False
    _undo: list[Callable[[], None]]

    def _patch(self, patch: Patch) -> Callable[[], None]:
        owner, name, wrapper = patch
        own = vars(owner).get(name, _INHERITED)
        original = inspect.getattr_static(owner, name) if own is _INHERITED else own
        installed = True
        # `enabled` is asked at each call: objects made while instrumented fall silent afterwards. `installed` is of
        # this very patch: one that was left below somebody else's stays silent when all is instrumented again.
        ours = wrapt.FunctionWrapper(original, wrapper, enabled=lambda: installed and self.is_active)
        setattr(owner, name, ours)

        def undo() -> None:
            nonlocal installed
            installed = False
            if vars(owner).get(name) is not ours:
                return  # somebody wrapped it after us; ours stays below, switched off
            if own is _INHERITED:
                delattr(owner, name)
            else:
                setattr(owner, name, own)

        return undo


_INHERITED = object()
