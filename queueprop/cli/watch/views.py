"""What the page shows, as plain values: cut to what a person reads, whatever the spans hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from itertools import islice
from typing import Any

from queueprop.cli.watch import flow
from queueprop.cli.watch.receiver import Receiver
from queueprop.cli.watch.store import Counts, Destination, Orphan, Store, Trace
from queueprop.testing.tree import Reference, SpanRecord

MOST_TRACES = 100
MOST_LISTED_ORPHANS = 200
MOST_DESTINATIONS = 100
MOST_ROWS = 2000
_MOST_READ = 5 * MOST_ROWS
_MOST_ATTRIBUTES = _MOST_LINKS = 100
_LONGEST_NAME, _LONGEST_VALUE = 200, 2000


def overview(receiver: Receiver) -> dict[str, Any]:
    """All of the page but the trace that is looked at."""
    store, forwarder = receiver.store, receiver.forwarder
    with store.lock:
        return {
            "endpoint": receiver.endpoint,
            "received": store.received,
            "kept": {"spans": store.span_count, "traces": len(store.traces)},
            "evicted": store.evicted,
            "refused": store.refused,
            "rejected": store.rejected,
            "orphaned": store.orphaned,
            "forward": None
            if forwarder is None
            else {"sent": forwarder.sent, "dropped": forwarder.dropped, "failure": forwarder.failure},
            "traces": summaries(store.newest(MOST_TRACES)),
            "orphans": list(map(_orphan, store.orphans(MOST_LISTED_ORPHANS))),
            "destinations": destinations(store),
            "flow": flow.picture(store),
        }


def summaries(traces: Iterable[Trace]) -> list[dict[str, Any]]:
    return [
        {
            "trace_id": trace.hex,
            "name": _cut(trace.name, _LONGEST_NAME),
            "services": [_cut(service, _LONGEST_NAME) for service in trace.services[:10]],
            "spans": len(trace.spans),
            "start": _moment(trace.start),
            "duration": max(trace.end - trace.start, 0),
            "errors": trace.errors,
            "orphans": trace.orphaned,
        }
        for trace in traces
    ]


def destinations(store: Store) -> list[dict[str, Any]]:
    """Those with orphans first, then the busiest."""
    counted: dict[Destination, dict[str, int]] = {}
    for (destination, reason), count in store.missing().items():
        counted.setdefault(destination, {})[_cut(reason, _LONGEST_NAME)] = count
    with store.lock:
        known = {**dict.fromkeys(counted, Counts()), **store.destinations}
        found: list[dict[str, Any]] = [
            {
                "system": _cut(system, _LONGEST_NAME),
                "name": _cut(name, _LONGEST_NAME),
                "published": counts.published,
                "deliveries": counts.deliveries,
                "orphans": {reason: count for reason, count in counts.orphans.items() if count},
                "counted": counted.get((system, name), {}),
            }
            for (system, name), counts in known.items()
        ]
    found.sort(key=lambda it: (-sum(it["orphans"].values()), -it["published"] - it["deliveries"], it["name"]))
    return found[:MOST_DESTINATIONS]


def waterfall(store: Store, trace: Trace) -> dict[str, Any]:
    """Every span of a trace as a row, each behind its parent."""
    records = store.records(trace, _MOST_READ)
    with store.lock:
        orphans, count = trace.orphans, len(trace.spans)
        start, end = trace.start, trace.end
    linked = {link.key for record in records[:MOST_ROWS] for link in record.links[:_MOST_LINKS]}
    names = {key: found.name for key in linked if (found := store.record(*key)) is not None}
    known = {record.span_id for record in records}
    rows = [
        _row(record, depth, start, orphans, known, names)
        for record, depth in islice(in_order(records), MOST_ROWS)
    ]
    return {
        "trace_id": trace.hex,
        "start": _moment(start),
        "duration": max(end - start, 0),
        "rows": rows,
        "left_out": count - len(rows),
    }


def in_order(records: Sequence[SpanRecord]) -> Iterator[tuple[SpanRecord, int]]:
    """Each with its depth, behind its parent; one whose parent is not there, or that is its own ancestor, has none."""
    children: dict[str | None, list[SpanRecord]] = {}
    known = {record.span_id for record in records}
    for record in records:
        parent = record.parent.span_id if record.parent is not None else None
        children.setdefault(parent if parent in known else None, []).append(record)
    done: set[str] = set()
    for start in [*children.get(None, ()), *records]:
        stack = [(start, 0)]
        while stack:
            record, depth = stack.pop()
            if record.span_id in done:
                continue
            done.add(record.span_id)
            yield record, depth
            stack.extend((child, depth + 1) for child in reversed(children.get(record.span_id, ())))


def _row(
    record: SpanRecord,
    depth: int,
    start: int,
    orphans: Mapping[tuple[str, str], str],
    known: set[str],
    names: Mapping[tuple[str, str], str],
) -> dict[str, Any]:
    parent = record.parent
    return {
        "span_id": record.span_id,
        "depth": depth,
        "name": _cut(record.name, _LONGEST_NAME),
        "kind": record.kind,
        "service": _cut(str(record.resource.get("service.name", "")), _LONGEST_NAME),
        "pid": str(record.resource.get("process.pid", "")),
        "offset": max(record.start_ns - start, 0),
        "duration": max((record.end_ns or record.start_ns) - record.start_ns, 0),
        "status": record.status,
        "status_description": _cut(record.status_description, _LONGEST_VALUE),
        "orphan": orphans.get(record.key),
        "unseen_parent": parent.span_id if parent is not None and parent.span_id not in known else None,
        "links": [_link(link, names.get(link.key), record) for link in record.links[:_MOST_LINKS]],
        "attributes": _text_of(record.attributes),
        "resource": _text_of(record.resource),
    }


def _link(link: Reference, name: str | None, record: SpanRecord) -> dict[str, Any]:
    return {
        "trace_id": link.trace_id,
        "name": None if name is None else _cut(name, _LONGEST_NAME),
        "span_id": link.span_id,
        "is_parent": record.parent is not None and link.key == record.parent.key,
    }


def _text_of(attributes: Mapping[str, Any]) -> dict[str, str]:
    return {
        _cut(key, _LONGEST_NAME): _cut(str(attributes[key]), _LONGEST_VALUE)
        for key in sorted(attributes)[:_MOST_ATTRIBUTES]
    }


def _orphan(orphan: Orphan) -> dict[str, Any]:
    system, name = orphan.destination
    return {
        "trace_id": orphan.trace.hex,
        "span_id": orphan.seen.span_id.hex(),
        "name": _cut(orphan.name, _LONGEST_NAME),
        "service": _cut(orphan.seen.service, _LONGEST_NAME),
        "system": _cut(system, _LONGEST_NAME),
        "destination": _cut(name, _LONGEST_NAME),
        "reason": orphan.reason,
        "start": _moment(orphan.start),
    }


_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def _moment(nanoseconds: int) -> str:
    """As browsers read it; a time that no calendar has is the beginning of theirs."""
    try:
        return (_EPOCH + timedelta(microseconds=nanoseconds // 1000)).isoformat()
    except OverflowError:
        return _EPOCH.isoformat()


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
