"""BullMQ for Python: a worker that looks for stalled jobs each second."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import redis
from bullmq import Queue, Worker

from .event_loop import connected
from .ledger import at_once, handle_async, is_over
from .left import Left

STALLED = {"lockDuration": 2_000, "stalledInterval": 1_000, "maxStalledCount": 5, "runRetryDelay": 200}


@contextmanager
def connect(url: str, queue: str) -> Iterator[Callable[[str], object]]:
    async def make() -> tuple[Any, Any]:
        made: Any = Queue(queue, {"connection": url})
        return lambda body: made.add("order", {"body": body}), made.close

    with connected(make) as publish:
        yield publish


def consume(url: str, queue: str) -> None:
    asyncio.run(_consume(url, queue))


async def _consume(url: str, queue: str) -> None:
    async def process(job: Any, token: str) -> None:
        await handle_async(job.data["body"])

    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    options: Any = {"connection": url, "concurrency": min(at_once(), 4), **STALLED}
    worker: Any = Worker(queue, process, options)
    while not is_over() and not ended.is_set():
        await asyncio.sleep(0.05)
    await worker.close()


def counts(url: str, queue: str) -> Left:
    with redis.Redis.from_url(url) as client:
        it: Any = client
        key = f"bull:{queue}"
        left = sum(it.llen(f"{key}:{name}") for name in ("wait", "paused"))
        return Left(left + it.zcard(f"{key}:delayed"), it.llen(f"{key}:active"), it.zcard(f"{key}:failed"))
