"""send: the PRODUCER span of a publish, and its context in the message's headers."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import re
from types import MappingProxyType
from typing import Any

import pytest
from opentelemetry import baggage
from opentelemetry.context import get_current
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, StatusCode, get_current_span

from queueprop import Destination, Message
from queueprop.engine import semconv
from queueprop.engine.engine import Engine
from tests.telemetry import (
    CREATION,
    ORDERS,
    TRACEPARENT,
    Telemetry,
    attributes,
    baggage_of_ours,
    ids,
    links,
    parent,
    written,
)


def test_a_publish_makes_one_producer_span(telemetry: Telemetry) -> None:
    """One publish, one span: kind PRODUCER, `publish <destination>`, status unset, the required attributes."""
    with telemetry.engine().send(ORDERS, Message({})):
        pass
    span = telemetry.only()
    assert (span.name, span.kind, span.status.status_code) == (
        "publish orders",
        SpanKind.PRODUCER,
        StatusCode.UNSET,
    )
    assert attributes(span) == {
        "messaging.system": "my-queue",
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.destination.name": "orders",
    }
    scope = span.instrumentation_scope
    assert scope is not None
    assert (scope.name, scope.schema_url) == ("queueprop", "https://opentelemetry.io/schemas/1.44.0")


def test_the_operation_may_have_another_name(telemetry: Telemetry) -> None:
    """A library that calls it `enqueue` gets `enqueue orders`; the type stays send."""
    with telemetry.engine().send(ORDERS, Message({}), operation="enqueue"):
        pass
    span = telemetry.only("enqueue orders")
    assert attributes(span)["messaging.operation.name"] == "enqueue"
    assert attributes(span)["messaging.operation.type"] == "send"


def test_the_headers_carry_the_span(telemetry: Telemetry) -> None:
    """What is written is the PRODUCER span itself, in place of the context that the headers had before."""
    headers: dict[str, Any] = {"TraceParent": TRACEPARENT, "tracestate": "a=1", "x": 1}
    with telemetry.current(), telemetry.engine().send(ORDERS, Message(headers)) as span:
        assert written(headers) == ids(span)
    assert sorted(headers) == ["traceparent", "x"]


def test_the_span_is_current_and_a_child_of_what_was(telemetry: Telemetry) -> None:
    """The publish runs inside its span, a child of the caller's; afterwards the caller's context is back."""
    with telemetry.current() as ambient:
        before = get_current()
        with telemetry.engine().send(ORDERS, Message({})) as span:
            assert get_current_span() is span
        assert get_current() is before
    assert parent(telemetry.only("publish orders")) == ids(ambient)
    assert links(telemetry.only("publish orders")) == []


def test_without_a_current_span_it_is_a_root(telemetry: Telemetry) -> None:
    """Also a publish that nobody traces begins a trace."""
    with telemetry.engine().send(ORDERS, Message({})):
        pass
    assert parent(telemetry.only()) is None


def test_baggage_goes_along(telemetry: Telemetry) -> None:
    """The caller's baggage is current during the publish, and in the headers."""
    headers: dict[str, Any] = {}
    with baggage_of_ours(user="7"), telemetry.engine().send(ORDERS, Message(headers)):
        assert baggage.get_baggage("user") == "7"
    assert headers["baggage"] == "user=7"


def test_only_allowed_baggage_leaves(telemetry: Telemetry) -> None:
    """`baggage_allow` names the keys that are written; the others stay, readable here."""
    headers: dict[str, Any] = {}
    engine = telemetry.engine(baggage_allow=("tenant",))
    with baggage_of_ours(user="7", tenant="a"), engine.send(ORDERS, Message(headers)):
        assert baggage.get_baggage("user") == "7"
    assert headers["baggage"] == "tenant=a"


def test_no_headers_are_no_fault(telemetry: Telemetry) -> None:
    """A message without headers has nowhere to carry a context; its span is made all the same."""
    with telemetry.engine().send(ORDERS, Message(None)):
        pass
    assert telemetry.only().name == "publish orders"


