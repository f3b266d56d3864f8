"""The pika adapter without a broker: pika's own channels on a connection that goes nowhere."""

from __future__ import annotations

import functools
import gc
import importlib
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

pytest.importorskip("pika")

from opentelemetry.trace import SpanContext, SpanKind, StatusCode, get_current_span
from pika import BasicProperties
from pika.adapters.blocking_connection import BlockingChannel
from pika.channel import Channel
from pika.exceptions import ChannelWrongStateError
from pika.spec import Basic

from queueprop import Destination, Settings, guard
from queueprop.adapter import MissingExtra
from queueprop.adapters import pika as adapter
from queueprop.spans import engine_for
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
            ({"x-death": []}, False, None),
        ],
    )
    def test_the_attempt_is_told_where_it_is_known(
        self, captured_spans: CapturedSpans, headers: Any, redelivered: bool, attempt: int | None
    ) -> None:
        """Quorum queues count; a first delivery is the first; a count that was forwarded is not believed."""
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
        """One span, named after where the first message comes from; none for no message."""
        with adapter.traced_batch([delivery({"traceparent": TRACEPARENT}), delivery(tag=2)]):
            pass
        with adapter.traced_batch([]):
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
        assert adapter._pulled.find(message[0]) is not None
        with adapter.traced_message(message):
            pass
        names = [span.name for span in captured_spans]
        assert names == ["poll events:new:orders", "process events:new:orders"]
        del message
        gc.collect()
        assert adapter._pulled._found == {}

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
        """What was pulled is returned, whatever it is."""
        monkeypatch.setattr(guard, "raise_faults", False)
        odd = ("an", "odd", "message")
        assert adapter.traced_get(_method_of(channel, "basic_get", lambda queue: odd))("orders") is odd


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
        process, settle = captured_spans
        assert (settle.name, settle.kind) == ("ack orders", SpanKind.CLIENT)
        assert settle.parent == process.context
        assert len(connection.sent) == 2

    def test_by_default_there_is_none(self, captured_spans: CapturedSpans, channel: Any) -> None:
        """Settings(settle_spans=False), and nothing is kept of the message."""
        adapter.traced_consumer(lambda *_: None)(channel, *delivery())
        adapter.traced_settle(channel.basic_ack)(1)
        assert len(captured_spans) == 1
        assert adapter._unsettled.take(channel, 0, True) == []

    def test_what_needs_no_ack_is_not_kept(self, channel: Any) -> None:
        """A consumer with auto_ack, a pull with auto_ack."""
        channel._consumers_with_noack.add("consumer")
        adapter.traced_consumer(settings=SETTLED)(lambda *_: None)(channel, *delivery())
        get = _method_of(channel, "basic_get", lambda queue, auto_ack: delivery())
        adapter.traced_get(get, settings=SETTLED)("orders", auto_ack=True)
        assert adapter._unsettled.take(channel, 0, True) == []

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
        """Inside the body; of another delivery tag nothing is known, and behind the loop neither."""
        ack = adapter.traced_settle(channel.basic_ack, settings=SETTLED)
        for method, _, _ in adapter.traced_messages([delivery(tag=7)], settings=SETTLED):
            ack(method.delivery_tag)
            ack(8)
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
        adapter._unsettled.take(channel, 0, True)

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
        return adapter._Hooks(engine_for())

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
