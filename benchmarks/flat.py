"""The plain message's send and process, written out flat: what a second copy of the engine's rules would bring.

Everything that decides whether a message is a plain one is asked, as the engine asks it: nothing suppressed, the
providers and the propagator that were there before, headers that carry no context (or nothing but one traceparent).
Nothing is here for any other message, nothing is guarded, no error is told, and no setting is obeyed. It is no part
of queueprop: two copies of a rule do not stay the same. (What both begin with stands here twice, since a function for
it would be a frame more.)
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context, attach, create_key, get_current
from opentelemetry.propagate import get_global_textmap
from opentelemetry.trace import INVALID_SPAN, Link, NonRecordingSpan, Span, SpanContext, SpanKind, TraceFlags

from benchmarks.core import PROCESS, SEND, Candidate, Handler, Headers
from queueprop import guard
from queueprop.engine import semconv
from queueprop.engine.providers import get_meter_provider, get_tracer_provider
from queueprop.wire.propagation import BAGGAGE_KEY, SPAN_KEY

_SCOPE_KEY = create_key("flat-scope")
_SUPPRESSING = tuple(guard.SUPPRESSING_KEYS)
_LENGTHS = frozenset(map(len, ("traceparent", "tracestate", "baggage")))
_CHILD_OF = {semconv.OPENTRACING_REF_TYPE: "child_of"}


class NotPlain(Exception):
    """A message for which the engine would have to be asked."""


def candidates() -> dict[str, Candidate]:
    """For the providers that are set by now."""
    environment = _Environment()

    def send(headers: Headers, handler: Handler) -> None:
        with _Send(environment, headers):
            handler()

    def process(headers: Headers, handler: Handler) -> None:
        with _Process(environment, headers):
            handler()

    return {"send": send, "process": process}


class _Environment:
    """What was found when the first message came."""

    def __init__(self) -> None:
        self.tracer_provider = get_tracer_provider()
        self.meter_provider = get_meter_provider()
        self.textmap = get_global_textmap()
        is_stand_in = isinstance(self.tracer_provider, trace.ProxyTracerProvider)
        self.tracer: Any = None if is_stand_in else trace.get_tracer("queueprop")


class _Operation:
    span: Span
    _previous: Context
    _context: Context | None

    def __init__(self, environment: _Environment, headers: Headers) -> None:
        self._environment = environment
        self._headers = headers

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if get_current().get(_SCOPE_KEY) is self:
            attach(self._previous)
        self.span.end()
        self._context = None


class _Send(_Operation):
    def __enter__(self) -> Span:
        current, environment, headers = get_current(), self._environment, self._headers
        for key in _SUPPRESSING:
            if current.get(key):
                raise NotPlain
        if (
            get_tracer_provider() is not environment.tracer_provider
            or get_meter_provider() is not environment.meter_provider
            or get_global_textmap() is not environment.textmap
            or BAGGAGE_KEY in current
        ):
            raise NotPlain
        for name in headers:
            if type(name) is not str or len(name) in _LENGTHS:
                raise NotPlain
        if environment.tracer is None:
            span: Any = current.get(SPAN_KEY, INVALID_SPAN)
        else:
            span = environment.tracer.start_span("publish orders", current, SpanKind.PRODUCER, SEND)
        self.span = span
        self._previous = current
        self._context = context = Context({**current, SPAN_KEY: span, _SCOPE_KEY: self})
        attach(context)
        trace_id, span_id, _, flags, _, _ = span.get_span_context()
        headers["traceparent"] = (
            f"00-{trace_id.to_bytes(16, 'big').hex()}-{span_id.to_bytes(8, 'big').hex()}-{flags:02x}"
        )
        return self.span


class _Process(_Operation):
    def __enter__(self) -> Span:
        current, environment = get_current(), self._environment
        for key in _SUPPRESSING:
            if current.get(key):
                raise NotPlain
        if (
            get_tracer_provider() is not environment.tracer_provider
            or get_meter_provider() is not environment.meter_provider
            or get_global_textmap() is not environment.textmap
            or BAGGAGE_KEY in current
        ):
            raise NotPlain
        found = None
        for name, value in self._headers.items():
            if len(name) in _LENGTHS:
                if name != "traceparent" or found is not None:
                    raise NotPlain
                found = value
        if found is None or len(found) != 55:
            raise NotPlain
        creation = SpanContext(
            int(found[3:35], 16), int(found[36:52], 16), True, TraceFlags(int(found[53:], 16))
        )
        remote = NonRecordingSpan(creation)
        incoming = Context({SPAN_KEY: remote})
        if environment.tracer is None:
            span: Span = remote
        else:
            span = environment.tracer.start_span(
                "process orders", incoming, SpanKind.CONSUMER, PROCESS, [Link(creation, _CHILD_OF)]
            )
        self.span = span
        self._previous = current
        self._context = context = Context({**current, SPAN_KEY: span, _SCOPE_KEY: self})
        attach(context)
        return span