@pytest.mark.parametrize("headers", [(("a", b"1"),), MappingProxyType({"a": "1"}), 7])
def test_headers_that_cannot_be_written_are_said_once(
    telemetry: Telemetry, caplog: pytest.LogCaptureFixture, headers: object
) -> None:
    """A tuple, a read-only mapping, junk: one line in the log, the span is made, nothing is raised or altered."""
    before = repr(headers)
    for _ in range(3):
        with telemetry.engine().send(ORDERS, Message(headers)):
            pass
    assert len(telemetry.spans) == 3
    assert repr(headers) == before
    (record,) = caplog.records
    assert "writing the headers of a message" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_sampled_out_it_is_still_carried(telemetry: Telemetry) -> None:
    """Nothing is exported, yet the headers name a valid context whose sampled flag is clear."""
    headers: dict[str, Any] = {}
    engine = telemetry.engine(tracer_provider=TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False))
    with engine.send(ORDERS, Message(headers)) as span:
        assert get_current_span() is span
    assert not span.is_recording()
    assert written(headers) == ids(span)
    assert int(headers["traceparent"][-2:], 16) & 1 == 0


def test_what_is_known_of_the_message_is_on_the_span(telemetry: Telemetry) -> None:
    """Id, conversation, delay, and the library's own attributes, under the names of the conventions."""
    message = Message({}, id="m1", conversation_id="c1", delay=2.5, attributes={"messaging.kafka.offset": 7})
    with telemetry.engine().send(ORDERS, message):
        pass
    found = attributes(telemetry.only())
    assert found["messaging.message.id"] == "m1"
    assert found["messaging.message.conversation_id"] == "c1"
    assert found["queueprop.message.delay"] == 2.5
    assert found["messaging.kafka.offset"] == 7


def test_attributes_of_one_message_stay_its_own(telemetry: Telemetry) -> None:
    """The attributes that a destination caches are never written to."""
    engine = telemetry.engine()
    with engine.send(ORDERS, Message({}, id="m1")):
        pass
    with engine.send(ORDERS, Message({})):
        pass
    assert [span.attributes and "messaging.message.id" in span.attributes for span in telemetry.spans] == [
        True,
        False,
    ]


def test_an_excluded_destination_gets_no_span(telemetry: Telemetry) -> None:
    """`exclude` patterns: no span, nothing changes what is current, and the caller's context still passes."""
    headers: dict[str, Any] = {}
    engine = telemetry.engine(exclude=("tmp.*", "celeryev"))
    with telemetry.current() as ambient:
        before = get_current()
        with engine.send(Destination("my-queue", "tmp.1"), Message(headers)) as span:
            assert span is INVALID_SPAN
            assert get_current() is before
    assert written(headers) == ids(ambient)
    assert [span.name for span in telemetry.spans] == ["ambient"]


def test_headers_that_are_made_later(telemetry: Telemetry) -> None:
    """They get the context of the span; those that the message has are only read."""
    given, later = {"traceparent": TRACEPARENT}, {"traceparent": TRACEPARENT, "x": "1"}
    send = telemetry.engine().send(ORDERS, Message(given))
    send.writes_later = True
    with send as span:
        send.write(later)
        assert written(later) == ids(span)
    assert parent(telemetry.only()) == CREATION
    assert given == {"traceparent": TRACEPARENT}


def test_headers_that_are_made_later_for_an_excluded_destination(telemetry: Telemetry) -> None:
    """What the caller relays goes on, or what is current there is one."""
    engine = telemetry.engine(exclude=("orders",))
    given, relayed, sent = ({"traceparent": TRACEPARENT} for _ in range(3))
    send, again = (engine.send(ORDERS, Message(given)) for _ in range(2))
    send.writes_later = again.writes_later = True
    with send:
        send.write(relayed)
    with telemetry.current() as ambient, again:
        again.write(sent)
    assert (written(relayed), written(sent)) == (CREATION, ids(ambient))
    assert given == {"traceparent": TRACEPARENT}


