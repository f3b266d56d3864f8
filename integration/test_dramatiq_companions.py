"""What others have built upon Dramatiq, live: periodiq and django_dramatiq."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("dramatiq")

from dramatiq.brokers.redis import RedisBroker

from integration import test_dramatiq
from integration.contract.telemetry import PATIENCE, Telemetry, telemetry, wait_until
from integration.live import unique
from integration.test_dramatiq import Rig

through = test_dramatiq.through
queue = test_dramatiq.queue
on_redis = test_dramatiq.on_redis


def test_each_firing_of_a_periodic_actor_is_a_trace_of_its_own(on_redis: Rig) -> None:
    """periodiq's scheduler sends: a PRODUCER span each time, a root, and the actor in its trace."""
    periodiq = pytest.importorskip("periodiq", reason="periodiq is not installed")
    on_redis.broker.add_middleware(periodiq.PeriodiqMiddleware())

    def tick() -> None: ...

    actor = on_redis.actor(tick, periodic=periodiq.cron("* * * * *"))
    scheduler = periodiq.Scheduler([actor])
    for _ in range(2):
        scheduler.send_actors([actor], now=datetime.now(timezone.utc))
    with on_redis.working():
        on_redis.wait_for(2)
    assert [span.parent_id for span in on_redis.producers] == [None, None]
    assert len({span.trace_id for span in on_redis.producers}) == 2
    on_redis.assert_one_trace()


def test_a_firing_that_comes_too_late_has_one_span_and_leaves_nothing_current(on_redis: Rig) -> None:
    """periodiq skips it: the actor does not run, and what comes after it is in its own trace."""
    periodiq = pytest.importorskip("periodiq", reason="periodiq is not installed")
    on_redis.broker.add_middleware(periodiq.PeriodiqMiddleware(skip_delay=30))
    ran: list[int] = []

    def tick() -> None:
        ran.append(1)

    actor = on_redis.actor(tick, periodic=periodiq.cron("* * * * *"))
    scheduler = periodiq.Scheduler([actor])
    now = datetime.now(timezone.utc)
    for moment in (now - timedelta(hours=1), now):
        scheduler.send_actors([actor], now=moment)
    with on_redis.working():
        on_redis.wait_for(2)
    assert ran == [1]
    assert len(on_redis.consumers) == len({span.trace_id for span in on_redis.consumers}) == 2
    on_redis.assert_one_trace()


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Telemetry]:
    with telemetry(tmp_path / "records") as run:
        yield run


@pytest.mark.parametrize("through", ["explicit", "instrumentor"])
def test_a_task_of_django_s_is_in_the_trace_of_its_request(
    told: Telemetry, redis_url: str, through: str, tmp_path: Path
) -> None:
    """django_dramatiq makes the broker and its worker by Django's settings; the middleware may be named there."""
    pytest.importorskip("django_dramatiq", reason="django_dramatiq is not installed")
    namespace = unique("orders")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
        "DJANGO_SETTINGS_MODULE": "integration.django_dramatiq_app",
        "DJANGO_DRAMATIQ_APP": json.dumps({"url": redis_url, "namespace": namespace, "through": through}),
    }
    (tmp_path / "integration").symlink_to(Path(__file__).parent)
    program = [sys.executable, "-c", "from integration.django_dramatiq_app import send; send()"]
    subprocess.run(program, env=environment, timeout=PATIENCE, check=True)
    manage = [sys.executable, "-m", "django", "rundramatiq", "--processes", "1", "--threads", "1"]
    worker = subprocess.Popen(manage, env=environment)
    try:
        wait_until(lambda: any(told.records("seen")), "the task to run")
    finally:
        worker.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(PATIENCE)
        worker.kill()
    [request] = [span for span in told.spans if span.name == "request"]
    [producer] = [span for span in told.spans if span.kind == "PRODUCER"]
    [consumer] = [span for span in told.spans if span.kind == "CONSUMER"]
    assert (producer.trace_id, producer.parent_id) == request.context
    assert (consumer.trace_id, consumer.parent_id) == producer.context
    assert [seen["span_id"] for seen in told.records("seen")] == [consumer.span_id]
    client: Any = RedisBroker(url=redis_url).client
    for key in client.keys(f"{namespace}*"):
        client.delete(key)
