"""BullMQ on a live Redis: workers, and jobs taken by hand, through both APIs, in event loops of their own."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, ClassVar

import bullmq
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from integration.contract.actions import Delivery, Handler, run_async
from integration.contract.driver import Api, Column, Counts, Need, Refusal, WireMessage, split_headers
from integration.contract.telemetry import DEADLINE, tell_library_error
from integration.drivers.event_loop import AsyncioDriver, EventLoop
from integration.live import run_killed
from queueprop.adapters import bullmq as adapter

IS_3 = hasattr(bullmq.Queue, "upsertJobScheduler")
JOB = "mails.send"
_STALLING = {"stalledInterval": 200}
"""A worker looks so often for jobs of which nobody has the lock."""


class BullMQDriver(AsyncioDriver["_EventLoop"]):
    """What others call headers are options of a job, and its body is the data."""

    library = "bullmq"
    system = "bullmq"
    broker = "redis"
    packages = frozenset({"bullmq"})
    styles = ("Worker", "getNextJob")
    ways: ClassVar[Sequence[str]] = ("add", "by keywords", *(("upsertJobScheduler",) if IS_3 else ()))
    batch_ways = ("addBulk", "an iterator", "flow.add", "flow.addBulk")
    delayed_ways = ("add",)
    refusals = (Refusal("failed"), Refusal("retry", 2))
    tells_attempt = True
    tells_delay = True

    @classmethod
    def lacks(cls, column: Column) -> Mapping[Need, str]:
        lacks: dict[Need, str] = {
            "batch receive": "a worker processes one job at a time",
            "exits": "the loop is the worker's own",
            "settle": "BullMQ has no ack",
            "redelivery": "BullMQ gives a job back by its attempts alone",
            "worker processes": "a worker is a task of the event loop",
        }
        if column.api == "explicit":
            lacks["instrumentor"] = "explicit API: nothing is patched"
        return lacks

    @classmethod
    def at_once(cls, style: str) -> int:
        return 100

    @classmethod
    def many(cls, column: Column) -> int:
        return 10_000 if column == (cls.library, "Worker", "instrumentor") else 1_000

    @classmethod
    def remarks(cls, column: Column) -> Mapping[int, str]:
        return {15: f"{cls.many(column):,} messages on one thread"}

    def __init__(self, style: str, api: Api, url: str | None = None) -> None:
        super().__init__(style, api, url)
        self._queue_class: Any = bullmq.Queue
        self._worker_class: Any = bullmq.Worker

    # Life

    def open(self) -> None:
        self._redis: Any = Redis.from_url(self.url or "", decode_responses=True)

    def close(self) -> None:
        self.close_event_loops()
        for queue in (self.queue, self.other_queue):
            for key in self._redis.scan_iter(f"bull:{queue}:*"):
                self._redis.delete(key)
        self._redis.close()

    def reconnect(self) -> None:
        self.close_event_loops()
        self._redis.close()
        self.open()

    def make_event_loop(self) -> _EventLoop:
        return _EventLoop(self.url or "", self._queue_class)

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
        opts: dict[str, Any] = dict(headers or {})
        if retries or refusal == "retry":
            # The script of BullMQ 2.15 that retries a job at once fails.
            opts |= {"attempts": 1 + (retries or 1), **({} if IS_3 else {"backoff": 1})}
        if delay is not None:
            opts["delay"] = int(delay * 1000)
        self._run(self._publish(body, opts, way))

    def publish_carrying(self, body: str, fields: Mapping[str, str]) -> None:
        self.publish(body, {"tm": json.dumps(dict(fields))})

    def publish_with(self, body: str, container: object) -> None:
        self._run(self._publish(body, container))

    async def _publish(self, body: str, opts: Any, way: str | None = None) -> None:
        queue = self._event_loop.queue(self.queue)
        if way == "by keywords":
            await self._traced(queue.add)(name=JOB, data=body, opts=opts)
        elif way == "upsertJobScheduler":
            upsert = self._traced(queue.upsertJobScheduler)
            await upsert(body, {"every": 3_600_000, "limit": 1}, JOB, body, opts)
        else:
            await self._traced(queue.add)(JOB, body, opts)

    @classmethod
    def containers(cls) -> Mapping[str, Callable[[], object]]:
        return {
            "a dict": lambda: {"tenant": "a", "attempts": 3, "list": [1, 2]},
            "an empty dict": dict,
            "a read-only mapping": lambda: MappingProxyType({"tenant": "a"}),
            "forwarded options": lambda: {"tenant": "a", "tm": '{"traceparent":"stale","tracestate":"a=1"}'},
            "forwarded metadata": lambda: {"telemetry": {"metadata": '{"traceparent":"stale"}'}},
            **({"None": lambda: None} if IS_3 else {}),
        }

    def publish_batch(self, bodies: Sequence[str], *, way: str) -> None:
        self._run(self._publish_batch(bodies, way))

    async def _publish_batch(self, bodies: Sequence[str], way: str) -> None:
        jobs = [{"name": JOB, "data": body} for body in bodies]
        if not way.startswith("flow"):
            add = self._traced(self._event_loop.queue(self.queue).addBulk)
            await add(iter(jobs) if way == "an iterator" else jobs)
            return
        root, *children = [{**job, "queueName": self.queue} for job in jobs]
        flow: Any = {**root, "children": children}
        producer = self._event_loop.flow_producer()
        if way == "flow.add":
            await self._traced(producer.add)(flow)
        else:
            await self._traced(producer.addBulk)([flow])

    def failing_ways(self) -> Mapping[str, Callable[[], Coroutine[Any, Any, Any]]]:
        async def gone() -> None:
            client = AsyncRedis(port=1, retry=Retry(NoBackoff(), 0), decode_responses=True)
            queue = self._queue_class(self.queue, {"connection": client})
            await self._traced(queue.add)(JOB, "hello")

        async def no_json() -> None:
            await self._traced(self._event_loop.queue(self.queue).add)(JOB, {1, 2})

        async def no_parent() -> None:
            opts = {"parent": {"id": "none", "queue": f"bull:{self.queue}"}}
            await self._traced(self._event_loop.queue(self.queue).add)(JOB, "hello", opts)

        ways = {"the broker is gone": gone, "no JSON": no_json}
        return {**ways, "no such parent": no_parent} if IS_3 else ways

    def plant(
        self, body: str, fields: Mapping[str, object], headers: Mapping[str, str] | None = None
    ) -> None:
        opts = {**(headers or {}), **({"tm": json.dumps(dict(fields))} if fields else {})}
        self._plant(body, opts)

    @classmethod
    def junk_carriers(cls) -> Sequence[object]:
        return (None, 7, False, "not json", "null", "[]", '"text"', [1], {"traceparent": "in an object"})

    def plant_junk(self, body: str, junk: object) -> None:
        self._plant(body, {"tm": junk})

    def _plant(self, body: str, opts: Mapping[str, object]) -> None:
        with self._untraced():
            self._run(self._event_loop.queue(self.queue).add(JOB, body, opts))

    @classmethod
    def can_plant(cls, value: object) -> bool:
        try:
            return bool(json.loads(json.dumps(value)) == value)
        except (TypeError, ValueError):
            return False

    def kept_publish(self) -> Callable[[str], object]:
        add = self._event_loop.queue(self.queue).add
        return lambda body: self._run(add(JOB, body))

    def _traced(self, publish: Any) -> Any:
        return self._wrapped(adapter.traced_publish, publish)

    # Consuming

    def consume(self, handler: Handler, count: int = 1) -> None:
        self._run(self.consume_by(self._event_loop, handler, count))

    def consume_concurrently(self, handler: Handler, count: int) -> None:
        self._run(self._consume(handler, count, {"concurrency": count}))

    def consume_killed(self, handler: Handler) -> None:
        def consume() -> None:
            asyncio.events._set_running_loop(None)
            self.make_event_loop().run(self._consume(handler, 1, _STALLING))

        run_killed(consume)
        for lock in self._redis.scan_iter(f"bull:{self.queue}:*:lock"):
            self._redis.delete(lock)  # as they go half a minute after who had them
        self._run(self._consume(handler, 1, _STALLING))

    async def consume_by(self, loop: _EventLoop, handler: Handler, count: int) -> None:
        await self._consume(handler, count, {})

    async def _consume(self, handler: Handler, count: int, opts: Mapping[str, Any]) -> None:
        taken = 0
        closing: list[asyncio.Future[Any]] = []

        async def process(job: Any, token: str) -> None:
            nonlocal taken
            taken += 1
            if taken == count and self.style == "Worker":
                closing.append(asyncio.ensure_future(worker.close()))  # else it would take the next one
            try:
                await run_async(handler, self._delivery(job))
            finally:
                await self.all_sent()

        opts = {"connection": self.url, "autorun": False, **opts}
        worker = self._worker_class(self.queue, self._wrapped(adapter.traced_consumer, process), opts)
        worker.on("failed", lambda job, error, *_: tell_library_error(error))
        if self.style == "Worker":
            await asyncio.wait_for(worker.run(), DEADLINE + count / 20)
            await asyncio.gather(*closing)
        else:
            await self._take_by_hand(worker, count, opts.get("concurrency", 1))
            await worker.close()

    async def _take_by_hand(self, worker: Any, count: int, at_once: int) -> None:
        taken: list[Any] = []
        for number in range(count):
            job, end = None, time.monotonic() + DEADLINE
            while job is None:
                assert time.monotonic() < end, f"waited in vain for a job in {self.queue}"
                await worker.runStalledJobsCheck()
                worker.drained = False  # it looks at once, and does not wait for a marker
                job = await worker.getNextJob(f"token-{number}")
            processing = worker.processJob(job, f"token-{number}")
            if at_once == 1:
                await processing
            else:
                taken.append(asyncio.ensure_future(processing))
        await asyncio.gather(*taken)

    def _delivery(self, job: Any) -> Delivery:
        async def send(body: str, opts: Any) -> None:
            add = self._traced(self._event_loop.queue(self.other_queue).add)
            await (add(JOB, body) if opts is None else add(JOB, body, opts))

        def publish(body: str, headers: Any = None) -> None:
            self.send_soon(send(body, headers))

        return Delivery(job.data, job.opts, publish)

    # What a plain client sees

    def wire(self, queue: str | None = None) -> list[WireMessage]:
        key = f"bull:{queue or self.queue}"
        waiting = [*reversed(self._redis.lrange(f"{key}:wait", 0, -1))]
        for later in ("prioritized", "delayed", "waiting-children"):
            waiting += self._redis.zrange(f"{key}:{later}", 0, -1)
        return [_wire_message(self._redis.hgetall(f"{key}:{it}")) for it in waiting]

    def counts(self) -> Counts:
        key = f"bull:{self.queue}"
        return Counts(
            left=len(self.wire()),
            unacked=self._redis.llen(f"{key}:active"),
            dead=self._redis.zcard(f"{key}:failed"),
        )

    # The instrumentor

    @classmethod
    def instrumentor(cls) -> adapter.BullMQInstrumentor:
        return adapter.BullMQInstrumentor()

    @contextmanager
    def subclassed(self) -> Iterator[None]:
        self.close_event_loops()
        self._queue_class, self._worker_class = _subclasses()
        try:
            yield
        finally:
            self._queue_class, self._worker_class = bullmq.Queue, bullmq.Worker
            self.close_event_loops()

    # What is expected

    def _attributes(self, name: str, kind: str) -> dict[str, Any]:
        return {**super()._attributes(name, kind), "messaging.message.id": str, "bullmq.job.name": JOB}


class _EventLoop(EventLoop):
    """Publishes by queues of its own."""

    def __init__(self, url: str, queue_class: Any) -> None:
        super().__init__()
        self._url, self._queue_class = url, queue_class
        self._queues: dict[str, Any] = {}
        self._flow_producer: Any = None

    def queue(self, name: str) -> Any:
        if name not in self._queues:
            self._queues[name] = self._queue_class(name, {"connection": self._url})
        return self._queues[name]

    def flow_producer(self) -> Any:
        if self._flow_producer is None:
            self._flow_producer = bullmq.FlowProducer(self._url)
        return self._flow_producer

    def close(self) -> None:
        for it in (*self._queues.values(), self._flow_producer):
            if it is not None:
                self.run(it.close())
        super().close()


def _wire_message(job: Mapping[str, str]) -> WireMessage:
    opts = json.loads(job["opts"])
    metadata = opts.get("telemetry", {}).pop("metadata", "{}")
    if opts.get("telemetry") == {}:
        del opts["telemetry"]
    fields = [it for text in (opts.pop("tm", "{}"), metadata) for it in json.loads(text).items()]
    return WireMessage(json.loads(job["data"]), split_headers(fields)[0], opts)


def _subclasses() -> tuple[Any, Any]:
    class Queue(bullmq.Queue):  # type: ignore[misc]
        async def add(self, *args: Any, **kwargs: Any) -> Any:
            return await super().add(*args, **kwargs)

    class Worker(bullmq.Worker):  # type: ignore[misc]
        async def processJob(self, *args: Any, **kwargs: Any) -> Any:
            return await super().processJob(*args, **kwargs)

    return Queue, Worker
