"""Sending: headers, deliveries that fail later, records and their partitions, batches."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from aiokafka.errors import MessageSizeTooLargeError
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from opentelemetry.instrumentation.utils import suppress_instrumentation

from integration.aiokafka.programs import (
    KEY,
    OFFSET,
    PARTITION,
    STALE,
    TOMBSTONE,
    Program,
    Tracing,
    baggage_of,
    consume,
    contexts,
    in_loop,
    producing,
    read,
    reading,
    send,
)
from integration.contract.run import only
from integration.contract.telemetry import ambient_span
from integration.live import NOTHING, Spans, current, origin, unique
from queueprop import guard


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
    async def test_a_context_of_the_caller_s_goes_on_in_the_new_one(
        self, tracing: Tracing, spans: Spans, servers: str, topic: str, name: str
    ) -> None:
        """Headers of an older message are passed on, and so is its trace: the record carries one context, the new
        one.
        """
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
            "tracestate": b"a=1",
            "baggage": b"tenant=1",
        }
        assert len(record.headers) == 4
        assert inside == process.context
        assert origin(process) == sent.context
        assert (sent.trace_id, sent.parent_id) == tuple(STALE.split("-")[1:3])

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
        self,
        tracing: Tracing,
        spans: Spans,
        servers: str,
        topic: str,
        room: int,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A message that fits into ``max_request_size`` goes out, with a context where that fits, too."""
        monkeypatch.setattr(guard, "_logged", {})
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
        complaints = [text for text in spans.complaints if "leaves no room for a trace context" in text]
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
