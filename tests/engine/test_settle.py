"""settle: the CLIENT span of an ack, nack, reject or commit."""

from __future__ import annotations

import threading

import pytest
from opentelemetry import baggage
from opentelemetry.context import get_current
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.trace import SpanKind, StatusCode, get_current_span

from queueprop import Message
from queueprop.engine.engine import Engine, engine_for
from tests.telemetry import (
    CREATION,
    ORDERS,
    TRACE,
    TRACEPARENT,
    Telemetry,
    attributes,
    ids,
    links,
    parent,
    traceparent,
)


def settle(engine: Engine, message: Message) -> None:
    with engine.settle(ORDERS, message):
        pass


def test_inside_its_processing(telemetry: Telemetry) -> None:
    """A child of the process span, CLIENT, `ack <destination>`, current while it runs."""
    engine = telemetry.engine()
    message = Message({"traceparent": TRACEPARENT}, id="m1")
    with engine.process(ORDERS, message) as process:
        before = get_current()
        with engine.settle(ORDERS, message) as span:
            assert get_current_span() is span
        assert get_current() is before
    ended = telemetry.only("ack orders")
    assert (ended.kind, parent(ended), links(ended)) == (SpanKind.CLIENT, ids(process), [])
    assert attributes(ended)["messaging.operation.type"] == "settle"
    assert attributes(ended)["messaging.message.id"] == "m1"


def test_other_operations(telemetry: Telemetry) -> None:
    """nack, reject and commit name the span."""
    with telemetry.engine().settle(ORDERS, Message({}), operation="nack"):
        pass
    assert attributes(telemetry.only("nack orders"))["messaging.operation.name"] == "nack"


def test_after_its_processing(telemetry: Telemetry) -> None:
    """An ack after the handler is still a child of the message's process span, not of what is current by then."""
    engine = telemetry.engine()
    message = Message({"traceparent": TRACEPARENT})
    with engine.process(ORDERS, message) as process:
        pass
    with telemetry.current():
        before = get_current()
        settle(engine, message)
        assert get_current() is before
    assert parent(telemetry.only("ack orders")) == ids(process)


def test_in_another_thread(telemetry: Telemetry) -> None:
    """An ack by another thread is a child of the process span; nothing stays current there."""
    engine = telemetry.engine()
    message = Message({"traceparent": TRACEPARENT})
    left: list[bool] = []

    def ack() -> None:
        before = get_current()
        settle(engine, message)
        left.append(get_current() is before)

    with engine.process(ORDERS, message) as process:
        thread = threading.Thread(target=ack)
        thread.start()
        thread.join()
    assert parent(telemetry.only("ack orders")) == ids(process)
    assert left == [True]


def test_of_a_batch(telemetry: Telemetry) -> None:
    """A message of a batch is settled under the batch's span."""
    engine = telemetry.engine()
    messages = [Message({"traceparent": TRACEPARENT}), Message({})]
    with engine.process(ORDERS, messages) as process:
        settle(engine, messages[1])
    settle(engine, messages[0])
    assert [parent(span) for span in telemetry.spans.named("ack orders")] == [ids(process)] * 2


def test_several_at_once(telemetry: Telemetry) -> None:
    """A multiple ack: a child of the last message's process span, linked to the others, with their number."""
    engine = telemetry.engine()
    messages = [Message({"traceparent": traceparent(TRACE, number)}, id=str(number)) for number in (1, 2, 3)]
    processes = []
    for message in messages:
        with engine.process(ORDERS, message) as process:
            processes.append(process)
    with engine.settle(ORDERS, messages):
        pass
    span = telemetry.only("ack orders")
    assert (parent(span), links(span)) == (ids(processes[2]), [(TRACE, 1), (TRACE, 2)])
    assert [dict(link.attributes or {}) for link in span.links] == [
        {"messaging.message.id": "1"},
        {"messaging.message.id": "2"},
    ]
    assert attributes(span)["messaging.batch.message_count"] == 3
    assert "messaging.message.id" not in attributes(span)


def test_nothing_to_settle(telemetry: Telemetry) -> None:
    """No message, no span."""
    with telemetry.engine().settle(ORDERS, []):
        pass
    assert len(telemetry.spans) == 0


