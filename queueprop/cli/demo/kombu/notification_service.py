"""notification-service: the worker that sends the mails."""

from __future__ import annotations

import logging
import os
import time
from typing import Any

from kombu import Connection, Consumer, Queue
from opentelemetry import trace

import queueprop
from queueprop.logs import TraceContextFilter
from queueprop.sdk import configure_tracing

log = logging.getLogger("notification-service")
tracer = trace.get_tracer("notification-service")


def on_order(body: Any, message: Any) -> None:
    """The callback: it runs inside queueprop's span, in the trace of the order."""
    try:
        send_confirmation(body["email"], body["item"], may_be_retried=_may_be_retried(body, message))
    except (ConnectionError, ValueError) as error:
        log.error("not confirmed: %s", error)  # here, inside the span: the line has its trace id
        message.requeue() if isinstance(error, ConnectionError) else message.reject()
        raise  # for the span to be told, too
    message.ack()


def send_confirmation(email: str, item: str, may_be_retried: bool = False) -> None:
    log.info("confirming %s to %s", item, email)
    with tracer.start_as_current_span("send mail"):
        time.sleep(0.02)  # the mail server's answer
        if email.startswith("nobody@"):
            raise ValueError(f"no such mailbox: {email}")
        if email.startswith("busy@") and may_be_retried:
            raise ConnectionError("the mail server is busy")


def _may_be_retried(body: Any, message: Any) -> bool:
    return bool(body["retries"]) and not message.delivery_info.get("redelivered")


def main() -> None:
    handler = logging.StreamHandler()
    handler.addFilter(TraceContextFilter())
    logging.basicConfig(
        level=logging.INFO, format="%(levelname)s trace_id=%(trace_id)s %(message)s", handlers=[handler]
    )

    configure_tracing("notification-service")
    if "WITHOUT_QUEUEPROP" not in os.environ:  # the demo's second run
        queueprop.instrument("kombu")

    emails = Queue(os.environ.get("QUEUE", "emails"))
    broker = Connection(os.environ.get("BROKER_URL", "redis://localhost:6379"))
    with broker, Consumer(broker, [emails], callbacks=[on_order]):
        log.info("waiting for messages")
        while True:
            work(broker)


def work(broker: Connection) -> None:
    """One message, or a second without one."""
    try:
        broker.drain_events(timeout=1)
    except TimeoutError:
        pass
    except (ConnectionError, ValueError) as error:
        log.debug("kombu has handed on what the callback raised: %r", error)


if __name__ == "__main__":
    main()