class TestTheBeginningOfATrace:
    """`begins_trace`: what a schedule publishes, with the headers of the message before."""

    def test_it_is_linked_to_what_its_headers_carry(self, telemetry: Telemetry) -> None:
        """A root, whatever is current; the headers then carry its own context, and their baggage, not the ambient."""
        headers: dict[str, Any] = {"traceparent": TRACEPARENT, "baggage": "tenant=42"}
        send = telemetry.engine().send(ORDERS, Message(headers))
        send.begins_trace = True
        with telemetry.current() as ambient, baggage_of_ours(of="the poller"), send as span:
            assert get_current_span() is span
        span_of_ours = telemetry.only("publish orders")
        assert parent(span_of_ours) is None
        assert ids(span) != ids(ambient)
        assert links(span_of_ours) == [CREATION]
        assert written(headers) == ids(span_of_ours)
        assert headers["baggage"] == "tenant=42"

    @pytest.mark.parametrize("headers", [{}, {"traceparent": "broken"}])
    def test_without_a_context_it_is_linked_to_nothing(
        self, telemetry: Telemetry, headers: dict[str, Any]
    ) -> None:
        """A root all the same, whose context is written."""
        send = telemetry.engine().send(ORDERS, Message(headers))
        send.begins_trace = True
        with telemetry.current(), send:
            pass
        span = telemetry.only("publish orders")
        assert (parent(span), links(span)) == (None, [])
        assert written(headers) == ids(span)

    def test_an_untrusted_context_is_only_linked(self, telemetry: Telemetry) -> None:
        """Its baggage ends there."""
        headers: dict[str, Any] = {"traceparent": TRACEPARENT, "baggage": "tenant=42"}
        send = telemetry.engine(trust="none").send(ORDERS, Message(headers))
        send.begins_trace = True
        with send:
            pass
        assert links(telemetry.only()) == [CREATION]
        assert "baggage" not in headers

    def test_an_excluded_destination(self, telemetry: Telemetry) -> None:
        """No span, and the trace ends there all the same."""
        headers: dict[str, Any] = {"traceparent": TRACEPARENT, "baggage": "tenant=42"}
        send = telemetry.engine(exclude=("orders",)).send(ORDERS, Message(headers))
        send.begins_trace = True
        with telemetry.current(), send:
            pass
        assert headers == {"baggage": "tenant=42"}


def test_one_that_is_dropped(telemetry: Telemetry) -> None:
    """Nothing was published after all: no span, nothing is counted or stays current, and to close it is nothing."""
    send = Engine(telemetry.measured()).send(ORDERS, Message({}))
    before = get_current()
    send.open()
    send.drop()
    assert get_current() is before
    send.close(LookupError())
    assert len(telemetry.spans) == 0
    assert telemetry.points("messaging.client.sent.messages") == []


def test_other_destinations_are_not_excluded(telemetry: Telemetry) -> None:
    """A pattern is for the whole name, and a destination without a name matches none but `*`."""
    engine = telemetry.engine(exclude=("tmp",))
    for destination in (Destination("my-queue", "tmp.1"), Destination("my-queue")):
        with engine.send(destination, Message({})):
            pass
    assert len(telemetry.spans) == 2


def test_suppressed(telemetry: Telemetry) -> None:
    """Under suppress_instrumentation(): no span, no header, nothing current; headers of before stay untouched."""
    headers = {"traceparent": TRACEPARENT}
    with suppress_instrumentation():
        before = get_current()
        with telemetry.engine().send(ORDERS, Message(headers)) as span:
            assert span is INVALID_SPAN
            assert get_current() is before
    assert headers == {"traceparent": TRACEPARENT}
    assert len(telemetry.spans) == 0


