"""The SDK is somebody else's code, too: whatever of it raises or gives something odd, messages go out and come in."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry import metrics, trace
from opentelemetry.context import Context, attach, get_current
from opentelemetry.metrics import NoOpMeter
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler
from opentelemetry.trace import INVALID_SPAN, NonRecordingSpan, Span, SpanContext, get_current_span

from queueprop import Destination, Message, guard, process_span
from queueprop.engine import telemetry as spans
from queueprop.engine.engine import Engine
from queueprop.engine.operations import Operation
from queueprop.kit.handlers import run_inside
from queueprop.kit.iteration import iterate_inside
from queueprop.wire.propagation import SPAN_KEY
from tests.telemetry import ORDERS, OTHER_TRACE, TRACE, TRACEPARENT, Telemetry, traceparent

Seen = list[int | None]
"""The trace ids that a use of the engine has seen, on the wire or in a handler; None where there was none."""

Use = Callable[[Engine], Seen]

SENT = "messaging.client.sent.messages"

pytestmark = pytest.mark.usefixtures("guarded")


class Broken(Exception):
    """What the SDK raises here."""


class Theirs(Exception):
    """What the user's own code raises."""


def raises(*args: Any, **kwargs: Any) -> Any:
    raise Broken("no")


# What is used of the engine. Each handles its messages inside the context that is current, and tells what it saw.


def on_the_wire(headers: Mapping[str, str]) -> int | None:
    return int(headers["traceparent"].split("-")[1], 16) if "traceparent" in headers else None


def in_hand() -> int | None:
    found = get_current_span().get_span_context()
    return found.trace_id if found.is_valid else None


def arrived() -> Message:
    return Message(
        {"traceparent": TRACEPARENT, "x": "1"}, id="m1", sent_at=1.0, native=object(), describe=told
    )


def told(native: object) -> dict[str, str]:
    return {"told": "1"}


def out(headers: dict[str, str]) -> Message:
    return Message(headers, id="m1", native=object(), describe=told)


def send(engine: Engine) -> Seen:
    headers: dict[str, str] = {}
    with engine.send(ORDERS, out(headers)):
        pass
    return [on_the_wire(headers)]


def send_that_fails(engine: Engine) -> Seen:
    headers: dict[str, str] = {}
    with pytest.raises(Theirs), engine.send(ORDERS, out(headers)):
        raise Theirs
    return [on_the_wire(headers)]


def send_a_batch(engine: Engine) -> Seen:
    several: list[dict[str, str]] = [{}, {}, {}]
    with engine.send(ORDERS, [out(headers) for headers in several]):
        pass
    with pytest.raises(Theirs), engine.send(ORDERS, [out({})]):
        raise Theirs
    return [on_the_wire(headers) for headers in several]


def send_what_was_made(engine: Engine) -> Seen:
    several: list[dict[str, str]] = [{}, {}]
    messages = [out(headers) for headers in several]
    created = [engine.create(ORDERS, message) for message in messages]
    for create in created:
        create.open()
        create.close(Destination("my-queue", "shop"))
        create.close()
    with engine.send(ORDERS, messages, created=created):
        pass
    return [on_the_wire(headers) for headers in several]


ENDS: list[Callable[[Any], object]] = [
    lambda future: future.set_result("7"),
    lambda future: future.set_exception(Theirs()),
    lambda future: future.cancel(),
]


def send_and_be_told(engine: Engine) -> Seen:
    seen: Seen = []
    for end in ENDS:
        headers: dict[str, str] = {}
        future: concurrent.futures.Future[str] = concurrent.futures.Future()
        operation = engine.send(ORDERS, out(headers))
        operation.open()
        operation.end_with(future, told)
        end(future)
        assert operation.closed
        seen.append(on_the_wire(headers))
    return seen


