"""Celery on RabbitMQ and Redis: its command line, with two processes of the pool prefork, and late acks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .kombu import counts
from .ledger import at_once

__all__ = ["connect", "consume", "counts"]


@contextmanager
def connect(url: str, queue: str) -> Iterator[Callable[[str], object]]:
    from . import celery_app

    app = celery_app.app
    yield lambda body: app.tasks["deliver"].apply_async((body,), queue=queue)


def consume(url: str, queue: str) -> None:
    app = f"{__package__}.celery_app"
    options = [
        "-c",
        str(min(at_once(), 2)),
        "-Q",
        queue,
        "--without-mingle",
        "--without-gossip",
        "-l",
        "WARNING",
    ]
    os.execvp("celery", ["celery", "-A", app, "worker", *options])
