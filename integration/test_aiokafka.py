"""What aiokafka and Kafka alone have: deliveries that fail later, batches, partitions, loops over a consumer, groups,
transactions, nodes that go away.

What every library has is in the contract. Each test is run as plain user code with the instrumentor on, and, where
there is a word for it, with the explicit API around each call.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import gc
import itertools
import json
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiokafka")

from aiokafka import (
    AIOKafkaConsumer,
    AIOKafkaProducer,
    ConsumerRebalanceListener,
    ConsumerRecord,
    TopicPartition,
)
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import ConsumerStoppedError, IllegalOperation, MessageSizeTooLargeError
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from opentelemetry import baggage, context, trace
from opentelemetry.instrumentation.utils import suppress_instrumentation

from integration.brokers import Broker, KafkaCluster
from integration.brokers.kafka import addresses
from integration.contract.run import only
from integration.contract.telemetry import DEADLINE, SpanRecord, ambient_span, telemetry
from integration.live import NOTHING, Bodies, Spans, current, run_killed, unique
from queueprop import Settings, guard
from queueprop.adapters import aiokafka as adapter

STALE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OFFSET = "messaging.kafka.offset"
PARTITION = "messaging.destination.partition.id"
TOMBSTONE = "messaging.kafka.message.tombstone"
KEY = "messaging.kafka.message.key"


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


@pytest.fixture
def spans(tmp_path: Path) -> Iterator[Spans]:
    with telemetry(tmp_path / "records.jsonl") as told:
        yield Spans(told)


@pytest.fixture
def settings() -> Settings | None:
    return None


@pytest.fixture(params=["instrumentor", "explicit"])
def tracing(request: pytest.FixtureRequest, spans: Spans, settings: Settings | None) -> Iterator[Tracing]:
    with Tracing(request.param, settings).on() as tracing:
        yield tracing


Program = Callable[[Tracing], Coroutine[Any, Any, Any]]


@pytest.fixture(params=["instrumentor", "explicit"])
def as_without(
    request: pytest.FixtureRequest, spans: Spans, settings: Settings | None
) -> Callable[[Program], Any]:
    """Runs a program without queueprop and with it. What it tells must be the same, and is given back."""

    def run(program: Program) -> Any:
        plain = asyncio.run(asyncio.wait_for(program(Tracing("plain")), DEADLINE))
        assert spans.everything == []
        with Tracing(request.param, settings).on() as tracing:
            traced = asyncio.run(asyncio.wait_for(program(tracing), DEADLINE))
        assert traced == plain
        assert current() == NOTHING
        return plain

    return run


@pytest.fixture
def servers(kafka_broker: Broker) -> str:
    return addresses(kafka_broker.url)


@pytest.fixture
def real_servers(kafka_broker: Broker) -> str:
    """For what librdkafka's mock cluster has not: it takes messages of every size, answers what is sent without acks,
    breaks the CRC of transactional batches, and gathers a group in three seconds, once.
    """
    if kafka_broker.rung == "embedded":
        pytest.skip("librdkafka's mock cluster does this unlike Kafka; see real_servers")
    return addresses(kafka_broker.url)


@pytest.fixture
def topic() -> str:
    return unique("orders")


@pytest.fixture
def wide_topic(kafka_broker: Broker, servers: str) -> str:
    """Four partitions, as every topic of the mock cluster has them."""
    topic = unique("orders")
    if kafka_broker.rung != "embedded":
        asyncio.run(create_topic(servers, topic, 4))
    return topic


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


def origin(span: SpanRecord) -> tuple[str, str | None]:
    return span.trace_id, span.parent_id


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


# Publishing


class TestHeaders:
    @in_loop
    async def test_header_tuples_are_not_dropped(
        self, tracing: Tracing, spans: Spans, servers: str, topic: str
    ) -> None:
        """A tuple of headers goes out, with the context beside them."""
        headers = (("tenant", b"a"), ("tenant", b"b"), ("none", None))
        async with producing(servers) as producer:
            await tracing.publish(producer.send_and_wait)(topic, b"hello", partition=0, headers=headers)
        record = only(await read(servers, topic, 1))
        assert record.headers[:3] == headers
        assert contexts(record) == [only(spans.of("send")).context]

    @in_loop
    async def test_a_reused_header_list_is_not_doubled(
        self, tracing: Tracing, spans: Spans, servers: str, topic: str
    ) -> None:
        """Each record carries the context of its own span alone, and the caller's list stays as it was."""
        headers = [("tenant", b"a")]
        async with producing(servers) as producer:
            for body in (b"one", b"two", b"three"):
                await tracing.publish(producer.send_and_wait)(topic, body, partition=0, headers=headers)
        records = await read(servers, topic, 3)
        assert headers == [("tenant", b"a")]
        assert [contexts(record) for record in records] == [[span.context] for span in spans.of("send")]
        assert len({span.trace_id for span in spans.of("send")}) == 3
        assert [len(record.headers) for record in records] == [2, 2, 2]

    @pytest.mark.parametrize("name", ["traceparent", "Traceparent"])
    @in_loop
    async def test_a_stale_context_does_not_win(
        self, tracing: Tracing, spans: Spans, servers: str, topic: str, name: str
    ) -> None:
        """Headers of an older message are passed on: the record carries the new context alone."""
        stale = [(name, STALE.encode()), ("tracestate", b"a=1"), ("baggage", b"tenant=1"), ("kept", b"it is")]
        given = list(stale)
        async with producing(servers) as producer:
            await tracing.publish(producer.send_and_wait)(topic, b"hello", partition=0, headers=given)
        async with reading(servers, topic) as consumer:
            seen: list[Any] = []
            await consume(tracing, consumer, "async for", 1, lambda record: seen.append((current(), record)))
        sent, process = only(spans.of("send")), only(spans.of("process"))
        [[inside, record]] = seen
        assert given == stale
        assert {key.lower(): value for key, value in record.headers} == {
            "kept": b"it is",
            "traceparent": f"00-{sent.trace_id}-{sent.span_id}-{self._flags(record)}".encode(),
        }
        assert len(record.headers) == 2
        assert inside == process.context
        assert origin(process) == sent.context != tuple(STALE.split("-")[1:3])

    @staticmethod
    def _flags(record: Any) -> str:
        [value] = [value for name, value in record.headers if name == "traceparent"]
        return str(value.decode()[-2:])

    @in_loop
    async def test_a_record_is_passed_on_with_the_headers_it_came_with(
        self, tracing: Tracing, spans: Spans, servers: str, topic: str
    ) -> None:
        """``headers=record.headers``, which is a tuple: one context, and that of the new span."""
        await send(tracing, servers, topic, b"hello", headers=[("tenant", b"a")])
        other = unique("invoices")
        async with producing(servers) as producer, reading(servers, topic) as consumer:
            async for record in tracing.loop(consumer):
                await tracing.publish(producer.send_and_wait)(
                    other, record.value, partition=0, headers=record.headers
                )
                break
        first, second = spans.of("send")
        record = only(await read(servers, other, 1))
        assert contexts(record) == [second.context]
        assert [name for name, _ in record.headers] == ["tenant", "traceparent"]
        assert origin(second) == only(spans.of("process")).context
        assert first.trace_id == second.trace_id

    @pytest.mark.parametrize("room", [0, 30, 200])
    @in_loop
    async def test_headers_that_alone_would_make_it_too_large_are_left_out(
        self, tracing: Tracing, spans: Spans, servers: str, topic: str, room: int
    ) -> None:
        """A message that fits into ``max_request_size`` goes out, with a context where that fits, too."""
        headers = [("tenant", b"a")]
        value = b"x" * (2_000 - room - DefaultRecordBatchBuilder.estimate_size_in_bytes(b"k", b"", headers))
        value = value[: len(value) - 4]  # its length takes more room than that of nothing
        async with producing(servers, max_request_size=2_000) as producer:
            publish = tracing.publish(producer.send_and_wait)
            await publish(topic, value, b"k", partition=0, headers=headers)
        record = only(await read(servers, topic, 1))
        span = only(spans.of("send"))
        assert record.value == value
        assert contexts(record) == ([span.context] if room == 200 else [])
        assert record.headers[0] == ("tenant", b"a")
        assert span.status == "UNSET"
        complaints = [text for text in spans.complaints if "max_request_size" in text]
        assert len(complaints) == (room != 200)

    @in_loop
    async def test_baggage_gives_way_before_the_trace_does(
        self, tracing: Tracing, spans: Spans, servers: str, topic: str
    ) -> None:
        """Where there is room for the one and not for the other; nothing stale fills it."""
        headers = [("traceparent", STALE.encode()), ("tenant", b"a"), ("baggage", b"old=1")]
        async with producing(servers, max_request_size=1_000) as producer:
            with baggage_of(tenant="b" * 900):
                publish = tracing.publish(producer.send_and_wait)
                await publish(topic, b"x" * 500, partition=0, headers=headers)
        record = only(await read(servers, topic, 1))
        assert contexts(record) == [only(spans.of("send")).context]
        assert sorted(name for name, _ in record.headers) == ["tenant", "traceparent"]

    @in_loop
    async def test_a_stale_context_is_dropped_also_where_there_is_no_room_for_the_new_one(
        self, tracing: Tracing, spans: Spans, servers: str, topic: str
    ) -> None:
        """The message begins a trace then, and is no part of an old one."""
        headers = [("baggage", b"old=1"), ("tenant", b"a")]
        value = b"x" * (996 - DefaultRecordBatchBuilder.estimate_size_in_bytes(b"k", b"", headers))
        async with producing(servers, max_request_size=1_000) as producer:
            publish = tracing.publish(producer.send_and_wait)
            await publish(topic, value, b"k", partition=0, headers=headers)
        record = only(await read(servers, topic, 1))
        assert record.value == value
        assert record.headers == (("tenant", b"a"),)
        assert headers == [("baggage", b"old=1"), ("tenant", b"a")]

    def test_a_message_that_is_too_large_anyway_is_refused_as_it_is_without_queueprop(
        self, as_without: Callable[[Program], Any], spans: Spans, servers: str, topic: str
    ) -> None:
        """The very error that aiokafka raises, which is on the span; and the producer works on."""

        async def program(tracing: Tracing) -> str:
            async with producing(servers, max_request_size=1_000) as producer:
                publish = tracing.publish(producer.send_and_wait)
                with pytest.raises(MessageSizeTooLargeError) as raised:
                    await publish(topic, b"x" * 1_001, partition=0)
                await publish(topic, b"hello", partition=0)
            return str(raised.value)

        assert "larger than the maximum request size" in as_without(program)
        assert [span.attributes.get("error.type") for span in spans.of("send")] == [
            "aiokafka.errors.MessageSizeTooLargeError",
            None,
        ]


