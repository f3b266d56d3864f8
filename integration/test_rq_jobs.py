"""What RQ alone has: its ways to publish, its own re-enqueueing, callbacks, time limits and work horses.

What every library has is in the contract.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rq")

from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from rq import Queue, Retry
from rq.command import send_stop_job_command
from rq.decorators import job as rq_job
from rq.job import Job
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer

from integration import rq_tasks as tasks
from integration.contract.telemetry import (
    PATIENCE,
    SpanRecord,
    Telemetry,
    ambient_span,
    telemetry,
    wait_until,
)
from queueprop.adapters import rq as adapter

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

HORSES = [name for name in tasks.WORKERS if "simple" not in name]
FORKS = [name for name in HORSES if "spawn" not in name]
PARAMETERS = Queue.enqueue_call.__code__.co_varnames


def has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


@dataclass
class Rig:
    """A queue of the test's own, and what its programs tell."""

    run: Telemetry
    url: str
    queue: Queue
    api: str
    folder: Path

    @property
    def connection(self) -> Redis:
        return self.queue.connection

    def traced(self, publish: Callable[..., Any]) -> Callable[..., Any]:
        return publish if self.api == "instrumentor" else adapter.traced_publish(publish)

    def enqueue(self, *args: Any, **kwargs: Any) -> Job:
        job: Job = self.traced(self.queue.enqueue)(*args, **kwargs)
        return job

    def work(self, worker: str = "simple", **options: Any) -> None:
        """Works the queue off in a process of its own."""
        assert self.start(worker, **options).wait(PATIENCE) == 0

    def start(self, worker: str = "simple", **options: Any) -> subprocess.Popen[bytes]:
        options.setdefault("instrumented", "traced" not in worker)
        return tasks.start_worker(self.url, self.queue.name, worker, **options)

    @property
    def producers(self) -> list[SpanRecord]:
        return [span for span in self.run.spans if span.kind == "PRODUCER"]

    @property
    def consumers(self) -> list[SpanRecord]:
        return [span for span in self.run.spans if span.kind == "CONSUMER"]

    @property
    def only(self) -> SpanRecord:
        [span] = self.consumers
        return span

    @property
    def seen(self) -> list[tuple[str, str]]:
        """What was called, and inside which span."""
        return [(it["note"], it["span_id"]) for it in self.run.records("seen")]

    def assert_one_trace(self) -> None:
        """Every job has its CONSUMER span, a child of its own PRODUCER span, and nothing was complained of."""
        parents = {span.span_id: span.trace_id for span in self.producers}
        assert all(parents.get(span.parent_id or "") == span.trace_id for span in self.consumers)
        assert [record.text for record in self.run.logged] == []


@pytest.fixture(autouse=True)
def _importable_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that RQ starts import the jobs from the checkout, and queueprop from where it is installed."""
    (tmp_path / "integration").symlink_to(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.fixture
def make_rig(redis_url: str, tmp_path: Path) -> Iterator[Callable[[str], Rig]]:
    with contextlib.ExitStack() as stack:

        def make(api: str = "instrumentor") -> Rig:
            run = stack.enter_context(telemetry(tmp_path / "records"))
            if api == "instrumentor":
                instrumentor = adapter.RQInstrumentor()
                instrumentor.instrument()
                stack.callback(instrumentor.uninstrument)
            connection = Redis.from_url(redis_url)
            stack.callback(connection.close)
            queue = Queue(f"jobs-{uuid.uuid4().hex[:8]}", connection=connection)
            return Rig(run, redis_url, queue, api, tmp_path)

        yield make


@pytest.fixture(params=["explicit", "instrumentor"])
def rig(request: pytest.FixtureRequest, make_rig: Callable[[str], Rig]) -> Rig:
    return make_rig(request.param)


@pytest.fixture
def instrumented(make_rig: Callable[[str], Rig]) -> Rig:
    return make_rig("instrumentor")


# Publishing


def _delayed(function: str) -> Callable[[Rig], Any]:
    def publish(rig: Rig) -> Any:
        decorated = rq_job(rig.queue.name, connection=rig.connection, meta={"own": 1})(_function())
        return rig.traced(getattr(decorated, function))("a")

    return publish


def _function() -> Callable[..., Any]:
    # A fresh function: @job writes on the one that it is given.
    def work(note: str) -> None: ...

    work.__module__, work.__qualname__ = tasks.__name__, "work"
    return work


def _soon() -> datetime:
    return datetime.now(timezone.utc) + timedelta(seconds=30)


WAYS: dict[str, Callable[[Rig], Any]] = {
    "enqueue": lambda rig: rig.enqueue(tasks.work, "a", meta={"own": 1}),
    "enqueue by name": lambda rig: rig.enqueue(f"{tasks.__name__}.work", "a", meta={"own": 1}),
    "enqueue, explicit arguments": lambda rig: rig.enqueue(tasks.work, args=("a",), meta={"own": 1}),
    "enqueue_call": lambda rig: rig.traced(rig.queue.enqueue_call)(tasks.work, ("a",), meta={"own": 1}),
    "enqueue_in": lambda rig: rig.traced(rig.queue.enqueue_in)(
        timedelta(seconds=30), tasks.work, "a", meta={"own": 1}
    ),
    "enqueue_at": lambda rig: rig.traced(rig.queue.enqueue_at)(_soon(), tasks.work, "a", meta={"own": 1}),
    "enqueue_job": lambda rig: rig.traced(rig.queue.enqueue_job)(
        rig.queue.create_job(tasks.work, ("a",), meta={"own": 1})
    ),
    "schedule_job": lambda rig: rig.traced(rig.queue.schedule_job)(
        rig.queue.create_job(tasks.work, ("a",), meta={"own": 1}), _soon()
    ),
    "delay": _delayed("delay"),
    "partial": lambda rig: rig.traced(functools.partial(rig.queue.enqueue, tasks.work, meta={"own": 1}))("a"),
    "depends_on": lambda rig: rig.enqueue(
        tasks.work, "a", meta={"own": 1}, depends_on=Job.create(tasks.work, connection=rig.connection)
    ),
}
if hasattr(rq_job, "enqueue") or "enqueue" in rq_job.__call__.__code__.co_names:
    WAYS["task.enqueue"] = _delayed("enqueue")
if "unique" in PARAMETERS:
    WAYS["unique"] = lambda rig: rig.enqueue(
        tasks.work, "a", unique=True, job_id=uuid.uuid4().hex, meta={"own": 1}
    )


@pytest.mark.parametrize("way", list(WAYS))
def test_every_way_to_publish_makes_one_producer_span_and_stores_its_context(rig: Rig, way: str) -> None:
    """One PRODUCER span, a child of the caller's; its context beside the user's own meta in the stored job."""
    with ambient_span() as ambient:
        job = WAYS[way](rig)
    [span] = rig.producers
    assert (span.trace_id, span.parent_id) == (f"{ambient.trace_id:032x}", f"{ambient.span_id:016x}")
    assert (span.name, span.status) == (f"publish {rig.queue.name}", "UNSET")
    assert span.attributes["messaging.message.id"] == job.id
    assert span.attributes["code.function.name"] == f"{tasks.__name__}.work"
    stored = Job.fetch(job.id, connection=rig.connection)
    assert stored.args == ("a",)
    assert stored.meta == {
        "own": 1,
        "queueprop": {"traceparent": f"00-{span.trace_id}-{span.span_id}-03"},
    } or (stored.meta["queueprop"]["traceparent"].rsplit("-", 1)[0] == f"00-{span.trace_id}-{span.span_id}")
    if way in ("enqueue_in", "enqueue_at", "schedule_job"):
        assert 20 < span.attributes["queueprop.message.delay"] <= 30


def test_a_meta_that_many_jobs_share_stays_as_it_is(rig: Rig) -> None:
    """The caller's dict is copied: each job has a context of its own, the dict none."""
    meta = {"own": 1}
    jobs = [rig.enqueue(tasks.work, meta=meta) for _ in range(3)]
    assert meta == {"own": 1}
    assert len({job.meta["queueprop"]["traceparent"] for job in jobs}) == 3


