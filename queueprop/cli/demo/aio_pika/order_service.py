"""order-service: takes orders over HTTP, and queues the mail that confirms each."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aio_pika
import uvicorn
from fastapi import FastAPI
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from pydantic import BaseModel

import queueprop
from queueprop.logs import TraceContextFilter
from queueprop.sdk import configure_tracing

log = logging.getLogger("order-service")

emails = os.environ.get("QUEUE", "emails")


@asynccontextmanager
async def connected(app: FastAPI) -> AsyncIterator[None]:
    url = os.environ.get("RABBITMQ_URL", "amqp://guest:guest@localhost:5672/%2F")
    async with await aio_pika.connect_robust(url) as connection:
        app.state.channel = channel = await connection.channel()
        await channel.declare_queue(emails, durable=True)
        expired = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": emails}
        await channel.declare_queue(f"{emails}-later", durable=True, arguments=expired)
        yield


app = FastAPI(lifespan=connected)


class Order(BaseModel):
    item: str
    email: str
    retries: int = 0
    delay: float = 0


@app.post("/orders", status_code=202)
async def take_order(order: Order) -> dict[str, str]:
    log.info("ordered: %s for %s", order.item, order.email)
    body = json.dumps({"email": order.email, "item": order.item}).encode()
    message = aio_pika.Message(body, headers={"retries": order.retries})
    queue = emails
    if order.delay:  # it waits in another queue until it expires, and goes on from there
        queue, message.expiration = f"{emails}-later", order.delay
    await app.state.channel.default_exchange.publish(message, queue)
    return {"queue": queue}


def main() -> None:
    handler = logging.StreamHandler()
    handler.addFilter(TraceContextFilter())
    logging.basicConfig(
        level=logging.INFO, format="%(levelname)s trace_id=%(trace_id)s %(message)s", handlers=[handler]
    )

    configure_tracing("order-service")
    FastAPIInstrumentor.instrument_app(app, exclude_spans=["receive", "send"])
    if "WITHOUT_QUEUEPROP" not in os.environ:  # the demo's second run
        queueprop.instrument("aio-pika")

    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")), log_level="warning")


if __name__ == "__main__":
    main()
