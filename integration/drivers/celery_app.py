"""What Celery's workers import: the contract's one task, and what a worker that serves many runs does between them.

``celery -A integration.drivers.celery_app worker`` is a program of its own, and is started once for many runs. Before a
message is looked at in its main process, and before a task is executed in whatever process that is, it reads what the
run at hand wants (a file that the driver has written), and sets up as a program of that run would: providers, the
propagator, the instrumentor or the explicit API. After a task its process hands over what it has.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import kombu
from celery import Celery, signals
from celery.exceptions import Reject
from celery.worker.control import control_command
from opentelemetry import propagate

from integration.contract import telemetry
from integration.contract.actions import Delivery, Handler, HandlerError, run
from integration.contract.telemetry import RECORDS, SDK, capture_logs, set_providers, tell, tell_library_error
from queueprop import Settings, guard
from queueprop.adapters import celery as adapter
from queueprop.adapters.celery.joining import joined

RUN = "_QUEUEPROP_CELERY_RUN"
"""The file that tells a worker of the run at hand."""
BROKER = "_QUEUEPROP_CELERY_BROKER"
API = "_QUEUEPROP_CELERY_API"

RECEIVED, OVER, SETTLED = "received", "over", "settled"
"""What a worker tells of a message: that it has it, that its task was executed, that the broker has its answer."""

TASK = "contract.perform"
SHORT = {"polling_interval": 0.02}
"""A worker on Redis waits that long for a message before it looks at another queue; by default a second."""
CONFIRMED = {"confirm_publish": True}
"""RabbitMQ answers each publish: a plain client, on a connection of its own, would look before the message is there."""


def make(broker: str | None, kind: type[Any] = Celery, **options: Any) -> Any:
    """An application with the contract's task."""
    made = kind("contract", broker=broker, set_as_current=False, **options)
    made.conf.update(
        task_ignore_result=True,
        task_create_missing_queues=True,
        broker_transport_options=SHORT if (broker or "").startswith("redis") else CONFIRMED,
        broker_connection_retry_on_startup=True,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_enable_remote_control=True,
        worker_proc_alive_timeout=60.0,
    )
    made.task(perform, name=TASK, bind=True, shared=False, acks_late=True, reject_on_worker_lost=True)
    return made


def perform(task: Any, body: str, refusal: str | None = None, retries: int = 0) -> None:
    """The task: hands over to the handler that the run asked for."""
    wanted = _run
    request = task.request

    def publish(body: str, headers: Mapping[str, Any] | None = None) -> None:
        send = task.apply_async
        settings = wanted.get("settings")
        if wanted["api"] == "explicit" and settings is not None:
            send = adapter.traced_publish(send, settings=Settings(**settings))
        send((body,), headers=headers, queue=wanted["other_queue"])

    try:
        run(Handler.load(wanted["handler"]), Delivery(body, request.headers, publish))
    except HandlerError as error:
        if refusal == "reject":
            raise Reject(error, requeue=False) from error
        if retries:
            raise task.retry(exc=error, countdown=0, max_retries=retries)  # noqa: B904 - as users write it
        raise


# In a worker


_run: dict[str, Any] = {}


def _read() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(os.environ[RUN]).read_text())
    return found


def _enter_run() -> None:
    """Sets this process up for the run at hand, unless it is."""
    wanted = _read()
    if wanted == _run:
        return
    flush()
    _run.clear()
    _run.update(wanted)
    os.environ[RECORDS], os.environ[SDK] = wanted["records"], str(int(wanted["sdk"]))
    telemetry._forget_providers()
    _providers[:] = set_providers() if wanted["sdk"] else ()
    propagators = wanted["propagators"]
    propagate.set_global_textmap(telemetry._propagators(propagators) if propagators else _default_propagator)
    guard._logged.clear()
    guard._said_before = frozenset(wanted["said"])
    if not _is_child():
        guard._sayers[:] = bytes(len(guard._sayers))
    _trace(wanted)


def _trace(wanted: Mapping[str, Any]) -> None:
    given = wanted["settings"]
    settings = None if given is None else Settings(**given)
    if wanted["api"] == "explicit":
        joined.leave(app)
        if settings is not None:
            adapter.traced_app(app, settings=settings)
        return
    instrumentor = adapter.CeleryInstrumentor()
    if instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.uninstrument()
    if settings is not None:
        instrumentor.instrument(settings=settings)


_providers: list[Any] = []
_default_propagator = propagate.get_global_textmap()


def _is_child() -> bool:
    return os.getpid() != _main_process


_main_process = os.getpid()


def flush() -> None:
    for provider in _providers:
        provider.force_flush()


def _tell_what_becomes_of(message: Any) -> None:
    """The process that receives it acknowledges it, in its own time after another has executed the task."""
    tell(RECEIVED, {})
    for name in ("ack", "reject", "requeue"):
        setattr(message, name, _and_tell(getattr(message, name)))


def _and_tell(settle: Callable[..., None]) -> Callable[..., None]:
    def settle_and_tell(*args: Any, **kwargs: Any) -> None:
        settle(*args, **kwargs)
        tell(SETTLED, {})

    return settle_and_tell


def execute(*args: Any, **kwargs: Any) -> Any:
    """In place of Celery's own function that executes a task, in every pool.

    A retry is sent before its attempt is over, and there are several processes or threads: it waits for that end, so
    that what is told comes in the order of the attempts.
    """
    _enter_run()
    with open(f"{os.environ[RECORDS]}.{args[1]}", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            return _execute(*args, **kwargs)
        finally:
            flush()
            tell(OVER, {})


@control_command(args=[("queue", str)], signature="<queue>")  # type: ignore[untyped-decorator]
def leave_queue(state: Any, queue: str) -> dict[str, str]:
    """Stops to consume from it, and hands over what the main process has."""
    state.consumer.cancel_task_queue(queue)
    flush()
    return {"ok": queue}


def _tell_error(retval: Any = None, state: str | None = None, **_: Any) -> None:
    """What Celery hands to its users of a task that failed."""
    error = retval
    if state == "RETRY":
        error = retval.exc
    elif state == "REJECTED":
        error = retval.reason
    if isinstance(error, BaseException):
        tell_library_error(error)


app = make(os.environ.get(BROKER, "memory://"))

if RUN in os.environ:
    trace: Any = importlib.import_module("celery.app.trace")
    request: Any = importlib.import_module("celery.worker.request")
    consumer: Any = importlib.import_module("celery.worker.consumer.consumer")

    _execute = trace.fast_trace_task
    trace.fast_trace_task = request.fast_trace_task = execute

    _create_task_handler = consumer.Consumer.create_task_handler

    def create_task_handler(self: Any, *args: Any, **kwargs: Any) -> Any:
        handler = _create_task_handler(self, *args, **kwargs)

        def on_task_received(message: Any) -> Any:
            _enter_run()
            _tell_what_becomes_of(message)
            return handler(message)

        return on_task_received

    consumer.Consumer.create_task_handler = create_task_handler

    _drain_events = kombu.Connection.drain_events

    def drain_events(self: Any, timeout: float | None = None, **options: Any) -> Any:
        """A worker of threads looks every two seconds whether it is told something."""
        return _drain_events(self, timeout=timeout and min(timeout, 0.05), **options)

    kombu.Connection.drain_events = drain_events
    signals.task_postrun.connect(_tell_error, weak=False)
    capture_logs()
    if os.environ[API] == "explicit":
        adapter.traced_app(app)
        joined.leave(app)
