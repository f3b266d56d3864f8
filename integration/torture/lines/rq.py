"""RQ: its queue, jobs and worker, on a Redis client that sends nothing and knows nothing."""

from __future__ import annotations

import threading
from datetime import datetime, timezone
from typing import Any

from rq import Queue, SimpleWorker
from rq.executions import Execution
from rq.job import Job
from rq.timeouts import TimerDeathPenalty

from benchmarks.stubs.rq import _Forgetful
from integration.torture.lines import Handler, Line
from queueprop import Settings

_handlers: dict[str, Handler] = {}


def work(job_id: str, body: str) -> None:
    """The job, which is named by its module."""
    _handlers.pop(job_id)(body)


class RQ(Line):
    library = "rq"
    carrier = "dict"

    def __init__(self, settings: Settings | None = None, settle: bool = False) -> None:
        super().__init__(settings, settle)
        self._redis = _Forgetful("redis.example")
        self._queue = Queue("orders", connection=self._redis)
        self._worker = SimpleWorker([self._queue], connection=self._redis)
        self._worker.log.setLevel("CRITICAL")
        if threading.current_thread() is not threading.main_thread():
            self._worker.death_penalty_class = TimerDeathPenalty  # a signal is the main thread's

    def publish(self, headers: Any, body: str = "", name: str = "orders") -> object:
        """``headers`` are what ``meta`` has where a context travels, as one who forwards a job has it."""
        queue = self._queue if name == "orders" else Queue(name, connection=self._redis)
        queue.redis_server_version = (7, 4, 0)
        meta = None if headers is None else {"queueprop": headers}
        job = queue.enqueue(work, args=("", body), meta=meta)
        return job.meta.get("queueprop")

    def deliver(self, headers: Any, handler: Handler, body: str = "", name: str = "orders") -> object:
        job = Job.create(work, args=("", body), origin=name, connection=self._redis)
        job.args = (job.id, body)
        job.meta = {} if headers is None else {"queueprop": headers}
        job.enqueued_at = datetime.now(timezone.utc)
        _handlers[job.id] = handler
        try:
            execution = Execution(id=job.id, job_id=job.id, connection=self._redis)
            return self._worker.perform_job(job, self._queue, execution)
        finally:
            _handlers.pop(job.id, None)


make = RQ
