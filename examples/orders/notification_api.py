"""notification-service's other process, over HTTP: was the customer of an order notified?

python -m examples.orders.notification_api
uvicorn --factory examples.orders.notification_api:create_app
"""

from __future__ import annotations

from typing import Any

import uvicorn
from fastapi import APIRouter, FastAPI
from opentelemetry import trace

from . import config, database, logs, telemetry
from .customer import customer

log = logs.get_logger("notification-service")
api = APIRouter()


@api.get("/notifications/{order_id}")
def show_notification(order_id: str) -> dict[str, Any]:
    # "Not yet" is an answer, too. As a 404 it would make the span of whoever asks an error.
    # Its request had the baggage in a header, which OpenTelemetry's instrumentation has read.
    trace.get_current_span().set_attributes({"order.id": order_id, **customer()})
    with database.session() as session:
        found = session.get(database.Notification, order_id)
    log.info("notification looked up", order_id=order_id, is_notified=found is not None)
    return {"order_id": order_id, "is_notified": found is not None}


@api.get("/health")
async def health() -> str:
    return "ok"


def create_app() -> FastAPI:
    telemetry.configure("notification-service")
    logs.configure()
    app = FastAPI(title="notification-service", version=config.VERSION)
    app.include_router(api)
    telemetry.trace_requests(app)
    return app


if __name__ == "__main__":
    uvicorn.run(create_app(), port=config.PORT, log_config=None, access_log=False)
