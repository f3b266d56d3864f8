"""The FastStream adapter without a broker: FastStream's own brokers, connected to its own ``TestBroker``."""

# mypy: disable-error-code="untyped-decorator, union-attr"
from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import json
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import pytest

pytest.importorskip("faststream")

import faststream
from faststream import BaseMiddleware
from faststream.exceptions import AckMessage, NackMessage
from opentelemetry import baggage, context, trace
from opentelemetry.propagate import get_global_textmap, set_global_textmap
from opentelemetry.propagators.b3 import B3MultiFormat
from opentelemetry.trace import SpanKind, StatusCode, get_current_span, get_tracer

from queueprop import Destination, Settings
from queueprop.adapters import faststream as adapter
from queueprop.adapters.faststream import FastStreamInstrumentor, QueuepropMiddleware, brokers, polling
from queueprop.adapters.faststream import instrumentor as patching
from queueprop.adapters.faststream.middlewares import outermost
from queueprop.adapters.faststream.versions import STEPS_OF_A_MESSAGE, SubscriberUsecase
from queueprop.kit import nesting
from queueprop.kit.libraries import MissingExtra
from queueprop.testing import CapturedSpans
from queueprop.wire import propagation

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
MESSAGE: Any = faststream.Context("message")
"""What gives a handler the message itself."""

BEFORE_06 = not STEPS_OF_A_MESSAGE


class Kind(NamedTuple):
    """A broker of FastStream's, and what its own calls are named."""

    module: str
    broker: str
    system: str

    def make(self, **options: Any) -> Any:
        return getattr(importlib.import_module(self.module), self.broker)(**options)

    def connected(self, broker: Any) -> Any:
        return getattr(importlib.import_module(self.module), f"Test{self.broker}")(broker)


KINDS = {
    "kafka": Kind("faststream.kafka", "KafkaBroker", "kafka"),
    "confluent": Kind("faststream.confluent", "KafkaBroker", "kafka"),
    "rabbit": Kind("faststream.rabbit", "RabbitBroker", "rabbitmq"),
    "redis": Kind("faststream.redis", "RedisBroker", "redis"),
    "nats": Kind("faststream.nats", "NatsBroker", "nats"),
}
KAFKA = KINDS["kafka"]


