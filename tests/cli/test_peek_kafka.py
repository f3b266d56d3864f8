"""What waits in Kafka, on librdkafka's mock cluster."""

from __future__ import annotations

import asyncio
import sys
import uuid
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("aiokafka")

from aiokafka import TopicPartition

from queueprop.cli import urls
from queueprop.cli.peek import kafka
from queueprop.cli.peek.sight import Context
from queueprop.cli.refusal import Refused

TRACEPARENT = f"00-{'1' * 32}-{'2' * 16}-01"


@pytest.fixture
def broker(mock_kafka_url: str) -> urls.BrokerURL:
    return urls.parse(mock_kafka_url)


@pytest.fixture
def topic(broker: urls.BrokerURL) -> str:
    """With four records, of which the second has a context, on two of its partitions."""
    from confluent_kafka import Producer

    name = f"orders-{uuid.uuid4().hex[:8]}"
    producer = Producer({"bootstrap.servers": ",".join(broker.servers), "log_level": 0})
    for number in range(4):
        headers: Any = {"traceparent": TRACEPARENT} if number == 1 else None
        producer.produce(
            name, b"secret", key=str(number), headers=headers, partition=number % 2, timestamp=1000 + number
        )
    producer.flush()
    return name


def test_the_newest_records(broker: urls.BrokerURL, topic: str) -> None:
    """Of all partitions, in the order of their times."""
    sight = kafka.look(broker, topic, 20, None)
    assert (sight.library, sight.total) == ("Kafka", 4)
    assert [message.name for message in sight.messages] == ["0", "1", "2", "3"]
    assert [Context(message.headers).state for message in sight.messages] == [
        "missing",
        "ok",
        "missing",
        "missing",
    ]
    assert sight.messages[2].place == "partition 0, offset 1"
    assert sight.messages[2].sent_at == pytest.approx(1.002)
    assert "newest" in sight.notes[0]
    assert [message.name for message in kafka.look(broker, topic, 2, None).messages] == ["2", "3"]


def test_what_a_group_has_not_committed(
    broker: urls.BrokerURL, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From there on, the oldest first; of a group that has committed nothing all of them."""
    from aiokafka.admin import AIOKafkaAdminClient

    committed: dict[Any, Any] = {}

    async def offsets(self: Any, group: str) -> dict[Any, Any]:
        return committed

    monkeypatch.setattr(AIOKafkaAdminClient, "list_consumer_group_offsets", offsets)
    sight = kafka.look(broker, topic, 1, "mailers")
    assert (sight.total, [message.name for message in sight.messages]) == (4, ["0"])
    assert "has committed nothing" in sight.notes[0]
    committed[TopicPartition(topic, 0)] = SimpleNamespace(offset=1)
    committed[TopicPartition(topic, 1)] = SimpleNamespace(offset=-1)
    committed[TopicPartition("another", 0)] = SimpleNamespace(offset=1)
    sight = kafka.look(broker, topic, 20, "mailers")
    assert (sight.total, [message.name for message in sight.messages]) == (3, ["1", "2", "3"])
    assert sight.notes == []


def test_what_does_not_come_in_time(
    broker: urls.BrokerURL, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said."""
    monkeypatch.setattr(kafka, "LONGEST", 0.0)
    sight = kafka.look(broker, topic, 20, None)
    assert sight.messages == []
    assert sight.notes[1] == "not all of them came within 0 s"


def test_a_partition_that_comes_in_parts() -> None:
    """It is read until its end, or until there is enough of it; one that is empty is not asked."""

    class Consumer:
        def __init__(self) -> None:
            self.asked: list[tuple[str, ...]] = []
            self.at = 0

        def seek(self, partition: str, offset: int) -> None:
            self.at = offset

        def pause(self, partition: str) -> None: ...

        async def getmany(self, *partitions: str, timeout_ms: int) -> dict[str, list[Any]]:
            self.asked.append(partitions)
            self.at += 1
            return {"full": [SimpleNamespace(offset=self.at - 1)]}

        async def position(self, partition: str) -> int:
            return self.at

    for enough, count in [(None, 3), (2, 2)]:
        consumer = Consumer()
        records, is_whole = asyncio.run(
            kafka._read(consumer, {"full": 1, "empty": 5}, {"full": 4, "empty": 5}, enough)
        )
        assert [record.offset for record in records] == [1, 2, 3][:count]
        assert is_whole
        assert consumer.asked == [("full",)] * count


@pytest.mark.parametrize(
    ("committed", "position"), [(None, 3), (1, 3), (5, 5), (9, 7)], ids=["none", "deleted", "some", "beyond"]
)
def test_where_a_group_goes_on(committed: int | None, position: int) -> None:
    """Between the first record that is kept and the end."""
    assert kafka._position(committed, 3, 7) == position


def test_no_such_topic(broker: urls.BrokerURL) -> None:
    """It is one line, and the topic is not made by asking for it."""
    for _ in range(2):
        with pytest.raises(Refused, match="there is no topic 'nothing-of-the-kind'"):
            kafka.look(broker, "nothing-of-the-kind", 20, None)


def test_it_is_no_kafka() -> None:
    """Nobody there is one line."""
    with pytest.raises(Refused, match=r"'orders' at kafka://127\.0\.0\.1:1 cannot be read: Kafka"):
        kafka.look(urls.parse("kafka://127.0.0.1:1"), "orders", 20, None)


def test_it_does_not_answer(broker: urls.BrokerURL, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is it waited for without end."""

    async def never(*given: Any) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(kafka, "_look", never)
    monkeypatch.setattr(kafka, "LONGEST", -9.9)
    with pytest.raises(Refused, match="no answer"):
        kafka.look(broker, "orders", 20, None)


def test_without_aiokafka(broker: urls.BrokerURL, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what to install."""
    monkeypatch.setitem(sys.modules, "aiokafka.errors", None)
    with pytest.raises(Refused, match=r"queueprop\[aiokafka\]"):
        kafka.look(broker, "orders", 20, None)
