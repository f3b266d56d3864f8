"""Context into and out of header containers, by whatever propagator is configured.

OpenTelemetry's defaults (``tracecontext`` and ``baggage``, together or alone) are done by our strict codec.
Any other propagator is called, and only its headers are written and read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import islice
from typing import Any, Literal

from opentelemetry import baggage, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context, get_current, set_value
from opentelemetry.propagate import get_global_textmap
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import Getter, Setter, TextMapPropagator
from opentelemetry.trace import DEFAULT_TRACE_STATE, INVALID_SPAN_CONTEXT, NonRecordingSpan, SpanContext
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from queueprop import guard
from queueprop.wire import w3c
from queueprop.wire.headers import MOST_HEADERS, is_free_of, names_of, read_all, replace, text

# The keys under which OpenTelemetry keeps the two in a context. With them both are put in and taken out in
# one step: `set_baggage` would copy the whole baggage for each of its members.
(SPAN_KEY,) = trace.set_span_in_context(trace.INVALID_SPAN, Context())
(BAGGAGE_KEY,) = baggage.set_baggage("key", "value", Context())

# Why there is no remote span to continue; None where there is one.
Reason = Literal["missing", "malformed"] | None

_TRACEPARENT = "traceparent"
_TRACESTATE = "tracestate"
_BAGGAGE = "baggage"


def inject(headers: Any, *, context: Context | None = None) -> None:
    """Writes a context into the headers of a message, in place, for a queue that no adapter knows.

    Args:
        headers: a dict or a list of ``(name, value)`` pairs that you own. Headers of an earlier context are
            removed, also when there is no span to write.
        context: the current one by default.

    Raises:
        TypeError: ``headers`` cannot be written (None, a tuple, a read-only mapping).
    """
    write(headers, get_current() if context is None else context)


def extract(headers: object) -> Context:
    """Returns the context that the headers of a message carry; an empty one when they carry none.

    Args:
        headers: a mapping or pairs, names and values ``str`` or ``bytes``; whatever else a message has is no
            context.

    It is a fresh context: nothing of the current one is in it. Never raises.
    """
    return read(headers).context


class Extraction:
    """What the headers of one message carried.

    Attributes:
        context: a fresh context with the remote span and the baggage, each where it is there. (Another
            propagator than the W3C ones may have put more into it.)
        span_context: the remote span's, ``INVALID_SPAN_CONTEXT`` where there is none to continue.
        reason: why there is none: ``missing`` or ``malformed``. None when there is one.
    """

    __slots__ = ("context", "reason", "span_context")

    def __init__(self, context: Context, span_context: SpanContext, reason: Reason) -> None:
        self.context = context
        self.span_context = span_context
        self.reason = reason

    def __repr__(self) -> str:
        return f"Extraction(span_context={self.span_context!r}, reason={self.reason!r})"


def read(headers: object, allow: Collection[str] | None = None) -> Extraction:
    """Reads the context of a message. Never raises.

    Args:
        headers: whatever the message has as its headers.
        allow: the baggage keys that may enter, of members and of their properties; None lets all of them in.
    """
    try:
        return configured().read(headers, allow)
    except Exception as error:
        guard.fault("reading the context of a message", error)
        return Extraction(Context(), INVALID_SPAN_CONTEXT, "malformed")


def broken() -> dict[str, None]:
    """Headers that read as malformed: for a message that has something else where its headers should be."""
    decided = configured()
    return dict.fromkeys(decided.names if isinstance(decided, _W3C) else decided.fields)


def write(headers: Any, context: Context, allow: Collection[str] | None = None) -> None:
    """Writes a context into headers, in place, and removes what an earlier one left there.

    Args:
        headers: a dict, or a list of pairs.
        context: its current span and its baggage are written.
        allow: the baggage keys that may leave, of members and of their properties; None lets all of them out.

    Raises:
        TypeError: ``headers`` cannot be written. Nothing else: a propagator that fails leaves no header.
    """
    configured().write(headers, context, allow)


class _W3C:
    """Our codec, for both halves of OpenTelemetry's default, one, or none."""

    def __init__(self, propagator: TextMapPropagator, *, trace: bool, baggage: bool) -> None:
        self.propagator = propagator
        self._trace = trace
        self._baggage = baggage
        self.names = (_TRACEPARENT, _TRACESTATE) * trace + (_BAGGAGE,) * baggage

    def is_free(self, headers: object) -> bool:
        """Whether headers surely carry no context. False where only ``read`` can tell."""
        return is_free_of(headers, self.names)

    def read(self, headers: object, allow: Collection[str] | None) -> Extraction:
        found = read_all(headers, self.names)
        if not found:
            return Extraction(Context(), INVALID_SPAN_CONTEXT, "missing")
        traceparent = found.get(_TRACEPARENT)
        span_context = w3c.parse_traceparent(traceparent) if traceparent is not None else None
        if span_context is not None and len(found) == 1:
            return Extraction(Context({SPAN_KEY: NonRecordingSpan(span_context)}), span_context, None)
        values: dict[str, object] = {}
        if span_context is not None:
            if _TRACESTATE in found:
                span_context = _with_tracestate(span_context, found[_TRACESTATE])
            values[SPAN_KEY] = NonRecordingSpan(span_context)
        if _BAGGAGE in found:
            members = w3c.parse_baggage(found[_BAGGAGE])
            if allow is not None:
                members = w3c.allowed_baggage(members, allow)
            if members:
                values[BAGGAGE_KEY] = members
        if span_context is not None:
            return Extraction(Context(values), span_context, None)
        return Extraction(
            Context(values), INVALID_SPAN_CONTEXT, "missing" if traceparent is None else "malformed"
        )

    def write(
        self, headers: Any, context: Context, allow: Collection[str] | None, is_free: bool = False
    ) -> None:
        # Most messages come with a dict that has no context yet, and then that is what is filled.
        is_direct = type(headers) is dict and (is_free or not headers or is_free_of(headers, self.names))
        values: dict[str, str] = headers if is_direct else {}
        try:
            span = context.get(SPAN_KEY)
            if self._trace and span is not None:
                _write_span(values, span)
        except Exception as error:
            guard.fault("writing the context of a message", error)
        try:
            if self._baggage and BAGGAGE_KEY in context:
                _write_baggage(values, context, allow)
        except Exception as error:
            guard.fault("writing the baggage of a message", error)
        if not is_direct:
            replace(headers, self.names, values)