class TestDelivery:
    @in_loop
    async def test_the_producer_span_ends_only_when_the_broker_has_answered(
        self, tracing: Tracing, spans: Spans, servers: str, topic: str
    ) -> None:
        """``send`` gives a future: the span ends with it, knows the offset, and is not current meanwhile."""
        async with producing(servers) as producer:
            for _ in range(2):
                future = await tracing.publish(producer.send)(topic, b"hello", partition=0)
                assert not future.done()
                before = len(spans.of("send"))
                assert current() == NOTHING
                asked = time.time_ns()
                metadata = await future
                assert len(spans.of("send")) == before + 1
                span = spans.of("send")[-1]
                assert span.end > asked
                assert span.attributes[OFFSET] == metadata.offset
        assert [span.attributes[OFFSET] for span in spans.of("send")] == [0, 1]
        assert {span.status for span in spans.of("send")} == {"UNSET"}

    @pytest.mark.parametrize("way", ["send", "send_and_wait"])
    @in_loop
    async def test_a_failed_delivery_is_an_error_of_its_span(
        self, tracing: Tracing, spans: Spans, real_servers: str, topic: str, way: str
    ) -> None:
        """The broker refuses what is too large for it: its error reaches the caller and is on the PRODUCER span."""
        async with producing(real_servers, **HUGE) as producer:
            delivery = tracing.publish(getattr(producer, way))(topic, b"x" * 2_000_000)
            if way == "send":
                delivery = await delivery
            with pytest.raises(MessageSizeTooLargeError):
                await delivery
        span = only(spans.of("send"))
        assert (span.kind, span.status) == ("PRODUCER", "ERROR")
        assert span.attributes["error.type"] == "aiokafka.errors.MessageSizeTooLargeError"
        assert OFFSET not in span.attributes

    @pytest.mark.parametrize("way", ["send", "send_batch"])
    def test_a_failed_delivery_is_an_error_also_when_nobody_awaits_it(
        self, as_without: Callable[[Program], Any], spans: Spans, real_servers: str, topic: str, way: str
    ) -> None:
        """asyncio still says that nobody has seen the exception, as often as without queueprop."""

        async def program(tracing: Tracing) -> list[Any]:
            told: list[Any] = []
            asyncio.get_running_loop().set_exception_handler(
                lambda _, it: told.append((it["message"], type(it["exception"])))
            )
            async with producing(real_servers, **HUGE) as producer:
                if way == "send":
                    await tracing.publish(producer.send)(topic, b"x" * 2_000_000, partition=0)
                else:
                    batch = tracing.create_batch(producer.create_batch)()
                    assert batch.append(timestamp=None, key=None, value=b"x" * 2_000_000)
                    await tracing.publish(producer.send_batch)(batch, topic, partition=0)
                    del batch
            del producer
            gc.collect()
            return told

        message = "Future exception was never retrieved"
        told = as_without(program)
        assert (message, MessageSizeTooLargeError) in told
        assert {error for _, error in told} == {MessageSizeTooLargeError}
        assert only(spans.of("send")).status == "ERROR"

    @pytest.mark.parametrize("options", [{"acks": "all"}, {"acks": 1}, {"enable_idempotence": True}])
    @in_loop
    async def test_the_offset_is_the_one_that_the_broker_gave(
        self, tracing: Tracing, spans: Spans, servers: str, topic: str, options: dict[str, Any]
    ) -> None:
        """Whatever the acks are, of each message in a batch of aiokafka's own."""
        async with producing(servers, **options) as producer:
            await producer.partitions_for(topic)
            publish = tracing.publish(producer.send)
            futures = [await publish(topic, str(number).encode(), partition=0) for number in range(3)]
            offsets = [(await future).offset for future in futures]
        records = await read(servers, topic, 3)
        assert offsets == [0, 1, 2] == [record.offset for record in records]
        assert [span.attributes[OFFSET] for span in spans.of("send")] == offsets
        assert [contexts(record) for record in records] == [[span.context] for span in spans.of("send")]

    @in_loop
    async def test_without_acks_no_offset_is_made_up(
        self, tracing: Tracing, spans: Spans, real_servers: str, wide_topic: str
    ) -> None:
        """acks=0: the broker never answers, and the span ends well as soon as the message is out. The partition that
        the partitioner chose is known all the same.
        """
        async with producing(real_servers) as producer:
            with suppress_instrumentation():
                for partition in range(4):  # what is sent without acks to one that is not ready yet is lost
                    await producer.send_and_wait(wide_topic, b"first", partition=partition)
        async with producing(real_servers, acks=0) as producer:
            for number in range(4):
                key = str(number).encode()
                assert await tracing.publish(producer.send_and_wait)(wide_topic, b"hello", key) is None
            sent = spans.of("send")
        records = await read(real_servers, wide_topic, 8, 0, 1, 2, 3)
        partitions = {only(contexts(it)): str(it.partition) for it in records if it.value == b"hello"}
        assert {span.context: span.attributes[PARTITION] for span in sent} == partitions
        assert {span.status for span in sent} == {"UNSET"}
        assert all(OFFSET not in span.attributes for span in sent)

    @in_loop
    async def test_a_publisher_that_gives_up_waiting_loses_no_message(
        self, tracing: Tracing, spans: Spans, servers: str, topic: str
    ) -> None:
        """A cancelled future does not stop the message, nor its context."""
        async with producing(servers) as producer:
            future = await tracing.publish(producer.send)(topic, b"hello", partition=0)
            future.cancel()
            await tracing.publish(producer.send_and_wait)(topic, b"hello again", partition=0)
        records = await read(servers, topic, 2)
        assert [contexts(record) for record in records] == [[span.context] for span in spans.of("send")]

    @in_loop
    async def test_a_hundred_publishers_in_tasks_do_not_mix(
        self, tracing: Tracing, spans: Spans, servers: str, topic: str
    ) -> None:
        """Each record carries its own task's trace and baggage."""
        async with producing(servers) as producer:
            publish = tracing.publish(producer.send_and_wait)

            async def work(number: int) -> tuple[bytes, str]:
                body = str(number).encode()
                with ambient_span(f"task {number}") as ambient, baggage_of(task=str(number)):
                    await asyncio.sleep(0.001 * (number % 3))
                    await publish(topic, body, partition=0)
                    assert current()[0] == f"{ambient.trace_id:032x}"
                return body, f"{ambient.trace_id:032x}"

            traces = dict(await asyncio.gather(*map(work, range(100))))
        records = await read(servers, topic, 100)
        assert {record.value: only(contexts(record))[0] for record in records} == traces
        assert all(("baggage", b"task=" + record.value) in record.headers for record in records)
        assert {only(contexts(record)) for record in records} == {span.context for span in spans.of("send")}
        assert len(set(traces.values())) == len(spans.of("send")) == 100


HUGE: dict[str, Any] = {"max_request_size": 3_000_000, "max_batch_size": 3_000_000}
"""A producer that sends what a broker refuses by default."""


