"""A program with Celery, queueprop and others' instrumentations of it, for ``test_celery_layers.py``.

``python celery_layers.py NAME...``: what is switched on, in this order: ``queueprop``, ``kombu``, ``sentry``,
``contrib``, ``ddtrace``. It sends a task, executes it here as a worker does, and prints what came of it as JSON.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import sys
from typing import Any

from celery import Celery
from celery.worker.request import Request
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


def switch_on(name: str) -> None:
    if name in ("queueprop", "kombu"):
        import queueprop

        queueprop.instrument("celery" if name == "queueprop" else "kombu")
    elif name == "sentry":
        integration = importlib.import_module("sentry_sdk.integrations.celery").CeleryIntegration()
        importlib.import_module("sentry_sdk").init(
            "http://key@localhost:1/1",
            integrations=[integration],
            traces_sample_rate=1.0,
            transport=_drop,
        )
    elif name == "contrib":
        importlib.import_module("opentelemetry.instrumentation.celery").CeleryInstrumentor().instrument()
    elif name == "ddtrace":
        importlib.import_module("ddtrace").patch(celery=True)
    else:
        raise LookupError(name)


def _drop(event: Any) -> None: ...


def _transaction() -> Any:
    return importlib.import_module("sentry_sdk").start_transaction(name="order")


def main(*names: str) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    warnings: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("queueprop").addHandler(handler)
    for name in names:
        switch_on(name)

    app: Any = Celery("shop", broker="memory://", set_as_current=False)
    seen: dict[str, Any] = {}

    @app.task(name="work", bind=True, shared=False)  # type: ignore[untyped-decorator]
    def work(task: Any) -> None:
        seen["current"] = f"{trace.get_current_span().get_span_context().span_id:016x}"
        seen["headers"] = task.request.headers
        seen["retries"] = task.request.retries
        if not task.request.retries:
            raise task.retry(countdown=0)

    sent = []
    with _transaction() if "sentry" in names else contextlib.nullcontext():
        work.apply_async(headers={"tenant": "a"})
    for _ in range(2):
        with app.connection() as connection, connection.channel() as channel:
            message = app.amqp.queues["celery"].bind(channel).get()
        sent.append(message.headers)
        Request(message, app=app).execute()
    print(
        json.dumps(
            {
                # Without those of this program's own pulling.
                "spans": [
                    _plain(span)
                    for span in exporter.get_finished_spans()
                    if span.kind in (trace.SpanKind.PRODUCER, trace.SpanKind.CONSUMER)
                ],
                "seen": seen,
                "sent": sent,
                "warnings": warnings,
            },
            default=repr,
        )
    )


def _plain(span: ReadableSpan) -> dict[str, Any]:
    assert span.context is not None
    return {
        "kind": span.kind.name,
        "scope": span.instrumentation_scope.name if span.instrumentation_scope else "",
        "trace_id": f"{span.context.trace_id:032x}",
        "span_id": f"{span.context.span_id:016x}",
        "parent_id": f"{span.parent.span_id:016x}" if span.parent else None,
        "system": (span.attributes or {}).get("messaging.system"),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
