"""Kafka's topics, read by a consumer of no group: nothing is committed, and no group is joined."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from queueprop.cli.peek.sight import Sight, Waiting, seconds_of, text_of
from queueprop.cli.refusal import Refused, reason
from queueprop.cli.urls import BrokerURL

LONGEST = 20.0
"""Seconds that a look may take."""

_CLIENT = "queueprop-peek"
_MOST_PARTITIONS = 1000
_STEP = 500  # milliseconds


def look(broker: BrokerURL, topic: str, limit: int, group: str | None) -> Sight:
    """What a group has not committed yet, the oldest first; without a group, the newest records.

    Raises Refused where the topic is not there, the broker does not answer, and without aiokafka.
    """
    try:
        from aiokafka.errors import KafkaError
    except ModuleNotFoundError:
        raise Refused('peek needs aiokafka for kafka:// URLs: pip install "queueprop[aiokafka]"') from None
    try:
        return asyncio.run(asyncio.wait_for(_look(broker, topic, limit, group), LONGEST + 10))
    except (asyncio.TimeoutError, TimeoutError):  # the second is an OSError
        seconds = f"{LONGEST + 10:.0f} s"
        raise Refused(f"{topic!r} at {broker.shown} cannot be read: no answer in {seconds}") from None
    except (KafkaError, OSError, ValueError) as error:
        raise Refused(f"{topic!r} at {broker.shown} cannot be read: {reason(error)}") from None


async def _look(broker: BrokerURL, topic: str, limit: int, group: str | None) -> Sight:
    partitions, committed = await _asked(broker, topic, group)
    async with _consumer(broker) as consumer:
        consumer.assign(partitions)
        first, end = await consumer.beginning_offsets(partitions), await consumer.end_offsets(partitions)
        waits = {it: _position(committed.get(it), first[it], end[it]) for it in partitions}
        total = sum(end[it] - waits[it] for it in partitions)
        start = waits if group is not None else {it: max(first[it], end[it] - limit) for it in partitions}
        records, is_whole = await _read(consumer, start, end, limit if group is not None else None)
        records.sort(key=lambda record: (record.timestamp, record.partition, record.offset))
        chosen = records[:limit] if group is not None else records[-limit:]
        return Sight(
            "Kafka", [_waiting(record) for record in chosen], total, _notes(group, committed, is_whole)
        )


async def _asked(broker: BrokerURL, topic: str, group: str | None) -> tuple[list[Any], Mapping[Any, int]]:
    """The topic's partitions, and what the group has committed. To ask for a topic that is not there may make it."""
    from aiokafka import TopicPartition
    from aiokafka.admin import AIOKafkaAdminClient

    servers: Any = broker.servers  # a list is taken, too
    admin = AIOKafkaAdminClient(bootstrap_servers=servers, client_id=_CLIENT)
    await admin.start()
    try:
        if topic not in await admin.list_topics():
            raise Refused(f"there is no topic {topic!r} at {broker.shown}")
        (described,) = await admin.describe_topics([topic])
        numbers = sorted(found["partition"] for found in described["partitions"])
        offsets = {} if group is None else await admin.list_consumer_group_offsets(group)
    finally:
        await admin.close()
    partitions = [TopicPartition(topic, number) for number in numbers[:_MOST_PARTITIONS]]
    return partitions, {it: at.offset for it, at in offsets.items() if it in partitions and at.offset >= 0}


@contextlib.asynccontextmanager
async def _consumer(broker: BrokerURL) -> AsyncIterator[Any]:
    from aiokafka import AIOKafkaConsumer

    servers: Any = broker.servers
    consumer = AIOKafkaConsumer(bootstrap_servers=servers, enable_auto_commit=False, client_id=_CLIENT)
    try:
        await consumer.start()
        yield consumer
    finally:
        await consumer.stop()


def _position(committed: int | None, first: int, end: int) -> int:
    """Where the group goes on: what it has committed may have been deleted since."""
    return first if committed is None else min(max(committed, first), end)


async def _read(
    consumer: Any, start: Mapping[Any, int], end: Mapping[Any, int], enough: int | None
) -> tuple[list[Any], bool]:
    """Each partition from its start to its end, or so many of it; whether that was all of it in time."""
    rest = {partition for partition in start if start[partition] < end[partition]}
    for partition in start:
        if partition in rest:
            consumer.seek(partition, start[partition])
        else:
            consumer.pause(partition)
    deadline = time.monotonic() + LONGEST
    records: list[Any] = []
    counts = dict.fromkeys(start, 0)
    while rest and time.monotonic() < deadline:
        batches = await consumer.getmany(*rest, timeout_ms=_STEP)
        for partition, found in batches.items():
            records += [record for record in found if record.offset < end[partition]]
            counts[partition] += len(found)
        for partition in list(rest):
            if await consumer.position(partition) >= end[partition] or (
                enough and counts[partition] >= enough
            ):
                rest.discard(partition)
                consumer.pause(partition)
    return records, not rest


def _notes(group: str | None, committed: Mapping[Any, int], is_whole: bool) -> list[str]:
    notes = []
    if group is None:
        notes.append("the newest records; --group GROUP shows those that a group has not committed")
    elif not committed:
        notes.append(f"the group {group!r} has committed nothing: all records wait for it")
    if not is_whole:
        notes.append(f"not all of them came within {LONGEST:.0f} s")
    return notes


def _waiting(record: Any) -> Waiting:
    headers = list(record.headers or ())
    return Waiting(
        None,
        text_of(record.key),
        headers,
        sent_at=seconds_of(record.timestamp, 0.001),
        place=f"partition {record.partition}, offset {record.offset}",
        body=record.value,
    )
