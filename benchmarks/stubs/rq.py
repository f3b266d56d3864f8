"""RQ: its queue, jobs and worker, on a Redis client that sends nothing and knows nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any

from redis import Redis
from redis.client import Pipeline
from rq import Queue, SimpleWorker
from rq.executions import Execution
from rq.job import Job

from benchmarks.stubs import TRACEPARENT, Handler, Stub, texts

_handler: Handler = lambda: None  # noqa: E731


def work() -> None:
    """The job: it knows nothing of a benchmark, as jobs are named by their module."""
    _handler()


_ANSWERS = {"INFO": {"redis_version": "7.4.0"}, "CLIENT INFO": {"addr": "127.0.0.1:6379"}, "SMEMBERS": set()}


class _Forgetful(Redis):
    def execute_command(self, *args: Any, **options: Any) -> Any:
        return _ANSWERS.get(args[0])

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Any:
        return _ForgetfulPipeline(self.connection_pool, {}, transaction, shard_hint)


class _ForgetfulPipeline(Pipeline):
    def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        self.watching = self.watching or args[0] == "WATCH"
        return _ANSWERS.get(args[0])

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        answers: list[Any] = [None] * len(self.command_stack)
        self.reset()
        return answers


class RQ(Stub):
    system = "rq"
    cut = "the Redis client"

    def __init__(self) -> None:
        self._redis = _Forgetful("redis.example")
        self._queue = Queue("orders", connection=self._redis)
        self._worker = SimpleWorker([self._queue], connection=self._redis)
        self._worker.log.setLevel("WARNING")
        self._latest: Any = None

    def publishes(self, count: int) -> Callable[[], None]:
        enqueue = self._queue.enqueue

        def run() -> None:
            for _ in range(count):
                self._latest = enqueue(work)

        return run

    def deliveries(self, count: int, handler: Handler) -> Callable[[], None]:
        global _handler
        _handler = handler
        jobs = [self._delivered() for _ in range(count)]

        def run() -> None:
            for job, execution in jobs:
                self._worker.perform_job(job, self._queue, execution)

        return run

    def _delivered(self) -> tuple[Job, Execution]:
        meta = {"queueprop": {"traceparent": TRACEPARENT}}
        job = Job.create(work, meta=meta, origin="orders", connection=self._redis)
        job.enqueued_at = datetime.now(timezone.utc)
        return job, Execution(id=job.id, job_id=job.id, connection=self._redis)

    def written(self) -> Mapping[str, str]:
        return texts(self._latest.meta.get("queueprop"))


make = RQ
