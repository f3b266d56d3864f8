"""The pika adapter without a broker: pika's own channels on a connection that goes nowhere."""

from __future__ import annotations

import functools
import gc
import importlib
import sys
import weakref
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest

pytest.importorskip("pika")

from opentelemetry.trace import INVALID_SPAN, SpanContext, SpanKind, StatusCode, get_current_span, get_tracer
from pika import BasicProperties
from pika.adapters.blocking_connection import BlockingChannel
from pika.channel import Channel
from pika.exceptions import ChannelWrongStateError
from pika.spec import Basic

from queueprop import Destination, Settings, guard
from queueprop.adapters import pika as adapter
from queueprop.adapters.pika import instrumentor as patching
from queueprop.engine.engine import engine_for
from queueprop.kit import rabbitmq
from queueprop.kit.libraries import MissingExtra
from queueprop.testing import CapturedSpans

TRACE_ID = 0x0AF7651916CD43DD8448EB211C80319C
TRACEPARENT = f"00-{TRACE_ID:032x}-b7ad6b7169203331-01"
SETTLED = Settings(settle_spans=True)


class Connection:
    """As much of a connection as a channel needs. It keeps what it is given to send."""

    def __init__(self, frame_max: int = 131_072) -> None:
        self.params = SimpleNamespace(host="rabbit.example", port=5672, frame_max=frame_max)
        self.callbacks = SimpleNamespace(add=lambda *_, **__: None, remove=lambda *_, **__: None)
        self.sent: list[tuple[Any, Any]] = []

    def _send_method(self, number: int, method: Any, content: Any = None) -> None:
        self.sent.append((method, content))


class Uncomparable:
    """As numpy's arrays are: what they make of == has no truth."""

    def __eq__(self, other: object) -> Any:
        raise ValueError("neither true nor false")

    __hash__ = None  # type: ignore[assignment]


@pytest.fixture
def connection() -> Connection:
    return Connection()


@pytest.fixture
def channel(connection: Connection) -> Any:
    channel = Channel(connection, 1, None)
    channel._set_state(Channel.OPEN)
    return channel


@pytest.fixture
def instrumentor() -> Iterator[adapter.PikaInstrumentor]:
    instrumentor = adapter.PikaInstrumentor()
    instrumentor.instrument()
    yield instrumentor
    if instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.uninstrument()


def delivery(
    headers: Any = None, *, exchange: str = "", routing_key: str = "orders", tag: int = 1, **properties: Any
) -> tuple[Any, Any, bytes]:
    redelivered = properties.pop("redelivered", False)
    method = Basic.Deliver("consumer", tag, redelivered, exchange, routing_key)
    return method, BasicProperties(headers=headers, **properties), b"hello"


def current() -> SpanContext:
    return get_current_span().get_span_context()


def only(spans: CapturedSpans, kind: SpanKind | None = None) -> Any:
    [span] = [span for span in spans if kind is None or span.kind is kind]
    return span


