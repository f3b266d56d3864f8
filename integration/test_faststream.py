"""FastStream on every live broker that it has: one trace from a publish to what its handlers publish, through both
APIs; and with its clients' own adapters beside ours.
"""

# mypy: disable-error-code="untyped-decorator, union-attr, index"
from __future__ import annotations

import asyncio
import functools
import itertools
import os
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import Any

import pytest

pytest.importorskip("faststream")

from aiokafka import AIOKafkaProducer
from faststream import BaseMiddleware, Context
from faststream.confluent import KafkaBroker as ConfluentBroker
from faststream.kafka import KafkaBroker
from faststream.nats import JStream, NatsBroker
from faststream.rabbit import RabbitBroker
from faststream.redis import ListSub, RedisBroker, StreamSub
from opentelemetry import baggage, context
from opentelemetry.trace import SpanKind, StatusCode, get_current_span, get_tracer
from redis.asyncio import Redis

import queueprop
from integration.brokers.kafka import addresses
from integration.contract.telemetry import DEADLINE
from queueprop.adapters import faststream as adapter
from queueprop.adapters.faststream import QueuepropMiddleware, traced_get, traced_message, traced_messages
from queueprop.kit.nesting import is_spoken_for
from queueprop.testing import CapturedSpans

MESSAGE: Any = Context("message")
BEFORE_06 = adapter.versions.PublishCommand is None
HAS_PULLS = hasattr(adapter.versions.SubscriberUsecase, "get_one")
needs_pulls = pytest.mark.skipif(
    not HAS_PULLS, reason="subscribers came to be asked for messages with a later version"
)
BAGGAGE = {"tenant": "Zürich, 1+1 % = ü"}
_numbers = itertools.count(1)


class Place:
    """A kind of destination at one of FastStream's brokers. What is sent to it and taken from it is named here."""

    system: str
    fixture: str
    batches = False
    requests = True

    def __init__(self, url: str) -> None:
        self.url = url
        number = f"{os.getpid()}-{next(_numbers)}"
        self.orders, self.answers = f"orders-{number}", f"answers-{number}"

    def broker(self, **options: Any) -> Any:
        raise NotImplementedError

    def source(self, name: str, batch: bool = False) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a subscriber."""
        return (name,), {}

    def target(self, name: str) -> Mapping[str, Any]:
        """The options of a publish, or of a publisher."""
        raise NotImplementedError


class Rabbit(Place):
    system, fixture = "rabbitmq", "rabbitmq_broker"

    def broker(self, **options: Any) -> Any:
        return RabbitBroker(self.url, **options)

    def target(self, name: str) -> Mapping[str, Any]:
        return {"queue": name}


class Kafka(Place):
    system, fixture = "kafka", "kafka_broker"
    batches, requests = True, False

    def broker(self, **options: Any) -> Any:
        return KafkaBroker(addresses(self.url), **options)

    def source(self, name: str, batch: bool = False) -> tuple[tuple[Any, ...], dict[str, Any]]:
        options = {"auto_offset_reset": "earliest", "group_id": name, "auto_commit_interval_ms": 100}
        return (name,), {**options, **({"batch": True, "batch_timeout_ms": 1_000} if batch else {})}

    def target(self, name: str) -> Mapping[str, Any]:
        return {"topic": name}


class Confluent(Kafka):
    def broker(self, **options: Any) -> Any:
        return ConfluentBroker(addresses(self.url), **options)

    def source(self, name: str, batch: bool = False) -> tuple[tuple[Any, ...], dict[str, Any]]:
        options: dict[str, Any] = {"auto_offset_reset": "earliest", "group_id": name}
        return (name,), {**options, **({"batch": True} if batch else {})}


class RedisList(Place):
    system, fixture = "redis", "redis_broker"
    batches = True

    def broker(self, **options: Any) -> Any:
        return RedisBroker(self.url, **options)

    def source(self, name: str, batch: bool = False) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (), {"list": ListSub(name, batch=batch, polling_interval=0.01)}

    def target(self, name: str) -> Mapping[str, Any]:
        return {"list": name}


class RedisStream(RedisList):
    batches = False

    def source(self, name: str, batch: bool = False) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (), {
            "stream": StreamSub(name, polling_interval=10, last_id="0")
        }  # else from when it first asks

    def target(self, name: str) -> Mapping[str, Any]:
        return {"stream": name}


class RedisChannel(RedisList):
    batches = False

    def source(self, name: str, batch: bool = False) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (name,), {}

    def target(self, name: str) -> Mapping[str, Any]:
        return {"channel": name}


class Nats(Place):
    system, fixture = "nats", "nats_broker"

    def broker(self, **options: Any) -> Any:
        return NatsBroker(self.url, **options)

    def target(self, name: str) -> Mapping[str, Any]:
        return {"subject": name}


class JetStream(Nats):
    requests = False

    def source(self, name: str, batch: bool = False) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (name,), {"stream": self._stream(name)}

    def target(self, name: str) -> Mapping[str, Any]:
        return {"subject": name, "stream": f"stream-{name}"}

    @functools.cached_property
    def _streams(self) -> dict[str, JStream]:
        return {}

    def _stream(self, name: str) -> JStream:
        return self._streams.setdefault(name, JStream(f"stream-{name}"))


PLACES: dict[str, type[Place]] = {
    "rabbit": Rabbit,
    "kafka": Kafka,
    "confluent": Confluent,
    "redis list": RedisList,
    "redis stream": RedisStream,
    "redis channel": RedisChannel,
    "nats": Nats,
    "jetstream": JetStream,
}


def run(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that is a coroutine function."""

    @functools.wraps(test)
    def run_test(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), DEADLINE))

    return run_test


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> Place:
    return place_of(request, request.param)


