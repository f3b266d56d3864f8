"""Dramatiq as users write it, read by mypy and pyright; nothing runs this file."""

from __future__ import annotations

import dramatiq
from dramatiq.brokers.stub import StubBroker
from typing_extensions import assert_type

from queueprop import Settings
from queueprop.adapters.dramatiq import DramatiqInstrumentor, QueuepropMiddleware

broker = StubBroker()
broker.add_middleware(QueuepropMiddleware())
broker.add_middleware(QueuepropMiddleware(Settings(propagation="link")))
dramatiq.set_broker(StubBroker(middleware=[QueuepropMiddleware(settings=None)]))


@dramatiq.actor
def count(words: str) -> int:
    return len(words)


def publish() -> str:
    message = count.send("a b c")
    assert_type(message.message_id, str)
    return message.message_id


def instrumented() -> None:
    DramatiqInstrumentor().instrument(
        settings=Settings(trust="none"), consume_hook=lambda span, message: None
    )
    DramatiqInstrumentor().uninstrument()
