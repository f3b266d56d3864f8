"""notification-service: the worker that sends the mails, keeps a copy of each, and reports."""

from __future__ import annotations

import logging
import os
import signal
import time
from typing import Any

from celery import Celery, signals
from opentelemetry import trace

import queueprop
from queueprop.logs import TraceContextFilter
from queueprop.sdk import configure_tracing

log = logging.getLogger("notification-service")
tracer = trace.get_tracer("notification-service")

app: Any = Celery("notification-service", broker=os.environ.get("REDIS_URL", "redis://localhost:6379"))
app.conf.update(
    task_default_queue="emails",
    task_routes={"store_copy": {"queue": "copies"}, "report": {"queue": "reports"}},
    task_ignore_result=True,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
    broker_transport_options={"global_keyprefix": os.environ.get("NAMESPACE", "celery") + ":"},
)


@app.task(name="send_confirmation", bind=True, shared=False)  # type: ignore[untyped-decorator]
def send_confirmation(task: Any, email: str, item: str, retries: int) -> None:
    """A task: it runs inside queueprop's span, in the trace of the order."""
    log.info("confirming %s to %s", item, email)
    try:
        with tracer.start_as_current_span("send mail"):
            time.sleep(0.02)  # the mail server's answer
            if email.startswith("nobody@"):
                raise ValueError(f"no such mailbox: {email}")
            if email.startswith("busy@") and task.request.retries < retries:
                raise ConnectionError("the mail server is busy")
    except ConnectionError as error:
        raise task.retry(exc=error, countdown=0.1, max_retries=retries) from error


@app.task(name="store_copy", shared=False)  # type: ignore[untyped-decorator]
def store_copy(item: str) -> None:
    """The next task of the chain: in the same trace."""
    with tracer.start_as_current_span("write copy"):
        time.sleep(0.3)  # long enough for the spans of this process's earlier tasks to be exported
        if item == "sugar":
            os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does it where memory runs out


@app.task(name="report", shared=False)  # type: ignore[untyped-decorator]
def report() -> None:
    """The beat's: a trace of its own."""
    with tracer.start_as_current_span("count mails"):
        log.info("reporting")


def main() -> None:
    handler = logging.StreamHandler()
    handler.addFilter(TraceContextFilter())
    logging.basicConfig(
        level=logging.INFO, format="%(levelname)s trace_id=%(trace_id)s %(message)s", handlers=[handler]
    )
    for library in ("celery", "kombu"):
        logging.getLogger(library).setLevel(logging.WARNING)

    configure_tracing("notification-service")
    if "WITHOUT_QUEUEPROP" not in os.environ:  # the demo's second run
        queueprop.instrument("celery")

    signals.worker_ready.connect(lambda **_: log.info("waiting for messages"), weak=False)
    app.worker_main(["-q", "worker", "--queues=emails,copies,reports", "--concurrency=2", "--loglevel=INFO"])


if __name__ == "__main__":
    main()