def place_of(request: pytest.FixtureRequest, name: str) -> Place:
    kind = PLACES[name]
    if BEFORE_06 and kind.system == "redis" and not hasattr(Redis, "from_pool"):
        pytest.skip("this FastStream calls what redis 5.0.0 has not")
    if BEFORE_06 and kind is Kafka and "send_backoff_ms" not in signature(AIOKafkaProducer).parameters:
        pytest.skip("this FastStream calls what aiokafka 0.11 has no more")
    return kind(request.getfixturevalue(kind.fixture).url)


@pytest.fixture(params=["explicit", "instrumentor"])
def options(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """What a broker is made with to be traced."""
    if request.param == "explicit":
        yield {"middlewares": [QueuepropMiddleware()]}
        return
    with instrumented("faststream"):
        yield {}


@contextmanager
def instrumented(*libraries: str) -> Iterator[None]:
    queueprop.instrument(*libraries)
    try:
        yield
    finally:
        queueprop.uninstrument()


def subscriber(place: Place, broker: Any, name: str, batch: bool = False) -> Any:
    args, kwargs = place.source(name, batch)
    return broker.subscriber(*args, **kwargs)


def of(spans: CapturedSpans, kind: SpanKind) -> dict[str, Any]:
    found = {span.name: span for span in spans if span.kind is kind}
    assert len(found) == len([span for span in spans if span.kind is kind]), [span.name for span in spans]
    return found


async def got(get_one: Any) -> Any:
    """The message that was published, however often it takes: a group of Kafka's gathers first."""
    while (message := await get_one(timeout=10)) is None:
        pass
    return message


async def released(*subscribers: Any) -> None:
    """Returns when what they have taken is handled to its end."""
    for it in subscribers:
        await it.lock.wait_release(DEADLINE)


@run
async def test_a_message_and_what_its_handler_publishes(
    captured_spans: CapturedSpans, place: Place, options: dict[str, Any]
) -> None:
    """One trace, one span a publish and one a delivery, the handlers inside, with the baggage; and nothing else."""
    broker = place.broker(**options)
    seen: dict[str, Any] = {}
    done = asyncio.Event()
    orders, answers = (subscriber(place, broker, name) for name in (place.orders, place.answers))

    @orders
    @broker.publisher(**place.target(place.answers))
    async def handle(body: str, message: Any = MESSAGE) -> str:
        seen[body] = get_current_span().get_span_context().span_id, dict(baggage.get_all())
        return "answer"

    @answers
    async def answer(body: str, message: Any = MESSAGE) -> None:
        seen[body] = get_current_span().get_span_context().span_id, dict(baggage.get_all())
        done.set()

    async with broker:
        await broker.start()
        token = context.attach(baggage.set_baggage("tenant", BAGGAGE["tenant"]))
        await broker.publish("order", **place.target(place.orders))
        context.detach(token)
        await done.wait()
        await released(orders, answers)
    sent, handled = of(captured_spans, SpanKind.PRODUCER), of(captured_spans, SpanKind.CONSUMER)
    assert set(sent) == {f"publish {place.orders}", f"publish {place.answers}"}
    assert set(handled) == {f"process {place.orders}", f"process {place.answers}"}
    assert len(captured_spans) == 4
    assert len({span.context.trace_id for span in captured_spans}) == 1
    for name, body in ((place.orders, "order"), (place.answers, "answer")):
        process = handled[f"process {name}"]
        assert process.parent.span_id == sent[f"publish {name}"].context.span_id
        assert seen[body] == (process.context.span_id, BAGGAGE)
        for span in (process, sent[f"publish {name}"]):
            assert span.attributes["messaging.system"] == place.system
            assert span.attributes["server.address"] in ("127.0.0.1", "localhost")
            assert isinstance(span.attributes["server.port"], int)
    assert (
        sent[f"publish {place.answers}"].parent.span_id == handled[f"process {place.orders}"].context.span_id
    )


@run
async def test_a_handler_that_raises(
    captured_spans: CapturedSpans, place: Place, options: dict[str, Any]
) -> None:
    """Its span has the exception, and the subscriber goes on."""
    # By itself, too, FastStream 0.5.0 ends the polling of confluent-kafka with the first exception.
    handles = 1 if BEFORE_06 and type(place) is Confluent else 2
    broker = place.broker(**options)
    handled = asyncio.Queue[str]()
    orders = subscriber(place, broker, place.orders)

    @orders
    async def handle(body: str) -> None:
        handled.put_nowait(body)
        if body == "bad":
            raise ValueError("no")

    async with broker:
        await broker.start()
        for body in ("bad", "good")[:handles]:
            await broker.publish(body, **place.target(place.orders))
            assert await handled.get() == body
        await released(orders)
    consumers = [span for span in captured_spans if span.kind is SpanKind.CONSUMER]
    expected = [StatusCode.ERROR, StatusCode.UNSET]
    assert [span.status.status_code for span in consumers] == expected[:handles]
    assert consumers[0].attributes["error.type"] == "ValueError"


@pytest.mark.parametrize("place", [name for name in PLACES if PLACES[name].batches], indirect=True)
@run
async def test_a_batch(captured_spans: CapturedSpans, place: Place, options: dict[str, Any]) -> None:
    """Each message has a context of its own, and the batch's span a link to each. What a middleware of the user's has
    written is on each of them.
    """
    broker = place.broker(**options)
    bodies: list[str] = []
    tenants: list[Any] = []
    done = asyncio.Event()
    orders = subscriber(place, broker, place.orders, batch=True)

    class Tenant(BaseMiddleware):
        async def publish_scope(self, call_next: Any, cmd: Any) -> Any:
            cmd.add_headers({"tenant": "acme"})
            return await call_next(cmd)

    if not BEFORE_06:  # before, a middleware is given no command
        broker.add_middleware(Tenant)

    @orders
    async def handle(some: list[str], message: Any = MESSAGE) -> None:
        bodies.extend(some)
        tenants.extend(it.get("tenant") for it in getattr(message, "batch_headers", ()))
        if len(bodies) == 3:
            done.set()

    async with broker:
        await broker.start()
        await broker.publish_batch("one", "two", "three", **place.target(place.orders))
        await done.wait()
        await released(orders)
    created = [span for span in captured_spans if span.kind is SpanKind.PRODUCER]
    if BEFORE_06:  # all of its messages are given the same headers
        assert [span.name for span in created] == [f"publish {place.orders}"]
        created *= 3
    links = [
        link.context.span_id
        for span in captured_spans
        if span.kind is SpanKind.CONSUMER
        for link in span.links
    ]
    assert links == [span.context.span_id for span in created]
    if BEFORE_06:
        return
    assert tenants == ["acme"] * 3
    assert [span.name for span in created] == [f"create {place.orders}"] * 3
    [send] = [span for span in captured_spans if span.kind is SpanKind.CLIENT]
    assert send.name == f"publish {place.orders}"


@pytest.mark.parametrize("place", [name for name in PLACES if PLACES[name].requests], indirect=True)
@run
async def test_request_and_reply(
    captured_spans: CapturedSpans, place: Place, options: dict[str, Any]
) -> None:
    """The reply's publish is in the trace, a child of the handling; its arrival at who asked has no span. Where it goes
    was made up for it, and stands in no span's name.
    """
    broker = place.broker(**options)
    if not hasattr(broker, "request"):
        pytest.skip("requests came with a later version")
    orders = subscriber(place, broker, place.orders)

    @orders
    async def handle(body: str) -> str:
        return "reply"

    async with broker:
        await broker.start()
        reply = await broker.request("order", **place.target(place.orders), timeout=DEADLINE)
        assert await reply.decode() == "reply"
        await released(orders)
    producers = [span for span in captured_spans if span.kind is SpanKind.PRODUCER]
    [process] = [span for span in captured_spans if span.kind is SpanKind.CONSUMER]
    request, answer = sorted(producers, key=lambda span: span.start_time or 0)
    assert process.parent.span_id == request.context.span_id
    assert answer.parent.span_id == process.context.span_id
    assert answer.attributes["messaging.destination.temporary"] is True
    assert str(answer.attributes["messaging.destination.name"]) not in answer.name
    assert len(captured_spans) == 3


@needs_pulls
@run
async def test_a_message_that_is_asked_for(
    captured_spans: CapturedSpans, place: Place, options: dict[str, Any]
) -> None:
    """``get_one`` has a receive span that links to the message, and opens nothing; ``traced_message`` around its
    handling is in the publisher's trace. An empty place has no span.
    """
    broker = place.broker(**options)
    orders = subscriber(place, broker, place.orders)
    get_one = traced_get(orders.get_one) if options else orders.get_one
    async with broker:
        await broker.start()
        if not isinstance(place, Rabbit):  # whose channel aiormq closes when a call on it is cancelled
            assert await get_one(timeout=0.1) is None  # with NATS who asks first subscribes by that
        await broker.publish("order", **place.target(place.orders))
        message = await got(get_one)
        assert [span.kind for span in captured_spans] == [SpanKind.PRODUCER, SpanKind.CLIENT]
        assert not get_current_span().get_span_context().is_valid
        with traced_message(message):
            current = get_current_span().get_span_context().span_id
    publish, receive, process = captured_spans
    assert receive.name == f"poll {place.orders}"
    assert [link.context.span_id for link in receive.links] == [publish.context.span_id]
    assert process.context.span_id == current
    assert process.parent.span_id == publish.context.span_id


@needs_pulls
@run
async def test_a_loop(captured_spans: CapturedSpans, place: Place, options: dict[str, Any]) -> None:
    """The body runs in each message's span, in its publisher's trace, with its baggage; nothing is current after it."""
    broker = place.broker(**options)
    orders = subscriber(place, broker, place.orders)
    bodies: list[Any] = []
    async with broker:
        await broker.start()
        if isinstance(place, (RedisChannel, Nats)):
            await orders.get_one(timeout=0.1)  # what is published before somebody listens is nobody's
        token = context.attach(baggage.set_baggage("tenant", BAGGAGE["tenant"]))
        publishing = asyncio.ensure_future(_published(place, broker, orders))
        context.detach(token)
        async for message in traced_messages(orders) if options else orders:
            bodies.append((await message.decode(), dict(baggage.get_all())))
            with get_tracer("test").start_as_current_span("body"):
                pass
            if len(bodies) == 2:
                break
        await publishing
        assert not get_current_span().get_span_context().is_valid
    assert bodies == [("one", BAGGAGE), ("two", BAGGAGE)]
    sent, handled, inside = (
        [span for span in captured_spans if span.kind is it]
        for it in (SpanKind.PRODUCER, SpanKind.CONSUMER, SpanKind.INTERNAL)
    )
    assert [span.parent.span_id for span in handled] == [span.context.span_id for span in sent]
    assert [span.parent.span_id for span in inside] == [span.context.span_id for span in handled]
    assert len(captured_spans) == 6


async def _published(place: Place, broker: Any, orders: Any) -> None:
    for body in ("one", "two"):
        await broker.publish(body, **place.target(place.orders))


CLIENTS = pytest.mark.parametrize(
    ("name", "client"), [("rabbit", "aio-pika"), ("kafka", "aiokafka"), ("confluent", "confluent-kafka")]
)


@CLIENTS
@pytest.mark.parametrize("how", ["the middleware alone", "the middleware", "the instrumentor"])
@run
async def test_beside_the_client_s_own_adapter(
    captured_spans: CapturedSpans,
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
    name: str,
    client: str,
    how: str,
) -> None:
    """One span a publish, one a delivery, none of the polling, and no word of messages outside of their trace; also
    where FastStream itself is not instrumented, and its broker has the middleware.
    """
    place = place_of(request, name)
    handled = asyncio.Queue[str]()
    with instrumented(*(() if how == "the middleware alone" else ("faststream",)), client):
        broker = place.broker(middlewares=[] if how == "the instrumentor" else [QueuepropMiddleware()])
        orders, answers = (subscriber(place, broker, it) for it in (place.orders, place.answers))

        @orders
        @broker.publisher(**place.target(place.answers))
        async def handle(body: str) -> str:
            return f"answer to {body}"

        @answers
        async def answer(body: str) -> None:
            handled.put_nowait(body)

        async with broker:
            await broker.start()
            for body in ("one", "two"):
                await broker.publish(body, **place.target(place.orders))
                assert await handled.get() == f"answer to {body}"
            has_requests = place.requests and hasattr(broker, "request")
            if has_requests:
                await broker.request("three", **place.target(place.orders), timeout=DEADLINE)
                assert await handled.get() == "answer to three"
            await released(orders, answers)
    kinds = [span.kind for span in captured_spans]
    deliveries = 6 if has_requests else 4
    replies = 1 if has_requests else 0
    assert kinds.count(SpanKind.CONSUMER) == deliveries
    assert kinds.count(SpanKind.PRODUCER) == deliveries + replies
    assert len(kinds) == 2 * deliveries + replies
    assert "queueprop" not in caplog.text


@needs_pulls
@CLIENTS
@pytest.mark.parametrize("is_beside", [False, True])
@run
async def test_a_loop_beside_the_client_s_own_adapter(
    captured_spans: CapturedSpans, request: pytest.FixtureRequest, name: str, client: str, is_beside: bool
) -> None:
    """The body of ``async for message in subscriber`` runs in the message's one CONSUMER span, and what it publishes is
    in its trace; nothing is current after ``break``.
    """
    place = place_of(request, name)
    with instrumented("faststream", *([client] if is_beside else [])):
        broker = place.broker()
        orders = subscriber(place, broker, place.orders)
        async with broker:
            await broker.start()
            for body in ("one", "two"):
                await broker.publish(body, **place.target(place.orders))
            bodies, current = [], []
            async for message in orders:
                bodies.append(await message.decode())
                current.append(get_current_span().get_span_context().span_id)
                if len(bodies) == 2:
                    break
            assert not get_current_span().get_span_context().is_valid
    assert bodies == ["one", "two"]
    sent, handled = (
        [span for span in captured_spans if span.kind is it] for it in (SpanKind.PRODUCER, SpanKind.CONSUMER)
    )
    assert len(captured_spans) == 4
    assert [span.context.span_id for span in handled] == current
    assert [span.parent.span_id for span in handled] == [span.context.span_id for span in sent]


@needs_pulls
@pytest.mark.parametrize(("name", "client"), [("rabbit", "aio-pika"), ("kafka", "aiokafka")])
@pytest.mark.parametrize("how", ["get_one", "a loop"])
@run
async def test_words_beside_the_client_s_own_adapter(
    captured_spans: CapturedSpans, request: pytest.FixtureRequest, name: str, client: str, how: str
) -> None:
    """By ``traced_get`` or ``traced_messages`` alone, with the client instrumented: a message has the spans of these,
    and the polling none. A middleware of the user's runs inside, and what it does by another client is not ours.
    """
    place = place_of(request, name)
    spoken: list[bool] = []

    class Users(BaseMiddleware):
        async def consume_scope(self, call_next: Any, msg: Any) -> Any:
            spoken.append(is_spoken_for(object()))
            return await call_next(msg)

    with instrumented(client):
        broker = place.broker(middlewares=[Users])
        orders = subscriber(place, broker, place.orders)
        async with broker:
            await broker.start()
            await broker.publish("one", **place.target(place.orders))
            if how == "get_one":
                message = await got(traced_get(orders.get_one))
                with traced_message(message):
                    current = get_current_span().get_span_context().span_id
            else:
                async for _ in traced_messages(orders):
                    current = get_current_span().get_span_context().span_id
                    break
            await released(orders)
    kinds = [SpanKind.PRODUCER, *([SpanKind.CLIENT] if how == "get_one" else []), SpanKind.CONSUMER]
    assert [span.kind for span in captured_spans] == kinds
    assert captured_spans[-1].context.span_id == current
    assert captured_spans[-1].parent.span_id == captured_spans[0].context.span_id
    assert spoken == [False]
