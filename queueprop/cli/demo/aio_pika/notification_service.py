"""notification-service: the worker that sends the mails."""

from __future__ import annotations

import asyncio
import json
import logging
import os

import aio_pika
from aio_pika.abc import AbstractIncomingMessage, AbstractQueue
from opentelemetry import trace

import queueprop
from queueprop.logs import TraceContextFilter
from queueprop.sdk import configure_tracing

log = logging.getLogger("notification-service")
tracer = trace.get_tracer("notification-service")


async def work(queue: AbstractQueue) -> None:
    async with queue.iterator() as messages:
        async for message in messages:
            # The loop's body runs inside queueprop's span, in the trace of the order.
            try:
                await confirm(message)
            except (ConnectionError, ValueError) as error:
                log.warning("failed: %s", error)


async def confirm(message: AbstractIncomingMessage) -> None:
    may_be_retried = bool(message.headers["retries"]) and not message.redelivered
    async with message.process(requeue=may_be_retried):
        mail = json.loads(message.body)
        log.info("confirming %s to %s", mail["item"], mail["email"])
        with tracer.start_as_current_span("send mail"):
            await asyncio.sleep(0.02)  # the mail server's answer
            if mail["email"].startswith("nobody@"):
                raise ValueError(f"no such mailbox: {mail['email']}")
            if mail["email"].startswith("busy@") and not message.redelivered:
                raise ConnectionError("the mail server is busy")


async def run() -> None:
    url = os.environ.get("RABBITMQ_URL", "amqp://guest:guest@localhost:5672/%2F")
    async with await aio_pika.connect_robust(url) as connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=1)
        queue = await channel.declare_queue(os.environ.get("QUEUE", "emails"), durable=True)
        log.info("waiting for messages")
        await work(queue)


def main() -> None:
    handler = logging.StreamHandler()
    handler.addFilter(TraceContextFilter())
    logging.basicConfig(
        level=logging.INFO, format="%(levelname)s trace_id=%(trace_id)s %(message)s", handlers=[handler]
    )

    configure_tracing("notification-service")
    if "WITHOUT_QUEUEPROP" not in os.environ:  # the demo's second run
        queueprop.instrument("aio-pika")

    asyncio.run(run())


if __name__ == "__main__":
    main()
