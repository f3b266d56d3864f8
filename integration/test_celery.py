"""kombu under Celery: an application with a prefork worker, with and without Celery's own instrumentation."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("celery")

import kombu
from celery import chain, chord, group

from integration import celery_tasks
from integration.contract.run import only
from integration.contract.telemetry import (
    PATIENCE,
    SpanRecord,
    Telemetry,
    ambient_span,
    telemetry,
    wait_until,
)
from queueprop.adapters import kombu as adapter

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@dataclass(frozen=True)
class Setup:
    """One worker: the broker, what it and this process are traced with, and the task protocol."""

    broker: str
    traced: str
    protocol: int = 2

    def __str__(self) -> str:
        names = {"": "plain", "kombu": "kombu alone", "kombu,celery": "with Celery's"}
        return f"{self.broker}-{names[self.traced]}-protocol {self.protocol}"


NODE = "tests@localhost"
"""The worker's name."""

SETUPS = [
    Setup("rabbitmq", "kombu"),
    Setup("rabbitmq", "kombu,celery"),
    Setup("rabbitmq", "kombu", protocol=1),
    Setup("rabbitmq", "kombu,celery", protocol=1),
    Setup("redis", ""),
    Setup("redis", "kombu"),
    Setup("redis", "kombu,celery"),
]


@dataclass
class Rig:
    """An application here, and its worker."""

    setup: Setup
    url: str
    app: Any
    told: Telemetry

    @property
    def ours(self) -> list[SpanRecord]:
        return [span for span in self.told.spans if span.is_ours]

    @property
    def producers(self) -> list[SpanRecord]:
        """Of every instrumentation."""
        return [span for span in self.told.spans if span.kind == "PRODUCER"]

    def call(self, name: str, *args: Any) -> Any:
        return self.app.tasks[name].delay(*args).get(timeout=PATIENCE)

    @contextmanager
    def sending(self, count: int) -> Iterator[None]:
        """Inside, so many task messages are sent, wherever: each has one PRODUCER span, and nothing else has."""
        ours, producers = len(self.ours), len(self.producers)
        expected = count if self.setup.traced else 0
        yield
        # The worker's processes hand over what they have after the result has been seen here.
        wait_until(lambda: len(self.producers) - producers >= expected, f"{expected} spans")
        assert len(self.producers) - producers == expected
        kinds = {span.kind for span in self.ours[ours:]}
        assert kinds <= {"PRODUCER"}
        if not self.is_passed_over:
            assert bool(kinds) == self.makes_spans

    @property
    def makes_spans(self) -> bool:
        """queueprop alone."""
        return self.setup.traced == "kombu"

    @property
    def is_passed_over(self) -> bool:
        """Celery's own instrumentation makes no span for a message of the first protocol that has headers."""
        return self.setup.traced == "kombu,celery" and self.setup.protocol == 1


@pytest.fixture(scope="module", params=SETUPS, ids=str)
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """One worker for all tests of a setup: it takes seconds to start and to stop."""
    setup: Setup = request.param
    if "celery" in setup.traced and importlib.util.find_spec("opentelemetry.instrumentation.celery") is None:
        pytest.skip("opentelemetry-instrumentation-celery is not installed")
    url: str = request.getfixturevalue(f"{setup.broker}_url")
    with running(setup, url, tmp_path_factory.mktemp("celery")) as made:
        yield made


@contextmanager
def running(setup: Setup, url: str, folder: Path) -> Iterator[Rig]:
    with telemetry(folder / "run.jsonl") as told:
        environment = {
            **os.environ,
            celery_tasks.BROKER: url,
            celery_tasks.TRACED: setup.traced,
            celery_tasks.PROTOCOL: str(setup.protocol),
            "PYTHONPATH": str(Path(__file__).parents[1]),
        }
        log = folder / "worker.log"
        command = [sys.executable, "-m", "celery", "-A", "integration.celery_tasks", "worker"]
        command += ["--pool=prefork", "--concurrency=2", "-n", NODE, "-E", "-l", "INFO"]
        with log.open("wb") as output:
            worker = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        app = celery_tasks.make(url, setup.protocol)
        app.set_current()
        celery_tasks.trace_with(setup.traced)
        try:
            wait_until(lambda: worker.poll() is not None or b" ready." in log.read_bytes(), "the worker")
            assert worker.poll() is None, log.read_text()
            yield Rig(setup, url, app, told)
        finally:
            celery_tasks.untrace()
            gc.collect()  # a result takes back its subscription when it is collected: not without its broker
            app.close()
            worker.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(PATIENCE)
            worker.kill()
            worker.wait()


WAYS: dict[str, Callable[[Any], Any]] = {
    "delay": lambda app: app.tasks["look"].delay(),
    "countdown": lambda app: app.tasks["look"].apply_async(countdown=0.1),
    "headers": lambda app: app.tasks["look"].apply_async(headers={"tenant": "a"}),
    "send_task": lambda app: app.send_task("look"),
    "send_task of another program": lambda app: app.send_task("elsewhere"),
}


