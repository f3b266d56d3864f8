"""The Celery adapter without a server: real applications on kombu's memory transport, whose messages are executed here.

A message is taken as a worker's consumer takes it, and executed by Celery's own request, in this thread.
"""

from __future__ import annotations

import functools
import inspect
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MappingProxyType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, Mock

import pytest

pytest.importorskip("celery")

import celery
import kombu
from billiard.einfo import ExceptionInfo
from billiard.exceptions import SoftTimeLimitExceeded, Terminated, TimeLimitExceeded, WorkerLostError
from celery import Celery, chain, group, signals
from celery.exceptions import Ignore, Reject
from celery.worker.consumer.consumer import Consumer
from celery.worker.request import Request
from celery.worker.strategy import proto1_to_proto2
from kombu import Connection
from kombu.exceptions import OperationalError
from kombu.transport import memory
from opentelemetry import baggage
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

from queueprop import Settings, guard
from queueprop.adapters import celery as adapter
from queueprop.adapters import kombu as kombu_adapter
from queueprop.adapters.celery import hooks, joining, ledger, messages, performing
from queueprop.kit.libraries import MissingExtra
from queueprop.testing import CapturedSpans
from tests.telemetry import (
    CREATION,
    TRACE,
    TRACEPARENT,
    Telemetry,
    attributes,
    baggage_of_ours,
    current_ids,
    ids,
    links,
    parent,
    written,
)

FAILS_WITHOUT_A_TIME = celery.__version__ >= "5.7"
"""Whether a task whose ``eta`` is no time is not executed."""


@pytest.fixture
def telemetry(captured_spans: CapturedSpans) -> Telemetry:
    return Telemetry(captured_spans)


class Shop:
    """An application, and a worker of its own that executes what waits."""

    def __init__(self, **conf: Any) -> None:
        memory.Channel.queues.clear()
        self.app: Any = Celery("shop", broker="memory://", backend="cache+memory://", set_as_current=False)
        self.app.conf.update(conf)
        self.seen: list[Any] = []
        task = self.app.task

        @task(name="note", shared=False)  # type: ignore[untyped-decorator]
        def note(value: Any = None) -> Any:
            self.seen.append(current_ids())
            return value

        self.note: Any = note

    def task(self, function: Callable[..., Any], **options: Any) -> Any:
        if function.__name__ == "<lambda>":
            function.__name__ = "work"
        return self.app.task(function, shared=False, name=function.__name__, **options)

    @property
    def waiting(self) -> list[Any]:
        """The messages that wait, as their headers."""
        found = []
        for queue in memory.Channel.queues.values():
            found += [payload["headers"] for payload in list(queue.queue)]
        return found

    def take(self, queue: str = "celery") -> Any:
        with Connection("memory://") as connection, connection.channel() as channel:
            return self.app.amqp.queues[queue].bind(channel).get()

    def request(self, message: Any = None) -> Any:
        message = self.take() if message is None else message
        if "task" in message.headers:
            return Request(message, app=self.app)
        body, headers, decoded, utc = proto1_to_proto2(message, message.payload)
        return Request(message, app=self.app, body=body, headers=headers, decoded=decoded, utc=utc)

    def work(self) -> None:
        """Executes what waits, and what that leads to."""
        while any(queue.qsize() for name, queue in memory.Channel.queues.items() if name == "celery"):
            self.request().execute()


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
def traced(telemetry: Telemetry) -> Iterator[Telemetry]:
    """The instrumentor is on."""
    adapter.CeleryInstrumentor().instrument(settings=telemetry.settings())
    yield telemetry
    adapter.CeleryInstrumentor().uninstrument()


def of(telemetry: Telemetry, kind: SpanKind) -> list[ReadableSpan]:
    return [span for span in telemetry.spans if span.kind is kind]


def producers(telemetry: Telemetry) -> list[ReadableSpan]:
    return of(telemetry, SpanKind.PRODUCER)


def consumers(telemetry: Telemetry) -> list[ReadableSpan]:
    return of(telemetry, SpanKind.CONSUMER)


def by_start(spans: list[ReadableSpan]) -> list[ReadableSpan]:
    return sorted(spans, key=lambda span: span.start_time or 0)


def error_of(span: ReadableSpan) -> Any:
    return span.status.status_code, attributes(span).get("error.type")


