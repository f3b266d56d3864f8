"""Dramatiq on RabbitMQ and Redis: its command line, of two processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import dramatiq
import redis
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import MAINTENANCE_SCALE, RedisBroker
from dramatiq.common import dq_name, xq_name

from . import ledger
from .left import Left, of_rabbitmq

HEARTBEAT = 2_000
"""Milliseconds after which a worker that is gone is noticed, on Redis."""


def make(url: str, queue: str) -> tuple[Any, Any]:
    broker: Any
    if url.startswith("redis"):
        broker = RedisBroker(
            url=url, namespace=queue, heartbeat_timeout=HEARTBEAT, maintenance_chance=MAINTENANCE_SCALE
        )
    else:
        broker = RabbitmqBroker(url=url, confirm_delivery=True)
    dramatiq.set_broker(broker)
    actor: Any = dramatiq.actor
    handle = actor(ledger.handle, actor_name="handle", queue_name=queue, max_retries=3, min_backoff=50)
    return broker, handle


@contextmanager
def connect(url: str, queue: str) -> Iterator[Callable[[str], object]]:
    broker, handle = make(url, queue)
    try:
        yield handle.send
    finally:
        broker.close()


def consume(url: str, queue: str) -> None:
    app = f"{__package__}.dramatiq_app:broker"
    os.execvp("dramatiq", ["dramatiq", app, "-p", "2", "-t", str(min(ledger.at_once(), 2)), "-Q", queue])


def counts(url: str, queue: str) -> Left:
    if not url.startswith("redis"):
        ready, delayed = of_rabbitmq(url, queue, xq_name(queue)), of_rabbitmq(url, dq_name(queue))
        return Left(ready.left + delayed.left, 0, ready.dead)
    with redis.Redis.from_url(url) as client:
        it: Any = client
        key = f"{queue}:{queue}"
        left = it.llen(key) + it.llen(dq_name(key))
        return Left(
            left, sum(it.scard(name) for name in it.keys(f"{queue}:__acks__*")), it.zcard(xq_name(key))
        )
