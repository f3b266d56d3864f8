"""The RQ adapter without a broker: RQ's own queues and jobs on a connection that forgets everything."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import itertools
import math
import os
import pickle
import random
import signal
import struct
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest.mock import MagicMock

import pytest

pytest.importorskip("rq")

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import (
    INVALID_SPAN_CONTEXT,
    NonRecordingSpan,
    NoOpTracer,
    NoOpTracerProvider,
    SpanContext,
    SpanKind,
    StatusCode,
    get_current_span,
    get_tracer,
)
from redis import Connection
from rq import Queue, Retry, SimpleWorker, Worker
from rq.decorators import job as rq_job
from rq.job import Job
from rq.timeouts import JobTimeoutException

import queueprop
from queueprop import Settings, guard
from queueprop.adapters import rq as adapter
from queueprop.adapters.rq import (
    collector,
    functions,
    horses,
    lines,
    messages,
    performing,
    publishing,
    spawning,
    workers,
)
from queueprop.adapters.rq.collector import Circuit
from queueprop.adapters.rq.publishing import PublishHooks
from queueprop.adapters.rq.withheld import Withheld
from queueprop.adapters.rq.workers import WorkerHooks
from queueprop.engine import metrics
from queueprop.engine.engine import engine_for
from queueprop.testing import CapturedSpans

Group: Any = getattr(sys.modules.get("rq.group"), "Group", None)
SpawnWorker: Any = getattr(sys.modules["rq.worker"], "SpawnWorker", None)

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def work(note: str = "") -> str:
    return note


def fail() -> None:
    raise ValueError("gave up")


def forgetful(**options: Any) -> MagicMock:
    connection = MagicMock()
    setattr(connection, "__rq_redis_server_version", (7, 0, 0))  # where RQ 1 keeps it
    connection.connection_pool.connection_kwargs = options or {"host": "redis.example", "port": 6380}
    return connection


@pytest.fixture
def queue() -> Queue:
    return make_queue()


def make_queue(**options: Any) -> Queue:
    made = Queue("orders", connection=forgetful(), **options)
    made.redis_server_version = (7, 0, 0)
    return made


@pytest.fixture
def instrumented() -> Iterator[adapter.RQInstrumentor]:
    instrumentor = adapter.RQInstrumentor()
    instrumentor.instrument()
    yield instrumentor
    instrumentor.uninstrument()


@pytest.fixture
def hooks() -> WorkerHooks:
    return WorkerHooks(engine_for(), spawned="all")


@pytest.fixture(autouse=True)
def circuit(monkeypatch: pytest.MonkeyPatch) -> Circuit:
    """One that has seen nothing yet."""
    made = Circuit()
    monkeypatch.setattr(collector, "circuit", made)
    monkeypatch.setattr(collector, "kept", collector.Kept())
    monkeypatch.setattr(guard, "_logged", {})
    return made


def make_job(meta: Any = None, function: Any = work, **options: Any) -> Job:
    options.setdefault("connection", forgetful())
    return Job.create(function, meta=meta, origin="orders", **options)


def delivered(**carrier: Any) -> Job:
    """A job as a worker has it: with a context, enqueued a second ago."""
    job = make_job({"own": 1, "queueprop": {"traceparent": TRACEPARENT, **carrier}})
    job.enqueued_at = datetime.now(timezone.utc) - timedelta(seconds=1)
    return job


def context_of(span: ReadableSpan) -> str:
    context = span.get_span_context()
    assert context is not None
    return f"{context.trace_id:032x}-{context.span_id:016x}"


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def carried(job: Any) -> str:
    return str(job.meta["queueprop"]["traceparent"])[3:52]


class TestPublishing:
    WAYS: ClassVar[dict[str, Callable[[Queue], Any]]] = {
        "enqueue": lambda queue: adapter.traced_publish(queue.enqueue)(work, "a"),
        "enqueue_call": lambda queue: adapter.traced_publish(queue.enqueue_call)(work, ("a",)),
        "enqueue_at": lambda queue: adapter.traced_publish(queue.enqueue_at)(datetime.now(), work, "a"),
        "enqueue_in": lambda queue: adapter.traced_publish(queue.enqueue_in)(timedelta(1), work, "a"),
        "enqueue_job": lambda queue: adapter.traced_publish(queue.enqueue_job)(job=make_job()),
        "schedule_job": lambda queue: adapter.traced_publish(queue.schedule_job)(make_job(), datetime.now()),
        "partial": lambda queue: adapter.traced_publish(functools.partial(queue.enqueue, work))("a"),
        "twice": lambda queue: adapter.traced_publish(adapter.traced_publish(queue.enqueue))(work, "a"),
        "delay": lambda queue: adapter.traced_publish(decorated(queue).delay)("a"),
        "delay to a named queue": lambda queue: adapter.traced_publish(
            decorated("orders", connection=forgetful(), queue_class=NamedQueue).delay
        )("a"),
    }

    @pytest.mark.parametrize("way", list(WAYS))
    def test_the_explicit_api_traces_each_way(
        self, captured_spans: CapturedSpans, queue: Queue, way: str
    ) -> None:
        """One PRODUCER span, named after the queue, and its context in the job's meta."""
        job = self.WAYS[way](queue)
        [span] = captured_spans
        assert (span.name, span.kind) == ("publish orders", SpanKind.PRODUCER)
        assert attributes(span)["messaging.message.id"] == job.id
        assert carried(job) == context_of(span)

    @pytest.mark.parametrize("way", list(WAYS))
    def test_the_instrumentor_traces_each_way_once(
        self, captured_spans: CapturedSpans, instrumented: object, queue: Queue, way: str
    ) -> None:
        """The explicit API above the instrumentor is still one publish."""
        job = self.WAYS[way](queue)
        [span] = captured_spans
        assert carried(job) == context_of(span)

    def test_a_long_name_of_a_function_is_cut(self, captured_spans: CapturedSpans, queue: Queue) -> None:
        """What comes from outside is bounded on spans, and enqueued as it is."""
        job = adapter.traced_publish(queue.enqueue)("tests." + "x" * 2000)
        assert len(str(attributes(captured_spans[0])["code.function.name"])) == 1024
        assert len(str(job.func_name)) == 2006

    def test_the_attributes_are_those_of_the_conventions(
        self, captured_spans: CapturedSpans, queue: Queue
    ) -> None:
        """System, operation, destination, message id, server, and the function, which is RQ's subject."""
        job = adapter.traced_publish(queue.enqueue)(work)
        assert attributes(captured_spans[0]) == {
            "messaging.system": "rq",
            "messaging.operation.name": "publish",
            "messaging.operation.type": "send",
            "messaging.destination.name": "orders",
            "messaging.message.id": job.id,
            "server.address": "redis.example",
            "server.port": 6380,
            "code.function.name": f"{work.__module__}.work",
        }

    @pytest.mark.parametrize(
        ("options", "address", "port"),
        [
            ({"path": "/run/redis.sock"}, "/run/redis.sock", None),
            ({"host": "redis"}, "redis", 6379),
            ({"db": 1}, None, None),
        ],
    )
    def test_the_server_is_the_connection_s(
        self, captured_spans: CapturedSpans, options: Any, address: str | None, port: int | None
    ) -> None:
        """A Unix socket has its path for an address; a connection that tells nothing has none."""
        queue = make_queue()
        queue.connection = forgetful(**options)
        adapter.traced_publish(queue.enqueue)(work)
        found = attributes(captured_spans[0])
        assert (found.get("server.address"), found.get("server.port")) == (address, port)

    def test_the_user_s_queue_and_decorator_stay_as_they_are(
        self, captured_spans: CapturedSpans, queue: Queue
    ) -> None:
        """Wrapping traces the wrapper alone: the same queue called directly makes no span."""
        task = decorated(queue)
        adapter.traced_publish(queue.enqueue)(work)
        adapter.traced_publish(task.delay)("a")
        before = len(captured_spans)
        queue.enqueue(work)
        task.delay("a")
        assert len(captured_spans) == before == 2
        assert not {"enqueue_job", "schedule_job", "enqueue_many"} & set(vars(queue))

    @pytest.mark.parametrize("meta", [None, {}, {"own": 1}])
    def test_meta_is_copied(self, captured_spans: CapturedSpans, queue: Queue, meta: Any) -> None:
        """The caller's dict has what it had; the job has that and the context."""
        before = dict(meta or {})
        job = adapter.traced_publish(queue.enqueue)(work, meta=meta)
        assert (meta or {}) == before
        assert {key: value for key, value in job.meta.items() if key != "queueprop"} == before

    def test_forwarded_meta_goes_on_in_its_trace(self, captured_spans: CapturedSpans, queue: Queue) -> None:
        """Published where no span is current: below the context that it came with. The old meta is untouched."""
        old = delivered(tracestate="a=1", baggage="b=2").meta
        kept = dict(old["queueprop"])
        job = adapter.traced_publish(queue.enqueue)(work, meta=old)
        [span] = captured_spans
        assert carried(job) == context_of(span) != kept["traceparent"][3:-3]
        assert span.parent is not None
        assert f"00-{span.context.trace_id:032x}-{span.parent.span_id:016x}-01" == kept["traceparent"]
        assert (job.meta["queueprop"]["tracestate"], job.meta["queueprop"]["baggage"]) == ("a=1", "b=2")
        assert old["queueprop"] == kept

    def test_without_an_sdk_a_forwarded_context_goes_on(self, queue: Queue) -> None:
        """And nothing is invented where there is none."""
        old = delivered().meta
        assert adapter.traced_publish(queue.enqueue)(work, meta=old).meta == {"own": 1, **old}
        assert adapter.traced_publish(queue.enqueue)(work, meta={"own": 1}).meta == {"own": 1}

    def test_a_meta_that_is_no_dict_is_left_alone(self, captured_spans: CapturedSpans, queue: Queue) -> None:
        """RQ takes more than dicts; the publish has its span, and no context can travel."""
        meta: Any = ["not", "a", "dict"]
        assert adapter.traced_publish(queue.enqueue)(work, meta=meta).meta == meta
        assert len(captured_spans) == 1

    def test_meta_that_rq_could_not_read_is_left_alone(
        self, captured_spans: CapturedSpans, queue: Queue
    ) -> None:
        """From RQ 3 on it writes the stored bytes back, if nobody touched the placeholder."""
        job: Any = make_job({"unserialized": b"?"})
        job._unreadable_meta = b"?"
        adapter.traced_publish(queue.enqueue_job)(job)
        assert job.meta == {"unserialized": b"?"}

    def test_a_job_that_was_enqueued_before_is_no_publish(
        self, captured_spans: CapturedSpans, instrumented: object, queue: Queue
    ) -> None:
        """RQ's retries and repeats pass schedule_job: the job keeps its context, and there is no span."""
        job = delivered()
        queue.schedule_job(job, datetime.now())
        queue.enqueue_job(job)
        assert job.meta["queueprop"] == {"traceparent": TRACEPARENT}
        assert len(captured_spans) == 0

    def test_a_job_without_an_id_may_not_be_given_one_when_it_must_be_unique(
        self, captured_spans: CapturedSpans, queue: Queue
    ) -> None:
        """RQ refuses ``unique`` without an id of the caller's. To ask for the id would make one up."""
        hooks = PublishHooks(engine_for())
        given: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
            ((), {"unique": True}),
            ((None, False, True), {}),
        ]
        for args, kwargs in given:
            job = make_job()
            hooks.publish(lambda *args, **kwargs: None, queue, (job, *args), kwargs)
            assert job._id is None

    def test_a_job_that_need_not_be_unique_is_told_by_its_id(
        self, captured_spans: CapturedSpans, queue: Queue
    ) -> None:
        """Also where that is said by place."""
        job = make_job()
        PublishHooks(engine_for()).publish(lambda *args, **kwargs: None, queue, (job, None, False, False), {})
        assert attributes(captured_spans[0])["messaging.message.id"] == job._id

    def test_a_failed_publish_has_its_exception_on_the_span(
        self, captured_spans: CapturedSpans, queue: Queue
    ) -> None:
        """The caller gets the very same exception."""
        lost = OSError("gone")
        connection: Any = queue.connection
        connection.pipeline.side_effect = lost
        with pytest.raises(OSError, match="gone") as raised:
            adapter.traced_publish(queue.enqueue)(work)
        assert raised.value is lost
        assert captured_spans[0].status.status_code is StatusCode.ERROR

    def test_a_delay_is_told(self, captured_spans: CapturedSpans, queue: Queue) -> None:
        """Seconds that the job is meant to wait; never negative."""
        at = adapter.traced_publish(queue.enqueue_at)
        for offset in (60, -60):
            at(datetime.now(timezone.utc) + timedelta(seconds=offset), work)
        delays = [attributes(span)["queueprop.message.delay"] for span in captured_spans]
        assert 30 < delays[0] <= 60
        assert delays[1] == 0

    def test_suppressed_there_is_no_span_and_no_context(
        self, captured_spans: CapturedSpans, instrumented: object, queue: Queue
    ) -> None:
        """suppress_instrumentation(): the job is enqueued as it is."""
        from opentelemetry.instrumentation.utils import suppress_instrumentation

        with suppress_instrumentation():
            assert queue.enqueue(work).meta == {}
            assert queue.enqueue_many([Queue.prepare_data(work)])[0].meta == {}
        assert len(captured_spans) == 0

    @pytest.mark.parametrize("publish", [print, work, "enqueue", SimpleNamespace(), make_job().save])
    def test_what_publishes_nothing_is_refused(self, publish: Any) -> None:
        """One clear line that names what it got."""
        with pytest.raises(TypeError, match="traced_publish wants a method of a queue"):
            adapter.traced_publish(publish)

    @pytest.mark.parametrize(
        ("module", "break_"), [(publishing, "destination_of"), (messages, "with_carrier")]
    )
    def test_a_fault_of_ours_does_not_reach_the_publish(
        self, queue: Queue, monkeypatch: pytest.MonkeyPatch, module: Any, break_: str
    ) -> None:
        """The guard takes it, and the job is enqueued without a context."""
        monkeypatch.setattr(guard, "raise_faults", False)
        monkeypatch.setattr(module, break_, MagicMock(side_effect=RuntimeError("ours")))
        assert adapter.traced_publish(queue.enqueue)(work, meta={"own": 1}).meta == {"own": 1}
        datas = [Queue.prepare_data(work, meta={"own": 1})]
        assert adapter.traced_publish(queue.enqueue_many)(datas)[0].meta == {"own": 1}


