"""aiokafka on a live Kafka, or on librdkafka's mock cluster: every way to consume, through both APIs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from typing import Any, ClassVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from integration.contract.actions import Delivery, Handler, run, run_async
from integration.contract.driver import (
    Api,
    Counts,
    WireMessage,
    split_headers,
)
from integration.contract.telemetry import DEADLINE, tell_library_error
from integration.drivers.event_loop import AsyncioDriver, EventLoop, left_by_cancel
from integration.drivers.kafka import CLIENT, KafkaDriver, OnMockCluster, pairs_of
from queueprop.adapters import aiokafka as adapter

_BACKOFF = 10  # milliseconds, instead of a hundred, that a client sleeps until it asks again


class AIOKafkaDriver(KafkaDriver, AsyncioDriver["_EventLoop"]):
    """``async for``, ``getone`` and ``getmany``; a record that is handled is committed."""

    library = "aiokafka"
    packages = frozenset({"aiokafka"})
    ways: ClassVar[Sequence[str]] = ("send_and_wait", "send")
    batch_ways = ("send_batch",)
    styles: ClassVar[Sequence[str]] = ("async for", "getone", "getmany")
    table = "aiokafka"
    pulls_one, pulls_several = "getone", "getmany"

    @classmethod
    def exits(cls, style: str) -> Sequence[str]:
        ways = ("break", "return", "exception")
        return (*ways, "cancel") if style == "async for" else ways

    @classmethod
    def receives(cls, style: str) -> bool:
        return style != "async for"

    @classmethod
    def at_once(cls, style: str) -> int:
        return 8 if style == "async for" else 100

    def __init__(self, style: str, api: Api, url: str | None = None) -> None:
        super().__init__(style, api, url)
        self._begins: Mapping[Any, int] = {}
        self._producer_class: Any = AIOKafkaProducer
        self._consumer_class: Any = AIOKafkaConsumer

    # Life

    def open(self) -> None:
        self._begins = self._run(self._ends())

    async def _ends(self) -> Mapping[Any, int]:
        topics = (self.queue, self.other_queue)
        async with self._plain_consumer(*topics) as consumer:
            return dict(await consumer.end_offsets(list(map(_partition, topics))))

    def make_event_loop(self) -> _EventLoop:
        return _EventLoop(self._producer_class, self._servers)

    def close(self) -> None:
        self.close_event_loops()

    def reconnect(self) -> None:
        self.close()

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
        self._refusals[body] = refusal or "committed"
        self._run(self._send(self.queue, body, pairs_of(headers), way))

    def publish_with(self, body: str, container: object) -> None:
        self._run(self._send(self.queue, body, container))

    async def _send(self, topic: str, body: Any, headers: Any = None, way: str | None = None) -> None:
        producer = await self._event_loop.producer()
        if way == "send":
            await (await self._traced(producer.send)(topic, body.encode(), partition=0, headers=headers))
        else:
            await self._traced(producer.send_and_wait)(topic, body.encode(), partition=0, headers=headers)

    def publish_batch(self, bodies: Sequence[str], *, way: str) -> None:
        async def send() -> None:
            producer = await self._event_loop.producer()
            batch = self._wrapped(adapter.traced_create_batch, producer.create_batch)()
            for body in bodies:
                assert batch.append(timestamp=None, key=None, value=body.encode()) is not None
            await (await self._traced(producer.send_batch)(batch, self.queue, partition=0))
            await asyncio.sleep(0)  # the future around the batch's own

        self._run(send())

    @classmethod
    def containers(cls) -> Mapping[str, Callable[[], object]]:
        stale = [("Traceparent", b"stale"), ("tracestate", b"a=1"), ("tenant", b"a")]
        return {
            "None": lambda: None,
            "an empty list": list,
            "a list": lambda: [("tenant", b"a"), ("tenant", b"b"), ("none", None)],
            "a forwarded list": lambda: list(stale),
        }

    def failing_ways(self) -> Mapping[str, Callable[[], Coroutine[Any, Any, Any]]]:
        async def too_large() -> None:
            producer = await self._event_loop.producer()
            await self._traced(producer.send)(self.queue, b"x" * 2_000_000)

        async def no_such_partition() -> None:
            producer = await self._event_loop.producer()
            await self._traced(producer.send)(self.queue, b"x", partition=99)

        async def nothing_to_send() -> None:
            producer = await self._event_loop.producer()
            await self._traced(producer.send)(self.queue)

        async def no_bytes() -> None:
            producer = await self._event_loop.producer()
            await self._traced(producer.send)(self.queue, "text")

        async def stopped() -> None:
            producer = self._event_loop.make()
            await producer.start()
            await producer.partitions_for(self.queue)  # else it would wait for them
            await producer.stop()
            await self._traced(producer.send)(self.queue, b"x", partition=0)

        return {
            "too large": too_large,
            "no such partition": no_such_partition,
            "neither key nor value": nothing_to_send,
            "no bytes": no_bytes,
            "the producer is stopped": stopped,
        }

    def plant(
        self, body: str, fields: Mapping[str, object], headers: Mapping[str, str] | None = None
    ) -> None:
        with self._untraced():
            self._run(self._send_plainly(body, [*(pairs_of(headers) or ()), *(pairs_of(fields) or ())]))

    async def _send_plainly(self, body: str, headers: Any) -> None:
        producer = await self._event_loop.producer()
        await producer.send_and_wait(self.queue, body.encode(), partition=0, headers=headers)

    def kept_publish(self) -> Callable[[str], object]:
        send = self._run(self._event_loop.producer()).send_and_wait
        return lambda body: self._run(send(self.queue, body.encode(), partition=0))

    def _traced(self, publish: Any) -> Any:
        return self._wrapped(adapter.traced_publish, publish)

    # Consuming

    def consume(self, handler: Handler, count: int = 1) -> None:
        self._run(self.consume_by(self._event_loop, handler, count))

    def consume_concurrently(self, handler: Handler, count: int) -> None:
        self._run(
            self._consume_loops(handler, count) if self.style == "async for" else self._tasks(handler, count)
        )

    async def _consume_loops(self, handler: Handler, count: int) -> None:
        """Several consumers in one event loop, each with a record of its own."""

        async def consume(skipped: int) -> None:
            async with self._consuming(skipped) as consumer:
                async for record in self._loop(consumer):
                    await run_async(handler, self._delivery(record))
                    break

        await asyncio.gather(*map(consume, range(count)))

    async def _tasks(self, handler: Handler, count: int) -> None:
        """A task for each record."""

        async def handle(record: Any) -> None:
            with self._explicitly(lambda: adapter.traced_message(record, settings=self._settings)):
                await run_async(handler, self._delivery(record))

        async with self._consuming() as consumer:
            records = [await self._pull(consumer) for _ in range(count)]
            await asyncio.gather(*map(handle, records))

    def consume_batch(self, handler: Handler, count: int) -> None:
        async def consume() -> None:
            async with self._consuming() as consumer:
                records: list[Any] = []
                while len(records) < count:
                    found = await self._getmany(consumer, count)
                    records += [record for some in found.values() for record in some[:]]
                with self._explicitly(lambda: adapter.traced_batch(records, settings=self._settings)):
                    for record in records:
                        run(handler, self._delivery(record))
                await self._commit(consumer, records[-1])

        self._run(consume())

    async def consume_by(self, loop: _EventLoop, handler: Handler, count: int) -> None:
        handled = 0
        async with self._consuming() as consumer:
            while handled < count:
                handled += await self._consume_some(consumer, handler, count - handled)
            if handler.action == "check current":  # a thousand records, and one commit
                await self._commit(consumer, self._last)

    async def _consume_some(self, consumer: Any, handler: Handler, count: int) -> int:
        """Handles no more than that many records, and none behind one that is to come again. How many it were."""
        handled = 0
        if self.style == "getone":
            await self._handle(consumer, await self._pull(consumer), handler)
            return 1
        if self.style == "getmany":
            for some in (await self._getmany(consumer, count)).values():
                for record in some:
                    handled += 1
                    if await self._handle(consumer, record, handler):
                        break
            return handled
        async for record in self._loop(consumer):
            handled += 1
            if await self._handle(consumer, record, handler) or handled == count:
                break
        return handled

    async def _handle(self, consumer: Any, record: Any, handler: Handler) -> bool:
        """One record: a loop has its span already, but not the errors of its body. Whether it comes again."""
        try:
            if self.style != "getone" and handler.action != "fail":
                scope: AbstractContextManager[Any] = contextlib.nullcontext()
            else:
                scope = self._explicitly(lambda: adapter.traced_message(record, settings=self._settings))
            with scope:
                run(handler, self._delivery(record))
                await self.all_sent()
        except Exception as error:
            return await self._refuse(consumer, record, error)
        self._last = record
        if handler.action != "check current":
            await self._commit(consumer, record)
        return False

    async def _refuse(self, consumer: Any, record: Any, error: Exception) -> bool:
        """What a user does about an exception of the body of a loop."""
        tell_library_error(error)
        body = record.value.decode()
        refusal = self._refusals[body]
        if refusal == "requeue":
            self._refusals[body] = "committed"
            consumer.seek(_partition(record.topic), record.offset)
            return True
        if refusal == "committed":
            await self._commit(consumer, record)
        return False

    async def _commit(self, consumer: Any, record: Any) -> None:
        commit = self._wrapped(adapter.traced_settle, consumer.commit)
        await commit({_partition(record.topic): record.offset + 1})

    def _loop(self, consumer: Any) -> Any:
        return self._wrapped(adapter.traced_messages, consumer)

    async def _pull(self, consumer: Any) -> Any:
        if self.style == "getmany":
            while True:
                for some in (await self._getmany(consumer, 1)).values():
                    return some[0]
        return await self._wrapped(adapter.traced_get, consumer.getone)()

    async def _getmany(self, consumer: Any, count: int) -> Any:
        get = self._wrapped(adapter.traced_get, consumer.getmany)
        return await get(timeout_ms=1_000, max_records=count)

    @asynccontextmanager
    async def _consuming(self, skipped: int | None = None) -> AsyncIterator[Any]:
        consumer = self._consumer_class(
            bootstrap_servers=self._servers,
            client_id=CLIENT,
            group_id=self._group,
            enable_auto_commit=False,
            retry_backoff_ms=_BACKOFF,
        )
        partition = _partition(self.queue)
        await consumer.start()
        try:
            consumer.assign([partition])
            if skipped is not None:
                consumer.seek(partition, self._begins[partition] + skipped)
            elif await consumer.committed(partition) is None:
                consumer.seek(partition, self._begins[partition])
            yield consumer
        finally:
            await consumer.stop()

    def _delivery(self, record: Any) -> Delivery:
        def publish(body: str, headers: Any = None) -> None:
            pairs = None if headers is None else list(headers)
            self.send_soon(self._send(self.other_queue, body, pairs))

        return Delivery(record.value.decode(), record.headers, publish)

    def leave(self, how: str, handler: Handler) -> None:
        async def leave() -> None:
            async with self._consuming() as consumer:
                if how == "cancel":
                    await self._leave_cancelled(consumer, handler)
                    return
                with contextlib.suppress(_LeftError):
                    await self._leave_loop(how, consumer, handler)

        self._run(leave())

    async def _leave_loop(self, how: str, consumer: Any, handler: Handler) -> None:
        if self.style == "async for":
            async for record in self._loop(consumer):
                run(handler, self._delivery(record))
                if how == "break":
                    break
                if how == "return":
                    return
                raise _LeftError
            return
        record = await self._pull(consumer)
        with self._explicitly(lambda: adapter.traced_message(record, settings=self._settings)):
            run(handler, self._delivery(record))
            if how == "exception":
                raise _LeftError

    async def _leave_cancelled(self, consumer: Any, handler: Handler) -> None:
        begun = asyncio.Event()

        async def hang() -> None:
            async for record in self._loop(consumer):
                run(handler, self._delivery(record))
                begun.set()
                await asyncio.sleep(DEADLINE)

        await left_by_cancel(hang(), begun)

    # What a plain client sees

    def wire(self, queue: str | None = None) -> list[WireMessage]:
        with self._untraced():
            records = self._run(self._waiting(queue or self.queue))
        return [WireMessage(it.value.decode(), *split_headers(it.headers)) for it in records]

    def counts(self) -> Counts:
        with self._untraced():
            return Counts(len(self._run(self._waiting(self.queue))))

    async def _waiting(self, topic: str) -> list[Any]:
        """What the group has not committed yet."""
        partition = _partition(topic)
        async with self._plain_consumer(group_id=self._group, enable_auto_commit=False) as consumer:
            consumer.assign([partition])
            begin = await consumer.committed(partition)
            if begin is None:
                begin = self._begins[partition]
            end = (await consumer.end_offsets([partition]))[partition]
            if begin == end:
                return []
            consumer.seek(partition, begin)
            return [await consumer.getone() for _ in range(end - begin)]

    def _plain_consumer(self, *topics: str, **options: Any) -> Any:
        return AIOKafkaConsumer(
            *topics, bootstrap_servers=self._servers, retry_backoff_ms=_BACKOFF, **options
        )

    # The instrumentor

    @classmethod
    def instrumentor(cls) -> adapter.AIOKafkaInstrumentor:
        return adapter.AIOKafkaInstrumentor()

    @contextmanager
    def subclassed(self) -> Iterator[None]:
        class Producer(AIOKafkaProducer):  # type: ignore[misc]
            async def send(self, *args: Any, **kwargs: Any) -> Any:
                return await super().send(*args, **kwargs)

        class Consumer(AIOKafkaConsumer):  # type: ignore[misc]
            async def getone(self, *args: Any) -> Any:
                return await super().getone(*args)

        self.close()
        self._producer_class, self._consumer_class = Producer, Consumer
        try:
            yield
        finally:
            self.close()
            self._producer_class, self._consumer_class = AIOKafkaProducer, AIOKafkaConsumer


class MockClusterDriver(OnMockCluster, AIOKafkaDriver):
    table = "aiokafka on the mock cluster"


class _LeftError(Exception):
    """A loop's body raises it to leave."""


class _EventLoop(EventLoop):
    """Has a producer once there is one."""

    def __init__(self, producer_class: Any, servers: str) -> None:
        super().__init__()
        self._producer_class = producer_class
        self._servers = servers
        self._producer: Any = None

    def make(self) -> Any:
        return self._producer_class(
            bootstrap_servers=self._servers, client_id=CLIENT, retry_backoff_ms=_BACKOFF
        )

    async def producer(self) -> Any:
        if self._producer is None:
            producer = self.make()
            await producer.start()
            self._producer = producer
        return self._producer

    def close(self) -> None:
        if self._producer is not None:
            self.run(self._producer.stop())
        super().close()


def _partition(topic: str) -> Any:
    """Every topic has one."""
    return TopicPartition(topic, 0)
