"""What pika and RabbitMQ alone have: confirms, returns, ticks, settlements, exchanges, queues, a broker that goes away.

What every library has is in the contract.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pika")

import pika
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.propagators.composite import CompositePropagator
from pika.exceptions import AMQPError, ChannelClosedByBroker, NackError, UnroutableError

from integration.brokers import Broker
from integration.contract.run import only
from integration.contract.telemetry import ambient_span, telemetry, wait_until
from integration.drivers.pika_loop import Loop
from integration.live import NOTHING, Bodies, Spans, current, run_killed, unique
from queueprop import Settings, guard
from queueprop.adapters import pika as adapter

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"


@pytest.fixture
def spans(tmp_path: Path) -> Iterator[Spans]:
    with telemetry(tmp_path / "records.jsonl") as told:
        yield Spans(told)


@contextmanager
def instrumented(settings: Settings | None = None) -> Iterator[adapter.PikaInstrumentor]:
    instrumentor = adapter.PikaInstrumentor()
    instrumentor.instrument(settings=settings)
    try:
        yield instrumentor
    finally:
        if instrumentor.is_instrumented_by_opentelemetry:
            instrumentor.uninstrument()


@pytest.fixture
def on(spans: Spans) -> Iterator[adapter.PikaInstrumentor]:
    with instrumented() as instrumentor:
        yield instrumentor


@pytest.fixture
def connection(rabbitmq_url: str) -> Iterator[pika.BlockingConnection]:
    connection = pika.BlockingConnection(pika.URLParameters(rabbitmq_url))
    yield connection
    with contextlib.suppress(AMQPError):
        connection.close()


@pytest.fixture
def channel(connection: Any) -> Any:
    return connection.channel()


@pytest.fixture
def queue(channel: Any) -> str:
    return declared(channel)


def declared(channel: Any, **arguments: Any) -> str:
    """A queue that goes with its connection."""
    name: str = channel.queue_declare(unique("orders"), exclusive=True, arguments=arguments).method.queue
    return name


def wait_for(channel: Any, queue: str, count: int = 1) -> None:
    """Until that many messages are ready. On a channel of its own, so that nothing else moves on."""
    wait_until(
        lambda: channel.queue_declare(queue, passive=True).method.message_count >= count,
        f"{count} messages in {queue}",
    )


def consume(channel: Any, queue: str, handler: Callable[..., Any], count: int = 1) -> None:
    handled: list[Any] = []

    def on_message(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        handled.append(method)
        if len(handled) == count:
            channel.stop_consuming()
        handler(channel, method, properties, body)

    channel.basic_consume(queue, on_message, auto_ack=True)
    channel.start_consuming()


# Publishing


class TestPublish:
    @pytest.mark.parametrize("confirms", [False, True])
    def test_a_publish_makes_one_span_not_one_for_the_facade_and_one_below(
        self, on: Any, spans: Spans, channel: Any, queue: str, confirms: bool
    ) -> None:
        """BlockingChannel.basic_publish calls Channel.basic_publish: one PRODUCER span for both, and nothing else."""
        if confirms:
            channel.confirm_delivery()
        channel.basic_publish("", queue, b"hello")
        span = only(spans.all)
        assert (span.kind, span.name, span.status) == ("PRODUCER", f"publish {queue}", "UNSET")

    def test_the_explicit_api_under_the_instrumentor_makes_one_span_too(
        self, on: Any, spans: Spans, channel: Any, queue: str
    ) -> None:
        """traced_publish, traced_get, traced_message and traced_settle on patched calls double nothing."""
        settings = Settings(settle_spans=True)
        on.uninstrument()
        with instrumented(settings):
            adapter.traced_publish(channel.basic_publish, settings=settings)("", queue, b"hello")
            message = adapter.traced_get(channel.basic_get, settings=settings)(queue)
            with adapter.traced_message(message, settings=settings):
                adapter.traced_settle(channel.basic_ack, settings=settings)(message[0].delivery_tag)
        assert [span.name.split()[0] for span in spans.all] == ["publish", "poll", "process", "ack"]

    def test_an_unroutable_message_is_an_error_of_its_span(self, on: Any, spans: Spans, channel: Any) -> None:
        """With confirms and mandatory, UnroutableError reaches the caller and is on the PRODUCER span."""
        channel.confirm_delivery()
        with pytest.raises(UnroutableError):
            channel.basic_publish("", unique("nowhere"), b"lost", mandatory=True)
        span = only(spans.all)
        assert (span.status, span.attributes["error.type"]) == ("ERROR", "pika.exceptions.UnroutableError")

    def test_a_nacked_message_is_an_error_of_its_span(self, on: Any, spans: Spans, channel: Any) -> None:
        """A queue that is full refuses: NackError reaches the caller and is on the PRODUCER span."""
        full = declared(channel, **{"x-max-length": 0, "x-overflow": "reject-publish"})
        channel.confirm_delivery()
        with pytest.raises(NackError):
            channel.basic_publish("", full, b"lost")
        span = only(spans.all)
        assert (span.status, span.attributes["error.type"]) == ("ERROR", "pika.exceptions.NackError")

    @pytest.mark.parametrize("style", ["SelectConnection", "AsyncioConnection"])
    def test_on_an_asynchronous_channel_the_span_ends_when_the_publish_returns(
        self, on: Any, spans: Spans, rabbitmq_url: str, style: str
    ) -> None:
        """A confirm comes later, by its delivery tag: the span is over by then, and says nothing of it."""
        loop = Loop(style, pika.URLParameters(rabbitmq_url))
        answers: list[str] = []

        def answered(frame: Any) -> None:
            answers.append(frame.method.NAME)
            loop.stop()

        loop.channel.confirm_delivery(ack_nack_callback=answered, callback=loop.stop)
        loop.run()
        loop.channel.basic_publish("", unique("nowhere"), b"lost", mandatory=True)
        span = only(spans.all)
        assert (span.kind, span.status) == ("PRODUCER", "UNSET")
        loop.run()
        loop.close()
        assert answers == ["Basic.Ack"]
        assert len(spans.all) == 1

    def test_the_caller_s_properties_and_headers_stay_as_they_are(
        self, on: Any, spans: Spans, channel: Any, queue: str
    ) -> None:
        """Shared between publishes and threads: what goes out is a copy, with everything that was in them."""
        headers = {"tenant": "a", "nested": {"of": ["these"]}}
        properties = pika.BasicProperties("text/plain", headers=headers, message_id="7", priority=3)
        before = dict(vars(properties))
        for _ in range(2):
            channel.basic_publish("", queue, b"hello", properties)
        assert vars(properties) == before
        assert properties.headers is headers
        assert headers == {"tenant": "a", "nested": {"of": ["these"]}}
        wait_for(channel, queue, 2)
        sent = [channel.basic_get(queue, auto_ack=True)[1] for _ in range(2)]
        assert [sorted(it.headers) for it in sent] == [["nested", "tenant", "traceparent"]] * 2
        assert {(it.content_type, it.message_id, it.priority) for it in sent} == {("text/plain", "7", 3)}
        assert sent[0].headers["traceparent"] != sent[1].headers["traceparent"]

    def test_headers_that_cannot_be_encoded_fail_as_they_do_without_queueprop(
        self, spans: Spans, channel: Any, queue: str
    ) -> None:
        """A name that is no text: the very error that pika raises, and the channel works on."""
        errors = []
        for tracing in (contextlib.nullcontext(), instrumented()):
            with tracing, pytest.raises(Exception) as raised:  # noqa: PT011 - whatever it is
                channel.basic_publish("", queue, b"hello", pika.BasicProperties(headers={7: "name"}))
            errors.append((raised.type, str(raised.value)))
        assert errors[0] == errors[1]
        assert only(spans.all).status == "ERROR"
        channel.basic_publish("", queue, b"hello")
        wait_for(channel, queue)

    def test_headers_that_fill_the_frame_go_out_without_a_context(
        self, on: Any, spans: Spans, channel: Any, queue: str
    ) -> None:
        """Properties must fit into one frame: where the context does not, the message goes as it is; one warning."""
        frame_max = channel.connection._impl.params.frame_max
        headers = {"a": "x" * (frame_max - 60)}
        channel.basic_publish("", queue, b"hello", pika.BasicProperties(headers=headers))
        wait_for(channel, queue)
        _, properties, body = channel.basic_get(queue, auto_ack=True)
        assert (properties.headers, body) == (headers, b"hello")
        assert len([text for text in spans.complaints if "leaves no room for a trace context" in text]) == 1

    def test_nothing_to_write_leaves_the_properties_as_they_are(
        self, spans: Spans, channel: Any, queue: str
    ) -> None:
        """Without a propagator a message without headers has none, not an empty table."""
        before = propagate.get_global_textmap()
        propagate.set_global_textmap(CompositePropagator([]))
        try:
            with instrumented():
                channel.basic_publish("", queue, b"hello")
        finally:
            propagate.set_global_textmap(before)
        wait_for(channel, queue)
        assert channel.basic_get(queue, auto_ack=True)[1].headers is None


# Consuming


class TestConsume:
    @pytest.mark.parametrize(
        "value", [TRACEPARENT.encode(), 7, [TRACEPARENT], {"traceparent": TRACEPARENT}, None]
    )
    def test_the_callback_gets_its_message_whatever_the_traceparent_is(
        self, spans: Spans, channel: Any, queue: str, value: object
    ) -> None:
        """bytes, int, list, table, nothing: the message arrives, unchanged; valid bytes are even read."""
        headers = {"traceparent": value, "tenant": "a"}
        channel.basic_publish("", queue, b"hello", pika.BasicProperties(headers=headers))
        got: list[Any] = []
        with instrumented():
            consume(channel, queue, lambda _, __, properties, body: got.append((properties.headers, body)))
        assert got == [(headers, b"hello")]
        span = only(spans.of("process"))
        assert (span.trace_id == TRACE_ID) is isinstance(value, bytes)

    def test_a_message_without_a_context_is_a_root_under_a_long_lived_span(
        self, spans: Spans, channel: Any, queue: str
    ) -> None:
        """A span around start_consuming() is linked, not the parent."""
        channel.basic_publish("", queue, b"hello")
        with instrumented(), ambient_span() as ambient:
            consume(channel, queue, lambda *_: None)
        span = only(spans.of("process"))
        assert span.parent_id is None
        assert [link.trace_id for link in span.links] == [f"{ambient.trace_id:032x}"]

    @pytest.mark.parametrize("style", ["SelectConnection", "AsyncioConnection"])
    def test_the_callback_of_an_asynchronous_connection_runs_inside(
        self, on: Any, spans: Spans, rabbitmq_url: str, channel: Any, style: str
    ) -> None:
        """Its message's CONSUMER span and baggage are current in it, and nothing is in the loop around it."""
        loop = Loop(style, pika.URLParameters(rabbitmq_url))
        queue = unique("orders")
        loop.channel.queue_declare(queue, exclusive=True, callback=loop.stop)
        loop.run()
        for tenant in ("41", "42"):
            token = context.attach(baggage.set_baggage("tenant", tenant))
            loop.channel.basic_publish("", queue, tenant.encode())
            context.detach(token)
        inside: list[Any] = []
        around: list[Any] = []

        def on_message(channel: Any, method: Any, properties: Any, body: bytes) -> None:
            inside.append((current(), baggage.get_baggage("tenant"), body.decode()))

        def tick() -> None:
            around.append((current(), baggage.get_baggage("tenant")))
            if len(inside) == 2:
                loop.stop()
            else:
                loop.native.call_later(0.005, tick)

        loop.channel.basic_consume(queue, on_message, auto_ack=True)
        loop.native.call_later(0.005, tick)
        loop.run()
        loop.close()
        processes = spans.of("process")
        assert inside == [(processes[0].context, "41", "41"), (processes[1].context, "42", "42")]
        assert set(around) == {(NOTHING, None)}
        assert [(it.trace_id, it.parent_id) for it in processes] == [it.context for it in spans.of("send")]

    @pytest.mark.parametrize("inner", ["consume()", "basic_get"])
    def test_a_message_that_is_consumed_in_a_callback_has_its_own_trace(
        self, on: Any, spans: Spans, connection: Any, channel: Any, queue: str, inner: str
    ) -> None:
        """A callback that waits for an answer: inside that one's span, and afterwards in its own again."""
        answers = declared(channel)
        channel.basic_publish("", queue, b"question")
        channel.basic_publish("", answers, b"answer")
        asking = connection.channel()
        seen: list[tuple[str, str]] = []

        def on_message(channel: Any, method: Any, properties: Any, body: bytes) -> None:
            seen.append(current())
            if inner == "consume()":
                for _ in asking.consume(answers, auto_ack=True):
                    seen.append(current())
                    break
            else:
                with adapter.traced_message(asking.basic_get(answers, auto_ack=True)):
                    seen.append(current())
            connection.process_data_events()
            seen.append(current())
            channel.stop_consuming()

        channel.basic_consume(queue, on_message, auto_ack=True)
        channel.start_consuming()
        question, answer = spans.of("send")
        outer, other = spans.of("process")
        assert (outer.trace_id, outer.parent_id) == question.context
        assert (other.trace_id, other.parent_id) == answer.context
        assert [link.context for link in other.links] == [answer.context, outer.context]
        assert seen == [outer.context, other.context, outer.context]
        assert outer.start < other.start < other.end < outer.end
        assert current() == NOTHING

    def test_several_consumers_of_a_channel_do_not_nest(self, on: Any, spans: Spans, channel: Any) -> None:
        """Each callback is in its own message's trace, and between two of them nothing is current."""
        queues = [declared(channel) for _ in range(3)]
        seen: dict[str, tuple[str, str]] = {}

        def on_message(channel: Any, method: Any, properties: Any, body: bytes) -> None:
            seen[body.decode()] = current()
            if len(seen) == 6:
                channel.stop_consuming()

        for queue in queues:
            channel.basic_publish("", queue, f"{queue} one".encode())
            channel.basic_publish("", queue, f"{queue} two".encode())
            channel.basic_consume(queue, lambda *message: on_message(*message), auto_ack=True)
        channel.start_consuming()
        assert current() == NOTHING
        processes = spans.of("process")
        assert {(span.trace_id, span.parent_id) for span in processes} == {
            it.context for it in spans.of("send")
        }
        assert len({span.trace_id for span in processes}) == 6
        assert {span.context for span in processes} == set(seen.values())

    def test_uninstrument_silences_channels_and_consumers_made_meanwhile(
        self, on: Any, spans: Spans, channel: Any, queue: str
    ) -> None:
        """A consumer and a channel made while instrumented: no span after uninstrument(), and they work."""
        got: list[bytes] = []

        def on_message(channel: Any, method: Any, properties: Any, body: bytes) -> None:
            got.append(body)
            channel.stop_consuming()

        channel.basic_consume(queue, on_message, auto_ack=True)
        on.uninstrument()
        channel.basic_publish("", queue, b"hello")
        channel.start_consuming()
        assert got == [b"hello"]
        assert spans.all == []

    def test_a_loop_that_began_before_uninstrument_falls_silent(
        self, on: Any, spans: Spans, channel: Any, queue: str
    ) -> None:
        """The generator goes on without spans, and the last one is closed."""
        for body in (b"one", b"two"):
            channel.basic_publish("", queue, body)
        loop = channel.consume(queue, auto_ack=True)
        next(loop)
        on.uninstrument()
        assert next(loop)[2] == b"two"
        assert current() == NOTHING
        assert len(spans.of("process")) == 1

    def test_a_callback_that_is_a_method_with_arguments_of_its_own(
        self, spans: Spans, channel: Any, queue: str
    ) -> None:
        """traced_consumer finds the message among the arguments: of a method, and behind functools.partial."""
        inside: list[bool] = []

        class Worker:
            @adapter.traced_consumer(queue="orders")
            def on_message(self, extra: str, channel: Any, method: Any, properties: Any, body: bytes) -> None:
                inside.append(current() != NOTHING)

        channel.basic_publish("", queue, b"hello")
        consume(channel, queue, functools.partial(Worker().on_message, "extra"))
        assert inside == [True]
        assert only(spans.of("process")).name == f"process {queue}:orders"


