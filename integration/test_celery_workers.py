"""Celery's workers, started as users do (``opentelemetry-instrument celery -A ... worker``), on live brokers.

No span is lost, no message is silent, and a workflow reads as one.

No span leaves a worker by itself (the batch processor's delay is ten minutes), so what arrives was handed over where a
process came to its end, or was told to.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("celery")
pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")

import celery
import kombu
import redis
from celery import chain, chord, group
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation import environment_variables
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from integration import celery_programs as programs
from integration.brokers import Unavailable
from integration.brokers.cache import cached
from integration.celery_suite import pip_of_this
from integration.contract.telemetry import PATIENCE, SpanRecord, wait_until
from integration.live import unique
from integration.otlp import OtlpServer
from queueprop.adapters.celery import CeleryInstrumentor

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

_ROOT = Path(__file__).parents[1]
_OTHERS = [
    it.name
    for it in entry_points(group="opentelemetry_instrumentor")
    if it.name not in ("queueprop_celery", "queueprop_kombu")
]
"""Instrumentations that a worker of these has no need of, and would import."""


class Shop:
    """An application here, traced, and its worker, which is started when it is asked for."""

    def __init__(self, broker: str, backend: str | None, folder: Path) -> None:
        self.folder = folder
        self.server = OtlpServer()
        self.queue = unique("shop")
        self.broker, self.backend = broker, backend
        self._environment = os.environ.copy()
        self._log = folder / "worker.log"
        self.process: subprocess.Popen[bytes] | None = None
        os.environ[programs.FOLDER] = str(folder)
        self.app = programs.make(broker, backend, self.queue)
        self.provider = TracerProvider()
        exporter = OTLPSpanExporter(f"{self.server.endpoint}/v1/traces")
        self.provider.add_span_processor(SimpleSpanProcessor(exporter))
        self.trace_here()

    def trace_here(self) -> None:
        """What this process sends is told to this one's server; there may be others, of whole modules."""
        instrumentor = CeleryInstrumentor()
        if instrumentor.is_instrumented_by_opentelemetry:
            instrumentor.uninstrument()
        instrumentor.instrument(tracer_provider=self.provider)

    def start(self, *options: str, launched: bool = True, **environment: str) -> None:
        command = ["-m", "celery", "-A", "integration.celery_programs", "worker", "-l", "INFO", *options]
        if launched:
            # As opentelemetry-instrument does it; its own module is no program in every version.
            program = Path(sys.executable).with_name("opentelemetry-instrument")
            command = [str(program), sys.executable, *command]
        else:
            command = [sys.executable, *command]
        with self._log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                cwd=_ROOT,
                env={
                    **{
                        name: value
                        for name, value in self._environment.items()
                        if not name.startswith("OTEL_")
                    },
                    "OTEL_TRACES_EXPORTER": "otlp",
                    "OTEL_METRICS_EXPORTER": "none",
                    "OTEL_LOGS_EXPORTER": "none",
                    "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
                    "OTEL_EXPORTER_OTLP_ENDPOINT": self.server.endpoint,
                    "OTEL_BSP_SCHEDULE_DELAY": "600000",
                    "OTEL_SERVICE_NAME": "worker",
                    "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": ",".join(_OTHERS),
                    "QUEUEPROP_FLUSH_TIMEOUT": "20",
                    "PYTHONFAULTHANDLER": "1",
                    "PYTHONPATH": str(_ROOT),
                    programs.BROKER: self.broker,
                    **({programs.BACKEND: self.backend} if self.backend else {}),
                    programs.QUEUE: self.queue,
                    programs.FOLDER: str(self.folder),
                    **environment,
                },
                stdout=output,
                stderr=output,
            )
        ready = self.log.count(" ready.") + 1
        self.wait_for(lambda: self.log.count(" ready.") >= ready, "the worker")

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        assert self.process is not None
        process = self.process
        wait_until(lambda: condition() or process.poll() is not None, f"{what}\n{self.log}")
        assert condition(), self.log

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Warm, by default."""
        assert self.process is not None
        self.process.send_signal(number)
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the worker did not stop\n{self._where_it_stands()}\n{self.log}")

    def _where_it_stands(self) -> str:
        """The stacks of its processes, children first: by PYTHONFAULTHANDLER, SIGABRT has each print them."""
        assert self.process is not None
        before = len(self.log)
        for pid in (*_children_of(self.process.pid), self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGABRT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        return self.log[before:]

    def close(self) -> None:
        if CeleryInstrumentor().is_instrumented_by_opentelemetry:
            CeleryInstrumentor().uninstrument()
        results = self.app.backend
        if hasattr(results, "result_consumer"):
            results.result_consumer._pubsub = None  # results that are dropped later would connect again
        self.app.close()
        os.environ.pop(programs.FOLDER, None)
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.provider.shutdown()
        self.server.close()

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def told(self) -> Counter[str]:
        file = self.folder / "told"
        return Counter(file.read_text().split("\n")[:-1] if file.exists() else ())

    def send(self, name: str, *args: Any, **options: Any) -> Any:
        return self.app.tasks[name].apply_async(args, **options)

    # Its spans

    def producer_of(self, result: Any) -> SpanRecord:
        found = [
            it for it in self.server.of("PRODUCER") if it.attributes.get("messaging.message.id") == result.id
        ]
        assert len(found) == 1, (result.id, self.server.of("PRODUCER"))
        return found[0]

    def consumers_of(self, result: Any) -> list[SpanRecord]:
        return [
            it for it in self.server.of("CONSUMER") if it.attributes.get("messaging.message.id") == result.id
        ]

    def await_consumers(self, result: Any, count: int = 1) -> list[SpanRecord]:
        self.wait_for(lambda: len(self.consumers_of(result)) >= count, f"{count} spans of {result.id}")
        return self.consumers_of(result)


def _children_of(pid: int) -> list[int]:
    """And theirs, which come first."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # it has just ended
            for child in map(int, task.read_text().split()):
                found += [*_children_of(child), child]
    return found


