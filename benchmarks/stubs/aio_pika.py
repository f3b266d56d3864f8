"""aio-pika: its exchange, queue and messages; aiormq's channel is a stand-in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from aio_pika import Message
from aio_pika.exchange import Exchange
from aio_pika.queue import Queue
from aiormq import spec
from aiormq.abc import DeliveredMessage
from pamqp.header import ContentHeader
from yarl import URL

from benchmarks.stubs import TRACEPARENT, Handler, Stub, texts
from benchmarks.stubs.by_hand import ByHand, injected


class _Underlay:
    """As much of aiormq's channel as aio-pika needs."""

    def __init__(self) -> None:
        self.connection = SimpleNamespace(
            url=URL("amqp://guest@rabbit.example:5672/"), connection_tune=SimpleNamespace(frame_max=131_072)
        )
        self.is_closed = False
        self.latest: Any = None
        self.consumer: Any = None

    async def basic_publish(self, **given: Any) -> Any:
        self.latest = given
        return _ACK

    async def basic_consume(self, *, consumer_callback: Any, **given: Any) -> Any:
        self.consumer = consumer_callback
        return spec.Basic.ConsumeOk("consumer")


_ACK = spec.Basic.Ack(1)


class _Channel:
    """As much of aio-pika's own channel, above that."""

    def __init__(self, underlay: _Underlay, loop: asyncio.AbstractEventLoop) -> None:
        self.is_closed = False
        self._connection = SimpleNamespace(url=underlay.connection.url)
        self._channel = SimpleNamespace(channel=underlay)
        self._underlay = underlay
        self._closed = loop.create_future()

    async def get_underlay_channel(self) -> Any:
        return self._underlay

    def closed(self) -> Any:
        return self._closed


class AioPika(Stub):
    system = "rabbitmq"
    cut = "aiormq's channel"

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._underlay = _Underlay()
        channel: Any = _Channel(self._underlay, self._loop)
        self._exchange = Exchange(channel, "")
        self._take: Callable[[Any], object] = lambda headers: None
        queue = Queue(channel, "orders", False, False, False, None)
        self._loop.run_until_complete(queue.consume(self._on_message, no_ack=True))

    async def _on_message(self, message: Any) -> None:
        self._take(message.headers)

    def publishes(self, count: int) -> Callable[[], object]:
        async def publish() -> None:
            for _ in range(count):
                await self._exchange.publish(Message(b"hello", headers={"tenant": "acme"}), "orders")

        return lambda: self._loop.run_until_complete(publish())

    def deliveries(self, count: int, handler: Handler) -> Callable[[], object]:
        return self._delivers(count, lambda headers: handler())

    def publishes_by_hand(self, count: int) -> Callable[[], object]:
        by_hand = ByHand(self.system)

        async def publish() -> None:
            for _ in range(count):
                with by_hand.sending():
                    headers: Any = {"tenant": "acme", **injected()}
                    await self._exchange.publish(Message(b"hello", headers=headers), "orders")

        return lambda: self._loop.run_until_complete(publish())

    def deliveries_by_hand(self, count: int, handler: Handler) -> Callable[[], object]:
        return self._delivers(count, ByHand(self.system).around(handler))

    def _delivers(self, count: int, take: Callable[[Any], object]) -> Callable[[], object]:
        self._take = take
        messages = [self._delivered() for _ in range(count)]

        async def deliver() -> None:
            for message in messages:
                await self._underlay.consumer(message)

        return lambda: self._loop.run_until_complete(deliver())

    def _delivered(self) -> DeliveredMessage:
        properties = spec.Basic.Properties(headers={"tenant": "acme", "traceparent": TRACEPARENT})
        channel: Any = self._underlay
        return DeliveredMessage(
            delivery=spec.Basic.Deliver("consumer", 1, False, "", "orders"),
            header=ContentHeader(properties=properties),
            body=b"hello",
            channel=channel,
        )

    def written(self) -> Mapping[str, str]:
        return texts(self._underlay.latest["properties"].headers)


make = AioPika
