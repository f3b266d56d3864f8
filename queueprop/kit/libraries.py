"""All libraries at once: which there are, ``instrument()`` and ``uninstrument()``, and the options that both take.

Nothing of what patches is imported here: a program that traces by hand has no need of it.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, ParamSpec, Protocol, TypeVar

from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider

from queueprop import guard
from queueprop.kit import checks
from queueprop.settings import Settings, SpanHook

P = ParamSpec("P")
R = TypeVar("R")

# library -> its instrumentor; what the entry points say, for queueprop.instrument()
ADAPTERS = {
    "aio-pika": "queueprop.adapters.aio_pika:AioPikaInstrumentor",
    "aiokafka": "queueprop.adapters.aiokafka:AIOKafkaInstrumentor",
    "bullmq": "queueprop.adapters.bullmq:BullMQInstrumentor",
    "celery": "queueprop.adapters.celery:CeleryInstrumentor",
    "confluent-kafka": "queueprop.adapters.confluent_kafka:ConfluentKafkaInstrumentor",
    "dramatiq": "queueprop.adapters.dramatiq:DramatiqInstrumentor",
    "faststream": "queueprop.adapters.faststream:FastStreamInstrumentor",
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
        libraries: ``aio-pika``, ``aiokafka``, ``bullmq``, ``celery``, ``confluent-kafka``, ``dramatiq``,
            ``faststream``, ``kombu``, ``pika``, ``rq``.
        settings: instead of those of the environment.
        tracer_provider, meter_provider, publish_hook, consume_hook: instead of those of ``settings``.

    Raises ``ValueError`` for a name that queueprop has no adapter for, ``ModuleNotFoundError`` for a library that is
    named but not installed, and ``TypeError`` for an argument of another type.
    """
    wanted = settings_with(
        settings,
        tracer_provider=tracer_provider,
        meter_provider=meter_provider,
        publish_hook=publish_hook,
        consume_hook=consume_hook,
    )
    adapters = [_load(library, "instrument") for library in libraries or _installed()]
    if not adapters:
        guard.mistake("instrument()", _NOTHING_TO_INSTRUMENT)
    say_what_stays(adapters, wanted)
    for adapter in adapters:
        if not adapter.is_instrumented_by_opentelemetry:
            adapter.instrument(settings=wanted)


def uninstrument(*libraries: str) -> None:
    """Takes back ``instrument``: for the libraries that are named, or for all. Raises as ``instrument`` does."""
    for library in libraries or _installed():
        adapter = _load(library, "uninstrument")
        if adapter.is_instrumented_by_opentelemetry:
            adapter.uninstrument()


class Instrumentor(Protocol):
    """What is asked of a library's instrumentor."""

    library: ClassVar[str]

    @property
    def is_instrumented_by_opentelemetry(self) -> bool: ...
    def instrument(self, *, settings: Settings | None = None) -> None: ...
    def uninstrument(self) -> None: ...
    def differs_from(self, wanted: Settings) -> bool: ...


class MissingExtra(ModuleNotFoundError):
    """A library is not installed; the message says what to install."""


def missing_extra(module: str, library: str, extra: str) -> MissingExtra:
    """The error of an adapter whose library is missing: ``queueprop.adapters.rq needs RQ: pip install "..."``."""
    return MissingExtra(f'{module} needs {library}: pip install "queueprop[{extra}]"', name=extra)


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


def settings_with(settings: Settings | None, **options: object) -> Settings | None:
    """The settings with the options that are given; None where there is neither."""
    checks.check_settings("instrument", settings)
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    return dataclasses.replace(settings or Settings(), **given) if given else settings


def say_what_stays(adapters: Iterable[Instrumentor], wanted: Settings | None) -> None:
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


def _load(library: str, word: str) -> Instrumentor:
    if not isinstance(library, str):
        raise checks.refused(word, f'names of libraries, as in queueprop.{word}("rq", "pika")', library)
    path = ADAPTERS.get(library) or ADAPTERS.get(library.replace("_", "-"))  # as pip, which takes both
    if path is None:
        raise ValueError(
            f"queueprop has no adapter for {library!r}; {_meant(library)}it has: {', '.join(ADAPTERS)}"
        )
    module, name = path.split(":")
    adapter: Instrumentor = getattr(importlib.import_module(module), name)()
    return adapter


def _meant(library: str) -> str:
    """What somebody may have meant by a name that is none: a typo, or the broker behind the library."""
    name = library.strip().lower().replace("_", "-")
    if clients := _CLIENTS.get(name):
        return f"that is a broker, instrument its client ({' or '.join(clients)}); "
    near = difflib.get_close_matches(name, ADAPTERS, n=1)
    return f"did you mean {near[0]!r}? " if near else ""


_CLIENTS = {
    "amqp": ("pika", "aio-pika", "kombu"),
    "kafka": ("aiokafka", "confluent-kafka"),
    "rabbitmq": ("pika", "aio-pika", "kombu"),
    "redis": ("rq", "celery", "dramatiq", "bullmq", "kombu"),
}
