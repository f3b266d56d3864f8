"""The aiokafka adapter without a broker: aiokafka's own producers and consumers, with nobody at the other end."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import functools
import gc
import importlib
import pickle
import re
import sys
import weakref
from collections.abc import Callable, Coroutine, Iterator
from types import MappingProxyType, SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock
from uuid import UUID

import pytest

pytest.importorskip("aiokafka")

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.errors import ConsumerStoppedError, KafkaTimeoutError, MessageSizeTooLargeError, ProducerClosed
from aiokafka.producer.message_accumulator import MessageAccumulator
from aiokafka.record.memory_records import MemoryRecords
from opentelemetry import baggage
from opentelemetry.context import attach, detach, get_current
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    TraceState,
    get_current_span,
    get_tracer_provider,
    set_span_in_context,
)

from queueprop import Destination, Settings, guard
from queueprop.adapters import aiokafka as adapter
from queueprop.kit import kafka
from queueprop.kit.libraries import MissingExtra
from queueprop.testing import CapturedSpans
from tests.adapters import faults

TRACE_ID = 0x0AF7651916CD43DD8448EB211C80319C
TRACEPARENT = f"00-{TRACE_ID:032x}-b7ad6b7169203331-01".encode()
SETTLED = Settings(settle_spans=True)
ORDERS = TopicPartition("orders", 0)


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs a test in an event loop of its own."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


class Producer:
    """A producer whose topics have three partitions, and the broker that it never reaches."""

    def __init__(self, kind: Any = AIOKafkaProducer, **options: Any) -> None:
        producer = kind(bootstrap_servers="kafka.example:9092", client_id="shop", **options)
        producer._closed = True  # nothing is to be closed, and it is not to complain
        producer.client._wait_on_metadata = self._wait
        producer._metadata = SimpleNamespace(
            partitions_for_topic=lambda topic: {0, 1, 2},
            available_partitions_for_topic=lambda topic: {0, 1, 2},
        )
        if hasattr(producer.client, "_api_version"):  # aiokafka before 0.13 asks the broker
            producer.client._api_version = (0, 11)
            producer._message_accumulator.set_api_version((0, 11))
            producer._producer_magic = 1
        self.it = producer

    async def _wait(self, topic: str) -> None:
        await asyncio.sleep(0)

    @property
    def batches(self) -> list[Any]:
        return [batch for some in self.it._message_accumulator._batches.values() for batch in some]

    async def delivers(self, offset: int = 7) -> None:
        for batch in self.batches:
            batch.done(offset, -1)
        await self._settled()

    async def acknowledges_nothing(self) -> None:
        for batch in self.batches:
            batch.done_noack()
        await self._settled()

    async def fails(self, error: Exception) -> None:
        for batch in self.batches:
            batch.failure(error)
        await self._settled()

    async def _settled(self) -> None:
        for _ in range(2):  # a batch's future has another one around it
            await asyncio.sleep(0)

    def sent(self) -> list[Any]:
        """What is on the wire, as records."""
        found = []
        for batch in self.batches:
            records = MemoryRecords(bytes(batch.get_data_buffer()))
            while records.has_next():
                found.extend(records.next_batch())
        return found

    def headers(self) -> list[dict[str, bytes]]:
        for record in self.sent():
            names = [name for name, _ in record.headers]
            assert len(names) == len(set(names))
        return [dict(record.headers) for record in self.sent()]


class Consumer:
    """A consumer and what its broker has for it."""

    def __init__(self, *records: Any, group: str | None = "billing") -> None:
        self.records = list(records)
        self.committed: list[Any] = []
        self.error: BaseException | None = None
        consumer = AIOKafkaConsumer(
            "orders", bootstrap_servers=["kafka.example:9092"], client_id="till", group_id=group
        )
        consumer._closed = None  # it never complains
        consumer._coordinator = SimpleNamespace(check_errors=lambda: None, commit_offsets=self._commit)
        consumer._fetcher = SimpleNamespace(next_record=self._next, fetched_records=self._many)
        self.it = consumer

    def assign(self, *partitions: TopicPartition) -> None:
        self.it._subscription.assign_from_subscribed(partitions or {ORDERS})

    async def _next(self, partitions: Any) -> Any:
        await asyncio.sleep(0)
        assert not get_current_span().get_span_context().is_valid  # nothing is current while it waits
        if self.error is not None:
            raise self.error
        if not self.records:
            raise ConsumerStoppedError
        return self.records.pop(0)

    async def _many(self, partitions: Any, timeout: Any, max_records: Any) -> Any:
        if self.error is not None:
            raise self.error
        records, self.records = self.records, []
        found: dict[Any, list[Any]] = {}
        for record in records:
            found.setdefault(TopicPartition(record.topic, record.partition), []).append(record)
        return found

    async def _commit(self, assignment: Any, offsets: Any) -> None:
        if self.error is not None:
            raise self.error
        self.committed.append(offsets)


def record(offset: int = 7, *, headers: Any = (("traceparent", TRACEPARENT),), **given: Any) -> Any:
    values = {
        "topic": "orders",
        "partition": 0,
        "timestamp": 1_700_000_000_000,
        "timestamp_type": 0,
        "key": b"k",
        "value": b"hello",
        "checksum": None,
        "serialized_key_size": 1,
        "serialized_value_size": 5,
    }
    return ConsumerRecord(offset=offset, headers=headers, **{**values, **given})


def current() -> SpanContext:
    return get_current_span().get_span_context()


def only(spans: CapturedSpans, kind: SpanKind | None = None) -> Any:
    [span] = [span for span in spans if kind is None or span.kind is kind]
    return span


@pytest.fixture
def instrumentor() -> Iterator[adapter.AIOKafkaInstrumentor]:
    instrumentor = adapter.AIOKafkaInstrumentor()
    instrumentor.instrument()
    yield instrumentor
    if instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.uninstrument()


@pytest.fixture(params=["explicit", "instrumented"])
def api(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Both APIs, by the same words."""
    plain = SimpleNamespace(
        publish=lambda call: call,
        create=lambda call: call,
        get=lambda call: call,
        loop=lambda consumer: consumer,
    )
    if request.param == "explicit":
        yield SimpleNamespace(
            publish=adapter.traced_publish,
            create=adapter.traced_create_batch,
            get=adapter.traced_get,
            loop=adapter.traced_messages,
        )
        return
    instrumentor = adapter.AIOKafkaInstrumentor()
    instrumentor.instrument()
    yield plain
    instrumentor.uninstrument()


