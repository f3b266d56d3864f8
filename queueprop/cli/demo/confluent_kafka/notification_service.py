"""notification-service: the worker that sends the mails."""

from __future__ import annotations

import json
import logging
import os
import time
from contextlib import nullcontext
from typing import Any

import confluent_kafka
from confluent_kafka import TopicPartition
from opentelemetry import trace

import queueprop
from queueprop.adapters.confluent_kafka import traced_message
from queueprop.logs import TraceContextFilter
from queueprop.sdk import configure_tracing

log = logging.getLogger("notification-service")
tracer = trace.get_tracer("notification-service")
handling: Any = nullcontext if "WITHOUT_QUEUEPROP" in os.environ else traced_message  # the demo's second run

emails = os.environ.get("TOPIC", "emails")


def work(consumer: Any) -> None:
    failed_at = None
    while True:
        for message in consumer.consume(timeout=1.0):
            # The loop's body runs inside queueprop's span, in the trace of the order.
            if message.error():
                log.warning("%s", message.error())
                continue
            mail = json.loads(message.value())
            may_be_retried = bool(mail["retries"]) and message.offset() != failed_at
            try:
                with handling(message):  # the loop's own span: no loop is told what its body raised
                    send_confirmation(mail["email"], mail["item"], may_be_retried)
            except ConnectionError as error:
                log.warning("failed: %s", error)
                failed_at = message.offset()
                # Kafka's way to have a message again
                consumer.seek(TopicPartition(emails, message.partition(), failed_at))
                continue
            except ValueError as error:
                log.error("not confirmed: %s", error)
            consumer.commit(message=message)


def send_confirmation(email: str, item: str, may_be_retried: bool = False) -> None:
    log.info("confirming %s to %s", item, email)
    with tracer.start_as_current_span("send mail"):
        time.sleep(0.02)  # the mail server's answer
        if email.startswith("nobody@"):
            raise ValueError(f"no such mailbox: {email}")
        if email.startswith("busy@") and may_be_retried:
            raise ConnectionError("the mail server is busy")


def main() -> None:
    handler = logging.StreamHandler()
    handler.addFilter(TraceContextFilter())
    logging.basicConfig(
        level=logging.INFO, format="%(levelname)s trace_id=%(trace_id)s %(message)s", handlers=[handler]
    )

    configure_tracing("notification-service")
    if "WITHOUT_QUEUEPROP" not in os.environ:  # the demo's second run
        # This worker's polls are no news: its messages alone have spans.
        queueprop.instrument("confluent-kafka", settings=queueprop.Settings(receive_spans=False))

    consumer = confluent_kafka.Consumer(
        {
            "bootstrap.servers": os.environ.get("KAFKA_SERVERS", "localhost:9092"),
            "group.id": f"{emails}-notification-service",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
        }
    )
    # The only worker takes the partition by hand; several would subscribe, and wait for their group to gather.
    consumer.assign([TopicPartition(emails, 0)])
    log.info("waiting for messages")
    try:
        work(consumer)
    finally:
        consumer.close()


if __name__ == "__main__":
    main()