@pytest.fixture
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    with _shop(request, tmp_path) as made:
        yield made


@contextmanager
def _shop(request: pytest.FixtureRequest, folder: Path, backend: str = "broker") -> Iterator[Shop]:
    broker = request.getfixturevalue(f"{getattr(request, 'param', 'redis')}_url")
    results = {"broker": broker if broker.startswith("redis") else "rpc://"}.get(backend, backend)
    made = Shop(broker, results, folder)
    try:
        yield made
    finally:
        made.close()


def _assert_all_there(shop: Shop, results: list[Any]) -> None:
    """Each has one CONSUMER span, a child of its PRODUCER span."""
    for result in results:
        (consumer,) = shop.consumers_of(result)
        producer = shop.producer_of(result)
        assert (consumer.trace_id, consumer.parent_id) == (producer.trace_id, producer.span_id)
    assert len(shop.server.of("CONSUMER")) == len(results)


# No span is lost


@pytest.mark.parametrize("shop", ["redis", "rabbitmq"], indirect=True)
@pytest.mark.parametrize("why", ["count", "memory"])
def test_recycled_children_lose_no_span(shop: Shop, why: str) -> None:
    """A child that is replaced after each task, for its number or its memory, hands over that task's span first."""
    limit = "--max-tasks-per-child=1" if why == "count" else "--max-memory-per-child=1"
    shop.start("--pool=prefork", "--concurrency=2", limit)
    results = [shop.send("note", f"{number}") for number in range(6)]
    shop.wait_for(lambda: sum(shop.told().values()) == 6, "the tasks")
    shop.wait_for(lambda: len(shop.server.of("CONSUMER")) == 6, "the spans, while the worker goes on")
    _assert_all_there(shop, results)
    assert shop.stop() == 0


@pytest.mark.parametrize("how", ["in each process", "spawn"])
def test_recycled_children_of_other_set_ups_lose_no_span(shop: Shop, how: str) -> None:
    """Instrumented only in ``worker_process_init``, after Celery has made the tasks' tracers; and spawned children."""
    if how == "spawn" and celery.__version__ < "5.7":
        pytest.skip(f"children that Celery {celery.__version__} spawns know no tasks")
    environment = (
        {programs.IN_EACH_PROCESS: "1"} if how == "in each process" else {programs.START_METHOD: "spawn"}
    )
    launched = how != "in each process"
    shop.start(
        "--pool=prefork", "--concurrency=1", "--max-tasks-per-child=1", launched=launched, **environment
    )
    results = [shop.send("note", f"{number}") for number in range(2)]
    shop.wait_for(lambda: len(shop.server.of("CONSUMER")) == 2, "the spans")
    _assert_all_there(shop, results)


@pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])
def test_a_warm_shutdown_loses_no_span(shop: Shop, pool: str) -> None:
    """SIGTERM right after a task and during another one: both are there, with what a receiver of the shutdown's signal
    made in the children.
    """
    shop.start(f"--pool={pool}", "--concurrency=2")
    results = [shop.send("note", "one"), shop.send("note", "two", 1.0)]
    shop.wait_for(lambda: sum(shop.told().values()) == 2, "the tasks")
    assert shop.stop() == 0
    _assert_all_there(shop, results)
    at_shutdown = [it for it in shop.server.spans if it.name == "at shutdown"]
    assert len(at_shutdown) == (2 if pool == "prefork" else 0)


def test_a_cold_shutdown_loses_no_span(shop: Shop) -> None:
    """SIGQUIT: the task that is stopped in the middle has its span, with ERROR, and earlier ones have theirs."""
    shop.start("--pool=prefork", "--concurrency=1")
    first = shop.send("note", "first")
    first.get(timeout=PATIENCE)
    second = shop.send("linger", "second")
    shop.wait_for(lambda: shop.told()["second"] == 1, "the task")
    shop.stop(signal.SIGQUIT)
    assert [it.status for it in shop.consumers_of(first)] == ["UNSET"]
    assert [it.status for it in shop.consumers_of(second)] == ["ERROR"]


# Green pools


@pytest.mark.parametrize("how", ["gevent", "eventlet", "gevent, by the launcher"])
def test_green_pools_do_not_mix_traces_and_lose_no_span(shop: Shop, how: str) -> None:
    """Twenty tasks at once in one thread, each in its own sender's trace; a warm shutdown right behind them. By the
    launcher where that patches before it imports anything.
    """
    pool, _, launched = how.partition(", ")
    pytest.importorskip(pool)
    if launched and _patch_of_the_launcher() is None:
        pytest.skip("opentelemetry-instrument patches nothing before 0.58b0")
    # Celery patches before it imports the application; the launcher has imported half of it by then.
    environment = {_patch_of_the_launcher() or "": "patch_all"} if launched else {programs.AT_IMPORT: "1"}
    shop.start(f"--pool={pool}", "--concurrency=20", launched=bool(launched), **environment)
    results = [_under(shop, lambda: shop.send("meet", "at once", 20))[0] for _ in range(20)]
    shop.wait_for(lambda: shop.told()["at once"] == 20, "the tasks")
    retried, trace_id, _ = _under(shop, lambda: shop.send("again"))
    assert retried.get(timeout=PATIENCE) == 3
    assert shop.stop() == 0
    spans = {it.span_id: it for it in shop.server.spans}
    for result in results:
        (consumer,) = shop.consumers_of(result)
        assert spans[consumer.parent_id or ""].attributes["messaging.message.id"] == result.id
    starts = sorted(shop.consumers_of(result)[0].start for result in results)
    ends = sorted(shop.consumers_of(result)[0].end for result in results)
    assert starts[-1] < ends[0], "all of them were open at once"
    assert {it.trace_id for it in shop.consumers_of(retried)} == {trace_id}
    assert len(shop.consumers_of(retried)) == 4
    assert "Failed to detach context" not in shop.log


def _patch_of_the_launcher() -> str | None:
    """The variable that has it patch for gevent; None before there is one."""
    name = "OTEL_PYTHON_AUTO_INSTRUMENTATION_EXPERIMENTAL_GEVENT_PATCH"
    return name if hasattr(environment_variables, name) else None


# However a task is stopped, its span exists once


@pytest.fixture
def stopping(_stopping: Shop) -> Shop:
    _stopping.trace_here()
    return _stopping


