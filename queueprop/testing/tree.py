"""Traces as text: each one a tree over time, from spans of one process or of several.

    print(render_tree(spans))

    trace 4bf92f3577b34da6a3ce929d0e0e4736: 3 spans, 5.20 ms
    PRODUCER publish orders     shop (pid 71)    +0.00 ms  1.10 ms  unset
    └─ CONSUMER process orders  mailer (pid 74)  +1.90 ms  3.30 ms  ERROR ValueError: no such address
       │ ↳ link to publish orders (its parent)
       └─ CLIENT GET            mailer (pid 74)  +2.40 ms  1.00 ms  unset

Spans are taken as the SDK's `ReadableSpan`, as the parsed output of its `to_json()`, or as `SpanRecord`.
Nothing of the SDK is imported here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, NamedTuple, Union

from opentelemetry.trace import format_span_id, format_trace_id

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext

SpanLike = Union["ReadableSpan", Mapping[str, Any], "SpanRecord"]
"""What can be rendered and judged: the SDK's span, the parsed `ReadableSpan.to_json()`, or a `SpanRecord`."""


@dataclass(frozen=True)
class Reference:
    """The span that a parent or a link names. Ids are lowercase hex without `0x`."""

    trace_id: str
    span_id: str
    is_remote: bool | None = None
    """Whether the context came from a carrier (headers). None where the source does not tell, as in JSON."""

    @property
    def key(self) -> tuple[str, str]:
        return self.trace_id, self.span_id


@dataclass(frozen=True)
class SpanRecord:
    """One span, whatever it was read from. Ids are lowercase hex without `0x`, times in ns since 1970."""

    name: str
    trace_id: str
    span_id: str
    kind: str = "INTERNAL"
    """`INTERNAL`, `SERVER`, `CLIENT`, `PRODUCER` or `CONSUMER`."""
    parent: Reference | None = None
    links: tuple[Reference, ...] = ()
    start_ns: int = 0
    end_ns: int | None = None
    """None for a span that has not ended."""
    status: str = "UNSET"
    """`UNSET`, `OK` or `ERROR`."""
    status_description: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    resource: Mapping[str, Any] = field(default_factory=dict)
    """The attributes of the resource: `service.name`, `process.pid` and others."""

    @classmethod
    def of(cls, span: SpanLike) -> SpanRecord:
        """The record of any span that this module takes. Raises ValueError for JSON that is no span."""
        if isinstance(span, SpanRecord):
            return span
        if isinstance(span, Mapping):
            return cls.from_json(span)
        return cls.from_readable(span)

    @classmethod
    def from_readable(cls, span: ReadableSpan) -> SpanRecord:
        """The record of a span of the SDK."""
        context = span.get_span_context()
        if context is None:
            raise ValueError(f"the span {span.name!r} has no context")
        return cls(
            name=span.name,
            trace_id=format_trace_id(context.trace_id),
            span_id=format_span_id(context.span_id),
            kind=span.kind.name,
            parent=_reference(span.parent) if span.parent is not None else None,
            links=tuple(_reference(link.context) for link in span.links),
            start_ns=span.start_time or 0,
            end_ns=span.end_time,
            status=span.status.status_code.name,
            status_description=span.status.description or "",
            attributes=dict(span.attributes or {}),
            resource=dict(span.resource.attributes),
        )

    @classmethod
    def from_json(cls, span: Mapping[str, Any]) -> SpanRecord:
        """The record of a span that was written with `ReadableSpan.to_json()` and parsed again.

        That form has times in microseconds, and does not tell which references are remote.
        Raises ValueError, saying what is wrong, when the mapping is something else.
        """
        try:
            return cls._from_json(span)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a span as ReadableSpan.to_json() writes it: {error!r}") from error

    @classmethod
    def _from_json(cls, span: Mapping[str, Any]) -> SpanRecord:
        trace_id = _hex(span["context"]["trace_id"])
        parent_id, end, status = span.get("parent_id"), span.get("end_time"), span.get("status") or {}
        return cls(
            name=span["name"],
            trace_id=trace_id,
            span_id=_hex(span["context"]["span_id"]),
            kind=span.get("kind", "INTERNAL").removeprefix("SpanKind."),
            parent=Reference(trace_id, _hex(parent_id)) if parent_id else None,
            links=tuple(
                Reference(_hex(link["context"]["trace_id"]), _hex(link["context"]["span_id"]))
                for link in span.get("links") or ()
            ),
            start_ns=_nanoseconds(span["start_time"]),
            end_ns=_nanoseconds(end) if end else None,
            status=status.get("status_code", "UNSET"),
            status_description=status.get("description") or "",
            attributes=dict(span.get("attributes") or {}),
            resource=dict((span.get("resource") or {}).get("attributes") or {}),
        )

    @property
    def key(self) -> tuple[str, str]:
        return self.trace_id, self.span_id

    @property
    def process(self) -> tuple[object, object, object]:
        """What tells one process from another, as far as the resource says."""
        get = self.resource.get
        return get("service.name"), get("service.instance.id"), get("process.pid")


