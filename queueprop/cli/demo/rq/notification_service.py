"""notification-service: the worker that sends the mails."""

from __future__ import annotations

import logging
import os
import time

from opentelemetry import trace
from redis import Redis
from rq import SimpleWorker, Worker, get_current_job

import queueprop
from queueprop.logs import TraceContextFilter
from queueprop.sdk import configure_tracing

log = logging.getLogger("notification-service")
tracer = trace.get_tracer("notification-service")


def send_confirmation(email: str, item: str) -> None:
    """The job: it runs inside queueprop's span, in the trace of the order."""
    log.info("confirming %s to %s", item, email)
    with tracer.start_as_current_span("send mail"):
        time.sleep(0.02)  # the mail server's answer
        if email.startswith("nobody@"):
            raise ValueError(f"no such mailbox: {email}")
        if email.startswith("busy@") and _may_be_retried():
            raise ConnectionError("the mail server is busy")


def _may_be_retried() -> bool:
    job = get_current_job()
    return job is not None and bool(job.retries_left)


def main() -> None:
    handler = logging.StreamHandler()
    handler.addFilter(TraceContextFilter())
    logging.basicConfig(
        level=logging.INFO, format="%(levelname)s trace_id=%(trace_id)s %(message)s", handlers=[handler]
    )

    configure_tracing("notification-service")
    worker_class: type[Worker | SimpleWorker] = Worker
    if "WITHOUT_QUEUEPROP" not in os.environ:
        queueprop.instrument("rq")
    else:  # the demo's second run. A forked job ends in os._exit: nobody else hands over its spans.
        worker_class = SimpleWorker

    redis = Redis.from_url(os.environ.get("REDIS_URL", "redis://localhost:6379"))
    worker = worker_class([os.environ.get("QUEUE", "emails")], connection=redis)
    log.info("waiting for messages")
    worker.work(with_scheduler=True, logging_level="WARNING")


if __name__ == "__main__":
    main()
