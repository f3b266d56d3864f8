"""What a person is told, by programs as they are started: without an SDK, and beside another instrumentation."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.live import unique

BIN = Path(sys.executable).parent
LAUNCHER = str(BIN / "opentelemetry-instrument")

# Under the launcher, but as if no distribution were installed that sets up an SDK.
NO_DISTRIBUTION = {"OTEL_PYTHON_DISTRO": "none", "OTEL_PYTHON_CONFIGURATOR": "none"}
NO_EXPORTERS = {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
OF_CONTRIB = {
    "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "aio-pika,aiokafka,celery,confluent_kafka,fastapi,pika"
}


def run(*command: str, folder: Path, **environment: str) -> str:
    """What a program writes to stderr. It is started in a folder, and finds no variables but those that are given."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "QUEUEPROP_"))
    }
    result = subprocess.run(
        command,
        cwd=folder,
        env={**inherited, "PYTHONPATH": str(folder), **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stderr


def said(text: str) -> list[str]:
    """The lines that are queueprop's."""
    return [line for line in text.splitlines() if line.startswith("queueprop, ")]


# Without an SDK


JOBS = 5

WORKERS = {
    "fork": "queueprop.adapters.rq.TracedWorker",
    "simple": "queueprop.adapters.rq.TracedSimpleWorker",
    "spawn": "queueprop.adapters.rq.TracedSpawnWorker",
}


@pytest.fixture
def queue(redis_url: str, tmp_path: Path) -> Iterator[Any]:
    """An RQ queue with five jobs, in a folder with the program that has them."""
    rq = pytest.importorskip("rq")
    from redis import Redis

    (tmp_path / "jobs.py").write_text("def work(number):\n    return number\n")
    with Redis.from_url(redis_url) as connection:
        made = rq.Queue(unique("orders"), connection=connection)
        for number in range(JOBS):
            made.enqueue("jobs.work", number)
        yield made
        made.delete(delete_jobs=True)


def worked(
    queue: Any, url: str, folder: Path, *before: str, kind: str | None = None, **environment: str
) -> str:
    """What ``rq worker --worker-class ...``, as the documentation has it, writes while it works the queue off."""
    chosen = () if kind is None else ("--worker-class", WORKERS[kind])
    worker = (str(BIN / "rq"), "worker", "--burst", "--url", url, *chosen, queue.name)
    told = run(*before, *worker, folder=folder, **environment)
    assert len(queue.finished_job_registry) == JOBS, told
    return told


@pytest.mark.parametrize("kind", WORKERS)
def test_an_rq_worker_without_an_sdk_says_so_once(
    redis_url: str, queue: Any, tmp_path: Path, kind: str
) -> None:
    """Five jobs, each in a work horse of its own: the parent says it, and no horse says it again."""
    if kind == "spawn" and not hasattr(importlib.import_module("rq.worker"), "SpawnWorker"):
        pytest.skip("this RQ has no SpawnWorker")
    (line,) = said(worked(queue, redis_url, tmp_path, kind=kind))
    assert line.startswith(
        "queueprop, tracing messages: no OpenTelemetry SDK is set up in this process, so no spans"
    )
    assert "configure_tracing()" in line
    assert "opentelemetry-distro" in line


def test_an_rq_worker_that_is_to_have_none_says_nothing(redis_url: str, queue: Any, tmp_path: Path) -> None:
    """OTEL_SDK_DISABLED=true."""
    assert said(worked(queue, redis_url, tmp_path, kind="fork", OTEL_SDK_DISABLED="true")) == []


@pytest.mark.parametrize("distribution", ["missing", "installed"])
def test_an_rq_worker_under_the_launcher_without_a_distribution(
    redis_url: str, queue: Any, tmp_path: Path, distribution: str
) -> None:
    """opentelemetry-instrument rq worker: without one it makes no spans, and the line says what it lacks."""
    if distribution == "installed":
        pytest.importorskip("opentelemetry.distro")
    environment = {**OF_CONTRIB, **(NO_EXPORTERS if distribution == "installed" else NO_DISTRIBUTION)}
    lines = said(worked(queue, redis_url, tmp_path, LAUNCHER, **environment))
    if distribution == "installed":
        assert lines == []
    else:
        (line,) = lines
        assert "opentelemetry-instrument has set up no OpenTelemetry SDK" in line
        assert "pip install opentelemetry-distro opentelemetry-exporter-otlp" in line


# Another instrumentation has the library


CHANNEL = """
import logging, os, sys
from types import SimpleNamespace
if "HIDING" in os.environ:
    handler = logging.StreamHandler()
    handler.setLevel("ERROR")
    logging.getLogger().addHandler(handler)
from pika.channel import Channel
connection = SimpleNamespace(
    params=SimpleNamespace(host="rabbit.example", port=5672, frame_max=131_072),
    callbacks=SimpleNamespace(add=lambda *_, **__: None, remove=lambda *_, **__: None),
    _send_method=lambda *_: None,
)
channel = Channel(connection, 1, None)
channel._set_state(Channel.OPEN)
for _ in range(3):
    channel.basic_publish("", "orders", b"hello")
"""

SETUPS = {
    "no handler": {},
    "a handler at a higher level": {"HIDING": "1"},
    "the launcher's format": {"OTEL_PYTHON_LOG_CORRELATION": "true"},
    "the launcher's format, errors alone": {
        "OTEL_PYTHON_LOG_CORRELATION": "true",
        "OTEL_PYTHON_LOG_LEVEL": "error",
    },
    "the SDK's handler": {"OTEL_PYTHON_LOGGING_AUTO_INSTRUMENTATION_ENABLED": "true"},
}


@pytest.mark.parametrize("setup", SETUPS.values(), ids=SETUPS.keys())
@pytest.mark.parametrize("first", ["queueprop", "opentelemetry-instrumentation-pika"], ids=["ours", "theirs"])
def test_contrib_s_instrumentation_of_pika(tmp_path: Path, first: str, setup: dict[str, str]) -> None:
    """opentelemetry-instrument, with contrib's pika and logging installed: whichever it finds first, and however
    logging is set up, one line on stderr says who has the library, and by which names either is switched off."""
    for needed in (
        "opentelemetry.distro",
        "opentelemetry.instrumentation.logging",
        "opentelemetry.instrumentation.pika",
    ):
        pytest.importorskip(needed)
    _found_first(first, tmp_path / "first")
    (tmp_path / "program.py").write_text(CHANNEL)
    told = run(
        LAUNCHER,
        sys.executable,
        "program.py",
        folder=tmp_path,
        **{**NO_EXPORTERS, **setup, "PYTHONPATH": os.pathsep.join((str(tmp_path / "first"), str(tmp_path)))},
    )
    (line,) = [line for line in told.splitlines() if "instrumenting pika" in line]
    assert (
        "opentelemetry.instrumentation.pika.PikaInstrumentor instruments it already, so queueprop stands down"
        in line
    )
    assert (
        "uninstall opentelemetry-instrumentation-pika or disable it: OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=pika;"
        in line
    )
    assert line.endswith("disable queueprop's: OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=queueprop_pika")


@pytest.mark.parametrize("disabled", ["pika", "queueprop_pika"])
def test_what_the_line_says_to_do_ends_it(tmp_path: Path, disabled: str) -> None:
    """Either of the two is switched off by the name that it gives: then nothing is said."""
    for needed in ("opentelemetry.distro", "opentelemetry.instrumentation.pika"):
        pytest.importorskip(needed)
    (tmp_path / "program.py").write_text(CHANNEL)
    environment = {**NO_EXPORTERS, "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": disabled}
    told = run(LAUNCHER, sys.executable, "program.py", folder=tmp_path, **environment)
    assert "instrumenting pika" not in told


def _found_first(distribution: str, folder: Path) -> None:
    """A folder whose distributions Python finds before all others: with what this one is known by."""
    folder.mkdir()
    found = importlib.metadata.distribution(distribution)
    (known_by,) = {path.parts[0] for path in found.files or () if path.parts[0].endswith(".dist-info")}
    shutil.copytree(str(found.locate_file(known_by)), folder / known_by)