class TestRecords:
    """What a message is made of."""

    @pytest.mark.parametrize("how", ["a partitioner", "by key", "at random", "given"])
    @in_loop
    async def test_the_partition_on_the_span_is_the_one_that_the_broker_wrote_to(
        self, tracing: Tracing, spans: Spans, servers: str, wide_topic: str, how: str
    ) -> None:
        """Whoever chooses it, and that is asked once a message."""
        asked: list[Any] = []

        def choose(key: bytes | None, every: list[int], available: list[int]) -> int:
            asked.append(key)
            return sorted(every)[len(asked) % len(every)]

        options = {"partitioner": choose} if how == "a partitioner" else {}
        written = []
        async with producing(servers, **options) as producer:
            for number in range(8):
                given: dict[str, Any] = {"key": str(number).encode()} if how == "by key" else {}
                if how == "given":
                    given = {"partition": number % 4}
                metadata = await tracing.publish(producer.send_and_wait)(wide_topic, b"hello", **given)
                written.append((metadata.partition, metadata.offset))
        records = await read(servers, wide_topic, 8, 0, 1, 2, 3)
        told = [(int(span.attributes[PARTITION]), span.attributes[OFFSET]) for span in spans.of("send")]
        assert told == written
        assert {only(contexts(record)): (record.partition, record.offset) for record in records} == dict(
            zip((span.context for span in spans.of("send")), written, strict=True)
        )
        if how == "a partitioner":
            assert len(asked) == 8
            assert {partition for partition, _ in written} == {0, 1, 2, 3}

    @pytest.mark.parametrize("way", ["send", "batch"])
    @in_loop
    async def test_serializers_run_once(
        self, tracing: Tracing, spans: Spans, servers: str, topic: str, way: str
    ) -> None:
        """The serializers of key and value, and the deserializers of the consumer."""
        ran: list[Any] = []

        def dump(it: Any) -> bytes:
            ran.append(it)
            return json.dumps(it).encode()

        def load(it: bytes) -> Any:
            ran.append(it)
            return json.loads(it)

        async with producing(servers, key_serializer=dump, value_serializer=dump) as producer:
            if way == "send":
                await tracing.publish(producer.send_and_wait)(topic, {"total": 3}, 7, partition=0)
            else:
                batch = tracing.create_batch(producer.create_batch)()
                batch.append(timestamp=None, key=7, value={"total": 3})
                await (await tracing.publish(producer.send_batch)(batch, topic, partition=0))
        assert ran == [7, {"total": 3}]
        ran.clear()
        seen: list[Any] = []
        async with reading(servers, topic, key_deserializer=load, value_deserializer=load) as consumer:
            await consume(tracing, consumer, "async for", 1, lambda it: seen.append((it.key, it.value)))
        assert seen == [(7, {"total": 3})]
        assert ran == [b"7", b'{"total": 3}']
        for span in (*spans.of("send" if way == "send" else "create"), *spans.of("process")):
            assert span.attributes[KEY] == "7"

    @pytest.mark.parametrize(
        ("key", "text"),
        [
            (None, None),
            (b"customer 7", "customer 7"),
            ("Zürich".encode(), "Zürich"),
            (b"\xff\xfe", None),
            (b"", ""),
        ],
    )
    @in_loop
    async def test_keys_that_are_text_or_not(
        self, tracing: Tracing, spans: Spans, servers: str, topic: str, key: bytes | None, text: str | None
    ) -> None:
        """A key is on the spans where it is text; never for none. The record has it as it was."""
        async with producing(servers) as producer:
            await tracing.publish(producer.send_and_wait)(topic, b"\xff\x00", key, partition=0)
        seen: list[Any] = []
        async with reading(servers, topic) as consumer:
            await consume(tracing, consumer, "async for", 1, lambda it: seen.append((it.key, it.value)))
        assert seen == [(key, b"\xff\x00")]
        assert [span.attributes.get(KEY) for span in spans.all] == [text, text]
        assert origin(only(spans.of("process"))) == only(spans.of("send")).context

    @pytest.mark.parametrize("how", ["None", "by the serializer"])
    @in_loop
    async def test_tombstones(
        self, tracing: Tracing, spans: Spans, servers: str, topic: str, how: str
    ) -> None:
        """A record without a value says so on both spans, and none that has one does, be it empty."""
        options = {"value_serializer": lambda it: it or None} if how != "None" else {}
        async with producing(servers, **options) as producer:
            publish = tracing.publish(producer.send_and_wait)
            await publish(topic, None if how == "None" else b"", b"k", partition=0)
        async with producing(servers) as producer:
            await tracing.publish(producer.send_and_wait)(topic, b"", b"k", partition=0)
        seen: list[Any] = []
        async with reading(servers, topic) as consumer:
            await consume(tracing, consumer, "async for", 2, lambda record: seen.append(record.value))
        assert seen == [None, b""]
        for operation in ("send", "process"):
            told = [span.attributes.get(TOMBSTONE) for span in spans.of(operation)]
            assert told == [True, None]

    @in_loop
    async def test_compressed_records_are_traced(
        self, tracing: Tracing, spans: Spans, servers: str, topic: str
    ) -> None:
        """gzip, a batch of aiokafka's with several records."""
        seen: list[Any] = []
        async with producing(servers, compression_type="gzip") as producer:
            await producer.partitions_for(topic)
            publish = tracing.publish(producer.send)
            await asyncio.gather(*[await publish(topic, b"x" * 1_000, partition=0) for _ in range(3)])
        async with reading(servers, topic) as consumer:
            await consume(tracing, consumer, "async for", 3, lambda record: seen.append(record.value))
        assert seen == [b"x" * 1_000] * 3
        assert [origin(span) for span in spans.of("process")] == [it.context for it in spans.of("send")]


class TestBatches:
    @in_loop
    async def test_send_batch_is_traced(
        self, tracing: Tracing, spans: Spans, servers: str, topic: str
    ) -> None:
        """A create span (PRODUCER) for each message, a child of what was current when it was made; a CLIENT send span
        that links to them; and each delivery in its own message's trace.
        """
        made = []
        async with producing(servers) as producer:
            batch = tracing.create_batch(producer.create_batch)()
            for number in range(3):
                with ambient_span(f"making {number}") as ambient:
                    body = str(number).encode()
                    assert batch.append(timestamp=None, key=None, value=body, headers=[("n", body)])
                    made.append((f"{ambient.trace_id:032x}", f"{ambient.span_id:016x}"))
            assert spans.all == []
            with ambient_span("sending") as ambient:
                future = await tracing.publish(producer.send_batch)(batch, topic, partition=0)
                assert spans.of("send") == []
                metadata = await future
        seen: list[Any] = []
        async with reading(servers, topic) as consumer:
            await consume(
                tracing, consumer, "async for", 3, lambda it: seen.append((it.value, it.headers[0]))
            )
        created, sent = spans.of("create"), only(spans.of("send"))
        assert seen == [(body, ("n", body)) for body in (b"0", b"1", b"2")]
        assert [(span.kind, span.name) for span in created] == [("PRODUCER", f"create {topic}")] * 3
        assert [origin(span) for span in created] == made
        assert (sent.kind, sent.name, sent.status) == ("CLIENT", f"publish {topic}", "UNSET")
        assert origin(sent) == (f"{ambient.trace_id:032x}", f"{ambient.span_id:016x}")
        assert [link.context for link in sent.links] == [span.context for span in created]
        assert sent.attributes["messaging.batch.message_count"] == 3
        assert sent.attributes[PARTITION] == str(metadata.partition)
        assert [origin(span) for span in spans.of("process")] == [span.context for span in created]

    @in_loop
    async def test_a_batch_that_is_full_takes_no_more_as_it_does_without_queueprop(
        self, tracing: Tracing, spans: Spans, servers: str, topic: str
    ) -> None:
        """``append`` gives None, which is a message that was not made; those in it are delivered."""
        async with producing(servers, max_batch_size=1_000) as producer:
            batch = tracing.create_batch(producer.create_batch)()
            taken = 0
            while batch.append(timestamp=None, key=b"k", value=b"x" * 100) is not None:
                taken += 1
            await (await tracing.publish(producer.send_batch)(batch, topic, partition=0))
        assert 0 < taken < 10
        assert len(await read(servers, topic, taken)) == taken
        assert len(spans.of("create")) == taken
        assert only(spans.of("send")).attributes["messaging.batch.message_count"] == taken

    @in_loop
    async def test_headers_in_a_batch_are_copied_and_stale_ones_dropped(
        self, tracing: Tracing, spans: Spans, servers: str, topic: str
    ) -> None:
        """A list that is reused stays as it was, a tuple goes out, and each message has the context of its own."""
        headers = [("traceparent", STALE.encode()), ("tenant", b"a")]
        async with producing(servers) as producer:
            batch = tracing.create_batch(producer.create_batch)()
            for given in (headers, headers, tuple(headers), [], None):
                assert batch.append(timestamp=None, key=b"k", value=b"v", headers=given)
            await (await tracing.publish(producer.send_batch)(batch, topic, partition=0))
        records = await read(servers, topic, 5)
        assert headers == [("traceparent", STALE.encode()), ("tenant", b"a")]
        assert [contexts(record) for record in records] == [[span.context] for span in spans.of("create")]
        assert [("tenant", b"a") in record.headers for record in records] == [True] * 3 + [False] * 2

    @in_loop
    async def test_headers_that_alone_would_make_a_message_of_a_batch_too_large_are_left_out(
        self, tracing: Tracing, spans: Spans, servers: str, topic: str
    ) -> None:
        """The message is in the batch all the same; baggage gives way first, and nothing stale stays."""
        headers = [("baggage", b"old=1"), ("tenant", b"a")]
        size = DefaultRecordBatchBuilder.estimate_size_in_bytes(b"k", b"", headers)
        bodies = [b"x" * 500, b"x" * 501, b"x" * (996 - size)]
        async with producing(servers, max_request_size=1_000) as producer:
            batch = tracing.create_batch(producer.create_batch)()
            for body in bodies:
                with baggage_of(new="1" if body == bodies[0] else "b" * 900):
                    assert batch.append(timestamp=None, key=b"k", value=body, headers=headers)
            await (await tracing.publish(producer.send_batch)(batch, topic, partition=0))
        records = await read(servers, topic, 3)
        made = [span.context for span in spans.of("create")]
        assert [record.value for record in records] == bodies
        assert [contexts(record) for record in records] == [[made[0]], [made[1]], []]
        names = [sorted(name for name, _ in record.headers) for record in records]
        assert names == [["baggage", "tenant", "traceparent"], ["tenant", "traceparent"], ["tenant"]]

    @in_loop
    async def test_a_batch_that_fails_is_an_error_of_its_send_span(
        self, tracing: Tracing, spans: Spans, real_servers: str, topic: str
    ) -> None:
        """The broker's error reaches the caller; the messages were made all the same."""
        async with producing(real_servers, **HUGE) as producer:
            batch = tracing.create_batch(producer.create_batch)()
            for _ in range(2):
                assert batch.append(timestamp=None, key=None, value=b"x" * 1_000_000)
            with pytest.raises(MessageSizeTooLargeError):
                await (await tracing.publish(producer.send_batch)(batch, topic, partition=0))
        sent = only(spans.of("send"))
        assert (sent.status, sent.attributes["error.type"]) == (
            "ERROR",
            "aiokafka.errors.MessageSizeTooLargeError",
        )
        assert [span.status for span in spans.of("create")] == ["UNSET"] * 2

    @in_loop
    async def test_a_batch_that_is_left_open_is_filled_up_by_sends(
        self, tracing: Tracing, spans: Spans, servers: str, topic: str
    ) -> None:
        """Those are messages of their own: a PRODUCER span each, no create span, and each record's own context."""
        async with producing(servers) as producer:
            await producer.partitions_for(topic)
            batch = tracing.create_batch(producer.create_batch)()
            batch.append(timestamp=None, key=None, value=b"made")
            future = await tracing.publish(producer.send_batch)(batch, topic, partition=0)
            await tracing.publish(producer.send_and_wait)(topic, b"sent", partition=0)
            await future
        made, sent = await read(servers, topic, 2)
        assert [made.value, sent.value] == [b"made", b"sent"]
        assert contexts(made) == [only(spans.of("create")).context]
        producer_span = only([span for span in spans.of("send") if span.kind == "PRODUCER"])
        assert contexts(sent) == [producer_span.context]
        assert producer_span.attributes[OFFSET] == 1


