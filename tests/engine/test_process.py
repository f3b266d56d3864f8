"""process: the CONSUMER span of a delivery; the rule of parent and link; trust; what is current in the handler."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
from opentelemetry import baggage, trace
from opentelemetry.context import Context, attach, detach, get_current, set_value
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Decision, ParentBased, Sampler, SamplingResult
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    TraceState,
    get_current_span,
)
from opentelemetry.util.types import Attributes

from queueprop import Destination, Message, Settings
from queueprop.engine.engine import Engine
from queueprop.engine.operations import HandledAgain, Process
from queueprop.engine.scope import current_scope
from queueprop.testing import assert_no_orphans
from tests.telemetry import (
    CREATION,
    ORDERS,
    OTHERS,
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
    span_in,
    traceparent,
    written,
)

MALFORMED = {
    "not a traceparent": "nonsense",
    "upper case": TRACEPARENT.upper(),
    "all zero": "00-" + "0" * 32 + "-b7ad6b7169203331-01",
    "None": None,
    "a number": 7,
    "a list": [TRACEPARENT],
    "a table": {"traceparent": TRACEPARENT},
    "invalid UTF-8": b"\xff\xfe",
    "empty": "",
    "a megabyte": "0" * 1_000_000,
}


class TestSpan:
    """What the span says."""

    def test_a_delivery_makes_one_consumer_span(self, telemetry: Telemetry) -> None:
        """One delivery, one span: kind CONSUMER, `process <destination>`, status unset, the required attributes."""
        with telemetry.engine().process(ORDERS, Message({})):
            pass
        span = telemetry.only()
        assert (span.name, span.kind, span.status.status_code) == (
            "process orders",
            SpanKind.CONSUMER,
            StatusCode.UNSET,
        )
        assert attributes(span) == {
            "messaging.system": "my-queue",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": "orders",
            "queueprop.context.reason": "missing",
        }

    def test_the_operation_may_have_another_name(self, telemetry: Telemetry) -> None:
        """A library that calls it `perform` gets `perform orders`; the type stays process."""
        with telemetry.engine().process(ORDERS, Message({}), operation="perform"):
            pass
        assert attributes(telemetry.only("perform orders"))["messaging.operation.type"] == "process"

    def test_what_is_known_of_the_delivery_is_on_the_span(self, telemetry: Telemetry) -> None:
        """Id, attempt and the library's attributes; the time in the queue only where a send time is known."""
        message = Message({}, id="m1", attempt=2, attributes={"messaging.kafka.offset": 7})
        with telemetry.engine().process(ORDERS, message):
            pass
        found = attributes(telemetry.only())
        assert found["messaging.message.id"] == "m1"
        assert found["queueprop.message.delivery_attempt"] == 2
        assert found["messaging.kafka.offset"] == 7
        assert "queueprop.message.queue_time" not in found

    def test_the_time_in_the_queue(self, telemetry: Telemetry) -> None:
        """Seconds from the send to the handling, without the delay that was asked for, which stands beside it."""
        began = time.time()
        message = Message({}, sent_at=began - 10, delay=4)
        with telemetry.engine().process(ORDERS, message):
            pass
        found = attributes(telemetry.only())
        assert is_since(began, 6, found["queueprop.message.queue_time"])
        assert found["queueprop.message.delay"] == 4

    def test_clocks_that_differ(self, telemetry: Telemetry) -> None:
        """A message from a clock that is ahead waited 0 seconds, never less."""
        with telemetry.engine().process(ORDERS, Message({}, sent_at=time.time() + 60)):
            pass
        assert attributes(telemetry.only())["queueprop.message.queue_time"] == 0

    def test_made_after_the_fact(self, telemetry: Telemetry) -> None:
        """`started_at` is the span's start, and the time in the queue ends there."""
        started_at = time.time_ns() - 5_000_000_000
        message = Message({}, sent_at=started_at / 1e9 - 2)
        process = telemetry.engine().process(ORDERS, message, started_at=started_at)
        process.open()
        process.close()
        span = telemetry.only()
        assert span.start_time == started_at
        assert attributes(span)["queueprop.message.queue_time"] == pytest.approx(2, abs=0.001)

    def test_the_hook_is_given_the_librarys_message(self, telemetry: Telemetry) -> None:
        """consume_hook(span, message): the span that is current in the handler, and the native message."""
        seen: list[tuple[Span, object]] = []
        engine = telemetry.engine(consume_hook=lambda span, message: seen.append((span, message)))
        with engine.process(ORDERS, Message({}, native="job")) as span:
            assert seen == [(span, "job")]

    def test_a_hook_that_raises(self, telemetry: Telemetry, caplog: pytest.LogCaptureFixture) -> None:
        """Its exception is one line, once; the handler runs inside the span as if there were no hook."""

        def hook(span: Span, message: Any) -> None:
            raise LookupError("hook")

        engine = telemetry.engine(consume_hook=hook)
        for _ in range(2):
            with engine.process(ORDERS, Message({"traceparent": TRACEPARENT})) as span:
                assert get_current_span() is span
        assert [span.status.status_code for span in telemetry.spans] == [StatusCode.UNSET] * 2
        (record,) = caplog.records
        assert record.getMessage().startswith(
            "queueprop, calling Settings(consume_hook=...): it raised LookupError"
        )
        assert record.exc_info is None

    def test_describe_and_captured_headers(self, telemetry: Telemetry) -> None:
        """They are on process spans as on sends."""
        message = Message({"X-A": "1"}, native="job", describe=lambda native: {"native": native}, body=b"abc")
        with telemetry.engine(capture_headers=("x-a",), body_size=True).process(ORDERS, message):
            pass
        found = attributes(telemetry.only())
        assert (found["native"], found["messaging.header.x-a"]) == ("job", ("1",))
        assert found["messaging.message.body.size"] == 3


