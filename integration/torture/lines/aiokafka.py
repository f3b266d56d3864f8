"""aiokafka: its producer above a stand-in for the sender, and its consumer above a stand-in for the fetcher."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.errors import ConsumerStoppedError
from aiokafka.record.memory_records import MemoryRecords

from integration.torture.lines import AsyncHandler, AsyncLine
from queueprop import Settings


class AIOKafka(AsyncLine):
    library = "aiokafka"
    settles = True

    def __init__(self, settings: Settings | None = None, settle: bool = False) -> None:
        super().__init__(settings, settle)
        self._offset = 0
        self.loop.run_until_complete(self._make())

    async def _make(self) -> None:
        self._producer = AIOKafkaProducer(
            bootstrap_servers="kafka.example:9092", client_id="shop", max_batch_size=1 << 24
        )
        self._producer._closed = True  # nothing is to be closed, and it is not to complain
        self._producer.client._wait_on_metadata = _nothing
        self._producer._metadata = SimpleNamespace(
            partitions_for_topic=lambda topic: {0}, available_partitions_for_topic=lambda topic: {0}
        )

    def _consumer(self, record: Any) -> Any:
        """One for each message, as tasks have: they are handled at the same time."""
        consumer: Any = AIOKafkaConsumer(
            record.topic, bootstrap_servers="kafka.example:9092", client_id="till", group_id="billing"
        )
        records = [record]

        async def next_record(partitions: Any) -> Any:
            if not records:
                raise ConsumerStoppedError
            return records.pop()

        consumer._closed = None
        consumer._coordinator = SimpleNamespace(check_errors=lambda: None, commit_offsets=_commit)
        consumer._fetcher = SimpleNamespace(next_record=next_record)
        consumer._subscription.assign_from_subscribed({TopicPartition(record.topic, 0)})
        return consumer

    async def publish_async(self, headers: Any, body: str = "", name: str = "orders") -> object:
        future = await self._producer.send(name, body.encode(), key=b"k", headers=headers)
        waiting = self._producer._message_accumulator._batches
        data = b""
        for batches in list(waiting.values()):
            for batch in batches:
                data = bytes(batch.get_data_buffer())
                batch.done(7, -1)
        waiting.clear()
        await future
        records = MemoryRecords(data)
        [record] = list(records.next_batch())
        return list(record.headers)

    async def deliver_async(
        self, headers: Any, handler: AsyncHandler, body: str = "", name: str = "orders"
    ) -> object:
        self._offset += 1
        record: Any = ConsumerRecord(
            name, 0, self._offset, 1_700_000_000_000, 0, b"k", body.encode(), None, 1, len(body), headers
        )
        consumer = self._consumer(record)
        try:
            async for given in consumer:
                await handler(given.value.decode())
                if self.settle:
                    await consumer.commit({TopicPartition(name, 0): given.offset + 1})
        finally:
            consumer._closed = True
        return None


async def _nothing(topic: str) -> None: ...


async def _commit(*args: Any) -> None: ...


make = AIOKafka