# Consuming


class TestLoop:
    """``async for record in consumer``."""

    @in_loop
    async def test_the_body_runs_inside_the_record_s_span(
        self, tracing: Tracing, spans: Spans, servers: str, topic: str
    ) -> None:
        """With its baggage; it ends at the next record; what the body starts is a child, also in a task."""
        async with producing(servers) as producer:
            for tenant in ("41", "42"):
                with ambient_span(), baggage_of(tenant=tenant):
                    await tracing.publish(producer.send_and_wait)(topic, tenant.encode(), partition=0)

        async def child() -> None:
            with ambient_span("child"):
                pass

        seen: list[Any] = []
        async with reading(servers, topic) as consumer:
            async for record in tracing.loop(consumer):
                seen.append((current(), baggage.get_baggage("tenant"), record.value.decode()))
                await asyncio.create_task(child())
                await asyncio.sleep(0)
                assert current() == seen[-1][0]
                if len(seen) == 2:
                    break
            assert current() == NOTHING
            assert baggage.get_baggage("tenant") is None
        one, two = spans.of("process")
        assert seen == [(one.context, "41", "41"), (two.context, "42", "42")]
        assert [origin(one), origin(two)] == [span.context for span in spans.of("send")]
        assert one.end <= two.start
        assert [(span.kind, span.name) for span in (one, two)] == [("CONSUMER", f"process {topic}")] * 2
        children = [span for span in spans.everything if span.name == "child"]
        assert [origin(span) for span in children] == [one.context, two.context]
        assert spans.of("receive") == []

    @pytest.mark.parametrize("ending", ["break", "return", "exception", "cancel", "drop", "stop"])
    @in_loop
    async def test_it_ends_however_the_loop_ends(
        self, tracing: Tracing, spans: Spans, servers: str, topic: str, ending: str
    ) -> None:
        """At once: the span is over and nothing is current behind the loop, which does what it does in any case."""
        await send(tracing, servers, topic, b"hello")
        inside = asyncio.Event()

        async def leave(consumer: Any) -> str:
            async for record in tracing.loop(consumer):
                assert current() != NOTHING
                assert record.value == b"hello"
                inside.set()
                if ending == "break":
                    break
                if ending == "return":
                    return "returned"
                if ending == "exception":
                    raise LookupError("no stock")
                if ending == "cancel":
                    await asyncio.sleep(DEADLINE)
                if ending == "stop":
                    await consumer.stop()
            return "left"

        async def drop(consumer: Any) -> str:
            iterator = tracing.loop(consumer).__aiter__()
            await iterator.__anext__()
            assert current() != NOTHING
            inside.set()
            del iterator
            return "dropped"

        async def work(consumer: Any) -> str:
            try:
                result = await (drop if ending == "drop" else leave)(consumer)
            except (LookupError, asyncio.CancelledError) as error:
                result = type(error).__name__
            assert current() == NOTHING
            assert len(spans.of("process")) == 1
            return result

        async with reading(servers, topic) as consumer:
            task = asyncio.create_task(work(consumer))
            await inside.wait()
            if ending == "cancel":
                task.cancel()
            results = {"return": "returned", "exception": "LookupError", "cancel": "CancelledError"}
            assert await task == {**results, "drop": "dropped"}.get(ending, "left")
        assert origin(only(spans.of("process"))) == only(spans.of("send")).context

    @pytest.mark.parametrize("around", [False, True])
    @in_loop
    async def test_nothing_of_ours_is_current_while_the_loop_waits(
        self, tracing: Tracing, spans: Spans, servers: str, topic: str, around: bool
    ) -> None:
        """A step that waits for the next record sees what is current around the loop, and no baggage."""
        waiting: list[Any] = []

        class Consumer(AIOKafkaConsumer):  # type: ignore[misc]
            async def getone(self, *partitions: Any) -> Any:
                waiting.append((current(), baggage.get_baggage("tenant")))
                return await super().getone(*partitions)

        with baggage_of(tenant="42"):
            await send(tracing, servers, topic, b"one", b"two")
        options: dict[str, Any] = {"bootstrap_servers": servers, "auto_offset_reset": "earliest"}
        async with Consumer(**options) as consumer:
            consumer.assign([TopicPartition(topic, 0)])
            with ambient_span() if around else contextlib.nullcontext():
                outside = current()

                async def work() -> None:
                    async for _ in tracing.loop(consumer):
                        assert current() != outside
                        assert baggage.get_baggage("tenant") == "42"

                task = asyncio.create_task(work())
                while len(waiting) < 3:
                    await asyncio.sleep(0.005)
                task.cancel()  # while it waits for a third one
                with pytest.raises(asyncio.CancelledError):
                    await task
        assert waiting == [(outside, None)] * 3
        assert len(spans.of("process")) == 2

    @in_loop
    async def test_a_loop_that_another_task_closes(
        self, tracing: Tracing, spans: Spans, servers: str, topic: str
    ) -> None:
        """The span is over then. Before Python 3.12 the body keeps what is current to its next step: nobody else can
        change it.
        """
        await send(tracing, servers, topic, b"one", b"two")
        async with reading(servers, topic) as consumer:
            iterator = tracing.loop(consumer).__aiter__()
            await iterator.__anext__()
            inside = current()
            await asyncio.create_task(iterator.aclose())
            assert only(spans.of("process")).context == inside
            assert current() == (NOTHING if sys.version_info >= (3, 12) else inside)
            await iterator.__anext__()
            assert current() not in (inside, NOTHING)
            del iterator
            assert current() == NOTHING
        assert len(spans.of("process")) == 2

    @in_loop
    async def test_a_loop_inside_a_loop(
        self, tracing: Tracing, spans: Spans, servers: str, topic: str
    ) -> None:
        """A body that waits for an answer: inside that one's span, and afterwards in its own again."""
        answers = unique("answers")
        await send(tracing, servers, topic, b"question")
        await send(tracing, servers, answers, b"answer")
        seen = []
        async with reading(servers, topic) as outer, reading(servers, answers) as inner:
            async for _ in tracing.loop(outer):
                seen.append(current())
                async for _ in tracing.loop(inner):
                    seen.append(current())
                    break
                seen.append(current())
                break
        question, answer = spans.of("process")
        assert seen == [question.context, answer.context, question.context]
        assert [origin(question), origin(answer)] == [span.context for span in spans.of("send")]

    @in_loop
    async def test_several_consumers_in_one_event_loop_do_not_mix(
        self, tracing: Tracing, spans: Spans, servers: str
    ) -> None:
        """Loops in tasks, which take turns within their bodies: each record in its own trace."""
        topics = [unique("orders") for _ in range(5)]
        for topic in topics:
            await send(tracing, servers, topic, b"one", b"two", b"three")
        seen: list[Any] = []

        async def work(topic: str) -> None:
            async with reading(servers, topic) as consumer:
                async for record in tracing.loop(consumer):
                    before = current()
                    await asyncio.sleep(0.002)
                    assert current() == before
                    seen.append((only(contexts(record)), before))
                    if record.value == b"three":
                        break
                assert current() == NOTHING

        await asyncio.gather(*map(work, topics))
        processes = spans.of("process")
        assert {(origin(span), span.context) for span in processes} == set(seen)
        assert len(set(seen)) == len(processes) == 15

    @pytest.mark.parametrize("shared", ["consumer", "iterator"])
    @in_loop
    async def test_several_tasks_that_loop_over_one_consumer_do_not_mix(
        self, tracing: Tracing, spans: Spans, servers: str, topic: str, shared: str
    ) -> None:
        """Each is in the trace of the record that it was given, over a loop of its own or over one that they share."""
        await send(tracing, servers, topic, *[str(number).encode() for number in range(9)])
        seen: list[Any] = []
        async with reading(servers, topic) as consumer:
            one = tracing.loop(consumer).__aiter__()

            async def work() -> None:
                async for record in one if shared == "iterator" else tracing.loop(consumer):
                    before = current()
                    seen.append((only(contexts(record)), before))
                    await asyncio.sleep(0.002)
                    assert current() == before

            tasks = [asyncio.create_task(work()) for _ in range(3)]
            while len(spans.of("process")) < 9:
                await asyncio.sleep(0.005)
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(end) for end in ends] == [asyncio.CancelledError] * 3
        assert {(origin(span), span.context) for span in spans.of("process")} == set(seen)
        assert len(set(seen)) == 9

    @in_loop
    async def test_traced_message_tells_the_loop_s_span_what_the_body_raised(
        self, tracing: Tracing, spans: Spans, servers: str, topic: str
    ) -> None:
        """One CONSUMER span, with the error that a loop alone could not tell it."""
        await send(tracing, servers, topic, b"hello")
        async with reading(servers, topic) as consumer:
            async for record in tracing.loop(consumer):
                with contextlib.suppress(LookupError), tracing.handling(record):
                    raise LookupError("no stock")
                break
        assert only(spans.of("process")).attributes["error.type"] == "LookupError"