@pytest.mark.parametrize("group", [False, True])
def test_jobs_enqueued_together_have_a_create_span_each(rig: Rig, group: bool) -> None:
    """enqueue_many: a create span (PRODUCER) a job, whose context it stores, and a send span (CLIENT) linking them."""
    if group and not has("rq.group"):
        pytest.skip("groups came with RQ 2")
    first = rig.enqueue(tasks.work, "first")
    datas = [Queue.prepare_data(tasks.work, (str(n),), meta={"own": n}) for n in range(3)]
    datas.append(Queue.prepare_data(tasks.work, ("last",), depends_on=first, retry=Retry(max=2)))
    if group:
        from rq.group import Group

        jobs = rig.traced(Group.create(rig.connection).enqueue_many)(rig.queue, datas)
    else:
        jobs = rig.traced(rig.queue.enqueue_many)(datas)
    _, *creates = rig.producers
    [send] = [span for span in rig.run.spans if span.kind == "CLIENT" and span.is_ours]
    assert [span.name for span in creates] == [f"create {rig.queue.name}"] * 4
    assert send.attributes["messaging.batch.message_count"] == 4
    assert [link.context for link in send.links] == [span.context for span in creates]
    by_id = {span.attributes["messaging.message.id"]: span for span in creates}
    for job in jobs:
        stored = Job.fetch(job.id, connection=rig.connection)
        assert by_id[job.id].span_id in stored.meta["queueprop"]["traceparent"]
    assert datas[0].meta == {"own": 0}
    rig.work()
    assert len(rig.consumers) == 5
    rig.assert_one_trace()


def test_jobs_in_a_pipeline_of_the_callers_are_traced(rig: Rig) -> None:
    """pipeline=: the span ends with the call; the job is stored when the caller executes the pipeline."""
    with rig.connection.pipeline() as pipeline:
        job = rig.enqueue(tasks.work, "piped", pipeline=pipeline)
        assert len(rig.producers) == 1
        assert rig.queue.count == 0
        pipeline.execute()
    rig.work()
    assert rig.only.attributes["messaging.message.id"] == job.id
    rig.assert_one_trace()


def test_another_serializer_carries_the_context(rig: Rig) -> None:
    """The context is plain text in meta, which JSON stores too."""
    queue = Queue(rig.queue.name, connection=rig.connection, serializer=JSONSerializer)
    job = rig.traced(queue.enqueue)(tasks.work, "json", meta={"own": 1})
    raw: Any = rig.connection.hget(job.key, "meta")
    assert set(json.loads(raw)) == {"own", "queueprop"}


@pytest.mark.skipif("rate_limit" not in PARAMETERS, reason="rate limits came with RQ 3")
def test_a_job_that_waits_for_its_rate_limit_keeps_its_trace(rig: Rig) -> None:
    """The job that takes the freed slot is enqueued by RQ: no second PRODUCER span."""
    from rq.rate_limit import RateLimit

    limit = RateLimit(f"one-{rig.queue.name}", 1)
    for note in "ab":
        rig.enqueue(tasks.work, note, rate_limit=limit)
    rig.work()
    assert [note for note, _ in rig.seen] == ["a", "b"]
    assert (len(rig.producers), len(rig.consumers)) == (2, 2)
    rig.assert_one_trace()


