"""Ten thousand tasks in one child of Celery's prefork pool: a span a delivery, and memory that stays as it was.

The child is weighed after the first tenth and at the end: by then caches are full, and whatever is kept for each task
would be seen nine times over. The worker is started as users do, and traced by the launcher. It takes a minute on two
busy cores (250 tasks a second); the short form, of a thousand tasks, some seconds.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from integration import celery_programs as programs
from integration.brokers import REDIS, find
from integration.contract.telemetry import wait_until
from integration.otlp import OtlpServer
from queueprop.adapters.celery import CeleryInstrumentor

from .report import Row

_ROOT = Path(__file__).parents[2]
_MOST_OBJECTS = 200
"""That the garbage collector knows, more than before; no spans wait while it is asked."""
_MOST_GROWTH = 1.05


def run(is_short: bool, say: Callable[[str], None]) -> Iterator[Row]:
    count = 1_000 if is_short else 10_000
    broker = find(REDIS)
    broker.start()
    server = OtlpServer()
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield _row(count, broker.url, server, Path(folder), say)
    finally:
        server.close()
        broker.close()


def _row(count: int, url: str, server: OtlpServer, folder: Path, say: Callable[[str], None]) -> Row:
    os.environ[programs.FOLDER] = str(folder)
    app = programs.make(url, None, "many")
    provider = TracerProvider()
    provider.add_span_processor(
        BatchSpanProcessor(OTLPSpanExporter(f"{server.endpoint}/v1/traces"), max_queue_size=2 * count)
    )
    instrumentor = CeleryInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    log = folder / "worker.log"
    with log.open("wb") as output:
        worker = subprocess.Popen(
            _COMMAND, cwd=_ROOT, env=_environment(url, server, folder), stdout=output, stderr=output
        )
    try:
        first = count // 10
        began = time.monotonic()
        before = _weighed_after(app, first, 1, worker, folder)
        say(f"{first:,} tasks in {time.monotonic() - began:.0f} s with the worker's start")
        began = time.monotonic()
        after = _weighed_after(app, count - first, 2, worker, folder)
        seconds = time.monotonic() - began
        worker.terminate()
        worker.wait(60)
    finally:
        worker.kill()
        worker.wait()
        instrumentor.uninstrument()
        app.close()
        provider.shutdown()
    sent = {span.span_id for span in server.of("PRODUCER")}
    handled = [span.parent_id for span in server.of("CONSUMER")]
    is_one_each = len(handled) == len(set(handled)) == count + 2 and set(handled) == sent
    is_flat = after.objects - before.objects <= _MOST_OBJECTS and after.memory <= before.memory * _MOST_GROWTH
    return Row(
        "celery_many",
        "Celery",
        f"{count:,} tasks in one child",
        is_one_each and is_flat and before.pid == after.pid,
        {
            "spans": len(handled) - 2,
            "objects": f"{before.objects:,} then {after.objects:,}",
            "memory in kB": f"{before.memory:,} then {after.memory:,}",
            "tasks a second": round((count - first) / seconds),
        },
    )


_COMMAND = [
    *(str(Path(sys.executable).with_name("opentelemetry-instrument")), sys.executable, "-m", "celery"),
    *("-A", "integration.celery_programs", "worker", "--pool=prefork", "--concurrency=1", "-l", "WARNING"),
    *("--prefetch-multiplier=16", "--without-gossip", "--without-mingle"),
]


def _environment(url: str, server: OtlpServer, folder: Path) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return {
        **inherited,
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_ENDPOINT": server.endpoint,
        "OTEL_BSP_SCHEDULE_DELAY": "200",
        "QUEUEPROP_FLUSH_TIMEOUT": "20",
        "PYTHONPATH": str(_ROOT),
        programs.BROKER: url,
        programs.QUEUE: "many",
        programs.FOLDER: str(folder),
    }


class _Weight:
    """What a child says of itself."""

    def __init__(self, told: str) -> None:
        self.pid, self.memory, self.objects = map(int, told.split()[1:])


def _weighed_after(app: Any, count: int, times: int, worker: Any, folder: Path) -> _Weight:
    """The child's weight once it has executed so many further tasks. ``times``: how often it will have been weighed."""
    for _ in range(count):
        app.tasks["add"].delay(1, 2)
    app.tasks["weigh"].delay()
    told = folder / "told"

    def weights() -> list[str]:
        lines = told.read_text().splitlines() if told.exists() else []
        return [line for line in lines if line.startswith("weigh ")]

    wait_until(lambda: len(weights()) >= times or worker.poll() is not None, "the child", 1200)
    return _Weight(weights()[times - 1])
