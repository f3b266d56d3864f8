"""For tests of programs that use queues: capture spans, look at their traces, assert that none is orphaned.

    def test_order_is_traced(captured_spans):           # the fixture of queueprop's pytest plugin
        publish_and_consume_one_order()
        captured_spans.wait_for(1, kind=SpanKind.CONSUMER)
        assert_no_orphans(captured_spans)

Without pytest, `with capture_spans() as spans:` does the same. Both need the OpenTelemetry SDK, which is
imported when a capture begins; `orphans` and `assert_no_orphans` also judge spans that were written as JSON.
"""

from __future__ import annotations

import os
import threading
import time
from bisect import insort
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple, TypeVar, overload

from opentelemetry import trace
from opentelemetry.trace import SpanKind

from queueprop.testing.tree import Reference, SpanLike, SpanRecord, render_tree

if TYPE_CHECKING:
    from types import ModuleType

    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider

    from queueprop.testing._forks import ForksFile

__all__ = ["CapturedSpans", "MissingSDK", "assert_no_orphans", "capture_spans", "orphans", "render_tree"]

AnySpan = TypeVar("AnySpan", bound=SpanLike)


class MissingSDK(ImportError):
    """Spans cannot be captured: the OpenTelemetry SDK is not installed. The message says what to install."""


class CapturedSpans(Sequence["ReadableSpan"]):
    """The spans that ended while a capture was open, in the order of their end.

    It grows until the capture ends, and holds what an exporter would have got: spans of every thread, of the
    children that this process forks meanwhile (RQ's work horses), and none that was sampled out. Programs that it
    starts are another matter: those hold their spans themselves.
    """

    tracer_provider: TracerProvider
    """The provider whose spans are captured, for code that wants it as an argument."""

    def __init__(self, tracer_provider: TracerProvider) -> None:
        self.tracer_provider = tracer_provider
        self._spans: list[ReadableSpan] = []
        self._changed = threading.Condition()
        self._pid = os.getpid()
        self._forks: ForksFile | None = None

    def named(self, name: str) -> list[ReadableSpan]:
        """The spans of exactly this name."""
        return self._matching(name, None)

    def kind(self, kind: SpanKind) -> list[ReadableSpan]:
        """The spans of this kind."""
        return self._matching(None, kind)

    def trace(self, trace_id: int) -> list[ReadableSpan]:
        """The spans of one trace, named by its id as `SpanContext.trace_id` has it."""
        return [span for span in self._snapshot() if _trace_id(span) == trace_id]

    def tree(self) -> str:
        """Every trace as text, by `render_tree`."""
        return render_tree(self)

    def wait_for(
        self, count: int, timeout: float = 5.0, *, name: str | None = None, kind: SpanKind | None = None
    ) -> list[ReadableSpan]:
        """Waits until at least `count` spans (of that name, of that kind) have ended, and returns them all.

        Returns at once when they are there. Raises TimeoutError, with the tree of what did come, after
        `timeout` seconds.
        """
        ends_at = time.monotonic() + timeout
        with self._changed:
            while True:
                found = self._matching(name, kind)
                left = ends_at - time.monotonic()
                if len(found) >= count:
                    return found
                if left <= 0:
                    break
                # A span of this process wakes it; a child cannot.
                self._changed.wait(min(left, _LOOK_EVERY))
        wanted = (
            ("" if kind is None else f"{kind.name} ") + "spans" + ("" if name is None else f" named {name!r}")
        )
        raise TimeoutError(
            f"waited {timeout:g} s for {count} {wanted} to end, {len(found)} did\n\n{self.tree()}"
        )

    def clear(self) -> None:
        """Forgets the spans captured so far; the capture goes on."""
        with self._changed:
            self._take_from_forks()
            self._spans.clear()

    @overload
    def __getitem__(self, index: int) -> ReadableSpan: ...
    @overload
    def __getitem__(self, index: slice) -> list[ReadableSpan]: ...
    def __getitem__(self, index: int | slice) -> ReadableSpan | list[ReadableSpan]:
        return self._snapshot()[index]

    def __len__(self) -> int:
        return len(self._snapshot())

    def __repr__(self) -> str:
        names = [f"{span.kind.name} {span.name}" for span in self._snapshot()]
        return f"<CapturedSpans {len(names)}: {', '.join(names)}>"

    def _matching(self, name: str | None, kind: SpanKind | None) -> list[ReadableSpan]:
        return [
            span
            for span in self._snapshot()
            if (name is None or span.name == name) and (kind is None or span.kind is kind)
        ]

    def _snapshot(self) -> list[ReadableSpan]:
        with self._changed:
            self._take_from_forks()
            return self._spans.copy()

    def _take_from_forks(self) -> None:
        if self._forks is not None and os.getpid() == self._pid:
            for span in self._forks.new():
                insort(self._spans, span, key=_end)

    def _add(self, span: ReadableSpan) -> None:
        # A forked child may have inherited the lock in the hands of a thread that it has not.
        if os.getpid() != self._pid:
            if self._forks is not None:
                self._forks.append(span)
            return
        with self._changed:
            self._spans.append(span)
            self._changed.notify_all()