def render_tree(
    spans: Iterable[SpanLike], *, timeline: int = 0, notes: Mapping[tuple[str, str], str] | None = None
) -> str:
    """Draws every trace as a tree: kind, name, service and process, offset, duration, status, and links.

    Traces, and the children of a span, are in the order of their start. A parent that is not among the
    spans is named, so that a broken trace is not taken for a root. `timeline` is the width in characters
    of a bar that shows when each span ran within its trace; 0 leaves it out. `notes` has a line for the spans
    with these keys (trace id and span id), which stands below them.
    """
    records = sorted(map(SpanRecord.of, spans), key=lambda record: record.start_ns)
    if not records:
        return "(no spans)"
    by_key = _index(records)
    traces: dict[str, list[SpanRecord]] = {}
    for record in records:
        traces.setdefault(record.trace_id, []).append(record)
    lines = [
        line for trace in traces.values() for line in _Trace(trace, by_key, timeline, notes or {}).lines()
    ]
    return "\n".join(_aligned(lines))


def _reference(context: SpanContext) -> Reference:
    return Reference(format_trace_id(context.trace_id), format_span_id(context.span_id), context.is_remote)


def _hex(identifier: str) -> str:
    return identifier.removeprefix("0x").lower()


def _nanoseconds(iso: str) -> int:
    # Python 3.10 does not read the Z. Whole microseconds keep the sum exact where a float would not.
    moment = datetime.fromisoformat(iso.removesuffix("Z")).replace(tzinfo=timezone.utc)
    return (moment - datetime(1970, 1, 1, tzinfo=timezone.utc)) // timedelta(microseconds=1) * 1000


def _index(records: Iterable[SpanRecord]) -> dict[tuple[str, str], SpanRecord]:
    return {record.key: record for record in records}


class _Line(NamedTuple):
    """A line of text; cells, where there are any, are aligned with those of the other lines."""

    text: str
    cells: Sequence[str] = ()