class TestPublish:
    def test_the_context_is_in_a_copy_of_the_properties(
        self, captured_spans: CapturedSpans, channel: Any, connection: Connection
    ) -> None:
        """The caller's properties and headers stay as they are; everything else of them goes out."""
        properties = BasicProperties(headers={"tenant": "a"}, message_id="1", correlation_id="2")
        adapter.traced_publish(channel.basic_publish)("events", "new", b"hello", properties)
        _, (sent, body) = connection.sent[0]
        assert body == b"hello"
        assert set(sent.headers) == {"tenant", "traceparent"}
        assert (sent.message_id, properties.headers) == ("1", {"tenant": "a"})
        span = only(captured_spans)
        assert span.name == "publish events:new"
        assert span.kind is SpanKind.PRODUCER
        assert span.attributes == {
            "messaging.system": "rabbitmq",
            "messaging.operation.name": "publish",
            "messaging.operation.type": "send",
            "messaging.destination.name": "events:new",
            "messaging.rabbitmq.destination.routing_key": "new",
            "messaging.message.id": "1",
            "messaging.message.conversation_id": "2",
            "server.address": "rabbit.example",
            "server.port": 5672,
        }

    def test_a_hook_is_given_the_publish(self, captured_spans: CapturedSpans, channel: Any) -> None:
        """publish_hook sees exchange, routing key, body and the properties that go out."""
        given: list[Any] = []
        settings = Settings(publish_hook=lambda span, message: given.append(message), body_size=True)
        adapter.traced_publish(channel.basic_publish, settings=settings)("", "orders", "héllo")
        [publish] = given
        assert publish[:3] == ("", "orders", "héllo")
        assert "traceparent" in publish.properties.headers
        assert only(captured_spans).attributes["messaging.message.body.size"] == 6

    def test_a_partial_is_wrapped_with_its_arguments(
        self, captured_spans: CapturedSpans, channel: Any, connection: Connection
    ) -> None:
        """functools.partial of a publish: what it binds is seen."""
        publish = adapter.traced_publish(functools.partial(channel.basic_publish, "events"))
        publish(routing_key=b"new", body=b"hello")
        assert only(captured_spans).name == "publish events:new"
        assert len(connection.sent) == 1

    def test_a_callable_around_a_publish_has_no_server(
        self, captured_spans: CapturedSpans, channel: Any, connection: Connection
    ) -> None:
        """A retry of the user's, say: what it calls has no span of its own, and the server is not known."""

        def publish(*args: Any, **kwargs: Any) -> None:
            channel.basic_publish(*args, **kwargs)

        adapter.traced_publish(publish)("", "orders", b"hello")
        assert "server.address" not in only(captured_spans).attributes
        assert "traceparent" in connection.sent[0][1][0].headers

    @pytest.mark.parametrize("arguments", [(), ("a", "b", b"c", None, False, "too many")])
    def test_wrong_arguments_are_pika_s_to_refuse(
        self, captured_spans: CapturedSpans, channel: Any, arguments: Any
    ) -> None:
        """TypeError, as without us, and no span."""
        with pytest.raises(TypeError):
            adapter.traced_publish(channel.basic_publish)(*arguments)
        assert len(captured_spans) == 0

    @pytest.mark.parametrize("properties", [{"headers": {}}, BasicProperties(headers=["a"])])
    def test_what_are_no_properties_goes_to_pika_as_it_is(
        self, captured_spans: CapturedSpans, channel: Any, connection: Connection, properties: Any
    ) -> None:
        """Whatever pika says to it, it is said of the very same object."""
        adapter.traced_publish(channel.basic_publish)("", "orders", b"hello", properties)
        assert connection.sent[0][1][0] is properties
        assert len(captured_spans) == 1

    @pytest.mark.parametrize("empty", [{}, [], ()])
    def test_empty_headers_of_any_kind_are_an_empty_table(
        self, captured_spans: CapturedSpans, channel: Any, connection: Connection, empty: Any
    ) -> None:
        """As pika takes them; the context travels in a table of our own."""
        properties = BasicProperties(headers=empty)
        adapter.traced_publish(channel.basic_publish)("", "orders", b"hello", properties)
        assert list(connection.sent[0][1][0].headers) == ["traceparent"]
        assert properties.headers is empty
        assert len(empty) == 0

    @pytest.mark.parametrize(
        "headers",
        [{7: "a name"}, {"value": Uncomparable()}, {"value": Uncomparable(), "traceparent": "stale"}],
    )
    def test_headers_that_cannot_be_encoded_are_pika_s_to_refuse(
        self, captured_spans: CapturedSpans, channel: Any, connection: Connection, headers: Any
    ) -> None:
        """They reach pika, which says what is wrong with them; nothing of ours stumbles over them first."""
        properties = BasicProperties(headers=headers)
        adapter.traced_publish(channel.basic_publish)("", "orders", b"hello", properties)
        sent = connection.sent[0][1][0]
        with pytest.raises(Exception) as traced:  # noqa: PT011 - whatever pika raises, twice the same
            sent.encode()
        with pytest.raises(traced.type):
            properties.encode()

    def test_a_fault_of_ours_sends_the_caller_s_own_properties(
        self,
        captured_spans: CapturedSpans,
        channel: Any,
        connection: Connection,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Also when it comes up after the context was written."""

        monkeypatch.setattr(guard, "raise_faults", False)
        monkeypatch.setattr(rabbitmq, "surely_fits", _raise)
        properties = BasicProperties(headers={"tenant": "a"})
        adapter.traced_publish(channel.basic_publish)("", "orders", b"hello", properties)
        assert connection.sent[0][1][0] is properties
        assert len(captured_spans) == 1

    def test_a_publish_that_fails_is_an_error(self, captured_spans: CapturedSpans, channel: Any) -> None:
        """The exception is the caller's, and the span's."""
        channel._set_state(Channel.CLOSED)
        with pytest.raises(ChannelWrongStateError):
            adapter.traced_publish(channel.basic_publish)("", "orders", b"hello")
        assert only(captured_spans).status.status_code is StatusCode.ERROR

    @pytest.mark.parametrize(
        ("headers", "is_written"),
        [
            ({"a": "x" * 100}, True),
            ({"a": 7, "b": None, "c": True}, True),
            ({"a": {"b": ["c"]}}, True),
            ({"a": {"b": "x" * 4000}}, False),
            ({"a": "x" * 4000}, False),
            ({"a": 0.5}, True),
        ],
    )
    def test_the_properties_keep_to_one_frame(
        self,
        captured_spans: CapturedSpans,
        channel: Any,
        connection: Connection,
        headers: Any,
        is_written: bool,
    ) -> None:
        """Beyond it the broker would close the connection; what pika cannot encode at all is pika's to refuse."""
        connection.params.frame_max = 4096
        adapter.traced_publish(channel.basic_publish)(
            "", "orders", b"hello", properties=BasicProperties(headers=headers)
        )
        assert ("traceparent" in connection.sent[0][1][0].headers) is is_written

    def test_a_fault_of_ours_does_not_stop_the_publish(
        self, channel: Any, connection: Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The guard takes it, and the message goes as it is."""
        monkeypatch.setattr(guard, "raise_faults", False)

        class Odd(BasicProperties):  # type: ignore[misc]
            def __copy__(self) -> Any:
                raise LookupError("no copy")

        adapter.traced_publish(channel.basic_publish)("", "orders", b"hello", Odd())
        assert len(connection.sent) == 1


class TestConsume:
    def test_the_callback_runs_inside_the_message_s_span(
        self, captured_spans: CapturedSpans, channel: Any
    ) -> None:
        """Named by exchange, routing key and queue, with what the delivery tells."""
        seen: list[SpanContext] = []

        @adapter.traced_consumer(queue="orders")
        def on_message(channel: Any, method: Any, properties: Any, body: bytes) -> None:
            seen.append(current())

        headers = {"traceparent": TRACEPARENT}
        on_message(channel, *delivery(headers, exchange="events", routing_key="new", message_id="1", tag=3))
        span = only(captured_spans)
        assert (span.name, span.kind) == ("process events:new:orders", SpanKind.CONSUMER)
        assert seen == [span.context]
        assert span.context.trace_id == TRACE_ID
        assert span.attributes == {
            "messaging.system": "rabbitmq",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": "events:new:orders",
            "messaging.rabbitmq.destination.routing_key": "new",
            "messaging.rabbitmq.message.delivery_tag": 3,
            "messaging.message.id": "1",
            "queueprop.message.delivery_attempt": 1,
            "server.address": "rabbit.example",
            "server.port": 5672,
        }

    def test_it_decorates_with_and_without_arguments(
        self, captured_spans: CapturedSpans, channel: Any
    ) -> None:
        """@traced_consumer alone names the span by exchange and routing key; a destination of the user's goes first."""
        adapter.traced_consumer(lambda *_: None)(channel, *delivery())
        orders = Destination("rabbitmq", "all orders")
        adapter.traced_consumer(destination=orders)(lambda *_: None)(channel, *delivery())
        assert [span.name for span in captured_spans] == ["process orders", "process all orders"]

    @pytest.mark.parametrize(
        "names", [(), ("body",), ("properties", "body"), ("method", "properties", "body")]
    )
    def test_a_handler_may_be_called_by_names(
        self, captured_spans: CapturedSpans, channel: Any, names: tuple[str, ...]
    ) -> None:
        """As a dispatcher of the user's may do it, in the order in which pika gives them."""
        arguments = dict(
            zip(("channel", "method", "properties", "body"), (channel, *delivery()), strict=True)
        )
        named = {name: arguments.pop(name) for name in names}

        @adapter.traced_consumer
        def on_message(channel: Any, method: Any, properties: Any, body: bytes) -> tuple[bytes, bool]:
            return body, current().is_valid

        assert on_message(*arguments.values(), **named) == (b"hello", True)
        assert only(captured_spans).name == "process orders"

    def test_a_handler_may_leave_the_body_out(self, captured_spans: CapturedSpans, channel: Any) -> None:
        """A function of the user's behind the callback; with no properties there is no message to tell of."""
        method, properties, _ = delivery({"traceparent": TRACEPARENT})
        handle: Any = adapter.traced_consumer(lambda *_: current().is_valid)
        assert handle(channel, method, properties) is True
        assert handle(channel, method) is False
        assert only(captured_spans).context.trace_id == TRACE_ID

    @pytest.mark.parametrize("kind", ["function", "method", "partial", "object", "class", "slots"])
    def test_a_callback_of_any_kind_is_given_its_message_inside(
        self, captured_spans: CapturedSpans, instrumentor: Any, channel: Any, kind: str
    ) -> None:
        """What pika registers and calls: it gets the four arguments, as they are, inside the message's span."""
        seen: list[Any] = []

        def function(*message: Any) -> None:
            seen.extend((*message, current().is_valid))

        class Handler:
            def __call__(self, *message: Any) -> None:
                function(*message)

            on_message = __call__

        class Slots:
            __slots__ = ("tenant",)

            def __call__(self, *message: Any) -> None:
                function(*message)

        class Handled:
            def __init__(self, *message: Any) -> None:
                function(*message)

        callbacks = {
            "function": function,
            "method": Handler().on_message,
            "partial": functools.partial(lambda tenant, *message: function(*message), "a"),
            "object": Handler(),
            "class": Handled,
            "slots": Slots(),
        }
        message = delivery()
        channel._rpc = lambda *_: None
        channel.basic_consume("orders", callbacks[kind], consumer_tag="consumer")
        channel._consumers["consumer"](channel, *message)
        assert seen == [channel, *message, True]
        assert len(captured_spans) == 1

    def test_called_without_a_message_it_is_just_the_function(self, captured_spans: CapturedSpans) -> None:
        """As a unit test of the user's may call it."""
        assert adapter.traced_consumer(lambda *args: args)("no", "message") == ("no", "message")
        assert len(captured_spans) == 0

    def test_a_message_alone_is_enough(self, captured_spans: CapturedSpans) -> None:
        """A function of (method, properties, body), without a channel."""
        adapter.traced_consumer(lambda *_: None)(*delivery())
        assert "server.address" not in only(captured_spans).attributes

    @pytest.mark.parametrize(
        ("headers", "redelivered", "attempt"),
        [
            (None, False, 1),
            (None, True, None),
            ({"x-delivery-count": 2}, True, 3),
            ({"x-delivery-count": 2}, False, 1),
            ({"x-delivery-count": "2"}, True, None),
            ({"x-delivery-count": 0}, True, None),
            ({"x-acquired-count": 3}, True, 4),
            ({"x-acquired-count": 3, "x-delivery-count": 1}, True, 4),
            ({"x-death": []}, False, None),
        ],
    )
    def test_the_attempt_is_told_where_it_is_known(
        self, captured_spans: CapturedSpans, headers: Any, redelivered: bool, attempt: int | None
    ) -> None:
        """Quorum queues count; a first delivery is the first; a count that was forwarded is not believed.

        From RabbitMQ 4.3 on x-delivery-count leaves out what was given back by a nack: x-acquired-count has all.
        """
        with adapter.traced_message(delivery(headers, redelivered=redelivered)):
            pass
        assert only(captured_spans).attributes.get("queueprop.message.delivery_attempt") == attempt

    def test_what_pika_registers_for_itself_is_left_alone(self, instrumentor: Any, channel: Any) -> None:
        """The facade's own callback only buffers; a user's is wrapped, given by place or by name."""
        below: Any = SimpleNamespace(
            add_on_cancel_callback=lambda *_: None,
            add_callback=lambda *_, **__: None,
            add_on_close_callback=lambda *_: None,
            channel_number=1,
        )
        own = BlockingChannel(below, None)._on_consumer_message_delivery
        channel._rpc = lambda *_: None
        channel.basic_consume("orders", own, consumer_tag="a")
        channel.basic_consume("orders", print, consumer_tag="b")
        channel.basic_consume(queue="orders", on_message_callback=print, consumer_tag="c")
        consumers = channel._consumers
        assert consumers["a"] == own
        assert consumers["b"].__wrapped__ is consumers["c"].__wrapped__ is print

    def test_no_callback_is_pika_s_to_refuse(self, instrumentor: Any, channel: Any) -> None:
        """TypeError, as without us."""
        with pytest.raises(TypeError):
            channel.basic_consume("orders")

    def test_a_fault_of_ours_does_not_stop_the_handling(
        self, captured_spans: CapturedSpans, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A message that is none of pika's: traced_message and traced_batch let the body run."""
        monkeypatch.setattr(guard, "raise_faults", False)
        done = []
        with adapter.traced_message(("not", "a message")):
            done.append(1)
        with adapter.traced_batch([("not", "a message")]):
            done.append(2)
        assert done == [1, 2]
        assert len(captured_spans) == 0


class TestPull:
    def test_a_loop_s_body_runs_inside(self, captured_spans: CapturedSpans) -> None:
        """traced_messages: idle ticks and what comes behind the loop are outside."""
        messages = [delivery({"traceparent": TRACEPARENT}), (None, None, None), delivery(tag=2)]
        inside = [current().is_valid for _ in adapter.traced_messages(messages)]
        assert inside == [True, False, True]
        assert not current().is_valid
        assert len(captured_spans) == 2

    @pytest.mark.parametrize("message", [None, (None, None, None)])
    def test_nothing_pulled_has_no_span(self, captured_spans: CapturedSpans, message: Any) -> None:
        """An empty queue."""
        with adapter.traced_message(message):
            assert not current().is_valid
        assert len(captured_spans) == 0

    def test_a_batch_links_to_each_message(self, captured_spans: CapturedSpans) -> None:
        """One span, named after where the first message comes from; none for no message. Pulls of nothing are none."""
        nothing = (None, None, None)
        with adapter.traced_batch(
            [nothing, delivery({"traceparent": TRACEPARENT}), delivery(tag=2), nothing]
        ):
            pass
        with adapter.traced_batch([]):
            pass
        with adapter.traced_batch([nothing]):
            pass
        span = only(captured_spans)
        assert span.name == "process orders"
        assert [link.context.trace_id for link in span.links] == [TRACE_ID]
        with adapter.traced_batch([delivery()], Destination("rabbitmq", "all orders")):
            pass
        assert captured_spans[-1].name == "process all orders"

    def test_a_pull_has_a_receive_span_and_tells_the_queue(
        self, captured_spans: CapturedSpans, channel: Any
    ) -> None:
        """traced_get; the message's own span then knows the queue, too, as long as the message lives."""
        get = adapter.traced_get(
            _method_of(channel, "basic_get", lambda queue: delivery(exchange="events", routing_key="new"))
        )
        message = get("orders")
        with adapter.traced_message(message):
            pass
        names = [span.name for span in captured_spans]
        assert names == ["poll events:new:orders", "process events:new:orders"]

    def test_a_pull_call_that_gives_none_for_an_empty_queue(
        self, captured_spans: CapturedSpans, channel: Any
    ) -> None:
        """A function of the user's around basic_get: there is no span, and None is returned."""
        assert adapter.traced_get(lambda queue: None)("orders") is None
        assert len(captured_spans) == 0

    def test_a_function_around_basic_get_tells_no_channel(self, captured_spans: CapturedSpans) -> None:
        """Its pull is traced all the same; a settlement of what it gave is not, since nobody knows whose tag it is."""
        pulled = delivery()
        assert adapter.traced_get(lambda queue: pulled, settings=SETTLED)("orders") is pulled
        assert [span.name for span in captured_spans] == ["poll orders"]

    def test_a_pull_inside_a_pull_is_one(self, captured_spans: CapturedSpans, channel: Any) -> None:
        """The explicit API above the instrumentor."""
        get = adapter.traced_get(
            adapter.traced_get(_method_of(channel, "basic_get", lambda queue: delivery()))
        )
        get("orders")
        assert only(captured_spans).kind is SpanKind.CLIENT

    def test_an_empty_pull_has_no_span_and_a_failed_one_an_error(
        self, captured_spans: CapturedSpans, channel: Any
    ) -> None:
        """(None, None, None) is what pika gives for an empty queue."""
        nothing = (None, None, None)
        assert (
            adapter.traced_get(_method_of(channel, "basic_get", lambda queue: nothing))("orders") is nothing
        )
        assert len(captured_spans) == 0

        def fail(queue: str) -> Any:
            raise LookupError("no such queue")

        with pytest.raises(LookupError):
            adapter.traced_get(_method_of(channel, "basic_get", fail))("orders")
        span = only(captured_spans)
        assert (span.name, span.attributes["error.type"]) == ("poll orders", "LookupError")

    def test_receive_spans_can_be_switched_off(self, captured_spans: CapturedSpans, channel: Any) -> None:
        """Settings(receive_spans=False); the queue is told all the same."""
        settings = Settings(receive_spans=False)
        get = adapter.traced_get(
            _method_of(channel, "basic_get", lambda queue: delivery(exchange="events")), settings=settings
        )
        message = get("mails")
        assert len(captured_spans) == 0
        with adapter.traced_message(message):
            pass
        assert only(captured_spans).name == "process events:orders:mails"

    def test_a_fault_of_ours_does_not_lose_the_message(
        self, channel: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What was pulled is returned, whatever it is and whatever fails."""

        monkeypatch.setattr(guard, "raise_faults", False)
        monkeypatch.setattr(adapter.PIKA, "consumed_from", _raise)
        for message in (delivery(), ("an", "odd", "message")):
            get = _method_of(channel, "basic_get", lambda queue, message=message: message)
            assert adapter.traced_get(get)("orders") is message


def kept() -> int:
    """How many messages are remembered for their settlement."""
    unsettled = adapter.PIKA.unsettled
    return sum(len(unsettled.keys(channel)) for channel in unsettled.holders())


def known() -> int:
    """Of how many deliveries something is known."""
    return len(adapter.PIKA.deliveries._kept.holders())


class TestSettle:
    def test_a_settlement_is_a_child_of_the_message_s_span(
        self, captured_spans: CapturedSpans, channel: Any, connection: Connection
    ) -> None:
        """However late; once."""
        on_message: Any = adapter.traced_consumer(queue="orders", settings=SETTLED)(lambda *_: None)
        on_message(channel, *delivery())
        ack = adapter.traced_settle(channel.basic_ack, settings=SETTLED)
        ack(1)
        ack(1)
        process, settle = (cast("Any", span) for span in captured_spans)
        assert (settle.name, settle.kind) == ("ack orders", SpanKind.CLIENT)
        assert settle.parent == process.context
        assert settle.attributes["messaging.rabbitmq.message.delivery_tag"] == 1
        assert len(connection.sent) == 2

    @pytest.mark.parametrize("is_pulled", [False, True])
    def test_a_second_layer_does_not_change_the_parent(
        self, captured_spans: CapturedSpans, channel: Any, is_pulled: bool
    ) -> None:
        """A handler that is traced inside a span of the user's, inside the message's own: that is the parent."""
        message = delivery()
        if is_pulled:
            get = _method_of(channel, "basic_get", lambda queue: message)
            adapter.traced_get(get, settings=SETTLED)("orders")
        ack = adapter.traced_settle(channel.basic_ack, settings=SETTLED)
        inner: Any = adapter.traced_consumer(settings=SETTLED)(lambda *_: ack(1))

        @adapter.traced_consumer(settings=SETTLED)
        def outer(*given: Any) -> None:
            with get_tracer("user").start_as_current_span("work"):
                inner(*given)

        outer(channel, *message)
        settle, process = captured_spans[-3], captured_spans[-1]
        assert [settle.name, process.name[:14]] == ["ack orders", "process orders"]
        assert settle.parent == process.context
        assert kept() == 0

    def test_a_batch_s_messages_are_settled_under_its_span(
        self, captured_spans: CapturedSpans, channel: Any
    ) -> None:
        """Pulled one by one, handled at once, settled one by one."""
        tags = iter((1, 2))
        get = adapter.traced_get(
            _method_of(channel, "basic_get", lambda queue: delivery(tag=next(tags))), settings=SETTLED
        )
        with adapter.traced_batch([get("orders"), get("orders")], settings=SETTLED):
            pass
        adapter.traced_settle(channel.basic_ack, settings=SETTLED)(2)
        batch, settle = captured_spans[-2:]
        assert settle.parent == batch.context

    def test_the_ack_of_another_channel_s_delivery_is_none_of_this_message(
        self, captured_spans: CapturedSpans, channel: Any, connection: Connection
    ) -> None:
        """Delivery tags count up on each channel alone: the same one elsewhere is another message."""
        other = Channel(connection, 2, None)
        other._set_state(Channel.OPEN)
        ack = adapter.traced_settle(other.basic_ack, settings=SETTLED)
        on_message: Any = adapter.traced_consumer(settings=SETTLED)(lambda *_: ack(1))
        on_message(channel, *delivery(tag=1))
        assert [span.name for span in captured_spans] == ["process orders"]

    def test_a_settle_call_of_the_user_s_own_goes_through(self, channel: Any) -> None:
        """It has no name of pika's, and no channel that is known."""

        class Settle:
            def __call__(self, tag: int) -> int:
                return tag

        assert adapter.traced_settle(lambda tag: tag, settings=SETTLED)(1) == 1
        guarded = pytest.MonkeyPatch()
        with guarded.context() as patch:
            patch.setattr(guard, "raise_faults", False)
            assert adapter.traced_settle(Settle(), settings=SETTLED)(1) == 1

    def test_a_handler_that_is_given_no_channel_is_traced(self, captured_spans: CapturedSpans) -> None:
        """What stands before the message may be anything."""
        adapter.traced_consumer(settings=SETTLED)(lambda *_: None)("job 7", *delivery())
        assert len(captured_spans) == 1

    def test_by_default_there_is_none(self, captured_spans: CapturedSpans, channel: Any) -> None:
        """Settings(settle_spans=False), and nothing is kept of the message."""
        adapter.traced_consumer(lambda *_: None)(channel, *delivery())
        adapter.traced_settle(channel.basic_ack)(1)
        assert len(captured_spans) == 1
        assert kept() == 0

    def test_what_was_pulled_is_settled_in_its_own_trace(
        self, captured_spans: CapturedSpans, channel: Any
    ) -> None:
        """Also when nobody handles it in a span: under its creation context."""
        pulled = delivery({"traceparent": TRACEPARENT})
        get = adapter.traced_get(_method_of(channel, "basic_get", lambda queue: pulled), settings=SETTLED)
        get("orders")
        adapter.traced_settle(channel.basic_reject, settings=SETTLED)(1)
        assert captured_spans[-1].name == "reject orders"
        assert captured_spans[-1].context.trace_id == TRACE_ID

    def test_what_was_pulled_and_handled_is_settled_under_its_span(
        self, captured_spans: CapturedSpans, channel: Any
    ) -> None:
        """traced_message is another call than the pull: both mean the same message."""
        get = adapter.traced_get(
            _method_of(channel, "basic_get", lambda queue: delivery(tag=5)), settings=SETTLED
        )
        message = get("orders")
        with adapter.traced_message(message, settings=SETTLED):
            pass
        adapter.traced_settle(channel.basic_ack, settings=SETTLED)(5)
        _, process, settle = captured_spans
        assert settle.parent == process.context

    def test_a_loop_without_a_channel_settles_what_it_has_in_hand(
        self, captured_spans: CapturedSpans, channel: Any
    ) -> None:
        """Inside the body, once; of another delivery tag nothing is known, and behind the loop neither."""
        ack = adapter.traced_settle(channel.basic_ack, settings=SETTLED)
        for method, _, _ in adapter.traced_messages([delivery(tag=7)], settings=SETTLED):
            ack(8)
            ack(method.delivery_tag)
            ack(method.delivery_tag)
        ack(7)
        assert [span.name for span in captured_spans if span.kind is SpanKind.CLIENT] == ["ack orders"]

    def test_a_fault_of_ours_does_not_stop_the_ack(
        self, channel: Any, connection: Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A tag that is no number is pika's to judge."""
        monkeypatch.setattr(guard, "raise_faults", False)
        adapter.traced_consumer(settings=SETTLED)(lambda *_: None)(channel, *delivery())
        adapter.traced_settle(channel.basic_ack, settings=SETTLED)("one", multiple=True)
        assert len(connection.sent) == 1

    def test_with_multiple_all_up_to_the_tag_are_settled(
        self, captured_spans: CapturedSpans, channel: Any
    ) -> None:
        """And 0 is all that are left."""
        for tag in (1, 2, 3):
            adapter.traced_consumer(settings=SETTLED)(lambda *_: None)(channel, *delivery(tag=tag))
        nack = adapter.traced_settle(channel.basic_nack, settings=SETTLED)
        nack(2, True)
        nack(multiple=True)
        several, one = (cast("Any", span) for span in captured_spans[-2:])
        assert several.attributes["messaging.batch.message_count"] == 2
        assert one.attributes["messaging.rabbitmq.destination.routing_key"] == "orders"
        assert one.parent == captured_spans[2].context


class TestMemory:
    """With settle spans on, what is kept of messages is bounded, however their life ends."""

    @pytest.fixture(autouse=True)
    def _from_nothing(self) -> None:
        gc.collect()
        assert kept() == 0

    def test_what_needs_no_ack_is_not_kept(self, channel: Any, settled: Any) -> None:
        """auto_ack: of a consumer, of a pull, of an asynchronous pull."""
        channel.basic_consume("orders", lambda *_: None, auto_ack=True, consumer_tag="consumer")
        channel._consumers["consumer"](channel, *delivery())
        channel.basic_get("orders", lambda *_: None, True)
        channel._on_getok_callback(channel, *delivery(tag=2))
        get = _method_of(channel, "basic_get", lambda queue, auto_ack: delivery(tag=3))
        adapter.traced_get(get, settings=SETTLED)("orders", auto_ack=True)
        assert kept() == 0

    def test_nor_what_arrives_after_the_broker_has_cancelled_such_a_consumer(
        self, channel: Any, settled: Any
    ) -> None:
        """The channel has forgotten by then that the consumer needs no ack, and messages wait still."""
        channel.basic_consume("orders", lambda *_: None, auto_ack=True, consumer_tag="consumer")
        callback = channel._consumers["consumer"]
        channel._cleanup_consumer_ref("consumer")
        callback(channel, *delivery())
        assert kept() == 0

    def test_the_explicit_api_asks_the_channel(self, channel: Any) -> None:
        """Which knows whether a consumer needs no ack."""
        channel._consumers_with_noack.add("consumer")
        adapter.traced_consumer(settings=SETTLED)(lambda *_: None)(channel, *delivery())
        assert kept() == 0

    @pytest.mark.parametrize("name", ["basic_ack", "basic_nack", "basic_reject"])
    def test_what_is_settled_is_gone(self, channel: Any, settled: Any, name: str) -> None:
        """Requeued or not: a redelivery has a tag of its own."""
        channel.basic_consume("orders", lambda *_: None, consumer_tag="consumer")
        for tag in range(1, 51):
            channel._consumers["consumer"](channel, *delivery(tag=tag))
            assert kept() == 1
            getattr(channel, name)(tag)
        assert kept() == 0

    def test_what_the_broker_is_asked_to_deliver_again_is_gone(self, channel: Any, settled: Any) -> None:
        """basic_recover: all that is unsettled comes with new tags, and nobody will settle the old ones."""
        channel._rpc = lambda *_: "recovering"
        channel.basic_consume("orders", lambda *_: None, consumer_tag="consumer")
        for tag in range(1, 51):
            channel._consumers["consumer"](channel, *delivery(tag=tag))
        assert kept() == 50
        assert channel.basic_recover(requeue=True) == "recovering"
        assert kept() == 0

    def test_what_a_closed_channel_never_settled_goes_with_it(self, connection: Connection) -> None:
        """Neither a message nor its handler keeps a channel alive."""
        channel: Any = Channel(connection, 1, None)
        channel._set_state(Channel.OPEN)
        on_message: Any = adapter.traced_consumer(settings=SETTLED)(lambda channel, *_: channel)
        for tag in range(1, 51):
            on_message(channel, *delivery(tag=tag))
        assert kept() == 50
        channel._set_state(Channel.CLOSED)
        del channel
        gc.collect()
        assert kept() == 0

    def test_what_nobody_tells_us_of_is_bounded(
        self, channel: Any, connection: Connection, captured_spans: CapturedSpans, monkeypatch: Any
    ) -> None:
        """A user who acks without traced_settle: the oldest go; the acks of those that are kept are still traced."""
        monkeypatch.setattr(adapter.PIKA.unsettled, "_most", 10)
        on_message: Any = adapter.traced_consumer(settings=SETTLED)(lambda *_: None)
        for tag in range(1, 51):
            on_message(channel, *delivery(tag=tag))
            channel.basic_ack(tag)
        assert kept() == 10
        ack = adapter.traced_settle(channel.basic_ack, settings=SETTLED)
        ack(40)
        assert len(captured_spans) == 50
        ack(41)
        assert captured_spans[-1].parent == captured_spans[40].context
        assert len(connection.sent) == 52

    def test_neither_bodies_nor_pika_s_objects_are_kept(self, channel: Any) -> None:
        """Of a message that waits for its ack: it may be large, and there may be many."""
        on_message: Any = adapter.traced_consumer(settings=SETTLED)(lambda *_: None)
        body = bytes(1000)
        references = sys.getrefcount(body)
        methods: list[weakref.ref[Any]] = []
        for tag in range(1, 11):
            method, properties, _ = delivery(tag=tag)
            methods.append(weakref.ref(method))
            on_message(channel, method, properties, body)
        del method
        gc.collect()
        assert kept() == 10
        assert sys.getrefcount(body) == references
        assert [method() for method in methods] == [None] * 10

    def test_what_was_pulled_is_known_as_long_as_it_lives(self, channel: Any) -> None:
        """Also when it is never settled: its queue is forgotten with pika's method object."""
        get = adapter.traced_get(_method_of(channel, "basic_get", lambda queue: delivery()), settings=SETTLED)
        messages = [get("orders") for _ in range(50)]
        assert known() == 50
        with adapter.traced_message(messages[0], settings=SETTLED):
            pass
        with adapter.traced_batch(messages, settings=SETTLED):
            pass
        del messages
        gc.collect()
        assert known() == 0

    def test_a_loop_that_is_over_is_not_kept(self, channel: Any) -> None:
        """Of the explicit API, which knows no channel."""
        for message in adapter.traced_messages([delivery(tag=tag) for tag in range(50)], settings=SETTLED):
            del message
        gc.collect()
        assert known() == 0

    @pytest.fixture
    def settled(self) -> Iterator[None]:
        instrumentor = adapter.PikaInstrumentor()
        instrumentor.instrument(settings=SETTLED)
        yield
        instrumentor.uninstrument()


class TestInstrumentor:
    def test_a_facade_s_publish_has_one_span(
        self, captured_spans: CapturedSpans, instrumentor: Any, channel: Any, connection: Connection
    ) -> None:
        """BlockingChannel above Channel."""
        facade = BlockingChannel.__new__(BlockingChannel)
        facade._impl, facade._delivery_confirmation = channel, False
        facade._connection = SimpleNamespace(_impl=connection)
        facade._flush_output = lambda: None
        facade.basic_publish("", "orders", b"hello")
        assert only(captured_spans).attributes["server.address"] == "rabbit.example"
        assert len(connection.sent) == 1

    @pytest.mark.parametrize("level", ["channel", "facade"])
    def test_a_channel_that_another_instrumentation_has_wrapped_is_left_to_it(
        self,
        captured_spans: CapturedSpans,
        instrumentor: Any,
        channel: Any,
        connection: Connection,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
        level: str,
    ) -> None:
        """By instrument_channel(), or before it was switched off: no publish, delivery, pull or cancel of ours there.

        One warning; other channels are traced.
        """
        monkeypatch.setattr(guard, "_logged", {})
        rival = "opentelemetry.instrumentation.pika"
        monkeypatch.setitem(
            sys.modules, rival, sys.modules.get(rival, ModuleType(rival))
        )  # which does such a thing
        publish = channel.basic_publish

        def wrapped(*args: Any, **kwargs: Any) -> None:
            publish(*args, **kwargs)

        wrapped._original_function = publish  # type: ignore[attr-defined]
        facade = BlockingChannel.__new__(BlockingChannel)
        facade._impl, facade._queue_consumer_generator = channel, None
        channel._set_cookie(facade)
        (channel if level == "channel" else facade).basic_publish = wrapped
        channel.basic_publish("", "orders", b"hello")
        channel.basic_consume("orders", lambda *_: None, consumer_tag="consumer")
        channel._consumers["consumer"](channel if level == "channel" else facade, *delivery())
        hooks = hooks_of(SETTLED)
        hooks.pull(lambda queue: delivery(), channel, ("orders",), {})
        assert hooks.cancel(lambda: 0, facade if level == "facade" else channel, (), {}) == 0
        assert len(connection.sent) == 2
        assert len(captured_spans) == 0
        [record] = [it for it in caplog.records if it.name == "queueprop"]
        assert "opentelemetry.instrumentation.pika" in record.getMessage()
        other = Channel(connection, 2, None)
        other._set_state(Channel.OPEN)
        other.basic_publish("", "orders", b"hello")
        assert len(captured_spans) == 1

    @pytest.mark.parametrize("auto_ack", [False, True])
    def test_what_a_cancel_gives_back_is_settled_in_its_own_trace(
        self, captured_spans: CapturedSpans, channel: Any, auto_ack: bool
    ) -> None:
        """Fetched and never handed over: a settle span below its creation context; none where it needs no ack."""
        facade = BlockingChannel.__new__(BlockingChannel)
        method, properties, body = delivery(
            {"traceparent": TRACEPARENT}, exchange="events", routing_key="new"
        )
        events = [SimpleNamespace(method=method, properties=properties, body=body), SimpleNamespace()]
        facade._impl, facade._connection = channel, SimpleNamespace(_impl=channel.connection)
        facade._queue_consumer_generator = SimpleNamespace(
            params=("mails", auto_ack, False), pending_events=events
        )
        reject = adapter.traced_settle(channel.basic_reject, settings=SETTLED)
        hooks_of(SETTLED).cancel(lambda: reject(1), facade, (), {})
        facade._queue_consumer_generator = None  # cancelled twice
        hooks_of(SETTLED).cancel(lambda: reject(1), facade, (), {})
        if auto_ack:
            assert len(captured_spans) == 0
            return
        span = only(captured_spans)
        assert (span.name, span.kind) == ("reject events:new:mails", SpanKind.CLIENT)
        assert span.context.trace_id == TRACE_ID

    def test_a_fault_of_ours_does_not_stop_a_cancel(
        self, owner: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A pika whose generators are kept elsewhere: cancelled as ever."""
        monkeypatch.setattr(guard, "raise_faults", False)
        assert hooks_of(SETTLED).cancel(lambda: 0, owner, (), {}) == 0

    def test_the_callback_of_an_asynchronous_get_is_traced(
        self, captured_spans: CapturedSpans, instrumentor: Any, channel: Any
    ) -> None:
        """Until uninstrument(): then it is just called."""
        seen: list[bool] = []
        channel.basic_get("orders", lambda *_: seen.append(current().is_valid))
        channel._on_getok_callback(channel, *delivery())
        instrumentor.uninstrument()
        channel._on_getok_callback(channel, *delivery())
        assert seen == [True, False]
        assert len(captured_spans) == 1

    def test_the_generator_of_consume_is_one_still(
        self, captured_spans: CapturedSpans, loops: Callable[[], Any]
    ) -> None:
        """next(), send(), throw(), close() and iter(), and each message inside its span."""
        loop = loops()
        assert iter(loop) is loop
        assert next(loop)[0].delivery_tag == 1
        assert current().is_valid
        assert loop.send(None)[0].delivery_tag == 2
        assert current().is_valid
        with pytest.raises(LookupError):
            loop.throw(LookupError("enough"))
        assert not current().is_valid
        loop.close()
        assert len(captured_spans) == 2

    def test_cancel_and_a_second_consume_end_what_the_first_has_in_hand(
        self, captured_spans: CapturedSpans, loops: Callable[[], Any], hooks: Any, owner: Any
    ) -> None:
        """Though its generator is kept; a cancel without any is pika's alone."""
        first = loops()
        next(first)
        second = loops()
        assert not current().is_valid
        next(second)
        for _ in range(2):
            assert hooks.cancel(lambda: 0, owner, (), {}) == 0
        assert not current().is_valid
        assert len(captured_spans) == 2
        third = loops()
        next(third)
        del third
        gc.collect()
        hooks.cancel(lambda: 0, owner, (), {})
        assert len(captured_spans) == 3

    @pytest.fixture
    def hooks(self) -> Any:
        return hooks_of(Settings())

    @pytest.fixture
    def owner(self, connection: Connection) -> Any:
        channel = BlockingChannel.__new__(BlockingChannel)
        channel._impl, channel._connection = None, SimpleNamespace(_impl=connection)
        return channel

    @pytest.fixture
    def loops(self, hooks: Any, owner: Any) -> Callable[[], Any]:
        def consume(queue: str) -> Iterator[Any]:
            yield delivery(tag=1)
            yield delivery(tag=2)

        return lambda: hooks.iterate(consume, owner, ("orders",), {})


MANY = range(1, 13)


class TestBroken:
    """Something around the adapter is broken, or the adapter is: every message goes out and comes in all the same."""

    def _everything(self, channel: Any, connection: Connection, settings: Settings) -> None:
        """A callback that acks, a loop that acks, pulls, batches and publishes, of twelve messages each."""
        handled: list[int] = []
        publish = adapter.traced_publish(channel.basic_publish, settings=settings)
        ack = adapter.traced_settle(channel.basic_ack, settings=settings)
        get = adapter.traced_get(
            _method_of(channel, "basic_get", lambda queue, tag: delivery(tag=tag)), settings=settings
        )

        @adapter.traced_consumer(queue="orders", settings=settings)
        def on_message(channel: Any, method: Any, properties: Any, body: bytes) -> None:
            publish("", "answers", body, BasicProperties(headers={"tenant": "a"}))
            ack(method.delivery_tag)
            handled.append(method.delivery_tag)

        for tag in MANY:
            on_message(channel, *delivery({"traceparent": TRACEPARENT}, tag=tag))
        for method, _, _ in adapter.traced_messages([delivery(tag=tag) for tag in MANY], settings=settings):
            ack(method.delivery_tag)
            handled.append(method.delivery_tag)
        for tag in MANY:
            message = get("orders", tag)
            with adapter.traced_message(message, settings=settings):
                ack(message[0].delivery_tag)
                handled.append(message[0].delivery_tag)
        pulled = [get("orders", tag) for tag in MANY]
        with adapter.traced_batch(pulled, settings=settings):
            handled.extend(method.delivery_tag for method, _, _ in pulled)
        ack(0, multiple=True)
        assert handled == [*MANY] * 4
        sent = [content for _, content in connection.sent if content is not None]
        assert [body for _, body in sent] == [b"hello"] * len(MANY)
        assert all(properties.headers["tenant"] == "a" for properties, _ in sent)
        assert len(connection.sent) == 4 * len(MANY) + 1
        assert get_current_span() is INVALID_SPAN

    @pytest.mark.usefixtures("broken_logging")
    @pytest.mark.parametrize(
        "ours",
        [
            *(
                "publication",
                "message",
                "consumed_from",
                "native",
                "is_nothing",
                "is_message",
                "delivery_among",
            ),
            *("identity", "source", "settlement_of", "settled"),
        ],
    )
    def test_a_fault_of_ours_and_no_logging(
        self, channel: Any, connection: Connection, monkeypatch: pytest.MonkeyPatch, ours: str
    ) -> None:
        """Whatever of the adapter raises at each message, and though it cannot be told."""
        monkeypatch.setattr(adapter.PIKA, ours, _raise)
        self._everything(channel, connection, SETTLED)

    @pytest.mark.usefixtures("broken_logging")
    def test_an_odd_sdk(self, channel: Any, connection: Connection, odd_sdk: Any) -> None:
        """A tracer that gives no span, and spans whose methods raise."""
        settings = Settings(tracer_provider=odd_sdk, settle_spans=True, capture_headers=("tenant",))
        self._everything(channel, connection, settings)
        assert not adapter.PIKA.unsettled.keys(channel)

    @pytest.mark.parametrize("name", ["basic_ack", "basic_nack", "basic_reject"])
    def test_a_settlement_under_an_odd_sdk(
        self, channel: Any, connection: Connection, odd_sdk: Any, name: str
    ) -> None:
        """With the instrumentor and settle spans, basic_ack, nack and reject settle in a callback and behind it."""
        instrumentor = adapter.PikaInstrumentor()
        instrumentor.instrument(settings=Settings(tracer_provider=odd_sdk, settle_spans=True))
        try:
            on_message: Any = adapter.traced_consumer(
                lambda channel, method, *_: (
                    method.delivery_tag % 2 and getattr(channel, name)(method.delivery_tag)
                )
            )
            for tag in MANY:
                on_message(channel, *delivery(tag=tag))
                if tag % 2 == 0:
                    getattr(channel, name)(tag)
        finally:
            instrumentor.uninstrument()
        assert [method.delivery_tag for method, _ in connection.sent] == [*MANY]

    def test_a_hook_that_raises(
        self,
        captured_spans: CapturedSpans,
        channel: Any,
        connection: Connection,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Of a user's function one line is said; every message goes on, traced."""
        settings = Settings(publish_hook=_raise, consume_hook=_raise, trust=_raise, settle_spans=True)
        self._everything(channel, connection, settings)
        lines = [record.getMessage() for record in caplog.records]
        assert [line.partition(":")[0] for line in lines] == [
            "queueprop, asking Settings(trust=...) about a message, which counts as untrusted then",
            "queueprop, calling Settings(consume_hook=...)",
            "queueprop, calling Settings(publish_hook=...)",
        ]
        assert len([span for span in captured_spans if span.kind is SpanKind.CONSUMER]) == 3 * len(MANY) + 1

    @pytest.mark.usefixtures("guarded")
    def test_a_callback_that_cannot_be_looked_at(self, instrumentor: Any, channel: Any) -> None:
        """It is registered as it is."""

        class Odd:
            def __call__(self, *args: Any) -> None: ...

            def __getattribute__(self, name: str) -> Any:
                raise LookupError(name)

        odd = Odd()
        channel.basic_get("orders", odd)
        assert channel._on_getok_callback is odd

    @pytest.mark.usefixtures("guarded")
    def test_a_recover_that_cannot_be_followed(self, channel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is asked for all the same."""
        monkeypatch.setattr(patching, "channel_below", _raise)
        assert hooks_of(SETTLED).recover(lambda: 7, channel, (), {}) == 7

    def test_names_in_the_log_are_in_one_line(
        self,
        captured_spans: CapturedSpans,
        channel: Any,
        connection: Connection,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Exchange and routing key come from outside: escaped, cut, and said once."""
        connection.params.frame_max = 4096
        publish = adapter.traced_publish(channel.basic_publish)
        large = BasicProperties(headers={"a": "x" * 4000})
        for number in range(100):
            publish(f"orders-{number}\nERROR: forged \x1b[31m", "k" * 255, b"hello", large)
        (record,) = caplog.records
        assert record.getMessage().startswith(
            r"queueprop, publishing with pika (to orders-0\nERROR: forged \x1b[31m:kkk"
        )
        assert record.getMessage().count("k") < 255


def hooks_of(settings: Settings) -> Any:
    """Those of an instrumentor."""
    return patching._Hooks(adapter.PIKA, engine_for(settings), lambda: True)


def _raise(*args: Any, **kwargs: Any) -> Any:
    raise LookupError("no")


def test_the_extra_is_named_when_pika_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that says what to install; another module that is missing is not mistaken for it."""
    monkeypatch.delitem(sys.modules, "queueprop.adapters.pika")
    monkeypatch.setitem(sys.modules, "pika", None)
    with pytest.raises(MissingExtra, match=r'pip install "queueprop\[pika\]"'):
        importlib.import_module("queueprop.adapters.pika")
    monkeypatch.undo()
    monkeypatch.delitem(sys.modules, "queueprop.adapters.pika")
    monkeypatch.setitem(sys.modules, "pika.channel", None)
    with pytest.raises(ModuleNotFoundError) as raised:
        importlib.import_module("queueprop.adapters.pika")
    assert not isinstance(raised.value, MissingExtra)


def _method_of(channel: Any, name: str, function: Callable[..., Any]) -> Any:
    """``function`` as a bound method of the channel."""

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    method.__name__ = name
    return method.__get__(channel)