@pytest.mark.skipif("unique" not in PARAMETERS, reason="unique jobs came with RQ 3")
def test_a_refused_duplicate_is_a_failed_publish(rig: Rig) -> None:
    """unique=True: RQ's own exception comes out, and is on the PRODUCER span."""
    from rq.exceptions import DuplicateJobError

    rig.enqueue(tasks.work, unique=True, job_id=rig.queue.name)
    with pytest.raises(DuplicateJobError):
        rig.enqueue(tasks.work, unique=True, job_id=rig.queue.name)
    with pytest.raises(ValueError, match="job_id"):
        rig.traced(rig.queue.enqueue_in)(timedelta(seconds=9), tasks.work, unique=True)
    assert [span.status for span in rig.producers] == ["UNSET", "ERROR", "ERROR"]
    assert rig.producers[1].attributes["error.type"] == "rq.exceptions.DuplicateJobError"


def test_a_failed_publish_is_an_error_on_its_span(rig: Rig) -> None:
    """A Redis that is not there: the same exception, and the PRODUCER span has it."""
    lost = Queue("lost", connection=Redis(port=1, socket_connect_timeout=1))
    with pytest.raises(RedisConnectionError):
        rig.traced(lost.enqueue)(tasks.work)
    [span] = rig.producers
    assert (span.status, span.attributes["error.type"]) == ("ERROR", "redis.exceptions.ConnectionError")
    assert span.attributes["server.port"] == 1


def test_arguments_that_cannot_be_stored_are_a_failed_publish(rig: Rig) -> None:
    """What pickle refuses comes out of the call as it does without us."""
    with pytest.raises(Exception, match=r"pickle|local object"):
        rig.enqueue(tasks.work, lambda: None)
    assert [span.status for span in rig.producers] == ["ERROR"]


@pytest.mark.skipif(not has("rq.cron"), reason="cron came with RQ 2.4")
def test_cron_jobs_are_traced_by_the_instrumentor(instrumented: Rig) -> None:
    """Each tick publishes: a PRODUCER span, and the job in its trace."""
    from rq.cron import CronJob

    cron = CronJob(instrumented.queue.name, tasks.work, interval=60)
    for _ in range(2):
        cron.enqueue(instrumented.connection)
    instrumented.work()
    assert (len(instrumented.producers), len(instrumented.consumers)) == (2, 2)
    instrumented.assert_one_trace()


def test_what_the_explicit_api_publishes_while_instrumented_is_one_publish(instrumented: Rig) -> None:
    """traced_publish above the instrumentor, twice over: one span."""
    publish = adapter.traced_publish(adapter.traced_publish(instrumented.queue.enqueue))
    publish(tasks.work)
    adapter.traced_publish(instrumented.queue.enqueue_many)([Queue.prepare_data(tasks.work)])
    assert [span.name.split()[0] for span in instrumented.producers] == ["publish", "create"]


@pytest.mark.parametrize("worker", list(tasks.WORKERS))
def test_layers_of_tracing_make_one_span(instrumented: Rig, worker: str) -> None:
    """A traced function on a traced worker under the instrumentor: one CONSUMER span a job."""
    for function in (tasks.traced_work, tasks.traced_work_async):
        instrumented.enqueue(function, "layers")
    instrumented.enqueue(tasks.traced_fail)
    instrumented.work(worker, instrumented=True)
    assert [span.status for span in instrumented.consumers] == ["UNSET", "UNSET", "ERROR"]
    instrumented.assert_one_trace()


# What RQ enqueues by itself


def test_a_retry_is_in_the_trace_and_tells_its_attempt(rig: Rig) -> None:
    """Each attempt has a CONSUMER span, all children of the one publish."""
    rig.enqueue(tasks.fail, 2, retry=Retry(max=3))
    rig.work("traced simple" if rig.api == "explicit" else "simple")
    assert [span.status for span in rig.consumers] == ["ERROR", "ERROR", "UNSET"]
    assert [span.attributes["queueprop.message.delivery_attempt"] for span in rig.consumers] == [1, 2, 3]
    assert len(rig.producers) == 1
    rig.assert_one_trace()


def test_a_scheduled_job_and_a_scheduled_retry_are_in_the_trace(rig: Rig) -> None:
    """The scheduler's enqueueing is no publish, and the delay does not count as time in the queue."""
    rig.traced(rig.queue.enqueue_in)(timedelta(seconds=3), tasks.fail, 1, retry=Retry(max=1, interval=3))
    for _ in range(2):
        time.sleep(3.2)
        rig.work("traced simple" if rig.api == "explicit" else "simple", with_scheduler=True)
    assert [span.status for span in rig.consumers] == ["ERROR", "UNSET"]
    assert all(span.attributes["queueprop.message.queue_time"] < 3 for span in rig.consumers)
    assert len(rig.producers) == 1
    rig.assert_one_trace()


def test_dependents_keep_the_context_of_their_own_publish(rig: Rig) -> None:
    """RQ enqueues them when the first is done: no span of that, and each in its publisher's trace."""
    with ambient_span():
        first = rig.enqueue(tasks.work, "first")
    with ambient_span():
        rig.enqueue(tasks.work, "second", depends_on=first)
    rig.work("traced fork" if rig.api == "explicit" else "fork")
    assert len(rig.producers) == 2
    assert len({span.trace_id for span in rig.consumers}) == 2
    rig.assert_one_trace()


@pytest.mark.skipif(not has("rq.repeat"), reason="Repeat came with RQ 2.3")
@pytest.mark.parametrize("worker", ["simple", "traced fork"])
def test_a_repeated_job_stays_in_the_trace_of_its_publish(instrumented: Rig, worker: str) -> None:
    """Each repetition has a CONSUMER span; there is one PRODUCER span."""
    from rq.repeat import Repeat

    instrumented.enqueue(tasks.work, "again", repeat=Repeat(times=2, interval=0))
    instrumented.work(worker)
    assert (len(instrumented.producers), len(instrumented.consumers)) == (1, 3)
    instrumented.assert_one_trace()


