"""aiokafka as users write it, read by mypy and pyright; nothing runs this file. (aiokafka declares no types.)"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from opentelemetry.trace import Span
from typing_extensions import assert_type

from queueprop import Destination, Settings
from queueprop.adapters.aiokafka import (
    AIOKafkaInstrumentor,
    Publish,
    traced_batch,
    traced_consumer,
    traced_create_batch,
    traced_get,
    traced_message,
    traced_messages,
    traced_publish,
    traced_settle,
)


@traced_consumer
async def count(record: Any) -> int:
    return len(record.value)


@traced_consumer()
def handle(record: Any, attempt: int = 1) -> str:
    return f"{record.offset} {attempt}"


@traced_consumer(destination=Destination("kafka", "orders"), settings=Settings(settle_spans=True))
async def confirm(record: Any) -> AsyncIterator[bytes]:
    yield record.value


async def publish(topic: str, value: bytes, *, partition: int | None = None) -> asyncio.Future[int]:
    raise NotImplementedError


async def explicit_publish(producer: AIOKafkaProducer) -> None:
    send = traced_publish(publish, settings=Settings(body_size=True))
    assert_type(await send("orders", b"hello", partition=1), asyncio.Future[int])
    assert_type(await (await send("orders", b"hello")), int)
    await traced_publish(producer.send_and_wait)("orders", b"hello", headers=[("tenant", b"a")])

    create_batch = traced_create_batch(producer.create_batch)
    batch = create_batch()
    batch.append(timestamp=None, key=None, value=b"hello")
    await (await traced_publish(producer.send_batch)(batch, "orders", partition=0))

    async with producer.transaction():
        commit = traced_settle(producer.send_offsets_to_transaction)
        await commit({TopicPartition("orders", 0): 1}, "mailers")


async def explicit_consume(consumer: AIOKafkaConsumer) -> None:
    async for record in traced_messages(consumer):
        assert_type(await count(record), int)
        assert_type(handle(record, attempt=2), str)
        async for part in confirm(record):
            assert_type(part, bytes)
        await traced_settle(consumer.commit)({TopicPartition(record.topic, record.partition): record.offset})

    record = await traced_get(consumer.getone)()
    with traced_message(record) as span:
        assert_type(span, Span)

    found = await traced_get(consumer.getmany)(timeout_ms=1000)
    for records in found.values():
        for record in traced_messages(records, Destination("kafka", "orders")):
            handle(record)
        with traced_batch(records, settings=Settings(propagation="link")) as span:
            assert_type(span, Span)


async def poll(topic: str, timeout_ms: int = 0) -> dict[str, list[bytes]]:
    return {}


async def settle(offsets: dict[str, int] | None = None) -> None: ...


async def what_is_wrapped_keeps_its_type(records: Sequence[int], stream: AsyncIterator[bytes]) -> None:
    assert_type(await traced_get(poll)("orders", timeout_ms=1), dict[str, list[bytes]])
    assert_type(await traced_settle(settle)(), None)
    for number in traced_messages(records):
        assert_type(number, int)
    async for value in traced_messages(stream):
        assert_type(value, bytes)


def on_publish(span: Span, message: Publish) -> None:
    span.set_attribute("has_key", message.key is not None)


def instrumented() -> None:
    AIOKafkaInstrumentor().instrument(settings=Settings(propagation="link"), publish_hook=on_publish)
    AIOKafkaInstrumentor().uninstrument()