class TestGenerator:
    """BlockingChannel.consume()."""

    def test_nothing_is_current_on_an_idle_tick_or_after_the_loop(
        self, on: Any, spans: Spans, channel: Any, queue: str
    ) -> None:
        """inactivity_timeout yields (None, None, None): outside of any message's span."""
        with ambient_span():
            token = context.attach(baggage.set_baggage("tenant", "42"))
            channel.basic_publish("", queue, b"hello")
            context.detach(token)
        seen = []
        for method, _, _ in channel.consume(queue, inactivity_timeout=0.1, auto_ack=True):
            seen.append((method is not None, current() != NOTHING, baggage.get_baggage("tenant")))
            arrived = [is_message for is_message, *_ in seen]
            # Until the broker has delivered it.
            ticks = arrived.index(True) if True in arrived else len(arrived)
            if len(seen) == ticks + 3:
                break
        idle = (False, False, None)
        assert seen == [*[idle] * ticks, (True, True, "42"), idle, idle]
        assert current() == NOTHING
        channel.cancel()
        span = only(spans.of("process"))
        assert (span.trace_id, span.parent_id) == only(spans.of("send")).context

    def test_an_exception_in_the_body_leaves_nothing_current(
        self, on: Any, spans: Spans, channel: Any, queue: str
    ) -> None:
        """The loop is dropped with the frame that it is in."""
        channel.basic_publish("", queue, b"hello")

        def body() -> None:
            for _ in channel.consume(queue):
                raise LookupError("no stock")

        with pytest.raises(LookupError):
            body()
        assert current() == NOTHING
        assert len(spans.of("process")) == 1

    def test_traced_message_tells_the_loop_s_span_what_the_body_raised(
        self, on: Any, spans: Spans, channel: Any, queue: str
    ) -> None:
        """One CONSUMER span, with the error that a for loop alone could not tell it."""
        channel.basic_publish("", queue, b"hello")
        for message in channel.consume(queue):
            with contextlib.suppress(LookupError), adapter.traced_message(message):
                raise LookupError("no stock")
            break
        assert only(spans.of("process")).attributes["error.type"] == "LookupError"

    def test_advanced_in_another_context_nothing_is_left_behind(
        self, on: Any, spans: Spans, channel: Any, queue: str
    ) -> None:
        """Each step in a contextvars Context of its own: no failed detach, every span ends, nothing leaks."""
        for number in range(3):
            channel.basic_publish("", queue, str(number).encode())
        loop = channel.consume(queue, auto_ack=True)
        for _ in range(3):
            contextvars.copy_context().run(next, loop)
            assert current() == NOTHING
        loop.close()
        assert len(spans.of("process")) == 3
        assert spans.complaints == []

    @pytest.mark.parametrize("end", ["cancel", "close", "drop"])
    def test_a_kept_generator_keeps_its_scope_until_it_is_closed_or_dropped(
        self, on: Any, spans: Spans, channel: Any, queue: str, end: str
    ) -> None:
        """After break a generator in a variable is not over; cancel() and close() end its message, and so does del."""
        channel.basic_publish("", queue, b"hello")
        loop = channel.consume(queue)
        for _ in loop:
            break
        assert current() != NOTHING
        if end == "cancel":
            channel.cancel()
            assert list(loop) == []
        elif end == "close":
            loop.close()
            assert list(loop) == []
        else:
            del loop
        assert current() == NOTHING
        assert len(spans.of("process")) == 1

    def test_a_second_consume_goes_on_where_the_first_ended(
        self, on: Any, spans: Spans, channel: Any, queue: str
    ) -> None:
        """The first one's last message is over then, though its generator is kept; the spans do not nest."""
        for body in (b"one", b"two"):
            channel.basic_publish("", queue, body)
        first = channel.consume(queue, auto_ack=True)
        next(first)
        second = channel.consume(queue, auto_ack=True)
        assert current() == NOTHING
        next(second)
        channel.cancel()
        one, two = spans.of("process")
        assert one.end <= two.start
        assert len(two.links) == 1
        assert current() == NOTHING

    def test_it_is_still_a_generator(self, on: Any, spans: Spans, channel: Any, queue: str) -> None:
        """send(), throw() and close() do what they did, inside and outside of the spans as next() does."""
        for body in (b"one", b"two"):
            channel.basic_publish("", queue, body)
        loop = channel.consume(queue, auto_ack=True)
        assert isinstance(loop, Generator)
        assert iter(loop) is loop
        assert loop.send(None)[2] == b"one"
        assert current() != NOTHING
        assert next(loop)[2] == b"two"
        with pytest.raises(LookupError):
            loop.throw(LookupError("enough"))
        assert current() == NOTHING
        assert list(loop) == []


