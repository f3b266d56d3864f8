"""What became of the messages, told from the spans alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from queueprop.testing import orphans
from queueprop.testing.tree import SpanRecord

WORKER = "notification-service"


@dataclass(frozen=True)
class Verdict:
    """Counts of one run."""

    messages: int
    """Orders that were accepted: one message each."""

    expected: int
    """Deliveries that there had to be."""

    deliveries: int
    """Deliveries that left a span in the worker."""

    orphans: int
    """Deliveries that are in no order's trace, and have no link to one."""

    traces: int

    @classmethod
    def of(cls, spans: Sequence[SpanRecord], messages: int, expected: int) -> Verdict:
        """Judges the spans of one run."""
        delivered, traces = deliveries(spans), {record.trace_id for record in spans}
        return cls(messages, expected, len(delivered), len(orphaned(spans)), len(traces))

    @property
    def is_whole(self) -> bool:
        """Whether every message was delivered as often as it had to be, and none is orphaned."""
        return self.deliveries == self.expected and self.orphans == 0

    def __str__(self) -> str:
        counts = f"{_count(self.messages, 'message')}, {_count(self.deliveries, 'delivery', 'deliveries')}, "
        counts += _count(self.orphans, "orphan")
        return (
            counts if self.deliveries == self.expected else f"{counts} ({self.expected} deliveries expected)"
        )


def orphaned(spans: Sequence[SpanRecord]) -> set[tuple[str, str]]:
    """The keys of the deliveries that are in no order's trace, and have no link to one."""
    found = {record.key for record in orphans(spans)}
    found.update(record.key for record in deliveries(spans) if not _is_joined(record, spans))
    return found


def deliveries(spans: Sequence[SpanRecord]) -> list[SpanRecord]:
    """One for each delivery: the CONSUMER spans of the worker, and otherwise the spans with which it begins."""
    of_worker = {record.key for record in spans if _service(record) == WORKER}
    return [
        record
        for record in spans
        if record.key in of_worker
        and (record.kind == "CONSUMER" or record.parent is None or record.parent.key not in of_worker)
    ]


def _is_joined(delivery: SpanRecord, spans: Sequence[SpanRecord]) -> bool:
    traces = {delivery.trace_id, *(link.trace_id for link in delivery.links)}
    return any(record.trace_id in traces and _service(record) != WORKER for record in spans)


def _service(record: SpanRecord) -> object:
    return record.resource.get("service.name")


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
