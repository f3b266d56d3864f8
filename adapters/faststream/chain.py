"""The chain of middlewares around one publish, or one delivery."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from opentelemetry.trace import SpanKind

from queueprop.kit.nesting import is_in_a_span_of


def links(call_next: Any) -> Iterator[Any]:
    """The middlewares between us and what is called in the end: that last.

    A middleware that is a ``functools.partial`` itself has arguments of its own, and behind them the next link.
    """
    while isinstance(call_next, functools.partial) and call_next.args:
        yield call_next.func
        call_next = call_next.args[-1]
    yield call_next


def around_last(call_next: Any, around: Callable[[Any], Any]) -> Any:
    """The same chain, with ``around(it)`` in the place of what is called in the end."""
    if not isinstance(call_next, functools.partial) or not call_next.args:
        return around(call_next)
    *own, inner = call_next.args
    return functools.partial(call_next.func, *own, around_last(inner, around), **call_next.keywords)


def is_given_back(call_next: Any) -> bool:
    """Whether nothing handles the message: it is given to who asked for it, by `get_one`, a loop, or a request."""
    *_, handler = links(call_next)
    return getattr(handler, "__name__", "") == "return_input"


def is_rival_s(call_next: Any, kind: SpanKind) -> bool:
    """Whether a ``TelemetryMiddleware`` is among the middlewares below, or above us: then its span of that kind is
    current.
    """
    for link in links(call_next):
        owner = getattr(link, "__self__", None)
        if owner is not None and is_rival(owner):
            return True
    return is_in_a_span_of("opentelemetry.instrumentation.faststream", kind)


def is_rival(middleware: object) -> bool:
    return any(it.__module__ == "faststream.opentelemetry.middleware" for it in type(middleware).__mro__)
