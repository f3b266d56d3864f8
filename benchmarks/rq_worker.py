"""The worker of ``rq_collector.py``, as users write theirs: ``python rq_worker.py <start> <Redis> <queue>``.

It imports what its way to start needs and nothing else: a work horse is a fork, and costs what its parent has.
"""

from __future__ import annotations

import importlib
import sys
import time
from typing import Any

from opentelemetry import trace
from redis import Redis

PAUSE = 0.05
"""Seconds that a job takes."""


def job() -> None:
    with trace.get_tracer("bench").start_as_current_span("work"):
        time.sleep(PAUSE)


def worker_class(start: str) -> Any:
    if start == "plain spawn":
        from rq.worker import SpawnWorker

        return SpawnWorker
    if start.startswith("plain"):
        from rq import Worker

        return Worker

    from queueprop.sdk import configure_tracing

    configure_tracing("bench")
    if start == "explicit":
        from queueprop.adapters.rq import TracedWorker

        return TracedWorker

    import queueprop

    queueprop.instrument("rq")
    return worker_class("plain spawn" if start == "spawn" else "plain")


def main(start: str, url: str, queue: str) -> None:
    importlib.import_module("rq_worker")  # where its jobs are: no work horse need import them then
    worker_class(start)([queue], connection=Redis.from_url(url)).work(burst=True, logging_level="WARNING")


if __name__ == "__main__":
    main(*sys.argv[1:])
