"""aiokafka: a producer that sends without waiting for each answer, and a consumer's loop."""

from __future__ import annotations

import asyncio
import inspect
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from benchmarks.stubs import TRACEPARENT, Handler, Stub, texts


class AIOKafka(Stub):
    system = "kafka"
    cut = ""

    def __init__(self, url: str) -> None:
        self._servers = url.removeprefix("kafka://")
        self._loop = asyncio.new_event_loop()
        self.published_to = self.consumed_from = f"orders-{uuid.uuid4().hex[:8]}"
        self._loop.run_until_complete(self._connect())

    async def _connect(self) -> None:
        self._producer = AIOKafkaProducer(bootstrap_servers=self._servers)
        await self._producer.start()
        await self._producer.partitions_for(self.published_to)  # makes the topic
        self._consumer = AIOKafkaConsumer(bootstrap_servers=self._servers)
        await self._consumer.start()
        self._partition = TopicPartition(self.consumed_from, 0)
        self._consumer.assign([self._partition])

    def publishes(self, count: int) -> Callable[[], object]:
        async def publish() -> None:
            for _ in range(count):
                # A list of its own: OpenTelemetry's instrumentation writes into the caller's.
                headers = [("tenant", b"acme")]
                await self._producer.send(self.published_to, b"hello", key=b"k", partition=0, headers=headers)
            await self._producer.flush()

        return lambda: self._loop.run_until_complete(publish())

    def deliveries(self, count: int, handler: Handler) -> Callable[[], object]:
        self._loop.run_until_complete(self._fill(count))

        async def consume() -> None:
            left = count
            async for _ in self._consumer:
                handler()
                left -= 1
                if not left:
                    return

        return lambda: self._loop.run_until_complete(consume())

    async def _fill(self, count: int) -> None:
        """Behind all that is there already, and traced by nobody."""
        send: Any = inspect.unwrap(AIOKafkaProducer.send)
        headers = [("tenant", b"acme"), ("traceparent", TRACEPARENT.encode())]
        await self._seek_from_end(0)
        for _ in range(count):
            await send(self._producer, self.consumed_from, b"hello", key=b"k", partition=0, headers=headers)
        await self._producer.flush()

    async def _seek_from_end(self, count: int) -> None:
        ends = await self._consumer.end_offsets([self._partition])
        self._consumer.seek(self._partition, ends[self._partition] - count)

    def written(self) -> Mapping[str, str]:
        return texts(dict(self._loop.run_until_complete(self._latest()).headers))

    async def _latest(self) -> Any:
        getone: Any = inspect.unwrap(AIOKafkaConsumer.getone)
        await self._seek_from_end(1)
        return await getone(self._consumer)


make = AIOKafka
