"""What may be broken around an adapter: the program's logging, and its SDK."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.trace import Span, SpanContext, TraceFlags

from queueprop import guard


@pytest.fixture(autouse=True)
def _nothing_is_said_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_logged", {})


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard as users have it: it tells of a fault instead of raising it."""
    monkeypatch.setattr(guard, "raise_faults", False)


@pytest.fixture(params=["a handler that raises", "a filter that raises", "a closed stderr"])
def broken_logging(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, guarded: None
) -> Iterator[None]:
    """Nothing of ours can be logged; the logger is at DEBUG. (The libraries' own loggers work.)"""
    logger = logging.getLogger("queueprop")
    handler = logging.StreamHandler(io.StringIO())
    if request.param == "a handler that raises":
        monkeypatch.setattr(handler, "emit", raises)
    elif request.param == "a filter that raises":
        monkeypatch.setattr(logger, "filters", [raises])
    else:
        handler.stream.close()
        monkeypatch.setattr(sys, "stderr", handler.stream)
    monkeypatch.setattr(logger, "handlers", [handler])
    level = logger.level
    logger.setLevel(logging.DEBUG)
    yield
    logger.setLevel(level)


def raises(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("no")


_METHODS = (
    *("get_span_context", "is_recording", "set_attribute", "set_attributes", "set_status"),
    *("record_exception", "add_event", "update_name", "end"),
)


def _span(**works: Any) -> Span:
    """A span that raises at whatever it is asked, but for these."""
    methods = {**dict.fromkeys(_METHODS, raises), **works}
    span: Span = type("OddSpan", (Span,), methods)()
    return span


_CONTEXT = SpanContext(0xA, 0xB, is_remote=False, trace_flags=TraceFlags(1))

_TRACERS: dict[str, Any] = {
    "no tracer": None,
    "no span": SimpleNamespace(start_span=lambda *args: None),
    "a tracer that raises": SimpleNamespace(start_span=raises),
    "a span that raises": SimpleNamespace(start_span=lambda *args: _span()),
    "a span with a context": SimpleNamespace(
        start_span=lambda *args: _span(get_span_context=lambda self: _CONTEXT)
    ),
    "a span that records": SimpleNamespace(
        start_span=lambda *args: _span(get_span_context=lambda self: _CONTEXT, is_recording=lambda self: True)
    ),
}


@pytest.fixture(params=_TRACERS)
def odd_sdk(request: pytest.FixtureRequest, guarded: None) -> Any:
    """A tracer provider of somebody's of which nothing works."""
    return SimpleNamespace(get_tracer=lambda *args, **kwargs: _TRACERS[request.param])
