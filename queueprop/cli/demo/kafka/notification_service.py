"""notification-service: the worker that sends the mails."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from contextlib import nullcontext
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from opentelemetry import trace

import queueprop
from queueprop.adapters.aiokafka import traced_message
from queueprop.logs import TraceContextFilter
from queueprop.sdk import configure_tracing

log = logging.getLogger("notification-service")
tracer = trace.get_tracer("notification-service")
handling: Any = nullcontext if "WITHOUT_QUEUEPROP" in os.environ else traced_message  # the demo's second run

emails = TopicPartition(os.environ.get("TOPIC", "emails"), 0)


async def work(consumer: Any) -> None:
    failed_at = None
    async for record in consumer:
        # The loop's body runs inside queueprop's span, in the trace of the order.
        mail = json.loads(record.value)
        may_be_retried = bool(mail["retries"]) and record.offset != failed_at
        try:
            with handling(record):  # the loop's own span: no loop is told what its body raised
                await send_confirmation(mail["email"], mail["item"], may_be_retried)
        except ConnectionError as error:
            log.warning("failed: %s", error)
            failed_at = record.offset
            consumer.seek(emails, failed_at)  # Kafka's way to have a message again
            continue
        except ValueError as error:
            log.error("not confirmed: %s", error)
        await consumer.commit()


async def send_confirmation(email: str, item: str, may_be_retried: bool = False) -> None:
    log.info("confirming %s to %s", item, email)
    with tracer.start_as_current_span("send mail"):
        await asyncio.sleep(0.02)  # the mail server's answer
        if email.startswith("nobody@"):
            raise ValueError(f"no such mailbox: {email}")
        if email.startswith("busy@") and may_be_retried:
            raise ConnectionError("the mail server is busy")


async def run() -> None:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=os.environ.get("KAFKA_SERVERS", "localhost:9092"),
        group_id=f"{emails.topic}-notification-service",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    async with consumer:
        # The only worker takes the partition by hand; several would subscribe, and wait for their group to gather.
        consumer.assign([emails])
        log.info("waiting for messages")
        await work(consumer)


def main() -> None:
    handler = logging.StreamHandler()
    handler.addFilter(TraceContextFilter())
    logging.basicConfig(
        level=logging.INFO, format="%(levelname)s trace_id=%(trace_id)s %(message)s", handlers=[handler]
    )
    logging.getLogger("aiokafka").setLevel(logging.WARNING)

    configure_tracing("notification-service")
    if "WITHOUT_QUEUEPROP" not in os.environ:  # the demo's second run
        queueprop.instrument("aiokafka")

    asyncio.run(run())


if __name__ == "__main__":
    main()