class _Other:
    """Any other propagator, called as OpenTelemetry would."""

    def __init__(self, propagator: TextMapPropagator) -> None:
        self.propagator = propagator
        self.fields = _fields(propagator)
        # Baggage or a tracestate alone is no broken trace context.
        self._trace_fields = tuple(name for name in self.fields if name not in (_BAGGAGE, _TRACESTATE))

    def is_free(self, headers: object) -> bool:
        return False  # it may look for others than it says

    def read(self, headers: object, allow: Collection[str] | None) -> Extraction:
        try:
            if isinstance(headers, Iterator):
                headers = list(islice(headers, MOST_HEADERS))
            getter = _GETTER if allow is None else _AllowingGetter(allow)
            context = self.propagator.extract(headers, Context(), getter)
            if not isinstance(context, Context):
                raise TypeError(f"it returned {context!r} instead of a context")
            if allow is not None:
                context = _allowing(context, allow)
            span_context = trace.get_current_span(context).get_span_context()
            is_valid = span_context.is_valid
        except Exception as error:
            guard.fault(f"reading the context of a message with {_class_name(self.propagator)}", error)
            return Extraction(Context(), INVALID_SPAN_CONTEXT, "malformed")
        if is_valid:
            return Extraction(context, span_context, None)
        reason: Reason = "malformed" if read_all(headers, self._trace_fields) else "missing"
        return Extraction(context, INVALID_SPAN_CONTEXT, reason)

    def write(
        self, headers: Any, context: Context, allow: Collection[str] | None, is_free: bool = False
    ) -> None:
        values: dict[str, str] = {}
        try:
            if allow is not None:
                context = _allowing(context, allow)
            self.propagator.inject(values, context, _SETTER)
        except Exception as error:
            guard.fault(f"writing the context of a message with {_class_name(self.propagator)}", error)
            values = {}
        names = (*self.fields, *(name.lower() for name in values))
        replace(headers, names, values)


