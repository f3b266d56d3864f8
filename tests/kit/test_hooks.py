"""What the kit promises every adapter, over a library in memory, by its words and by its instrumentor."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from opentelemetry import baggage
from opentelemetry.context import Context, attach, detach
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.trace import INVALID_SPAN, SpanKind, StatusCode, get_current_span

from queueprop import Destination, Message, Settings, guard, send_span
from queueprop.engine.engine import engine_for
from queueprop.kit import calls
from queueprop.kit.hooks import Hooks
from queueprop.kit.library import Source
from queueprop.kit.nesting import Everything, speaking_for, take_over
from tests.kit.memory import MEMORY, Channel, MemoryInstrumentor, MemoryLibrary, Parcel, words, words_of
from tests.telemetry import (
    CREATION,
    ORDERS,
    OTHERS,
    TRACE,
    TRACEPARENT,
    Telemetry,
    attributes,
    current_ids,
    ids,
    links,
    parent,
    traceparent,
    written,
)

UNATTACHED = "queueprop.context.unattached"
CONSUMED = "messaging.client.consumed.messages"


@pytest.fixture
def channel() -> Channel:
    return Channel()


@pytest.fixture
def settings(telemetry: Telemetry) -> Settings:
    return telemetry.measured()


@pytest.fixture
def instrument(telemetry: Telemetry) -> Iterator[Callable[..., MemoryInstrumentor]]:
    instrumentor = MemoryInstrumentor()

    def instrument(**given: Any) -> MemoryInstrumentor:
        instrumentor.instrument(settings=telemetry.measured(**given))
        return instrumentor

    yield instrument
    if instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.uninstrument()


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    gc.collect()
    MEMORY.deliveries.unattached.clear()
    MEMORY.theirs.clear()


def parcel(headers: dict[str, Any] | None = None, tag: int = 1) -> Parcel:
    return Parcel("orders", "hello", {"traceparent": TRACEPARENT} if headers is None else headers, tag)


def traced(handler: Any, settings: Settings, destination: Destination | None = None) -> Any:
    return words.consumer(handler, Source, destination, settings)


def consumers(telemetry: Telemetry) -> list[Any]:
    return [span for span in telemetry.spans if span.kind is SpanKind.CONSUMER]


class TestPublish:
    """Around a call that publishes."""

    def test_the_context_goes_out_and_the_result_comes_back(
        self, telemetry: Telemetry, settings: Settings, channel: Channel
    ) -> None:
        """One PRODUCER span, its context in a copy of the headers, what the call returned."""
        given = {"tenant": "a"}
        publish = words.publish(channel.publish, settings)
        assert publish("orders", "hello", given) == "orders: hello"
        assert given == {"tenant": "a"}
        [sent] = channel.queues["orders"]
        assert written(sent.headers) == ids(telemetry.only("publish orders"))

    def test_what_it_raises(self, telemetry: Telemetry, settings: Settings, channel: Channel) -> None:
        """The same exception, and an error of the span."""
        with pytest.raises(OverflowError, match="no place left"):
            words.publish(channel.publish, settings)("full", "hello")
        assert telemetry.only().status.status_code is StatusCode.ERROR
        assert get_current_span() is INVALID_SPAN

    def test_arguments_that_do_not_fit(
        self, telemetry: Telemetry, settings: Settings, channel: Channel
    ) -> None:
        """The library says what is wrong with them; there is no span."""
        with pytest.raises(TypeError, match="publish"):
            words.publish(channel.publish, settings)()  # type: ignore[call-arg]
        assert len(telemetry.spans) == 0

    def test_a_coroutine_function(self, telemetry: Telemetry, settings: Settings, channel: Channel) -> None:
        """The span is open for as long as it is awaited; results and errors are its own."""
        publish = words.publish(channel.publish_async, settings)
        assert asyncio.run(publish("orders", "hello")) == "orders: hello"
        with pytest.raises(OverflowError):
            asyncio.run(publish("full", "hello"))
        one, other = telemetry.spans
        assert (one.name, one.status.status_code) == ("publish orders", StatusCode.UNSET)
        assert other.status.status_code is StatusCode.ERROR
        assert written(channel.queues["orders"][0].headers) == ids(one)

    def test_layers_make_one_span(
        self,
        telemetry: Telemetry,
        settings: Settings,
        channel: Channel,
        instrument: Callable[..., MemoryInstrumentor],
    ) -> None:
        """The explicit API above the instrumentor, sync and async: one publish, one span, one context."""
        instrument()
        words.publish(channel.publish, settings)("orders", "hello")
        asyncio.run(words.publish(channel.publish_async, settings)("orders", "hello"))
        assert [span.name for span in telemetry.spans] == ["publish orders"] * 2
        assert [written(it.headers) for it in channel.queues["orders"]] == [ids(it) for it in telemetry.spans]

    def test_a_publish_that_is_another_one(
        self, telemetry: Telemetry, channel: Channel, instrument: Callable[..., MemoryInstrumentor]
    ) -> None:
        """A library that may publish inside a publish tells which it is: each has its span."""
        instrument()
        channel.on_return = lambda it: it.publish("orders", "again")
        channel.publish("returned", "hello")
        assert [span.name for span in telemetry.spans] == ["publish orders", "publish returned"]

    def test_layers_of_a_publish_that_tells_which_it_is(
        self,
        telemetry: Telemetry,
        settings: Settings,
        channel: Channel,
        instrument: Callable[..., MemoryInstrumentor],
    ) -> None:
        """The explicit API above the instrumentor has the very same one: one span."""
        instrument()
        words.publish(channel.publish, settings)("returned", "hello")
        assert [span.name for span in telemetry.spans] == ["publish returned"]

    def test_headers_that_are_too_large(self, telemetry: Telemetry, settings: Settings) -> None:
        """The limit is the library's own: the message goes out with what of its context has room."""
        channel = Channel(limit=80)
        with telemetry.current():
            words.publish(channel.publish, settings)("orders", "hello", {"baggage": "user=" + "x" * 50})
        assert set(channel.queues["orders"][0].headers) == {"traceparent"}

    def test_what_is_left_to_others(
        self, telemetry: Telemetry, channel: Channel, instrument: Callable[..., MemoryInstrumentor]
    ) -> None:
        """The instrumentor leaves alone what somebody else traces: publishes, pulls and handlers."""
        instrument()
        MEMORY.theirs.add(channel)
        channel.publish("orders", "hello")
        assert channel.get("orders") is not None
        channel.publish("orders", "hello")
        assert [current_ids() for _ in channel.consume("orders")] == [None]
        assert len(telemetry.spans) == 0

    @pytest.mark.usefixtures("guarded")
    @pytest.mark.parametrize("broken", ["publication", "arguments", "end", "begin"])
    def test_a_fault_of_ours(
        self, settings: Settings, channel: Channel, monkeypatch: pytest.MonkeyPatch, broken: str
    ) -> None:
        """Wherever it happens the message goes out, and its call returns as ever, sync and async."""
        owner: Any = MemoryLibrary if broken == "publication" else "tests.kit.memory._Publication"
        if isinstance(owner, str):
            monkeypatch.setattr(f"{owner}.{broken}", _raise)
        else:
            monkeypatch.setattr(owner, broken, _raise)
        assert words.publish(channel.publish, settings)("orders", "hello") == "orders: hello"
        assert asyncio.run(words.publish(channel.publish_async, settings)("orders", "x")) == "orders: x"
        assert get_current_span() is INVALID_SPAN
        assert len(guard._logged) == 1