class NamedQueue(Queue):
    """@job with a queue's name makes the queue by itself."""

    def get_redis_server_version(self) -> tuple[int, int, int]:
        return (7, 0, 0)


def decorated(queue: Any, **options: Any) -> Any:
    def task(note: str) -> None: ...

    options.setdefault("connection", getattr(queue, "connection", None))
    return rq_job(queue, meta={"own": 1}, **options)(task)


class TestPublishingMany:
    def test_each_job_has_a_create_span(
        self, captured_spans: CapturedSpans, instrumented: object, queue: Queue
    ) -> None:
        """PRODUCER spans for the jobs, whose contexts they carry; a CLIENT span for the call links them."""
        datas = [
            Queue.prepare_data(work, meta={"own": 1}),
            Queue.prepare_data("tests.work", job_id="mine", retry=Retry(max=4)),
            Queue.prepare_data(functools.partial(work)),
        ]
        jobs = queue.enqueue_many(iter(datas))
        *creates, send = captured_spans
        assert [span.name for span in creates] == ["create orders"] * 3
        assert [carried(job) for job in jobs] == [context_of(span) for span in creates]
        assert [attributes(span)["messaging.message.id"] for span in creates] == [job.id for job in jobs]
        assert [attributes(span).get("code.function.name") for span in creates] == [
            f"{work.__module__}.work",
            "tests.work",
            None,
        ]
        assert (send.name, send.kind) == ("publish orders", SpanKind.CLIENT)
        assert len(send.links) == 3
        assert [job.meta["queueprop"].get("retries") for job in jobs] == [None, "4", None]
        assert datas[0].meta == {"own": 1}
        assert datas[1].meta is None

    def test_by_keyword_and_twice_over_it_is_one_batch(
        self, captured_spans: CapturedSpans, instrumented: object, queue: Queue
    ) -> None:
        """The explicit API above the instrumentor."""
        adapter.traced_publish(queue.enqueue_many)(job_datas=[Queue.prepare_data(work)])
        assert [span.name for span in captured_spans] == ["create orders", "publish orders"]

    def test_an_id_is_only_chosen_as_rq_itself_would(
        self, captured_spans: CapturedSpans, queue: Queue
    ) -> None:
        """A job class of the user's may make its own ids."""

        class OwnJob(Job):
            pass

        queue.job_class = OwnJob
        seen = []
        PublishHooks(engine_for()).publish_many(
            lambda datas: seen.extend(datas), queue, ([Queue.prepare_data(work)],), {}
        )
        assert seen[0].job_id is None

    def test_what_is_no_batch_is_rq_s_to_refuse(self, queue: Queue) -> None:
        """Its own TypeError comes out."""
        with pytest.raises(TypeError):
            adapter.traced_publish(queue.enqueue_many)(None)  # type: ignore[arg-type]

    @pytest.mark.skipif(Group is None, reason="groups came with RQ 2")
    @pytest.mark.parametrize("by_keyword", [False, True])
    def test_a_group_s_jobs_are_traced(
        self, captured_spans: CapturedSpans, queue: Queue, by_keyword: bool
    ) -> None:
        """Its enqueue_many is given the queue."""
        publish: Any = adapter.traced_publish(Group.create(queue.connection).enqueue_many)
        datas = [Queue.prepare_data(work)]
        publish(queue=queue, job_datas=datas) if by_keyword else publish(queue, datas)
        assert [span.name for span in captured_spans] == ["create orders", "publish orders"]


