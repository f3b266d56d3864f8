"""RabbitMQ, through aio-pika."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
from aio_pika.abc import AbstractIncomingMessage

from examples.orders import logs, queues

LIBRARY = "aio-pika"

URL = os.environ.get("RABBITMQ_URL", "amqp://guest:guest@localhost:5672/%2F")
QUEUE = os.environ.get("QUEUE", "notifications")

log = logs.get_logger("rabbitmq")


@asynccontextmanager
async def publisher() -> AsyncIterator[queues.Publish]:
    async with await aio_pika.connect_robust(URL) as connection:
        channel = await connection.channel()
        await channel.declare_queue(QUEUE, durable=True)

        async def publish(message: dict[str, Any]) -> None:
            body = aio_pika.Message(json.dumps(message).encode(), content_type="application/json")
            await channel.default_exchange.publish(body, QUEUE)

        yield publish


def work(handle: queues.Handler) -> None:
    asyncio.run(_work(handle))


async def _work(handle: queues.Handler) -> None:
    async with await aio_pika.connect_robust(URL) as connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=1)
        queue = await channel.declare_queue(QUEUE, durable=True)
        async with queue.iterator() as messages:
            # Closed, the loop below ends after the message that it is in.
            loop, closing = asyncio.get_running_loop(), set()
            loop.add_signal_handler(signal.SIGTERM, lambda: closing.add(loop.create_task(messages.close())))
            log.info(queues.READY)
            async for message in messages:
                await _handle(handle, message)


async def _handle(handle: queues.Handler, message: AbstractIncomingMessage) -> None:
    try:
        async with message.process():  # acknowledged; rejected when this raises
            await asyncio.to_thread(handle, json.loads(message.body))
    except Exception:
        log.exception("message rejected")
