"""RQ on a live Redis: every worker class, through the explicit API and through the instrumentor."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import redis
import rq
import rq.decorators
import rq.worker
import rq.worker_pool
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry as RedisRetry
from rq.job import Job
from rq.registry import FailedJobRegistry, StartedJobRegistry
from rq.scheduler import RQScheduler
from rq.version import VERSION

from integration.contract.actions import HANDLER, Handler
from integration.contract.driver import (
    Api,
    Column,
    Counts,
    Driver,
    Failing,
    Need,
    Refusal,
    WireMessage,
    split_headers,
)
from integration.contract.telemetry import wait_until
from integration.drivers import rq_jobs
from queueprop import Settings
from queueprop.adapters import rq as adapter

try:
    from rq.group import Group
except ImportError:  # before RQ 2
    Group: Any = None  # type: ignore[no-redef]

_STYLES = ("Worker", "SimpleWorker", "SpawnWorker", "WorkerPool", "@traced_consumer")
MAJOR = int(VERSION.split(".")[0])
_SITE = Path(__file__).with_name("spawned")
_ROOT = Path(__file__).parents[2]


class RQDriver(Driver):
    """A style is a worker class; ``@traced_consumer`` is a decorated job on a worker that nothing traces."""

    library = "rq"
    system = "rq"
    broker = "redis"
    packages = frozenset({"rq"})
    ways = ("enqueue", "enqueue_call", "enqueue_job", "delay")
    delayed_ways = ("enqueue_in", "enqueue_at")
    batch_ways = ("enqueue_many", "group.enqueue_many") if Group is not None else ("enqueue_many",)
    refusals = (Refusal("failed"), Refusal("retry", 2))
    tells_attempt = True
    # RQ looks for what is due once a second, and keeps whole seconds.
    delay_resolution = 1.0

    @classmethod
    def columns(cls) -> Sequence[Column]:
        both = [
            Column(cls.library, style, api) for style in _STYLES[:-1] for api in ("explicit", "instrumentor")
        ]
        return [*both, Column(cls.library, _STYLES[-1], "explicit")]

    @classmethod
    def absent(cls, column: Column) -> str | None:
        if column.style != "SpawnWorker":
            return None
        if not hasattr(rq.worker, "SpawnWorker"):
            return f"RQ {VERSION} has no SpawnWorker"
        options = dict(Redis().connection_pool.connection_kwargs, retry=None, driver_info=None)
        if MAJOR < 3 and "<" in repr(options):
            # It writes them into the horse's program as Python's repr() has them.
            return f"the SpawnWorker of RQ {VERSION} fails with redis {redis.__version__}: no horse gets to its job"
        return None

    @classmethod
    def lacks(cls, column: Column) -> Mapping[Need, str]:
        lacks: dict[Need, str] = {
            "batch receive": "a worker performs one job at a time",
            "exits": "the loop is the worker's own",
            "settle": "RQ has no ack",
            "redelivery": "RQ gives a job back by its retries alone",
        }
        if column.api == "explicit":
            lacks["instrumentor"] = "explicit API: nothing is patched"
        if column.style != "WorkerPool":
            lacks["concurrency"] = "one job at a time a worker; several are a WorkerPool"
        if column.style == "SimpleWorker":
            lacks["worker processes"] = "SimpleWorker performs jobs in its own process"
        else:
            lacks["same thread"] = "every job is performed in a process of its own"
        if column.style == "SpawnWorker":
            lacks["ambient"] = "a spawned work horse inherits no context"
        return lacks

    @classmethod
    def costly(cls, style: str) -> bool:
        return style == "SpawnWorker"

    @classmethod
    def many(cls, column: Column) -> int:
        # 5 ms a job of RQ's own; both APIs run the same code there.
        return 10_000 if column.api == "instrumentor" and MAJOR >= 3 else 1_000

    @classmethod
    def remarks(cls, column: Column) -> Mapping[int, str]:
        if column.style == "SimpleWorker":
            return {15: f"{cls.many(column):,} messages on one thread"}
        if column.style == "SpawnWorker":
            thinned = "fewer cases: a spawned work horse takes half a second to import what it needs"
            return dict.fromkeys((2, 8, 9, 17), thinned)
        return {}

    @classmethod
    def tells_killed(cls, style: str) -> bool:
        return style in ("Worker", "SpawnWorker", "WorkerPool")

    def __init__(self, style: str, api: Api, url: str | None = None) -> None:
        super().__init__(style, api, url)
        self._queue_class: type[rq.Queue] = rq.Queue
        self._subclass = False

    def open(self) -> None:
        self.reconnect()
        self._environment = dict(os.environ)
        os.environ[rq_jobs.OTHER_QUEUE] = self.other_queue
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_SITE), os.environ.get("PYTHONPATH")]))
        if str(_ROOT) not in sys.path:
            sys.path.append(str(_ROOT))  # a spawned horse is given our sys.path

    def close(self) -> None:
        for queue in (self._queue(), self._queue(self.other_queue)):
            queue.delete(delete_jobs=True)
        self._connection.close()
        for name in (rq_jobs.OTHER_QUEUE, "PYTHONPATH", HANDLER):
            if name in self._environment:
                os.environ[name] = self._environment[name]
            else:
                os.environ.pop(name, None)

    def reconnect(self) -> None:
        assert self.url is not None
        self._connection = Redis.from_url(self.url)

    @contextmanager
    def tracing(self, settings: Settings) -> Iterator[None]:
        if self.api == "explicit":
            os.environ[rq_jobs.SETTINGS] = rq_jobs.dump_settings(settings)
            rq_jobs.here[:] = [settings]
            self._traced_worker_class().queueprop_settings = settings
        try:
            with super().tracing(settings):
                yield
        finally:
            rq_jobs.here.clear()
            os.environ.pop(rq_jobs.SETTINGS, None)  # of several explicit drivers the first took it away

    # Publishing

    def publish(
        self,
        body: str,
        headers: Mapping[str, str] | None = None,
        *,
        way: str | None = None,
        delay: float | None = None,
        refusal: str | None = None,
        retries: int = 0,
    ) -> None:
        queue, job = self._queue(), self._job
        if refusal == "retry":
            retries = 1
        options: dict[str, Any] = {"retry": rq.Retry(max=retries)} if retries else {}
        options |= {"meta": dict(headers) if headers else None, "on_failure": rq.Callback(rq_jobs.on_failure)}
        if way == "enqueue_call":
            self._traced(queue.enqueue_call)(job, args=(body,), **options)
        elif way == "enqueue_job":
            self._traced(queue.enqueue_job)(queue.create_job(job, args=(body,), **options))
        elif way == "delay":
            decorated = rq.decorators.job(queue, connection=self._connection, **options)(job)
            self._traced(decorated.delay)(body)
        elif way == "enqueue_in":
            assert delay is not None
            self._traced(queue.enqueue_in)(timedelta(seconds=delay), job, body, **options)
        elif way == "enqueue_at":
            assert delay is not None
            due = datetime.now(timezone.utc) + timedelta(seconds=delay)
            self._traced(queue.enqueue_at)(due, job, body, **options)
        else:
            self._traced(queue.enqueue)(job, body, **options)

    def publish_carrying(self, body: str, fields: Mapping[str, str]) -> None:
        meta: Any = {adapter.META_KEY: dict(fields)}
        self.publish(body, meta)

    def publish_with(self, body: str, container: object) -> None:
        self._traced(self._queue().enqueue)(self._job, body, meta=container)

    @classmethod
    def containers(cls) -> Mapping[str, Callable[[], object]]:
        return {
            "a dict": lambda: {"tenant": "a", "list": [1, 2], "nested": {"queueprop": 1}},
            "an empty dict": dict,
            "None": lambda: None,
            "a forwarded meta": lambda: {
                "tenant": "a",
                adapter.META_KEY: {"traceparent": "stale", "tracestate": "a=1"},
            },
            "keys that are no text": lambda: {1: "one", None: 2},
        }

    def publish_batch(self, bodies: Sequence[str], *, way: str) -> None:
        queue = self._queue()
        datas = [rq.Queue.prepare_data(self._job, args=(body,)) for body in bodies]
        if way == "enqueue_many":
            self._traced(queue.enqueue_many)(datas)
        else:
            self._traced(Group.create(self._connection).enqueue_many)(queue, datas)

    def failing(self) -> Sequence[Failing]:
        gone = Redis(host="127.0.0.1", port=1, retry=RedisRetry(NoBackoff(), 0))
        queue = self._queue_class(self.queue, connection=gone)
        return [
            Failing("the broker is gone", lambda: self._traced(queue.enqueue)(self._job, "hello")),
            Failing("no pickle", lambda: self._traced(self._queue().enqueue)(self._job, lambda: None)),
        ]

    def plant(
        self, body: str, fields: Mapping[str, object], headers: Mapping[str, str] | None = None
    ) -> None:
        meta: dict[str, object] = {**(headers or {}), **({adapter.META_KEY: dict(fields)} if fields else {})}
        with self._untraced():
            self._queue().enqueue(self._job, body, meta=meta)

    @classmethod
    def junk_carriers(cls) -> Sequence[object]:
        return (None, 7, "traceparent", b"\xff", [1, 2], {"traceparent"})

    def plant_junk(self, body: str, junk: object) -> None:
        with self._untraced():
            self._queue().enqueue(self._job, body, meta={adapter.META_KEY: junk})

    def kept_publish(self) -> Callable[[str], object]:
        enqueue = self._queue().enqueue
        return lambda body: enqueue(self._job, body)

    @property
    def _job(self) -> Callable[[str], None]:
        decorated = self.style == "@traced_consumer" and self._is_explicit
        return rq_jobs.perform_decorated if decorated else rq_jobs.perform

    def _traced(self, publish: Callable[..., Any]) -> Callable[..., Any]:
        return self._wrapped(adapter.traced_publish, publish)

    def _queue(self, name: str | None = None) -> rq.Queue:
        return self._queue_class(name or self.queue, connection=self._connection)

    # Consuming

    def consume(self, handler: Handler, count: int = 1) -> None:
        os.environ[HANDLER] = handler.dump()
        wait_until(self._due, f"a job in {self.queue}")
        with _brisk():
            if self.style == "WorkerPool":
                # RQ 1: workers that start at the same time take each other's jobs for stuck, and fail them.
                self._start_pool(2 if MAJOR > 1 else 1)
            else:
                self._worker().work(burst=True, max_jobs=count, logging_level="CRITICAL")

    def consume_concurrently(self, handler: Handler, count: int) -> None:
        os.environ[HANDLER] = handler.dump()
        with _brisk(), self._nobody_tidying():
            self._start_pool(count)

    @contextmanager
    def _nobody_tidying(self) -> Iterator[None]:
        """RQ 1: what one worker is about to begin, another that starts meanwhile takes for stuck, and fails."""
        queue = self._queue()
        if MAJOR == 1:
            assert queue.acquire_maintenance_lock()
        yield
        if MAJOR == 1:
            queue.release_maintenance_lock()  # type: ignore[no-untyped-call]

    def consume_killed(self, handler: Handler) -> None:
        if self.style != "SimpleWorker":
            self.consume(handler, 2)
            return
        os.environ[HANDLER] = handler.dump()
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException), _brisk():
                self._worker().work(burst=True, logging_level="CRITICAL")
            os._exit(1)
        _, status = os.waitpid(pid, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
        # Long after the worker's last heartbeat RQ takes the job for abandoned, and retries it.
        StartedJobRegistry(queue=self._queue()).cleanup(timestamp=int(time.time()) + 24 * 3600)
        self.consume(handler)

    def _worker(self) -> Any:
        return self._worker_class()([self._queue()], connection=self._connection)

    def _worker_class(self) -> Any:
        traced = self._is_explicit and self.style != "@traced_consumer"
        if traced:
            return self._traced_worker_class()
        name = "Worker" if self.style in ("WorkerPool", "@traced_consumer") else self.style
        return getattr(rq_jobs, f"Derived{name}") if self._subclass else getattr(rq.worker, name)

    def _traced_worker_class(self) -> Any:
        name = "Worker" if self.style in ("WorkerPool", "@traced_consumer") else self.style
        return getattr(rq_jobs, f"Traced{name}")

    def _start_pool(self, workers: int) -> None:
        pool = rq.worker_pool.WorkerPool(
            [self._queue()],
            connection=self._connection,
            num_workers=workers,
            worker_class=self._worker_class(),
        )
        pool.start(burst=True, logging_level="CRITICAL")

    def _due(self) -> bool:
        """Whether a job waits, once the scheduler has moved what is due."""
        queue = self._queue()
        if queue.scheduled_job_registry.count:
            scheduler: Any = RQScheduler([queue], self._connection)
            scheduler.acquire_locks()
            scheduler.enqueue_scheduled_jobs()
            scheduler.release_locks()
        return queue.count > 0

    # What a plain client sees

    def wire(self, queue: str | None = None) -> list[WireMessage]:
        return [self._wire_message(job_id) for job_id in self._queue(queue).get_job_ids()]

    def _wire_message(self, job_id: str) -> WireMessage:
        meta = pickle.loads(self._connection.hget(Job.key_for(job_id), "meta") or pickle.dumps({}))  # type: ignore[arg-type]
        fields, _ = split_headers(meta.pop(adapter.META_KEY, {}).items())
        return WireMessage(Job.fetch(job_id, self._connection).args[0], fields, meta)

    def counts(self) -> Counts:
        queue = self._queue()
        return Counts(
            left=queue.count,
            unacked=StartedJobRegistry(queue=queue).count,
            dead=FailedJobRegistry(queue=queue).count,
        )

    # The instrumentor

    @classmethod
    def instrumentor(cls) -> adapter.RQInstrumentor:
        return adapter.RQInstrumentor()

    @contextmanager
    def subclassed(self) -> Iterator[None]:
        self._queue_class = type("Derived", (rq.Queue,), {})
        self._subclass = True
        rq_jobs.forget_derived()
        self._worker_class()
        try:
            yield
        finally:
            self._queue_class = rq.Queue
            self._subclass = False

    # What is expected

    def _attributes(self, name: str, kind: str) -> dict[str, Any]:
        function = f"{self._job.__module__}.{self._job.__qualname__}"
        return {
            **super()._attributes(name, kind),
            "messaging.message.id": str,
            "code.function.name": function,
        }


@contextmanager
def _brisk() -> Iterator[None]:
    """A worker's thread for commands takes a second to end, and a pool looks at its workers once a second.

    Workers also install signal handlers, which do not outlive the block.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    owner = next(kind for kind in rq.worker.Worker.__mro__ if "subscribe" in vars(kind))
    shorter = SimpleNamespace(sleep=lambda seconds: time.sleep(min(seconds, 0.02)))
    try:
        with (
            mock.patch.object(owner, "subscribe"),
            mock.patch.object(owner, "unsubscribe"),
            mock.patch.object(rq.worker_pool, "time", shorter),
        ):
            yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
