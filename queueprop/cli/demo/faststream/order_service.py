"""order-service: takes orders over HTTP, and queues the mail that confirms each."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI
from faststream.rabbit import RabbitBroker, RabbitQueue
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from pydantic import BaseModel

import queueprop
from queueprop.logs import TraceContextFilter
from queueprop.sdk import configure_tracing

log = logging.getLogger("order-service")

emails = os.environ.get("QUEUE", "emails")
broker = RabbitBroker(os.environ.get("RABBITMQ_URL", "amqp://guest:guest@localhost:5672/%2F"))


@asynccontextmanager
async def connected(app: FastAPI) -> AsyncIterator[None]:
    async with broker:
        await broker.declare_queue(RabbitQueue(emails, durable=True))
        expired: Any = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": emails}
        await broker.declare_queue(RabbitQueue(f"{emails}-later", durable=True, arguments=expired))
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
    mail = {"email": order.email, "item": order.item, "retries": order.retries}
    # What is delayed waits in another queue until it expires, and goes on from there.
    queue = f"{emails}-later" if order.delay else emails
    await broker.publish(mail, queue, expiration=order.delay or None)
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
        queueprop.instrument("faststream")

    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")), log_level="warning")


if __name__ == "__main__":
    main()