class TestGet:
    def test_basic_get_makes_a_receive_span_and_traced_message_the_consumer_span(
        self, on: Any, spans: Spans, channel: Any, queue: str
    ) -> None:
        """A pull opens no scope; what it pulled is handled in a span that knows the queue and the server."""
        exchange = unique("events")
        channel.exchange_declare(exchange, "fanout", auto_delete=True)
        channel.queue_bind(queue, exchange)
        channel.basic_publish(exchange, "key", b"hello")
        wait_for(channel, queue)
        message = channel.basic_get(queue)
        assert current() == NOTHING
        with adapter.traced_message(message):
            inside = current()
        send, receive, process = spans.all
        name = f"{exchange}:key:{queue}"
        assert [span.name for span in (receive, process)] == [f"poll {name}", f"process {name}"]
        assert [span.kind for span in (receive, process)] == ["CLIENT", "CONSUMER"]
        assert process.context == inside
        assert (process.trace_id, process.parent_id) == send.context
        assert [link.context for link in receive.links] == [send.context]
        assert process.attributes["server.port"] == receive.attributes["server.port"]

    def test_an_empty_queue_makes_no_span(self, on: Any, spans: Spans, channel: Any, queue: str) -> None:
        """Neither the poll nor traced_message of nothing."""
        message = channel.basic_get(queue)
        assert message == (None, None, None)
        with adapter.traced_message(message):
            assert current() == NOTHING
        assert spans.all == []

    def test_a_pull_that_fails_is_an_error(self, on: Any, spans: Spans, channel: Any) -> None:
        """No such queue: the broker closes the channel, the caller gets that, and the receive span, too."""
        with pytest.raises(ChannelClosedByBroker):
            channel.basic_get(unique("none"))
        assert only(spans.of("receive")).attributes["error.type"] == "pika.exceptions.ChannelClosedByBroker"

    @pytest.mark.parametrize("style", ["SelectConnection", "AsyncioConnection"])
    def test_the_callback_of_an_asynchronous_basic_get_is_inside(
        self, on: Any, spans: Spans, rabbitmq_url: str, channel: Any, style: str
    ) -> None:
        """Channel.basic_get answers by a callback: that one is given the message, inside its CONSUMER span."""
        loop = Loop(style, pika.URLParameters(rabbitmq_url))
        queue = unique("orders")
        loop.channel.queue_declare(queue, exclusive=True, callback=loop.stop)
        loop.run()
        loop.channel.basic_publish("", queue, b"hello")
        loop.flush(queue)
        inside: list[Any] = []

        def got(*message: Any) -> None:
            inside.append(current())
            loop.stop()

        loop.channel.basic_get(queue, got, auto_ack=True)
        loop.run()
        loop.close()
        assert inside == [only(spans.of("process")).context]


