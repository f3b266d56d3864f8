"""order-service: takes orders over HTTP, and queues the mail that confirms each."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from bullmq import Queue
from fastapi import FastAPI
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from pydantic import BaseModel

import queueprop
from queueprop.logs import TraceContextFilter
from queueprop.sdk import configure_tracing

log = logging.getLogger("order-service")


@asynccontextmanager
async def connected(app: FastAPI) -> AsyncIterator[None]:
    url = os.environ.get("REDIS_URL", "redis://localhost:6379/0")
    app.state.emails = emails = Queue(
        "emails", {"connection": url, "prefix": os.environ.get("NAMESPACE", "bull")}
    )
    yield
    await emails.close()


app = FastAPI(lifespan=connected)


class Order(BaseModel):
    item: str
    email: str
    retries: int = 0
    delay: float = 0


@app.post("/orders", status_code=202)
async def take_order(order: Order) -> dict[str, str]:
    log.info("ordered: %s for %s", order.item, order.email)
    mail = {"email": order.email, "item": order.item}
    options = {"attempts": 1 + order.retries, "delay": int(order.delay * 1000)}
    job = await app.state.emails.add("confirm", mail, options)
    return {"job": str(job.id)}


def main() -> None:
    handler = logging.StreamHandler()
    handler.addFilter(TraceContextFilter())
    logging.basicConfig(
        level=logging.INFO, format="%(levelname)s trace_id=%(trace_id)s %(message)s", handlers=[handler]
    )

    configure_tracing("order-service")
    FastAPIInstrumentor.instrument_app(app, exclude_spans=["receive", "send"])
    if "WITHOUT_QUEUEPROP" not in os.environ:  # the demo's second run
        queueprop.instrument("bullmq")

    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")), log_level="warning")


if __name__ == "__main__":
    main()