@pytest.mark.parametrize(
    "requeue",
    [lambda job: job.requeue(), lambda job: Queue(job.origin, connection=job.connection).enqueue_job(job)],
)
def test_a_requeued_job_keeps_its_origin(instrumented: Rig, requeue: Callable[[Job], Any]) -> None:
    """Requeueing what failed, by RQ or by hand, is a redelivery of the first publish."""
    job = instrumented.enqueue(tasks.fail, 1)
    instrumented.work()
    requeue(Job.fetch(job.id, connection=instrumented.connection))
    instrumented.work()
    assert [span.status for span in instrumented.consumers] == ["ERROR", "UNSET"]
    assert len(instrumented.producers) == 1
    instrumented.assert_one_trace()


@pytest.mark.parametrize("worker", ["simple", "fork", "traced simple", "traced fork"])
@pytest.mark.parametrize("how", ["assigned", "assigned and saved", "emptied and saved"])
def test_a_job_that_replaces_its_meta_keeps_its_context(instrumented: Rig, worker: str, how: str) -> None:
    """The retry is in the trace, and the user's meta is what the job made of it."""
    if "traced" in worker and how == "emptied and saved":
        pytest.skip("only the instrumentor sees Job.save_meta")
    job = instrumented.enqueue(tasks.replace_meta, how, meta={"first": 0}, retry=Retry(max=1))
    instrumented.work(worker)
    assert [span.status for span in instrumented.consumers] == ["ERROR", "UNSET"]
    instrumented.assert_one_trace()
    left = dict(Job.fetch(job.id, connection=instrumented.connection).meta)
    left.pop("queueprop", None)
    assert left == ({} if how == "emptied and saved" else {"step": 1})


def test_meta_that_cannot_be_read_is_left_as_it_is(instrumented: Rig) -> None:
    """Its job is performed in a trace of its own, and RQ can still save meta, and does as without us."""
    job = instrumented.enqueue(tasks.fail, 1, retry=Retry(max=1))
    instrumented.connection.hset(job.key, "meta", b"no pickle")
    instrumented.work("fork")
    assert [span.status for span in instrumented.consumers] == ["ERROR", "UNSET"]
    assert all(span.parent_id is None for span in instrumented.consumers)
    raw: Any = instrumented.connection.hget(job.key, "meta")
    assert raw == b"no pickle" if hasattr(job, "_unreadable_meta") else b"queueprop" not in raw


# Around the function


CALLBACKS = {"on_success": tasks.on_success, "on_failure": tasks.on_failure}


@pytest.mark.parametrize("worker", ["simple", "fork", "traced simple", "traced fork"])
def test_callbacks_run_in_the_job_s_span(instrumented: Rig, worker: str) -> None:
    """Success and failure callbacks, and what they publish, are inside the CONSUMER span."""
    instrumented.enqueue(tasks.work, "fine", **CALLBACKS)
    instrumented.enqueue(tasks.fail, **CALLBACKS)
    instrumented.work(worker)
    fine, failed = instrumented.consumers
    assert instrumented.seen == [
        ("fine", fine.span_id),
        ("on_success", fine.span_id),
        ("fail", failed.span_id),
        ("on_failure", failed.span_id),
    ]
    instrumented.assert_one_trace()


@pytest.mark.parametrize("worker", ["simple", "traced fork"])
def test_the_error_is_the_job_s_own_when_its_callback_fails_too(instrumented: Rig, worker: str) -> None:
    """RQ records the callback's exception; the span tells why the job failed."""
    instrumented.enqueue(tasks.fail, on_failure=tasks.fail_on_failure)
    instrumented.work(worker)
    assert (instrumented.only.status, instrumented.only.attributes["error.type"]) == ("ERROR", "ValueError")
    assert instrumented.only.description == "gave up"


def test_the_callback_of_an_abandoned_job_runs_in_its_trace(instrumented: Rig) -> None:
    """Worker and job were killed together: another worker's maintenance calls the failure callback."""
    instrumented.enqueue(tasks.kill_itself, on_failure=tasks.on_failure)
    assert instrumented.start("simple").wait(PATIENCE) == -signal.SIGKILL
    registry = StartedJobRegistry(instrumented.queue.name, connection=instrumented.connection)
    registry.cleanup(timestamp=int(time.time()) + 10_000)
    [producer] = instrumented.producers
    assert ("on_failure", producer.span_id) in instrumented.seen
    assert not trace.get_current_span().get_span_context().is_valid


def test_a_job_publishes_a_child_of_its_own_span(rig: Rig) -> None:
    """A new job out of a job: a new PRODUCER span under the CONSUMER span."""
    rig.enqueue(tasks.publish_more, "forwarding")
    rig.work("fork")
    first, second = rig.producers
    assert second.parent_id == rig.only.span_id
    assert first.trace_id == second.trace_id


@pytest.mark.parametrize("function", ["no.such.module.function", f"{tasks.__name__}.no_such_function"])
@pytest.mark.parametrize("worker", ["simple", "fork", "traced fork"])
def test_a_job_whose_function_is_not_there_has_its_span(
    instrumented: Rig, worker: str, function: str
) -> None:
    """What fails before the function runs is a failed delivery: one CONSUMER span, ERROR."""
    instrumented.enqueue(function)
    instrumented.work(worker)
    assert instrumented.only.status == "ERROR"
    assert instrumented.only.events[0][0] == "exception"
    instrumented.assert_one_trace()


