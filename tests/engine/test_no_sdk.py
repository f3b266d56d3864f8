"""Without an SDK: no span is made, nothing raises, and what came in goes on."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry import baggage, trace
from opentelemetry.context import get_current
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import NonRecordingSpan, NoOpTracerProvider, Span, Tracer, get_current_span

from queueprop import Message, Settings
from queueprop.engine.engine import Engine
from tests.telemetry import CREATION, ORDERS, TRACEPARENT, Telemetry, current_ids, ids, written


class OldNoOpTracer(trace.NoOpTracer):
    """As the API's own before 1.31: every span is the invalid one, whatever its parent."""

    def start_span(self, *args: Any, **kwargs: Any) -> Span:
        return trace.INVALID_SPAN


class OldNoOpTracerProvider(NoOpTracerProvider):
    def get_tracer(self, *args: Any, **kwargs: Any) -> Tracer:
        return OldNoOpTracer()


@pytest.fixture(params=[NoOpTracerProvider, OldNoOpTracerProvider, TracerProvider])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """The API's no-op of now, that of before 1.31, and the SDK where OTEL_SDK_DISABLED says so."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    return Engine(Settings(tracer_provider=request.param(), meter_provider=NoOpMeterProvider()))


def test_what_came_in_goes_on(engine: Engine) -> None:
    """What a handler publishes is in the trace of its message, with its baggage and tracestate."""
    incoming = {"traceparent": TRACEPARENT, "tracestate": "a=1", "baggage": "user=7"}
    forwarded: dict[str, Any] = {}
    before = get_current()
    with engine.process(ORDERS, Message(incoming)) as span:
        assert not span.is_recording()
        assert ids(span) == current_ids() == CREATION
        assert baggage.get_all() == {"user": "7"}
        with engine.send(ORDERS, Message(forwarded)):
            assert current_ids() == CREATION
    assert forwarded == incoming
    assert get_current() is before


def test_a_message_without_a_context(engine: Engine) -> None:
    """Nothing comes in, nothing goes out; a span that is current around the loop does not get in."""
    forwarded: dict[str, Any] = {"tracestate": "a=1"}
    ambient = NonRecordingSpan(trace.SpanContext(5, 6, is_remote=False, trace_flags=trace.TraceFlags(1)))
    with (
        trace.use_span(ambient),
        engine.process(ORDERS, Message({})),
        engine.send(ORDERS, Message(forwarded)),
    ):
        assert current_ids() is None
    assert forwarded == {}


def test_a_caller_with_a_recorded_span(telemetry: Telemetry, engine: Engine) -> None:
    """Somebody else's span is carried on, although we make none."""
    headers: dict[str, Any] = {}
    with telemetry.current() as ambient, engine.send(ORDERS, Message(headers)):
        pass
    assert written(headers) == ids(ambient)


def test_every_operation(engine: Engine) -> None:
    """Batches, receives and settles, with and without errors, raise nothing and leave nothing."""
    before = get_current()
    messages = [Message({"traceparent": TRACEPARENT}, id="m1"), Message({})]
    with engine.send(ORDERS, messages), engine.process(ORDERS, messages), engine.settle(ORDERS, messages[0]):
        pass
    receive = engine.receive(ORDERS, batch=True)
    receive.open()
    receive.add(messages[0])
    receive.close()
    with pytest.raises(ValueError, match="theirs"), engine.process(ORDERS, messages[0]):
        raise ValueError("theirs")
    assert get_current() is before


def test_link_mode(engine: Engine) -> None:
    """Without spans there is nothing to link with: the ambient trace goes on, and the message's baggage."""
    engine = Engine(
        Settings(
            tracer_provider=engine.settings.tracer_provider,
            meter_provider=NoOpMeterProvider(),
            propagation="link",
        )
    )
    ambient = NonRecordingSpan(trace.SpanContext(5, 6, is_remote=False, trace_flags=trace.TraceFlags(1)))
    message = Message({"traceparent": TRACEPARENT, "baggage": "user=7"})
    with trace.use_span(ambient), engine.process(ORDERS, message):
        assert current_ids() == (5, 6)
        assert baggage.get_all() == {"user": "7"}


def test_a_batch_continues_its_trace(engine: Engine) -> None:
    """A batch of one trace: the handler is in it."""
    with engine.process(ORDERS, [Message({"traceparent": TRACEPARENT})] * 2):
        assert current_ids() == CREATION


def test_the_global_provider_is_asked_each_time(
    telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An SDK that is set up after queueprop was imported, or replaced, is used from then on."""
    from queueprop.engine import telemetry as spans

    current: list[trace.TracerProvider] = [NoOpTracerProvider()]
    monkeypatch.setattr(spans, "get_tracer_provider", lambda: current[0])
    engine = Engine(Settings(meter_provider=NoOpMeterProvider()))
    with engine.process(ORDERS, Message({})):
        assert not get_current_span().is_recording()
    current[0] = telemetry.spans.tracer_provider
    with engine.process(ORDERS, Message({})):
        assert get_current_span().is_recording()
    assert len(telemetry.spans) == 1
