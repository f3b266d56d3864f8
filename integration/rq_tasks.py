"""The jobs of the RQ tests, and the worker programs that perform them: ``python -m integration.rq_tasks <json>``."""

from __future__ import annotations

import json
import logging
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rq.worker
from opentelemetry import metrics, trace
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from redis import Redis
from rq import Queue, SimpleWorker, Worker, get_current_job
from rq.worker_pool import WorkerPool

import queueprop.adapters.rq as adapter
from integration.contract.telemetry import capture_logs, set_providers, tell, wait_until
from queueprop import guard
from queueprop.adapters.rq import collector as circuit
from queueprop.sdk import configure_tracing


def work(note: str = "") -> str:
    """Tells what is current, in a span of its own."""
    context = trace.get_current_span().get_span_context()
    with trace.get_tracer("test").start_as_current_span("work"):
        tell(
            "seen",
            {"note": note, "trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"},
        )
    return note


def rest() -> None:
    """Makes no span."""


async def work_async(note: str = "") -> str:
    return work(note)


def fail(times: int = 1000) -> None:
    """Raises, the first ``times`` that any worker performs this job."""
    work("fail")
    job = _job()
    if job.connection.incr(f"count-{job.id}") <= times:
        raise ValueError("gave up")


def replace_meta(how: str) -> None:
    """Replaces its ``meta`` and fails the first time."""
    job = _job()
    if how == "assigned":
        job.meta = {"step": 1}
    elif how == "assigned and saved":
        job.meta = {"step": 1}
        job.save_meta()
    else:
        job.meta = {}
        job.save_meta()
    fail(1)


def sleep(seconds: float) -> None:
    work("sleep")
    time.sleep(seconds)


def wait_for(path: str) -> None:
    """Ends when there is such a file."""
    work("waits")
    wait_until(lambda: Path(path).exists(), path)


def publish_on_and_on(seconds: float) -> None:
    """Publishes without end: the time limit most probably strikes in code of queueprop's.

    Its pipelines are kept: an exception that strikes in redis' ``Pipeline.__del__`` is lost, since Python ignores it
    there, with queueprop or without.
    """
    queue, end = _queue("elsewhere"), time.monotonic() + seconds
    connection: Any = queue.connection
    make_pipeline, kept = connection.pipeline, []

    def pipeline(*args: Any, **kwargs: Any) -> Any:
        kept.append(make_pipeline(*args, **kwargs))
        return kept[-1]

    connection.pipeline = pipeline
    while time.monotonic() < end:
        queue.enqueue(work)


def publish_more(note: str = "") -> None:
    work(note)
    _queue("more").enqueue(work, "published by a job")


def kill_itself() -> None:
    work("kill")
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(10)


def exit_hard(status: int) -> None:
    work("exit")
    os._exit(status)


def leave() -> None:
    sys.exit()


def raise_text(text: str) -> None:
    work("raise")
    raise ValueError(text)


def fork_child() -> None:
    """Its child leaves the job by ``sys.exit``."""
    pid = os.fork()
    if pid == 0:
        work("child")
        sys.exit()
    os.waitpid(pid, 0)
    work("parent")


def fork_publisher() -> None:
    """Its child publishes, and leaves the job by ``sys.exit``."""
    pid = os.fork()
    if pid == 0:
        publish_more("child")
        sys.exit()
    os.waitpid(pid, 0)


def count_mails() -> None:
    """A metric of the application's own."""
    metrics.get_meter("app").create_counter("mails").add(1)


def replace_descriptors(folder: str) -> None:
    """Closes every descriptor that it has inherited, but for sockets, and opens files of its own in their places."""
    sockets = [fd for fd in range(3, 256) if _is_open(fd, stat.S_ISSOCK)]
    for fd in range(3, 256):
        if fd not in sockets and _is_open(fd):
            os.close(fd)
    for number in range(40):
        os.open(f"{folder}/{number}", os.O_RDWR | os.O_CREAT)
    work("replaced")


def _is_open(fd: int, kind: Callable[[int], bool] = bool) -> bool:
    try:
        return kind(os.fstat(fd).st_mode)
    except OSError:
        return False


def on_success(job: Any, connection: Any, result: Any) -> None:
    work("on_success")


def on_failure(job: Any, connection: Any, *error: Any) -> None:
    work("on_failure")


def fail_on_failure(job: Any, connection: Any, *error: Any) -> None:
    work("on_failure")
    raise KeyError("the callback failed too")


