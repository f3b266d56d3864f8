"""Wrong objects: a TypeError of one line where a program is set up, one line of the log where a message is at hand."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any, overload
from unittest import mock

import pytest
from opentelemetry.trace import INVALID_SPAN, Span

import queueprop
from queueprop import Destination, Message, Settings, carry_context, guard, traced_consumer
from queueprop.kit import checks, libraries
from tests.telemetry import ORDERS, TRACEPARENT, Telemetry, ids, written

LINK: dict[str, str] = {"propagation": "link"}

Word = Callable[..., AbstractContextManager[Any]]
WORDS: dict[str, Word] = {
    "send_span": queueprop.send_span,
    "process_span": queueprop.process_span,
    "receive_span": queueprop.receive_span,
    "settle_span": queueprop.settle_span,
}


class Job:
    headers: dict[str, str] = {"traceparent": TRACEPARENT}  # noqa: RUF012


def handle(job: object) -> str:
    return "handled"


class Unprintable:
    """What has no representation."""

    def __repr__(self) -> str:
        raise LookupError("no repr")


class Odd(Sequence[Message]):
    """A sequence that cannot be read."""

    @overload
    def __getitem__(self, index: int) -> Message: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Message]: ...
    def __getitem__(self, index: Any) -> Any:
        raise LookupError("no item")

    def __len__(self) -> int:
        return 1


SET_UP: dict[str, tuple[Callable[[Any], object], Any, str]] = {
    "traced_consumer without parentheses": (traced_consumer, handle, "Destination"),
    "traced_consumer of a name": (traced_consumer, "orders", "Destination"),
    "traced_consumer of nothing": (traced_consumer, None, "Destination"),
    "traced_consumer of the class": (traced_consumer, Destination, "Destination"),
    "traced_consumer on a class": (traced_consumer(ORDERS), Job, "function or method"),
    "traced_consumer on a string": (traced_consumer(ORDERS), "handle", "function or method"),
    "traced_consumer on a result": (traced_consumer(ORDERS), handle(Job()), "function or method"),
    "headers= that is none": (
        lambda it: traced_consumer(ORDERS, headers=it),
        {},
        "headers=lambda job: job.headers",
    ),
    "settings= that are none": (
        lambda it: traced_consumer(ORDERS, settings=it),
        LINK,
        "Settings(propagation=",
    ),
    "the class of settings": (
        lambda it: traced_consumer(ORDERS, settings=it),
        Settings,
        "Settings(propagation=",
    ),
    "carry_context of a number": (carry_context, 42, "carry_context(work)"),
    "carry_context of a result": (carry_context, None, "carry_context(work)"),
}


@pytest.mark.parametrize(("word", "given", "form"), SET_UP.values(), ids=SET_UP.keys())
def test_where_a_program_is_set_up(word: Callable[[Any], object], given: Any, form: str) -> None:
    """A TypeError at once, of one line, with the right form and what was given: no handler is silently replaced."""
    with pytest.raises(TypeError) as raised:
        word(given)
    text = str(raised.value)
    assert form in text
    assert text.endswith(f", not {checks.shown(given)}")
    assert "\n" not in text
    assert len(text) < 300


def test_no_message_is_lost_by_a_forgotten_pair_of_parentheses() -> None:
    """A loop that handles by a decorated function and acks what was handled never comes to be."""
    acked: list[Job] = []

    def program() -> None:
        on_job: Any = traced_consumer(handle)  # type: ignore[arg-type]
        for job in (Job(), Job()):
            on_job(job)
            acked.append(job)

    with pytest.raises(TypeError):
        program()
    assert acked == []


@pytest.mark.parametrize("word", WORDS.values(), ids=WORDS.keys())
class TestAtHand:
    """A message is being published, handled or settled: nothing is raised, and the body runs."""

    WRONG: dict[str, tuple[tuple[Any, ...], str]] = {  # noqa: RUF012
        "a name": (("orders",), "(queueprop.Destination("),
        "nothing": ((None,), "(queueprop.Destination("),
        "headers by position": ((ORDERS, {"traceparent": TRACEPARENT}), "headers=job.headers"),
        "pairs by position": ((ORDERS, [("traceparent", TRACEPARENT)]), "headers=job.headers"),
        "a body": ((ORDERS, b"secret"), "headers=job.headers"),
        "no body": ((ORDERS, ""), "headers=job.headers"),
        "a number": ((ORDERS, 7), "headers=job.headers"),
        "a generator": ((ORDERS, (Message({}) for _ in range(2))), "headers=job.headers"),
        "some that are none": ((ORDERS, [Message({}), b"secret"]), "headers=job.headers"),
        "a sequence that raises": ((ORDERS, Odd()), "headers=job.headers"),
    }

    @pytest.mark.parametrize(("given", "form"), WRONG.values(), ids=WRONG.keys())
    def test_one_line(
        self,
        telemetry: Telemetry,
        caplog: pytest.LogCaptureFixture,
        word: Word,
        given: tuple[Any, ...],
        form: str,
    ) -> None:
        """Once, with the right form, what kind of thing was given and nothing of what it says; no span."""
        for _ in range(3):
            with word(*given, settings=telemetry.settings()) as span:
                assert word is queueprop.receive_span or span is INVALID_SPAN
        (record,) = caplog.records
        text = record.getMessage()
        assert form in text
        assert f"(given {type(given[-1]).__name__})" in text
        assert "secret" not in text
        assert "\n" not in text
        assert len(telemetry.spans) == 0

    def test_what_are_no_settings(self, caplog: pytest.LogCaptureFixture, word: Word) -> None:
        """Those of the environment are used, and a line says so, and no other: headers were given once."""
        headers = {"traceparent": TRACEPARENT}
        for given in ({"headers": headers}, {"message": Message(headers)}, {}):
            with word(ORDERS, **given, settings=LINK):
                pass
        told = [text for record in caplog.records if "tracing messages" not in (text := record.getMessage())]
        assert len(told) == 1
        assert "queueprop.Settings(" in told[0]

    def test_a_destination_that_is_none_inside(
        self, telemetry: Telemetry, caplog: pytest.LogCaptureFixture, word: Word
    ) -> None:
        """A field of a type that it cannot be: one line, which asks nobody to report it, and the body runs."""
        broken = Destination("my-queue", "orders", attributes=None)  # type: ignore[arg-type]
        with word(broken, headers={}, settings=telemetry.settings()):
            pass
        (record,) = caplog.records
        assert record.getMessage().startswith("queueprop, reading the arguments of ")
        assert "report" not in record.getMessage()
        assert len(telemetry.spans) == 0

    def test_an_exception_of_the_body_comes_out(self, word: Word) -> None:
        """Also where there is no span."""
        with pytest.raises(ZeroDivisionError), word("orders"):
            raise ZeroDivisionError


def test_what_a_pull_call_is_told(telemetry: Telemetry, caplog: pytest.LogCaptureFixture) -> None:
    """receipt.add(headers) instead of add(headers=...): one line, and the messages that were right are linked."""
    with queueprop.receive_span(ORDERS, settings=telemetry.settings()) as receipt:
        receipt.add({"traceparent": TRACEPARENT})  # type: ignore[arg-type]
        receipt.add(headers={"traceparent": TRACEPARENT})
    (record,) = caplog.records
    assert "add(headers=job.headers)" in record.getMessage()
    assert len(telemetry.only().links) == 1


def test_a_pull_call_without_a_destination_is_told_its_messages(telemetry: Telemetry) -> None:
    """Nothing comes of it, and nothing is raised."""
    with queueprop.receive_span("orders", settings=telemetry.settings()) as receipt:  # type: ignore[arg-type]
        receipt.add(Message({}))
    assert len(telemetry.spans) == 0


def test_an_operation_that_is_no_name(telemetry: Telemetry, caplog: pytest.LogCaptureFixture) -> None:
    """settle_span(operation=["ack"]) settles, without a span."""
    with queueprop.settle_span(
        ORDERS,
        headers={},
        operation=["ack"],  # type: ignore[arg-type]
        settings=telemetry.settings(),
    ) as span:
        assert span is INVALID_SPAN
    assert len(caplog.records) == 1


def test_a_time_limit_goes_through(telemetry: Telemetry) -> None:
    """What a library raises from outside while a sequence is looked at is meant for the program."""

    class TimeLimit(Exception):
        pass

    class Slow(Odd):
        def __iter__(self) -> Iterator[Message]:
            raise TimeLimit

    guard.let_through(TimeLimit)
    with pytest.raises(TimeLimit):
        queueprop.send_span(ORDERS, Slow(), settings=telemetry.settings())


class TestHeadersOfAHandler:
    """traced_consumer without headers=."""

    def test_no_argument_has_them(self, telemetry: Telemetry, caplog: pytest.LogCaptureFixture) -> None:
        """The handler runs, in a span that belongs to no trace, and one line a handler says what to do."""

        def other(job: object) -> str:
            return "other"

        for function in (handle, other):
            decorated = traced_consumer(ORDERS, settings=telemetry.settings())(function)
            assert [decorated(42), decorated(43)] == [function(42)] * 2
        assert len(telemetry.spans) == 4
        texts = [record.getMessage() for record in caplog.records]
        assert len(texts) == 2
        assert texts[0].startswith("queueprop, traced_consumer on the function handle: ")
        assert "headers=lambda job: job.headers" in texts[0]

    def test_they_are_none(self, telemetry: Telemetry, caplog: pytest.LogCaptureFixture) -> None:
        """A message without headers is one: nothing is said."""
        traced_consumer(ORDERS, settings=telemetry.settings())(handle)(SimpleNamespace(headers=None))
        assert len(telemetry.spans) == 1
        assert caplog.records == []


class TestShown:
    """What somebody gave, in the text of an error."""

    @pytest.mark.parametrize(
        ("given", "text"),
        ids=range(11),
        argvalues=[
            (print, "the function print"),
            (handle, "the function handle"),
            ([].append, "the function list.append"),
            (Job, "the class Job"),
            (Job(), "an object of Job"),
            (Unprintable(), "an object of Unprintable"),
            (None, "None"),
            ("orders", "'orders'"),
            ("x\n" * 1000, r"'x\\nx.*\.\.\..*x\\n'"),
            (10**10_000, "an object of int|<int instance .*>"),
            ([Unprintable()], r"\[<Unprintable instance at 0x.*>\]"),
        ],
    )
    def test_it(self, given: Any, text: str) -> None:
        """A few words in one line, whatever its own representation is or raises."""
        found = checks.shown(given)
        assert re.fullmatch(text, found)
        assert len(found) < 110


class Publisher:
    """A library's own object, as `check_call` sees it."""

    def publish(self, topic: str) -> str:
        return topic

    def flush(self) -> None: ...