class TestHooks:
    """publish_hook: for recorded spans, with the library's own message."""

    def test_it_is_given_span_and_native_message(self, telemetry: Telemetry) -> None:
        """The hook may add attributes; it sees the library's message, after the context was written."""
        native = object()
        seen: list[object] = []

        def hook(span: Span, message: Any) -> None:
            span.set_attribute("mine", 1)
            seen.append(message)

        with telemetry.engine(publish_hook=hook).send(ORDERS, Message({}, native=native)):
            pass
        assert seen == [native]
        assert attributes(telemetry.only())["mine"] == 1

    def test_without_a_native_message_it_is_given_ours(self, telemetry: Telemetry) -> None:
        """On the core API there is no library: the hook gets the Message."""
        seen: list[object] = []
        message = Message({})
        with telemetry.engine(publish_hook=lambda span, given: seen.append(given)).send(ORDERS, message):
            pass
        assert seen == [message]

    def test_it_is_not_for_consumers(self, telemetry: Telemetry) -> None:
        """A process span runs the consume_hook alone."""
        called: list[str] = []
        engine = telemetry.engine(
            publish_hook=lambda span, message: called.append("publish"),
            consume_hook=lambda span, message: called.append("consume"),
        )
        with engine.process(ORDERS, Message({})):
            pass
        assert called == ["consume"]

    def test_it_is_not_run_for_an_unrecorded_span(self, telemetry: Telemetry) -> None:
        """Sampled out: neither hook nor describe() is worth its cost."""

        def never(*args: object) -> dict[str, str]:
            raise AssertionError("called for a span that nobody records")

        off = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
        engine = telemetry.engine(
            tracer_provider=off, publish_hook=never, consume_hook=never, capture_headers=("x",)
        )
        with engine.send(ORDERS, Message({}, describe=never)):
            pass
        with engine.process(ORDERS, Message({}, describe=never)):
            pass

    def test_one_that_raises(self, telemetry: Telemetry, caplog: pytest.LogCaptureFixture) -> None:
        """A hook's exception is one line, once, that names the hook and where it was raised, without a traceback and
        without a request to report it; the publish goes on, traced, its context written.
        """

        def hook(span: Span, message: Any) -> None:
            raise LookupError("hook")

        engine = telemetry.engine(publish_hook=hook)
        for _ in range(2):
            headers: dict[str, Any] = {}
            with engine.send(ORDERS, Message(headers)) as span:
                assert written(headers) == ids(span)
        assert len(telemetry.spans) == 2
        (record,) = caplog.records
        assert record.exc_info is None
        assert re.fullmatch(
            r"queueprop, calling Settings\(publish_hook=\.\.\.\): it raised LookupError: hook \(test_send\.py:\d+\); "
            r"the message goes on without it",
            record.getMessage(),
        )


