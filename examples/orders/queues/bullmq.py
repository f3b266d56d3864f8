"""BullMQ, on Redis or Valkey. A worker or a producer in Node takes part in the same traces."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from bullmq import Queue, Worker

from examples.orders import logs, queues

LIBRARY = "bullmq"

URL = os.environ.get("REDIS_URL", "redis://localhost:6379")
QUEUE = os.environ.get("QUEUE", "notifications")

log = logs.get_logger("bullmq")


@asynccontextmanager
async def publisher() -> AsyncIterator[queues.Publish]:
    queue = Queue(QUEUE, {"connection": URL})
    try:

        async def publish(message: dict[str, Any]) -> None:
            await queue.add("notify", message)

        yield publish
    finally:
        await queue.close()


def work(handle: queues.Handler) -> None:
    asyncio.run(_work(handle))


async def _work(handle: queues.Handler) -> None:
    async def process(job: Any, token: str) -> None:
        try:
            await asyncio.to_thread(handle, job.data)
        except Exception:
            log.exception("job failed")
            raise  # BullMQ marks it so

    processor: Any = process  # BullMQ's own types want a function that gives a Future
    worker = Worker(QUEUE, processor, {"connection": URL, "autorun": False})
    # Closed, it ends after the job that it is in.
    loop, closing = asyncio.get_running_loop(), set[asyncio.Task[None]]()
    loop.add_signal_handler(signal.SIGTERM, lambda: closing.add(loop.create_task(worker.close())))
    log.info(queues.READY)
    await worker.run()
    await asyncio.gather(*closing)
