"""What the live tests of BullMQ do with queues and workers, in Python."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from bullmq import FlowProducer, Queue, Worker
from opentelemetry import baggage

from integration.contract.telemetry import DEADLINE
from integration.live import current

Process = Callable[[Any, str], Awaitable[Any]]


class Handled:
    """A processor that notes what is current at each job, and then does what it is told."""

    def __init__(self, *steps: BaseException | Process | None) -> None:
        self.names: list[str] = []
        self.contexts: list[tuple[str, str]] = []
        self.baggage: list[dict[str, object]] = []
        self._steps = list(steps)

    async def __call__(self, job: Any, token: str) -> Any:
        self.names.append(job.name)
        self.contexts.append(current())
        self.baggage.append(dict(baggage.get_all()))
        step = self._steps.pop(0) if self._steps else None
        if isinstance(step, BaseException):
            raise step
        return None if step is None else await step(job, token)


def on(url: str) -> dict[str, Any]:
    """The options of a queue or worker on a Redis or a PostgreSQL."""
    return {"connection": url, **({"backend": "postgres"} if is_postgresql(url) else {})}


def is_postgresql(url: str) -> bool:
    return url.startswith("postgresql:")


async def work(url: str, queue: str, process: Process, count: int = 1, **opts: Any) -> None:
    """A worker that processes so many jobs, and takes no other one."""
    taken = 0
    closing: list[asyncio.Future[None]] = []

    async def counted(job: Any, token: str) -> Any:
        nonlocal taken
        taken += 1
        if taken == count:
            closing.append(asyncio.ensure_future(worker.close()))
            await asyncio.sleep(0)
        return await process(job, token)

    worker: Any = Worker(queue, counted, {**on(url), "autorun": False, **opts})
    await asyncio.wait_for(worker.run(), DEADLINE)
    await asyncio.gather(*closing)


@asynccontextmanager
async def queue_on(url: str, name: str, **opts: Any) -> AsyncIterator[Any]:
    queue: Any = Queue(name, {**on(url), **opts})
    try:
        yield queue
    finally:
        await queue.close()


@asynccontextmanager
async def flow_producer_on(url: str) -> AsyncIterator[Any]:
    producer: Any = FlowProducer(url, {"backend": "postgres"}) if is_postgresql(url) else FlowProducer(url)
    try:
        yield producer
    finally:
        await producer.close()
