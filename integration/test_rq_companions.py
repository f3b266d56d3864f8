"""What others have built upon RQ, live: rq-scheduler and django-rq."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rq")
pytest.importorskip("rq_scheduler", reason="rq-scheduler is not installed")

from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from rq import SimpleWorker
from rq.job import Job
from rq_scheduler import Scheduler

from integration import rq_tasks as tasks
from integration import test_rq_jobs
from integration.contract.telemetry import PATIENCE, SpanRecord, ambient_span
from integration.test_rq_jobs import Rig
from queueprop.adapters import rq as adapter

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

_importable_jobs = test_rq_jobs._importable_jobs
make_rig = test_rq_jobs.make_rig
rig = test_rq_jobs.rig
instrumented = test_rq_jobs.instrumented


# rq-scheduler


@pytest.fixture
def scheduler(rig: Rig) -> Iterator[Scheduler]:
    """Whose schedules are gone afterwards: they are one set for a whole Redis."""
    yield Scheduler(queue_name=rig.queue.name, connection=rig.connection)
    rig.connection.delete(Scheduler.scheduled_jobs_key)


def fire(rig: Rig, scheduler: Scheduler, job: Job) -> None:
    """The job is due: the scheduler's process puts it into its queue, and a worker performs it."""
    rig.connection.zadd(scheduler.scheduled_jobs_key, {job.id: 0})
    rig.traced(scheduler.enqueue_jobs)()
    worker = SimpleWorker if rig.api == "instrumentor" else adapter.TracedSimpleWorker
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        worker([rig.queue], connection=rig.connection).work(burst=True, logging_level="WARNING")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _now() -> datetime:
    return datetime.utcnow()


ONCE: dict[str, Callable[[Rig, Scheduler], Job]] = {
    "enqueue_at": lambda rig, scheduler: rig.traced(scheduler.enqueue_at)(
        _now() + timedelta(seconds=30), tasks.work, "a", meta={"own": 1}
    ),
    "enqueue_in": lambda rig, scheduler: rig.traced(scheduler.enqueue_in)(
        timedelta(seconds=30), tasks.work, "a", meta={"own": 1}
    ),
    "schedule": lambda rig, scheduler: rig.traced(scheduler.schedule)(
        _now() + timedelta(seconds=30), tasks.work, ["a"], meta={"own": 1}
    ),
}
PERIODIC: dict[str, Callable[[Rig, Scheduler], Job]] = {
    "interval": lambda rig, scheduler: rig.traced(scheduler.schedule)(
        scheduled_time=_now(), func=tasks.work, args=["a"], interval=60, meta={"own": 1}
    ),
    "interval, some times": lambda rig, scheduler: rig.traced(scheduler.schedule)(
        _now(), tasks.work, ["a"], {}, 60, 5, meta={"own": 1}
    ),
    "cron": lambda rig, scheduler: rig.traced(scheduler.cron)(
        "* * * * *", tasks.work, ["a"], meta={"own": 1}
    ),
}


@pytest.mark.parametrize("way", [*ONCE, *PERIODIC])
def test_a_schedule_is_the_publish_of_its_first_job(rig: Rig, scheduler: Scheduler, way: str) -> None:
    """One PRODUCER span, where the schedule is made; the job is its child, whoever puts it into the queue."""
    with ambient_span() as ambient:
        job = (ONCE | PERIODIC)[way](rig, scheduler)
    [producer] = rig.producers
    assert (producer.trace_id, producer.parent_id) == (f"{ambient.trace_id:032x}", f"{ambient.span_id:016x}")
    assert producer.name == f"publish {rig.queue.name}"
    assert producer.attributes["messaging.message.id"] == job.id
    assert producer.attributes["code.function.name"] == f"{tasks.__name__}.work"
    if way in ONCE:
        assert 20 <= producer.attributes["queueprop.message.delay"] <= 30
    stored = Job.fetch(job.id, connection=rig.connection)
    assert stored.meta["own"] == 1
    assert producer.span_id in stored.meta["queueprop"]["traceparent"]
    with ambient_span("the scheduler's own"):
        fire(rig, scheduler, job)
    assert rig.producers == [producer]
    assert (rig.only.trace_id, rig.only.parent_id) == producer.context
    assert [note for note, _ in rig.seen] == ["a"]
    rig.assert_one_trace()