@pytest.mark.parametrize("way", list(WAYS))
def test_a_task_message_carries_one_context_and_has_one_producer_span(rig: Rig, way: str) -> None:
    """Ours, or that of Celery's own instrumentation where it is active; never both. The task runs as before."""
    with rig.sending(1), ambient_span() as ambient:
        seen = WAYS[way](rig.app).get(timeout=PATIENCE)
    assert seen["headers"].get("tenant") == ("a" if way == "headers" else None)
    if not rig.setup.traced:
        assert "traceparent" not in seen["headers"]
        return
    producer = rig.producers[-1]
    assert producer.trace_id == f"{ambient.trace_id:032x}"
    carried = tuple(seen["headers"]["traceparent"].split("-")[1:3])
    if rig.is_passed_over and way == "send_task of another program":
        # Celery's instrumentation has ended its span by then, and left the headers alone.
        assert carried == (producer.trace_id, f"{ambient.span_id:016x}")
    else:
        assert carried == producer.context
    if rig.makes_spans:
        assert producer.name == "publish celery"
        assert producer.attributes["messaging.destination.name"] == "celery"
    elif rig.setup.protocol == 2:  # of the first one Celery's instrumentation looks for headers in vain
        assert seen["trace_id"] == producer.trace_id


def test_a_task_that_retries_keeps_its_trace_and_is_sent_once_an_attempt(rig: Rig) -> None:
    """Each attempt is one message with one context: what the retry inherits in its headers is replaced."""
    with rig.sending(3), ambient_span() as ambient:
        seen = rig.call("flaky")
    assert seen["retries"] == 2
    if not rig.setup.traced:
        return
    producers = rig.producers[-3:]
    assert seen["headers"]["traceparent"].split("-")[1:3] == list(producers[-1].context)
    if not rig.is_passed_over:  # where it also makes a root of each run, which the next attempt is sent in
        assert {span.trace_id for span in producers} == {f"{ambient.trace_id:032x}"}


def test_workflows_and_failures_are_as_without_us(rig: Rig) -> None:
    """Results and exceptions do not depend on who traces; each message of a workflow has its one span."""
    add, fail, total = (rig.app.tasks[name] for name in ("add", "fail", "total"))
    if rig.setup.protocol == 2:  # the first one has no chains
        with rig.sending(2):
            assert chain(add.s(1, 2), add.s(3))().get(timeout=PATIENCE) == 6
    with rig.sending(2):
        assert sorted(group(add.s(1, 2), add.s(3, 4))().get(timeout=PATIENCE)) == [3, 7]
    if rig.setup.broker == "redis":  # rpc:// has no chords
        with rig.sending(3):
            assert chord([add.s(1, 2), add.s(3, 4)], total.s())().get(timeout=PATIENCE) == 10
    with rig.sending(1), pytest.raises(ValueError, match="out of stock"):
        fail.delay().get(timeout=PATIENCE)


def test_events_and_remote_control_stay_untraced(rig: Rig) -> None:
    """Heartbeats, task events, ping, inspect and broadcasts, on both sides: no span and no context."""
    before = len(rig.ours)
    control, events = rig.app.control, []
    # By its name: the broker may have other workers, whose late answers would be taken for that to the next question.
    assert control.broadcast("ping", destination=[NODE], reply=True, timeout=PATIENCE)
    assert control.inspect([NODE], timeout=PATIENCE).stats()
    with rig.app.connection_for_read() as connection:

        def note(event: dict[str, Any]) -> None:
            events.append(event)
            receiver.should_stop = event["type"] == "worker-heartbeat"

        receiver = rig.app.events.Receiver(connection, handlers={"*": note})
        receiver.capture(limit=None, timeout=PATIENCE, wakeup=False)
    assert events[-1]["type"] == "worker-heartbeat"
    assert all("traceparent" not in event for event in events)
    assert len(rig.ours) == before


def test_consumers_of_the_user_in_celery_s_loop_are_traced(rig: Rig) -> None:
    """A ConsumerStep is the user's code: its message has a CONSUMER span; Celery's consumers beside it have none."""
    with ambient_span() as ambient, kombu.Connection(rig.url) as connection:
        kombu.Producer(connection).publish(
            "order", exchange="celery-orders", routing_key="celery-orders", declare=[celery_tasks.ORDERS]
        )
    wait_until(lambda: bool(list(rig.told.records("order"))), "the order")
    assert rig.call("add", 1, 1) == 2  # and the worker hands over its spans
    [order] = rig.told.records("order")
    if not rig.setup.traced:
        assert rig.ours == []
        return
    assert order["trace_id"] == f"{ambient.trace_id:032x}"
    consumer = only([span for span in rig.ours if span.kind == "CONSUMER"])
    assert consumer.name == "process celery-orders:celery-orders"
    assert consumer.trace_id == order["trace_id"]


def test_without_the_instrumentor_nothing_is_traced_until_it_is_back(rig: Rig) -> None:
    """After uninstrument() the application's publishes are its own again."""
    if not rig.makes_spans:
        pytest.skip("Celery's own instrumentation goes on, or nothing is traced at all")
    ours = len(rig.ours)
    adapter.KombuInstrumentor().uninstrument()
    try:
        assert rig.call("look")["headers"] == {}
        assert len(rig.ours) == ours
    finally:
        adapter.KombuInstrumentor().instrument()