class TestSampling:
    """What a sampler is told when the span is made."""

    def test_it_sees_parent_links_and_attributes(self) -> None:
        """Kind, name, the message's context with its baggage, the links, and every attribute that is known then."""
        sampler = Recording()
        engine = Engine(
            Settings(
                tracer_provider=TracerProvider(sampler=sampler, shutdown_on_exit=False),
                meter_provider=NoOpMeterProvider(),
            )
        )
        destination = Destination(
            "my-queue",
            "orders.7",
            template="orders.{id}",
            partition_id="3",
            consumer_group="mailers",
            server_address="broker.example",
            server_port=4000,
        )
        message = Message({"traceparent": TRACEPARENT, "baggage": "user=7"}, id="m1", attempt=2)
        with engine.process(destination, message):
            pass
        (asked,) = sampler.asked
        assert asked["name"] == "process orders.{id}"
        assert asked["kind"] is SpanKind.CONSUMER
        assert span_in(asked["parent_context"]) == CREATION
        assert baggage.get_all(asked["parent_context"]) == {"user": "7"}
        assert [ids(link.context) for link in asked["links"]] == [CREATION]
        assert dict(asked["attributes"]) == {
            "messaging.system": "my-queue",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": "orders.7",
            "messaging.destination.template": "orders.{id}",
            "messaging.destination.partition.id": "3",
            "messaging.consumer.group.name": "mailers",
            "server.address": "broker.example",
            "server.port": 4000,
            "messaging.message.id": "m1",
            "queueprop.message.delivery_attempt": 2,
        }


