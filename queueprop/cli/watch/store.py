"""The newest spans, by traces, in bounded memory; which of their deliveries are orphaned; what flows where."""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any, NamedTuple

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from queueprop.cli.watch import otlp
from queueprop.cli.watch.otlp import Missing, RawSpan
from queueprop.engine import semconv
from queueprop.testing.tree import SpanRecord

NO_CONTEXT = "no context"
MALFORMED = "malformed context"
UNTRUSTED = "untrusted"
UNSEEN = "parent never seen"
ELSEWHERE = "outside of its message's trace"

_TOLD = {"missing": NO_CONTEXT, "malformed": MALFORMED, "untrusted": UNTRUSTED}
"""By the attribute of queueprop's process spans; the metric's reasons have the same words."""

OTHER = ("", "_other")
"""The destinations beyond ``MOST_DESTINATIONS``."""

MOST_DESTINATIONS = 1000
MOST_FLOWS = 2000
MOST_SERIES = 5000
MOST_ORPHANS = 1000
"""That are listed; all are counted."""

_JUDGED = (Span.SPAN_KIND_PRODUCER, Span.SPAN_KIND_CONSUMER)

Destination = tuple[str, str]
"""Its system and its name."""


class Limits(NamedTuple):
    """What is kept of what came."""

    traces: int = 10_000
    spans: int = 200_000
    size: int = 112 << 20
    """Bytes of all spans, as they came: twice as many are in the memory of the process, at the most."""


class Seen:
    """One span, as it is kept: its bytes, and what is asked all the time."""

    __slots__ = ("kind", "parent_id", "raw", "reason", "resource", "span_id")

    def __init__(self, one: RawSpan) -> None:
        self.raw = one.raw
        self.resource = one.resource
        self.span_id = one.span.span_id
        self.parent_id = one.span.parent_span_id
        self.kind = one.span.kind
        self.reason: str | None = None

    @property
    def span(self) -> Span:
        return Span.FromString(self.raw)

    @property
    def record(self) -> SpanRecord:
        return otlp.record(self.span, otlp.resource_attributes(self.resource))

    @property
    def service(self) -> str:
        return service_of(self.resource)


class Trace:
    """The spans of one trace that came so far, and what a list of traces says of it."""

    __slots__ = (
        "_named_by",
        "changed",
        "end",
        "errors",
        "name",
        "orphaned",
        "resources",
        "spans",
        "start",
        "trace_id",
        "unseen",
    )

    def __init__(self, trace_id: bytes) -> None:
        self.trace_id = trace_id
        self.spans: dict[bytes, Seen] = {}
        self.resources: dict[bytes, bytes] = {}
        self.unseen: dict[bytes, list[Seen]] = {}
        """Orphans by the parent that they wait for, still."""
        self.start = self.end = self.errors = self.orphaned = 0
        self.name = ""
        self._named_by: tuple[bool, int] = (True, 0)
        self.changed = 0.0

    @property
    def hex(self) -> str:
        return self.trace_id.hex()

    @property
    def orphans(self) -> dict[tuple[str, str], str]:
        """The reasons of those that are orphaned, by the keys of their spans."""
        trace_id = self.hex
        return {(trace_id, it.span_id.hex()): it.reason for it in self.spans.values() if it.reason}

    @property
    def services(self) -> list[str]:
        return sorted(set(map(service_of, self.resources)))

    def add(self, seen: Seen, span: Span) -> int:
        """Returns the bytes that it takes."""
        start, end = span.start_time_unix_nano, span.end_time_unix_nano
        by = (bool(seen.parent_id), start)
        if not self.spans or by < self._named_by:  # the root, or the earliest for as long as there is none
            self.name, self._named_by = span.name, by
        self.start = min(self.start, start) if self.spans else start
        self.end = max(self.end, end)
        self.errors += span.status.code == span.status.STATUS_CODE_ERROR
        self.spans[seen.span_id] = seen
        size = len(seen.raw)
        if seen.resource not in self.resources:
            self.resources[seen.resource] = seen.resource
            size += len(seen.resource)
        seen.resource = self.resources[seen.resource]
        return size

    @property
    def size(self) -> int:
        return sum(len(it.raw) for it in self.spans.values()) + sum(map(len, self.resources))