def send_and_be_told_in_a_loop(engine: Engine) -> Seen:
    reported: list[Any] = []
    seen: Seen = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, told: reported.append(told))
        for end in ENDS:
            headers: dict[str, str] = {}
            future: asyncio.Future[str] = loop.create_future()
            operation = engine.send(ORDERS, out(headers))
            operation.open()
            operation.end_with(future, told)
            end(future)
            await asyncio.wait([future])
            await asyncio.sleep(0)
            if not future.cancelled():
                future.exception()
            assert operation.closed
            seen.append(on_the_wire(headers))

    asyncio.run(main())
    assert reported == []
    return seen


def send_with_an_answer(engine: Engine) -> Seen:
    headers: dict[str, str] = {}
    operation = engine.send(ORDERS, out(headers))
    operation.open()
    operation.close_with("7", told)
    return [on_the_wire(headers)]


def send_that_is_marked_as_failed(engine: Engine) -> Seen:
    headers: dict[str, str] = {}
    operation = engine.send(ORDERS, out(headers))
    operation.open()
    operation.fail("nacked", "the broker said no")
    operation.close()
    operation.close()
    return [on_the_wire(headers)]


def process(engine: Engine) -> Seen:
    with engine.process(ORDERS, arrived()):
        seen = [in_hand()]
    return seen


def process_that_fails(engine: Engine) -> Seen:
    seen: Seen = []

    def refuse() -> None:
        seen.append(in_hand())
        raise Theirs

    with pytest.raises(Theirs), engine.process(ORDERS, arrived()):
        refuse()
    return seen


def process_a_batch(engine: Engine) -> Seen:
    with engine.process(ORDERS, [arrived(), arrived()]):
        seen = [in_hand()]
    with pytest.raises(Theirs), engine.process(ORDERS, [arrived()]):
        raise Theirs
    return seen


def process_in_a_handler(engine: Engine) -> Seen:
    seen: Seen = []

    def handle() -> int:
        seen.append(in_hand())
        return 7

    def refuse() -> None:
        seen.append(in_hand())
        raise Theirs

    def begin(*args: Any) -> Operation:
        return engine.process(ORDERS, arrived())

    assert run_inside(handle, begin)() == 7
    with pytest.raises(Theirs):
        run_inside(refuse, begin)()
    return seen


def process_in_a_loop(engine: Engine) -> Seen:
    seen = [in_hand() for _ in iterate_inside(range(3), lambda _: engine.process(ORDERS, arrived()))]
    assert len(seen) == 3
    return seen


def receive(engine: Engine) -> Seen:
    for several in (False, True):
        operation = engine.receive(ORDERS, batch=several)
        operation.open()
        operation.add(arrived())
        operation.close()
    failed = engine.receive(ORDERS)
    failed.open()
    failed.close(Theirs())
    return []


def settle(engine: Engine) -> Seen:
    with engine.settle(ORDERS, arrived()):
        pass
    with engine.settle(ORDERS, [arrived(), arrived()]):
        pass
    with pytest.raises(Theirs), engine.settle(ORDERS, arrived()):
        raise Theirs
    return []


def settle_what_is_over(engine: Engine) -> Seen:
    handled, late = arrived(), Message({})
    operation = engine.process(ORDERS, handled)
    operation.open()
    assert late.process_context is None
    late.process_context = operation.settle_context
    operation.close()
    late.process_context = operation.settle_context
    for message in (handled, late):
        with engine.settle(ORDERS, message):
            pass
    return []


def excluded(engine: Engine) -> Seen:
    left_alone = Destination("my-queue", "left alone")
    headers: dict[str, str] = {}
    with engine.send(left_alone, out(headers)):
        pass
    with engine.process(left_alone, arrived()):
        seen = in_hand()
    with engine.process(left_alone, [arrived()]), engine.settle(left_alone, arrived()):
        pass
    return [on_the_wire(headers), seen]


SENDS: list[Use] = [
    send,
    send_that_fails,
    send_a_batch,
    send_what_was_made,
    send_and_be_told,
    send_and_be_told_in_a_loop,
    send_with_an_answer,
    send_that_is_marked_as_failed,
]
DELIVERIES: list[Use] = [
    process,
    process_that_fails,
    process_a_batch,
    process_in_a_handler,
    process_in_a_loop,
]
USES: list[Use] = [*SENDS, *DELIVERIES, receive, settle, settle_what_is_over, excluded]

