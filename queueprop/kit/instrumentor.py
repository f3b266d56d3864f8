"""What every library's instrumentor shares: patching and restoring, standing down, and who is installed.

An adapter derives from ``Adapter``, names its library, and says in ``patches`` which functions it wraps with what.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import importlib.util
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
from queueprop.settings import Settings, SpanHook

P = ParamSpec("P")
R = TypeVar("R")

# library -> its instrumentor; what the entry points say, for queueprop.instrument()
ADAPTERS = {
    "aio-pika": "queueprop.adapters.aio_pika:AioPikaInstrumentor",
    "aiokafka": "queueprop.adapters.aiokafka:AIOKafkaInstrumentor",
    "dramatiq": "queueprop.adapters.dramatiq:DramatiqInstrumentor",
    "kombu": "queueprop.adapters.kombu:KombuInstrumentor",
    "pika": "queueprop.adapters.pika:PikaInstrumentor",
    "rq": "queueprop.adapters.rq:RQInstrumentor",
}


def explains_options(call: Callable[P, R]) -> Callable[P, R]:
    """Says of an option that there is not where it belongs, which Python's own words do not."""
    parameters = inspect.signature(call).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]

    @functools.wraps(call)
    def checked(*args: P.args, **options: P.kwargs) -> R:
        for name in [name for name in options if name not in known]:
            if options.keys().isdisjoint(_OF_THE_LAUNCHER):
                raise TypeError(_no_option(name))
            # A distribution of the launcher's may give an option to all instrumentors that it finds.
            guard.mistake("instrumenting", f"{_no_option(name)}; it is left out")
            del options[name]
        return call(*args, **options)

    return checked


@explains_options
def instrument(
    *libraries: str,
    settings: Settings | None = None,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    publish_hook: SpanHook | None = None,
    consume_hook: SpanHook | None = None,
) -> None:
    """Instruments every supported library that is installed, or those that are named: ``instrument("rq", "pika")``.

    Instrumenting twice is once: a second call changes nothing, and says so where it asks for other settings. Under
    ``opentelemetry-instrument`` nobody need call this. It instruments all of them but those that its variable names:
    ``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=queueprop_rq,queueprop_pika``.

    Args:
        libraries: ``aio-pika``, ``aiokafka``, ``dramatiq``, ``kombu``, ``pika``, ``rq``.
        settings: instead of those of the environment.
        tracer_provider, meter_provider, publish_hook, consume_hook: instead of those of ``settings``.

    Raises ``ValueError`` for a name that queueprop has no adapter for, ``ModuleNotFoundError`` for a library that is
    named but not installed, and ``TypeError`` for an argument of another type.
    """
    wanted = _settings_with(
        settings,
        tracer_provider=tracer_provider,
        meter_provider=meter_provider,
        publish_hook=publish_hook,
        consume_hook=consume_hook,
    )
    adapters = [_load(library, "instrument") for library in libraries or _installed()]
    if not adapters:
        guard.mistake("instrument()", _NOTHING_TO_INSTRUMENT)
    _say_what_stays(adapters, wanted)
    for adapter in adapters:
        if not adapter.is_instrumented_by_opentelemetry:
            adapter.instrument(settings=wanted)


def uninstrument(*libraries: str) -> None:
    """Takes back ``instrument``: for the libraries that are named, or for all. Raises as ``instrument`` does."""
    for library in libraries or _installed():
        adapter = _load(library, "uninstrument")
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
        return self._installed and not self.rivals.active()

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
        wanted = _settings_with(
            settings,
            tracer_provider=tracer_provider,
            meter_provider=meter_provider,
            publish_hook=publish_hook,
            consume_hook=consume_hook,
        )
        _say_what_stays([self], wanted)
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

# Options


_OF_THE_LAUNCHER = ("skip_dep_check", "raise_exception_on_conflict")
_OPTIONS = ("settings", "tracer_provider", "meter_provider", "publish_hook", "consume_hook")


def _no_option(name: str) -> str:
    if name in {setting.name for setting in dataclasses.fields(Settings)}:
        hint = f"it is a setting, as in instrument(settings=queueprop.Settings({name}=...))"
    elif near := difflib.get_close_matches(name, _OPTIONS, n=1):
        hint = f"did you mean {near[0]}?"
    else:
        hint = f"it has {', '.join(_OPTIONS)}"
    return f"instrument has no option {name}; {hint}"


def _settings_with(settings: Settings | None, **options: object) -> Settings | None:
    """The settings with the options that are given; None where there is neither."""
    checks.check_settings("instrument", settings)
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    return dataclasses.replace(settings or Settings(), **given) if given else settings


def _say_what_stays(adapters: Iterable[Adapter], wanted: Settings | None) -> None:
    staying = [adapter.library for adapter in adapters if wanted is not None and adapter.differs_from(wanted)]
    if staying:
        guard.mistake(
            f"instrumenting {', '.join(staying)}",
            "that was done before, with other settings, and those of this call change nothing; call "
            "queueprop.uninstrument() first, or give them where it is done first (to opentelemetry-instrument, as "
            "QUEUEPROP_* variables)",
        )


# Libraries


_NOTHING_TO_INSTRUMENT = (
    f"no library that it knows is installed here ({', '.join(ADAPTERS)}), so it traces nothing; install one, as in "
    'pip install "queueprop[rq]", or trace a queue of another kind by queueprop.send_span and process_span'
)


def _installed() -> list[str]:
    return [library for library in ADAPTERS if _is_installed(library)]


def _is_installed(library: str) -> bool:
    # kombu, once imported, has put a module in its place that has no spec, which find_spec refuses.
    module = checks.module_of(library)
    if module in sys.modules:
        return sys.modules[module] is not None
    return importlib.util.find_spec(module) is not None


def _load(library: str, word: str) -> Adapter:
    if not isinstance(library, str):
        raise checks.refused(word, f'names of libraries, as in queueprop.{word}("rq", "pika")', library)
    path = ADAPTERS.get(library) or ADAPTERS.get(library.replace("_", "-"))  # as pip, which takes both
    if path is None:
        raise ValueError(f"queueprop has no adapter for {library!r}; it has: {', '.join(ADAPTERS)}")
    module, name = path.split(":")
    adapter: Adapter = getattr(importlib.import_module(module), name)()
    return adapter
