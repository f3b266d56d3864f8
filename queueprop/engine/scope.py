"""The stretch of code for which a Context of ours is current, and its exact restoring.

A scope cannot always be closed in the frame that opened it: an iterator's closes at its next step, or when it is
dropped, perhaps in another thread; two loops may interleave. So scopes do not keep a token (``detach`` in another
``contextvars`` Context is an error). Each marks the Context that it attached, and whoever closes it looks at
what is current there: its own mark on top is restored, its mark below another scope's is taken out of the chain, and
a Context that does not know it is left alone.
"""

from __future__ import annotations

from typing import Any, Protocol

from opentelemetry.context import Context, attach, create_key, get_current
from opentelemetry.trace import INVALID_SPAN_CONTEXT, SpanContext

from queueprop import guard

_SCOPE_KEY = create_key("queueprop-scope")


def is_suppressed(context: Context) -> bool:
    """Whether the code at hand asked for no instrumentation, or is an exporter at work."""
    for key in guard.SUPPRESSING_KEYS:  # noqa: SIM110 - a generator costs more than the two look-ups
        if context.get(key):
            return True
    return False


def span_context_of(span: object) -> SpanContext:
    """The context of a span, which may be anybody's; ``INVALID_SPAN_CONTEXT`` where it does not tell. Never raises."""
    if span is None:  # as common as one that is there, and an exception takes many times as long
        return INVALID_SPAN_CONTEXT
    try:
        context: object = span.get_span_context()  # type: ignore[attr-defined]
    except Exception as error:
        if guard.is_not_ours(error):
            raise
        return INVALID_SPAN_CONTEXT
    return context if isinstance(context, SpanContext) else INVALID_SPAN_CONTEXT


def records(span: Any) -> bool:
    """Whether it is worth telling this span more, and linking to it. It may be anybody's: never raises."""
    try:
        return bool(span.is_recording())
    except Exception as error:
        guard.fault("asking a span whether it records", error)
        return False


def current_scope(context: Context) -> AttachedContext | None:
    """The innermost operation that this context belongs to; it may be closed already."""
    scope = _mark(context)
    while isinstance(scope, CarriedContext):
        scope = scope.within
    return scope


class Scope(Protocol):
    """What a handler runs inside: an operation, or a context of another place."""

    def open(self) -> object: ...
    def close(self, error: BaseException | None = None) -> None: ...
    def detach(self) -> None: ...
    def reattach(self) -> None: ...


class AttachedContext:
    """Attaches a Context and takes it away again, whatever happened to the current one in between."""

    _context: Context | None = None
    _previous: Context | None = None
    _attached = False

    def attach(self, values: dict[str, object], previous: Context) -> Context:
        """Makes ``values`` current in place of ``previous``, until ``detach``. Returns the context of them."""
        values[_SCOPE_KEY] = self
        self._context = context = Context(values)
        self._previous = previous
        self._attached = True  # before it is: whatever interrupts us here, detach() finds out how far it came
        attach(context)
        return context

    def detach(self) -> None:
        """Restores what was current before; twice is once. In another thread or task it changes nothing there."""
        previous = self._previous
        if not self._attached or previous is None:
            return
        top = get_current().get(_SCOPE_KEY)
        if top is self:
            attach(previous)
        else:
            self._leave_chain(top, previous)
        self._attached = False  # last, so that after an interruption it can be done again

    def _leave_chain(self, top: object, previous: Context) -> None:
        while isinstance(top, AttachedContext) and top._previous is not None:
            below = top._previous.get(_SCOPE_KEY)
            if below is self:
                top._previous = previous
                return
            top = below

    def reattach(self) -> None:
        """Makes the same Context current again, on top of what is current now."""
        if self._attached or self._context is None:
            return
        self._previous = get_current()
        self._attached = True
        attach(self._context)


class CarriedContext(AttachedContext):
    """Another place's Context, made current here for a while (``carry_context``)."""

    def __init__(self, context: Context) -> None:
        self._values = context
        self.within = _mark(context)

    def open(self) -> object:
        try:
            return self.attach({**self._values}, get_current())
        except BaseException:  # a time limit may be raised here, and nobody closes what did not open
            self.detach()
            raise

    def close(self, error: BaseException | None = None) -> None:
        self.detach()
        self._context = self._previous = None  # the context knows this scope


def _mark(context: Context) -> AttachedContext | None:
    scope = context.get(_SCOPE_KEY)
    return scope if isinstance(scope, AttachedContext) else None