@contextmanager
def capture_spans(tracer_provider: TracerProvider | None = None) -> Iterator[CapturedSpans]:
    """Captures the spans that end inside the `with` block.

    Those of `tracer_provider`, or of the global provider. Where the program has set no global one, a provider
    of queueprop's is set: once, since OpenTelemetry allows no more, and outside of captures it behaves as if
    there were no SDK. So whoever sets a provider of their own does it before the first capture.
    Captures may be nested, and each gets every span.

    Raises MissingSDK when the SDK is not installed, TypeError for a `tracer_provider` that takes no
    processors.
    """
    capture = _import_capture()
    provider = capture.global_provider() if tracer_provider is None else tracer_provider
    spans = CapturedSpans(provider)
    with closing(capture.ForksFile()) as spans._forks:
        with capture.recorder_of(provider).recording(spans._add):
            yield spans
        len(spans)  # takes what is left of the children's


def orphans(spans: Iterable[AnySpan]) -> list[AnySpan]:
    """The CONSUMER spans that are in no producer's trace.

    A CONSUMER span belongs to its message's trace when its parent, or one of its links, is the message's
    creation context. That is (in the words of exported spans) a reference

    - to a PRODUCER span that is among `spans`, or
    - to a context that came from a carrier (`is_remote`), also when the span behind it was not captured, or
      is of another kind because its context was injected by hand. JSON does not tell what is remote; there
      it is a span of another process, or one that was not captured.

    So a span in link mode, a batch, or a message from an untrusted source, which are linked only, are no
    orphans. A root is one, also when it links to the local span that was current around it; so is the child
    of such a local span: it is in some trace, but not because of its message.
    """
    given = list(spans)
    records = [SpanRecord.of(span) for span in given]
    return [given[orphan.position] for orphan in _find_orphans(records)]


def assert_no_orphans(
    spans: Iterable[SpanLike], *, expect: int | None = None, allow: Collection[str] = ()
) -> None:
    """Fails when one of the spans is an orphan, as `orphans` defines it, or when there was nothing to judge.

    `expect` is the number of CONSUMER spans that there must be: exactly that many, or, without it, at least
    one, for a check on no span at all would never fail. `allow` names the destinations
    (`messaging.destination.name`, `*` and `?` as in a shell) whose messages may come without a context,
    because their producer is known not to be instrumented.

    Raises AssertionError; its message names the spans, their destination and the likely cause, and draws
    the traces.
    """
    __tracebackhide__ = True
    given = list(spans)
    records = [SpanRecord.of(span) for span in given]
    allowed = [allow] if isinstance(allow, str) else allow
    found = [orphan for orphan in _find_orphans(records) if not _matches(orphan.destination, allowed)]
    consumers = sum(record.kind == "CONSUMER" for record in records)
    if found:
        problem = "\n".join([_headline(found, consumers), *(orphan.line for orphan in found)])
    elif not (consumers if expect is None else consumers == expect):
        wanted = "at least 1" if expect is None else str(expect)
        problem = f"{consumers} CONSUMER spans, expected {wanted}. {_WHY_FEW}{_foreign(spans)}"
    else:
        return
    raise AssertionError(f"{problem}\n\n{render_tree(records)}")


