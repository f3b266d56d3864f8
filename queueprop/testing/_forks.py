"""The spans of forked children, for the capture that their parent has open: RQ's work horses end in `os._exit`."""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState


class ForksFile:
    """A file that a fork inherits. Whoever appends to it does it in one write; the parent alone reads.

    No lock: a child may have inherited it in the hands of a thread that it has not.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(mode="ab+", buffering=0)  # noqa: SIM115  # close() does it
        found = os.fstat(self._file.fileno())
        self._is = (found.st_dev, found.st_ino)
        self._position = 0

    def append(self, span: ReadableSpan) -> None:
        """In a child. What cannot be written (a child that has closed what it inherited) is left out."""
        try:
            frame = pickle.dumps(_told(span))
            descriptor = self._file.fileno()
            found = os.fstat(descriptor)
            if (found.st_dev, found.st_ino) == self._is:  # else it is another file's by now
                os.write(descriptor, len(frame).to_bytes(_LENGTH, "big") + frame)
        except (OSError, ValueError, TypeError, AttributeError, pickle.PicklingError):
            return

    def new(self) -> Iterator[ReadableSpan]:
        """In the parent: what was appended since the last time, as far as it is whole."""
        if self._file.closed:
            return
        descriptor = self._file.fileno()
        size = os.fstat(descriptor).st_size
        while self._position + _LENGTH <= size:
            length = int.from_bytes(os.pread(descriptor, _LENGTH, self._position), "big")
            if self._position + _LENGTH + length > size:
                return
            told = pickle.loads(os.pread(descriptor, length, self._position + _LENGTH))
            self._position += _LENGTH + length
            yield _span(told)

    def close(self) -> None:
        self._file.close()


_LENGTH = 8  # bytes, before each span


def _told(span: ReadableSpan) -> dict[str, Any]:
    scope = span.instrumentation_scope
    return {
        "name": span.name,
        "context": _context(span.context),
        "parent": _context(span.parent),
        "resource": dict(span.resource.attributes),
        "attributes": dict(span.attributes or {}),
        "events": [(event.name, dict(event.attributes or {}), event.timestamp) for event in span.events],
        "links": [(_context(link.context), dict(link.attributes or {})) for link in span.links],
        "kind": span.kind.name,
        "status": (span.status.status_code.name, span.status.description),
        "start_time": span.start_time,
        "end_time": span.end_time,
        "scope": None if scope is None else (scope.name, scope.version, scope.schema_url),
    }


def _context(context: SpanContext | None) -> tuple[int, int, bool, int, str] | None:
    if context is None:
        return None
    state = context.trace_state.to_header()
    return context.trace_id, context.span_id, context.is_remote, int(context.trace_flags), state


def _span(told: Mapping[str, Any]) -> ReadableSpan:
    code, description = told["status"]
    return ReadableSpan(
        told["name"],
        _made(told["context"]),
        parent=_made(told["parent"]),
        resource=Resource(told["resource"]),
        attributes=told["attributes"],
        events=[Event(name, attributes, timestamp) for name, attributes, timestamp in told["events"]],
        links=[
            Link(made, it) for made, it in ((_made(context), it) for context, it in told["links"]) if made
        ],
        kind=SpanKind[told["kind"]],
        status=Status(StatusCode[code], description),
        start_time=told["start_time"],
        end_time=told["end_time"],
        instrumentation_scope=None if told["scope"] is None else InstrumentationScope(*told["scope"]),
    )


def _made(told: tuple[int, int, bool, int, str] | None) -> SpanContext | None:
    if told is None:
        return None
    trace_id, span_id, is_remote, flags, state = told
    return SpanContext(trace_id, span_id, is_remote, TraceFlags(flags), TraceState.from_header([state]))
