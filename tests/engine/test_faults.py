"""A fault of ours: the user's call goes on, untraced, and the log says so once."""

from __future__ import annotations

import functools
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.context import get_current
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.trace import INVALID_SPAN, NoOpTracerProvider, get_current_span

import queueprop
from queueprop import Message, guard
from queueprop.engine import telemetry as spans
from queueprop.engine.engine import Engine, engine_for
from queueprop.engine.operations import Operation
from tests.telemetry import ORDERS, TRACEPARENT, Telemetry

Make = Callable[[Engine], Any]

OPERATIONS: dict[str, Make] = {
    "send": lambda engine: engine.send(ORDERS, Message({})),
    "send of a batch": lambda engine: engine.send(ORDERS, [Message({}), Message({})]),
    "process": lambda engine: engine.process(ORDERS, Message({"traceparent": TRACEPARENT})),
    "process of a batch": lambda engine: engine.process(ORDERS, [Message({"traceparent": TRACEPARENT})]),
    "receive": lambda engine: received(engine),
    "settle": lambda engine: engine.settle(ORDERS, Message({})),
}

OUR_CODE = str(Path(queueprop.__file__).parent)

every_operation = pytest.mark.parametrize("make", OPERATIONS.values(), ids=OPERATIONS.keys())


def received(engine: Engine) -> Operation:
    receive = engine.receive(ORDERS)
    receive.add(Message({"traceparent": TRACEPARENT}))
    return receive


class Broken(Exception):
    """What the tests break our code with."""


class TimeLimit(Exception):
    """As a library's time limit: an Exception that is raised wherever the program stands."""


class BrokenTracers(NoOpTracerProvider):
    def get_tracer(self, *args: Any, **kwargs: Any) -> trace.Tracer:
        raise Broken("no tracer")


class BrokenMeters(NoOpMeterProvider):
    def get_meter(self, *args: Any, **kwargs: Any) -> Any:
        raise Broken("no meter")


class BrokenEnd(SpanProcessor):
    """An exporter's fault at the end of each span."""

    def __init__(self, error: BaseException) -> None:
        self._error = error
        self.ended: list[str] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.ended.append(span.name)
        raise self._error


def handled(operation: Operation) -> bool:
    """Runs a body inside; true when it ran and its own exception came out as it was."""
    error = ValueError("the body's own")
    before = get_current()
    with operation:
        ran = True
    assert get_current() is before
    return ran and error.args == ("the body's own",)


@every_operation
@pytest.mark.usefixtures("guarded")
@pytest.mark.parametrize(
    ("given", "about"),
    [({"tracer_provider": BrokenTracers()}, "orders"), ({"meter_provider": BrokenMeters()}, "the metrics")],
)
def test_nothing_can_be_told(
    telemetry: Telemetry, caplog: pytest.LogCaptureFixture, make: Make, given: dict[str, Any], about: str
) -> None:
    """The body runs, its context is as it was before, one warning with a traceback tells of it, once."""
    engine = telemetry.engine(**given)
    for _ in range(3):
        before = get_current()
        ran = False
        with make(engine):
            ran = True
        assert ran
        assert get_current() is before
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert warnings[0].exc_info is not None
    assert about in warnings[0].getMessage()


@every_operation
@pytest.mark.usefixtures("guarded")
def test_the_span_cannot_be_ended(telemetry: Telemetry, caplog: pytest.LogCaptureFixture, make: Make) -> None:
    """A span processor that raises: the body has run, its context is restored, one warning a place."""
    processor = BrokenEnd(Broken("no end"))
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    engine = telemetry.engine(tracer_provider=provider)
    for _ in range(2):
        before = get_current()
        with make(engine):
            pass
        assert get_current() is before
    assert len(processor.ended) >= 2
    assert len(caplog.records) == 1


@every_operation
@pytest.mark.usefixtures("guarded")
def test_the_bodys_exception_comes_first(telemetry: Telemetry, make: Make) -> None:
    """Our fault while telling of the user's exception: the user still sees their own."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BrokenEnd(Broken("no end")))
    with pytest.raises(ConnectionError, match="theirs"), make(telemetry.engine(tracer_provider=provider)):
        raise ConnectionError("theirs")


@every_operation
def test_under_our_own_suite_it_is_raised(telemetry: Telemetry, make: Make) -> None:
    """Here, and nowhere else, a fault fails the test; and the context is restored even so."""
    before = get_current()
    with pytest.raises(Broken), make(telemetry.engine(tracer_provider=BrokenTracers())):
        pass
    assert get_current() is before


@every_operation
@pytest.mark.usefixtures("guarded")
def test_what_a_library_raises_from_outside_goes_through(telemetry: Telemetry, make: Make) -> None:
    """A registered time limit that fires in our code reaches the user's call; nothing stays current."""
    guard.let_through(TimeLimit)
    processor = BrokenEnd(TimeLimit())
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    before = get_current()
    with pytest.raises(TimeLimit), make(telemetry.engine(tracer_provider=provider)):
        pass
    assert get_current() is before


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
@pytest.mark.usefixtures("guarded")
def test_what_is_no_exception_of_code_goes_through(telemetry: Telemetry, error: BaseException) -> None:
    """Ctrl-C inside a hook of ours ends the program as it should, and closes the span."""

    def hook(span: object, message: object) -> None:
        raise error

    before = get_current()
    engine = telemetry.engine(consume_hook=hook, publish_hook=hook)
    for operation in (engine.process(ORDERS, Message({})), engine.send(ORDERS, Message({}))):
        with pytest.raises(type(error)), operation:
            pass
        assert get_current() is before
    assert len(telemetry.spans) == 2


