"""What the worker does with a message. Queues that find a handler by its name (RQ) find it here."""

from __future__ import annotations

import time
from typing import Any

from opentelemetry import trace

from . import config, database, logs
from .customer import customer

log = logs.get_logger("notification-service")
tracer = trace.get_tracer("notification-service", config.VERSION)

SLOW = 2.5
"""Seconds that the mail server takes for an address of ``slow@``."""


class NoSuchMailbox(Exception):
    """The mail server refuses the address."""


def notify(message: dict[str, Any]) -> None:
    """It runs inside queueprop's CONSUMER span, in the trace of the order, with the order's baggage."""
    found = customer()
    trace.get_current_span().set_attributes({"order.id": message["order_id"], **found})
    with tracer.start_as_current_span("notification.send", attributes=found):
        log.info("notifying customer", order_id=message["order_id"], **found)
        send_mail(message["email"])
        store(message["order_id"], found)
        log.info("customer notified", order_id=message["order_id"], **found)


def send_mail(address: str) -> None:
    time.sleep(SLOW if address.startswith("slow@") else 0.01)
    if address.startswith("nobody@"):
        raise NoSuchMailbox("the mail server knows no such mailbox")


def store(order_id: str, of: dict[str, str]) -> None:
    # A queue may deliver twice; the second time is to change nothing, and so `merge` instead of `add`.
    with database.session() as session, session.begin():
        session.merge(
            database.Notification(order_id=order_id, tenant_id=of.get("tenant.id"), user_id=of.get("user.id"))
        )
