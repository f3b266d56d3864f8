"""What every library's instrumentor shares: patching and restoring, standing down, and who is installed.

An adapter derives from ``Adapter``, names its library, and says in ``patches`` which functions it wraps with what. That
lies in a module of its own (``on_demand.py``): what stands here takes longer to import than all else of an adapter.
"""

from __future__ import annotations

import functools
import inspect
import sys
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple, ParamSpec, TypeVar

import wrapt
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider

from queueprop import guard
from queueprop.engine.engine import Engine, engine_for
from queueprop.kit.calls import Hook
from queueprop.kit.libraries import explains_options, say_what_stays, settings_with
from queueprop.kit.rivals import Rivals
from queueprop.settings import Settings, SpanHook

P = ParamSpec("P")
R = TypeVar("R")


class Patch(NamedTuple):
    """One function of a library, and the hook around it."""

    owner: Any
    name: str
    wrapper: Hook


Companions = Mapping[str, Callable[[Any], Iterable[Patch]]]
"""Modules of other distributions, which build upon a library, and what is to be patched in each."""


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

    def companions(self) -> Companions:
        """What builds upon the library, and is patched where it is imported, whenever that is; never imported by us."""
        return {}

    @property
    def is_active(self) -> bool:
        """Whether calls are traced: instrumented, and no other instrumentation of the library is."""
        return self.is_on()

    def is_on(self) -> bool:
        """``is_active``, as the function that ``Hooks`` ask at each message."""
        if not self._installed:
            return False
        for module in self.rivals.modules:  # nearly nobody has one of them
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
        for name in self.companions():
            self._patch_when_imported(name)
        self.rivals.active()  # its warning belongs here, not behind the first message

    def _uninstrument(self, **options: Any) -> None:
        self._installed = False
        for undo in reversed(self._undo):
            undo()
        self._undo = []

    _installed = False
    _undo: list[Callable[[], None]]

    def _patch_when_imported(self, name: str) -> None:
        """Its import may come later, or never. What waits for it waits for good, so it is asked for once."""
        if name in sys.modules:
            self._patch_companion(name, sys.modules[name])
        elif name not in self._awaited:
            self._awaited.add(name)
            wrapt.register_post_import_hook(functools.partial(self._patch_companion, name), name)

    def _patch_companion(self, name: str, module: Any) -> None:
        try:
            if self._installed:
                self._undo.extend(map(self._patch, self.companions()[name](module)))
        except Exception as error:
            guard.fault(f"instrumenting {name}", error)

    @functools.cached_property
    def _awaited(self) -> set[str]:
        return set()

    def _patch(self, patch: Patch) -> Callable[[], None]:
        owner, name, wrapper = patch
        own = vars(owner).get(name, _INHERITED)
        original = inspect.getattr_static(owner, name) if own is _INHERITED else own
        installed = True
        rivals = self.rivals.modules

        def enabled() -> bool:
            # Asked at each call: objects made while instrumented fall silent afterwards. `installed` is of this very
            # patch: one that was left below somebody else's stays silent when all is instrumented again.
            if not installed:
                return False
            for module in rivals:
                if module in sys.modules:
                    return self.is_on()
            return self._installed

        ours = wrapt.FunctionWrapper(original, wrapper, enabled=enabled)
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