def on_stopped(job: Any, connection: Any) -> None:
    work("on_stopped")


def horse_was_killed(job: Any, *how: Any) -> None:
    work("work_horse_killed_handler")


@adapter.traced_consumer
def traced_work(note: str = "") -> str:
    return work(note)


@adapter.traced_consumer()
async def traced_work_async(note: str = "") -> str:
    return work(note)


@adapter.traced_consumer
def traced_fork_child() -> None:
    fork_child()


@adapter.traced_consumer
def traced_fail(times: int = 1000) -> None:
    fail(times)


@adapter.traced_consumer
def traced_replace_meta(how: str) -> None:
    replace_meta(how)


def _job() -> Any:
    return get_current_job()


def _queue(name: str) -> Queue:
    return Queue(name, connection=_job().connection)


WORKERS: dict[str, Any] = {
    "fork": Worker,
    "simple": SimpleWorker,
    "traced fork": adapter.TracedWorker,
    "traced simple": adapter.TracedSimpleWorker,
}
_spawn_worker: Any = getattr(rq.worker, "SpawnWorker", None)


def _spawns() -> bool:
    """RQ before 2.6 writes the connection's options into a program, where redis 6 has one that is no literal."""
    if _spawn_worker is None:
        return False
    handles_retry = "retry" in _spawn_worker.fork_work_horse.__code__.co_consts
    return handles_retry or Redis().connection_pool.connection_kwargs.get("retry") is None


if _spawns():
    WORKERS["spawn"] = _spawn_worker
    WORKERS["traced spawn"] = adapter.TracedSpawnWorker


class _StuckExporter(SpanExporter):
    """A Collector that takes connections and never answers."""

    def export(self, spans: Any) -> SpanExportResult:
        time.sleep(600)
        return SpanExportResult.FAILURE

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return False


def run_worker(
    url: str,
    queue: str,
    worker: str,
    *,
    pool: int = 0,
    instrumented: bool = True,
    sdk: bool = True,
    stuck: bool = False,
    collector: str | None = None,
    pause: int | None = None,
    broken_logging: str | None = None,
    burst: bool = True,
    **options: Any,
) -> None:
    """Works off a queue in this process and its children."""
    if pause:
        circuit.PAUSE = pause
    if collector:
        configure_tracing("contract", endpoint=collector)
    elif sdk:
        provider, _ = set_providers()
        if stuck:
            provider.add_span_processor(BatchSpanProcessor(_StuckExporter()))
    if broken_logging:
        _break_everything(broken_logging)
    else:
        capture_logs()
    if instrumented:
        adapter.RQInstrumentor().instrument()
    connection = Redis.from_url(url)
    if pool:
        WorkerPool([queue], connection=connection, num_workers=pool, worker_class=WORKERS[worker]).start(
            burst=True
        )
        return
    WORKERS[worker](
        [Queue(queue, connection=connection)],
        connection=connection,
        work_horse_killed_handler=horse_was_killed,
    ).work(burst=burst, logging_level="WARNING", **options)


class _BrokenProvider(trace.NoOpTracerProvider):
    def get_tracer(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("the SDK's")


class _RaisingHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise OSError("the log's disk is full")


class _RaisingFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        raise KeyError("request_id")


def _break_everything(logging_is: str) -> None:
    """Every job is a fault that is to be told of, and telling of it is one more."""
    guard.raise_faults = False
    trace._TRACER_PROVIDER = _BrokenProvider()
    logger = logging.getLogger("queueprop")
    if logging_is == "a handler that raises":
        logger.addHandler(_RaisingHandler())
    elif logging_is == "a filter that raises":
        logger.addFilter(_RaisingFilter())
    else:
        logger.addHandler(logging.StreamHandler(sys.stderr))
        sys.stderr.close()


def start_worker(url: str, queue: str, worker: str, **options: Any) -> subprocess.Popen[bytes]:
    arguments = json.dumps({"url": url, "queue": queue, "worker": worker, **options})
    return subprocess.Popen([sys.executable, "-c", _RUN_WORKER, str(Path(__file__).parents[1]), arguments])


# The checkout comes last on the path: queueprop is the installed one.
_RUN_WORKER = """
import json, sys
sys.path.append(sys.argv[1])
from integration.rq_tasks import run_worker
run_worker(**json.loads(sys.argv[2]))
"""
