"""receive: the CLIENT span of a pull call that returned messages."""

from __future__ import annotations

import asyncio
import concurrent.futures
import queue
import time

import pytest
from opentelemetry.context import get_current
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.trace import SpanKind, StatusCode, get_current_span

from queueprop import Message
from queueprop.engine.engine import engine_for
from tests.telemetry import (
    CREATION,
    ORDERS,
    OTHER_TRACE,
    TRACEPARENT,
    Telemetry,
    attributes,
    ids,
    links,
    parent,
    traceparent,
)


def test_a_pull_that_returned_a_message(telemetry: Telemetry) -> None:
    """CLIENT, `poll <destination>`, linked to the creation context, which is not its parent; the caller's span is."""
    with telemetry.current() as ambient:
        receive = telemetry.engine().receive(ORDERS)
        receive.open()
        receive.add(Message({"traceparent": TRACEPARENT}, id="m1"))
        receive.close()
    span = telemetry.only("poll orders")
    assert (span.kind, parent(span), links(span)) == (SpanKind.CLIENT, ids(ambient), [CREATION])
    assert attributes(span) == {
        "messaging.system": "my-queue",
        "messaging.operation.name": "poll",
        "messaging.operation.type": "receive",
        "messaging.destination.name": "orders",
        "messaging.message.id": "m1",
    }


def test_nothing_of_it_is_current(telemetry: Telemetry) -> None:
    """A pull opens no scope: what was current stays current, during the wait and after it."""
    with telemetry.current():
        before = get_current()
        receive = telemetry.engine().receive(ORDERS)
        receive.open()
        assert get_current() is before
        receive.add(Message({"traceparent": TRACEPARENT}))
        receive.close()
        assert get_current() is before


def test_it_lasts_as_long_as_the_call(telemetry: Telemetry) -> None:
    """Though it is made at the end, its start is that of the call."""
    receive = telemetry.engine().receive(ORDERS, operation="getone")
    before = time.time_ns()
    receive.open()
    time.sleep(0.05)
    receive.add(Message({}))
    receive.close()
    span = telemetry.only("getone orders")
    assert span.start_time is not None
    assert span.end_time is not None
    assert before <= span.start_time
    assert span.end_time - span.start_time >= 45_000_000


def test_made_after_the_fact(telemetry: Telemetry) -> None:
    """`started_at` is the span's start."""
    started_at = time.time_ns() - 5_000_000_000
    receive = telemetry.engine().receive(ORDERS, started_at=started_at)
    receive.open()
    receive.add(Message({}))
    receive.close()
    assert telemetry.only().start_time == started_at


def test_an_empty_poll_makes_no_span(telemetry: Telemetry) -> None:
    """The call returned nothing: no span, no measurement."""
    with engine_for(telemetry.measured()).receive(ORDERS):
        pass
    assert len(telemetry.spans) == 0
    assert telemetry.points("messaging.client.operation.duration") == []


@pytest.mark.parametrize(
    "error",
    [
        queue.Empty(),
        asyncio.QueueEmpty(),
        TimeoutError(),
        asyncio.TimeoutError(),
        concurrent.futures.TimeoutError(),
        asyncio.CancelledError(),
        GeneratorExit(),
    ],
    ids=lambda error: type(error).__module__ + "." + type(error).__name__,
)
def test_an_empty_poll_that_raises_makes_no_span(telemetry: Telemetry, error: BaseException) -> None:
    """Neither does one that says so by an exception, or that was given up; the exception goes on."""
    with pytest.raises(type(error)) as raised, telemetry.engine().receive(ORDERS):
        raise error
    assert raised.value is error
    assert len(telemetry.spans) == 0


def test_a_pull_that_fails(telemetry: Telemetry) -> None:
    """Another exception is a failure: an ERROR span without links, also though no message came."""
    with (
        pytest.raises(ConnectionError),
        telemetry.engine().receive(ORDERS),
    ):
        raise ConnectionError("broker gone")
    span = telemetry.only("poll orders")
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "broker gone")
    assert attributes(span)["error.type"] == "ConnectionError"
    assert links(span) == []


