"""kombu as users write it, read by mypy and pyright; nothing runs this file. (kombu has no types of its own.)"""

from __future__ import annotations

from typing import Any

import kombu
from kombu.simple import SimpleQueue
from typing_extensions import assert_type

from queueprop import Destination, Settings
from queueprop.adapters.kombu import (
    KombuInstrumentor,
    traced_batch,
    traced_consumer,
    traced_get,
    traced_message,
    traced_messages,
    traced_publish,
    traced_settle,
)


@traced_consumer
def count(body: bytes, message: Any) -> int:
    return len(body)


@traced_consumer(queue="orders", settings=Settings(settle_spans=True))
def handle(message: Any) -> None:
    traced_settle(message.ack)()


def publish(body: str, headers: dict[str, str] | None = None) -> bool:
    return True


def explicit(connection: Any, queue: Any) -> None:
    assert_type(traced_publish(publish)("hello"), bool)
    traced_publish(kombu.Producer(connection).publish)("hello", routing_key="orders")
    kombu.Consumer(connection, [queue], on_message=handle)
    for message in traced_messages([queue.get()], Destination("rabbitmq", "orders")):
        assert_type(count(b"hello", message), int)
    message = traced_get(SimpleQueue(connection, "orders").get)(timeout=1)
    with traced_message(message) as span:
        span.set_attribute("pulled", True)
    with traced_batch([message]):
        pass


def instrumented() -> None:
    KombuInstrumentor().instrument(settings=Settings(propagation="link"), consume_hook=lambda span, it: None)
    KombuInstrumentor().uninstrument()
