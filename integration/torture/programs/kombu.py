"""kombu on RabbitMQ and Redis: a producer that retries, and a ConsumerMixin."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import kombu
import redis
from kombu.mixins import ConsumerMixin

from .ledger import at_once, handle, is_over
from .left import Left, of_rabbitmq

VISIBILITY = 5
"""Seconds after which Redis' transport gives back what nobody has acked."""

_RETRY = {"max_retries": 3, "interval_start": 0.1, "interval_step": 0.1, "interval_max": 0.3}


def _connection(url: str) -> Any:
    is_redis = url.startswith("redis")
    options = {"visibility_timeout": VISIBILITY} if is_redis else {"confirm_publish": True}
    return kombu.Connection(url, transport_options=options, heartbeat=0)


def _queue(name: str) -> Any:
    return kombu.Queue(name, kombu.Exchange(name, "direct", durable=True), name, durable=True)


@contextmanager
def connect(url: str, queue: str) -> Iterator[Callable[[str], object]]:
    declared = _queue(queue)
    with _connection(url) as connection:
        producer = connection.Producer(serializer="json")
        yield lambda body: producer.publish(
            {"body": body},
            exchange=declared.exchange,
            routing_key=queue,
            declare=[declared],
            delivery_mode=2,
            retry=True,
            retry_policy=_RETRY,
        )


class _Worker(ConsumerMixin):  # type: ignore[misc]
    connect_max_retries = None

    def __init__(self, connection: Any, queue: str) -> None:
        self.connection = connection
        self._queue = _queue(queue)

    def get_consumers(self, consumer: Any, channel: Any) -> list[Any]:
        return [consumer([self._queue], callbacks=[self._on_message], prefetch_count=at_once())]

    def _on_message(self, body: Any, message: Any) -> None:
        handle(body["body"])
        message.ack()

    @property
    def should_stop(self) -> bool:
        return is_over()

    @should_stop.setter
    def should_stop(self, value: bool) -> None: ...


def consume(url: str, queue: str) -> None:
    with _connection(url) as connection:
        _Worker(connection, queue).run(timeout=0.1)


def counts(url: str, queue: str) -> Left:
    if not url.startswith("redis"):
        return of_rabbitmq(url, queue)
    with redis.Redis.from_url(url) as client:
        left: Any = client.llen(queue)
        unacked: Any = client.hvals("unacked")
        return Left(left, sum(f'"{queue}"'.encode() in payload for payload in unacked))