def test_a_pull_that_fails_after_some_messages(telemetry: Telemetry) -> None:
    """What had been returned is linked; the error is told."""
    receive = telemetry.engine().receive(ORDERS, batch=True)
    receive.open()
    receive.add(Message({"traceparent": TRACEPARENT}))
    receive.close(ConnectionError("broker gone"))
    span = telemetry.only()
    assert (span.status.status_code, links(span)) == (StatusCode.ERROR, [CREATION])


def test_a_timeout_after_some_messages(telemetry: Telemetry) -> None:
    """Collecting until the time is up is no failure."""
    receive = telemetry.engine().receive(ORDERS, batch=True)
    receive.open()
    receive.add(Message({"traceparent": TRACEPARENT}))
    receive.close(TimeoutError())
    assert telemetry.only().status.status_code is StatusCode.UNSET


def test_several_messages(telemetry: Telemetry) -> None:
    """A batch call: every creation context is linked, also of other traces, with what differs; the number is told."""
    receive = telemetry.engine().receive(ORDERS, batch=True)
    receive.open()
    receive.add(Message({"traceparent": TRACEPARENT}, id="m1"))
    receive.add(Message({"traceparent": traceparent(OTHER_TRACE, 2)}, id="m2"))
    receive.add(Message({}, id="m3"))
    receive.close()
    span = telemetry.only()
    assert links(span) == [CREATION, (OTHER_TRACE, 2)]
    assert [dict(link.attributes or {}) for link in span.links] == [
        {"messaging.message.id": "m1"},
        {"messaging.message.id": "m2"},
    ]
    assert attributes(span)["messaging.batch.message_count"] == 3
    assert "messaging.message.id" not in attributes(span)


def test_a_batch_call_that_returned_one(telemetry: Telemetry) -> None:
    """It is a batch call all the same: the number is 1."""
    receive = telemetry.engine().receive(ORDERS, batch=True)
    receive.open()
    receive.add(Message({}))
    receive.close()
    assert attributes(telemetry.only())["messaging.batch.message_count"] == 1


def test_more_than_one_message_is_a_batch(telemetry: Telemetry) -> None:
    """Nobody said that it would be several: the number is told then, and no single message's id is the span's."""
    receive = telemetry.engine().receive(ORDERS)
    receive.open()
    receive.add(Message({}, id="m1"))
    receive.add(Message({}, id="m2"))
    receive.close()
    found = attributes(telemetry.only())
    assert found["messaging.batch.message_count"] == 2
    assert "messaging.message.id" not in found


def test_its_duration_is_measured(telemetry: Telemetry) -> None:
    """messaging.client.operation.duration has the span's duration; a receive alone consumes nothing."""
    receive = engine_for(telemetry.measured()).receive(ORDERS)
    receive.open()
    receive.add(Message({}))
    receive.close()
    span = telemetry.only()
    assert span.start_time is not None
    assert span.end_time is not None
    (point,) = telemetry.points("messaging.client.operation.duration")
    assert point.sum == (span.end_time - span.start_time) / 1e9
    assert telemetry.points("messaging.process.duration") == []


def test_suppressed_or_excluded(telemetry: Telemetry) -> None:
    """No span, as for every operation."""
    with suppress_instrumentation():
        receive = telemetry.engine().receive(ORDERS)
        receive.open()
        receive.add(Message({}))
        receive.close()
    receive = telemetry.engine(exclude=("orders",)).receive(ORDERS)
    receive.open()
    receive.add(Message({}))
    receive.close()
    assert len(telemetry.spans) == 0


def test_broken_contexts_are_not_linked(telemetry: Telemetry) -> None:
    """A message with a junk traceparent is pulled like any other, without a link."""
    receive = telemetry.engine().receive(ORDERS)
    receive.open()
    receive.add(Message({"traceparent": "junk"}))
    receive.close()
    assert links(telemetry.only()) == []
    assert not get_current_span().is_recording()
