"""The confluent-kafka adapter on librdkafka's own mock cluster, in this process."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import gc
import importlib
import itertools
import logging
import re
import sys
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar
from unittest.mock import Mock

import pytest

pytest.importorskip("confluent_kafka")

import confluent_kafka
from confluent_kafka import (
    Consumer,
    DeserializingConsumer,
    KafkaError,
    KafkaException,
    Producer,
    SerializingProducer,
    TopicPartition,
    cimpl,
)
from confluent_kafka.error import ConsumeError, ValueDeserializationError
from confluent_kafka.serialization import StringDeserializer, StringSerializer
from opentelemetry import baggage
from opentelemetry.context import attach, detach, get_current
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.trace import (
    NoOpTracerProvider,
    SpanContext,
    SpanKind,
    StatusCode,
    get_current_span,
    get_tracer_provider,
)

from queueprop import Destination, Settings, guard
from queueprop.adapters import confluent_kafka as adapter
from queueprop.adapters.confluent_kafka import clients, reports
from queueprop.adapters.confluent_kafka.deliveries import MessageDeliveries
from queueprop.engine.engine import engine_for
from queueprop.engine.message import Message as CoreMessage
from queueprop.kit.libraries import MissingExtra
from queueprop.testing import CapturedSpans

TRACEPARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SETTLED = Settings(settle_spans=True)
A_HANG = 60.0  # seconds
NOWHERE = {"bootstrap.servers": "127.0.0.1:1", "log_level": 0}
HAS_AIO = hasattr(confluent_kafka, "aio") or importlib.util.find_spec("confluent_kafka.aio") is not None
needs_aio = pytest.mark.skipif(not HAS_AIO, reason="confluent_kafka.aio came with 2.13")
needs_async_serializers = pytest.mark.skipif(
    clients.ASYNC_DESERIALIZING_CONSUMER is clients._Absent,
    reason="AsyncSerializingProducer and AsyncDeserializingConsumer came with 2.16",
)
needs_batches = pytest.mark.skipif(
    not hasattr(cimpl.Producer, "produce_batch"), reason="produce_batch came with 2.12"
)
_numbers = itertools.count(1)


class BeforeProducer(Producer):
    """A user's subclass from before anything is instrumented."""

    def produce(self, *args: Any, **kwargs: Any) -> Any:
        return super().produce(*args, **kwargs)


class BeforeConsumer(Consumer):
    def poll(self, *args: Any) -> Any:
        return super().poll(*args)


class SlottedProducer(Producer):
    __slots__ = ("note",)


@pytest.fixture(scope="module")
def servers() -> Iterator[str]:
    """A cluster of one broker, which lives as long as this producer."""
    cluster = cimpl.Producer({"bootstrap.servers": "mock", "test.mock.num.brokers": 1, "log_level": 0})
    [broker] = cluster.list_topics(timeout=A_HANG).brokers.values()
    yield f"{broker.host}:{broker.port}"
    del cluster


@pytest.fixture
def topic() -> str:
    return f"orders-{next(_numbers)}"


@pytest.fixture(autouse=True)
def _nothing_is_known_yet() -> None:
    deliveries = adapter.CONFLUENT_KAFKA.deliveries
    for kept in (deliveries._of_messages, deliveries._keys, deliveries.unattached):
        kept.clear()


@pytest.fixture
def instrumentor() -> Iterator[adapter.ConfluentKafkaInstrumentor]:
    instrumentor = adapter.ConfluentKafkaInstrumentor()
    instrumentor.instrument()
    yield instrumentor
    if instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.uninstrument()


