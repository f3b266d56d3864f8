"""aio-pika as users write it, read by mypy and pyright; nothing runs this file."""

from __future__ import annotations

from collections.abc import AsyncIterator

from aio_pika import Message
from aio_pika.abc import AbstractExchange, AbstractIncomingMessage, AbstractQueue
from opentelemetry.trace import Span
from typing_extensions import assert_type

from queueprop import Destination, Settings
from queueprop.adapters.aio_pika import (
    AioPikaInstrumentor,
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
async def count(message: AbstractIncomingMessage) -> int:
    return len(message.body)


@traced_consumer(queue="orders", settings=Settings(settle_spans=True))
async def handle(message: AbstractIncomingMessage) -> None:
    async with message.process():
        assert_type(await count(message), int)


@traced_consumer(destination=Destination("rabbitmq", "orders"))
def handle_plainly(message: AbstractIncomingMessage, attempt: int = 1) -> str:
    return f"{message.delivery_tag} {attempt}"


async def publish(message: Message, routing_key: str, *, mandatory: bool = True) -> bytes:
    raise NotImplementedError


async def explicit_publish(exchange: AbstractExchange) -> None:
    send = traced_publish(publish, settings=Settings(body_size=True))
    assert_type(await send(Message(b"hello"), "orders", mandatory=False), bytes)
    await traced_publish(exchange.publish)(Message(b"hello"), routing_key="orders")


async def explicit_consume(queue: AbstractQueue) -> None:
    await queue.consume(handle)
    async with queue.iterator() as messages:
        async for message in traced_messages(messages):
            assert_type(message, AbstractIncomingMessage)
            assert_type(handle_plainly(message, attempt=2), str)
            await traced_settle(message.ack)(multiple=True)

    pulled = await traced_get(queue.get)(fail=False)
    with traced_message(pulled, Destination("rabbitmq", "orders")) as span:
        assert_type(span, Span)
    with traced_batch([pulled], settings=Settings(propagation="link")) as span:
        assert_type(span, Span)


async def what_is_wrapped_keeps_its_type(stream: AsyncIterator[bytes]) -> None:
    async for value in traced_messages(stream):
        assert_type(value, bytes)


def on_publish(span: Span, message: Publish) -> None:
    span.set_attribute("priority", message.message.priority or 0)


def instrumented() -> None:
    AioPikaInstrumentor().instrument(settings=Settings(propagation="link"), publish_hook=on_publish)
    AioPikaInstrumentor().uninstrument()
