"""aio-pika: robust connections, a callback with ``message.process()``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import aio_pika

from .event_loop import connected
from .ledger import at_once, handle_async, is_over
from .left import Left, of_rabbitmq


@contextmanager
def connect(url: str, queue: str) -> Iterator[Callable[[str], object]]:
    async def make() -> tuple[Any, Any]:
        connection = await aio_pika.connect(url)
        channel = await connection.channel()
        await channel.declare_queue(queue, durable=True)

        def publish(body: str) -> Any:
            message = aio_pika.Message(body.encode(), delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
            return channel.default_exchange.publish(message, queue, timeout=20)

        return publish, connection.close

    with connected(make) as publish:
        yield publish


def consume(url: str, queue: str) -> None:
    asyncio.run(_consume(url, queue))


async def _consume(url: str, queue: str) -> None:
    connection = await aio_pika.connect_robust(url, reconnect_interval=0.2)
    channel = await connection.channel()
    await channel.set_qos(prefetch_count=at_once())
    declared = await channel.declare_queue(queue, durable=True)

    async def on_message(message: Any) -> None:
        async with message.process():
            await handle_async(message.body.decode())

    await declared.consume(on_message)
    while not is_over():
        await asyncio.sleep(0.05)
    await connection.close()


def counts(url: str, queue: str) -> Left:
    return of_rabbitmq(url, queue)
