"""The kombu adapter without a broker: kombu's own transport in memory."""

from __future__ import annotations

import _thread
import contextlib
import functools
import itertools
import runpy
import socket
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest

pytest.importorskip("kombu")

import kombu
import wrapt
from amqp.exceptions import RecoverableConnectionError
from kombu import common, compat, pools
from kombu.common import itermessages
from kombu.exceptions import DecodeError, EncodeError, NotBoundError
from kombu.pidbox import Mailbox
from kombu.simple import SimpleQueue
from kombu.transport import memory
from opentelemetry import trace
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode, get_current_span, get_tracer

import queueprop
from queueprop import Destination, Settings
from queueprop.adapters import kombu as adapter
from queueprop.testing import CapturedSpans
from tests.adapters import faults
from tests.telemetry import Telemetry, is_since

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

_numbers = itertools.count(1)


@pytest.fixture
def connection() -> Iterator[kombu.Connection]:
    with kombu.Connection("memory://", transport_options={"polling_interval": 0}) as made:
        yield made


@pytest.fixture
def queue(connection: kombu.Connection) -> Any:
    name = f"orders-{next(_numbers)}"
    made = kombu.Queue(name, kombu.Exchange(f"shop-{name}", "direct"), "new")(connection.default_channel)
    made.declare()
    return made


@pytest.fixture
def instrumented() -> Iterator[adapter.KombuInstrumentor]:
    instrumentor = adapter.KombuInstrumentor()
    instrumentor.instrument(settings=Settings(settle_spans=True))
    yield instrumentor
    instrumentor.uninstrument()


@pytest.fixture
def celery_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenTelemetry's instrumentation of Celery is active."""
    active = types.SimpleNamespace(is_instrumented_by_opentelemetry=True)
    module: Any = types.ModuleType("opentelemetry.instrumentation.celery")
    module.CeleryInstrumentor = types.SimpleNamespace(_instance=active)
    monkeypatch.setitem(sys.modules, module.__name__, module)


def publish(queue: Any, body: Any = "hello", **options: Any) -> None:
    kombu.Producer(queue.channel).publish(body, exchange=queue.exchange, routing_key="new", **options)


def pull(queue: Any) -> Any:
    message = queue.get()
    assert message is not None
    return message


def consume(queue: Any, consumer: kombu.Consumer, count: int = 1) -> None:
    with consumer:
        for _ in range(count):
            queue.channel.connection.client.drain_events(timeout=1)


def context_of(span: ReadableSpan) -> str:
    context = span.get_span_context()
    assert context is not None
    return f"{context.trace_id:032x}-{context.span_id:016x}"


def parent_of(span: ReadableSpan) -> str:
    assert span.parent is not None
    return f"{span.parent.trace_id:032x}-{span.parent.span_id:016x}"


def carried(message: Any) -> str:
    return str(message.headers["traceparent"])[3:52]


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def consumers(spans: CapturedSpans) -> list[ReadableSpan]:
    return [span for span in spans if span.kind is SpanKind.CONSUMER]


