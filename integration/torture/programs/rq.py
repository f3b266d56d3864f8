"""RQ: a worker that forks a horse for each job, or a pool of two (``QUEUEPROP_TORTURE_POOL``)."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import redis
from rq import Queue, Worker
from rq.registry import FailedJobRegistry, StartedJobRegistry
from rq.worker_pool import WorkerPool

from . import ledger
from .left import Left

POOL = "_QUEUEPROP_TORTURE_POOL"


@contextmanager
def connect(url: str, queue: str) -> Iterator[Callable[[str], object]]:
    with redis.Redis.from_url(url) as connection:
        made = Queue(queue, connection=connection)
        yield lambda body: made.enqueue(ledger.handle, body, result_ttl=600)


def consume(url: str, queue: str) -> None:
    connection = redis.Redis.from_url(url)
    logging.getLogger("rq.worker").setLevel(logging.CRITICAL)
    if POOL in os.environ:
        WorkerPool([queue], connection=connection, num_workers=2).start(logging_level="CRITICAL")
        return
    Worker([Queue(queue, connection=connection)], connection=connection).work(logging_level="CRITICAL")


def counts(url: str, queue: str) -> Left:
    with redis.Redis.from_url(url) as connection:
        made: Any = Queue(queue, connection=connection)
        failed = FailedJobRegistry(queue=made)
        started: Any = connection.zcard(StartedJobRegistry(queue=made).key)
        between: Any = (
            connection.llen(made.intermediate_queue.key) if hasattr(made, "intermediate_queue") else 0
        )
        return Left(len(made), started + between, len(failed))
