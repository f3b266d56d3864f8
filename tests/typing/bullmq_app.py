"""BullMQ as users write it, read by mypy and pyright; nothing runs this file."""

from __future__ import annotations

from typing import Any

from bullmq import FlowProducer, Job, Queue, Worker
from typing_extensions import assert_type

from queueprop import Settings
from queueprop.adapters.bullmq import BullMQInstrumentor, traced_consumer, traced_publish


@traced_consumer
async def process(job: Job, token: str) -> int:
    return len(job.data)


@traced_consumer(settings=Settings(propagation="link"))
async def process_until_aborted(job: Job, token: str, signal: Any) -> None: ...


async def publish(queue: Queue, producer: FlowProducer) -> None:
    await traced_publish(queue.add)("mails.send", {"to": 1}, {"attempts": 3})
    await traced_publish(queue.addBulk)([{"name": "mails.send", "data": {"to": 1}}])
    await traced_publish(producer.add, settings=Settings())({"name": "order", "queueName": "orders"})
    await traced_publish(queue.upsertJobScheduler)("daily", {"every": 1000})


async def call_it_here(job: Job) -> None:
    assert_type(await process(job, "token"), int)


async def work() -> None:
    BullMQInstrumentor().instrument(settings=Settings(), consume_hook=lambda span, job: None)
    processor: Any = process  # BullMQ's own types want a function that gives a Future
    worker = Worker("orders", processor, {"concurrency": 4})
    await worker.close()
    BullMQInstrumentor().uninstrument()
