"""order-service: takes orders over HTTP, and queues the mail that confirms each."""

from __future__ import annotations

import json
import logging
import os

import pika
import uvicorn
from fastapi import FastAPI
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from pydantic import BaseModel

import queueprop
from queueprop.logs import TraceContextFilter
from queueprop.sdk import configure_tracing

log = logging.getLogger("order-service")

app = FastAPI()
parameters = pika.URLParameters(os.environ.get("RABBITMQ_URL", "amqp://guest:guest@localhost:5672/%2F"))
emails = os.environ.get("QUEUE", "emails")


class Order(BaseModel):
    item: str
    email: str
    retries: int = 0
    delay: float = 0


@app.post("/orders", status_code=202)
def take_order(order: Order) -> dict[str, str]:
    log.info("ordered: %s for %s", order.item, order.email)
    properties = pika.BasicProperties(headers={"retries": order.retries})
    queue = emails
    if order.delay:  # it waits in another queue until it expires, and goes on from there
        queue, properties.expiration = f"{emails}-later", str(int(order.delay * 1000))
    body = json.dumps({"email": order.email, "item": order.item}).encode()
    with pika.BlockingConnection(parameters) as connection:  # a connection is for one thread
        channel = connection.channel()
        channel.confirm_delivery()
        channel.basic_publish("", queue, body, properties, mandatory=True)
    return {"queue": queue}


def declare_queues() -> None:
    with pika.BlockingConnection(parameters) as connection:
        channel = connection.channel()
        channel.queue_declare(emails, durable=True)
        expired = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": emails}
        channel.queue_declare(f"{emails}-later", durable=True, arguments=expired)


def main() -> None:
    handler = logging.StreamHandler()
    handler.addFilter(TraceContextFilter())
    logging.basicConfig(
        level=logging.INFO, format="%(levelname)s trace_id=%(trace_id)s %(message)s", handlers=[handler]
    )
    logging.getLogger("pika").setLevel(logging.WARNING)

    configure_tracing("order-service")
    FastAPIInstrumentor.instrument_app(app, exclude_spans=["receive", "send"])
    if "WITHOUT_QUEUEPROP" not in os.environ:  # the demo's second run
        queueprop.instrument("pika")

    declare_queues()
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")), log_level="warning")


if __name__ == "__main__":
    main()
