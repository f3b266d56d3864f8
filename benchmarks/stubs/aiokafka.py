"""aiokafka: its producer down to the batches that wait to be sent, its consumer down to the records fetched."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.errors import ConsumerStoppedError
from aiokafka.record.memory_records import MemoryRecords

from benchmarks.stubs import TRACEPARENT, Handler, Stub, texts
from benchmarks.stubs.by_hand import ByHand, as_pairs, from_pairs, injected


class AIOKafka(Stub):
    system = "kafka"
    cut = "the sender and the fetcher"

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._records: list[Any] = []
        self._latest: bytes = b""
        self._loop.run_until_complete(self._make())

    async def _make(self) -> None:
        self._producer = AIOKafkaProducer(
            bootstrap_servers="kafka.example:9092", client_id="shop", max_batch_size=_NEVER_FULL
        )
        self._producer._closed = True  # nothing is to be closed, and it is not to complain
        self._producer.client._wait_on_metadata = _nothing
        self._producer._metadata = SimpleNamespace(
            partitions_for_topic=lambda topic: {0, 1, 2}, available_partitions_for_topic=lambda topic: {0}
        )
        self._consumer = AIOKafkaConsumer(
            "orders", bootstrap_servers="kafka.example:9092", client_id="till", group_id="billing"
        )
        self._consumer._closed = None
        self._consumer._coordinator = SimpleNamespace(check_errors=lambda: None)
        self._consumer._fetcher = SimpleNamespace(next_record=self._next)
        self._consumer._subscription.assign_from_subscribed({TopicPartition("orders", 0)})

    async def _next(self, partitions: Any) -> Any:
        if not self._records:
            raise ConsumerStoppedError
        return self._records.pop()

    def publishes(self, count: int) -> Callable[[], object]:
        return lambda: self._loop.run_until_complete(self._publish(count))

    async def _publish(self, count: int) -> None:
        """Each is sent, and then acknowledged, where its span ends."""
        for _ in range(count):
            await self._producer.send("orders", b"hello", key=b"k", headers=[("tenant", b"acme")])
        await self._acknowledge()

    async def _acknowledge(self) -> None:
        waiting = self._producer._message_accumulator._batches
        for batches in list(waiting.values()):
            for batch in batches:
                self._latest = bytes(batch.get_data_buffer())
                batch.done(7, -1)
        waiting.clear()
        for _ in range(2):  # a batch's future has another one around it
            await asyncio.sleep(0)

    def deliveries(self, count: int, handler: Handler) -> Callable[[], object]:
        self._records = [_record(offset) for offset in range(count)]

        async def consume() -> None:
            async for _ in self._consumer:
                handler()

        return lambda: self._loop.run_until_complete(consume())

    def publishes_by_hand(self, count: int) -> Callable[[], object]:
        by_hand = ByHand(self.system)

        async def publish() -> None:
            for _ in range(count):
                with by_hand.sending():
                    headers = [("tenant", b"acme"), *as_pairs(injected())]
                    await self._producer.send("orders", b"hello", key=b"k", headers=headers)
            await self._acknowledge()

        return lambda: self._loop.run_until_complete(publish())

    def deliveries_by_hand(self, count: int, handler: Handler) -> Callable[[], object]:
        self._records = [_record(offset) for offset in range(count)]
        handle = ByHand(self.system).around(handler)

        async def consume() -> None:
            async for record in self._consumer:
                handle(from_pairs(record.headers))

        return lambda: self._loop.run_until_complete(consume())

    def written(self) -> Mapping[str, str]:
        records = MemoryRecords(self._latest)
        [record] = list(records.next_batch())
        return texts(dict(record.headers))


_NEVER_FULL = 1 << 24
"""Bytes of a batch: nobody drains a full one while messages are sent."""


async def _nothing(topic: str) -> None: ...


def _record(offset: int) -> Any:
    return ConsumerRecord(
        topic="orders",
        partition=0,
        offset=offset,
        timestamp=1_700_000_000_000,
        timestamp_type=0,
        key=b"k",
        value=b"hello",
        checksum=None,
        serialized_key_size=1,
        serialized_value_size=5,
        headers=(("tenant", b"acme"), ("traceparent", TRACEPARENT.encode())),
    )


make = AIOKafka