class Counts:
    """Of one destination, since the beginning."""

    __slots__ = ("deliveries", "orphans", "published")

    def __init__(self) -> None:
        self.published = self.deliveries = 0
        self.orphans: Counter[str] = Counter()


class Orphan(NamedTuple):
    """A delivery outside of its message's trace."""

    trace: Trace
    seen: Seen
    reason: str
    destination: Destination
    name: str
    start: int


class Store:
    """What came. For any number of threads.

    Args:
        limits: beyond them the traces go that have been without a new span for the longest.
        grace: seconds that a parent may take to come: the SDKs hand over every five.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        limits: Limits = Limits(),  # noqa: B008 (it is frozen)
        grace: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._grace = grace
        self._clock = clock
        self.lock = threading.RLock()
        self.version = 0
        """Another one whenever there is something else to show."""
        self.clear()

    def clear(self) -> None:
        """Forgets everything."""
        with self.lock:
            self.traces: OrderedDict[bytes, Trace] = OrderedDict()
            self._fresh: OrderedDict[bytes, Trace] = OrderedDict()
            self._pending: deque[tuple[float, bytes, bytes]] = deque()
            self._orphans: OrderedDict[tuple[bytes, bytes], Orphan] = OrderedDict()
            self._metrics: OrderedDict[tuple[object, ...], Missing] = OrderedDict()
            self.destinations: dict[Destination, Counts] = {}
            self.flows: Counter[tuple[str, Any, Any]] = Counter()
            self.orphaned_flows: Counter[tuple[Destination, str]] = Counter()
            self.span_count = self.size = 0
            self.received = self.evicted = self.unshown = self.rejected = self.refused = 0
            self.version += 1

    # What comes

    def add(self, spans: Iterable[RawSpan], rejected: int = 0) -> None:
        """Keeps the spans of one request."""
        with self.lock:
            now = self._clock()
            # All of them first: a parent may stand behind its child.
            for trace, seen, span in [it for one in spans if (it := self._keep(one, now)) is not None]:
                if seen.kind in _JUDGED:
                    self._count(trace, seen, span)
                if trace.unseen:
                    self._found(trace, seen.span_id)
            self.rejected += rejected
            self.version += 1
            self._evict()

    def add_missing(self, points: Iterable[Missing]) -> None:
        """Keeps what processes have counted of messages without a usable context."""
        with self.lock:
            for point in points:
                known = self._metrics.pop(point.series, None)
                if point.is_delta and known is not None:
                    point = point._replace(value=point.value + known.value)
                self._metrics[point.series] = point
                if len(self._metrics) > MOST_SERIES:
                    self._metrics.popitem(last=False)
            self.version += 1

    def refuse(self) -> None:
        """Counts a request that was not taken."""
        with self.lock:
            self.refused += 1
            self.version += 1

    def settle(self) -> None:
        """Judges those whose parent had its time to come."""
        with self.lock:
            now = self._clock()
            while self._pending and self._pending[0][0] <= now:
                _, trace_id, span_id = self._pending.popleft()
                trace = self.traces.get(trace_id)
                seen = trace.spans.get(span_id) if trace is not None else None
                if trace is not None and seen is not None:
                    self._judge(trace, seen, seen.span, is_late=True)

    def take_settled(self, quiet: float) -> list[Trace]:
        """The traces that got no span for so many seconds, each once, and again when it has got others since."""
        with self.lock:
            before = self._clock() - quiet
            found = []
            while self._fresh and next(iter(self._fresh.values())).changed <= before:
                found.append(self._fresh.popitem(last=False)[1])
            return found

    # What is asked

    def newest(self, count: int) -> list[Trace]:
        with self.lock:
            return list(islice(reversed(self.traces.values()), count))

    def search(self, part: str, count: int) -> list[Trace]:
        """The newest traces whose id, in hex, has this in it."""
        with self.lock:
            return list(islice((it for it in reversed(self.traces.values()) if part in it.hex), count))

    def trace(self, trace_id: str) -> Trace | None:
        """By its id in hex."""
        try:
            return self.traces.get(bytes.fromhex(trace_id))
        except ValueError:
            return None

    def records(self, trace: Trace, most: int) -> list[SpanRecord]:
        """The first that came of it, so many at the most; they are read while others may come."""
        with self.lock:
            seen = list(islice(trace.spans.values(), most))
        return sorted((it.record for it in seen), key=lambda it: it.start_ns)

    def record(self, trace_id: str, span_id: str) -> SpanRecord | None:
        """One span, by its ids in hex."""
        with self.lock:
            seen = self._seen(bytes.fromhex(trace_id), bytes.fromhex(span_id))
        return seen.record if seen is not None else None

    def spans(self) -> list[SpanRecord]:
        """All that is kept."""
        with self.lock:
            seen = [it for trace in self.traces.values() for it in trace.spans.values()]
        return [it.record for it in seen]

    def orphans(self, count: int) -> list[Orphan]:
        """The newest."""
        with self.lock:
            return list(islice(reversed(self._orphans.values()), count))

    def missing(self) -> Counter[tuple[Destination, str]]:
        """Messages without a usable context by the metrics, spans sampled or not; by destination and reason."""
        with self.lock:
            found: Counter[tuple[Destination, str]] = Counter()
            for point in self._metrics.values():
                found[point.destination, _TOLD.get(point.reason, point.reason)] += point.value
            return found

    @property
    def orphaned(self) -> int:
        """Deliveries, since the beginning."""
        with self.lock:
            return sum(counts.orphans.total() for counts in self.destinations.values())

    # One span

    def _keep(self, one: RawSpan, now: float) -> tuple[Trace, Seen, Span] | None:
        """None where it is there already: it was sent again, since an answer had been lost."""
        trace_id = one.span.trace_id
        trace = self.traces.get(trace_id)
        if trace is None:
            trace = self.traces[trace_id] = Trace(trace_id)
        elif one.span.span_id in trace.spans:
            return None
        self.traces.move_to_end(trace_id)
        self._freshen(trace, now)
        seen = Seen(one)
        self.size += trace.add(seen, one.span)
        self.received += 1
        self.span_count += 1
        return trace, seen, one.span

    def _freshen(self, trace: Trace, now: float) -> None:
        trace.changed = now
        self._fresh[trace.trace_id] = trace
        self._fresh.move_to_end(trace.trace_id)

    def _count(self, trace: Trace, seen: Seen, span: Span) -> None:
        attributes = otlp.attributes_of(span.attributes)
        if attributes.get(semconv.OPERATION_TYPE) == semconv.RECEIVE:
            return  # a pull, which older conventions have as CONSUMER: what it gave is processed, or linked
        destination = otlp.destination_of(attributes)
        if seen.kind == Span.SPAN_KIND_PRODUCER:
            self._counts(destination).published += 1
            self._flow("publish", seen.service, destination)
            return
        self._counts(destination).deliveries += _messages(attributes)
        self._flow("deliver", destination, seen.service)
        self._judge(trace, seen, span, is_late=False)

    def _judge(self, trace: Trace, seen: Seen, span: Span, is_late: bool) -> None:
        attributes = otlp.attributes_of(span.attributes)
        destination = otlp.destination_of(attributes)
        reason = _TOLD.get(str(attributes.get(semconv.CONTEXT_REASON)))
        if reason is None:
            reason = self._found_out(trace, seen, span, destination, is_late)
        if reason == _PENDING:
            self._pending.append((self._clock() + self._grace, trace.trace_id, seen.span_id))
        elif reason is not None:
            self._orphan(Orphan(trace, seen, reason, destination, span.name, span.start_time_unix_nano))

    def _found_out(
        self, trace: Trace, seen: Seen, span: Span, destination: Destination, is_late: bool
    ) -> str | None:
        """Why it is orphaned, as far as its parent and its links tell; None for one that is not."""
        is_open = False
        if seen.parent_id:
            target, remote = trace.spans.get(seen.parent_id), otlp.is_remote(span.flags)
            if target is not None:
                if self._is_creation(target, remote, seen, destination):
                    return None
            elif remote is not False:
                return UNSEEN if is_late else _PENDING
            else:
                is_open = True
        for link in span.links:
            target, remote = self._seen(link.trace_id, link.span_id), otlp.is_remote(link.flags)
            if target is not None:
                if self._is_creation(target, remote, seen, destination):
                    return None
            elif remote is not False:
                return None
            else:
                is_open = True
        if is_open and not is_late:
            return _PENDING
        return ELSEWHERE if seen.parent_id else NO_CONTEXT

    def _is_creation(self, target: Seen, remote: bool | None, seen: Seen, destination: Destination) -> bool:
        """Whether that span made the message, as ``queueprop.testing.orphans`` has it."""
        if target.kind == Span.SPAN_KIND_PRODUCER:
            published_to = otlp.destination_of(otlp.attributes_of(target.span.attributes))
            if published_to != destination:
                self._flow("route", published_to, destination)
            return True
        if remote is not None:
            return remote
        return _process(target) != _process(seen)

    def _seen(self, trace_id: bytes, span_id: bytes) -> Seen | None:
        trace = self.traces.get(trace_id)
        return trace.spans.get(span_id) if trace is not None else None

    def _orphan(self, orphan: Orphan) -> None:
        trace, seen = orphan.trace, orphan.seen
        seen.reason = orphan.reason
        trace.orphaned += 1
        self._tell_flow(orphan.destination, seen, 1)
        self._counts(orphan.destination).orphans[orphan.reason] += 1
        self._orphans[trace.trace_id, seen.span_id] = orphan
        if len(self._orphans) > MOST_ORPHANS:
            self._orphans.popitem(last=False)
        if orphan.reason == UNSEEN:
            trace.unseen.setdefault(seen.parent_id, []).append(seen)
            self._freshen(trace, self._clock())
        self.version += 1

    def _found(self, trace: Trace, span_id: bytes) -> None:
        """A span that has come after all: those that waited for it are judged anew."""
        for seen in trace.unseen.pop(span_id, ()):
            if trace.spans.get(seen.span_id) is not seen:
                continue
            span = seen.span
            destination = otlp.destination_of(otlp.attributes_of(span.attributes))
            self._counts(destination).orphans[UNSEEN] -= 1
            self._tell_flow(destination, seen, -1)
            seen.reason = None
            trace.orphaned -= 1
            self._orphans.pop((trace.trace_id, seen.span_id), None)
            self._judge(trace, seen, span, is_late=True)

    def _counts(self, destination: Destination) -> Counts:
        known = self.destinations.get(destination)
        if known is None:
            if len(self.destinations) >= MOST_DESTINATIONS:
                destination = OTHER
            known = self.destinations.setdefault(destination, Counts())
        return known

    def _flow(self, kind: str, source: object, target: object) -> None:
        flow = (kind, source, target)
        if flow in self.flows or len(self.flows) < MOST_FLOWS:
            self.flows[flow] += 1

    def _tell_flow(self, destination: Destination, seen: Seen, count: int) -> None:
        if ("deliver", destination, seen.service) in self.flows:
            self.orphaned_flows[destination, seen.service] += count

    def _evict(self) -> None:
        limits = self._limits
        while len(self.traces) > limits.traces or self.span_count > limits.spans or self.size > limits.size:
            trace = next(iter(self.traces.values()))
            if len(self.traces) == 1:  # a trace that is too large by itself loses its oldest spans
                self._drop(trace, next(iter(trace.spans)))
                continue
            del self.traces[trace.trace_id]
            self.unshown += self._fresh.pop(trace.trace_id, None) is not None
            self.evicted += 1
            self.span_count -= len(trace.spans)
            self.size -= trace.size
            for seen in trace.spans.values():
                if seen.reason is not None:
                    self._orphans.pop((trace.trace_id, seen.span_id), None)

    def _drop(self, trace: Trace, span_id: bytes) -> None:
        seen = trace.spans.pop(span_id)
        self.span_count -= 1
        self.size -= len(seen.raw)
        self._orphans.pop((trace.trace_id, span_id), None)


_PENDING = "pending"


def service_of(resource: bytes) -> str:
    """The name of the service, of its resource as it came."""
    return str(otlp.resource_attributes(resource).get("service.name", "")) or "(unnamed)"


def _process(seen: Seen) -> tuple[object, ...]:
    get = otlp.resource_attributes(seen.resource).get
    return tuple(get(key) for key in otlp.PROCESS)


def _messages(attributes: Mapping[str, Any]) -> int:
    count = attributes.get(semconv.BATCH_MESSAGE_COUNT)
    return count if isinstance(count, int) and count > 0 else 1