def run(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that is a coroutine function."""

    @functools.wraps(test)
    def run_test(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run_test


@pytest.fixture(params=["middleware", "instrumentor"])
def traced(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Makes traced brokers: with the middleware, or before there is an instrumentor."""
    instrumentor = FastStreamInstrumentor()

    def make(kind: Kind, settings: Settings | None = None, middlewares: Any = ()) -> Any:
        if request.param == "middleware":
            return kind.make(middlewares=outermost(QueuepropMiddleware(settings), middlewares))
        broker = kind.make(middlewares=middlewares)
        if not instrumentor.is_instrumented_by_opentelemetry:
            instrumentor.instrument(settings=settings)
        return broker

    yield make
    if instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.uninstrument()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@asynccontextmanager
async def connected(kind: Kind, broker: Any) -> Any:
    async with kind.connected(broker) as it:
        yield it


def parent_id() -> int:
    span: Any = get_current_span()
    found: int = span.parent.span_id
    return found


def of(spans: CapturedSpans, kind: SpanKind) -> list[Any]:
    return [span for span in spans if span.kind is kind]


def only(spans: CapturedSpans, kind: SpanKind) -> Any:
    [span] = of(spans, kind)
    return span


def ids(span: Any) -> tuple[int, int]:
    return span.context.trace_id, span.context.span_id


class TestOneMessage:
    @run
    async def test_it_is_in_its_publisher_s_trace(
        self, captured_spans: CapturedSpans, traced: Any, kind: Kind
    ) -> None:
        """One PRODUCER span, one CONSUMER span, its child and linked to it; the handler runs inside that."""
        broker = traced(kind)
        seen: list[Any] = []

        @broker.subscriber("orders")
        async def handle(body: str) -> None:
            seen.append((body, get_current_span().get_span_context().span_id))

        async with connected(kind, broker):
            await broker.publish("hello", "orders")
        producer, consumer = only(captured_spans, SpanKind.PRODUCER), only(captured_spans, SpanKind.CONSUMER)
        assert len(captured_spans) == 2
        assert (producer.name, consumer.name) == ("publish orders", "process orders")
        assert (consumer.context.trace_id, consumer.parent.span_id) == ids(producer)
        assert [link.context.span_id for link in consumer.links] == [producer.context.span_id]
        assert seen == [("hello", consumer.context.span_id)]
        for span in (producer, consumer):
            assert span.attributes["messaging.system"] == kind.system
            assert span.attributes["messaging.destination.name"] == "orders"
            assert "server.address" not in span.attributes  # a `TestBroker` has none

    @run
    async def test_what_its_handler_publishes(
        self, captured_spans: CapturedSpans, traced: Any, kind: Kind
    ) -> None:
        """A call of the broker's and what the handler returns: children of its span, each with a context of its own."""
        broker = traced(kind)
        arrived: dict[str, int] = {}

        @broker.subscriber("orders")
        @broker.publisher("answers")
        async def handle(body: str) -> str:
            await broker.publish("called", "calls")
            return "returned"

        @broker.subscriber("calls")
        async def calls(body: str) -> None:
            arrived[body] = parent_id()

        @broker.subscriber("answers")
        async def answers(body: str) -> None:
            arrived[body] = parent_id()

        async with connected(kind, broker):
            await broker.publish("hello", "orders")
        spans = {span.name: span for span in captured_spans}
        assert len(captured_spans) == len(spans) == 6
        handled = spans["process orders"].context.span_id
        for name, body in (("calls", "called"), ("answers", "returned")):
            assert spans[f"publish {name}"].parent.span_id == handled
            assert arrived[body] == spans[f"publish {name}"].context.span_id
        assert len({span.context.trace_id for span in captured_spans}) == 1

    @run
    async def test_baggage_is_opentelemetry_s(self, captured_spans: CapturedSpans, traced: Any) -> None:
        """What the publisher has is read in the handler by ``opentelemetry.baggage``, and goes on from there."""
        broker = traced(KAFKA)
        seen: list[Any] = []

        @broker.subscriber("orders")
        async def handle(body: str) -> None:
            seen.append(baggage.get_all())
            await broker.publish("on", "further")

        @broker.subscriber("further")
        async def further(body: str) -> None:
            seen.append(baggage.get_all())

        async with connected(KAFKA, broker):
            token = context.attach(baggage.set_baggage("tenant", "Zürich, 1+1 %"))
            await broker.publish("hello", "orders")
            context.detach(token)
        assert seen == [{"tenant": "Zürich, 1+1 %"}] * 2

    @run
    async def test_another_propagator_is_obeyed(self, captured_spans: CapturedSpans, traced: Any) -> None:
        """Its headers alone are written, and read."""
        broker = traced(KAFKA)
        seen: list[Any] = []

        @broker.subscriber("orders")
        async def handle(body: str, message: Any = MESSAGE) -> None:
            seen.append(sorted(name for name in message.headers if name.startswith(("x-b3", "trace"))))

        before = get_global_textmap()
        set_global_textmap(B3MultiFormat())
        try:
            async with connected(KAFKA, broker):
                await broker.publish("hello", "orders")
        finally:
            set_global_textmap(before)
        assert seen == [["x-b3-sampled", "x-b3-spanid", "x-b3-traceid"]]
        consumer, producer = only(captured_spans, SpanKind.CONSUMER), only(captured_spans, SpanKind.PRODUCER)
        assert consumer.parent.span_id == producer.context.span_id

    @run
    async def test_without_a_context_it_is_a_root(self, captured_spans: CapturedSpans, traced: Any) -> None:
        """One span, a root without a link: there is no ``create`` that nobody made."""
        broker = traced(KAFKA)

        @broker.subscriber("orders")
        async def handle(body: str) -> None: ...

        async with connected(KAFKA, broker):
            with get_tracer("test").start_as_current_span("ambient"), _untraced(broker):
                await broker.publish("hello", "orders")
        names = [span.name for span in captured_spans]
        assert names == ["process orders", "ambient"]
        assert captured_spans[0].parent is None

    @run
    async def test_the_caller_s_headers_are_not_altered(
        self, captured_spans: CapturedSpans, traced: Any, kind: Kind
    ) -> None:
        """They stay as they are, and each publish of them has a context of its own."""
        broker = traced(kind)
        seen: list[Any] = []
        headers = {"tenant": "a"}

        @broker.subscriber("orders")
        async def handle(body: str, message: Any = MESSAGE) -> None:
            seen.append((message.headers["tenant"], message.headers["traceparent"]))

        async with connected(kind, broker):
            for _ in range(2):
                await broker.publish("hello", "orders", headers=headers)
        assert headers == {"tenant": "a"}
        assert [tenant for tenant, _ in seen] == ["a", "a"]
        assert len({written for _, written in seen}) == 2


class TestFailures:
    @run
    async def test_a_handler_that_raises(
        self, captured_spans: CapturedSpans, traced: Any, kind: Kind
    ) -> None:
        """Its span has the exception, which is FastStream's as it is; behind it nothing is current."""
        broker = traced(kind)
        error, before = ValueError("no"), context.get_current()

        @broker.subscriber("orders")
        async def handle(body: str) -> None:
            raise error

        async with connected(kind, broker):
            with pytest.raises(ValueError, match="no") as raised:
                await broker.publish("hello", "orders")
            assert context.get_current() == before
        assert raised.value is error
        consumer = only(captured_spans, SpanKind.CONSUMER)
        assert (consumer.status.status_code, consumer.status.description) == (StatusCode.ERROR, "no")
        assert consumer.attributes["error.type"] == "ValueError"

    @run
    @pytest.mark.parametrize(
        ("how", "status"), [(AckMessage, StatusCode.UNSET), (NackMessage, StatusCode.ERROR)]
    )
    async def test_a_handler_that_settles_by_an_exception(
        self, captured_spans: CapturedSpans, traced: Any, how: Any, status: StatusCode
    ) -> None:
        """``AckMessage`` is FastStream's way to be done, and no failure; ``NackMessage`` is one."""
        broker = traced(KINDS["rabbit"])

        @broker.subscriber("orders")
        async def handle(body: str) -> None:
            raise how

        async with connected(KINDS["rabbit"], broker):
            await broker.publish("hello", "orders")
        assert only(captured_spans, SpanKind.CONSUMER).status.status_code is status

    @run
    async def test_a_message_that_no_handler_takes(self, captured_spans: CapturedSpans, traced: Any) -> None:
        """It has a CONSUMER span, with FastStream's exception."""
        broker = traced(KAFKA)
        subscriber = broker.subscriber("orders")

        @subscriber(filter=lambda message: False)
        async def handle(body: str) -> None: ...

        async with connected(KAFKA, broker):
            with pytest.raises((AssertionError, faststream.exceptions.FastStreamException)):
                await broker.publish("hello", "orders")
        consumer = only(captured_spans, SpanKind.CONSUMER)
        assert (consumer.name, consumer.status.status_code) == ("process orders", StatusCode.ERROR)
        assert consumer.parent.span_id == only(captured_spans, SpanKind.PRODUCER).context.span_id

    @run
    async def test_a_message_that_cannot_be_decoded(self, captured_spans: CapturedSpans, traced: Any) -> None:
        """FastStream's exception is on its span."""
        broker = traced(KAFKA)

        @broker.subscriber("orders")
        async def handle(number: int) -> None: ...

        async with connected(KAFKA, broker):
            with pytest.raises(Exception, match="number"):
                await broker.publish("hello", "orders")
        assert only(captured_spans, SpanKind.CONSUMER).status.status_code is StatusCode.ERROR

    @run
    @pytest.mark.parametrize("is_batch", [False, True])
    async def test_a_message_that_cannot_be_read(
        self, captured_spans: CapturedSpans, traced: Any, is_batch: bool
    ) -> None:
        """No handler gets it, and its one CONSUMER span, in its publisher's trace, says why."""
        broker = traced(KAFKA)

        async def parse(message: Any) -> Any:
            raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no text")

        options = {"batch": True} if is_batch else {}

        @broker.subscriber("orders", parser=parse, **options)
        async def handle(body: Any) -> None: ...

        async with connected(KAFKA, broker):
            publish = functools.partial(broker.publish_batch, "two") if is_batch else broker.publish
            with pytest.raises(UnicodeDecodeError):
                await publish("one", topic="orders")
        if BEFORE_06:
            return  # it says nothing of it to its middlewares
        consumer = only(captured_spans, SpanKind.CONSUMER)
        assert (consumer.name, consumer.attributes["error.type"]) == ("process orders", "UnicodeDecodeError")
        created = [span.context.span_id for span in of(captured_spans, SpanKind.PRODUCER)]
        assert [link.context.span_id for link in consumer.links][: len(created)] == created

    @run
    async def test_a_publish_that_fails(self, captured_spans: CapturedSpans, traced: Any) -> None:
        """The producer's own exception is the caller's, and the span's."""

        class Broken(BaseMiddleware):
            async def publish_scope(self, call_next: Any, *args: Any, **kwargs: Any) -> Any:
                raise ConnectionError("gone")

        broker = traced(KAFKA, middlewares=[Broken])
        async with connected(KAFKA, broker):
            with pytest.raises(ConnectionError, match="gone"):
                await broker.publish("hello", "orders")
        producer = only(captured_spans, SpanKind.PRODUCER)
        assert (producer.status.status_code, producer.attributes["error.type"]) == (
            StatusCode.ERROR,
            "ConnectionError",
        )

    @run
    async def test_what_of_ours_fails_fails_alone(
        self,
        captured_spans: CapturedSpans,
        traced: Any,
        guarded: None,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """The message is published and handled all the same."""
        broker = traced(KAFKA)
        seen: list[str] = []

        @broker.subscriber("orders")
        async def handle(body: str) -> None:
            seen.append(body)

        def fails(*args: Any) -> Any:
            raise RuntimeError("ours")

        monkeypatch.setattr(adapter, "broker_of", fails)
        async with connected(KAFKA, broker):
            await broker.publish("hello", "orders")
        assert seen == ["hello"]
        assert "RuntimeError" in caplog.text


class Client:
    """What is below every middleware: a ``TestBroker``'s producer, which notes what it is given.

    Args:
        error: raised for a message with more than one header, as by Kafka's clients for one above a size.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kind: Kind, error: Exception | None = None) -> None:
        self.error = error
        self.headers: list[list[str]] = []
        self.spoken: list[bool] = []
        fake = importlib.import_module(f"{kind.module}.testing").FakeProducer
        publish = fake.publish

        @functools.wraps(publish)
        async def noted(producer: Any, *args: Any, **kwargs: Any) -> Any:
            headers = kwargs["headers"] if BEFORE_06 else args[0].headers
            self.headers.append(sorted(headers))
            self.spoken.append(nesting.is_spoken_for(object()))
            if self.error is not None and len(headers) > 1:
                raise self.error
            return await publish(producer, *args, **kwargs)

        monkeypatch.setattr(fake, "publish", noted)


class Noted(BaseMiddleware):
    """The user's: what has passed it, and what it saw raised."""

    passed: ClassVar[list[Any]] = []

    async def publish_scope(self, call_next: Any, *args: Any, **kwargs: Any) -> Any:
        self.passed.append("message")
        try:
            return await call_next(*args, **kwargs)
        except Exception as error:
            self.passed.append(error)
            raise


class TestSizes:
    """A message that fits without our headers is sent."""

    @run
    @pytest.mark.parametrize("name", ["kafka", "confluent"])
    async def test_a_client_that_refuses_it(
        self,
        captured_spans: CapturedSpans,
        traced: Any,
        name: str,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """It goes out without a context, its span is no error, and a line says so. The user's middlewares see it once,
        and no error.
        """
        kind = KINDS[name]
        seen: list[Any] = []
        broker = traced(kind, middlewares=[Noted])
        client = Client(monkeypatch, kind, _too_large(name))
        Noted.passed.clear()

        @broker.subscriber("orders")
        async def handle(body: str, message: Any = MESSAGE) -> None:
            seen.append((body, "traceparent" in message.headers))

        async with connected(kind, broker):
            await broker.publish("hello", "orders", headers={"tenant": "a"})
        assert seen == [("hello", False)]
        assert client.headers == [["tenant", "traceparent"], ["tenant"]]
        assert Noted.passed == ["message"]
        producer = only(captured_spans, SpanKind.PRODUCER)
        assert producer.status.status_code is StatusCode.UNSET
        assert "leaves no room for a trace context" in caplog.text

    @run
    @pytest.mark.parametrize("name", ["kafka", "confluent"])
    async def test_a_message_that_never_fits(
        self,
        captured_spans: CapturedSpans,
        traced: Any,
        name: str,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """The client's exception is the caller's, the span's, and once that of each of the user's middlewares: one that
        keeps what cannot be sent keeps it once. Nothing is said.
        """
        kind, error = KINDS[name], _too_large(name)
        broker = traced(kind, middlewares=[Noted])
        Client(monkeypatch, kind, error)
        Noted.passed.clear()
        async with connected(kind, broker):
            with pytest.raises(type(error)) as raised:
                await broker.publish("hello", "orders", headers={"tenant": "a", "more": "b"})
        assert raised.value is error
        assert Noted.passed == ["message", error]
        assert only(captured_spans, SpanKind.PRODUCER).status.status_code is StatusCode.ERROR
        assert "no room" not in caplog.text

    @run
    async def test_a_middleware_has_left_the_context_out(
        self, captured_spans: CapturedSpans, traced: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Then nothing is left that could be, and the client is asked once."""

        class Without(BaseMiddleware):
            async def publish_scope(self, call_next: Any, *args: Any, **kwargs: Any) -> Any:
                if BEFORE_06:
                    kwargs["headers"] = {"tenant": "a", "more": "b"}
                else:
                    args[0].headers = {"tenant": "a", "more": "b"}
                return await call_next(*args, **kwargs)

        broker, error = traced(KAFKA, middlewares=[Without]), _too_large("kafka")
        client = Client(monkeypatch, KAFKA, error)
        async with connected(KAFKA, broker):
            with pytest.raises(type(error)):
                await broker.publish("hello", "orders")
        assert client.headers == [["more", "tenant"]]

    def test_nats_ends_a_connection_for_one(self) -> None:
        """So the size is looked at before: of a body whose size is known, with its headers."""
        client = SimpleNamespace(max_payload=1_000)
        producer = SimpleNamespace(_connection=client)
        nats = brokers._BROKERS["nats"]
        for size, headers, fits in ((700, {}, True), (700, {"baggage": "x" * 100}, False), (900, {}, False)):
            for body in ("x" * size, b"x" * size):
                assert nats.fits(producer, body, headers) is fits
        for unknown in ({"a": "x" * 2_000}, None):
            assert nats.fits(producer, unknown, {})

    @run
    @pytest.mark.skipif(BEFORE_06, reason="its FakeProducer is another one")
    async def test_a_broker_that_would_end_the_connection(
        self, captured_spans: CapturedSpans, traced: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What of the context has room goes out, beside what the user's middlewares have written: here no baggage."""
        kind = KINDS["nats"]

        class Tenant(BaseMiddleware):
            async def publish_scope(self, call_next: Any, cmd: Any) -> Any:
                cmd.add_headers({"tenant": "a"})
                return await call_next(cmd)

        broker = traced(kind, middlewares=[Tenant])
        seen: list[Any] = []
        fits = lambda producer, body, headers: not {"baggage", "tenant"} <= headers.keys()  # noqa: E731
        monkeypatch.setattr(brokers._BROKERS["nats"], "fits", fits, raising=False)

        @broker.subscriber("orders")
        async def handle(body: str, message: Any = MESSAGE) -> None:
            seen.append(sorted(message.headers.keys() & {"traceparent", "baggage", "tenant"}))

        async with connected(kind, broker):
            token = context.attach(baggage.set_baggage("key", "value"))
            await broker.publish("hello", "orders")
            context.detach(token)
        assert seen == [["tenant", "traceparent"]]

    def test_a_frame_of_rabbitmq_s(self) -> None:
        """Headers that are surely within it go out with the context, whatever the body."""
        tune = SimpleNamespace(frame_max=4_096)
        transport = SimpleNamespace(connection=SimpleNamespace(connection_tune=tune))
        channel = SimpleNamespace(_connection=SimpleNamespace(transport=transport))
        producer = SimpleNamespace(_channel=channel)
        rabbit = brokers._BROKERS["rabbit"]
        assert rabbit.fits(producer, "hello", {"traceparent": TRACEPARENT})
        assert rabbit.fits(producer, "hello", {"traceparent": TRACEPARENT, "table": {"a": [1]}})
        assert rabbit.fits(producer, "hello", {"a": "x" * 500})
        assert not rabbit.fits(producer, "hello", {"baggage": "x" * 4_096})


def _too_large(name: str) -> Exception:
    if name == "kafka":
        from aiokafka.errors import MessageSizeTooLargeError

        error: Exception = MessageSizeTooLargeError()
        return error
    from confluent_kafka import KafkaError, KafkaException

    return KafkaException(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE))


def _publishing(scope: Any) -> type[BaseMiddleware]:
    """A middleware of the user's."""
    return type("Users", (BaseMiddleware,), {"publish_scope": scope})


def _place(name: str) -> dict[str, str]:
    return {"list": "orders"} if name == "redis" else {"topic": "orders"}


def _batches(broker: Any, name: str, **options: Any) -> list[list[dict[str, Any]]]:
    """The headers of each message of each batch that comes, from now on."""
    seen: list[list[dict[str, Any]]] = []
    if name == "redis":
        from faststream.redis import ListSub

        subscriber = broker.subscriber(list=ListSub("orders", batch=True))
    else:
        subscriber = broker.subscriber("orders", batch=True, **options)

    @subscriber
    async def handle(bodies: list[str], message: Any = MESSAGE) -> None:
        seen.append(message.batch_headers)

    return seen


async def _adds(self: Any, call_next: Any, cmd: Any) -> Any:
    cmd.add_headers({"tenant": "acme"})
    return await call_next(cmd)


async def _adds_below(self: Any, call_next: Any, cmd: Any) -> Any:
    cmd.add_headers({"tenant": "acme"}, override=False)
    return await call_next(cmd)


async def _sets(self: Any, call_next: Any, cmd: Any) -> Any:
    cmd.headers["tenant"] = "acme"
    return await call_next(cmd)


async def _replaces(self: Any, call_next: Any, cmd: Any) -> Any:
    cmd.headers = {**cmd.headers, "tenant": "acme"}
    return await call_next(cmd)


async def _reads(self: Any, call_next: Any, cmd: Any) -> Any:
    assert {*cmd.headers.keys()} == {**cmd.headers}.keys() == cmd.headers.copy().keys()
    return await call_next(cmd)


async def _takes_out(self: Any, call_next: Any, cmd: Any) -> Any:
    del cmd.headers["baggage"]
    return await call_next(cmd)


async def _sends_twice(self: Any, call_next: Any, cmd: Any) -> Any:
    await call_next(cmd)  # and had no answer
    return await call_next(cmd)


MIDDLEWARES = {
    "it adds": _adds,
    "it adds where there is none": _adds_below,
    "it sets": _sets,
    "it replaces": _replaces,
    "it only reads": _reads,
    "it takes the baggage out": _takes_out,
    "it sends twice": _sends_twice,
}


class TestBatches:
    @run
    @pytest.mark.skipif(BEFORE_06, reason="before 0.6 a batch of FastStream's has one set of headers")
    @pytest.mark.parametrize("name", ["kafka", "confluent", "redis"])
    async def test_each_message_has_a_context_of_its_own(
        self, captured_spans: CapturedSpans, traced: Any, name: str
    ) -> None:
        """A create span each, beside one CLIENT span; on receiving one span that links to each, whatever their ids."""
        kind = KINDS[name]
        broker = traced(kind)
        place = {"list": "orders"} if name == "redis" else {"topic": "orders"}
        options: dict[str, Any] = {"batch": True}
        source: Any = "orders"
        if name == "redis":
            from faststream.redis import ListSub

            options, source = {}, {"list": ListSub("orders", batch=True)}
        headers = {"tenant": "a"}
        seen: list[Any] = []
        subscriber = broker.subscriber(**source) if name == "redis" else broker.subscriber(source, **options)

        @subscriber
        async def handle(bodies: list[str], message: Any = MESSAGE) -> None:
            seen.extend(message.batch_headers)

        async with connected(kind, broker):
            await broker.publish_batch("one", "two", "three", headers=headers, **place)
        created = of(captured_spans, SpanKind.PRODUCER)
        [send] = of(captured_spans, SpanKind.CLIENT)
        consumer = only(captured_spans, SpanKind.CONSUMER)
        assert [span.name for span in created] == ["create orders"] * 3
        wanted = [span.context.span_id for span in created]
        assert [link.context.span_id for link in send.links] == wanted
        ambient = send.context.span_id  # a `TestBroker` handles inside the publish
        assert [link.context.span_id for link in consumer.links] == [*wanted, ambient]
        assert [int(it["traceparent"].split("-")[2], 16) for it in seen] == wanted
        assert [it["tenant"] for it in seen] == ["a"] * 3
        assert headers == {"tenant": "a"}

    @run
    @pytest.mark.skipif(BEFORE_06, reason="before 0.6 a batch of FastStream's has one set of headers")
    @pytest.mark.parametrize("how", sorted(MIDDLEWARES))
    @pytest.mark.parametrize("name", ["kafka", "confluent", "redis"])
    async def test_what_a_middleware_does_with_the_headers(
        self, captured_spans: CapturedSpans, traced: Any, name: str, how: str
    ) -> None:
        """It does it to every message, as without us, and each keeps a context of its own."""
        kind = KINDS[name]
        broker = traced(kind, middlewares=[_publishing(MIDDLEWARES[how])])
        seen = _batches(broker, name)
        token = context.attach(baggage.set_baggage("key", "value"))
        async with connected(kind, broker):
            await broker.publish_batch("one", "two", "three", headers={"own": "1"}, **_place(name))
        context.detach(token)
        wanted = [span.context.span_id for span in of(captured_spans, SpanKind.PRODUCER)]
        for headers in seen:
            assert [int(it["traceparent"].split("-")[2], 16) for it in headers] == wanted
            for it in headers:
                assert (it.get("own"), it.get("tenant"), it.get("baggage")) == {
                    "it only reads": ("1", None, "key=value"),
                    "it sends twice": ("1", None, "key=value"),
                    "it takes the baggage out": ("1", None, None),
                }.get(how, ("1", "acme", "key=value"))
        assert len(seen) == (2 if how == "it sends twice" else 1)

    @run
    @pytest.mark.skipif(BEFORE_06, reason="before 0.6 a batch of FastStream's has one set of headers")
    @pytest.mark.parametrize("how", sorted(MIDDLEWARES))
    async def test_what_is_on_the_wire_after_it(
        self, captured_spans: CapturedSpans, traced: Any, how: str
    ) -> None:
        """The same of FastStream's real producer, which copies the headers otherwise than that of a ``TestBroker``."""
        sent: list[list[dict[str, bytes]]] = []

        class Sending:
            """A producer of aiokafka's."""

            async def start(self) -> None: ...

            def create_batch(self) -> Any:
                def append(headers: Any, **record: Any) -> bool:
                    sent[-1].append(dict(headers))
                    return True

                sent.append([])
                return SimpleNamespace(append=append)

            async def send_batch(self, batch: Any, topic: str, **options: Any) -> Any:
                acknowledged = asyncio.get_running_loop().create_future()
                acknowledged.set_result(None)
                return acknowledged

        broker = traced(KAFKA, middlewares=[_publishing(MIDDLEWARES[how])])
        await broker.config.producer.connect(Sending(), None)
        token = context.attach(baggage.set_baggage("key", "value"))
        await broker.publish_batch("one", "two", topic="orders", headers={"own": "1"})
        context.detach(token)
        wanted = [span.context.span_id for span in of(captured_spans, SpanKind.PRODUCER)]
        assert len(sent) == (2 if how == "it sends twice" else 1)
        for batch in sent:
            assert [int(it["traceparent"].split(b"-")[2], 16) for it in batch] == wanted
            assert [it["own"] for it in batch] == [b"1"] * 2
            assert ["tenant" in it for it in batch] == [how.startswith(("it adds", "it sets", "it rep"))] * 2
            assert ["baggage" in it for it in batch] == [how != "it takes the baggage out"] * 2

    @run
    @pytest.mark.skipif(BEFORE_06, reason="before 0.6 a batch of FastStream's has one set of headers")
    async def test_a_format_of_the_user_s(self, captured_spans: CapturedSpans, traced: Any) -> None:
        """On Redis what is on the wire may be made by the user: each message has its own context there, too."""
        sent: list[Any] = []

        from faststream.redis.parser import MessageFormat

        class Format:
            @staticmethod
            def encode(*, headers: Any, **options: Any) -> Any:
                written, is_awaited = json.dumps(headers), inspect.iscoroutinefunction(MessageFormat.encode)
                return asyncio.sleep(0, written) if is_awaited else written

        class Pipeline:
            async def rpush(self, name: str, *messages: str) -> int:
                sent.extend(map(json.loads, messages))
                return len(messages)

        broker = traced(KINDS["redis"])
        broker.message_format = Format
        await broker.publish_batch("one", "two", list="orders", pipeline=Pipeline())
        wanted = [span.context.span_id for span in of(captured_spans, SpanKind.PRODUCER)]
        assert [int(it["traceparent"].split("-")[2], 16) for it in sent] == wanted

    @run
    @pytest.mark.skipif(BEFORE_06, reason="before 0.6 a batch of FastStream's has one set of headers")
    async def test_several_handlers_of_a_test_broker(
        self, captured_spans: CapturedSpans, traced: Any
    ) -> None:
        """Each of them is given the batch, with the same contexts."""
        broker = traced(KAFKA)
        seen = [_batches(broker, "kafka", group_id=group) for group in ("one", "another")]
        async with connected(KAFKA, broker):
            await broker.publish_batch("one", "two", topic="orders")
        wanted = [span.context.span_id for span in of(captured_spans, SpanKind.PRODUCER)]
        for [headers] in seen:
            assert [int(it["traceparent"].split("-")[2], 16) for it in headers] == wanted

    @run
    @pytest.mark.parametrize("name", ["kafka", "confluent"])
    async def test_keys_of_their_own(self, captured_spans: CapturedSpans, traced: Any, name: str) -> None:
        """A message's create span has its own key, else that of the batch."""
        kind = KINDS[name]
        module = importlib.import_module(f"{kind.module}.response" if not BEFORE_06 else kind.module)
        if not hasattr(getattr(module, "KafkaPublishCommand", None), "key_for"):
            pytest.skip("the messages of this version's batches have no keys of their own")
        broker = traced(kind)
        publisher = broker.publisher("orders", batch=True, key=b"the batch's")
        async with connected(kind, broker):
            await publisher.publish(module.KafkaResponse("one", key=b"its own"), "two")
        keys = [
            span.attributes["messaging.kafka.message.key"] for span in of(captured_spans, SpanKind.PRODUCER)
        ]
        assert keys == ["its own", "the batch's"]

    @run
    @pytest.mark.skipif(not BEFORE_06, reason="since 0.6 each message has a context of its own")
    async def test_before_06_all_have_the_same(self, captured_spans: CapturedSpans, traced: Any) -> None:
        """That of the one PRODUCER span of the publish."""
        broker = traced(KAFKA)

        @broker.subscriber("orders", batch=True)
        async def handle(bodies: list[str]) -> None: ...

        async with connected(KAFKA, broker):
            await broker.publish_batch("one", "two", topic="orders")
        consumer, producer = only(captured_spans, SpanKind.CONSUMER), only(captured_spans, SpanKind.PRODUCER)
        assert consumer.parent.span_id == producer.context.span_id

    @run
    @pytest.mark.skipif(BEFORE_06, reason="before 0.6 a batch of FastStream's has one set of headers")
    async def test_an_empty_batch(self, captured_spans: CapturedSpans, traced: Any) -> None:
        """FastStream has its own answer to it, the same as without us."""
        plain, broker = KAFKA.make(), traced(KAFKA)
        answers = []
        for it in (broker, plain):
            async with connected(KAFKA, it):
                try:
                    answers.append(repr(await it.publish_batch(topic="orders")))
                except Exception as error:
                    answers.append(repr(error))
        assert answers[0] == answers[1]


@pytest.mark.skipif(BEFORE_06, reason="get_one and request came with 0.6")
class TestRequests:
    @run
    async def test_request_and_reply(self, captured_spans: CapturedSpans, traced: Any, kind: Kind) -> None:
        """One PRODUCER span for the request, one CONSUMER span for its handling, and none for the reply's arrival."""
        broker = traced(kind)

        @broker.subscriber("orders")
        async def handle(body: str) -> str:
            return "reply"

        async with connected(kind, broker):
            reply = await broker.request("hello", "orders")
        assert await reply.decode() == "reply"
        consumer, producer = only(captured_spans, SpanKind.CONSUMER), only(captured_spans, SpanKind.PRODUCER)
        assert (producer.name, consumer.name) == ("publish orders", "process orders")
        assert consumer.parent.span_id == producer.context.span_id

    @run
    async def test_a_message_that_was_asked_for(self, captured_spans: CapturedSpans, traced: Any) -> None:
        """``traced_message`` is its span, and without it there is none: it is handled elsewhere."""
        broker = traced(KAFKA)
        received: list[Any] = []

        @broker.subscriber("orders")
        async def handle(body: str, message: Any = MESSAGE) -> None: ...

        class Kept(BaseMiddleware):
            async def consume_scope(self, call_next: Any, msg: Any) -> Any:
                received.append(msg.raw_message)
                return await call_next(msg)

        broker.add_middleware(Kept)
        async with connected(KAFKA, broker):
            await broker.publish("hello", "orders")
        pulled = importlib.import_module("faststream._internal.endpoint.utils").process_msg
        parser = importlib.import_module("faststream.kafka.parser").AioKafkaParser
        message_class = importlib.import_module("faststream.kafka.message").KafkaMessage
        parse = parser(msg_class=message_class, regex=None).parse_message
        before = len(captured_spans)
        message = await pulled(
            msg=received[0],
            middlewares=[it(received[0], context=broker.context) for it in broker.middlewares],
            parser=parse,
            decoder=None,
        )
        assert len(captured_spans) == before
        with adapter.traced_message(message):
            inside = get_current_span().get_span_context().span_id
        consumer = of(captured_spans, SpanKind.CONSUMER)[-1]
        assert consumer.context.span_id == inside
        assert consumer.parent.span_id == only(captured_spans, SpanKind.PRODUCER).context.span_id

    def test_none_has_no_span(self, captured_spans: CapturedSpans) -> None:
        """``get_one`` gives it for an empty queue."""
        with adapter.traced_message(None, Destination("kafka", "orders")):
            assert not get_current_span().get_span_context().is_valid
        assert len(captured_spans) == 0


class TestTelemetryMiddleware:
    """Where FastStream's own is in the broker's list, ours stands down."""

    @run
    @pytest.mark.parametrize("first", ["theirs", "ours"])
    async def test_no_span_is_doubled(self, captured_spans: CapturedSpans, traced: Any, first: str) -> None:
        """No span is ours, whichever of the two comes first."""
        theirs = self.make()
        broker = traced(KAFKA, middlewares=[theirs])
        if first == "theirs":
            broker = KAFKA.make(middlewares=[theirs, QueuepropMiddleware()])

        @broker.subscriber("orders")
        @broker.publisher("answers")
        async def handle(body: str) -> str:
            return "answer"

        @broker.subscriber("answers")
        async def answers(body: str) -> None: ...

        async with connected(KAFKA, broker):
            await broker.publish("hello", "orders")
        assert len(captured_spans)
        assert [span for span in captured_spans if span.instrumentation_scope.name == "queueprop"] == []

    @run
    async def test_the_instrumentor_says_so(
        self, captured_spans: CapturedSpans, caplog: pytest.LogCaptureFixture
    ) -> None:
        """One line, which says how to have the one or the other."""
        instrumentor = FastStreamInstrumentor()
        instrumentor.instrument()
        try:
            for _ in range(2):
                broker = KAFKA.make(middlewares=[self.make()])
                async with connected(KAFKA, broker):
                    await broker.publish("hello", "orders")
        finally:
            instrumentor.uninstrument()
        assert caplog.text.count("TelemetryMiddleware") == 1
        assert "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=queueprop_faststream" in caplog.text

    @staticmethod
    def make() -> Any:
        module = pytest.importorskip("faststream.kafka.opentelemetry", reason="it came after 0.5.0")
        return module.KafkaTelemetryMiddleware(tracer_provider=trace.get_tracer_provider())

    @run
    async def test_a_broker_of_theirs_beside_one_of_ours(
        self, captured_spans: CapturedSpans, traced: Any
    ) -> None:
        """What a handler of the one publishes by the other is ours."""
        theirs, ours = KAFKA.make(middlewares=[self.make()]), traced(KINDS["rabbit"])

        @theirs.subscriber("orders")
        async def handle(body: str) -> None:
            await ours.publish("answer", "answers")

        @ours.subscriber("answers")
        async def answer(body: str) -> None: ...

        async with connected(KAFKA, theirs), connected(KINDS["rabbit"], ours):
            await theirs.publish("hello", "orders")
        names = [span.name for span in captured_spans if span.instrumentation_scope.name == "queueprop"]
        assert names == ["process answers", "publish answers"]

    @run
    async def test_what_cannot_be_read_has_no_span_of_ours(
        self, captured_spans: CapturedSpans, traced: Any
    ) -> None:
        """Nor has it one of theirs."""
        broker = traced(KAFKA, middlewares=[self.make()])

        async def parse(message: Any) -> Any:
            raise ValueError("no")

        @broker.subscriber("orders", parser=parse)
        async def handle(body: str) -> None: ...

        async with connected(KAFKA, broker):
            with pytest.raises(ValueError, match="no"):
                await broker.publish("hello", "orders")
        assert [span for span in captured_spans if span.instrumentation_scope.name == "queueprop"] == []


class TestDestinations:
    @run
    @pytest.mark.parametrize(
        ("name", "pattern", "template"),
        [
            ("nats", "orders.*", "orders.*"),
            ("nats", "orders.>", "orders.>"),
            pytest.param(
                *("redis", "orders.*", "orders.*"),
                marks=pytest.mark.skipif(BEFORE_06, reason="its TestBroker does not tell the pattern"),
            ),
        ],
    )
    async def test_a_pattern_names_the_span(
        self, captured_spans: CapturedSpans, traced: Any, name: str, pattern: str, template: str
    ) -> None:
        """Of the subjects and channels that match it there may be any number."""
        kind = KINDS[name]
        broker = traced(kind)
        source: Any = pattern
        if name == "redis":
            from faststream.redis import PubSub

            source = PubSub(pattern, pattern=True)

        @broker.subscriber(source)
        async def handle(body: str) -> None: ...

        async with connected(kind, broker):
            await broker.publish("hello", "orders.7")
        consumer = only(captured_spans, SpanKind.CONSUMER)
        assert consumer.name == f"process {template}"
        assert consumer.attributes["messaging.destination.name"] == "orders.7"

    @run
    async def test_a_message_of_aio_pika_s(self, captured_spans: CapturedSpans, traced: Any) -> None:
        """FastStream sends it as it is, so the context goes into its headers, in a copy."""
        from aio_pika import Message

        kind, seen = KINDS["rabbit"], []
        broker = traced(kind)
        sent = Message(b"hello", headers={"tenant": "a"})

        @broker.subscriber("orders")
        async def handle(body: Any, message: Any = MESSAGE) -> None:
            seen.append(dict(message.headers))

        async with connected(kind, broker):
            await broker.publish(sent, "orders")
        assert sent.headers == {"tenant": "a"}
        if BEFORE_06:
            return  # it then has FastStream's arguments beside its message, and no context
        assert set(seen[0]) == {"tenant", "traceparent"}
        producer = only(captured_spans, SpanKind.PRODUCER)
        assert only(captured_spans, SpanKind.CONSUMER).parent.span_id == producer.context.span_id

    def test_a_message_that_comes_back(self) -> None:
        """RabbitMQ returns what is unroutable, and FastStream its caller: an error of the span."""
        returned = SimpleNamespace(reply_text="NO_ROUTE", routing_key="nowhere")
        rabbit = brokers._BROKERS["rabbit"]
        assert rabbit.failure_of(SimpleNamespace(delivery=returned)) == (
            "NO_ROUTE",
            "NO_ROUTE for routing key 'nowhere'",
        )
        assert rabbit.failure_of(None) is None

    @run
    @pytest.mark.skipif(BEFORE_06, reason="MQTT came with 0.7")
    @pytest.mark.parametrize(("version", "takes_headers"), [("V311", False), ("V5", True)])
    async def test_mqtt(self, captured_spans: CapturedSpans, version: str, takes_headers: bool) -> None:
        """Before MQTT 5.0 there are no headers, and FastStream refuses a message that has one: ours has none, and a
        span all the same; one of the user's is refused as without us.
        """
        from faststream.response import PublishCommand
        from faststream.response.publish_type import PublishType

        seen: list[Any] = []

        async def publish(self: Any, cmd: Any) -> None:
            if cmd.headers and not takes_headers:
                raise faststream.exceptions.FeatureNotSupportedException("no headers")
            seen.append(sorted(cmd.headers))

        members = {"__module__": "faststream.mqtt.publisher.producer", "publish": publish}
        users = type("Users", (type(f"ZmqttProducer{version}", (), members),), {"__module__": "theirs"})

        async def send(**options: Any) -> None:
            command = PublishCommand(
                "hello", destination="orders", _publish_type=PublishType.PUBLISH, **options
            )
            await QueuepropMiddleware()(None, context=None).publish_scope(users().publish, command)

        await send()
        assert seen == [["traceparent"] if takes_headers else []]
        producer = only(captured_spans, SpanKind.PRODUCER)
        assert (producer.name, producer.attributes["messaging.system"]) == ("publish orders", "mqtt")
        if not takes_headers:
            with pytest.raises(faststream.exceptions.FeatureNotSupportedException):
                await send(headers={"own": "1"})

    @pytest.mark.parametrize(
        ("kind", "name", "is_reply", "is_made_up"),
        [
            ("nats", "_INBOX.Fq8Xb0.1", False, True),
            ("nats", "orders", True, False),
            ("redis", "KJH2KQ0XGS7ML9VD4WPT1c", True, True),
            ("redis", "KJH2KQ0XGS7ML9VD4WPT1c", False, False),
            ("redis", "answers", True, False),
            ("mqtt", "_zmqtt/reply/0123456789abcdef", True, True),
            ("mqtt", "answers/orders", True, False),
        ],
    )
    def test_where_a_reply_goes(self, kind: str, name: str, is_reply: bool, is_made_up: bool) -> None:
        """A name that who asked has made up is of high cardinality: no span is named after it, and none is kept."""
        command = brokers.Command(name, {}, None, ("hello",), is_reply=is_reply)
        destination = brokers._BROKERS[kind].publishes_to(object(), command)
        assert destination.name == name
        assert (destination.temporary, destination.anonymous) == (is_made_up, is_made_up)
        assert destination.label == (None if is_made_up else name)

    @pytest.mark.parametrize(
        ("declared", "template"),
        [
            ("orders/{region}", "orders/{region}"),
            ("orders/+", "orders/+"),
            ("orders/#", "orders/#"),
            ("orders", None),
        ],
    )
    def test_a_delivery_of_mqtt(self, declared: str, template: str | None) -> None:
        """It has its topic, and for many topics what was subscribed to is the name of their spans."""
        subscriber = SimpleNamespace(address=SimpleNamespace(template=declared))
        raw = SimpleNamespace(topic="orders/eu" if template else "orders")
        found = brokers._BROKERS["mqtt"].consumed_from(raw, None, subscriber)
        assert found == Destination("mqtt", raw.topic, template)
        assert found.label == (template or "orders")

    def test_another_kind_of_broker(self) -> None:
        """It has FastStream's name."""
        other = brokers.broker_of(object())
        command = brokers.Command("orders", {}, None, ("hello",))
        assert other.publishes_to(object(), command) == Destination("faststream", "orders")
        assert other.consumed_from(object(), None, None) == Destination("faststream")
        assert other.message(object(), {"tenant": "a"}, b"hello").headers == {"tenant": "a"}


class TestLayers:
    @run
    async def test_the_client_below_is_silent_while_we_publish(
        self, captured_spans: CapturedSpans, traced: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """FastStream speaks for whatever client it publishes by, and for none while a handler runs."""
        handled: list[bool] = []
        broker, client = traced(KAFKA), Client(monkeypatch, KAFKA)

        @broker.subscriber("orders")
        async def handle(body: str) -> None:
            handled.append(nesting.is_spoken_for(object()))

        async with connected(KAFKA, broker):
            await broker.publish("hello", "orders")
        assert (client.spoken, handled) == ([True], [False])

    @run
    async def test_what_a_middleware_publishes_by_is_its_own(
        self, captured_spans: CapturedSpans, traced: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """FastStream does not speak for it: while the middleware runs, and in a task that it makes, then and later."""
        spoken: list[bool] = []
        tasks: list[asyncio.Task[None]] = []
        is_over = asyncio.Event()

        async def later() -> None:
            spoken.append(nesting.is_spoken_for(object()))
            await is_over.wait()
            spoken.append(nesting.is_spoken_for(object()))

        async def scope(self: Any, call_next: Any, *args: Any, **kwargs: Any) -> Any:
            spoken.append(nesting.is_spoken_for(object()))
            tasks.append(asyncio.create_task(later()))
            await asyncio.sleep(0)
            result = await call_next(*args, **kwargs)
            spoken.append(nesting.is_spoken_for(object()))
            return result

        broker, client = traced(KAFKA, middlewares=[_publishing(scope)]), Client(monkeypatch, KAFKA)
        async with connected(KAFKA, broker):
            await broker.publish("hello", "orders")
            is_over.set()
            await asyncio.gather(*tasks)
        assert (spoken, client.spoken) == ([False] * 4, [True])

    @run
    async def test_a_middleware_that_publishes_by_the_same_broker(
        self, captured_spans: CapturedSpans, traced: Any
    ) -> None:
        """It is a message of its own: a span, a child of the first one's, and a context of its own."""
        arrived: dict[str, int] = {}

        async def scope(self: Any, call_next: Any, *args: Any, **kwargs: Any) -> Any:
            body = args[0] if BEFORE_06 else args[0].body
            if body == "hello":
                await broker.publish("audited", "audit")
            return await call_next(*args, **kwargs)

        broker = traced(KAFKA, middlewares=[_publishing(scope)])

        @broker.subscriber("orders", "audit")
        async def handle(body: str) -> None:
            arrived[body] = parent_id()

        async with connected(KAFKA, broker):
            await broker.publish("hello", "orders")
        spans = {span.name: span for span in of(captured_spans, SpanKind.PRODUCER)}
        assert len(of(captured_spans, SpanKind.PRODUCER)) == len(spans) == 2
        assert spans["publish audit"].parent.span_id == spans["publish orders"].context.span_id
        assert arrived == {
            "hello": spans["publish orders"].context.span_id,
            "audited": spans["publish audit"].context.span_id,
        }

    @run
    async def test_a_middleware_with_arguments_of_its_own(
        self, captured_spans: CapturedSpans, traced: Any
    ) -> None:
        """One that is a ``functools.partial``: the message is traced, and the middleware gets what it got."""
        given: list[Any] = []

        class Users(BaseMiddleware):
            @property
            def publish_scope(self) -> Any:
                return functools.partial(self.scope, "an option", more=1)

            async def scope(self, option: str, call_next: Any, *args: Any, more: int, **kwargs: Any) -> Any:
                given.append((option, more))
                return await call_next(*args, **kwargs)

        broker = traced(KAFKA, middlewares=[Users])
        async with connected(KAFKA, broker):
            await broker.publish("hello", "orders")
        assert given == [("an option", 1)]
        assert only(captured_spans, SpanKind.PRODUCER).name == "publish orders"

    @run
    async def test_a_subscriber_and_its_consumer_are_taken_over(self) -> None:
        """The instrumentor says of both that what goes through them is traced above."""
        instrumentor = FastStreamInstrumentor()
        broker = KAFKA.make()

        @broker.subscriber("orders")
        async def handle(body: str) -> None: ...

        [subscriber] = broker._subscribers.values() if BEFORE_06 else broker.subscribers
        assert not nesting.is_spoken_for(subscriber)
        instrumentor.instrument()
        try:
            async with connected(KAFKA, broker):
                assert nesting.is_spoken_for(subscriber)
            polled = type("Consumer", (), {})()
            polling.take_over_client(SimpleNamespace(consumer=polled))
            assert nesting.is_spoken_for(polled)
        finally:
            instrumentor.uninstrument()

    @run
    async def test_two_middlewares_of_ours_are_one(self, captured_spans: CapturedSpans, kind: Kind) -> None:
        """Given twice, or beside the instrumentor: one span a publish, one a delivery."""
        broker = kind.make(middlewares=(QueuepropMiddleware(), QueuepropMiddleware()))
        instrumentor = FastStreamInstrumentor()
        instrumentor.instrument()
        try:

            @broker.subscriber("orders")
            async def handle(body: str) -> None: ...

            async with connected(kind, broker):
                await broker.publish("hello", "orders", headers={"tenant": "a"})
        finally:
            instrumentor.uninstrument()
        assert [span.kind for span in captured_spans] == [SpanKind.CONSUMER, SpanKind.PRODUCER]

    @run
    @pytest.mark.skipif(BEFORE_06, reason="before 0.6 it cannot put other headers in their place")
    async def test_two_middlewares_of_ours_around_one_that_replaces_the_headers(
        self, captured_spans: CapturedSpans
    ) -> None:
        """They see that it is the same message, whatever its headers are."""
        middlewares = QueuepropMiddleware(), _publishing(_replaces), QueuepropMiddleware()
        broker = KAFKA.make(middlewares=middlewares)
        async with connected(KAFKA, broker):
            await broker.publish("hello", "orders")
        assert [span.kind for span in captured_spans] == [SpanKind.PRODUCER]

    @run
    async def test_others_run_inside_the_span(self, captured_spans: CapturedSpans, traced: Any) -> None:
        """A middleware of the user's behind ours sees the message's span."""
        inside: list[int] = []

        class Other(BaseMiddleware):
            async def consume_scope(self, call_next: Any, msg: Any) -> Any:
                inside.append(get_current_span().get_span_context().span_id)
                return await call_next(msg)

        broker = traced(KAFKA, middlewares=[Other])

        @broker.subscriber("orders")
        async def handle(body: str) -> None: ...

        async with connected(KAFKA, broker):
            await broker.publish("hello", "orders")
        assert inside == [only(captured_spans, SpanKind.CONSUMER).context.span_id]


class TestInstrumentor:
    @run
    async def test_off_and_on_again(self, captured_spans: CapturedSpans) -> None:
        """A broker that was connected meanwhile falls silent, and is traced once when it is on again."""
        instrumentor = FastStreamInstrumentor()
        broker = KAFKA.make()

        @broker.subscriber("orders")
        async def handle(body: str) -> None: ...

        instrumentor.instrument()
        async with connected(KAFKA, broker):
            await broker.publish("hello", "orders")
            instrumentor.uninstrument()
            await broker.publish("hello", "orders")
            assert len(captured_spans) == 2
            instrumentor.instrument()
            await broker.publish("hello", "orders")
        async with connected(KAFKA, broker):
            await broker.publish("hello", "orders")
        instrumentor.uninstrument()
        assert len(captured_spans) == 6

    @run
    @pytest.mark.skipif(BEFORE_06, reason="before 0.6 a broker is joined when it connects")
    @pytest.mark.parametrize("by", ["broker", "publisher"])
    async def test_a_broker_that_is_connected_already(self, captured_spans: CapturedSpans, by: str) -> None:
        """It is traced from its next message on, whatever of it publishes that."""
        instrumentor = FastStreamInstrumentor()
        broker = KAFKA.make()
        publisher = broker.publisher("orders")

        @broker.subscriber("orders")
        async def handle(body: str) -> None: ...

        async with connected(KAFKA, broker):
            instrumentor.instrument()
            try:
                await (publisher.publish("hello") if by == "publisher" else broker.publish("hello", "orders"))
            finally:
                instrumentor.uninstrument()
        assert [span.kind for span in captured_spans] == [SpanKind.CONSUMER, SpanKind.PRODUCER]

    @run
    async def test_a_broker_that_cannot_be_read(
        self, guarded: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It connects all the same."""

        def fails(broker: Any) -> Any:
            raise RuntimeError("ours")

        monkeypatch.setattr(patching, "middlewares_of", fails)
        instrumentor = FastStreamInstrumentor()
        instrumentor.instrument()
        try:
            async with connected(KAFKA, KAFKA.make()) as broker:
                await broker.publish("hello", "orders")
        finally:
            instrumentor.uninstrument()
        assert "instrumenting a broker of FastStream" in caplog.text

    def test_wrong_settings(self) -> None:
        """They are refused where the middleware is made."""
        odd: Any = {"propagation": "link"}
        with pytest.raises(TypeError, match="QueuepropMiddleware wants"):
            QueuepropMiddleware(odd)

    def test_without_faststream(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """One line says what to install; another module's absence is its own error."""
        monkeypatch.setitem(sys.modules, "faststream", None)
        with pytest.raises(MissingExtra, match=r"queueprop\[faststream\]"):
            importlib.reload(adapter)


class TestSettling:
    @run
    async def test_a_settlement_is_a_span(self, captured_spans: CapturedSpans, traced: Any) -> None:
        """FastStream's own ack is a child of the message's span, once."""
        broker = traced(KINDS["rabbit"], Settings(settle_spans=True))

        @broker.subscriber("orders")
        async def handle(body: str) -> None: ...

        async with connected(KINDS["rabbit"], broker):
            await broker.publish("hello", "orders")
        [ack] = of(captured_spans, SpanKind.CLIENT)
        assert ack.name == "ack orders"
        assert ack.parent.span_id == only(captured_spans, SpanKind.CONSUMER).context.span_id


def _untraced(broker: Any) -> Any:
    """A publisher somewhere else: what it sends has no context of ours."""
    import contextlib

    @contextlib.contextmanager
    def without() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(propagation, "write", lambda *args, **kwargs: None)
            patch.setattr(adapter._Middleware, "publish_scope", BaseMiddleware.publish_scope)
            yield

    return without()


class TestPulls:
    """Loops over a subscriber and ``get_one``; integration/test_faststream.py has those of every broker."""

    def test_what_is_none(self) -> None:
        """What no loop can be over, and what is no call, is a TypeError that shows the right form."""
        with pytest.raises(TypeError, match="traced_messages"):
            adapter.traced_messages(42)
        with pytest.raises(TypeError, match="traced_get"):
            adapter.traced_get(42)  # type: ignore[type-var]

    @run
    @pytest.mark.parametrize("how", ["get_one", "a loop"])
    async def test_what_is_spoken_for(self, captured_spans: CapturedSpans, how: str) -> None:
        """What the subscriber consumes by, which its adapter leaves alone, and nothing else: the user's middlewares run
        inside, and what they publish or consume by is theirs.
        """

        class Client:
            consumer: Any = None

        theirs, c_client, consumer, queue = Client(), Client(), Client(), Client()
        consumer.consumer = c_client
        iterators = SimpleNamespace(_amqp_queue=queue), SimpleNamespace(_amqp_queue=theirs)
        asked = (consumer, c_client, queue, iterators[0], theirs, iterators[1])
        spoken: list[bool] = []

        class Subscriber:
            _queue_obj = queue

            def __init__(self) -> None:
                self.consumer = consumer

            async def get_one(self) -> None:
                spoken.extend(map(nesting.is_spoken_for, asked))

            async def __aiter__(self) -> Any:
                await self.get_one()
                return
                yield

        if how == "get_one":
            await adapter.traced_get(Subscriber().get_one)()
        else:
            async for _ in adapter.traced_messages(Subscriber()):
                raise AssertionError("there is none")
        assert spoken == [True, True, True, True, False, False]

    def test_a_middleware_that_is_made_while_the_library_is_instrumented(self) -> None:
        """The start of subscribers is watched once, and the instrumentor puts back what it found."""
        instrumentor = FastStreamInstrumentor()
        QueuepropMiddleware()
        names = polling.STARTS
        before = [vars(SubscriberUsecase)[name] for name in names]
        instrumentor.instrument()
        QueuepropMiddleware()
        instrumentor.uninstrument()
        assert [vars(SubscriberUsecase)[name] for name in names] == before
        assert all(hasattr(it, "__wrapped__") and not hasattr(it.__wrapped__, "__wrapped__") for it in before)