class TestCallersContext:
    """Headers that carry a context which the caller wrote."""

    def publish(self, settings: Settings, channel: Channel, headers: dict[str, Any]) -> dict[str, Any]:
        words.publish(channel.publish, settings)("orders", "hello", headers)
        return channel.queues["orders"].pop().headers

    def test_without_a_current_span_it_is_the_parent(
        self, telemetry: Telemetry, settings: Settings, channel: Channel
    ) -> None:
        """An outbox's relay, a dead-letter script: the trace goes on, and one context is on the wire, the new one."""
        headers = self.publish(settings, channel, {"TraceParent": TRACEPARENT, "tracestate": "a=1"})
        span = telemetry.only()
        assert (parent(span), links(span)) == (CREATION, [])
        assert written(headers) == ids(span)
        assert (set(headers), headers["tracestate"]) == ({"traceparent", "tracestate"}, "a=1")

    def test_with_a_current_span_it_is_linked(
        self, telemetry: Telemetry, settings: Settings, channel: Channel
    ) -> None:
        """The current span is the parent."""
        with telemetry.current() as ambient:
            headers = self.publish(settings, channel, {"traceparent": TRACEPARENT})
        span = telemetry.only("publish orders")
        assert (parent(span), links(span)) == (ids(ambient), [CREATION])
        assert written(headers) == ids(span)

    def test_its_baggage_goes_on(self, telemetry: Telemetry, settings: Settings, channel: Channel) -> None:
        """The caller's members survive beside the context's own, which win by key."""
        token_context = baggage.set_baggage("user", "7", baggage.set_baggage("tenant", "ours"))
        with _current(token_context):
            headers = self.publish(settings, channel, {"baggage": "tenant=theirs,region=eu"})
        assert sorted(headers["baggage"].split(",")) == ["region=eu", "tenant=ours", "user=7"]

    def test_what_is_allowed(self, telemetry: Telemetry, channel: Channel) -> None:
        """baggage_allow holds for the caller's members as for others."""
        settings = telemetry.settings(baggage_allow=("tenant",))
        headers = self.publish(
            settings, channel, {"traceparent": TRACEPARENT, "baggage": "tenant=1,secret=2"}
        )
        assert headers["baggage"] == "tenant=1"

    @pytest.mark.parametrize("around", [True, False])
    def test_untrusted(self, telemetry: Telemetry, channel: Channel, around: bool) -> None:
        """It is linked, never the parent, and nothing of it goes on."""
        settings = telemetry.settings(trust="none")
        carried = {"traceparent": TRACEPARENT, "tracestate": "a=1", "baggage": "admin=yes"}
        if around:
            with telemetry.current():
                headers = self.publish(settings, channel, carried)
        else:
            headers = self.publish(settings, channel, carried)
        span = telemetry.only("publish orders")
        assert links(span) == [CREATION]
        assert span.context.trace_id != TRACE
        assert set(headers) == {"traceparent"}

    def test_what_is_handed_on_is_not_the_caller_s(
        self, telemetry: Telemetry, settings: Settings, channel: Channel
    ) -> None:
        """A handler that sends on the headers that it got: the context's own baggage says what goes on; no link."""
        got = {"traceparent": TRACEPARENT, "baggage": "a=1,b=2"}
        with words.message(parcel(got), None, settings) as process, _current(baggage.remove_baggage("b")):
            headers = self.publish(settings, channel, got)
        span = telemetry.only("publish orders")
        assert (parent(span), links(span)) == (ids(process), [])
        assert headers["baggage"] == "a=1"

    def test_baggage_alone_is_handed_on_too(
        self, telemetry: Telemetry, settings: Settings, channel: Channel
    ) -> None:
        """Also where the message had no trace: a member that the handler removed stays removed."""
        got = {"baggage": "a=1,b=2"}
        with words.message(parcel(got), None, settings), _current(baggage.remove_baggage("b")):
            headers = self.publish(settings, channel, got)
            other = self.publish(settings, channel, {"baggage": "c=3"})
        assert headers["baggage"] == "a=1"
        assert sorted(other["baggage"].split(",")) == ["a=1", "c=3"]

    def test_the_current_context_written_by_hand(
        self, telemetry: Telemetry, settings: Settings, channel: Channel
    ) -> None:
        """Headers that the caller has injected the current span into: it is the parent, and not linked, too."""
        with telemetry.current() as ambient:
            current = ids(ambient)
            assert current is not None
            self.publish(settings, channel, {"traceparent": traceparent(*current)})
        assert (parent(telemetry.only("publish orders")), links(telemetry.only("publish orders"))) == (
            current,
            [],
        )

    def test_excluded(self, telemetry: Telemetry, channel: Channel) -> None:
        """Without a span of ours what the caller wrote goes on as it is."""
        settings = telemetry.settings(exclude=("orders",))
        headers = self.publish(settings, channel, {"traceparent": TRACEPARENT, "baggage": "a=1"})
        assert headers == {"traceparent": TRACEPARENT, "baggage": "a=1"}

    def test_without_an_sdk(self, channel: Channel) -> None:
        """Nothing is made up, and the caller's context goes on."""
        headers = self.publish(Settings(), channel, {"traceparent": TRACEPARENT})
        assert headers == {"traceparent": TRACEPARENT}

    def test_every_message_of_a_batch(self, telemetry: Telemetry) -> None:
        """Each create span is in the trace of its own message's context."""
        batch = [Message({"traceparent": traceparent(TRACE + number, 5)}) for number in range(2)]
        with send_span(ORDERS, batch, settings=telemetry.settings()):
            pass
        assert [parent(it) for it in telemetry.spans.named("create orders")] == [(TRACE, 5), (TRACE + 1, 5)]


