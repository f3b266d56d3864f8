"""confluent-kafka: a producer that waits for each report, and a member of a group that commits each message."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import confluent_kafka as kafka

from .ledger import handle, is_over, tell
from .left import Left, of_kafka, servers


@contextmanager
def connect(url: str, queue: str) -> Iterator[Callable[[str], object]]:
    producer: Any = kafka.Producer(
        {"bootstrap.servers": servers(url), "acks": "all", "message.timeout.ms": 15_000, "linger.ms": 0}
    )

    def publish(body: str) -> None:
        reports: list[Any] = []
        producer.produce(
            queue, body.encode(), key=body.encode(), on_delivery=lambda error, message: reports.append(error)
        )
        producer.flush(20)
        if reports != [None]:
            raise RuntimeError(f"not delivered: {reports}")

    yield publish


def consume(url: str, queue: str) -> None:
    consumer: Any = kafka.Consumer(
        {
            "bootstrap.servers": servers(url),
            "group.id": queue,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "session.timeout.ms": 6_000,
            "heartbeat.interval.ms": 500,
            "socket.timeout.ms": 6_000,  # by default a commit that is lost with its node waits for a minute
            "topic.metadata.refresh.interval.ms": 500,
            "allow.auto.create.topics": True,
        }
    )
    consumer.subscribe([queue], on_assign=lambda *_: tell("consuming"))
    while not is_over():
        for message in consumer.consume(1, 0.1):  # what is revoked is told between two
            if message.error():
                continue
            handle(message.value().decode())
            try:
                consumer.commit(message, asynchronous=False)
            except kafka.KafkaException as error:
                tell("uncommitted", error=repr(error)[:200])
    consumer.close()


def counts(url: str, queue: str) -> Left:
    return of_kafka(url, queue)
