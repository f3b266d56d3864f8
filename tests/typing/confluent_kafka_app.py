"""confluent-kafka as users write it, read by mypy and pyright; nothing runs this file."""

from __future__ import annotations

from typing import Any

from confluent_kafka import Consumer, Message, Producer, TopicPartition
from confluent_kafka.aio import AIOConsumer, AIOProducer
from opentelemetry.trace import Span
from typing_extensions import assert_type

from queueprop import Destination, Settings
from queueprop.adapters.confluent_kafka import (
    ConfluentKafkaInstrumentor,
    Publish,
    traced_batch,
    traced_consumer,
    traced_get,
    traced_message,
    traced_messages,
    traced_publish,
    traced_settle,
)


@traced_consumer
def handle(message: Message) -> int:
    return len(message.value() or b"")


@traced_consumer(destination=Destination("kafka", "orders"), settings=Settings(settle_spans=True))
async def confirm(message: Message) -> bytes | None:
    return message.value()


def publish(topic: str, value: bytes, *, headers: dict[str, str] | None = None) -> int:
    raise NotImplementedError


def explicit_publish(producer: Producer) -> None:
    assert_type(traced_publish(publish, settings=Settings(body_size=True))("orders", b"hello"), int)
    produce = traced_publish(producer.produce)
    produce("orders", b"hello", headers=[("tenant", b"a")], on_delivery=lambda error, message: None)
    assert_type(traced_publish(producer.produce_batch)("orders", [{"value": b"hello"}]), int)
    producer.flush()


def explicit_consume(consumer: Consumer) -> None:
    assert_type(handle(Message()), int)
    for message in traced_messages(consumer, timeout=0.5):
        if message is None or message.error():
            continue
        traced_settle(consumer.commit)(message=message)

    polled = traced_get(consumer.poll)(1.0)
    assert_type(polled, Message | None)
    with traced_message(polled, Destination("kafka", "orders")) as span:
        assert_type(span, Span)

    messages = traced_get(consumer.consume)(100, 1.0)
    assert_type(messages, list[Message])
    for one in traced_messages(messages):
        assert_type(one, Message)
    with traced_batch(messages, settings=Settings()) as span:
        assert_type(span, Span)
    traced_settle(consumer.store_offsets)(offsets=[TopicPartition("orders", 0, 1)])


async def explicit_asyncio(producer: AIOProducer, consumer: AIOConsumer) -> None:
    await (await traced_publish(producer.produce)("orders", b"hello"))
    async for message in traced_messages(consumer):
        await confirm(message)


def hook(span: Span, message: Any) -> None:
    if isinstance(message, Publish):
        span.set_attribute("app.key", str(message.key))


def instrument() -> None:
    ConfluentKafkaInstrumentor().instrument(settings=Settings(publish_hook=hook))
    ConfluentKafkaInstrumentor().uninstrument()