class TestDescriptions:
    """What only a recorded span is worth: describe, capture_headers, body_size."""

    def test_describe(self, telemetry: Telemetry) -> None:
        """`describe(native)` gives further attributes of the library's own message."""
        message = Message({}, native="job", describe=lambda native: {"code.function.name": native})
        with telemetry.engine().send(ORDERS, message):
            pass
        assert attributes(telemetry.only())["code.function.name"] == "job"

    @pytest.mark.usefixtures("guarded")
    def test_describe_that_raises(self, telemetry: Telemetry, caplog: pytest.LogCaptureFixture) -> None:
        """Its exception is logged once, and the hook still runs."""

        def describe(native: Any) -> dict[str, str]:
            raise LookupError("describe")

        called: list[object] = []
        engine = telemetry.engine(publish_hook=lambda span, message: called.append(message))
        with engine.send(ORDERS, Message({}, native="job", describe=describe)):
            pass
        assert called == ["job"]
        assert "describing a message" in caplog.text

    def test_captured_headers(self, telemetry: Telemetry) -> None:
        """Headers that are named become `messaging.header.<name>`, in any case, with all of their values."""
        headers = [("X-Tenant", b"a"), ("x-tenant", "b"), ("x-none", None), ("secret", "no")]
        with telemetry.engine(capture_headers=("X-TENANT", "x-none", "x-away")).send(
            ORDERS, Message(headers)
        ):
            pass
        found = {
            name: value
            for name, value in attributes(telemetry.only()).items()
            if name.startswith("messaging.header")
        }
        assert found == {"messaging.header.x-tenant": ("a", "b")}

    def test_captured_headers_have_a_bound(self, telemetry: Telemetry) -> None:
        """Of a header at most 16 values, of a value its first 1,024 characters: they come from outside."""
        headers = [
            ("x-large", "a" * 5_000_000),
            ("x-large", b"b" * 5000),
            *[("x-many", str(i)) for i in range(100)],
        ]
        with telemetry.engine(capture_headers=("x-large", "x-many")).send(ORDERS, Message(headers)):
            pass
        found = attributes(telemetry.only())
        assert found["messaging.header.x-large"] == ("a" * 1024, "b" * 1024)
        assert found["messaging.header.x-many"] == tuple(str(number) for number in range(16))

    def test_ids_have_a_bound(self, telemetry: Telemetry) -> None:
        """So have the ids of a message, on its span and on the link of a batch to it."""
        message = Message({"traceparent": TRACEPARENT}, id="i" * 5000, conversation_id="c" * 5000)
        engine = telemetry.engine()
        for operation in (engine.send(ORDERS, message), engine.process(ORDERS, [message])):
            with operation:
                pass
        sent, processed = telemetry.spans
        assert attributes(sent)["messaging.message.id"] == "i" * 1024
        assert attributes(sent)["messaging.message.conversation_id"] == "c" * 1024
        assert dict(processed.links[0].attributes or {})["messaging.message.id"] == "i" * 1024

    @pytest.mark.parametrize(("body", "size"), [(b"abc", 3), ("\xe9", 2), (None, None)])
    def test_body_size(self, telemetry: Telemetry, body: bytes | str | None, size: int | None) -> None:
        """`body_size=True` adds the size in bytes; where no body is known, nothing."""
        with telemetry.engine(body_size=True).send(ORDERS, Message({}, body=body)):
            pass
        assert attributes(telemetry.only()).get("messaging.message.body.size") == size

    def test_body_size_is_opt_in(self, telemetry: Telemetry) -> None:
        """Without the setting the body is not looked at."""
        with telemetry.engine(capture_headers=("x",)).send(ORDERS, Message({}, body=b"abc")):
            pass
        assert "messaging.message.body.size" not in attributes(telemetry.only())

    def test_a_body_that_is_no_utf8(self, telemetry: Telemetry) -> None:
        """A str that cannot be encoded costs no attribute of others and no warning: a body may be anything."""
        engine = telemetry.engine(body_size=True, capture_headers=("x",))
        with engine.send(ORDERS, Message({"x": "1"}, body="\ud800")):
            pass
        assert attributes(telemetry.only())["messaging.header.x"] == ("1",)


class TestFailures:
    """The publish fails."""

    def test_the_exception_is_on_the_span_and_goes_on(self, telemetry: Telemetry) -> None:
        """ERROR with the exception's message, error.type, the exception recorded; the caller sees the very same."""
        error = ConnectionError("broker gone")
        before = get_current()
        with (
            pytest.raises(ConnectionError) as raised,
            telemetry.engine().send(ORDERS, Message({})),
        ):
            raise error
        assert raised.value is error
        assert get_current() is before
        span = telemetry.only()
        assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "broker gone")
        assert attributes(span)["error.type"] == "ConnectionError"
        (event,) = span.events
        assert event.name == "exception"
        assert event.attributes is not None
        assert event.attributes["exception.type"] == "ConnectionError"

    def test_failures_that_no_exception_tells(self, telemetry: Telemetry) -> None:
        """`fail`: a nack of the broker's is an ERROR with a type of its own."""
        send = telemetry.engine().send(ORDERS, Message({}))
        send.open()
        send.fail("nacked", "the broker refused the message")
        send.close()
        span = telemetry.only()
        assert (span.status.status_code, span.status.description) == (
            StatusCode.ERROR,
            "the broker refused the message",
        )
        assert attributes(span)["error.type"] == "nacked"
        assert span.events == ()

    def test_fail_where_nothing_is_recorded(self, telemetry: Telemetry) -> None:
        """`fail` on an operation without a span does nothing."""
        with suppress_instrumentation():
            send = telemetry.engine().send(ORDERS, Message({}))
            send.open()
            send.fail("nacked", "refused")
            send.close()
        assert len(telemetry.spans) == 0


