"""order-service: takes orders over HTTP, and queues the mail that confirms each."""

from __future__ import annotations

import logging
import os
from datetime import timedelta

import uvicorn
from fastapi import FastAPI
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from pydantic import BaseModel
from redis import Redis
from rq import Queue, Retry

import queueprop
from queueprop.cli.demo.rq.notification_service import send_confirmation
from queueprop.logs import TraceContextFilter
from queueprop.sdk import configure_tracing

log = logging.getLogger("order-service")

app = FastAPI()
emails = Queue(
    os.environ.get("QUEUE", "emails"),
    connection=Redis.from_url(os.environ.get("REDIS_URL", "redis://localhost:6379")),
)


class Order(BaseModel):
    item: str
    email: str
    retries: int = 0
    delay: float = 0


@app.post("/orders", status_code=202)
def take_order(order: Order) -> dict[str, str]:
    log.info("ordered: %s for %s", order.item, order.email)
    if order.delay:
        job = emails.enqueue_in(timedelta(seconds=order.delay), send_confirmation, order.email, order.item)
    else:
        retry = Retry(max=order.retries) if order.retries else None
        job = emails.enqueue(send_confirmation, order.email, order.item, retry=retry)
    return {"job": job.id}


def main() -> None:
    handler = logging.StreamHandler()
    handler.addFilter(TraceContextFilter())
    logging.basicConfig(
        level=logging.INFO, format="%(levelname)s trace_id=%(trace_id)s %(message)s", handlers=[handler]
    )

    configure_tracing("order-service")
    FastAPIInstrumentor.instrument_app(app, exclude_spans=["receive", "send"])
    if "WITHOUT_QUEUEPROP" not in os.environ:  # the demo's second run
        queueprop.instrument("rq")

    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")), log_level="warning")


if __name__ == "__main__":
    main()