# Settling


class TestSettle:
    @pytest.fixture
    def on(self, spans: Spans) -> Iterator[Any]:
        with instrumented(Settings(settle_spans=True)) as instrumentor:
            yield instrumentor

    @pytest.mark.parametrize("operation", ["ack", "nack", "reject"])
    def test_each_settlement_is_a_child_of_the_consumer_span(
        self, on: Any, spans: Spans, channel: Any, queue: str, operation: str
    ) -> None:
        """Called in the callback on the facade: one CLIENT span."""
        channel.basic_publish("", queue, b"hello")

        def on_message(channel: Any, method: Any, properties: Any, body: bytes) -> None:
            getattr(channel, f"basic_{operation}")(method.delivery_tag)
            channel.stop_consuming()

        channel.basic_consume(queue, on_message)
        channel.start_consuming()
        span = only(spans.of("settle"))
        assert (span.kind, span.name) == ("CLIENT", f"{operation} {queue}")
        assert (span.trace_id, span.parent_id) == spans.of("process")[0].context

    @pytest.mark.parametrize(
        ("operation", "options"), [("ack", {}), ("nack", {"requeue": False}), ("reject", {"requeue": False})]
    )
    def test_a_settlement_from_another_thread_is_in_the_message_s_trace(
        self,
        on: Any,
        spans: Spans,
        connection: Any,
        channel: Any,
        queue: str,
        operation: str,
        options: dict[str, bool],
    ) -> None:
        """The handler hands work to a thread, which settles through add_callback_threadsafe when the span is over."""
        with ambient_span():
            channel.basic_publish("", queue, b"hello")
        threads: list[threading.Thread] = []

        def settle(tag: int) -> None:
            getattr(channel, f"basic_{operation}")(tag, **options)
            channel.stop_consuming()

        def work(tag: int) -> None:
            connection.add_callback_threadsafe(lambda: settle(tag))

        def on_message(channel: Any, method: Any, properties: Any, body: bytes) -> None:
            threads.append(threading.Thread(target=work, args=(method.delivery_tag,)))
            threads[0].start()

        channel.basic_consume(queue, on_message)
        with ambient_span("poller"):
            channel.start_consuming()
        threads[0].join()
        process, settle_span = only(spans.of("process")), only(spans.of("settle"))
        assert (settle_span.trace_id, settle_span.parent_id) == process.context
        assert process.end < settle_span.start
        assert process.trace_id == only(spans.of("send")).trace_id

    def test_several_messages_that_are_acked_at_once_make_one_span(
        self, on: Any, spans: Spans, channel: Any, queue: str
    ) -> None:
        """multiple=True: all up to the tag, also when it is 0, which means all."""
        for number in range(5):
            channel.basic_publish("", queue, str(number).encode())
        wait_for(channel, queue, 5)
        messages = [channel.basic_get(queue) for _ in range(5)]
        channel.basic_ack(messages[2][0].delivery_tag, multiple=True)
        channel.basic_ack(0, multiple=True)
        first, second = spans.of("settle")
        assert first.attributes["messaging.batch.message_count"] == 3
        assert second.attributes["messaging.batch.message_count"] == 2
        assert first.trace_id == spans.of("send")[2].trace_id
        assert channel.queue_declare(queue, passive=True).method.message_count == 0

    def test_cancel_settles_what_was_fetched_in_each_message_s_trace(
        self, on: Any, spans: Spans, channel: Any, queue: str
    ) -> None:
        """cancel() rejects what was fetched and never handed over: a settle span each, and no CONSUMER span."""
        for number in range(5):
            channel.basic_publish("", queue, str(number).encode())
        for method, _, _ in channel.consume(queue):
            channel.basic_ack(method.delivery_tag)
            break
        wait_until(
            lambda: channel.connection.process_data_events(0.01) or channel.get_waiting_message_count() == 4,
            "4",
        )
        channel.cancel()
        sends, process, (ack, *rejects) = spans.of("send"), only(spans.of("process")), spans.of("settle")
        assert (ack.name, ack.parent_id) == (f"ack {queue}", process.span_id)
        assert [it.name for it in rejects] == [f"reject {queue}"] * 4
        assert [(it.trace_id, it.parent_id) for it in rejects] == [it.context for it in sends[1:]]
        wait_for(channel, queue, 4)
        channel.basic_get(queue, auto_ack=True)  # it was given back, and comes again
        assert spans.of("receive")[0].links[0].trace_id == sends[1].trace_id

    @pytest.mark.parametrize("end", ["acked", "requeued", "recovered", "channel", "consumer", "connection"])
    def test_nothing_is_kept_of_messages_that_are_over(
        self, on: Any, spans: Spans, rabbitmq_url: str, end: str
    ) -> None:
        """However they end: what is remembered for settle spans is gone with them, on a channel that lives on."""
        connection = pika.BlockingConnection(pika.URLParameters(rabbitmq_url))
        channel = connection.channel()
        queue = declared(channel)
        handled: list[Any] = []
        channel.basic_consume(queue, lambda *message: handled.append(message[1]), consumer_tag="ours")
        for _ in range(20):
            channel.basic_publish("", queue, b"hello")
        wait_until(lambda: connection.process_data_events(0.01) or len(handled) == 20, "20 messages")
        assert _kept() == 20
        if end == "acked":
            channel.basic_ack(0, multiple=True)
        elif end == "requeued":
            channel.basic_cancel("ours")
            channel.basic_nack(handled[-1].delivery_tag, multiple=True)
        elif end == "recovered":
            channel.basic_cancel("ours")
            channel.basic_recover(requeue=True)
        elif end == "consumer":
            channel.queue_delete(queue)  # the broker cancels its consumers
            connection.process_data_events(0.01)
            channel.basic_ack(0, multiple=True)
        if end == "channel":
            channel.close()
        if end == "connection":
            connection.close()
        if end in ("channel", "connection"):
            del channel, handled
            gc.collect()
        assert _kept() == 0
        if end != "connection":
            connection.close()

    def test_what_needs_no_ack_is_not_kept(self, on: Any, spans: Spans, channel: Any, queue: str) -> None:
        """auto_ack: nothing waits for a settlement, by whatever way it came."""
        channel.basic_publish("", queue, b"one")
        wait_for(channel, queue)
        channel.basic_get(queue, auto_ack=True)
        channel.basic_publish("", queue, b"two")
        consume(channel, queue, lambda *_: None)
        channel.basic_publish("", queue, b"three")
        next(channel.consume(queue, auto_ack=True))
        channel.basic_ack(0, multiple=True)
        assert len(spans.of("send")) == 3
        assert spans.of("settle") == []


