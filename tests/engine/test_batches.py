"""process of a batch: one CONSUMER span, a link for each message."""

from __future__ import annotations

import time
from typing import Any

import pytest
from opentelemetry import baggage
from opentelemetry.context import attach, detach, get_current
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, StatusCode, get_current_span

from queueprop import Destination, Message
from queueprop.engine.engine import engine_for
from queueprop.testing import assert_no_orphans
from tests.telemetry import (
    CREATION,
    ORDERS,
    OTHER_TRACE,
    TRACE,
    TRACEPARENT,
    Telemetry,
    attributes,
    baggage_of_ours,
    current_ids,
    ids,
    is_since,
    links,
    parent,
    traceparent,
)


def batch(*contexts: tuple[int, int]) -> list[Message]:
    """Messages with these creation contexts."""
    return [Message({"traceparent": traceparent(*context)}) for context in contexts]


def test_one_span_a_link_for_each_message(telemetry: Telemetry) -> None:
    """Messages of one trace: the span is in it, a child of the first, linked to all, with their number."""
    with telemetry.engine().process(ORDERS, batch((TRACE, 1), (TRACE, 2), (TRACE, 3))) as current:
        assert get_current_span() is current
    span = telemetry.only()
    assert (span.name, span.kind) == ("process orders", SpanKind.CONSUMER)
    assert parent(span) == (TRACE, 1)
    assert links(span) == [(TRACE, 1), (TRACE, 2), (TRACE, 3)]
    assert attributes(span)["messaging.batch.message_count"] == 3


def test_traces_that_differ(telemetry: Telemetry) -> None:
    """Messages of several traces: a root of its own that links to each of them."""
    with telemetry.engine().process(ORDERS, batch((TRACE, 1), (OTHER_TRACE, 2))):
        pass
    span = telemetry.only()
    assert (parent(span), links(span)) == (None, [(TRACE, 1), (OTHER_TRACE, 2)])
    assert_no_orphans(telemetry.spans)


def test_messages_without_a_context(telemetry: Telemetry) -> None:
    """They have no link; the others' trace is continued."""
    messages = [Message({}), *batch((TRACE, 1)), Message({"traceparent": "junk"})]
    with telemetry.engine().process(ORDERS, messages):
        pass
    span = telemetry.only()
    assert (parent(span), links(span)) == ((TRACE, 1), [(TRACE, 1)])
    assert attributes(span)["messaging.batch.message_count"] == 3


def test_no_message_has_a_context(telemetry: Telemetry) -> None:
    """A new root; the ambient span is linked."""
    with telemetry.current() as ambient, telemetry.engine().process(ORDERS, [Message({}), Message(None)]):
        pass
    span = telemetry.only("process orders")
    assert (parent(span), links(span)) == (None, [ids(ambient)])


def test_the_ambient_span_is_linked_last(telemetry: Telemetry) -> None:
    """A poller's span is linked beside the messages, and is not the parent."""
    with telemetry.current() as ambient, telemetry.engine().process(ORDERS, batch((TRACE, 1))):
        pass
    span = telemetry.only("process orders")
    assert (parent(span), links(span)) == ((TRACE, 1), [(TRACE, 1), ids(ambient)])


def test_link_mode(telemetry: Telemetry) -> None:
    """propagation="link": the ambient span is the parent, or none; all creation contexts are linked."""
    engine = telemetry.engine(propagation="link")
    with telemetry.current() as ambient, engine.process(ORDERS, batch((TRACE, 1), (TRACE, 2))):
        pass
    span = telemetry.only("process orders")
    assert (parent(span), links(span)) == (ids(ambient), [(TRACE, 1), (TRACE, 2)])
    telemetry.spans.clear()
    with engine.process(ORDERS, batch((TRACE, 1))):
        pass
    assert parent(telemetry.only()) is None


def test_one_untrusted_message(telemetry: Telemetry) -> None:
    """A batch with an untrusted message in it continues no trace, and says why; it links to all."""

    def trust(destination: Destination, message: Message) -> bool:
        return message.id != "bad"

    good, bad = batch((TRACE, 1), (TRACE, 2))
    bad.id = "bad"
    with telemetry.engine(trust=trust).process(ORDERS, [good, bad]):
        pass
    span = telemetry.only()
    assert (parent(span), links(span)) == (None, [(TRACE, 1), (TRACE, 2)])
    assert attributes(span)["queueprop.context.reason"] == "untrusted"


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ([{}, {}], "missing"),
        ([{}, {"traceparent": "junk"}], "malformed"),
        ([{}, {"traceparent": f"00-{TRACE:032x}-{1:016x}-01"}], None),
    ],
)
def test_reason(telemetry: Telemetry, headers: list[dict[str, str]], reason: str | None) -> None:
    """Where no message has a context, the span says so; one that has one makes it no orphan."""
    with telemetry.engine().process(ORDERS, list(map(Message, headers))):
        pass
    assert attributes(telemetry.only()).get("queueprop.context.reason") == reason


