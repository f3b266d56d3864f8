"""What Dramatiq alone has, on live brokers: its command line, shutdowns, interrupts, and pika beneath it.

What every library has is in the contract; compositions and callbacks are in the unit tests, and here once more where
they have a server of their own to talk to.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("dramatiq")

import dramatiq
import pika
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.common import dq_name, xq_name
from dramatiq.middleware import (
    CurrentMessage,
    GroupCallbacks,
    Interrupt,
    Middleware,
    TimeLimit,
    raise_thread_exception,
)
from dramatiq.rate_limits.backends import RedisBackend as RedisRateLimiterBackend
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend
from opentelemetry import baggage, context, trace
from opentelemetry.instrumentation.utils import suppress_instrumentation

import queueprop
from integration.contract.telemetry import (
    PATIENCE,
    SpanRecord,
    Telemetry,
    ambient_span,
    telemetry,
    wait_until,
)
from queueprop.adapters import dramatiq as adapter

COMMAND = Path(sys.executable).with_name("dramatiq")


@dataclass
class Rig:
    """A broker that is traced, and what came of it."""

    run: Telemetry
    broker: Any
    queue: str

    def actor(self, function: Callable[..., Any], **options: Any) -> Any:
        options = {"actor_name": function.__name__, "max_retries": 0, "queue_name": self.queue, **options}
        declare: Any = dramatiq.actor
        return declare(function, broker=self.broker, **options)

    @contextmanager
    def working(self, threads: int = 1) -> Iterator[dramatiq.Worker]:
        worker = dramatiq.Worker(self.broker, queues={self.queue}, worker_timeout=10, worker_threads=threads)
        worker.start()
        try:
            yield worker
        finally:
            worker.stop()
            self.broker.middleware = [it for it in self.broker.middleware if not hasattr(it, "worker")]

    def of(self, kind: str) -> list[SpanRecord]:
        return [span for span in self.run.spans if span.kind == kind]

    @property
    def producers(self) -> list[SpanRecord]:
        return self.of("PRODUCER")

    @property
    def consumers(self) -> list[SpanRecord]:
        return self.of("CONSUMER")

    def wait_for(self, count: int) -> None:
        """Until that many CONSUMER spans have ended."""
        wait_until(lambda: len(self.consumers) >= count, f"{count} spans of consumers")

    def assert_one_trace(self) -> None:
        """Every delivery's span is a child of a PRODUCER span, and nothing was complained of."""
        parents = {span.span_id: span.trace_id for span in self.producers}
        assert all(parents.get(span.parent_id or "") == span.trace_id for span in self.consumers)
        assert [record.text for record in self.run.logged] == []


@contextmanager
def rig_on(broker: Any, queue: str, folder: Path, through: str) -> Iterator[Rig]:
    with telemetry(folder / "records") as run:
        if through == "explicit":
            broker.add_middleware(adapter.QueuepropMiddleware())
            yield Rig(run, broker, queue)
            return
        queueprop.instrument("dramatiq", *(["pika"] if isinstance(broker, RabbitmqBroker) else []))
        try:
            yield Rig(run, broker, queue)
        finally:
            queueprop.uninstrument("dramatiq", "pika")