def _kept() -> int:
    """How many messages are remembered for their settlement."""
    unsettled = adapter.PIKA.unsettled
    return sum(len(unsettled.keys(channel)) for channel in unsettled.holders())


# Names


class TestNames:
    @pytest.mark.parametrize("kind", ["direct", "fanout", "topic", "headers"])
    def test_an_exchange_of_each_type(
        self, on: Any, spans: Spans, channel: Any, queue: str, kind: str
    ) -> None:
        """The producer knows exchange and routing key; the consumer also the queue."""
        exchange = unique("events")
        channel.exchange_declare(exchange, kind, auto_delete=True)
        pattern = "order.*" if kind == "topic" else "order.new"
        channel.queue_bind(queue, exchange, pattern, {"x-match": "any", "kind": "order"})
        key = "" if kind in ("fanout", "headers") else "order.new"
        channel.basic_publish(exchange, key, b"hello", pika.BasicProperties(headers={"kind": "order"}))
        consume(channel, queue, lambda *_: None)
        send, process = spans.all
        sent_to = f"{exchange}:{key}" if key else exchange
        assert (send.name, process.name) == (f"publish {sent_to}", f"process {sent_to}:{queue}")
        assert send.attributes["messaging.destination.name"] == sent_to
        assert process.attributes["messaging.destination.name"] == f"{sent_to}:{queue}"
        assert send.attributes.get("messaging.rabbitmq.destination.routing_key", "") == key
        assert (process.trace_id, process.parent_id) == send.context

    def test_the_default_exchange(self, on: Any, spans: Spans, channel: Any, queue: str) -> None:
        """Its routing key is the queue: named once."""
        channel.basic_publish("", queue, b"hello")
        consume(channel, queue, lambda *_: None)
        assert [span.name for span in spans.all] == [f"publish {queue}", f"process {queue}"]

    @pytest.mark.parametrize("consumed_as", ["its name", "the latest"])
    def test_a_server_named_queue_is_anonymous(
        self, on: Any, spans: Spans, channel: Any, consumed_as: str
    ) -> None:
        """A name that the broker made up is on the span, not in its name."""
        exchange = unique("events")
        channel.exchange_declare(exchange, "fanout", auto_delete=True)
        queue = channel.queue_declare("", exclusive=True).method.queue
        channel.queue_bind(queue, exchange)
        channel.basic_publish(exchange, "", b"one")
        channel.basic_publish("", queue, b"two")
        consume(channel, queue if consumed_as == "its name" else "", lambda *_: None, 2)
        sends, processes = spans.of("send"), spans.of("process")
        address = f"{sends[1].attributes['server.address']}:{sends[1].attributes['server.port']}"
        assert [span.name for span in sends] == [f"publish {exchange}", f"publish {address}"]
        assert [span.name for span in processes] == [f"process {exchange}", f"process {address}"]
        assert processes[1].attributes["messaging.destination.name"] == queue
        assert processes[1].attributes["messaging.destination.anonymous"] is True
        assert [span.trace_id for span in processes] == [span.trace_id for span in sends]

    def test_what_is_published_to_nothing_has_the_default_name(
        self, on: Any, spans: Spans, channel: Any
    ) -> None:
        """Neither exchange nor routing key: amq.default."""
        channel.basic_publish("", "", b"lost")
        assert only(spans.all).attributes["messaging.destination.name"] == "amq.default"