class TestPull:
    @pytest.mark.parametrize("style", STYLES)
    @in_loop
    async def test_a_record_whose_traceparent_is_not_utf8_is_delivered_and_not_lost(
        self, tracing: Tracing, spans: Spans, servers: str, topic: str, style: str
    ) -> None:
        """Nor are those behind it. It is as it was, and its span is a root."""
        junk = [[("traceparent", value)] for value in (b"\xff\xfe", b"", None, b"00-\xc3\x28-1-01")]
        with suppress_instrumentation():
            for headers in junk:
                await send(Tracing("plain"), servers, topic, b"bad", headers=headers)
        await send(tracing, servers, topic, b"good")
        seen: list[Any] = []
        async with reading(servers, topic) as consumer:
            await consume(tracing, consumer, style, 5, lambda record: seen.append((record, current())))
        assert [record.value for record, _ in seen] == [b"bad"] * 4 + [b"good"]
        assert [list(record.headers) for record, _ in seen[:4]] == junk
        processes = spans.of("process")
        assert [span.parent_id for span in processes[:4]] == [None] * 4
        assert origin(processes[4]) == only(spans.of("send")).context
        assert [span.context for span in processes] == [inside for _, inside in seen]

    @in_loop
    async def test_getone_gives_a_plain_record_and_opens_no_scope(
        self, tracing: Tracing, spans: Spans, servers: str, topic: str
    ) -> None:
        """A receive span, which links to the record; its handling has its span from ``traced_message``."""
        await send(tracing, servers, topic, b"hello")
        async with reading(servers, topic, group_id=topic, client_id="till") as consumer:
            record = await tracing.get(consumer.getone)()
            assert type(record) is ConsumerRecord
            assert current() == NOTHING
            with tracing.handling(record):
                inside = current()
        sent, receive, process = spans.all
        assert (receive.kind, receive.name) == ("CLIENT", f"poll {topic}")
        assert [link.context for link in receive.links] == [sent.context]
        assert (process.kind, process.context, origin(process)) == ("CONSUMER", inside, sent.context)
        for span in (receive, process):
            assert span.attributes["messaging.consumer.group.name"] == topic
            assert span.attributes["messaging.client.id"] == "till"
            assert span.attributes[PARTITION] == "0"

    @pytest.mark.parametrize("style", ["getone", "getmany"])
    @in_loop
    async def test_the_receive_span_began_when_the_caller_began_to_wait(
        self, tracing: Tracing, spans: Spans, servers: str, topic: str, style: str
    ) -> None:
        """It is made after the fact, with the true start; the message was sent in the middle of it."""
        await send(tracing, servers, topic, b"past")
        async with reading(servers, topic) as consumer, producing(servers) as producer:
            await consumer.getone()  # by now it has found its broker
            before = time.time_ns()
            timeout = {"timeout_ms": 10_000} if style == "getmany" else {}
            task = asyncio.create_task(tracing.get(getattr(consumer, style))(**timeout))
            await asyncio.sleep(0.05)
            since = time.time_ns()
            await tracing.publish(producer.send_and_wait)(topic, b"hello", partition=0)
            await task
        receive = spans.of("receive")[-1]
        assert before <= receive.start < since < receive.end
        assert [link.context for link in receive.links] == [spans.of("send")[-1].context]

    @in_loop
    async def test_empty_polls_make_no_span(
        self, tracing: Tracing, spans: Spans, servers: str, topic: str
    ) -> None:
        """``getmany`` that gives nothing, and ``getone`` that is given up."""
        async with producing(servers) as producer:
            await producer.partitions_for(topic)
        async with reading(servers, topic) as consumer:
            assert await tracing.get(consumer.getmany)() == {}
            assert await tracing.get(consumer.getmany)(timeout_ms=20) == {}
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(tracing.get(consumer.getone)(), 0.02)
        assert spans.all == []

    @pytest.mark.parametrize("style", ["getone", "getmany"])
    def test_a_consumer_that_is_stopped_while_a_pull_waits(
        self, as_without: Callable[[Program], Any], spans: Spans, servers: str, topic: str, style: str
    ) -> None:
        """The caller is told as without queueprop; there was nothing to receive, and no span is made of it."""

        async def program(tracing: Tracing) -> str:
            async with producing(servers) as producer:
                await producer.partitions_for(topic)
            async with reading(servers, topic) as consumer:
                timeout = {"timeout_ms": 10_000} if style == "getmany" else {}
                task = asyncio.create_task(tracing.get(getattr(consumer, style))(**timeout))
                await asyncio.sleep(0.02)
                await consumer.stop()
                try:
                    return repr(await task)
                except ConsumerStoppedError as error:
                    return repr(error)

        assert as_without(program) == ("ConsumerStoppedError()" if style == "getone" else "{}")
        assert spans.all == []

    @in_loop
    async def test_getmany_gives_a_dict_of_lists(
        self, tracing: Tracing, spans: Spans, servers: str, topic: str
    ) -> None:
        """Equal to, indexed, sliced, pickled and copied as lists, of plain records; all that makes no span."""
        await send(tracing, servers, topic, b"one", b"two", b"three")
        async with reading(servers, topic) as consumer:
            found = await tracing.get(consumer.getmany)(timeout_ms=5_000)
        assert type(found) is dict
        [[partition, records]] = found.items()
        assert partition == TopicPartition(topic, 0)
        assert isinstance(records, list)
        assert [records[0].value, records[-1].value, len(records)] == [b"one", b"three", 3]
        plain = [records[0], records[1], records[2]]
        assert (records, records[1:]) == (plain, plain[1:])
        assert {type(record) for record in plain} == {ConsumerRecord}
        for copied in (
            pickle.loads(pickle.dumps(records)),
            copy.copy(records),
            copy.deepcopy(records),
            records.copy(),
            records[:],
            [*records[:1], *records[1:]],
            records * 1,
        ):
            assert type(copied) is list
            assert copied == plain
        assert records[1] in records
        assert records.index(plain[2]) == 2
        assert repr(records) == repr(plain)
        assert json.dumps([len(records)]) == "[3]"
        assert spans.of("process") == []
        receive = only(spans.of("receive"))
        assert receive.attributes["messaging.batch.message_count"] == 3
        assert [link.context for link in receive.links] == [span.context for span in spans.of("send")]

    @in_loop
    async def test_one_span_a_delivery_whatever_is_iterated_again(
        self, tracing: Tracing, spans: Spans, servers: str, topic: str
    ) -> None:
        """The first iteration of a list handles each record inside its span; nothing after it does."""
        await send(tracing, servers, topic, b"one", b"two", b"three")
        async with reading(servers, topic) as consumer:
            [records] = (await tracing.get(consumer.getmany)(timeout_ms=5_000)).values()
        inside = []
        for record in records:
            inside.append(current())
            if record.value == b"two":
                break
        assert current() == NOTHING
        for record in records:  # it goes on where it was: the third is a delivery still
            if record.value == b"three":
                inside.append(current())
            else:
                assert current() == NOTHING
        for _ in records:
            assert current() == NOTHING
        assert [record.value for record in records] == [b"one", b"two", b"three"]
        assert sorted(records, key=lambda record: -record.offset)[0].value == b"three"
        assert [span.context for span in spans.of("process")] == inside
        assert [origin(span) for span in spans.of("process")] == [span.context for span in spans.of("send")]

    @in_loop
    async def test_max_poll_records(self, tracing: Tracing, spans: Spans, servers: str, topic: str) -> None:
        """Five records in three polls: a receive span each, a CONSUMER span a record."""
        await send(tracing, servers, topic, *[str(number).encode() for number in range(5)])
        sizes: list[int] = []
        async with reading(servers, topic, max_poll_records=2) as consumer:
            while sum(sizes) < 5:
                for records in (await tracing.get(consumer.getmany)(timeout_ms=1_000)).values():
                    sizes.append(len(records))
                    for record in records:
                        assert current() != NOTHING
                        assert record.value == str(len(spans.of("process"))).encode()
        assert sizes == [2, 2, 1]
        receives = spans.of("receive")
        assert [span.attributes["messaging.batch.message_count"] for span in receives] == sizes
        assert [origin(span) for span in spans.of("process")] == [span.context for span in spans.of("send")]

    @in_loop
    async def test_a_batch_is_one_span_with_a_link_for_each_record(
        self, tracing: Tracing, spans: Spans, servers: str, topic: str
    ) -> None:
        """``traced_batch`` of what ``getmany`` gave; iterating it inside makes the spans of single deliveries."""
        await send(tracing, servers, topic, b"one", b"two")
        async with reading(servers, topic) as consumer:
            [records] = (await tracing.get(consumer.getmany)(timeout_ms=5_000)).values()
        with adapter.traced_batch(records):
            assert current() != NOTHING
        batch = only(spans.of("process"))
        assert (batch.kind, batch.attributes["messaging.batch.message_count"]) == ("CONSUMER", 2)
        assert [link.context for link in batch.links] == [span.context for span in spans.of("send")]

    @pytest.mark.parametrize("style", STYLES)
    @in_loop
    async def test_a_replay_has_the_same_origin(
        self, tracing: Tracing, spans: Spans, servers: str, topic: str, style: str
    ) -> None:
        """After a seek back: another CONSUMER span of the same producer's, each time."""
        await send(tracing, servers, topic, b"one", b"two")
        seen: list[Any] = []
        async with reading(servers, topic) as consumer:
            for _ in range(3):
                await consume(tracing, consumer, style, 2, lambda record: seen.append(record.value))
                consumer.seek(TopicPartition(topic, 0), 0)
        assert seen == [b"one", b"two"] * 3
        assert [origin(span) for span in spans.of("process")] == [it.context for it in spans.of("send")] * 3
        assert len({span.span_id for span in spans.of("process")}) == 6