class TestPull:
    """Around a call that returns messages."""

    def test_a_receive_span_and_no_scope(
        self, telemetry: Telemetry, settings: Settings, channel: Channel
    ) -> None:
        """A CLIENT span that links to the message; nothing is current behind it; the very message comes back."""
        waiting = parcel()
        channel.queues["orders"] = deque([waiting])
        assert words.get(channel.get, settings)("orders") is waiting
        span = telemetry.only("poll orders")
        assert (span.kind, links(span), current_ids()) == (SpanKind.CLIENT, [CREATION], None)

    def test_nothing_there(self, telemetry: Telemetry, settings: Settings, channel: Channel) -> None:
        """An empty queue makes no span, and is not counted."""
        assert words.get(channel.get, settings)("orders") is None
        assert asyncio.run(words.get(channel.get_async, settings)("orders")) is None
        assert (len(telemetry.spans), telemetry.points(CONSUMED)) == (0, [])

    def test_what_it_raises(self, telemetry: Telemetry, settings: Settings, channel: Channel) -> None:
        """The same exception; an error of the span, unless it says that there was nothing."""
        with pytest.raises(OverflowError):
            words.get(channel.get, settings)("full")
        with pytest.raises(OverflowError):
            asyncio.run(words.get(channel.get_async, settings)("full"))
        with pytest.raises(queue.Empty):
            words.get(queue.Queue[Any]().get_nowait, settings)()
        assert [span.status.status_code for span in telemetry.spans] == [StatusCode.ERROR] * 2

    def test_layers_make_one_span(
        self,
        telemetry: Telemetry,
        settings: Settings,
        channel: Channel,
        instrument: Callable[..., MemoryInstrumentor],
    ) -> None:
        """The explicit API above the instrumentor: one pull."""
        instrument()
        channel.publish("orders", "hello")
        words.get(channel.get, settings)("orders")
        assert len(telemetry.spans.named("poll orders")) == 1

    def test_layers_of_coroutine_functions_make_one_span(
        self, telemetry: Telemetry, settings: Settings, channel: Channel
    ) -> None:
        """Wrapped twice: one pull."""
        channel.publish("orders", "hello")
        get = words.get(words.get(channel.get_async, settings), settings)
        assert asyncio.run(get("orders")) is not None
        assert len(telemetry.spans.named("poll orders")) == 1

    def test_counted_at_the_pull(self, telemetry: Telemetry, settings: Settings, channel: Channel) -> None:
        """A delivery is counted once, where the application is given it; handled, in a batch and again it is not."""
        publish, get = words.publish(channel.publish, settings), words.get(channel.get, settings)
        for _ in range(3):
            publish("orders", "hello")
        pulled = [get("orders") for _ in range(3)]
        for _ in range(2):
            with words.message(pulled[0], None, settings):
                pass
        with words.batch(pulled[1:], None, settings), words.message(pulled[1], None, settings):
            pass
        with words.message(parcel(), None, settings):
            pass
        points = {
            point.attributes["messaging.operation.name"]: point.value for point in telemetry.points(CONSUMED)
        }
        assert points == {"poll": 3, "process": 1}

    def test_counted_without_a_receive_span(self, telemetry: Telemetry, channel: Channel) -> None:
        """Settings(receive_spans=False) takes the span away, not the count."""
        settings = telemetry.measured(receive_spans=False)
        channel.publish("orders", "hello")
        words.get(channel.get, settings)("orders")
        assert len(telemetry.spans) == 0
        assert [point.value for point in telemetry.points(CONSUMED)] == [1]

    def test_pulled_while_suppressed(
        self, telemetry: Telemetry, settings: Settings, channel: Channel
    ) -> None:
        """What was not counted at the pull is counted when it is handled."""
        channel.publish("orders", "hello")
        with suppress_instrumentation():
            pulled = words.get(channel.get, settings)("orders")
        with words.message(pulled, None, settings):
            pass
        assert [point.attributes["messaging.operation.name"] for point in telemetry.points(CONSUMED)] == [
            "process"
        ]

    def test_a_list_is_handled_by_its_loop(
        self, telemetry: Telemetry, settings: Settings, channel: Channel
    ) -> None:
        """Each message of a list that was pulled is handled inside its span, and inside its trace once more."""
        for _ in range(2):
            words.publish(channel.publish, settings)("orders", "hello")
        found = words.get(channel.getmany, settings)("orders")
        first = [current_ids() for _ in found]
        again = [current_ids() for _ in found]
        assert first == again == [ids(span) for span in consumers(telemetry)]
        assert len(first) == 2
        assert current_ids() is None

    @pytest.mark.usefixtures("guarded")
    @pytest.mark.parametrize("broken", ["source", "pulls", "pulled_from", "message"])
    def test_a_fault_of_ours(
        self, settings: Settings, channel: Channel, monkeypatch: pytest.MonkeyPatch, broken: str
    ) -> None:
        """The message is there all the same."""
        monkeypatch.setattr(MemoryLibrary, broken, _raise)
        for _ in range(2):
            channel.publish("orders", "hello")
        assert words.get(channel.get, settings)("orders").body == "hello"  # type: ignore[union-attr]
        found = asyncio.run(words.get(channel.get_async, settings)("orders"))
        assert found is not None
        with pytest.raises(OverflowError):
            words.get(channel.get, settings)("full")


