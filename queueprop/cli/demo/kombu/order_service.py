"""order-service: takes orders over HTTP, and queues the mail that confirms each."""

from __future__ import annotations

import logging
import os
import threading

import uvicorn
from fastapi import FastAPI
from kombu import Connection, Queue
from kombu.pools import producers
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from pydantic import BaseModel

import queueprop
from queueprop.logs import TraceContextFilter
from queueprop.sdk import configure_tracing

log = logging.getLogger("order-service")

app = FastAPI()
broker = Connection(os.environ.get("BROKER_URL", "redis://localhost:6379"))
emails = Queue(os.environ.get("QUEUE", "emails"))


class Order(BaseModel):
    item: str
    email: str
    retries: int = 0
    delay: float = 0


@app.post("/orders", status_code=202)
def take_order(order: Order) -> dict[str, str]:
    log.info("ordered: %s for %s", order.item, order.email)
    if order.delay:
        # kombu has no delays. What a timer publishes is still in the order's trace.
        timer = threading.Timer(order.delay, queueprop.carry_context(publish), [order])
        timer.daemon = True
        timer.start()
    else:
        publish(order)
    return {"item": order.item}


def publish(order: Order) -> None:
    body = {"email": order.email, "item": order.item, "retries": order.retries}
    with producers[broker].acquire(block=True) as producer:
        producer.publish(body, routing_key=emails.name, declare=[emails])


def main() -> None:
    handler = logging.StreamHandler()
    handler.addFilter(TraceContextFilter())
    logging.basicConfig(
        level=logging.INFO, format="%(levelname)s trace_id=%(trace_id)s %(message)s", handlers=[handler]
    )

    configure_tracing("order-service")
    FastAPIInstrumentor.instrument_app(app, exclude_spans=["receive", "send"])
    if "WITHOUT_QUEUEPROP" not in os.environ:  # the demo's second run
        queueprop.instrument("kombu")

    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")), log_level="warning")


if __name__ == "__main__":
    main()