@pytest.fixture(params=["explicit", "instrumented"])
def api(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Both APIs, by the same words."""
    if request.param == "explicit":
        yield SimpleNamespace(
            name="explicit",
            publish=adapter.traced_publish,
            get=adapter.traced_get,
            settle=adapter.traced_settle,
        )
        return
    instrumentor = adapter.ConfluentKafkaInstrumentor()
    instrumentor.instrument()
    yield SimpleNamespace(name="instrumented", publish=_as_it_is, get=_as_it_is, settle=_as_it_is)
    instrumentor.uninstrument()


def _as_it_is(call: Any) -> Any:
    return call


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs a test in an event loop of its own."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


def producer_at(servers: str, kind: Any = None, **options: Any) -> Any:
    kind = kind or confluent_kafka.Producer
    return kind(
        {"bootstrap.servers": servers, "client.id": "shop", "linger.ms": 0, "log_level": 0, **options}
    )


def consumer_at(servers: str, topic: str, kind: Any = None, offset: Any = 0, **options: Any) -> Any:
    kind = kind or confluent_kafka.Consumer
    consumer = kind(
        {
            "bootstrap.servers": servers,
            "client.id": "till",
            "group.id": "billing",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "log_level": 0,
            **options,
        }
    )
    consumer.assign([TopicPartition(topic, 0, offset)])
    return consumer


def fill(
    servers: str, topic: str, *bodies: bytes | None, headers: Any = (("traceparent", TRACEPARENT),)
) -> None:
    """Messages of a producer that nobody traces, each with a key."""
    with suppress_instrumentation():
        producer = producer_at(servers)
        for body in bodies:
            producer.produce(topic, body, b"k", 0, headers=list(headers))
        assert producer.flush(A_HANG) == 0


def messages_of(servers: str, topic: str, count: int) -> list[Any]:
    """What is on the wire."""
    with suppress_instrumentation():
        consumer = consumer_at(servers, topic)
        try:
            messages: list[Any] = []
            while len(messages) < count:
                messages += consumer.consume(count - len(messages), 1.0)[:]
            return messages
        finally:
            consumer.close()


def headers_of(servers: str, topic: str, count: int) -> list[list[tuple[str, Any]]]:
    return [message.headers() or [] for message in messages_of(servers, topic, count)]


def poll(consumer: Any, call: Any = None) -> Any:
    """A message, however long it takes."""
    message = None
    while message is None:
        message = (call or consumer.poll)(1.0)
    return message


def current() -> SpanContext:
    return get_current_span().get_span_context()


def only(spans: CapturedSpans, kind: SpanKind | None = None) -> Any:
    [span] = [span for span in spans if kind is None or span.kind is kind]
    return span


def parent_of(headers: Any) -> str:
    return str(dict(headers)["traceparent"], "utf-8")


def id_of(span: Any) -> str:
    context = span.get_span_context()
    return f"{context.trace_id:032x}-{context.span_id:016x}"


def code_of(error: Any) -> int:
    found: int = error.value.args[0].code()
    return found


class TestEachKindOfClient:
    """Failure 1, 6 and 8: whatever a program has for a client, it is traced, and is what it was."""

    KINDS: ClassVar[dict[str, Callable[[], Any]]] = {
        "the module's": lambda: confluent_kafka.Producer,
        "a name imported before": lambda: Producer,
        "a subclass made before": lambda: BeforeProducer,
        "a subclass with slots": lambda: SlottedProducer,
        "SerializingProducer": lambda: SerializingProducer,
        "a subclass made after": lambda: type("After", (confluent_kafka.Producer,), {}),
    }

    @pytest.mark.parametrize("kind", KINDS)
    def test_one_producer_span(
        self, captured_spans: Any, instrumentor: Any, servers: str, topic: str, kind: str
    ) -> None:
        """One PRODUCER span, named by the traceparent on the wire, with what the report tells."""
        producer = producer_at(servers, self.KINDS[kind]())
        producer.produce(topic, key=b"k", value=b"hello", partition=0)
        assert producer.flush(A_HANG) == 0
        span = only(captured_spans)
        assert (span.kind, span.name) == (SpanKind.PRODUCER, f"publish {topic}")
        [headers] = headers_of(servers, topic, 1)
        assert [name for name, _ in headers] == ["traceparent"]
        assert id_of(span) in parent_of(headers)
        known = kind != "a subclass with slots"  # nothing can be kept beside it
        assert span.attributes == {
            "messaging.system": "kafka",
            "messaging.operation.name": "publish",
            "messaging.operation.type": "send",
            "messaging.destination.name": topic,
            "messaging.destination.partition.id": "0",
            "messaging.kafka.message.key": "k",
            "messaging.kafka.offset": 0,
            **(
                {
                    "messaging.client.id": "shop",
                    "server.address": "127.0.0.1",
                    "server.port": int(servers.rpartition(":")[2]),
                }
                if known
                else {}
            ),
        }

    def test_it_is_what_it_was(self, instrumentor: Any, servers: str) -> None:
        """Length, truth, isinstance, the context manager, every method, the class's names: as without us."""
        producer, consumer = producer_at(servers), consumer_at(servers, "any")
        assert len(producer) == 0
        assert bool(producer) is True
        for client, c_type in zip(
            (producer, consumer), (clients.C_PRODUCER, clients.C_CONSUMER), strict=True
        ):
            assert isinstance(client, c_type)
        assert isinstance(producer, confluent_kafka.Producer)
        assert isinstance(producer_at(servers, BeforeProducer), confluent_kafka.Producer)
        assert isinstance(producer_at(servers, SerializingProducer), confluent_kafka.Producer)
        assert (type(producer).__module__, type(producer).__qualname__) == ("cimpl", "Producer")
        assert set(dir(clients.C_PRODUCER)) <= set(dir(producer))
        hooked = {"__init__", "produce", "produce_batch", "send_offsets_to_transaction"}
        for name in set(vars(clients.C_PRODUCER)) - hooked - {"__new__", "__doc__", "__module__"}:
            assert getattr(type(producer), name) is getattr(clients.C_PRODUCER, name), name
        if hasattr(producer, "__enter__"):
            with producer as entered:
                assert entered is producer
        consumer.close()

    def test_a_class_with_a_metaclass_of_its_own(self, instrumentor: Any, servers: str) -> None:
        """A user's class may be abstract, or have any metaclass: ours has none."""

        class Meta(type): ...

        class Odd(confluent_kafka.Producer, metaclass=Meta): ...

        assert isinstance(producer_at(servers, Odd), Odd)
        assert type(confluent_kafka.Producer) is type

    def test_a_class_whose_bases_cannot_be_changed(
        self, captured_spans: Any, servers: str, topic: str, caplog: Any, monkeypatch: Any
    ) -> None:
        """It stays as it is, one line says so, and its objects work; the others are traced."""
        monkeypatch.setattr(clients, "_rebase", _refusing(BeforeProducer, clients._rebase))
        instrumentor = adapter.ConfluentKafkaInstrumentor()
        instrumentor.instrument()
        try:
            producer = producer_at(servers, BeforeProducer)
            producer.produce(topic, b"x")
            assert producer.flush(A_HANG) == 0
            assert not captured_spans
        finally:
            instrumentor.uninstrument()
        assert BeforeProducer.__bases__ == (clients.C_PRODUCER,)

    def test_an_odd_layout_is_told_of(self, caplog: pytest.LogCaptureFixture) -> None:
        """Where Python refuses to put a class below another base, one line names the class and what to do."""
        with caplog.at_level(logging.WARNING, "queueprop"):
            assert not clients._rebase(BeforeProducer, clients.C_PRODUCER, int)
        assert "BeforeProducer" in caplog.text
        assert "traced_publish(producer.produce)" in caplog.text

    def test_uninstrument_gives_everything_back(self, instrumentor: Any, servers: str, topic: str) -> None:
        """The C types are where they were, in modules that were imported meanwhile as well; clients work on."""
        made = producer_at(servers)
        module = ModuleType("imported_meanwhile")
        vars(module)["Producer"] = confluent_kafka.Producer
        sys.modules[module.__name__] = module
        try:
            instrumentor.uninstrument()
            assert vars(module)["Producer"] is clients.C_PRODUCER
        finally:
            del sys.modules[module.__name__]
        assert confluent_kafka.Producer is Producer is cimpl.Producer is clients.C_PRODUCER
        assert confluent_kafka.Consumer is Consumer is cimpl.Consumer is clients.C_CONSUMER
        assert BeforeProducer.__bases__ == (clients.C_PRODUCER,)
        assert BeforeConsumer.__bases__ == (clients.C_CONSUMER,)
        assert clients.C_PRODUCER in SerializingProducer.__bases__
        assert clients.C_CONSUMER in DeserializingConsumer.__bases__
        made.produce(topic, b"x")
        assert made.flush(A_HANG) == 0

    def test_objects_that_are_no_modules(self, servers: str) -> None:
        """What lies in sys.modules may be anything, and is not asked for attributes."""

        class Lazy(ModuleType):
            def __getattribute__(self, name: str) -> Any:
                raise AssertionError(f"asked for {name}")

        sys.modules["lazy_one"], sys.modules["odd_one"] = Lazy("lazy_one"), None  # type: ignore[assignment]
        try:
            instrumentor = adapter.ConfluentKafkaInstrumentor()
            instrumentor.instrument()
            instrumentor.uninstrument()
        finally:
            del sys.modules["lazy_one"], sys.modules["odd_one"]

    def test_a_client_is_freed(self, instrumentor: Any, servers: str) -> None:
        """What is known of a client does not keep it, although its callback knows it."""

        class Shop:
            def __init__(self) -> None:
                self.producer = producer_at(servers, on_delivery=self.delivered)

            def delivered(self, error: Any, message: Any) -> None: ...

        shop = Shop()
        reference = weakref.ref(shop.producer)
        del shop
        gc.collect()
        assert reference() is None

    def test_a_configuration_by_names(self, captured_spans: Any, instrumentor: Any, servers: str) -> None:
        """The configuration may be given by name; what is no text in it is not told."""
        producer = confluent_kafka.Producer(
            **{"bootstrap.servers": servers, "client.id": "till", "log_level": 0}
        )
        assert clients.known(producer)[0] == "till"
        with pytest.raises(KafkaException):
            confluent_kafka.Producer({"no.such.property": 1})
        with pytest.raises(TypeError):
            confluent_kafka.Producer("no configuration")  # type: ignore[call-overload]

    def test_a_consumer_is_known_by_its_group(
        self, captured_spans: Any, instrumentor: Any, servers: str, topic: str
    ) -> None:
        """Of each kind of consumer the CONSUMER span has group, client and server."""
        fill(servers, topic, b"hello")
        for kind in (confluent_kafka.Consumer, Consumer, BeforeConsumer, DeserializingConsumer):
            captured_spans.clear()
            consumer = consumer_at(servers, topic, kind)
            with adapter.traced_message(poll(consumer)):
                assert f"{current().trace_id:032x}".encode() in TRACEPARENT
            consumer.close()
            receive, process = captured_spans
            assert (receive.kind, receive.name) == (SpanKind.CLIENT, f"poll {topic}")
            assert (process.kind, process.name) == (SpanKind.CONSUMER, f"process {topic}")
            for span in (receive, process):
                assert span.attributes["messaging.consumer.group.name"] == "billing"
                assert span.attributes["server.address"] == "127.0.0.1"
                assert span.attributes["messaging.client.id"] == "till"
                assert len(span.links) == 1


def _refusing(kind: type, rebase: Any) -> Any:
    return lambda derived, old, new: False if derived is kind else rebase(derived, old, new)


class TestHeaders:
    """Failure 2: a message has one context, and the caller's headers stay theirs."""

    CONTAINERS: ClassVar[dict[str, Callable[[], Any]]] = {
        "a list": lambda: [("tenant", b"a"), ("tenant", "b"), ("none", None)],
        "a dict": lambda: {"tenant": "a"},
        "names as bytes": lambda: [(b"tenant", b"a")],
        "stale": lambda: [("Traceparent", b"00-stale"), ("tracestate", b"a=1"), ("tenant", b"a")],
        "a dict of bytes": lambda: {b"tenant": b"a"},
    }

    @pytest.mark.parametrize("container", CONTAINERS)
    def test_reused(self, captured_spans: Any, api: Any, servers: str, topic: str, container: str) -> None:
        """The same object for two publishes: each has a traceparent of its own, and the object none."""
        given = self.CONTAINERS[container]()
        producer = producer_at(servers)
        for _ in range(2):
            api.publish(producer.produce)(topic, b"x", partition=0, headers=given)
        assert producer.flush(A_HANG) == 0
        assert given == self.CONTAINERS[container]()
        for span, headers in zip(captured_spans, headers_of(servers, topic, 2), strict=True):
            names = [name.lower() for name, _ in headers]
            assert names.count("traceparent") == 1
            assert "tracestate" not in names
            assert id_of(span) in parent_of(headers)
            assert {("tenant", b"a"), ("b'tenant'", b"a")} & set(headers)  # the library's own way with bytes

    def test_by_position(self, captured_spans: Any, api: Any, servers: str, topic: str) -> None:
        """All eight arguments by position, the headers last."""
        producer, told = producer_at(servers), []
        publish = api.publish(producer.produce)
        publish(topic, b"v", b"k", 0, lambda *it: told.append(it), None, 1_700_000_000_000, {"tenant": "a"})
        assert producer.flush(A_HANG) == 0
        [message] = messages_of(servers, topic, 1)
        assert message.timestamp()[1] == 1_700_000_000_000
        assert {"tenant", "traceparent"} == {name for name, _ in message.headers()}
        assert [error for error, _ in told] == [None]

    @pytest.mark.parametrize("headers", [("tenant", b"a"), 42, iter([])])
    def test_what_the_library_refuses(
        self, captured_spans: Any, api: Any, servers: str, topic: str, headers: Any
    ) -> None:
        """Other kinds of headers: the library's own TypeError, on the span, too."""
        with pytest.raises(TypeError):
            api.publish(producer_at(servers).produce)(topic, b"x", headers=headers)
        assert only(captured_spans).attributes["error.type"] == "TypeError"
        assert not current().is_valid

    def test_arguments_that_do_not_fit(self, captured_spans: Any, api: Any, servers: str) -> None:
        """No topic, one given twice, too many: the library says so, and there is no span."""
        produce = api.publish(producer_at(servers).produce)
        for args, kwargs in (((), {}), (("a",), {"topic": "b"}), (("a",) * 9, {})):
            with pytest.raises(TypeError):
                produce(*args, **kwargs)
        assert not captured_spans

    def test_an_excluded_topic(self, captured_spans: Any, servers: str, topic: str) -> None:
        """No span; the context that the caller relays goes on, and callbacks are called."""
        producer, told = producer_at(servers), []
        produce = adapter.traced_publish(producer.produce, settings=Settings(exclude=(topic,)))
        relayed = [("traceparent", TRACEPARENT)]
        produce(topic, b"x", partition=0, headers=relayed, callback=lambda *it: told.append(it))
        assert producer.flush(A_HANG) == 0
        assert headers_of(servers, topic, 1) == [relayed]
        assert len(told) == 1
        assert not captured_spans


class TestReports:
    """Failure 3: the delivery report ends the span, in whichever thread it is served."""

    def test_a_failed_delivery(self, captured_spans: Any, api: Any, topic: str) -> None:
        """A message that nobody took in time: ERROR with librdkafka's name for it, and no span before."""
        producer = confluent_kafka.Producer({**NOWHERE, "message.timeout.ms": 20})
        api.publish(producer.produce)(topic, b"x")
        assert not captured_spans
        assert not current().is_valid
        assert producer.flush(A_HANG) == 0
        span = only(captured_spans)
        assert span.status.status_code is StatusCode.ERROR
        assert span.attributes["error.type"] == "_MSG_TIMED_OUT"
        assert "timed out" in span.status.description

    def test_a_purge(self, captured_spans: Any, api: Any, topic: str) -> None:
        """What is thrown away is an error that says so."""
        producer = confluent_kafka.Producer(NOWHERE)
        api.publish(producer.produce)(topic, b"x")
        producer.purge()
        producer.flush(A_HANG)
        assert only(captured_spans).attributes["error.type"] == "_PURGE_QUEUE"

    def test_too_large(self, captured_spans: Any, api: Any, servers: str, topic: str) -> None:
        """What is too large as it is: the library's exception, on the span; the callback is not called."""
        producer, told = producer_at(servers), []
        with pytest.raises(KafkaException) as raised:
            api.publish(producer.produce)(topic, b"x" * 2_000_000, callback=lambda *it: told.append(it))
        assert code_of(raised) == KafkaError.MSG_SIZE_TOO_LARGE
        span = only(captured_spans)
        assert span.status.status_code is StatusCode.ERROR
        assert span.attributes["error.type"] == "cimpl.KafkaException"
        producer.flush(A_HANG)
        assert told == []

    def test_a_full_queue(self, captured_spans: Any, api: Any, topic: str) -> None:
        """BufferError, on the span; the message before is still waiting."""
        producer = confluent_kafka.Producer({**NOWHERE, "queue.buffering.max.messages": 1})
        produce = api.publish(producer.produce)
        produce(topic, b"x")
        with pytest.raises(BufferError):
            produce(topic, b"x")
        assert only(captured_spans).attributes["error.type"] == "BufferError"
        producer.purge()

    @pytest.mark.parametrize("name", ["callback", "on_delivery"])
    def test_a_message_s_own_callback(
        self, captured_spans: Any, api: Any, servers: str, topic: str, name: str
    ) -> None:
        """Called once, instead of the configured one, in the context of its produce, and what was current is back."""
        configured, told = [], []
        producer = producer_at(servers, on_delivery=lambda *it: configured.append(it))
        tracer = get_tracer_provider().get_tracer("test")
        with tracer.start_as_current_span("request") as request:
            token = attach(baggage.set_baggage("tenant", "a"))
            api.publish(producer.produce)(
                topic, b"x", **{name: lambda *it: told.append((*it, current(), baggage.get_all()))}
            )
            detach(token)
        with tracer.start_as_current_span("poller") as poller:
            producer.flush(A_HANG)
            assert current() == poller.get_span_context()
        [(error, message, context, members)] = told
        assert error is None
        assert message.topic() == topic
        assert context == request.get_span_context()
        assert members == {"tenant": "a"}
        assert configured == []

    def test_the_configured_callback(
        self, captured_spans: Any, instrumentor: Any, servers: str, topic: str
    ) -> None:
        """Called once where the message has none, in the thread of poll, and in the context of its produce."""
        told: list[Any] = []
        producer = producer_at(
            servers, on_delivery=lambda *it: told.append((threading.get_ident(), current()))
        )
        with get_tracer_provider().get_tracer("test").start_as_current_span("request") as request:
            producer.produce(topic, b"x")
        poller = threading.Thread(target=producer.flush, args=(A_HANG,))
        poller.start()
        poller.join()
        assert told == [(poller.ident, request.get_span_context())]
        assert len(captured_spans.kind(SpanKind.PRODUCER)) == 1

    def test_which_of_two_callbacks(self, api: Any, servers: str, topic: str) -> None:
        """``callback`` wins over ``on_delivery``, even as None: as the library has it."""
        for traced in (False, True):
            told: list[str] = []
            producer = producer_at(servers, on_delivery=lambda *_, told=told: told.append("configured"))
            produce = api.publish(producer.produce) if traced else producer.produce
            two, one = (lambda *_, told=told: told.append("on")), (lambda *_, told=told: told.append("own"))
            produce(topic, b"x", on_delivery=two, callback=one)
            producer.flush(A_HANG)
            produce(topic, b"x", on_delivery=two, callback=None)
            producer.flush(A_HANG)
            produce(topic, b"x", on_delivery=None)
            producer.flush(A_HANG)
            assert told == ["own", "configured", "configured"]

    def test_a_callback_that_raises(self, captured_spans: Any, api: Any, servers: str, topic: str) -> None:
        """Its exception comes out of flush, as without us; the span is that of a delivered message."""

        def fail(error: Any, message: Any) -> None:
            raise LookupError("mine")

        producer = producer_at(servers)
        api.publish(producer.produce)(topic, b"x", callback=fail)
        with pytest.raises(LookupError, match="mine"):
            producer.flush(A_HANG)
        assert only(captured_spans).status.status_code is StatusCode.UNSET
        assert not current().is_valid

    def test_only_errors_are_reported(self, captured_spans: Any, api: Any, servers: str, topic: str) -> None:
        """Under delivery.report.only.error nobody is told of a success: the span ends all the same."""
        told: list[Any] = []
        producer = producer_at(servers, **{"delivery.report.only.error": True})
        api.publish(producer.produce)(topic, b"x", callback=lambda *it: told.append(it))
        producer.flush(A_HANG)
        assert only(captured_spans).status.status_code is StatusCode.UNSET
        assert told == []

    def test_a_report_that_comes_before_the_call_has_returned(
        self, captured_spans: Any, servers: str, topic: str
    ) -> None:
        """A thread that polls may be faster than the one that publishes: nothing stays current in that one."""
        reported = threading.Event()

        class Slow(BeforeProducer):
            def produce(self, *args: Any, **kwargs: Any) -> None:
                super().produce(*args, **kwargs)
                thread = threading.Thread(target=self.flush, args=(A_HANG,))
                thread.start()
                thread.join()
                reported.set()

        slow = producer_at(servers, Slow)
        adapter.traced_publish(slow.produce)(topic, b"x")
        assert reported.is_set()
        assert not current().is_valid
        assert "offset" in str(only(captured_spans).attributes)

    def test_a_producer_made_before(self, captured_spans: Any, servers: str, topic: str) -> None:
        """By the explicit word: with its report where it holds no callback, else until the call returns."""
        plain, told = producer_at(servers), []
        configured = producer_at(servers, on_delivery=lambda *it: told.append(it))
        adapter.traced_publish(configured.produce)(topic, b"x")
        assert "messaging.kafka.offset" not in only(captured_spans).attributes
        configured.flush(A_HANG)
        assert len(told) == 1
        captured_spans.clear()
        adapter.traced_publish(plain.produce)(topic, b"x")
        assert not captured_spans
        plain.flush(A_HANG)
        assert "messaging.kafka.offset" in only(captured_spans).attributes

    def test_clients_made_before_while_others_are_traced(
        self, captured_spans: Any, servers: str, topic: str, instrumentor: Any
    ) -> None:
        """What instrument() does not reach is reached by the explicit words."""
        producer = clients.C_PRODUCER({"bootstrap.servers": servers, "log_level": 0})
        producer.produce(topic, b"0", partition=0)
        producer.flush(A_HANG)
        assert not captured_spans
        adapter.traced_publish(producer.produce)(topic, b"1", partition=0)
        producer.flush(A_HANG)
        assert only(captured_spans).attributes["messaging.kafka.offset"] == 1
        consumer = consumer_at(servers, topic, clients.C_CONSUMER, offset=1)
        for message in adapter.traced_messages(consumer):
            if message is not None:
                break
        consumer.close()
        assert [it.kind for it in captured_spans] == [SpanKind.PRODUCER, SpanKind.CONSUMER]

    def test_a_producer_that_is_never_flushed(self, captured_spans: Any, api: Any, topic: str) -> None:
        """Its spans end with the process, and say that nobody knows."""
        producer = confluent_kafka.Producer(NOWHERE)
        api.publish(producer.produce)(topic, b"x")
        reports._give_up()
        [span] = captured_spans.named(f"publish {topic}")
        assert span.attributes["error.type"] == "unreported"
        assert "not flushed" in span.status.description
        producer.purge()
        producer.flush(A_HANG)
        assert len(captured_spans.named(f"publish {topic}")) == 1

    def test_nothing_to_tell(self, servers: str, topic: str) -> None:
        """Without an SDK no report is asked for that nobody wanted; the context goes on, and callbacks are called."""
        given: list[Any] = []

        class Watched(clients.C_PRODUCER):  # type: ignore[misc]
            def produce(self, *args: Any, **kwargs: Any) -> None:
                given.append(kwargs)
                super().produce(*args, **kwargs)

        producer, told = producer_at(servers, Watched), []
        produce = adapter.traced_publish(
            producer.produce, settings=Settings(tracer_provider=NoOpTracerProvider())
        )
        produce(topic, b"0", partition=0, headers=[("traceparent", TRACEPARENT)])
        produce(topic, b"1", partition=0, callback=lambda *it: told.append(it))
        assert producer.flush(A_HANG) == 0
        assert set(given[0]) == {"partition", "headers"}
        assert len(told) == 1
        assert dict(headers_of(servers, topic, 2)[0])["traceparent"] == TRACEPARENT

    def test_a_report_of_another_kind(self, captured_spans: Any, guarded: None) -> None:
        """What cannot be read of a report is left out: the span ends, and the callback is called."""
        send = engine_for().send(Destination("kafka", "orders"), CoreMessage())
        send.open()
        told: list[Any] = []
        reports.DeliveryReport(send, lambda *it: told.append(it))(object(), object())
        assert len(told) == 1
        assert len(captured_spans) == 1


class TestSizes:
    """librdkafka counts headers: a message that fits without ours must go out."""

    LIMIT = 10_000

    def _sent(self, produce: Any, producer: Any, servers: str, topic: str, size: int) -> dict[str, bytes]:
        produce(topic, b"x" * size, partition=0, headers=[("tenant", b"a")])
        assert producer.flush(A_HANG) == 0
        [headers] = headers_of(servers, topic, 1)
        return dict(headers)

    @pytest.mark.parametrize(
        ("room", "names"),
        [(2000, {"traceparent", "baggage"}), (200, {"traceparent"}), (0, set())],
    )
    def test_what_of_the_context_has_room(
        self, captured_spans: Any, api: Any, servers: str, topic: str, room: int, names: set[str], caplog: Any
    ) -> None:
        """All of it, or without the baggage, or none of it: one message goes out, with one span, without error."""
        producer = producer_at(servers, **{"message.max.bytes": self.LIMIT})
        token = attach(baggage.set_baggage("tenant", "a" * 500))
        try:
            size = self.LIMIT - 50 - room
            headers = self._sent(api.publish(producer.produce), producer, servers, topic, size)
        finally:
            detach(token)
        assert set(headers) == {"tenant", *names}
        assert only(captured_spans).status.status_code is StatusCode.UNSET
        assert ("leaves no room for a trace context" in caplog.text) is (not names)

    @needs_batches
    def test_in_a_batch(self, captured_spans: Any, api: Any, servers: str, topic: str) -> None:
        """Each message for itself."""
        producer = producer_at(servers, **{"message.max.bytes": self.LIMIT})
        bodies = [b"x" * (self.LIMIT - 37), b"x"]
        assert api.publish(producer.produce_batch)(topic, [{"value": it} for it in bodies], 0) == 2
        producer.flush(A_HANG)
        large, small = headers_of(servers, topic, 2)
        assert large == []
        assert [name for name, _ in small] == ["traceparent"]


@needs_batches
def test_a_partial_of_another_name(captured_spans: Any, servers: str, topic: str) -> None:
    """A partial with a name of its own publishes what it is a partial of: a batch, whose messages have spans."""
    publish: Any = functools.partial(producer_at(servers).produce_batch, topic)
    publish.__name__ = "publish_orders"
    assert adapter.traced_publish(publish)([{"value": b"a"}, {"value": b"b"}]) == 2
    assert len(captured_spans) == 3


class TestSerializers:
    """Failure 7: hooks are below the serializers, and nothing asks the broker for anything."""

    def test_a_serializer_runs_once(
        self, captured_spans: Any, instrumentor: Any, servers: str, topic: str
    ) -> None:
        """A key serializer runs once and does not see our headers."""
        seen: list[Any] = []

        def serialize(key: Any, context: Any) -> bytes:
            seen.append((key, context.headers))
            return str(key).encode()

        producer = producer_at(servers, SerializingProducer, **{"key.serializer": serialize})
        producer.produce(topic, key=42, value=b"x", headers=[("tenant", b"a")])
        producer.flush(A_HANG)
        assert seen == [(42, [("tenant", b"a")])]
        assert only(captured_spans).attributes["messaging.kafka.message.key"] == "42"

    def test_explicitly(self, captured_spans: Any, servers: str, topic: str) -> None:
        """``SerializingProducer.produce`` has an order of its own: topic, key, value."""
        options = {"key.serializer": StringSerializer(), "value.serializer": StringSerializer()}
        producer, told = producer_at(servers, SerializingProducer, **options), []
        adapter.traced_publish(producer.produce)(topic, "k", "v", 0, lambda *it: told.append(it))
        producer.flush(A_HANG)
        [message] = messages_of(servers, topic, 1)
        assert (message.key(), message.value(), len(told)) == (b"k", b"v", 1)
        span = only(captured_spans)
        assert span.attributes["messaging.kafka.message.key"] == "k"
        assert id_of(span) in parent_of(message.headers())

    def test_nobody_asks_the_broker(self, captured_spans: Any, instrumentor: Any, topic: str) -> None:
        """With the broker down, produce returns at once: no metadata, no id of the cluster."""
        asked: list[str] = []

        class Watched(confluent_kafka.Producer):
            def __getattribute__(self, name: str) -> Any:
                asked.append(name)
                return super().__getattribute__(name)

        producer = Watched(NOWHERE)
        asked.clear()
        producer.produce(topic, b"x", b"k")
        assert set(asked) <= {"produce", "__class__"}
        producer.purge()
        producer.flush(A_HANG)


class TestConsuming:
    """Failure 4: the handler of a polled message is in its producer's trace, and nothing stays current."""

    def test_a_polled_message(self, captured_spans: Any, api: Any, servers: str, topic: str) -> None:
        """``poll`` has a receive span; the handling is in the trace, a child of the publish, linked to it."""
        fill(servers, topic, b"hello", None)
        consumer = consumer_at(servers, topic)
        call = api.get(consumer.poll)
        first = poll(consumer, call)
        assert not current().is_valid
        with adapter.traced_message(first):
            assert current().is_valid
        with adapter.traced_message(poll(consumer, call)):
            pass
        assert not current().is_valid
        consumer.close()
        receive, process, _, tombstone = captured_spans
        assert receive.context.trace_id != process.context.trace_id
        assert f"{process.context.trace_id:032x}-{process.parent.span_id:016x}".encode() in TRACEPARENT
        assert process.attributes["messaging.kafka.offset"] == 0
        assert process.attributes["messaging.kafka.message.key"] == "k"
        assert process.attributes["queueprop.message.queue_time"] >= 0
        assert "messaging.kafka.message.tombstone" not in process.attributes
        assert tombstone.attributes["messaging.kafka.message.tombstone"] is True

    def test_consume(self, captured_spans: Any, api: Any, servers: str, topic: str) -> None:
        """Its list handles each message inside its span, once a message, whatever is done with it."""
        fill(servers, topic, b"0", b"1", b"2")
        consumer = consumer_at(servers, topic)
        messages = api.get(consumer.consume)(3, A_HANG)
        assert isinstance(messages, list)
        assert len(messages) == 3
        inside = [current().span_id for _ in messages]
        again = [current().span_id for _ in messages]
        assert inside == again
        assert len(set(inside)) == 3
        for _ in messages:
            break
        assert not current().is_valid
        consumer.close()
        receive, *handled = captured_spans
        assert receive.attributes["messaging.batch.message_count"] == 3
        assert [span.kind for span in handled] == [SpanKind.CONSUMER] * 3

    def test_a_batch(self, captured_spans: Any, api: Any, servers: str, topic: str) -> None:
        """``traced_batch``: one span, a link for each message."""
        fill(servers, topic, b"0", b"1")
        consumer = consumer_at(servers, topic)
        messages = api.get(consumer.consume)(2, A_HANG)
        with adapter.traced_batch(messages):
            pass
        consumer.close()
        assert len(only(captured_spans, SpanKind.CONSUMER).links) == 2

    def test_a_loop(self, captured_spans: Any, api: Any, servers: str, topic: str) -> None:
        """``traced_messages(consumer)``: bodies inside, ticks outside, no receive spans, nothing current behind."""
        fill(servers, topic, b"0", b"1")
        consumer = consumer_at(servers, topic)
        seen: list[bytes] = []
        for message in adapter.traced_messages(consumer, timeout=0.2):
            if message is None:
                assert not current().is_valid
                if len(seen) == 2:
                    break
                continue
            assert current().is_valid
            seen.append(message.value())
        assert not current().is_valid
        consumer.close()
        assert seen == [b"0", b"1"]
        assert [span.kind for span in captured_spans] == [SpanKind.CONSUMER] * 2

    def test_a_loop_that_only_hands_on(self, captured_spans: Any, servers: str, topic: str) -> None:
        """Under ``loop_spans=False`` the worker's ``traced_message`` makes the span."""
        fill(servers, topic, b"0")
        consumer, settings = consumer_at(servers, topic), Settings(loop_spans=False)
        for message in adapter.traced_messages(consumer, settings=settings):
            if message is not None:
                assert not current().is_valid
                break
        with adapter.traced_message(message, settings=settings):
            assert current().is_valid
        consumer.close()
        assert [span.kind for span in captured_spans] == [SpanKind.CLIENT, SpanKind.CONSUMER]

    def test_a_closed_consumer(self, captured_spans: Any, api: Any, servers: str, topic: str) -> None:
        """``poll`` raises what it raises, without a span."""
        consumer = consumer_at(servers, topic)
        consumer.close()
        with pytest.raises(RuntimeError):
            api.get(consumer.poll)(0.1)
        assert not captured_spans

    def test_in_another_thread(self, captured_spans: Any, api: Any, servers: str, topic: str) -> None:
        """A message may be handled in another thread, while the next one is polled: each inside its own span."""
        fill(servers, topic, b"0", b"1")
        consumer, seen = consumer_at(servers, topic), []
        call = api.get(consumer.poll)

        def handle(message: Any) -> None:
            with adapter.traced_message(message):
                seen.append((message.offset(), current().span_id))

        threads = [threading.Thread(target=handle, args=(poll(consumer, call),)) for _ in range(2)]
        for thread in threads:
            thread.start()
            thread.join()
        assert not current().is_valid
        consumer.close()
        spans = captured_spans.kind(SpanKind.CONSUMER)
        assert seen == [(it.attributes["messaging.kafka.offset"], it.context.span_id) for it in spans]

    def test_a_handler(self, captured_spans: Any, servers: str, topic: str) -> None:
        """``@traced_consumer`` finds the message among the arguments."""
        fill(servers, topic, b"hello")
        consumer = consumer_at(servers, topic)

        @adapter.traced_consumer
        def handle(number: int, *, message: Any) -> int:
            assert f"{current().trace_id:032x}".encode() in TRACEPARENT
            return number

        assert handle(7, message=poll(consumer)) == 7
        consumer.close()
        assert len(captured_spans) == 1

    def test_a_destination_of_ones_own(self, captured_spans: Any, servers: str, topic: str) -> None:
        """Instead of the message's topic and partition."""
        fill(servers, topic, b"hello")
        consumer = consumer_at(servers, topic)
        with adapter.traced_message(poll(consumer), Destination("kafka", "mine")):
            pass
        consumer.close()
        assert only(captured_spans).name == "process mine"


class TestNoMessages:
    """Failure 5: errors, the end of a partition, empty lists and None are no messages."""

    def test_the_end_of_a_partition(self, captured_spans: Any, api: Any, servers: str, topic: str) -> None:
        """It comes as a message with an error: given as it is, without a span, in no count."""
        fill(servers, topic, b"hello")
        consumer = consumer_at(servers, topic, **{"enable.partition.eof": True})
        seen = []
        for message in adapter.traced_messages(consumer, timeout=A_HANG):
            assert message is not None
            seen.append((message.error() and message.error().code(), current().is_valid))
            if message.error():
                break
        assert seen == [(None, True), (KafkaError._PARTITION_EOF, False)]
        consumer.assign([TopicPartition(topic, 0, 1)])
        end = poll(consumer, api.get(consumer.poll))
        with adapter.traced_message(end):
            assert not current().is_valid
        consumer.assign([TopicPartition(topic, 0, 1)])
        several = api.get(consumer.consume)(1, A_HANG)
        assert [it.error().code() for it in several] == [KafkaError._PARTITION_EOF]
        with adapter.traced_batch(several):
            assert not current().is_valid
        consumer.close()
        assert len(captured_spans) == 1

    def test_nothing(self, captured_spans: Any, api: Any, servers: str, topic: str) -> None:
        """``poll`` that gives None and ``consume`` that gives an empty list: no span, nothing raised."""
        consumer = consumer_at(servers, topic)
        assert api.get(consumer.poll)(0) is None
        assert api.get(consumer.consume)(10, 0) == []
        with adapter.traced_message(None), adapter.traced_batch([]):
            assert not current().is_valid
        consumer.close()
        assert not captured_spans

    def test_a_deserializing_consumer(
        self, captured_spans: Any, instrumentor: Any, servers: str, topic: str
    ) -> None:
        """It raises the end of a partition, which is no failure; what it cannot decode is one of its poll."""
        fill(servers, topic, b"hello", b"\xff")
        options = {"value.deserializer": StringDeserializer(), "enable.partition.eof": True}
        consumer = consumer_at(servers, topic, DeserializingConsumer, **options)
        message = poll(consumer)
        with adapter.traced_message(message):
            assert message.value() == "hello"
        captured_spans.clear()
        with pytest.raises(ValueDeserializationError):
            poll(consumer)
        receive = only(captured_spans)
        assert (receive.kind, receive.status.status_code) == (SpanKind.CLIENT, StatusCode.ERROR)
        captured_spans.clear()
        with pytest.raises(ConsumeError):
            poll(consumer)
        with pytest.raises(NotImplementedError):
            consumer.consume()
        consumer.close()
        assert not captured_spans


class TestSuppression:
    """Failure 6."""

    def test_suppressed(self, captured_spans: Any, api: Any, servers: str, topic: str) -> None:
        """No span, no header; sent, reported and handled."""
        producer, consumer, told = producer_at(servers), consumer_at(servers, topic), []
        with suppress_instrumentation():
            api.publish(producer.produce)(topic, b"x", partition=0, callback=lambda *it: told.append(it))
            producer.flush(A_HANG)
            message = poll(consumer, api.get(consumer.poll))
            with adapter.traced_message(message):
                assert not current().is_valid
        consumer.close()
        assert message.headers() is None
        assert len(told) == 1
        assert not captured_spans


class TestIdentity:
    """A message takes neither an attribute nor a weak reference, and is known again all the same."""

    def test_handled_again(self, captured_spans: Any, api: Any, servers: str, topic: str) -> None:
        """A retry loop of the user's: one CONSUMER span, and its context each time."""
        fill(servers, topic, b"hello")
        consumer, inside = consumer_at(servers, topic), set()
        message = poll(consumer, api.get(consumer.poll))
        for _ in range(2):
            with adapter.traced_message(message):
                inside.add(current().span_id)
        consumer.close()
        assert len(inside) == len(captured_spans.kind(SpanKind.CONSUMER)) == 1

    @pytest.mark.parametrize("length", ["one character", "some"])
    def test_delivered_again(self, captured_spans: Any, api: Any, servers: str, length: str) -> None:
        """After a seek it is another delivery, of which the first is known no more. (Python keeps one text for each
        character: such a topic's messages have no text of their own.)"""
        topic = "q" if length == "one character" else f"again-{next(_numbers)}"
        fill(servers, topic, b"hello")
        offset = messages_of(servers, topic, 1)[0].offset()
        consumer = consumer_at(servers, topic, offset=offset)
        call = api.get(consumer.poll)
        for _ in range(3):
            message = poll(consumer, call)
            with adapter.traced_message(message):
                pass
            consumer.seek(TopicPartition(topic, 0, offset))
        consumer.close()
        assert len(captured_spans.kind(SpanKind.CONSUMER)) == 3

    def test_two_consumers(self, captured_spans: Any, instrumentor: Any, servers: str, topic: str) -> None:
        """The same offset for two groups is two deliveries, each with its group."""
        fill(servers, topic, b"hello")
        consumers = [consumer_at(servers, topic, **{"group.id": group}) for group in ("one", "two")]
        messages = [poll(consumer) for consumer in consumers]
        for message in (*messages, *messages):
            with adapter.traced_message(message):
                pass
        for consumer in consumers:
            consumer.close()
        groups = [
            it.attributes["messaging.consumer.group.name"] for it in captured_spans.kind(SpanKind.CONSUMER)
        ]
        assert groups == ["one", "two"]

    def test_what_is_gone_is_forgotten(self, instrumentor: Any, servers: str, topic: str) -> None:
        """Nothing is kept of messages that nobody has any longer, nor of the consumer."""
        fill(servers, topic, *[b"x"] * 50)
        consumer = consumer_at(servers, topic)
        for _ in range(50):
            with adapter.traced_message(poll(consumer)):
                pass
        assert len(adapter.CONFLUENT_KAFKA.deliveries._of_messages) < 5
        consumer.close()

    def test_the_memory_has_a_bound(self, servers: str, topic: str) -> None:
        """Of messages that somebody keeps for ever, the oldest are forgotten."""
        fill(servers, topic, *[b"x"] * 40)
        deliveries, messages = MessageDeliveries(most=10), messages_of(servers, topic, 40)
        for message in messages:
            deliveries.of(message)
        assert len(deliveries._of_messages) <= 11
        assert deliveries.find(messages[-1]) is not None
        assert deliveries.find(messages[0]) is None

    def test_handled_outside(self, servers: str, topic: str, caplog: pytest.LogCaptureFixture) -> None:
        """A message that was polled and dropped without its scope is counted, once, at a later poll; one that a
        worker still has is not."""
        reader = InMemoryMetricReader()
        settings = Settings(meter_provider=MeterProvider([reader]))
        fill(servers, topic, b"0", b"1", b"2", b"3")
        consumer = consumer_at(servers, topic)
        call = adapter.traced_get(consumer.poll, settings=settings)
        kept = poll(consumer, call)
        for _ in range(3):
            poll(consumer, call)
        assert call(0) is None
        with adapter.traced_message(kept, settings=settings):
            pass
        del kept
        for _ in range(4):
            call(0)
        consumer.close()
        assert _sum(reader, "queueprop.context.unattached") == 3
        assert "traced_message" in caplog.text

    def test_a_double(self, captured_spans: Any) -> None:
        """An object that looks like a message, as tests have it, is handled as one."""

        class Double(SimpleNamespace): ...

        double = Double(
            topic=lambda: "orders",
            partition=lambda: 3,
            offset=lambda: 7,
            timestamp=lambda: (cimpl.TIMESTAMP_NOT_AVAILABLE, 0),
            headers=lambda: [("traceparent", TRACEPARENT)],
            key=lambda: None,
            value=lambda: b"hello",
            error=lambda: None,
        )
        for _ in range(2):
            with adapter.traced_message(double):
                assert f"{current().trace_id:032x}".encode() in TRACEPARENT
        assert only(captured_spans).name == "process orders"


def _sum(reader: InMemoryMetricReader, name: str) -> Any:
    data: Any = reader.get_metrics_data()
    return sum(
        point.value
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == name
        for point in metric.data.data_points
    )


class TestSettling:
    def _handled(self, consumer: Any, call: Any) -> Any:
        message = poll(consumer, call)
        with adapter.traced_message(message, settings=SETTLED):
            pass
        return message

    @pytest.mark.parametrize("what", ["message", "offsets", "nothing"])
    def test_a_commit(self, captured_spans: Any, servers: str, topic: str, what: str) -> None:
        """Of a message, of offsets, of all that is assigned: a child of the span of the last one handled, once."""
        fill(servers, topic, b"0", b"1")
        consumer = consumer_at(servers, topic)
        call = adapter.traced_get(consumer.poll, settings=SETTLED)
        self._handled(consumer, call)
        message = self._handled(consumer, call)
        commit = adapter.traced_settle(consumer.commit, settings=SETTLED)
        given: Any = {
            "message": {"message": message},
            "offsets": {"offsets": [TopicPartition(topic, 0, 2)]},
            "nothing": {},
        }[what]
        commit(asynchronous=False, **given)
        process, settle = captured_spans[-2:]
        assert (settle.kind, settle.name) == (SpanKind.CLIENT, f"commit {topic}")
        assert settle.parent.span_id == process.context.span_id
        [committed] = consumer.committed([TopicPartition(topic, 0)], timeout=A_HANG)
        assert committed.offset == 2
        count = len(captured_spans)
        with contextlib.suppress(KafkaException):  # without arguments: there is nothing left
            commit(asynchronous=False, **given)
        assert len(captured_spans) == count
        consumer.close()

    def test_instrumented(self, captured_spans: Any, servers: str, topic: str) -> None:
        """``store_offsets`` and ``commit`` of a consumer that nobody wrapped; of another partition nothing."""
        instrumentor = adapter.ConfluentKafkaInstrumentor()
        instrumentor.instrument(settings=SETTLED)
        try:
            fill(servers, topic, b"0", b"1")
            consumer = consumer_at(servers, topic, **{"enable.auto.offset.store": False})
            consumer.store_offsets(message=self._handled(consumer, None))
            consumer.commit(offsets=[TopicPartition(topic, 1, 1)], asynchronous=False)
            consumer.commit(message=self._handled(consumer, None), asynchronous=False)
            consumer.close()
            with pytest.raises(RuntimeError):
                consumer.commit()
        finally:
            instrumentor.uninstrument()
        settled = [it for it in captured_spans if it.attributes["messaging.operation.type"] == "settle"]
        assert [it.name for it in settled] == [f"store_offsets {topic}", f"commit {topic}"]
        assert settled[-1].attributes["messaging.consumer.group.name"] == "billing"

    def test_in_a_transaction(self, captured_spans: Any, servers: str, topic: str) -> None:
        """``send_offsets_to_transaction`` commits what its consumer was handed."""
        fill(servers, topic, b"0")
        consumer = consumer_at(servers, topic)
        self._handled(consumer, adapter.traced_get(consumer.poll, settings=SETTLED))

        class Transactional(confluent_kafka.Producer):  # the mock cluster's groups know no transactions
            def send_offsets_to_transaction(self, positions: Any, group_metadata: Any, *args: Any) -> None:
                assert positions

        producer = producer_at(servers, Transactional)
        commit = adapter.traced_settle(producer.send_offsets_to_transaction, settings=SETTLED)
        commit([TopicPartition(topic, 0, 1)], consumer.consumer_group_metadata())
        consumer.close()
        assert captured_spans[-1].name == f"commit {topic}"

    def test_in_a_transaction_of_another_group(self, captured_spans: Any, servers: str, topic: str) -> None:
        """Metadata of another group commits nothing of this consumer's; metadata in an unknown form may."""

        class Transactional(confluent_kafka.Producer):
            def send_offsets_to_transaction(self, *args: Any) -> None: ...

        instrumentor = adapter.ConfluentKafkaInstrumentor()
        instrumentor.instrument(settings=SETTLED)
        try:
            fill(servers, topic, b"0")
            consumer, other = consumer_at(servers, topic), consumer_at(servers, topic, **{"group.id": "till"})
            self._handled(consumer, None)
            commit = adapter.traced_settle(
                producer_at(servers, Transactional).send_offsets_to_transaction, settings=SETTLED
            )
            count, offsets = len(captured_spans), [TopicPartition(topic, 0, 1)]
            commit(offsets, other.consumer_group_metadata())
            assert len(captured_spans) == count
            commit(offsets, b"a later form")
            assert captured_spans[-1].name == f"commit {topic}"
            consumer.close(), other.close()
        finally:
            instrumentor.uninstrument()


class TestTransactions:
    def test_an_abort(self, captured_spans: Any, api: Any, servers: str, topic: str) -> None:
        """What an aborted transaction has purged is an error of its span; what was committed is none."""
        producer = producer_at(servers, **{"transactional.id": topic, "linger.ms": 10_000})
        producer.init_transactions(A_HANG)
        produce = api.publish(producer.produce)
        producer.begin_transaction()
        produce(topic, b"0", partition=0)
        producer.abort_transaction(A_HANG)
        producer.begin_transaction()
        produce(topic, b"1", partition=0)
        producer.commit_transaction(A_HANG)
        purged, committed = captured_spans
        assert purged.attributes["error.type"].startswith("_PURGE_")
        assert committed.status.status_code is StatusCode.UNSET


SHARED_LOOKS: dict[str, Callable[[Any], Any]] = {
    "in": lambda batch: batch[1] in batch,
    "not in": lambda batch: "no message" in batch,
    "index": lambda batch: hasattr(batch, "index"),
    "count": lambda batch: (batch.count(), batch.is_empty()),
    "==": lambda batch: (batch == batch, batch == [*batch], batch != batch),
    "bool": bool,
    "len": len,
    "repr": repr,
    "an f-string": lambda batch: f"{batch}",
    "a slice": lambda batch: (type(batch[1:]), batch[1:].records()),
    "an item": lambda batch: batch[-1],
    "records": lambda batch: batch.records(),
    "list": list,
    "sorted": lambda batch: sorted(batch, key=lambda message: -message.offset()),
    "*": lambda batch: [*batch],
    "another list": lambda batch: [].extend(batch),
}
"""What hands no message to whoever handles it."""


@pytest.mark.skipif(not clients.HAS_SHARES, reason="ShareConsumer came with 2.15")
class TestShareConsumer:
    """What needs no share group, which the mock cluster has not; integration/test_confluent_kafka.py has the rest."""

    OPTIONS: ClassVar[Any] = {**NOWHERE, "group.id": "billing", "share.acknowledgement.mode": "explicit"}

    def _messages(self, *errors: Any) -> Any:
        return confluent_kafka.Messages(
            cimpl.Message(
                topic="".join(("or", "ders")),
                partition=0,
                offset=offset,
                value=b"x",
                headers=[("traceparent", TRACEPARENT)],
                timestamp=(0, 0),
                error=None if code is None else KafkaError(code),
                delivery_count=offset + 1,
            )
            for offset, code in enumerate(errors)
        )

    def test_every_name_of_it_is_traced_and_comes_back(self) -> None:
        """The module's name and the classes derived from it; and ``uninstrument`` gives everything back."""
        deserializing = confluent_kafka.DeserializingShareConsumer
        before = confluent_kafka.ShareConsumer
        instrumentor = adapter.ConfluentKafkaInstrumentor()
        instrumentor.instrument()
        try:
            for kind in (confluent_kafka.ShareConsumer, deserializing):
                consumer = kind(self.OPTIONS)
                assert isinstance(consumer, clients.C_SHARE_CONSUMER)
                assert isinstance(consumer, confluent_kafka.ShareConsumer)
                assert clients.known(consumer).group == "billing"
                consumer.close()
                with pytest.raises(RuntimeError, match="closed"):
                    consumer.poll(0.1)
        finally:
            instrumentor.uninstrument()
        assert confluent_kafka.ShareConsumer is cimpl.ShareConsumer is before is clients.C_SHARE_CONSUMER
        assert deserializing.__bases__ == (before,)

    def test_what_is_handled(self, captured_spans: Any) -> None:
        """An error is no message; one that could not be deserialized is one, and its span says why; each span tells the
        attempt. Slices, and single ones, open nothing.
        """
        batch = self._messages(None, KafkaError._PARTITION_EOF, KafkaError._VALUE_DESERIALIZATION)
        traced = adapter.traced_get(lambda timeout: batch)(1.0)
        assert (type(traced[:]), traced[0], traced[-1]) == (confluent_kafka.Messages, batch[0], batch[2])
        assert traced.records()[:] == batch.records()
        seen = [current().span_id for _ in traced]
        receive, first, last = captured_spans
        assert len(receive.links) == 2
        assert seen == [first.context.span_id, 0, last.context.span_id]
        assert [span.attributes["queueprop.message.delivery_attempt"] for span in (first, last)] == [1, 3]
        assert [span.attributes.get("error.type") for span in (first, last)] == [
            None,
            "_VALUE_DESERIALIZATION",
        ]
        assert not current().is_valid

    @pytest.mark.parametrize("way", SHARED_LOOKS)
    def test_what_looks_at_a_batch_handles_nothing(self, captured_spans: Any, way: str) -> None:
        """It gives what it gives of the library's own, opens no span, and the loop that comes then has them all."""
        plain = self._messages(None, None, None)
        batch = adapter.traced_get(lambda timeout: plain)(1.0)
        assert SHARED_LOOKS[way](batch) == SHARED_LOOKS[way](plain)
        assert not captured_spans.kind(SpanKind.CONSUMER)
        seen = [current().span_id for _ in batch]
        assert seen == [span.context.span_id for span in captured_spans.kind(SpanKind.CONSUMER)]

    def test_a_copy_is_a_plain_one(self) -> None:
        """It has the same messages."""
        plain = self._messages(None, None)
        copied = copy.copy(adapter.traced_get(lambda timeout: plain)(1.0))
        assert type(copied) is confluent_kafka.Messages
        assert copied.records() == plain.records()

    def test_backwards(self, captured_spans: Any) -> None:
        """``reversed`` hands each message to whoever handles it, inside its span."""
        batch = self._messages(None, None, None)
        traced = adapter.traced_get(lambda timeout: batch)(1.0)
        seen = [(message.offset(), current().span_id) for message in reversed(traced)]
        spans = captured_spans.kind(SpanKind.CONSUMER)
        assert seen == [(2 - at, span.context.span_id) for at, span in enumerate(spans)]
        assert len(seen) == 3

    def test_acknowledgements_that_the_library_refuses(self, captured_spans: Any) -> None:
        """Its own exceptions, and no span: of an odd type, without a message, and of one that was not handled."""
        consumer = confluent_kafka.ShareConsumer(self.OPTIONS)
        [message] = self._messages(None)
        acknowledge = adapter.traced_settle(consumer.acknowledge, settings=SETTLED)
        refused: Any = ((message, 42), (message, []), (), ("no message",))
        for args in refused:
            with pytest.raises((TypeError, ValueError, RuntimeError)) as traced:
                acknowledge(*args)
            with pytest.raises(type(traced.value), match=re.escape(str(traced.value))):
                consumer.acknowledge(*args)
        with pytest.raises(RuntimeError):
            adapter.traced_settle(consumer.acknowledge_offset, settings=SETTLED)("orders", 0, 0)
        assert adapter.traced_settle(consumer.commit_sync, settings=SETTLED)(1.0) == {}
        consumer.close()
        assert not captured_spans

    def test_a_loop_over_it_is_refused(self) -> None:
        """It is polled by batches, whose rest a loop that is left would lose."""
        consumer: Any = confluent_kafka.ShareConsumer(self.OPTIONS)
        with pytest.raises(TypeError, match="traced_messages"):
            adapter.traced_messages(consumer)
        consumer.close()


@needs_batches
class TestBatches:
    """Failure 9, without asyncio."""

    def test_each_message_has_a_context_of_its_own(
        self, captured_spans: Any, api: Any, servers: str, topic: str
    ) -> None:
        """A create span for each, whose context is on the wire, and a CLIENT span that links to them."""
        producer, told = producer_at(servers), []
        messages: list[Any] = [
            {"value": b"0", "key": b"k"},
            {"value": "1", "callback": lambda *it: told.append("own")},
        ]
        given = copy.deepcopy(messages)
        publish = api.publish(producer.produce_batch)
        assert publish(topic, messages, partition=0, on_delivery=lambda *it: told.append("all")) == 2
        producer.flush(A_HANG)
        assert messages == given
        assert told == ["all", "own"]
        *created, send = captured_spans
        assert [it.kind for it in created] == [SpanKind.PRODUCER] * 2
        assert send.kind is SpanKind.CLIENT
        assert {link.context.span_id for link in send.links} == {it.context.span_id for it in created}
        for span, headers in zip(created, headers_of(servers, topic, 2), strict=True):
            assert id_of(span) in parent_of(headers)

    @pytest.mark.parametrize("of", ["a class", "a function"])
    def test_around_it(
        self, captured_spans: Any, api: Any, servers: str, topic: str, caplog: Any, of: str
    ) -> None:
        """A ``produce_batch`` of the user's own is called as ever. What it calls is traced where that is instrumented,
        or wrapped; else one line says that nothing is."""
        called: list[Any] = []

        class Own(confluent_kafka.Producer):
            def produce_batch(self, topic: str, messages: Any) -> Any:  # type: ignore[override]
                called.append(topic)
                return super().produce_batch(topic, messages, 0)

        producer = producer_at(servers, Own)

        def produce_batch(topic: str, messages: Any) -> Any:
            return producer.produce_batch(topic, messages)

        publish = api.publish(producer.produce_batch if of == "a class" else produce_batch)
        assert publish(topic, [{"value": b"a"}, {"value": b"b"}]) == 2
        producer.flush(A_HANG)
        assert called == [topic]
        headers = headers_of(servers, topic, 2)
        told = [it for it in caplog.messages if "a produce_batch of your own" in it]
        if api.name == "explicit":
            assert (len(captured_spans), headers, len(told)) == (0, [[], []], 1)
            return
        creates = captured_spans.kind(SpanKind.PRODUCER)
        assert all(id_of(span) in parent_of(it) for span, it in zip(creates, headers, strict=True))
        assert told == []

    def test_both_apis_around_it(
        self, captured_spans: Any, instrumentor: Any, servers: str, topic: str, caplog: Any
    ) -> None:
        """A wrapped function around an instrumented producer's: each message once, and nothing to tell."""
        producer = producer_at(servers)

        def produce_batch(topic: str, messages: Any) -> Any:
            return producer.produce_batch(topic, messages, 0)

        assert adapter.traced_publish(produce_batch)(topic, [{"value": b"a"}]) == 1
        producer.flush(A_HANG)
        [headers] = headers_of(servers, topic, 1)
        assert id_of(only(captured_spans, SpanKind.PRODUCER)) in parent_of(headers)
        assert not caplog.messages

    def test_one_that_is_too_large(self, captured_spans: Any, api: Any, servers: str, topic: str) -> None:
        """It has the error that it has without us, and the others go out."""

        def messages() -> list[Any]:
            return [{"value": b"0"}, {"value": b"x" * 2_000_000}]

        producer, plain, traced = producer_at(servers), messages(), messages()
        with suppress_instrumentation():
            assert producer.produce_batch(topic, plain) == 1
        assert api.publish(producer.produce_batch)(topic, traced) == 1
        producer.flush(A_HANG)
        assert "_error" not in traced[0]
        assert str(traced[1]["_error"]) == str(plain[1]["_error"])
        assert traced[1]["_error"] == plain[1]["_error"]
        send = captured_spans[-1]
        assert send.attributes["error.type"] == "MSG_SIZE_TOO_LARGE"

    def test_a_full_queue(self, api: Any, topic: str) -> None:
        """As the library tells it of each message."""
        for traced in (False, True):
            producer = confluent_kafka.Producer({**NOWHERE, "queue.buffering.max.messages": 1})
            messages: list[Any] = [{"value": b"0"}, {"value": b"1"}]
            with contextlib.nullcontext() if traced else suppress_instrumentation():
                publish = api.publish(producer.produce_batch) if traced else producer.produce_batch
                assert publish(topic, messages) == 1
            assert messages[1]["_error"].code() == KafkaError._QUEUE_FULL
            producer.purge()

    @pytest.mark.parametrize("messages", [[{"value": b"0"}, {"value": 1}], [{"value": b"0"}, 7], (), 7])
    def test_what_the_library_refuses(
        self, captured_spans: Any, api: Any, servers: str, topic: str, messages: Any
    ) -> None:
        """It refuses all of it, before any of it is produced."""
        producer = producer_at(servers)
        with pytest.raises(TypeError):
            api.publish(producer.produce_batch)(topic, messages)
        assert len(producer) == 0
        assert not captured_spans

    def test_none(self, captured_spans: Any, api: Any, servers: str, topic: str) -> None:
        """An empty batch is nothing."""
        assert api.publish(producer_at(servers).produce_batch)(topic, []) == 0
        assert not captured_spans


@needs_aio
class TestAsyncio:
    """Failure 9: an AIOProducer's batches have no headers of their own, and carry contexts all the same."""

    @staticmethod
    def _producer(servers: str, **options: Any) -> Any:
        from confluent_kafka.aio import AIOProducer

        return AIOProducer({"bootstrap.servers": servers, "log_level": 0, "client.id": "shop"}, **options)

    @in_loop
    async def test_three_spans_in_one_batch(
        self, captured_spans: Any, api: Any, servers: str, topic: str
    ) -> None:
        """Three publishes from three spans: three contexts on the wire, each span ended by its own report."""
        producer = self._producer(servers)
        tracer = get_tracer_provider().get_tracer("test")
        futures, requests = [], []
        for number in range(3):
            with tracer.start_as_current_span("request") as request:
                requests.append(request.get_span_context().span_id)
                publish = api.publish(producer.produce)
                futures.append(await publish(topic, value=str(number).encode(), partition=0))
        assert not captured_spans.kind(SpanKind.PRODUCER)
        await producer.flush()
        assert [(await it).offset() for it in futures] == [0, 1, 2]
        await producer.close()
        spans = captured_spans.kind(SpanKind.PRODUCER)
        assert [it.parent.span_id for it in spans] == requests
        assert [it.attributes["messaging.kafka.offset"] for it in spans] == [0, 1, 2]
        for span, headers in zip(spans, headers_of(servers, topic, 3), strict=True):
            assert [name for name, _ in headers] == ["traceparent"]
            assert id_of(span) in parent_of(headers)
        kinds = {it.kind for it in captured_spans}
        assert kinds == {SpanKind.PRODUCER, SpanKind.INTERNAL}

    @in_loop
    async def test_one_that_is_too_large(
        self, captured_spans: Any, api: Any, servers: str, topic: str
    ) -> None:
        """Its future has the library's error, and so has its span."""
        producer = self._producer(servers)
        publish = api.publish(producer.produce)
        good = await publish(topic, value=b"x", partition=0)
        bad = await publish(topic, value=b"x" * 2_000_000, partition=0)
        await producer.flush()
        assert (await good).offset() == 0
        with pytest.raises(KafkaException) as raised:
            await bad
        assert code_of(raised) == KafkaError.MSG_SIZE_TOO_LARGE
        await producer.close()
        statuses = [it.status.status_code for it in captured_spans]
        assert sorted(it.name for it in statuses) == ["ERROR", "UNSET"]

    @in_loop
    async def test_made_before(self, captured_spans: Any, servers: str, topic: str) -> None:
        """An AIOProducer is Python, and so is reached that was made before: its context is on the wire, too."""
        producer = self._producer(servers)
        instrumentor = adapter.ConfluentKafkaInstrumentor()
        instrumentor.instrument()
        try:
            future = await producer.produce(topic, value=b"x", partition=0)
            await producer.flush()
            await future
            await producer.close()
        finally:
            instrumentor.uninstrument()
        [headers] = headers_of(servers, topic, 1)
        assert id_of(only(captured_spans)) in parent_of(headers)

    @in_loop
    async def test_headers_are_refused_as_ever(self, api: Any, servers: str, topic: str) -> None:
        """The library says that it takes none."""
        producer = self._producer(servers)
        with pytest.raises(NotImplementedError):
            await api.publish(producer.produce)(topic, value=b"x", headers=[])
        await producer.close()

    @in_loop
    async def test_suppressed(self, captured_spans: Any, api: Any, servers: str, topic: str) -> None:
        """No span in whichever thread, and no header."""
        producer = self._producer(servers)
        with suppress_instrumentation():
            future = await api.publish(producer.produce)(topic, value=b"x", partition=0)
        await producer.flush()
        await future
        await producer.close()
        assert not captured_spans
        assert messages_of(servers, topic, 1)[0].headers() is None

    @in_loop
    async def test_consuming(self, captured_spans: Any, api: Any, servers: str, topic: str) -> None:
        """``poll``, ``consume``, a loop and a commit of an AIOConsumer, in the task that asked for them."""
        from confluent_kafka.aio import AIOConsumer

        fill(servers, topic, b"0", b"1", b"2", b"3")
        consumer = AIOConsumer(
            {"bootstrap.servers": servers, "group.id": "billing", "enable.auto.commit": False, "log_level": 0}
        )
        await consumer.assign([TopicPartition(topic, 0, 0)])
        message, call = None, api.get(consumer.poll)
        while message is None:
            message = await call(1.0)
        with adapter.traced_message(message):
            assert current().is_valid
        messages = await api.get(consumer.consume)(1, A_HANG)
        for _ in messages:
            assert current().is_valid
        async for one in adapter.traced_messages(consumer):
            if one is not None:
                assert current().is_valid
                break
        await api.settle(consumer.commit)(message=message, asynchronous=False)
        await consumer.close()
        assert not current().is_valid
        kinds = [it.kind.name for it in captured_spans]
        assert kinds == ["CLIENT", "CONSUMER", "CLIENT", "CONSUMER", "CONSUMER"]
        if api.name == "instrumented":
            for span in captured_spans:
                assert span.attributes["messaging.consumer.group.name"] == "billing"


@needs_async_serializers
class TestAsyncSerializers:
    """AsyncSerializingProducer and AsyncDeserializingConsumer, which call what they are derived from."""

    OPTIONS: ClassVar[Any] = {"group.id": "billing", "auto.offset.reset": "earliest", "log_level": 0}

    @staticmethod
    async def _produced(api: Any, servers: str, topic: str, *args: Any, **kwargs: Any) -> Any:
        from confluent_kafka.aio import AsyncSerializingProducer

        async def serialize(value: Any, context: Any) -> bytes:
            return f"{context.field} {value}".encode()

        producer = await AsyncSerializingProducer(
            {
                "bootstrap.servers": servers,
                "log_level": 0,
                "key.serializer": StringSerializer(),
                "value.serializer": serialize,
            }
        )
        try:
            future = await api.publish(producer.produce)(topic, *args, **kwargs)
            await producer.flush()
            return await future
        finally:
            await producer.close()

    async def _consumer(self, servers: str, topic: str, deserializer: Any) -> Any:
        from confluent_kafka.aio import AsyncDeserializingConsumer

        options = {"bootstrap.servers": servers, "value.deserializer": deserializer, **self.OPTIONS}
        consumer = await AsyncDeserializingConsumer(options)
        await consumer.assign([TopicPartition(topic, 0, 0)])
        return consumer

    @staticmethod
    async def _any_from(pull: Any) -> Any:
        found = None
        while not found:
            found = await pull(timeout=1.0)
        return found

    @pytest.mark.parametrize("way", ["by place", "by name"])
    @in_loop
    async def test_the_order_of_its_arguments(
        self, captured_spans: Any, api: Any, servers: str, topic: str, way: str
    ) -> None:
        """Topic, key, value, partition: what is a body is no key."""
        given: Any = {"key": "customer", "value": "secret", "partition": 0}
        args, kwargs = (given.values(), {}) if way == "by place" else ((), given)
        await self._produced(api, servers, topic, *args, **kwargs)
        span = only(captured_spans)
        assert span.attributes["messaging.kafka.message.key"] == "customer"
        assert span.attributes["messaging.destination.partition.id"] == "0"
        assert not any("secret" in str(value) for value in span.attributes.values())
        [message] = messages_of(servers, topic, 1)
        assert (message.key(), message.value()) == (b"customer", b"value secret")
        assert id_of(span) in parent_of(message.headers())

    @in_loop
    async def test_too_many_arguments(self, captured_spans: Any, servers: str, topic: str) -> None:
        """The library's own refusal, and no span: it was called as nobody can call it."""
        explicit = SimpleNamespace(publish=adapter.traced_publish)
        with pytest.raises(TypeError, match="positional"):
            await self._produced(explicit, servers, topic, "k", "v", 0, 0, None, "too many")
        assert not captured_spans

    @in_loop
    async def test_what_consume_gave(self, captured_spans: Any, api: Any, servers: str, topic: str) -> None:
        """Each message is handled inside its span, and not where the library has deserialized it."""
        deserialized_in: list[int] = []

        async def deserialize(value: bytes, context: Any) -> str:
            deserialized_in.append(current().span_id)
            return value.decode()

        fill(servers, topic, b"0", b"1")
        consumer = await self._consumer(servers, topic, deserialize)
        handled: list[Any] = []
        while len(handled) < 2:
            for message in await api.get(consumer.consume)(2 - len(handled), 1.0):
                handled.append((message.value(), current().span_id))
        await consumer.close()
        spans = captured_spans.kind(SpanKind.CONSUMER)
        assert handled == [(str(at), span.context.span_id) for at, span in enumerate(spans)]
        assert {span.parent.trace_id for span in spans} == {int(TRACEPARENT[3:35], 16)}
        assert deserialized_in == [0, 0]

    @in_loop
    async def test_a_loop(self, captured_spans: Any, api: Any, servers: str, topic: str) -> None:
        """``traced_messages`` over it, which polls: a span a message."""
        fill(servers, topic, b"0")
        consumer = await self._consumer(servers, topic, StringDeserializer())
        async for message in adapter.traced_messages(consumer):
            if message is not None:
                assert (message.value(), current().trace_id) == ("0", int(TRACEPARENT[3:35], 16))
                break
        await consumer.close()
        assert len(captured_spans.kind(SpanKind.CONSUMER)) == 1

    @pytest.mark.parametrize("call", ["poll", "consume"])
    @in_loop
    async def test_what_cannot_be_deserialized(
        self, captured_spans: Any, api: Any, servers: str, topic: str, call: str
    ) -> None:
        """The library's error, and that of the receive span, as of a DeserializingConsumer."""
        fill(servers, topic, b"\xff")
        consumer = await self._consumer(servers, topic, StringDeserializer())
        with pytest.raises(ValueDeserializationError):
            await self._any_from(api.get(getattr(consumer, call)))
        await consumer.close()
        receive = only(captured_spans)
        assert (receive.kind, receive.status.status_code) == (SpanKind.CLIENT, StatusCode.ERROR)
        assert receive.attributes["error.type"].endswith("ValueDeserializationError")


class TestClassesOfTheUser:
    """What a class derived from a client says of the arguments of its ``produce``."""

    class Brief(Producer):
        def produce(self, topic: str, payload: bytes, headers: Any = None) -> None:  # type: ignore[override]
            super().produce(topic, payload, headers=headers, partition=0)

    class OfOneTopic(Producer):
        topic: ClassVar[str]

        def produce(self, event: bytes, headers: Any = None) -> None:  # type: ignore[override]
            super().produce(self.topic, event, headers=headers, partition=0)

    def test_arguments_that_it_does_not_take(
        self, captured_spans: Any, api: Any, servers: str, topic: str
    ) -> None:
        """A ``produce`` without ``on_delivery`` is given none; one that calls the body by another name sends no
        tombstone."""
        producer = producer_at(servers, self.Brief)
        api.publish(producer.produce)(topic, b"x")
        producer.flush(A_HANG)
        span = only(captured_spans)
        assert span.name == f"publish {topic}"
        assert "messaging.kafka.message.tombstone" not in span.attributes
        assert id_of(span) in parent_of(headers_of(servers, topic, 1)[0])

    def test_explicitly_while_instrumented(
        self, captured_spans: Any, instrumentor: Any, servers: str, topic: str
    ) -> None:
        """The same by both APIs at once: one span."""
        producer = producer_at(servers, self.Brief)
        adapter.traced_publish(producer.produce)(topic, b"x")
        producer.flush(A_HANG)
        assert id_of(only(captured_spans)) in parent_of(headers_of(servers, topic, 1)[0])

    def test_a_topic_that_is_not_told(self, captured_spans: Any, api: Any, servers: str, topic: str) -> None:
        """A ``produce`` that knows its topic by itself is traced all the same."""
        producer = producer_at(servers, self.OfOneTopic)
        producer.topic = topic
        api.publish(producer.produce)(b"x")
        producer.flush(A_HANG)
        assert id_of(only(captured_spans)) in parent_of(headers_of(servers, topic, 1)[0])

    @needs_aio
    @in_loop
    async def test_of_an_aio_producer(self, captured_spans: Any, api: Any, servers: str, topic: str) -> None:
        """Its ``produce`` need not take headers, which an AIOProducer refuses."""
        from confluent_kafka.aio import AIOProducer

        class Brief(AIOProducer):
            async def produce(self, topic: str, payload: bytes) -> Any:  # type: ignore[override]
                return await super().produce(topic, payload, partition=0)

        producer = Brief({"bootstrap.servers": servers, "log_level": 0})
        await api.publish(producer.produce)(topic, b"x")
        await producer.close()
        span = only(captured_spans)
        assert "messaging.kafka.message.tombstone" not in span.attributes
        assert id_of(span) in parent_of(headers_of(servers, topic, 1)[0])

    def test_a_consume_that_looks_at_its_messages(
        self, captured_spans: Any, instrumentor: Any, servers: str, topic: str
    ) -> None:
        """``traced_get`` around it: what it gives is handled inside its spans, and what it does itself is not."""

        class Decoding(confluent_kafka.Consumer):
            def consume(self, *args: Any) -> Any:
                messages = []
                for message in super().consume(*args):
                    assert not current().is_valid
                    messages.append(message)
                return messages

        fill(servers, topic, b"x")
        consumer = consumer_at(servers, topic, Decoding)
        found: Any = ()
        while not found:
            found = adapter.traced_get(consumer.consume)(1, 1.0)
        seen = [current().span_id for _ in found]
        consumer.close()
        assert seen == [only(captured_spans, SpanKind.CONSUMER).context.span_id]


class TestBesideContrib:
    """OpenTelemetry's own instrumentation, whichever was first."""

    @pytest.mark.parametrize("first", ["ours", "theirs"])
    def test_ours_stands_down(
        self, captured_spans: Any, servers: str, topic: str, caplog: Any, first: str
    ) -> None:
        """One span a publish, theirs; one traceparent; one warning; all is given back at the end."""
        contrib = pytest.importorskip("opentelemetry.instrumentation.confluent_kafka")
        theirs, ours = contrib.ConfluentKafkaInstrumentor(), adapter.ConfluentKafkaInstrumentor()
        both = [theirs, ours] if first == "theirs" else [ours, theirs]
        for instrumentor in both:
            instrumentor.instrument(skip_dep_check=True)
        try:
            producer = confluent_kafka.Producer({"bootstrap.servers": servers, "log_level": 0})
            producer.produce(topic, b"x", partition=0)
            producer.flush(A_HANG)
            subclass = producer_at(servers, BeforeProducer)
            subclass.produce(topic, b"y", partition=0)
            subclass.flush(A_HANG)
        finally:
            for instrumentor in reversed(both):
                instrumentor.uninstrument()
        scopes = {it.instrumentation_scope.name for it in captured_spans}
        assert scopes == {"opentelemetry.instrumentation.confluent_kafka"}
        assert len(captured_spans) == 1
        assert len([it for it, _ in headers_of(servers, topic, 1)[0] if it == "traceparent"]) == 1
        warnings = [it for it in caplog.messages if "stands down" in it]
        assert len(warnings) == 1
        assert "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=confluent_kafka" in warnings[0]
        assert confluent_kafka.Producer is clients.C_PRODUCER


class TestWords:
    def test_a_function_around_produce(self, captured_spans: Any, servers: str, topic: str) -> None:
        """It takes headers, and its span ends when it returns; instrumented below it, there is no second span."""
        producer = producer_at(servers)

        def send(topic: str, body: bytes, headers: Any = None) -> None:
            producer.produce(topic, body, partition=0, headers=headers)

        traced = adapter.traced_publish(send)
        traced(topic, b"x")
        span = only(captured_spans)
        producer.flush(A_HANG)
        [headers] = headers_of(servers, topic, 1)
        assert id_of(span) in parent_of(headers)

    def test_both_apis(self, captured_spans: Any, instrumentor: Any, servers: str, topic: str) -> None:
        """A traced call on an instrumented producer is one publish, ended by one report."""
        producer, told = producer_at(servers), []
        produce = adapter.traced_publish(functools.partial(producer.produce, topic))
        produce(b"x", partition=0, callback=lambda *it: told.append(it))
        producer.flush(A_HANG)
        assert id_of(only(captured_spans)) in parent_of(headers_of(servers, topic, 1)[0])
        assert len(told) == 1

    def test_a_double_of_a_call(self, captured_spans: Any) -> None:
        """A mock in place of ``produce`` is called with the headers."""
        produce = Mock()
        adapter.traced_publish(produce)("orders", b"x")
        assert [name for name, _ in produce.call_args.kwargs["headers"]] == ["traceparent"]

    @pytest.mark.parametrize("given", [42, print, cimpl.Producer.produce, cimpl.Producer, len, [].append])
    def test_what_is_refused(self, given: Any) -> None:
        """One line that shows the right form."""
        for word in (adapter.traced_publish, adapter.traced_get, adapter.traced_settle):
            with pytest.raises(TypeError, match=r"as in traced_(publish|get|settle)\("):
                word(given)

    def test_another_method(self, servers: str) -> None:
        """A method of a producer that does not publish, or a consumer's that does not pull."""
        producer, consumer = producer_at(servers), consumer_at(servers, "any")
        for word, given in (
            (adapter.traced_publish, producer.flush),
            (adapter.traced_publish, consumer.poll),
            (adapter.traced_get, consumer.commit),
            (adapter.traced_settle, consumer.poll),
        ):
            with pytest.raises(TypeError):
                word(given)
        consumer.close()

    def test_without_the_library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """One line that says what to install."""
        monkeypatch.setitem(sys.modules, "confluent_kafka", None)
        for name in [it for it in sys.modules if it.startswith("queueprop.adapters.confluent_kafka")]:
            monkeypatch.delitem(sys.modules, name)
        with pytest.raises(MissingExtra, match=r"queueprop\[confluent-kafka\]"):
            importlib.import_module("queueprop.adapters.confluent_kafka")

    def test_what_is_left_current(self) -> None:
        """After all of these tests nothing is."""
        assert not current().is_valid
        assert not baggage.get_all(get_current())
        assert guard.raise_faults