class Recording(Sampler):
    """Records what it is asked; samples everything."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        self.asked.append(
            {
                "parent_context": parent_context,
                "name": name,
                "kind": kind,
                "attributes": attributes,
                "links": links,
            }
        )
        return SamplingResult(Decision.RECORD_AND_SAMPLE)

    def get_description(self) -> str:
        return "Recording"


class TestParent:
    """The rule of parent and link, propagation="parent"."""

    def test_the_creation_context_is_parent_and_link(self, telemetry: Telemetry) -> None:
        """A message with a context: its creation context is the parent, and is linked."""
        with telemetry.engine().process(ORDERS, Message({"traceparent": TRACEPARENT})):
            assert current_ids() is not None
        span = telemetry.only()
        assert (parent(span), links(span)) == (CREATION, [CREATION])
        assert span.parent is not None
        assert span.parent.is_remote

    @pytest.mark.parametrize("value", [TRACEPARENT.encode(), bytearray(TRACEPARENT.encode())])
    def test_a_context_in_bytes_is_read(self, telemetry: Telemetry, value: object) -> None:
        """Brokers give text as bytes of some kind."""
        with telemetry.engine().process(ORDERS, Message([("TraceParent", value)])):
            pass
        assert parent(telemetry.only()) == CREATION

    def test_another_current_span_is_linked(self, telemetry: Telemetry) -> None:
        """A poller's or a request's span is linked, never the parent."""
        with telemetry.current() as ambient:
            with telemetry.engine().process(ORDERS, Message({"traceparent": TRACEPARENT})) as span:
                assert get_current_span() is span
            assert get_current_span() is ambient
        span_ = telemetry.only("process orders")
        assert (parent(span_), links(span_)) == (CREATION, [CREATION, ids(ambient)])

    def test_the_publish_itself_is_not_linked_twice(self, telemetry: Telemetry) -> None:
        """Handled inside its own publish (an in-memory queue): creation context and ambient span are one link."""
        engine = telemetry.engine()
        headers: dict[str, Any] = {}
        with engine.send(ORDERS, Message(headers)) as send, engine.process(ORDERS, Message(headers)):
            pass
        assert links(telemetry.only("process orders")) == [ids(send)]

    @pytest.mark.parametrize("headers", [None, {}, {"x": 1}, [], 7, [("a",)]])
    def test_no_context_is_a_new_root(self, telemetry: Telemetry, headers: object) -> None:
        """Without a context: a new root, although another span is current, which is linked."""
        with telemetry.current() as ambient, telemetry.engine().process(ORDERS, Message(headers)):
            pass
        span = telemetry.only("process orders")
        assert (parent(span), links(span)) == (None, [ids(ambient)])
        assert ids(span) != ids(ambient)
        assert span.context is not None
        assert span.context.trace_id != ambient.get_span_context().trace_id

    def test_a_root_without_ambient_has_no_links(self, telemetry: Telemetry) -> None:
        """Nothing is linked that is not there; an invalid current span is nothing."""
        with trace.use_span(INVALID_SPAN), telemetry.engine().process(ORDERS, Message({})):
            pass
        span = telemetry.only()
        assert (parent(span), links(span)) == (None, [])

    @pytest.mark.parametrize("value", MALFORMED.values(), ids=MALFORMED.keys())
    def test_a_broken_context_is_a_new_root(self, telemetry: Telemetry, value: object) -> None:
        """Whatever junk the header holds: a root, the ambient span linked, nothing raised."""
        message = Message({"traceparent": value, "tracestate": "a=1"})
        with telemetry.current() as ambient, telemetry.engine().process(ORDERS, message):
            pass
        span = telemetry.only("process orders")
        assert (parent(span), links(span)) == (None, [ids(ambient)])
        assert span.context is not None
        assert len(span.context.trace_state) == 0

    def test_what_is_no_span_is_not_linked(self, telemetry: Telemetry) -> None:
        """Somebody's junk under OpenTelemetry's span key is passed over."""
        before = get_current()
        attach(trace.set_span_in_context("junk", Context()))  # type: ignore[arg-type]
        try:
            with telemetry.engine().process(ORDERS, Message({})):
                pass
        finally:
            attach(before)
        assert links(telemetry.only()) == []


class TestLink:
    """The rule of parent and link, propagation="link"."""

    def test_the_ambient_span_is_the_parent(self, telemetry: Telemetry) -> None:
        """The ambient span is the parent, the creation context is linked, once."""
        engine = telemetry.engine(propagation="link")
        message = Message({"traceparent": TRACEPARENT})
        with telemetry.current() as ambient, engine.process(ORDERS, message) as span:
            assert get_current_span() is span
        ended = telemetry.only("process orders")
        assert (parent(ended), links(ended)) == (ids(ambient), [CREATION])

    def test_without_an_ambient_span_it_is_a_root(self, telemetry: Telemetry) -> None:
        """Else a new root, linked."""
        with telemetry.engine(propagation="link").process(ORDERS, Message({"traceparent": TRACEPARENT})):
            pass
        span = telemetry.only()
        assert (parent(span), links(span)) == (None, [CREATION])
        assert span.context is not None
        assert span.context.trace_id != TRACE
        assert_no_orphans(telemetry.spans)

    @pytest.mark.parametrize("headers", [{}, {"traceparent": "junk"}])
    def test_without_a_context(self, telemetry: Telemetry, headers: dict[str, Any]) -> None:
        """No usable context: the ambient span is the parent all the same, and nothing is linked."""
        engine = telemetry.engine(propagation="link")
        with telemetry.current() as ambient, engine.process(ORDERS, Message(headers)):
            pass
        span = telemetry.only("process orders")
        assert (parent(span), links(span)) == (ids(ambient), [])

    def test_baggage_is_attached_either_way(self, telemetry: Telemetry) -> None:
        """The message's baggage is current; the ambient's is not mixed into it."""
        message = Message({"traceparent": TRACEPARENT, "baggage": "user=7"})
        with baggage_of_ours(mine="1"), telemetry.engine(propagation="link").process(ORDERS, message):
            assert baggage.get_all() == {"user": "7"}

    def test_untrusted(self, telemetry: Telemetry) -> None:
        """Nothing of an untrusted source is continued: the link stays, its baggage does not come in."""
        engine = telemetry.engine(propagation="link", trust="none")
        with engine.process(ORDERS, Message({"traceparent": TRACEPARENT, "baggage": "user=7"})):
            assert baggage.get_all() == {}
        span = telemetry.only()
        assert (parent(span), links(span)) == (None, [CREATION])


class TestReason:
    """The span itself says why it does not continue a context: no metric tells that of one delivery."""

    @pytest.mark.parametrize(
        ("trust", "headers", "reason"),
        [
            ("all", {"traceparent": TRACEPARENT}, None),
            ("all", {}, "missing"),
            ("all", {"traceparent": "junk"}, "malformed"),
            ("none", {"traceparent": TRACEPARENT}, "untrusted"),
            ("none", {}, "missing"),
        ],
    )
    def test_reason(
        self, telemetry: Telemetry, trust: str, headers: dict[str, Any], reason: str | None
    ) -> None:
        """Missing, malformed, untrusted; nothing where the context is continued."""
        with telemetry.engine(trust=trust).process(ORDERS, Message(headers)):
            pass
        assert attributes(telemetry.only()).get("queueprop.context.reason") == reason

    @pytest.mark.parametrize("trust", ["all", "none"])
    def test_none_where_none_is_expected(self, telemetry: Telemetry, trust: str) -> None:
        """A message whose publisher wanted no context has none missing."""
        process = telemetry.engine(trust=trust).process(ORDERS, Message({}))
        process.expects_context = False
        with process:
            pass
        assert "queueprop.context.reason" not in attributes(telemetry.only())


class TestTrust:
    """Whose context is continued."""

    def test_none(self, telemetry: Telemetry) -> None:
        """`trust="none"`: a new root that links to the creation context, and no baggage."""
        message = Message({"traceparent": TRACEPARENT, "tracestate": "a=1", "baggage": "user=7"})
        with telemetry.engine(trust="none").process(ORDERS, message):
            assert baggage.get_all() == {}
        span = telemetry.only()
        assert (parent(span), links(span)) == (None, [CREATION])
        assert span.context is not None
        assert span.context.trace_id != TRACE
        assert len(span.context.trace_state) == 0

    def test_none_with_an_ambient_span(self, telemetry: Telemetry) -> None:
        """The ambient span is linked as well, and is no parent."""
        message = Message({"traceparent": TRACEPARENT})
        with telemetry.current() as ambient, telemetry.engine(trust="none").process(ORDERS, message):
            pass
        span = telemetry.only("process orders")
        assert (parent(span), links(span)) == (None, [CREATION, ids(ambient)])

    @pytest.mark.parametrize("trusted", [True, False])
    def test_a_function_decides(self, telemetry: Telemetry, trusted: bool) -> None:
        """The function is asked with destination and message; its answer holds for this message."""
        message = Message({"traceparent": TRACEPARENT, "baggage": "user=7"})
        asked: list[tuple[Destination, Message]] = []

        def trust(destination: Destination, given: Message) -> bool:
            asked.append((destination, given))
            return trusted

        with telemetry.engine(trust=trust).process(ORDERS, message):
            assert baggage.get_all() == ({"user": "7"} if trusted else {})
        assert asked == [(ORDERS, message)]
        assert parent(telemetry.only()) == (CREATION if trusted else None)
        assert links(telemetry.only()) == [CREATION]

    @pytest.mark.usefixtures("guarded")
    def test_a_function_that_raises(self, telemetry: Telemetry, caplog: pytest.LogCaptureFixture) -> None:
        """Who cannot be judged is not trusted; the handler runs, the fault is logged once."""

        def trust(destination: Destination, message: Message) -> bool:
            raise LookupError("trust")

        engine = telemetry.engine(trust=trust)
        for _ in range(2):
            with engine.process(ORDERS, Message({"traceparent": TRACEPARENT, "baggage": "user=7"})):
                assert baggage.get_all() == {}
        assert [(parent(span), links(span)) for span in telemetry.spans] == [(None, [CREATION])] * 2
        assert len(caplog.records) == 1

    def test_an_excluded_destination_is_not_trusted_either(self, telemetry: Telemetry) -> None:
        """Without a span of ours, too, an untrusted source's trace and baggage are not continued."""
        engine = telemetry.engine(trust="none", exclude=("orders",))
        with engine.process(ORDERS, Message({"traceparent": TRACEPARENT, "baggage": "user=7"})):
            assert current_ids() is None
            assert baggage.get_all() == {}


