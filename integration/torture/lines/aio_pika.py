"""aio-pika: its exchange, queue and messages, above a stand-in for aiormq's channel."""

from __future__ import annotations

from typing import Any

from aio_pika import Message
from aio_pika.exchange import Exchange
from aio_pika.queue import Queue
from aiormq import spec
from aiormq.abc import DeliveredMessage
from pamqp.header import ContentHeader

from benchmarks.stubs.aio_pika import _Channel, _Underlay
from integration.torture.lines import AsyncHandler, AsyncLine
from queueprop import Settings


class _Settling(_Underlay):
    async def basic_ack(self, *args: Any, **kwargs: Any) -> None: ...


class AioPika(AsyncLine):
    library = "aio-pika"
    carrier = "dict"
    settles = True

    def __init__(self, settings: Settings | None = None, settle: bool = False) -> None:
        super().__init__(settings, settle)
        self._underlay = _Settling()
        channel: Any = _Channel(self._underlay, self.loop)
        self._exchange = Exchange(channel, "")
        self._handlers: dict[int, AsyncHandler] = {}
        self._tag = 0
        queue = Queue(channel, "orders", False, False, False, None)
        self.loop.run_until_complete(queue.consume(self._on_message, no_ack=not settle))

    async def _on_message(self, message: Any) -> None:
        await self._handlers.pop(message.delivery_tag)(message.body.decode())
        if self.settle:
            await message.ack()

    async def publish_async(self, headers: Any, body: str = "", name: str = "orders") -> object:
        await self._exchange.publish(Message(body.encode(), headers=headers), name)
        return self._underlay.latest["properties"].headers

    async def deliver_async(
        self, headers: Any, handler: AsyncHandler, body: str = "", name: str = "orders"
    ) -> object:
        self._tag += 1
        self._handlers[self._tag] = handler
        channel: Any = self._underlay
        properties = spec.Basic.Properties()
        properties.headers = headers
        return await self._underlay.consumer(
            DeliveredMessage(
                delivery=spec.Basic.Deliver("consumer", self._tag, False, "", name),
                header=ContentHeader(properties=properties),
                body=body.encode(),
                channel=channel,
            )
        )


make = AioPika
