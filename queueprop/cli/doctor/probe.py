"""What one process is like: versions, variables, OpenTelemetry as it is set up, and how the process may end.

``queueprop doctor -- python worker.py`` puts this file into that program, whose environment need not have queueprop, or
has another version of it. So it imports nothing but Python's own modules, and of all others it looks only at what the
program has imported by itself. It judges nothing: what it finds is plain data, and the doctor reads it.

``begin`` starts one thread, which no list of threads has, and which waits; then it writes the report into a file.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
from _thread import start_new_thread
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from time import sleep
from types import FrameType
from typing import Any

FOLDER = "_QUEUEPROP_DOCTOR_FOLDER"
"""The variable that names the folder of the reports; without it there are none."""
SECONDS = "_QUEUEPROP_DOCTOR_SECONDS"
"""The variable that says how long a program is left alone before it is looked into."""

LONGEST_IMPORT = 30.0
"""Seconds that it is left alone beyond that, where it still imports."""

MOST_REPORTS = 16
"""Of a program and those that it starts."""

DISTRIBUTIONS = (
    *("queueprop", "aio-pika", "aiokafka", "bullmq", "celery", "confluent-kafka", "dramatiq", "faststream"),
    *("kombu", "pika", "rq", "redis", "django-rq", "rq-scheduler", "gevent", "eventlet", "gunicorn", "uwsgi"),
    *("opentelemetry-api", "opentelemetry-sdk", "opentelemetry-instrumentation", "opentelemetry-distro"),
    *("opentelemetry-exporter-otlp-proto-http", "opentelemetry-exporter-otlp-proto-grpc"),
    *("opentelemetry-exporter-otlp", "opentelemetry-exporter-prometheus"),
    *("opentelemetry-instrumentation-aio-pika", "opentelemetry-instrumentation-aiokafka"),
    *("opentelemetry-instrumentation-celery", "opentelemetry-instrumentation-confluent-kafka"),
    *("opentelemetry-instrumentation-pika", "opentelemetry-instrumentation-kafka-python"),
    *("opentelemetry-instrumentation-rq", "opentelemetry-instrumentor-dramatiq"),
    *("ddtrace", "sentry-sdk", "newrelic", "logfire"),
)
"""Whose versions are told."""

MODULES = (
    *(
        "aio_pika",
        "aiokafka",
        "bullmq",
        "celery",
        "confluent_kafka",
        "dramatiq",
        "faststream",
        "kombu",
        "pika",
    ),
    *("rq", "gevent", "eventlet", "gunicorn", "uwsgi", "ddtrace", "sentry_sdk", "newrelic", "logfire"),
    *("celery.concurrency.prefork", "opentelemetry.sdk.trace", "queueprop", "queueprop.sdk"),
    "opentelemetry.instrumentation.auto_instrumentation",
)
"""Of which is told whether they are imported."""

_PAUSE = 0.25
_QUIET = 0.5  # seconds without an import
_LONGEST = 2000
_MOST_RESOURCE = 100


def facts() -> dict[str, Any]:
    """All that is found. What cannot be told is left out, with the reason among ``troubles``."""
    found: dict[str, Any] = {"pid": os.getpid(), "troubles": []}
    for name, look in _LOOKS.items():
        try:
            found[name] = look()
        except Exception as error:  # whatever the program's own objects raise
            found["troubles"].append(f"{name}: {_text(repr(error))}")
    return found


def begin() -> None:
    """Lets this process be looked into, once: after a moment, and at its exit where that comes earlier."""
    global _begun
    folder = os.environ.get(FOLDER)
    if _begun or not folder:
        return
    _begun = True
    try:
        seconds = float(os.environ.get(SECONDS, "5"))
        atexit.register(_report, folder, os.getpid(), at_exit=True)
        start_new_thread(_report_later, (folder, os.getpid(), seconds))
    except Exception:  # the program goes on as it would without us
        return


_begun = False


def leave_the_path(place: str) -> None:
    """Takes the doctor's folder out of ``sys.path`` again, and gives the program the ``sitecustomize`` that it has."""
    ours = sys.modules.get("sitecustomize")
    sys.path[:] = [path for path in sys.path if path != place]
    sys.path_importer_cache.pop(place, None)
    sys.modules.pop("sitecustomize", None)
    try:
        import sitecustomize  # type: ignore[import-not-found, unused-ignore]  # noqa: F401
    except ImportError as error:
        if error.name != "sitecustomize":
            raise
    finally:
        if ours is not None:  # Python's import takes it out of there, and puts it back
            sys.modules.setdefault("sitecustomize", ours)


def _report_later(folder: str, pid: int, seconds: float) -> None:
    sleep(seconds)
    waited, quiet = 0.0, 0.0
    while quiet < _QUIET and waited < LONGEST_IMPORT:  # what it sets up comes behind what it imports
        sleep(_PAUSE)
        waited += _PAUSE
        quiet = 0.0 if _is_importing() else quiet + _PAUSE
    _report(folder, pid)


