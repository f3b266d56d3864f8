"""Celery's prefork pool: however a process of it comes to its end, ``configure_tracing`` loses no span of it.

A real worker runs tasks, and a small OTLP server counts what it hands over. No span leaves by itself meanwhile, so
what arrives was handed over at an end: by a child that is replaced after its task, or by those that a warm shutdown
ends. A child's last span is the one that a receiver of ``worker_process_shutdown`` makes. All of that holds for both
prefork pools that Celery has (one for brokers with an event loop, one for the others), for forked and for spawned
children, and where tracing is set up by the module of the application or in each child.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("celery")
pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")

from celery.app.defaults import NAMESPACES

from integration import celery_ends
from integration.contract.telemetry import PATIENCE, wait_until
from integration.otlp import OtlpServer


@pytest.fixture
def collector() -> Iterator[OtlpServer]:
    made = OtlpServer()
    yield made
    made.close()


@dataclass(frozen=True)
class Setup:
    """A pool, and where its worker sets up tracing."""

    broker: str
    configured: str
    start_method: str = "fork"

    def __str__(self) -> str:
        return f"{self.broker}-{self.start_method}-{self.configured}"


SETUPS = [
    Setup("redis", "at import"),
    Setup("redis", "in each process"),
    Setup("redis", "at import", "spawn"),
    Setup("redis", "in each process", "spawn"),
    Setup("filesystem", "at import"),
]


class Worker:
    """``celery worker`` with two processes, and tasks for it."""

    def __init__(self, setup: Setup, broker: str, folder: Path, environment: dict[str, str]) -> None:
        self._setup = setup
        self._folder = folder
        self._log = folder / "worker.log"
        self._app = celery_ends.make(broker, folder)
        command = [sys.executable, "-m", "celery", "-A", "integration.celery_ends", "worker"]
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                [*command, "--pool=prefork", "--concurrency=2", "-l", "INFO"],
                env={
                    **{name: value for name, value in os.environ.items() if not name.startswith("OTEL_")},
                    **environment,
                    celery_ends.FOLDER: str(folder),
                    celery_ends.BROKER: broker,
                    celery_ends.CONFIGURED: setup.configured,
                    "PYTHONPATH": str(Path(__file__).parents[1]),
                },
                stdout=output,
                stderr=output,
            )

    def send(self, number: int, seconds: float = 0.0) -> None:
        self._app.send_task("work", (number, seconds))

    def wait_for(self, tasks: int) -> None:
        """Until so many have begun, and both processes."""

        def is_there() -> bool:
            return self._count("task") == tasks and self._count("start") >= 2

        wait_until(lambda: is_there() or self._process.poll() is not None, "the tasks")
        assert is_there(), self.log

    def shut_down(self) -> int:
        """Warm. Returns the status."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(PATIENCE)

    def close(self) -> None:
        self._app.close()
        self._process.kill()
        self._process.wait()

    @property
    def keeps_those_that_it_replaced(self) -> bool:
        """Whether its shutdown lets them end by themselves.

        Celery has the kernel kill a child when the *thread* that forked it ends (``PR_SET_PDEATHSIG``). Where there is
        no event loop, a thread of the pool replaces children, and it ends first of all at a shutdown: what they are
        about to do is lost, without queueprop, too, and whoever waits for a lock that one of them held waits for ever.
        """
        return self._setup.broker != "filesystem"

    @property
    def shutdowns(self) -> int:
        """How many processes of the pool have come to Celery's signal."""
        return self._count("shutdown")

    @property
    def log(self) -> str:
        return self._log.read_text()

    def _count(self, what: str) -> int:
        return len(list(self._folder.glob(f"{what}-*")))


@pytest.fixture(params=SETUPS, ids=str)
def setup(request: pytest.FixtureRequest) -> Setup:
    setup: Setup = request.param
    if setup.start_method != "fork" and "pool_start_method" not in NAMESPACES["worker"]:
        pytest.skip("this Celery always forks")
    return setup


@pytest.fixture
def worker(
    request: pytest.FixtureRequest, setup: Setup, collector: OtlpServer, tmp_path: Path
) -> Iterator[Worker]:
    broker = "filesystem://" if setup.broker == "filesystem" else request.getfixturevalue("redis_url")
    for folder in ("data", "control"):
        (tmp_path / folder).mkdir()
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
        "OTEL_BSP_SCHEDULE_DELAY": "600000",  # nothing leaves by itself
        "QUEUEPROP_FLUSH_TIMEOUT": "20",
        celery_ends.TASKS_PER_CHILD: str(getattr(request, "param", 0)),
    }
    if setup.start_method != "fork":
        environment[celery_ends.START_METHOD] = setup.start_method
    made = Worker(setup, broker, tmp_path, environment)
    yield made
    made.close()


def test_a_warm_shutdown_loses_no_span(worker: Worker, collector: OtlpServer) -> None:
    """SIGTERM: the task in hand is finished, and both processes hand over what they have, the last span included."""
    for number in range(4):
        worker.send(number)
    worker.wait_for(4)
    worker.send(4, seconds=1.0)
    worker.wait_for(5)
    assert worker.shut_down() == 0, worker.log
    assert worker.shutdowns == 2
    assert collector.names == {"task": 5, "shutdown": 2}, worker.log


@pytest.mark.parametrize("worker", [1], indirect=True, ids=["one task per child"])
def test_a_process_that_is_replaced_loses_no_span(worker: Worker, collector: OtlpServer) -> None:
    """With ``max_tasks_per_child`` each of them ends after its task, while the worker goes on; and so do those that
    took their places, when it is shut down.
    """
    for number in range(4):
        worker.send(number)
    worker.wait_for(4)
    wait_until(lambda: collector.names == {"task": 4, "shutdown": 4}, "the spans of four processes")
    if not worker.keeps_those_that_it_replaced:
        return
    assert worker.shut_down() == 0, worker.log
    assert collector.names == {"task": 4, "shutdown": worker.shutdowns}, worker.log
