"""kombu under Celery: an application with a prefork worker, with and without Celery's own instrumentation."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("celery")

import kombu
from celery import Celery, chain

from integration import celery_tasks
from integration.contract.run import only
from integration.contract.telemetry import SpanRecord, Telemetry, ambient_span, telemetry, wait_until
from queueprop.adapters import kombu as adapter

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

needs_celery_instrumentation = pytest.mark.skipif(
    importlib.util.find_spec("opentelemetry.instrumentation.celery") is None,
    reason="opentelemetry-instrumentation-celery is not installed",
)
WITH_AND_WITHOUT = [
    pytest.param("kombu", id="kombu alone"),
    pytest.param("kombu,celery", id="with Celery's", marks=needs_celery_instrumentation),
]


@dataclass
class Rig:
    """An application here, and its worker."""

    app: Celery
    told: Telemetry
    log: Path

    @property
    def ours(self) -> list[SpanRecord]:
        return [span for span in self.told.spans if span.is_ours]

    @property
    def theirs(self) -> list[SpanRecord]:
        return [span for span in self.told.spans if span.scope == "opentelemetry.instrumentation.celery"]

    def call(self, name: str, *args: Any) -> Any:
        return self.app.tasks[name].delay(*args).get(timeout=60)


@contextmanager
def running(url: str, folder: Path, traced: str, protocol: int = 2) -> Iterator[Rig]:
    """Inside, this process and the worker are traced with what ``traced`` names."""
    with telemetry(folder / "run.jsonl") as told:
        environment = {
            **os.environ,
            celery_tasks.BROKER: url,
            celery_tasks.TRACED: traced,
            celery_tasks.PROTOCOL: str(protocol),
            "PYTHONPATH": str(Path(__file__).parents[1]),
        }
        log = folder / "worker.log"
        command = [sys.executable, "-m", "celery", "-A", "integration.celery_tasks", "worker"]
        command += ["--pool=prefork", "--concurrency=2", "-E", "-l", "INFO"]
        with log.open("wb") as output:
            worker = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        app = celery_tasks.make(url, protocol)
        app.set_current()
        celery_tasks.trace_with(traced)
        try:
            wait_until(lambda: worker.poll() is not None or b" ready." in log.read_bytes(), "the worker")
            assert worker.poll() is None, log.read_text()
            yield Rig(app, told, log)
        finally:
            celery_tasks.untrace()
            app.close()
            worker.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(30)
            worker.kill()
            worker.wait()


@pytest.fixture(params=["rabbitmq", "redis"])
def url(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


@pytest.mark.parametrize("traced", WITH_AND_WITHOUT)
def test_a_task_message_carries_one_context_and_has_one_producer_span(
    url: str, tmp_path: Path, traced: str
) -> None:
    """Ours, or that of Celery's own instrumentation where it is active; never both. The task runs as before."""
    with running(url, tmp_path, traced) as rig:
        assert rig.call("add", 2, 3) == 5
        with ambient_span() as ambient:
            seen = rig.call("look")
        trace_id = f"{ambient.trace_id:032x}"
        producers = [span for span in rig.told.spans if span.kind == "PRODUCER" and span.trace_id == trace_id]
        producer = only(producers)
        assert seen["headers"]["traceparent"].split("-")[1:3] == list(producer.context)
        if "celery" in traced:
            assert rig.ours == []
            assert seen["trace_id"] == trace_id
        else:
            assert producer.name == "publish celery"
            assert producer.attributes["messaging.destination.name"] == "celery"
            assert [span.kind for span in rig.ours] == ["PRODUCER", "PRODUCER"]


@pytest.mark.parametrize("traced", WITH_AND_WITHOUT)
def test_a_task_that_retries_keeps_its_trace_and_is_sent_once_an_attempt(
    url: str, tmp_path: Path, traced: str
) -> None:
    """Each attempt is one message with one context: what the retry inherits in its headers is replaced."""
    with running(url, tmp_path, traced) as rig:
        with ambient_span() as ambient:
            seen = rig.call("flaky")
        assert seen["retries"] == 2
        wait_until(lambda: len(_producers(rig)) >= 3, "what the worker's processes hand over")
        producers = _producers(rig)
        assert len(producers) == 3
        assert seen["headers"]["traceparent"].split("-")[1:3] == list(producers[-1].context)
        assert {span.trace_id for span in producers} == {f"{ambient.trace_id:032x}"}


