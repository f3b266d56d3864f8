"""Celery, on Redis or Valkey: a worker with a pool of processes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from celery import Celery, signals

from examples.orders import logs, queues

LIBRARY = "celery"

URL = os.environ.get("REDIS_URL", "redis://localhost:6379")
QUEUE = os.environ.get("QUEUE", "notifications")
TASK = "notifications.notify"
"""By its name: the service that publishes has not to import the code of the one that works."""

log = logs.get_logger("celery")


def connected() -> Celery:
    app = Celery("orders", broker=URL)
    app.conf.update(
        task_default_queue=QUEUE,
        task_ignore_result=True,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
    )
    return app


@asynccontextmanager
async def publisher() -> AsyncIterator[queues.Publish]:
    with connected() as app:

        async def publish(message: dict[str, Any]) -> None:
            await asyncio.to_thread(app.send_task, TASK, [message])

        yield publish


def work(handle: queues.Handler) -> None:
    app = connected()
    app.task(handle, name=TASK)
    signals.worker_ready.connect(lambda **_: log.info(queues.READY), weak=False)
    # On SIGTERM it ends after the tasks that it is in.
    app.worker_main(["-q", "worker", "--concurrency=2", "--loglevel=WARNING"])
