"""order-service: takes orders over HTTP, stores them, and queues the notification of each.

python -m examples.orders.order_service
uvicorn --factory examples.orders.order_service:create_app
"""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import uvicorn
from fastapi import APIRouter, FastAPI, HTTPException, Request, Response
from fastapi.responses import PlainTextResponse
from opentelemetry import trace
from pydantic import BaseModel

from . import config, database, logs, queues, telemetry
from .customer import customer, customer_of
from .payments import PaymentFailed, charge

log = logs.get_logger("order-service")
tracer = trace.get_tracer("order-service", config.VERSION)
api = APIRouter()
outcomes: Counter[str] = Counter()


class NewOrder(BaseModel):
    item: str
    quantity: int = 1
    email: str
    card: str = "ok"
    """What the payment provider's stand-in does: ``ok``, ``slow``, ``flaky`` or ``fails``."""


@api.post("/orders", status_code=202)
async def take_order(order: NewOrder, request: Request, response: Response) -> dict[str, str]:
    with customer_of(request.headers):
        order_id = uuid.uuid4().hex
        try:
            outcome = await process(order_id, order, request.app.state.publish)
        except PaymentFailed as error:
            raise HTTPException(502, "payment failed") from error
        if outcome == "out_of_stock":
            response.status_code = 409
        return {"order_id": order_id, "outcome": outcome}


@api.get("/orders/{order_id}")
async def show_order(order_id: str, request: Request) -> dict[str, Any]:
    """The one path that goes into the second service over HTTP: it knows who was notified."""
    with customer_of(request.headers):
        order = await asyncio.to_thread(find, order_id)
        if order is None:
            raise HTTPException(404, "no such order")
        answer = await request.app.state.notifications.get(f"/notifications/{order_id}")
        is_notified = answer.raise_for_status().json()["is_notified"]
        return {"order_id": order_id, "item": order.item, "is_notified": is_notified}


@api.get("/health")
async def health() -> str:
    return "ok"


@api.get("/metrics", response_class=PlainTextResponse)
async def metrics() -> str:
    return "".join(f'orders_total{{outcome="{outcome}"}} {count}\n' for outcome, count in outcomes.items())


async def process(order_id: str, order: NewOrder, publish: queues.Publish) -> str:
    """Gives the outcome. Raises PaymentFailed."""
    with tracer.start_as_current_span("order.process", attributes=customer()) as span:
        span.set_attributes(
            {"order.id": order_id, "order.item": order.item, "order.quantity": order.quantity}
        )
        outcome = "failed"
        try:
            outcome = await fulfil(order_id, order, publish)
        except PaymentFailed:
            outcome = "payment_failed"
            raise  # the span records it by itself
        finally:
            span.set_attribute("order.outcome", outcome)
            outcomes[outcome] += 1
            log.info("order processed", order_id=order_id, outcome=outcome)
    return outcome


async def fulfil(order_id: str, order: NewOrder, publish: queues.Publish) -> str:
    # A thread gets the context of the task that starts it: what it does in SQL is in the same trace.
    if not await asyncio.to_thread(check_inventory, order):
        return "out_of_stock"
    await charge(order.card, order.quantity * 5)
    await asyncio.to_thread(store, order_id, order)
    # When the process is killed between these two, the order stays without a notification. Where that matters, the
    # message is written in the transaction of the order, with its context (queueprop.inject), and published from there.
    await publish({"order_id": order_id, "email": order.email})
    return "accepted"


def check_inventory(order: NewOrder) -> bool:
    """Whether there is enough. That there is not is an answer, and no error: the span's status stays unset."""
    with tracer.start_as_current_span("order.checkInventory", attributes={"order.item": order.item}) as span:
        with database.session() as session:
            stock = session.get(database.Stock, order.item)
        available = stock.quantity if stock else 0
        span.set_attribute("inventory.available", available)
        return available >= order.quantity


def store(order_id: str, order: NewOrder) -> None:
    with database.session() as session, session.begin():
        session.add(database.Order(id=order_id, item=order.item, quantity=order.quantity))


def find(order_id: str) -> database.Order | None:
    with database.session() as session:
        return session.get(database.Order, order_id)


@asynccontextmanager
async def connections(app: FastAPI) -> AsyncIterator[None]:
    async with (
        queues.chosen().publisher() as app.state.publish,
        httpx.AsyncClient(base_url=config.NOTIFICATION_URL) as app.state.notifications,
    ):
        yield


def create_app() -> FastAPI:
    telemetry.configure("order-service")
    logs.configure()
    app = FastAPI(title="order-service", version=config.VERSION, lifespan=connections)
    app.include_router(api)
    telemetry.trace_requests(app)
    return app


if __name__ == "__main__":
    uvicorn.run(create_app(), port=config.PORT, log_config=None, access_log=False)