every_use = pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)


# What an SDK may do wrong.


class FaultySpan(Span):
    """A span of the SDK's one of whose methods does something else."""

    def __init__(self, span: Span, method: str, fault: Callable[..., Any]) -> None:
        self._span = span
        self._method = method
        self._fault = fault

    def _do(self, method: str, *args: Any, **kwargs: Any) -> Any:
        done = self._fault if method == self._method else getattr(self._span, method)
        return done(*args, **kwargs)

    def get_span_context(self) -> Any:
        return self._do("get_span_context")

    def is_recording(self) -> Any:
        return self._do("is_recording")

    def set_attribute(self, *args: Any) -> None:
        self._do("set_attribute", *args)

    def set_attributes(self, *args: Any) -> None:
        self._do("set_attributes", *args)

    def set_status(self, *args: Any, **kwargs: Any) -> None:
        self._do("set_status", *args, **kwargs)

    def record_exception(self, *args: Any, **kwargs: Any) -> None:
        self._do("record_exception", *args, **kwargs)

    def add_event(self, *args: Any, **kwargs: Any) -> None:
        self._do("add_event", *args, **kwargs)

    def update_name(self, *args: Any) -> None:
        self._do("update_name", *args)

    def end(self, *args: Any) -> None:
        self._do("end", *args)


METHODS = [name for name in vars(FaultySpan) if not name.startswith("_")]


class Tracers(trace.TracerProvider):
    """Tracers of the real SDK whose ``start_span`` does something else with what that one gives."""

    def __init__(self, telemetry: Telemetry, alter: Callable[[Span], Any]) -> None:
        self._provider = telemetry.spans.tracer_provider
        self._alter = alter

    def get_tracer(self, *args: Any, **kwargs: Any) -> Any:
        tracer = self._provider.get_tracer(*args, **kwargs)
        return SimpleNamespace(start_span=lambda *given: self._alter(tracer.start_span(*given)))


class Truthless:
    def __bool__(self) -> bool:
        raise Broken("neither true nor false")


class OddSampler(Sampler):
    def __init__(self, sample: Callable[..., Any]) -> None:
        self._sample = sample

    def should_sample(self, *args: Any, **kwargs: Any) -> Any:
        return self._sample()

    def get_description(self) -> str:
        return "odd"


class OddIds(RandomIdGenerator):
    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def generate_span_id(self) -> Any:
        return self._make()

    generate_trace_id = generate_span_id


class OddProcessor(SpanProcessor):
    def __init__(self, method: str) -> None:
        setattr(self, method, raises)


Given = Callable[[Telemetry], dict[str, Any]]


def tracers(alter: Callable[[Span], Any]) -> Given:
    return lambda telemetry: {"tracer_provider": Tracers(telemetry, alter)}


def span_that(method: str, fault: Callable[..., Any]) -> Given:
    return tracers(lambda span: FaultySpan(span, method, fault))


def provider_that(get_tracer: Callable[..., Any]) -> Given:
    return lambda telemetry: {"tracer_provider": SimpleNamespace(get_tracer=get_tracer)}


def sdk_with(**options: Any) -> Given:
    return lambda telemetry: {"tracer_provider": TracerProvider(shutdown_on_exit=False, **options)}


def sdk_with_a_processor(method: str) -> Given:
    def given(telemetry: Telemetry) -> dict[str, Any]:
        provider = TracerProvider(sampler=ALWAYS_ON, shutdown_on_exit=False)
        provider.add_span_processor(OddProcessor(method))
        return {"tracer_provider": provider}

    return given


