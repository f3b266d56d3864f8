"""Behaviours when something fails: 9, 10, 11."""

from __future__ import annotations

import re
from typing import NamedTuple

from opentelemetry import trace

from integration.contract import values
from integration.contract.actions import do
from integration.contract.driver import Counts, Driver
from integration.contract.run import Rig, Run, only
from integration.contract.scenario import scenario
from integration.contract.telemetry import LibraryError, SpanRecord, ambient_span

_HANDLER_ERROR = "integration.contract.actions.HandlerError"


class Failures:
    @scenario(9)
    def test_an_exception_of_the_handler_is_on_the_span(self, rig: Rig) -> None:
        """ERROR with the exception's text, error.type with its full name, and the exception recorded."""
        refusal = rig.driver_class.refusals[0]
        with rig.run() as run:
            run.driver.publish("hello", refusal=refusal.name)
            run.driver.consume(do("fail", text="no stock"), refusal.deliveries)
            assert len(run.consumers) == refusal.deliveries
            for span in run.consumers:
                _assert_failed(span, _HANDLER_ERROR, "no stock")
            assert run.producer.status == "UNSET"

    @scenario(9)
    def test_the_library_answers_a_failure_as_without_us(self, rig: Rig) -> None:
        """For every way to refuse: the library gets the very same exception, and as many messages are left,
        unacked, dead.
        """
        for refusal in rig.thinned(rig.driver_class.refusals, 1):
            outcomes = []
            for traced in (False, True):
                with rig.run(traced=traced) as run:
                    run.driver.publish("hello", refusal=refusal.name)
                    run.driver.consume(do("fail"), refusal.deliveries)
                    outcomes.append(_outcome(run))
                    raised = [record["marker"] for record in run.told.records("raised")]
                    assert [error.marker for error in run.told.library_errors] == raised, refusal.name
                    assert len(run.consumers) == (refusal.deliveries if traced else 0), refusal.name
                    assert run.complaints() == [], refusal.name
            assert outcomes[0] == outcomes[1], f"{refusal.name}: plain {outcomes[0]}, traced {outcomes[1]}"

    @scenario(10)
    def test_a_publish_that_fails_is_an_error(self, rig: Rig) -> None:
        """Each way in which a publish can fail: the PRODUCER span is an ERROR, and the caller gets the same
        exception.
        """
        kinds = _kinds_of_failure(rig)
        assert kinds, "every library has a publish that fails"
        for number, kind in enumerate(kinds):
            with rig.run(traced=False) as bare:
                expected = _raised(bare.driver, number)
            with rig.run() as run:
                with ambient_span() as ambient:
                    raised = _raised(run.driver, number)
                assert raised.description == expected.description, kind
                assert run.producer.trace_id == values.ids(ambient)[0], kind
                _assert_failed(run.producer, _full_name(raised.error), str(raised.error))
                assert trace.get_current_span() is trace.INVALID_SPAN, kind

    @scenario(11, "retry")
    def test_every_retry_is_an_attempt_in_the_first_trace(self, rig: Rig) -> None:
        """Three attempts: three CONSUMER spans, children of the one PRODUCER span, numbered where the library
        knows.
        """
        with rig.run() as run:
            with ambient_span():
                run.driver.publish("hello", retries=2)
            run.driver.consume(do("fail", times=2), 3)
            _assert_attempts(run, 3)

    @scenario(11, "redelivery")
    def test_a_redelivery_is_an_attempt_in_the_first_trace(self, rig: Rig) -> None:
        """Given back to the queue and delivered again: two CONSUMER spans, children of the one PRODUCER span."""
        with rig.run() as run:
            with ambient_span():
                run.driver.publish("hello", refusal="requeue")
            run.driver.consume(do("fail", times=1), 2)
            _assert_attempts(run, 2)


def _assert_attempts(run: Run, count: int) -> None:
    producer, consumers = run.producer, run.consumers
    assert len(consumers) == len(run.seen) == count
    assert {(span.trace_id, span.parent_id) for span in consumers} == {producer.context}
    assert [span.status for span in consumers] == ["ERROR"] * (count - 1) + ["UNSET"]
    for span in consumers:
        assert producer.context in [link.context for link in span.links]
    attempts = [span.attributes.get("queueprop.message.delivery_attempt") for span in consumers]
    assert attempts == (list(range(1, count + 1)) if run.driver.tells_attempt else [None] * count)
    assert run.driver.counts() == Counts()


def _assert_failed(span: SpanRecord, error_type: str, text: str) -> None:
    assert (span.status, span.description) == ("ERROR", text)
    assert span.attributes["error.type"] == error_type
    name, attributes = only(list(span.events))
    assert name == "exception"
    assert attributes["exception.type"] == error_type
    assert attributes["exception.message"] == text
    assert text in attributes["exception.stacktrace"]


def _outcome(run: Run) -> tuple[Counts, list[LibraryError]]:
    errors = [LibraryError(error.type, error.text, None, error.context) for error in run.told.library_errors]
    return run.driver.counts(), errors


def _kinds_of_failure(rig: Rig) -> list[str]:
    with rig.run(traced=False) as run:
        return [failing.name for failing in run.driver.failing()]


class _Raised(NamedTuple):
    error: Exception
    description: tuple[type, str, type, type]
    """Its type and text, and the types of its cause and context."""


def _raised(driver: Driver, number: int) -> _Raised:
    failing = driver.failing()[number]
    try:
        failing.publish()
    except Exception as error:
        # At once: aiormq stops its own tasks with the caller's exception, which gives it another cause later.
        causes = type(error.__cause__), type(error.__context__)
        return _Raised(error, (type(error), _text(error, driver), *causes))
    raise AssertionError(f"{failing.name} did not fail")


def _text(error: Exception, driver: Driver) -> str:
    # Older releases of aiormq tell an object's address.
    return re.sub(r"0x[0-9a-f]+", "ADDRESS", str(error)).replace(driver.queue, "QUEUE")


def _full_name(error: Exception) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