class TestPublishing:
    def test_flat_headers_of_text(self, shop: Shop, traced: Telemetry) -> None:
        """The context lies beside Celery's own headers, with the moment of sending."""
        with traced.current() as ambient, baggage_of_ours(tenant="42"):
            shop.note.delay()
        (headers,) = shop.waiting
        (producer,) = producers(traced)
        assert written(headers) == ids(producer)
        assert producer.context.trace_id == ids(ambient)[0]  # type: ignore[index]
        assert headers["baggage"] == "tenant=42"
        assert float(headers["queueprop-sent-at"]) > 1e9

    @pytest.mark.parametrize("protocol", [1, 2])
    def test_both_protocols_carry_a_context(self, traced: Telemetry, protocol: int) -> None:
        """Also the first, whose headers Celery leaves empty."""
        shop = Shop(task_protocol=protocol)
        shop.note.delay()
        shop.work()
        (producer,), (consumer,) = producers(traced), consumers(traced)
        assert parent(consumer) == ids(producer) == links(consumer)[0]
        assert shop.seen == [ids(consumer)]
        found = attributes(consumer)
        assert found["celery.task.name"] == "note"
        assert found["messaging.message.id"] == attributes(producer)["messaging.message.id"]

    @pytest.mark.parametrize(
        "headers",
        [None, {}, {"tenant": "a"}, MappingProxyType({"tenant": "a"}), {"headers": {"sentry-trace": "1"}}],
        ids=["None", "empty", "a dict", "read-only", "nested"],
    )
    def test_headers_of_the_caller_go_out_beside_ours_and_stay(
        self, shop: Shop, traced: Telemetry, headers: Any
    ) -> None:
        """What is given is copied; nested ones (Sentry's) survive."""
        before = dict(headers or {})
        shop.note.apply_async(headers=headers)
        assert dict(headers or {}) == before
        (sent,) = shop.waiting
        assert {name: sent[name] for name in before} == before
        assert written(sent) == ids(producers(traced)[0])

    def test_a_name_that_is_not_registered_here(self, shop: Shop, traced: Telemetry) -> None:
        """``send_task``: its PRODUCER span ends in order, and nothing stays current."""
        shop.app.send_task("elsewhere.task")
        (producer,) = producers(traced)
        assert attributes(producer)["celery.task.name"] == "elsewhere.task"
        assert "code.function.name" not in attributes(producer)
        assert current_ids() is None

    def test_a_publish_that_fails_is_an_error_and_leaves_nothing_current(
        self, shop: Shop, traced: Telemetry
    ) -> None:
        """The span is over, and the next publish is no child of it."""
        with pytest.raises(Exception) as raised:  # noqa: PT011 - of kombu, in each version another one
            shop.note.delay(object())
        (producer,) = producers(traced)
        assert producer.status.status_code is StatusCode.ERROR
        assert raised.type.__qualname__ in str(attributes(producer)["error.type"])
        assert current_ids() is None

    def test_a_publish_that_fails_before_there_is_a_message(
        self, shop: Shop, traced: Telemetry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In the result backend, for which no signal of Celery's tells: one PRODUCER span, with ERROR."""

        def refuse(*args: Any) -> None:
            raise OperationalError("no backend")

        monkeypatch.setattr(shop.app.backend, "on_task_call", refuse)
        with pytest.raises(OperationalError), traced.current() as ambient:
            shop.note.apply_async(task_id="7")
        (producer,) = producers(traced)
        assert error_of(producer) == (StatusCode.ERROR, "kombu.exceptions.OperationalError")
        assert parent(producer) == ids(ambient)
        assert attributes(producer)["messaging.message.id"] == "7"
        assert producer.name == "publish celery"

    def test_a_task_that_could_not_be_sent_is_known_by_its_place_as_well(
        self, shop: Shop, traced: Telemetry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """``send_task`` takes its id and its root's by place."""
        monkeypatch.setattr(
            shop.app.backend, "on_task_call", MagicMock(side_effect=OperationalError("no backend"))
        )
        to_retries, to_root = [None] * 11, [None] * 4
        with pytest.raises(OperationalError):
            shop.app.send_task("note", (), {}, None, None, "7", *to_retries, 0, *to_root, "root")
        (producer,) = producers(traced)
        assert attributes(producer)["messaging.message.id"] == "7"
        assert attributes(producer)["messaging.message.conversation_id"] == "root"

    def test_suppressed_nothing_is_written(self, shop: Shop, traced: Telemetry) -> None:
        """``suppress_instrumentation()``: no span and no header."""
        with suppress_instrumentation():
            shop.note.delay()
        (headers,) = shop.waiting
        assert not {"traceparent", "queueprop-sent-at"} & headers.keys()
        assert producers(traced) == []

    def test_a_double_of_the_sender_is_left_as_it_is(self, shop: Shop, traced: Telemetry) -> None:
        """A program's tests put a mock in the place of ``app.amqp``, and ask it afterwards what it was called with."""
        double = MagicMock()
        shop.app.amqp = double
        sender = double.send_task_message
        shop.app.send_task("note", args=(1,))
        assert double.send_task_message is sender
        sender.assert_called_once()

    def test_a_group_is_as_many_publishes(self, shop: Shop, traced: Telemetry) -> None:
        """Each with a PRODUCER span and a context of its own."""
        group([shop.note.s(1), shop.note.s(2)], app=shop.app).apply_async()
        assert [written(headers) for headers in shop.waiting] == [ids(span) for span in producers(traced)]

    def test_what_a_route_sends_takes_nothing_from_the_task_that_is_routed(
        self, shop: Shop, traced: Telemetry
    ) -> None:
        """A function of ``task_routes`` sends another task: each has a PRODUCER span, and its own context."""

        def route(name: str, *args: Any, **_: Any) -> None:
            if name == "work":
                shop.app.send_task("audit")

        shop.app.conf.task_routes = (route,)
        shop.app.send_task("work")
        assert [headers["task"] for headers in shop.waiting] == ["audit", "work"]
        assert [written(headers) for headers in shop.waiting] == [ids(span) for span in producers(traced)]

    def test_a_forwarded_task_carries_the_new_context_alone(self, shop: Shop, traced: Telemetry) -> None:
        """``apply_async(headers=self.request.headers)`` in a task."""
        forward = shop.task(
            lambda task: shop.app.tasks["note"].apply_async(headers=task.request.headers), bind=True
        )
        forward.delay()
        shop.work()
        first, second = producers(traced)
        forwarding, forwarded = by_start(consumers(traced))
        assert parent(second) == ids(forwarding)
        assert parent(forwarded) == ids(second)
        assert links(second) == []
        assert first.context.trace_id == second.context.trace_id

    @pytest.mark.parametrize(
        ("options", "name"),
        [
            ({"queue": "mails"}, "mails"),
            ({"exchange": "media", "routing_key": "mail.send"}, "mail.send"),
            ({"countdown": 5}, "celery"),
        ],
    )
    def test_the_destination_is_the_queue(
        self, shop: Shop, traced: Telemetry, options: dict[str, Any], name: str
    ) -> None:
        """Or the routing key, where the queue is not known; the delay that was asked for is told."""
        began = time.time()
        shop.note.apply_async(**options)
        (producer,) = producers(traced)
        assert producer.name == f"publish {name}"
        delay: Any = attributes(producer).get("queueprop.message.delay")
        assert delay is None if "countdown" not in options else 5 - (time.time() - began) - 0.01 <= delay <= 5

    def test_the_queue_behind_the_exchange_of_native_delays(self, shop: Shop) -> None:
        """What waits in RabbitMQ's delay exchanges is on its way to the queue that was asked for."""
        key = ".".join("0" * 28) + ".mails"
        found = messages.consumed_from(
            shop.app, {"delivery_info": {"exchange": "celery_delayed_27", "routing_key": key}}
        )
        assert found.name == "mails"

    def test_a_baggage_that_has_no_room_stays_here(
        self, shop: Shop, traced: Telemetry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A message that would fit into a frame without our headers must still be sent."""
        monkeypatch.setattr("queueprop.kit.kombu.frame_max_of", lambda client: 6000)
        rabbit = ("rabbitmq", "rabbit.example", 5672)
        monkeypatch.setattr("queueprop.adapters.celery.publishing.broker_of", lambda client: rabbit)
        with baggage_of_ours(long="x" * 5000):
            shop.note.delay()
        (headers,) = shop.waiting
        assert "baggage" not in headers
        assert written(headers) == ids(producers(traced)[0])


class Session:
    """A batch of kombu's, as the Redis transport makes it."""

    def __init__(self, channel: Any, max_size: int) -> None:
        self.channel = channel
        self.max_size = max_size
        self.sent: list[Any] = []
        self.waiting: list[Any] = []
        self.failure: Exception | None = None

    @property
    def _buffered(self) -> int:
        return len(self.waiting)

    def publish(self, message: Any, **options: Any) -> None:
        self.waiting.append(message)
        if len(self.waiting) == self.max_size:
            self.flush()

    def flush(self) -> None:
        if self.failure is not None:
            raise self.failure
        self.sent += self.waiting
        self.waiting = []

    def discard(self) -> None:
        self.waiting = []

    close = discard


@pytest.mark.skipif(not hasattr(kombu.Producer, "batch"), reason="Producer.batch() came with kombu 5.7")
class TestBatches:
    """Tasks that are sent inside ``with producer.batch():`` by that producer."""

    @pytest.fixture(params=[False, True], ids=["Celery's adapter", "and kombu's"])
    def producer(self, shop: Shop, traced: Telemetry, request: pytest.FixtureRequest) -> Iterator[Any]:
        sessions: list[Session] = []

        def create(max_size: int) -> Session:
            sessions.append(Session(producer.channel, max_size))
            return sessions[-1]

        if request.param:
            kombu_adapter.KombuInstrumentor().instrument(settings=traced.settings())
        with shop.app.producer_pool.acquire(block=True) as producer:
            producer.channel.create_publish_batch = create
            producer.sessions = sessions
            yield producer
            del producer.channel.create_publish_batch, producer.sessions
        if request.param:
            kombu_adapter.KombuInstrumentor().uninstrument()

    def test_spans_end_with_the_flush(self, shop: Shop, traced: Telemetry, producer: Any) -> None:
        """Each task has a context of its own, in a PRODUCER span that is open until the batch has gone out."""
        with producer.batch(max_size=2):
            shop.note.apply_async(producer=producer)
            assert list(traced.spans) == []
            assert current_ids() is None
            shop.note.apply_async(producer=producer)
            assert len(producers(traced)) == 2
            shop.note.apply_async(producer=producer)
            assert len(producers(traced)) == 2
        (session,) = producer.sessions
        assert [written(message["headers"]) for message in session.sent] == [
            ids(span) for span in by_start(producers(traced))
        ]
        assert {span.status.status_code for span in traced.spans} == {StatusCode.UNSET}

    def test_what_was_not_sent_says_so(self, shop: Shop, traced: Telemetry, producer: Any) -> None:
        """A batch that is given up, and one that the broker did not take: of each task the error."""
        with pytest.raises(LookupError), producer.batch():  # noqa: PT012
            shop.note.apply_async(producer=producer)
            raise LookupError("no such order")
        with pytest.raises(ConnectionError), producer.batch():  # noqa: PT012
            shop.note.apply_async(producer=producer)
            shop.note.apply_async(producer=producer)
            producer.sessions[-1].failure = ConnectionError("gone")
        assert [error_of(span) for span in producers(traced)] == [
            (StatusCode.ERROR, "LookupError"),
            (StatusCode.ERROR, "ConnectionError"),
            (StatusCode.ERROR, "ConnectionError"),
        ]


class TestExecuting:
    def test_signals_and_what_follows_are_inside(self, shop: Shop, traced: Telemetry) -> None:
        """Receivers of ``task_prerun`` that were there before, of ``task_postrun``, ``after_return`` see the span."""
        seen: list[Any] = []

        def note(**_: Any) -> None:
            seen.append(current_ids())

        class Base(shop.app.Task):  # type: ignore[misc, name-defined]
            def after_return(self, *args: Any) -> None:
                seen.append(current_ids())

        work = shop.task(lambda: None, base=Base)
        for sent in (signals.task_prerun, signals.task_postrun):
            sent.connect(note)
        try:
            work.delay()
            shop.work()
        finally:
            for sent in (signals.task_prerun, signals.task_postrun):
                sent.disconnect(note)
        assert seen == [ids(consumers(traced)[0])] * 3
        assert current_ids() is None

    def test_without_a_context_it_is_a_root_also_inside_a_span(
        self, shop: Shop, telemetry: Telemetry
    ) -> None:
        """The solo pool may run inside a span: that is linked, and never the parent; counted as missing."""
        shop.note.delay()
        adapter.CeleryInstrumentor().instrument(settings=telemetry.measured())
        try:
            with telemetry.current() as ambient:
                shop.work()
        finally:
            adapter.CeleryInstrumentor().uninstrument()
        (consumer,) = consumers(telemetry)
        assert parent(consumer) is None
        assert consumer.context.trace_id != ids(ambient)[0]  # type: ignore[index]
        (point,) = telemetry.points("queueprop.context.missing")
        assert point.attributes["queueprop.reason"] == "missing"

    def test_link_mode_keeps_the_baggage(self, shop: Shop, telemetry: Telemetry) -> None:
        """``Settings(propagation="link")``: a root that is linked, and the handler reads the baggage."""
        read: list[Any] = []
        look = shop.task(lambda: read.append(baggage.get_baggage("tenant")))
        adapter.CeleryInstrumentor().instrument(settings=telemetry.settings(propagation="link"))
        try:
            with baggage_of_ours(tenant="42"):
                look.delay()
            shop.work()
        finally:
            adapter.CeleryInstrumentor().uninstrument()
        (consumer,), (producer,) = consumers(telemetry), producers(telemetry)
        assert parent(consumer) is None
        assert links(consumer) == [ids(producer)]
        assert read == ["42"]

    @pytest.mark.parametrize(
        ("error", "told"),
        [
            (ValueError("no"), (StatusCode.ERROR, "ValueError")),
            (Ignore(), (StatusCode.UNSET, None)),
            (Reject("no", requeue=True), (StatusCode.UNSET, None)),
            (Reject("no", requeue=False), (StatusCode.ERROR, "celery.exceptions.Reject")),
            (Reject(KeyError("k"), requeue=False), (StatusCode.ERROR, "KeyError")),
            (IndexError("expected"), (StatusCode.UNSET, None)),
        ],
        ids=["an exception", "Ignore", "put back", "rejected", "rejected for a reason", "one of task.throws"],
    )
    def test_how_a_task_ends(self, shop: Shop, traced: Telemetry, error: Any, told: Any) -> None:
        """What Celery itself takes for no failure is none on the span."""

        def work() -> None:
            raise error

        shop.task(work, throws=(IndexError,)).delay()
        shop.work()
        (consumer,) = consumers(traced)
        assert error_of(consumer) == told

    def test_retries_are_siblings_and_no_publishes(self, shop: Shop, traced: Telemetry) -> None:
        """However many: children of the one PRODUCER span, with their number and their cause."""

        def work(task: Any) -> None:
            if task.request.retries < 5:
                raise task.retry(countdown=0, exc=KeyError("k"))

        shop.task(work, bind=True, max_retries=9).delay()
        shop.work()
        (producer,) = producers(traced)
        found = consumers(traced)
        assert {parent(span) for span in found} == {ids(producer)}
        assert [attributes(span)["queueprop.message.delivery_attempt"] for span in found] == [
            1,
            2,
            3,
            4,
            5,
            6,
        ]
        assert [error_of(span) for span in found] == [(StatusCode.ERROR, "KeyError")] * 5 + [
            (StatusCode.UNSET, None)
        ]

    def test_a_retry_keeps_its_context_also_where_the_user_gives_headers(
        self, shop: Shop, traced: Telemetry
    ) -> None:
        """Their headers go out; and an old recipe of nested ``headers`` hides nothing from us."""

        def work(task: Any) -> None:
            if not task.request.retries:
                raise task.retry(countdown=0, headers={"tenant": "b", "traceparent": "theirs"})

        shop.task(work, bind=True).apply_async(headers={"headers": {"tenant": "a"}})
        shop.request().execute()
        (headers,) = shop.waiting
        (producer,) = producers(traced)
        assert written(headers) == ids(producer)
        assert headers["tenant"] == "b"

    def test_a_retry_of_a_task_without_a_context_begins_one(self, shop: Shop, traced: Telemetry) -> None:
        """Its PRODUCER span is inside the first attempt's, and the attempts behind it are its children."""

        def work(task: Any) -> None:
            if task.request.retries < 2:
                raise task.retry(countdown=0)

        task = shop.task(work, bind=True)
        with suppress_instrumentation():
            task.delay()
        shop.work()
        (producer,) = producers(traced)
        first, second, third = consumers(traced)
        assert parent(first) is None
        assert parent(producer) == ids(first)
        assert parent(second) == parent(third) == ids(producer)

    def test_what_replaces_a_task_is_sent_inside_it(self, shop: Shop, traced: Telemetry) -> None:
        """The same id and no retry: a publish."""
        shop.task(lambda task: task.replace(shop.note.s(1)), bind=True).delay()
        shop.work()
        outer, inner = by_start(consumers(traced))
        (_, second) = producers(traced)
        assert parent(second) == ids(outer)
        assert parent(inner) == ids(second)
        assert outer.status.status_code is StatusCode.UNSET

    def test_two_applications_in_one_trace(self, traced: Telemetry) -> None:
        """A task that sends to a second application."""
        shop = Shop()
        other: Any = Celery("other", broker="memory://", set_as_current=False)
        shop.task(lambda: other.send_task("elsewhere", queue="other")).delay()
        shop.work()
        (consumer,) = consumers(traced)
        _, second = producers(traced)
        assert parent(second) == ids(consumer)

    @pytest.mark.parametrize("junk", [7, "text", [1], {"traceparent": 7}, {"traceparent": ["a"]}, None])
    @pytest.mark.parametrize("protocol", [1, 2])
    def test_junk_in_headers(self, traced: Telemetry, junk: Any, protocol: int) -> None:
        """Whatever came where headers are: the task is executed once, its span is a root."""
        shop = Shop(task_protocol=protocol)
        with suppress_instrumentation():
            shop.note.delay()
        request = shop.request()
        request.request_dict["headers"] = junk
        request.request_dict.update({"retries": "many", "eta": 7, "queueprop-sent-at": "soon", "root_id": 3})
        request.execute()
        (consumer,) = consumers(traced)
        assert parent(consumer) is None
        assert len(shop.seen) == 1
        assert "queueprop.message.queue_time" not in attributes(consumer)

    def test_the_wait_that_was_asked_for_is_told_apart(self, shop: Shop, traced: Telemetry) -> None:
        """``countdown``: the delay is an attribute, and no time in the queue."""
        began = time.time()
        shop.note.apply_async(countdown=100)
        shop.work()
        found = attributes(consumers(traced)[0])
        assert 100 - (time.time() - began) - 0.01 <= found["queueprop.message.delay"] <= 100
        assert found["queueprop.message.queue_time"] == 0

    def test_the_root_s_id_is_the_conversation(self, shop: Shop, traced: Telemetry) -> None:
        """Of all tasks of a chain."""
        chain(shop.note.si(1), shop.note.si(2), app=shop.app).apply_async()
        shop.work()
        roots = {attributes(span)["messaging.message.conversation_id"] for span in traced.spans}
        assert roots == {attributes(producers(traced)[0])["messaging.message.id"]}
        assert {span.context.trace_id for span in traced.spans} == {producers(traced)[0].context.trace_id}

    def test_nothing_is_flushed_in_a_task(
        self, shop: Shop, traced: Telemetry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Under gevent that would hang, and elsewhere cost each task an export."""
        flushed: list[Any] = []
        for module in (performing, hooks):
            monkeypatch.setattr(module, "flush", flushed.append)
        shop.note.delay()
        shop.task(lambda: 1 / 0).delay()
        shop.work()
        assert len(consumers(traced)) == 2
        assert flushed == []

    def test_nothing_is_kept_behind_a_task(self, shop: Shop, traced: Telemetry) -> None:
        """After a thousand executions nothing of ours is on the task or beside it."""
        shop.note.delay()
        shop.work()
        before = set(vars(shop.note))
        for _ in range(200):
            shop.note.delay()
        shop.work()
        assert len(consumers(traced)) == 201
        assert set(vars(shop.note)) == before
        assert not performing.is_at_work()

    def test_a_child_that_the_task_forks_ends_nothing(self, shop: Shop, traced: Telemetry) -> None:
        """The span is the parent's."""

        def work() -> None:
            pid = os.fork()
            if pid:
                os.waitpid(pid, 0)

        read, write = os.pipe()
        shop.task(work).delay()
        pid = os.getpid()
        shop.work()
        if os.getpid() != pid:
            os.write(write, b"%d" % len(consumers(traced)))
            os._exit(0)
        assert os.read(read, 9) == b"0"
        assert len(consumers(traced)) == 1


class TestEager:
    def test_apply_is_a_child_of_what_is_current(self, shop: Shop, telemetry: Telemetry) -> None:
        """No message, so none is missing."""
        adapter.CeleryInstrumentor().instrument(settings=telemetry.measured())
        try:
            with telemetry.current() as ambient:
                assert shop.note.apply((3,)).get() == 3
        finally:
            adapter.CeleryInstrumentor().uninstrument()
        (consumer,) = consumers(telemetry)
        assert parent(consumer) == ids(ambient)
        assert consumer.name == "process celery"
        assert telemetry.points("queueprop.context.missing") == []

    def test_always_eager_has_a_publish_as_well(self, traced: Telemetry) -> None:
        """And an exception that comes out is the task's."""
        shop = Shop(task_always_eager=True, task_eager_propagates=True)
        shop.note.delay()
        (producer,), (consumer,) = producers(traced), consumers(traced)
        assert parent(consumer) == ids(producer)
        with pytest.raises(ZeroDivisionError):
            shop.task(lambda: 1 / 0).delay()
        assert error_of(consumers(traced)[1]) == (StatusCode.ERROR, "ZeroDivisionError")

    def test_a_retry_at_once_is_an_attempt(self, traced: Telemetry) -> None:
        """A span of its own, with its number, in the trace of its publish."""
        shop = Shop(task_always_eager=True)

        def work(task: Any) -> None:
            if not task.request.retries:
                raise task.retry(countdown=0)

        shop.task(work, bind=True).delay()
        (producer,) = producers(traced)
        assert [parent(span) for span in consumers(traced)] == [ids(producer)] * 2
        assert [attributes(span)["queueprop.message.delivery_attempt"] for span in consumers(traced)] == [
            1,
            2,
        ]

    @pytest.mark.parametrize("decorated", [False, True], ids=["the instrumentor", "and traced_consumer"])
    def test_what_replaces_a_task_at_once(self, shop: Shop, traced: Telemetry, decorated: bool) -> None:
        """It has the same id and no retry, perhaps the same name: a CONSUMER span of its own inside the other's."""

        def work(task: Any, left: int) -> Any:
            shop.seen.append(current_ids())
            return task.replace(task.s(left - 1)) if left else "done"

        if decorated:
            work = adapter.traced_consumer(settings=traced.settings())(work)
        assert shop.task(work, bind=True).apply((2,)).get() == "done"
        innermost, middle, outer = consumers(traced)
        assert [parent(it) for it in (innermost, middle, outer)] == [ids(middle), ids(outer), None]
        assert shop.seen == [ids(outer), ids(middle), ids(innermost)]

    def test_what_replaces_a_task_at_once_where_functions_alone_are_traced(
        self, shop: Shop, telemetry: Telemetry
    ) -> None:
        """By ``traced_consumer``, also twice around one of them: one span each."""
        decorate = adapter.traced_consumer(settings=telemetry.settings())

        def work(task: Any, left: int) -> Any:
            return task.replace(task.s(left - 1)) if left else "done"

        task = shop.task(decorate(decorate(work)), bind=True)
        assert task.apply((1,)).get() == "done"
        inner, outer = consumers(telemetry)
        assert parent(inner) == ids(outer)

    def test_executed_at_once_under_the_id_of_a_message_s(self, shop: Shop, traced: Telemetry) -> None:
        """``apply(task_id=self.request.id)`` in a worker: a span of its own."""
        shop.task(
            lambda task: shop.app.tasks["note"].apply(task_id=task.request.id) and None, bind=True
        ).delay()
        shop.work()
        inner, outer = consumers(traced)
        assert parent(inner) == ids(outer)
        assert shop.seen == [ids(inner)]

    def test_its_end_is_not_told_as_that_of_a_message_s(self, shop: Shop, traced: Telemetry) -> None:
        """Which is still being executed, and may yet be killed: then its span is the main process's."""
        told: list[bool] = []

        def watch(task: Any) -> None:
            with pytest.raises(ZeroDivisionError):
                failing.apply(task_id=task.request.id, throw=True)
            told.append(ledger.ledger.take(task.request.id))

        failing = shop.task(lambda: 1 / 0)
        shop.task(watch, bind=True).delay()
        shop.work()
        assert [error_of(span)[1] for span in consumers(traced)] == ["ZeroDivisionError", None]
        assert told == [False]


class TestMainProcess:
    """What a worker's main process does about tasks of which its children tell nothing."""

    @pytest.fixture
    def request_(self, shop: Shop, traced: Telemetry) -> Any:
        shop.note.delay()
        found = shop.request()
        found.time_start = 1e9
        return found

    def test_a_lost_child_s_span_is_made_here(self, shop: Shop, traced: Telemetry, request_: Any) -> None:
        """From when it began, with ERROR; what is published for it is inside."""
        request_.task.on_failure = lambda *args: None
        request_.on_failure(_info(WorkerLostError("gone")))
        (consumer,) = consumers(traced)
        assert error_of(consumer) == (StatusCode.ERROR, "billiard.exceptions.WorkerLostError")
        assert parent(consumer) == ids(producers(traced)[0])
        assert consumer.start_time == 1e18

    def test_what_the_child_has_told_is_not_told_again(
        self, shop: Shop, traced: Telemetry, request_: Any
    ) -> None:
        """Only the context is current, for what is published."""
        ledger.ledger.note(request_.id)
        seen: list[Any] = []

        def note(**_: Any) -> None:
            seen.append(current_ids())

        signals.task_failure.connect(note)
        try:
            request_.on_failure(_info(WorkerLostError("gone")))
        finally:
            signals.task_failure.disconnect(note)
        assert consumers(traced) == []
        assert seen == [ids(producers(traced)[0])]
        assert not ledger.ledger.take(request_.id), "asked once"

    def test_an_id_that_is_no_text(
        self, traced: Telemetry, request_: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A message may say anything: what the child has told is not told again either."""
        monkeypatch.setattr(type(request_), "id", 7)
        monkeypatch.setattr(request_.task, "backend", Mock())  # the real one takes no such key
        ledger.ledger.note(7)
        request_.on_failure(_info(WorkerLostError("gone")))
        assert consumers(traced) == []

    def test_a_failure_that_the_child_has_reported(self, traced: Telemetry, request_: Any) -> None:
        """``return_ok``: it has ended its span in order."""
        request_.on_failure(_info(ValueError("no")), return_ok=True)
        assert consumers(traced) == []

    def test_over_its_time_limit_and_killed(self, traced: Telemetry, request_: Any) -> None:
        """The child had its chance, and is dead: one span, with the limit."""
        from billiard.pool import TimeoutHandler

        job = SimpleNamespace(
            ready=lambda: False,
            _timeout=2,
            _job=1,
            _worker_pid=0,
            _set=lambda job, result: request_.on_failure(result[1]),
            handle_timeout=lambda soft: request_.on_timeout(soft, 2),
        )
        TimeoutHandler([], {}, None, None).on_hard_timeout(job)
        (consumer,) = consumers(traced)
        assert error_of(consumer) == (StatusCode.ERROR, "billiard.exceptions.TimeLimitExceeded")

    def test_over_its_time_limit_and_told(self, traced: Telemetry, request_: Any) -> None:
        """A soft limit, and a hard one of which the child has told: none."""
        request_.on_timeout(True, 1)
        ledger.ledger.note(request_.id)
        request_.on_failure(_info(TimeLimitExceeded(2)))
        request_.on_timeout(False, 2)
        assert consumers(traced) == []

    @pytest.mark.parametrize("reason", ["revoked", "expired"])
    def test_what_is_not_executed_has_a_span_with_the_reason(
        self, shop: Shop, traced: Telemetry, request_: Any, reason: str
    ) -> None:
        """Short, in its sender's trace, unset."""
        request_._announce_revoked(reason, False, None, reason == "expired")
        (consumer,) = consumers(traced)
        assert error_of(consumer) == (StatusCode.UNSET, None)
        assert attributes(consumer)["queueprop.reason"] == reason
        request_._announce_revoked("terminated", True, 15, False)
        assert len(consumers(traced)) == 1

    def test_messages_that_become_no_task(self, shop: Shop, traced: Telemetry) -> None:
        """Of an unknown name, an invalid one, one that cannot be decoded, and what is no task."""
        consumer: Any = object.__new__(Consumer)
        consumer.app, consumer.event_dispatcher, consumer.connection_errors = shop.app, None, ()
        shop.app.send_task("nowhere")
        message = shop.take()
        consumer.on_unknown_task(None, message, KeyError("nowhere"))
        for _ in range(3):
            shop.note.delay()
        consumer.on_invalid_task(None, shop.take(), ValueError("eta"))
        consumer.on_decode_error(shop.take(), ValueError("bytes"))
        stray = shop.take()
        stray.headers = {"traceparent": TRACEPARENT}
        consumer.on_unknown_message(None, stray)
        found = consumers(traced)
        assert [error_of(span)[1] for span in found] == [
            "celery.exceptions.NotRegistered",
            "ValueError",
            "ValueError",
            "unknown_message",
        ]
        assert parent(found[-1]) == CREATION
        assert attributes(found[0])["celery.task.name"] == "nowhere"

    @pytest.mark.skipif(not FAILS_WITHOUT_A_TIME, reason="before 5.7 Celery executes it all the same")
    @pytest.mark.parametrize("eta", ["0001-01-01T00:00:00+10:00", "9999-12-31T23:59:59-10:00"])
    def test_an_eta_that_is_no_time(self, shop: Shop, traced: Telemetry, eta: str) -> None:
        """Celery fails the task where it takes the message: that is its one span, and its errback is sent inside it."""
        consumer = take_with(shop)
        errback = shop.task(lambda task_id: None)
        shop.note.apply_async(headers={"eta": eta}, link_error=errback.si("7"))
        message = shop.take()
        strategy = shop.note.start_strategy(shop.app, consumer)
        rejected = Mock()
        strategy(message, None, Mock(), rejected, [])
        rejected.assert_called_once()
        (found,) = consumers(traced)
        assert error_of(found) == (StatusCode.ERROR, "OverflowError")
        sent, of_errback = producers(traced)
        assert (parent(found), parent(of_errback)) == (ids(sent), ids(found))
        assert attributes(found)["celery.task.name"] == "note"

    def test_a_failure_that_is_stored_by_hand(self, shop: Shop, traced: Telemetry) -> None:
        """It is no message's: no span."""
        shop.app.backend.mark_as_failure("7", ValueError("no"))
        assert consumers(traced) == []


def take_with(shop: Shop) -> Any:
    """As much of a consumer as a task's strategy asks for."""
    consumer = Mock(app=shop.app, connection_errors=(), disable_rate_limits=True, task_buckets={})
    consumer.controller.state.revoked = set()
    consumer.event_dispatcher.enabled = False
    return consumer


def _info(error: BaseException) -> ExceptionInfo:
    try:
        raise error
    except BaseException:
        return ExceptionInfo()


class TestChild:
    """A child of the pool on its way out."""

    @pytest.mark.parametrize(
        ("limit", "error"),
        [(None, performing.TERMINATED), (0.0001, performing.TIME_LIMIT_EXCEEDED)],
    )
    def test_told_to_stop(
        self,
        shop: Shop,
        traced: Telemetry,
        monkeypatch: pytest.MonkeyPatch,
        limit: float | None,
        error: str,
    ) -> None:
        """billiard raises SystemExit in the task: the span ends with what Celery will say, is handed over, and told."""
        flushed: list[float] = []
        monkeypatch.setattr(performing, "terminate_handler_fired", lambda: True)
        monkeypatch.setattr(performing, "is_child_of_billiard", lambda: True)
        monkeypatch.setattr(performing, "flush", flushed.append)

        def work() -> None:
            raise SystemExit(-241)

        result = shop.task(work, time_limit=limit).delay()
        with pytest.raises(SystemExit):
            shop.work()
        (consumer,) = consumers(traced)
        assert error_of(consumer) == (StatusCode.ERROR, error)
        assert flushed == [2]
        assert ledger.ledger.take(result.id)

    def test_sys_exit_of_the_task_s_own(self, shop: Shop, traced: Telemetry) -> None:
        """A failure, whatever its status."""
        result = shop.task(lambda: sys.exit(0)).delay()
        with pytest.raises(SystemExit):
            shop.work()
        (consumer,) = consumers(traced)
        assert error_of(consumer) == (StatusCode.ERROR, "SystemExit")
        assert ledger.ledger.take(result.id)

    def test_a_soft_time_limit_goes_through(self, shop: Shop, traced: Telemetry) -> None:
        """It is raised by a signal anywhere, code of ours included: the guard never swallows it."""
        assert guard.is_not_ours(SoftTimeLimitExceeded())

    def test_a_soft_time_limit_while_ours_begins(self, shop: Shop, telemetry: Telemetry) -> None:
        """It fails the task, and its span says so."""

        def slow(span: Any, message: Any) -> None:
            raise SoftTimeLimitExceeded

        adapter.CeleryInstrumentor().instrument(settings=telemetry.settings(consume_hook=slow))
        try:
            shop.note.delay(1)
            # Celery's own warning: the task has failed.
            with pytest.warns(RuntimeWarning, match="SoftTimeLimitExceeded"):
                shop.work()
        finally:
            adapter.CeleryInstrumentor().uninstrument()
        (consumer,) = consumers(telemetry)
        assert error_of(consumer) == (StatusCode.ERROR, "billiard.exceptions.SoftTimeLimitExceeded")
        assert shop.seen == []

    def test_it_hands_over_when_celery_tells_it_to_end(
        self, traced: Telemetry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By the signal ``worker_process_shutdown``, in a child alone."""
        flushed: list[float] = []
        monkeypatch.setattr(hooks, "flush", flushed.append)
        signals.worker_process_shutdown.send(sender=None, pid=1, exitcode=0)
        monkeypatch.setattr(hooks, "is_child_of_billiard", lambda: True)
        signals.worker_process_shutdown.send(sender=None, pid=1, exitcode=0)
        assert flushed == [2]

    def test_it_hands_over_behind_receivers_of_the_program_s(
        self, traced: Telemetry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Which are connected later, and may make spans."""
        order: list[str] = []
        monkeypatch.setattr(hooks, "is_child_of_billiard", lambda: True)
        monkeypatch.setattr(hooks, "flush", lambda timeout: order.append("ours"))

        def theirs(**_: Any) -> None:
            order.append("theirs")

        signals.worker_process_shutdown.connect(theirs)
        try:
            signals.worker_process_init.send(sender=None)
            signals.worker_process_shutdown.send(sender=None, pid=1, exitcode=0)
        finally:
            signals.worker_process_shutdown.disconnect(theirs)
        assert order == ["theirs", "ours"]

    @pytest.mark.parametrize("method", ["fork", "spawn"])
    def test_a_worker_prepares_for_its_children(
        self, traced: Telemetry, monkeypatch: pytest.MonkeyPatch, method: str
    ) -> None:
        """Spawned ones are told of the ledger by a file, and led to the launcher; forked ones have it all."""
        prepared: list[Any] = []
        monkeypatch.setattr(joining, "get_start_method", lambda: method)
        monkeypatch.setattr(ledger.ledger, "prepare", lambda spawns: prepared.append(spawns))
        monkeypatch.setattr(joining, "lead_to_launcher", lambda: prepared.append("led"))
        signals.worker_init.send(sender=None)
        assert prepared == ([False] if method == "fork" else [True, "led"])

    def test_a_spawned_child_finds_the_ledger(self, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """By its environment; a file that is gone is none."""
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.setattr("tempfile.tempdir", None)
        ours, theirs = ledger.Ledger(), ledger.Ledger()
        monkeypatch.delenv("_QUEUEPROP_CELERY_LEDGER", raising=False)
        ours.prepare(spawns=True)
        theirs.note("a")
        assert ours.take("a")
        monkeypatch.setenv("_QUEUEPROP_CELERY_LEDGER", str(tmp_path / "gone"))
        assert not ledger.Ledger().take("a")


class TestBeat:
    def test_each_firing_is_a_trace_of_its_own(self, shop: Shop, traced: Telemetry) -> None:
        """Also inside a span that is current in the scheduler's process."""
        from celery.beat import Scheduler

        shop.app.conf.beat_schedule = {"note": {"task": "note", "schedule": 1.0}}
        scheduler = Scheduler(shop.app, lazy=True)
        scheduler.setup_schedule()
        with traced.current():
            for _ in range(2):
                scheduler.apply_async(scheduler.schedule["note"], advance=False)
        first, second = producers(traced)
        assert parent(first) is parent(second) is None
        assert first.context.trace_id != second.context.trace_id

    def test_its_schedule_s_creation_is_linked(self, shop: Shop, traced: Telemetry) -> None:
        """Where the entry has a context among its headers."""
        from celery.beat import Scheduler

        options = {"headers": {"traceparent": TRACEPARENT}}
        shop.app.conf.beat_schedule = {"note": {"task": "note", "schedule": 1.0, "options": options}}
        scheduler = Scheduler(shop.app, lazy=True)
        scheduler.setup_schedule()
        scheduler.apply_async(scheduler.schedule["note"], advance=False)
        (producer,) = producers(traced)
        assert links(producer) == [CREATION]
        assert producer.context.trace_id != TRACE

    def test_what_is_sent_inside_a_firing_is_in_its_trace(self, shop: Shop, traced: Telemetry) -> None:
        """What a receiver of ``before_task_publish`` sends, by a task or by its name, is no firing."""

        def audit(sender: str, **_: Any) -> None:
            if sender == "note":
                shop.app.send_task("audit")
                checked.delay()

        checked = shop.task(lambda: None)
        signals.before_task_publish.connect(audit)
        try:
            with traced.current() as ambient:
                fire(shop)
        finally:
            signals.before_task_publish.disconnect(audit)
        *inner, fired = producers(traced)
        assert attributes(fired)["celery.task.name"] == "note"
        assert parent(fired) is None
        assert fired.context.trace_id != ids(ambient)[0]  # type: ignore[index]
        assert [parent(span) for span in inner] == [ids(fired)] * 2

    def test_fired_and_executed_at_once(self, traced: Telemetry) -> None:
        """Under ``task_always_eager`` it is a trace of its own as well, and what the task sends is in it."""
        shop = Shop(task_always_eager=True)

        @shop.app.task(name="report", shared=False)  # type: ignore[untyped-decorator]
        def report() -> None:
            shop.app.send_task("audit")
            shop.note.delay()

        with traced.current() as ambient, pytest.warns(celery.exceptions.AlwaysEagerIgnored):
            fire(shop, "report")
        by_task = {attributes(span)["celery.task.name"]: span for span in producers(traced)}
        (executed,) = [span for span in consumers(traced) if parent(span) == ids(by_task["report"])]
        assert parent(by_task["report"]) is None
        assert executed.context.trace_id != ids(ambient)[0]  # type: ignore[index]
        assert parent(by_task["audit"]) == parent(by_task["note"]) == ids(executed)

    def test_fired_through_a_second_application(self, traced: Telemetry) -> None:
        """A subclass that hands on what it sends: its message is the firing's."""
        other: Any = Celery("other", broker="memory://", set_as_current=False)

        class App(Celery):  # type: ignore[misc]
            def send_task(self, *args: Any, **kwargs: Any) -> Any:
                return other.send_task(*args, **kwargs)

        shop = Shop()
        shop.app = adapter.traced_app(App("front", broker="memory://"), settings=traced.settings())
        with traced.current():
            fire(shop)
        (producer,) = producers(traced)
        assert parent(producer) is None

    def test_an_embedded_one_hands_over_at_its_end(
        self, shop: Shop, traced: Telemetry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is a child that ends in ``os._exit``."""
        from celery.beat import Scheduler, Service

        flushed: list[float] = []
        monkeypatch.setattr(hooks, "flush", flushed.append)
        service = Service(shop.app, scheduler_cls=Scheduler)
        service._is_shutdown.set()
        service.start()
        monkeypatch.setattr(hooks, "is_child_of_billiard", lambda: True)
        service.start()
        assert flushed == [2]


def fire(shop: Shop, name: str = "note") -> None:
    """As the scheduler does what is due."""
    from celery.beat import Scheduler

    shop.app.conf.beat_schedule = {name: {"task": name, "schedule": 1.0}}
    scheduler = Scheduler(shop.app, lazy=True)
    scheduler.setup_schedule()
    scheduler.apply_async(scheduler.schedule[name], advance=False)


class TestLayers:
    def test_kombu_s_adapter_stands_down_below(self, shop: Shop, traced: Telemetry) -> None:
        """One PRODUCER span a task, Celery's; and none for a retry."""
        kombu_adapter.KombuInstrumentor().instrument(settings=traced.settings())
        try:

            def work(task: Any) -> None:
                if not task.request.retries:
                    raise task.retry(countdown=0)

            shop.task(work, bind=True).delay()
            shop.work()
        finally:
            kombu_adapter.KombuInstrumentor().uninstrument()
        (producer,) = producers(traced)
        assert attributes(producer)["messaging.system"] == "celery"
        assert len(consumers(traced)) == 2

    def test_without_ours_kombu_s_adapter_has_the_publish(self, shop: Shop, telemetry: Telemetry) -> None:
        """As before."""
        kombu_adapter.KombuInstrumentor().instrument(settings=telemetry.settings())
        try:
            shop.note.delay()
        finally:
            kombu_adapter.KombuInstrumentor().uninstrument()
        (producer,) = producers(telemetry)
        assert attributes(producer)["messaging.system"] == "memory"

    def test_ddtrace_keeps_it(self, shop: Shop, traced: Telemetry, monkeypatch: pytest.MonkeyPatch) -> None:
        """It marks the library that it has patched; when it is gone ours is back."""
        monkeypatch.setattr(Celery, "__datadog_patch", True, raising=False)
        monkeypatch.setitem(sys.modules, "ddtrace", types.ModuleType("ddtrace"))
        shop.note.delay()
        shop.work()
        assert list(traced.spans) == []
        monkeypatch.setattr(Celery, "__datadog_patch", False)
        shop.note.delay()
        assert len(producers(traced)) == 1


class TestInstrumentor:
    def test_tracers_that_are_there_are_traced_and_put_back(self, shop: Shop, telemetry: Telemetry) -> None:
        """``instrument()`` in ``worker_process_init`` comes when Celery has made the tracers of all tasks."""
        from celery.app.trace import build_tracer

        tracer = shop.note.__trace__ = build_tracer("note", shop.note, app=shop.app)
        instrumentor = adapter.CeleryInstrumentor()
        instrumentor.instrument(settings=telemetry.settings())
        shop.note.delay()
        shop.work()
        instrumentor.uninstrument()
        assert shop.note.__trace__ is tracer
        assert len(consumers(telemetry)) == 1

    def test_a_tracer_s_application_may_be_given_by_place(
        self, shop: Shop, traced: Telemetry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is the one whose broker the task came from, whatever application the task itself is of."""
        from celery.app import trace

        other = Celery("other", broker="amqp://other.example//")
        seen = MagicMock()
        monkeypatch.setattr(hooks.Hooks, "traced", seen)
        trace.build_tracer("note", shop.note, None, None, True, trace.TraceInfo, False, False, other)
        assert seen.call_args.args[1:] == (shop.note, other)

    def test_what_sends_is_put_back(self, shop: Shop, telemetry: Telemetry) -> None:
        """Celery's own, or what somebody has put in its place: a double, another tool's."""
        instrumentor = adapter.CeleryInstrumentor()
        sent: list[str] = []

        def double(producer: Any, name: str, message: Any, **options: Any) -> None:
            sent.append(name)

        for sender in (shop.app.amqp.send_task_message, double):
            shop.app.amqp.send_task_message = sender
            instrumentor.instrument(settings=telemetry.settings())
            shop.note.delay()
            instrumentor.uninstrument()
            assert shop.app.amqp.send_task_message is sender
        shop.note.delay()
        assert sent == ["note", "note"]
        assert len(producers(telemetry)) == 2

    @pytest.mark.parametrize(
        "wraps", [functools.wraps, lambda _: lambda wrapper: wrapper], ids=["wraps", "a bare one"]
    )
    def test_what_somebody_has_wrapped_since_stays(
        self, shop: Shop, telemetry: Telemetry, wraps: Callable[..., Any]
    ) -> None:
        """Around what sends and around a tracer, also by ``functools.wraps``; ours is silent below meanwhile."""
        from celery.app.trace import build_tracer

        called: list[Any] = []

        def around(function: Any) -> Any:
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                called.append(function)
                return function(*args, **kwargs)

            return wraps(function)(wrapper)

        instrumentor = adapter.CeleryInstrumentor()
        shop.note.__trace__ = build_tracer("note", shop.note, app=shop.app)
        for is_on in (True, False, True):
            if is_on:
                instrumentor.instrument(settings=telemetry.settings())
            shop.note.delay()
            shop.work()
            if not called:
                sender = shop.app.amqp.send_task_message = around(shop.app.amqp.send_task_message)
                tracer = shop.note.__trace__ = around(shop.note.__trace__)
                called.append(None)
            if is_on:
                instrumentor.uninstrument()
                assert shop.app.amqp.send_task_message is sender
                assert shop.note.__trace__ is tracer
        assert len(called) == 5
        assert len(producers(telemetry)) == len(consumers(telemetry)) == 2

    def test_a_tracer_that_was_made_meanwhile_falls_silent(self, shop: Shop, telemetry: Telemetry) -> None:
        """Nothing is traced after ``uninstrument()``."""
        instrumentor = adapter.CeleryInstrumentor()
        instrumentor.instrument(settings=telemetry.settings())
        shop.note.delay()
        shop.work()
        instrumentor.uninstrument()
        count = len(list(telemetry.spans))
        shop.note.delay()
        shop.work()
        assert len(list(telemetry.spans)) == count
        assert "traceparent" not in (shop.waiting or [{}])[0]

    def test_without_celery(self) -> None:
        """One line that says what to install."""
        code = (
            "import sys; sys.modules['celery'] = None\n"
            "try:\n    import queueprop.adapters.celery\nexcept ImportError as error:\n    print(error)"
        )
        answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert 'pip install "queueprop[celery]"' in answer.stdout
        assert issubclass(MissingExtra, ImportError)


class TestExplicit:
    @pytest.mark.parametrize("way", ["delay", "apply_async", "send_task", "signature", "chain"])
    def test_traced_publish(self, shop: Shop, telemetry: Telemetry, way: str) -> None:
        """Each call that sends has its PRODUCER spans, and the application's other calls have none."""
        settings = telemetry.settings()
        calls: dict[str, Any] = {
            "delay": (shop.note.delay, ()),
            "apply_async": (shop.note.apply_async, ()),
            "send_task": (shop.app.send_task, ("note",)),
            "signature": (shop.note.s(1).apply_async, ()),
            "chain": (chain(shop.note.si(1), shop.note.si(2), app=shop.app).delay, ()),
        }
        call, args = calls[way]
        adapter.traced_publish(call, settings=settings)(*args)
        (producer,) = producers(telemetry)
        assert written(shop.waiting[0]) == ids(producer)
        shop.note.delay()
        assert len(producers(telemetry)) == 1

    def test_a_publish_of_both_is_one(self, shop: Shop, traced: Telemetry) -> None:
        """The explicit API above the instrumentor."""
        adapter.traced_publish(shop.note.delay, settings=traced.settings())()
        adapter.traced_publish(shop.app.send_task, settings=traced.settings())("note")
        assert len(producers(traced)) == 2

    def test_traced_publish_that_fails_before_there_is_a_message(
        self, shop: Shop, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As by the instrumentor."""

        def refuse(*args: Any) -> None:
            raise OperationalError("no backend")

        monkeypatch.setattr(shop.app.backend, "on_task_call", refuse)
        for call in (shop.note.delay, lambda: shop.app.send_task("note")):
            with pytest.raises(OperationalError):
                adapter.traced_publish(call, settings=telemetry.settings())()
        assert {error_of(span)[0] for span in producers(telemetry)} == {StatusCode.ERROR}

    @pytest.mark.parametrize("how", ["traced_app", "traced_publish", "both, and the instrumentor"])
    def test_a_subclass_that_sends_two(self, telemetry: Telemetry, how: str) -> None:
        """Its ``send_task`` sends another task first: each has one PRODUCER span, and its own context."""

        class App(Celery):  # type: ignore[misc]
            def send_task(self, name: str, *args: Any, **kwargs: Any) -> Any:
                super().send_task("audit")
                return super().send_task(name, *args, **kwargs)

        shop, settings = Shop(), telemetry.settings()
        shop.app = App("audited", broker="memory://", backend="cache+memory://", set_as_current=False)
        if how.startswith("both"):
            adapter.CeleryInstrumentor().instrument(settings=settings)
        try:
            if how != "traced_publish":
                adapter.traced_app(shop.app, settings=settings)
            send = shop.app.send_task
            if how != "traced_app":
                send = adapter.traced_publish(send, settings=settings)
            send("work")
        finally:
            adapter.CeleryInstrumentor().uninstrument()
        assert [headers["task"] for headers in shop.waiting] == ["audit", "work"]
        assert [written(headers) for headers in shop.waiting] == [ids(span) for span in producers(telemetry)]

    @pytest.mark.parametrize("wrong", [7, print, Celery.send_task, "note", Celery])
    def test_what_cannot_be_right_is_refused(self, wrong: Any) -> None:
        """One line that shows the right form."""
        with pytest.raises(TypeError, match="traced_publish wants"):
            adapter.traced_publish(wrong)
        with pytest.raises(TypeError, match="traced_app wants"):
            adapter.traced_app(wrong)

    def test_traced_consumer(self, shop: Shop, telemetry: Telemetry) -> None:
        """A task's function makes its span where nobody else has; called directly it is just the function."""
        settings = telemetry.settings()

        def work(number: int) -> Any:
            shop.seen.append(current_ids())
            if number > 1:
                raise ValueError("no")
            return number

        decorated = adapter.traced_consumer(settings=settings)(work)
        assert inspect.signature(decorated) == inspect.signature(work)
        task = shop.task(decorated)
        with pytest.raises(TypeError):
            task.delay()  # Celery still looks at the arguments
        send = adapter.traced_publish(task.delay, settings=settings)
        send(1)
        send(2)
        shop.work()
        first, second = consumers(telemetry)
        assert shop.seen == [ids(first), ids(second)]
        assert [parent(it) for it in (first, second)] == [ids(it) for it in producers(telemetry)]
        assert error_of(second) == (StatusCode.ERROR, "ValueError")
        assert task(1) == 1
        assert len(consumers(telemetry)) == 2

    def test_traced_consumer_of_a_retry(self, shop: Shop, telemetry: Telemetry) -> None:
        """The cause is on the span; bare as well."""
        adapter.CeleryInstrumentor()

        @adapter.traced_consumer(settings=telemetry.settings())
        def work(task: Any) -> None:
            if not task.request.retries:
                raise task.retry(countdown=0, exc=KeyError("k"))

        shop.task(work, bind=True).delay()
        shop.work()
        assert [error_of(span) for span in consumers(telemetry)] == [
            (StatusCode.ERROR, "KeyError"),
            (StatusCode.UNSET, None),
        ]
        assert adapter.traced_consumer(shop.note.run) is not None

    def test_traced_consumer_below_the_instrumentor(self, shop: Shop, traced: Telemetry) -> None:
        """One span."""
        shop.task(adapter.traced_consumer(settings=traced.settings())(lambda: None)).delay()
        shop.work()
        assert len(consumers(traced)) == 1

    def test_traced_app(self, shop: Shop, telemetry: Telemetry) -> None:
        """What one application sends and executes, and not another's; with the latest settings."""
        from celery.app.trace import build_tracer

        shop.note.__trace__ = build_tracer("note", shop.note, app=shop.app)
        assert adapter.traced_app(shop.app, settings=Settings(exclude=("*",))) is shop.app
        adapter.traced_app(shop.app, settings=telemetry.settings())
        shop.note.delay()
        shop.work()
        (producer,), (consumer,) = producers(telemetry), consumers(telemetry)
        assert parent(consumer) == ids(producer)
        other: Any = Celery("other", broker="memory://", set_as_current=False)
        other.send_task("note", queue="other")
        assert len(producers(telemetry)) == 1

    def test_a_worker_of_a_traced_app(self, shop: Shop, telemetry: Telemetry) -> None:
        """It is joined as it starts: tracers, refused messages, requests."""
        from celery.contrib.testing.worker import start_worker

        adapter.traced_app(shop.app, settings=telemetry.settings())
        shop.app.conf.broker_transport_options = {"polling_interval": 0.01}
        with (
            _logging_left_alone(),
            start_worker(
                shop.app, perform_ping_check=False, pool="solo", loglevel="CRITICAL", shutdown_timeout=60
            ),
        ):
            assert shop.note.delay(3).get(timeout=60) == 3
            shop.app.send_task("nowhere")
            shop.note.apply_async(expires=-1)
            if FAILS_WITHOUT_A_TIME:
                shop.note.apply_async(headers={"eta": "0001-01-01T00:00:00+10:00"})
            shop.note.delay(4).get(timeout=60)
        told = sorted(
            (str(error_of(it)[1]), attributes(it).get("queueprop.reason", "")) for it in consumers(telemetry)
        )
        executed, refused = ("None", ""), ("celery.exceptions.NotRegistered", "")
        at_no_time = [("OverflowError", "")] * FAILS_WITHOUT_A_TIME
        assert told == [executed, executed, ("None", "expired"), *at_no_time, refused]

    def test_children_of_a_traced_app(self, shop: Shop, telemetry: Telemetry) -> None:
        """They make tracers of their own, and then tell it."""
        from celery.app.trace import build_tracer

        adapter.traced_app(shop.app, settings=telemetry.settings())
        shop.note.__trace__ = build_tracer("note", shop.note, app=shop.app)
        joining.on_child_start()
        joining.on_child_start()
        shop.note.delay()
        shop.work()
        assert len(consumers(telemetry)) == 1


@contextmanager
def _logging_left_alone() -> Iterator[None]:
    """A worker sets the level of the root logger, for good, unless somebody else says that logging is theirs."""

    def ours(**_: Any) -> None: ...

    signals.setup_logging.connect(ours, weak=False)
    try:
        yield
    finally:
        signals.setup_logging.disconnect(ours)


class TestRefused:
    @pytest.mark.parametrize("headers", ["x", 5])
    def test_headers_that_celery_refuses(self, shop: Shop, traced: Telemetry, headers: Any) -> None:
        """Its own error comes out, the publish has a span with it, and ours is no fault."""
        with pytest.raises((TypeError, ValueError)) as raised:
            shop.note.apply_async(headers=headers)
        (producer,) = producers(traced)
        assert error_of(producer) == (StatusCode.ERROR, type(raised.value).__name__)


class TestFaults:
    @pytest.mark.usefixtures("guarded")
    @pytest.mark.parametrize(
        "place",
        [
            "hooks.hook_sender",
            "hooks.TaskPublication",
            "hooks.Execution",
            "publishing.is_altered",
            "performing.message_of",
        ],
    )
    def test_a_fault_of_ours_breaks_nothing(
        self, shop: Shop, traced: Telemetry, monkeypatch: pytest.MonkeyPatch, place: str
    ) -> None:
        """The task is sent and executed."""

        def fail(*args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("ours")

        monkeypatch.setattr(f"queueprop.adapters.celery.{place}", fail)
        shop.note.delay(1)
        shop.work()
        assert len(shop.seen) == 1

    @pytest.mark.usefixtures("guarded")
    def test_a_fault_of_ours_while_a_task_sends(
        self, shop: Shop, traced: Telemetry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What it sends is sent."""

        def fail(*args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("ours")

        monkeypatch.setattr("queueprop.adapters.celery.hooks.kept_on", fail)
        shop.task(lambda: shop.note.delay() and None).delay()
        shop.work()
        assert len(shop.seen) == 1

    @pytest.mark.usefixtures("odd_sdk")
    def test_an_odd_sdk(self, shop: Shop, odd_sdk: Any) -> None:
        """Nothing of it comes out."""
        adapter.CeleryInstrumentor().instrument(tracer_provider=odd_sdk)
        try:
            shop.note.delay(1)
            shop.work()
        finally:
            adapter.CeleryInstrumentor().uninstrument()
        assert len(shop.seen) == 1


_ = (Terminated, signal)