@pytest.mark.parametrize("way", list(PERIODIC))
def test_each_later_firing_is_a_trace_of_its_own(rig: Rig, scheduler: Scheduler, way: str) -> None:
    """A root PRODUCER span, linked to the making of the schedule, however many there were between."""
    with ambient_span():
        job = PERIODIC[way](rig, scheduler)
    for _ in range(4):
        with ambient_span("the scheduler's own"):
            fire(rig, scheduler, job)
    made, *later = rig.producers
    assert [span.parent_id for span in later] == [None] * 3
    assert [[link.context for link in span.links] for span in later] == [[made.context]] * 3
    assert len({span.trace_id for span in rig.producers}) == 4
    assert [(span.trace_id, span.parent_id) for span in rig.consumers] == [
        span.context for span in rig.producers
    ]
    assert {span.attributes["messaging.message.id"] for span in later} == {job.id}
    rig.assert_one_trace()


def test_a_schedule_from_before_is_traced_from_its_first_firing_on(instrumented: Rig) -> None:
    """Made by a program that is not traced: the firings are traces, and nothing is complained of."""
    rig, scheduler = (
        instrumented,
        Scheduler(queue_name=instrumented.queue.name, connection=instrumented.connection),
    )
    adapter.RQInstrumentor().uninstrument()
    job = scheduler.schedule(_now(), tasks.work, ["a"], interval=60)
    assert job.meta == {"interval": 60}
    adapter.RQInstrumentor().instrument()
    for _ in range(3):
        fire(rig, scheduler, job)
    assert [span.parent_id for span in rig.producers] == [None] * 3
    assert len({span.trace_id for span in rig.producers}) == 3
    rig.assert_one_trace()
    rig.connection.delete(scheduler.scheduled_jobs_key)


def test_a_meta_that_many_schedules_share_stays_as_it_is(rig: Rig, scheduler: Scheduler) -> None:
    """The caller's dict is copied: each job has a context of its own, the dict none."""
    meta = {"own": 1}
    jobs = [rig.traced(scheduler.enqueue_in)(timedelta(9), tasks.work, meta=meta) for _ in range(3)]
    assert meta == {"own": 1}
    assert len({job.meta["queueprop"]["traceparent"] for job in jobs}) == 3


def test_a_job_that_forwards_a_schedule_s_meta_is_no_firing_of_it(rig: Rig, scheduler: Scheduler) -> None:
    """What stands beside the context of a later firing goes no further than its job."""
    job = PERIODIC["interval"](rig, scheduler)
    for _ in range(2):
        fire(rig, scheduler, job)
    later = Job.fetch(job.id, connection=rig.connection)
    assert set(later.meta["queueprop"]) == {"traceparent", "schedule"}
    forwarded = rig.enqueue(tasks.work, meta=later.meta)
    assert set(forwarded.meta["queueprop"]) == {"traceparent"}


def test_a_schedule_that_fails_is_a_failed_publish(rig: Rig) -> None:
    """The library's own exception comes out, and is on the PRODUCER span."""
    lost = Scheduler(connection=Redis(port=1, socket_connect_timeout=1))
    with pytest.raises(RedisConnectionError):
        rig.traced(lost.enqueue_in)(timedelta(9), tasks.work)
    with pytest.raises(ValueError, match="interval"):
        rig.traced(lost.schedule)(_now(), tasks.work, repeat=2)
    assert [(span.status, span.name) for span in rig.producers] == [("ERROR", "publish default")] * 2


def test_what_the_explicit_api_schedules_while_instrumented_is_one_publish(instrumented: Rig) -> None:
    """Both layers see the same schedule, and the same firing."""
    rig = instrumented
    scheduler = Scheduler(queue_name=rig.queue.name, connection=rig.connection)
    traced = adapter.traced_publish
    job: Job = traced(scheduler.schedule)(_now(), tasks.work, ["a"], interval=60)
    for _ in range(2):
        rig.connection.zadd(scheduler.scheduled_jobs_key, {job.id: 0})
        traced(scheduler.enqueue_jobs)()
    assert len(rig.producers) == 2
    rig.connection.delete(scheduler.scheduled_jobs_key)