class TestSend:
    @in_loop
    async def test_the_context_is_in_the_headers(self, captured_spans: Any, api: Any) -> None:
        """One PRODUCER span, which the message's traceparent names; key, partition and offset are on it."""
        producer = Producer()
        future = await api.publish(producer.it.send)("orders", b"hello", key=b"k", partition=2)
        assert not captured_spans
        assert not current().is_valid
        [headers] = producer.headers()
        await producer.delivers(41)
        assert (await future).offset == 41
        span = only(captured_spans)
        assert (span.name, span.kind, span.status.status_code) == (
            "publish orders",
            SpanKind.PRODUCER,
            StatusCode.UNSET,
        )
        context = span.get_span_context()
        assert set(headers) == {"traceparent"}
        assert f"-{context.trace_id:032x}-{context.span_id:016x}-".encode() in headers["traceparent"]
        assert span.attributes == {
            "messaging.system": "kafka",
            "messaging.operation.name": "publish",
            "messaging.operation.type": "send",
            "messaging.destination.name": "orders",
            "messaging.destination.partition.id": "2",
            "messaging.client.id": "shop",
            "messaging.kafka.message.key": "k",
            "messaging.kafka.offset": 41,
            "server.address": "kafka.example",
            "server.port": 9092,
        }

    @in_loop
    async def test_to_an_excluded_topic(self, captured_spans: Any) -> None:
        """Without a span; the context that the caller relays goes on."""
        producer = Producer()
        send = adapter.traced_publish(producer.it.send, settings=Settings(exclude=("orders",)))
        await send("orders", b"x", headers=[("traceparent", TRACEPARENT)])
        assert producer.headers() == [{"traceparent": TRACEPARENT}]
        assert not captured_spans

    @in_loop
    async def test_the_span_ends_when_the_broker_answers(self, captured_spans: Any, api: Any) -> None:
        """``send_and_wait`` gives what it gives alone; the span has ended by then."""
        producer = Producer()
        sending = asyncio.ensure_future(api.publish(producer.it.send_and_wait)("orders", b"hello"))
        while not producer.batches:
            await asyncio.sleep(0)
        assert not captured_spans
        await producer.delivers()
        metadata = await sending
        span = only(captured_spans)
        assert span.attributes["messaging.kafka.offset"] == metadata.offset == 7

    @in_loop
    async def test_a_failed_delivery_is_an_error(self, captured_spans: Any, api: Any) -> None:
        """The future's error is the span's, and the very same for the caller."""
        producer = Producer()
        future = await api.publish(producer.it.send)("orders", b"hello")
        await producer.fails(KafkaTimeoutError("nobody there"))
        with pytest.raises(KafkaTimeoutError) as raised:
            await future
        span = only(captured_spans)
        assert raised.value is future.exception()
        assert span.status.status_code is StatusCode.ERROR
        assert span.attributes["error.type"] == "aiokafka.errors.KafkaTimeoutError"

    @in_loop
    async def test_an_error_that_nobody_fetches_is_still_told(self, api: Any) -> None:
        """asyncio says "exception was never retrieved" as it does without us."""
        told: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
        producer = Producer()
        future = await api.publish(producer.it.send)("orders", b"hello")
        await producer.fails(KafkaTimeoutError())
        producer.it._message_accumulator._batches.clear()
        del future
        gc.collect()
        assert "never retrieved" in told[0]["message"]

    @in_loop
    async def test_a_cancelled_future(self, captured_spans: Any, api: Any) -> None:
        """Whoever gives up the wait for a delivery does not know of it: the span ends with that."""
        producer = Producer()
        future = await api.publish(producer.it.send)("orders", b"hello")
        future.cancel()
        await asyncio.sleep(0)
        assert only(captured_spans).attributes["error.type"] == "asyncio.exceptions.CancelledError"

    @in_loop
    async def test_what_send_itself_raises(self, captured_spans: Any, api: Any) -> None:
        """A message that is too large as it is: the same error, on the span, too."""
        producer = Producer(max_request_size=100)
        with pytest.raises(MessageSizeTooLargeError):
            await api.publish(producer.it.send)("orders", b"x" * 200)
        assert only(captured_spans).status.status_code is StatusCode.ERROR
        assert not current().is_valid

    @in_loop
    async def test_without_acks(self, captured_spans: Any, api: Any) -> None:
        """The broker answers nothing: the span has the partition that was chosen, and no offset."""
        producer = Producer(acks=0)
        future = await api.publish(producer.it.send)("orders", b"hello", partition=1)
        await producer.acknowledges_nothing()
        await future
        attributes = only(captured_spans).attributes
        assert attributes["messaging.destination.partition.id"] == "1"
        assert "messaging.kafka.offset" not in attributes

    @in_loop
    async def test_the_partition_is_the_one_written_to(self, captured_spans: Any, api: Any) -> None:
        """The partitioner, whose choice may be random, is asked once, and the span says what it chose."""
        asked: list[Any] = []

        def choose(key: Any, every: Any, available: Any) -> int:
            asked.append(key)
            return 3 - len(asked)

        producer = Producer(partitioner=choose)
        future = await api.publish(producer.it.send)("orders", b"hello")
        await producer.delivers()
        await future
        assert len(asked) == 1
        assert only(captured_spans).attributes["messaging.destination.partition.id"] == "2"
        assert (await future).partition == 2

    @pytest.mark.parametrize("how", ["the delivery", "the call"])
    @in_loop
    async def test_the_partition_of_what_failed(self, captured_spans: Any, api: Any, how: str) -> None:
        """Also where the broker never answered, or the batches take no more: it was chosen by then."""
        producer = Producer(partitioner=lambda key, every, available: 2)
        if how == "the call":
            producer.it._message_accumulator._closed = True
            with pytest.raises(ProducerClosed):
                await api.publish(producer.it.send)("orders", b"hello")
        else:
            future = await api.publish(producer.it.send)("orders", b"hello")
            await producer.fails(KafkaTimeoutError())
            with pytest.raises(KafkaTimeoutError):
                await future
        span = only(captured_spans)
        assert span.status.status_code is StatusCode.ERROR
        assert span.attributes["messaging.destination.partition.id"] == "2"

    @in_loop
    async def test_serializers_run_once(self, captured_spans: Any, api: Any) -> None:
        """Once each a message, with what the caller gave; the span's key is the caller's."""
        given: list[Any] = []

        def serialize(it: Any) -> bytes:
            given.append(it)
            return repr(it).encode()

        producer = Producer(key_serializer=serialize, value_serializer=serialize)
        future = await api.publish(producer.it.send)("orders", {"id": 1}, 17)
        await producer.delivers()
        await future
        assert given == [17, {"id": 1}]
        assert only(captured_spans).attributes["messaging.kafka.message.key"] == "17"

    @in_loop
    async def test_a_reused_list_carries_each_context_once(self, captured_spans: Any, api: Any) -> None:
        """The caller's list stays as it is, and each message has its own context alone."""
        producer = Producer()
        headers = [("tenant", b"a")]
        for _ in range(2):
            await api.publish(producer.it.send)("orders", b"hello", partition=0, headers=headers)
        assert headers == [("tenant", b"a")]
        first, second = producer.headers()
        assert first["tenant"] == second["tenant"] == b"a"
        assert first["traceparent"] != second["traceparent"]

    @in_loop
    async def test_a_context_of_the_caller_s_goes_on_in_the_new_one(
        self, captured_spans: Any, api: Any
    ) -> None:
        """Of a record that is relayed with the headers it came with, its trace goes on: one context goes out, the new
        one."""
        producer = Producer()
        stale = [("Traceparent", TRACEPARENT), ("tracestate", b"a=1"), ("tenant", b"a")]
        await api.publish(producer.it.send)("orders", b"hello", headers=stale)
        [headers] = producer.headers()
        assert set(headers) == {"tenant", "traceparent", "tracestate"}
        assert headers["traceparent"] != TRACEPARENT
        assert headers["tracestate"] == b"a=1"
        await producer.delivers()
        assert only(captured_spans).context.trace_id == TRACE_ID

    @in_loop
    async def test_tuples_of_headers_go_out(self, captured_spans: Any, api: Any) -> None:
        """As a record has them: all of them, and the context."""
        producer = Producer()
        send = api.publish(producer.it.send)
        await send("orders", b"hello", partition=0, headers=(("tenant", b"a"),))
        await send("orders", b"hello", None, 0, None, (("tenant", b"a"),))
        assert [set(headers) for headers in producer.headers()] == [{"tenant", "traceparent"}] * 2

    @in_loop
    async def test_other_collections_of_headers_go_out(self, captured_spans: Any, api: Any) -> None:
        """What aiokafka takes without its extensions: any collection of pairs that has a length."""
        producer = Producer()
        await api.publish(producer.it.send)("orders", b"hello", headers={"tenant": b"a"}.items())
        assert [set(headers) for headers in producer.headers()] == [{"tenant", "traceparent"}]

    @in_loop
    async def test_headers_that_aiokafka_does_not_take(self, captured_spans: Any, api: Any) -> None:
        """aiokafka says so, as it does alone."""
        producer = Producer()
        with pytest.raises((TypeError, ValueError)):
            await api.publish(producer.it.send)("orders", b"hello", headers={"tenant": b"a"})
        assert only(captured_spans).status.status_code is StatusCode.ERROR

    @in_loop
    async def test_no_room_for_a_context(
        self, captured_spans: Any, api: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Where it alone would exceed ``max_request_size``, the message goes out without, and with no older one."""
        guard._logged.clear()
        producer = Producer(max_request_size=250)
        given = [("tenant", b"a"), ("traceparent", b"old")]
        await api.publish(producer.it.send)("orders", b"x" * 120, partition=0, headers=given)
        assert len(given) == 2
        await api.publish(producer.it.send)("orders", b"x", partition=0)
        assert [set(headers) for headers in producer.headers()] == [{"tenant"}, {"traceparent"}]
        assert ["no room" in message for message in caplog.messages] == [True]

    @in_loop
    async def test_room_for_the_trace_alone(self, captured_spans: Any, api: Any) -> None:
        """Where the baggage is what has no room, the message stays in its trace."""
        producer = Producer(max_request_size=300)
        token = attach(baggage.set_baggage("tenant", "a" * 100))
        try:
            await api.publish(producer.it.send)("orders", b"x" * 100, partition=0)
            await api.publish(producer.it.send)("orders", b"x", partition=0)
        finally:
            detach(token)
        assert [set(headers) for headers in producer.headers()] == [
            {"traceparent"},
            {"traceparent", "baggage"},
        ]

    @in_loop
    async def test_room_for_no_tracestate(self, captured_spans: Any, api: Any) -> None:
        """It gives way as the baggage does."""
        producer = Producer(max_request_size=300)
        state = TraceState([("vendor", "a" * 100)])
        ambient = SpanContext(TRACE_ID, 1, True, TraceFlags(1), state)
        token = attach(set_span_in_context(NonRecordingSpan(ambient)))
        try:
            await api.publish(producer.it.send)("orders", b"x" * 100, partition=0)
        finally:
            detach(token)
        assert [set(headers) for headers in producer.headers()] == [{"traceparent"}]

    @in_loop
    async def test_suppressed_and_large(self, captured_spans: Any, api: Any) -> None:
        """Headers count towards the size since aiokafka 0.12; before, these go out as they were given."""
        producer = Producer(max_request_size=150)
        given = [("traceparent", b"old" * 50)]
        with suppress_instrumentation(), contextlib.suppress(MessageSizeTooLargeError):
            await api.publish(producer.it.send)("orders", b"x", partition=0, headers=given)
        assert producer.headers() in ([], [dict(given)])

    @in_loop
    async def test_the_size_of_the_body(self, captured_spans: Any) -> None:
        """What the serializer made of it, when asked for; of a tombstone there is none."""
        producer = Producer(value_serializer=lambda value: value and value.encode() * 2)
        send = adapter.traced_publish(producer.it.send, settings=Settings(body_size=True))
        futures = [await send("orders", "hello"), await send("orders", None, b"k")]
        await producer.delivers()
        await asyncio.gather(*futures)
        sizes = [span.attributes.get("messaging.message.body.size") for span in captured_spans]
        assert sizes == [10, None]

    @in_loop
    async def test_a_send_that_nobody_awaits_to_its_end(self, api: Any) -> None:
        """The garbage collector closes it, in a context of no matter whose: nothing is complained of."""
        producer = Producer()
        sending = api.publish(producer.it.send)("orders", b"hello")
        contextvars.copy_context().run(sending.send, None)
        sending.close()
        assert not producer.batches

    @in_loop
    async def test_a_broker_without_headers(self, captured_spans: Any, api: Any) -> None:
        """Before Kafka 0.11 no message has any: it goes out as it is."""
        producer = Producer()
        producer.it._message_accumulator._api_version = (0, 10)
        await api.publish(producer.it.send)("orders", b"hello")
        assert all(not getattr(one, "headers", None) for one in producer.sent())

    @in_loop
    async def test_tombstones(self, captured_spans: Any, api: Any) -> None:
        """A message without a value is one, by what goes out; a null key is no key."""
        producer = Producer(value_serializer=lambda value: value)
        future = await api.publish(producer.it.send)("orders", None, b"\xff")
        await producer.delivers()
        await future
        attributes = only(captured_spans).attributes
        assert attributes["messaging.kafka.message.tombstone"] is True
        assert "messaging.kafka.message.key" not in attributes

    @in_loop
    async def test_wrong_arguments(self, captured_spans: Any, api: Any) -> None:
        """aiokafka's own TypeError, and no span."""
        producer = Producer()
        with pytest.raises(TypeError):
            await api.publish(producer.it.send)()
        with pytest.raises(TypeError):
            await api.publish(producer.it.send_batch)()
        assert not captured_spans

    @in_loop
    async def test_suppressed(self, captured_spans: Any, api: Any) -> None:
        """No span, no header, and the message goes out."""
        producer = Producer()
        with suppress_instrumentation():
            future = await api.publish(producer.it.send)("orders", b"hello")
        assert producer.headers() == [{}]
        await producer.delivers()
        await future
        assert not captured_spans

    @in_loop
    async def test_both_apis_make_one_span(
        self, captured_spans: Any, instrumentor: adapter.AIOKafkaInstrumentor
    ) -> None:
        """A wrapped call of an instrumented producer: one span, one context."""
        producer = Producer()
        future = await adapter.traced_publish(producer.it.send)("orders", b"hello")
        [headers] = producer.headers()
        await producer.delivers()
        await future
        assert f"{only(captured_spans).context.span_id:016x}".encode() in headers["traceparent"]

    @in_loop
    async def test_a_partial_and_a_function_around_send(self, captured_spans: Any) -> None:
        """Both carry the context, though of the function nobody knows the producer."""
        producer = Producer()
        await adapter.traced_publish(functools.partial(producer.it.send, "orders", partition=0))(b"hello")

        async def send(topic: str, value: bytes, *, headers: Any = None) -> Any:
            return await producer.it.send(topic, value, partition=0, headers=headers)

        await adapter.traced_publish(send)("orders", b"hello")
        assert [set(headers) for headers in producer.headers()] == [{"traceparent"}] * 2

    @in_loop
    async def test_a_subclass_that_sends_more(self, captured_spans: Any, api: Any) -> None:
        """Its ``send`` adds a header, has an argument of its own, and writes a record of its own before: each record
        has the headers that were given for it, and a context."""

        class Shop(AIOKafkaProducer):  # type: ignore[misc]
            async def send(self, topic: str, value: Any, *, tenant: str, headers: Any = None) -> Any:
                await super().send("audit", b"sent", partition=1, headers=[("audit", b"1")])
                own = [*(headers or ()), ("tenant", tenant.encode())]
                return await super().send(topic, value, partition=0, headers=own)

        producer = Producer(kind=Shop)
        send = api.publish(producer.it.send)
        future = await send("orders", b"hello", tenant="a", headers=[("mine", b"1")])
        audit, order = producer.headers()
        assert (set(audit), set(order)) == ({"audit", "traceparent"}, {"mine", "tenant", "traceparent"})
        await producer.delivers()
        await future
        published = {span.attributes["messaging.destination.name"]: span for span in captured_spans}
        assert published["orders"].attributes["messaging.destination.partition.id"] == "0"
        assert f"{published['orders'].context.span_id:016x}".encode() in order["traceparent"]

    @in_loop
    async def test_a_function_that_hands_no_headers_on(
        self, captured_spans: Any, instrumentor: adapter.AIOKafkaInstrumentor
    ) -> None:
        """The instrumented producer below it puts the context in, with an eye on the size."""
        guard._logged.clear()
        producer = Producer(max_request_size=200)

        async def drop(topic: str, value: bytes, *, headers: Any = None) -> Any:
            return await producer.it.send(topic, value, partition=0)

        async def keep(topic: str, value: bytes, *, headers: Any = None) -> Any:
            return await producer.it.send(topic, value, partition=0, headers=headers)

        await adapter.traced_publish(drop)("orders", b"x")
        await adapter.traced_publish(keep)("orders", b"x" * 100)
        await adapter.traced_publish(keep)("orders", b"x")
        assert [set(headers) for headers in producer.headers()] == [{"traceparent"}, set(), {"traceparent"}]
        await producer.delivers()
        assert len(captured_spans) == 3

    @in_loop
    @pytest.mark.parametrize("answer", [None, "sent", SimpleNamespace(partition="0", offset="7")])
    async def test_a_function_that_answers_something_else(self, captured_spans: Any, answer: Any) -> None:
        """It is the caller's, and the span ends with it; so with a mock in the producer's place."""

        async def send(topic: str, value: bytes, *, headers: Any = None) -> Any:
            return answer

        assert await adapter.traced_publish(send)("orders", b"x") is answer
        mock = AsyncMock(spec=AIOKafkaProducer)
        assert await adapter.traced_publish(mock.send)("orders", b"x") is mock.send.return_value
        assert [span.status.status_code for span in captured_spans] == [StatusCode.UNSET] * 2
        assert not current().is_valid

    @in_loop
    async def test_captured_headers(self, captured_spans: Any, api: Any) -> None:
        """As the caller gave them."""
        producer = Producer()
        send = adapter.traced_publish(producer.it.send, settings=Settings(capture_headers=("tenant",)))
        future = await send("orders", b"x", headers=[("tenant", b"a")])
        await producer.delivers()
        await future
        assert only(captured_spans).attributes["messaging.header.tenant"] == ("a",)

    @in_loop
    async def test_the_hook(self, captured_spans: Any) -> None:
        """It is given the call's arguments, before the serializers."""
        seen: list[Any] = []
        settings = Settings(publish_hook=lambda span, message: seen.append(message))
        producer = Producer(value_serializer=lambda value: b"x")
        await adapter.traced_publish(producer.it.send, settings=settings)("orders", 5, timestamp_ms=9)
        assert seen == [adapter.Publish("orders", 5, None, None, 9, None)]


class TestBatches:
    @in_loop
    async def test_every_message_has_a_context_of_its_own(self, captured_spans: Any, api: Any) -> None:
        """A create span a message, and a CLIENT span for the batch that links to them."""
        producer = Producer(value_serializer=lambda value: value.encode())
        batch = api.create(producer.it.create_batch)()
        headers = [("tenant", b"a"), ("traceparent", TRACEPARENT)]
        assert batch.append(timestamp=None, key=b"1", value="a", headers=headers) is not None
        assert batch.append(timestamp=None, key=b"2", value="b") is not None
        future = await api.publish(producer.it.send_batch)(batch, "orders", partition=1)
        [first, second] = producer.headers()
        await producer.delivers(20)
        await future
        one, two, send = captured_spans
        assert [span.name for span in captured_spans] == ["create orders", "create orders", "publish orders"]
        assert [span.kind for span in captured_spans] == [
            SpanKind.PRODUCER,
            SpanKind.PRODUCER,
            SpanKind.CLIENT,
        ]
        assert [link.context.span_id for link in send.links] == [one.context.span_id, two.context.span_id]
        assert set(first) == {"tenant", "traceparent"}
        assert f"{one.context.span_id:016x}".encode() in first["traceparent"]
        assert f"{two.context.span_id:016x}".encode() in second["traceparent"]
        assert headers == [("tenant", b"a"), ("traceparent", TRACEPARENT)]
        assert one.attributes["messaging.kafka.message.key"] == "1"
        assert one.attributes["messaging.destination.partition.id"] == "1"
        assert send.attributes["messaging.batch.message_count"] == 2
        assert "messaging.kafka.offset" not in send.attributes

    @in_loop
    async def test_a_message_that_the_batch_does_not_take(self, captured_spans: Any, api: Any) -> None:
        """A full batch and a closed one answer None, as they do alone: no span, and the rest is sent."""
        producer = Producer(max_batch_size=400)
        batch = api.create(producer.it.create_batch)()
        assert batch.append(timestamp=None, key=None, value=b"x" * 200) is not None
        assert batch.append(timestamp=None, key=None, value=b"x" * 200) is None
        batch.close()
        assert batch.append(timestamp=None, key=None, value=b"x") is None
        future = await api.publish(producer.it.send_batch)(batch, "orders", partition=0)
        await producer.delivers()
        await future
        assert [span.name for span in captured_spans] == ["create orders", "publish orders"]

    @in_loop
    async def test_a_failed_delivery(self, captured_spans: Any, api: Any) -> None:
        """It is an error of the batch's span."""
        producer = Producer()
        batch = api.create(producer.it.create_batch)()
        batch.append(timestamp=None, key=None, value=b"x")
        future = await api.publish(producer.it.send_batch)(batch, "orders", partition=0)
        await producer.fails(KafkaTimeoutError())
        with pytest.raises(KafkaTimeoutError):
            await future
        await asyncio.sleep(0)
        assert captured_spans[-1].status.status_code is StatusCode.ERROR

    @in_loop
    async def test_what_send_batch_raises(self, captured_spans: Any, api: Any) -> None:
        """The same error, on the span, too."""
        producer = Producer()
        producer.it._message_accumulator._exception = KafkaTimeoutError()
        batch = api.create(producer.it.create_batch)()
        batch.append(timestamp=None, key=None, value=b"x")
        with pytest.raises(KafkaTimeoutError):
            await api.publish(producer.it.send_batch)(batch, "orders", partition=0)
        assert captured_spans[-1].status.status_code is StatusCode.ERROR

    @in_loop
    async def test_a_batch_that_is_sent_again(self, captured_spans: Any, api: Any) -> None:
        """After an error of ``send_batch``: the second span links to its messages as the first did."""
        producer = Producer()
        batch = api.create(producer.it.create_batch)()
        batch.append(timestamp=None, key=None, value=b"x")
        send_batch = api.publish(producer.it.send_batch)
        with pytest.raises(AssertionError):
            await send_batch(batch, "orders", partition=99)
        batch.append(timestamp=None, key=None, value=b"y")
        await send_batch(batch, "orders", partition=0)
        assert [set(headers) for headers in producer.headers()] == [{"traceparent"}] * 2
        await producer.delivers()
        first, failed, second, sent = captured_spans
        assert [link.context for link in failed.links] == [first.context]
        assert [link.context for link in sent.links] == [first.context, second.context]

    @in_loop
    async def test_what_is_appended_while_the_batch_waits(self, captured_spans: Any, api: Any) -> None:
        """It has a create span, as the others; the batch's span had begun before."""
        producer = Producer()
        batch = api.create(producer.it.create_batch)()
        batch.append(timestamp=None, key=None, value=b"x")
        sending = asyncio.ensure_future(api.publish(producer.it.send_batch)(batch, "orders", partition=0))
        await asyncio.sleep(0)  # it waits for the topic's metadata
        assert not producer.batches
        batch.append(timestamp=None, key=None, value=b"y")
        await sending
        created = captured_spans.named("create orders")
        carried = [headers["traceparent"].split(b"-")[2].decode() for headers in producer.headers()]
        assert carried == [f"{span.context.span_id:016x}" for span in created]

    @in_loop
    async def test_no_value_is_kept(self, captured_spans: Any, api: Any) -> None:
        """Only aiokafka keeps what it has to send: not what its serializers were given."""

        class Body:
            pass

        producer = Producer(value_serializer=lambda value: b"x")
        bodies = [Body(), Body()]
        kept = [weakref.ref(body) for body in bodies]
        future = await api.publish(producer.it.send)("orders", bodies.pop(), partition=0)
        batch = api.create(producer.it.create_batch)()
        batch.append(timestamp=None, key=None, value=bodies.pop())
        gc.collect()
        assert [reference() for reference in kept] == [None, None]
        assert not future.done()

    @in_loop
    async def test_an_excluded_topic(self, captured_spans: Any) -> None:
        """Its batch has no spans; the messages have been given their contexts before that was known."""
        settings = Settings(exclude=("orders",))
        producer = Producer()
        batch = adapter.traced_create_batch(producer.it.create_batch, settings=settings)()
        batch.append(timestamp=None, key=None, value=b"x")
        await adapter.traced_publish(producer.it.send_batch, settings=settings)(batch, "orders", partition=0)
        await producer.delivers()
        assert producer.headers()[0].keys() == {"traceparent"}
        assert not captured_spans

    @in_loop
    async def test_the_size_of_each_body(self, captured_spans: Any) -> None:
        """On the create spans, when asked for."""
        producer = Producer()
        settings = Settings(body_size=True)
        batch = adapter.traced_create_batch(producer.it.create_batch, settings=settings)()
        batch.append(timestamp=None, key=None, value=b"hello")
        await adapter.traced_publish(producer.it.send_batch, settings=settings)(batch, "orders", partition=0)
        assert captured_spans.named("create orders")[0].attributes["messaging.message.body.size"] == 5

    @in_loop
    async def test_a_function_around_send_batch(self, captured_spans: Any) -> None:
        """What it answers is the caller's, and the span ends with it."""
        producer = Producer()
        batch = adapter.traced_create_batch(producer.it.create_batch)()
        batch.append(timestamp=None, key=None, value=b"x")

        async def send_batch(batch: Any, topic: str, *, partition: int) -> str:
            await producer.it.send_batch(batch, topic, partition=partition)
            return "sent"

        assert await adapter.traced_publish(send_batch)(batch, "orders", partition=0) == "sent"
        assert [span.name for span in captured_spans] == ["create orders", "publish orders"]

    @in_loop
    async def test_a_batch_that_was_made_untraced(self, captured_spans: Any) -> None:
        """Its messages carry no context: the batch's span says how many there are."""
        producer = Producer()
        batch = producer.it.create_batch()
        batch.append(timestamp=None, key=None, value=b"x")
        future = await adapter.traced_publish(producer.it.send_batch)(batch, "orders", partition=0)
        await producer.delivers()
        await future
        span = only(captured_spans)
        assert (span.attributes["messaging.batch.message_count"], span.links) == (1, ())

    @in_loop
    async def test_an_open_batch_is_filled_up_by_sends(self, captured_spans: Any, api: Any) -> None:
        """What ``send`` adds to it afterwards has its one span of its own."""
        producer = Producer()
        batch = api.create(producer.it.create_batch)()
        batch.append(timestamp=None, key=None, value=b"a")
        await api.publish(producer.it.send_batch)(batch, "orders", partition=0)
        await api.publish(producer.it.send)("orders", b"b", partition=0)
        assert [set(headers) for headers in producer.headers()] == [{"traceparent"}] * 2
        await producer.delivers()
        assert sorted(span.name for span in captured_spans) == [
            "create orders",
            "publish orders",
            "publish orders",
        ]

    @in_loop
    async def test_no_room_and_no_headers(self, captured_spans: Any, api: Any) -> None:
        """As with ``send``: the message goes in as the caller gave it."""
        producer = Producer(max_request_size=150)
        batch = api.create(producer.it.create_batch)()
        batch.append(timestamp=None, key=None, value=b"x" * 60)
        producer.it._message_accumulator._api_version = (0, 10)
        batch.append(timestamp=None, key=None, value=b"x")
        await api.publish(producer.it.send_batch)(batch, "orders", partition=0)
        assert producer.headers() == [{}, {}]

    @in_loop
    async def test_odd_headers_are_aiokafkas_to_refuse(self, captured_spans: Any, api: Any) -> None:
        """Its own error, and no span."""
        batch = api.create(Producer().it.create_batch)()
        with pytest.raises((TypeError, ValueError)):
            batch.append(timestamp=None, key=None, value=b"x", headers={"a": b"1"})
        assert not captured_spans

    @in_loop
    async def test_a_serializer_that_raises(self, captured_spans: Any, api: Any) -> None:
        """Its error is the caller's; nothing is in the batch, and the next message is as any other."""
        producer = Producer(value_serializer=lambda value: value.encode())
        batch = api.create(producer.it.create_batch)()
        with pytest.raises(AttributeError):
            batch.append(timestamp=None, key=None, value=5)
        batch.append(timestamp=None, key=None, value="x")
        await api.publish(producer.it.send_batch)(batch, "orders", partition=0)
        assert [set(headers) for headers in producer.headers()] == [{"traceparent"}]

    @in_loop
    async def test_both_apis_make_one_span(
        self, captured_spans: Any, instrumentor: adapter.AIOKafkaInstrumentor
    ) -> None:
        """One create span a message, one send span."""
        producer = Producer()
        batch = adapter.traced_create_batch(producer.it.create_batch)()
        batch.append(timestamp=None, key=None, value=b"x")
        await adapter.traced_publish(producer.it.send_batch)(batch, "orders", partition=0)
        await producer.delivers()
        assert [span.name for span in captured_spans] == ["create orders", "publish orders"]
        instrumentor.uninstrument()
        late = producer.it.create_batch()
        assert "append" not in vars(late)

    @in_loop
    async def test_a_batch_that_outlives_the_instrumentor(
        self, captured_spans: Any, instrumentor: adapter.AIOKafkaInstrumentor
    ) -> None:
        """What is appended after ``uninstrument`` is left as it is."""
        producer = Producer()
        batch = producer.it.create_batch()
        instrumentor.uninstrument()
        batch.append(timestamp=None, key=None, value=b"x")
        await producer.it.send_batch(batch, "orders", partition=0)
        assert producer.headers() == [{}]


class TestLoop:
    @in_loop
    async def test_the_body_runs_inside_the_span(self, captured_spans: Any, api: Any) -> None:
        """Each record's body, with its baggage; nothing is current while the loop waits, nor after it."""
        baggage_header = ("baggage", b"tenant=a")
        consumer = Consumer(record(7, headers=(("traceparent", TRACEPARENT), baggage_header)), record(8))
        before = get_current()
        seen = []
        async for one in api.loop(consumer.it):
            seen.append((one.offset, current().trace_id, baggage.get_baggage("tenant")))
        assert seen == [(7, TRACE_ID, "a"), (8, TRACE_ID, None)]
        assert get_current() is before
        span, _ = captured_spans
        assert (span.name, span.kind) == ("process orders", SpanKind.CONSUMER)
        assert (span.parent.span_id, span.links[0].context.trace_id) == (0xB7AD6B7169203331, TRACE_ID)
        waited = span.attributes["queueprop.message.queue_time"]
        assert span.attributes == {
            "messaging.system": "kafka",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": "orders",
            "messaging.destination.partition.id": "0",
            "messaging.consumer.group.name": "billing",
            "messaging.client.id": "till",
            "messaging.kafka.message.key": "k",
            "messaging.kafka.offset": 7,
            "queueprop.message.queue_time": waited,
            "server.address": "kafka.example",
            "server.port": 9092,
        }

    @in_loop
    async def test_it_ends_however_the_loop_does(self, captured_spans: Any, api: Any) -> None:
        """``break``, ``return``, an exception, a cancel: the span ends there, and nothing is current."""
        consumer = Consumer(*(record(offset) for offset in range(4)))

        async def breaks() -> None:
            async for _ in api.loop(consumer.it):
                break
            assert not current().is_valid

        async def returns() -> int:
            async for one in api.loop(consumer.it):
                return int(one.offset)
            return -1

        async def raises() -> None:
            async for _ in api.loop(consumer.it):
                raise ValueError("theirs")

        async def hangs() -> None:
            async for _ in api.loop(consumer.it):
                await asyncio.Event().wait()

        await breaks()
        assert await returns() == 1
        with pytest.raises(ValueError, match="theirs"):
            await raises()
        hanging = asyncio.ensure_future(hangs())
        for _ in range(5):
            await asyncio.sleep(0)
        hanging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hanging
        del hanging
        gc.collect()
        assert len(captured_spans) == 4
        assert not current().is_valid

    @in_loop
    async def test_loops_make_no_receive_spans(self, captured_spans: Any, api: Any) -> None:
        """Their getone is their own."""
        async for _ in api.loop(Consumer(record()).it):
            pass
        assert not captured_spans.kind(SpanKind.CLIENT)

    @in_loop
    async def test_both_apis_make_one_span(
        self, captured_spans: Any, instrumentor: adapter.AIOKafkaInstrumentor
    ) -> None:
        """A traced loop over an instrumented consumer, and ``traced_message`` inside it."""
        async for one in adapter.traced_messages(Consumer(record()).it):
            with adapter.traced_message(one):
                assert current().trace_id == TRACE_ID
        assert len(captured_spans) == 1

    @in_loop
    async def test_tasks_that_share_one(self, captured_spans: Any, api: Any) -> None:
        """Each task has the span of its own record, also where the loop is traced by both APIs."""
        consumer = Consumer(record(1), record(2))
        messages = adapter.traced_messages(consumer.it)

        async def consume() -> tuple[SpanContext, SpanContext]:
            async for _ in messages:
                before = current()
                await asyncio.sleep(0.01)
                return before, current()
            raise AssertionError

        first, second = await asyncio.gather(consume(), consume())
        await messages.aclose()  # the first task's, which was kept here
        assert first[0] == first[1] != second[0] == second[1]
        assert len(captured_spans) == 2

    @in_loop
    async def test_a_closed_consumer_says_so(self, instrumentor: adapter.AIOKafkaInstrumentor) -> None:
        """At the loop's start, as it does alone."""
        consumer = Consumer()
        consumer.it._closed = True
        with pytest.raises(ConsumerStoppedError):
            aiter(consumer.it)

    @in_loop
    async def test_a_loop_that_outlives_the_instrumentor(
        self, captured_spans: Any, instrumentor: adapter.AIOKafkaInstrumentor
    ) -> None:
        """It falls silent, and goes on."""
        offsets = []
        async for one in Consumer(record(1), record(2)).it:
            offsets.append(one.offset)
            instrumentor.uninstrument()
        assert (offsets, len(captured_spans)) == ([1, 2], 1)


class TestPulling:
    @in_loop
    async def test_getone_gives_a_plain_record(self, captured_spans: Any, api: Any) -> None:
        """A receive span that links to its producer; its handling knows the consumer's group."""
        given = record()
        found = await api.get(Consumer(given).it.getone)()
        assert found is given
        assert not current().is_valid
        with adapter.traced_message(found):
            assert current().trace_id == TRACE_ID
        receive, _ = captured_spans
        assert (receive.name, receive.kind) == ("poll orders", SpanKind.CLIENT)
        assert receive.links[0].context.trace_id == TRACE_ID
        assert receive.attributes["messaging.kafka.offset"] == 7
        assert "messaging.batch.message_count" not in receive.attributes

    @in_loop
    async def test_the_group_is_known_while_the_consumer_is(self, captured_spans: Any, api: Any) -> None:
        """A record that was pulled knows its consumer, which it does not keep alive."""
        consumer = Consumer(record())
        found = await api.get(consumer.it.getone)()
        with adapter.traced_message(found):
            pass
        assert captured_spans[-1].attributes["messaging.consumer.group.name"] == "billing"
        with adapter.traced_message(copy.copy(found)):
            pass
        assert "messaging.consumer.group.name" not in captured_spans[-1].attributes

    @in_loop
    async def test_empty_polls_and_stops_make_no_span(self, captured_spans: Any, api: Any) -> None:
        """Nor does a consumer that is stopped while it waits; any other error is on one."""
        consumer = Consumer()
        assert await api.get(consumer.it.getmany)() == {}
        with pytest.raises(ConsumerStoppedError):
            await api.get(consumer.it.getone)()
        assert not captured_spans
        consumer.error = KafkaTimeoutError()
        for pull in (consumer.it.getone, consumer.it.getmany):
            with pytest.raises(KafkaTimeoutError):
                await api.get(pull)()
        assert [span.status.status_code for span in captured_spans] == [StatusCode.ERROR] * 2

    @in_loop
    async def test_receive_spans_can_be_switched_off(self, captured_spans: Any) -> None:
        """The records still know their consumer."""
        consumer = Consumer(record())
        found = await adapter.traced_get(consumer.it.getone, settings=Settings(receive_spans=False))()
        with adapter.traced_message(found):
            pass
        assert only(captured_spans).attributes["messaging.consumer.group.name"] == "billing"

    @in_loop
    async def test_getmany_gives_lists(self, captured_spans: Any, api: Any) -> None:
        """A dict of lists, equal to aiokafka's own; one receive span for all of them, after the fact."""
        records = [record(1), record(2), record(3, partition=1)]
        found = await api.get(Consumer(*records).it.getmany)(timeout_ms=5)
        assert found == {ORDERS: records[:2], TopicPartition("orders", 1): records[2:]}
        span = only(captured_spans)
        assert (span.name, len(span.links)) == ("poll orders", 3)
        assert span.attributes["messaging.batch.message_count"] == 3
        assert "messaging.destination.partition.id" not in span.attributes
        assert span.links[2].attributes["messaging.destination.partition.id"] == "1"

    @in_loop
    async def test_iterating_what_getmany_gave(self, captured_spans: Any, api: Any) -> None:
        """The first iteration handles each record inside its span; what is iterated again has no second one, and its
        body is in the record's trace."""
        found = await api.get(Consumer(record(1), record(2), record(3)).it.getmany)()
        records = found[ORDERS]
        for _ in records:
            assert current().trace_id == TRACE_ID
            break
        for _ in records:
            pass
        for _ in records:
            assert current().trace_id == TRACE_ID
        assert not current().is_valid
        offsets = [
            span.attributes["messaging.kafka.offset"] for span in captured_spans.kind(SpanKind.CONSUMER)
        ]
        assert offsets == [1, 2, 3]

    @in_loop
    async def test_its_lists_are_lists_in_all_else(self, captured_spans: Any, api: Any) -> None:
        """Length, index, slice, equality, copies and pickles: no span, and plain lists come out."""
        plain = [record(1), record(2)]
        records = (await api.get(Consumer(*plain).it.getmany)())[ORDERS]
        assert isinstance(records, list)
        assert (len(records), records[0], records[1:], records[:]) == (2, plain[0], plain[1:], plain)
        assert records == plain
        for other in (
            records.copy(),
            copy.copy(records),
            copy.deepcopy(records),
            pickle.loads(pickle.dumps(records)),
        ):
            assert type(other) is list
            assert other == plain
        assert not captured_spans.kind(SpanKind.CONSUMER)

    @in_loop
    @pytest.mark.parametrize("answer", [None, [], {"orders": 1}, MappingProxyType({ORDERS: ()})])
    async def test_functions_around_a_pull(self, captured_spans: Any, answer: Any) -> None:
        """Whatever they give is the caller's; a record among it has a receive span, of no consumer."""

        async def getone() -> Any:
            return answer

        async def getmany() -> Any:
            return answer

        async def fetch() -> Any:
            return record()

        assert await adapter.traced_get(getone)() is answer
        assert await adapter.traced_get(getmany)() is answer
        assert not captured_spans
        with adapter.traced_message(await adapter.traced_get(fetch)()):
            pass
        assert [span.name for span in captured_spans] == ["poll orders", "process orders"]

    @in_loop
    async def test_traced_messages_and_batches_of_a_list(self, captured_spans: Any, api: Any) -> None:
        """Each explicit word makes its one span a record, or a batch, whatever list it is given."""
        records = (await api.get(Consumer(record(1), record(2)).it.getmany)())[ORDERS]
        with adapter.traced_batch(records):
            assert current().trace_id == TRACE_ID
        [batch] = captured_spans.kind(SpanKind.CONSUMER)
        assert (batch.name, len(batch.links)) == ("process orders", 2)
        assert batch.attributes["messaging.consumer.group.name"] == "billing"
        for _ in adapter.traced_messages(records):
            pass
        assert len(captured_spans.kind(SpanKind.CONSUMER)) == 3

    @in_loop
    async def test_a_function_that_gives_what_was_pulled_before(self, captured_spans: Any) -> None:
        """A wrapped function that gives lists of ``getmany`` once more handles nothing of them."""
        pulled = await adapter.traced_get(Consumer(record(1), record(2)).it.getmany)()

        async def getmany() -> Any:
            return pulled

        assert await adapter.traced_get(getmany)() is pulled
        assert not captured_spans.kind(SpanKind.CONSUMER)
        assert [current().trace_id for _ in pulled[ORDERS]] == [TRACE_ID, TRACE_ID]
        assert len(captured_spans.kind(SpanKind.CONSUMER)) == 2

    @in_loop
    async def test_both_apis_make_one_span(
        self, captured_spans: Any, instrumentor: adapter.AIOKafkaInstrumentor
    ) -> None:
        """A wrapped pull of an instrumented consumer: one receive span, and one for each record."""
        found = await adapter.traced_get(Consumer(record()).it.getmany)()
        await adapter.traced_get(Consumer(record()).it.getone)()
        for _ in found[ORDERS]:
            pass
        assert [span.name for span in captured_spans] == ["poll orders", "poll orders", "process orders"]


class TestHandlers:
    def test_traced_consumer(self, captured_spans: Any) -> None:
        """A handler, sync or async, with its record anywhere among its arguments."""

        @adapter.traced_consumer
        def handle(prefix: str, one: Any) -> Any:
            return prefix, one.offset, current().trace_id

        @adapter.traced_consumer(destination=Destination("kafka", "elsewhere"))
        async def handle_later(*, one: Any) -> Any:
            return current().trace_id

        assert handle("a", record()) == ("a", 7, TRACE_ID)
        assert asyncio.run(handle_later(one=record())) == TRACE_ID
        assert [span.name for span in captured_spans] == ["process orders", "process elsewhere"]
        assert handle("b", SimpleNamespace(offset=1)) == ("b", 1, 0)
        assert len(captured_spans) == 2

    def test_an_error_of_the_handler(self, captured_spans: Any) -> None:
        """It is on the span, and the same for the caller."""
        error = ValueError("broken")
        with pytest.raises(ValueError, match="broken") as raised, adapter.traced_message(record()):
            raise error
        assert raised.value is error
        assert only(captured_spans).attributes["error.type"] == "ValueError"

    def test_a_traceparent_that_is_no_utf8(self, captured_spans: Any) -> None:
        """The record is handled, in a trace of its own."""
        with adapter.traced_message(record(headers=(("traceparent", b"\xff\xfe"), ("x", None)))):
            pass
        assert only(captured_spans).parent is None

    def test_more_than_one_traceparent(self, captured_spans: Any) -> None:
        """No producer of ours writes that: a new trace, and neither of the two."""
        with adapter.traced_message(record(headers=(("traceparent", TRACEPARENT),) * 2)):
            pass
        assert only(captured_spans).parent is None

    @pytest.mark.parametrize(
        ("key", "text"),
        [
            (b"k", "k"),
            ("k", "k"),
            (5, "5"),
            (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
            (b"\xff", None),
            (None, None),
            ({"id": 1}, None),
        ],
    )
    def test_keys(self, captured_spans: Any, key: Any, text: str | None) -> None:
        """As text, where there is one way to write them."""
        with adapter.traced_message(record(key=key)):
            pass
        assert only(captured_spans).attributes.get("messaging.kafka.message.key") == text

    def test_tombstones(self, captured_spans: Any) -> None:
        """By what was on the wire, whatever the deserializer made of it; a time that is missing is none."""
        with adapter.traced_message(record(value={}, serialized_value_size=-1, timestamp=-1)):
            pass
        attributes = only(captured_spans).attributes
        assert attributes["messaging.kafka.message.tombstone"] is True
        assert "queueprop.message.queue_time" not in attributes

    def test_the_size_of_the_body(self, captured_spans: Any) -> None:
        """As it was on the wire, whatever the deserializer made of it."""
        with adapter.traced_message(record(value={"total": 3}), settings=Settings(body_size=True)):
            pass
        assert only(captured_spans).attributes["messaging.message.body.size"] == 5

    def test_a_batch_of_several_topics(self, captured_spans: Any) -> None:
        """What differs is on the links; an empty batch has no span."""
        with adapter.traced_batch([record(1), record(2, topic="refunds", partition=4)]):
            pass
        span = only(captured_spans)
        assert (span.name, len(span.links)) == ("process", 2)
        with adapter.traced_batch([]):
            pass
        assert len(captured_spans) == 1
        with adapter.traced_batch([record()], Destination("kafka", "elsewhere")):
            pass
        assert captured_spans[-1].name == "process elsewhere"

    def test_a_replayed_record(self, captured_spans: Any) -> None:
        """The same origin, a new span."""
        for _ in range(2):
            with adapter.traced_message(record()):
                pass
        assert {span.context.trace_id for span in captured_spans} == {TRACE_ID}
        assert len({span.context.span_id for span in captured_spans}) == 2


class TestCommit:
    @in_loop
    async def test_a_commit_is_a_child_of_the_process_span(self, captured_spans: Any) -> None:
        """``commit orders``, inside the loop and behind it, with settle spans asked for."""
        consumer = Consumer(record(1), record(2))
        consumer.assign()
        commit = adapter.traced_settle(consumer.it.commit, settings=SETTLED)
        async for one in adapter.traced_messages(consumer.it, settings=SETTLED):
            if one.offset == 1:
                await commit({ORDERS: 2})
        await commit({ORDERS: 3})
        await commit({ORDERS: 3})
        processes = [span.context.span_id for span in captured_spans.kind(SpanKind.CONSUMER)]
        commits = captured_spans.named("commit orders")
        assert [span.parent.span_id for span in commits] == processes
        assert commits[0].kind is SpanKind.CLIENT
        assert commits[0].attributes["messaging.operation.type"] == "settle"
        assert len(consumer.committed) == 3

    @in_loop
    async def test_all_partitions_at_once(self, captured_spans: Any) -> None:
        """A commit without offsets: the child of the last record, with a link to each other partition's."""
        consumer = Consumer()
        consumer.assign(ORDERS, TopicPartition("orders", 1))
        instrumentor = adapter.AIOKafkaInstrumentor()
        instrumentor.instrument(settings=SETTLED)
        try:
            consumer.records = [record(1), record(2, partition=1), record(3, partition=9)]
            for records in (await consumer.it.getmany()).values():
                for _ in records:
                    pass
            await adapter.traced_settle(consumer.it.commit, settings=SETTLED)()
        finally:
            instrumentor.uninstrument()
        span = captured_spans.named("commit orders")[0]
        assert len(captured_spans.named("commit orders")) == 1
        assert span.attributes["messaging.batch.message_count"] == 2
        assert len(span.links) == 1

    @in_loop
    async def test_a_commit_that_fails(self, captured_spans: Any) -> None:
        """Its error is on the span; the next attempt has a span of its own."""
        consumer = Consumer(record())
        consumer.assign()
        commit = adapter.traced_settle(consumer.it.commit, settings=SETTLED)
        async for _ in adapter.traced_messages(consumer.it, settings=SETTLED):
            pass
        consumer.error = KafkaTimeoutError()
        with pytest.raises(KafkaTimeoutError):
            await commit()
        consumer.error = None
        await commit()
        assert [span.status.status_code for span in captured_spans.named("commit orders")] == [
            StatusCode.ERROR,
            StatusCode.UNSET,
        ]

    @in_loop
    async def test_a_record_in_hand(self, captured_spans: Any) -> None:
        """Where nobody told of its consumer, it is the one that is being handled; a batch is not."""
        consumer = Consumer()
        consumer.assign()
        commit = adapter.traced_settle(consumer.it.commit, settings=SETTLED)
        with adapter.traced_message(record(), settings=SETTLED):
            await commit({ORDERS: 8})
        with adapter.traced_batch([record()], settings=SETTLED):
            await commit({ORDERS: 8})
        assert len(captured_spans.named("commit orders")) == 1

    @in_loop
    async def test_a_function_around_commit(self, captured_spans: Any) -> None:
        """Nobody tells of the consumer: the commit is that of the record in hand, with or without offsets."""

        async def save(offsets: Any = None) -> None:
            pass

        with adapter.traced_message(record(), settings=SETTLED):
            await adapter.traced_settle(save, settings=SETTLED)()
            await adapter.traced_settle(save, settings=SETTLED)({ORDERS: 8})
        await adapter.traced_settle(save, settings=SETTLED)()
        assert len(captured_spans.named("commit orders")) == 2

    @in_loop
    async def test_batches_are_committed(self, captured_spans: Any) -> None:
        """The commit of a batch of a known consumer is a child of the batch's span."""
        consumer = Consumer(record(1), record(2))
        consumer.assign()
        records = (await adapter.traced_get(consumer.it.getmany, settings=SETTLED)())[ORDERS]
        with adapter.traced_batch(records, settings=SETTLED):
            pass
        await adapter.traced_settle(consumer.it.commit, settings=SETTLED)()
        [batch] = captured_spans.kind(SpanKind.CONSUMER)
        assert captured_spans.named("commit orders")[0].parent.span_id == batch.context.span_id

    @in_loop
    async def test_without_settle_spans(self, captured_spans: Any, api: Any) -> None:
        """By default there is none."""
        consumer = Consumer(record())
        consumer.assign()
        async for _ in api.loop(consumer.it):
            await adapter.traced_settle(consumer.it.commit)()
        assert len(captured_spans) == 1

    @in_loop
    async def test_offsets_in_a_transaction(self, captured_spans: Any, monkeypatch: Any) -> None:
        """The producer commits for its consumer's group: a child of the record's span, once."""
        sent: list[Any] = []

        async def send_offsets_to_transaction(self: Any, offsets: Any, group_id: Any) -> None:
            sent.append((offsets, group_id))

        name = send_offsets_to_transaction.__name__
        monkeypatch.setattr(AIOKafkaProducer, name, send_offsets_to_transaction)
        other = Consumer(record(1), group="another")
        consumer = Consumer(record(1))
        for one in (other, consumer):
            async for _ in adapter.traced_messages(one.it, settings=SETTLED):
                pass
        commit = adapter.traced_settle(Producer().it.send_offsets_to_transaction, settings=SETTLED)
        for _ in range(2):
            await commit({ORDERS: 2}, "billing")
        await commit("nonsense", group_id="billing")
        [span] = captured_spans.named("commit orders")
        assert span.parent.span_id == captured_spans.kind(SpanKind.CONSUMER)[1].context.span_id
        assert span.attributes["messaging.consumer.group.name"] == "billing"
        assert span.attributes["messaging.client.id"] == "shop"
        assert sent == [({ORDERS: 2}, "billing")] * 2 + [("nonsense", "billing")]

    @in_loop
    async def test_a_record_that_was_handled_untraced(self, captured_spans: Any) -> None:
        """Its commit is in its producer's trace."""
        consumer = Consumer(record())
        consumer.assign()
        with suppress_instrumentation():
            async for _ in adapter.traced_messages(consumer.it, settings=SETTLED):
                pass
        await adapter.traced_settle(consumer.it.commit, settings=SETTLED)()
        assert only(captured_spans).context.trace_id == TRACE_ID


class TestInstrumentor:
    def test_uninstrument_restores(self) -> None:
        """The very functions that were there, and as often as one likes."""
        names = {
            AIOKafkaProducer: ("send", "create_batch", "send_batch"),
            AIOKafkaConsumer: ("__aiter__", "getone", "getmany", "commit"),
        }
        before = {(owner, name): vars(owner)[name] for owner, some in names.items() for name in some}
        instrumentor = adapter.AIOKafkaInstrumentor()
        for _ in range(2):
            instrumentor.instrument()
            instrumentor.instrument()
            assert all(vars(owner)[name] is not before[owner, name] for owner, name in before)
            instrumentor.uninstrument()
            assert all(vars(owner)[name] is before[owner, name] for owner, name in before)
        assert instrumentor.instrumentation_dependencies() == ("aiokafka >= 0.11",)

    def test_without_aiokafka(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """One line that says what to install."""
        monkeypatch.setitem(sys.modules, "aiokafka", None)
        monkeypatch.delitem(sys.modules, "queueprop.adapters.aiokafka")
        with pytest.raises(MissingExtra, match=r"queueprop\[aiokafka\]"):
            importlib.import_module("queueprop.adapters.aiokafka")

    def test_a_module_that_aiokafka_misses(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """That is another fault, and said as it is."""
        for name in [it for it in sys.modules if f"{it}.".startswith("aiokafka.")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "aiokafka.errors", None)
        monkeypatch.delitem(sys.modules, "queueprop.adapters.aiokafka")
        with pytest.raises(ModuleNotFoundError) as raised:
            importlib.import_module("queueprop.adapters.aiokafka")
        assert not isinstance(raised.value, MissingExtra)


MANY = range(1, 13)


def _raise(*args: Any, **kwargs: Any) -> Any:
    raise LookupError("no")


class TestBroken:
    """Something around the adapter is broken, or the adapter is: every message goes out and comes in all the same."""

    async def _everything(self, settings: Settings) -> None:
        """Sends, batches, loops, pulls, handlers and commits, of twelve messages each."""
        reported: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, told: reported.append(told["message"]))
        instrumentor = adapter.AIOKafkaInstrumentor()
        instrumentor.instrument(settings=settings)
        try:
            await self._sends()
            for way in (self._loop, self._getone, self._getmany, self._handler, self._batch):
                consumer = Consumer(*(record(offset) for offset in MANY))
                consumer.assign()
                handled: list[int] = []
                await way(consumer.it, settings, handled)
                assert handled == [*MANY], way
                await consumer.it.commit({ORDERS: MANY.stop})
                assert len(consumer.committed) == 1
                assert not current().is_valid
        finally:
            instrumentor.uninstrument()
        # (aiokafka has futures of its own, whose errors nobody fetches.)
        assert [told for told in reported if "never retrieved" not in told] == []

    async def _sends(self) -> None:
        producer = Producer()
        futures = [
            await producer.it.send(
                "orders", b"%d" % number, key=b"k", partition=number % 3, headers=[("tenant", b"a")]
            )
            for number in MANY
        ]
        batch = producer.it.create_batch()
        for number in MANY:
            assert (
                batch.append(timestamp=None, key=None, value=b"%d" % number, headers=[("tenant", b"a")])
                is not None
            )
        futures.append(await producer.it.send_batch(batch, "refunds", partition=0))
        refused = await producer.it.send("returns", b"x", partition=0)
        sent = producer.sent()
        for one in producer.batches[:-1]:
            one.done(7, -1)
        await producer.fails(KafkaTimeoutError())
        await asyncio.wait([*futures, refused])
        assert [future.exception() for future in futures] == [None] * len(futures)
        assert isinstance(refused.exception(), KafkaTimeoutError)
        assert sorted(int(one.value) for one in sent if one.value != b"x") == sorted([*MANY] * 2)
        assert all(("tenant", b"a") in one.headers for one in sent if one.value != b"x")

    async def _loop(self, consumer: Any, settings: Settings, handled: list[int]) -> None:
        async for one in consumer:
            handled.append(one.offset)

    async def _getone(self, consumer: Any, settings: Settings, handled: list[int]) -> None:
        for _ in MANY:
            one = await consumer.getone()
            with adapter.traced_message(one, settings=settings):
                handled.append(one.offset)

    async def _getmany(self, consumer: Any, settings: Settings, handled: list[int]) -> None:
        for records in (await consumer.getmany()).values():
            for one in records:
                handled.append(one.offset)

    async def _handler(self, consumer: Any, settings: Settings, handled: list[int]) -> None:
        @adapter.traced_consumer(settings=settings)
        async def handle(one: Any) -> None:
            await asyncio.sleep(0)
            handled.append(one.offset)

        for _ in MANY:
            await handle(await consumer.getone())

    async def _batch(self, consumer: Any, settings: Settings, handled: list[int]) -> None:
        for records in (await consumer.getmany()).values():
            with adapter.traced_batch(records, settings=settings):
                handled.extend(one.offset for one in records[:])

    @pytest.mark.usefixtures("broken_logging")
    @pytest.mark.parametrize(
        "ours", [*faults.OF_THE_LIBRARY, *faults.OF_ITS_PUBLICATIONS, "headers_of_record"]
    )
    @in_loop
    async def test_a_fault_of_ours_and_no_logging(self, monkeypatch: pytest.MonkeyPatch, ours: str) -> None:
        """Whatever of the adapter raises at each message, and though it cannot be told."""
        faults.break_word(monkeypatch, adapter.AIOKAFKA, ours)
        await self._everything(SETTLED)

    @pytest.mark.usefixtures("broken_logging")
    @pytest.mark.parametrize(
        "ours",
        [
            *("library.Message", "publishing.Message", "batches.Message"),
            *("library.Publish", "batches.Publish", "headers.fitted"),
            *("destinations.kafka.destination", "library.kafka.destination_of_all"),
            *("publishing.kafka.key_attributes", "destinations.kafka.address"),
        ],
    )
    @in_loop
    async def test_a_fault_below_and_no_logging(self, monkeypatch: pytest.MonkeyPatch, ours: str) -> None:
        """Likewise what the adapter makes use of, in batches and answers as well."""
        monkeypatch.setattr(f"{adapter.__name__}.{ours}", _raise)
        await self._everything(SETTLED)

    @pytest.mark.usefixtures("broken_logging")
    @in_loop
    async def test_an_odd_sdk(self, odd_sdk: Any) -> None:
        """A tracer that gives no span, and spans whose methods raise."""
        await self._everything(
            Settings(tracer_provider=odd_sdk, settle_spans=True, capture_headers=("tenant",), body_size=True)
        )

    @in_loop
    async def test_a_hook_that_raises(self, captured_spans: Any, caplog: pytest.LogCaptureFixture) -> None:
        """Of a user's function one line is said; every message goes on, traced."""
        await self._everything(
            Settings(publish_hook=_raise, consume_hook=_raise, trust=_raise, settle_spans=True)
        )
        lines = {
            record.getMessage().partition(":")[0] for record in caplog.records if record.name == "queueprop"
        }
        assert lines == {
            "queueprop, asking Settings(trust=...) about a message, which counts as untrusted then",
            "queueprop, calling Settings(consume_hook=...)",
            "queueprop, calling Settings(publish_hook=...)",
        }
        found = [span.kind for span in captured_spans]
        assert found.count(SpanKind.CONSUMER) == 4 * len(MANY) + 1

    @pytest.mark.usefixtures("guarded")
    @in_loop
    async def test_a_span_that_cannot_be_told_costs_no_context(self, captured_spans: Any, api: Any) -> None:
        """What is written on a span and what goes into the message are two things."""

        class Tracers:
            def get_tracer(self, *args: Any, **kwargs: Any) -> Any:
                tracer = get_tracer_provider().get_tracer("t")

                def start_span(*given: Any) -> Any:
                    span = tracer.start_span(*given)
                    span.set_attribute = _raise  # type: ignore[method-assign]
                    return span

                return SimpleNamespace(start_span=start_span)

        settings = Settings(tracer_provider=Tracers())  # type: ignore[arg-type]
        producer = Producer()
        await adapter.traced_publish(producer.it.send, settings=settings)("orders", b"x", partition=0)
        batch = adapter.traced_create_batch(producer.it.create_batch, settings=settings)()
        batch.append(timestamp=None, key=None, value=None)
        await adapter.traced_publish(producer.it.send_batch, settings=settings)(batch, "orders", partition=1)
        assert [set(headers) for headers in producer.headers()] == [{"traceparent"}] * 2

    @pytest.mark.usefixtures("guarded")
    @in_loop
    async def test_headers_that_cannot_be_copied(self, captured_spans: Any) -> None:
        """They are aiokafka's to refuse: with the same error as without us."""

        class Odd(tuple[Any, ...]):
            def __iter__(self) -> Iterator[Any]:
                raise LookupError("ours, if it were raised by us")

        producer = Producer()
        given = {"partition": 0, "headers": Odd((("a", b"b"),))}
        with pytest.raises(Exception) as plain:  # noqa: PT011 - whatever aiokafka raises, twice the same
            await producer.it.send("orders", b"x", **given)
        with pytest.raises(plain.type, match=re.escape(str(plain.value))):
            await adapter.traced_publish(producer.it.send)("orders", b"x", **given)

        async def send(topic: str, *, headers: Any = None, **options: Any) -> Any:
            return await producer.it.send(topic, b"x", headers=given["headers"], **options)

        instrumentor = adapter.AIOKafkaInstrumentor()
        instrumentor.instrument()
        try:
            with pytest.raises(plain.type, match=re.escape(str(plain.value))):
                await adapter.traced_publish(send)("orders", partition=0)
        finally:
            instrumentor.uninstrument()

        batch, append = producer.it.create_batch(), {"timestamp": None, "key": None, "value": b"x"}
        with pytest.raises(Exception) as plain:  # noqa: PT011 - as above
            batch.append(**append, headers=given["headers"])
        traced = adapter.traced_create_batch(producer.it.create_batch)()
        with pytest.raises(plain.type, match=re.escape(str(plain.value))):
            traced.append(**append, headers=given["headers"])

    @pytest.mark.usefixtures("guarded")
    @in_loop
    async def test_a_producer_that_cannot_be_wrapped(self, captured_spans: Any) -> None:
        """Of somebody's accumulator that takes no method of ours: the message goes out, without a context."""

        class Sealed(MessageAccumulator):  # type: ignore[misc]
            def __setattr__(self, name: str, value: Any) -> None:
                if name == "add_message":
                    raise AttributeError(name)
                super().__setattr__(name, value)

        producer = Producer()
        producer.it._message_accumulator.__class__ = Sealed
        await adapter.traced_publish(producer.it.send)("orders", b"x", partition=0)
        assert producer.headers() == [{}]
        await producer.delivers()
        assert only(captured_spans).kind is SpanKind.PRODUCER

    @pytest.mark.parametrize("key", [b"k" * 5000, "k" * 5000])
    def test_a_key_has_a_bound(self, captured_spans: Any, key: Any) -> None:
        """Of a key that comes from outside the first 1,024 characters; a number beyond Python's limit has no text."""
        with adapter.traced_message(record(key=key)), adapter.traced_message(record(key=10**5000)):
            pass
        number, text = captured_spans
        assert text.attributes["messaging.kafka.message.key"] == "k" * 1024
        assert "messaging.kafka.message.key" not in number.attributes

    @in_loop
    async def test_names_in_the_log_are_in_one_line(
        self, captured_spans: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A topic is escaped and cut, and another one is no other place."""
        producer = Producer(max_request_size=150)
        send = adapter.traced_publish(producer.it.send)
        for topic in ("orders\nERROR: forged", "refunds"):
            await send(topic, b"x" * 60, partition=0)
        [line] = [record.getMessage() for record in caplog.records if record.name == "queueprop"]
        assert line.startswith("queueprop, publishing with aiokafka (")
        assert (
            "orders\\nERROR: forged): a message leaves no room for a trace context; it goes out without one"
            in line
        )

    def test_destinations_without_end_are_not_kept(self) -> None:
        """Topics that are made for one message each: 1,000 at most."""
        gc.collect()
        kept = [weakref.ref(kafka.destination(f"reply-{number}")) for number in range(3000)]
        assert 0 < sum(one() is not None for one in kept) <= 1000


class TestFaults:
    """A fault of ours is logged, and the user's call goes on."""

    @pytest.fixture(autouse=True)
    def _logged(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(guard, "raise_faults", False)
        monkeypatch.setattr(guard, "_logged", {})

    @staticmethod
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("ours")

    @in_loop
    async def test_of_a_send(
        self, api: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Wherever it happens, the message goes out."""
        producer = Producer()
        with monkeypatch.context() as patch:
            patch.setattr(kafka, "destination", self.broken)
            await api.publish(producer.it.send)("orders", b"hello", partition=0)
            batch = api.create(producer.it.create_batch)()
            batch.append(timestamp=None, key=None, value=b"x")
            await api.publish(producer.it.send_batch)(batch, "refunds", partition=0)
        with monkeypatch.context() as patch:
            patch.setattr(f"{adapter.__name__}.headers._size_of", self.broken)
            await api.publish(producer.it.send)("orders", b"hello", partition=0)
            batch = api.create(producer.it.create_batch)()
            batch.append(timestamp=None, key=None, value=b"x")
            await api.publish(producer.it.send_batch)(batch, "returns", partition=0)
        with monkeypatch.context() as patch:
            patch.setattr("aiokafka.producer.message_accumulator.BatchBuilder.__hash__", None)
            api.create(producer.it.create_batch)()
        assert [not headers for headers in producer.headers()] == [True] * 4
        assert len(caplog.messages) == 5

    @in_loop
    async def test_of_an_answer(self, captured_spans: Any, caplog: pytest.LogCaptureFixture) -> None:
        """An answer that does not tell its partition is the caller's all the same."""

        class Answer:
            @property
            def partition(self) -> int:
                raise RuntimeError("not ours, but none of the caller's either")

        answer = Answer()

        async def send(topic: str, value: bytes, *, headers: Any = None) -> Any:
            return answer

        assert await adapter.traced_publish(send)("orders", b"x") is answer
        assert len(caplog.messages) == 1

    @in_loop
    async def test_of_a_pull_and_a_commit(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The records are there, and committed."""
        consumer = Consumer(record(), record(8))
        consumer.assign()
        get = adapter.traced_get(consumer.it.getone, settings=SETTLED)
        with adapter.traced_message(await get(), settings=SETTLED):
            pass
        with monkeypatch.context() as patch:
            patch.setattr(kafka, "destination_of_all", self.broken)
            assert (await get()).offset == 8
            await adapter.traced_settle(consumer.it.commit, settings=SETTLED)({ORDERS: 9})
        assert len(consumer.committed) == 1
        assert len(caplog.messages) == 2
