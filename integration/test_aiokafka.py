"""What aiokafka alone has: transactions, rebalances, seek and replay; through the instrumentor on a live Kafka."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("aiokafka")

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from opentelemetry.trace import SpanKind, get_current_span

from integration.brokers import Broker
from integration.brokers.kafka import addresses
from queueprop import Settings
from queueprop.adapters.aiokafka import AIOKafkaInstrumentor
from queueprop.testing import assert_no_orphans


@pytest.fixture
def servers(kafka_broker: Broker) -> str:
    return addresses(kafka_broker.url)


@pytest.fixture
def real_servers(kafka_broker: Broker) -> str:
    """librdkafka's mock cluster answers a rejoin with InvalidRequest, and breaks the CRC of transactional batches."""
    if kafka_broker.rung == "embedded":
        pytest.skip("the mock cluster has no rebalances and no transactions that aiokafka could use")
    return addresses(kafka_broker.url)


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    return f"{request.node.name}-{os.getpid()}"


@pytest.fixture(autouse=True)
def _instrumented() -> Iterator[None]:
    instrumentor = AIOKafkaInstrumentor()
    instrumentor.instrument(settings=Settings(settle_spans=True))
    yield
    instrumentor.uninstrument()


def consumer_of(servers: str, *topics: str, **options: Any) -> AIOKafkaConsumer:
    return AIOKafkaConsumer(
        *topics,
        bootstrap_servers=servers,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        **options,
    )


def test_transactions(real_servers: str, topic: str, captured_spans: Any) -> None:
    """Committed and aborted, what is sent is traced; a reader of what is committed sees the committed alone."""

    async def main() -> list[bytes]:
        async with AIOKafkaProducer(bootstrap_servers=real_servers, transactional_id=topic) as producer:
            async with producer.transaction():
                await producer.send_and_wait(topic, b"committed", partition=0)
            await producer.begin_transaction()
            await producer.send_and_wait(topic, b"aborted", partition=0)
            await producer.abort_transaction()
            async with producer.transaction():
                await producer.send(topic, b"committed, too", partition=0)
        seen = []
        async with consumer_of(real_servers, isolation_level="read_committed") as consumer:
            consumer.assign([TopicPartition(topic, 0)])
            async for record in consumer:
                seen.append(record.value)
                assert get_current_span().get_span_context().is_valid
                if len(seen) == 2:
                    break
        return seen

    assert asyncio.run(main()) == [b"committed", b"committed, too"]
    producers = captured_spans.kind(SpanKind.PRODUCER)
    consumers = captured_spans.kind(SpanKind.CONSUMER)
    assert [span.status.is_ok for span in producers] == [True] * 3
    assert [span.parent.span_id for span in consumers] == [producers[at].context.span_id for at in (0, 2)]
    assert_no_orphans(captured_spans)


def test_a_replay_has_the_same_origin(servers: str, topic: str, captured_spans: Any) -> None:
    """After a seek back: another CONSUMER span of the same producer's; whether read by getone or by a loop."""

    async def main() -> None:
        async with AIOKafkaProducer(bootstrap_servers=servers) as producer:
            await producer.send_and_wait(topic, b"hello", partition=0)
        partition = TopicPartition(topic, 0)
        async with consumer_of(servers) as consumer:
            consumer.assign([partition])
            for _ in range(3):
                async for _ in consumer:
                    break
                consumer.seek(partition, 0)
            assert (await consumer.getone()).value == b"hello"

    asyncio.run(main())
    [producer] = captured_spans.kind(SpanKind.PRODUCER)
    consumers = captured_spans.kind(SpanKind.CONSUMER)
    assert {span.parent.span_id for span in consumers} == {producer.context.span_id}
    assert len({span.context.span_id for span in consumers}) == 3
    assert [span.name for span in captured_spans.kind(SpanKind.CLIENT)] == [f"poll {topic}"]


def test_a_rebalance_in_the_middle_of_a_message(real_servers: str, topic: str, captured_spans: Any) -> None:
    """The body goes on inside its span while another consumer joins the group and leaves it; so does its commit."""

    async def main() -> None:
        async with AIOKafkaProducer(bootstrap_servers=real_servers) as producer:
            await producer.send_and_wait(topic, b"hello", partition=0)
        async with consumer_of(real_servers, topic, group_id=topic) as first:
            async for record in first:
                before = get_current_span()
                async with consumer_of(real_servers, topic, group_id=topic):
                    assert get_current_span() is before
                while TopicPartition(topic, 0) not in first.assignment():
                    await asyncio.sleep(0.01)  # until it has the partition back
                assert get_current_span() is before
                await first.commit({TopicPartition(topic, 0): record.offset + 1})
                break
            assert not get_current_span().get_span_context().is_valid
            assert await first.committed(TopicPartition(topic, 0)) == 1

    asyncio.run(asyncio.wait_for(main(), 60))
    [consumer] = captured_spans.kind(SpanKind.CONSUMER)
    [commit] = captured_spans.named(f"commit {topic}")
    assert commit.parent.span_id == consumer.context.span_id
    assert_no_orphans(captured_spans)
