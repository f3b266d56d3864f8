"""What is seen of a queue: its messages as they wait, whichever broker has them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from opentelemetry import baggage
from opentelemetry.trace import SpanContext, format_span_id, format_trace_id

from queueprop import guard
from queueprop.wire import propagation

_LONGEST = 200
_LONGEST_BODY = 1024


@dataclass(frozen=True)
class Waiting:
    """One message that waits.

    ``headers`` is where a context lies in it, as its library has it. Whatever else is None is not told by the message.
    """

    id: str | None
    name: str | None
    """The task, the type, or the key: what its readers would call it."""
    headers: object
    sender: str | None = None
    """Who sent it, as far as it says: an application's or a client's name."""
    sent_at: float | None = None
    """Seconds since 1970."""
    place: str = ""
    """Where it waits, where that is not simply its turn: ``delayed``, a partition and its offset."""
    body: bytes | str | None = None


@dataclass(frozen=True)
class Sight:
    """What was seen of a queue."""

    library: str
    """Whose messages they are: ``RQ``, ``RabbitMQ``."""
    messages: Sequence[Waiting]
    total: int | None
    """How many wait; None where nobody knows."""
    notes: Sequence[str] = field(default=())


class Context:
    """The context of a message, read as a consumer of ours would."""

    def __init__(self, headers: object) -> None:
        extraction = propagation.read(headers)
        self.span: SpanContext = extraction.span_context
        self.state: str = extraction.reason or "ok"
        """``ok``, ``missing`` or ``malformed``."""
        self.baggage = {
            guard.one_line(name, _LONGEST): guard.one_line(value, _LONGEST)
            for name, value in baggage.get_all(extraction.context).items()
        }

    @property
    def trace_id(self) -> str | None:
        return format_trace_id(self.span.trace_id) if self.span.is_valid else None

    @property
    def span_id(self) -> str | None:
        return format_span_id(self.span.span_id) if self.span.is_valid else None


def as_json(waiting: Waiting, now: float, with_body: bool) -> dict[str, Any]:
    """What is told of one message. Its body is told only where that was asked for."""
    context = Context(waiting.headers)
    told: dict[str, Any] = {
        "id": _line(waiting.id),
        "name": _line(waiting.name),
        "sender": _line(waiting.sender),
        "place": waiting.place or None,
        "sent_at": waiting.sent_at,
        "age": None if waiting.sent_at is None else round(now - waiting.sent_at, 3),
        "context": context.state,
        "trace_id": context.trace_id,
        "span_id": context.span_id,
        "sampled": bool(context.span.trace_flags.sampled) if context.span.is_valid else None,
        "tracestate": context.span.trace_state.to_header() if context.span.is_valid else "",
        "baggage": context.baggage,
    }
    if with_body:
        told["body"] = body_of(waiting)
    return {name: value for name, value in told.items() if value not in (None, "", {})}


def body_of(waiting: Waiting) -> str:
    """What a line has room for."""
    body = waiting.body
    text = body.decode(errors="backslashreplace") if isinstance(body, bytes) else body or ""
    return guard.one_line(text, _LONGEST_BODY)


def age(seconds: float) -> str:
    """``12 s ago``, in the largest unit that is at least one."""
    if seconds < 0:
        return "in the future"
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit} ago"
    return f"{seconds:.1f} s ago"


def seconds_of(value: object, scale: float = 1.0) -> float | None:
    """A time that a message tells, in ``scale`` of a second; None for what is none: it is input."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str, bytes)):
        return None
    try:
        found = float(value) * scale
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) and 0 < found < _LATEST else None


_LATEST = 32_503_680_000.0  # the year 3000


def text_of(value: object) -> str | None:
    """Text that a message tells; None for what is none."""
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    return value if isinstance(value, str) and value else None


def _line(text: str | None) -> str | None:
    return None if text is None else guard.one_line(text, _LONGEST)
