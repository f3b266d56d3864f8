"""Behaviour 25: metrics."""

from __future__ import annotations

import pytest

from integration.contract import values
from integration.contract.actions import do
from integration.contract.driver import Refusal
from integration.contract.run import Rig, Run
from integration.contract.scenario import scenario

_SENT = "messaging.client.sent.messages"
_CONSUMED = "messaging.client.consumed.messages"
_OPERATION = "messaging.client.operation.duration"
_PROCESS = "messaging.process.duration"


class Measurements:
    @scenario(25)
    def test_counters_equal_the_messages(self, rig: Rig) -> None:
        """Sent counts attempts, consumed counts deliveries; what failed carries its error.type, and nothing
        else does.
        """
        with rig.run() as run:
            handled, refusal, failed_publishes = _traffic(rig, run)
            deliveries = handled + refusal.deliveries
            assert run.total(_SENT) == handled + 1 + failed_publishes
            assert run.total(_CONSUMED) == deliveries == len(run.consumers)
            failed = {"error__type": "integration.contract.actions.HandlerError"}
            assert run.total(_PROCESS, **failed) == refusal.deliveries
            # What is pulled is counted at the pull, when nobody knows yet what becomes of it.
            is_pulled = rig.driver_class.receives(rig.column.style) and rig.column.library != "memory"
            known = 0 if is_pulled else refusal.deliveries
            assert run.total(_CONSUMED, **failed) == _with_error(run, _CONSUMED) == known
            assert _with_error(run, _SENT) == _with_error(run, _OPERATION) == failed_publishes
            assert run.points("queueprop.context.missing") == []

    @scenario(25)
    def test_durations_equal_those_of_the_spans(self, rig: Rig) -> None:
        """Each histogram has as many measurements as there are spans, in the conventions' buckets, with the
        same total.
        """
        with rig.run() as run:
            _traffic(rig, run)
            operations = [
                span
                for span in run.ours
                if span.attributes["messaging.operation.type"] in ("send", "receive")
            ]
            _assert_durations(run, _OPERATION, [span.seconds for span in operations])
            _assert_durations(run, _PROCESS, [span.seconds for span in run.consumers])

    @scenario(25)
    def test_metrics_have_low_cardinality_names_only(self, rig: Rig) -> None:
        """No message id, no trace, nothing that grows with the traffic is an attribute of a metric."""
        with rig.run() as run:
            _traffic(rig, run)
            assert run.told.points
            for point in run.told.points:
                assert set(point.attributes) <= values.LOW_CARDINALITY, point
                assert point.attributes["messaging.system"] == run.driver.system


def _traffic(rig: Rig, run: Run) -> tuple[int, Refusal, int]:
    """Messages that are handled (their number), one that is refused, and publishes that fail (their number)."""
    bodies = rig.thinned(("one", "two", "three"), 1)
    for body in bodies:
        run.driver.publish(body)
    # What this process has measured it must have handed over before workers fork: they inherit the rest.
    run.told.flush()
    run.driver.consume(do("observe"), len(bodies))
    refusal = run.driver.refusals[0]
    run.driver.publish("refused", refusal=refusal.name)
    run.told.flush()
    run.driver.consume(do("fail"), refusal.deliveries)
    failing = run.driver.failing()
    for failure in failing:
        with pytest.raises(Exception):  # noqa: B017, PT011 -- which one is scenario 10's matter
            failure.publish()
    return len(bodies), refusal, len(failing)


def _with_error(run: Run, metric: str) -> float:
    return sum(point.count or point.value for point in run.points(metric) if "error.type" in point.attributes)


def _assert_durations(run: Run, metric: str, seconds: list[float]) -> None:
    points = run.points(metric)
    assert sum(point.count for point in points) == len(seconds)
    assert sum(point.value for point in points) == pytest.approx(sum(seconds), rel=1e-6, abs=1e-7)
    assert {(point.unit, *point.bounds) for point in points} == {("s", *values.BUCKETS)}