# Kinds of queues


class TestQueues:
    def test_a_dead_lettered_message_stays_in_the_trace(self, on: Any, spans: Spans, channel: Any) -> None:
        """Rejected and dead-lettered (x-death): both deliveries in one trace, no attempt made up for the second."""
        dead = declared(channel)
        queue = declared(channel, **{"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead})
        channel.basic_publish("", queue, b"hello")
        wait_for(channel, queue)
        with adapter.traced_message(channel.basic_get(queue)):
            pass
        channel.basic_reject(1, requeue=False)
        wait_for(channel, dead)
        headers: list[Any] = []
        consume(channel, dead, lambda _, __, properties, ___: headers.append(properties.headers))
        assert headers[0]["x-death"][0]["queue"] == queue
        first, second = spans.of("process")
        send = only(spans.of("send"))
        assert {(span.trace_id, span.parent_id) for span in (first, second)} == {send.context}
        assert first.attributes["queueprop.message.delivery_attempt"] == 1
        assert "queueprop.message.delivery_attempt" not in second.attributes
        assert second.name == f"process {dead}"

    def test_a_message_that_waited_until_it_expired_stays_in_the_trace(
        self, on: Any, spans: Spans, channel: Any
    ) -> None:
        """A delay by TTL and dead-lettering: the wait is told where the producer gave a timestamp."""
        queue = declared(channel)
        waiting = declared(channel, **{"x-dead-letter-exchange": "", "x-dead-letter-routing-key": queue})
        sent = pika.BasicProperties(expiration="200", timestamp=int(time.time()) - 5)
        channel.basic_publish("", waiting, b"later", sent)
        consume(channel, queue, lambda *_: None)
        process = only(spans.of("process"))
        assert (process.trace_id, process.parent_id) == only(spans.of("send")).context
        assert 5 <= process.attributes["queueprop.message.queue_time"] < 60

    def test_a_quorum_queue_counts_deliveries(self, on: Any, spans: Spans, connection: Any) -> None:
        """x-delivery-count: each attempt is numbered, in the first publish's trace."""
        channel = connection.channel()
        queue = unique("orders")
        channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum"})
        try:
            channel.basic_publish("", queue, b"hello")
            for requeue in (True, True, False):
                wait_for(channel, queue)
                message = channel.basic_get(queue)
                with adapter.traced_message(message):
                    channel.basic_nack(message[0].delivery_tag, requeue=requeue)
        finally:
            channel.queue_delete(queue)
        processes = spans.of("process")
        assert [it.attributes["queueprop.message.delivery_attempt"] for it in processes] == [1, 2, 3]
        assert {(it.trace_id, it.parent_id) for it in processes} == {only(spans.of("send")).context}

    def test_a_classic_queue_s_redelivery_has_no_number(
        self, on: Any, spans: Spans, channel: Any, queue: str
    ) -> None:
        """It only tells that there was one before: nothing is made up."""
        channel.basic_publish("", queue, b"hello")
        for _ in range(2):
            wait_for(channel, queue)
            message = channel.basic_get(queue)
            with adapter.traced_message(message):
                channel.basic_nack(message[0].delivery_tag)
        attempts = [span.attributes.get("queueprop.message.delivery_attempt") for span in spans.of("process")]
        assert attempts == [1, None]

    @pytest.mark.parametrize("times", [1, 2])
    def test_a_stream_gives_back_what_was_written_however_long(
        self, on: Any, spans: Spans, connection: Any, times: int
    ) -> None:
        """Long strings of a stream may come back as bytes: trace and baggage of every length are read, each time."""
        channel = connection.channel()
        queue = unique("events")
        channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "stream"})
        try:
            members = {"short": "a", "long": "b" * 300, "name": "Zürich"}
            carried = context.get_current()
            for key, value in members.items():
                carried = baggage.set_baggage(key, value, carried)
            token = context.attach(carried)
            channel.basic_publish("", queue, b"hello")
            context.detach(token)
            channel.basic_qos(prefetch_count=10)
            seen: list[Any] = []

            def on_message(channel: Any, method: Any, properties: Any, body: bytes) -> None:
                seen.append(dict(baggage.get_all()))
                channel.basic_ack(method.delivery_tag)
                channel.stop_consuming()

            for _ in range(times):
                channel.basic_consume(queue, on_message, arguments={"x-stream-offset": "first"})
                channel.start_consuming()
        finally:
            channel.queue_delete(queue)
        assert seen == [members] * times
        processes = spans.of("process")
        assert {(it.trace_id, it.parent_id) for it in processes} == {only(spans.of("send")).context}
        assert len(processes) == times