@pytest.mark.usefixtures("guarded")
def test_nothing_half_begun_stays(telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault behind the start of the span: it is ended, nothing is current, and the handler runs outside."""

    def broken(*args: object) -> None:
        raise Broken("no details")

    engine = engine_for(telemetry.settings(capture_headers=("x",)))
    monkeypatch.setattr(engine, "enrich", broken)
    with telemetry.current() as ambient, engine.process(ORDERS, Message({})):
        assert get_current_span() is ambient
    assert sorted(span.name for span in telemetry.spans) == ["ambient", "process orders"]


@pytest.mark.usefixtures("guarded")
def test_a_wrong_send_time(telemetry: Telemetry) -> None:
    """A send time that is no number costs the time in the queue, not the span: no CONSUMER span is lost by junk."""
    message = Message({"traceparent": TRACEPARENT}, sent_at="yesterday")  # type: ignore[arg-type]
    with telemetry.engine().process(ORDERS, message):
        pass
    assert telemetry.only().name == "process orders"


def test_without_a_span_it_says_so() -> None:
    """An operation that was not opened has the invalid span, and an operation of no kind starts none."""
    engine = Engine()
    operation = Operation(engine, ORDERS.labels("process", "process"))
    assert operation.span is INVALID_SPAN
    with pytest.raises(NotImplementedError):
        operation.open()


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A signal whose handler raises TimeLimit wherever the program stands; a lock that is never given back for it
    belongs to this test alone.
    """
    monkeypatch.setattr(spans, "_making_instruments", threading.RLock())

    def expire(number: int, frame: FrameType | None) -> None:
        raise TimeLimit

    before = signal.signal(signal.SIGUSR1, expire)
    yield
    signal.signal(signal.SIGUSR1, before)


class Interrupter:
    """Raises the signal before the n-th line of queueprop's code that runs."""

    def __init__(self, line: int) -> None:
        self._left = line
        self.fired_in: str | None = None

    def __call__(self, frame: FrameType, event: str, argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(OUR_CODE):
            return None
        if event == "line" and self.fired_in is None:
            self._left -= 1
            if self._left == 0:
                self.fired_in = f"{frame.f_code.co_name}:{frame.f_lineno}"
                signal.raise_signal(signal.SIGUSR1)
        return self


def interrupted(line: int, call: Callable[[], object]) -> Interrupter:
    """Runs the call with a time limit at this line of ours; the limit must come out of it."""
    interrupter = Interrupter(line)
    before = sys.gettrace()
    sys.settrace(interrupter)
    try:
        call()
    except TimeLimit:
        assert interrupter.fired_in is not None
    else:
        assert interrupter.fired_in is None, f"the time limit was swallowed: {interrupter.fired_in}"
    finally:
        sys.settrace(before)
    return interrupter


@every_operation
@pytest.mark.usefixtures("guarded", "limit")
def test_a_time_limit_at_any_line_of_the_beginning(telemetry: Telemetry, make: Make) -> None:
    """Whatever line of ours it hits while an operation is opened: it goes through, and nothing stays current."""
    engine = telemetry.engine(trust=lambda destination, message: True, capture_headers=("x",))
    before = get_current()
    line = 0
    while True:
        line += 1
        operation = make(engine)
        interrupter = interrupted(line, operation.open)
        if interrupter.fired_in is None:
            operation.close()
            break
        assert get_current() is before, interrupter.fired_in
    assert line > 5


@every_operation
@pytest.mark.usefixtures("guarded", "limit")
def test_a_time_limit_at_any_line_of_the_end(telemetry: Telemetry, make: Make) -> None:
    """The same while it is closed; a second close, as in a finally of the caller's, finds nothing to do."""
    engine = engine_for(telemetry.measured())
    before = get_current()
    line = 0
    while True:
        line += 1
        operation = make(engine)
        operation.open()
        interrupter = interrupted(line, functools.partial(operation.close, ValueError("x")))
        operation.close()
        if interrupter.fired_in is None:
            break
        assert get_current() is before, interrupter.fired_in
    assert line > 5
