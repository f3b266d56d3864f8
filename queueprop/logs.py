"""Log correlation: the current span's ids on log records, under the names of OpenTelemetry's log formats.

For ``logging``, structlog and loguru. Needs neither the SDK nor any of them.
"""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

from opentelemetry.trace import get_current_span

__all__ = ["TraceContextFilter", "add_trace_context", "patch_record"]


class TraceContextFilter(logging.Filter):
    """Sets ``trace_id`` and ``span_id`` (32 and 16 hex digits) and ``trace_flags`` (``01``) on records.

    Without a current span all three are empty: a format can always name them, and no backend makes a link
    out of zeros. What a record has already (from ``extra=``, or from the filter of a ``QueueHandler``)
    stays. Every record passes. Add it to handlers: a logger's filter does not see records of loggers below.

        handler.addFilter(TraceContextFilter())
        handler.setFormatter(logging.Formatter("%(levelname)s %(message)s trace_id=%(trace_id)s"))
    """

    def filter(self, record: logging.LogRecord) -> bool:
        for name, value in (_current() or _NO_SPAN).items():
            record.__dict__.setdefault(name, value)
        return True


def add_trace_context(
    logger: Any, method_name: str, event_dict: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """A structlog processor: adds ``trace_id``, ``span_id`` and ``trace_flags`` when a span is current.

    Keys that the event has already stay. Put it before the renderer:
    ``structlog.configure(processors=[add_trace_context, structlog.processors.JSONRenderer()])``.
    """
    for name, value in (_current() or {}).items():
        event_dict.setdefault(name, value)
    return event_dict


def patch_record(record: Any) -> None:
    """A patcher of loguru's: ``trace_id``, ``span_id`` and ``trace_flags`` in ``record["extra"]``.

    Without a current span all three are empty, so that a format can always name them; what ``bind()`` has given already
    stays. As a patcher it runs where the line is logged, also with ``enqueue=True``, whose sinks run elsewhere.

        logger.configure(patcher=patch_record)
        logger.add(sys.stderr, format="{level} {message} trace_id={extra[trace_id]}")
    """
    for name, value in (_current() or _NO_SPAN).items():
        record["extra"].setdefault(name, value)


_NO_SPAN = {"trace_id": "", "span_id": "", "trace_flags": ""}


def _current() -> dict[str, str] | None:
    context = get_current_span().get_span_context()
    if not context.is_valid:
        return None
    return {
        "trace_id": format(context.trace_id, "032x"),
        "span_id": format(context.span_id, "016x"),
        "trace_flags": format(context.trace_flags, "02x"),
    }