_LOOK_EVERY = 0.05
"""Seconds between two looks for spans of forked children."""


def _end(span: ReadableSpan) -> int:
    return span.end_time or 0


class _Orphan(NamedTuple):
    position: int
    destination: str
    line: str


_WHY_FEW = (
    "A span counts once it has ended inside the capture (see CapturedSpans.wait_for); the consumer must be "
    "instrumented, and its spans sampled."
)


def _import_capture() -> ModuleType:
    try:
        from queueprop.testing import _capture
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("opentelemetry.sdk"):
            raise
        raise MissingSDK(
            'queueprop.testing needs the OpenTelemetry SDK: pip install "queueprop[sdk]"'
        ) from error
    return _capture


def _trace_id(span: ReadableSpan) -> int | None:
    return span.context.trace_id if span.context is not None else None


def _find_orphans(records: Sequence[SpanRecord]) -> list[_Orphan]:
    captured = {record.key: record for record in records}
    return [
        _Orphan(position, _destination(record), _describe(record, captured))
        for position, record in enumerate(records)
        if record.kind == "CONSUMER"
        and not any(_is_creation(reference, record, captured) for reference in _references(record))
    ]


def _references(record: SpanRecord) -> Iterable[Reference]:
    return record.links if record.parent is None else (record.parent, *record.links)


def _is_creation(
    reference: Reference, consumer: SpanRecord, captured: Mapping[tuple[str, str], SpanRecord]
) -> bool:
    target = captured.get(reference.key)
    if target is not None and target.kind == "PRODUCER":
        return True
    if reference.is_remote is not None:
        return reference.is_remote
    return target is None or target.process != consumer.process


def _destination(record: SpanRecord) -> str:
    return str(record.attributes.get("messaging.destination.name", ""))


def _matches(destination: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(destination, pattern) for pattern in patterns)


def _headline(found: Sequence[_Orphan], consumers: int) -> str:
    return f"{len(found)} of {consumers} CONSUMER spans orphaned, outside the trace of their message:"


def _describe(record: SpanRecord, captured: Mapping[tuple[str, str], SpanRecord]) -> str:
    destination = _destination(record)
    source = f"from {destination}" if destination else "from an unnamed destination"
    return f"  {record.name} (span {record.span_id}) {source}: {_cause(record, captured)}"


def _cause(record: SpanRecord, captured: Mapping[tuple[str, str], SpanRecord]) -> str:
    if record.parent is not None:
        around = captured.get(record.parent.key)
        name = f"{around.kind} {around.name}" if around is not None else f"span {record.parent.span_id}"
        return (
            f"a child of {name}, which was current where the message was handled. "
            "Likely the consumer did not read the message's headers."
        )
    root = "a root that links only to a local span" if record.links else "a root without a link"
    if _has_producer(record, captured.values()):
        return (
            f"{root}, although a publish to that destination was captured. "
            "Likely its headers were dropped or broken on the way, or the consumer did not read them."
        )
    return (
        f"{root}; no publish to that destination was captured. Likely the producer is not instrumented. "
        "Destinations that may come without a context are named by allow=."
    )


def _has_producer(consumer: SpanRecord, records: Iterable[SpanRecord]) -> bool:
    """Whether a publish to the consumer's destination is there; RabbitMQ's consumers append the queue."""
    wanted = _destination(consumer) + ":"
    return any(
        record.kind == "PRODUCER" and wanted.startswith(_destination(record) + ":") for record in records
    )


def _foreign(spans: object) -> str:
    """Where the spans are not the global provider's, the usual reason why some are missing."""
    current = trace.get_tracer_provider()
    if not isinstance(spans, CapturedSpans) or spans.tracer_provider is current:
        return ""
    return (
        f" The global tracer provider, a {type(current).__name__}, is not the captured one: "
        "pass the capture's tracer_provider to what makes spans."
    )
