"""order-service: takes orders over HTTP, and queues the mail that confirms each. Its beat asks for a report."""

from __future__ import annotations

import logging
import os
from datetime import timedelta
from typing import Any

import uvicorn
from celery import chain
from celery.beat import EmbeddedService
from fastapi import FastAPI
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from pydantic import BaseModel

import queueprop
from queueprop.cli.demo.celery.notification_service import app as tasks
from queueprop.cli.demo.celery.notification_service import send_confirmation, store_copy
from queueprop.logs import TraceContextFilter
from queueprop.sdk import configure_tracing

log = logging.getLogger("order-service")

app = FastAPI()

HOUR = timedelta(hours=1)
tasks.conf.beat_schedule = {  # hourly, and now for the first time
    "report": {"task": "report", "schedule": HOUR, "last_run_at": tasks.now() - HOUR}
}


class Order(BaseModel):
    item: str
    email: str
    retries: int = 0
    delay: float = 0


@app.post("/orders", status_code=202)
def take_order(order: Order) -> dict[str, str]:
    log.info("ordered: %s for %s", order.item, order.email)
    confirmation = send_confirmation.s(order.email, order.item, order.retries)
    confirmation.set(countdown=order.delay or None)
    result: Any = chain(confirmation, store_copy.si(order.item))()
    return {"task": result.id}


def main() -> None:
    handler = logging.StreamHandler()
    handler.addFilter(TraceContextFilter())
    logging.basicConfig(
        level=logging.INFO, format="%(levelname)s trace_id=%(trace_id)s %(message)s", handlers=[handler]
    )

    configure_tracing("order-service")
    FastAPIInstrumentor.instrument_app(app, exclude_spans=["receive", "send"])
    if "WITHOUT_QUEUEPROP" not in os.environ:  # the demo's second run
        queueprop.instrument("celery")

    # A scheduler that remembers nothing in a file.
    EmbeddedService(tasks, thread=True, scheduler_cls="celery.beat:Scheduler").start()
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")), log_level="warning")


if __name__ == "__main__":
    main()
