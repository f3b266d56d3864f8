"""FastStream on RabbitMQ and Kafka: its application, run as its command line does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from faststream import FastStream
from faststream.kafka import KafkaBroker
from faststream.middlewares import AckPolicy
from faststream.rabbit import Channel, RabbitBroker, RabbitQueue

from .event_loop import connected
from .ledger import at_once, handle_async
from .left import Left, of_kafka, of_rabbitmq, servers


@contextmanager
def connect(url: str, queue: str) -> Iterator[Callable[[str], object]]:
    async def make() -> tuple[Any, Any]:
        broker = _broker(url)
        await broker.start()
        if url.startswith("kafka"):
            return lambda body: broker.publish(body, queue, key=body.encode()), broker.stop
        declared = RabbitQueue(queue, durable=True)
        await broker.declare_queue(declared)
        return lambda body: broker.publish(body, declared, persist=True, timeout=20), broker.stop

    with connected(make) as publish:
        yield publish


def _broker(url: str) -> Any:
    if url.startswith("kafka"):
        return KafkaBroker(
            servers(url).split(","), request_timeout_ms=10_000, retry_backoff_ms=50, acks="all", logger=None
        )
    return RabbitBroker(url, logger=None, default_channel=Channel(prefetch_count=at_once()))


def consume(url: str, queue: str) -> None:
    broker = _broker(url)
    if url.startswith("kafka"):
        subscribe = broker.subscriber(
            queue,
            group_id=queue,
            auto_offset_reset="earliest",
            ack_policy=AckPolicy.NACK_ON_ERROR,
            fetch_max_wait_ms=50,
            session_timeout_ms=6_000,
            heartbeat_interval_ms=500,
        )
    else:
        subscribe = broker.subscriber(RabbitQueue(queue, durable=True), ack_policy=AckPolicy.NACK_ON_ERROR)

    @subscribe  # type: ignore[untyped-decorator]
    async def on_message(body: str) -> None:
        await handle_async(str(body))

    asyncio.run(FastStream(broker, logger=None).run())


def counts(url: str, queue: str) -> Left:
    return of_kafka(url, queue) if url.startswith("kafka") else of_rabbitmq(url, queue)