@pytest.fixture
def publisher(monkeypatch: pytest.MonkeyPatch) -> Publisher:
    """One of a library that there is an adapter for."""
    for function in (Publisher.publish, Publisher.flush):
        monkeypatch.setattr(function, "__module__", "pika.channel")
    return Publisher()


class TestCalls:
    """What may be wrapped by traced_publish and its like."""

    def check(self, given: Any, library: str = "pika") -> None:
        checks.check_call(
            "traced_publish", given, library, ("publish",), "a publish, as in traced_publish(it.publish)"
        )

    def test_what_stands_for_a_call(self, publisher: Publisher) -> None:
        """The library's method, whatever the user has put around it, a subclass's own, and doubles of it."""

        class Mine(Publisher):
            def publish_twice(self, topic: str) -> None: ...

        @functools.wraps(publisher.publish)
        def retried(topic: str) -> str:
            return publisher.publish(topic)

        stand_ins: tuple[Any, ...] = (
            publisher.publish,
            functools.partial(publisher.publish, "orders"),
            functools.partial(functools.partial(publisher.publish)),
            retried,
            lambda topic: topic,
            handle,
            Mine().publish,
            Mine().publish_twice,
            mock.Mock(),
            mock.MagicMock(),
            mock.Mock(spec=publisher.publish),
            mock.create_autospec(publisher.publish),
            mock.create_autospec(Publisher, instance=True).publish,
            mock.AsyncMock(),
        )
        for given in stand_ins:
            self.check(given)

    def test_what_cannot_be_one(self, publisher: Publisher) -> None:
        """An object, a class, a function of C, another method of the library's, and the method of no object."""
        wrong: tuple[Any, ...] = (
            publisher,
            None,
            "publish",
            Publisher,
            functools.partial(Publisher),
            print,
            functools.partial(print, "orders"),
            [].append,
            str.upper,
            publisher.flush,
            functools.partial(publisher.flush),
            Publisher.publish,
        )
        for given in wrong:
            with pytest.raises(TypeError, match=r"traced_publish wants a publish, as in .*, not "):
                self.check(given)

    def test_what_must_take_an_argument(self) -> None:
        """By its name or among all; what does not tell what it takes may take it."""

        class Silent:
            __signature__ = "none"

            def __call__(self) -> None: ...

        def named(topic: str, headers: object = None) -> None: ...

        def refuse(function: Any) -> None:
            checks.check_call("traced_publish", function, "pika", (), "a publish", takes="headers")

        takes: tuple[Any, ...] = (named, lambda **options: None, Silent(), mock.Mock())
        for function in (*takes, functools.partial(named, "orders")):
            refuse(function)
        takes_none: tuple[Any, ...] = (handle, lambda *args: None)
        for function in takes_none:
            with pytest.raises(TypeError, match="a publish, or a function that takes headers, not "):
                refuse(function)

    def test_another_library_s(self, publisher: Publisher) -> None:
        """The word of one adapter around the method of another's library."""
        with pytest.raises(TypeError, match=r"not the function Publisher\.publish"):
            self.check(publisher.publish, "kombu")

    def test_the_libraries_are_those_of_the_adapters(self) -> None:
        """One list."""
        assert set(map(checks.module_of, libraries.ADAPTERS)) == checks.LIBRARIES


def test_right_words_work_as_before(telemetry: Telemetry, caplog: pytest.LogCaptureFixture) -> None:
    """Settings, a Destination and a Message: a span with a context, and nothing is said."""
    headers: dict[str, Any] = {}
    with queueprop.send_span(ORDERS, Message(headers), settings=telemetry.settings()) as span:
        assert isinstance(span, Span)
        assert written(headers) == ids(span)
    assert caplog.records == []


class TestMethodsOfC:
    def test_those_of_a_library_s_own_types(self) -> None:
        """A method that is written in C tells no module: the type of its object does, or a base of that."""
        module = type("Producer", (list,), {"__module__": "cimpl"})
        derived = type("Mine", (module,), {"__module__": "shop"})
        assert checks.library_of(derived().append) == "confluent_kafka"
        assert checks.library_of([].append) is None
        checks.check_call("traced_publish", derived().append, "confluent_kafka", ("append",), "a form")
        others: list[Any] = [[].append, derived().extend]
        for given in others:
            with pytest.raises(TypeError, match="a form"):
                checks.check_call("traced_publish", given, "confluent_kafka", ("append",), "a form")
