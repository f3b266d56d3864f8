"""What may be chosen from outside, and what is taken otherwise."""

from __future__ import annotations

import os


def _one_of(variable: str, default: str, *others: str) -> str:
    chosen = os.environ.get(variable) or default
    if chosen not in (default, *others):
        raise SystemExit(f"{variable} is one of {', '.join((default, *others))}, not {chosen!r}")
    return chosen


QUEUE = _one_of("ORDERS_QUEUE", "rq", "rabbitmq", "kafka", "bullmq", "celery")
"""A further queue is a module in ``queues/``, and its name here."""

LOGGER = _one_of("ORDERS_LOGGER", "stdlib", "structlog", "loguru")
ENVIRONMENT = os.environ.get("ORDERS_ENVIRONMENT", "development")
DATABASE_URL = os.environ.get("ORDERS_DATABASE_URL", "sqlite:///orders.sqlite")
NOTIFICATION_URL = os.environ.get("ORDERS_NOTIFICATION_URL", "http://127.0.0.1:8001")
PORT = int(os.environ.get("PORT", "8000"))

VERSION = "1.4.0"
"""Of both services; a build would write it."""
