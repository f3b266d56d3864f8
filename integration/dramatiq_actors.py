"""The application of Dramatiq's tests, as its command line loads it: ``dramatiq integration.dramatiq_actors``."""

from __future__ import annotations

import os
from pathlib import Path

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from opentelemetry import trace

import queueprop
from integration.contract.telemetry import capture_logs, set_providers, tell, wait_until
from queueprop.adapters.dramatiq import QueuepropMiddleware

URL = "QUEUEPROP_TEST_URL"
QUEUE = "QUEUEPROP_TEST_QUEUE"
TRACED = "QUEUEPROP_TEST_TRACED"
"""``explicit`` or ``instrumentor``; without it somebody else sees to it, or nobody."""

broker = RedisBroker(url=os.environ[URL], namespace=os.environ[QUEUE])
dramatiq.set_broker(broker)

if TRACED in os.environ:
    set_providers()
    capture_logs()
if os.environ.get(TRACED) == "explicit":
    broker.add_middleware(QueuepropMiddleware())
elif os.environ.get(TRACED) == "instrumentor":
    queueprop.instrument("dramatiq")


@dramatiq.actor(queue_name=os.environ[QUEUE], max_retries=1, min_backoff=1)
def work(note: str) -> None:
    """Tells what is current, in a span of its own; one that says so sends another, or fails the first time, or waits
    until such a one has come to another process too.
    """
    with trace.get_tracer("test").start_as_current_span("work") as span:
        context = span.get_span_context()
        tell("seen", {"note": note, "span_id": f"{context.span_id:016x}", "pid": os.getpid()})
    if note == "send":
        work.send("sent by an actor")
    if note == "meet":
        Path(f"met-{os.getpid()}").touch()
        wait_until(lambda: len(list(Path().glob("met-*"))) > 1, "another process")
    if note == "fail":
        work.send("failed")
        raise ValueError("gave up")
