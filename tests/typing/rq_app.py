"""RQ as users write it, read by mypy and pyright; nothing runs this file."""

from __future__ import annotations

from redis import Redis
from rq import Queue, Worker
from rq.job import Job
from typing_extensions import assert_type

from queueprop import Settings
from queueprop.adapters.rq import RQInstrumentor, traced_consumer, traced_publish


@traced_consumer()
def count(words: str, *, twice: bool = False) -> int:
    return len(words) * (2 if twice else 1)


def publish(queue: Queue) -> str:
    enqueue = traced_publish(queue.enqueue)
    job = enqueue(count, "a b c", twice=True)
    assert_type(job, Job)
    return job.id


def call_it_here() -> None:
    assert_type(count("a b c", twice=True), int)


def work() -> None:
    RQInstrumentor().instrument(settings=Settings(propagation="link"), consume_hook=lambda span, job: None)
    Worker([Queue("orders", connection=Redis())]).work(burst=True)
    RQInstrumentor().uninstrument()