def _producers(rig: Rig) -> list[SpanRecord]:
    return [span for span in rig.told.spans if span.kind == "PRODUCER"]


@pytest.mark.parametrize("traced", WITH_AND_WITHOUT)
def test_events_and_remote_control_stay_untraced(url: str, tmp_path: Path, traced: str) -> None:
    """Heartbeats, task events, ping, inspect and broadcasts, on both sides: no span and no context."""
    with running(url, tmp_path, traced) as rig:
        wait_until(lambda: bool(rig.app.control.ping(timeout=3)), "an answer to a ping")
        wait_until(lambda: bool(rig.app.control.inspect(timeout=3).stats()), "the worker's statistics")
        events: list[dict[str, Any]] = []
        with rig.app.connection_for_read() as connection:
            receiver = rig.app.events.Receiver(
                connection, handlers={"*": lambda event: events.append(dict(event))}
            )
            wait_until(
                lambda: bool(_captured(receiver, events, "worker-heartbeat")), "a heartbeat", deadline=30
            )
        assert rig.ours == []
        assert all("traceparent" not in event for event in events)
    assert [span for span in rig.told.spans if span.is_ours] == []


def _captured(receiver: Any, events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    with contextlib.suppress(TimeoutError):
        receiver.capture(limit=1, timeout=3)
    return [event for event in events if event["type"] == kind]


@pytest.mark.parametrize("traced", WITH_AND_WITHOUT)
def test_consumers_of_the_user_in_celery_s_loop_are_traced(url: str, tmp_path: Path, traced: str) -> None:
    """A ConsumerStep is the user's code: its message has a CONSUMER span; Celery's consumers beside it have none."""
    with running(url, tmp_path, traced) as rig:
        with ambient_span() as ambient, kombu.Connection(url) as connection:
            kombu.Producer(connection).publish(
                "order", exchange="celery-orders", routing_key="celery-orders", declare=[celery_tasks.ORDERS]
            )
        wait_until(lambda: bool(list(rig.told.records("order"))), "the order")
        [order] = rig.told.records("order")
        assert order["trace_id"] == f"{ambient.trace_id:032x}"
        assert rig.call("add", 1, 1) == 2
    # The worker's own process hands over its spans as it ends.
    consumer = only([span for span in rig.ours if span.kind == "CONSUMER"])
    assert consumer.name == "process celery-orders:celery-orders"
    assert consumer.trace_id == order["trace_id"]


def _run(workflow: Any) -> Any:
    return workflow()


@pytest.mark.parametrize("traced", ["", *WITH_AND_WITHOUT])
def test_chains_and_failures_are_as_without_us(url: str, tmp_path: Path, traced: str) -> None:
    """Results and exceptions of workflows do not depend on who traces."""
    with running(url, tmp_path, traced) as rig:
        add, fail = rig.app.tasks["add"], rig.app.tasks["fail"]
        assert _run(chain(add.s(1, 2), add.s(3))).get(timeout=60) == 6
        with pytest.raises(ValueError, match="out of stock"):
            fail.delay().get(timeout=60)
        if traced == "kombu":
            assert {span.kind for span in rig.ours} == {"PRODUCER"}


def test_the_first_task_protocol_carries_a_context_too(rabbitmq_url: str, tmp_path: Path) -> None:
    """Its headers are empty, and its context lies there; the task runs."""
    with running(rabbitmq_url, tmp_path, "kombu", protocol=1) as rig:
        assert rig.call("add", 2, 3) == 5
        assert [span.kind for span in rig.ours] == ["PRODUCER"]


def test_without_the_instrumentor_again_nothing_is_traced(redis_url: str, tmp_path: Path) -> None:
    """After uninstrument() the application's publishes are its own again."""
    with running(redis_url, tmp_path, "kombu") as rig:
        adapter.KombuInstrumentor().uninstrument()
        assert rig.call("look")["headers"] == {}
        assert rig.ours == []