class TestPerforming:
    def perform(self, hooks: WorkerHooks, job: Job, wrapped: Callable[..., Any], worker: Any = None) -> Any:
        worker = worker or SimpleNamespace(is_horse=False)
        return hooks.perform_job(wrapped, worker, (job, make_queue()), {})

    def test_it_runs_inside_the_span_of_the_message_s_trace(
        self, captured_spans: CapturedSpans, hooks: WorkerHooks
    ) -> None:
        """Kind, parent, link, attributes: those of the conventions; and nothing is current afterwards."""
        job = delivered()
        inside = []
        self.perform(hooks, job, lambda *args: inside.append(get_current_span()))
        [span] = captured_spans
        assert inside[0].get_span_context() == span.get_span_context()
        assert not get_current_span().get_span_context().is_valid
        assert (span.name, span.kind) == ("process orders", SpanKind.CONSUMER)
        assert span.parent is not None
        assert f"{span.parent.span_id:016x}" == TRACEPARENT[36:52]
        assert len(span.links) == 1
        found = attributes(span)
        assert 1 <= found.pop("queueprop.message.queue_time") < 60
        assert found == {
            "messaging.system": "rq",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": "orders",
            "messaging.message.id": job.id,
            "queueprop.message.delivery_attempt": 1,
            "server.address": "redis.example",
            "server.port": 6380,
            "code.function.name": f"{work.__module__}.work",
        }

    def test_it_is_performed_once_whatever_layers_there_are(
        self, captured_spans: CapturedSpans, hooks: WorkerHooks
    ) -> None:
        """A traced worker under the instrumentor."""
        job = delivered()
        self.perform(hooks, job, lambda *args: self.perform(hooks, job, lambda *args: None))
        assert len(captured_spans) == 1

    def test_rq_1_tells_times_without_a_zone(self, captured_spans: CapturedSpans, hooks: WorkerHooks) -> None:
        """They are UTC."""
        job = delivered()
        assert job.enqueued_at is not None
        job.enqueued_at = job.enqueued_at.astimezone(timezone.utc).replace(tzinfo=None)
        self.perform(hooks, job, lambda *args: None)
        assert 1 <= attributes(captured_spans[0])["queueprop.message.queue_time"] < 60

    @pytest.mark.parametrize("meta", [None, {"own": 1}, ["no dict"], {"queueprop": 7}, {"queueprop": None}])
    def test_without_a_context_it_is_a_root(
        self, captured_spans: CapturedSpans, hooks: WorkerHooks, meta: Any
    ) -> None:
        """Whatever stands in meta, the job is performed, also inside another span."""
        with get_tracer("test").start_as_current_span("poller"):
            assert self.perform(hooks, make_job(meta), lambda *args: "done") == "done"
        assert captured_spans.kind(SpanKind.CONSUMER)[0].parent is None

    @pytest.mark.parametrize(
        ("carrier", "state", "attempt"),
        [
            ({}, {}, 1),
            ({"retries": "3"}, {"retries_left": 3}, 1),
            ({"retries": "3"}, {"retries_left": 1, "ended_at": datetime.now()}, 3),
            ({"retries": "3"}, {"retries_left": 2, "number_of_retries": 1}, 3),
            ({}, {"number_of_retries": 2, "ended_at": datetime.now()}, 3),
            ({}, {"ended_at": datetime.now()}, None),
            ({"retries": "many"}, {"retries_left": 2}, None),
            ({"retries": 3}, {"retries_left": 2}, None),
            ({"retries": "9" * 5000}, {"retries_left": 2}, None),
        ],
    )
    def test_the_attempt_is_told_where_rq_knows_it(
        self, hooks: WorkerHooks, carrier: Any, state: Any, attempt: int | None
    ) -> None:
        """RQ counts the retries that are left; how many there were comes with the context."""
        job = delivered(**carrier)
        for name, value in state.items():
            setattr(job, name, value)
        assert messages.attempt_of(job, job.meta["queueprop"]) == attempt

    def test_a_job_without_a_carrier_tells_its_first_attempt(self) -> None:
        """What was published without us has not been started yet."""
        assert messages.attempt_of(make_job(), performing._NOTHING) == 1

    @pytest.mark.parametrize("callback_fails", [False, True])
    def test_the_job_s_own_error_is_on_the_span(
        self, captured_spans: CapturedSpans, hooks: WorkerHooks, callback_fails: bool
    ) -> None:
        """RQ keeps the exception to itself, and hands in the callback's when that fails as well."""
        job = delivered()
        worker = SimpleNamespace(is_horse=False)

        def as_rq_does(*args: Any) -> bool:
            try:
                fail()
            except ValueError:
                exc_info = sys.exc_info()
                try:
                    if callback_fails:
                        raise KeyError
                except KeyError:
                    exc_info = sys.exc_info()
                hooks.handle_exception(lambda *args: None, worker, (job, *exc_info), {})
            return False

        assert self.perform(hooks, job, as_rq_does, worker) is False
        assert attributes(captured_spans[0])["error.type"] == "ValueError"
        assert captured_spans[0].status.description == "gave up"

    def test_an_error_that_is_handed_in_afterwards_counts_too(
        self, captured_spans: CapturedSpans, hooks: WorkerHooks
    ) -> None:
        """An exception handler may be called outside of the except block; the first error wins."""
        job = delivered()

        def late(*args: Any) -> None:
            for error in (ValueError("first"), KeyError("second")):
                hooks.handle_exception(lambda *args: None, None, (job, type(error), error, None), {})

        self.perform(hooks, job, late)
        assert captured_spans[0].status.description == "first"

    def test_an_error_of_another_job_is_not_this_one_s(
        self, captured_spans: CapturedSpans, hooks: WorkerHooks
    ) -> None:
        """Workers also clean up after jobs of others."""
        error = ValueError()
        other = make_job()
        self.perform(
            hooks,
            delivered(),
            lambda *args: hooks.handle_exception(lambda *a: None, None, (other, ValueError, error, None), {}),
        )
        hooks.handle_exception(lambda *a: None, None, (other, ValueError, error, None), {})
        assert captured_spans[0].status.status_code is StatusCode.UNSET

    @pytest.mark.parametrize("status", [None, 0, 3])
    def test_leaving_the_process_is_a_failure(
        self, captured_spans: CapturedSpans, hooks: WorkerHooks, status: int | None
    ) -> None:
        """SystemExit of a job: RQ fails it, so the span does, and it goes on as it was."""

        def leave(*args: Any) -> None:
            sys.exit(status)

        with pytest.raises(SystemExit):
            self.perform(hooks, delivered(), leave)
        assert attributes(captured_spans[0])["error.type"] == "SystemExit"
        assert captured_spans[0].status.status_code is StatusCode.ERROR

    def test_a_time_limit_goes_through(self, captured_spans: CapturedSpans, hooks: WorkerHooks) -> None:
        """RQ's exception is let through by the guard, wherever it was raised."""
        with pytest.raises(JobTimeoutException):
            guard.fault("anything", JobTimeoutException("too long"))

    def test_a_fault_of_ours_does_not_reach_the_job(
        self, captured_spans: CapturedSpans, hooks: WorkerHooks, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is performed untraced, in this process or in a work horse."""
        monkeypatch.setattr(guard, "raise_faults", False)
        monkeypatch.setattr(performing, "destination_of", MagicMock(side_effect=RuntimeError("ours")))
        assert self.perform(hooks, delivered(), lambda *args: "done") == "done"
        worker = Worker.__new__(Worker)
        assert hooks.execute_job(lambda *args: "done", worker, (delivered(), make_queue()), {}) == "done"
        assert len(captured_spans) == 0


class _Incomparable:
    def __eq__(self, other: object) -> bool:
        raise RuntimeError("neither equal nor unequal")

    __hash__ = None  # type: ignore[assignment]


class TestMeta:
    @pytest.mark.parametrize(
        ("replaced", "stored"),
        [
            ({"step": 1}, {"step": 1, "queueprop": {"traceparent": TRACEPARENT}}),
            ({"queueprop": "of another"}, {"queueprop": {"traceparent": TRACEPARENT}}),
            ({}, {}),
            (["no dict"], ["no dict"]),
        ],
    )
    def test_while_rq_stores_the_job_its_context_is_there(
        self, captured_spans: CapturedSpans, hooks: WorkerHooks, replaced: Any, stored: Any
    ) -> None:
        """The user's replacement is stored with the context, and is the user's object again afterwards."""
        job = delivered()
        seen = []

        def performed(*args: Any) -> None:
            job.meta = replaced
            hooks.store_job(lambda **kwargs: seen.append(job.meta), None, (), {"job": job})

        before = dict(replaced) if isinstance(replaced, dict) else replaced
        hooks.perform_job(performed, SimpleNamespace(is_horse=False), (job, make_queue()), {})
        assert seen == [stored]
        assert job.meta is replaced
        assert replaced == before

    def test_a_job_that_empties_its_meta_and_saves_it_keeps_its_context(
        self, captured_spans: CapturedSpans, instrumented: adapter.RQInstrumentor, hooks: WorkerHooks
    ) -> None:
        """Job.save_meta stores an empty meta, which RQ's own saving never does."""
        job = delivered()
        job.meta = {"own": 1, "queueprop": {"traceparent": TRACEPARENT}}

        def performed(*args: Any) -> None:
            job.meta = {}
            save()

        save: Callable[[], None] = job.save_meta
        hooks.perform_job(performed, SimpleNamespace(is_horse=False), (job, make_queue()), {})
        connection: Any = job.connection
        stored = pickle.loads(connection.hset.call_args.args[2])
        assert stored == {"queueprop": {"traceparent": TRACEPARENT}}
        assert job.meta == {}

    def test_a_meta_that_cannot_be_compared_is_stored_as_it_is(
        self, captured_spans: CapturedSpans, hooks: WorkerHooks, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A handler may put anything into it, also under our name."""
        monkeypatch.setattr(guard, "raise_faults", False)
        job = delivered()
        replaced = {"queueprop": _Incomparable()}
        seen = []

        def performed(*args: Any) -> None:
            job.meta = replaced
            hooks.store_job(lambda **kwargs: seen.append(job.meta), None, (), {"job": job})

        hooks.perform_job(performed, SimpleNamespace(is_horse=False), (job, make_queue()), {})
        assert seen[0] is job.meta is replaced

    def test_outside_of_a_job_meta_is_the_user_s(self, hooks: WorkerHooks) -> None:
        """Nothing is added to a stored job that is not being performed, nor to one that came without a context."""
        job = make_job({"own": 1})
        for hook in (hooks.store_job, hooks.save_meta):
            hook(lambda *args, **kwargs: None, job, (job,), {})
        assert job.meta == {"own": 1}
        hooks.perform_job(
            lambda *args: hooks.save_meta(lambda: None, job, (), {}),
            SimpleNamespace(is_horse=False),
            (job, make_queue()),
            {},
        )
        assert job.meta == {"own": 1}


class TestAbandonedJobs:
    """Their worker is gone; another one cleans up, and calls the failure callback."""

    @pytest.mark.parametrize("as_method", [False, True])
    def test_the_failure_callback_runs_in_the_job_s_trace(
        self, captured_spans: CapturedSpans, hooks: WorkerHooks, as_method: bool
    ) -> None:
        """The creation context is current, no span is made, and the worker's own context comes back."""
        job = delivered()
        instance, args = (job, ()) if as_method else (None, (job,))
        with get_tracer("test").start_as_current_span("maintenance") as ambient:
            found = hooks.execute_failure_callback(lambda *args: get_current_span(), instance, args, {})
            assert get_current_span() is ambient
        assert f"{found.get_span_context().span_id:016x}" == TRACEPARENT[36:52]
        assert len(captured_spans.kind(SpanKind.CONSUMER)) == 0

    def test_an_untrusted_job_s_callback_does_not(self, captured_spans: CapturedSpans) -> None:
        """Settings(trust="none") holds here as well."""
        hooks = WorkerHooks(engine_for(Settings(trust="none")), spawned="worker")
        found = hooks.execute_failure_callback(lambda *args: get_current_span(), delivered(), (), {})
        assert not found.get_span_context().is_valid

    def test_within_the_job_it_is_inside_its_span(
        self, captured_spans: CapturedSpans, hooks: WorkerHooks
    ) -> None:
        """The usual case: the worker that performed the job calls it."""
        job = delivered()
        seen = []

        def performed(*args: Any) -> None:
            seen.append(hooks.execute_failure_callback(lambda *args: get_current_span(), job, (), {}))

        hooks.perform_job(performed, SimpleNamespace(is_horse=False), (job, make_queue()), {})
        assert seen[0].get_span_context() == captured_spans[0].get_span_context()

    def test_a_fault_of_ours_does_not_reach_it(
        self, hooks: WorkerHooks, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is called."""
        monkeypatch.setattr(guard, "raise_faults", False)
        monkeypatch.setattr(performing, "destination_of", MagicMock(side_effect=RuntimeError("ours")))
        assert hooks.execute_failure_callback(lambda: "called", delivered(), (), {}) == "called"


class TestWithoutWorkers:
    def test_a_synchronous_queue_makes_both_spans(
        self, captured_spans: CapturedSpans, instrumented: object
    ) -> None:
        """The job's span is the publish's child, and has the error that RQ keeps to itself."""
        queue = make_queue(is_async=False)
        queue.enqueue(work)
        queue.enqueue(fail)
        processed, published, failed, failing = captured_spans
        assert [span.name for span in captured_spans] == ["process orders", "publish orders"] * 2
        for inner, outer in ((processed, published), (failed, failing)):
            context = outer.get_span_context()
            assert inner.parent is not None
            assert context is not None
            assert inner.parent.span_id == context.span_id
        assert attributes(failed)["error.type"] == "ValueError"
        assert failing.status.status_code is StatusCode.UNSET


class TestTracedConsumer:
    def test_called_directly_it_is_the_function(self, captured_spans: CapturedSpans) -> None:
        """With its result, its name and its signature, and without a span."""
        traced = adapter.traced_consumer(work)
        assert traced("a") == "a"
        assert (traced.__name__, traced.__module__, traced.__qualname__) == ("work", __name__, "work")
        assert len(captured_spans) == 0

    def test_one_that_calls_another_is_one_handling(
        self, captured_spans: CapturedSpans, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of one job there is one span, whose worker nobody traces; the next job has its own."""
        job = delivered()
        monkeypatch.setattr(functions, "get_current_job", lambda: job)

        @adapter.traced_consumer
        def inner() -> int:
            return current_span_id()

        @adapter.traced_consumer
        def outer() -> tuple[int, int]:
            return current_span_id(), inner()

        for _ in range(2):
            before, inside = outer()
            assert before == inside
        assert len({span.context.span_id for span in captured_spans}) == len(captured_spans) == 2

    @pytest.mark.parametrize("settings", [None, Settings(propagation="link")])
    def test_in_a_job_it_runs_inside_the_span(
        self, captured_spans: CapturedSpans, monkeypatch: pytest.MonkeyPatch, settings: Settings | None
    ) -> None:
        """Sync and async, with settings of its own."""
        job = delivered()
        monkeypatch.setattr(functions, "get_current_job", lambda: job)

        @adapter.traced_consumer(settings=settings)
        def sync() -> int:
            return get_current_span().get_span_context().span_id

        @adapter.traced_consumer(settings=settings)
        async def asynchronous() -> int:
            await asyncio.sleep(0)
            return get_current_span().get_span_context().span_id

        current = [sync(), asyncio.run(asynchronous())]
        assert current == [int(context_of(span)[33:], 16) for span in captured_spans]
        parents = {span.parent.span_id if span.parent else None for span in captured_spans}
        assert parents == ({int(TRACEPARENT[36:52], 16)} if settings is None else {None})

    def test_a_traced_worker_around_it_makes_the_span(
        self, captured_spans: CapturedSpans, hooks: WorkerHooks, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One span, not two."""
        job = delivered()
        monkeypatch.setattr(functions, "get_current_job", lambda: job)
        traced = adapter.traced_consumer(work)
        worker = SimpleNamespace(is_horse=False)
        hooks.perform_job(lambda *args: traced("a"), worker, (job, make_queue()), {})
        assert len(captured_spans) == 1

    def test_it_puts_the_context_back_into_a_replaced_meta(
        self, captured_spans: CapturedSpans, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """For a retry, which RQ stores right after the function."""
        job = delivered()
        monkeypatch.setattr(functions, "get_current_job", lambda: job)

        def replace() -> None:
            job.meta = {"step": 1}
            fail()

        with pytest.raises(ValueError, match="gave up"):
            adapter.traced_consumer(replace)()
        assert job.meta == {"step": 1, "queueprop": {"traceparent": TRACEPARENT}}
        assert captured_spans[0].status.status_code is StatusCode.ERROR

    @pytest.mark.parametrize(("alarm", "bound"), [(0, 300.0), (100, 50.0)])
    def test_in_a_plain_work_horse_it_hands_over_within_the_time_limit(
        self, captured_spans: CapturedSpans, monkeypatch: pytest.MonkeyPatch, alarm: int, bound: float
    ) -> None:
        """The horse ends in os._exit; but a slow exporter must not be what exceeds the job's limit."""
        job = delivered()
        flushed: list[float] = []
        monkeypatch.setattr(functions, "get_current_job", lambda: job)
        monkeypatch.setattr(collector, "flush", flushed.append)
        monkeypatch.setenv("RQ_JOB_ID", job.id)
        previous = signal.signal(signal.SIGALRM, lambda *args: None)
        handler = adapter.traced_consumer(settings=Settings(flush_timeout=300.0))(work)
        began = time.monotonic()
        signal.alarm(alarm)
        try:
            handler()
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, previous)
        [within] = flushed
        # Half of what is left of the limit. A timer tells it with the kernel's own grain.
        assert bound - (time.monotonic() - began) - 0.1 <= within <= bound + 0.1


class TestWorkHorses:
    """Real forks, without RQ's own code around them."""

    current: SpanContext
    """What is current when RQ goes on after the horse is dead."""

    def execute(
        self,
        hooks: WorkerHooks,
        in_horse: Callable[[Job, Queue], None] | None,
        *,
        stopped: bool = False,
        worker: Any = None,
    ) -> Job:
        job = delivered()
        if worker is None:
            worker = Worker.__new__(Worker)
        worker._stopped_job_id = job.id if stopped else None

        def as_rq_does(job: Job, queue: Queue) -> None:
            pid = os.fork()
            if pid == 0:
                try:
                    if in_horse is not None:
                        in_horse(job, queue)
                finally:
                    os._exit(0)
            hooks.wait_for_horse(lambda: os.wait4(pid, 0), worker, (), {})
            self.current = get_current_span().get_span_context()

        hooks.execute_job(as_rq_does, worker, (job, make_queue()), {})
        return job

    def perform(self, hooks: WorkerHooks, wrapped: Callable[..., Any]) -> Callable[[Job, Queue], None]:
        def in_horse(job: Job, queue: Queue) -> None:
            hooks.perform_job(wrapped, SimpleNamespace(is_horse=True), (job, queue), {})

        return in_horse

    def test_a_horse_that_hands_over_leaves_nothing_to_its_parent(
        self, captured_spans: CapturedSpans, hooks: WorkerHooks
    ) -> None:
        """The span is the horse's to export; the parent makes none beside it, and nothing stays current there."""
        self.execute(hooks, self.perform(hooks, lambda *args: None))
        assert [span.name for span in captured_spans] == ["process orders"]
        assert not self.current.is_valid

    @pytest.mark.parametrize("stopped", [False, True])
    def test_a_killed_horse_has_its_span_from_the_parent(
        self, captured_spans: CapturedSpans, hooks: WorkerHooks, stopped: bool
    ) -> None:
        """ERROR, the cause, and current for what RQ then calls: with the very ids that the horse had."""
        read, write = os.pipe()

        def die(*args: Any) -> None:
            os.write(write, f"{get_current_span().get_span_context().span_id:016x}".encode())
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(9)

        self.execute(hooks, self.perform(hooks, die), stopped=stopped)
        [span] = captured_spans
        assert context_of(span)[33:] == os.read(read, 16).decode()
        assert span.get_span_context() == self.current
        assert span.status.status_code is StatusCode.ERROR
        assert attributes(span)["error.type"] == ("job_stopped" if stopped else "work_horse_killed")
        assert ("signal 9" in str(span.status.description)) is not stopped
        assert not get_current_span().get_span_context().is_valid
        os.close(read)
        os.close(write)

    @pytest.mark.parametrize("status", [0, 3])
    def test_a_horse_that_just_exits_has_its_span_from_the_parent(
        self, captured_spans: CapturedSpans, hooks: WorkerHooks, status: int
    ) -> None:
        """os._exit in a job, whatever the status."""
        self.execute(hooks, self.perform(hooks, lambda *args: os._exit(status)))
        assert attributes(captured_spans[0])["error.type"] == "work_horse_killed"

    def test_a_fork_that_fails_is_an_error(self, captured_spans: CapturedSpans, hooks: WorkerHooks) -> None:
        """RQ's own exception comes out, and is on the span of the job that it took off the queue."""

        def no_fork(*args: Any) -> None:
            raise OSError(errno.EAGAIN, "no more processes")

        with pytest.raises(OSError, match="no more processes"):
            hooks.execute_job(no_fork, Worker.__new__(Worker), (delivered(), make_queue()), {})
        assert attributes(captured_spans[0])["error.type"] == "BlockingIOError"

    def test_a_shutdown_takes_the_span_along(self, captured_spans: CapturedSpans, hooks: WorkerHooks) -> None:
        """A cold shutdown leaves through the worker as SystemExit."""

        def shut_down(*args: Any) -> None:
            raise SystemExit

        with pytest.raises(SystemExit):
            hooks.execute_job(shut_down, Worker.__new__(Worker), (delivered(), make_queue()), {})
        assert attributes(captured_spans[0])["error.type"] == "work_horse_killed"

    def test_a_child_that_falls_out_of_the_fork_leaves_the_span_to_its_parent(
        self, captured_spans: CapturedSpans, hooks: WorkerHooks
    ) -> None:
        """Only the process that began it finishes it."""
        horse = horses.Horse(hooks.engine, delivered(), make_queue(), spawned=False)
        pid = os.fork()
        if pid == 0:
            horse.finish(None)
            os._exit(len(captured_spans))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        horse.finish(None)
        assert len(captured_spans) == 1

    def test_a_worker_that_performs_in_its_own_process_has_one_span(
        self, captured_spans: CapturedSpans, hooks: WorkerHooks
    ) -> None:
        """Somebody's Worker that does not fork after all."""
        hooks.execute_job(
            lambda job, queue: hooks.perform_job(
                lambda *args: None, SimpleNamespace(is_horse=False), (job, queue), {}
            ),
            Worker.__new__(Worker),
            (delivered(), make_queue()),
            {},
        )
        assert [span.status.status_code for span in captured_spans] == [StatusCode.UNSET]

    def test_a_simple_worker_has_no_horse(self, captured_spans: CapturedSpans, hooks: WorkerHooks) -> None:
        """Its execute_job is left alone; and so is one within another's, for the same horse."""
        simple = SimpleWorker.__new__(SimpleWorker)
        assert hooks.execute_job(lambda *args: horses.watched(), simple, (delivered(),), {}) is None
        worker = Worker.__new__(Worker)
        seen: list[Any] = []

        def outer(*args: Any) -> None:
            seen.append(horses.watched())
            hooks.execute_job(lambda *args: seen.append(horses.watched()), worker, args, {})

        hooks.execute_job(outer, worker, (delivered(), make_queue()), {})
        assert seen[0] is seen[1] is not None

    def test_a_horse_that_nobody_watches_has_its_span(
        self, captured_spans: CapturedSpans, hooks: WorkerHooks, circuit: Circuit
    ) -> None:
        """A worker's class of somebody's that forks in a way of its own: there is no parent to leave the span to."""
        for _ in range(2):
            self.perform(hooks, lambda *args: None)(delivered(), make_queue())
            circuit.note(False, 2.0)
        assert len(captured_spans) == 2

    @pytest.mark.parametrize("error", [None, ValueError("gave up"), SystemExit(3)])
    def test_what_would_be_waited_for_in_vain_is_left_to_the_parent(
        self,
        captured_spans: CapturedSpans,
        hooks: WorkerHooks,
        circuit: Circuit,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        error: BaseException | None,
    ) -> None:
        """The horse neither flushes nor ends its span; the parent does, with the outcome, and keeps it for a while."""
        flushed = tmp_path / "flushed"
        monkeypatch.setattr(collector, "flush", lambda timeout: flushed.touch())
        circuit.note(False, 2.0)

        def perform(job: Job, queue: Queue) -> None:
            if error is not None:
                hooks.handle_exception(lambda *args: None, None, (job, type(error), error, None), {})

        self.execute(hooks, self.perform(hooks, perform))
        ended_by = time.time_ns()
        assert len(captured_spans) == 0
        hooks.work(lambda: None, None, (), {})
        [span] = captured_spans
        assert span.end_time is not None
        assert span.end_time < ended_by
        assert attributes(span).get("error.type") == (type(error).__name__ if error else None)
        assert span.status.description == (str(error) if error else None)
        assert attributes(span)["code.function.name"] == f"{work.__module__}.work"
        assert not flushed.exists()

    def test_a_child_that_the_job_forks_tells_nothing(
        self, captured_spans: CapturedSpans, hooks: WorkerHooks, circuit: Circuit
    ) -> None:
        """It leaves through RQ's code; then the horse dies, and its parent still knows that."""

        def fork(*args: Any) -> None:
            pid = os.fork()
            if pid == 0:
                raise SystemExit
            os.waitpid(pid, 0)
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(9)

        self.execute(hooks, self.perform(hooks, fork))
        assert [attributes(span)["error.type"] for span in captured_spans] == ["work_horse_killed"]

    @pytest.mark.parametrize("in_horse", [True, False])
    def test_in_such_a_child_nothing_is_ended(
        self,
        captured_spans: CapturedSpans,
        hooks: WorkerHooks,
        monkeypatch: pytest.MonkeyPatch,
        in_horse: bool,
    ) -> None:
        """What it has made is handed over, for RQ ends it in os._exit as well; a SimpleWorker's child runs on."""
        flushed: list[float] = []
        monkeypatch.setattr(collector, "flush", flushed.append)
        horse = horses.Horse(hooks.engine, delivered(), make_queue(), spawned=False)
        horse.performance.begin()
        performing.leave_to_parent(horse.performance, in_horse)
        assert flushed == ([2.0] if in_horse else [])
        assert len(captured_spans) == 0
        assert horse.line.told() is None
        assert not get_current_span().get_span_context().is_valid

    def test_whatever_stands_in_the_shared_memory_the_parent_goes_on(
        self, captured_spans: CapturedSpans, hooks: WorkerHooks
    ) -> None:
        """A job may write anywhere in its process."""
        dice = random.Random(7)
        for number in range(300):
            junk = bytes([number % 3]) + dice.randbytes(lines.LINE_SIZE - 1)

            def scribble(job: Job, queue: Queue, junk: bytes = junk) -> None:
                horse = horses.watched()
                assert horse is not None
                horse.line._memory[:] = junk
                hooks.wait_for_horse(lambda: (1, 0, None), SimpleNamespace(_stopped_job_id=None), (), {})

            hooks.execute_job(scribble, Worker.__new__(Worker), (delivered(), make_queue()), {})
            assert not get_current_span().get_span_context().is_valid
        assert len(captured_spans) >= 100

    @pytest.mark.parametrize("break_", ["Told", "error_type_of"])
    def test_what_a_horse_cannot_tell_does_not_reach_its_job(
        self,
        captured_spans: CapturedSpans,
        hooks: WorkerHooks,
        monkeypatch: pytest.MonkeyPatch,
        break_: str,
    ) -> None:
        """The guard takes it, in the horse; and the parent takes a horse that told nothing for a dead one."""
        monkeypatch.setattr(guard, "raise_faults", False)
        monkeypatch.setattr(performing, break_, MagicMock(side_effect=RuntimeError("ours")))
        horse = horses.Horse(hooks.engine, delivered(), make_queue(), spawned=False)
        performing._tell(horse.line, horse.performance, ValueError("the job's"), True, None)
        horse.finish(None)
        assert attributes(captured_spans[0])["error.type"] == "work_horse_killed"

    def test_what_rq_gives_out_of_the_ordinary_does_not_stop_the_worker(
        self, captured_spans: CapturedSpans, hooks: WorkerHooks, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A worker's class of somebody's may wait for its horse in a way of its own."""
        monkeypatch.setattr(guard, "raise_faults", False)
        worker = Worker.__new__(Worker)
        hooks.execute_job(
            lambda *args: hooks.wait_for_horse(lambda: None, worker, (), {}),
            worker,
            (delivered(), make_queue()),
            {},
        )
        assert attributes(captured_spans[0])["error.type"] == "work_horse_killed"

    def test_a_worker_in_a_child_of_multiprocessing_hands_over_at_its_end(
        self, hooks: WorkerHooks, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """WorkerPool's workers: no exit hooks run there. Elsewhere they do, and nothing is waited for."""
        flushed: list[float] = []
        monkeypatch.setattr(workers, "flush", flushed.append)
        assert hooks.work(lambda: True, None, (), {}) is True
        assert flushed == []
        monkeypatch.setattr("multiprocessing.parent_process", lambda: object())
        assert hooks.work(lambda: True, None, (), {}) is True
        assert flushed == [2.0]


class Measured:
    """A worker whose meter provider has one beside it that no horse inherits; its measurements land here."""

    class Provider(MeterProvider):
        def __init__(self, beside: MeterProvider) -> None:
            self.own = InMemoryMetricReader()
            super().__init__([self.own], shutdown_on_exit=False)
            self._given = beside

        def not_inherited(self) -> MeterProvider:
            return self._given

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = self.Provider(MeterProvider([self.reader], shutdown_on_exit=False))
        self.hooks = WorkerHooks(engine_for(Settings(meter_provider=self.provider)), spawned="all")

    def counts(self, **attributes: str) -> dict[str, float]:
        """By metric, of the points that have these attributes (``_`` for ``.``)."""
        wanted = {name.replace("_", "."): value for name, value in attributes.items()}
        data = self.reader.get_metrics_data()
        found: dict[str, float] = {}
        for group in data.resource_metrics if data is not None else ():
            for metric in (metric for scope in group.scope_metrics for metric in scope.metrics):
                points: Any = metric.data.data_points
                for point in points:
                    if wanted.items() <= dict(point.attributes).items():
                        found[metric.name] = found.get(metric.name, 0) + getattr(point, "count", 0)
                        found[metric.name] += getattr(point, "value", 0)
        return found


ONCE = {
    "messaging.process.duration": 1,
    "messaging.client.consumed.messages": 1,
    "queueprop.message.queue_time": 1,
}


class TestMetricsOfWorkHorses(TestWorkHorses):
    """What a forked one measures its parent records: each job once. All of the above holds with metrics as well."""

    @pytest.fixture
    def measured(self) -> Iterator[Measured]:
        yield Measured()
        metrics.measure_here()

    @pytest.fixture
    def hooks(self, measured: Measured) -> WorkerHooks:
        return measured.hooks

    @pytest.mark.parametrize("error", [None, ValueError("gave up")])
    def test_the_parent_records_a_job_and_what_it_publishes(
        self, hooks: WorkerHooks, measured: Measured, error: Exception | None
    ) -> None:
        """And in the provider that a fork copies there is nothing."""

        def perform(job: Job, queue: Queue) -> None:
            adapter.traced_publish(make_queue().enqueue, settings=hooks.engine.settings)(work)
            if error is not None:
                hooks.handle_exception(lambda *args: None, None, (job, type(error), error, None), {})

        self.execute(hooks, self.perform(hooks, perform))
        sent = {"messaging.client.operation.duration": 1, "messaging.client.sent.messages": 1}
        assert measured.counts() == {**ONCE, **sent}
        of_error = {name: 1 for name in ONCE if "queue_time" not in name}
        assert measured.counts(error_type="ValueError") == (of_error if error else {})
        assert measured.provider.own.get_metrics_data() is None

    def test_a_job_that_is_left_to_the_parent_is_recorded_once(
        self, hooks: WorkerHooks, measured: Measured, circuit: Circuit, captured_spans: CapturedSpans
    ) -> None:
        """Where nobody takes spans: the parent measures the job, and has what it published from the horse."""
        circuit.note(False, 2.0)

        def perform(job: Job, queue: Queue) -> None:
            adapter.traced_publish(make_queue().enqueue, settings=hooks.engine.settings)(work)

        self.execute(hooks, self.perform(hooks, perform))
        assert measured.counts(messaging_operation_name="process") == ONCE
        assert measured.counts()["messaging.client.sent.messages"] == 1

    @pytest.mark.parametrize("dies", ["in the job", "before it tells"])
    def test_a_killed_horse_is_recorded_once(
        self, hooks: WorkerHooks, measured: Measured, monkeypatch: pytest.MonkeyPatch, dies: str
    ) -> None:
        """By its parent alone, also where it had measured the job: what it has not told of counts for nothing."""

        def die(*args: Any) -> None:
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(9)

        if dies == "before it tells":
            monkeypatch.setattr(performing, "hand_over", die)
        self.execute(hooks, self.perform(hooks, die if dies == "in the job" else lambda *args: None))
        assert measured.counts() == ONCE
        killed = measured.counts(error_type="work_horse_killed")
        assert killed == {name: 1 for name in ONCE if "queue_time" not in name}

    def test_a_worker_that_performs_in_its_own_process_is_recorded_once(
        self, hooks: WorkerHooks, measured: Measured
    ) -> None:
        """Somebody's Worker that does not fork after all."""
        hooks.execute_job(
            lambda job, queue: hooks.perform_job(
                lambda *args: None, SimpleNamespace(is_horse=False), (job, queue), {}
            ),
            Worker.__new__(Worker),
            (delivered(), make_queue()),
            {},
        )
        assert measured.counts() == ONCE

    def test_junk_for_measurements_is_none(
        self, hooks: WorkerHooks, measured: Measured, captured_spans: CapturedSpans
    ) -> None:
        """The length of it, too, is input."""
        dice = random.Random(7)
        for _ in range(20):
            line = lines.Line(None)
            line.put_measured(dice.randbytes(200))
            line._memory[lines._MEASURED_AT : lines._MEASURED_AT + 4] = dice.randbytes(4)
            assert len(line.measured()) <= lines.ROOM
            performance = performing.Performance(hooks.engine, delivered(), "orders", forgetful())
            performance.parent_measures, performance.line = True, line
            performance.record_measured()
        assert measured.counts() == {}

    @pytest.mark.parametrize("where", ["put_measured", "measured"])
    def test_what_fails_at_it_does_not_reach_the_job(
        self, hooks: WorkerHooks, measured: Measured, monkeypatch: pytest.MonkeyPatch, where: str
    ) -> None:
        """The guard takes it, in the horse and in its parent; the span is told of all the same."""
        monkeypatch.setattr(guard, "raise_faults", False)
        monkeypatch.setattr(lines.Line, where, MagicMock(side_effect=RuntimeError("ours")))
        self.execute(hooks, self.perform(hooks, lambda *args: None))
        assert measured.counts() == {}

    def test_a_horse_whose_worker_is_gone_measures_by_itself(
        self, hooks: WorkerHooks, measured: Measured
    ) -> None:
        """SIGKILL for the worker alone: nobody would read what it leaves."""
        seen, told = os.pipe()

        def in_horse(job: Job, queue: Queue) -> None:
            os.getppid = lambda: 1
            self.perform(hooks, lambda *args: None)(job, queue)
            os.write(told, b"x" * (measured.provider.own.get_metrics_data() is not None))

        self.execute(hooks, in_horse)
        assert os.read(seen, 9) == b"x"
        assert measured.counts() == {}
        os.close(seen)
        os.close(told)

    def test_without_a_provider_beside_a_horse_measures_by_itself(
        self, hooks: WorkerHooks, measured: Measured
    ) -> None:
        """As with an SDK that something else has set up; nothing is kept and nothing recorded."""
        reader = InMemoryMetricReader()
        settings = Settings(meter_provider=MeterProvider([reader], shutdown_on_exit=False))
        seen, told = os.pipe()

        def in_horse(job: Job, queue: Queue) -> None:
            self.perform(hooks, lambda *args: None)(job, queue)
            os.write(told, b"x" * (reader.get_metrics_data() is not None))

        hooks = WorkerHooks(engine_for(settings), spawned="all")
        self.execute(hooks, in_horse)
        assert os.read(seen, 9) == b"x"
        assert reader.get_metrics_data() is None
        os.close(seen)
        os.close(told)


class _Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


class _Table:
    """What a hook of somebody's looks things up in."""

    def __init__(self, count: int) -> None:
        self._names = {f"customer-{number}": "eu-west" for number in range(count)}

    def add(self, span: Any, message: Any) -> None:
        span.set_attribute("region", self._names[message.id])


def _most_arguments() -> float:
    return spawning._most_arguments() - sum(len(name) + len(value) + 10 for name, value in os.environ.items())


@pytest.mark.skipif(SpawnWorker is None, reason="SpawnWorker came with RQ 2.2")
class TestSpawnedHorses:
    """A program of its own, which the parent has told what to do."""

    def execute(
        self, hooks: WorkerHooks, told: lines.Told | None, status: int = 0, stopped: bool = False
    ) -> None:
        job = delivered()
        worker = SpawnWorker.__new__(SpawnWorker)
        worker._stopped_job_id = job.id if stopped else None

        def as_rq_does(job: Job, queue: Queue) -> None:
            horse = horses.watched()
            assert horse is not None
            end = horse.line.lend()
            line = lines.Line.of_parent(end._replace(fd=os.dup(end.fd)))
            horse.line.take_back()
            if told is not None:
                line.tell(told)
            hooks.wait_for_horse(lambda: (1, status, None), worker, (), {})

        hooks.execute_job(as_rq_does, worker, (job, make_queue()), {})

    def test_its_own_span_is_enough(self, captured_spans: CapturedSpans, hooks: WorkerHooks) -> None:
        """It has an SDK and said so, even when it died thereafter."""
        self.execute(hooks, lines.Told(True, None, "", "", ""))
        self.execute(hooks, lines.Told(True, None, "tasks.work", "ValueError", "gave up"), status=9)
        assert len(captured_spans) == 0

    @pytest.mark.parametrize("error", [("", ""), ("ValueError", "gave up"), ("ValueError", "")])
    def test_without_an_sdk_the_parent_makes_the_span(
        self, captured_spans: CapturedSpans, hooks: WorkerHooks, error: tuple[str, str]
    ) -> None:
        """With the outcome that the horse told."""
        self.execute(hooks, lines.Told(False, None, "tasks.work", *error))
        [span] = captured_spans
        assert (
            attributes(span)["code.function.name"] == f"{work.__module__}.work"
        )  # which this parent knows itself
        assert attributes(span).get("error.type") == (error[0] or None)
        assert span.status.description == (error[1] if error[0] else None)

    def test_a_killed_one_has_its_span_from_the_parent(
        self, captured_spans: CapturedSpans, hooks: WorkerHooks
    ) -> None:
        """As a forked one has."""
        self.execute(hooks, None, status=9)
        self.execute(hooks, None, status=9, stopped=True)
        assert [attributes(span)["error.type"] for span in captured_spans] == [
            "work_horse_killed",
            "job_stopped",
        ]

    def test_one_that_could_not_join_has_a_span_without_an_outcome(
        self, captured_spans: CapturedSpans, hooks: WorkerHooks
    ) -> None:
        """It exited in order and told nothing: RQ knows how the job ended, the telemetry does not."""
        self.execute(hooks, None)
        assert captured_spans[0].status.status_code is StatusCode.UNSET

    @pytest.mark.parametrize(
        ("error", "text"),
        [
            (ValueError("ä" * 99_999), "ä" * 1500),
            (ValueError("x" + "\N{GRINNING FACE}" * 99_999), "x" + "\N{GRINNING FACE}" * 749),
            (ValueError("half a pair: \ud83d"), "half a pair: ?"),
            (ValueError("\x00\n\x1b"), "\x00\n\x1b"),
            (_Unprintable(), "<its __str__ raises>"),
        ],
    )
    def test_of_what_a_horse_tells_a_page_is_taken(
        self,
        captured_spans: CapturedSpans,
        hooks: WorkerHooks,
        monkeypatch: pytest.MonkeyPatch,
        error: Exception,
        text: str,
    ) -> None:
        """Errors of any length and any text: cut, at a character's end."""
        line = lines.Line(None)
        monkeypatch.setattr(performing, "parent_line", line)
        monkeypatch.setattr(guard, "raise_faults", False)  # the SDK cannot print the last one either
        hooks.perform_job(
            functools.partial(self.fail_with, hooks, error),
            SimpleNamespace(is_horse=True),
            (delivered(), make_queue()),
            {},
        )
        told = line.told()
        assert told is not None
        assert (told.ended, told.answered, told.error_text) == (True, True, text)
        assert told.function == f"{work.__module__}.work"

    def test_one_without_an_sdk_leaves_the_span_to_its_parent(
        self, hooks: WorkerHooks, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It says so."""
        line = lines.Line(None)
        monkeypatch.setattr(performing, "parent_line", line)
        hooks.perform_job(lambda *args: None, SimpleNamespace(is_horse=True), (delivered(), make_queue()), {})
        told = line.told()
        assert told is not None
        assert not told.ended

    def test_what_it_has_waited_for_in_vain_its_parent_remembers(
        self, captured_spans: CapturedSpans, hooks: WorkerHooks, circuit: Circuit
    ) -> None:
        """And tells the next one, whose memory it does not share."""
        self.execute(hooks, lines.Told(True, False, "", "", ""))
        assert circuit.patience(2.0) == 0
        assert repr(circuit.state) in spawning.prologue(
            lines.End(1, 2, 3), INVALID_SPAN_CONTEXT, "all", Settings()
        )
        self.execute(hooks, lines.Told(False, None, "", "", ""))
        assert circuit.patience(2.0) == 0
        self.execute(hooks, lines.Told(True, True, "", "", ""))
        assert circuit.patience(2.0) == 2.0

    def test_another_file_under_the_line_s_number_is_left_alone(self, tmp_path: Path) -> None:
        """A program may close what it inherits before any of ours runs, and open files of its own."""
        line = lines.Line(lines.unnamed_file())
        end = line.lend()
        with (tmp_path / "mine").open("w+b") as file:
            with pytest.raises(OSError, match="another file's"):
                lines.Line.of_parent(end._replace(fd=file.fileno()))
            file.write(b"mine")
        line.close()
        assert (tmp_path / "mine").read_bytes() == b"mine"

    def test_where_there_are_no_files_in_memory_it_is_an_unnamed_one(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """macOS has no memfd_create, and a sandbox may forbid it."""
        monkeypatch.setattr(os, "memfd_create", MagicMock(side_effect=OSError), raising=False)
        line = lines.Line(lines.unnamed_file())
        end = line.lend()
        of_parent = lines.Line.of_parent(end._replace(fd=os.dup(end.fd)))
        of_parent.tell(lines.Told(True, None, "tasks.work", "", ""))
        assert line.told() == lines.Told(True, None, "tasks.work", "", "")
        line.close()

    def test_one_that_cannot_be_told_how_to_join_is_spawned_all_the_same(
        self, captured_spans: CapturedSpans, hooks: WorkerHooks, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A fault of ours is no reason not to perform a job."""
        monkeypatch.setattr(guard, "raise_faults", False)
        monkeypatch.setattr(workers, "prologue", MagicMock(side_effect=RuntimeError("ours")))
        worker = SpawnWorker.__new__(SpawnWorker)
        spawned: list[Any] = []

        def as_rq_does(job: Job, queue: Queue) -> None:
            hooks.fork_work_horse(
                types.MethodType(lambda *args: spawned.append(args), worker), worker, (job,), {}
            )
            hooks.wait_for_horse(lambda: (1, 0, None), SimpleNamespace(_stopped_job_id=None), (), {})

        job = delivered()
        hooks.execute_job(as_rq_does, worker, (job, make_queue()), {})
        assert spawned == [(worker, job)]
        assert len(captured_spans) == 1

    @staticmethod
    def fail_with(hooks: WorkerHooks, error: Exception, job: Job, queue: Queue) -> None:
        hooks.handle_exception(lambda *args: None, None, (job, type(error), error, None), {})

    def test_ours_stands_where_rq_imports_what_is_installed(
        self, hooks: WorkerHooks, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In the program of RQ's own function, behind its ``sys.path``; nothing else of that is touched."""
        monkeypatch.setattr(workers, "prologue", lambda *told: "ours = 1\n")
        job, queue, worker = delivered(), make_queue(), self.worker(monkeypatch)
        [plain, _] = self.started(monkeypatch, lambda: worker.fork_work_horse(job, queue))

        def as_rq_does(job: Job, queue: Queue) -> None:
            hooks.fork_work_horse(worker.fork_work_horse, worker, (job, queue), {})

        [joined, environment] = self.started(
            monkeypatch, lambda: hooks.execute_job(as_rq_does, worker, (job, queue), {})
        )
        at = plain[2].index("\nfrom redis import") + 1
        assert joined == [*plain[:2], f"{plain[2][:at]}ours = 1\n{plain[2][at:]}"]
        assert environment == {**os.environ, **guard.environment()}

    @staticmethod
    def worker(monkeypatch: pytest.MonkeyPatch) -> Any:
        for name in ("RQ_WORKER_ID", "RQ_JOB_ID", "RQ_EXECUTION_ID"):
            monkeypatch.setenv(name, "")
        connection = forgetful()
        connection.connection_pool.connection_class = Connection
        worker = SpawnWorker([make_queue()], name="one", connection=connection, prepare_for_work=False)
        worker.execution, worker.procline = SimpleNamespace(id="once"), lambda message: None
        return worker

    @staticmethod
    def started(monkeypatch: pytest.MonkeyPatch, start: Callable[[], Any]) -> Any:
        """The arguments and the environment of the program that is started meanwhile."""
        found: list[Any] = []

        def keep(*given: Any, **options: Any) -> int:
            *_, argv, env = given if isinstance(given[-1], Mapping) else (*given, os.environ)
            found.append((argv, dict(env)))
            return os.getpid()

        with monkeypatch.context() as patched:
            for name in ("spawnv", "spawnve", "posix_spawn"):
                patched.setattr(os, name, keep)
            start()
        [started] = found
        return started

    @staticmethod
    def exit_codes(joining: Any, program: str, environment: Mapping[str, str] = os.environ) -> list[int]:
        """Of the program, started in both of RQ's ways."""
        argv = [sys.executable, "-c", program]
        pids = [joining.posix_spawn(sys.executable, argv, dict(environment))]
        if environment is os.environ:
            pids.append(joining.spawnv(os.P_NOWAIT, sys.executable, argv))
        return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]

    def test_ours_and_rq_s_program_import_the_same(self, tmp_path: Path) -> None:
        """Also where the program says itself where modules are found."""
        (tmp_path / "rq.py").write_text("number = 3")
        path = [str(tmp_path), *sys.path]
        program = f"\nimport sys\n\nsys.path[:] = {path!r}\n\nimport rq\nsys.exit(rq.number + above)\n"
        assert self.exit_codes(spawning.JoiningOs("import rq; above = rq.number\n"), program) == [6, 6]

    @pytest.mark.parametrize("argv", [["true"], ["python", "-c"], ["python", "-c", "print('from redis')"]])
    def test_a_program_that_we_do_not_know_stays_as_it_is(self, argv: list[str]) -> None:
        """Of a later RQ, or none of Python's."""
        joining: Any = spawning.JoiningOs("ours = 1\n")
        with guard.collecting() as said:
            assert joining._joining(iter(argv), {"ONE": "1"}) == (argv, {"ONE": "1"})
        assert len(said) == (len(argv) == 3)
        assert all("upgrade queueprop" in line for line in said)

    def test_a_fault_of_ours_starts_the_program_as_it_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whatever fails between RQ's function and the system."""
        monkeypatch.setattr(guard, "raise_faults", False)
        monkeypatch.setattr(spawning, "joining", MagicMock(side_effect=RuntimeError("ours")))
        assert self.exit_codes(spawning.JoiningOs("ours = 1\n"), "import rq") == [0, 0]

    def test_what_the_system_would_not_take_is_not_added(self) -> None:
        """RQ's program starts wherever it starts without us: beside long arguments, or many variables."""
        joining = spawning.JoiningOs(f"import sys; sys.exit(1) #{'x' * 8000}\n")
        long = f"{'#' * ((1 << 17) - 4000)}\nimport rq\n"
        full = {f"FULL_{number}": "x" * 100_000 for number in range(int(_most_arguments() // 100_000))}
        full["FULL_REST"] = "x" * int(_most_arguments() % 100_000 - 4000)
        with guard.collecting() as said:
            assert self.exit_codes(joining, long) == [0, 0]
            assert self.exit_codes(joining, "import rq\n", {**os.environ, **full}) == [0]
        assert ["leave room" in line for line in said] == [True] * 3

    @pytest.mark.parametrize("limit", [OSError(), ValueError(), AttributeError(), -1])
    def test_a_system_without_a_limit(self, monkeypatch: pytest.MonkeyPatch, limit: Any) -> None:
        """Or one that tells none."""
        monkeypatch.setattr(os, "sysconf", MagicMock(side_effect=[limit]))
        assert spawning._is_startable(["python"], {})

    def test_a_setting_of_any_size_costs_no_job(self) -> None:
        """It is left out, is said once, and takes none of the others with it."""
        line = lines.Line(lines.unnamed_file())
        settings = Settings(flush_timeout=7, consume_hook=_Table(20_000).add, publish_hook=_Table(10).add)
        with guard.collecting() as said:
            program = spawning.prologue(line.lend(), INVALID_SPAN_CONTEXT, "all", settings)
        assert self.exit_codes(spawning.JoiningOs(program), "import rq") == [0, 0]
        line.close()
        assert len(said) == 1
        assert "consume_hook is more than 64 KiB" in said[0]
        told = spawning.unpickled(spawning.pickled(settings))
        assert (told.flush_timeout, told.consume_hook) == (7, None)
        assert told.publish_hook is not None

    def test_settings_have_a_bound_in_all(self) -> None:
        """Two hooks that would do alone: the smaller one is told."""
        settings = Settings(consume_hook=_Table(1500).add, publish_hook=_Table(2500).add)
        with guard.collecting() as said:
            told = spawning.pickled(settings)
        assert sum(len(repr(pickled)) for pickled in told.values()) < 1 << 16
        assert ("consume_hook" in told, "publish_hook" in told) == (True, False)
        assert len(said) == 1
        assert "publish_hook" in said[0]

    def test_who_is_not_to_be_trusted_is_not_trusted_by_a_horse(self) -> None:
        """It knows no function of its parent's main module, and falls back to nobody, not to everybody."""
        with guard.collecting() as said:
            told = spawning.pickled(Settings(trust=lambda destination, message: False))
            assert spawning.unpickled(told).trust == "none"
            assert spawning.unpickled({"trust": b"c__main__\nnothing\n."}).trust == "none"
        assert ["make trust a function of a module" in line for line in said] == [True] * 2
        assert spawning.unpickled(spawning.pickled(Settings())) == Settings()

    _OTHER_VERSIONS: ClassVar[dict[str, str]] = {
        "is told something else": "import queueprop.adapters.rq.spawning as it\nit.join_parent = lambda end: None\n",
        "is gone": "import queueprop.adapters.rq.spawning as it\ndel it.join_parent\n",
        "has another form": "import queueprop.adapters.rq.spawning as it\nit.FORM += 1\n",
        "is half installed": (
            "import sys\n"
            "class Finder:\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            "        if name == 'queueprop.adapters.rq': raise AttributeError(name)\n"
            "sys.meta_path.insert(0, Finder())\n"
        ),
        "is not there": "import sys\nsys.modules['queueprop'] = None\n",
    }

    @pytest.mark.parametrize("other", _OTHER_VERSIONS)
    def test_another_version_stops_no_job(self, other: str) -> None:
        """One that was installed while the worker runs: RQ's program runs."""
        ours = spawning.prologue(lines.End(0, 0, 0), INVALID_SPAN_CONTEXT, "all", Settings())
        program = f"{self._OTHER_VERSIONS[other]}{ours}print('performed')"
        environment = {name: value for name, value in os.environ.items() if name != "_QUEUEPROP_RAISE_FAULTS"}
        found = subprocess.run(
            [sys.executable, "-c", program], check=False, capture_output=True, text=True, env=environment
        )
        assert (found.returncode, found.stdout) == (0, "performed\n")
        assert "Traceback" not in found.stderr
        assert ("restart the worker" in found.stderr) == (other == "has another form")

    def test_what_another_version_tells_is_not_looked_into(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whatever it is, and however much."""
        monkeypatch.setattr(spawning, "_join_parent", MagicMock(side_effect=AssertionError))
        others: list[tuple[Any, ...]] = [(), (spawning.FORM + 1,), ("2", {"end": 1}), (None, *range(20))]
        for told in others:
            with guard.collecting() as said:
                spawning.join_parent(*told)
            assert len(said) == 1

    def test_a_setting_of_another_version_is_left_out(self) -> None:
        """The others come through."""
        told = {"flush_timeout": pickle.dumps(3.0), "of_tomorrow": pickle.dumps(1)}
        assert spawning.unpickled(told).flush_timeout == 3.0

    def test_another_version_s_line_is_not_cut(self) -> None:
        """Its worker has mapped it, and would die of reading behind its end."""
        line = lines.Line(lines.unnamed_file())
        end = line.lend()
        os.truncate(end.fd, 2 * lines.LINE_SIZE)
        with pytest.raises(OSError, match="another version's"):
            lines.Line.of_parent(end)
        assert os.fstat(end.fd).st_size == 2 * lines.LINE_SIZE
        line.close()

    def test_only_a_watched_spawn_worker_s_program_is_touched(self, hooks: WorkerHooks) -> None:
        """Any other call runs as it is."""
        assert hooks.fork_work_horse(lambda job: job, None, ("job",), {}) == "job"

    def test_the_prologue_joins_what_the_parent_does(self, circuit: Circuit) -> None:
        """In a new program: instrumented, with the parent's settings as far as they can be told."""
        settings = Settings(flush_timeout=7, consume_hook=lambda span, job: None, publish_hook=print)
        line = lines.Line(lines.unnamed_file())
        end = line.lend()
        circuit.note(False, 7.0)
        program = spawning.prologue(end, INVALID_SPAN_CONTEXT, "all", settings) + (
            "import sys\n"
            "from queueprop.adapters.rq import RQInstrumentor, collector, performing\n"
            "instrumentor = RQInstrumentor()\n"
            "found = instrumentor.engine.settings\n"
            "performing.parent_line.tell(performing.Told(True, None, '', '', ''))\n"
            "sys.exit(not (instrumentor.is_instrumented_by_opentelemetry and found.flush_timeout == 7\n"
            "    and found.publish_hook is print and found.consume_hook is None\n"
            "    and collector.circuit.patience(7.0) == 0))\n"
        )
        found = subprocess.run([sys.executable, "-c", program], check=False, pass_fds=[end.fd])
        assert found.returncode == 0
        assert line.told() == lines.Told(True, None, "", "", "")
        line.close()

    def test_the_descriptor_that_it_inherits_is_closed(self) -> None:
        """Once it is mapped, it has done its work."""
        line = lines.Line(lines.unnamed_file())
        end = line.lend()
        lent = end._replace(fd=os.dup(end.fd))
        lines.Line.of_parent(lent)
        with pytest.raises(OSError, match="descriptor"):
            os.fstat(lent.fd)
        assert os.get_inheritable(end.fd)
        line.take_back()
        with pytest.raises(OSError, match="descriptor"):
            os.fstat(end.fd)
        line.close()

    def test_a_hook_of_the_parent_s_main_module_is_left_out(self) -> None:
        """It cannot be found from another program; the other settings come through."""
        broken = {"flush_timeout": pickle.dumps(3.0), "consume_hook": b"c__main__\nnothing\n."}
        assert spawning.unpickled(broken).flush_timeout == 3.0

    def test_joining_fails_quietly(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The job runs on, untraced."""
        monkeypatch.setattr(guard, "raise_faults", False)
        monkeypatch.setattr(performing, "parent_line", None)
        told: tuple[Any, ...] = (10**6, 0, 0, bytes(16), (0, 0, 0, ""), "all", False, {})
        spawning.join_parent(spawning.FORM, *told)
        assert [*guard._logged.values()] == [1]


class TestKeptSpans:
    """What a worker keeps while nobody takes it."""

    def leave(self, hooks: WorkerHooks, *, answered: bool | None = None) -> None:
        """A horse that has left its span to its parent, or not."""

        def as_rq_does(job: Job, queue: Queue) -> None:
            horse = horses.watched()
            assert horse is not None
            horse.line.tell(lines.Told(bool(answered), answered, "tasks.work", "", ""))
            hooks.wait_for_horse(lambda: (1, 0, None), SimpleNamespace(_stopped_job_id=None), (), {})

        hooks.execute_job(as_rq_does, Worker.__new__(Worker), (delivered(), make_queue()), {})

    def test_the_first_answer_releases_them(
        self, captured_spans: CapturedSpans, hooks: WorkerHooks, circuit: Circuit
    ) -> None:
        """In their order, each with the end that it had."""
        circuit.note(False, 2.0)
        for _ in range(3):
            self.leave(hooks)
        assert len(captured_spans) == 0
        circuit.note(True, 2.0)
        released_at = time.time_ns()
        self.leave(hooks, answered=True)
        ends = [span.end_time or 0 for span in captured_spans]
        assert len(ends) == 3
        assert ends == sorted(ends)
        assert ends[-1] < released_at

    def test_a_killed_one_s_is_kept_as_well(
        self, captured_spans: CapturedSpans, hooks: WorkerHooks, circuit: Circuit
    ) -> None:
        """Whatever the parent ends."""
        circuit.note(False, 2.0)
        hooks.execute_job(lambda *args: None, Worker.__new__(Worker), (delivered(), make_queue()), {})
        assert len(captured_spans) == 0
        hooks.work(lambda: None, None, (), {})
        assert [attributes(span)["error.type"] for span in captured_spans] == ["work_horse_killed"]

    def test_they_are_bounded(
        self,
        captured_spans: CapturedSpans,
        hooks: WorkerHooks,
        circuit: Circuit,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The last ones are."""
        monkeypatch.setattr(collector, "MOST_KEPT", 5)
        monkeypatch.setattr(collector, "kept", collector.Kept())
        circuit.note(False, 2.0)
        for _ in range(8):
            self.leave(hooks)
        hooks.work(lambda: None, None, (), {})
        assert len(captured_spans) == 5

    def test_a_forked_child_leaves_them_to_its_parent(
        self, captured_spans: CapturedSpans, hooks: WorkerHooks, circuit: Circuit
    ) -> None:
        """A worker within a job has inherited them."""
        circuit.note(False, 2.0)
        self.leave(hooks)
        pid = os.fork()
        if pid == 0:
            hooks.work(lambda: None, None, (), {})
            os._exit(len(captured_spans))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        hooks.work(lambda: None, None, (), {})
        assert len(captured_spans) == 1

    def test_the_user_is_told_once(
        self,
        captured_spans: CapturedSpans,
        hooks: WorkerHooks,
        circuit: Circuit,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """One line, by the parent, of what is waited for, lost and kept."""
        circuit.note(False, 2.0)
        for _ in range(3):
            self.leave(hooks)
        [record] = caplog.records
        assert "nobody took them within 2 s (is the Collector there?)" in record.getMessage()

    def test_without_an_sdk_nothing_is_kept(
        self, hooks: WorkerHooks, circuit: Circuit, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Nor said."""
        circuit.note(False, 2.0)
        self.leave(hooks)
        assert len(collector.kept._spans) == 0
        assert caplog.records == []

    def test_a_span_whose_end_raises_stops_no_worker(
        self, hooks: WorkerHooks, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The next one is released."""
        monkeypatch.setattr(guard, "raise_faults", False)
        ended: list[int | None] = []
        for end in (MagicMock(side_effect=RuntimeError("the SDK's")), ended.append):
            withheld: Any = Withheld(SimpleNamespace(end=end))  # type: ignore[arg-type]
            withheld.end(17)
            collector.kept._spans.append(withheld)
        hooks.work(lambda: None, None, (), {})
        assert ended == [17]


class TestCircuit:
    """Which work horses wait until their spans are handed over."""

    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        """Of one entry, to be set."""
        now = [1000.0]
        monkeypatch.setattr(collector, "time", SimpleNamespace(monotonic=lambda: now[0]))
        return now

    def collector(
        self, monkeypatch: pytest.MonkeyPatch, clock: list[float], answers: bool, after: float
    ) -> list[float]:
        """What was waited, each time."""
        waited: list[float] = []

        def flush(timeout: float) -> bool:
            waited.append(min(timeout, after))
            clock[0] += waited[-1]
            return answers and after <= timeout

        monkeypatch.setattr(collector, "flush", flush)
        return waited

    def test_a_collector_that_does_not_answer_is_tried_now_and_then(
        self, circuit: Circuit, clock: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One whole wait; then shorter ones, each after a pause of two hundred times as long: half a percent."""
        waited = self.collector(monkeypatch, clock, answers=False, after=10)
        began = clock[0]
        for _ in range(40_000):  # 20 jobs a second
            collector.hand_over(2.0, circuit.patience(2.0))
            clock[0] += 0.05
        assert waited[:7] == [2.0, 0.125, 0.25, 0.5, 1.0, 1.0, 1.0]
        assert sum(waited[1:]) / (clock[0] - began) < 0.005

    def test_one_that_is_back_is_waited_for_again(
        self, circuit: Circuit, clock: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """From its first answer on, as if nothing had been."""
        self.collector(monkeypatch, clock, answers=False, after=10)
        assert collector.hand_over(2.0, circuit.patience(2.0)) is False
        waited = self.collector(monkeypatch, clock, answers=True, after=0.02)
        assert collector.hand_over(2.0, circuit.patience(2.0)) is None
        clock[0] += 25.1
        assert collector.hand_over(2.0, circuit.patience(2.0)) is True
        assert collector.hand_over(2.0, circuit.patience(2.0)) is True
        assert circuit.patience(2.0) == 2.0
        assert waited == [0.02, 0.02]

    def test_one_that_is_slow_is_found_again_by_a_longer_try(
        self, circuit: Circuit, clock: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It needs 0.4 s: the third try waits for that long."""
        self.collector(monkeypatch, clock, answers=False, after=10)
        collector.hand_over(2.0, circuit.patience(2.0))
        waited = self.collector(monkeypatch, clock, answers=True, after=0.4)
        for _ in range(4000):
            collector.hand_over(2.0, circuit.patience(2.0))
            clock[0] += 0.05
        assert waited[:3] == [0.125, 0.25, 0.4]
        assert circuit.patience(2.0) == 2.0

    def test_a_refusal_that_costs_nothing_is_not_remembered(
        self, circuit: Circuit, clock: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The exporter gives up at once, or a processor never says that it has handed over: no job is held up."""
        self.collector(monkeypatch, clock, answers=False, after=0.01)
        assert collector.hand_over(2.0, circuit.patience(2.0)) is None
        assert circuit.patience(2.0) == 2.0

    def test_what_a_time_limit_cuts_short_proves_nothing(
        self, circuit: Circuit, clock: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """traced_consumer alone flushes within the job's limit."""
        waited = self.collector(monkeypatch, clock, answers=False, after=10)
        assert collector.hand_over(2.0, circuit.patience(2.0), left=0.01) is None
        assert waited == [0.01]
        assert circuit.patience(2.0) == 2.0

    @pytest.mark.parametrize("timeout", [0.0, 0.001, 1.0, 600.0])
    def test_every_timeout_is_kept(
        self, circuit: Circuit, clock: list[float], monkeypatch: pytest.MonkeyPatch, timeout: float
    ) -> None:
        """No wait is longer; 0 is for never."""
        waited = self.collector(monkeypatch, clock, answers=False, after=1e6)
        for _ in range(100):
            collector.hand_over(timeout, circuit.patience(timeout))
            clock[0] += timeout / 2
        assert max(waited, default=0.0) <= timeout
        assert (waited == []) is (timeout == 0)
        assert sum(waited) <= 9 * timeout

    def test_whatever_stands_in_its_memory_no_wait_is_too_long(self, circuit: Circuit) -> None:
        """Nor a pause: a job may write anywhere in its process."""
        dice = random.Random(3)
        odd = (math.nan, math.inf, -math.inf, -1.0, 0.0, 1e-9, 1e300, time.monotonic() + 1e9)
        states = [struct.pack("=dd", *pair) for pair in itertools.product(odd, odd)]
        for state in [*states, *(dice.randbytes(16) for _ in range(2000))]:
            circuit.state = state
            _, until = struct.unpack("=dd", state)
            assert 0 <= circuit.patience(2.0) <= 2.0
            assert circuit.patience(2.0) > 0 or 0 < until - time.monotonic() <= 200
            circuit.note(False, 2.0)
            wait, until = struct.unpack("=dd", circuit.state)
            assert 0 < wait <= 2.0
            assert until - time.monotonic() <= 200
            circuit.state = state
            circuit.note(True, 2.0)
            assert circuit.patience(2.0) == 2.0

    def test_forked_children_share_it(self, circuit: Circuit) -> None:
        """What one horse has found out holds for the next, whoever their parent is."""
        pid = os.fork()
        if pid == 0:
            circuit.note(False, 2.0)
            os._exit(0)
        os.waitpid(pid, 0)
        assert circuit.patience(2.0) == 0


class _RaisingSpan(NonRecordingSpan):
    """Everything that is asked of it raises."""

    def __init__(self) -> None:
        super().__init__(INVALID_SPAN_CONTEXT)

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("_"):
            return super().__getattribute__(name)
        raise RuntimeError("the SDK's")


class _BrokenTracer(NoOpTracer):
    def __init__(self, span: Any) -> None:
        self._span = span

    def start_span(self, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self._span, Exception):
            raise self._span
        return self._span


class _BrokenProvider(NoOpTracerProvider):
    def __init__(self, span: Any) -> None:
        self._span = span

    def get_tracer(self, *args: Any, **kwargs: Any) -> Any:
        return _BrokenTracer(self._span)


@pytest.mark.parametrize(
    "span",
    [None, object(), _RaisingSpan(), RuntimeError("the SDK's")],
    ids=["none", "object", "raising", "no span"],
)
class TestBrokenTracers:
    """The SDK is somebody else's code: what it does wrong stops no worker, and changes no job."""

    @pytest.fixture
    def broken(self, span: Any, monkeypatch: pytest.MonkeyPatch) -> WorkerHooks:
        monkeypatch.setattr(guard, "raise_faults", False)
        return WorkerHooks(engine_for(Settings(tracer_provider=_BrokenProvider(span))), spawned="all")

    def test_jobs_are_published(self, broken: WorkerHooks, queue: Queue) -> None:
        """One, and several at once."""
        job = make_job({"own": 1})
        hooks = PublishHooks(broken.engine)
        assert hooks.publish(lambda job: job, queue, (job,), {}) is job
        assert job.meta["own"] == 1
        datas = [Queue.prepare_data(work), Queue.prepare_data(work)]
        assert len(hooks.publish_many(list, queue, (datas,), {})) == 2

    @pytest.mark.parametrize("error", [None, ValueError("gave up"), SystemExit(3)])
    def test_jobs_are_performed(self, broken: WorkerHooks, error: BaseException | None) -> None:
        """What comes out of RQ's method comes out of ours, and nothing stays current."""
        worker = SimpleNamespace(is_horse=False)

        def perform(job: Job, queue: Queue) -> str:
            if error is not None:
                raise error
            return "done"

        for _ in range(2):
            with pytest.raises(type(error)) if error else contextlib.nullcontext():
                assert broken.perform_job(perform, worker, (delivered(), make_queue()), {}) == "done"
            assert not get_current_span().get_span_context().is_valid

    @pytest.mark.parametrize("patient", [True, False])
    @pytest.mark.parametrize("told", [True, False])
    def test_work_horses_are_watched(
        self, broken: WorkerHooks, circuit: Circuit, told: bool, patient: bool
    ) -> None:
        """Whoever is to end the span."""
        if not patient:
            circuit.note(False, 2.0)
        worker = Worker.__new__(Worker)

        def as_rq_does(job: Job, queue: Queue) -> str:
            if told:
                broken.perform_job(lambda *args: None, SimpleNamespace(is_horse=True), (job, queue), {})
            broken.wait_for_horse(lambda: (1, 9, None), SimpleNamespace(_stopped_job_id=None), (), {})
            return "done"

        for _ in range(2):
            assert broken.execute_job(as_rq_does, worker, (delivered(), make_queue()), {}) == "done"
            assert not get_current_span().get_span_context().is_valid

    def test_traced_functions_run(self, broken: WorkerHooks, monkeypatch: pytest.MonkeyPatch) -> None:
        """traced_consumer, with its own settings."""
        job = delivered()
        monkeypatch.setattr(functions, "get_current_job", lambda: job)
        assert adapter.traced_consumer(settings=broken.engine.settings)(work)("note") == "note"


class TestInstrumentor:
    def test_it_restores_the_very_functions(self) -> None:
        """Everything that it patched is as it was, in each class's own namespace."""
        owners = {
            owner for owner in (Queue, Job, *Worker.__mro__, SpawnWorker) if owner not in (None, object)
        }
        before = {owner: dict(vars(owner)) for owner in owners}
        instrumentor = adapter.RQInstrumentor()
        instrumentor.instrument()
        assert Queue.enqueue_job is not before[Queue]["enqueue_job"]
        instrumentor.uninstrument()
        for owner, names in before.items():
            assert {name: value for name, value in vars(owner).items() if names.get(name) is not value} == {}

    def test_subclasses_are_traced_as_well(self, captured_spans: CapturedSpans, instrumented: object) -> None:
        """A queue class of the user's own that calls RQ's methods."""

        class OwnQueue(Queue):
            def enqueue_call(self, *args: Any, **kwargs: Any) -> Any:
                return super().enqueue_call(*args, **kwargs)

        own = OwnQueue("own", connection=forgetful())
        own.redis_server_version = (7, 0, 0)
        own.enqueue(work)
        assert [span.name for span in captured_spans] == ["publish own"]

    def test_queueprop_instruments_it_by_name(self, captured_spans: CapturedSpans, queue: Queue) -> None:
        """queueprop.instrument("rq"), and back."""
        queueprop.instrument("rq")
        queue.enqueue(work)
        queueprop.uninstrument("rq")
        queue.enqueue(work)
        assert len(captured_spans) == 1

    def test_traced_workers_are_rq_s_own_classes(self) -> None:
        """With the mixin above them, so that isinstance and --worker-class work."""
        assert issubclass(adapter.TracedWorker, Worker)
        assert issubclass(adapter.TracedSimpleWorker, SimpleWorker)
        assert pickle.loads(pickle.dumps(adapter.TracedWorker)) is adapter.TracedWorker


def current_span_id() -> int:
    return get_current_span().get_span_context().span_id
