"""The public functions for any queue: send_span, process_span, receive_span, settle_span, traced_consumer,
carry_context. (What the spans say is held by the tests of each operation.)"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry import baggage, trace
from opentelemetry.context import get_current
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.trace import SpanKind, get_current_span

import queueprop
from queueprop import (
    Destination,
    Message,
    Settings,
    carry_context,
    process_span,
    receive_span,
    send_span,
    settle_span,
    traced_consumer,
)
from queueprop.engine import engine as spans
from queueprop.testing import assert_no_orphans
from tests.telemetry import (
    CREATION,
    ORDERS,
    OTHER_TRACE,
    TRACE,
    TRACEPARENT,
    Telemetry,
    attributes,
    baggage_of_ours,
    current_ids,
    ids,
    links,
    parent,
    traceparent,
    written,
)


@pytest.fixture
def settings(telemetry: Telemetry) -> Settings:
    return telemetry.settings()


def test_the_public_face() -> None:
    """Everything that `__all__` names is there, and it is what the documentation promises."""
    assert sorted(queueprop.__all__) == [
        "Destination",
        "Message",
        "Settings",
        "__version__",
        "carry_context",
        "extract",
        "inject",
        "instrument",
        "process_span",
        "receive_span",
        "send_span",
        "settle_span",
        "traced_consumer",
        "uninstrument",
    ]
    assert all(hasattr(queueprop, name) for name in queueprop.__all__)


class TestSpans:
    """The four spans as context managers."""

    def test_from_publish_to_ack(self, telemetry: Telemetry, settings: Settings) -> None:
        """The whole way through a queue of one's own: four spans in one trace, nothing orphaned."""
        headers: dict[str, Any] = {}
        with send_span(ORDERS, headers=headers, settings=settings):
            pass
        with receive_span(ORDERS, settings=settings) as receipt:
            receipt.add(headers=headers)
        message = Message(headers)
        with process_span(ORDERS, message, settings=settings) as process:
            assert get_current_span() is process
        with settle_span(ORDERS, message, settings=settings):
            pass
        assert [span.name for span in telemetry.spans] == [
            "publish orders",
            "poll orders",
            "process orders",
            "ack orders",
        ]
        send, poll, handled, ack = telemetry.spans
        assert (parent(handled), parent(ack), links(poll)) == (ids(send), ids(handled), [ids(send)])
        assert_no_orphans(telemetry.spans)

    def test_headers_are_short_for_a_message(self, telemetry: Telemetry, settings: Settings) -> None:
        """headers= and Message(headers=) are the same."""
        one: dict[str, Any] = {}
        other: list[tuple[str, bytes]] = []
        with send_span(ORDERS, headers=one, settings=settings):
            pass
        with send_span(ORDERS, Message(other), settings=settings):
            pass
        assert written(one) == ids(telemetry.spans[0])
        assert [name for name, _ in other] == ["traceparent"]

    def test_both_is_said_once(self, settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
        """message= and headers= together: the message's are used, one line tells of it, nothing is raised."""
        headers: dict[str, Any] = {}
        ignored: dict[str, Any] = {}
        message = Message(headers)
        with send_span(ORDERS, message, headers=ignored, settings=settings) as span:
            assert (written(headers), ignored) == (ids(span), {})
        with process_span(ORDERS, message, headers=ignored, settings=settings):
            pass
        with receive_span(ORDERS, message, headers=ignored, settings=settings) as receipt:
            receipt.add(message, headers=ignored)
        with settle_span(ORDERS, message, headers=ignored, settings=settings):
            pass
        (record,) = caplog.records
        assert "message= and headers= were both given" in record.getMessage()

    def test_batches(self, telemetry: Telemetry, settings: Settings) -> None:
        """A sequence of messages is a batch, for each of the four."""
        messages = [Message({}), Message({})]
        with send_span(ORDERS, messages, settings=settings):
            pass
        with receive_span(ORDERS, messages, settings=settings):
            pass
        with process_span(ORDERS, messages, settings=settings):
            pass
        with settle_span(ORDERS, messages, operation="commit", settings=settings):
            pass
        counts = {
            span.name: attributes(span).get("messaging.batch.message_count") for span in telemetry.spans
        }
        assert counts == {
            "create orders": None,
            "publish orders": 2,
            "poll orders": 2,
            "process orders": 2,
            "commit orders": 2,
        }

    def test_receive(self, telemetry: Telemetry, settings: Settings) -> None:
        """What is known beforehand and what is added is linked; CLIENT."""
        with receive_span(ORDERS, headers={"traceparent": TRACEPARENT}, settings=settings) as receipt:
            receipt.add(Message({"traceparent": traceparent(OTHER_TRACE, 1)}))
        span = telemetry.only()
        assert (span.kind, links(span)) == (SpanKind.CLIENT, [CREATION, (OTHER_TRACE, 1)])

    def test_receive_of_nothing(self, telemetry: Telemetry, settings: Settings) -> None:
        """No span when nothing was added, or the call says that there is nothing; its exception goes on."""
        with receive_span(ORDERS, settings=settings):
            pass
        with pytest.raises(queue.Empty), receive_span(ORDERS, settings=settings):
            queue.Queue[int]().get_nowait()
        with receive_span(ORDERS, [], settings=settings):
            pass
        assert len(telemetry.spans) == 0

    def test_exceptions_go_on(self, telemetry: Telemetry, settings: Settings) -> None:
        """Each of the four lets the body's exception out, the very same, with ERROR on its span."""
        error = ValueError("theirs")
        for span in (send_span, process_span, receive_span, settle_span):
            with pytest.raises(ValueError, match="theirs") as raised, span(ORDERS, settings=settings):
                raise error
            assert raised.value is error
        assert [attributes(span)["error.type"] for span in telemetry.spans] == ["ValueError"] * 4


class TestSettingsOfTheEnvironment:
    """Without settings= those of the environment hold."""

    def test_they_are_read_once(self, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch) -> None:
        """QUEUEPROP_* when the first operation is made; a warning about a wrong one is not repeated."""
        monkeypatch.setattr(
            "queueprop.engine.telemetry.get_tracer_provider", lambda: telemetry.spans.tracer_provider
        )
        monkeypatch.setenv("QUEUEPROP_EXCLUDE", "tmp.*")
        for name in ("tmp.1", "orders"):
            with send_span(Destination("my-queue", name), headers={}):
                pass
        monkeypatch.delenv("QUEUEPROP_EXCLUDE")
        with process_span(Destination("my-queue", "tmp.1"), headers={}):
            pass
        assert telemetry.only().name == "publish orders"

    def test_one_engine_for_one_settings(self, settings: Settings) -> None:
        """An engine is made once a Settings object, and once for the environment."""
        assert spans.engine_for(settings) is spans.engine_for(settings)
        assert spans.engine_for() is spans.engine_for()
        assert spans.engine_for(settings) is not spans.engine_for()


class Job:
    """A message of a queue of one's own."""

    def __init__(self, headers: object) -> None:
        self.headers = headers


JOB = Job({"traceparent": TRACEPARENT, "baggage": "user=7"})


class TestTracedConsumer:
    """@traced_consumer."""

    def test_the_handler_runs_inside(self, telemetry: Telemetry, settings: Settings) -> None:
        """In the CONSUMER span of its message, with the message's baggage."""

        @traced_consumer(ORDERS, headers=lambda job: job.headers, settings=settings)
        def handle(job: Job) -> object:
            return current_ids(), baggage.get_all()

        seen = handle(JOB)
        span = telemetry.only("process orders")
        assert seen == (ids(span), {"user": "7"})
        assert (span.kind, parent(span), links(span)) == (SpanKind.CONSUMER, CREATION, [CREATION])

    def test_headers_may_give_a_message(self, telemetry: Telemetry, settings: Settings) -> None:
        """Where more is known than the headers: a Message."""

        @traced_consumer(ORDERS, headers=lambda job: Message(job.headers, id="m1"), settings=settings)
        def handle(job: Job) -> None: ...

        handle(JOB)
        assert attributes(telemetry.only())["messaging.message.id"] == "m1"

    def test_headers_is_given_the_handlers_arguments(self, telemetry: Telemetry, settings: Settings) -> None:
        """All of them, positional and by name, self included."""
        given: list[object] = []

        def headers(*args: object, **kwargs: object) -> object:
            given.append((args, kwargs))
            return JOB.headers

        class Worker:
            @traced_consumer(ORDERS, headers=headers, settings=settings)
            def handle(self, job: Job, *, retries: int) -> None: ...

        worker = Worker()
        worker.handle(JOB, retries=3)
        assert given == [((worker, JOB), {"retries": 3})]

    @pytest.mark.parametrize("by_name", [False, True])
    def test_without_headers_the_arguments_tell(
        self, telemetry: Telemetry, settings: Settings, by_name: bool
    ) -> None:
        """The first argument that has headers is the message, by position or by name."""

        @traced_consumer(ORDERS, settings=settings)
        def handle(first: object, second: object, job: object) -> None: ...

        empty = SimpleNamespace(headers=None)
        if by_name:
            handle(1, second=empty, job=JOB)
        else:
            handle(1, empty, JOB)
        assert parent(telemetry.only()) == CREATION

    def test_without_any_headers(self, telemetry: Telemetry, settings: Settings) -> None:
        """No argument has any: a root, and the handler is called all the same."""

        @traced_consumer(ORDERS, settings=settings)
        def handle(job: int) -> int:
            return job

        assert handle(7) == 7
        assert parent(telemetry.only()) is None

    def test_headers_that_raise(
        self, telemetry: Telemetry, settings: Settings, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Whether the function or an attribute raises: the handler runs inside a root, one line says which of them."""

        class Broken:
            @property
            def headers(self) -> object:
                raise LookupError("headers")

        def broken(job: object) -> object:
            raise LookupError("headers")

        def handle(job: object) -> bool:
            return get_current_span().is_recording()

        for _ in range(2):
            assert traced_consumer(ORDERS, headers=broken, settings=settings)(handle)(JOB)
            assert traced_consumer(ORDERS, settings=settings)(handle)(Broken())
        assert [parent(span) for span in telemetry.spans] == [None] * 4
        of_function, of_attribute = (record.getMessage() for record in caplog.records)
        assert (
            "traced_consumer, calling headers=: it raised LookupError: headers (test_api.py:" in of_function
        )
        assert "reading the attribute headers of an argument: it raised LookupError" in of_attribute
        assert all(record.exc_info is None for record in caplog.records)

    def test_async_and_generators(self, telemetry: Telemetry, settings: Settings) -> None:
        """Coroutine functions, generators and async generators are decorated alike."""
        traced = traced_consumer(ORDERS, headers=lambda job: job.headers, settings=settings)

        @traced
        async def coroutine(job: Job) -> int:
            return trace.get_current_span().get_span_context().trace_id

        @traced
        def generator(job: Job) -> Iterator[int]:
            yield trace.get_current_span().get_span_context().trace_id

        assert asyncio.run(coroutine(JOB)) == TRACE
        assert list(generator(JOB)) == [TRACE]
        assert len(telemetry.spans) == 2

    def test_on_a_class(self, telemetry: Telemetry, settings: Settings) -> None:
        """Static and class methods, decorated from above or below."""
        traced = traced_consumer(ORDERS, headers=lambda *args: args[-1].headers, settings=settings)

        class Worker:
            @traced
            @staticmethod
            def above(job: Job) -> Job:
                return job

            @classmethod
            @traced
            def below(cls, job: Job) -> tuple[type[Worker], Job]:
                return cls, job

        assert Worker().above(JOB) is JOB
        assert Worker.below(JOB) == (Worker, JOB)
        assert [parent(span) for span in telemetry.spans] == [CREATION] * 2

    def test_suppressed(self, telemetry: Telemetry, settings: Settings) -> None:
        """The handler is called, and no span is made."""

        @traced_consumer(ORDERS, settings=settings)
        def handle(job: Job) -> object:
            return current_ids()

        with suppress_instrumentation():
            assert handle(JOB) is None
        assert len(telemetry.spans) == 0

    @pytest.mark.parametrize(
        "headers", [None, 7, [1], [("traceparent",)], {"traceparent": [TRACEPARENT]}, b"junk"], ids=repr
    )
    def test_junk(self, telemetry: Telemetry, settings: Settings, headers: object) -> None:
        """Whatever the headers are, the handler is called once, inside a root."""
        called: list[object] = []

        @traced_consumer(ORDERS, headers=lambda job: headers, settings=settings)
        def handle(job: object) -> None:
            called.append(job)

        handle("job")
        assert called == ["job"]
        assert parent(telemetry.only()) is None

    def test_forwarding(self, telemetry: Telemetry, settings: Settings) -> None:
        """A handler that publishes the headers that it got: one traceparent on the wire, the new one."""

        @traced_consumer(ORDERS, headers=dict, settings=settings)
        def handle(received: list[tuple[str, object]]) -> list[tuple[str, object]]:
            headers = list(received)
            with send_span(Destination("my-queue", "next"), headers=headers, settings=settings):
                return headers

        forwarded = handle([("traceparent", TRACEPARENT), ("Baggage", b"user=7")])
        assert [name for name, _ in forwarded] == ["traceparent", "baggage"]
        assert parent(telemetry.only("publish next")) == ids(telemetry.only("process orders"))


class TestCarryContext:
    """carry_context: work elsewhere stays in the trace."""

    @staticmethod
    def seen() -> tuple[object, object]:
        return current_ids(), baggage.get_baggage("user")

    def test_in_a_thread(self, telemetry: Telemetry, settings: Settings) -> None:
        """Span and baggage are current in the thread while the function runs, and gone from there afterwards."""
        results: list[object] = []

        def run(work: Callable[[], object]) -> None:
            before = get_current()
            results.extend([work(), get_current() is before])

        with process_span(ORDERS, JOB_MESSAGE, settings=settings) as span:
            thread = threading.Thread(target=run, args=(carry_context(self.seen),))
            thread.start()
            thread.join()
        assert results == [(ids(span), "7"), True]

    def test_in_an_executor(self, settings: Settings) -> None:
        """Work of several messages in one pool: each in its own trace; arguments and results go through."""

        def work(number: int, *, barrier: threading.Barrier) -> tuple[int, object]:
            barrier.wait(60)
            return number, current_ids()

        barrier = threading.Barrier(2)
        with ThreadPoolExecutor(2) as pool:
            futures, expected = [], []
            for number in range(1, 21):
                message = Message({"traceparent": traceparent(number)})
                with process_span(ORDERS, message, settings=settings) as span:
                    futures.append(pool.submit(carry_context(work), number, barrier=barrier))
                    expected.append((number, ids(span)))
            assert [future.result() for future in futures] == expected

    def test_after_the_span_has_ended(self, settings: Settings) -> None:
        """What runs later is in the trace as well."""
        with process_span(ORDERS, JOB_MESSAGE, settings=settings) as span:
            later = carry_context(self.seen)
        assert later() == (ids(span), "7")
        assert later() == (ids(span), "7")

    def test_a_span_inside_is_a_child(self, telemetry: Telemetry, settings: Settings) -> None:
        """What the work publishes belongs to the message's span."""
        headers: dict[str, Any] = {}

        def work() -> None:
            with send_span(ORDERS, headers=headers, settings=settings):
                pass

        with process_span(ORDERS, JOB_MESSAGE, settings=settings) as span, ThreadPoolExecutor(1) as pool:
            pool.submit(carry_context(work)).result()
        assert parent(telemetry.only("publish orders")) == ids(span)

    def test_exceptions_go_through(self, settings: Settings) -> None:
        """The very same; and the context of the caller is back."""
        error = ValueError("theirs")

        def work() -> None:
            raise error

        before = get_current()
        with pytest.raises(ValueError, match="theirs") as raised:
            carry_context(work)()
        assert raised.value is error
        assert get_current() is before

    def test_in_a_task(self, settings: Settings) -> None:
        """A coroutine function: across its awaits, whatever task runs it."""

        async def work() -> tuple[object, object]:
            first = self.seen()
            await asyncio.sleep(0)
            return first, self.seen()

        with process_span(ORDERS, JOB_MESSAGE, settings=settings) as span:
            carried = carry_context(work)

        async def run() -> object:
            before = get_current()
            result = await asyncio.create_task(carried())
            assert get_current() is before
            return result

        assert asyncio.run(run()) == ((ids(span), "7"), (ids(span), "7"))

    def test_a_generator(self, settings: Settings) -> None:
        """Its body is inside, its consumer is not."""

        def work() -> Generator[object, None, None]:
            yield self.seen()
            yield self.seen()

        with process_span(ORDERS, JOB_MESSAGE, settings=settings) as span:
            carried = carry_context(work)
        before = get_current()
        for seen in carried():
            assert seen == (ids(span), "7")
            assert get_current() is before

    def test_without_any_context(self) -> None:
        """Nothing is current: the work runs with nothing current, also where something is by then."""
        carried = carry_context(self.seen)
        with baggage_of_ours(user="8"):
            assert carried() == (None, None)

    def test_recursion(self) -> None:
        """A carried function that calls itself restores each level."""

        def work(depth: int) -> int:
            return depth if depth == 3 else carried(depth + 1)

        carried = carry_context(work)
        before = get_current()
        assert carried(0) == 3
        assert get_current() is before


JOB_MESSAGE = Message(JOB.headers)