class Meters(metrics.MeterProvider):
    """Meters of which something is not as it should be."""

    def __init__(self, **odd: Callable[..., Any]) -> None:
        self._odd = odd

    def get_meter(self, *args: Any, **kwargs: Any) -> Any:
        if "get_meter" in self._odd:
            return self._odd["get_meter"]()
        made = {"create_histogram": self._histogram, "create_counter": self._counter}
        return SimpleNamespace(**{**made, **self._odd})

    def _histogram(self, *args: Any, **kwargs: Any) -> Any:
        instrument = NoOpMeter("test").create_histogram("x")
        if "record" in self._odd:
            instrument.record = self._odd["record"]  # type: ignore[method-assign]
        return instrument

    def _counter(self, *args: Any, **kwargs: Any) -> Any:
        instrument = NoOpMeter("test").create_counter("x")
        if "add" in self._odd:
            instrument.add = self._odd["add"]  # type: ignore[method-assign]
        return instrument


def meters(**odd: Callable[..., Any]) -> Given:
    return lambda telemetry: {"meter_provider": Meters(**odd)}


def none(*args: Any, **kwargs: Any) -> Any:
    return None


INVALID_CONTEXT = SpanContext(0, 0, is_remote=False)

FAULTS: dict[str, Given] = {
    "get_tracer raises": provider_that(raises),
    "get_tracer gives None": provider_that(none),
    "start_span raises": tracers(raises),
    "start_span gives None": tracers(none),
    "start_span gives anything": tracers(lambda span: object()),
    **{f"{method} raises": span_that(method, raises) for method in METHODS},
    "a span without a context": span_that("get_span_context", none),
    "a span with junk for a context": span_that("get_span_context", lambda: "00-junk"),
    "a span with an odd context": span_that("get_span_context", lambda: SimpleNamespace(is_valid=True)),
    "a span with an invalid context": span_that("get_span_context", lambda: INVALID_CONTEXT),
    "is_recording gives no truth": span_that("is_recording", Truthless),
    "the sampler raises": sdk_with(sampler=OddSampler(raises)),
    "the sampler gives None": sdk_with(sampler=OddSampler(none)),
    "the id generator raises": sdk_with(id_generator=OddIds(raises), sampler=ALWAYS_ON),
    "the id generator gives None": sdk_with(id_generator=OddIds(none), sampler=ALWAYS_ON),
    "the id generator gives text": sdk_with(id_generator=OddIds(lambda: "x"), sampler=ALWAYS_ON),
    "the id generator gives 0": sdk_with(id_generator=OddIds(lambda: 0), sampler=ALWAYS_ON),
    "on_start raises": sdk_with_a_processor("on_start"),
    "on_end raises": sdk_with_a_processor("on_end"),
    "get_meter raises": meters(get_meter=raises),
    "get_meter gives None": meters(get_meter=none),
    "create_histogram raises": meters(create_histogram=raises),
    "create_histogram gives None": meters(create_histogram=none),
    "create_counter raises": meters(create_counter=raises),
    "create_counter gives None": meters(create_counter=none),
    "record raises": meters(record=raises),
    "add raises": meters(add=raises),
}

every_fault = pytest.mark.parametrize("given", FAULTS.values(), ids=FAULTS.keys())


@contextmanager
def inside(span: object) -> Iterator[None]:
    """With this for a current span, and nothing but it left behind."""
    before = get_current()
    here = Context({SPAN_KEY: span})
    attach(here)
    try:
        yield
        assert get_current() is here
    finally:
        attach(before)


def remote() -> Span:
    return NonRecordingSpan(SpanContext(TRACE, 0xA, is_remote=True, trace_flags=trace.TraceFlags(1)))


@every_fault
@every_use
def test_every_message_goes_on_in_its_trace(
    telemetry: Telemetry, caplog: pytest.LogCaptureFixture, use: Use, given: Given
) -> None:
    """Whatever fails, whatever is done, and however often: nothing is raised but the user's own, the body runs, what
    was current is current again, and messages go out and are handled in the trace that they belong to. It is said
    once a place, and only by queueprop."""
    settings = {"meter_provider": telemetry.meter_provider, "exclude": ("left alone",), "body_size": True}
    engine = Engine(telemetry.settings(**{**settings, **given(telemetry)}))
    with inside(remote()):
        for _ in range(3):
            seen = use(engine)
            assert seen == [TRACE] * len(seen)
    assert {record.name for record in caplog.records} <= {"queueprop"}
    assert len(caplog.records) == len({record.getMessage().partition(" (")[0] for record in caplog.records})
    assert not any("orders" in key for key in guard._logged)


