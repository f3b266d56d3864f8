"""The quickstarts of the documentation, as they are written there: their files, the worker's command, the publish's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from integration.live import unique
from integration.otlp import OtlpServer
from integration.pages import DOCS, command, files

SERVERS = {
    "aio-pika": "rabbitmq",
    "aiokafka": "kafka",
    "bullmq": "redis",
    "celery": "redis",
    "confluent-kafka": "kafka",
    "dramatiq": "redis",
    "faststream": "redis",
    "kombu": "redis",
    "pika": "rabbitmq",
    "rq": "redis",
}
"""What each page starts; there its address is the one that everybody has."""

EVERYBODYS = {"redis": "redis://localhost:6379", "rabbitmq": "amqp://localhost", "kafka": "localhost:9092"}

PATIENCE = 120.0
"""Seconds for a worker to start and to handle a message; Kafka's groups take most of it."""


@pytest.fixture
def otlp() -> Iterator[OtlpServer]:
    server = OtlpServer()
    yield server
    server.close()


@pytest.mark.parametrize("library", SERVERS)
def test_the_worker_is_in_the_trace_of_the_publish(
    library: str, otlp: OtlpServer, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Two programs, written off the page, and a broker: one trace, with a CONSUMER span below the PRODUCER's."""
    kind = SERVERS[library]
    url = request.getfixturevalue(f"private_{kind}" if kind != "kafka" else "kafka_broker").url
    address = urlsplit(url).netloc if kind == "kafka" else url.rstrip("/")
    page = DOCS / "libraries" / f"{library}.md"
    mails = (
        unique("mails") if kind == "kafka" else "mails"
    )  # one Kafka for all; the others are each test's own
    for name, text in files(page).items():
        written = text.replace(EVERYBODYS[kind], address).replace('"mails"', f'"{mails}"')
        (tmp_path / name).write_text(written, encoding="utf-8")

    def start(title: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["sh", "-c", "exec env " + command(page, title).replace(EVERYBODYS[kind], address)],
            cwd=tmp_path,
            env=_environment(otlp.endpoint),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    publish = start("a publish")
    printed, _ = publish.communicate(timeout=PATIENCE)
    assert publish.returncode == 0, printed
    worker = start("the worker")
    try:
        _wait(lambda: bool(otlp.of("CONSUMER")), worker)
    finally:
        worker.send_signal(signal.SIGTERM)
        try:
            printed, _ = worker.communicate(timeout=PATIENCE)
        finally:
            worker.kill()
    assert "mail for order 1" in printed
    (producer,), (consumer,) = otlp.of("PRODUCER"), otlp.of("CONSUMER")
    assert (producer.name, producer.parent_id) == (f"publish {mails}", None)
    assert (consumer.trace_id, consumer.parent_id) == (producer.trace_id, producer.span_id)
    assert "mails" in consumer.name
    assert consumer.status != "ERROR"


def _environment(endpoint: str) -> dict[str, str]:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OTEL_", "QUEUEPROP_", "_QUEUEPROP_", "PYTHONSAFEPATH", "COVERAGE"))
    }
    return {
        **inherited,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_BSP_SCHEDULE_DELAY": "100",  # milliseconds: no reader waits for the test
        "PYTHONUNBUFFERED": "1",
    }


def _wait(is_there: object, worker: subprocess.Popen[str]) -> None:
    assert callable(is_there)
    ends_at = time.monotonic() + PATIENCE
    while not is_there():
        if worker.poll() is not None or time.monotonic() > ends_at:
            worker.kill()
            pytest.fail(f"no CONSUMER span came; the worker printed:\n{worker.communicate()[0]}")
        time.sleep(0.05)
