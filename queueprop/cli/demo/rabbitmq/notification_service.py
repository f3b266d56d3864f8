"""notification-service: the worker that sends the mails."""

from __future__ import annotations

import json
import logging
import os
import time
from typing import Any

import pika
from opentelemetry import trace

import queueprop
from queueprop.logs import TraceContextFilter
from queueprop.sdk import configure_tracing

log = logging.getLogger("notification-service")
tracer = trace.get_tracer("notification-service")


class Worker:
    """Consumes one message at a time; one that fails is tried again as often as it may be."""

    def __init__(self, channel: Any, queue: str) -> None:
        self.channel = channel
        self.in_hand: Any = None
        channel.basic_qos(prefetch_count=1)
        channel.basic_consume(queue, self.on_message)

    def run(self) -> None:
        while True:
            try:
                self.channel.start_consuming()
            except (ConnectionError, ValueError):  # of the callback: pika hands it on
                method, properties = self.in_hand
                may_be_retried = bool(properties.headers["retries"]) and not method.redelivered
                self.channel.basic_nack(method.delivery_tag, requeue=may_be_retried)

    def on_message(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        """The callback: it runs inside queueprop's span, in the trace of the order."""
        self.in_hand = method, properties
        mail = json.loads(body)
        try:
            send_confirmation(mail["email"], mail["item"], is_first=not method.redelivered)
        except (ConnectionError, ValueError) as error:
            log.warning("failed: %s", error)  # here, inside the span: the line has its trace id
            raise
        channel.basic_ack(method.delivery_tag)


def send_confirmation(email: str, item: str, is_first: bool) -> None:
    log.info("confirming %s to %s", item, email)
    with tracer.start_as_current_span("send mail"):
        time.sleep(0.02)  # the mail server's answer
        if email.startswith("nobody@"):
            raise ValueError(f"no such mailbox: {email}")
        if email.startswith("busy@") and is_first:
            raise ConnectionError("the mail server is busy")


def main() -> None:
    handler = logging.StreamHandler()
    handler.addFilter(TraceContextFilter())
    logging.basicConfig(
        level=logging.INFO, format="%(levelname)s trace_id=%(trace_id)s %(message)s", handlers=[handler]
    )
    logging.getLogger("pika").setLevel(logging.WARNING)

    configure_tracing("notification-service")
    if "WITHOUT_QUEUEPROP" not in os.environ:  # the demo's second run
        queueprop.instrument("pika")

    queue = os.environ.get("QUEUE", "emails")
    parameters = pika.URLParameters(os.environ.get("RABBITMQ_URL", "amqp://guest:guest@localhost:5672/%2F"))
    channel = pika.BlockingConnection(parameters).channel()
    channel.queue_declare(queue, durable=True)
    worker = Worker(channel, queue)
    log.info("waiting for messages")
    worker.run()


if __name__ == "__main__":
    main()
