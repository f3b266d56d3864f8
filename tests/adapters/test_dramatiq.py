"""The Dramatiq adapter without a server: Dramatiq's own workers on its broker in memory."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import io
import logging
import multiprocessing
import multiprocessing.util
import os
import re
import subprocess
import sys
import threading
import time
from collections import ChainMap, OrderedDict, UserDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("dramatiq")

import dramatiq
import pika
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.errors import ActorNotFound, QueueNotFound, RateLimitExceeded
from dramatiq.middleware import (
    AsyncIO,
    CurrentMessage,
    GroupCallbacks,
    Interrupt,
    Middleware,
    Pipelines,
    SkipMessage,
)
from dramatiq.rate_limits import ConcurrentRateLimiter
from dramatiq.rate_limits.backends import StubBackend as StubRateLimiterBackend
from dramatiq.results import Results
from dramatiq.results.backends import StubBackend
from dramatiq_abort import Abortable, abort
from dramatiq_abort.backends.stub import StubBackend as StubAbortBackend
from opentelemetry import baggage, context, trace
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode, get_current_span
from pika.adapters.blocking_connection import BlockingChannel
from pika.channel import Channel

from queueprop import Settings, guard
from queueprop.adapters import dramatiq as adapter
from queueprop.adapters import pika as pika_adapter
from queueprop.adapters.dramatiq import messages, performing, publishing
from queueprop.engine.engine import Engine, engine_for
from queueprop.engine.operations import Operation
from queueprop.kit.iteration import GeneratorMessages
from queueprop.kit.jobs import AUTO_INSTRUMENTATION
from queueprop.kit.libraries import MissingExtra
from queueprop.kit.nesting import Everything, is_spoken_for, speaking_for
from queueprop.process.flush import flush
from queueprop.testing import CapturedSpans, assert_no_orphans
from tests.telemetry import is_since

A_HANG = 60  # seconds
TRACE_ID = 0x0AF7651916CD43DD8448EB211C80319C
TRACEPARENT = f"00-{TRACE_ID:032x}-b7ad6b7169203331-01"

Api = str


@contextmanager
def traced(broker: Any, api: Api, settings: Settings | None = None) -> Iterator[None]:
    """The broker is traced inside, by either API."""
    if api == "explicit":
        broker.add_middleware(adapter.QueuepropMiddleware(settings))
        yield
        return
    instrumentor = adapter.DramatiqInstrumentor()
    instrumentor.instrument(settings=settings)
    try:
        yield
    finally:
        instrumentor.uninstrument()


@pytest.fixture(params=["explicit", "instrumentor"])
def api(request: pytest.FixtureRequest) -> Api:
    found: Api = request.param
    return found


@pytest.fixture
def broker(api: Api, captured_spans: CapturedSpans) -> Iterator[StubBroker]:
    """A broker that is traced, with results, callbacks of groups, and actors that are coroutines."""
    made = make_broker()
    with traced(made, api), global_broker(made):
        yield made


@contextmanager
def global_broker(broker: Any) -> Iterator[None]:
    """What pipelines of the operator ``|`` are run on."""
    before = dramatiq.broker.global_broker
    dramatiq.set_broker(broker)
    try:
        yield
    finally:
        dramatiq.broker.global_broker = before


def make_broker() -> StubBroker:
    broker = StubBroker()
    broker.add_middleware(Results(backend=StubBackend()))
    broker.add_middleware(GroupCallbacks(StubRateLimiterBackend()))
    broker.add_middleware(AsyncIO())
    broker.add_middleware(CurrentMessage())
    return broker


def actor(broker: Any, function: Callable[..., Any] | None = None, **options: Any) -> Any:
    options = {"max_retries": 0, "min_backoff": 1, "actor_name": "work", "queue_name": "orders", **options}
    declare: Any = dramatiq.actor
    return declare(function or work, broker=broker, **options)


def work(*args: Any) -> None:
    """Does nothing."""


def fail(*args: Any) -> None:
    raise ValueError("gave up")


@contextmanager
def working(broker: Any) -> Iterator[Callable[[], None]]:
    """A worker with one thread. What it gives returns when the queue is worked off."""
    worker = dramatiq.Worker(broker, worker_timeout=5, worker_threads=1)
    worker.start()
    try:
        yield lambda: broker.join("orders", fail_fast=False, timeout=A_HANG * 1000)
    finally:
        worker.stop()


def consume(broker: Any) -> None:
    """Works the queue off."""
    with working(broker) as join:
        join()


def only(spans: CapturedSpans, kind: SpanKind | None = None) -> Any:
    [span] = [span for span in spans if kind is None or span.kind is kind]
    return span


def consumers(spans: CapturedSpans) -> list[ReadableSpan]:
    return sorted(spans.kind(SpanKind.CONSUMER), key=lambda span: span.start_time or 0)


def producers(spans: CapturedSpans) -> list[ReadableSpan]:
    return sorted(spans.kind(SpanKind.PRODUCER), key=lambda span: span.start_time or 0)


def ids(span: Any) -> tuple[int, int]:
    found = span.get_span_context() if hasattr(span, "get_span_context") else span
    return found.trace_id, found.span_id


def parent(span: Any) -> tuple[int, int] | None:
    return None if span.parent is None else ids(span.parent)


def waiting(broker: Any, queue: str = "orders") -> list[dict[str, Any]]:
    """The options of the messages that wait."""
    return [dramatiq.Message.decode(data).options for data in broker.queues[queue].queue]


class TestPublish:
    def test_a_message_is_sent_in_a_producer_span(
        self, captured_spans: CapturedSpans, broker: StubBroker
    ) -> None:
        """PRODUCER, not SERVER, named after the queue; its context is among the options that go out."""
        message = actor(broker).send("hello")
        span = only(captured_spans)
        assert (span.name, span.kind) == ("publish orders", SpanKind.PRODUCER)
        assert span.attributes == {
            "messaging.system": "dramatiq",
            "messaging.operation.name": "publish",
            "messaging.operation.type": "send",
            "messaging.destination.name": "orders",
            "messaging.message.id": message.message_id,
            "code.function.name": f"{__name__}.work",
        }
        [options] = waiting(broker)
        assert options["queueprop"]["traceparent"].split("-")[2] == f"{span.context.span_id:016x}"
        assert all(isinstance(value, str) for value in options["queueprop"].values())

    def test_the_caller_s_message_stays_as_it_was(self, broker: StubBroker) -> None:
        """Built once and sent twice: its options get nothing of ours; what enqueue gives back are the copies."""
        message = actor(broker).message_with_options(args=("hello",), tenant="a")
        options = message.options
        returned = [broker.enqueue(message) for _ in range(2)]
        assert message.options is options
        assert options == {"tenant": "a"}
        assert [it.options for it in returned] == waiting(broker)
        one, two = waiting(broker)
        assert one["queueprop"]["traceparent"] != two["queueprop"]["traceparent"]

    @pytest.mark.parametrize("encoder", [dramatiq.JSONEncoder, dramatiq.PickleEncoder])
    @pytest.mark.parametrize("way", ["send", "send_with_options", "enqueue", "enqueue with a delay"])
    def test_what_is_returned_is_what_arrives(self, broker: Any, way: str, encoder: Any) -> None:
        """In an actor and in middleware: an equal message, as without us. Of a delayed one, on its first queue."""
        arrived: list[Any] = []

        class Listening(Middleware):
            def before_delay_message(self, broker: Any, message: Any) -> None:
                arrived.append(message._message)

            def before_process_message(self, broker: Any, message: Any) -> None:
                arrived.append(message._message)

        def listen(*args: Any) -> None:
            current: Any = CurrentMessage.get_current_message()
            arrived.append(current._message)

        broker.add_middleware(Listening())
        sending = actor(broker, listen)
        with encoded_by(encoder()):
            returned = {
                "send": lambda: sending.send("hello"),
                "send_with_options": lambda: sending.send_with_options(
                    args=("hello",), tenant="a", limits=[1]
                ),
                "enqueue": lambda: broker.enqueue(sending.message_with_options(args=("hello",), tenant="a")),
                "enqueue with a delay": lambda: broker.enqueue(sending.message("hello"), delay=20),
            }[way]()
            consume(broker)
        assert "queueprop" in returned.options
        if way == "enqueue with a delay":
            assert arrived.pop(0) == returned
            due = dict(returned.options)
            del due["eta"]
            returned = returned._replace(queue_name="orders", options=due)
        assert arrived == [returned] * 2
        assert [type(it.options) for it in arrived] == [dict] * 2

    def test_what_is_returned_can_be_sent_again(
        self, captured_spans: CapturedSpans, broker: StubBroker
    ) -> None:
        """With a new context, which is its own publish's."""
        returned = actor(broker).send()
        again = broker.enqueue(returned)
        first, second = producers(captured_spans)
        for sent, span in ((returned, first), (again, second)):
            assert sent.options["queueprop"]["traceparent"].split("-")[2] == f"{ids(span)[1]:016x}"
        assert [returned.options, again.options] == waiting(broker)

    def test_what_broker_and_middleware_add_is_given_back(self, broker: StubBroker) -> None:
        """The message that send returns has what they put into its options."""
        broker.add_middleware(Adding())
        work = actor(broker)
        assert work.send("hello").options.keys() == {"request", "queueprop"}
        assert work.send_with_options(delay=1000).options.keys() == {"request", "eta", "queueprop"}

    def test_what_middleware_adds_is_on_the_caller_s_message_as_without_us(self, api: Api) -> None:
        """Where the broker copies nothing, middleware writes into the very message, sent or not: what it adds and takes
        out is found there, and nothing of ours is. A delayed message is the broker's copy.
        """
        found = []
        for is_traced in (False, True):
            broker = make_broker()
            broker.add_middleware(Adding())
            with traced(broker, api) if is_traced else contextlib.nullcontext():
                message = actor(broker).message_with_options(request=1, tenant="a", secret="b")
                forwarded = message.copy(options={"queueprop": {"traceparent": TRACEPARENT}})
                for it in (message, forwarded):
                    broker.enqueue(it)
                    found.append(it.options)
                delayed = actor(broker, actor_name="delayed").message_with_options(tenant="a")
                broker.enqueue(delayed, delay=1000)
                refused = delayed.copy(options={"tenant": object})
                with pytest.raises(TypeError):
                    broker.enqueue(refused)
                found += [delayed.options, refused.options]
        assert found[:4] == found[4:]
        assert found[4] == {"request": 7, "tenant": "a"}
        assert found[6:] == [{"tenant": "a"}, {"request": 7, "tenant": object}]

    @pytest.mark.parametrize(
        "options",
        [
            UserDict(tenant="a"),
            MappingProxyType({"tenant": "a"}),
            ChainMap({"tenant": "a"}),
            OrderedDict(tenant="a"),
            {b"tenant": "a"},
            {"tenant": object()},
            [("tenant", "a")],
            [],
            "tenant",
            None,
            5,
        ],
        ids=lambda options: re.sub(r" at 0x\w+", "", repr(options)),
    )
    def test_options_are_taken_and_refused_as_without_us(
        self, api: Api, options: Any, captured_spans: CapturedSpans
    ) -> None:
        """A mapping that is no dict, a list, nothing: the same message, or the same error. No fault of ours."""
        expected = _outcome(make_broker(), options)
        broker = make_broker()
        with traced(broker, api):
            assert _outcome(broker, options) == expected
        assert len(captured_spans) == isinstance(options, dict)

    def test_options_of_a_class_of_their_own_stay_so(self, broker: StubBroker) -> None:
        """On the wire of pickle, too."""
        actor(broker)
        options = OrderedDict(tenant="a")
        with encoded_by(dramatiq.PickleEncoder()):
            returned = broker.enqueue(dramatiq.Message("orders", "work", (), {}, options))
            [arrived] = waiting(broker)
        assert type(arrived) is type(returned.options) is OrderedDict
        assert arrived == returned.options
        assert options == {"tenant": "a"}

    @pytest.mark.parametrize("name", [None, 5, ["orders"], b"orders"], ids=repr)
    def test_a_name_that_is_none_is_dramatiq_s_to_refuse(
        self, broker: StubBroker, name: Any, captured_spans: CapturedSpans
    ) -> None:
        """Without a span and without a fault."""
        actor(broker)
        with pytest.raises((QueueNotFound, TypeError)):
            broker.enqueue(dramatiq.Message(name, "work", (), {}, {}))
        assert list(captured_spans) == []

    def test_a_delay_that_is_no_float_is_none_to_us(
        self, captured_spans: CapturedSpans, broker: StubBroker
    ) -> None:
        """Python's integers have no end, and Dramatiq takes them."""
        actor(broker).send_with_options(delay=10**400)
        assert len(waiting(broker, "orders.DQ")) == 1
        assert "queueprop.message.delay" not in only(captured_spans).attributes

    def test_every_option_of_send_with_options_still_works(
        self, captured_spans: CapturedSpans, broker: StubBroker
    ) -> None:
        """max_retries, on_success as an actor, delay, and options of one's own arrive as they were given."""
        told = actor(broker, work, actor_name="told")
        sent = actor(broker).send_with_options(
            args=(1,), kwargs={}, max_retries=0, on_success=told, on_failure="told", tenant="a", delay=20
        )
        [options] = waiting(broker, "orders.DQ")
        assert options == sent.options
        assert (options["max_retries"], options["on_success"], options["on_failure"]) == (0, "told", "told")
        span = only(captured_spans)
        assert span.attributes["queueprop.message.delay"] == 0.02
        assert span.name == "publish orders"

    def test_a_failed_enqueue_is_an_error_of_the_span(
        self, captured_spans: CapturedSpans, broker: StubBroker
    ) -> None:
        """The caller gets the same exception."""
        actor(broker)
        with pytest.raises(QueueNotFound):
            broker.enqueue(dramatiq.Message("nowhere", "unknown", (), {}, {}))
        span = only(captured_spans)
        assert span.status.status_code is StatusCode.ERROR
        assert span.attributes["error.type"] == "dramatiq.errors.QueueNotFound"
        assert span.attributes["code.function.name"] == "unknown"

    def test_a_long_name_of_an_actor_is_cut(self, captured_spans: CapturedSpans, broker: StubBroker) -> None:
        """What comes from outside is bounded on spans, and sent as it is."""
        broker.declare_queue("orders")
        sent = broker.enqueue(dramatiq.Message("orders", "x" * 2000, (), {}, {}))
        assert only(captured_spans).attributes["code.function.name"] == "x" * 1024
        assert sent.actor_name == "x" * 2000

    def test_what_is_no_message_is_dramatiq_s_to_refuse(
        self, captured_spans: CapturedSpans, broker: StubBroker
    ) -> None:
        """The same error as without us, and no span."""
        with pytest.raises(AttributeError):
            broker.enqueue("no message")  # type: ignore[arg-type]
        assert list(captured_spans) == []

    def test_a_keyword_is_as_good_as_a_position(
        self, captured_spans: CapturedSpans, broker: StubBroker
    ) -> None:
        """enqueue(message=...) is traced."""
        broker.enqueue(message=actor(broker).message())
        assert "queueprop" in waiting(broker)[0]

    def test_an_eta_of_the_user_s_is_a_delay(self, captured_spans: CapturedSpans, broker: StubBroker) -> None:
        """An option eta, in milliseconds since the epoch, is told as the wait that was asked for."""
        eta = int(time.time() * 1000) + 60_000
        actor(broker).send_with_options(eta=eta)
        delay = only(captured_spans).attributes["queueprop.message.delay"]
        assert eta / 1000 - time.time() - 0.01 <= delay <= 60

    def test_a_forwarded_message_goes_on_in_its_trace(
        self, captured_spans: CapturedSpans, broker: StubBroker
    ) -> None:
        """Options of another message, sent where no span is current: below its context, and with times of its own."""
        stale = {"traceparent": TRACEPARENT, "tracestate": "a=1", "sent_at": "1.0", "delay": "2.0"}
        actor(broker).send_with_options(queueprop=stale, tenant="a")
        [options] = waiting(broker)
        assert options.keys() == {"queueprop", "tenant"}
        assert options["queueprop"].keys() == {"traceparent", "tracestate", "sent_at"}
        assert options["queueprop"]["traceparent"].split("-")[1] == f"{TRACE_ID:032x}"
        assert options["queueprop"]["traceparent"] != TRACEPARENT
        assert float(options["queueprop"]["sent_at"]) > 1

    def test_suppressed_a_message_is_left_alone(
        self, captured_spans: CapturedSpans, broker: StubBroker
    ) -> None:
        """No span and no option."""
        with suppress_instrumentation():
            actor(broker).send()
        assert (waiting(broker), list(captured_spans)) == ([{}], [])

    def test_without_a_span_a_forwarded_context_goes_on(self, api: Api) -> None:
        """Excluded, outside of any trace: what a forwarded message had, and nothing is invented."""
        broker = make_broker()
        with traced(broker, api, Settings(exclude=("orders",))):
            work = actor(broker)
            work.send_with_options(queueprop={"traceparent": TRACEPARENT}, tenant="a")
            work.send()
        [forwarded, other] = waiting(broker)
        assert forwarded["queueprop"]["traceparent"] == TRACEPARENT
        assert other == {}

    def test_a_hook_is_given_the_message(self, api: Api, captured_spans: CapturedSpans) -> None:
        """publish_hook sees Dramatiq's message, consume_hook its delivery."""
        given: list[Any] = []
        settings = Settings(
            publish_hook=lambda span, message: given.append(message),
            consume_hook=lambda span, message: given.append(message),
        )
        broker = make_broker()
        with traced(broker, api, settings):
            message = actor(broker).send()
            consume(broker)
        assert [it.message_id for it in given] == [message.message_id] * 2

    @pytest.mark.parametrize(
        ("owner", "name"),
        [(messages, "_destination_at"), (publishing, "with_context"), (publishing, "is_altered")],
        ids=lambda it: getattr(it, "__name__", it),
    )
    def test_a_fault_of_ours_lets_the_message_go(
        self,
        broker: StubBroker,
        owner: Any,
        name: str,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """It is sent, returned and handled, untraced where it must be; the log says so."""
        monkeypatch.setattr(guard, "raise_faults", False)
        monkeypatch.setattr(guard, "_logged", {})
        monkeypatch.setattr(owner, name, _broken)
        done: list[str] = []
        message = actor(broker, lambda it: done.append(it)).send("hello")
        consume(broker)
        assert (message.args, done) == (("hello",), ["hello"])
        assert "queueprop failed" in caplog.text


def _broken(*args: Any) -> Any:
    raise RuntimeError("a bug of ours")


class Adding(Middleware):
    """One that writes into the options of what is enqueued."""

    def before_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
        message.options["request"] = 7
        message.options.pop("secret", None)


@contextmanager
def encoded_by(encoder: Any) -> Iterator[None]:
    before = dramatiq.get_encoder()
    dramatiq.set_encoder(encoder)
    try:
        yield
    finally:
        dramatiq.set_encoder(before)


def _outcome(broker: Any, options: Any) -> Any:
    """What becomes of a message with such options: the error, or what lies in the queue, without our part."""
    actor(broker)
    try:
        broker.enqueue(dramatiq.Message("orders", "work", (), {}, options))
    except Exception as error:
        return type(error), str(error)
    [found] = waiting(broker)
    return {k: v for k, v in found.items() if k != "queueprop"} if isinstance(found, dict) else found


class TestBrokers:
    def test_a_middleware_may_stand_anywhere(self, captured_spans: CapturedSpans) -> None:
        """First, last, in the constructor, before or after the actors: what Pipelines sends is inside the span."""
        for place in ("first", "last", "constructor", "after the actors"):
            middleware = adapter.QueuepropMiddleware()
            given = [Pipelines(), middleware] if place == "constructor" else None
            broker = StubBroker(middleware=given)
            if place == "first":
                broker.add_middleware(middleware, before=type(broker.middleware[0]))
            elif place == "last":
                broker.add_middleware(middleware)
            declare: Any = dramatiq.actor
            one, two = (declare(work, broker=broker, queue_name="orders", actor_name=it) for it in "ab")
            if place == "after the actors":
                broker.add_middleware(middleware)
            before = len(captured_spans)
            dramatiq.pipeline([one.message(), two.message()], broker=broker).run()
            consume(broker)
            first, second = producers(captured_spans)[-2:]
            assert len(captured_spans) - before == 4, place
            assert parent(second) == ids(consumers(captured_spans)[-2]), place
            assert parent(consumers(captured_spans)[-2]) == ids(first), place

    def test_one_middleware_may_serve_two_brokers(self, captured_spans: CapturedSpans) -> None:
        """Each of them is traced."""
        middleware = adapter.QueuepropMiddleware()
        for _ in range(2):
            broker = StubBroker()
            broker.add_middleware(middleware)
            actor(broker).send()
            consume(broker)
        assert len(consumers(captured_spans)) == len(producers(captured_spans)) == 2
        assert_no_orphans(captured_spans)

    def test_two_middlewares_make_one_span(self, captured_spans: CapturedSpans) -> None:
        """Added twice by mistake, with the actors declared between: one of each, an error that is recorded once, and
        one context on the wire.
        """
        broker, settings = make_broker(), Settings(settle_spans=True)
        broker.add_middleware(adapter.QueuepropMiddleware(settings))
        failing = actor(broker, fail)
        broker.add_middleware(adapter.QueuepropMiddleware(settings))
        failing.send()
        [options] = waiting(broker)
        assert options.keys() == {"queueprop"}
        consume(broker)
        assert sorted(span.kind.name for span in captured_spans) == ["CLIENT", "CONSUMER", "PRODUCER"]
        assert len(only(captured_spans, SpanKind.CONSUMER).events) == 1
        assert_no_orphans(captured_spans)

    def test_a_middleware_that_outlives_the_instrumentor_makes_one_span(
        self, captured_spans: CapturedSpans
    ) -> None:
        """Added while the instrumentor was on, which then goes and comes again: one span of each kind, each time."""
        broker = make_broker()
        with traced(broker, "instrumentor"):
            broker.add_middleware(adapter.QueuepropMiddleware())
            work = actor(broker)
        for _ in range(2):
            work.send()
            consume(broker)
        with traced(broker, "instrumentor"):
            work.send()
            consume(broker)
        assert len(producers(captured_spans)) == len(consumers(captured_spans)) == 3
        assert_no_orphans(captured_spans)

    def test_both_apis_make_one_span(self, captured_spans: CapturedSpans) -> None:
        """A middleware on a broker, under the instrumentor: one PRODUCER, one CONSUMER, one settlement, one error."""
        broker, settings = make_broker(), Settings(settle_spans=True)
        with traced(broker, "explicit", settings), traced(broker, "instrumentor", settings):
            actor(broker, fail).send()
            consume(broker)
        assert sorted(span.kind.name for span in captured_spans) == ["CLIENT", "CONSUMER", "PRODUCER"]
        assert len(only(captured_spans, SpanKind.CONSUMER).events) == 1
        assert_no_orphans(captured_spans)

    def test_brokers_made_before_and_classes_made_after_are_traced(
        self, captured_spans: CapturedSpans
    ) -> None:
        """instrument() finds brokers that are there, and those of classes that come."""
        before = make_broker()
        with traced(None, "instrumentor"):

            class Derived(StubBroker):
                def enqueue(self, message: Any, *, delay: Any = None) -> Any:
                    return super().enqueue(message, delay=delay)

            class Plain(Derived):
                pass

            for broker in (before, Derived(), Plain(), Plain()):
                actor(broker).send()
            assert len(captured_spans) == 4
        actor(Derived()).send()
        actor(before, actor_name="other").send()
        assert len(captured_spans) == 4

    def test_a_fault_while_a_broker_is_made(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The broker is made."""
        monkeypatch.setattr(guard, "raise_faults", False)
        monkeypatch.setattr(guard, "_logged", {})
        with traced(None, "instrumentor"):
            monkeypatch.setattr(adapter.DramatiqInstrumentor, "_patches_of", _broken)
            assert StubBroker().middleware
        assert "queueprop failed while instrumenting a broker" in caplog.text

    def test_the_first_message_of_a_broker_without_actors_has_a_context(
        self, captured_spans: CapturedSpans
    ) -> None:
        """Such a broker tells a middleware of itself when the enqueue has begun: that message has its span all
        the same, and its options are the caller's again afterwards.
        """
        broker = Mailbox(middleware=[adapter.QueuepropMiddleware()])
        message: Any = dramatiq.Message("orders", "work", (), {}, {"tenant": "a"})
        for _ in range(2):
            broker.enqueue(message)
            assert message.options == {"tenant": "a"}
        assert [options["queueprop"]["traceparent"].split("-")[2] for options in broker.sent] == [
            f"{ids(span)[1]:016x}" for span in producers(captured_spans)
        ]
        with suppress_instrumentation():
            Mailbox(middleware=[adapter.QueuepropMiddleware()]).enqueue(message)
        assert len(captured_spans) == 2

    def test_a_kept_enqueue_that_tries_again_makes_one_span(self, captured_spans: CapturedSpans) -> None:
        """RabbitMQ's broker tells of each attempt: one span, also by an enqueue kept from before."""
        broker = Mailbox(middleware=[])
        enqueue = broker.enqueue
        broker.add_middleware(adapter.QueuepropMiddleware())
        broker.attempts = 3
        enqueue(dramatiq.Message("orders", "work", (), {}, {}))
        assert only(captured_spans).kind is SpanKind.PRODUCER
        assert len(broker.sent) == 1

    def test_a_fault_of_ours_in_a_late_publish(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The message goes out."""
        monkeypatch.setattr(guard, "raise_faults", False)
        monkeypatch.setattr(guard, "_logged", {})
        monkeypatch.setattr(messages, "_destination_at", _broken)
        broker = Mailbox(middleware=[adapter.QueuepropMiddleware()])
        broker.enqueue(dramatiq.Message("orders", "work", (), {}, {}))
        assert broker.sent == [{}]

    @pytest.mark.parametrize(
        ("broker", "expected"),
        [
            (RedisBroker(host="redis.example", port=6380), ("redis.example", 6380)),
            (RedisBroker(url="unix:///run/redis.sock"), ("/run/redis.sock", None)),
            (RabbitmqBroker(url="amqp://rabbit.example:5673"), ("rabbit.example", 5673)),
            (RabbitmqBroker(parameters=[{"host": "one"}]), ("one", 5672)),
            (RabbitmqBroker(parameters=[{"host": "one"}, {"host": "two"}]), (None, None)),
            (StubBroker(), (None, None)),
            (SimpleNamespace(parameters={"host": "another"}), (None, None)),
            (SimpleNamespace(client=SimpleNamespace(connection_pool=object())), (None, None)),
        ],
    )
    def test_the_server_is_told(self, broker: Any, expected: tuple[str | None, int | None]) -> None:
        """Host and port, where there is one."""
        destination = messages.destination_of(broker, dramatiq.Message("orders.DQ", "work", (), {}, {}))
        assert (destination.server_address, destination.server_port) == expected
        assert destination.name == "orders"


class Mailbox(dramatiq.Broker):
    """A broker that needs no queue to be declared."""

    attempts = 1

    def __init__(self, middleware: Any = None) -> None:
        super().__init__(middleware=middleware)
        self.sent: list[dict[str, Any]] = []

    def enqueue(self, message: Any, *, delay: Any = None) -> Any:
        for _ in range(self.attempts):
            self.emit_before("enqueue", message, delay)
        self.sent.append(dict(message.options))
        self.emit_after("enqueue", message, delay)
        return message


class BrokenSpan(trace.NonRecordingSpan):
    """A span of somebody's SDK one of whose methods raises."""

    def __init__(self, method: str) -> None:
        super().__init__(trace.SpanContext(TRACE_ID, 1, False, trace.TraceFlags(1)))
        setattr(self, method, _broken_sdk)

    def is_recording(self) -> bool:
        return True


def _broken_sdk(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("a broken SDK")


class BrokenProvider(trace.TracerProvider):
    def __init__(self, kind: str) -> None:
        made: dict[str, Callable[..., Any]] = {
            "no span": lambda *args, **kwargs: None,
            "start_span raises": _broken_sdk,
        }
        self.start_span = made.get(kind, lambda *args, **kwargs: BrokenSpan(kind))

    def get_tracer(self, *args: Any, **kwargs: Any) -> Any:
        return SimpleNamespace(start_span=self.start_span)


def _broken_logging(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is logged by queueprop raises, for as long as the test runs."""
    logger = logging.getLogger("queueprop")
    monkeypatch.setattr(logger, "level", logging.DEBUG)
    closed = io.StringIO()
    closed.close()
    if how == "filter":
        monkeypatch.setattr(logger, "filters", [_broken])
    elif how == "handler":
        handler = logging.NullHandler(logging.DEBUG)
        monkeypatch.setattr(handler, "handle", _broken)
        monkeypatch.setattr(logger, "handlers", [handler])
    else:
        monkeypatch.setattr(sys, "stderr", closed)
        monkeypatch.setattr(logger, "handlers", [logging.StreamHandler(closed)])


def _all_ways(broker: Any) -> tuple[list[str], list[str]]:
    """What actors do, and which end as dead letters: one that works, fails, exits, is rejected, is not known, waits."""
    done: list[str] = []

    def do(note: str) -> None:
        done.append(note)
        if note == "fails":
            raise ValueError("gave up")
        if note == "exits":
            sys.exit(1)

    def reject(message: Any) -> None:
        if message.args == ("rejected",):
            message.fail()

    broker.add_middleware(Deciding(reject))
    doing = actor(broker, do)
    with working(broker) as join:
        for note in ("works", "fails", "exits", "rejected", "works again"):
            doing.send(note)
        broker.enqueue(dramatiq.Message("orders", "unknown", ("unknown",), {}, {}))
        doing.send_with_options(args=("waits",), delay=10)
        join()
    return sorted(done), sorted(message.args[0] for message in broker.dead_letters)


class TestFaults:
    """What is not ours, and what is: nothing of it ends a worker's thread, for which a join would wait in vain."""

    @pytest.mark.parametrize("how", ["handler", "filter", "closed stderr"])
    @pytest.mark.parametrize(
        ("owner", "name"),
        [
            (messages, "_destination_at"),
            (publishing, "with_context"),
            (performing, "_Performance"),
            (performing._Performance, "conclude"),
            (Engine, "settle"),
            (Engine, "start_span"),
            (Engine, "write"),
            (Operation, "_end"),
        ],
        ids=lambda it: getattr(it, "__name__", it),
    )
    def test_a_fault_of_ours_while_logging_is_broken_ends_no_thread(
        self, api: Api, how: str, owner: Any, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A handler or a filter that raises, a closed stderr: each message is processed once, and a join returns."""
        expected = _all_ways(make_broker())
        monkeypatch.setattr(guard, "raise_faults", False)
        monkeypatch.setattr(guard, "_logged", {})
        monkeypatch.setattr(owner, name, _broken)
        _broken_logging(how, monkeypatch)
        broker = make_broker()
        with traced(broker, api, Settings(settle_spans=True)):
            assert _all_ways(broker) == expected

    @pytest.mark.parametrize(
        "kind",
        [
            *(
                "no span",
                "start_span raises",
                "is_recording",
                "set_attribute",
                "set_attributes",
                "set_status",
            ),
            *("record_exception", "end", "get_span_context"),
        ],
    )
    def test_a_broken_sdk_ends_no_thread(self, api: Api, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """A tracer that returns None, a span whose methods raise: as without us, and nothing stays current."""
        expected = _all_ways(make_broker())
        monkeypatch.setattr(guard, "raise_faults", False)
        monkeypatch.setattr(guard, "_logged", {})
        settings = Settings(settle_spans=True, tracer_provider=BrokenProvider(kind))
        broker = make_broker()
        with traced(broker, api, settings):
            assert _all_ways(broker) == expected
        assert context.get_current() == {}

    def test_a_broker_that_cannot_be_asked_is_used(
        self, captured_spans: CapturedSpans, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One with a property of pika's name that raises, one whose methods cannot be set: told, and not hindered."""
        monkeypatch.setattr(guard, "raise_faults", False)
        monkeypatch.setattr(guard, "_logged", {})

        class Rude(StubBroker):
            @property
            def channels(self) -> Any:
                raise RuntimeError("no channels here")

        class Closed(StubBroker):
            def __setattr__(self, name: str, value: Any) -> None:
                if name in ("enqueue", "consume"):
                    raise AttributeError(name)
                super().__setattr__(name, value)

        for kind in (Rude, Closed):
            broker = kind()
            broker.add_middleware(adapter.QueuepropMiddleware())
            actor(broker).send()
            consume(broker)
        assert len(consumers(captured_spans)) == 2
        assert_no_orphans(captured_spans)
        assert len(guard._logged) == 2


class TestProcess:
    def test_an_actor_runs_in_the_consumer_span(
        self, captured_spans: CapturedSpans, broker: StubBroker
    ) -> None:
        """Not in the producer's context: the current span is the CONSUMER's, a child of the PRODUCER's."""
        seen: list[Any] = []
        message = actor(broker, lambda: seen.append(get_current_span().get_span_context())).send()
        consume(broker)
        producer, consumer = (only(captured_spans, kind) for kind in (SpanKind.PRODUCER, SpanKind.CONSUMER))
        assert (parent(consumer), [ids(link.context) for link in consumer.links]) == (
            ids(producer),
            [ids(producer)],
        )
        assert [ids(it) for it in seen] == [ids(consumer)]
        queue_time = consumer.attributes["queueprop.message.queue_time"]
        assert 0 <= queue_time < A_HANG
        assert consumer.attributes == {
            "messaging.system": "dramatiq",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": "orders",
            "messaging.message.id": message.message_id,
            "queueprop.message.delivery_attempt": 1,
            "queueprop.message.queue_time": queue_time,
            "code.function.name": f"{__name__}.TestProcess.test_an_actor_runs_in_the_consumer_span.<locals>.<lambda>",
        }

    def test_the_next_message_of_a_thread_is_not_in_the_last_one_s_trace(
        self, captured_spans: CapturedSpans, broker: StubBroker
    ) -> None:
        """Whatever an actor leaves behind, span or baggage of its own included: the next one begins afresh."""
        seen: list[Any] = []

        def leave(number: int) -> None:
            seen.append((get_current_span().get_span_context(), dict(baggage.get_all())))
            context.attach(baggage.set_baggage("left", "behind", context.Context()))
            context.attach(trace.set_span_in_context(trace.get_tracer("t").start_span("never ended")))

        leaving = actor(broker, leave)
        with working(broker) as join:
            with attached(baggage.set_baggage("tenant", "42")):
                leaving.send(1)
            join()
            leaving.send(2)
            join()
        assert [found for _, found in seen] == [{"tenant": "42"}, {}]
        assert [ids(span) for span, _ in seen] == [ids(span) for span in consumers(captured_spans)]
        one, two = consumers(captured_spans)
        assert [len(span.links) for span in (one, two)] == [1, 1]

    def test_retries_are_attempts_in_the_first_trace(
        self, captured_spans: CapturedSpans, broker: StubBroker
    ) -> None:
        """To their end: numbered, each a child of the one PRODUCER span; the delay before each is told apart."""
        actor(broker, fail, max_retries=2, min_backoff=300, max_backoff=300).send()
        consume(broker)
        producer = only(captured_spans, SpanKind.PRODUCER)
        found = consumers(captured_spans)
        assert [parent(span) for span in found] == [ids(producer)] * 3
        attributes: list[Any] = [span.attributes for span in found]
        assert [it["queueprop.message.delivery_attempt"] for it in attributes] == [1, 2, 3]
        assert "queueprop.message.delay" not in attributes[0]
        for it in attributes[1:]:
            assert 0 < it["queueprop.message.delay"] <= 0.3
            assert it["queueprop.message.queue_time"] < 10
        assert {it["error.type"] for it in attributes} == {"ValueError"}
        assert [len(span.events) for span in found] == [1, 1, 1]

    @pytest.mark.skipif(
        "on_retry_exhausted" not in StubBroker().actor_options, reason="1.17 has no on_retry_exhausted"
    )
    def test_what_is_told_of_the_last_retry_is_inside_the_last_attempt(
        self, captured_spans: CapturedSpans, broker: StubBroker
    ) -> None:
        """on_retry_exhausted: a publish of its own, in the span of the attempt that was the last."""
        told: list[Any] = []
        actor(broker, lambda message, retries: told.append(retries), actor_name="told")
        actor(broker, fail, max_retries=1, max_backoff=1, on_retry_exhausted="told").send()
        consume(broker)
        assert told == [{"retries": 1, "max_retries": 1}]
        attempts = consumers(captured_spans)[:2]
        assert parent(producers(captured_spans)[1]) == ids(attempts[-1])
        assert_no_orphans(captured_spans)

    def test_the_time_in_the_queue_begins_when_a_message_is_sent(
        self, captured_spans: CapturedSpans, broker: StubBroker
    ) -> None:
        """Not when it was built, which is what Dramatiq's timestamp tells."""
        message = actor(broker).message().copy(message_timestamp=1)
        broker.enqueue(message)
        consume(broker)
        assert only(captured_spans, SpanKind.CONSUMER).attributes["queueprop.message.queue_time"] < 60

    def test_an_intended_delay_is_not_time_in_the_queue(
        self, captured_spans: CapturedSpans, broker: StubBroker
    ) -> None:
        """Sent 100 s ago to be due 70 s ago: it waited for 70, and the 30 are told apart."""
        work = actor(broker)
        began = time.time()
        carrier = {"traceparent": TRACEPARENT, "sent_at": repr(began - 100), "delay": "30.0"}
        message: Any = dramatiq.Message("orders", work.actor_name, (), {}, {"queueprop": carrier})
        broker.queues["orders"].put(message.encode())
        consume(broker)
        attributes = only(captured_spans).attributes
        assert is_since(began, 70, attributes["queueprop.message.queue_time"])
        assert attributes["queueprop.message.delay"] == 30

    def test_a_delayed_message_that_is_due_is_still_the_first_publish(
        self, captured_spans: CapturedSpans, broker: StubBroker
    ) -> None:
        """Dramatiq enqueues it again, in a thread of its own: no publish, and the actor is in the sender's trace."""
        with trace.get_tracer("t").start_as_current_span("request") as request:
            actor(broker).send_with_options(delay=20)
        consume(broker)
        producer, consumer = (only(captured_spans, kind) for kind in (SpanKind.PRODUCER, SpanKind.CONSUMER))
        assert (parent(producer), parent(consumer)) == (ids(request), ids(producer))
        assert consumer.attributes["queueprop.message.delay"] == 0.02
        assert consumer.attributes["queueprop.message.delivery_attempt"] == 1

    @pytest.mark.parametrize(
        "options",
        [{"max_retries": 0}, {"max_retries": 1}, {"on_failure": "told"}, {"max_age": 60_000}],
        ids=str,
    )
    def test_an_option_means_what_it_means_without_us(
        self, api: Api, options: dict[str, Any], captured_spans: CapturedSpans
    ) -> None:
        """As many attempts, callbacks and dead letters of a failing actor, untraced and traced."""
        untraced = _failures(make_broker(), options)
        broker = make_broker()
        with traced(broker, api):
            assert _failures(broker, options) == untraced
        assert len(consumers(captured_spans)) == len(untraced[0])

    def test_a_message_without_a_context_stays_so_when_it_is_retried(
        self, captured_spans: CapturedSpans, broker: StubBroker
    ) -> None:
        """Each attempt is a root; nothing makes a context up for a publish that nobody traced."""
        failing = actor(broker, fail, max_retries=1)
        with suppress_instrumentation():
            failing.send()
        consume(broker)
        assert [span.parent for span in consumers(captured_spans)] == [None, None]
        assert producers(captured_spans) == []

    def test_what_a_handler_sends_on_is_a_publish_of_its_own(
        self, captured_spans: CapturedSpans, broker: StubBroker
    ) -> None:
        """An actor that enqueues the very message that it is given: in its span, with the new context alone."""
        times: list[int] = []

        def again() -> None:
            times.append(1)
            if len(times) == 1:
                message: Any = CurrentMessage.get_current_message()
                broker.enqueue(message)

        actor(broker, again).send()
        consume(broker)
        second = producers(captured_spans)[1]
        assert parent(second) == ids(consumers(captured_spans)[0])
        assert parent(consumers(captured_spans)[1]) == ids(second)

    def test_junk_in_place_of_times_is_no_time(
        self, captured_spans: CapturedSpans, broker: StubBroker
    ) -> None:
        """Text that is no number, infinity, a negative one, a list: no queue time, and the message is processed."""
        work = actor(broker)
        for junk in ("soon", "inf", "nan", "-1", ["1.0"], None):
            options = {"queueprop": {"traceparent": TRACEPARENT, "sent_at": junk}, "retries": "many"}
            message: Any = dramatiq.Message("orders", work.actor_name, (), {}, options)
            broker.queues["orders"].put(message.encode())
        consume(broker)
        for span in consumers(captured_spans):
            assert span.attributes is not None
            assert span.attributes["queueprop.message.delivery_attempt"] == 1
            assert "queueprop.message.queue_time" not in span.attributes
        assert len(consumers(captured_spans)) == 6

    @pytest.mark.parametrize(
        "retries", [True, -1, 2**31, 10**400, "1", 1.0, None], ids=lambda it: repr(it)[:12]
    )
    def test_a_number_of_retries_that_can_be_none_is_the_first_attempt(
        self, captured_spans: CapturedSpans, broker: StubBroker, retries: Any
    ) -> None:
        """A message may say anything, and for a number that it cannot send an exporter logs a traceback."""
        work = actor(broker)
        message: Any = dramatiq.Message("orders", work.actor_name, (), {}, {"retries": retries})
        broker.queues["orders"].put(message.encode())
        consume(broker)
        assert only(captured_spans).attributes["queueprop.message.delivery_attempt"] == 1

    @pytest.mark.parametrize("junk", [None, 5, ["a"], {"a": 1}], ids=repr)
    def test_an_id_or_an_actor_that_is_no_text_is_not_told(
        self, captured_spans: CapturedSpans, broker: StubBroker, junk: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Nothing that an SDK complains of for each such message."""
        message = dramatiq.MessageProxy(dramatiq.Message("orders", junk, (), {}, {}, message_id=junk))
        thread: Any = SimpleNamespace(broker=broker)
        performing.PerformingHooks(engine_for()).process_message(lambda message: None, thread, (message,), {})
        assert not {"messaging.message.id", "code.function.name"} & only(captured_spans).attributes.keys()
        assert caplog.text == ""

    def test_options_that_are_none_are_no_context(
        self, captured_spans: CapturedSpans, broker: StubBroker
    ) -> None:
        """A delivery with a list in their place, which a worker is given all the same: a root, no fault of ours."""
        options: Any = []
        message = dramatiq.MessageProxy(dramatiq.Message("orders", "work", (), {}, options))
        thread: Any = SimpleNamespace(broker=broker)
        done: list[Any] = []
        performing.PerformingHooks(engine_for()).process_message(done.append, thread, (message,), {})
        assert len(done) == 1
        span = only(captured_spans)
        assert (span.parent, span.attributes["queueprop.message.delivery_attempt"]) == (None, 1)

    def test_a_skipped_message_is_no_failure(self, captured_spans: CapturedSpans, broker: StubBroker) -> None:
        """Its span ends without an error, and the next message is not inside."""
        broker.add_middleware(Deciding(lambda message: _skip()))
        skipped = actor(broker)
        skipped.send()
        skipped.send()
        consume(broker)
        assert [span.status.status_code for span in consumers(captured_spans)] == [StatusCode.UNSET] * 2
        assert_no_orphans(captured_spans)

    def test_a_message_that_is_skipped_and_rejected_is_one(
        self, captured_spans: CapturedSpans, broker: StubBroker
    ) -> None:
        """As one that is too old: the SkipMessage is on the span."""
        actor(broker, max_age=1).send()
        time.sleep(0.01)
        consume(broker)
        span = only(captured_spans, SpanKind.CONSUMER)
        assert span.attributes["error.type"] == "dramatiq.middleware.middleware.SkipMessage"
        assert len(broker.dead_letters) == 1

    def test_a_message_that_a_middleware_rejects_is_an_error(
        self, captured_spans: CapturedSpans, broker: StubBroker
    ) -> None:
        """Without an exception to tell of: the span says so."""
        broker.add_middleware(Deciding(lambda message: message.fail()))
        actor(broker).send()
        consume(broker)
        span = only(captured_spans, SpanKind.CONSUMER)
        assert span.status.status_code is StatusCode.ERROR
        assert span.attributes["error.type"] == adapter.MESSAGE_FAILED

    def test_a_message_without_an_actor_is_an_error(
        self, captured_spans: CapturedSpans, broker: StubBroker
    ) -> None:
        """It goes to the dead letters without a worker: its CONSUMER span is in the sender's trace all the same."""
        actor(broker)
        broker.enqueue(dramatiq.Message("orders", "unknown", (), {}, {}))
        consume(broker)
        producer, consumer = (only(captured_spans, kind) for kind in (SpanKind.PRODUCER, SpanKind.CONSUMER))
        assert parent(consumer) == ids(producer)
        assert consumer.attributes["error.type"] == "dramatiq.errors.ActorNotFound"
        assert len(broker.dead_letters) == 1

    def test_a_broker_that_cannot_say_its_actors(
        self, broker: StubBroker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What its get_actor raises is Dramatiq's to see; ours asks and keeps still, save for a time limit."""
        monkeypatch.setattr(broker, "get_actor", _broken)
        message: Any = SimpleNamespace(options={}, actor_name="work")
        assert performing._actor_not_found(broker, message) is None
        monkeypatch.setattr(guard, "_not_ours", (RuntimeError,))
        with pytest.raises(RuntimeError):
            performing._actor_not_found(broker, message)
        message.options["eta"] = 1
        assert performing._actor_not_found(StubBroker(), message) is None
        message.options["eta"] = None
        assert isinstance(performing._actor_not_found(StubBroker(), message), ActorNotFound)

    def test_an_actor_that_exits_has_failed(self, captured_spans: CapturedSpans, broker: StubBroker) -> None:
        """sys.exit() in an actor is a failure to Dramatiq, whatever the status; it ends no thread."""
        actor(broker, lambda: sys.exit(0)).send()
        consume(broker)
        assert only(captured_spans, SpanKind.CONSUMER).attributes["error.type"] == "SystemExit"

    def test_an_exit_that_cannot_be_told_in_words(
        self, captured_spans: CapturedSpans, broker: StubBroker
    ) -> None:
        """sys.exit() with an object whose __str__ raises: the thread works on, and the span ends."""

        class Rude:
            def __str__(self) -> str:
                raise RuntimeError("no words")

        done: list[str] = []

        def leave(note: str) -> None:
            done.append(note)
            if note == "rude":
                raise SystemExit(Rude())

        leaving = actor(broker, leave)
        with working(broker) as join:
            leaving.send("rude")
            leaving.send("next")
            join()
        assert sorted(done) == ["next", "rude"]
        attributes: list[Any] = [span.attributes for span in consumers(captured_spans)]
        assert sorted(it.get("error.type", "none") for it in attributes) == ["SystemExit", "none"]

    def test_an_exception_that_is_false_is_a_failure(
        self, captured_spans: CapturedSpans, broker: StubBroker
    ) -> None:
        """One with a length, say, of nothing: its kind is on the span as any other's."""

        class Empty(Exception):
            def __len__(self) -> int:
                return 0

        def empty() -> None:
            raise Empty

        actor(broker, empty).send()
        consume(broker)
        assert only(captured_spans, SpanKind.CONSUMER).attributes["error.type"].endswith(".Empty")

    def test_what_is_told_of_a_message_outside_of_a_worker(self, broker: StubBroker) -> None:
        """An application may tell its middleware of a plain message, which is no delivery: nothing is raised."""
        told: list[Any] = []

        class Listening(Middleware):
            def after_skip_message(self, broker: Any, message: Any) -> None:
                told.append(message)

        broker.add_middleware(Listening())
        message = actor(broker).message()
        broker.emit_after("skip_message", message)
        assert told == [message]

    def test_a_time_limit_goes_through(self, captured_spans: CapturedSpans, broker: StubBroker) -> None:
        """An Interrupt inside a publish of ours reaches the actor, and nothing is current afterwards."""
        seen: list[Any] = []

        class Interrupting(Middleware):
            def before_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
                if message.args == ("inner",):
                    raise Interrupt

        def outer(name: str) -> None:
            seen.append(dict(baggage.get_all()))
            if name == "outer":
                sending.send("inner")

        sending = actor(broker, outer)
        broker.add_middleware(Interrupting())
        with working(broker) as join:
            with attached(baggage.set_baggage("tenant", "42")):
                sending.send("outer")
            join()
            sending.send("next")
            join()
        first, second = consumers(captured_spans)
        assert first.attributes is not None
        assert str(first.attributes["error.type"]).endswith("threading.Interrupt")
        assert second.status.status_code is StatusCode.UNSET
        assert seen == [{"tenant": "42"}, {}]

    def test_a_message_that_is_aborted_while_it_waits_is_skipped(
        self, captured_spans: CapturedSpans, broker: StubBroker
    ) -> None:
        """dramatiq-abort skips it, which is no failure: its span ends so, and the next message is outside."""
        done: list[str] = []
        noting = actor(broker, lambda note: done.append(note))
        with abortable(broker) as aborting:
            abort(noting.send("aborted").message_id, aborting)
            noting.send("next")
            consume(broker)
        assert done == ["next"]
        assert [span.status.status_code for span in consumers(captured_spans)] == [StatusCode.UNSET] * 2
        assert {parent(span) for span in consumers(captured_spans)} == {
            ids(span) for span in producers(captured_spans)
        }
        assert broker.dead_letters == []

    def test_a_message_that_is_aborted_while_it_runs_has_failed(
        self, captured_spans: CapturedSpans, broker: StubBroker
    ) -> None:
        """dramatiq-abort's Abort strikes inside a span and baggage of the actor's own: it is on the message's span,
        and nothing of it is current for the next one.
        """
        seen: list[Any] = []
        entered = threading.Event()

        def running(note: str) -> None:
            seen.append((get_current_span().get_span_context(), dict(baggage.get_all())))
            end = time.monotonic() + A_HANG
            with trace.get_tracer("t").start_as_current_span("inner"):
                while note == "aborted" and time.monotonic() < end:
                    entered.set()
                    time.sleep(0.001)

        run = actor(broker, running)
        with abortable(broker) as aborting, working(broker) as join:
            with attached(baggage.set_baggage("tenant", "42")):
                message = run.send("aborted")
            assert entered.wait(A_HANG)
            abort(message.message_id, aborting)
            join()
            run.send("next")
            join()
        first, second = consumers(captured_spans)
        assert first.status.status_code is StatusCode.ERROR
        assert first.attributes is not None
        assert first.attributes["error.type"] == "dramatiq_abort.abort_manager.Abort"
        assert second.status.status_code is StatusCode.UNSET
        assert [ids(span) for span, _ in seen] == [ids(first), ids(second)]
        assert [found for _, found in seen] == [{"tenant": "42"}, {}]
        assert [len(span.links) for span in (first, second)] == [1, 1]
        assert len(broker.dead_letters) == 1

    def test_a_coroutine_that_is_aborted_has_failed(
        self, captured_spans: CapturedSpans, broker: StubBroker
    ) -> None:
        """The Abort strikes in the thread that waits for it, the coroutine is cancelled on the loop's: neither has
        anything of it left for the next message.
        """
        seen: list[Any] = []
        entered = threading.Event()

        async def running(note: str) -> None:
            seen.append((get_current_span().get_span_context(), dict(baggage.get_all())))
            entered.set()
            await asyncio.sleep(A_HANG if note == "aborted" else 0)

        run = actor(broker, running)
        with abortable(broker) as aborting, working(broker) as join:
            with attached(baggage.set_baggage("tenant", "42")):
                message = run.send("aborted")
            assert entered.wait(A_HANG)
            abort(message.message_id, aborting)
            join()
            run.send("next")
            join()
        first, second = consumers(captured_spans)
        assert first.attributes is not None
        assert first.attributes["error.type"] == "dramatiq_abort.abort_manager.Abort"
        assert second.status.status_code is StatusCode.UNSET
        assert [ids(span) for span, _ in seen] == [ids(first), ids(second)]
        assert [found for _, found in seen] == [{"tenant": "42"}, {}]

    def test_an_interrupt_behind_the_actor_ends_the_span_once(
        self, captured_spans: CapturedSpans, broker: StubBroker
    ) -> None:
        """In the after hooks Dramatiq tells the end of a message twice: one span, with the interrupt on it."""

        class Interrupting(Middleware):
            def after_process_message(
                self, broker: Any, message: Any, *, result: Any = None, exception: Any = None
            ) -> None:
                if exception is None:
                    raise Interrupt

        broker.add_middleware(Interrupting())
        actor(broker).send()
        consume(broker)
        span = only(captured_spans, SpanKind.CONSUMER)
        assert span.attributes["error.type"].endswith("threading.Interrupt")

    def test_what_ends_a_worker_s_thread_is_on_the_span(
        self, captured_spans: CapturedSpans, broker: StubBroker
    ) -> None:
        """An exception that process_message itself lets out goes on, and nothing stays current."""
        thread: Any = SimpleNamespace(broker=broker)
        message = _delivered("orders", "work")

        def process(message: Any) -> None:
            raise KeyboardInterrupt

        before = context.get_current()
        hooks = performing.PerformingHooks(engine_for())
        with pytest.raises(KeyboardInterrupt):
            hooks.process_message(process, thread, (message,), {})
        assert context.get_current() is before
        assert only(captured_spans, SpanKind.CONSUMER).attributes["error.type"] == "KeyboardInterrupt"

    def test_a_fault_of_ours_lets_a_message_be_processed(
        self, broker: StubBroker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Untraced; the log says so."""
        monkeypatch.setattr(guard, "raise_faults", False)
        monkeypatch.setattr(guard, "_logged", {})
        monkeypatch.setattr(performing, "_Performance", _broken)
        done: list[str] = []
        actor(broker, lambda it: done.append(it)).send("hello")
        consume(broker)
        assert done == ["hello"]
        assert "preparing the processing of a message" in caplog.text

    def test_settlements_are_children_of_the_message_s_span(
        self, api: Api, captured_spans: CapturedSpans
    ) -> None:
        """Settings(settle_spans=True): an ack, a nack; that of a delayed message which is due is Dramatiq's own."""
        broker = make_broker()
        with traced(broker, api, Settings(settle_spans=True)):
            actor(broker).send_with_options(delay=10)
            actor(broker, fail, actor_name="failing").send()
            consume(broker)
        settled = captured_spans.kind(SpanKind.CLIENT)
        assert sorted(span.name for span in settled) == ["ack orders", "nack orders"]
        assert {parent(span) for span in settled} == {ids(span) for span in consumers(captured_spans)}

    def test_what_a_middleware_sends_about_a_delayed_message_is_a_publish(
        self, captured_spans: CapturedSpans, broker: StubBroker
    ) -> None:
        """While Dramatiq enqueues what is due: only that very message is no publish."""
        audit = actor(broker, actor_name="audit")

        class Auditing(Middleware):
            def before_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
                if delay is None and message.actor_name == "work":
                    audit.send("due")

            def before_ack(self, broker: Any, message: Any) -> None:
                if message.queue_name.endswith(".DQ"):
                    audit.send("handed over")

        broker.add_middleware(Auditing())
        actor(broker).send_with_options(delay=10)
        consume(broker)
        assert len(producers(captured_spans)) == len(consumers(captured_spans)) == 3
        assert_no_orphans(captured_spans)


class TestComposition:
    def test_a_pipeline_built_outside_of_the_span_that_runs_it(
        self, captured_spans: CapturedSpans, broker: StubBroker
    ) -> None:
        """At import time, say: its first message is in the trace that runs it, each next one in the last one's span."""
        add = actor(broker, lambda x, y: x + y, store_results=True)
        pipe = add.message(1, 2) | add.message(3) | add.message(4)
        with trace.get_tracer("t").start_as_current_span("request") as request:
            pipe.run()
        consume(broker)
        sent, processed = producers(captured_spans), consumers(captured_spans)
        assert [parent(span) for span in sent] == [ids(request), ids(processed[0]), ids(processed[1])]
        assert [parent(span) for span in processed] == [ids(span) for span in sent]
        assert pipe.get_result() == 10
        assert_no_orphans(captured_spans)

    def test_a_pipeline_built_inside_a_span_that_is_over(
        self, captured_spans: CapturedSpans, broker: StubBroker
    ) -> None:
        """It is sent where it is run: nothing of the span that it was built in is on it."""
        add = actor(broker, lambda *args: None)
        with trace.get_tracer("t").start_as_current_span("import") as building:
            pipe = add.message(1) | add.message(2)
        pipe.run()
        consume(broker)
        assert building.get_span_context().trace_id not in {
            ids(span)[0] for span in producers(captured_spans)
        }
        assert len({ids(span)[0] for span in consumers(captured_spans)}) == 1

    def test_a_delay_within_a_pipeline(self, captured_spans: CapturedSpans, broker: StubBroker) -> None:
        """The next message's own delay is told on its spans."""
        add = actor(broker, lambda *args: None)
        (add.message(1) | add.message_with_options(args=(2,), delay=20)).run()
        consume(broker)
        second = consumers(captured_spans)[1]
        assert second.attributes is not None
        assert second.attributes["queueprop.message.delay"] == 0.02
        assert_no_orphans(captured_spans)

    def test_a_group_and_its_callback(self, captured_spans: CapturedSpans, broker: StubBroker) -> None:
        """Each message in the trace that runs the group; its completion callback in the last one's span."""
        done: list[str] = []
        each, callback = actor(broker), actor(broker, lambda it: done.append(it), actor_name="callback")
        group = dramatiq.group([each.message(), each.message() | each.message()], broker=broker)
        group.add_completion_callback(callback.message("done"))
        with trace.get_tracer("t").start_as_current_span("request") as request:
            group.run()
        consume(broker)
        assert done == ["done"]
        assert {ids(span)[0] for span in captured_spans} == {ids(request)[0]}
        last = producers(captured_spans)[-1]
        assert last.attributes is not None
        assert parent(last) in {ids(span) for span in consumers(captured_spans)}
        assert len(consumers(captured_spans)) == 4
        assert_no_orphans(captured_spans)

    @pytest.mark.parametrize("outcome", ["success", "failure"])
    def test_callbacks_of_an_actor_are_inside_its_span(
        self, captured_spans: CapturedSpans, broker: StubBroker, outcome: str
    ) -> None:
        """on_success and on_failure are sent in the message's span, and given what they are given without us."""
        given: list[Any] = []
        told = actor(broker, lambda data, result: given.append(result), actor_name="told")
        function = fail if outcome == "failure" else lambda: 7
        actor(broker, function, store_results=True).send_with_options(**{f"on_{outcome}": told})
        consume(broker)
        assert given == [7 if outcome == "success" else {"type": "ValueError", "message": "gave up"}]
        first, second = consumers(captured_spans)
        assert parent(producers(captured_spans)[1]) == ids(first)
        assert parent(second) == ids(producers(captured_spans)[1])
        assert_no_orphans(captured_spans)

    def test_results_are_those_of_the_message(
        self, captured_spans: CapturedSpans, broker: StubBroker
    ) -> None:
        """Found by the message that the caller has, and by the one that was given back."""
        doubled = actor(broker, lambda x: 2 * x, store_results=True)
        message = doubled.message(3)
        sent = broker.enqueue(message)
        consume(broker)
        backend = broker.get_results_backend()
        assert message.get_result(backend=backend) == sent.get_result(backend=backend) == 6

    def test_a_rate_limit_is_a_failed_attempt(
        self, captured_spans: CapturedSpans, broker: StubBroker
    ) -> None:
        """What the limiter turned away is retried: an attempt with an error, in the same trace."""
        limiter = ConcurrentRateLimiter(StubRateLimiterBackend(), "one-at-a-time", limit=1)
        held = limiter.acquire()
        held.__enter__()
        done: list[str] = []

        def limited() -> None:
            try:
                with limiter.acquire():
                    done.append("done")
            except RateLimitExceeded:
                held.__exit__(None, None, None)
                raise

        actor(broker, limited, max_retries=1).send()
        consume(broker)
        assert done == ["done"]
        first, second = consumers(captured_spans)
        assert first.attributes is not None
        assert first.attributes["error.type"] == "dramatiq.errors.RateLimitExceeded"
        assert second.status.status_code is StatusCode.UNSET
        assert_no_orphans(captured_spans)

    def test_actors_that_are_coroutines_run_inside_their_span(
        self, captured_spans: CapturedSpans, broker: StubBroker
    ) -> None:
        """On the event loop of another thread; what they send is inside as well."""
        seen: list[Any] = []

        async def first() -> None:
            seen.append(get_current_span().get_span_context())
            second.send()

        async def last() -> None:
            seen.append(get_current_span().get_span_context())

        second = actor(broker, last, actor_name="second")
        actor(broker, first).send()
        consume(broker)
        assert [ids(it) for it in seen] == [ids(span) for span in consumers(captured_spans)]
        assert parent(producers(captured_spans)[1]) == ids(consumers(captured_spans)[0])
        assert_no_orphans(captured_spans)

    def test_generic_actors_are_named_by_their_class(
        self, captured_spans: CapturedSpans, broker: StubBroker
    ) -> None:
        """A class-based actor is traced, its options work, and its class is told."""
        chosen: Any = broker

        class Base(dramatiq.GenericActor):
            class Meta:
                abstract = True
                broker = chosen
                queue_name = "orders"
                max_retries = 0

        class Generic(Base):
            def perform(self, number: int) -> None:
                assert number == 7

        generic: Any = Generic
        generic.send(7)
        consume(broker)
        consumer = only(captured_spans, SpanKind.CONSUMER)
        assert consumer.status.status_code is StatusCode.UNSET
        assert consumer.attributes["code.function.name"].endswith(".Generic")


def _failures(broker: StubBroker, options: dict[str, Any]) -> tuple[list[str], int]:
    """What was called for a message with these options, and how many dead letters there are then."""
    calls: list[str] = []

    def failing() -> None:
        calls.append("failed")
        raise ValueError("gave up")

    actor(broker, lambda *given: calls.append("told"), actor_name="told")
    actor(broker, failing, max_retries=2).send_with_options(**options)
    consume(broker)
    return sorted(calls), len(broker.dead_letters)


class Deciding(Middleware):
    """Decides about messages before they are processed."""

    def __init__(self, decide: Callable[[Any], object]) -> None:
        self._decide = decide

    def before_process_message(self, broker: Any, message: Any) -> None:
        self._decide(message)


@contextmanager
def abortable(broker: Any) -> Iterator[Abortable]:
    """Messages can be aborted. Its thread watches for ever, so it is told to sleep in the end."""
    middleware = Abortable(backend=StubAbortBackend())
    middleware.wait_timeout = 5
    broker.add_middleware(middleware)
    try:
        yield middleware
    finally:
        middleware.wait_timeout = 86_400_000


def _skip() -> None:
    raise SkipMessage("not today")


def _delivered(queue: str, name: str) -> Any:
    return dramatiq.MessageProxy(dramatiq.Message(queue, name, (), {}, {}))


@contextmanager
def attached(values: context.Context) -> Iterator[None]:
    token = context.attach(values)
    try:
        yield
    finally:
        context.detach(token)


class TestChannelsOfPika:
    """What Dramatiq's broker for RabbitMQ sends through pika is one publish, and Dramatiq's."""

    @pytest.fixture
    def channels(self) -> Iterator[tuple[Any, Any, list[Any]]]:
        """A BlockingChannel, the Channel below it, and what goes out, under pika's instrumentor."""
        sent: list[Any] = []
        connection: Any = SimpleNamespace(
            params=SimpleNamespace(host="rabbit.example", port=5672, frame_max=131_072),
            callbacks=SimpleNamespace(add=lambda *_, **__: None, remove=lambda *_, **__: None),
            _send_method=lambda number, method, content=None: sent.append(content),
        )
        below = Channel(connection, 1, None)
        below._set_state(Channel.OPEN)
        facade: Any = BlockingChannel(below, SimpleNamespace(_flush_output=lambda *_, **__: None))
        below._set_cookie(facade)
        instrumentor = pika_adapter.PikaInstrumentor()
        instrumentor.instrument()
        yield facade, below, sent
        instrumentor.uninstrument()

    def test_a_channel_that_is_spoken_for_is_left_alone(
        self, captured_spans: CapturedSpans, channels: tuple[Any, Any, list[Any]]
    ) -> None:
        """No span and no header, of the facade or of the channel below it; of another channel as ever."""
        facade, _, sent = channels
        with speaking_for({facade}):
            facade.basic_publish("", "orders", b"hello", pika.BasicProperties())
        assert (list(captured_spans), sent[-1][0].headers) == ([], None)
        with speaking_for({object()}):
            facade.basic_publish("", "orders", b"hello", pika.BasicProperties())
        assert len(captured_spans) == 1
        assert "traceparent" in sent[-1][0].headers

    def test_a_loop_over_such_a_channel_is_pika_s_own(self, channels: tuple[Any, Any, list[Any]]) -> None:
        """consume() gives what it gives without us, and is traced again elsewhere."""
        facade, _, _ = channels
        with speaking_for(Everything()):
            assert not isinstance(facade.consume("orders"), GeneratorMessages)
        loop = facade.consume("orders")
        assert isinstance(loop, GeneratorMessages)
        with contextlib.suppress(Exception):
            loop.close()

    def test_a_broker_speaks_for_its_channels(self, api: Api, captured_spans: CapturedSpans) -> None:
        """Those that it enqueues by, and no others; and all that it opens for a consumer."""
        silent: list[bool] = []
        ours, other = object(), object()

        class Speaking(StubBroker):
            channels = frozenset([ours])

            def enqueue(self, message: Any, *, delay: Any = None) -> Any:
                silent.extend(map(is_spoken_for, (ours, other)))
                return super().enqueue(message, delay=delay)

            def consume(self, *args: Any, **kwargs: Any) -> Any:
                silent.append(is_spoken_for(other))
                return super().consume(*args, **kwargs)

        broker = Speaking()
        with traced(broker, api):
            actor(broker).send()
            broker.consume("orders")
        assert silent == [True, False, True]
        assert not is_spoken_for(ours)


class TestProcesses:
    def test_children_of_multiprocessing_flush_at_their_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Registered for children that fork, and at once in a child that was spawned; by both APIs."""
        registered: list[Any] = []
        monkeypatch.setattr(
            multiprocessing.util, "Finalize", lambda *args, **kwargs: registered.append((args, kwargs))
        )
        monkeypatch.setattr(multiprocessing, "parent_process", lambda: object())
        settings = Settings(flush_timeout=1.5)
        adapter.QueuepropMiddleware(settings)
        with traced(None, "instrumentor", settings):
            pass
        assert registered == [((None, flush, (1.5,)), {"exitpriority": -900})] * 2

    def test_a_launcher_is_found_by_spawned_workers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Under opentelemetry-instrument, whose folder is no longer in PYTHONPATH, the command line puts it back."""
        launcher: Any = SimpleNamespace(__file__="/launcher/__init__.py")
        monkeypatch.setitem(sys.modules, AUTO_INSTRUMENTATION, launcher)
        cli: Any = importlib.import_module("dramatiq.cli")
        monkeypatch.setattr(cli, "main", lambda: os.environ["PYTHONPATH"])
        monkeypatch.setenv("PYTHONPATH", "/mine")
        monkeypatch.setenv("_QUEUEPROP_SAID", "")
        with traced(None, "instrumentor"):
            assert cli.main() == os.pathsep.join(["/launcher", "/mine"])
            assert cli.main() == os.pathsep.join(["/launcher", "/mine"])

    def test_spawned_workers_do_not_say_again_what_was_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Under opentelemetry-instrument they find out the same at their start as the command line has."""
        launcher: Any = SimpleNamespace(__file__="/launcher/__init__.py")
        monkeypatch.setitem(sys.modules, AUTO_INSTRUMENTATION, launcher)
        monkeypatch.setattr(guard, "_logged", {})
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        monkeypatch.setenv("_QUEUEPROP_SAID", "")
        program = (
            "from queueprop import guard; guard.mistake('starting', 'no'); guard.mistake('working', 'no')"
        )

        def main() -> str:
            worker = [sys.executable, "-c", program]
            return subprocess.run(worker, capture_output=True, text=True, check=True, timeout=60).stderr

        cli: Any = importlib.import_module("dramatiq.cli")
        monkeypatch.setattr(cli, "main", main)
        guard.mistake("starting", "no")
        with traced(None, "instrumentor"):
            assert cli.main() == "queueprop, working: no\n"


def test_the_extra_is_named_when_dramatiq_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that says what to install; another module that is missing is not mistaken for it."""
    name = "queueprop.adapters.dramatiq"
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "dramatiq", None)
    with pytest.raises(MissingExtra, match=r'pip install "queueprop\[dramatiq\]"'):
        importlib.import_module(name)
    monkeypatch.undo()
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "dramatiq")
    monkeypatch.setitem(sys.modules, "dramatiq.broker", None)
    with pytest.raises(ModuleNotFoundError) as raised:
        importlib.import_module(name)
    assert not isinstance(raised.value, MissingExtra)