@pytest.mark.parametrize("worker", ["simple", "fork"])
def test_a_job_that_cannot_be_unpickled_has_its_span(instrumented: Rig, worker: str) -> None:
    """Likewise when RQ cannot read the job's data."""
    job = instrumented.enqueue(tasks.work)
    instrumented.connection.hset(job.key, "data", b"no pickle")
    instrumented.work(worker)
    assert instrumented.only.attributes["error.type"] == "rq.exceptions.DeserializationError"
    instrumented.assert_one_trace()


def test_a_job_that_leaves_its_process_has_failed(instrumented: Rig) -> None:
    """RQ takes SystemExit for a failure, whatever its status."""
    instrumented.enqueue(tasks.leave)
    instrumented.work("fork")
    assert (instrumented.only.status, instrumented.only.attributes["error.type"]) == ("ERROR", "SystemExit")


# A queue without workers


def test_is_async_false_makes_both_spans_in_one_process(instrumented: Rig) -> None:
    """The job runs inside the publish: CONSUMER under PRODUCER, callbacks inside, and nothing stays current."""
    queue = Queue(instrumented.queue.name, connection=instrumented.connection, is_async=False)
    queue.enqueue(tasks.publish_more, "sync", on_success=tasks.on_success)
    queue.enqueue(tasks.fail, on_failure=tasks.on_failure)
    assert not trace.get_current_span().get_span_context().is_valid
    published, more, failing = instrumented.producers
    fine, failed = instrumented.consumers
    assert [span.parent_id for span in (more, fine, failed)] == [
        fine.span_id,
        published.span_id,
        failing.span_id,
    ]
    assert (failed.status, failed.attributes["error.type"]) == ("ERROR", "ValueError")
    assert failing.status == "UNSET"
    assert [span_id for _, span_id in instrumented.seen] == [fine.span_id] * 2 + [failed.span_id] * 2


def test_is_async_false_is_traced_by_the_explicit_api(make_rig: Callable[[str], Rig]) -> None:
    """traced_publish and traced_consumer, without patches: the same two spans."""
    rig = make_rig("explicit")
    queue = Queue(rig.queue.name, connection=rig.connection, is_async=False)
    adapter.traced_publish(queue.enqueue)(tasks.traced_work, "sync")
    assert rig.only.parent_id == rig.producers[0].span_id
    assert rig.seen == [("sync", rig.only.span_id)]


def test_a_traced_function_on_a_plain_worker_has_its_span(make_rig: Callable[[str], Rig]) -> None:
    """traced_consumer alone: the span, its retry in the trace, and the flush before a work horse exits."""
    rig = make_rig("explicit")
    rig.enqueue(tasks.traced_work, "sync")
    rig.enqueue(tasks.traced_work_async, "async")
    rig.enqueue(tasks.traced_replace_meta, "assigned", retry=Retry(max=1))
    rig.work("fork", instrumented=False)
    assert [span.status for span in rig.consumers] == ["UNSET", "UNSET", "ERROR", "UNSET"]
    assert {span_id for _, span_id in rig.seen} == {span.span_id for span in rig.consumers}
    rig.assert_one_trace()


# Time limits and work horses


@pytest.mark.parametrize("worker", ["simple", "traced simple", *HORSES])
def test_a_job_over_its_time_limit_fails_as_it_should(instrumented: Rig, worker: str) -> None:
    """RQ's JobTimeoutException: the job fails in time, and its span says so."""
    job = instrumented.enqueue(tasks.sleep, 30, job_timeout=1, on_failure=tasks.on_failure)
    instrumented.work(worker)
    assert job.get_status() == "failed"
    assert instrumented.only.attributes["error.type"] == "rq.timeouts.JobTimeoutException"
    assert instrumented.only.seconds < 20  # of the 30 that it sleeps


@pytest.mark.parametrize("worker", ["simple", "fork"])
def test_a_time_limit_that_strikes_in_our_code_goes_through(instrumented: Rig, worker: str) -> None:
    """The job does nothing but publish: wherever the signal comes, the job ends then, and fails."""
    job = instrumented.enqueue(tasks.publish_on_and_on, 20, job_timeout=1)
    instrumented.work(worker)
    assert job.get_status() == "failed"
    [span] = [span for span in instrumented.consumers if span.name.endswith(instrumented.queue.name)]
    assert span.attributes["error.type"] == "rq.timeouts.JobTimeoutException"
    assert span.seconds < 15  # of the 20 that it publishes
    assert [record.text for record in instrumented.run.logged] == []


@pytest.mark.parametrize("worker", HORSES)
def test_a_killed_work_horse_has_its_span(instrumented: Rig, worker: str) -> None:
    """The parent ends it, once, with ERROR; what RQ then calls is inside it, and the retry in the trace."""
    instrumented.enqueue(tasks.kill_itself, retry=Retry(max=1))
    instrumented.work(worker)
    first, second = instrumented.consumers
    for span in (first, second):
        assert (span.status, span.attributes["error.type"]) == ("ERROR", "work_horse_killed")
        assert "signal 9" in (span.description or "")
    called = [span_id for note, span_id in instrumented.seen if note == "work_horse_killed_handler"]
    assert called == [first.span_id, second.span_id]
    assert first.span_id != second.span_id
    instrumented.assert_one_trace()


@pytest.mark.parametrize("worker", FORKS)
@pytest.mark.parametrize("status", [0, 3])
def test_a_job_that_ends_its_work_horse_has_its_span(instrumented: Rig, worker: str, status: int) -> None:
    """os._exit in a job: no hook runs in the horse, whatever the status."""
    instrumented.enqueue(tasks.exit_hard, status)
    instrumented.work(worker)
    assert (instrumented.only.status, instrumented.only.attributes["error.type"]) == (
        "ERROR",
        "work_horse_killed",
    )
    instrumented.assert_one_trace()


