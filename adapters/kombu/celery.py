"""What Celery sends through kombu: its user's tasks are traced, its housekeeping is not."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

from queueprop import guard
from queueprop.engine.engine import Engine
from queueprop.kit.calls import Arguments, Options, Wrapped
from queueprop.kit.nesting import is_in_a_span
from queueprop.wire import propagation

_CELERY_TASKS = "celery.app.amqp"


def sends_tasks(caller: str) -> bool:
    """Whether this module of Celery sends a task for its user."""
    return caller == _CELERY_TASKS


def caller_of(frame: types.FrameType | None) -> str:
    """The module of the code that called a patched function."""
    name = ""
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if not name.startswith(_BETWEEN):
            break
        frame = frame.f_back
    return name


# Wrappers (wrapt has frames without its C extension) and kombu's own loops around a call that may be repeated.
_BETWEEN = ("wrapt.", "sentry_sdk.", "kombu.connection", "kombu.utils.functional")


def is_housekeeping(module: str) -> bool:
    """Whether this is code of Celery's or kombu's own that does not act for the user.

    Heartbeats, remote control, results, moving queues; what Celery publishes for its user are tasks.
    """
    return module == "kombu.pidbox" or (module.startswith("celery.") and module != _CELERY_TASKS)


def _has_celery_s_span(headers: Any) -> bool:
    """Whether OpenTelemetry's instrumentation of Celery made this task's PRODUCER span.

    It does where it finds the task's id: in the headers, or in the body of the first protocol's if there are none.
    """
    module = sys.modules.get("opentelemetry.instrumentation.celery")
    instance = getattr(getattr(module, "CeleryInstrumentor", None), "_instance", None)
    if instance is None or not instance.is_instrumented_by_opentelemetry:
        return False
    return not headers or (isinstance(headers, Mapping) and "id" in headers)


def is_control(exchange: Any) -> bool:
    """Whether messages of this exchange are Celery's events or kombu's remote control."""
    return isinstance(exchange, str) and (exchange == "celeryev" or exchange.endswith(".pidbox"))


def publish_task(
    engine: Engine,
    publish: Callable[[Arguments, Options], Any],
    wrapped: Wrapped,
    args: Arguments,
    kwargs: Options,
) -> Any:
    """Sends a task, with ``publish`` where its PRODUCER span is ours to make.

    A retry inherits the headers of its task, and nothing need be current in the worker: it goes on in their trace.
    """
    headers = kwargs.get("headers")
    if _has_celery_s_span(headers):
        carried = propagation.read(headers)
        if carried.reason is None:
            return wrapped(*args, **kwargs)
        if is_in_a_span():
            return wrapped(*args, **_with_current(engine, kwargs))
    return publish(args, kwargs)


def _with_current(engine: Engine, kwargs: Options) -> Options:
    """The span of Celery's own instrumentation is current, and did not come into the headers: it leaves alone what
    is empty, as the headers of Celery's first task protocol are.
    """
    try:
        written = engine.carrier()
        return {**kwargs, "headers": {**(kwargs.get("headers") or {}), **written}} if written else kwargs
    except Exception as error:
        guard.fault("writing the headers of a task", error)
        return kwargs
