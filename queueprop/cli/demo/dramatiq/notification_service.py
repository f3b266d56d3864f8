"""notification-service: the worker that sends the mails."""

from __future__ import annotations

import logging
import os
import time

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import CurrentMessage
from opentelemetry import trace

import queueprop
from queueprop.logs import TraceContextFilter
from queueprop.sdk import configure_tracing

log = logging.getLogger("notification-service")
tracer = trace.get_tracer("notification-service")

broker = RedisBroker(
    url=os.environ.get("REDIS_URL", "redis://localhost:6379"),
    namespace=os.environ.get("NAMESPACE", "dramatiq"),
)
broker.add_middleware(CurrentMessage())


@dramatiq.actor(broker=broker, queue_name="emails", max_retries=0, min_backoff=100)
def send_confirmation(email: str, item: str) -> None:
    """The actor: it runs inside queueprop's span, in the trace of the order."""
    log.info("confirming %s to %s", item, email)
    with tracer.start_as_current_span("send mail"):
        time.sleep(0.02)  # the mail server's answer
        if email.startswith("nobody@"):
            raise ValueError(f"no such mailbox: {email}")
        if email.startswith("busy@") and _may_be_retried():
            raise ConnectionError("the mail server is busy")


def _may_be_retried() -> bool:
    message = CurrentMessage.get_current_message()
    return message is not None and message.options.get("retries", 0) < message.options.get("max_retries", 0)


def main() -> None:
    handler = logging.StreamHandler()
    handler.addFilter(TraceContextFilter())
    logging.basicConfig(
        level=logging.INFO, format="%(levelname)s trace_id=%(trace_id)s %(message)s", handlers=[handler]
    )
    logging.getLogger("dramatiq").setLevel(logging.WARNING)

    configure_tracing("notification-service")
    if "WITHOUT_QUEUEPROP" not in os.environ:  # the demo's second run
        queueprop.instrument("dramatiq")

    worker = dramatiq.Worker(broker, worker_timeout=100)
    worker.start()
    log.info("waiting for messages")
    try:
        while True:
            time.sleep(1)
    finally:
        worker.stop()


if __name__ == "__main__":
    main()