class TestPublishing:
    WAYS: ClassVar[dict[str, Callable[[Any, Any], Any]]] = {
        "by name": lambda queue, it: adapter.traced_publish(it.publish)(
            "hello", exchange=queue.exchange, routing_key="new"
        ),
        "by the producer's own": lambda queue, it: adapter.traced_publish(it.publish)("hello"),
        "by position": lambda queue, it: adapter.traced_publish(it.publish)(
            "hello",
            "new",
            None,
            False,
            False,
            0,
            None,
            None,
            None,
            {"tenant": "a"},
            None,
            queue.exchange.name,
        ),
        "partial": lambda queue, it: adapter.traced_publish(
            functools.partial(it.publish, headers={"a": "b"})
        )("hello"),
        "put": lambda queue, it: adapter.traced_publish(SimpleQueue(queue.channel, queue).put)("hello"),
    }

    @pytest.mark.parametrize("way", list(WAYS))
    @pytest.mark.parametrize("api", ["explicit", "with the instrumentor"])
    def test_each_way_makes_one_span(
        self, captured_spans: CapturedSpans, queue: Any, way: str, api: str
    ) -> None:
        """One PRODUCER span named after exchange and routing key, its context in the headers, once."""
        instrumentor = adapter.KombuInstrumentor()
        if api != "explicit":
            instrumentor.instrument()
        try:
            self.WAYS[way](queue, kombu.Producer(queue.channel, queue.exchange, "new"))
        finally:
            instrumentor.uninstrument()
        [span] = captured_spans
        assert (span.name, span.kind) == (f"publish {queue.exchange.name}:new", SpanKind.PRODUCER)
        assert attributes(span)["messaging.system"] == "memory"
        assert carried(pull(queue)) == context_of(span)

    @pytest.mark.parametrize("given", [print, lambda: None, functools.partial(print)])
    def test_anything_else_is_refused(self, given: Any) -> None:
        """traced_publish says what it wraps."""
        with pytest.raises(TypeError, match=r"Producer\.publish"):
            adapter.traced_publish(given)

    def test_a_subclass_s_publish_is_traced_if_it_takes_headers(
        self, captured_spans: CapturedSpans, queue: Any
    ) -> None:
        """What it hands on by position or by name arrives; one without headers is refused when it is wrapped."""

        class Shop(kombu.Producer):  # type: ignore[misc]
            def publish(self, *args: Any, **kwargs: Any) -> Any:
                return super().publish(*args, **kwargs)

            def order(self, item: str, **kwargs: Any) -> Any:
                return super().publish(item.upper(), **kwargs)

            def call(self, item: str) -> Any:
                return super().publish(item)

        shop = Shop(queue.channel, queue.exchange, "new")
        by_position = ("new", None, False, False, 0, None, None, None, {"tenant": "a"})
        adapter.traced_publish(shop.publish)("one", *by_position)
        adapter.traced_publish(shop.publish)("two", headers={"tenant": "b"})
        adapter.traced_publish(shop.order)("three")
        with pytest.raises(TypeError, match=r"Producer\.publish"):
            adapter.traced_publish(shop.call)
        messages = [pull(queue) for _ in range(3)]
        assert [message.payload for message in messages] == ["one", "two", "THREE"]
        assert [carried(message) for message in messages] == [context_of(span) for span in captured_spans]
        assert [message.headers.get("tenant") for message in messages] == ["a", "b", None]

    @pytest.mark.parametrize("api", ["explicit", "instrumentor"])
    @pytest.mark.parametrize("body", ["mandatory", None])
    def test_a_publish_inside_a_publish_is_another_message(
        self, captured_spans: CapturedSpans, queue: Any, monkeypatch: pytest.MonkeyPatch, api: str, body: Any
    ) -> None:
        """kombu calls on_return while it waits for a confirm: what that publishes has a span and context of its own."""
        producer = kombu.Producer(queue.channel, queue.exchange, "new")
        traced = adapter.traced_publish(producer.publish) if api == "explicit" else producer.publish
        plain = queue.channel.basic_publish

        def answered(message: Any, **options: Any) -> None:
            monkeypatch.undo()
            (traced if api == "explicit" else producer.publish)("returned")
            plain(message, **options)

        monkeypatch.setattr(queue.channel, "basic_publish", answered)
        instrumentor = adapter.KombuInstrumentor()
        if api == "instrumentor":
            instrumentor.instrument()
        try:
            (traced if api == "explicit" else producer.publish)(body)
        finally:
            instrumentor.uninstrument()
        inner, outer = captured_spans
        assert [carried(pull(queue)) for _ in range(2)] == [context_of(inner), context_of(outer)]
        assert parent_of(inner) == context_of(outer)

    @pytest.mark.parametrize("body", [{"order": 1}, None])
    @pytest.mark.parametrize("api", ["explicit", "instrumentor", "both"])
    def test_a_fallback_s_publish_of_the_same_body_is_another_message(
        self, captured_spans: CapturedSpans, connection: Any, queue: Any, api: str, body: Any
    ) -> None:
        """What a retry's errback sends by another producer has a span and a context of its own, and only one."""
        down, standby = connection.clone().Producer(), kombu.Producer(queue.channel, queue.exchange)
        down.channel.basic_publish = _refuse  # until the retry opens another channel
        words = (lambda publish: publish) if api == "instrumentor" else adapter.traced_publish

        def send_elsewhere(error: Exception, interval: float) -> None:
            words(standby.publish)(body, routing_key="new")

        policy = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "errback": send_elsewhere}
        instrumentor = adapter.KombuInstrumentor()
        if api != "explicit":
            instrumentor.instrument()
        try:
            words(down.publish)(body, routing_key="main", retry=True, retry_policy=policy)
        finally:
            instrumentor.uninstrument()
        inner, outer = captured_spans
        assert carried(pull(queue)) == context_of(inner)
        assert parent_of(inner) == context_of(outer)
        assert (inner.name, outer.name) == (f"publish {queue.exchange.name}:new", "publish main")

    @pytest.mark.parametrize("is_sampled", [True, False])
    def test_a_producer_that_hands_on_to_another_is_one_publish(
        self, captured_spans: CapturedSpans, queue: Any, is_sampled: bool
    ) -> None:
        """Where the headers go along: the message carries the context of the traced call, and is counted once."""

        class Facade(kombu.Producer):  # type: ignore[misc]
            def publish(self, body: Any, headers: Any = None, **options: Any) -> Any:
                return producer.publish(body, headers=headers, **options)

        producer = kombu.Producer(queue.channel, queue.exchange, "new")
        telemetry = Telemetry(captured_spans)
        settings, instrumentor = telemetry.measured(), adapter.KombuInstrumentor()
        instrumentor.instrument(settings=settings)
        flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if is_sampled else trace.TraceFlags.DEFAULT)
        request = trace.NonRecordingSpan(trace.SpanContext(1, 2, is_remote=False, trace_flags=flags))
        try:
            with trace.use_span(request):
                adapter.traced_publish(Facade(queue.channel).publish, settings=settings)({"order": 1})
        finally:
            instrumentor.uninstrument()
        assert [point.value for point in telemetry.points("messaging.client.sent.messages")] == [1]
        if is_sampled:
            [span] = captured_spans
            assert carried(pull(queue)) == context_of(span)

    def test_the_arguments_of_a_publish_are_looked_up_once(
        self, captured_spans: CapturedSpans, instrumented: Any, queue: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """To look at a signature costs more than to publish."""
        publish(queue)
        monkeypatch.setattr("inspect.signature", _raise)
        publish(queue)
        assert [span.kind for span in captured_spans] == [SpanKind.PRODUCER] * 2

    @pytest.mark.parametrize(
        "way",
        ["pool", "ensure", "autoretry", "retry", "declare", "compat", "reply", "compression", "properties"],
    )
    def test_each_way_around_a_producer_makes_one_span(
        self, captured_spans: CapturedSpans, instrumented: Any, connection: Any, queue: Any, way: str
    ) -> None:
        """Pools, retries, declarations, carrot's Publisher, replies and every option end in one traced publish."""
        producer: Any = kombu.Producer(connection, queue.exchange, "new")
        ways: dict[str, Callable[[], Any]] = {
            "pool": lambda: publish_from_pool(connection, queue),
            "ensure": lambda: connection.ensure(producer, producer.publish)("hello"),
            "autoretry": lambda: connection.autoretry(
                lambda channel: kombu.Producer(channel, queue.exchange, "new").publish("hello")
            )(),
            "retry": lambda: producer.publish("hello", retry=True, retry_policy={"max_retries": 1}),
            "declare": lambda: producer.publish("hello", declare=[queue]),
            "compat": lambda: compat.Publisher(connection, queue.exchange, "new").send("hello"),
            "reply": lambda: common.send_reply(queue.exchange, request(), "hello", producer),
            "compression": lambda: producer.publish("hello", compression="zlib", serializer="pickle"),
            "properties": lambda: producer.publish(
                b"hello", content_type="text/plain", content_encoding="utf-8", expiration=60, priority=3
            ),
        }
        ways[way]()
        [span] = captured_spans
        assert span.name == f"publish {queue.exchange.name}:new"
        message = queue.get(accept=["json", "pickle", "text/plain"])
        assert (message.payload, carried(message)) == ("hello", context_of(span))

    def test_what_was_made_ready_before_is_left_alone(
        self, captured_spans: CapturedSpans, instrumented: Any, queue: Any
    ) -> None:
        """Exchange.publish and Channel.basic_publish are below kombu's producers: no span, nothing written."""
        queue.exchange.publish(queue.exchange.Message("hello"), "new")
        queue.channel.basic_publish(queue.channel.prepare_message("hello"), queue.exchange.name, "new")
        assert list(captured_spans) == []
        assert [pull(queue).headers for _ in range(2)] == [{}, {}]

    def test_headers_of_the_caller_stay(
        self, captured_spans: CapturedSpans, instrumented: Any, queue: Any
    ) -> None:
        """The caller's dict is as it was, also where kombu itself would write into it."""
        headers = {"tenant": "a"}
        publish(queue, headers=headers, compression="gzip")
        assert headers == {"tenant": "a"}
        assert pull(queue).payload == "hello"

    def test_what_is_no_mapping_is_kombu_s_business(
        self, captured_spans: CapturedSpans, instrumented: Any, queue: Any
    ) -> None:
        """Headers that kombu does not take either are handed to it as they are."""
        with contextlib.suppress(Exception):
            publish(queue, headers=[("tenant", "a")])
        assert list(captured_spans) == []

    def test_a_producer_span_that_wrote_the_headers_is_not_doubled(
        self, captured_spans: CapturedSpans, instrumented: Any, queue: Any
    ) -> None:
        """Celery's instrumentation, or send_span, has made this message's span and context."""
        headers: dict[str, Any] = {}
        with queueprop.send_span(Destination("mine", "orders"), headers=headers):
            publish(queue, headers=headers)
        [span] = captured_spans
        assert span.name == "publish orders"
        assert carried(pull(queue)) == context_of(span)

    def test_headers_of_another_message_do_not_count(
        self, captured_spans: CapturedSpans, instrumented: Any, queue: Any
    ) -> None:
        """Inside another PRODUCER span a forwarded message is a publish of its own."""
        with get_tracer("user").start_as_current_span("outer", kind=SpanKind.PRODUCER):
            publish(queue, headers={"traceparent": TRACEPARENT})
        assert [span.name for span in captured_spans] == [f"publish {queue.exchange.name}:new", "outer"]

    def test_a_failed_publish_is_an_error(
        self, captured_spans: CapturedSpans, instrumented: Any, queue: Any
    ) -> None:
        """The caller gets kombu's exception, and the span has it."""
        with pytest.raises(EncodeError) as raised:
            publish(queue, object(), serializer="json")
        [span] = captured_spans
        assert span.status.status_code is StatusCode.ERROR
        assert span.status.description == str(raised.value)

    def test_a_hook_is_given_the_publish(self, captured_spans: CapturedSpans, queue: Any) -> None:
        """Exchange, routing key, body, the caller's headers and options."""
        given: list[Any] = []
        settings = Settings(publish_hook=lambda span, message: given.append(message))
        producer = kombu.Producer(queue.channel, queue.exchange, "new")
        adapter.traced_publish(producer.publish, settings=settings)(
            "hello", headers={"a": "b"}, correlation_id="c-1", message_id="m-1"
        )
        [it] = given
        assert (it.exchange, it.routing_key, it.body, it.headers) == (
            queue.exchange.name,
            "new",
            "hello",
            {"a": "b"},
        )
        assert it.options == {"correlation_id": "c-1", "message_id": "m-1"}
        [span] = captured_spans
        assert attributes(span)["messaging.message.id"] == "m-1"
        assert attributes(span)["messaging.message.conversation_id"] == "c-1"

    def test_a_fault_of_ours_lets_the_message_go(
        self, captured_spans: CapturedSpans, instrumented: Any, queue: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whatever breaks in the adapter, kombu publishes."""
        monkeypatch.setattr("queueprop.guard.raise_faults", False)
        monkeypatch.setattr(adapter.KOMBU, "publication", _raise)
        publish(queue)
        assert list(captured_spans) == []
        assert pull(queue).payload == "hello"


def publish_from_pool(connection: Any, queue: Any) -> None:
    with pools.producers[connection].acquire(block=True) as producer:
        producer.publish("hello", exchange=queue.exchange, routing_key="new")
    pools.reset()


def request() -> Any:
    return types.SimpleNamespace(
        properties={"reply_to": "new"}, content_type="application/json", content_encoding="utf-8"
    )


class TestHousekeeping:
    def test_remote_control_and_events_are_left_alone(
        self, captured_spans: CapturedSpans, instrumented: Any, connection: Any
    ) -> None:
        """Traffic of pidbox and celeryev has no spans and no context, on either side."""
        mailbox = Mailbox("box", type="fanout", connection=connection)
        node = mailbox.Node("here", channel=connection.default_channel)
        got: list[Any] = []
        consumer = node.listen(callback=lambda body, message: got.append(message))
        with consumer:
            mailbox.abcast("ping", {})
            connection.drain_events(timeout=1)
        event = kombu.Exchange("celeryev", "topic")
        kombu.Producer(connection, event, "worker.heartbeat").publish({"type": "worker-heartbeat"})
        assert list(captured_spans) == []
        assert "traceparent" not in got[0].headers

    def test_celery_s_own_callers_are_left_alone(
        self, captured_spans: CapturedSpans, instrumented: Any, queue: Any
    ) -> None:
        """A result that Celery publishes, and one that it pulls, have no span; a task has one."""
        run_as("celery.backends.rpc", publish, queue)
        run_as("celery.backends.rpc", pull, queue)
        assert list(captured_spans) == []
        run_as("celery.app.amqp", publish, queue)
        assert [span.kind for span in captured_spans] == [SpanKind.PRODUCER]

    def test_a_task_that_celery_sends_again_stays_in_its_trace(
        self, captured_spans: CapturedSpans, instrumented: Any, queue: Any
    ) -> None:
        """A retry inherits the headers of its task; where a span is current, that is the parent all the same."""
        send = functools.partial(
            run_as, "celery.app.amqp", publish, queue, headers={"traceparent": TRACEPARENT}
        )
        send()
        with get_tracer("user").start_as_current_span("here") as here:
            send()
        run_as("celery.app.amqp", publish, queue, headers={"traceparent": "junk"})
        retried, inside, _, broken = captured_spans
        assert TRACEPARENT[3:35] == context_of(retried)[:32]
        assert inside.parent is not None
        assert inside.parent.span_id == here.get_span_context().span_id
        assert broken.parent is None

    def test_a_task_that_celery_s_instrumentation_wrote_is_left_alone(
        self, captured_spans: CapturedSpans, instrumented: Any, celery_s_own: None, queue: Any
    ) -> None:
        """It has a PRODUCER span, also where that is over already (a task that is not registered here)."""
        headers = {"id": "t-1", "traceparent": TRACEPARENT}
        run_as("celery.app.amqp", publish, queue, headers=headers)
        assert list(captured_spans) == []
        assert pull(queue).headers == headers

    @pytest.mark.parametrize("headers", [None, {}])
    def test_a_task_of_the_first_protocol_carries_the_span_of_celery_s_instrumentation(
        self,
        captured_spans: CapturedSpans,
        instrumented: Any,
        celery_s_own: None,
        queue: Any,
        headers: dict[str, Any] | None,
    ) -> None:
        """Which leaves headers alone that are empty: its span is current, and its context is written, once."""
        before = None if headers is None else {**headers}
        with get_tracer("celery's").start_as_current_span("apply_async", kind=SpanKind.PRODUCER):
            run_as("celery.app.amqp", publish, queue, headers=headers)
        assert headers == before
        message = pull(queue)
        sent = next(span for span in captured_spans if span.kind is SpanKind.PRODUCER)
        assert (sent.name, carried(message)) == ("apply_async", context_of(sent))
        assert list(message.headers) == ["traceparent"]

    def test_a_task_whose_context_cannot_be_written_is_sent(
        self,
        captured_spans: CapturedSpans,
        instrumented: Any,
        celery_s_own: None,
        queue: Any,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Whatever breaks there, Celery publishes."""
        monkeypatch.setattr("queueprop.guard.raise_faults", False)
        monkeypatch.setattr("queueprop.engine.engine.Engine.write", lambda *_: 1 / 0)
        with get_tracer("celery's").start_as_current_span("apply_async", kind=SpanKind.PRODUCER):
            run_as("celery.app.amqp", publish, queue)
        assert pull(queue).headers == {}

    @pytest.mark.parametrize("headers", [{"tenant": "a"}, {"tenant": "a", "traceparent": TRACEPARENT}])
    def test_a_task_that_celery_s_instrumentation_passes_over_has_a_span_of_ours(
        self,
        captured_spans: CapturedSpans,
        instrumented: Any,
        celery_s_own: None,
        queue: Any,
        headers: dict[str, Any],
    ) -> None:
        """It looks for the task's id in headers that a user (or a retry of the first protocol) has filled otherwise."""
        run_as("celery.app.amqp", publish, queue, headers=headers)
        [sent] = captured_spans
        message = pull(queue)
        assert (carried(message), message.headers["tenant"]) == (context_of(sent), "a")
        assert (context_of(sent)[:32] == TRACEPARENT[3:35]) is ("traceparent" in headers)

    def test_celery_s_instrumentation_without_a_context_leaves_the_task_to_us(
        self, captured_spans: CapturedSpans, instrumented: Any, celery_s_own: None, queue: Any
    ) -> None:
        """Nothing in the headers and nothing current: the task gets a PRODUCER span here. Suppressed, it has none."""
        with suppress_instrumentation(), get_tracer("celery's").start_as_current_span("unseen"):
            run_as("celery.app.amqp", publish, queue)
        assert pull(queue).headers == {}
        run_as("celery.app.amqp", publish, queue)
        [sent] = [span for span in captured_spans if span.kind is SpanKind.PRODUCER]
        assert carried(pull(queue)) == context_of(sent)

    @pytest.mark.parametrize(
        "between", ["wrapt.wrappers", "sentry_sdk.integrations.celery", "kombu.utils.functional"]
    )
    def test_callers_are_found_behind_wrappers_and_loops(
        self, captured_spans: CapturedSpans, instrumented: Any, queue: Any, between: str
    ) -> None:
        """Frames of wrappers, and of loops that repeat a call, are passed over: it is Celery's result that goes out
        through them. Where there is nobody behind them, nobody of Celery's is.
        """
        repeated = code_of(between, publish)
        run_as("celery.backends.rpc", call, repeated, queue)
        assert list(captured_spans) == []
        done = threading.Lock()
        done.acquire()
        _thread.start_new_thread(code_of(between, publish_and_release), (queue, done))
        assert done.acquire(timeout=60)
        assert [span.kind for span in captured_spans] == [SpanKind.PRODUCER]

    @pytest.mark.parametrize("kind", ["callbacks", "on_message"])
    def test_celery_s_consumers_have_no_process_span(
        self, captured_spans: CapturedSpans, instrumented: Any, queue: Any, kind: str
    ) -> None:
        """Celery sets on_message after the consumer was made; its handlers only dispatch."""

        def dispatch(*args: Any) -> None:
            assert not get_current_span().get_span_context().is_valid

        dispatch.__module__ = "celery.worker.consumer.consumer"
        consumer = kombu.Consumer(queue.channel, [queue])
        if kind == "callbacks":
            consumer.register_callback(dispatch)
        else:
            consumer.on_message = functools.partial(dispatch)
        publish(queue)
        consume(queue, consumer)
        assert consumers(captured_spans) == []


def run_as(module: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls it as code of another module would."""
    return code_of(module, function)(*args, **kwargs)


def code_of(module: str, function: Callable[..., Any]) -> Callable[..., Any]:
    return types.FunctionType(
        function.__code__, {**function.__globals__, "__name__": module}, None, function.__defaults__
    )


def call(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def publish_and_release(queue: Any, done: Any) -> None:
    try:
        kombu.Producer(queue.channel).publish("hello", exchange=queue.exchange, routing_key="new")
    finally:
        done.release()


class TestConsuming:
    @pytest.mark.parametrize("kind", ["callbacks", "on_message", "receive"])
    def test_the_handler_runs_inside_the_span(
        self, captured_spans: CapturedSpans, instrumented: Any, queue: Any, kind: str
    ) -> None:
        """Callbacks, on_message and an overridden receive(): one CONSUMER span in the publish's trace."""
        seen: list[Any] = []

        def handle(*args: Any) -> None:
            seen.append(get_current_span())
            args[-1].ack()

        class Receiver(kombu.Consumer):  # type: ignore[misc]
            def receive(self, body: Any, message: Any) -> None:
                handle(message)

        publish(queue)
        consumer: Any = {
            "callbacks": lambda: kombu.Consumer(
                queue.channel, [queue], callbacks=[handle, lambda *_: seen.append(1)]
            ),
            "on_message": lambda: kombu.Consumer(queue.channel, [queue], on_message=handle),
            "receive": lambda: Receiver(queue.channel, [queue]),
        }[kind]
        consume(queue, consumer())
        sent, settled, process = captured_spans
        assert process.kind is SpanKind.CONSUMER
        assert process.name == f"process {queue.exchange.name}:new:{queue.name}"
        assert parent_of(process) == context_of(sent)
        assert seen[0].get_span_context() == process.get_span_context()
        assert settled.name == f"ack {queue.exchange.name}:new:{queue.name}"
        assert parent_of(settled) == context_of(process)

    def test_an_exception_comes_out_as_it_is(
        self, captured_spans: CapturedSpans, instrumented: Any, queue: Any
    ) -> None:
        """ERROR on the span, and the very same exception out of drain_events."""
        error = LookupError("no such order")

        def handle(body: Any, message: Any) -> None:
            raise error

        publish(queue)
        with pytest.raises(LookupError) as raised:
            consume(queue, kombu.Consumer(queue.channel, [queue], callbacks=[handle]))
        assert raised.value is error
        [process] = consumers(captured_spans)
        assert process.status.status_code is StatusCode.ERROR

    def test_without_callbacks_kombu_says_so(
        self, captured_spans: CapturedSpans, instrumented: Any, queue: Any
    ) -> None:
        """A consumer that nobody gave a callback: kombu's NotImplementedError, on the delivery's span as well."""
        publish(queue)
        with pytest.raises(NotImplementedError):
            consume(queue, kombu.Consumer(queue.channel, [queue]))
        [process] = consumers(captured_spans)
        assert attributes(process)["error.type"] == "NotImplementedError"

    @pytest.mark.parametrize("refuse", ["nobody", "a callback", "a callback that raises"])
    @pytest.mark.parametrize("broken", ["body", "compression"])
    def test_what_cannot_be_decoded_is_an_error(
        self, captured_spans: CapturedSpans, instrumented: Any, queue: Any, refuse: str, broken: str
    ) -> None:
        """One CONSUMER span with the error, also where on_decode_error deals with it; kombu goes on as without us."""
        refused: list[Any] = []

        def on_decode_error(message: Any, error: Exception) -> None:
            refused.append(error)
            if refuse != "a callback":
                raise LookupError("cannot refuse")

        wanted = {"nobody": Exception, "a callback": None, "a callback that raises": LookupError}[refuse]
        if broken == "body":
            publish(queue, b"{", content_type="application/json", content_encoding="utf-8")
        else:
            publish(queue, headers={"compression": "application/x-gzip"})
        consumer = kombu.Consumer(
            queue.channel,
            [queue],
            callbacks=[lambda *_: None],
            on_decode_error=None if refuse == "nobody" else on_decode_error,
        )
        with pytest.raises(wanted) if wanted else contextlib.nullcontext():
            consume(queue, consumer)
        [process] = consumers(captured_spans)
        assert process.status.status_code is StatusCode.ERROR
        assert not get_current_span().get_span_context().is_valid
        # kombu asks again when it was refused while it read a message's errors.
        assert len(refused) == {"nobody": 0, "a callback": 1}.get(refuse, 2 if broken == "compression" else 1)

    def test_the_consumer_itself_stays_as_it_is(self, instrumented: Any, queue: Any) -> None:
        """Subclasses see their own self, and set what they like on it."""

        class Counting(kombu.Consumer):  # type: ignore[misc]
            seen = 0

            def _receive_callback(self, message: Any) -> Any:
                self.seen += 1
                return super()._receive_callback(message)

        consumer = Counting(queue.channel, [queue], callbacks=[lambda body, message: message.ack()])
        publish(queue)
        publish(queue)
        consume(queue, consumer, 2)
        assert consumer.seen == 2

    def test_what_a_subclass_sets_on_itself_is_its_own(
        self, captured_spans: CapturedSpans, instrumented: Any, queue: Any
    ) -> None:
        """Also on_message and receive, from inside its _receive_callback."""
        got: list[Any] = []

        class Choosing(kombu.Consumer):  # type: ignore[misc]
            def _receive_callback(self, message: Any) -> Any:
                self.on_message = got.append
                return super()._receive_callback(message)

        consumer = Choosing(queue.channel, [queue], callbacks=[print])
        publish(queue)
        consume(queue, consumer)
        assert consumer.on_message == got.append
        assert len(got) == len(consumers(captured_spans)) == 1

    @pytest.mark.parametrize("method", ["_receive_callback", "receive"])
    def test_somebody_else_s_wrapper_around_the_consumer_still_runs(
        self, captured_spans: CapturedSpans, queue: Any, monkeypatch: pytest.MonkeyPatch, method: str
    ) -> None:
        """Another tool's patch of Consumer is neither passed by nor taken for a handler of its own."""
        calls: list[Any] = []

        def note(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
            calls.append(instance)
            return wrapped(*args, **kwargs)

        monkeypatch.setattr(kombu.Consumer, method, wrapt.FunctionWrapper(vars(kombu.Consumer)[method], note))
        instrumentor = adapter.KombuInstrumentor()
        instrumentor.instrument()
        try:
            publish(queue)
            consumer = kombu.Consumer(queue.channel, [queue], callbacks=[lambda body, message: message.ack()])
            consume(queue, consumer)
        finally:
            instrumentor.uninstrument()
        assert calls == [consumer]
        assert len(consumers(captured_spans)) == 1

    def test_a_method_of_an_unknown_kind_is_called_as_it_is(
        self, captured_spans: CapturedSpans, instrumented: Any, queue: Any
    ) -> None:
        """A bound method of another function than the class has is bound anew, too."""
        got: list[Any] = []
        consumer = kombu.Consumer(queue.channel, [queue], callbacks=[print])
        consumer._receive_callback = types.MethodType(lambda self, raw: got.append(raw), consumer)
        publish(queue)
        consume(queue, consumer)
        assert len(got) == 1

    def test_carrot_s_consumers_are_consumers(
        self, captured_spans: CapturedSpans, instrumented: Any, connection: Any, queue: Any
    ) -> None:
        """kombu.compat: callbacks run inside the span; fetch is a pull call."""
        publish(queue, "one")
        publish(queue, "two")
        with compat.Consumer(connection, queue.name, queue.exchange.name, "new") as consumer:
            assert consumer.fetch().payload == "one"
            seen: list[Any] = []
            consumer.register_callback(lambda body, message: seen.append(get_current_span()))
            next(consumer.iterconsume())
        received, process = list(captured_spans)[2:]
        assert (received.kind, process.kind) == (SpanKind.CLIENT, SpanKind.CONSUMER)
        assert [span.get_span_context() for span in seen] == [process.get_span_context()]

    @pytest.mark.parametrize("given", [((), {"enable_callbacks": True}), ((True, True), {})])
    def test_callbacks_that_fetch_calls_run_inside_the_span(
        self, captured_spans: CapturedSpans, instrumented: Any, connection: Any, queue: Any, given: Any
    ) -> None:
        """kombu.compat's consumers may be asked to call them for one message: beside the pull's receive span it has a
        CONSUMER span, which they share, and which ends with the call. An empty queue has none.
        """
        publish(queue, "one")
        seen: list[Any] = []
        args, kwargs = given
        with compat.Consumer(connection, queue.name, queue.exchange.name, "new") as consumer:
            for _ in range(2):
                consumer.register_callback(lambda body, message: seen.append((body, get_current_span())))
            fetched = consumer.fetch(*args, **kwargs)
            assert fetched.payload == "one"
            assert consumer.fetch(*args, **kwargs) is None
        published, received, process = captured_spans
        assert (received.kind, process.kind) == (SpanKind.CLIENT, SpanKind.CONSUMER)
        assert process.name == f"process {queue.exchange.name}:new:{queue.name}"
        assert parent_of(process) == context_of(published)
        assert [(body, span.get_span_context()) for body, span in seen] == [
            ("one", process.get_span_context())
        ] * 2
        assert get_current_span() is trace.INVALID_SPAN

    def test_what_fetch_raises_of_its_callbacks_is_the_span_s(
        self, captured_spans: CapturedSpans, instrumented: Any, connection: Any, queue: Any
    ) -> None:
        """A callback's exception, that there is none to call, and what cannot be decoded come out as they are."""
        publish(queue, "one")
        publish(queue, "two")
        publish(queue, "{", content_type="application/json", content_encoding="utf-8")
        with compat.Consumer(connection, queue.name, queue.exchange.name, "new") as consumer:
            with pytest.raises(NotImplementedError):
                consumer.fetch(enable_callbacks=True)
            consumer.register_callback(_raise)
            with pytest.raises(LookupError):
                consumer.fetch(enable_callbacks=True)
            with pytest.raises(DecodeError):
                consumer.fetch(enable_callbacks=True)
        assert [attributes(span)["error.type"] for span in consumers(captured_spans)] == [
            "NotImplementedError",
            "LookupError",
            "kombu.exceptions.DecodeError",
        ]

    def test_a_receive_that_was_put_on_a_consumer_is_its_handler(
        self, captured_spans: CapturedSpans, instrumented: Any, queue: Any
    ) -> None:
        """Set on the object itself: it runs inside the span."""
        seen: list[Any] = []
        consumer = kombu.Consumer(queue.channel, [queue])
        consumer.receive = lambda body, message: seen.append(get_current_span().get_span_context())
        publish(queue)
        consume(queue, consumer)
        [process] = consumers(captured_spans)
        assert seen == [process.get_span_context()]

    def test_what_cannot_be_looked_at_is_delivered(
        self, captured_spans: CapturedSpans, instrumented: Any, queue: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A handler that does not tell whose it is gets its message."""
        monkeypatch.setattr("queueprop.guard.raise_faults", False)
        got: list[Any] = []

        class Handler:
            __module__: Any = property(_raise)

            def __call__(self, body: Any, message: Any) -> None:
                got.append(body)

        publish(queue)
        consume(queue, kombu.Consumer(queue.channel, [queue], callbacks=[Handler()]))
        assert got == ["hello"]
        assert consumers(captured_spans) == []

    def test_a_function_that_is_registered_with_a_queue_runs_in_the_span(
        self, captured_spans: CapturedSpans, instrumented: adapter.KombuInstrumentor, queue: Any
    ) -> None:
        """Queue.consume with a user's function, without a Consumer; after uninstrument() it is just the function."""
        got: list[Any] = []
        publish(queue)
        publish(queue)
        queue.consume("tag", callback=got.append)
        queue.channel.connection.client.drain_events(timeout=1)
        assert len(got) == len(consumers(captured_spans)) == 1
        instrumented.uninstrument()
        queue.channel.connection.client.drain_events(timeout=1)
        assert len(got) == 2
        assert len(consumers(captured_spans)) == 1

    def test_a_function_of_kombu_s_own_that_is_registered_is_left_alone(
        self, captured_spans: CapturedSpans, instrumented: Any, queue: Any
    ) -> None:
        """As among a Consumer's callbacks: it buffers or dispatches."""
        got: list[Any] = []

        def buffer(message: Any) -> None:
            got.append(message)

        buffer.__module__ = "kombu.simple"
        publish(queue)
        queue.consume("tag", callback=buffer)
        queue.channel.connection.client.drain_events(timeout=1)
        assert len(got) == 1
        assert consumers(captured_spans) == []

    def test_a_registered_function_that_cannot_be_looked_at_is_called_as_it_is(
        self, captured_spans: CapturedSpans, instrumented: Any, queue: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whatever its attributes raise."""
        monkeypatch.setattr("queueprop.guard.raise_faults", False)
        got: list[Any] = []

        class Handler:
            __module__: Any = property(_raise)

            def __call__(self, message: Any) -> None:
                got.append(message)

        publish(queue)
        queue.consume("tag", callback=Handler())
        queue.channel.connection.client.drain_events(timeout=1)
        assert len(got) == 1
        assert consumers(captured_spans) == []

    def test_a_consumer_may_be_given_by_position(
        self, captured_spans: CapturedSpans, instrumented: Any, queue: Any
    ) -> None:
        """Queue.consume(tag, callback) is the same as by name."""
        consumer = kombu.Consumer(queue.channel, [queue], callbacks=[lambda *_: None])
        publish(queue)
        queue.consume("tag", consumer._receive_callback, False)
        queue.channel.connection.client.drain_events(timeout=1)
        queue.consume("other", callback=consumer._receive_callback)
        publish(queue)
        queue.channel.connection.client.drain_events(timeout=1)
        assert len(consumers(captured_spans)) == 2

    def test_after_uninstrument_a_running_consumer_is_silent(
        self, captured_spans: CapturedSpans, queue: Any
    ) -> None:
        """What was registered while instrumented handles its messages, and emits nothing."""
        instrumentor = adapter.KombuInstrumentor()
        instrumentor.instrument()
        got: list[Any] = []
        with kombu.Consumer(queue.channel, [queue], callbacks=[lambda body, message: got.append(body)]):
            instrumentor.uninstrument()
            publish(queue)
            queue.channel.connection.client.drain_events(timeout=1)
        assert got == ["hello"]
        assert list(captured_spans) == []

    def test_a_fault_of_ours_lets_the_handler_run(
        self, captured_spans: CapturedSpans, instrumented: Any, queue: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whatever breaks in the adapter, the callbacks get the message."""
        monkeypatch.setattr("queueprop.guard.raise_faults", False)
        monkeypatch.setattr(adapter.KOMBU, "message", _raise)
        got: list[Any] = []
        publish(queue)
        consume(
            queue, kombu.Consumer(queue.channel, [queue], callbacks=[lambda body, message: got.append(body)])
        )
        publish(queue, b"{", content_type="application/json", content_encoding="utf-8")
        bad = kombu.Consumer(
            queue.channel,
            [queue],
            callbacks=[print],
            on_decode_error=lambda message, error: got.append("undecodable"),
        )
        consume(queue, bad)
        publish(queue, b"{", content_type="application/json", content_encoding="utf-8")
        with pytest.raises(DecodeError):
            consume(queue, kombu.Consumer(queue.channel, [queue], callbacks=[print]))
        publish(queue)
        assert pull(queue).payload == "hello"
        assert got == ["hello", "undecodable"]
        assert consumers(captured_spans) == []


class TestTheDecorator:
    def test_it_decorates_functions_and_methods(self, captured_spans: CapturedSpans, queue: Any) -> None:
        """(body, message) and (message), bare and with options; the queue's name comes from the options."""

        @adapter.traced_consumer(queue="orders")
        def on_message(message: Any) -> None:
            message.ack()

        class Shop:
            @adapter.traced_consumer
            def on_order(self, body: Any, message: Any) -> None:
                message.ack()

        publish(queue, headers={"traceparent": TRACEPARENT})
        publish(queue)
        consume(queue, kombu.Consumer(queue.channel, [queue], on_message=on_message))
        consume(queue, kombu.Consumer(queue.channel, [queue], callbacks=[Shop().on_order]))
        first, second = captured_spans
        assert first.name == f"process {queue.exchange.name}:new:orders"
        assert context_of(first)[:32] == TRACEPARENT[3:35]
        assert second.name == f"process {queue.exchange.name}:new"

    def test_under_the_instrumentor_it_is_the_same_span(
        self, captured_spans: CapturedSpans, instrumented: Any, queue: Any
    ) -> None:
        """Both APIs on one callback make one CONSUMER span."""
        publish(queue)
        decorated = adapter.traced_consumer(lambda body, message: None)
        consume(queue, kombu.Consumer(queue.channel, [queue], callbacks=[decorated]))
        assert len(consumers(captured_spans)) == 1

    def test_several_decorated_callbacks_share_the_first_one_s_span(
        self, captured_spans: CapturedSpans, queue: Any
    ) -> None:
        """One delivery, one CONSUMER span; the second callback is in its trace."""
        seen: list[Any] = []
        decorated = adapter.traced_consumer(
            lambda body, message: seen.append(get_current_span().get_span_context())
        )
        publish(queue)
        consume(queue, kombu.Consumer(queue.channel, [queue], callbacks=[decorated, decorated]))
        [process] = captured_spans
        assert seen == [process.get_span_context()] * 2
        assert get_current_span() is trace.INVALID_SPAN

    def test_without_a_message_it_is_just_the_function(self, captured_spans: CapturedSpans) -> None:
        """Called with something else, nothing is traced."""
        assert adapter.traced_consumer(lambda text: text)("hello") == "hello"
        assert list(captured_spans) == []


class TestPulling:
    def test_a_get_makes_a_receive_span(
        self, captured_spans: CapturedSpans, instrumented: Any, queue: Any
    ) -> None:
        """CLIENT, linked; the handling is inside traced_message, under the same name; nothing for an empty poll."""
        assert queue.get() is None
        publish(queue)
        message = pull(queue)
        with adapter.traced_message(message):
            pass
        message.ack()
        sent, received, process, settled = captured_spans
        name = f"{queue.exchange.name}:new:{queue.name}"
        assert [span.name for span in captured_spans] == [
            f"publish {queue.exchange.name}:new",
            f"poll {name}",
            f"process {name}",
            f"ack {name}",
        ]
        assert received.kind is SpanKind.CLIENT
        assert [f"{link.context.span_id:016x}" for link in received.links] == [context_of(sent)[33:]]
        assert parent_of(settled) == context_of(process), "outside of the scope it is still its child"

    @pytest.mark.parametrize("operation", ["ack", "reject", "requeue"])
    def test_settlements_are_named_after_their_call(
        self, captured_spans: CapturedSpans, instrumented: Any, queue: Any, operation: str
    ) -> None:
        """A message that is settled without having been handled is settled in its publish's trace."""
        publish(queue)
        getattr(pull(queue), operation)()
        sent, _, settled = captured_spans
        assert settled.name.startswith(f"{operation} ")
        assert parent_of(settled) == context_of(sent)

    def test_by_default_settlements_and_messages_nobody_handed_out_have_no_span(
        self, captured_spans: CapturedSpans, queue: Any
    ) -> None:
        """settle_spans is off; and what was pulled before is not known."""
        before = _sent_and_pulled(queue)
        instrumentor = adapter.KombuInstrumentor()
        instrumentor.instrument()
        try:
            _sent_and_pulled(queue).ack()
            before.ack()
        finally:
            instrumentor.uninstrument()
        assert [span.name.split()[0] for span in captured_spans] == ["publish", "poll"]

    def test_without_acks_there_is_nothing_to_settle(
        self, captured_spans: CapturedSpans, instrumented: Any, queue: Any
    ) -> None:
        """A message of a consumer without acks is not settled by its ack(), which does nothing."""
        message = _sent_and_pulled(queue)
        message.channel.no_ack_consumers = {"tag"}
        message.delivery_info["consumer_tag"] = "tag"
        message.ack()
        assert [span.name.split()[0] for span in captured_spans] == ["publish", "poll"]

    @pytest.mark.parametrize("how", ["waiting", "at once", "get_nowait"])
    def test_a_simple_queue_s_get_makes_one_receive_span(
        self, captured_spans: CapturedSpans, instrumented: Any, queue: Any, how: str
    ) -> None:
        """However it is asked; its own callback, which only buffers, makes no CONSUMER span."""
        with SimpleQueue(queue.channel, queue) as simple:
            simple.put("hello")
            message = {
                "waiting": lambda: simple.get(timeout=1),
                "at once": lambda: simple.get(False),
                "get_nowait": simple.get_nowait,
            }[how]()
            with pytest.raises(simple.Empty):
                simple.get(block=False)
            assert message.payload == "hello"
        assert [span.kind for span in captured_spans] == [SpanKind.PRODUCER, SpanKind.CLIENT]

    def test_a_get_that_fails_is_an_error(
        self, captured_spans: CapturedSpans, instrumented: Any, queue: Any
    ) -> None:
        """The exception is on the receive span, and comes out."""
        publish(queue, headers={"compression": "application/x-gzip"})
        with pytest.raises(Exception) as raised:  # noqa: PT011 -- the compression's own
            queue.get()
        _, received = captured_spans
        assert received.status.status_code is StatusCode.ERROR
        assert received.status.description == str(raised.value)

    def test_receive_spans_can_be_switched_off(self, captured_spans: CapturedSpans, queue: Any) -> None:
        """Settings(receive_spans=False): no span, and traced_message still knows the queue."""
        instrumentor = adapter.KombuInstrumentor()
        instrumentor.instrument(settings=Settings(receive_spans=False))
        try:
            with adapter.traced_message(_sent_and_pulled(queue)):
                pass
        finally:
            instrumentor.uninstrument()
        assert captured_spans[-1].name == f"process {queue.exchange.name}:new:{queue.name}"
        assert len(captured_spans) == 2

    def test_a_fault_of_ours_gives_the_message(
        self, captured_spans: CapturedSpans, instrumented: Any, queue: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whatever breaks in the adapter, the message comes."""
        publish(queue)
        monkeypatch.setattr("queueprop.guard.raise_faults", False)
        monkeypatch.setattr(adapter.KOMBU, "consumed_from", _raise)
        assert pull(queue).payload == "hello"

    def test_a_loop_s_body_runs_inside_each_message_s_span(
        self, captured_spans: CapturedSpans, queue: Any
    ) -> None:
        """itermessages gives (body, message); a loop of messages and idle ticks works as well."""
        for body in ("one", "two"):
            publish(queue, body, headers={"traceparent": TRACEPARENT})
        connection = queue.channel.connection.client
        for _, message in adapter.traced_messages(
            itermessages(connection, queue.channel, queue, limit=2, timeout=1)
        ):
            assert get_current_span().get_span_context().is_valid
            message.ack()
        publish(queue, "three")
        for tick in adapter.traced_messages([None, pull(queue)], Destination("memory", "mine")):
            assert get_current_span().get_span_context().is_valid == (tick is not None)
        assert [span.name for span in captured_spans][2] == "process mine"
        assert len(captured_spans) == 3
        assert get_current_span() is trace.INVALID_SPAN

    @pytest.mark.parametrize("loop", ["itermessages", "drain_consumer", "collect_replies"])
    def test_kombu_s_own_loops_are_traced(
        self, captured_spans: CapturedSpans, connection: Any, queue: Any, loop: str
    ) -> None:
        """The body runs inside each message's span, with the queue in its name, until the loop is left."""
        before = itermessages  # imported before it was instrumented
        instrumentor = adapter.KombuInstrumentor()
        instrumentor.instrument()
        seen: list[Any] = []
        try:
            for body in ("one", "two", "three"):
                publish(queue, body)
            channel = queue.channel
            channel.after_reply_message_received = lambda name: seen.append(name)
            iterator: Any = {
                "itermessages": lambda: before(connection, channel, queue, limit=3, no_ack=True),
                "drain_consumer": lambda: common.drain_consumer(
                    connection.Consumer([queue], channel, no_ack=True), limit=3
                ),
                "collect_replies": lambda: common.collect_replies(connection, channel, queue, limit=3),
            }[loop]()
            assert next(iterator)
            for _ in iterator:
                seen.append(get_current_span().get_span_context())
                break
            iterator.close()
        finally:
            instrumentor.uninstrument()
        processes = consumers(captured_spans)
        assert {span.name for span in processes} == {f"process {queue.exchange.name}:new:{queue.name}"}
        assert [parent_of(span) for span in processes] == [
            context_of(span) for span in list(captured_spans)[:2]
        ]
        assert seen[0] == processes[1].get_span_context()
        assert seen[1:] == ([queue.name] if loop == "collect_replies" else [])
        assert get_current_span() is trace.INVALID_SPAN

    def test_a_name_that_was_imported_before_is_traced(
        self, captured_spans: CapturedSpans, connection: Any, queue: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As one that is imported later; after uninstrument both are kombu's own function again."""
        plain: Any = common.drain_consumer
        module: Any = types.ModuleType("a_worker_of_kombu_s")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        module.drain_consumer = plain
        instrumentor = adapter.KombuInstrumentor()
        instrumentor.instrument()
        try:
            assert module.drain_consumer is common.drain_consumer is not plain
            module.imported_later = common.drain_consumer
            publish(queue)
            consumer = connection.Consumer([queue], queue.channel, no_ack=True)
            for _ in module.drain_consumer(consumer):
                seen = get_current_span().get_span_context()
        finally:
            instrumentor.uninstrument()
        [process] = consumers(captured_spans)
        assert seen == process.get_span_context()
        assert module.drain_consumer is module.imported_later is common.drain_consumer is plain

    def test_callbacks_of_kombu_s_loops_share_the_span(
        self, captured_spans: CapturedSpans, instrumented: Any, connection: Any, queue: Any
    ) -> None:
        """A callback beside the loop has the message's CONSUMER span, and the body is in its trace."""
        publish(queue)
        seen: list[Any] = []

        def note(*_: Any) -> None:
            seen.append(get_current_span().get_span_context())

        for _ in common.itermessages(connection, queue.channel, queue, callbacks=[note]):
            note()
        [process] = consumers(captured_spans)
        assert seen == [process.get_span_context()] * 2
        assert get_current_span() is trace.INVALID_SPAN

    def test_the_explicit_api_above_a_loop_with_callbacks_makes_no_second_span(
        self, captured_spans: CapturedSpans, instrumented: Any, connection: Any, queue: Any
    ) -> None:
        """The callback had the message's span; the body of traced_messages goes on in its context."""
        publish(queue)
        loop = itermessages(connection, queue.channel, queue, callbacks=[lambda body, message: None])
        inside = [get_current_span().get_span_context().span_id for _ in adapter.traced_messages(loop)]
        [process] = consumers(captured_spans)
        assert inside == [process.context.span_id]
        assert not get_current_span().get_span_context().is_valid

    def test_traced_messages_around_kombu_s_loops_doubles_nothing(
        self, captured_spans: CapturedSpans, instrumented: Any, connection: Any, queue: Any
    ) -> None:
        """Both APIs on one loop make one CONSUMER span a message."""
        publish(queue)
        for _, message in adapter.traced_messages(common.itermessages(connection, queue.channel, queue)):
            message.ack()
        assert len(consumers(captured_spans)) == 1

    def test_a_loop_of_kombu_s_that_runs_on_is_silent_after_uninstrument(
        self, captured_spans: CapturedSpans, connection: Any, queue: Any
    ) -> None:
        """It goes on giving messages, of all of its queues, and emits nothing."""
        instrumentor = adapter.KombuInstrumentor()
        instrumentor.instrument()
        other = kombu.Queue(f"other-{queue.name}", queue.exchange, "other")
        consumer = connection.Consumer([queue, other], queue.channel, no_ack=True)
        loop = common.drain_consumer(consumer=consumer, limit=2)
        publish(queue)
        publish(queue)
        next(loop)
        assert captured_spans[0].name == f"publish {queue.exchange.name}:new"
        instrumentor.uninstrument()
        assert next(loop)[0] == "hello"
        loop.close()
        assert [span.name for span in consumers(captured_spans)] == [f"process {queue.exchange.name}:new"]

    @pytest.mark.parametrize("api", ["explicit", "both"])
    def test_the_words_of_the_explicit_api_give_the_instrumentor_s_spans(
        self, captured_spans: CapturedSpans, queue: Any, api: str
    ) -> None:
        """traced_get, traced_message and traced_settle: one span each, also where both APIs are on."""
        settings = Settings(settle_spans=True)
        publish(queue, headers={"traceparent": TRACEPARENT})
        simple = SimpleQueue(queue.channel, queue)
        instrumentor = adapter.KombuInstrumentor()
        if api == "both":
            instrumentor.instrument(settings=settings)
        try:
            for get in (queue.get, functools.partial(simple.get, timeout=1), simple.get_nowait):
                message = adapter.traced_get(get, settings=settings)()
                with adapter.traced_message(message, settings=settings):
                    pass
                adapter.traced_settle(message.requeue, settings=settings)()
                simple.close()
        finally:
            instrumentor.uninstrument()
        name = f"{queue.exchange.name}:new:{queue.name}"
        spans = list(captured_spans)
        assert [span.name for span in spans] == [
            f"{word} {name}" for word in ("poll", "process", "requeue")
        ] * 3
        assert [parent_of(span) for span in spans[2::3]] == [context_of(span) for span in spans[1::3]]

    def test_what_the_words_do_not_know_they_refuse(self, queue: Any) -> None:
        """They say what they wrap."""
        with pytest.raises(TypeError, match=r"Queue\.get"):
            adapter.traced_get(queue.channel.basic_get)
        with pytest.raises(TypeError, match=r"Message\.ack"):
            adapter.traced_settle(queue.purge)
        publish(queue)
        with pytest.raises(TypeError, match=r"Message\.ack"):
            adapter.traced_settle(pull(queue).decode)

    def test_an_empty_queue_has_no_message_to_handle(
        self, captured_spans: CapturedSpans, queue: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """traced_message of what an empty queue gave is no span; what is no message at all is no harm either."""
        with adapter.traced_message(queue.get()):
            assert not get_current_span().get_span_context().is_valid
        monkeypatch.setattr("queueprop.guard.raise_faults", False)
        strange: Any = object()
        with adapter.traced_message(strange), adapter.traced_batch([strange]):
            pass
        assert list(captured_spans) == []

    def test_a_message_of_kombu_s_own_class_is_known_again(self, captured_spans: CapturedSpans) -> None:
        """It takes no weak references, as those of the transports do, and has one span all the same."""
        message = kombu.Message("hello", headers={"traceparent": TRACEPARENT})
        for _ in range(2):
            with adapter.traced_message(message):
                assert get_current_span().get_span_context().trace_id == int(TRACEPARENT[3:35], 16)
        assert len(captured_spans) == 1

    def test_a_settlement_that_cannot_be_traced_settles(
        self, captured_spans: CapturedSpans, instrumented: Any, queue: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whatever breaks in the adapter, the message is acked."""
        message = _sent_and_pulled(queue)
        monkeypatch.setattr("queueprop.guard.raise_faults", False)
        monkeypatch.setattr(adapter.KOMBU, "settled", _raise)
        message.ack()
        assert message.acknowledged

    def test_messages_of_a_batch_are_settled_in_its_trace(
        self, captured_spans: CapturedSpans, queue: Any
    ) -> None:
        """Their settle spans are children of the batch's span, and named alike."""
        settings = Settings(settle_spans=True)
        publish(queue, headers={"traceparent": TRACEPARENT})
        message = pull(queue)
        with adapter.traced_batch([message], Destination("memory", "mine"), settings=settings):
            pass
        adapter.traced_settle(message.ack, settings=settings)()
        batch, settled = captured_spans
        assert (settled.name, parent_of(settled)) == ("ack mine", context_of(batch))

    def test_a_batch_has_a_link_for_each_message(self, captured_spans: CapturedSpans, queue: Any) -> None:
        """One CONSUMER span for all, named after the first, or as told; without messages there is none."""
        for _ in range(2):
            publish(queue, headers={"traceparent": TRACEPARENT})
        messages = [pull(queue), pull(queue)]
        with adapter.traced_batch(messages):
            pass
        with adapter.traced_batch(messages, Destination("memory", "mine")):
            pass
        with adapter.traced_batch([]):
            pass
        first, second = captured_spans
        assert first.name == f"process {queue.exchange.name}:new"
        assert second.name == "process mine"
        assert len(first.links) == 2

    def test_what_a_message_tells_is_on_the_span(self, captured_spans: CapturedSpans, queue: Any) -> None:
        """Ids, the time in the queue by its timestamp, and the attempt where a broker counts."""
        began = int(time.time())
        publish(
            queue,
            headers={"x-delivery-count": 2},
            message_id="m-1",
            correlation_id="c-1",
            timestamp=began - 5,
        )
        message = pull(queue)
        message.delivery_tag = 7
        with adapter.traced_message(message):
            pass
        [span] = captured_spans
        found = attributes(span)
        assert found["messaging.message.id"] == "m-1"
        assert found["messaging.message.conversation_id"] == "c-1"
        assert found["queueprop.message.delivery_attempt"] == 3
        assert found["messaging.rabbitmq.message.delivery_tag"] == 7
        assert is_since(began, 5, found["queueprop.message.queue_time"])

    def test_a_first_delivery_is_told_where_the_broker_tells_it(
        self, captured_spans: CapturedSpans, queue: Any
    ) -> None:
        """AMQP's redelivered flag: clear is the first attempt; set, and dead-lettered before, is some later one."""
        for flag in (False, True):
            message = _sent_and_pulled(queue)
            message.delivery_info["redelivered"] = flag
            with adapter.traced_message(message):
                pass
        message = _sent_and_pulled(queue)
        message.delivery_info["redelivered"] = False
        message.headers["x-death"] = [{"count": 1, "queue": "orders"}]
        with adapter.traced_message(message):
            pass
        first, later, dead_lettered = captured_spans
        assert attributes(first)["queueprop.message.delivery_attempt"] == 1
        assert "queueprop.message.delivery_attempt" not in attributes(later)
        assert "queueprop.message.delivery_attempt" not in attributes(dead_lettered)


def _sent_and_pulled(queue: Any) -> Any:
    publish(queue)
    return pull(queue)


class Session:
    """A batch of kombu 5.7's, as the Redis transport makes it."""

    def __init__(self, max_size: int) -> None:
        self.max_size = max_size
        self.sent: list[Any] = []
        self.failure: Exception | None = None
        self._waiting: list[Any] = []

    @property
    def _buffered(self) -> int:
        return len(self._waiting)

    def publish(self, message: Any, **options: Any) -> None:
        self._waiting.append(message)
        if len(self._waiting) >= self.max_size:
            self.flush()

    def flush(self) -> None:
        if self.failure is not None:
            raise self.failure
        self.sent += self._waiting
        self._waiting = []

    def discard(self) -> None:
        self._waiting = []

    def close(self) -> None:
        self._waiting = []


@pytest.mark.skipif(not hasattr(kombu.Producer, "batch"), reason="Producer.batch() came with kombu 5.7")
class TestBatches:
    @pytest.fixture
    def producer(self, queue: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
        sessions: list[Session] = []

        def create(max_size: int) -> Session:
            session = Session(max_size)
            session.channel = queue.channel  # type: ignore[attr-defined]
            sessions.append(session)
            return session

        monkeypatch.setattr(queue.channel, "create_publish_batch", create, raising=False)
        made: Any = kombu.Producer(queue.channel, queue.exchange, "new")
        made.sessions = sessions
        return made

    def test_spans_end_with_the_flush(
        self, captured_spans: CapturedSpans, instrumented: Any, producer: Any
    ) -> None:
        """Each message has a PRODUCER span and context of its own, open until the batch has gone out."""
        with producer.batch():
            producer.publish("one")
            producer.publish("two")
            assert list(captured_spans) == []
            assert not get_current_span().get_span_context().is_valid
        assert [span.kind for span in captured_spans] == [SpanKind.PRODUCER] * 2
        sent = [message["headers"]["traceparent"][3:52] for message in producer.sessions[0].sent]
        assert sent == [context_of(span) for span in captured_spans]

    def test_a_full_batch_ends_what_it_sends(
        self, captured_spans: CapturedSpans, instrumented: Any, producer: Any
    ) -> None:
        """The publish that fills it ends with it."""
        with producer.batch(max_size=2):
            producer.publish("one")
            producer.publish("two")
            assert len(captured_spans) == 2
            producer.publish("three")
        assert len(captured_spans) == 3

    def test_a_flush_that_fails_is_on_each_span(
        self, captured_spans: CapturedSpans, instrumented: Any, producer: Any
    ) -> None:
        """The error that comes out is every message's."""
        error = ConnectionError("gone")
        with pytest.raises(ConnectionError), producer.batch():  # noqa: PT012
            producer.publish("one")
            producer.sessions[0].failure = error
        [span] = captured_spans
        assert span.status.description == "gone"

    def test_a_discarded_batch_is_an_error(
        self, captured_spans: CapturedSpans, instrumented: Any, producer: Any
    ) -> None:
        """What was never sent says so, and why."""
        with pytest.raises(LookupError), producer.batch():  # noqa: PT012
            producer.publish("one")
            raise LookupError("no such order")
        [span] = captured_spans
        assert span.status.status_code is StatusCode.ERROR
        assert attributes(span)["error.type"] == "LookupError"
        with producer.batch():
            producer.publish("two")
            producer.sessions[1].discard()
        assert attributes(captured_spans[1])["error.type"] == "discarded"

    def test_a_session_that_cannot_be_watched_is_no_harm(
        self, captured_spans: CapturedSpans, instrumented: Any, producer: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Then the span ends as the publish returns."""
        monkeypatch.setattr("queueprop.guard.raise_faults", False)
        monkeypatch.setattr(Session, "discard", property(lambda self: 1 / 0))
        with contextlib.suppress(ZeroDivisionError), producer.batch():
            producer.publish("one")
            assert len(captured_spans) == 1


MANY = [f"message {number}" for number in range(12)]


class TestBroken:
    """Something around the adapter is broken, or the adapter is: every message goes out and comes in all the same."""

    def _everything(self, connection: Any, queue: Any, settings: Settings) -> None:
        """Callbacks, handlers, loops and pulls of twelve messages each, all published and acked, some in batches."""
        instrumentor = adapter.KombuInstrumentor()
        instrumentor.instrument(settings=settings)
        try:
            for way in (
                self._callbacks,
                self._on_message,
                self._explicit,
                self._loop,
                self._pulls,
                self._batch,
            ):
                for body in MANY:
                    publish(queue, body, headers={"tenant": "a"})
                handled: list[Any] = []
                way(connection, queue, settings, handled)
                assert [message.payload for message in handled] == MANY, way
                assert {message.headers["tenant"] for message in handled} == {"a"}
                assert all(message.acknowledged for message in handled), way
                assert get_current_span() is trace.INVALID_SPAN
        finally:
            instrumentor.uninstrument()
        assert queue.get() is None

    def _callbacks(self, connection: Any, queue: Any, settings: Settings, handled: list[Any]) -> None:
        def on_order(body: Any, message: Any) -> None:
            message.ack()
            handled.append(message)

        consume(queue, connection.Consumer([queue], callbacks=[on_order]), len(MANY))

    def _on_message(self, connection: Any, queue: Any, settings: Settings, handled: list[Any]) -> None:
        consume(queue, connection.Consumer([queue], on_message=handled.append), len(MANY))
        for message in handled:
            message.ack()

    def _explicit(self, connection: Any, queue: Any, settings: Settings, handled: list[Any]) -> None:
        @adapter.traced_consumer(queue="orders", settings=settings)
        def on_order(body: Any, message: Any) -> None:
            adapter.traced_settle(message.ack, settings=settings)()
            handled.append(message)

        consume(queue, connection.Consumer([queue], callbacks=[on_order]), len(MANY))

    def _loop(self, connection: Any, queue: Any, settings: Settings, handled: list[Any]) -> None:
        for _, message in itermessages(connection, queue.channel, queue, limit=len(MANY), timeout=1):
            message.ack()
            handled.append(message)

    def _pulls(self, connection: Any, queue: Any, settings: Settings, handled: list[Any]) -> None:
        for _ in MANY:
            message = queue.get()
            with adapter.traced_message(message, settings=settings):
                message.ack()
            handled.append(message)

    def _batch(self, connection: Any, queue: Any, settings: Settings, handled: list[Any]) -> None:
        handled.extend(queue.get() for _ in MANY)
        with adapter.traced_batch(handled, settings=settings):
            for message in handled:
                message.ack()

    @pytest.mark.usefixtures("broken_logging")
    @pytest.mark.parametrize("ours", [*faults.OF_THE_LIBRARY, *faults.OF_ITS_PUBLICATIONS])
    def test_a_fault_of_ours_and_no_logging(
        self, connection: Any, queue: Any, monkeypatch: pytest.MonkeyPatch, ours: str
    ) -> None:
        """Whatever of the adapter raises at each message, and though it cannot be told."""
        faults.break_word(monkeypatch, adapter.KOMBU, ours)
        self._everything(connection, queue, Settings(settle_spans=True))

    @pytest.mark.usefixtures("broken_logging")
    def test_an_odd_sdk(self, connection: Any, queue: Any, odd_sdk: Any) -> None:
        """A tracer that gives no span, and spans whose methods raise."""
        settings = Settings(tracer_provider=odd_sdk, settle_spans=True, capture_headers=("tenant",))
        self._everything(connection, queue, settings)

    def test_a_hook_that_raises(
        self, captured_spans: CapturedSpans, connection: Any, queue: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Of a user's function one line is said; every message goes on, traced."""
        settings = Settings(publish_hook=_raise, consume_hook=_raise, trust=_raise, settle_spans=True)
        self._everything(connection, queue, settings)
        lines = {
            record.getMessage().partition(":")[0] for record in caplog.records if record.name == "queueprop"
        }
        assert lines == {
            "queueprop, asking Settings(trust=...) about a message, which counts as untrusted then",
            "queueprop, calling Settings(consume_hook=...)",
            "queueprop, calling Settings(publish_hook=...)",
        }
        assert len(consumers(captured_spans)) == 5 * len(MANY) + 1

    @pytest.mark.usefixtures("guarded")
    def test_a_batch_that_cannot_be_looked_at(self, captured_spans: CapturedSpans, queue: Any) -> None:
        """A producer that does not tell of its batch: the message is sent, and its span ends."""

        class Odd(kombu.Producer):  # type: ignore[misc]
            def __getattribute__(self, name: str) -> Any:
                asker = sys._getframe(1).f_globals["__name__"]
                if name == "_batch_local" and asker.startswith("queueprop."):
                    asked.append(asker)
                    raise LookupError(name)
                return super().__getattribute__(name)

        asked: list[str] = []
        producer = Odd(queue.channel, queue.exchange, "new")
        adapter.traced_publish(producer.publish)("hello")
        assert pull(queue).payload == "hello"
        assert (len(captured_spans), len(asked)) == (1, 1)

    @pytest.mark.usefixtures("guarded")
    def test_a_consumer_that_does_not_tell_its_queues(
        self, captured_spans: CapturedSpans, instrumented: Any, connection: Any, queue: Any
    ) -> None:
        """kombu's loop over it gives its messages, inside their spans."""

        class Odd(kombu.Consumer):  # type: ignore[misc]
            def __getattribute__(self, name: str) -> Any:
                if name == "queues" and sys._getframe(1).f_globals["__name__"].startswith(adapter.__name__):
                    raise LookupError(name)
                return super().__getattribute__(name)

        consumer = Odd(queue.channel, [queue])
        publish(queue)
        [(body, _)] = common.drain_consumer(consumer, limit=1, timeout=1)
        assert body == "hello"
        assert [span.name for span in consumers(captured_spans)] == [f"process {queue.exchange.name}:new"]

    def test_a_module_without_a_name(
        self, captured_spans: CapturedSpans, queue: Any, instrumented: Any
    ) -> None:
        """Code that was made from text publishes as any other."""
        code = "publish('hello')"
        for name in (None, 7):
            exec(
                code,
                {"__name__": name, "publish": kombu.Producer(queue.channel, queue.exchange, "new").publish},
            )
            assert pull(queue).payload == "hello"
        assert [span.kind for span in captured_spans].count(SpanKind.PRODUCER) == 2

    @pytest.mark.usefixtures("guarded", "instrumented")
    @pytest.mark.parametrize("rival", ["Celery's own instrumentation", "ours alone"])
    @pytest.mark.parametrize("headers", [{}, {"id": "1"}, {"traceparent": TRACEPARENT}])
    @pytest.mark.parametrize("context", [lambda self: None, lambda self: _raise()])
    def test_a_task_under_an_odd_span(
        self,
        request: pytest.FixtureRequest,
        queue: Any,
        rival: str,
        headers: dict[str, str],
        context: Callable[[Any], Any],
    ) -> None:
        """What is current when Celery publishes may be a span of anybody's: the message goes out."""
        if rival != "ours alone":
            request.getfixturevalue("celery_s_own")
        span = type("OddSpan", (trace.NonRecordingSpan,), {"get_span_context": context})(
            trace.INVALID_SPAN_CONTEXT
        )
        with trace.use_span(span):
            run_as("celery.app.amqp", publish, queue, headers=headers)
        assert pull(queue).payload == "hello"

    @pytest.mark.usefixtures("guarded", "instrumented", "celery_s_own")
    def test_a_task_whose_headers_are_none(self, queue: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is no mapping, and tells nothing of what is in it, goes out as without us."""
        sent: list[Any] = []
        monkeypatch.setattr(queue.channel, "basic_publish", lambda message, **_: sent.append(message))
        run_as("celery.app.amqp", publish, queue, headers=7)
        assert [message["headers"] for message in sent] == [7]


def _raise(*args: Any, **kwargs: Any) -> Any:
    raise LookupError("no")


def _refuse(*args: Any, **kwargs: Any) -> Any:
    raise RecoverableConnectionError("down")


class TestDestinations:
    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            ("memory://", ("memory", None, None)),
            ("filesystem://", ("filesystem", None, None)),
            ("amqp://", ("rabbitmq", "localhost", 5672)),
            ("amqp://broker.example:5673//", ("rabbitmq", "broker.example", 5673)),
            ("redis://broker.example/0", ("redis", "broker.example", 6379)),
            ("redis+socket:///run/redis.sock", ("redis", "/run/redis.sock", None)),
        ],
    )
    def test_the_broker_of_a_connection(self, captured_spans: CapturedSpans, url: str, expected: Any) -> None:
        """messaging.system, host and port, by the transport's own defaults."""
        if url.startswith("redis"):
            pytest.importorskip("redis")
        assert self._told(kombu.Connection(url), captured_spans) == expected

    def test_a_url_that_the_transport_reads_itself_is_no_host(
        self, captured_spans: CapturedSpans, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """MongoDB's connection keeps all of its URL as its host name, and the password in it stays there."""
        for name, value in (("can_parse_url", True), ("default_port", 27017)):
            monkeypatch.setattr(memory.Transport, name, value)
        client = kombu.Connection("memory://user:secret@broker.example/shop")
        assert "secret" in client.hostname
        assert self._told(client, captured_spans) == ("memory", None, None)

    def test_without_a_connection_it_is_kombu(self, captured_spans: CapturedSpans, queue: Any) -> None:
        """A channel that is closed knows no broker."""
        message = _sent_and_pulled(queue)
        message.channel = None
        with adapter.traced_message(message):
            pass
        assert attributes(captured_spans[-1])["messaging.system"] == "kombu"

    def _told(self, connection: kombu.Connection, spans: CapturedSpans) -> tuple[Any, ...]:
        class Silent(kombu.Producer):  # type: ignore[misc]
            def publish(self, body: Any, **options: Any) -> None:
                """It has no broker."""

        adapter.traced_publish(Silent(connection).publish)("hello")
        [span] = spans
        names = ("messaging.system", "server.address", "server.port")
        return tuple(map(attributes(span).get, names))


class Without:
    """An import system in which one module is not installed."""

    def __init__(self, name: str) -> None:
        self._name = name

    def find_spec(self, name: str, *_: Any) -> None:
        if name == self._name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.mark.parametrize("missing", ["kombu", "kombu.simple"])
def test_without_kombu_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """One line, with the extra's name; another missing module is not hidden."""
    for name in list(sys.modules):
        if name.split(".")[0] == "kombu":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Without(missing), *sys.meta_path])
    with pytest.raises(ModuleNotFoundError) as raised:
        runpy.run_path(str(adapter.__file__))
    assert ('pip install "queueprop[kombu]"' in str(raised.value)) is (missing == "kombu")


def test_idle_polls_are_kombu_s(instrumented: Any, connection: Any) -> None:
    """drain_events without a message times out as before."""
    with pytest.raises(socket.timeout):
        connection.drain_events(timeout=0.01)


def test_a_pull_from_an_unbound_queue_is_kombu_s_error(
    captured_spans: CapturedSpans,
    instrumented: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is the pull's, which kombu raises; no fault of ours is logged beside it."""
    monkeypatch.setattr("queueprop.guard.raise_faults", False)
    monkeypatch.setattr("queueprop.guard._logged", {})
    with pytest.raises(NotBoundError):
        kombu.Queue("orders").get()
    assert caplog.records == []
    [span] = captured_spans
    assert (span.name, attributes(span)["error.type"]) == ("poll orders", "kombu.exceptions.NotBoundError")


def test_all_that_is_installed_when_kombu_is_imported() -> None:
    """kombu puts a module without a spec in its own place: ``instrument()`` without names finds it all the same."""
    assert kombu.__name__ in sys.modules
    queueprop.instrument()
    try:
        assert adapter.KombuInstrumentor().is_instrumented_by_opentelemetry
    finally:
        queueprop.uninstrument()
    assert not adapter.KombuInstrumentor().is_instrumented_by_opentelemetry
