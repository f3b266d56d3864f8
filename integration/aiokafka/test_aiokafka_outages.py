"""Consumers and nodes that go away: the same run without and with queueprop."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import signal
import threading
from typing import Any

import pytest
from aiokafka import TopicPartition
from opentelemetry import trace

from integration.aiokafka.programs import (
    OFFSET,
    SETTLED,
    Tracing,
    consuming,
    create_topic,
    producing,
    reading,
    send,
)
from integration.brokers import KafkaCluster
from integration.brokers.kafka import addresses
from integration.contract.run import only
from integration.contract.telemetry import DEADLINE
from integration.live import NOTHING, Bodies, Spans, current, origin, run_killed, unique
from queueprop import Settings

LEADER = 1
"""The node that goes away."""

OUTAGE = 240.0
"""Seconds for all that outlasts it: a node may take 90 to be back, and those who wait for it cannot look."""


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
            return asyncio.run(asyncio.wait_for(_outlast(tracing, servers, topic, meeting), OUTAGE))

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
                    await asyncio.to_thread(meeting.wait, OUTAGE)
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
    meeting.wait(OUTAGE)
    getattr(node, end)()
    meeting.wait(OUTAGE)
    node.start()
    meeting.wait(OUTAGE)
