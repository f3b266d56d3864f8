"""RQ, on Redis or Valkey."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from redis import Redis
from rq import Queue, Worker

from examples.orders import logs, queues

LIBRARY = "rq"

QUEUE = os.environ.get("QUEUE", "notifications")
HANDLER = "examples.orders.notifications.notify"
"""By its name: the service that publishes has not to import the code of the one that works."""

log = logs.get_logger("rq")


def connection() -> Redis:
    return Redis.from_url(os.environ.get("REDIS_URL", "redis://localhost:6379"))


@asynccontextmanager
async def publisher() -> AsyncIterator[queues.Publish]:
    with connection() as redis:
        queue = Queue(QUEUE, connection=redis)

        async def publish(message: dict[str, Any]) -> None:
            await asyncio.to_thread(queue.enqueue, HANDLER, message)

        yield publish


def work(handle: queues.Handler) -> None:
    """The handler is named in each job; ``handle`` is what RQ then finds."""
    worker = Worker([QUEUE], connection=connection())
    log.info(queues.READY)
    worker.work(logging_level="WARNING")