def test_by_another_message_object(telemetry: Telemetry) -> None:
    """Inside a processing, a message that is not known (made anew from the delivery) belongs to it."""
    engine = telemetry.engine()
    with engine.process(ORDERS, Message({"traceparent": TRACEPARENT})) as process:
        settle(engine, Message({"traceparent": TRACEPARENT}))
    with engine.process(ORDERS, [Message({})]) as batch:
        settle(engine, Message({}))
    assert [parent(span) for span in telemetry.spans.named("ack orders")] == [ids(process), ids(batch)]


def test_without_a_process_span(telemetry: Telemetry) -> None:
    """A message that was pulled and settled by hand: its creation context is the parent, not the poller's span."""
    with telemetry.current():
        settle(telemetry.engine(), Message({"traceparent": TRACEPARENT}))
    assert parent(telemetry.only("ack orders")) == CREATION


def test_without_any_context(telemetry: Telemetry) -> None:
    """Nothing is known of the message: the current span, or none, is the parent."""
    engine = telemetry.engine()
    with telemetry.current() as ambient:
        settle(engine, Message({}))
    settle(engine, Message({"traceparent": "junk"}))
    assert [parent(span) for span in telemetry.spans.named("ack orders")] == [ids(ambient), None]


def test_untrusted(telemetry: Telemetry) -> None:
    """An untrusted creation context is continued by no span, a settle's neither."""
    engine = telemetry.engine(trust="none")
    with telemetry.current() as ambient:
        settle(engine, Message({"traceparent": TRACEPARENT}))
    assert parent(telemetry.only("ack orders")) == ids(ambient)


def test_link_mode(telemetry: Telemetry) -> None:
    """propagation="link" makes the creation context no span's parent; the process span's child it is all the same."""
    engine = telemetry.engine(propagation="link")
    message = Message({"traceparent": TRACEPARENT})
    with telemetry.current() as ambient:
        settle(engine, message)
    with engine.process(ORDERS, message) as process:
        settle(engine, message)
    assert [parent(span) for span in telemetry.spans.named("ack orders")] == [ids(ambient), ids(process)]


def test_what_is_current_stays_but_for_the_span(telemetry: Telemetry) -> None:
    """The handler's baggage is still there while the ack runs."""
    engine = telemetry.engine()
    message = Message({"traceparent": TRACEPARENT, "baggage": "user=7"})
    with engine.process(ORDERS, message), engine.settle(ORDERS, message):
        assert baggage.get_all() == {"user": "7"}


def test_it_fails(telemetry: Telemetry) -> None:
    """ERROR with its type; the same exception goes on; the process span is not touched by it."""
    engine = telemetry.engine()
    message = Message({})
    with engine.process(ORDERS, message), pytest.raises(ConnectionError), engine.settle(ORDERS, message):
        raise ConnectionError("broker gone")
    assert attributes(telemetry.only("ack orders"))["error.type"] == "ConnectionError"
    assert telemetry.only("process orders").status.status_code is StatusCode.UNSET


def test_suppressed_or_excluded(telemetry: Telemetry) -> None:
    """No span, and nothing else is current."""
    before = get_current()
    with telemetry.engine(exclude=("orders",)).settle(ORDERS, Message({"traceparent": TRACEPARENT})):
        assert get_current() is before
    with suppress_instrumentation():
        settle(telemetry.engine(), Message({}))
    assert len(telemetry.spans) == 0


def test_its_duration_is_measured(telemetry: Telemetry) -> None:
    """messaging.client.operation.duration, equal to the span's, under the operation's name."""
    with engine_for(telemetry.measured()).settle(ORDERS, Message({}), operation="commit"):
        pass
    span = telemetry.only()
    assert span.start_time is not None
    assert span.end_time is not None
    (point,) = telemetry.points("messaging.client.operation.duration")
    assert point.sum == (span.end_time - span.start_time) / 1e9
    assert point.attributes["messaging.operation.name"] == "commit"


def test_the_context_that_is_kept_for_later(telemetry: Telemetry) -> None:
    """An adapter keeps it where the message itself would be too large: of an open process the handler's own context,
    of one that is over its span, and of one that was not traced none."""
    engine = telemetry.engine()
    process = engine.process(ORDERS, Message({"traceparent": TRACEPARENT}))
    assert process.settle_context is None
    with process as span:
        assert process.settle_context is get_current()
    kept = process.settle_context
    assert kept is not None
    assert ids(get_current_span(kept)) == ids(span)
    untraced = engine.process(ORDERS, Message({"traceparent": TRACEPARENT}))
    with suppress_instrumentation():
        untraced.open()
    assert untraced.settle_context is None
