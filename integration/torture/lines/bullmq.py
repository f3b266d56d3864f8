"""BullMQ: its queue, jobs and worker, on a Redis client that sends nothing and knows nothing."""

from __future__ import annotations

import itertools
import json
import time
from typing import Any

from bullmq import Job, Queue, Worker

from benchmarks.stubs.bullmq import _Forgetful
from integration.torture.lines import AsyncHandler, AsyncLine
from queueprop import Settings


class BullMQ(AsyncLine):
    library = "bullmq"
    carrier = "dict"

    def __init__(self, settings: Settings | None = None, settle: bool = False) -> None:
        super().__init__(settings, settle)
        self._numbers = itertools.count()
        self._handlers: dict[str, AsyncHandler] = {}
        self.loop.run_until_complete(self._open())

    async def _open(self) -> None:
        options: Any = {"connection": _Forgetful(host="redis.example", decode_responses=True)}
        self._options = options

        async def process(job: Any, token: str) -> None:
            await self._handlers.pop(job.id)(job.data)

        processor: Any = process
        self._queue = Queue("orders", options)
        self._worker: Any = Worker("orders", processor, {**options, "autorun": False})

    async def publish_async(self, headers: Any, body: str = "", name: str = "orders") -> object:
        """``headers`` are what ``tm`` has, as one who forwards a job has it: text, or what JSON makes one of."""
        queue = self._queue if name == "orders" else Queue(name, self._options)
        opts: Any = {} if headers is None else {"tm": _tm(headers)}
        job = await queue.add("mails.send", body, opts)
        written = job.opts.get("tm")
        return json.loads(written) if isinstance(written, str) else written

    async def deliver_async(
        self, headers: Any, handler: AsyncHandler, body: str = "", name: str = "orders"
    ) -> object:
        opts: dict[str, Any] = {"attempts": 1}
        if headers is not None:
            opts["tm"] = _tm(headers)
        now = str(int(time.time() * 1000))
        raw = {"name": "mails.send", "data": json.dumps(body), "timestamp": now, "ats": "1", "opts": "{}"}
        job = Job.fromJSON(self._worker, raw, str(next(self._numbers)))
        job.opts = opts
        self._handlers[job.id] = handler
        try:
            return await self._worker.processJob(job, "token")
        finally:
            self._handlers.pop(job.id, None)


def _tm(headers: Any) -> Any:
    try:
        return json.dumps(headers)
    except Exception:  # odd objects are put there as they are
        return headers


make = BullMQ
