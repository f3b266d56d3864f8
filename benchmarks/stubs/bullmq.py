"""BullMQ: its queue, jobs and worker, on a Redis client that sends nothing and knows nothing."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from bullmq import Job, Queue, Worker
from redis.asyncio import Redis

from benchmarks.stubs import TRACEPARENT, Handler, Stub, texts


class _Forgetful(Redis):
    async def execute_command(self, *args: Any, **options: Any) -> Any:
        return 0


class BullMQ(Stub):
    system = "bullmq"
    cut = "the Redis client"

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._handler: Handler = lambda: None
        self._latest: Any = None
        self._loop.run_until_complete(self._open())

    async def _open(self) -> None:
        options: Any = {"connection": _Forgetful(host="redis.example", decode_responses=True)}

        async def process(job: Any, token: str) -> None:
            self._handler()

        processor: Any = process
        self._queue = Queue("orders", options)
        self._worker = Worker("orders", processor, {**options, "autorun": False})

    def publishes(self, count: int) -> Callable[[], None]:
        async def publish() -> None:
            add = self._queue.add
            for _ in range(count):
                self._latest = await add("mails.send", 1)

        return lambda: self._loop.run_until_complete(publish())

    def deliveries(self, count: int, handler: Handler) -> Callable[[], None]:
        self._handler = handler
        worker: Any = self._worker
        jobs = [Job.fromJSON(worker, _raw(), str(number)) for number in range(count)]

        async def deliver() -> None:
            for job in jobs:
                await worker.processJob(job, "token")

        return lambda: self._loop.run_until_complete(deliver())

    def written(self) -> Mapping[str, str]:
        return texts(json.loads(self._latest.opts.get("tm", "{}")))


def _raw() -> dict[str, str]:
    """A job as Redis has it."""
    opts = {"attempts": 1, "tm": json.dumps({"traceparent": TRACEPARENT})}
    now = str(int(time.time() * 1000))
    return {"name": "mails.send", "data": "1", "opts": json.dumps(opts), "timestamp": now, "ats": "1"}


make = BullMQ
