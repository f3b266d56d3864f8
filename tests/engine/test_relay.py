"""What a child measures and its parent records: kept, packed, read as input, recorded once."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.metrics import MeterProvider
from opentelemetry.sdk.metrics import MeterProvider as SdkMeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from queueprop import Message, guard
from queueprop.engine import metrics
from queueprop.engine.engine import Engine, engine_for
from queueprop.engine.metrics import OTHER, Instruments
from queueprop.engine.relay import Relay, record, records_for_children
from tests.telemetry import ORDERS, TRACEPARENT, Telemetry

SENT = "messaging.client.sent.messages"
CLIENT_DURATION = "messaging.client.operation.duration"
PROCESS_DURATION = "messaging.process.duration"
ENOUGH = 100_000
NAMES = {
    "messaging.system": "my-queue",
    "messaging.operation.name": "publish",
    "messaging.destination.name": "orders",
}


@pytest.fixture(autouse=True)
def _at_home() -> Iterator[None]:
    yield
    metrics.measure_here()


@pytest.fixture
def engine(telemetry: Telemetry) -> Engine:
    return engine_for(telemetry.measured())


def publish(engine: Engine, times: int = 1) -> None:
    for _ in range(times):
        with engine.send(ORDERS, Message({})):
            pass


def packed(*entries: Any) -> bytes:
    return json.dumps(entries).encode()


def test_what_a_child_measures_its_parent_records(telemetry: Telemetry, engine: Engine) -> None:
    """Nothing of it in the child; in the parent the same counts, durations and attributes as if it had been there."""
    publish(engine)
    (before,) = telemetry.points(CLIENT_DURATION)
    kept = Relay(engine.instruments())
    publish(engine, 2)
    (meanwhile,) = telemetry.points(CLIENT_DURATION)
    assert meanwhile.count == before.count == 1
    record(engine.instruments(), kept.end(ENOUGH), None)
    (duration,) = telemetry.points(CLIENT_DURATION)
    (sent,) = telemetry.points(SENT)
    assert (duration.count, sent.value) == (3, 3)
    assert dict(duration.attributes) == {**NAMES, "messaging.operation.type": "send"}
    assert dict(sent.attributes) == NAMES
    assert duration.sum > before.sum


def test_at_its_end_a_child_measures_by_itself_again(telemetry: Telemetry, engine: Engine) -> None:
    """What comes later is not lost without a trace."""
    Relay(engine.instruments()).end(ENOUGH)
    publish(engine)
    assert [point.value for point in telemetry.points(SENT)] == [1]


def test_what_finds_no_room_the_child_records_itself(telemetry: Telemetry, engine: Engine) -> None:
    """Each measurement is in one of the two, whatever the room is."""
    for room in (0, 2, 200, 320, ENOUGH):
        kept = Relay(engine.instruments())
        publish(engine)
        data = kept.end(room)
        assert len(data) <= max(room, len("[]"))
        record(engine.instruments(), data, None)
    assert [point.value for point in telemetry.points(SENT)] == [5]
    assert [point.count for point in telemetry.points(CLIENT_DURATION)] == [5]


def test_instruments_that_are_made_meanwhile_are_kept_as_well(telemetry: Telemetry, engine: Engine) -> None:
    """Another adapter's, with settings of its own, over the same provider; those of another provider are not."""
    kept = Relay(engine.instruments())
    publish(engine_for(telemetry.measured(propagation="link")))
    reader = InMemoryMetricReader()
    others = SdkMeterProvider([reader], shutdown_on_exit=False)
    publish(engine_for(telemetry.measured(meter_provider=others)))
    assert reader.get_metrics_data() is not None
    assert telemetry.points(SENT) == []
    record(engine.instruments(), kept.end(ENOUGH), None)
    assert [point.value for point in telemetry.points(SENT)] == [1]


def test_a_child_of_the_child_measures_by_itself(telemetry: Telemetry, engine: Engine) -> None:
    """What is kept is the child's alone."""
    kept = Relay(engine.instruments())
    pid = os.fork()
    if pid == 0:
        publish(engine)
        os._exit(len(telemetry.points(SENT)))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    assert kept.end(ENOUGH) == b"[]"


def test_a_message_s_own_durations_lead_to_its_trace(telemetry: Telemetry, engine: Engine) -> None:
    """Exemplars: those of the message that the child handled."""
    kept = Relay(engine.instruments())
    process = engine.process(ORDERS, Message({"traceparent": TRACEPARENT}))
    with process:
        publish(engine)
    record(engine.instruments(), kept.end(ENOUGH), process.settle_context)
    [point] = telemetry.points(PROCESS_DURATION)
    assert [f"{it.trace_id:032x}" for it in point.exemplars] == [TRACEPARENT[3:35]]
    [point] = telemetry.points(CLIENT_DURATION)
    assert list(point.exemplars) == []


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"{}",
        b"7",
        b"[" * 200_000,
        b"[" + b"9" * 5000 + b"]",
        packed(7),
        packed(["sent", NAMES]),
        packed(["enabled", NAMES, [1]]),
        packed([["sent"], NAMES, [1]]),
        packed(["sent", NAMES, 1]),
        packed(["sent", NAMES, [-1]]),
        packed(["sent", NAMES, [0.5]]),
        packed(["sent", NAMES, [True]]),
        packed(["sent", NAMES, ["1"]]),
        packed(["sent", NAMES, [1 << 60]]),
        packed(["process_duration", NAMES, [float("nan")]]),
        packed(["process_duration", NAMES, [float("inf")]]),
        packed(["sent", [], [1]]),
        packed(["sent", {**NAMES, "user.id": "7"}, [1]]),
        packed(["sent", {**NAMES, "server.port": "80"}, [1]]),
        packed(["sent", {**NAMES, "error.type": ["a"]}, [1]]),
    ],
)
def test_what_is_no_measurement_is_not_recorded(telemetry: Telemetry, engine: Engine, data: bytes) -> None:
    """It comes from another process, in which a job may have written anything. What stands beside it is."""
    record(engine.instruments(), data, None)
    assert telemetry.points(SENT) == telemetry.points(PROCESS_DURATION) == []
    if data.endswith(b"]]") and data.startswith(b"["):
        record(engine.instruments(), data[:-1] + b"," + packed(["sent", NAMES, [1]])[1:], None)
        assert [dict(point.attributes) for point in telemetry.points(SENT)] == [NAMES]