# Groups


SETTLED = Settings(settle_spans=True)


class TestCommits:
    @pytest.fixture
    def settings(self) -> Settings:
        return SETTLED

    @pytest.mark.parametrize("how", ["commit()", "commit(offsets)", "commit(offset and metadata)"])
    @in_loop
    async def test_a_commit_in_the_body_is_a_child_of_its_record_s_span(
        self, tracing: Tracing, spans: Spans, servers: str, topic: str, how: str
    ) -> None:
        """``commit topic``, CLIENT, for each record that is committed; and the group has committed it."""
        await send(tracing, servers, topic, b"one", b"two")
        partition = TopicPartition(topic, 0)
        committed = []
        async with reading(servers, topic, group_id=topic) as consumer:
            commit = tracing.settle(consumer.commit)
            async for record in tracing.loop(consumer):
                before = current()
                if how == "commit()":
                    await commit()
                elif how == "commit(offsets)":
                    await commit({partition: record.offset + 1})
                else:
                    await commit({partition: (record.offset + 1, "by hand")})
                assert current() == before
                committed.append(await consumer.committed(partition))
                if record.value == b"two":
                    break
        assert committed == [1, 2]
        commits, processes = spans.of("settle"), spans.of("process")
        assert [(span.kind, span.name) for span in commits] == [("CLIENT", f"commit {topic}")] * 2
        assert [origin(span) for span in commits] == [span.context for span in processes]
        assert [span.attributes["messaging.consumer.group.name"] for span in commits] == [topic] * 2

    @in_loop
    async def test_a_commit_behind_the_loop_is_of_all_that_was_handled(
        self, tracing: Tracing, spans: Spans, servers: str, wide_topic: str
    ) -> None:
        """A child of the last record's span; it links to the last record of each further partition. Once."""
        async with producing(servers) as producer:
            for partition in (0, 0, 1):
                await tracing.publish(producer.send_and_wait)(wide_topic, b"hello", partition=partition)
        async with reading(servers, wide_topic, 0, 1, group_id=wide_topic) as consumer:
            await consume(tracing, consumer, "async for", 3, lambda record: None)
            commit = tracing.settle(consumer.commit)
            await commit()
            assert [await consumer.committed(TopicPartition(wide_topic, it)) for it in (0, 1)] == [2, 1]
            await commit()
        settle = only(spans.of("settle"))
        processes = spans.of("process")
        last = {span.attributes[PARTITION]: span for span in processes}  # the later one wins
        parent = only([span for span in last.values() if origin(settle) == span.context])
        assert parent is processes[-1]
        others = [origin(span) for span in last.values() if span is not parent]
        assert [link.context for link in settle.links] == others
        assert len(others) == 1
        assert settle.attributes["messaging.batch.message_count"] == 2

    @in_loop
    async def test_a_commit_of_what_getone_gave(
        self, tracing: Tracing, spans: Spans, servers: str, topic: str
    ) -> None:
        """A child of the span that the record was handled in."""
        await send(tracing, servers, topic, b"hello")
        async with reading(servers, topic, group_id=topic) as consumer:
            await consume(tracing, consumer, "getone", 1, lambda record: None)
            await tracing.settle(consumer.commit)()
            assert await consumer.committed(TopicPartition(topic, 0)) == 1
        assert origin(only(spans.of("settle"))) == only(spans.of("process")).context

    def test_a_commit_that_fails_is_an_error_of_its_span(
        self, as_without: Callable[[Program], Any], spans: Spans, servers: str
    ) -> None:
        """Without a group: the very error that aiokafka raises."""

        async def program(tracing: Tracing) -> str:
            topic = unique("orders")
            await send(tracing, servers, topic, b"hello")
            async with reading(servers, topic) as consumer:
                async for _ in tracing.loop(consumer):
                    with pytest.raises(IllegalOperation) as raised:
                        await tracing.settle(consumer.commit)()
                    break
            return str(raised.value)

        assert "group_id" in as_without(program)
        settle = only(spans.of("settle"))
        assert (settle.status, settle.attributes["error.type"]) == (
            "ERROR",
            "aiokafka.errors.IllegalOperation",
        )
        assert only(spans.of("process")).status == "UNSET"

    @pytest.mark.parametrize("style", STYLES)
    def test_auto_commit_commits_as_it_does_without_queueprop(
        self, as_without: Callable[[Program], Any], spans: Spans, servers: str, style: str
    ) -> None:
        """What was read is committed, at the interval and at the end. No span is made of it, and none breaks."""

        async def program(tracing: Tracing) -> list[Any]:
            topic, seen = unique("orders"), []
            await send(tracing, servers, topic, b"one", b"two", b"three")
            options = {"group_id": topic, "enable_auto_commit": True, "auto_commit_interval_ms": 10}
            for count in (2, 1):
                async with reading(servers, topic, **options) as consumer:
                    await consume(tracing, consumer, style, count, lambda record: seen.append(record.value))
                    committed = None
                    while not committed:
                        await asyncio.sleep(0.005)
                        committed = await consumer.committed(TopicPartition(topic, 0))
                async with reading(servers, topic, group_id=topic) as consumer:
                    seen.append(await consumer.committed(TopicPartition(topic, 0)))
            return seen

        assert as_without(program) == [b"one", b"two", 2, b"three", 3]
        assert spans.of("settle") == []
        assert [origin(span) for span in spans.of("process")] == [span.context for span in spans.of("send")]


ALERT: dict[str, Any] = {"heartbeat_interval_ms": 50}
"""A member of a group that soon learns of a rebalance."""


class TestGroups:
    @pytest.fixture
    def settings(self) -> Settings:
        return SETTLED

    @pytest.mark.parametrize("how", ["topics", "subscribe", "pattern"])
    @in_loop
    async def test_a_consumer_that_a_group_manages(
        self, tracing: Tracing, spans: Spans, real_servers: str, topic: str, how: str
    ) -> None:
        """Subscribed by name or by pattern: its span tells the topic, the partition and the group."""
        await send(tracing, real_servers, topic, b"hello")
        consumer = consuming(real_servers, *([topic] if how == "topics" else []), group_id=topic)
        if how == "subscribe":
            consumer.subscribe([topic])
        elif how == "pattern":
            consumer.subscribe(pattern=f"^{topic}$")
        async with consumer:
            await consume(tracing, consumer, "async for", 1, lambda record: None)
        process = only(spans.of("process"))
        assert process.name == f"process {topic}"
        assert (process.attributes[PARTITION], process.attributes["messaging.consumer.group.name"]) == (
            "0",
            topic,
        )
        assert origin(process) == only(spans.of("send")).context

    @in_loop
    async def test_two_consumers_of_a_group_have_their_partitions_each(
        self, tracing: Tracing, spans: Spans, real_servers: str, wide_topic: str
    ) -> None:
        """Every record is handled once, by the consumer that has its partition, in its own trace."""
        handled: dict[str, set[int]] = {"one": set(), "two": set()}
        both = [
            consuming(real_servers, wide_topic, group_id=wide_topic, client_id=name, **ALERT)
            for name in handled
        ]
        await asyncio.gather(*[consumer.start() for consumer in both])
        while [len(consumer.assignment()) for consumer in both] != [2, 2]:
            await asyncio.sleep(0.01)
        async with producing(real_servers) as producer:
            for partition in (0, 1, 2, 3) * 3:
                await tracing.publish(producer.send_and_wait)(wide_topic, b"hello", partition=partition)

        async def work(name: str, consumer: Any) -> None:
            left = 6
            async for record in tracing.loop(consumer):
                handled[name].add(record.partition)
                await asyncio.sleep(0)
                left -= 1
                if not left:
                    break

        await asyncio.gather(*map(work, handled, both))
        assigned = [{partition.partition for partition in consumer.assignment()} for consumer in both]
        await asyncio.gather(*[consumer.stop() for consumer in both])
        assert list(handled.values()) == assigned
        processes = spans.of("process")
        assert {origin(span) for span in processes} == {span.context for span in spans.of("send")}
        assert len(processes) == 12
        for span in processes:
            assert int(span.attributes[PARTITION]) in handled[span.attributes["messaging.client.id"]]

    @in_loop
    async def test_a_rebalance_in_the_middle_of_a_message(
        self, tracing: Tracing, spans: Spans, real_servers: str, topic: str
    ) -> None:
        """The body goes on inside its span while another consumer joins the group and leaves it. What was not
        committed comes again, in its trace; and its commit is a child of that delivery.
        """
        await send(tracing, real_servers, topic, b"hello")
        partition = TopicPartition(topic, 0)
        inside = []
        async with consuming(real_servers, topic, group_id=topic, **ALERT) as first:
            async for record in tracing.loop(first):
                inside.append(current())
                assert record.offset == 0
                if len(inside) == 2:
                    await tracing.settle(first.commit)({partition: 1})
                    break
                async with consuming(real_servers, topic, group_id=topic, **ALERT) as second:
                    assert first.assignment() | second.assignment() == {partition}
                    assert current() == inside[0]
                while partition not in first.assignment():
                    await asyncio.sleep(0.01)  # until it has the partition back
                assert current() == inside[0]
            assert current() == NOTHING
            assert await first.committed(partition) == 1
        one, two = spans.of("process")
        assert [one.context, two.context] == inside
        assert origin(one) == origin(two) == only(spans.of("send")).context
        assert origin(only(spans.of("settle"))) == two.context

    @in_loop
    async def test_a_rebalance_listener_is_outside_of_every_message(
        self, tracing: Tracing, spans: Spans, real_servers: str, topic: str
    ) -> None:
        """It is called by aiokafka's own task, also while a body is under way."""
        await send(tracing, real_servers, topic, b"hello")
        told: list[Any] = []

        class Listener(ConsumerRebalanceListener):  # type: ignore[misc]
            def on_partitions_revoked(self, revoked: Any) -> None:
                told.append(("revoked", len(revoked), current()))

            def on_partitions_assigned(self, assigned: Any) -> None:
                told.append(("assigned", len(assigned), current()))

        consumer = consuming(real_servers, group_id=topic, **ALERT)
        consumer.subscribe([topic], listener=Listener())
        async with consumer:
            async for _ in tracing.loop(consumer):
                assert current() != NOTHING
                async with consuming(real_servers, topic, group_id=topic):
                    pass
                break
        assert ("revoked", 1, NOTHING) in told
        assert told.count(("assigned", 1, NOTHING)) >= 1
        assert {where for _, _, where in told} == {NOTHING}


