"""confluent-kafka's AIOProducer and AIOConsumer (since 2.13) on a live Kafka, through both APIs: one style more.

An AIOProducer takes no headers, so what the caller gives headers to is published by a Producer.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from importlib.util import find_spec
from typing import Any, ClassVar

from confluent_kafka import KafkaException, TopicPartition

from integration.contract.actions import Handler, run, run_async
from integration.contract.driver import Api, Column, Failing, Need
from integration.contract.telemetry import DEADLINE
from integration.drivers.confluent_kafka import ConfluentKafkaDriver, is_moving
from integration.drivers.event_loop import EventLoop, left_by_cancel
from integration.drivers.kafka import CLIENT
from integration.live import run_killed
from queueprop.adapters import confluent_kafka as adapter


class AIODriver(ConfluentKafkaDriver):
    """``async for`` over an AIOConsumer, which is polled; a message that is handled is committed."""

    ways: ClassVar[Sequence[str]] = ("AIOProducer",)
    batch_ways = ()
    styles: ClassVar[Sequence[str]] = ("async for",)
    table = "confluent-kafka on asyncio"

    @classmethod
    def absent(cls, column: Column) -> str | None:
        return None if find_spec("confluent_kafka.aio") else "confluent_kafka.aio came with 2.13"

    @classmethod
    def lacks(cls, column: Column) -> Mapping[Need, str]:
        return {**super().lacks(column), "batch": "an AIOProducer's messages have spans of their own"}

    @classmethod
    def exits(cls, style: str) -> Sequence[str]:
        return ("break", "return", "exception", "cancel")

    @classmethod
    def receives(cls, style: str) -> bool:
        return False

    @classmethod
    def many(cls, column: Column) -> int:
        return 1_000

    def __init__(self, style: str, api: Api, url: str | None = None) -> None:
        super().__init__(style, api, url)
        self._loops: dict[int, _Loop] = {}
        self._sending: list[asyncio.Future[Any]] = []

    # Life

    @property
    def _event_loop(self) -> _Loop:
        number = threading.get_ident()
        if number not in self._loops:
            self._loops[number] = _Loop(self._kinds.get("AIOProducer"), self._configuration)
        return self._loops[number]

    def close(self) -> None:
        with self._untraced():
            while self._loops:
                self._loops.popitem()[1].close()
        super().close()

    def reconnect(self) -> None:
        self._loops.clear()
        super().reconnect()

    # Publishing

    def _send(self, topic: str, body: str, headers: Any = None, way: str | None = None) -> None:
        if headers is not None:
            super()._send(topic, body, headers)
        elif self._event_loop.is_running:  # a handler's, which is no coroutine function
            self._sending.append(asyncio.ensure_future(self._publish(topic, body.encode())))
        else:
            self._event_loop.run(self._publish(topic, body.encode()))

    async def _publish(self, topic: str, body: bytes) -> None:
        producer = self._event_loop.producer()
        await _sent(producer, await self._traced(producer.produce)(topic, value=body, partition=0))

    def failing(self) -> Sequence[Failing]:
        def too_large() -> None:
            self._event_loop.run(self._publish(self.queue, b"x" * 2_000_000))

        return [Failing("too large", too_large)]

    def kept_publish(self) -> Callable[[str], object]:
        loop = self._event_loop

        async def make() -> Any:
            return loop.producer().produce

        produce = loop.run(make())

        async def publish(body: str) -> None:
            await _sent(loop.producer(), await produce(self.queue, value=body.encode(), partition=0))

        return lambda body: loop.run(publish(body))

    # Consuming

    def consume(self, handler: Handler, count: int = 1) -> None:
        self._event_loop.run(self._consume(handler, count))

    async def _consume(self, handler: Handler, count: int) -> None:
        handled = 0
        async with self._aio_consuming() as consumer:
            while handled < count:
                async for message in self._loop(consumer):
                    if message is None:
                        continue
                    handled += 1
                    if await self._handle_async(consumer, message, handler) or handled == count:
                        break
            if handler.action == "check current":
                await self._commit_async(consumer, self._last)

    async def _handle_async(self, consumer: Any, message: Any, handler: Handler) -> bool:
        """As ``_handle``; its settling and seeking are awaited."""
        later = _Later()
        comes_again = self._handle(later, message, handler)
        while self._sending:
            await self._sending.pop(0)
        for name, kwargs in later.calls:
            if name == "commit":
                await self._commit_async(consumer, kwargs["message"])
            else:
                await consumer.seek(kwargs["partition"])
        return comes_again

    def _commit(self, consumer: Any, message: Any) -> None:
        consumer.commit(message=message)

    async def _commit_async(self, consumer: Any, message: Any) -> None:
        await self._wrapped(adapter.traced_settle, consumer.commit)(message=message, asynchronous=False)

    def _loop(self, consumer: Any) -> Any:
        if self._is_explicit or (self.api == "instrumentor" and self.instrumentor().is_active):
            return adapter.traced_messages(consumer, settings=self._settings)
        return _polled(consumer)

    def consume_concurrently(self, handler: Handler, count: int) -> None:
        async def consume(skipped: int) -> None:
            async with self._aio_consuming(skipped) as consumer:
                async for message in self._loop(consumer):
                    if message is not None:
                        await run_async(handler, self._delivery(message))
                        break

        async def consume_all() -> None:
            await asyncio.gather(*map(consume, range(count)))

        self._event_loop.run(consume_all())

    def consume_killed(self, handler: Handler) -> None:
        def consume() -> None:
            asyncio.events._set_running_loop(None)
            self._loops = {0: self._loops}  # type: ignore[dict-item]  # the parent's, which cannot be ended here
            self.consume(handler)

        run_killed(consume)
        self.consume(handler)

    def leave(self, how: str, handler: Handler) -> None:
        self._event_loop.run(self._leave(how, handler))

    async def _leave(self, how: str, handler: Handler) -> None:
        begun = asyncio.Event()

        async def handle(message: Any) -> None:
            run(handler, self._delivery(message))

        async def hang(consumer: Any) -> None:
            async for message in self._loop(consumer):
                await handle(message)
                begun.set()
                await asyncio.sleep(DEADLINE)

        async with self._aio_consuming() as consumer:
            if how == "cancel":
                await left_by_cancel(hang(consumer), begun)
            else:
                await self.leave_loop_async(how, self._loop(consumer), handle)

    async def _committed(self, consumer: Any) -> Any:
        """As the driver of the plain clients asks for it."""
        end = time.monotonic() + DEADLINE
        while True:
            try:
                [found] = await consumer.committed([TopicPartition(self.queue, 0)], timeout=DEADLINE)
                return found
            except KafkaException as error:
                if not is_moving(error) or time.monotonic() > end:
                    raise
            await asyncio.sleep(0.002)

    @asynccontextmanager
    async def _aio_consuming(self, skipped: int | None = None) -> AsyncIterator[Any]:
        from confluent_kafka.aio import AIOConsumer

        kind = self._kinds.get("AIOConsumer", AIOConsumer)
        consumer = kind({**self._consumer_configuration, "client.id": CLIENT}, max_workers=2)
        try:
            await consumer.get_watermark_offsets(TopicPartition(self.queue, 0), timeout=DEADLINE)
            found = await self._committed(consumer)
            begin = self._begins[self.queue]
            if skipped is not None:
                found.offset = begin + skipped
            elif found.offset < 0:
                found.offset = begin
            await consumer.assign([TopicPartition(self.queue, 0, found.offset)])
            yield consumer
        finally:
            await consumer.close()

    @contextmanager
    def subclassed(self) -> Iterator[None]:
        from confluent_kafka.aio import AIOConsumer, AIOProducer

        class MyProducer(AIOProducer):
            async def produce(self, *args: Any, **kwargs: Any) -> Any:
                return await super().produce(*args, **kwargs)

        class MyConsumer(AIOConsumer):
            async def poll(self, *args: Any, **kwargs: Any) -> Any:
                return await super().poll(*args, **kwargs)

        self.close()
        self._kinds = {"AIOProducer": MyProducer, "AIOConsumer": MyConsumer}
        try:
            yield
        finally:
            self.close()
            self._kinds = {}


class _Loop(EventLoop):
    """Has an AIOProducer once there is one."""

    is_running = False

    def __init__(self, kind: Any, configuration: Mapping[str, Any]) -> None:
        super().__init__()
        self._kind = kind
        self._configuration = configuration
        self._producer: Any = None

    def run(self, verb: Any) -> Any:
        self.is_running = True
        try:
            return super().run(verb)
        finally:
            self.is_running = False

    def producer(self) -> Any:
        from confluent_kafka.aio import AIOProducer

        if self._producer is None:
            configuration = {**self._configuration, "client.id": CLIENT, "linger.ms": 0}
            self._producer = (self._kind or AIOProducer)(configuration, max_workers=2, buffer_timeout=0)
        return self._producer

    def close(self) -> None:
        if self._producer is not None:
            self.run(self._producer.close())
        super().close()


class _Later:
    """What a handling asks of its consumer, to be awaited afterwards."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def commit(self, **kwargs: Any) -> None:
        self.calls.append(("commit", kwargs))

    def seek(self, partition: Any) -> None:
        self.calls.append(("seek", {"partition": partition}))


async def _sent(producer: Any, future: Any) -> None:
    await producer.flush()
    await future


async def _polled(consumer: Any) -> AsyncIterator[Any]:
    while True:
        yield await consumer.poll(1.0)