def test_a_scheduler_s_other_methods_are_refused(rig: Rig) -> None:
    """traced_publish says so where a program is set up."""
    scheduler = Scheduler(connection=rig.connection)
    for method in (scheduler.cancel, scheduler.get_jobs, scheduler.count):
        with pytest.raises(TypeError, match="traced_publish"):
            adapter.traced_publish(method)


def test_opentelemetry_instrument_traces_the_scheduler_s_program(instrumented: Rig) -> None:
    """No code at all, and rq_scheduler is imported long after the instrumentation: a later firing is a root."""
    rig = instrumented
    scheduler = Scheduler(queue_name=rig.queue.name, connection=rig.connection)
    job = scheduler.schedule(_now(), tasks.work, ["a"], interval=60)
    printed = []
    for _ in range(2):
        rig.connection.zadd(scheduler.scheduled_jobs_key, {job.id: 0})
        printed += _launched("rqscheduler", "--burst", "--url", rig.url)
    [made] = rig.producers
    [later] = [span for span in printed if span["kind"] == "SpanKind.PRODUCER"]
    assert later["parent_id"] is None
    assert [link["context"]["span_id"] for link in later["links"]] == [f"0x{made.span_id}"]
    rig.connection.delete(scheduler.scheduled_jobs_key)


def _launched(program: str, *arguments: str) -> list[Any]:
    """The spans of a program of the environment's."""
    programs = Path(sys.executable).parent
    launched = subprocess.run(
        [
            programs / "opentelemetry-instrument",
            *("--traces_exporter", "console", "--metrics_exporter", "none", "--logs_exporter", "none"),
            programs / program,
            *arguments,
        ],
        stdout=subprocess.PIPE,
        timeout=PATIENCE,
        check=True,
        text=True,
    )
    return list(test_rq_jobs._json_objects(launched.stdout))


# django-rq

# Its import wants Django's settings, which are the served program's.
needs_django_rq = pytest.mark.skipif(not test_rq_jobs.has("django_rq"), reason="django-rq is not installed")


@needs_django_rq
@pytest.mark.parametrize("mode", ["auto", "on_db_commit", "request_finished"])
def test_a_postponed_publish_is_a_child_of_who_asked_for_it(rig: Rig, mode: str) -> None:
    """In every commit mode the job is in the trace of the request, and a child of the span that was current."""
    _django(rig, mode, "once")
    [order], [producer] = named(rig, "order"), rig.producers
    assert (producer.trace_id, producer.parent_id) == order.context
    rig.work()
    assert (rig.only.trace_id, rig.only.parent_id) == producer.context
    rig.assert_one_trace()


@needs_django_rq
@pytest.mark.parametrize("mode", ["auto", "on_db_commit", "request_finished"])
def test_publishes_that_are_postponed_together_keep_their_own_callers(rig: Rig, mode: str) -> None:
    """Each is the child of its own caller's span; no context is current afterwards that was not before."""
    _django(rig, mode, "three times")
    orders = named(rig, "order")
    assert [(span.trace_id, span.parent_id) for span in rig.producers] == [span.context for span in orders]
    assert len(orders) == 3
    [after] = named(rig, "after")
    assert after.parent_id is None


@needs_django_rq
@pytest.mark.parametrize("mode", ["auto", "on_db_commit", "request_finished"])
def test_a_request_that_fails_publishes_what_it_would_without_us(rig: Rig, mode: str) -> None:
    """A rollback, and the end of a failed request, drop what was postponed: no job, and no span."""
    plainly = _django(rig, mode, "and fail", api="none")
    rig.connection.delete(rig.queue.key)
    assert plainly == _django(rig, mode, "and fail") == len(rig.producers)


def named(rig: Rig, name: str) -> list[SpanRecord]:
    return [span for span in rig.run.spans if span.name == name]


def _django(rig: Rig, mode: str, what: str, api: str | None = None) -> int:
    """One request to a Django program. Returns how many jobs are in the queue."""
    arguments = {"url": rig.url, "queue": rig.queue.name, "mode": mode, "what": what, "api": api or rig.api}
    program = [sys.executable, "-c", _RUN_DJANGO, str(Path(__file__).parents[1]), json.dumps(arguments)]
    subprocess.run(program, timeout=PATIENCE, check=True)
    return rig.queue.count


_RUN_DJANGO = """
import json, sys
sys.path.append(sys.argv[1])
from integration.django_rq_app import serve
serve(**json.loads(sys.argv[2]))
"""
