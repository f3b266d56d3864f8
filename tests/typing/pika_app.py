"""pika as users write it, read by mypy and pyright; nothing runs this file. (pika 1.3 has no types of its own.)"""

from __future__ import annotations

from typing import Any

import pika
from typing_extensions import assert_type

from queueprop import Destination, Settings
from queueprop.adapters.pika import (
    PikaInstrumentor,
    traced_batch,
    traced_consumer,
    traced_get,
    traced_message,
    traced_messages,
    traced_publish,
    traced_settle,
)


@traced_consumer
def count(channel: Any, method: Any, properties: Any, body: bytes) -> int:
    return len(body)


@traced_consumer(queue="orders", settings=Settings(settle_spans=True))
def handle(channel: Any, method: Any, properties: Any, body: bytes) -> None:
    traced_settle(channel.basic_ack)(method.delivery_tag)


def publish(exchange: str, routing_key: str, body: bytes, properties: Any = None) -> bool:
    return True


def explicit() -> None:
    assert_type(traced_publish(publish)("", "orders", body=b"hello"), bool)
    channel = pika.BlockingConnection().channel()
    channel.basic_consume("orders", handle)
    for method, _properties, body in traced_messages(
        channel.consume("orders"), Destination("rabbitmq", "orders")
    ):
        assert_type(count(channel, method, None, body), int)
    message = traced_get(channel.basic_get)("orders")
    with traced_message(message) as span:
        span.set_attribute("pulled", True)
    with traced_batch([message]):
        pass


def instrumented() -> None:
    PikaInstrumentor().instrument(settings=Settings(propagation="link"), consume_hook=lambda span, it: None)
    PikaInstrumentor().uninstrument()
