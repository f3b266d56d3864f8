"""FastStream: its broker and subscriber for Kafka, down to aiokafka's producer and consumer, which are stand-ins."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from aiokafka import ConsumerRecord
from faststream.kafka import KafkaBroker

from benchmarks.stubs import TRACEPARENT, Handler, Stub, texts


class _Producer:
    """As much of aiokafka's producer as FastStream needs."""

    def __init__(self) -> None:
        self.latest: Any = None

    async def start(self) -> None: ...

    async def send(self, **given: Any) -> Any:
        self.latest = given
        sent = asyncio.get_running_loop().create_future()
        sent.set_result(None)
        return sent


class FastStream(Stub):
    system = "kafka"
    cut = "aiokafka's producer and consumer"

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._handler: Handler = lambda: None
        self._producer = _Producer()
        self._broker: Any = KafkaBroker("kafka.example:9092", logger=None)
        self._subscriber: Any = self._broker.subscriber("orders", group_id="billing")
        self._subscriber(self._on_message)
        self._loop.run_until_complete(self._start())

    async def _start(self) -> None:
        config = self._broker.config
        self._broker._setup_logger()
        await config.producer.connect(self._producer, config.fd_config._serializer)
        self._subscriber._build_fastdepends_model()
        self._subscriber.running = True

    async def _on_message(self, body: str) -> None:
        self._handler()

    def publishes(self, count: int) -> Callable[[], object]:
        async def publish() -> None:
            for _ in range(count):
                await self._broker.publish("hello", "orders", key=b"k", headers={"tenant": "acme"})

        return lambda: self._loop.run_until_complete(publish())

    def deliveries(self, count: int, handler: Handler) -> Callable[[], object]:
        self._handler = handler
        records = [_record(offset) for offset in range(count)]

        async def deliver() -> None:
            for record in records:
                await self._subscriber.consume(record)

        return lambda: self._loop.run_until_complete(deliver())

    def written(self) -> Mapping[str, str]:
        return texts(dict(self._producer.latest["headers"]))


def _record(offset: int) -> Any:
    headers = (("tenant", b"acme"), ("content-type", b"text/plain"), ("traceparent", TRACEPARENT.encode()))
    return ConsumerRecord("orders", 0, offset, 0, 0, b"k", b"hello", None, 1, 5, headers)


make = FastStream
