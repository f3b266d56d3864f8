"""aio-pika: a connection, publishes with confirms (its default), a consumer without acks."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import aio_pika
from aio_pika import Message
from opentelemetry.instrumentation.utils import suppress_instrumentation

from benchmarks.stubs import TRACEPARENT, Handler, Stub, texts


class AioPika(Stub):
    system = "rabbitmq"
    cut = ""

    def __init__(self, url: str) -> None:
        self._loop = asyncio.new_event_loop()
        self.published_to = self.consumed_from = f"orders-{uuid.uuid4().hex[:8]}"
        self._loop.run_until_complete(self._connect(url))

    async def _connect(self, url: str) -> None:
        self._connection = await aio_pika.connect(url)
        self._channel = await self._connection.channel()
        self._queue = await self._channel.declare_queue(self.published_to, exclusive=True)

    def publishes(self, count: int) -> Callable[[], object]:
        self._loop.run_until_complete(self._queue.purge())

        async def publish() -> None:
            exchange = self._channel.default_exchange
            for _ in range(count):
                await exchange.publish(Message(b"hello", headers={"tenant": "acme"}), self.published_to)

        return lambda: self._loop.run_until_complete(publish())

    def deliveries(self, count: int, handler: Handler) -> Callable[[], object]:
        self._loop.run_until_complete(self._fill(count))

        async def deliver() -> None:
            left, done = count, asyncio.Event()

            async def on_message(message: Any) -> None:
                nonlocal left
                handler()
                left -= 1
                if not left:
                    done.set()

            consumer = await self._queue.consume(on_message, no_ack=True)
            await done.wait()
            await self._queue.cancel(consumer)

        return lambda: self._loop.run_until_complete(deliver())

    async def _fill(self, count: int) -> None:
        await self._queue.purge()
        exchange = self._channel.default_exchange
        with suppress_instrumentation():
            for _ in range(count):
                headers: Any = {"tenant": "acme", "traceparent": TRACEPARENT}
                await exchange.publish(Message(b"hello", headers=headers), self.consumed_from)

    def written(self) -> Mapping[str, str]:
        with suppress_instrumentation():
            message = self._loop.run_until_complete(self._queue.get(no_ack=True))
        assert message is not None
        return texts(message.headers)


make = AioPika