class OddAmbient:
    """No span at all."""

    def get_span_context(self) -> SpanContext:
        return SpanContext(OTHER_TRACE, 0xB, is_remote=False)


AMBIENTS: dict[str, Callable[[], object]] = {
    "no span at all": OddAmbient,
    "None": none,
    "text": lambda: "span",
    "a span whose context raises": lambda: FaultySpan(remote(), "get_span_context", raises),
    "a span without a context": lambda: FaultySpan(remote(), "get_span_context", none),
    "a span with junk for a context": lambda: FaultySpan(remote(), "get_span_context", lambda: 7),
    "a span with an odd context": lambda: FaultySpan(
        remote(), "get_span_context", lambda: SimpleNamespace(is_valid=True, trace_id="x")
    ),
    "a span whose recording raises": lambda: FaultySpan(remote(), "is_recording", raises),
}


@pytest.mark.parametrize("ambient", AMBIENTS.values(), ids=AMBIENTS.keys())
@pytest.mark.parametrize("propagation", ["parent", "link"])
@every_use
def test_an_odd_span_is_current(
    telemetry: Telemetry, use: Use, ambient: Callable[[], object], propagation: str
) -> None:
    """A span of a foreign class that is current while messages are sent and handled: nothing is raised, the body runs,
    that span is current again afterwards, and a delivery has its CONSUMER span in the message's trace."""
    engine = telemetry.engine(propagation=propagation, exclude=("left alone",))
    with inside(ambient()):
        seen = use(engine)
    if use in DELIVERIES and propagation == "parent":
        assert seen == [TRACE] * len(seen)
        assert [span.context.trace_id for span in telemetry.spans] == [TRACE] * len(telemetry.spans)
        assert len(telemetry.spans) >= len(seen)


@every_use
def test_later_messages_have_their_spans(telemetry: Telemetry, use: Use) -> None:
    """A tracer that fails for a while: afterwards all is as it was without it."""
    fails = [True]
    engine = telemetry.engine(
        tracer_provider=Tracers(telemetry, lambda span: raises() if fails[0] else span),
        exclude=("left alone",),
    )
    use(engine)
    telemetry.spans.clear()
    fails[0] = False
    with inside(remote()):
        use(engine)
        found = [span.name for span in telemetry.spans]
        telemetry.spans.clear()
        use(telemetry.engine(exclude=("left alone",)))
    assert found == [span.name for span in telemetry.spans]


@pytest.mark.parametrize("asked", ["get_tracer_provider", "get_meter_provider"])
@every_use
def test_there_is_no_global_provider_to_be_had(
    telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch, use: Use, asked: str
) -> None:
    """The API raises where a variable names a provider that cannot be made: the same."""
    monkeypatch.setattr(spans, asked, raises)
    engine = Engine(telemetry.settings(**{asked.removeprefix("get_"): None}, exclude=("left alone",)))
    with inside(remote()):
        for _ in range(2):
            seen = use(engine)
            assert seen == [TRACE] * len(seen)


