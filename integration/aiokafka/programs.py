"""Programs of a user of aiokafka, and what tests want to know of their spans and records.

Each is run as plain user code with the instrumentor on, and, where there is a word for it, with the explicit API
around each call.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from opentelemetry import baggage, context

from integration.contract.telemetry import DEADLINE
from integration.live import NOTHING, current
from queueprop import Settings
from queueprop.adapters import aiokafka as adapter

STALE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OFFSET = "messaging.kafka.offset"
PARTITION = "messaging.destination.partition.id"
TOMBSTONE = "messaging.kafka.message.tombstone"
KEY = "messaging.kafka.message.key"

SETTLED = Settings(settle_spans=True)


class Tracing:
    """How a program is traced: ``plain`` not at all, ``instrumentor`` unchanged, ``explicit`` by words around its
    calls.
    """

    def __init__(self, name: str, settings: Settings | None = None) -> None:
        self.name = name
        self._settings = settings

    @contextmanager
    def on(self) -> Iterator[Tracing]:
        if self.name != "instrumentor":
            yield self
            return
        instrumentor = adapter.AIOKafkaInstrumentor()
        instrumentor.instrument(settings=self._settings)
        try:
            yield self
        finally:
            if instrumentor.is_instrumented_by_opentelemetry:
                instrumentor.uninstrument()

    def publish(self, call: Any) -> Any:
        return self._explicitly(adapter.traced_publish, call)

    def create_batch(self, call: Any) -> Any:
        return self._explicitly(adapter.traced_create_batch, call)

    def get(self, call: Any) -> Any:
        return self._explicitly(adapter.traced_get, call)

    def settle(self, call: Any) -> Any:
        return self._explicitly(adapter.traced_settle, call)

    def loop(self, consumer: Any) -> Any:
        return self._explicitly(adapter.traced_messages, consumer)

    def handling(self, record: Any) -> AbstractContextManager[Any]:
        """The user of a pull call writes it in any case."""
        if self.name == "plain":
            return contextlib.nullcontext()
        return adapter.traced_message(record, settings=self._settings)

    def _explicitly(self, word: Callable[..., Any], it: Any) -> Any:
        return word(it, settings=self._settings) if self.name == "explicit" else it


Program = Callable[[Tracing], Coroutine[Any, Any, Any]]


async def create_topic(servers: str, topic: str, partitions: int = 1, led_by: int | None = None) -> None:
    """``led_by`` is a node of three, which is the partition's leader."""
    new = NewTopic(topic, partitions, 1)
    if led_by is not None:
        followers = [number for number in (1, 2, 3) if number != led_by]
        new = NewTopic(topic, -1, -1, {0: [led_by, *followers]})
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await admin.start()
    try:
        await admin.create_topics([new])
    finally:
        await admin.close()


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs a test in an event loop of its own, which nothing is to be left in."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def main() -> None:
            await test(*args, **kwargs)
            assert current() == NOTHING

        asyncio.run(asyncio.wait_for(main(), DEADLINE))

    return run


def producing(servers: str, **options: Any) -> AIOKafkaProducer:
    return AIOKafkaProducer(bootstrap_servers=servers, **options)


def consuming(servers: str, *topics: str, **options: Any) -> AIOKafkaConsumer:
    # Whatever else is asked of a broker waits behind the fetch that waits there for something to read.
    given = {"auto_offset_reset": "earliest", "enable_auto_commit": False, "fetch_max_wait_ms": 50, **options}
    return AIOKafkaConsumer(*topics, bootstrap_servers=servers, **given)


@asynccontextmanager
async def reading(servers: str, topic: str, *partitions: int, **options: Any) -> AsyncIterator[Any]:
    """A consumer of these partitions, or of the first, without waiting for a group to gather."""
    async with consuming(servers, **options) as consumer:
        consumer.assign([TopicPartition(topic, partition) for partition in partitions or (0,)])
        yield consumer


async def send(tracing: Tracing, servers: str, topic: str, *bodies: bytes, **options: Any) -> None:
    """All at once, and so in one batch of aiokafka's; each in a trace of its own."""
    async with producing(servers) as producer:
        await producer.partitions_for(topic)
        publish = tracing.publish(producer.send)
        await asyncio.gather(*[await publish(topic, body, partition=0, **options) for body in bodies])


async def read(servers: str, topic: str, count: int, *partitions: int) -> list[Any]:
    """What a plain client reads, in the order of partitions."""
    async with reading(servers, topic, *partitions) as consumer:
        records = [await consumer.getone() for _ in range(count)]
    return sorted(records, key=lambda record: (record.partition, record.offset))


STYLES = ("async for", "getone", "getmany")


async def consume(
    tracing: Tracing, consumer: Any, style: str, count: int, handle: Callable[[Any], object]
) -> None:
    left = count
    while left:
        if style == "getone":
            record = await tracing.get(consumer.getone)()
            with tracing.handling(record):
                handle(record)
            left -= 1
        elif style == "getmany":
            found = await tracing.get(consumer.getmany)(timeout_ms=1_000, max_records=left)
            for records in found.values():
                for record in records:
                    handle(record)
                    left -= 1
        else:
            async for record in tracing.loop(consumer):
                handle(record)
                left -= 1
                if not left:
                    break


def contexts(record: Any) -> list[tuple[str, str]]:
    """Every context that a record carries."""
    values = [value.decode().split("-") for name, value in record.headers if name == "traceparent"]
    return [(trace_id, span_id) for _, trace_id, span_id, _ in values]


@contextmanager
def baggage_of(**members: str) -> Iterator[None]:
    token = context.attach(context.get_current())
    for key, value in members.items():
        context.attach(baggage.set_baggage(key, value))
    try:
        yield
    finally:
        context.detach(token)
