"""This runs inside another of ours: the one mark for it, and layers that speak for the transport below them.

A facade above a channel, the explicit API above the instrumentor, a loop above its pull call, a task queue above its
broker's client: what the lower one does is the same publish, pull or settlement, and is traced once, by the upper one.
"""

from __future__ import annotations

import weakref
from collections.abc import Container
from contextlib import suppress
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

    _outer: Mark | None
    what: What

    def __init__(self, what: What, library: str, about: object = None, work: Any = None) -> None:
        self.what = what
        self.library = library
        self.about = about
        self.work = work
        self.is_over = False

    def __enter__(self) -> None:
        outer = _innermost.get()
        # Else tasks that make tasks would keep each other's for ever.
        while outer is not None and outer.is_over:
            outer = outer._outer
        self._outer = outer
        self._token = _innermost.set(self)

    def __exit__(self, *error: object) -> None:
        self.is_over = True  # for the tasks that were made meanwhile, which have a copy of the variable
        self.work = None  # it knows this mark: together they would wait for the garbage collector
        # A coroutine that nobody awaits to its end is closed by the garbage collector, in whatever context that is.
        try:  # noqa: SIM105, three calls less for each message
            _innermost.reset(self._token)
        except ValueError:
            pass


def is_inside(what: What, library: str, about: object = None) -> bool:
    """Whether the code at hand runs inside such a call: then what it does is that one's, and traced already."""
    mark = _innermost.get()
    while mark is not None:
        if mark.about is about and mark.what == what and mark.library == library and not mark.is_over:
            return True
        mark = mark._outer
    return False


def work_at_hand(what: What, library: str) -> Any:
    """The ``work`` of the innermost such call, whatever it is about; None outside of any."""
    mark = _innermost.get()
    while mark is not None:
        if mark.what == what and mark.library == library and not mark.is_over:
            return mark.work
        mark = mark._outer
    return None


def works_at_hand(library: str) -> dict[What, Any]:
    """The same of every kind of call, by its kind, the innermost first: for what asks for several at each message."""
    found: dict[What, Any] = {}
    mark = _innermost.get()
    while mark is not None:
        if mark.library == library and not mark.is_over:
            found.setdefault(mark.what, mark.work)
        mark = mark._outer
    return found


_innermost: ContextVar[Mark | None] = ContextVar("queueprop-mark", default=None)


# A layer above and its transport


class speaking_for:
    """Inside, these objects of another library (its channels) carry messages of the layer above, which traces them.

    A task queue that is built on a client library says it, so that a message has one span and one context: its own.
    """

    __slots__ = ("_token", "_transports")

    def __init__(self, transports: Container[object]) -> None:
        self._transports = transports

    def __enter__(self) -> None:
        self._token = _spoken_for.set(self._transports)

    def __exit__(self, *error: object) -> None:
        try:  # noqa: SIM105, as in Mark
            _spoken_for.reset(self._token)
        except ValueError:  # in another context nothing was set
            pass


def take_over(transport: object) -> None:
    """From now on, wherever that is, what this object consumes, or handles, is the layer's above, which traces it.

    A framework says it of its subscribers, and of the clients that these poll, for as long as these live. What takes no
    weak reference is left as it is.
    """
    number = id(transport)

    def forget(gone: weakref.ref[Any]) -> None:
        if _taken_over.get(number) is gone:  # else another object has the number
            _taken_over.pop(number, None)

    with suppress(TypeError):
        _taken_over[number] = weakref.ref(transport, forget)


def is_spoken_for(*transports: object) -> bool:
    """Whether what goes through one of these now is traced by a layer above: its own adapter leaves it alone."""
    spoken_for = _spoken_for.get()
    if not spoken_for and not _taken_over:  # asked at each message, and nearly always so
        return False
    return any(transport in spoken_for or _is_taken_over(transport) for transport in transports)


def _is_taken_over(transport: object) -> bool:
    found = _taken_over.get(id(transport))
    return found is not None and found() is transport


def is_carried(headers: object) -> bool:
    """Whether a PRODUCER span is current that has put its context into these headers: this publish is traced by it.

    OpenTelemetry's instrumentation of a layer above makes such a one, and ``send_span``.
    """
    span = get_current_span()
    if getattr(span, "kind", None) is not SpanKind.PRODUCER:
        return False
    carried, current = propagation.read(headers).span_context, span_context_of(span)
    return carried.span_id == current.span_id and carried.trace_id == current.trace_id


def is_in_a_span() -> bool:
    """Whether any span is current: for who has to know whether another instrumentation's is."""
    return span_context_of(get_current_span()).is_valid


def is_in_a_span_of(instrumentation: str, kind: SpanKind) -> bool:
    """Whether the current span is one of that kind that another instrumentation, by its scope's name, has made."""
    span = get_current_span()
    scope = getattr(span, "instrumentation_scope", None)
    return getattr(scope, "name", None) == instrumentation and getattr(span, "kind", None) is kind


class Everything(Container[object]):
    """Whatever a layer above reaches its broker by."""

    def __contains__(self, transport: object) -> bool:
        return True


_spoken_for: ContextVar[Container[object]] = ContextVar("queueprop-spoken-for", default=())
_taken_over: dict[int, weakref.ref[Any]] = {}
