"""order-service: takes orders over HTTP, and queues the mail that confirms each."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import confluent_kafka
import uvicorn
from fastapi import FastAPI
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from pydantic import BaseModel

import queueprop
from queueprop.logs import TraceContextFilter
from queueprop.sdk import configure_tracing

log = logging.getLogger("order-service")

emails = os.environ.get("TOPIC", "emails")
later: set[asyncio.Task[None]] = set()


@asynccontextmanager
async def producing(app: FastAPI) -> AsyncIterator[None]:
    servers = os.environ.get("KAFKA_SERVERS", "localhost:9092")
    app.state.producer = confluent_kafka.Producer({"bootstrap.servers": servers})
    yield
    app.state.producer.flush()


app = FastAPI(lifespan=producing)


class Order(BaseModel):
    item: str
    email: str
    retries: int = 0
    delay: float = 0


@app.post("/orders", status_code=202)
async def take_order(order: Order) -> dict[str, str]:
    log.info("ordered: %s for %s", order.item, order.email)
    if order.delay:
        # Kafka has no delays. What another task publishes is still in the order's trace.
        task = asyncio.create_task(publish(order))
        later.add(task)
        task.add_done_callback(later.discard)
    else:
        await publish(order)
    return {"item": order.item}


async def publish(order: Order) -> None:
    await asyncio.sleep(order.delay)
    body = {"email": order.email, "item": order.item, "retries": order.retries}
    app.state.producer.produce(emails, json.dumps(body).encode(), partition=0)
    await asyncio.to_thread(app.state.producer.flush)


def main() -> None:
    handler = logging.StreamHandler()
    handler.addFilter(TraceContextFilter())
    logging.basicConfig(
        level=logging.INFO, format="%(levelname)s trace_id=%(trace_id)s %(message)s", handlers=[handler]
    )

    configure_tracing("order-service")
    FastAPIInstrumentor.instrument_app(app, exclude_spans=["receive", "send"])
    if "WITHOUT_QUEUEPROP" not in os.environ:  # the demo's second run
        queueprop.instrument("confluent-kafka")

    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")), log_level="warning")


if __name__ == "__main__":
    main()