@pytest.mark.parametrize("worker", HORSES)
def test_a_stopped_job_has_its_span(instrumented: Rig, worker: str) -> None:
    """The stop command kills the horse: one span, ERROR, with the stopped callback inside."""
    job = instrumented.enqueue(tasks.sleep, 30, on_stopped=tasks.on_stopped)
    process = instrumented.start(worker)
    wait_until(lambda: bool(instrumented.seen), "the job runs")
    send_stop_job_command(instrumented.connection, job.id)
    assert process.wait(PATIENCE) == 0
    assert (instrumented.only.status, instrumented.only.attributes["error.type"]) == ("ERROR", "job_stopped")
    assert ("on_stopped", instrumented.only.span_id) in instrumented.seen
    assert job.get_status() == "stopped"
    instrumented.assert_one_trace()


def notes_its_end(rig: Rig) -> bool:
    """Whether a busy worker has told its Redis that it was asked to end."""
    workers: Any = rig.connection.smembers(f"rq:workers:{rig.queue.name}")
    return any(rig.connection.hexists(worker, "shutdown_requested_date") for worker in workers)


@pytest.mark.parametrize("worker", FORKS)
def test_a_cold_shutdown_ends_the_span_of_the_horse(instrumented: Rig, worker: str) -> None:
    """Two signals take the worker down with its horse: the parent still ends and hands over the span."""
    instrumented.enqueue(tasks.sleep, 30)
    process = instrumented.start(worker)
    wait_until(lambda: bool(instrumented.seen), "the job runs")
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: notes_its_end(instrumented), "the worker to take notice")
    time.sleep(1.1)  # until then RQ takes the second one for an echo of the first
    process.send_signal(signal.SIGTERM)
    process.wait(PATIENCE)
    assert (instrumented.only.status, instrumented.only.attributes["error.type"]) == (
        "ERROR",
        "work_horse_killed",
    )


@pytest.mark.parametrize("worker", FORKS)
def test_a_worker_that_is_killed_leaves_its_horse_to_end_the_span(instrumented: Rig, worker: str) -> None:
    """SIGKILL for the parent alone: the horse works on and hands its span over."""
    instrumented.enqueue(tasks.sleep, 2)
    process = instrumented.start(worker)
    wait_until(lambda: bool(instrumented.seen), "the job runs")
    process.kill()
    process.wait(PATIENCE)
    wait_until(lambda: bool(instrumented.consumers), "the horse has handed over")
    assert instrumented.only.status == "UNSET"