class TestTransactions:
    @pytest.fixture
    def settings(self) -> Settings:
        return SETTLED

    @pytest.mark.parametrize("isolation_level", ["read_committed", "read_uncommitted"])
    def test_what_is_sent_in_a_transaction_is_traced_committed_or_aborted(
        self, as_without: Callable[[Program], Any], spans: Spans, real_servers: str, isolation_level: str
    ) -> None:
        """Each has its PRODUCER span, which ends well; a reader sees what it sees in any case, in its trace."""

        async def program(tracing: Tracing) -> list[bytes]:
            topic, seen = unique("orders"), []
            async with producing(real_servers, transactional_id=topic) as producer:
                publish = tracing.publish(producer.send_and_wait)
                async with producer.transaction():
                    await publish(topic, b"committed", partition=0)
                await producer.begin_transaction()
                await publish(topic, b"aborted", partition=0)
                await producer.abort_transaction()
                with contextlib.suppress(LookupError):
                    async with producer.transaction():
                        await publish(topic, b"aborted by an error", partition=0)
                        raise LookupError("no stock")
                async with producer.transaction():
                    await tracing.publish(producer.send)(topic, b"not awaited", partition=0)
            async with reading(real_servers, topic, isolation_level=isolation_level) as consumer:
                async for record in tracing.loop(consumer):
                    seen.append(record.value)
                    if record.value == b"not awaited":
                        break
            return seen

        every = [b"committed", b"aborted", b"aborted by an error", b"not awaited"]
        committed = [every[0], every[3]]
        read_committed = isolation_level == "read_committed"
        assert as_without(program) == (committed if read_committed else every)
        sent = spans.of("send")
        assert [(span.kind, span.status) for span in sent] == [("PRODUCER", "UNSET")] * 4
        expected = [sent[0], sent[3]] if read_committed else sent
        assert [origin(span) for span in spans.of("process")] == [span.context for span in expected]

    def test_batches_in_transactions(
        self, as_without: Callable[[Program], Any], spans: Spans, real_servers: str
    ) -> None:
        """create_batch and send_batch, committed and aborted."""

        async def program(tracing: Tracing) -> list[bytes]:
            topic = unique("orders")
            async with producing(real_servers, transactional_id=topic) as producer:
                for abort in (True, False):
                    await producer.begin_transaction()
                    batch = tracing.create_batch(producer.create_batch)()
                    for body in (b"one", b"two"):
                        assert batch.append(timestamp=None, key=None, value=body)
                    await tracing.publish(producer.send_batch)(batch, topic, partition=0)
                    await (producer.abort_transaction() if abort else producer.commit_transaction())
            seen: list[bytes] = []
            async with reading(real_servers, topic, isolation_level="read_committed") as consumer:
                await consume(tracing, consumer, "async for", 2, lambda record: seen.append(record.value))
            return seen

        assert as_without(program) == [b"one", b"two"]
        created = spans.of("create")
        assert [(span.kind, span.status) for span in created] == [("PRODUCER", "UNSET")] * 4
        assert [[link.context for link in span.links] for span in spans.of("send")] == [
            [span.context for span in created[:2]],
            [span.context for span in created[2:]],
        ]
        assert [origin(span) for span in spans.of("process")] == [span.context for span in created[2:]]

    def test_consume_transform_produce(
        self, as_without: Callable[[Program], Any], spans: Spans, real_servers: str
    ) -> None:
        """``send_offsets_to_transaction``: what is read, aborted, read again, written and committed is the same; and
        every record that was written is in the trace of the one that it was made of.
        """

        async def program(tracing: Tracing) -> Any:
            source, target = unique("orders"), unique("invoices")
            await send(tracing, real_servers, source, b"a", b"b", b"c")
            partition = TopicPartition(source, 0)
            handled: list[bytes] = []
            async with (
                producing(real_servers, transactional_id=target) as producer,
                reading(real_servers, source, group_id=source, isolation_level="read_committed") as consumer,
            ):
                publish = tracing.publish(producer.send)
                commit = tracing.settle(producer.send_offsets_to_transaction)
                async for record in tracing.loop(consumer):
                    handled.append(record.value)
                    try:
                        async with producer.transaction():
                            await publish(target, record.value.upper(), partition=0)
                            await commit({partition: record.offset + 1}, source)
                            if handled == [b"a", b"b"]:
                                raise LookupError("no stock")
                    except LookupError:
                        consumer.seek(partition, await consumer.committed(partition))
                    if record.value == b"c":
                        break
                while await consumer.committed(partition) != 3:
                    await asyncio.sleep(0.01)  # Kafka answers the producer before everybody sees it
            written: list[bytes] = []
            async with reading(real_servers, target, isolation_level="read_committed") as consumer:
                await consume(tracing, consumer, "async for", 3, lambda record: written.append(record.value))
            return handled, written

        assert as_without(program) == ([b"a", b"b", b"b", b"c"], [b"A", b"B", b"C"])
        read_spans, written_spans = (
            [span for span in spans.of("process") if kind in span.name] for kind in ("orders", "invoices")
        )
        sources = [span.context for span in spans.of("send") if span.parent_id is None]
        made = [span for span in spans.of("send") if span.parent_id is not None]
        assert [origin(span) for span in read_spans] == [sources[0], sources[1], sources[1], sources[2]]
        assert [origin(span) for span in made] == [span.context for span in read_spans]
        assert [origin(span) for span in spans.of("settle")] == [span.context for span in read_spans]
        assert [origin(span) for span in written_spans] == [made[at].context for at in (0, 2, 3)]
        assert [span.trace_id for span in written_spans] == [trace_id for trace_id, _ in sources]


# Another instrumentation