def test_a_text_is_bounded(telemetry: Telemetry, engine: Engine) -> None:
    """As every text from outside."""
    record(engine.instruments(), packed(["sent", {**NAMES, "error.type": "x" * 5000}, [1]]), None)
    [point] = telemetry.points(SENT)
    assert len(point.attributes["error.type"]) == 1024


def test_children_have_no_more_destinations_than_a_process(telemetry: Telemetry) -> None:
    """Settings(destination_limit=...) holds for all of them together: each begins with what its parent knows."""
    engine = engine_for(telemetry.measured(destination_limit=2))
    for number in range(4):
        attributes = {**NAMES, "messaging.destination.name": f"reply-{number}", "error.type": "ValueError"}
        record(engine.instruments(), packed(["sent", attributes, [1]]), None)
        record(engine.instruments(), packed(["sent", attributes, [1]]), None)
    found = {point.attributes["messaging.destination.name"]: point for point in telemetry.points(SENT)}
    assert {name: point.value for name, point in found.items()} == {"reply-0": 2, "reply-1": 2, OTHER: 4}
    assert found[OTHER].attributes["error.type"] == "ValueError"


class Keeping(SdkMeterProvider):
    """A provider with another one beside it."""

    def __init__(self, beside: Callable[[], MeterProvider | None]) -> None:
        super().__init__(shutdown_on_exit=False)
        self.not_inherited = beside


def test_a_parent_measures_beside_what_a_fork_copies(telemetry: Telemetry) -> None:
    """Its own measurements as well: one set of series. A child that is forked has none of it, and asks anew."""
    asked: list[int] = []

    def beside() -> MeterProvider:
        asked.append(1)
        return telemetry.meter_provider

    provider = Keeping(beside)
    engine = engine_for(telemetry.measured(meter_provider=provider))
    assert records_for_children(engine.instruments())
    assert records_for_children(engine.instruments())
    assert asked == [1]
    publish(engine)
    assert [point.value for point in telemetry.points(SENT)] == [1]
    pid = os.fork()
    if pid == 0:
        publish(engine)
        os._exit(int(telemetry.points(SENT)[0].value) + 2 * metrics.is_measured_elsewhere(provider))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


@pytest.mark.parametrize("given", [SdkMeterProvider(shutdown_on_exit=False), Keeping(lambda: None)])
def test_who_has_no_such_provider_is_as_before(telemetry: Telemetry, given: MeterProvider) -> None:
    """An SDK's own, and one that says that there is none."""
    instruments = engine_for(telemetry.measured(meter_provider=given)).instruments()
    assert not records_for_children(instruments)
    assert not metrics.is_measured_elsewhere(given)


def test_without_metrics_nothing_is_asked_for(telemetry: Telemetry) -> None:
    """A no-op provider."""
    assert not records_for_children(engine_for(telemetry.settings()).instruments())


def test_a_provider_that_fails_is_told_of(telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker measures as before."""
    told: list[str] = []
    monkeypatch.setattr(guard, "fault", lambda doing, error: told.append(doing))

    def broken() -> MeterProvider:
        raise OSError("on purpose")

    instruments = engine_for(telemetry.measured(meter_provider=Keeping(broken))).instruments()
    assert not records_for_children(instruments)
    assert told == ["preparing the metrics of child processes"]


def test_instruments_that_nobody_has_any_more_are_forgotten() -> None:
    """Each Settings has some of its own, and a program may make one after another."""
    Instruments(SdkMeterProvider(shutdown_on_exit=False), "1")
    gc.collect()
    before = len(metrics._all)
    kept = Instruments(SdkMeterProvider(shutdown_on_exit=False), "1")
    assert len(metrics._all) == before + 1
    del kept
    gc.collect()
    assert len(metrics._all) == before


def test_a_relay_has_every_instrument() -> None:
    """One that is missed would be recorded in the child as before, and inherited."""
    instruments = Instruments(SdkMeterProvider(shutdown_on_exit=False), "1")
    assert set(instruments._own) == {*metrics.COUNTERS, *metrics.HISTOGRAMS}


def test_a_system_that_cannot_fork_has_no_hook_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows."""
    monkeypatch.delattr(os, "register_at_fork")
    specification = importlib.util.spec_from_file_location("without_fork", metrics.__file__)
    assert specification is not None
    assert specification.loader is not None
    specification.loader.exec_module(importlib.util.module_from_spec(specification))
