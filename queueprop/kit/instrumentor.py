"""What every library's instrumentor shares: patching and restoring, standing down, and who is installed.

An adapter derives from ``Adapter``, names its library, and says in ``patches`` which functions it wraps with what.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import sys
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable
from typing import Any, ClassVar, NamedTuple

import wrapt
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]

from queueprop import guard
from queueprop.engine.engine import Engine, engine_for
from queueprop.kit.calls import Hook
from queueprop.settings import Settings

# library -> its instrumentor; what the entry points say, for queueprop.instrument()
ADAPTERS = {
    "aiokafka": "queueprop.adapters.aiokafka:AIOKafkaInstrumentor",
    "dramatiq": "queueprop.adapters.dramatiq:DramatiqInstrumentor",
    "kombu": "queueprop.adapters.kombu:KombuInstrumentor",
    "pika": "queueprop.adapters.pika:PikaInstrumentor",
    "rq": "queueprop.adapters.rq:RQInstrumentor",
}


def instrument(*libraries: str, settings: Settings | None = None, **options: Any) -> None:
    """Instruments every supported library that is installed, or those that are named: ``instrument("rq")``.

    ``options`` are those of ``<Library>Instrumentor().instrument``: ``tracer_provider``, ``meter_provider``,
    ``publish_hook``, ``consume_hook``. Instrumenting twice is once.

    Raises ``ValueError`` for a name that queueprop has no adapter for, and ``ModuleNotFoundError`` for a library that
    is named but not installed.
    """
    for library in libraries or _installed():
        adapter = _load(library)
        if not adapter.is_instrumented_by_opentelemetry:
            adapter.instrument(settings=settings, **options)


def uninstrument(*libraries: str) -> None:
    """Takes back ``instrument``: for the libraries that are named, or for all."""
    for library in libraries or _installed():
        adapter = _load(library)
        if adapter.is_instrumented_by_opentelemetry:
            adapter.uninstrument()


class MissingExtra(ModuleNotFoundError):
    """A library is not installed; the message says what to install."""


def missing_extra(module: str, library: str, extra: str) -> MissingExtra:
    """The error of an adapter whose library is missing: ``queueprop.adapters.rq needs RQ: pip install "..."``."""
    return MissingExtra(f'{module} needs {library}: pip install "queueprop[{extra}]"', name=extra)


class Patch(NamedTuple):
    """One function of a library, and the hook around it."""

    owner: Any
    name: str
    wrapper: Hook


class Rivals:
    """Other instrumentations of a library (``module:Class``). Whichever was first, they keep it."""

    def __init__(self, library: str, *classes: str) -> None:
        self._library = library
        self._classes = [tuple(name.split(":")) for name in classes]

    def active(self) -> bool:
        """Whether one of them is instrumenting now. The first time, a warning says how to switch it off."""
        for module, name in self._classes:
            instance = getattr(getattr(sys.modules.get(module), name, None), "_instance", None)
            if instance is not None and instance.is_instrumented_by_opentelemetry:
                guard.mistake(
                    f"instrumenting {self._library}",
                    f"{module}.{name} instruments it already, so queueprop stands down; to have queueprop's spans, "
                    f"uninstrument it or set OTEL_PYTHON_DISABLED_INSTRUMENTATIONS={self._library}",
                )
                return True
        return False


class Adapter(BaseInstrumentor):  # type: ignore[misc]
    """The instrumentor of one library. It patches what ``patches`` names, and puts the very same functions back."""

    library: ClassVar[str]
    """The name of the library's top-level module, and of the extra."""

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
        return self._installed and not self.rivals.active()

    def _instrument(self, settings: Settings | None = None, **options: Any) -> None:
        self.engine = engine_for(_with_options(settings, options))
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

_OPTIONS = frozenset(("tracer_provider", "meter_provider", "publish_hook", "consume_hook"))


def _with_options(settings: Settings | None, options: dict[str, Any]) -> Settings | None:
    given = {name: value for name, value in options.items() if name in _OPTIONS and value is not None}
    return dataclasses.replace(settings or Settings(), **given) if given else settings


def _installed() -> list[str]:
    return [library for library in ADAPTERS if _is_installed(library)]


def _is_installed(library: str) -> bool:
    # kombu, once imported, has put a module in its place that has no spec, which find_spec refuses.
    if library in sys.modules:
        return sys.modules[library] is not None
    return importlib.util.find_spec(library) is not None


def _load(library: str) -> Adapter:
    path = ADAPTERS.get(library)
    if path is None:
        raise ValueError(f"queueprop has no adapter for {library!r}; it has: {', '.join(ADAPTERS)}")
    module, name = path.split(":")
    adapter: Adapter = getattr(importlib.import_module(module), name)()
    return adapter