@pytest.mark.parametrize("worker", FORKS)
def test_an_exporter_that_hangs_delays_a_job_by_no_more_than_the_bound(
    instrumented: Rig, worker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """flush_timeout: the horse exits then, and the job is finished."""
    monkeypatch.setenv("QUEUEPROP_FLUSH_TIMEOUT", "0.5")
    jobs = [instrumented.enqueue(tasks.work) for _ in range(3)]
    process = instrumented.start(worker, stuck=True)
    wait_until(lambda: all(job.get_status() == "finished" for job in jobs), "the jobs are done")
    process.kill()
    process.wait()
    began, _, _, _, _, ended = moments(jobs)  # not how long the program takes to start
    assert (ended - began).total_seconds() < 15


_TEXTS = {
    "emoji": "bad name: " + "\N{GRINNING FACE}" * 40,
    "long": "x" * 100_000,
    "control characters": "\x00\x1b[0m\r\n\u2028\"'" * 100,
}


@pytest.mark.parametrize("sdk", [True, False])
@pytest.mark.parametrize("text", list(_TEXTS))
@pytest.mark.parametrize("worker", HORSES)
def test_whatever_a_job_raises_its_worker_goes_on(
    instrumented: Rig, worker: str, text: str, sdk: bool
) -> None:
    """An error's text is a user's input, and the horse tells its parent of it."""
    failed = instrumented.enqueue(tasks.raise_text, _TEXTS[text])
    next_one = instrumented.enqueue(tasks.work, "next")
    instrumented.work(worker, sdk=sdk)
    assert (failed.get_status(), next_one.get_status()) == ("failed", "finished")
    if not sdk:
        return
    assert [span.status for span in instrumented.consumers] == ["ERROR", "UNSET"]
    assert instrumented.consumers[0].description[:1000] == _TEXTS[text][:1000]  # type: ignore[index]
    instrumented.assert_one_trace()


@pytest.mark.parametrize("worker", list(tasks.WORKERS))
def test_a_child_that_a_job_forks_is_not_its_work_horse(instrumented: Rig, worker: str) -> None:
    """It leaves by sys.exit, through RQ's code and ours: the worker goes on, and the job has one span, its parent's."""
    for _ in range(3):
        instrumented.enqueue(tasks.fork_child)
    instrumented.work(worker)
    assert sorted(note for note, _ in instrumented.seen) == ["child"] * 3 + ["parent"] * 3
    assert [span.status for span in instrumented.consumers] == ["UNSET"] * 3
    assert len({span.span_id for span in instrumented.consumers}) == 3
    if "spawn" not in worker:  # that one has no SDK here: its span is its parent's to make
        assert {span_id for _, span_id in instrumented.seen} == {it.span_id for it in instrumented.consumers}
    instrumented.assert_one_trace()


def test_a_child_that_a_traced_function_forks_has_no_span_of_its_own(make_rig: Callable[[str], Rig]) -> None:
    """traced_consumer alone, on a plain worker: the same."""
    rig = make_rig("explicit")
    rig.enqueue(tasks.traced_fork_child)
    rig.work("fork", instrumented=False)
    assert [(note, span_id) for note, span_id in rig.seen] == [
        ("child", rig.only.span_id),
        ("parent", rig.only.span_id),
    ]
    assert rig.only.status == "UNSET"


@pytest.mark.parametrize("worker", HORSES)
def test_what_a_horse_tells_is_in_no_file_of_the_job_s(instrumented: Rig, worker: str) -> None:
    """A job may close descriptors that it has inherited, and open files that get their numbers."""
    files = instrumented.folder / "files"
    files.mkdir()
    instrumented.enqueue(tasks.replace_descriptors, str(files))
    instrumented.enqueue(tasks.work, "next")
    instrumented.work(worker)
    assert {file.read_bytes() for file in files.iterdir()} == {b""}
    assert [span.status for span in instrumented.consumers] == ["UNSET", "UNSET"]
    instrumented.assert_one_trace()


class Collector:
    """A fake one: it refuses connections; from ``listen`` on it takes them, and from ``answer`` on it answers."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler(), bind_and_activate=False)
        self._server.daemon_threads = True
        self._server.server_bind()
        self._is_answering = False

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def listen(self) -> None:
        self._server.server_activate()

    def answer(self) -> None:
        self._is_answering = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        if self._is_answering:
            self._server.shutdown()
        self._server.server_close()

    @property
    def performed(self) -> list[str]:
        """The ids of the jobs whose CONSUMER span has come."""
        return [_attribute(span, "messaging.message.id") for span in self._consumers]

    @property
    def worked(self) -> list[str]:
        """Those of the jobs of which a span has come that was made inside."""
        ids = {span.span_id: _attribute(span, "messaging.message.id") for span in self._consumers}
        return [ids[span.parent_span_id] for span in self.spans if span.parent_span_id in ids]

    @property
    def _consumers(self) -> list[Span]:
        return [span for span in self.spans if span.kind == Span.SPAN_KIND_CONSUMER]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        spans = self.spans

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                    for scope in group.scope_spans:
                        spans.extend(scope.spans)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None: ...

        return Handler


def _attribute(span: Span, name: str) -> str:
    return str({it.key: it.value.string_value for it in span.attributes}[name])


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


def are_done(*jobs: Job) -> bool:
    return all(job.get_status() in ("finished", "failed") for job in jobs)


def moments(jobs: list[Job]) -> list[datetime]:
    """When each of them started and ended."""
    found: list[Any] = []
    for job in jobs:
        job.refresh()  # type: ignore[no-untyped-call, unused-ignore]
        found += [job.started_at, job.ended_at]
    return sorted(found)


def waits(happened: list[datetime], seconds: float) -> int:
    """How often nothing happened for so long."""
    return sum((later - earlier).total_seconds() >= seconds for earlier, later in pairwise(happened))


@pytest.mark.parametrize("is_down", [False, True])
@pytest.mark.parametrize("worker", FORKS)
def test_a_dead_collector_is_waited_for_once(
    instrumented: Rig, collector: Collector, worker: str, is_down: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the first horse. The next leave their spans to the worker, which hands them over when somebody takes them."""
    monkeypatch.setenv("QUEUEPROP_FLUSH_TIMEOUT", "3")
    if not is_down:
        collector.listen()
    jobs = [instrumented.enqueue(tasks.work) for _ in range(5)] + [instrumented.enqueue(tasks.fail)]
    is_there = instrumented.folder / "there"
    last = instrumented.enqueue(tasks.wait_for, str(is_there))
    process = instrumented.start(worker, collector=collector.endpoint)
    wait_until(lambda: are_done(*jobs), "the jobs are done")
    if is_down:
        collector.listen()
    collector.answer()
    is_there.touch()
    assert process.wait(PATIENCE) == 0
    waited = waits(moments([*jobs, last])[:-1], 3)  # the last one ends when this program says so
    assert waited == 1 or (waited == 0 and is_down)  # an SDK that gives up at once
    if waited:
        left = [job.id for job in (*jobs[1:], last)]
        assert sorted(it for it in collector.performed if it in left) == sorted(left)


def test_a_collector_that_is_back_gets_all_spans_again(
    instrumented: Rig, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Now and then a horse tries; once it is answered, the spans that jobs make inside themselves arrive as well."""
    monkeypatch.setenv("QUEUEPROP_FLUSH_TIMEOUT", "4")
    collector.listen()
    process = instrumented.start("fork", collector=collector.endpoint, burst=False, pause=10)
    jobs = [instrumented.enqueue(tasks.work)]
    wait_until(lambda: are_done(*jobs), "the first job is done")
    collector.answer()

    def is_found() -> bool:
        jobs.append(instrumented.enqueue(tasks.work))
        wait_until(lambda: are_done(*jobs), "a job is done")
        return jobs[-1].id in collector.worked

    wait_until(is_found, "a horse has tried")
    last = [instrumented.enqueue(tasks.work) for _ in range(3)]
    wait_until(lambda: are_done(*last), "the last jobs are done")
    process.terminate()
    assert process.wait(PATIENCE) == 0
    assert collector.worked[-3:] == [job.id for job in last]
    assert len(collector.performed) == len(set(collector.performed))


def test_a_traced_function_on_a_plain_worker_waits_once_for_a_dead_collector(
    make_rig: Callable[[str], Rig], collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its horses have no parent that knows of us; what one has found out the next ones know all the same."""
    monkeypatch.setenv("QUEUEPROP_FLUSH_TIMEOUT", "3")
    collector.listen()
    rig = make_rig("explicit")
    jobs = [rig.enqueue(tasks.traced_work) for _ in range(5)]
    process = rig.start("fork", instrumented=False, collector=collector.endpoint)
    wait_until(lambda: are_done(*jobs), "the jobs are done")
    collector.answer()
    assert process.wait(PATIENCE) == 0
    assert waits(moments(jobs), 3) == 1


@pytest.mark.parametrize("how", ["a handler that raises", "a filter that raises", "a closed stderr"])
def test_with_its_logging_broken_a_worker_delivers_every_job(instrumented: Rig, how: str) -> None:
    """Every job is a fault, since the SDK raises, and telling of it is another."""
    jobs = [instrumented.enqueue(tasks.rest) for _ in range(20)]
    instrumented.work("simple", broken_logging=how)
    assert [job.get_status() for job in jobs] == ["finished"] * 20


@pytest.mark.parametrize("worker", ["fork", "simple"])
def test_without_an_sdk_workers_run_on_and_the_context_goes_through(instrumented: Rig, worker: str) -> None:
    """No spans, no errors, one line that says so; what a job publishes is still in the trace of who published it."""
    job = instrumented.enqueue(tasks.publish_more)
    instrumented.enqueue(tasks.fail)
    if worker == "fork":
        instrumented.enqueue(tasks.kill_itself)
    instrumented.connection.delete("rq:queue:more")
    instrumented.work(worker, sdk=False)
    assert instrumented.consumers == []
    assert job.get_status() == "finished"
    [more] = Queue("more", connection=instrumented.connection).jobs
    assert more.meta["queueprop"] == job.meta["queueprop"]
    [told] = [record.text for record in instrumented.run.logged]
    assert "no OpenTelemetry SDK is set up in this process" in told


@pytest.mark.parametrize("worker", ["fork", "traced simple"])
def test_a_pool_of_workers_loses_no_span(instrumented: Rig, worker: str) -> None:
    """WorkerPool: every job has its span, in several processes, and no id comes twice."""
    for number in range(12):
        instrumented.enqueue(tasks.work, str(number))
    instrumented.work(worker, pool=2)
    assert len(instrumented.consumers) == 12
    assert len({span.span_id for span in instrumented.run.spans}) == len(instrumented.run.spans)
    instrumented.assert_one_trace()


# Spawned work horses


@pytest.mark.skipif("spawn" not in tasks.WORKERS, reason="no SpawnWorker, or it does not go with this redis")
@pytest.mark.parametrize("worker", ["spawn", "traced spawn"])
def test_a_spawned_horse_without_an_sdk_has_its_span_from_the_parent(instrumented: Rig, worker: str) -> None:
    """An SDK set up in code does not reach the spawned program: the parent makes the span, with the outcome."""
    instrumented.enqueue(tasks.work, "fine")
    instrumented.enqueue(tasks.fail, 1, retry=Retry(max=1))
    instrumented.work(worker)
    assert [span.status for span in instrumented.consumers] == ["UNSET", "ERROR", "UNSET"]
    assert instrumented.consumers[1].attributes["error.type"] == "ValueError"
    assert instrumented.consumers[1].description == "gave up"
    instrumented.assert_one_trace()


@pytest.mark.skipif("spawn" not in tasks.WORKERS, reason="no SpawnWorker, or it does not go with this redis")
@pytest.mark.parametrize("worker", ["spawn", "traced spawn"])
@pytest.mark.parametrize("settings", [{}, {"QUEUEPROP_TRUST": "none"}, {"QUEUEPROP_PROPAGATION": "link"}])
def test_an_sdk_that_the_job_s_module_sets_up_makes_children_of_the_parent_s_span(
    instrumented: Rig, worker: str, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The spawned program has none when the job begins: the parent's CONSUMER span is what the job runs inside of."""
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    instrumented.enqueue("integration.rq_late_sdk.work", "late")
    instrumented.work(worker)
    [work] = [span for span in instrumented.run.spans if span.name == "work"]
    [consumer] = instrumented.consumers
    assert (work.trace_id, work.parent_id) == consumer.context
    assert work.pid != consumer.pid
    assert [link.context for link in consumer.links] == [instrumented.producers[0].context]
    assert (consumer.parent_id is None) == bool(settings)
    assert instrumented.seen == [("late", consumer.span_id)]
    assert instrumented.run.logged == []


_LAUNCHED = ["rq.Worker", "queueprop.adapters.rq.TracedWorker"]
if "spawn" in tasks.WORKERS:
    _LAUNCHED += ["rq.worker.SpawnWorker", "queueprop.adapters.rq.TracedSpawnWorker"]


@pytest.mark.skipif(
    not has("opentelemetry.distro"), reason="opentelemetry-instrument needs it to set up an SDK"
)
@pytest.mark.parametrize("worker", _LAUNCHED)
def test_opentelemetry_instrument_traces_every_worker(instrumented: Rig, worker: str) -> None:
    """No code at all: the horse of a SpawnWorker is instrumented too, and makes its own span."""
    instrumented.enqueue(tasks.fail, 1, retry=Retry(max=1))
    programs = Path(sys.executable).parent
    launched = subprocess.run(
        [
            programs / "opentelemetry-instrument",
            *("--traces_exporter", "console", "--metrics_exporter", "none", "--logs_exporter", "none"),
            *(programs / "rq", "worker", "--burst", "--worker-class", worker, "--url", instrumented.url),
            instrumented.queue.name,
        ],
        stdout=subprocess.PIPE,
        timeout=PATIENCE,
        check=True,
        text=True,
    )
    spans = list(_json_objects(launched.stdout))
    consumers = {span["context"]["span_id"]: span for span in spans if span["kind"] == "SpanKind.CONSUMER"}
    work = [span for span in spans if span["name"] == "work"]
    [producer] = instrumented.producers
    assert [span["parent_id"] for span in consumers.values()] == [f"0x{producer.span_id}"] * 2
    assert sorted(span["status"]["status_code"] for span in consumers.values()) == ["ERROR", "UNSET"]
    assert {span["parent_id"] for span in work} == set(consumers)


def _json_objects(text: str) -> Iterator[Any]:
    decoder, at = json.JSONDecoder(), text.find("{")
    while at >= 0:
        found, end = decoder.raw_decode(text, at)
        yield found
        at = text.find("\n{", end)
        at = at + 1 if at >= 0 else at
