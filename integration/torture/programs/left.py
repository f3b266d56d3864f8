"""What is left of the messages when their programs have ended, as a plain client sees it."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import pika
from pika.exceptions import ChannelClosedByBroker


class Left(NamedTuple):
    left: int = 0
    unacked: int = 0
    dead: int = 0


def of_rabbitmq(url: str, queue: str, dead: str | None = None) -> Left:
    """Nothing is unacked where nobody is connected: it is in the queue again."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    try:
        return Left(_settled_size(connection, queue), 0, _settled_size(connection, dead) if dead else 0)
    finally:
        connection.close()


def _settled_size(connection: Any, queue: str) -> int:
    """A queue says what it has a moment later."""
    sizes: list[int] = []
    while len(sizes) < 4 or len(set(sizes[-4:])) > 1:
        channel = connection.channel()
        try:
            sizes.append(channel.queue_declare(queue, passive=True).method.message_count)
            channel.close()
        except ChannelClosedByBroker:
            return 0  # there never was such a queue
        time.sleep(0.05)
    return sizes[-1]


def of_kafka(url: str, topic: str) -> Left:
    """What the group of that name has not committed."""
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer({"bootstrap.servers": servers(url), "group.id": topic, "enable.auto.commit": False})
    try:
        partitions = consumer.list_topics(topic, timeout=20).topics[topic].partitions
        left = 0
        for found in consumer.committed([TopicPartition(topic, it) for it in partitions], timeout=20):
            low, high = consumer.get_watermark_offsets(found, timeout=20)
            left += high - (found.offset if found.offset >= 0 else low)
        return Left(left)
    finally:
        consumer.close()


def servers(url: str) -> str:
    return url.partition("://")[2]
