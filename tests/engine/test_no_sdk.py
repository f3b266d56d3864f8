"""Without an SDK: no span is made, nothing raises, and what came in goes on."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
from opentelemetry import baggage, trace
from opentelemetry.context import get_current
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import NonRecordingSpan, NoOpTracerProvider, Span, Tracer, get_current_span

from queueprop import Message, Settings
from queueprop.engine import no_sdk
from queueprop.engine import telemetry as spans
from queueprop.engine.engine import Engine
from tests.telemetry import CREATION, ORDERS, TRACEPARENT, Telemetry, current_ids, ids, written

PROXY = trace.ProxyTracerProvider()
LAUNCHER = "opentelemetry.instrumentation.auto_instrumentation"


class OldNoOpTracer(trace.NoOpTracer):
    """As the API's own before 1.31: every span is the invalid one, whatever its parent."""

    def start_span(self, *args: Any, **kwargs: Any) -> Span:
        return trace.INVALID_SPAN


class OldNoOpTracerProvider(NoOpTracerProvider):
    def get_tracer(self, *args: Any, **kwargs: Any) -> Tracer:
        return OldNoOpTracer()


@pytest.fixture(params=[None, NoOpTracerProvider, OldNoOpTracerProvider, TracerProvider])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """The API's stand-in, which nobody has set, its no-op of now, that of before 1.31, and the SDK where
    OTEL_SDK_DISABLED says so.
    """
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    monkeypatch.setattr(spans, "get_tracer_provider", lambda: PROXY)
    given = None if request.param is None else request.param()
    return Engine(Settings(tracer_provider=given, meter_provider=NoOpMeterProvider()))


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


class TestNotice:
    """What a person is told where messages would be traced and there is no SDK."""

    @pytest.fixture(autouse=True)
    def _nobody_has_set_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("OTEL_SDK_DISABLED", raising=False)
        monkeypatch.setattr(spans, "get_tracer_provider", lambda: PROXY)
        monkeypatch.delitem(sys.modules, LAUNCHER, raising=False)

    def test_one_line(self, caplog: pytest.LogCaptureFixture) -> None:
        """At the first message, however many there are, and of whichever settings: that, and what to do."""
        assert caplog.records == []
        for settings in (Settings(), Settings(propagation="link")):
            engine = Engine(settings)
            for _ in range(3):
                with engine.process(ORDERS, Message({})), engine.send(ORDERS, Message({})):
                    pass
        (record,) = caplog.records
        text = record.getMessage()
        assert text.startswith(
            "queueprop, tracing messages: no OpenTelemetry SDK is set up in this process, so no spans"
        )
        for part in ("configure_tracing()", "opentelemetry-distro", "OTEL_SDK_DISABLED=true"):
            assert part in text
        assert "\n" not in text

    def test_under_the_launcher(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It says what the launcher lacks."""
        monkeypatch.setitem(sys.modules, LAUNCHER, ModuleType(LAUNCHER))
        with Engine().send(ORDERS, Message({})):
            pass
        (record,) = caplog.records
        assert "opentelemetry-instrument has set up no OpenTelemetry SDK" in record.getMessage()
        assert "pip install opentelemetry-distro opentelemetry-exporter-otlp" in record.getMessage()

    @pytest.mark.parametrize("value", ["true", "TRUE", " true "])
    def test_none_is_wanted(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, value: str
    ) -> None:
        """OTEL_SDK_DISABLED says so: not a word."""
        monkeypatch.setenv("OTEL_SDK_DISABLED", value)
        with Engine().send(ORDERS, Message({})):
            pass
        assert caplog.records == []

    def test_not_before_a_message(self, caplog: pytest.LogCaptureFixture) -> None:
        """A program that sets it up between instrumenting and publishing is told nothing; nor is one whose messages get
        no spans anyway."""
        engine = Engine(Settings(exclude=("orders",)))
        with engine.send(ORDERS, Message({})):
            pass
        assert caplog.records == []

    def test_what_somebody_has_chosen(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A provider that was given, and a no-op that was set, are nobody's oversight."""
        with Engine(Settings(tracer_provider=NoOpTracerProvider())).send(ORDERS, Message({})):
            pass
        monkeypatch.setattr(spans, "get_tracer_provider", NoOpTracerProvider)
        with Engine().send(ORDERS, Message({})):
            pass
        assert caplog.records == []

    def test_it_is_looked_for_once_a_provider(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A thousand messages cost one look."""
        looked: list[object] = []
        monkeypatch.setattr(no_sdk, "say_if_missing", looked.append)
        engine = Engine()
        for _ in range(1000):
            with engine.send(ORDERS, Message({})):
                pass
        assert looked == [PROXY]


class OfTheGlobal(trace.ProxyTracerProvider):
    """As the API's, once a provider is set."""

    def __init__(self, given: trace.TracerProvider) -> None:
        self._given = given

    def get_tracer(self, *args: Any, **kwargs: Any) -> Tracer:
        return self._given.get_tracer("test")


def test_a_stand_in_that_was_kept_is_asked_for_its_tracer(telemetry: Telemetry) -> None:
    """``Settings(tracer_provider=trace.get_tracer_provider())`` of before an SDK was set up makes that one's spans."""
    engine = Engine(telemetry.settings(tracer_provider=OfTheGlobal(telemetry.spans.tracer_provider)))
    with engine.process(ORDERS, Message({})):
        assert get_current_span().is_recording()
    assert len(telemetry.spans) == 1


@pytest.mark.parametrize("first", [PROXY, NoOpTracerProvider()])
def test_the_global_provider_is_asked_each_time(
    telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch, first: trace.TracerProvider
) -> None:
    """An SDK that is set up after queueprop was imported, or replaced, is used from then on."""
    current: list[trace.TracerProvider] = [first]
    monkeypatch.setattr(spans, "get_tracer_provider", lambda: current[0])
    engine = Engine(Settings(meter_provider=NoOpMeterProvider()))
    with engine.process(ORDERS, Message({})):
        assert not get_current_span().is_recording()
    current[0] = telemetry.spans.tracer_provider
    with engine.process(ORDERS, Message({})):
        assert get_current_span().is_recording()
    assert len(telemetry.spans) == 1
