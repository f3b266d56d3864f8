"""What becomes of the exception of a handler or a publish: on the span, on the metric, and in the caller's hands."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from types import FrameType

import pytest
from opentelemetry.context import get_current
from opentelemetry.sdk.trace import Span, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import StatusCode

from queueprop import Message
from queueprop.engine.engine import engine_for
from tests.telemetry import ORDERS, TRACEPARENT, Telemetry, attributes


class Refused(Exception):
    """A failure of the application's."""


class TimeLimit(Exception):
    """As a library's time limit: an Exception that a signal handler raises."""


class Unprintable(Exception):
    """Its text cannot be had."""

    def __str__(self) -> str:
        raise LookupError("no text")

    __repr__ = __str__


def process(telemetry: Telemetry, error: BaseException) -> None:
    """A handler raises this; the caller must see the very same object, and its own context again."""
    before = get_current()
    with (
        pytest.raises(type(error)) as raised,
        engine_for(telemetry.measured()).process(ORDERS, Message({"traceparent": TRACEPARENT})),
    ):
        raise error
    assert raised.value is error
    assert get_current() is before


def test_an_exception(telemetry: Telemetry) -> None:
    """ERROR with the exception's message; error.type its full class name, on the metric as well; recorded once."""
    process(telemetry, Refused("no stock"))
    span = telemetry.only()
    name = f"{Refused.__module__}.Refused"
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "no stock")
    assert attributes(span)["error.type"] == name
    (event,) = span.events
    assert event.attributes is not None
    assert event.attributes["exception.type"] == name
    assert event.attributes["exception.message"] == "no stock"
    (duration,) = telemetry.points("messaging.process.duration")
    assert duration.attributes["error.type"] == name
    assert duration.sum == ((span.end_time or 0) - (span.start_time or 0)) / 1e9


def test_a_builtin_exception_has_its_plain_name(telemetry: Telemetry) -> None:
    """`ValueError`, and not `builtins.ValueError`: as the SDK writes it on the event."""
    process(telemetry, ValueError("x"))
    assert attributes(telemetry.only())["error.type"] == "ValueError"


def test_a_nested_class_has_its_full_name(telemetry: Telemetry) -> None:
    """The qualified name tells classes of one name apart."""

    class Inner(Exception):
        pass

    process(telemetry, Inner())
    assert attributes(telemetry.only())["error.type"].endswith(
        "test_a_nested_class_has_its_full_name.<locals>.Inner"
    )


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(1), SystemExit("no"), asyncio.CancelledError()], ids=repr
)
def test_what_ends_a_handler_from_outside_is_a_failure(telemetry: Telemetry, error: BaseException) -> None:
    """Interrupts, exits with an error and cancellation left the message unhandled."""
    process(telemetry, error)
    assert telemetry.only().status.status_code is StatusCode.ERROR


@pytest.mark.parametrize("error", [GeneratorExit(), SystemExit(), SystemExit(0), SystemExit(None)], ids=repr)
def test_what_ends_in_order_is_none(telemetry: Telemetry, error: BaseException) -> None:
    """Closing a generator and leaving the program with success are no failures."""
    process(telemetry, error)
    span = telemetry.only()
    assert span.status.status_code is StatusCode.UNSET
    assert "error.type" not in attributes(span)
    assert span.events == ()
    (duration,) = telemetry.points("messaging.process.duration")
    assert "error.type" not in duration.attributes


def test_an_exception_without_text(telemetry: Telemetry, caplog: pytest.LogCaptureFixture) -> None:
    """A __str__ of the user's that raises: the span still has ERROR and type, and is measured; no fault of ours."""
    process(telemetry, Unprintable())
    span = telemetry.only()
    assert span.status.status_code is StatusCode.ERROR
    assert attributes(span)["error.type"] == f"{Unprintable.__module__}.Unprintable"
    assert span.end_time is not None
    assert len(telemetry.points("messaging.process.duration")) == 1
    assert [record for record in caplog.records if record.name == "queueprop"] == []


@pytest.mark.usefixtures("guarded")
def test_an_exception_without_text_as_users_have_it(
    telemetry: Telemetry, caplog: pytest.LogCaptureFixture
) -> None:
    """The guard has nothing to say about it either."""
    process(telemetry, Unprintable())
    assert len(telemetry.points("messaging.process.duration")) == 1
    assert [record for record in caplog.records if record.name == "queueprop"] == []


@pytest.fixture
def limit() -> Iterator[None]:
    """A signal whose handler raises TimeLimit wherever the program stands."""

    def expire(number: int, frame: FrameType | None) -> None:
        raise TimeLimit

    before = signal.signal(signal.SIGUSR1, expire)
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.usefixtures("limit", "guarded")
def test_a_time_limit_while_its_text_is_asked_for(telemetry: Telemetry) -> None:
    """A limit that fires while we read an exception's text is not ours to swallow; the span ends all the same."""

    class Slow(Exception):
        def __str__(self) -> str:
            signal.raise_signal(signal.SIGUSR1)
            return "slow"

    before = get_current()
    with pytest.raises(TimeLimit), telemetry.engine().process(ORDERS, Message({})):
        raise Slow
    assert get_current() is before
    assert telemetry.only().end_time is not None


@pytest.mark.usefixtures("limit", "guarded")
def test_a_time_limit_while_it_is_recorded(telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is one that fires while the SDK records the exception for us."""

    def record_exception(*args: object) -> None:
        signal.raise_signal(signal.SIGUSR1)

    monkeypatch.setattr(Span, "record_exception", record_exception)
    before = get_current()
    with pytest.raises(TimeLimit), telemetry.engine().process(ORDERS, Message({})):
        raise Refused
    assert get_current() is before
    assert telemetry.only().end_time is not None


def test_where_nothing_is_recorded(telemetry: Telemetry) -> None:
    """Sampled out: the metric still tells of the failure, and the exception is the same."""
    off = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    engine = engine_for(telemetry.measured(tracer_provider=off))
    with pytest.raises(Refused), engine.process(ORDERS, Message({})):
        raise Refused
    (duration,) = telemetry.points("messaging.process.duration")
    assert duration.attributes["error.type"] == f"{Refused.__module__}.Refused"


def test_chained_exceptions_are_left_as_they_are(telemetry: Telemetry) -> None:
    """Cause, context and notes of the caller's exception are not altered."""
    cause = LookupError("cause")
    with pytest.raises(Refused) as raised, telemetry.engine().process(ORDERS, Message({})):
        raise Refused from cause
    assert raised.value.__cause__ is cause
    assert raised.value.__context__ is None