class TestEndWith:
    """`end_with`: the span ends when a future does."""

    def test_a_concurrent_future(self, telemetry: Telemetry) -> None:
        """Nothing is current after end_with; the span ends, without an error, with the future's result."""
        future: concurrent.futures.Future[int] = concurrent.futures.Future()
        before = get_current()
        send = telemetry.engine().send(ORDERS, Message({}))
        send.open()
        send.end_with(future)
        assert get_current() is before
        assert len(telemetry.spans) == 0
        future.set_result(1)
        assert telemetry.only().status.status_code is StatusCode.UNSET

    def test_an_error_of_a_concurrent_future(self, telemetry: Telemetry) -> None:
        """The future's exception is the span's; the caller still finds it in the future."""
        future: concurrent.futures.Future[int] = concurrent.futures.Future()
        send = telemetry.engine().send(ORDERS, Message({}))
        send.open()
        send.end_with(future)
        future.set_exception(ConnectionError("no ack"))
        assert attributes(telemetry.only())["error.type"] == "ConnectionError"
        with pytest.raises(ConnectionError, match="no ack"):
            future.result()

    @pytest.mark.parametrize(("describes", "described"), [(True, "None"), (False, None)])
    def test_what_is_told_of_a_failure(
        self, telemetry: Telemetry, describes: bool, described: str | None
    ) -> None:
        """Where it was asked for, with None in the place of a result."""
        future: concurrent.futures.Future[int] = concurrent.futures.Future()
        send = telemetry.engine().send(ORDERS, Message({}))
        send.open()
        send.end_with(future, lambda result: {"answer": str(result)}, describes_failure=describes)
        future.set_exception(ConnectionError("no ack"))
        assert attributes(telemetry.only()).get("answer") == described

    def test_a_cancelled_future(self, telemetry: Telemetry) -> None:
        """A publish that was given up is an error of its own type."""
        future: concurrent.futures.Future[int] = concurrent.futures.Future()
        send = telemetry.engine().send(ORDERS, Message({}))
        send.open()
        send.end_with(future)
        future.cancel()
        assert "CancelledError" in attributes(telemetry.only())["error.type"]

    def test_a_future_that_is_done_already(self, telemetry: Telemetry) -> None:
        """The span ends at once."""
        future: concurrent.futures.Future[int] = concurrent.futures.Future()
        future.set_result(1)
        send = telemetry.engine().send(ORDERS, Message({}))
        send.open()
        send.end_with(future)
        assert telemetry.only().name == "publish orders"

    def test_a_future_of_another_kind(self, telemetry: Telemetry) -> None:
        """Any future with add_done_callback, cancelled and exception will do."""

        class Confirm:
            def add_done_callback(self, callback: Any) -> None:
                callback(self)

            def cancelled(self) -> bool:
                return False

            def exception(self) -> Exception:
                return TimeoutError("no confirm")

        send = telemetry.engine().send(ORDERS, Message({}))
        send.open()
        send.end_with(Confirm())
        assert telemetry.only().status.description == "no confirm"

    def test_asyncio_still_tells_of_an_error_that_nobody_saw(self, telemetry: Telemetry) -> None:
        """Reading the future's error for the span must not silence asyncio's "exception was never retrieved"."""
        told: list[str] = []

        async def publish() -> None:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: told.append(context["message"]))
            future: asyncio.Future[int] = loop.create_future()
            send = telemetry.engine().send(ORDERS, Message({}))
            send.open()
            send.end_with(future)
            future.set_exception(ConnectionError("no ack"))
            await asyncio.sleep(0)
            del future
            gc.collect()

        asyncio.run(publish())
        assert attributes(telemetry.only())["error.type"] == "ConnectionError"
        assert told == ["Future exception was never retrieved"]

    @pytest.mark.usefixtures("guarded")
    def test_what_is_no_future(self, telemetry: Telemetry, caplog: pytest.LogCaptureFixture) -> None:
        """A library that returns something else costs the span its true end, and the caller nothing."""
        send = telemetry.engine().send(ORDERS, Message({}))
        send.open()
        send.end_with(None)
        assert telemetry.only().name == "publish orders"
        assert len(caplog.records) == 1