class TestUnattached:
    """A message that was pulled and handled outside of its trace is noticed when it is dropped."""

    def test_it_is_counted_and_told(
        self, telemetry: Telemetry, settings: Settings, channel: Channel, caplog: pytest.LogCaptureFixture
    ) -> None:
        """By destination, with one warning that says which word is missing; told at the next pull."""
        get = words.get(channel.get, settings)
        for _ in range(3):
            channel.publish("orders", "hello")
            get("orders")
        gc.collect()
        get("orders")
        [point] = telemetry.points(UNATTACHED)
        assert (point.value, point.attributes["messaging.destination.name"]) == (3, "orders")
        [record] = caplog.records
        assert "orders" in record.getMessage()
        assert "with traced_message(message)" in record.getMessage()
        assert "queueprop.adapters.memory" in record.getMessage()

    @pytest.mark.parametrize("handle", ["message", "batch", "loop", "callback"])
    def test_what_was_handled(
        self,
        telemetry: Telemetry,
        settings: Settings,
        channel: Channel,
        caplog: pytest.LogCaptureFixture,
        handle: str,
    ) -> None:
        """By whatever word: nothing is said."""
        channel.publish("orders", "hello")
        pulled = words.get(channel.get, settings)("orders")
        if handle == "message":
            with words.message(pulled, None, settings):
                pass
        elif handle == "batch":
            with words.batch([pulled], None, settings):
                pass
        elif handle == "loop":
            for _ in words.messages([pulled], None, settings):
                pass
        else:
            traced(lambda it: None, settings)(pulled)
        del pulled
        gc.collect()
        words.get(channel.get, settings)("orders")
        assert (telemetry.points(UNATTACHED), caplog.records) == ([], [])

    @pytest.mark.parametrize("how", ["excluded", "suppressed"])
    def test_what_is_not_to_be_traced(
        self, telemetry: Telemetry, channel: Channel, caplog: pytest.LogCaptureFixture, how: str
    ) -> None:
        """Nobody is told that it was not handled inside a context that it has not."""
        settings = telemetry.measured(exclude=["orders"] if how == "excluded" else [])
        channel.publish("orders", "hello")
        channel.publish("others", "hello")
        get = words.get(channel.get, settings)
        with suppress_instrumentation() if how == "suppressed" else contextlib.nullcontext():
            get("orders")
        gc.collect()
        traced(lambda it: None, settings)(get("others"))
        get("orders")
        assert (telemetry.points(UNATTACHED), caplog.records) == ([], [])

    def test_it_is_noted_wherever_the_garbage_collector_runs(
        self, channel: Channel, settings: Settings
    ) -> None:
        """Nothing is counted, logged or locked there: that happens at the next pull."""
        channel.publish("orders", "hello")
        words.get(channel.get, settings)("orders")
        gc.collect()
        assert [it.name for it in MEMORY.deliveries.unattached] == ["orders"]

    def test_what_an_adapter_drops(self, channel: Channel, settings: Settings) -> None:
        """Where messages outlive their handling an adapter says when they are passed."""
        channel.publish("orders", "hello")
        pulled = words.get(channel.get, settings)("orders")
        MEMORY.deliveries.drop(pulled)
        MEMORY.deliveries.drop(pulled)
        assert len(MEMORY.deliveries.unattached) == 1


