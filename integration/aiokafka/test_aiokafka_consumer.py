"""Reading: loops over a consumer, and the pull calls."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import pickle
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import ConsumerStoppedError
from opentelemetry import baggage
from opentelemetry.instrumentation.utils import suppress_instrumentation

from integration.aiokafka.programs import (
    PARTITION,
    STYLES,
    Program,
    Tracing,
    baggage_of,
    consume,
    contexts,
    in_loop,
    producing,
    reading,
    send,
)
from integration.contract.run import only
from integration.contract.telemetry import DEADLINE, ambient_span
from integration.live import NOTHING, Spans, current, origin, unique
from queueprop.adapters import aiokafka as adapter

FOREVER = int(1_000 * DEADLINE)
"""Milliseconds for ``getmany``, which returns as soon as something is there."""


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
            timeout = {"timeout_ms": FOREVER} if style == "getmany" else {}
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
                timeout = {"timeout_ms": FOREVER} if style == "getmany" else {}
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
            found = await tracing.get(consumer.getmany)(timeout_ms=FOREVER)
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
        """The first iteration of a list handles each record inside its span; what is iterated again is inside its
        context, and makes no second one.
        """
        await send(tracing, servers, topic, b"one", b"two", b"three")
        async with reading(servers, topic) as consumer:
            [records] = (await tracing.get(consumer.getmany)(timeout_ms=FOREVER)).values()
        inside = []
        for record in records:
            inside.append(current())
            if record.value == b"two":
                break
        assert current() == NOTHING
        for _, before in zip(records, [*inside, None], strict=True):
            if before is None:  # the third is a delivery still
                inside.append(current())
            else:
                assert current() == before
        assert [current() for _ in records] == inside
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
            [records] = (await tracing.get(consumer.getmany)(timeout_ms=FOREVER)).values()
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
