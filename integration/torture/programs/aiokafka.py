"""aiokafka: a member of a group that commits each record."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import CommitFailedError, KafkaError

from .event_loop import connected
from .ledger import handle_async, is_over, tell
from .left import Left, of_kafka, servers


@contextmanager
def connect(url: str, queue: str) -> Iterator[Callable[[str], object]]:
    async def make() -> tuple[Any, Any]:
        producer = AIOKafkaProducer(
            bootstrap_servers=servers(url), acks="all", request_timeout_ms=10_000, retry_backoff_ms=50
        )
        await producer.start()
        return lambda body: producer.send_and_wait(queue, body.encode(), key=body.encode()), producer.stop

    with connected(make) as publish:
        yield publish


def consume(url: str, queue: str) -> None:
    asyncio.run(_consume(url, queue))


async def _consume(url: str, queue: str) -> None:
    consumer = AIOKafkaConsumer(
        queue,
        bootstrap_servers=servers(url),
        group_id=queue,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        fetch_max_wait_ms=50,
        session_timeout_ms=6_000,
        heartbeat_interval_ms=500,
        retry_backoff_ms=50,
        metadata_max_age_ms=1_000,
    )
    await consumer.start()
    tell("consuming")
    try:
        await asyncio.gather(_handle_all(consumer), return_exceptions=False)
    finally:
        await consumer.stop()


async def _handle_all(consumer: Any) -> None:
    while not is_over():
        loop = asyncio.ensure_future(_until_over(consumer))
        try:
            async for record in consumer:
                await handle_async(record.value.decode())
                try:
                    await consumer.commit({TopicPartition(record.topic, record.partition): record.offset + 1})
                except CommitFailedError:  # the partition is another's by now
                    tell("uncommitted")
        except KafkaError as error:
            tell("interrupted", error=repr(error)[:200])
        finally:
            loop.cancel()


async def _until_over(consumer: Any) -> None:
    """A loop over a consumer that is stopped ends."""
    while not is_over():
        await asyncio.sleep(0.05)
    await consumer.stop()


def counts(url: str, queue: str) -> Left:
    return of_kafka(url, queue)