class _Trace:
    """The drawing of one trace. Records are in the order of their start."""

    def __init__(
        self,
        records: Sequence[SpanRecord],
        by_key: Mapping[tuple[str, str], SpanRecord],
        timeline: int,
        notes: Mapping[tuple[str, str], str],
    ) -> None:
        self._records = records
        self._by_key = by_key
        self._timeline = timeline
        self._notes = notes
        self._start = records[0].start_ns
        self._end = max(record.end_ns or record.start_ns for record in records)
        self._children: dict[str, list[SpanRecord]] = {}
        for record in records:
            if record.parent is not None:
                self._children.setdefault(record.parent.span_id, []).append(record)

    def lines(self) -> Iterable[_Line]:
        count = "1 span" if len(self._records) == 1 else f"{len(self._records)} spans"
        yield _Line(f"trace {self._records[0].trace_id}: {count}, {_duration(self._end - self._start)}")
        captured = {record.span_id for record in self._records}
        for record in self._records:
            parent = record.parent
            if parent is None:
                yield from self._span(record, "", "")
            elif parent.span_id not in captured and parent.span_id in self._children:
                yield _Line(f"({'remote ' if parent.is_remote else ''}parent {parent.span_id}, not captured)")
                yield from self._branches(self._children.pop(parent.span_id), "")
        # What is left hangs on itself: only junk does, and it is shown all the same.
        while self._children:
            yield _Line("(spans that are their own ancestors)")
            yield from self._branches(self._children.pop(next(iter(self._children))), "")

    def _branches(self, records: Sequence[SpanRecord], indent: str) -> Iterable[_Line]:
        for record in records[:-1]:
            yield from self._span(record, indent + "├─ ", indent + "│  ")
        yield from self._span(records[-1], indent + "└─ ", indent + "   ")

    def _span(self, record: SpanRecord, first: str, indent: str) -> Iterable[_Line]:
        yield _Line(f"{first}{record.kind} {_printable(record.name)}", self._cells(record))
        # Taken out, so that neither a span that came twice nor a circle draws its children again.
        children = self._children.pop(record.span_id, [])
        if record.key in self._notes:
            yield _Line(f"{indent}{'│' if children else ' '} {_printable(self._notes[record.key])}")
        for link in record.links:
            yield _Line(f"{indent}{'│' if children else ' '} ↳ link to {self._linked(record, link)}")
        if children:
            yield from self._branches(children, indent)

    def _cells(self, record: SpanRecord) -> Sequence[str]:
        duration = "not ended" if record.end_ns is None else _duration(record.end_ns - record.start_ns)
        offset = "+" + _duration(record.start_ns - self._start)
        return _process_label(record), offset, duration, self._bar(record), _status(record)

    def _bar(self, record: SpanRecord) -> str:
        if not self._timeline:
            return ""
        scale = self._timeline / max(self._end - self._start, 1)
        begin = min(int((record.start_ns - self._start) * scale), self._timeline - 1)
        end = self._end if record.end_ns is None else record.end_ns
        length = max(round((end - record.start_ns) * scale), 1)
        return f"|{' ' * begin + '█' * min(length, self._timeline - begin):{self._timeline}}|"

    def _linked(self, record: SpanRecord, link: Reference) -> str:
        target = self._by_key.get(link.key)
        name = f"span {link.span_id}" if target is None else _printable(target.name)
        if record.parent is not None and link.key == record.parent.key:
            return f"{name} (its parent)"
        if link.trace_id != record.trace_id:
            name += f" in trace {link.trace_id[:8]}"
        return name if target is not None else f"{name}, not captured"


def _aligned(lines: Sequence[_Line]) -> Iterable[str]:
    """Cells under one another, figures (offset and duration) to the right; empty columns are left out."""
    table = [line for line in lines if line.cells]
    head = max(len(line.text) for line in table)
    widths = [max(map(len, column)) for column in zip(*(line.cells for line in table), strict=True)]
    for line in lines:
        if not line.cells:
            yield line.text
            continue
        cells = [
            cell.rjust(width) if column in (1, 2) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line.cells, widths, strict=True))
            if width
        ]
        yield "  ".join([line.text.ljust(head), *cells]).rstrip()


def _process_label(record: SpanRecord) -> str:
    service, pid = str(record.resource.get("service.name", "")), record.resource.get("process.pid")
    if service.startswith("unknown_service"):  # what the SDK writes when nobody named it
        service = ""
    if pid is None:
        return _printable(service)
    number = _printable(str(pid))
    return f"{_printable(service)} (pid {number})" if service else f"pid {number}"


def _status(record: SpanRecord) -> str:
    if record.status != "ERROR":
        return record.status.lower()
    what = _printable(record.status_description)
    error_type = _printable(str(record.attributes.get("error.type", "")))
    if error_type and not what.startswith(error_type.rpartition(".")[2]):
        what = f"{error_type}: {what}" if what else error_type
    return f"ERROR {what}".rstrip()


def _duration(nanoseconds: int) -> str:
    if nanoseconds < 1_000_000_000:
        return f"{nanoseconds / 1e6:.2f} ms"
    return f"{nanoseconds / 1e9:.2f} s"


def _printable(text: str, limit: int = 80) -> str:
    """One line of at most `limit` characters, whatever a span's name or an exception's message holds."""
    line = "".join(character if character.isprintable() else " " for character in text[: limit + 1])
    return line if len(line) <= limit else line[: limit - 1] + "…"
