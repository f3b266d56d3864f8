"""notification-service: the worker that sends the mails."""

from __future__ import annotations

import asyncio
import logging
import os

from faststream import FastStream
from faststream.rabbit import RabbitBroker, RabbitQueue
from faststream.rabbit.annotations import RabbitMessage
from opentelemetry import trace
from pydantic import BaseModel

import queueprop
from queueprop.logs import TraceContextFilter
from queueprop.sdk import configure_tracing

log = logging.getLogger("notification-service")
tracer = trace.get_tracer("notification-service")

broker = RabbitBroker(os.environ.get("RABBITMQ_URL", "amqp://guest:guest@localhost:5672/%2F"))
app = FastStream(broker, logger=None)


class Mail(BaseModel):
    email: str
    item: str
    retries: int


@broker.subscriber(RabbitQueue(os.environ.get("QUEUE", "emails"), durable=True))
async def send_confirmation(mail: Mail, message: RabbitMessage) -> None:
    """The handler: it runs inside queueprop's span, in the trace of the order."""
    log.info("confirming %s to %s", mail.item, mail.email)
    with tracer.start_as_current_span("send mail"):
        await asyncio.sleep(0.02)  # the mail server's answer
        is_first = not message.raw_message.redelivered
        if mail.retries and is_first and mail.email.startswith(("busy@", "nobody@")):
            await message.nack()  # it comes again; else FastStream rejects it
        if mail.email.startswith("nobody@"):
            raise ValueError(f"no such mailbox: {mail.email}")
        if mail.email.startswith("busy@") and is_first:
            raise ConnectionError("the mail server is busy")


@app.after_startup
async def tell() -> None:
    log.info("waiting for messages")


def main() -> None:
    handler = logging.StreamHandler()
    handler.addFilter(TraceContextFilter())
    logging.basicConfig(
        level=logging.INFO, format="%(levelname)s trace_id=%(trace_id)s %(message)s", handlers=[handler]
    )

    configure_tracing("notification-service")
    if "WITHOUT_QUEUEPROP" not in os.environ:  # the demo's second run
        queueprop.instrument("faststream")

    asyncio.run(app.run())


if __name__ == "__main__":
    main()