@pytest.mark.parametrize("asked", ["get_tracer_provider", "get_meter_provider"])
def test_a_global_provider_is_asked_again_after_a_while(
    telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    """Where there is none to be had the API is not asked for each message, which costs milliseconds and a traceback in
    the log; and one that is set later is found.
    """
    times = itertools.count()
    now = [0.0]
    field = asked.removeprefix("get_")
    found = {"tracer_provider": telemetry.spans.tracer_provider, "meter_provider": telemetry.meter_provider}
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(spans, asked, lambda: found[field] if next(times) >= 2 else raises())
    engine = Engine(telemetry.measured(**{field: None}))
    for now[0] in (0.0, 1.0, 59.0, 61.0, 62.0, 120.0):
        send(engine)
    assert next(times) == 2
    now[0] = 122.0
    send(engine)
    send(engine)
    made = {"tracer_provider": len(telemetry.spans), "meter_provider": telemetry.points(SENT)[0].value}
    assert (next(times), made[field]) == (5, 2)


def test_a_provider_that_cannot_measure_is_asked_once(telemetry: Telemetry) -> None:
    """Its instruments are not tried again for each message: an SDK would tell of each that is made twice."""
    asked = itertools.count()
    provider = Meters(get_meter=lambda: next(asked) and None)
    engine = telemetry.engine(meter_provider=provider)
    for _ in range(10):
        process(engine)
    assert next(asked) == 1
    assert len(telemetry.spans) == 10


def test_metrics_do_not_need_a_span(telemetry: Telemetry) -> None:
    """Where the tracer fails, messages are counted all the same."""
    engine = Engine(telemetry.measured(tracer_provider=Tracers(telemetry, raises)))
    process(engine)
    process_that_fails(engine)
    send(engine)
    assert sum(point.value for point in telemetry.points("messaging.client.consumed.messages")) == 2
    assert sum(point.value for point in telemetry.points(SENT)) == 1


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("end", "get_span_context")])
def test_a_fault_of_a_span_does_not_cost_its_end(telemetry: Telemetry, method: str) -> None:
    """Whatever of it cannot be told to a span, it is ended, and the message is counted."""
    engine = Engine(telemetry.measured(**span_that(method, raises)(telemetry)))
    process_that_fails(engine)
    send_that_is_marked_as_failed(engine)
    send_what_was_made(engine)
    assert len(telemetry.spans) == 5
    (point,) = telemetry.points("messaging.client.consumed.messages")
    assert point.attributes["error.type"].endswith("Theirs")


def test_a_broken_sdk_and_names_without_end(telemetry: Telemetry, caplog: pytest.LogCaptureFixture) -> None:
    """Of 5,000 destinations one traceback is told and kept, and the name of one."""
    engine = telemetry.engine(tracer_provider=Tracers(telemetry, raises))
    for number in range(5000):
        with engine.send(Destination("my-queue", f"reply-{number}"), Message({})):
            pass
    (record,) = caplog.records
    assert "reply-0" in record.getMessage()
    assert len(guard._logged) == 1


def test_the_span_that_a_block_is_given_can_be_used(telemetry: Telemetry) -> None:
    """``with process_span(...) as span``: there is one, also where the SDK has none to give."""
    settings = telemetry.settings(tracer_provider=Tracers(telemetry, none))
    with process_span(ORDERS, headers={"traceparent": traceparent()}, settings=settings) as span:
        span.set_attribute("a", 1)
        assert span is not INVALID_SPAN
        assert span.get_span_context().trace_id == TRACE


FUTURES: dict[str, Any] = {
    "no future": object(),
    "one that takes no callback": SimpleNamespace(add_done_callback=raises),
    "one that cannot be cancelled": SimpleNamespace(
        add_done_callback=lambda call: call(SimpleNamespace(cancelled=raises))
    ),
    "one that has no error to tell": SimpleNamespace(
        add_done_callback=lambda call: call(SimpleNamespace(cancelled=lambda: False, exception=raises))
    ),
    "one that has no result to tell": SimpleNamespace(
        add_done_callback=lambda call: call(
            SimpleNamespace(cancelled=lambda: False, exception=none, result=raises)
        )
    ),
}


@pytest.mark.parametrize("future", FUTURES.values(), ids=FUTURES.keys())
def test_an_odd_future(telemetry: Telemetry, future: Any) -> None:
    """A library's future that answers as none of asyncio's does: the span ends, and nothing is raised."""
    operation = telemetry.engine().send(ORDERS, Message({}))
    operation.open()
    operation.end_with(future, told)
    assert operation.closed
    assert telemetry.only().name == "publish orders"