@pytest.fixture(params=["explicit", "instrumentor"])
def through(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def queue() -> str:
    return f"orders-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def on_redis(redis_url: str, queue: str, tmp_path: Path, through: str) -> Iterator[Rig]:
    broker = RedisBroker(url=redis_url, namespace=queue)
    with rig_on(broker, queue, tmp_path, through) as rig:
        yield rig
    for key in broker.client.keys(f"{queue}*"):
        broker.client.delete(key)
    broker.client.close()


@pytest.fixture
def on_rabbitmq(rabbitmq_url: str, queue: str, tmp_path: Path, through: str) -> Iterator[Rig]:
    """Under the instrumentor pika is instrumented as well."""
    broker = RabbitmqBroker(url=rabbitmq_url)
    with rig_on(broker, queue, tmp_path, through) as rig:
        yield rig
    for name in (queue, dq_name(queue), xq_name(queue)):
        broker.channel.queue_delete(name)
    broker.close()


# The command line


@dataclass
class Application:
    """``dramatiq integration.dramatiq_actors -p 2 -t 4`` in a process of its own."""

    environment: Mapping[str, str]
    folder: Path
    run: Telemetry

    @contextmanager
    def working(self, *options: str, before: tuple[Any, ...] = ()) -> Iterator[None]:
        """From when its workers are ready until it was asked to end and did."""
        with (self.folder / "out").open("ab") as out, (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [*before, COMMAND, "integration.dramatiq_actors", "-p", "2", "-t", "4", *options],
                cwd=self.folder,
                env=dict(self.environment),
                stdout=out,
                stderr=log,
            )
        try:
            wait_until(lambda: self._log().count("Worker process is ready for action") == 2, "two workers")
            yield
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0, self._log()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(PATIENCE)

    def send(self, notes: list[str]) -> None:
        """From a program of their own, which nothing traces but what the environment says."""
        program = (
            "import sys; from integration.dramatiq_actors import work; list(map(work.send, sys.argv[1:]))"
        )
        subprocess.run(
            [sys.executable, "-c", program, *notes], cwd=self.folder, env=dict(self.environment), check=True
        )

    def wait_for(self, count: int) -> None:
        wait_until(lambda: len(list(self.run.records("seen"))) >= count, f"{count} deliveries")

    def _log(self) -> str:
        return (self.folder / "log").read_text()


@pytest.fixture
def application(redis_url: str, queue: str, tmp_path: Path) -> Iterator[Application]:
    # The application is imported from the checkout, and queueprop from where it is installed.
    (tmp_path / "integration").symlink_to(Path(__file__).parent)
    with telemetry(tmp_path / "records") as run:
        environment = {
            **os.environ,
            "PYTHONPATH": str(tmp_path),
            "QUEUEPROP_TEST_URL": redis_url,
            "QUEUEPROP_TEST_QUEUE": queue,
            "dramatiq_worker_timeout": "20",
        }
        yield Application(environment, tmp_path, run)
    client = RedisBroker(url=redis_url).client
    for key in client.keys(f"{queue}*"):
        client.delete(key)
    client.close()


NOTES = [f"note {number}" for number in range(12)] + ["send", "fail"]
DELIVERIES = len(NOTES) + 4
"""One is sent by an actor, one fails and is retried, and tells of that each time."""


@pytest.mark.parametrize(("start", "traced"), [("fork", "explicit"), ("spawn", "instrumentor")])
def test_worker_processes_of_the_command_line_lose_no_span(
    application: Application, start: str, traced: str
) -> None:
    """Forked and spawned, which takes seconds: each delivery has its span and its actor's, in its sender's trace."""
    application.environment = {**application.environment, "QUEUEPROP_TEST_TRACED": traced}
    application.send(NOTES)
    with application.working(*(["--use-spawn"] if start == "spawn" else [])):
        application.wait_for(DELIVERIES)
    spans = application.run.spans
    consumers = [span for span in spans if span.kind == "CONSUMER"]
    producers = {span.context for span in spans if span.kind == "PRODUCER"}
    work = [span for span in spans if span.name == "work"]
    seen = list(application.run.records("seen"))
    assert len(consumers) == len(work) == len(seen) == DELIVERIES
    assert len(producers) == DELIVERIES - 1, "a retry is no publish"
    assert {(span.trace_id, span.parent_id) for span in consumers} == producers
    assert {(span.trace_id, span.parent_id) for span in work} == {span.context for span in consumers}
    assert {it["span_id"] for it in seen} == {span.span_id for span in work}
    assert len({span.span_id for span in spans}) == len(spans), "no id comes twice"
    assert os.getpid() not in {it["pid"] for it in seen}
    assert [record.text for record in application.run.logged] == []


@pytest.mark.skipif(
    importlib.util.find_spec("opentelemetry.distro") is None,
    reason="opentelemetry-instrument needs it to set up an SDK",
)
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_opentelemetry_instrument_traces_the_command_line(application: Application, start: str) -> None:
    """No code at all, also where workers are spawned programs: spans of both processes, in whole traces."""
    exporters = {
        "OTEL_TRACES_EXPORTER": "console",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
    }
    untraced = application.environment
    application.environment = {**untraced, **exporters}
    launcher = COMMAND.with_name("opentelemetry-instrument")
    options = ["--use-spawn"] if start == "spawn" else []
    with application.working(*options, before=(launcher,)):
        application.environment = {**untraced, "QUEUEPROP_TEST_TRACED": "explicit"}
        application.send(NOTES)
        application.wait_for(DELIVERIES)
    told = list(_json_objects((application.folder / "out").read_text()))
    consumers = {span["context"]["span_id"]: span for span in told if span["kind"] == "SpanKind.CONSUMER"}
    sent = {f"0x{span.span_id}" for span in application.run.spans if span.kind == "PRODUCER"}
    sent |= {span["context"]["span_id"] for span in told if span["kind"] == "SpanKind.PRODUCER"}
    assert len(consumers) == DELIVERIES
    assert {span["parent_id"] for span in consumers.values()} == sent
    work = [span for span in told if span["name"] == "work"]
    assert {span["parent_id"] for span in work} == set(consumers)


def test_one_of_the_processes_says_that_there_is_no_sdk(application: Application) -> None:
    """Under the launcher, without a distribution that would set one up: what one of two forked processes has said, the
    other does not say again."""
    environment = application.environment
    missing = {"OTEL_PYTHON_DISTRO": "none", "OTEL_PYTHON_CONFIGURATOR": "none"}
    application.environment = {**environment, **missing}
    with application.working(before=(COMMAND.with_name("opentelemetry-instrument"),)):
        application.environment = {**environment, "OTEL_SDK_DISABLED": "true"}
        application.send(["first"])
        application.wait_for(1)
        # More than one process takes of them before it has done one: its threads' four, and as many again.
        application.send(["meet"] * 40)
        application.wait_for(41)
    assert len({it["pid"] for it in application.run.records("seen")}) == 2
    log = (application.folder / "log").read_text()
    assert (
        log.count("queueprop, tracing messages: opentelemetry-instrument has set up no OpenTelemetry SDK")
        == 1
    )


def _json_objects(text: str) -> Iterator[Any]:
    decoder, at = json.JSONDecoder(), text.find("{")
    while at >= 0:
        found, end = decoder.raw_decode(text, at)
        yield found
        at = text.find("{", end)


# Shutdown


def test_what_was_fetched_but_not_processed_has_one_span(on_redis: Rig) -> None:
    """A worker that stops gives back what waits in its memory: that makes no span; its processing later makes one."""
    entered, go_on = threading.Event(), threading.Event()

    def wait(note: str) -> None:
        entered.set()
        go_on.wait(PATIENCE)

    waiting = on_redis.actor(wait)
    for note in ("one", "two", "three"):
        waiting.send(note)
    with on_redis.working() as worker:
        assert entered.wait(PATIENCE)
        wait_until(lambda: worker.work_queue.qsize() == 1, "a message in the worker's memory")

        def let_go() -> None:
            wait_until(lambda: not any(it.running for it in worker.workers), "a worker that stops")
            go_on.set()

        threading.Thread(target=let_go).start()
    assert len(on_redis.consumers) == 1
    with on_redis.working():
        on_redis.wait_for(3)
    assert {span.parent_id for span in on_redis.consumers} == {span.span_id for span in on_redis.producers}
    assert len(on_redis.consumers) == 3
    on_redis.assert_one_trace()


def test_an_actor_that_a_shutdown_interrupts_is_retried_in_its_trace(on_redis: Rig) -> None:
    """notify_shutdown: the attempt ends with the Shutdown on its span, and the next worker's is the second attempt."""
    entered = threading.Event()
    times: list[int] = []

    def wait() -> None:
        times.append(1)
        entered.set()
        while len(times) == 1:
            time.sleep(0.01)

    on_redis.actor(wait, max_retries=1, min_backoff=1, notify_shutdown=True).send()
    with on_redis.working():
        assert entered.wait(PATIENCE)
    with on_redis.working():
        on_redis.wait_for(2)
    first, second = on_redis.consumers
    assert (first.status, first.attributes["error.type"]) == (
        "ERROR",
        "dramatiq.middleware.shutdown.Shutdown",
    )
    assert (second.status, second.attributes["queueprop.message.delivery_attempt"]) == ("UNSET", 2)
    on_redis.assert_one_trace()


# Time limits, aborts


def test_a_time_limit_that_strikes_anywhere_leaves_nothing_behind(tmp_path: Path, through: str) -> None:
    """Ten actors that publish without end are interrupted, mostly inside of a publish; the next message on the
    thread begins afresh each time.
    """
    broker = StubBroker()
    broker.middleware = [it for it in broker.middleware if not isinstance(it, TimeLimit)]
    broker.add_middleware(TimeLimit(interval=10))
    broker.emit_after("process_boot")
    seen: list[tuple[object, dict[str, object]]] = []
    with rig_on(broker, "orders", tmp_path, through) as rig:
        elsewhere = rig.actor(_nothing, queue_name="elsewhere", actor_name="elsewhere")

        def publish_on_and_on() -> None:
            end = time.monotonic() + 20
            while time.monotonic() < end:
                elsewhere.send()

        def look() -> None:
            seen.append((trace.get_current_span().get_span_context().span_id, dict(baggage.get_all())))

        endless = rig.actor(publish_on_and_on, time_limit=50)
        looking = rig.actor(look)
        with rig.working(), _without_garbage_collection():
            for number in range(1, 11):
                token = context.attach(baggage.set_baggage("endless", "yes"))
                endless.send()
                context.detach(token)
                broker.join("orders", fail_fast=False)
                looking.send()
                broker.join("orders", fail_fast=False)
                broker.flush("elsewhere")
                assert len(seen) == number
        consumers = rig.consumers
        interrupted, looked = consumers[0::2], consumers[1::2]
        assert {span.attributes["error.type"] for span in interrupted} == {
            "dramatiq.middleware.time_limit.TimeLimitExceeded"
        }
        assert [(int(span.span_id, 16), {}) for span in looked] == seen
        assert {len(span.links) for span in looked} == {1}
        rig.assert_one_trace()


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Python collects in any thread, and swallows an interrupt that strikes in a callback of that: an earlier test's
    SDK, when it goes, has such callbacks.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _nothing() -> None: ...


class Abort(Interrupt):
    """What the package dramatiq-abort raises, in the way in which it does."""


def test_an_aborted_message_is_an_error_and_no_leak(on_redis: Rig) -> None:
    """An exception that is raised into the worker's thread is on the span, and the next message is outside."""
    thread: list[int] = []

    def work(note: str) -> None:
        thread.append(threading.get_ident())
        while note == "aborted" and thread:
            time.sleep(0.005)

    working = on_redis.actor(work)
    with on_redis.working():
        working.send("aborted")
        wait_until(lambda: bool(thread), "the actor")
        raise_thread_exception(thread[0], Abort)
        on_redis.wait_for(1)
        working.send("next")
        on_redis.wait_for(2)
    aborted, following = on_redis.consumers
    assert (aborted.status, aborted.attributes["error.type"]) == ("ERROR", f"{__name__}.Abort")
    assert (following.status, len(following.links)) == ("UNSET", 1)
    on_redis.assert_one_trace()


# Compositions, with results and barriers that live on the server


def test_a_pipeline_a_group_and_its_callback_on_a_server(on_redis: Rig, redis_url: str) -> None:
    """Built outside of any span and run inside one: all of it is in that trace, and the results are there."""
    broker = on_redis.broker
    backend = RedisBackend(url=redis_url, namespace=f"{on_redis.queue}-results")
    broker.add_middleware(Results(backend=backend))
    broker.add_middleware(GroupCallbacks(RedisRateLimiterBackend(url=redis_url)))

    def add(x: int, y: int) -> int:
        return x + y

    def done() -> None: ...

    adding = on_redis.actor(add, store_results=True)
    callback = on_redis.actor(done)
    pipe = dramatiq.pipeline([adding.message(1, 2), adding.message(3)], broker=broker)
    group = dramatiq.group([adding.message(4, 5), adding.message(6, 7)], broker=broker)
    group.add_completion_callback(callback.message())
    with ambient_span() as ambient:
        pipe.run()
        group.run()
    with on_redis.working(threads=4):
        on_redis.wait_for(5)
    assert pipe.get_result() == 6
    assert [message.get_result(backend=backend) for message in group.children] == [9, 13]
    assert {span.trace_id for span in on_redis.consumers} == {f"{ambient.trace_id:032x}"}
    assert len(on_redis.consumers) == len(on_redis.producers) == 5
    on_redis.assert_one_trace()


# Messages as without us


def test_what_is_returned_is_what_arrives_on_redis(on_redis: Rig) -> None:
    """send, send_with_options, enqueue, a delay: an equal message in the actor and in middleware, and the caller's own
    is not altered.
    """
    _check_what_is_returned(on_redis)


def test_what_is_returned_is_what_arrives_on_rabbitmq(on_rabbitmq: Rig) -> None:
    """The same, with pika instrumented as well or not."""
    _check_what_is_returned(on_rabbitmq)


def _check_what_is_returned(traced: Rig) -> None:
    arrived: list[Any] = []

    class Listening(Middleware):
        def before_delay_message(self, broker: Any, message: Any) -> None:
            arrived.append(message._message)

        def before_process_message(self, broker: Any, message: Any) -> None:
            arrived.append(message._message)

    def listen(*args: Any) -> None:
        current: Any = CurrentMessage.get_current_message()
        arrived.append(current._message)

    traced.broker.add_middleware(Listening())
    traced.broker.add_middleware(CurrentMessage())
    listening = traced.actor(listen)
    own = listening.message_with_options(args=("own",), tenant="a")
    options = own.options
    returned = [
        listening.send("sent"),
        listening.send_with_options(args=("with options",), tenant="a", limits=[1, None]),
        traced.broker.enqueue(own),
        traced.broker.enqueue(own),
        listening.send_with_options(args=("delayed",), delay=20),
    ]
    assert own.options is options
    assert options == {"tenant": "a"}
    assert all(it.options["queueprop"].keys() >= {"traceparent", "sent_at"} for it in returned)
    with traced.working():
        traced.wait_for(len(returned))
    *at_once, delayed = returned
    for message in at_once:
        assert arrived.count(message) == 2
    found = [it for it in arrived if it.args == ("delayed",)]
    assert found.pop(0) == delayed
    assert [it.options["queueprop"] for it in found] == [delayed.options["queueprop"]] * 2
    assert len(arrived) == 2 * len(returned) + 1
    traced.assert_one_trace()


def test_options_are_refused_by_rabbitmq_s_broker_as_without_us(on_rabbitmq: Rig) -> None:
    """A mapping that is no dict cannot be encoded, and no copy of ours makes it one."""
    listening = on_rabbitmq.actor(_nothing)
    options: Any = UserDict(tenant="a")
    with pytest.raises(TypeError, match="UserDict is not JSON serializable"):
        on_rabbitmq.broker.enqueue(dramatiq.Message(on_rabbitmq.queue, "_nothing", (), {}, options))
    listening.send()
    with on_rabbitmq.working():
        on_rabbitmq.wait_for(1)
    assert len(on_rabbitmq.producers) == 1
    on_rabbitmq.assert_one_trace()


# pika beneath it


def test_rabbitmq_s_channels_make_no_spans_of_their_own(on_rabbitmq: Rig, rabbitmq_url: str) -> None:
    """With pika's instrumentor on as well: one PRODUCER span and one CONSUMER span a message, the context in its
    options alone; retries and delays make no publish; and what an actor publishes with pika has pika's span.
    """
    # in any order: Dramatiq 1.17 lets the newest of the messages that it holds go first
    notes: list[str] = []
    other = f"{on_rabbitmq.queue}-other"

    def work(note: str) -> None:
        notes.append(note)
        if note == "fail" and notes.count("fail") == 1:
            raise ValueError("gave up")
        if note == "pika":
            with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
                channel = connection.channel()
                channel.queue_declare(other, auto_delete=True)
                channel.basic_publish("", other, b"hello")
                channel.queue_delete(other)

    working = on_rabbitmq.actor(work, max_retries=1, min_backoff=1)
    with ambient_span():
        working.send("fail")
        working.send_with_options(args=("later",), delay=20)
    with suppress_instrumentation():
        channel = on_rabbitmq.broker.channel
        method, properties, body = channel.basic_get(on_rabbitmq.queue)
        channel.basic_nack(method.delivery_tag, requeue=True)
    assert properties.headers is None
    assert body.count(b"traceparent") == 1
    with on_rabbitmq.working():
        on_rabbitmq.wait_for(3)
        working.send("pika")
        wait_until(lambda: len(_of_system(on_rabbitmq, "dramatiq", "CONSUMER")) == 4, "the last message")
    assert len(_of_system(on_rabbitmq, "dramatiq", "PRODUCER")) == 3
    by_pika = [span.name for span in on_rabbitmq.run.spans if span.attributes.get(SYSTEM) == "rabbitmq"]
    is_instrumented = adapter.DramatiqInstrumentor().is_instrumented_by_opentelemetry
    assert by_pika == ([f"publish {other}"] if is_instrumented else [])
    on_rabbitmq.assert_one_trace()


def test_a_connection_that_was_lost_is_one_publish(on_rabbitmq: Rig) -> None:
    """RabbitMQ's broker connects anew and tries again: one PRODUCER span, without an error."""
    working = on_rabbitmq.actor(_nothing)
    working.send()
    on_rabbitmq.broker.connection.close()
    working.send()
    assert [span.status for span in on_rabbitmq.producers] == ["UNSET", "UNSET"]
    with on_rabbitmq.working():
        on_rabbitmq.wait_for(2)
    assert len(on_rabbitmq.consumers) == 2
    on_rabbitmq.assert_one_trace()


SYSTEM = "messaging.system"


def _of_system(rig: Rig, system: str, kind: str) -> list[SpanRecord]:
    return [span for span in rig.of(kind) if span.attributes[SYSTEM] == system]