class TestInside:
    """What is current in the handler, and after it."""

    def test_the_handler_runs_inside(self, telemetry: Telemetry) -> None:
        """The span is current, its children belong to it, and before() is back afterwards: the same object."""
        attach(set_value("mine", 1))
        before = get_current()
        with telemetry.engine().process(ORDERS, Message({"traceparent": TRACEPARENT})) as span:
            assert get_current_span() is span
            assert get_current()["mine"] == 1
            with telemetry.current("child"):
                pass
        assert get_current() is before
        attach(Context())
        assert parent(telemetry.only("child")) == ids(span)

    def test_the_messages_baggage_and_not_the_pollers(self, telemetry: Telemetry) -> None:
        """Baggage of the message is readable, that which was current around the loop is not."""
        engine = telemetry.engine()
        with baggage_of_ours(mine="1"):
            with engine.process(ORDERS, Message({"traceparent": TRACEPARENT, "baggage": "user=7"})):
                assert baggage.get_all() == {"user": "7"}
            with engine.process(ORDERS, Message({"traceparent": TRACEPARENT})):
                assert baggage.get_all() == {}
            assert baggage.get_all() == {"mine": "1"}

    @pytest.mark.parametrize("headers", [{"baggage": "user=7"}, {"baggage": "user=7", "traceparent": "junk"}])
    def test_baggage_without_a_trace(self, telemetry: Telemetry, headers: dict[str, Any]) -> None:
        """Baggage comes in by itself: a missing or broken traceparent does not drop it."""
        with telemetry.engine().process(ORDERS, Message(headers)):
            assert baggage.get_all() == {"user": "7"}

    def test_only_allowed_baggage_enters(self, telemetry: Telemetry) -> None:
        """`baggage_allow` names the keys that are let in."""
        message = Message({"traceparent": TRACEPARENT, "baggage": "user=7,tenant=a"})
        with telemetry.engine(baggage_allow=("tenant",)).process(ORDERS, message):
            assert baggage.get_all() == {"tenant": "a"}

    def test_tracestate_comes_through(self, telemetry: Telemetry) -> None:
        """The handler's own publish sends the tracestate on."""
        engine = telemetry.engine()
        forwarded: dict[str, Any] = {}
        with (
            engine.process(ORDERS, Message({"traceparent": TRACEPARENT, "tracestate": "a=1,b=2"})),
            engine.send(ORDERS, Message(forwarded)),
        ):
            pass
        assert forwarded["tracestate"] == "a=1,b=2"
        assert written(forwarded)[0] == TRACE

    def test_sampled_out(self, telemetry: Telemetry) -> None:
        """An unsampled message: nothing is exported, yet the handler sees its trace, its flag and its baggage."""
        sampler = ParentBased(ALWAYS_OFF)
        engine = telemetry.engine(tracer_provider=TracerProvider(sampler=sampler, shutdown_on_exit=False))
        with engine.process(ORDERS, Message({"traceparent": traceparent(flags="00"), "baggage": "user=7"})):
            context = get_current_span().get_span_context()
            assert context.trace_id == TRACE
            assert not context.trace_flags & TraceFlags.SAMPLED
            assert baggage.get_all() == {"user": "7"}

    def test_suppressed(self, telemetry: Telemetry) -> None:
        """Under suppress_instrumentation() nothing is made and nothing is changed: the handler just runs."""
        with suppress_instrumentation():
            before = get_current()
            with telemetry.engine().process(ORDERS, Message({"traceparent": TRACEPARENT})) as span:
                assert span is INVALID_SPAN
                assert get_current() is before
        assert len(telemetry.spans) == 0

    def test_excluded_its_context_still_passes(self, telemetry: Telemetry) -> None:
        """No span, but the handler is in the message's trace with its baggage, and not in the poller's."""
        engine = telemetry.engine(exclude=("orders",))
        with telemetry.current(), baggage_of_ours(mine="1"):
            before = get_current()
            with engine.process(ORDERS, Message({"traceparent": TRACEPARENT, "baggage": "user=7"})) as span:
                assert span is INVALID_SPAN
                assert current_ids() == CREATION
                assert baggage.get_all() == {"user": "7"}
            assert get_current() is before
        assert [span.name for span in telemetry.spans] == ["ambient"]

    def test_excluded_without_a_context(self, telemetry: Telemetry) -> None:
        """The poller's span is not handed to the handler of a message that has none."""
        with telemetry.current(), telemetry.engine(exclude=("*",)).process(ORDERS, Message({})):
            assert current_ids() is None

    def test_ten_thousand_messages_leave_the_context_as_it_was(self, telemetry: Telemetry) -> None:
        """Not an equal context afterwards, the same."""
        off = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
        engine = telemetry.engine(tracer_provider=off)
        attach(set_value("mine", 1))
        before = get_current()
        for number in range(10_000):
            with engine.process(ORDERS, Message({"traceparent": traceparent(span_id=number + 1)})):
                pass
            with engine.send(ORDERS, Message({})):
                pass
        assert get_current() is before
        attach(Context())

    def test_threads_do_not_see_each_other(self, telemetry: Telemetry) -> None:
        """8 threads, interleaved by a barrier: each handler sees its own message's trace and baggage."""
        engine = telemetry.engine()
        barrier = threading.Barrier(8)
        wrong: list[object] = []

        def handle(number: int) -> None:
            for turn in range(20):
                trace_id = 1000 * (number + 1) + turn
                headers = {"traceparent": traceparent(trace_id), "baggage": f"n={trace_id}"}
                with engine.process(ORDERS, Message(headers)):
                    barrier.wait(60)
                    seen = (get_current_span().get_span_context().trace_id, baggage.get_all())
                    if seen != (trace_id, {"n": str(trace_id)}):
                        wrong.append(seen)
                    barrier.wait(60)

        threads = [threading.Thread(target=handle, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert len(telemetry.spans) == 160

    def test_a_span_left_current_by_the_handler_does_not_leak(self, telemetry: Telemetry) -> None:
        """A handler that attaches and never detaches: the next message starts from the context of before."""
        before = get_current()
        with telemetry.engine().process(ORDERS, Message({"traceparent": TRACEPARENT})):
            attach(set_value("leaked", 1))
        assert get_current() is before


class TestAgain:
    """HandledAgain: the same delivery by another layer, elsewhere, or once more. One delivery, one span."""

    def test_inside_its_own_handling(self, telemetry: Telemetry) -> None:
        """The explicit API inside the instrumentor: the same span, and nothing else becomes current."""
        with telemetry.engine().process(ORDERS, Message({"traceparent": TRACEPARENT})) as span:
            process = current_scope(get_current())
            assert isinstance(process, Process)
            before = get_current()
            with HandledAgain(process) as same:
                assert same is span
                assert get_current() is before
            assert get_current_span() is span
        assert telemetry.only().name == "process orders"

    def test_it_tells_the_span_what_was_raised(self, telemetry: Telemetry) -> None:
        """A loop is not told what its body raised: what handles the same message inside the body is."""
        loop = telemetry.engine().process(ORDERS, Message({}))
        loop.open()
        with pytest.raises(LookupError), HandledAgain(loop):
            raise LookupError("no stock")
        loop.close()
        span = telemetry.only()
        assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "no stock")
        assert [event.name for event in span.events] == ["exception"]

    def test_what_the_outer_one_raises_itself_comes_first(self, telemetry: Telemetry) -> None:
        """A handler that turns one exception into another failed with the other."""
        outer = telemetry.engine().process(ORDERS, Message({}))
        outer.open()
        with pytest.raises(LookupError), HandledAgain(outer):
            raise LookupError("no stock")
        outer.close(ValueError("no order"))
        assert telemetry.only().status.description == "no order"

    def test_in_another_thread_while_it_is_open(self, telemetry: Telemetry) -> None:
        """A worker that a loop hands its message to: the span is current there, with the baggage, and gone after."""
        seen: list[object] = []
        process = telemetry.engine().process(ORDERS, Message({"traceparent": TRACEPARENT, "baggage": "a=1"}))
        span = process.open()

        def work() -> None:
            before = get_current()
            with HandledAgain(process):
                seen.extend([get_current_span() is span, baggage.get_baggage("a")])
            seen.append(get_current() is before)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        process.close()
        assert seen == [True, "1", True]

    def test_when_it_is_over(self, telemetry: Telemetry) -> None:
        """A retry of the user's: inside the trace and the baggage, without a second span; its error is nobody's."""
        process = telemetry.engine().process(ORDERS, Message({"traceparent": TRACEPARENT, "baggage": "a=1"}))
        with process as span:
            pass
        for _ in range(2):
            again = HandledAgain(process)
            with telemetry.current(), again:
                assert ids(get_current_span()) == ids(span)
                assert not get_current_span().is_recording()
                assert baggage.get_all() == {"a": "1"}
                with telemetry.engine().process(OTHERS, Message({})):
                    pass
            again.close(LookupError("no stock"))
        assert len(telemetry.spans.named("process orders")) == 1
        assert telemetry.only("process orders").status.status_code is StatusCode.UNSET
        assert links(telemetry.spans.named("process others")[0]) == []

    def test_a_time_limit_while_it_is_entered(
        self, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It comes out, and nothing stays current: nobody closes what did not open."""
        process = telemetry.engine().process(ORDERS, Message({"traceparent": TRACEPARENT}))
        with process:
            pass

        class TimeIsUp(BaseException): ...

        def attach_and_be_interrupted(context: Context) -> None:
            attach(context)
            if get_current_span(context).get_span_context().is_valid:
                raise TimeIsUp

        monkeypatch.setattr("queueprop.engine.scope.attach", attach_and_be_interrupted)
        with pytest.raises(TimeIsUp):
            HandledAgain(process).open()
        assert get_current_span() is INVALID_SPAN

    def test_where_nothing_was_traced(self, telemetry: Telemetry) -> None:
        """A handling that was suppressed has no context to enter, and is not to be joined."""
        process = telemetry.engine().process(ORDERS, Message({}))
        assert not process.is_to_join
        with suppress_instrumentation(), process:
            pass
        assert not process.is_to_join
        before = get_current()
        with HandledAgain(process):
            assert get_current() is before

    def test_of_an_excluded_destination(self, telemetry: Telemetry) -> None:
        """There is no span: what came with the message is current, its span and its baggage."""
        engine = telemetry.engine(exclude=[ORDERS.name])
        process = engine.process(ORDERS, Message({"traceparent": TRACEPARENT, "baggage": "user=7"}))
        with process:
            pass
        with HandledAgain(process):
            assert current_ids() == CREATION
            assert baggage.get_all() == {"user": "7"}
        assert len(telemetry.spans) == 0

    def test_a_settlement_inside_is_the_span_s_child(self, telemetry: Telemetry) -> None:
        """What settles there is settled inside the delivery's handling."""
        engine, message = telemetry.engine(), Message({"traceparent": TRACEPARENT})
        process = engine.process(ORDERS, message)
        with process as span:
            pass
        with HandledAgain(process), engine.settle(ORDERS, message):
            pass
        assert parent(telemetry.only("ack orders")) == ids(span)

    @pytest.mark.usefixtures("guarded")
    def test_a_fault_of_ours(self, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch) -> None:
        """The body runs, as it would without."""
        process = telemetry.engine().process(ORDERS, Message({}))
        with process:
            pass
        monkeypatch.setattr(Process, "inside", lambda self, current: 1 / 0)
        with HandledAgain(process) as span:
            assert span is INVALID_SPAN

    def test_an_ambient_span_that_has_ended_is_not_linked(self, telemetry: Telemetry) -> None:
        """A client's reader task keeps for life the span that was current when it connected: not parent, not linked."""
        with telemetry.current("start-up"):
            inside = get_current()
        token = attach(inside)
        for settings in ({}, {"propagation": "link"}):
            with telemetry.engine(**settings).process(ORDERS, Message({"traceparent": TRACEPARENT})):
                pass
        detach(token)
        parented, linked = telemetry.spans.named("process orders")
        assert (parent(parented), links(parented)) == (CREATION, [CREATION])
        assert (parent(linked), links(linked)) == (None, [CREATION])

    def test_an_ambient_span_that_was_sampled_out(self, telemetry: Telemetry) -> None:
        """In link mode it is the parent all the same: nobody records what goes on inside of it."""
        out = NonRecordingSpan(SpanContext(5, 6, is_remote=False))
        with trace.use_span(out), telemetry.engine(propagation="link").process(ORDERS, Message({})) as span:
            assert span.get_span_context().trace_id == 5


class TestByHand:
    """open and close, where a library offers no frame to wrap."""

    def test_twice_is_once(self, telemetry: Telemetry) -> None:
        """A second close changes nothing: not the span, not what is current by then."""
        process = telemetry.engine().process(ORDERS, Message({}))
        process.open()
        process.close()
        with telemetry.current():
            now = get_current()
            process.close(ValueError("late"))
            assert get_current() is now
        assert telemetry.only("process orders").status.status_code is StatusCode.UNSET

    def test_closed_without_being_opened(self, telemetry: Telemetry) -> None:
        """Nothing was begun, nothing ends."""
        before = get_current()
        telemetry.engine().process(ORDERS, Message({})).close()
        assert get_current() is before
        assert len(telemetry.spans) == 0

    def test_detach_and_reattach(self, telemetry: Telemetry) -> None:
        """The span goes on while it is not current, and can be made current again."""
        process = telemetry.engine().process(ORDERS, Message({"traceparent": TRACEPARENT}))
        before = get_current()
        span = process.open()
        process.detach()
        assert get_current() is before
        assert len(telemetry.spans) == 0
        process.reattach()
        assert get_current_span() is span
        process.close()
        assert get_current() is before

    def test_remote_contexts_are_not_mistaken_for_ambient(self, telemetry: Telemetry) -> None:
        """A remote span that somebody extracted and attached records nothing here: neither parent nor link."""
        remote = SpanContext(5, 6, is_remote=True, trace_flags=TraceFlags(1))
        message = Message({"traceparent": TRACEPARENT})
        with trace.use_span(NonRecordingSpan(remote)), telemetry.engine().process(ORDERS, message):
            pass
        assert links(telemetry.only()) == [CREATION]


class TestElsewhere:
    """A handling of which another process has begun the span."""

    SPAN = SpanContext(0xABC, 0xDEF, True, TraceFlags(1))

    def test_without_an_sdk_that_one_is_current(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is handled is its child, whatever the settings say of the message's own context."""
        for settings in (Settings(), Settings(trust="none"), Settings(propagation="link")):
            process = Engine(settings).process(ORDERS, Message({"traceparent": TRACEPARENT}))
            monkeypatch.setattr(process.telemetry, "_get_tracer_provider", trace.ProxyTracerProvider)
            process.elsewhere = self.SPAN
            with process:
                assert get_current_span().get_span_context() == self.SPAN

    def test_a_span_that_is_recorded_here_takes_its_place(self, telemetry: Telemetry) -> None:
        """Which then is the message's, as ever."""
        process = Engine(telemetry.settings()).process(ORDERS, Message({"traceparent": TRACEPARENT}))
        process.elsewhere = self.SPAN
        with process:
            assert get_current_span() is process.span
            assert process.span.is_recording()
            assert process.span.get_span_context().trace_id != self.SPAN.trace_id

    def test_a_reserve_is_told_to_nobody_s_hook_before_it_is_the_span(self, telemetry: Telemetry) -> None:
        """The other process most probably calls the hook."""
        called: list[Any] = []
        settings = telemetry.settings(consume_hook=lambda span, message: called.append(message))
        process = Engine(settings).process(ORDERS, Message(native="job"))
        process.is_reserve = True
        with process:
            assert called == []
            process.confirm()
            assert called == ["job"]
