"""Commits, consumer groups, and transactions."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from aiokafka import ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import IllegalOperation

from integration.aiokafka.programs import (
    PARTITION,
    SETTLED,
    STYLES,
    Program,
    Tracing,
    consume,
    consuming,
    in_loop,
    producing,
    reading,
    send,
)
from integration.contract.run import only
from integration.live import NOTHING, Spans, current, origin, unique
from queueprop import Settings


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
        self, tracing: Tracing, spans: Spans, real_servers: str, narrow_topic: str
    ) -> None:
        """The body goes on inside its span while another consumer joins the group and leaves it. What was not
        committed comes again, in its trace; and its commit is a child of that delivery.
        """
        await send(tracing, real_servers, narrow_topic, b"hello")
        partition = TopicPartition(narrow_topic, 0)
        inside = []
        async with consuming(real_servers, narrow_topic, group_id=narrow_topic, **ALERT) as first:
            async for record in tracing.loop(first):
                inside.append(current())
                assert record.offset == 0
                if len(inside) == 2:
                    await tracing.settle(first.commit)({partition: 1})
                    break
                async with consuming(real_servers, narrow_topic, group_id=narrow_topic, **ALERT) as second:
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
        self, tracing: Tracing, spans: Spans, real_servers: str, narrow_topic: str
    ) -> None:
        """It is called by aiokafka's own task, also while a body is under way."""
        await send(tracing, real_servers, narrow_topic, b"hello")
        told: list[Any] = []

        class Listener(ConsumerRebalanceListener):  # type: ignore[misc]
            def on_partitions_revoked(self, revoked: Any) -> None:
                told.append(("revoked", len(revoked), current()))

            def on_partitions_assigned(self, assigned: Any) -> None:
                told.append(("assigned", len(assigned), current()))

        consumer = consuming(real_servers, group_id=narrow_topic, **ALERT)
        consumer.subscribe([narrow_topic], listener=Listener())
        async with consumer:
            async for _ in tracing.loop(consumer):
                assert current() != NOTHING
                async with consuming(real_servers, narrow_topic, group_id=narrow_topic):
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