def _report(folder: str, pid: int, at_exit: bool = False) -> None:
    """Once, and only of the process that began: a forked child is what its parent is, as far as can be seen here."""
    path = os.path.join(folder, f"{pid}.json")
    try:
        if pid != os.getpid() or os.path.exists(path) or len(os.listdir(folder)) >= 2 * MOST_REPORTS:
            return
        with open(f"{path}.part", "x", encoding="utf-8") as file:
            json.dump({**facts(), "at_exit": at_exit}, file, default=_text)
        os.replace(f"{path}.part", path)
    except Exception:  # the folder is gone: the doctor waits no more
        return


# What is looked at


def _program() -> dict[str, Any]:
    return {
        "argv": [_text(argument) for argument in getattr(sys, "orig_argv", sys.argv)][:50],
        "python": ".".join(map(str, sys.version_info[:3])),
        "executable": sys.executable,
        "parent": os.getppid(),
    }


def _variables() -> dict[str, str]:
    """Ours and OpenTelemetry's with their values. Of all others the name alone: it may be a misspelt one."""
    return {
        name: _text(value) if name.upper().startswith(("OTEL_", "QUEUEPROP_")) else ""
        for name, value in os.environ.items()
        if not name.startswith(("_QUEUEPROP_", "_"))
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _modules() -> list[str]:
    adapters = [name for name in list(sys.modules) if name.startswith("queueprop.adapters.")]
    return [name for name in (*MODULES, *adapters) if sys.modules.get(name) is not None]


def _instrumentors() -> list[dict[str, Any]]:
    """Every instrumentor that was made, by its class, and whether it instruments now."""
    base = _loaded("opentelemetry.instrumentation.instrumentor", "BaseInstrumentor")
    found = []
    for kind in _subclasses(base) if base is not None else ():
        instance = vars(kind).get("_instance")
        if instance is None:
            continue
        found.append(
            {
                "class": f"{kind.__module__}.{kind.__qualname__}",
                "instrumented": bool(instance.is_instrumented_by_opentelemetry),
                "settings": _settings(instance),
            }
        )
    return found


def _settings(instrumentor: Any) -> dict[str, str]:
    """Of one of ours: what it was given, as text."""
    settings = getattr(getattr(instrumentor, "engine", None), "settings", None)
    names = list(getattr(settings, "__dataclass_fields__", ()))
    return {_text(name): _text(repr(getattr(settings, name, None))) for name in names}


def _subclasses(kind: Any) -> Iterator[Any]:
    for derived in type.__subclasses__(kind):
        yield derived
        yield from _subclasses(derived)


def _tracing() -> dict[str, Any]:
    """The tracer provider in force, its sampler, resource and processors."""
    provider = _global_provider("opentelemetry.trace", "_TRACER_PROVIDER")
    if provider is None:
        return {"provider": None}
    sampler = getattr(provider, "sampler", None)
    return {
        "provider": _class_name(provider),
        "is_configured_by_queueprop": provider is _loaded("queueprop.sdk", "_configured"),
        "sampler": None if sampler is None else _text(sampler.get_description()),
        "resource": _resource(provider),
        "processors": [_processor(each) for each in _processors(provider)],
    }


def _metering() -> dict[str, Any]:
    provider = _global_provider("opentelemetry.metrics._internal", "_METER_PROVIDER")
    return {"provider": None if provider is None else _class_name(provider)}


def _propagators() -> list[str] | None:
    get = _loaded("opentelemetry.propagate", "get_global_textmap")
    return None if get is None else [_class_name(each) for each in _flattened(get())]


def _sigterm() -> str:
    handler = signal.getsignal(signal.SIGTERM)
    if handler is None:
        return "unknown"
    if isinstance(handler, signal.Handlers):
        return "default" if handler is signal.SIG_DFL else "ignored"
    return f"{getattr(handler, '__module__', '?')}.{getattr(handler, '__qualname__', '?')}"


def _green() -> dict[str, Any]:
    """Whether gevent or eventlet has patched threads."""
    gevent = _loaded("gevent.monkey", "is_module_patched")
    eventlet = _loaded("eventlet.patcher", "already_patched")
    return {
        "gevent": bool(gevent and gevent("threading")),
        "eventlet": bool(isinstance(eventlet, dict) and (eventlet.get("thread") or eventlet.get("MONKEY"))),
    }


def _worker_hooks() -> int | None:
    """How many receivers Celery's signals of a child's begin and end have; None without Celery."""
    signals = sys.modules.get("celery.signals")
    if signals is None:
        return None
    return sum(
        len(getattr(getattr(signals, name, None), "receivers", None) or ())
        for name in ("worker_process_init", "worker_process_shutdown")
    )


def _running() -> list[str]:
    """Which worker's loop a thread of this process is in: ``rq``, ``celery``, ``dramatiq``."""
    found: set[str] = set()
    for frame in list(sys._current_frames().values()):
        for place in map(_place, _and_callers(frame)):
            found.update(name for name, places in _LOOPS.items() if place in places)
    return sorted(found)


def _is_importing() -> bool:
    frames = list(sys._current_frames().values())
    return any(
        "importlib._bootstrap" in each.f_code.co_filename for it in frames for each in _and_callers(it)
    )


_LOOPS = {
    "rq": {("rq.worker", "work"), ("rq.worker.base", "work"), ("rq.worker.worker_classes", "work")},
    "celery": {("celery.worker.worker", "start")},
}


def _and_callers(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _place(frame: FrameType) -> tuple[str, str]:
    return str(frame.f_globals.get("__name__", "")), frame.f_code.co_name


def _uwsgi() -> dict[str, bool] | None:
    """Inside uWSGI: whether its workers may have threads, and load the application after the fork."""
    module = sys.modules.get("uwsgi")
    options = getattr(module, "opt", None)
    if not isinstance(options, dict):
        return None
    return {
        "threads": any(
            name in options for name in ("enable-threads", b"enable-threads", "threads", b"threads")
        ),
        "lazy": any(name in options for name in ("lazy-apps", b"lazy-apps", "lazy", b"lazy")),
    }


def _said() -> list[str]:
    """What queueprop has told of this process's mistakes and faults."""
    logged = _loaded("queueprop.guard", "_logged")
    return [_text(what) for what in list(logged)][:50] if isinstance(logged, dict) else []


_LOOKS: dict[str, Callable[[], Any]] = {
    "program": _program,
    "variables": _variables,
    "versions": _versions,
    "modules": _modules,
    "instrumentors": _instrumentors,
    "tracing": _tracing,
    "metering": _metering,
    "propagators": _propagators,
    "sigterm": _sigterm,
    "green": _green,
    "worker_hooks": _worker_hooks,
    "running": _running,
    "importing": _is_importing,
    "uwsgi": _uwsgi,
    "said": _said,
}


# OpenTelemetry's objects


def _global_provider(module: str, name: str) -> Any:
    """The one that was set, without making one: who asks OpenTelemetry for it sets it by the environment."""
    return _loaded(module, name)


def _resource(provider: Any) -> dict[str, str]:
    attributes = getattr(getattr(provider, "resource", None), "attributes", None) or {}
    return {_text(name): _text(value) for name, value in list(attributes.items())[:_MOST_RESOURCE]}


def _processors(provider: Any) -> list[Any]:
    active = getattr(provider, "_active_span_processor", None)
    return list(getattr(active, "_span_processors", None) or ())


def _processor(processor: Any) -> dict[str, Any]:
    batches = getattr(processor, "_batch_processor", None)
    exporter = getattr(batches, "_exporter", None) or getattr(processor, "span_exporter", None)
    inner = getattr(exporter, "_exporter", None)  # queueprop's own is around that of each process
    if type(exporter).__module__.startswith("queueprop.") and inner is not None:
        exporter = inner
    return {
        "class": _class_name(processor),
        "is_batch": batches is not None or hasattr(processor, "worker_thread"),
        "locks": sorted(_kinds_of_locks([processor, batches])),
        "exporter": None if exporter is None else _class_name(exporter),
        "endpoint": _text_or_none(getattr(exporter, "_endpoint", None)),
        "headers": sorted(_names_of_headers(getattr(exporter, "_headers", None))),
    }


def _kinds_of_locks(owners: Iterable[Any]) -> set[str]:
    """``native`` or ``green``: gevent's and eventlet's are classes of theirs."""
    values = [value for owner in owners if owner is not None for value in _attributes_of(owner)]
    # Older SDKs have a condition, which has the lock.
    values += [getattr(value, "_lock", None) for value in values if type(value).__name__ == "Condition"]
    kinds = {type(value) for value in values if callable(getattr(type(value), "acquire", None))}
    return {"green" if kind.__module__.startswith(("gevent", "eventlet")) else "native" for kind in kinds}


def _attributes_of(owner: Any) -> list[Any]:
    return list(getattr(owner, "__dict__", {}).values())


def _names_of_headers(headers: Any) -> set[str]:
    """Names alone: a value is often a key."""
    if isinstance(headers, dict):
        return {_text(name) for name in headers}
    if isinstance(headers, (list, tuple)):
        return {_text(pair[0]) for pair in headers if isinstance(pair, (list, tuple)) and pair}
    return set()


def _flattened(propagator: Any) -> Iterator[Any]:
    parts = getattr(propagator, "_propagators", None)
    if isinstance(parts, (list, tuple)):
        for part in parts:
            yield from _flattened(part)
    else:
        yield propagator


def _loaded(module: str, name: str) -> Any:
    return getattr(sys.modules.get(module), name, None)


def _class_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _text_or_none(value: Any) -> str | None:
    return None if value is None else _text(value)


def _text(value: Any) -> str:
    return str(value)[:_LONGEST]