class TestBatch:
    """The publish of several messages in one call."""

    def test_each_message_has_a_create_span_and_carries_it(self, telemetry: Telemetry) -> None:
        """A create span (PRODUCER) a message beside one CLIENT send span that links to them; the sizes are told."""
        headers: list[dict[str, Any]] = [{}, {}]
        messages = [Message(one, id=str(number)) for number, one in enumerate(headers)]
        with telemetry.current() as ambient, telemetry.engine().send(ORDERS, messages) as send:
            assert get_current_span() is send
        creates = telemetry.spans.named("create orders")
        assert [written(one) for one in headers] == [ids(span) for span in creates]
        assert [(span.kind, parent(span)) for span in creates] == [(SpanKind.PRODUCER, ids(ambient))] * 2
        assert [attributes(span)["messaging.message.id"] for span in creates] == ["0", "1"]
        assert [attributes(span)["messaging.operation.type"] for span in creates] == ["create"] * 2
        span = telemetry.only("publish orders")
        assert (span.kind, parent(span)) == (SpanKind.CLIENT, ids(ambient))
        assert links(span) == [ids(create) for create in creates]
        assert attributes(span)["messaging.batch.message_count"] == 2
        assert "messaging.message.id" not in attributes(span)

    def test_also_without_a_current_span(self, telemetry: Telemetry) -> None:
        """Each message carries a context of its own, also where nothing is current."""
        headers: list[dict[str, Any]] = [{}, {}]
        with telemetry.engine().send(ORDERS, [Message(one) for one in headers]):
            pass
        assert len({written(one) for one in headers}) == 2

    def test_single_messages_have_no_batch_count(self, telemetry: Telemetry) -> None:
        """`messaging.batch.message_count` is for batch calls only."""
        with telemetry.engine().send(ORDERS, Message({})):
            pass
        assert semconv.BATCH_MESSAGE_COUNT not in attributes(telemetry.only())

    def test_a_batch_of_nothing(self, telemetry: Telemetry) -> None:
        """No message, no span."""
        before = get_current()
        with telemetry.engine().send(ORDERS, []):
            assert get_current() is before
        assert len(telemetry.spans) == 0

    def test_hooks_are_run_for_each_message(self, telemetry: Telemetry) -> None:
        """The publish_hook is given each message with its create span."""
        seen: list[tuple[object, object]] = []
        engine = telemetry.engine(publish_hook=lambda span, message: seen.append((ids(span), message)))
        with engine.send(ORDERS, [Message({}, native="a"), Message({}, native="b")]):
            pass
        creates = telemetry.spans.named("create orders")
        assert seen == [(ids(creates[0]), "a"), (ids(creates[1]), "b")]

    def test_it_fails_as_a_whole(self, telemetry: Telemetry) -> None:
        """The error is the call's: on the send span, not on the create spans."""
        with (
            pytest.raises(ConnectionError),
            telemetry.engine().send(ORDERS, [Message({}), Message({})]),
        ):
            raise ConnectionError("broker gone")
        assert telemetry.only("publish orders").status.status_code is StatusCode.ERROR
        assert {span.status.status_code for span in telemetry.spans.named("create orders")} == {
            StatusCode.UNSET
        }

    def test_excluded(self, telemetry: Telemetry) -> None:
        """Without spans each message still carries the caller's context."""
        headers: list[dict[str, Any]] = [{}, {}]
        engine = telemetry.engine(exclude=("orders",))
        with telemetry.current() as ambient, engine.send(ORDERS, [Message(one) for one in headers]):
            pass
        assert [written(one) for one in headers] == [ids(ambient)] * 2


def test_what_is_current_as_headers(telemetry: Telemetry) -> None:
    """For what is handed on without a message: context and baggage, and nothing where nothing is to be traced."""
    engine = telemetry.engine()
    assert engine.carrier() == {}
    with baggage_of_ours(tenant="acme"), telemetry.current() as span:
        carried = engine.carrier()
        assert written(carried) == ids(span)
        assert carried["baggage"] == "tenant=acme"
        with suppress_instrumentation():
            assert engine.carrier() == {}
