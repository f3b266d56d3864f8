"""A Celery application for the tests, and its worker's telemetry. ``celery -A integration.celery_tasks worker``.

What it is to be traced with stands in the environment, since a prefork worker is a program of its own.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from celery import Celery, bootsteps, signals
from kombu import Consumer, Exchange, Queue
from opentelemetry import trace

from integration.contract.telemetry import RECORDS, set_providers, tell

BROKER = "_QUEUEPROP_CELERY_BROKER"
TRACED = "_QUEUEPROP_CELERY_TRACED"
"""Comma-separated: ``kombu`` for queueprop's adapter, ``celery`` for Celery's own instrumentation."""
PROTOCOL = "_QUEUEPROP_CELERY_PROTOCOL"

ORDERS = Queue("celery-orders", Exchange("celery-orders", "direct"), "celery-orders")


class OrdersStep(bootsteps.ConsumerStep):  # type: ignore[misc]
    """A consumer of the user's in Celery's own loop."""

    def get_consumers(self, channel: Any) -> list[Consumer]:
        return [Consumer(channel, queues=[ORDERS], callbacks=[self.on_order])]

    def on_order(self, body: Any, message: Any) -> None:
        tell("order", {"body": body, "trace_id": _trace_id()})
        message.ack()


def make(broker_url: str, protocol: int = 2) -> Celery:
    app: Any = Celery("integration.celery_tasks")
    app.conf.update(
        broker_url=broker_url,
        result_backend=broker_url if broker_url.startswith("redis") else "rpc://",
        worker_send_task_events=True,
        task_send_sent_event=True,
        task_protocol=protocol,
        broker_connection_retry_on_startup=True,
        worker_hijack_root_logger=False,
    )
    app.steps["consumer"].add(OrdersStep)

    @app.task(name="add", shared=False)  # type: ignore[untyped-decorator]
    def add(left: int, right: int) -> int:
        return left + right

    @app.task(name="total", shared=False)  # type: ignore[untyped-decorator]
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    @app.task(name="look", shared=False, bind=True)  # type: ignore[untyped-decorator]
    def look(task: Any) -> dict[str, Any]:
        return _seen(task.request)

    @app.task(name="flaky", shared=False, bind=True, max_retries=2)  # type: ignore[untyped-decorator]
    def flaky(task: Any) -> dict[str, Any]:
        if task.request.retries < 2:
            raise task.retry(countdown=0)
        return _seen(task.request)

    @app.task(name="fail", shared=False)  # type: ignore[untyped-decorator]
    def fail() -> None:
        raise ValueError("out of stock")

    return app


def _seen(request: Any) -> dict[str, Any]:
    """What came with a task, and what is current in it."""
    names = ("traceparent", "tracestate", "baggage", "tenant")
    headers = {**(request.headers or {}), **vars(request)}  # the first protocol has them apart
    return {
        "headers": {name: headers[name] for name in names if headers.get(name) is not None},
        "trace_id": _trace_id(),
        "retries": request.retries,
    }


def _trace_id() -> str:
    return f"{trace.get_current_span().get_span_context().trace_id:032x}"


def trace_with(names: str) -> None:
    """Instruments this process, and (in a worker) the children that it forks."""
    if "celery" in names.split(","):
        _celery_instrumentor().instrument()
    if "kombu" in names.split(","):
        from queueprop.adapters.kombu import KombuInstrumentor

        KombuInstrumentor().instrument()


def untrace() -> None:
    import queueprop

    queueprop.uninstrument("kombu")
    if "opentelemetry.instrumentation.celery" in sys.modules:
        instrumentor = _celery_instrumentor()
        if instrumentor.is_instrumented_by_opentelemetry:
            instrumentor.uninstrument()


def _celery_instrumentor() -> Any:
    """Only where it is asked for: it need not be installed."""
    return importlib.import_module("opentelemetry.instrumentation.celery").CeleryInstrumentor()


def _flush(**_: Any) -> None:
    provider: Any = trace.get_tracer_provider()
    if hasattr(provider, "force_flush"):
        provider.force_flush()


def _begin(**_: Any) -> None:
    """In the worker's program, before it forks."""
    if RECORDS in os.environ:
        set_providers()
        trace_with(os.environ.get(TRACED, ""))


signals.task_received.connect(_flush, weak=False)  # in the process that consumes
signals.task_postrun.connect(_flush, weak=False)  # in the one that runs the task
signals.worker_shutdown.connect(_flush, weak=False)
signals.celeryd_init.connect(_begin, weak=False)


app = make(os.environ.get(BROKER, "memory://"), int(os.environ.get(PROTOCOL, "2")))


@app.task(name="elsewhere", shared=False, bind=True)  # type: ignore[untyped-decorator]
def elsewhere(task: Any) -> dict[str, Any]:
    """The tests' applications do not know this one."""
    return _seen(task.request)