@pytest.fixture(scope="module")
def _stopping(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with _shop(request, tmp_path_factory.mktemp("stopping")) as made:
        made.start("--pool=prefork", "--concurrency=2")
        yield made


_STOPPED = {
    "hard time limit": ("linger", {"time_limit": 1}, "billiard.exceptions.TimeLimitExceeded"),
    "hard time limit, SIGTERM ignored": (
        "resist",
        {"time_limit": 1},
        "billiard.exceptions.TimeLimitExceeded",
    ),
    "soft time limit": ("linger", {"soft_time_limit": 3}, "billiard.exceptions.SoftTimeLimitExceeded"),
    "sys.exit": ("leave", {}, "SystemExit"),
    "os._exit": ("vanish", {}, "billiard.exceptions.WorkerLostError"),
    "revoke(terminate=True)": ("linger", {}, "billiard.exceptions.Terminated"),
    "revoke by SIGKILL": ("linger", {}, "billiard.exceptions.Terminated"),
}


@pytest.mark.parametrize("how", _STOPPED)
def test_a_task_that_is_stopped_has_one_span(stopping: Shop, how: str) -> None:
    """From the child where it gets so far, else from the parent: one CONSUMER span, ERROR, in its sender's trace."""
    name, options, error = _STOPPED[how]
    args = () if name in ("leave", "vanish") else (how,)
    result = stopping.send(name, *args, **options)
    if how.startswith("revoke"):
        stopping.wait_for(lambda: stopping.told()[how] == 1, "the task")
        result.revoke(terminate=True, **({"signal": "SIGKILL"} if how.endswith("SIGKILL") else {}))
    with pytest.raises(BaseException):  # noqa: B017, PT011 - which one it is is Celery's matter
        result.get(timeout=PATIENCE)
    after = stopping.send("note", f"after {how}")  # and the other child is busy or new by now
    after.get(timeout=PATIENCE)
    _hand_over(stopping)
    (consumer,) = stopping.await_consumers(result)
    producer = stopping.producer_of(result)
    assert (consumer.trace_id, consumer.parent_id) == (producer.trace_id, producer.span_id)
    assert (consumer.status, consumer.attributes.get("error.type")) == ("ERROR", error), stopping.log


def test_a_killed_task_and_its_redelivery_have_a_span_each(stopping: Shop) -> None:
    """SIGKILL, acks_late and reject_on_worker_lost: the first one's is the parent's, the second one's the child's."""
    result = stopping.send("die")
    result.get(timeout=PATIENCE)
    _hand_over(stopping)
    first, second = sorted(stopping.await_consumers(result, 2), key=lambda it: it.start)
    producer = stopping.producer_of(result)
    assert {first.parent_id, second.parent_id} == {producer.span_id}
    assert (first.status, first.attributes.get("error.type")) == (
        "ERROR",
        "billiard.exceptions.WorkerLostError",
    )
    assert second.status == "UNSET"


def test_what_the_parent_publishes_for_a_killed_task_is_in_its_trace(stopping: Shop) -> None:
    """The errback of a task whose child was killed."""
    result = stopping.send("vanish", link_error=stopping.app.tasks["handle"].s())
    with pytest.raises(BaseException):  # noqa: B017, PT011
        result.get(timeout=PATIENCE)
    stopping.wait_for(lambda: stopping.told()["handled"] == 1, "the errback")
    _hand_over(stopping)
    (lost,) = stopping.await_consumers(result)
    (handled,) = [
        it for it in stopping.server.of("CONSUMER") if it.attributes.get("celery.task.name") == "handle"
    ]
    assert handled.trace_id == lost.trace_id
    (sent,) = [it for it in stopping.server.of("PRODUCER") if it.span_id == handled.parent_id]
    assert sent.parent_id == lost.span_id


def test_spans_of_earlier_tasks_are_lost_with_a_killed_child(shop: Shop) -> None:
    """What a child holds in its batch goes with it, if it is killed; OTEL_BSP_SCHEDULE_DELAY says how much that is."""
    for delay, expected in (("600000", 0), ("50", 3)):
        shop.start("--pool=prefork", "--concurrency=1", OTEL_BSP_SCHEDULE_DELAY=delay)
        earlier = [shop.send("note", f"{delay} {number}") for number in range(3)]
        for result in earlier:
            result.get(timeout=PATIENCE)
        if expected:
            shop.wait_for(lambda: all(map(shop.consumers_of, earlier)), "the spans")  # noqa: B023
        with pytest.raises(BaseException):  # noqa: B017, PT011
            shop.send("vanish").get(timeout=PATIENCE)
        shop.stop()
        assert sum(len(shop.consumers_of(result)) for result in earlier) == expected


def _hand_over(shop: Shop) -> None:
    """All processes of the worker hand over what they have: it is stopped, and another one takes its place."""
    shop.stop()
    shop.start("--pool=prefork", "--concurrency=2")


# No message goes silent


@pytest.mark.parametrize("shop", ["redis", "rabbitmq"], indirect=True)
def test_what_is_never_executed_has_a_span_with_the_reason(shop: Shop) -> None:
    """Expired, revoked, of an unknown name, not to be decoded, no task at all: one CONSUMER span each, that says so."""
    waiting = {
        "unknown": shop.app.send_task("nowhere"),
        "undecodable": shop.send("note", "undecodable", serializer="yaml" if _has_yaml() else "pickle"),
    }
    with kombu.Connection(shop.broker) as connection:
        queue = kombu.Queue(shop.queue, kombu.Exchange(shop.queue), shop.queue)
        kombu.Producer(connection).publish(
            {"no": "task"}, exchange="", routing_key=shop.queue, declare=[queue]
        )
    shop.start("--pool=prefork", "--concurrency=1")
    if celery.__version__ >= "5.7":  # before, it is executed all the same
        waiting["at no time"] = shop.send("note", "at no time", headers={"eta": "0001-01-01T00:00:00+10:00"})
    # By a header alone, or RabbitMQ itself drops it where the worker is late.
    expires = datetime.now(timezone.utc) + timedelta(seconds=2)
    waiting["expired"] = shop.send("note", "expired", countdown=3, headers={"expires": expires.isoformat()})
    revoked = shop.send("note", "revoked", countdown=8)
    shop.wait_for(lambda: revoked.id in shop.log, "the task")
    revoked.revoke()
    shop.wait_for(lambda: shop.log.count("Discarding revoked task") >= 2, "the end of both")
    assert shop.stop() == 0
    waiting["revoked"] = revoked
    found = {what: shop.consumers_of(result) for what, result in waiting.items()}
    assert {what: len(spans) for what, spans in found.items()} == dict.fromkeys(waiting, 1), shop.log
    for what, (span,) in found.items():
        producer = shop.producer_of(waiting[what])
        assert (span.trace_id, span.parent_id) == (producer.trace_id, producer.span_id), what
    told = {
        what: (it.status, it.attributes.get("error.type"), it.attributes.get("queueprop.reason"))
        for what, (it,) in found.items()
    }
    assert told == {
        **({"at no time": ("ERROR", "OverflowError", None)} if "at no time" in waiting else {}),
        "expired": ("UNSET", None, "expired"),
        "revoked": ("UNSET", None, "revoked"),
        "unknown": ("ERROR", "celery.exceptions.NotRegistered", None),
        "undecodable": ("ERROR", "kombu.exceptions.ContentDisallowed", None),
    }
    (stray,) = [it for it in shop.server.of("CONSUMER") if "messaging.message.id" not in it.attributes]
    assert (stray.status, stray.attributes.get("error.type")) == ("ERROR", "unknown_message")
    assert shop.told() == {}


def _has_yaml() -> bool:
    with contextlib.suppress(ImportError):
        import yaml

        return bool(yaml)
    return False


# Batches of kombu's


@pytest.mark.skipif(not hasattr(kombu.Producer, "batch"), reason="Producer.batch() came with kombu 5.7")
def test_tasks_of_a_batch(shop: Shop) -> None:
    """On Redis they wait for the flush, and so do their PRODUCER spans; of a discarded one each says why."""
    with shop.app.producer_pool.acquire(block=True) as producer, redis.Redis.from_url(shop.broker) as server:
        with pytest.raises(LookupError), producer.batch():  # noqa: PT012
            shop.send("note", "discarded", producer=producer)
            raise LookupError("no such order")
        (span,) = shop.server.of("PRODUCER")
        assert (span.status, span.attributes["error.type"]) == ("ERROR", "LookupError")
        assert server.llen(shop.queue) == 0
        with producer.batch():
            results = [shop.send("note", f"{number}", producer=producer) for number in range(3)]
            assert (len(shop.server.of("PRODUCER")), server.llen(shop.queue)) == (1, 0)
        assert (len(shop.server.of("PRODUCER")), server.llen(shop.queue)) == (4, 3)
    shop.start("--pool=prefork", "--concurrency=1")
    shop.wait_for(lambda: sum(shop.told().values()) == 3, "the tasks")
    assert shop.stop() == 0
    assert [shop.producer_of(result).status for result in results] == ["UNSET"] * 3
    _assert_all_there(shop, results)


# Beat


def test_an_embedded_beat_begins_a_trace_each_time(shop: Shop) -> None:
    """``worker -B``: every firing is a root, and no CONSUMER span's parent is missing, though beat ends in os._exit."""
    shop.start("--pool=prefork", "--concurrency=1", "-B")
    _assert_a_trace_each_firing(shop)


def test_redbeat_begins_a_trace_each_time(shop: Shop) -> None:
    """The scheduler that keeps its entries in Redis."""
    pytest.importorskip("redbeat")
    shop.start(
        "--pool=prefork",
        "--concurrency=1",
        "-B",
        "--scheduler=redbeat.RedBeatScheduler",
        launched=True,
        **_EACH_SECOND,
    )
    _assert_a_trace_each_firing(shop)
    with redis.Redis.from_url(shop.broker) as server:
        assert server.exists(f"redbeat-{shop.queue}:every"), "it was that one"


def test_django_celery_beat_begins_a_trace_each_time(shop: Shop) -> None:
    """The scheduler that keeps its entries in Django's database."""
    pytest.importorskip("django")
    try:
        packages = cached("django-celery-beat-2.9.0", _fetch_django_celery_beat)
    except Unavailable as reason:
        pytest.skip(str(reason))
    environment = {
        **_EACH_SECOND,
        "DJANGO_SETTINGS_MODULE": "integration.django_celery_beat_settings",
        "PYTHONPATH": f"{packages}{os.pathsep}{_ROOT}",
        programs.FOLDER: str(shop.folder),
    }
    migrate = [sys.executable, "-m", "django", "migrate", "-v", "0"]
    subprocess.run(migrate, cwd=_ROOT, env={**os.environ, **environment}, check=True, timeout=120)
    scheduler = "django_celery_beat.schedulers:DatabaseScheduler"
    shop.start(
        "--pool=prefork", "--concurrency=1", "-B", f"--scheduler={scheduler}", launched=True, **environment
    )
    _assert_a_trace_each_firing(shop)
    with contextlib.closing(sqlite3.connect(shop.folder / "beat.sqlite3")) as database:
        (count,) = database.execute(
            "SELECT total_run_count FROM django_celery_beat_periodictask WHERE name = 'every'"
        ).fetchone()
    assert count >= 3, "it was that one"


_DJANGO_CELERY_BEAT = (
    *("django-celery-beat==2.9.0", "django-timezone-field==7.2.2"),
    *("python-crontab==3.4.0", "cron-descriptor==1.4.5"),
)


def _fetch_django_celery_beat(folder: Path) -> None:
    """Into a folder of its own: its python-crontab and rq-scheduler's crontab are both the module ``crontab``, and it
    wants an older Django than there is, though it works with that.
    """
    install = [*pip_of_this(), "install", "-q", "--no-deps", "--target", str(folder)]
    done = subprocess.run([*install, *_DJANGO_CELERY_BEAT], capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise Unavailable(f"pip could not fetch django-celery-beat: {done.stderr.strip()[-500:]}")


_EACH_SECOND = {programs.EVERY: "1"}  # neither can less


def _assert_a_trace_each_firing(shop: Shop) -> None:
    shop.wait_for(lambda: shop.told()["tick"] >= 3, "the firings")
    assert shop.stop() == 0
    producers = {it.span_id: it for it in shop.server.of("PRODUCER")}
    consumers = shop.server.of("CONSUMER")
    assert len(consumers) >= 3
    assert {it.parent_id for it in producers.values()} == {None}
    assert len({it.trace_id for it in producers.values()}) == len(producers)
    assert {it.parent_id for it in consumers} <= set(producers)


# The workflow reads as one


@pytest.fixture
def working(_working: Shop) -> Shop:
    _working.trace_here()
    return _working


@pytest.fixture(scope="module")
def _working(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with _shop(request, tmp_path_factory.mktemp("working")) as made:
        made.start("--pool=threads", "--concurrency=4", OTEL_BSP_SCHEDULE_DELAY="50")
        yield made


def _under(shop: Shop, send: Callable[[], Any]) -> Any:
    """Inside a span of the caller's: what it returned, and that span's trace."""
    with shop.provider.get_tracer("shop").start_as_current_span("order") as span:
        result = send()
    return result, f"{span.get_span_context().trace_id:032x}", f"{span.get_span_context().span_id:016x}"


def _tree(shop: Shop, trace_id: str, count: int) -> dict[str, SpanRecord]:
    """The spans of a trace, by their ids, when there are so many CONSUMER spans, and as many PRODUCER spans."""

    def spans() -> list[SpanRecord]:
        return [
            it
            for it in list(shop.server.spans)
            if it.trace_id == trace_id and it.kind in ("PRODUCER", "CONSUMER")
        ]

    shop.wait_for(lambda: len([it for it in spans() if it.kind == "CONSUMER"]) >= count, f"{count} tasks")
    return {it.span_id: it for it in spans()}


def _sender(tree: dict[str, SpanRecord], consumer: SpanRecord) -> str:
    """The span in which the message of a CONSUMER span was sent."""
    return tree[consumer.parent_id or ""].parent_id or ""


def _one(tree: dict[str, SpanRecord], task: str) -> SpanRecord:
    (found,) = [
        it for it in tree.values() if it.kind == "CONSUMER" and it.attributes.get("celery.task.name") == task
    ]
    return found


def test_a_chain_is_one_trace(working: Shop) -> None:
    """Each next task is sent inside the one before; the root's id is the conversation's, of all of them."""
    add, total = working.app.tasks["add"], working.app.tasks["total"]
    parts = group([add.s(3), add.s(4)])
    (result, trace_id, order) = _under(working, lambda: chain(add.s(1, 2), parts, total.s())())
    assert result.get(timeout=PATIENCE) == 13
    tree = _tree(working, trace_id, 4)
    first, *others = sorted(
        (
            it
            for it in tree.values()
            if it.kind == "CONSUMER" and it.attributes.get("celery.task.name") == "add"
        ),
        key=lambda it: it.start,
    )
    assert _sender(tree, first) == order
    assert [_sender(tree, it) for it in others] == [first.span_id] * 2
    assert _sender(tree, _one(tree, "total")) in {it.span_id for it in others}
    roots = {it.attributes["messaging.message.conversation_id"] for it in tree.values()}
    assert roots == {first.attributes["messaging.message.id"]}


def test_a_group_and_the_body_of_its_chord_are_one_trace(working: Shop) -> None:
    """Header tasks are children of who called; the body of the one that was last."""
    add, total = working.app.tasks["add"], working.app.tasks["total"]
    parts = [add.s(number, number) for number in range(3)]
    (result, trace_id, order) = _under(working, lambda: chord(parts, total.s())())
    assert result.get(timeout=PATIENCE) == 6
    tree = _tree(working, trace_id, 4)
    headers = [
        it for it in tree.values() if it.kind == "CONSUMER" and it.attributes.get("celery.task.name") == "add"
    ]
    assert [_sender(tree, it) for it in headers] == [order] * 3
    assert _sender(tree, _one(tree, "total")) in {it.span_id for it in headers}


def test_callbacks_and_errbacks_are_in_the_trace(working: Shop) -> None:
    """``link``, ``link_error``, ``replace``: each is sent inside the span of the task that led to it."""
    tasks = working.app.tasks
    (result, trace_id, order) = _under(
        working, lambda: tasks["add"].apply_async((1, 2), link=tasks["add"].s(10))
    )
    assert result.get(timeout=PATIENCE) == 3
    tree = _tree(working, trace_id, 2)
    by_sender = {_sender(tree, it): it for it in tree.values() if it.kind == "CONSUMER"}
    assert by_sender.keys() == {order, by_sender[order].span_id}

    (result, trace_id, order) = _under(
        working, lambda: tasks["fail"].apply_async(link_error=tasks["handle"].s())
    )
    with pytest.raises(ValueError, match="out of stock"):
        result.get(timeout=PATIENCE)
    tree = _tree(working, trace_id, 2)
    failed = _one(tree, "fail")
    assert (failed.status, failed.attributes.get("error.type")) == ("ERROR", "ValueError")
    assert _sender(tree, _one(tree, "handle")) == failed.span_id

    (result, trace_id, order) = _under(working, lambda: tasks["replaced"].delay())
    assert result.get(timeout=PATIENCE) == 42
    tree = _tree(working, trace_id, 2)
    replaced = _one(tree, "replaced")
    assert replaced.status == "UNSET"
    assert _sender(tree, _one(tree, "add")) == replaced.span_id


def test_retries_are_siblings(working: Shop) -> None:
    """One PRODUCER span, and a CONSUMER span for each attempt, numbered; each that led to a retry has its cause."""
    (result, trace_id, _) = _under(working, lambda: working.app.tasks["again"].delay())
    assert result.get(timeout=PATIENCE) == 3
    tree = _tree(working, trace_id, 4)
    (producer,) = [it for it in tree.values() if it.kind == "PRODUCER"]
    attempts = sorted((it for it in tree.values() if it.kind == "CONSUMER"), key=lambda it: it.start)
    assert [it.parent_id for it in attempts] == [producer.span_id] * 4
    assert [it.attributes["queueprop.message.delivery_attempt"] for it in attempts] == [1, 2, 3, 4]
    assert [(it.status, it.attributes.get("error.type")) for it in attempts] == [
        ("ERROR", "ValueError")
    ] * 3 + [("UNSET", None)]


@pytest.mark.parametrize("shop", ["redis", "rabbitmq"], indirect=True)
def test_messages_of_the_first_protocol(shop: Shop) -> None:
    """``task_protocol=1``: the task is in the body and the context alone in the headers. A failure, retries, a callback
    and an errback are in the trace, and the retries siblings, as of the second.
    """
    shop.app.conf.task_protocol = 1
    tasks = shop.app.tasks
    linked, of_linked, order = _under(
        shop, lambda: tasks["add"].apply_async((1, 2), link=tasks["add"].s(10), headers={"tenant": "a"})
    )
    headers, body = _peeked(shop)
    assert "task" not in headers
    assert body["task"] == "add"
    assert (headers["tenant"], headers["traceparent"].split("-")[1]) == ("a", of_linked)
    shop.start(
        "--pool=prefork",
        "--concurrency=2",
        launched=True,
        OTEL_BSP_SCHEDULE_DELAY="50",
        **{programs.PROTOCOL: "1"},
    )

    tree = _tree(shop, of_linked, 2)
    assert linked.get(timeout=PATIENCE) == 3
    by_sender = {_sender(tree, it): it for it in tree.values() if it.kind == "CONSUMER"}
    assert by_sender.keys() == {order, by_sender[order].span_id}
    assert by_sender[order].attributes["messaging.message.id"] == linked.id
    assert by_sender[order].attributes["celery.task.name"] == "add"

    retried, of_retried, _ = _under(shop, lambda: tasks["again"].delay())
    assert retried.get(timeout=PATIENCE) == 3
    tree = _tree(shop, of_retried, 4)
    (producer,) = [it for it in tree.values() if it.kind == "PRODUCER"]
    attempts = sorted((it for it in tree.values() if it.kind == "CONSUMER"), key=lambda it: it.start)
    assert [it.parent_id for it in attempts] == [producer.span_id] * 4
    assert [it.attributes["queueprop.message.delivery_attempt"] for it in attempts] == [1, 2, 3, 4]

    failed, of_failed, _ = _under(shop, lambda: tasks["fail"].apply_async(link_error=tasks["handle"].s()))
    with pytest.raises(ValueError, match="out of stock"):
        failed.get(timeout=PATIENCE)
    tree = _tree(shop, of_failed, 2)
    assert _one(tree, "fail").status == "ERROR"
    assert _sender(tree, _one(tree, "handle")) == _one(tree, "fail").span_id
    assert "Failed to detach context" not in shop.log


def _peeked(shop: Shop) -> tuple[Any, Any]:
    """The headers and the body of the message that waits, which goes on waiting."""
    with kombu.Connection(shop.broker) as connection, connection.channel() as channel:
        message = kombu.Queue(shop.queue, kombu.Exchange(shop.queue), shop.queue)(channel).get()
        found = message.headers, message.payload
        message.requeue()
    return found


def test_map_and_chunks_are_one_message_each(working: Shop) -> None:
    """``map`` runs a function many times for one message, ``chunks`` sends one a chunk."""
    add = working.app.tasks["add"]
    (result, trace_id, _) = _under(working, lambda: add.starmap([(1, 1), (2, 2)]).apply_async())
    assert result.get(timeout=PATIENCE) == [2, 4]
    assert len(_tree(working, trace_id, 1)) == 2
    (result, trace_id, _) = _under(working, lambda: add.chunks([(n, n) for n in range(4)], 2).apply_async())
    assert result.get(timeout=PATIENCE) == [[0, 2], [4, 6]]
    assert len(_tree(working, trace_id, 2)) == 4


def test_a_chord_that_is_unlocked_by_polling_has_no_span_a_poll(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """A result backend without chords of its own: the body is in the trace, under the one ``chord_unlock`` that found
    all parts done; those before it have no span.
    """
    results = tmp_path / "results"
    results.mkdir()
    with _shop(request, tmp_path, f"file://{results}") as shop:
        shop.start("--pool=threads", "--concurrency=4", OTEL_BSP_SCHEDULE_DELAY="50")
        add, total, hold = (shop.app.tasks[name] for name in ("add", "total", "hold"))
        late = chain(hold.si("late"), add.si(2, 2))
        (result, trace_id, order) = _under(shop, lambda: chord([add.s(1, 1), late], total.s())())
        # A poll is received, and is to come again.
        shop.wait_for(lambda: shop.log.count("celery.chord_unlock") > 4, "polls")
        (shop.folder / "late").touch()
        assert result.get(timeout=PATIENCE) == 6
        tree = _tree(shop, trace_id, 5)
        unlock = _one(tree, "celery.chord_unlock")
        assert unlock.status == "UNSET"
        assert _sender(tree, unlock) == order
        assert _sender(tree, _one(tree, "total")) == unlock.span_id
        assert len(tree) == 10