class TestRival:
    """opentelemetry-instrumentation-aiokafka. It wraps ``send``, ``getone`` and ``getmany`` on their classes."""

    @pytest.fixture
    def rival(self) -> Iterator[Any]:
        module = pytest.importorskip("opentelemetry.instrumentation.aiokafka")
        names = [(AIOKafkaProducer, "send"), (AIOKafkaConsumer, "getone"), (AIOKafkaConsumer, "getmany")]
        own = [(owner, name, vars(owner)[name]) for owner, name in names]
        rival = module.AIOKafkaInstrumentor()
        yield rival
        if rival.is_instrumented_by_opentelemetry:
            rival.uninstrument()
        for owner, name, function in own:
            setattr(owner, name, function)  # it takes away whatever is outermost

    @pytest.fixture(autouse=True)
    def _said_nothing_yet(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(guard, "_logged", set())

    @pytest.mark.parametrize("first", ["ours", "the other"])
    @pytest.mark.parametrize("style", STYLES)
    def test_it_keeps_the_library_whichever_was_first(
        self, spans: Spans, servers: str, rival: Any, first: str, style: str
    ) -> None:
        """Its spans, as many as without us; none of ours; one warning that names it; and records pass."""
        rival.instrument()
        assert _exchanged(servers, style) == [b"one", b"two"]
        alone = [span.name for span in spans.everything]
        rival.uninstrument()
        if first == "the other":
            rival.instrument()
        with Tracing("instrumentor").on():
            if first == "ours":
                rival.instrument()
            assert _exchanged(servers, style) == [b"one", b"two"]
        both = [span.name for span in spans.everything][len(alone) :]
        assert len(alone) >= 4 or style == "getmany"  # which an older one does not know
        assert len(alone) >= 2
        assert _without_topics(both) == _without_topics(alone)
        assert spans.all == []
        warnings = [text for text in spans.complaints if "opentelemetry.instrumentation.aiokafka" in text]
        assert len(warnings) == 1
        assert "uninstrument" in warnings[0]

    @pytest.mark.parametrize("first", ["ours", "the other"])
    def test_uninstrumenting_ours_does_the_other_no_harm(
        self, spans: Spans, servers: str, rival: Any, first: str
    ) -> None:
        """It goes on to trace as before; and once it is gone, ours can have the library."""
        if first == "the other":
            rival.instrument()
        with Tracing("instrumentor").on():
            if first == "ours":
                rival.instrument()
        assert _exchanged(servers, "getone") == [b"one", b"two"]
        assert [span.kind for span in spans.everything] == ["PRODUCER"] * 2 + ["CONSUMER"] * 2
        assert spans.all == []
        rival.uninstrument()
        with Tracing("instrumentor").on():
            assert _exchanged(servers, "async for") == [b"one", b"two"]
        assert len(spans.everything) == 8
        assert [origin(span) for span in spans.of("process")] == [span.context for span in spans.of("send")]

    def test_what_the_other_takes_away_when_it_goes_breaks_nothing(
        self, spans: Spans, servers: str, rival: Any
    ) -> None:
        """It takes off what is outermost, which is ours where it was first: records pass, and ours can be taken away
        and be put back. (Its own, which it leaves behind, goes on to make spans.)
        """
        rival.instrument()
        with Tracing("instrumentor").on():
            rival.uninstrument()
            assert _exchanged(servers, "async for") == [b"one", b"two"]
        already = len(spans.all)
        assert _exchanged(servers, "async for") == [b"one", b"two"]
        assert len(spans.all) == already
        with Tracing("instrumentor").on():
            assert _exchanged(servers, "async for") == [b"one", b"two"]
        assert len(spans.all) == already + 4


def _exchanged(servers: str, style: str) -> list[bytes]:
    """Two records, sent and handled, as a program does it that knows of no tracing."""
    topic = unique("orders")
    got: list[bytes] = []

    async def main() -> None:
        plain = Tracing("plain")
        async with producing(servers) as producer:
            for body in (b"one", b"two"):
                # With an older one send_and_wait fails: it gives send its headers a second time.
                await (await producer.send(topic, body, partition=0))
        async with reading(servers, topic) as consumer:
            await consume(plain, consumer, style, 2, lambda record: got.append(record.value))

    asyncio.run(asyncio.wait_for(main(), DEADLINE))
    return got


def _without_topics(names: list[str]) -> list[str]:
    """Each exchange has a topic of its own."""
    return sorted(name.split()[-1] for name in names)


# Consumers and nodes that go away


LEADER = 1
"""The node that goes away."""


class TestOutages:
    """The same run without and with queueprop: as many deliveries, redeliveries and commits, and no orphan."""

    @pytest.fixture
    def settings(self) -> Settings:
        return SETTLED

    @pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
    @pytest.mark.parametrize("tracing", ["instrumentor", "explicit"])
    @pytest.mark.parametrize("style", ["async for", "getmany"])
    def test_a_consumer_that_is_killed_between_fetch_and_commit(
        self, spans: Spans, servers: str, style: str, tracing: str
    ) -> None:
        """A process that ends by SIGKILL in the middle of a record; another one goes on where its group was: behind
        the last record of a loop, or the last poll of ``getmany``.
        """
        self._compare_killed(spans, servers, style, tracing)

    @pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
    def test_a_member_of_a_group_that_is_killed_between_fetch_and_commit(
        self, spans: Spans, real_servers: str
    ) -> None:
        """As above; it has a name in its group, so that the one that comes back need not wait for it to be given up."""
        member = {"group_instance_id": "the one"}
        self._compare_killed(spans, real_servers, "async for", "instrumentor", **member)

    @pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
    @pytest.mark.parametrize("end", ["kill", "stop"])
    def test_a_node_that_goes_away_and_comes_back(
        self, spans: Spans, kafka_cluster: KafkaCluster, end: str
    ) -> None:
        """The leader of the partition, while a producer sends and a consumer reads. Both runs are in one and the same
        outage: the plain one in a process of its own.
        """
        node = only([node for node in kafka_cluster.nodes if node.number == LEADER])
        servers = addresses(kafka_cluster.url)
        topics = [unique("orders") for _ in range(2)]
        for topic in topics:
            asyncio.run(create_topic(servers, topic, led_by=LEADER))
        processes = multiprocessing.get_context("fork")
        meeting, told = processes.Barrier(3), processes.SimpleQueue()

        def run(tracing: Tracing, topic: str) -> dict[str, Any]:
            return asyncio.run(asyncio.wait_for(_outlast(tracing, servers, topic, meeting), DEADLINE))

        def run_plain() -> None:
            try:
                told.put(run(Tracing("plain"), topics[0]))
            except BaseException as error:
                told.put(repr(error))

        plain = processes.Process(target=run_plain)
        plain.start()
        outage = threading.Thread(target=lambda: _interrupt(node, end, meeting))
        outage.start()
        try:
            with Tracing("instrumentor", SETTLED).on() as tracing:
                traced = run(tracing, topics[1])
            assert traced == told.get()
        finally:
            meeting.abort()  # for those who would wait for one that failed
            outage.join()
            plain.join()
        numbers = [str(number) for number in range(30)]
        assert traced == {
            "deliveries": [*numbers[:6], *numbers[5:]],
            "committed": 30,
            "written": 30,
            "led by the node": [True, False],
        }
        _assert_no_orphan(spans, 31)
        assert {span.status for span in spans.of("send")} == {"UNSET"}
        assert [span.attributes[OFFSET] for span in spans.of("send")] == list(range(30))

    @staticmethod
    def _compare_killed(spans: Spans, servers: str, style: str, name: str, **member: Any) -> None:
        plain = _interrupted_run(Tracing("plain"), servers, style, member)
        assert spans.everything == []
        with Tracing(name, SETTLED).on() as tracing:
            traced = _interrupted_run(tracing, servers, style, member)
        assert traced == plain
        again = ["5"] if style == "async for" else ["4", "5"]
        first = [str(number) for number in range(6)]
        assert plain == {
            "deliveries": [*first, *again, "6", "7", "8", "9"],
            "committed": 10,
            "written": 10,
        }
        _assert_no_orphan(spans, len(plain["deliveries"]) - 1)


def _assert_no_orphan(spans: Spans, deliveries: int) -> None:
    processes = spans.of("process")
    assert len(processes) == deliveries
    assert {origin(span) for span in processes} <= {span.context for span in spans.of("send")}
    assert {origin(span) for span in spans.of("settle")} <= {span.context for span in processes}
    assert spans.of("settle") != []
    assert current() == NOTHING


def _interrupted_run(tracing: Tracing, servers: str, style: str, member: dict[str, Any]) -> dict[str, Any]:
    """Ten records. The sixth delivery is interrupted, in a process of its own, before it is committed."""
    topic, handled = unique("orders"), Bodies()
    asyncio.run(send(tracing, servers, topic, *[str(number).encode() for number in range(10)]))

    def handle(record: Any) -> None:
        handled.add(record.value)
        if len(handled.all) == 6:
            provider: Any = trace.get_tracer_provider()
            if tracing.name != "plain":
                provider.force_flush()
            os.kill(os.getpid(), signal.SIGKILL)

    async def handle_all() -> tuple[int | None, int]:
        partition = TopicPartition(topic, 0)
        consumer = consuming(servers, *([topic] if member else []), group_id=topic, **member)
        if not member:
            consumer.assign([partition])
        async with consumer:
            commit = tracing.settle(consumer.commit)
            while len(set(handled.all)) < 10:
                if style == "getmany":
                    found = await tracing.get(consumer.getmany)(timeout_ms=1_000, max_records=4)
                    for record in itertools.chain.from_iterable(found.values()):
                        handle(record)
                    await commit()
                    continue
                async for record in tracing.loop(consumer):
                    handle(record)
                    await commit({partition: record.offset + 1})
                    if record.value == b"9":
                        break
            return await consumer.committed(partition), (await consumer.end_offsets([partition]))[partition]

    def work() -> tuple[int | None, int]:
        return asyncio.run(asyncio.wait_for(handle_all(), DEADLINE))

    run_killed(work)
    committed, written = work()
    return {"deliveries": handled.all, "committed": committed, "written": written}


async def _outlast(tracing: Tracing, servers: str, topic: str, meeting: Any) -> dict[str, Any]:
    """Sends thirty records and handles them; the sixth one twice. It meets the others before a node goes away, when
    something was sent without that node, and when it is back.
    """
    partition = TopicPartition(topic, 0)
    deliveries: list[str] = []
    leaders: list[int] = []

    async def produce() -> None:
        async with producing(servers, enable_idempotence=True) as producer:
            publish = tracing.publish(producer.send_and_wait)
            for number in range(30):
                if number in (6, 16):
                    leaders.append(producer.client.cluster.leader_for_partition(partition))
                if number in (6, 16, 20):
                    await asyncio.to_thread(meeting.wait, DEADLINE)
                await publish(topic, str(number).encode(), partition=0)

    sending = asyncio.create_task(produce())
    async with reading(servers, topic, group_id=topic) as consumer:
        commit = tracing.settle(consumer.commit)
        async for record in tracing.loop(consumer):
            deliveries.append(record.value.decode())
            if record.value == b"5" and deliveries.count("5") == 1:
                consumer.seek(partition, record.offset)
                continue
            await commit({partition: record.offset + 1})
            if record.value == b"29":
                break
        await sending
        committed = await consumer.committed(partition)
        written = (await consumer.end_offsets([partition]))[partition]
    led_by = [leader == LEADER for leader in leaders]
    return {
        "deliveries": deliveries,
        "committed": committed,
        "written": written,
        "led by the node": led_by,
    }


def _interrupt(node: Any, end: str, meeting: Any) -> None:
    """An outage, between two meetings with those who are to outlast it, and one when it is over."""
    meeting.wait(DEADLINE)
    getattr(node, end)()
    meeting.wait(DEADLINE)
    node.start()
    meeting.wait(DEADLINE)
