"""This runs inside another of ours: the one mark for it, and layers that speak for the transport below them.

A facade above a channel, the explicit API above the instrumentor, a loop above its pull call, a task queue above its
broker's client: what the lower one does is the same publish, pull or settlement, and is traced once, by the upper one.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

from opentelemetry.trace import SpanKind, get_current_span

from queueprop.engine.scope import span_context_of
from queueprop.wire import propagation

What = Literal["publish", "pull", "settle", "perform", "watch"]


class Mark:
    """A call that is traced, for as long as it runs: ``with Mark("publish", "pika"): ...``

    Args:
        what: the kind of call.
        library: whose it is.
        about: which one, by identity, where a call of this kind may run inside another one; else None.
        work: what the adapter's hooks further below ask for (``work_at_hand``).
    """

    __slots__ = ("_outer", "_token", "about", "is_over", "library", "what", "work")

    def __init__(self, what: What, library: str, about: object = None, work: Any = None) -> None:
        self.what = what
        self.library = library
        self.about = about
        self.work = work
        self.is_over = False

    def __enter__(self) -> None:
        self._outer = _innermost_open()
        self._token = _innermost.set(self)

    def __exit__(self, *error: object) -> None:
        self.is_over = True  # for the tasks that were made meanwhile, which have a copy of the variable
        # A coroutine that nobody awaits to its end is closed by the garbage collector, in whatever context that is.
        try:  # noqa: SIM105, three calls less for each message
            _innermost.reset(self._token)
        except ValueError:
            pass


def is_inside(what: What, library: str, about: object = None) -> bool:
    """Whether the code at hand runs inside such a call: then what it does is that one's, and traced already."""
    return _find(what, library, about) is not None


def work_at_hand(what: What, library: str) -> Any:
    """The ``work`` of the innermost such call, whatever it is about; None outside of any."""
    mark = _innermost.get()
    while mark is not None:
        if mark.what == what and mark.library == library and not mark.is_over:
            return mark.work
        mark = mark._outer
    return None


def _find(what: What, library: str, about: object) -> Mark | None:
    mark = _innermost.get()
    while mark is not None:
        if mark.about is about and mark.what == what and mark.library == library and not mark.is_over:
            return mark
        mark = mark._outer
    return None


def _innermost_open() -> Mark | None:
    mark = _innermost.get()
    while mark is not None and mark.is_over:  # else tasks that make tasks would keep each other's for ever
        mark = mark._outer
    return mark


_innermost: ContextVar[Mark | None] = ContextVar("queueprop-mark", default=None)


# A layer above and its transport


@contextmanager
def speaking_for(transports: Container[object]) -> Iterator[None]:
    """Inside, these objects of another library (its channels) carry messages of the layer above, which traces them.

    A task queue that is built on a client library says it, so that a message has one span and one context: its own.
    """
    token = _spoken_for.set(transports)
    try:
        yield
    finally:
        _spoken_for.reset(token)


def is_spoken_for(*transports: object) -> bool:
    """Whether what goes through one of these now is traced by a layer above: its own adapter leaves it alone."""
    spoken_for = _spoken_for.get()
    return bool(spoken_for) and any(transport in spoken_for for transport in transports)


def is_carried(headers: object) -> bool:
    """Whether a PRODUCER span is current that has put its context into these headers: this publish is traced by it.

    OpenTelemetry's instrumentation of a layer above makes such a one, and ``send_span``.
    """
    span = get_current_span()
    if getattr(span, "kind", None) is not SpanKind.PRODUCER:
        return False
    carried, current = propagation.read(headers).span_context, span_context_of(span)
    return carried.span_id == current.span_id and carried.trace_id == current.trace_id


class Everything(Container[object]):
    """Whatever a layer above reaches its broker by."""

    def __contains__(self, transport: object) -> bool:
        return True


_spoken_for: ContextVar[Container[object]] = ContextVar("queueprop-spoken-for", default=())