def test_what_differs_is_on_the_links(telemetry: Telemetry) -> None:
    """Ids and attributes of one message stand on its link, not on the span."""
    first, second = batch((TRACE, 1), (OTHER_TRACE, 2))
    first.id, first.attributes = "m1", {"messaging.kafka.offset": 7}
    with telemetry.engine().process(ORDERS, [first, second]):
        pass
    span = telemetry.only()
    assert [dict(link.attributes or {}) for link in span.links] == [
        {"messaging.message.id": "m1", "messaging.kafka.offset": 7},
        {},
    ]
    assert "messaging.message.id" not in attributes(span)


def test_an_empty_batch_makes_no_span(telemetry: Telemetry) -> None:
    """Nothing was delivered: no CONSUMER span, which could only be an orphan; what is current stays."""
    with telemetry.current():
        before = get_current()
        with telemetry.engine().process(ORDERS, []) as span:
            assert get_current() is before
            assert not span.is_recording() or span is get_current_span()
    assert telemetry.only().name == "ambient"


def test_baggage_of_the_poller_stays_outside(telemetry: Telemetry) -> None:
    """The baggage that was current is no message's; a batch has none of its own, since its messages may differ."""
    with baggage_of_ours(mine="1"), telemetry.engine().process(ORDERS, batch((TRACE, 1), (OTHER_TRACE, 2))):
        assert baggage.get_all() == {}


def test_handled_one_by_one_inside(telemetry: Telemetry) -> None:
    """Inside a batch each message may have a process span of its own: in its own trace, the batch span linked."""
    engine = telemetry.engine()
    messages = batch((TRACE, 1), (OTHER_TRACE, 2))
    with engine.process(ORDERS, messages) as whole:
        for message in messages:
            with engine.process(ORDERS, message):
                pass
        assert get_current_span() is whole
    one, two = telemetry.spans[0], telemetry.spans[1]
    assert (parent(one), links(one)) == ((TRACE, 1), [(TRACE, 1), ids(whole)])
    assert (parent(two), links(two)) == ((OTHER_TRACE, 2), [(OTHER_TRACE, 2), ids(whole)])


def test_the_hook_is_run_for_each_message(telemetry: Telemetry) -> None:
    """consume_hook is given the batch's span with each native message in turn."""
    seen: list[tuple[Span, object]] = []
    engine = telemetry.engine(consume_hook=lambda span, message: seen.append((span, message)))
    with engine.process(ORDERS, [Message({}, native="a"), Message({}, native="b")]) as span:
        assert seen == [(span, "a"), (span, "b")]


def test_the_hook_is_not_run_for_an_unrecorded_batch(telemetry: Telemetry) -> None:
    """Sampled out: no hook."""
    called: list[object] = []
    engine = telemetry.engine(
        tracer_provider=TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False),
        consume_hook=lambda span, message: called.append(message),
    )
    with engine.process(ORDERS, batch((TRACE, 1))):
        pass
    assert called == []


def test_excluded(telemetry: Telemetry) -> None:
    """No span; neither the poller's span nor its baggage is current for the messages."""
    with telemetry.current(), baggage_of_ours(mine="1"):
        before = get_current()
        with telemetry.engine(exclude=("orders",)).process(
            ORDERS, batch((TRACE, 1), (OTHER_TRACE, 2))
        ) as span:
            assert span is INVALID_SPAN
            assert current_ids() is None
            assert baggage.get_all() == {}
        assert get_current() is before
    assert telemetry.only().name == "ambient"


def test_excluded_of_one_trace(telemetry: Telemetry) -> None:
    """Without a span, the context of messages of one trace still passes, as it would with one."""
    with telemetry.engine(exclude=("orders",)).process(ORDERS, batch((TRACE, 1), (TRACE, 2))):
        assert current_ids() == (TRACE, 1)


