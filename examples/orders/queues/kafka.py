"""Kafka, through aiokafka."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from examples.orders import logs, queues
from queueprop.adapters.aiokafka import traced_message

LIBRARY = "aiokafka"

SERVERS = os.environ.get("KAFKA_SERVERS", "localhost:9092")
TOPIC = os.environ.get("TOPIC", "notifications")
GROUP = f"{TOPIC}-notification-service"

log = logs.get_logger("kafka")


@asynccontextmanager
async def publisher() -> AsyncIterator[queues.Publish]:
    async with AIOKafkaProducer(bootstrap_servers=SERVERS) as producer:

        async def publish(message: dict[str, Any]) -> None:
            key = message["order_id"].encode()
            await producer.send_and_wait(TOPIC, json.dumps(message).encode(), key=key)

        yield publish


def work(handle: queues.Handler) -> None:
    asyncio.run(_Worker(handle).run())


class _Worker:
    def __init__(self, handle: queues.Handler) -> None:
        self._handle = handle
        self._is_busy = False
        self._stopping: asyncio.Task[None] | None = None
        self._is_stopped = False

    async def run(self) -> None:
        self._consumer = AIOKafkaConsumer(
            TOPIC,
            bootstrap_servers=SERVERS,
            group_id=GROUP,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
        )
        async with self._consumer:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._stop)
            log.info(queues.READY)
            async for record in self._consumer:
                self._is_busy = True
                await self._take(record)
                self._is_busy = False
                if self._is_stopped:
                    break

    def _stop(self) -> None:
        """Wakes the loop where it waits; where it is busy, it ends after its record, which it still has to commit."""
        self._is_stopped = True
        if not self._is_busy:
            self._stopping = asyncio.create_task(self._consumer.stop())

    async def _take(self, record: Any) -> None:
        try:
            # The loop's body is inside the record's span already; this tells that span what the handler raises.
            with traced_message(record):
                await asyncio.to_thread(self._handle, json.loads(record.value))
        except Exception:
            log.exception("message skipped", offset=record.offset)
        await self._consumer.commit()