# Another instrumentation


class TestRival:
    """opentelemetry-instrumentation-pika. It wraps each channel that a connection makes while it is on."""

    @pytest.fixture
    def rival(self) -> Iterator[Any]:
        module = pytest.importorskip("opentelemetry.instrumentation.pika")
        rival = module.PikaInstrumentor()
        yield rival
        if rival.is_instrumented_by_opentelemetry:
            rival.uninstrument()

    @pytest.fixture(autouse=True)
    def _said_nothing_yet(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(guard, "_logged", {})

    @pytest.fixture(autouse=True)
    def _what_it_leaves_current_is_taken_away(self) -> Iterator[None]:
        """It never ends the scope of the last message of a loop."""
        token = context.attach(context.get_current())
        yield
        context.detach(token)

    @pytest.mark.parametrize("first", ["ours", "the other"])
    @pytest.mark.parametrize("style", ["callback", "consume()", "SelectConnection", "AsyncioConnection"])
    def test_it_keeps_the_library_whichever_was_first(
        self, spans: Spans, rabbitmq_url: str, rival: Any, first: str, style: str
    ) -> None:
        """Its spans, as many as without us; none of ours; one warning that names it; and messages pass."""
        rival.instrument()
        assert _exchanged(rabbitmq_url, style) == [b"one", b"two"]
        alone = [span.name for span in spans.everything]
        rival.uninstrument()
        if first == "the other":
            rival.instrument()
        with instrumented():
            if first == "ours":
                rival.instrument()
            assert _exchanged(rabbitmq_url, style) == [b"one", b"two"]
        both = [span.name for span in spans.everything][len(alone) :]
        # An older one knows no asynchronous connections. With ours on top, they stay untraced, too.
        assert len(alone) >= 2 or style.endswith("Connection")
        assert _without_queues(both) == _without_queues(alone)
        assert spans.all == []
        warnings = [text for text in spans.complaints if "opentelemetry.instrumentation.pika" in text]
        assert len(warnings) == 1
        assert "uninstall opentelemetry-instrumentation-pika or" in warnings[0]

    def test_uninstrumenting_ours_does_the_other_no_harm(
        self, spans: Spans, rabbitmq_url: str, rival: Any
    ) -> None:
        """On and off around a channel of its own making, which it goes on to trace."""
        with instrumented():
            rival.instrument()
            connection = pika.BlockingConnection(pika.URLParameters(rabbitmq_url))
            channel = connection.channel()
            queue = declared(channel)
        channel.basic_publish("", queue, b"hello")
        got: list[bytes] = []
        consume(channel, queue, lambda *message: got.append(message[3]))
        connection.close()
        assert got == [b"hello"]
        assert spans.all == []
        assert {span.kind for span in spans.everything} == {"PRODUCER", "CONSUMER"}
        rival.uninstrument()
        with instrumented():
            _exchanged(rabbitmq_url, "callback")
        assert len(spans.of("send")) == len(spans.of("process")) == 2

    def test_a_channel_that_it_has_wrapped_stays_with_it(
        self, spans: Spans, rabbitmq_url: str, rival: Any
    ) -> None:
        """Switched off it goes on to trace its channels: ours has the new ones, and no message has spans of both."""
        rival.instrument()
        with instrumented(), pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
            old = connection.channel()
            queue = declared(old)
            rival.uninstrument()
            old.basic_publish("", queue, b"hello")
            consume(old, queue, lambda *_: None)
            assert spans.all == []
            assert {span.kind for span in spans.everything} == {"PRODUCER", "CONSUMER"}
            new = connection.channel()
            new.basic_publish("", queue, b"hello")
            consume(new, queue, lambda *_: None)
        assert [span.kind for span in spans.all] == ["PRODUCER", "CONSUMER"]

    def test_a_channel_that_was_given_to_it_alone_is_left_to_it(
        self, spans: Spans, channel: Any, queue: str, rival: Any
    ) -> None:
        """PikaInstrumentor.instrument_channel(channel): no span is doubled there, and one warning says why."""
        with instrumented():
            type(rival).instrument_channel(channel)
            channel.basic_publish("", queue, b"hello")
            consume(channel, queue, lambda *_: None)
        assert spans.all == []
        assert [span.kind for span in spans.everything] == ["PRODUCER", "CONSUMER"]
        assert len([text for text in spans.complaints if "instrumentation.pika" in text]) == 1


def _exchanged(url: str, style: str) -> list[bytes]:
    """Two messages, sent and handled."""
    got: list[bytes] = []
    if style in ("callback", "consume()"):
        with pika.BlockingConnection(pika.URLParameters(url)) as connection:
            channel = connection.channel()
            queue = declared(channel)
            for body in (b"one", b"two"):
                channel.basic_publish("", queue, body)
            if style == "callback":
                consume(channel, queue, lambda *message: got.append(message[3]), 2)
                return got
            for _, _, body in channel.consume(queue, auto_ack=True):
                got.append(body)
                if len(got) == 2:
                    return got
    loop = Loop(style, pika.URLParameters(url))
    queue = unique("orders")
    loop.channel.queue_declare(queue, exclusive=True, callback=loop.stop)
    loop.run()
    for body in (b"one", b"two"):
        loop.channel.basic_publish("", queue, body)

    def on_message(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        got.append(body)
        if len(got) == 2:
            loop.stop()

    loop.channel.basic_consume(queue, on_message, auto_ack=True)
    loop.run()
    loop.close()
    return got


def _without_queues(names: list[str]) -> list[str]:
    """Each exchange has a queue of its own."""
    return sorted(name.split()[-1] for name in names)


# A broker that goes away


class TestOutages:
    """The same run without and with queueprop: as many deliveries, as many messages left, unacked and dead, and no
    orphan.
    """

    def test_a_connection_that_the_broker_closes(self, spans: Spans, rabbitmq_url: str) -> None:
        """In the middle of a callback, by an oversized frame: what was unacked comes again, in its trace."""

        def interrupt(channel: Any) -> None:
            properties = pika.BasicProperties(headers={"too long": "x" * 500_000})
            channel.basic_publish("", "nowhere", b"", properties)
            wait_until(lambda: channel.connection.process_data_events(0.01), "closed")  # which is raised

        self._compare(spans, rabbitmq_url, interrupt)

    def test_a_channel_that_the_broker_closes(self, spans: Spans, rabbitmq_url: str) -> None:
        """By an ack of an unknown delivery."""

        def interrupt(channel: Any) -> None:
            channel.basic_ack(4711)
            wait_until(lambda: channel.connection.process_data_events(0.01) or channel.is_closed, "closed")

        self._compare(spans, rabbitmq_url, interrupt)

    @pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
    def test_a_consumer_that_is_killed(self, spans: Spans, rabbitmq_url: str) -> None:
        """A process that ends by SIGKILL in the middle of a callback; another one goes on where it was."""

        def interrupt(channel: Any) -> None:
            trace.get_tracer_provider().force_flush()  # type: ignore[attr-defined]
            os.kill(os.getpid(), signal.SIGKILL)

        self._compare(spans, rabbitmq_url, interrupt, killed=1)

    def test_a_broker_that_is_stopped_and_started(self, spans: Spans, private_rabbitmq: Broker) -> None:
        """Durable queues and persistent messages outlive it, and so do their contexts.

        Both runs are interrupted by one and the same restart: the traced one runs inside the plain one's interruption.
        """
        traced: dict[str, Any] = {}

        def restart(channel: Any) -> None:
            private_rabbitmq.restart()

        def interrupt(channel: Any) -> None:
            with instrumented():
                traced.update(_interrupted_run(private_rabbitmq.url, restart))

        plain = _interrupted_run(private_rabbitmq.url, interrupt)
        _assert_no_orphan(spans, plain, traced)

    def _compare(self, spans: Spans, url: str, interrupt: Callable[[Any], None], killed: int = 0) -> None:
        plain = _interrupted_run(url, interrupt, forked=bool(killed))
        with instrumented():
            traced = _interrupted_run(url, interrupt, forked=bool(killed))
        _assert_no_orphan(spans, plain, traced, killed)


def _assert_no_orphan(spans: Spans, plain: Any, traced: Any, killed: int = 0) -> None:
    """``killed`` is the number of deliveries whose process ended in the middle of them, and their spans with it."""
    assert traced == plain
    assert (plain["left"], plain["unacked"], plain["dead"]) == (1, 1, 1)
    assert plain["deliveries"][5:7] == ["5", "5"], "it was interrupted, and came again"
    published = {span.context for span in spans.of("send")}
    processes = spans.of("process")
    assert len(processes) == len(plain["deliveries"]) - killed
    assert {(span.trace_id, span.parent_id) for span in processes} <= published
    assert current() == NOTHING


def _interrupted_run(url: str, interrupt: Callable[[Any], None], forked: bool = False) -> dict[str, Any]:
    """Ten messages. One is dead-lettered, one never settled, one never handled; the sixth delivery is interrupted
    before it is settled.
    """
    queue, dead, handled = unique("orders"), unique("dead"), Bodies()
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare(dead, durable=True)
        arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead}
        channel.queue_declare(queue, durable=True, arguments=arguments)
        for number in range(10):
            properties = pika.BasicProperties(delivery_mode=2)
            channel.basic_publish("", queue, str(number).encode(), properties)
    if forked:
        run_killed(lambda: _handle_nine(url, queue, handled, interrupt))
        _await_nobody(url, queue)
    unacked = None
    while unacked is None:
        with contextlib.suppress(AMQPError):
            unacked = _handle_nine(url, queue, handled, interrupt)
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        wait_for(channel, queue, 2)
        wait_for(channel, dead)
        both, lost = (channel.queue_delete(name).method.message_count for name in (queue, dead))
    return {"deliveries": handled.all, "left": both - unacked, "unacked": unacked, "dead": lost}


def _await_nobody(url: str, queue: str) -> None:
    """Until the broker has heard that the consumer is no more: else the next one would get what is behind it first."""
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        wait_until(
            lambda: channel.queue_declare(queue, passive=True).method.consumer_count == 0,
            f"nobody to consume {queue}",
        )


def _handle_nine(url: str, queue: str, handled: Bodies, interrupt: Callable[[Any], None]) -> int:
    """Consumes until nine have been handled. The number of messages that are unacked then."""

    def on_message(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        handled.add(body)
        if len(handled.all) == 6:
            interrupt(channel)
        if body == b"3":
            channel.basic_reject(method.delivery_tag, requeue=False)
        elif body != b"7":
            channel.basic_ack(method.delivery_tag)

    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.basic_qos(prefetch_count=2)
        channel.basic_consume(queue, on_message, consumer_tag="ours")
        while len(set(handled.all)) < 9:
            connection.process_data_events(1)
        channel.basic_cancel("ours")  # gives back what was fetched and not handled
        wait_for(channel, queue)
        ready: int = channel.queue_declare(queue, passive=True).method.message_count
    return 2 - ready