def test_it_fails_as_a_whole(telemetry: Telemetry) -> None:
    """The handler's exception is the span's, and goes on."""
    error = ValueError("bad batch")
    with (
        pytest.raises(ValueError, match="bad batch") as raised,
        telemetry.engine().process(ORDERS, batch((TRACE, 1))),
    ):
        raise error
    assert raised.value is error
    assert telemetry.only().status.status_code is StatusCode.ERROR


def test_made_after_the_fact(telemetry: Telemetry) -> None:
    """`started_at` is the start of a batch's span, too."""
    started_at = time.time_ns() - 5_000_000_000
    with telemetry.engine().process(ORDERS, batch((TRACE, 1)), started_at=started_at):
        pass
    assert telemetry.only().start_time == started_at


class TestMeasurements:
    """A batch is counted by its messages, once."""

    def test_counts(self, telemetry: Telemetry) -> None:
        """consumed: a message each; context.missing: by reason; queue_time: a record for each send time; one
        duration, the span's."""
        began = time.time()
        messages: list[Any] = [
            Message({"traceparent": TRACEPARENT}, sent_at=began - 3),
            Message({}),
            Message({"traceparent": "junk"}),
        ]
        with engine_for(telemetry.measured()).process(ORDERS, messages):
            pass
        span = telemetry.only()
        assert span.start_time is not None
        assert span.end_time is not None
        (duration,) = telemetry.points("messaging.process.duration")
        assert (duration.count, duration.sum) == (1, (span.end_time - span.start_time) / 1e9)
        assert [point.value for point in telemetry.points("messaging.client.consumed.messages")] == [3]
        missing = telemetry.points("queueprop.context.missing")
        assert {point.attributes["queueprop.reason"]: point.value for point in missing} == {
            "missing": 1,
            "malformed": 1,
        }
        (waited,) = telemetry.points("queueprop.message.queue_time")
        assert waited.count == 1
        assert is_since(began, 3, waited.sum)

    def test_what_is_handled_inside_is_not_counted_again(self, telemetry: Telemetry) -> None:
        """Per-message spans inside a batch: a duration each, but the delivery was counted with the batch."""
        engine = engine_for(telemetry.measured())
        messages = [Message({}, sent_at=time.time()), Message({}, sent_at=time.time())]
        with engine.process(ORDERS, messages):
            for message in messages:
                with engine.process(ORDERS, message):
                    pass
        assert [point.value for point in telemetry.points("messaging.client.consumed.messages")] == [2]
        assert [point.value for point in telemetry.points("queueprop.context.missing")] == [2]
        assert [point.count for point in telemetry.points("queueprop.message.queue_time")] == [2]
        assert [point.count for point in telemetry.points("messaging.process.duration")] == [3]

    def test_what_is_of_another_destination_is_no_part_of_it(self, telemetry: Telemetry) -> None:
        """A reply that is waited for in the body of a batch is a delivery of its own."""
        engine = engine_for(telemetry.measured())
        replies = Destination(ORDERS.system, "replies")
        with engine.process(ORDERS, [Message({})]), engine.process(replies, Message({}, sent_at=time.time())):
            pass
        for metric in ("messaging.client.consumed.messages", "queueprop.context.missing"):
            found = {it.attributes["messaging.destination.name"]: it.value for it in telemetry.points(metric)}
            assert found == {"orders": 1, "replies": 1}
        assert [point.count for point in telemetry.points("queueprop.message.queue_time")] == [1]

    def test_a_batch_of_several_destinations(self, telemetry: Telemetry) -> None:
        """It has no name, and what is handled inside it of whichever is counted with it."""
        engine = engine_for(telemetry.measured())
        with engine.process(Destination(ORDERS.system), [Message({})]), engine.process(ORDERS, Message({})):
            pass
        assert [point.value for point in telemetry.points("messaging.client.consumed.messages")] == [1]

    def test_after_the_batch_deliveries_count_again(self, telemetry: Telemetry) -> None:
        """A batch that is closed no longer counts for what comes after it."""
        engine = engine_for(telemetry.measured())
        whole = engine.process(ORDERS, batch(CREATION))
        whole.open()
        inside = get_current()
        whole.close()
        token = attach(inside)
        with engine.process(ORDERS, Message({"traceparent": TRACEPARENT})):
            pass
        detach(token)
        assert [point.value for point in telemetry.points("messaging.client.consumed.messages")] == [2]