class _HeaderGetter(Getter[object]):
    def get(self, carrier: object, key: str) -> list[str] | None:
        found = read_all(carrier, (key.lower(),))
        values = [value for found_values in found.values() for value in map(text, found_values)]
        return [value for value in values if value is not None] or None

    def keys(self, carrier: object) -> list[str]:
        return names_of(carrier)


class _AllowingGetter(_HeaderGetter):
    """Hides what baggage has of properties that are not allowed: other readers take them for a part of the value."""

    def __init__(self, allow: Collection[str]) -> None:
        self._allow = allow

    def get(self, carrier: object, key: str) -> list[str] | None:
        values = super().get(carrier, key)
        if not values or key.lower() != _BAGGAGE:
            return values
        members = w3c.allowed_baggage(w3c.parse_baggage(values), self._allow)
        return [w3c.format_baggage(members)] if members else None


class _TextSetter(Setter[dict[str, str]]):
    def set(self, carrier: dict[str, str], key: str, value: str) -> None:
        carrier[str(key)] = str(value)


Configured = _W3C | _Other

_GETTER = _HeaderGetter()
_SETTER = _TextSetter()

# What was decided for the propagator that is configured. It keeps that one alive, and so its identity unique.
_decided: Configured | None = None


def configured() -> Configured:
    """The propagator that is configured, or our codec in the place of OpenTelemetry's default."""
    global _decided
    propagator = get_global_textmap()
    decided = _decided
    if decided is None or decided.propagator is not propagator:
        decided = _decided = _decide(propagator)
    return decided


def _decide(propagator: TextMapPropagator) -> Configured:
    kinds = set(map(type, _flattened(propagator)))
    if kinds <= {TraceContextTextMapPropagator, W3CBaggagePropagator}:
        return _W3C(
            propagator, trace=TraceContextTextMapPropagator in kinds, baggage=W3CBaggagePropagator in kinds
        )
    return _Other(propagator)


def _flattened(propagator: TextMapPropagator) -> list[TextMapPropagator]:
    parts = getattr(propagator, "_propagators", None) if type(propagator) is CompositePropagator else None
    if parts is None:
        return [propagator]
    return [leaf for part in parts for leaf in _flattened(part)]


def _fields(propagator: TextMapPropagator) -> tuple[str, ...]:
    try:
        return tuple(sorted({name.lower() for name in propagator.fields}))
    except Exception as error:
        guard.fault(f"asking {_class_name(propagator)} for its fields", error)
        return ()


def _class_name(propagator: TextMapPropagator) -> str:
    return type(propagator).__qualname__


def _with_tracestate(span_context: SpanContext, values: list[object]) -> SpanContext:
    return SpanContext(
        span_context.trace_id,
        span_context.span_id,
        True,
        span_context.trace_flags,
        w3c.parse_tracestate(values),
    )


def _write_span(values: dict[str, str], span: Any) -> None:
    span_context = span.get_span_context()
    traceparent = w3c.format_traceparent(span_context)
    if not traceparent:
        return
    values[_TRACEPARENT] = traceparent
    trace_state = span_context.trace_state
    # Most have the one empty state; its length is a call.
    if trace_state is not DEFAULT_TRACE_STATE and trace_state:
        tracestate = w3c.format_tracestate(trace_state)
        if tracestate:
            values[_TRACESTATE] = tracestate


def _write_baggage(values: dict[str, str], context: Context, allow: Collection[str] | None) -> None:
    members = context.get(BAGGAGE_KEY)
    if not members or not isinstance(members, dict):
        return
    header = w3c.format_baggage(members if allow is None else w3c.allowed_baggage(members, allow))
    if header:
        values[_BAGGAGE] = header


def _allowing(context: Context, allow: Collection[str]) -> Context:
    members = baggage.get_all(context)
    return set_value(BAGGAGE_KEY, w3c.allowed_baggage(members, allow), context) if members else context