class TestHandling:
    """Callbacks, loops and blocks: one CONSUMER span a delivery."""

    def test_a_callback(self, telemetry: Telemetry, settings: Settings, channel: Channel) -> None:
        """It runs inside its message's span, wherever among its arguments the message is."""
        seen: list[Any] = []
        handler = traced(lambda *a, **k: seen.append(current_ids()), settings, None)
        assert callable(handler)
        handler(channel, parcel())
        handler(more=parcel())
        handler("no message")
        one, other = consumers(telemetry)
        assert seen == [ids(one), ids(other), None]
        assert (parent(one), links(one), attributes(one)["tag"]) == (CREATION, [CREATION], 1)

    def test_what_tells_a_destination_is_looked_at_at_each_delivery(
        self, telemetry: Telemetry, settings: Settings, channel: Channel
    ) -> None:
        """It is read anew only where that differs from the delivery before: each span has its own message's."""
        read: list[str] = []

        class Routed(MemoryLibrary):
            def route(self, native: Any) -> tuple[object, ...]:
                return (native.queue,)

            def consumed_from(self, native: Any, source: Source | None) -> Destination:
                read.append(native.queue)
                return super().consumed_from(native, source)

        handler: Any = words_of(Routed()).consumer(lambda *given: None, Source, None, settings)
        for name in ("orders", "orders", "mails", "orders", "orders"):
            handler(channel, Parcel(name, "hello", {}, 1))
        names = ["process orders", "process orders", "process mails", "process orders", "process orders"]
        assert [span.name for span in consumers(telemetry)] == names
        assert read == ["orders", "mails", "orders"]

    def test_a_callback_of_several_channels(self, telemetry: Telemetry, settings: Settings) -> None:
        """Each delivery comes from the channel beside it."""
        one, other = Channel(), Channel()
        sources: list[Any] = []

        def source(via: Any) -> Source:
            sources.append(via)
            return Source(via, "mails" if via is other else None)

        class Named(MemoryLibrary):
            def consumed_from(self, native: Any, source: Source | None) -> Destination:
                return Destination("memory", None if source is None else source.name or "orders")

        handler: Any = words_of(Named()).consumer(lambda *given: None, source, None, settings)
        for channel in (one, one, other, other, one):
            handler(channel, parcel())
        assert [span.name.removeprefix("process ") for span in consumers(telemetry)] == [
            *("orders", "orders", "mails", "mails", "orders")
        ]
        assert sources == [one, other, one]

    def test_with_options_it_is_a_decorator(self, telemetry: Telemetry, settings: Settings) -> None:
        """``@traced_consumer(destination=...)``: the given destination names the span."""

        handle = traced(None, settings, OTHERS)(lambda parcel: parcel.body)
        assert handle(parcel()) == "hello"
        assert telemetry.only().name == "process others"

    def test_layers_make_one_span(self, telemetry: Telemetry, settings: Settings) -> None:
        """A callback of the instrumentor's, a word of the explicit API's in it, and one more around."""
        message = parcel()
        seen: list[Any] = []
        inner = traced(lambda it: seen.append(current_ids()), settings, None)

        def outer(it: Parcel) -> None:
            with words.message(it, None, settings):
                inner(it)

        traced(outer, settings)(message)
        assert seen == [ids(telemetry.only())]

    def test_a_loop(
        self, telemetry: Telemetry, channel: Channel, instrument: Callable[..., MemoryInstrumentor]
    ) -> None:
        """Each body runs inside its message's span; nothing is current behind it."""
        instrument()
        for _ in range(2):
            channel.publish("orders", "hello")
        seen = [current_ids() for _ in channel.consume("orders")]
        assert seen == [ids(span) for span in consumers(telemetry)]
        assert current_ids() is None

    def test_an_async_loop(self, telemetry: Telemetry, settings: Settings, channel: Channel) -> None:
        """As a loop."""
        channel.publish("orders", "hello")

        async def loop() -> list[Any]:
            messages = words.messages(channel.consume_async("orders"), None, settings)
            return [current_ids() async for _ in messages]

        assert asyncio.run(loop()) == [ids(span) for span in consumers(telemetry)]

    def test_the_loop_s_span_has_the_error_of_its_body(
        self, telemetry: Telemetry, channel: Channel, instrument: Callable[..., MemoryInstrumentor]
    ) -> None:
        """traced_message in the body makes no second span, and tells the loop's what was raised."""
        instrument()
        channel.publish("orders", "hello")
        for it in channel.consume("orders"):
            with pytest.raises(LookupError), words.message(it, None, telemetry.settings()):
                raise LookupError("no stock")
        assert consumers(telemetry)[0].status.description == "no stock"
        assert len(consumers(telemetry)) == 1

    def test_handled_twice(self, telemetry: Telemetry, settings: Settings) -> None:
        """A retry loop of the user's: inside its trace each time, without a second CONSUMER span."""
        message = parcel({"traceparent": TRACEPARENT, "baggage": "a=1"})
        seen = []
        for _ in range(3):
            with words.message(message, None, settings):
                seen.append((current_ids(), baggage.get_baggage("a")))
        assert seen == [(ids(telemetry.only()), "1")] * 3

    def test_suppressed_and_then_not(self, telemetry: Telemetry, settings: Settings) -> None:
        """A handling without a span is none: the next one has it."""
        message = parcel()
        with suppress_instrumentation(), words.message(message, None, settings):
            pass
        with words.message(message, None, settings) as span:
            assert ids(span) == ids(get_current_span())
        assert len(consumers(telemetry)) == 1

    def test_a_block_that_was_never_entered(self, telemetry: Telemetry, settings: Settings) -> None:
        """What was made and not used is no handling."""
        message = parcel()
        words.message(message, None, settings)
        with words.message(message, None, settings):
            pass
        assert len(consumers(telemetry)) == 1

    def test_what_is_no_message(self, telemetry: Telemetry, settings: Settings) -> None:
        """An empty queue's None: the block runs without a span."""
        with words.message(None, None, settings) as span:
            assert span is INVALID_SPAN
        assert len(telemetry.spans) == 0

    def test_switched_off(
        self, telemetry: Telemetry, channel: Channel, instrument: Callable[..., MemoryInstrumentor]
    ) -> None:
        """A loop that began before uninstrument() falls silent."""
        instrumentor = instrument()
        for _ in range(2):
            channel.publish("orders", "hello")
        loop = channel.consume("orders")
        next(loop)
        instrumentor.uninstrument()
        next(loop)
        assert current_ids() is None
        assert len(consumers(telemetry)) == 1

    def test_a_batch(self, telemetry: Telemetry, settings: Settings) -> None:
        """One CONSUMER span that links to each message; what is handled inside it one by one has spans of its own."""
        batch = [parcel(tag=1), None, parcel({"traceparent": traceparent(TRACE, 7)}, tag=2)]
        with words.batch(batch, None, settings) as whole:
            for it in batch:
                with words.message(it, None, settings):
                    pass
        spans = consumers(telemetry)
        assert [links(span)[-2:] for span in spans if ids(span) == ids(whole)] == [[CREATION, (TRACE, 7)]]
        assert len(spans) == 3

    def test_messages_that_take_no_weak_reference(self, telemetry: Telemetry, settings: Settings) -> None:
        """Nothing can be kept beside them; they are traced all the same."""

        class Slotted(Parcel):
            __slots__ = ()

        library = MemoryLibrary()
        library.identity = lambda native: (7, None)  # type: ignore[method-assign]
        library.deliveries._identity = library.identity
        with words_of(library).message(parcel(), None, settings):
            pass
        library.deliveries._identity = lambda native: None
        with words_of(library).message(parcel(), None, settings):
            pass
        assert library.deliveries.find(parcel()) is None
        library.deliveries.drop(parcel())
        assert len(consumers(telemetry)) == 2

    @pytest.mark.usefixtures("guarded")
    def test_a_fault_of_ours(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        """Handlers, loops, blocks and batches get their messages."""
        monkeypatch.setattr(MemoryLibrary, "message", _raise)
        message = parcel()
        seen: list[object] = []
        traced(seen.append, settings)(message)
        seen.extend(words.messages([message], None, settings))
        with words.message(message, None, settings):
            seen.append(message)
        with words.batch([message], None, settings):
            seen.append(message)
        assert seen == [message] * 4


class Subscriber:
    """A library's object that keeps a handler, and one of its own that only buffers."""

    def __init__(self) -> None:
        self.handlers: list[Any] = []

    def subscribe(self, queue: str, handler: Any = None) -> str:
        self.handlers.append(handler)
        return queue

    def buffer(self, parcel: Parcel) -> object:
        return current_ids()


class Processing:
    """A library's own context manager about a message, which may fail to settle it."""

    def __init__(self, parcel: Parcel, fails: bool = False) -> None:
        self.parcel, self.fails = parcel, fails

    async def __aenter__(self) -> Parcel:
        return self.parcel

    async def __aexit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        if self.fails:
            raise OverflowError("not settled")


class TestRegistered:
    """Around what a library registers handlers with, and around its own context managers."""

    @pytest.fixture
    def hooks(self, settings: Settings) -> Hooks:
        return Hooks(MEMORY, engine_for(settings))

    @pytest.fixture
    def subscribe(self, hooks: Hooks) -> Any:
        subscriber = Subscriber()
        hook = hooks.registers(1, "handler", is_theirs=lambda it: it == subscriber.buffer)
        subscribe = calls.hooked(subscriber.subscribe, hook)
        subscribe.subscriber = subscriber  # type: ignore[attr-defined]
        return subscribe

    @pytest.mark.parametrize("by", ["place", "keyword"])
    def test_a_handler_runs_inside(self, telemetry: Telemetry, subscribe: Any, by: str) -> None:
        """Wherever among the arguments it is, what is registered in its place is equal to it, and traced."""

        def handle(parcel: Parcel) -> object:
            return current_ids()

        given = (handle,) if by == "place" else ()
        assert subscribe("orders", *given, **({} if given else {"handler": handle})) == "orders"
        [registered] = subscribe.subscriber.handlers
        assert registered == handle
        assert repr(registered) == repr(handle)
        assert registered(parcel()) == ids(telemetry.only("process orders"))

    def test_what_is_none(self, telemetry: Telemetry, subscribe: Any) -> None:
        """No handler, and one of the library's own: as without us."""
        subscriber = subscribe.subscriber
        subscribe("orders")
        subscribe("orders", subscriber.buffer)
        assert subscriber.handlers == [None, subscriber.buffer]
        assert subscriber.handlers[1](parcel()) is None
        assert len(telemetry.spans) == 0

    def test_that_of_a_layer_above(self, telemetry: Telemetry, subscribe: Any) -> None:
        """What a layer above registers while it speaks for the library, and a method of what it has taken over."""

        class Above:
            def handle(self, parcel: Parcel) -> None: ...

        above = Above()
        with speaking_for(Everything()):
            subscribe("orders", print)
        take_over(above)
        subscribe("orders", above.handle)
        assert subscribe.subscriber.handlers == [print, above.handle]
        subscribe.subscriber.handlers[1](parcel())
        assert len(telemetry.spans) == 0

    def test_a_fault_of_ours(self, hooks: Hooks, monkeypatch: pytest.MonkeyPatch) -> None:
        """The library registers the handler as it is given."""
        monkeypatch.setattr(guard, "raise_faults", False)
        subscriber = Subscriber()
        odd = calls.hooked(subscriber.subscribe, hooks.registers(1, "handler", source=_raises))
        odd("orders", print)
        assert subscriber.handlers == [print]

    @pytest.mark.parametrize("fails", [None, "the block", "its end"])
    def test_a_context_manager(self, telemetry: Telemetry, hooks: Hooks, fails: str | None) -> None:
        """Its block is inside the message's span, which has the error of the block, or of the manager's end."""
        manager = Processing(parcel(), fails == "its end")
        enter = calls.hooked(manager.__aenter__, hooks.enter_async)
        leave = calls.hooked(manager.__aexit__, hooks.exit_async)

        async def handle() -> object:
            assert await enter() is manager.parcel
            inside = current_ids()
            error = LookupError("no stock") if fails == "the block" else None
            await leave(None if error is None else LookupError, error, None)
            return inside

        if fails == "its end":
            with pytest.raises(OverflowError):
                asyncio.run(handle())
        else:
            assert asyncio.run(handle()) == ids(telemetry.only("process orders"))
        types = {None: None, "the block": "LookupError", "its end": "OverflowError"}
        assert attributes(telemetry.only("process orders")).get("error.type") == types[fails]
        assert get_current_span() is INVALID_SPAN

    def test_one_that_was_entered_before(self, telemetry: Telemetry, hooks: Hooks) -> None:
        """Its end is as without us."""
        manager = Processing(parcel())
        asyncio.run(calls.hooked(manager.__aexit__, hooks.exit_async)(None, None, None))
        assert len(telemetry.spans) == 0


def _raises(*args: Any) -> Any:
    raise LookupError("no")


class TestWorkers:
    """A loop that hands its messages on."""

    def test_by_default_a_worker_is_inside_the_message_s_context(
        self,
        telemetry: Telemetry,
        channel: Channel,
        instrument: Callable[..., MemoryInstrumentor],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """The loop's span has ended by then: no second span, and one warning a destination names the setting."""
        instrument()
        for _ in range(3):
            channel.publish("orders", "hello")
        handed_on = list(channel.consume("orders"))
        seen = []
        for it in handed_on:
            with words.message(it, None, telemetry.settings()):
                seen.append(current_ids())
        assert seen == [ids(span) for span in consumers(telemetry)]
        [record] = caplog.records
        assert "loop_spans=False" in record.getMessage()
        assert "orders" in record.getMessage()

    def test_without_loop_spans_the_worker_makes_the_span(
        self,
        telemetry: Telemetry,
        channel: Channel,
        instrument: Callable[..., MemoryInstrumentor],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Settings(loop_spans=False): a step of the loop is a pull, counted and with a receive span, and no scope."""
        instrument(loop_spans=False)
        for _ in range(2):
            channel.publish("orders", "hello")
        handed_on = []
        for it in channel.consume("orders"):
            assert current_ids() is None
            handed_on.append(it)
        threads = [
            threading.Thread(target=self._work, args=(it, telemetry.measured(loop_spans=False)))
            for it in handed_on
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(telemetry.spans.named("poll orders")) == len(telemetry.spans.named("process orders")) == 2
        assert caplog.records == []
        assert sum(point.value for point in telemetry.points(CONSUMED)) == 2

    @staticmethod
    def _work(it: Parcel, settings: Settings) -> None:
        with words.message(it, None, settings):
            pass

    def test_without_loop_spans_every_kind_of_loop_is_a_pull(
        self, telemetry: Telemetry, channel: Channel
    ) -> None:
        """Explicit, async, and over a list that was pulled before, which is not pulled again."""
        settings = telemetry.measured(loop_spans=False)

        async def loop() -> None:
            async for _ in words.messages(channel.consume_async("orders"), None, settings):
                assert current_ids() is None

        for _ in range(2):
            channel.publish("orders", "hello")
        asyncio.run(loop())
        channel.publish("orders", "hello")
        found = words.get(channel.getmany, settings)("orders")
        assert type(found) is list
        for _ in words.messages(found, None, settings):
            assert current_ids() is None
        assert sum(point.value for point in telemetry.points(CONSUMED)) == 3
        assert len(consumers(telemetry)) == 0

    def test_loops_that_go_by_pull_calls(self, telemetry: Telemetry, settings: Settings) -> None:
        """A library whose loops pull: what they pull is not the user's, and has no receive span."""
        library = MemoryLibrary(loops_pull=True)
        channel, theirs = Channel(), words_of(library)
        get = theirs.get(channel.get, settings)
        get_async = theirs.get(channel.get_async, settings)

        def loop() -> Iterator[Any]:
            while (it := get("orders")) is not None:
                yield it

        async def async_loop() -> Any:
            while (it := await get_async("orders")) is not None:
                yield it

        async def main() -> list[Any]:
            return [current_ids() async for _ in theirs.messages(async_loop(), None, settings)]

        channel.publish("orders", "hello")
        seen = [current_ids() for _ in theirs.messages(loop(), None, settings)]
        channel.publish("orders", "hello")
        seen += asyncio.run(main())
        assert seen == [ids(span) for span in telemetry.spans]
        assert len(seen) == 2


class TestSettle:
    """Around an ack, nack, reject or commit, under Settings(settle_spans=True)."""

    @pytest.fixture
    def settling(self, telemetry: Telemetry) -> Settings:
        return telemetry.settings(settle_spans=True)

    def handle(self, settings: Settings, channel: Channel, *tags: int) -> None:
        handler = traced(lambda channel, it: None, settings, None)
        for tag in tags:
            handler(channel, parcel(tag=tag))

    def test_a_child_of_the_message_s_span(
        self, telemetry: Telemetry, settling: Settings, channel: Channel
    ) -> None:
        """However late and from any thread; a second one of the same tag has none."""
        self.handle(settling, channel, 1)
        ack = words.settle(channel.ack, settling)
        thread = threading.Thread(target=ack, args=(1,))
        thread.start()
        thread.join()
        ack(1)
        assert channel.settled == [("ack", 1, False)] * 2
        assert parent(telemetry.only("ack orders")) == ids(telemetry.only("process orders"))

    def test_one_that_was_never_delivered(
        self, telemetry: Telemetry, settling: Settings, channel: Channel
    ) -> None:
        """It goes to the library as it is, and has no span."""
        self.handle(settling, channel, 1)
        words.settle(channel.ack, settling)(2)
        assert channel.settled == [("ack", 2, False)]
        assert [span.name for span in telemetry.spans] == ["process orders"]

    def test_one_that_comes_again_meanwhile(self, settling: Settings) -> None:
        """Under the same tag: that delivery is unsettled still."""
        handle = self.handle

        class Hasty(Channel):
            def ack(self, tag: int, multiple: bool = False) -> None:
                handle(settling, self, tag)

        channel = Hasty()
        handle(settling, channel, 1)
        words.settle(channel.ack, settling)(1)
        assert MEMORY.unsettled.keys(channel) == [1]

    def test_several_at_once(self, telemetry: Telemetry, settling: Settings, channel: Channel) -> None:
        """The last one's child, which links to the others; what is beyond stays unsettled."""
        self.handle(settling, channel, 1, 2, 3)
        words.settle(channel.ack, settling)(2, multiple=True)
        span = telemetry.only("ack orders")
        _, second, _ = telemetry.spans.named("process orders")
        assert parent(span) == ids(second)
        assert attributes(span)["messaging.batch.message_count"] == 2
        assert MEMORY.unsettled.keys(channel) == [3]

    def test_one_that_fails(self, telemetry: Telemetry, settling: Settings, channel: Channel) -> None:
        """The same exception, an error of the span, and the message is unsettled still; sync and async."""
        self.handle(settling, channel, -1)
        with pytest.raises(OverflowError):
            words.settle(channel.ack, settling)(-1)
        with pytest.raises(OverflowError):
            asyncio.run(words.settle(channel.ack_async, settling)(-1))
        assert [it.status.status_code for it in telemetry.spans.named("ack orders")] == [StatusCode.ERROR] * 2
        assert MEMORY.unsettled.keys(channel) == [-1]

    def test_a_coroutine_function(self, telemetry: Telemetry, settling: Settings, channel: Channel) -> None:
        """Awaited inside its span."""
        self.handle(settling, channel, 1)
        asyncio.run(words.settle(channel.ack_async, settling)(1))
        asyncio.run(words.settle(channel.ack_async, settling)(7))
        assert len(telemetry.spans.named("ack orders")) == 1

    def test_layers_make_one_span(
        self,
        telemetry: Telemetry,
        settling: Settings,
        channel: Channel,
        instrument: Callable[..., MemoryInstrumentor],
    ) -> None:
        """The explicit API above the instrumentor."""
        instrument(settle_spans=True)
        self.handle(settling, channel, 1)
        words.settle(channel.ack, settling)(1)
        assert len(telemetry.spans.named("ack orders")) == 1

    def test_what_was_pulled(self, telemetry: Telemetry, settling: Settings, channel: Channel) -> None:
        """It is known from the pull on, and its handling is the parent once there is one, whoever made that."""
        for _ in range(2):
            channel.publish("orders", "hello", {"traceparent": TRACEPARENT})
        get, ack = words.get(channel.get, settling), words.settle(channel.ack, settling)
        handled, unhandled = get("orders"), get("orders")
        assert handled is not None
        assert unhandled is not None
        with words.message(handled, None, telemetry.settings()):
            pass
        ack(handled.tag)
        ack(unhandled.tag)
        one, other = telemetry.spans.named("ack orders")
        assert (parent(one), parent(other)) == (ids(telemetry.only("process orders")), CREATION)

    def test_in_a_batch(self, telemetry: Telemetry, settling: Settings, channel: Channel) -> None:
        """A child of the batch's span."""
        channel.publish("orders", "hello")
        pulled = words.get(channel.get, settling)("orders")
        assert pulled is not None
        with words.batch([pulled], None, settling):
            pass
        words.settle(channel.ack, settling)(pulled.tag)
        assert parent(telemetry.only("ack orders")) == ids(telemetry.only("process orders"))

    def test_the_message_in_hand(self, telemetry: Telemetry, settling: Settings, channel: Channel) -> None:
        """A message whose channel nobody told is settled while it is in hand, once, and by its own tag alone."""
        ack = words.settle(channel.ack, settling)
        with words.message(parcel(tag=5), None, settling):
            ack(4)
            ack(5)
            ack(5)
        ack(5)
        assert parent(telemetry.only("ack orders")) == ids(telemetry.only("process orders"))

    def test_a_library_that_commits(self, telemetry: Telemetry, settling: Settings, channel: Channel) -> None:
        """Of a partition the last that was handled counts: what was only pulled does not; again is a commit, too."""
        library = MemoryLibrary(settles_each=False)
        theirs = words_of(library)
        channel.publish("orders", "hello")
        pulled = theirs.get(channel.get, settling)("orders")
        assert pulled is not None
        assert library.unsettled.keys(channel) == ()
        with theirs.message(pulled, None, settling):
            pass
        assert library.unsettled.keys(channel) == [pulled.tag]
        with theirs.message(parcel(tag=9), None, settling):
            for _ in range(2):
                theirs.settle(channel.ack, settling)(9)
        assert len(telemetry.spans.named("ack orders")) == 2

    def test_by_default_there_is_none(
        self, telemetry: Telemetry, settings: Settings, channel: Channel
    ) -> None:
        """And nothing is remembered."""
        self.handle(settings, channel, 1)
        words.settle(channel.ack, settings)(1)
        assert telemetry.spans.named("ack orders") == []
        assert MEMORY.unsettled.keys(channel) == ()

    @pytest.mark.usefixtures("guarded")
    def test_a_fault_of_ours(
        self, settling: Settings, channel: Channel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The message is settled."""
        self.handle(settling, channel, 1)
        monkeypatch.setattr(MemoryLibrary, "settled", _raise)
        words.settle(channel.ack, settling)(1)
        asyncio.run(words.settle(channel.ack_async, settling)(1))
        assert len(channel.settled) == 2

    def test_a_call_that_settles_nothing(
        self, telemetry: Telemetry, settling: Settings, channel: Channel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The library says so, or nothing waits: it is called as ever."""
        monkeypatch.setattr(MemoryLibrary, "settled", lambda *_: None)
        words.settle(channel.ack, settling)(1)
        assert (len(telemetry.spans), len(channel.settled)) == (0, 1)


def test_hooks_of_one_s_own(telemetry: Telemetry, channel: Channel) -> None:
    """An adapter may call the parts: a delivery's operation, opened and closed by hand."""
    hooks = Hooks(MEMORY, engine_for(telemetry.settings()))
    process = hooks.process(parcel(), Source(channel, "orders"))
    assert process is not None
    process.open()
    process.close()
    assert telemetry.only().name == "process orders"
    assert Source(7).via == 7
    source = Source(Channel())
    assert source.via is None, "kept weakly"


def _raise(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("ours")


@contextmanager
def _current(context: Context) -> Iterator[None]:
    token = attach(context)
    try:
        yield
    finally:
        detach(token)
