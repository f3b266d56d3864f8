"""What the processes of one run tell: spans, metrics, log records, and what the handlers saw.

Everything goes into one file of JSON lines, whichever process it comes from: workers that fork, are spawned
or are killed leave what they had handed over, and nothing else. Spans wait in a batch processor that never
exports by itself, so that a worker which exits without a flush loses its spans here as it would in
production.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import metrics, propagate, trace
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.sdk.metrics import Counter, Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import Sampler

# Names the file to the processes of a run; a spawned worker finds it in its environment.
RECORDS = "_QUEUEPROP_CONTRACT_RECORDS"
SDK = "_QUEUEPROP_CONTRACT_SDK"
"""``1`` where the run has an SDK."""

DEADLINE = 60.0
"""Seconds after which a condition that a run waits for counts as never met."""

PATIENCE = 120.0
"""Seconds for a wait that does not look again and again, and so takes a machine that stands still for a hang."""

_PROPAGATORS = "OTEL_PROPAGATORS"

_NEVER_MILLIS = 24 * 3600 * 1000


@dataclass(frozen=True)
class LinkRecord:
    trace_id: str
    span_id: str
    attributes: Mapping[str, Any]

    @property
    def context(self) -> tuple[str, str]:
        return self.trace_id, self.span_id


@dataclass(frozen=True)
class SpanRecord:
    """An exported span, in plain values: ids are lowercase hex digits, times nanoseconds since the epoch."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str | None
    scope: str
    pid: int
    start: int
    end: int
    status: str
    description: str | None
    attributes: Mapping[str, Any]
    links: Sequence[LinkRecord]
    events: Sequence[tuple[str, Mapping[str, Any]]]
    tracestate: str

    @property
    def context(self) -> tuple[str, str]:
        return self.trace_id, self.span_id

    @property
    def seconds(self) -> float:
        return (self.end - self.start) / 1e9

    @property
    def is_ours(self) -> bool:
        return self.scope.startswith("queueprop")


@dataclass(frozen=True)
class Seen:
    """What a handler saw while it ran; see ``actions.observe``."""

    body: str
    pid: int
    trace_id: str
    span_id: str
    flags: int
    recording: bool
    baggage: Mapping[str, str]
    tracestate: str
    headers: Any
    child_id: str
    logged_trace_id: str | None
    note: str | None


@dataclass(frozen=True)
class Logged:
    name: str
    level: int
    text: str
    pid: int


@dataclass(frozen=True)
class LibraryError:
    """An exception of a handler as the library was given it. ``marker`` tells the very same object."""

    type: str
    text: str
    marker: str | None
    context: str | None


@dataclass(frozen=True)
class Point:
    """One data point of one metric."""

    metric: str
    unit: str
    attributes: Mapping[str, Any]
    value: float
    """A counter's value, or a histogram's sum."""
    count: int
    """A histogram's number of measurements; 0 for a counter."""
    bounds: Sequence[float]


@dataclass
class Telemetry:
    """Reads one run's file; ``flush`` first hands over what this process still holds."""

    path: Path
    tracer_provider: TracerProvider | None = None
    meter_provider: MeterProvider | None = None
    _read: int = 0
    _records: list[dict[str, Any]] = field(default_factory=list)

    def flush(self) -> None:
        if self.tracer_provider is not None:
            self.tracer_provider.force_flush()
        if self.meter_provider is not None:
            self.meter_provider.force_flush()

    def records(self, kind: str) -> Iterator[dict[str, Any]]:
        with self.path.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                self._records.append(json.loads(line))
        return (record["it"] for record in self._records if record["kind"] == kind)

    @property
    def spans(self) -> list[SpanRecord]:
        self.flush()
        spans = [_span_record(record) for record in self.records("span")]
        return sorted(spans, key=lambda span: span.start)

    @property
    def seen(self) -> list[Seen]:
        return [Seen(**record) for record in self.records("seen")]

    @property
    def logged(self) -> list[Logged]:
        return [Logged(**record) for record in self.records("log")]

    @property
    def library_errors(self) -> list[LibraryError]:
        return [LibraryError(**record) for record in self.records("error")]

    @property
    def points(self) -> list[Point]:
        self.flush()
        return [Point(**record) for record in self.records("point")]


def tell(kind: str, it: Mapping[str, Any]) -> None:
    """Appends a record to the file of the run that this process belongs to."""
    _append([{"kind": kind, "it": it}])


def tell_library_error(error: BaseException) -> None:
    """Called by a driver where the library hands out what a handler raised."""
    tell(
        "error",
        {
            "type": f"{type(error).__module__}.{type(error).__qualname__}",
            "text": str(error),
            "marker": getattr(error, "marker", None),
            "context": repr(error.__context__) if error.__context__ is not None else None,
        },
    )


@contextmanager
def telemetry(
    path: Path,
    *,
    sampler: Sampler | None = None,
    sdk: bool = True,
    propagators: str | None = None,
) -> Iterator[Telemetry]:
    """Global providers of its own for one run, in this process and, through the environment, in its workers."""
    path.touch()
    os.environ[RECORDS] = str(path)
    run = Telemetry(path)
    previous_propagator = propagate.get_global_textmap()
    _forget_providers()
    os.environ[SDK] = str(int(sdk))
    if sdk:
        run.tracer_provider, run.meter_provider = set_providers(sampler)
    if propagators is not None:
        os.environ[_PROPAGATORS] = propagators
        propagate.set_global_textmap(_propagators(propagators))
    with _captured_logs():
        try:
            yield run
        finally:
            run.flush()
            # The run reads no more spans than there are now.
            if run.tracer_provider is not None:
                run.tracer_provider.shutdown()
            if run.meter_provider is not None:
                run.meter_provider.shutdown()
            run.tracer_provider = run.meter_provider = None
            propagate.set_global_textmap(previous_propagator)
            os.environ.pop(_PROPAGATORS, None)
            _forget_providers()
            del os.environ[RECORDS], os.environ[SDK]


def set_providers(sampler: Sampler | None = None) -> tuple[TracerProvider, MeterProvider]:
    """The providers of one process of a run; a spawned worker calls it for itself."""
    resource = Resource.create({"service.name": "contract"})
    tracer_provider = TracerProvider(sampler=sampler, resource=resource)
    tracer_provider.add_span_processor(
        BatchSpanProcessor(
            _FileSpanExporter(),
            max_queue_size=1 << 17,
            schedule_delay_millis=_NEVER_MILLIS,
            max_export_batch_size=512,
        )
    )
    reader = PeriodicExportingMetricReader(_FileMetricExporter(), export_interval_millis=_NEVER_MILLIS)
    meter_provider = MeterProvider([reader], resource=resource)
    trace.set_tracer_provider(tracer_provider)
    metrics.set_meter_provider(meter_provider)
    return tracer_provider, meter_provider


@contextmanager
def ambient_span(
    name: str = "ambient", baggage: otel_context.Context | None = None
) -> Iterator[trace.SpanContext]:
    """A span of the user's that is current inside."""
    with trace.get_tracer("contract").start_as_current_span(name, context=baggage) as span:
        if baggage is None:
            yield span.get_span_context()
            return
        token = otel_context.attach(trace.set_span_in_context(span, baggage))
        try:
            yield span.get_span_context()
        finally:
            otel_context.detach(token)


def wait_until(condition: Callable[[], bool], what: str, deadline: float = DEADLINE) -> None:
    """Returns as soon as the condition holds; ``AssertionError`` when it still does not after ``deadline``
    seconds.
    """
    # Not above: a program of a test's may begin before queueprop does.
    from queueprop.cli.demo.processes import looks

    for _ in looks(deadline, 0.002):
        if condition():
            return
    raise AssertionError(f"waited {deadline:.0f} s in vain: {what}")


class _FileSpanExporter(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        _append([{"kind": "span", "it": _plain_span(span)} for span in spans])
        return SpanExportResult.SUCCESS

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return True


class _FileMetricExporter(MetricExporter):
    def __init__(self) -> None:
        # Deltas: a forked worker must not tell again what its parent counted.
        super().__init__(
            preferred_temporality={
                Counter: AggregationTemporality.DELTA,
                Histogram: AggregationTemporality.DELTA,
            }
        )

    def export(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any
    ) -> MetricExportResult:
        points = [
            {"kind": "point", "it": _plain_point(metric, point)}
            for resource in metrics_data.resource_metrics
            for scope in resource.scope_metrics
            if scope.scope.name.startswith("queueprop")
            for metric in scope.metrics
            for point in metric.data.data_points
        ]
        _append(points)
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        pass


class _FileLogHandler(logging.Handler):
    """Takes what queueprop and OpenTelemetry log above DEBUG."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        tell("log", {"name": record.name, "level": record.levelno, "text": text, "pid": os.getpid()})


@contextmanager
def _captured_logs() -> Iterator[None]:
    undo = capture_logs()
    try:
        yield
    finally:
        undo()


def capture_logs() -> Callable[[], None]:
    """Writes the log records of queueprop and OpenTelemetry down from now on; gives the way back."""
    handler = _FileLogHandler(logging.INFO)
    loggers = [logging.getLogger(name) for name in ("queueprop", "opentelemetry")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)

    def undo() -> None:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)

    return undo


def _append(records: Sequence[Mapping[str, Any]]) -> None:
    path = os.environ.get(RECORDS)
    if path is None or not records:
        return
    data = "".join(json.dumps(record) + "\n" for record in records).encode()
    # One write to a file opened for appending is one piece, also beside other processes.
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


def _plain_span(span: ReadableSpan) -> dict[str, Any]:
    context = span.get_span_context()
    assert context is not None
    return {
        "name": span.name,
        "kind": span.kind.name,
        "trace_id": f"{context.trace_id:032x}",
        "span_id": f"{context.span_id:016x}",
        "parent_id": f"{span.parent.span_id:016x}" if span.parent is not None else None,
        "scope": span.instrumentation_scope.name if span.instrumentation_scope is not None else "",
        "pid": os.getpid(),
        "start": span.start_time,
        "end": span.end_time,
        "status": span.status.status_code.name,
        "description": span.status.description,
        "attributes": dict(span.attributes or {}),
        "links": [
            {
                "trace_id": f"{link.context.trace_id:032x}",
                "span_id": f"{link.context.span_id:016x}",
                "attributes": dict(link.attributes or {}),
            }
            for link in span.links
        ],
        "events": [(event.name, dict(event.attributes or {})) for event in span.events],
        "tracestate": context.trace_state.to_header(),
    }


def _span_record(plain: dict[str, Any]) -> SpanRecord:
    links = [LinkRecord(**link) for link in plain["links"]]
    return SpanRecord(**{**plain, "links": links})


def _plain_point(metric: Any, point: Any) -> dict[str, Any]:
    is_histogram = hasattr(point, "explicit_bounds")
    return {
        "metric": metric.name,
        "unit": metric.unit,
        "attributes": dict(point.attributes or {}),
        "value": point.sum if is_histogram else point.value,
        "count": point.count if is_histogram else 0,
        "bounds": list(point.explicit_bounds) if is_histogram else [],
    }


def _propagators(names: str) -> CompositePropagator:
    """What OpenTelemetry makes of OTEL_PROPAGATORS when it is imported."""
    if names == "none":
        return CompositePropagator([])
    found = [entry_points(group="opentelemetry_propagator", name=name) for name in names.split(",")]
    return CompositePropagator([next(iter(points)).load()() for points in found])


def _forget_providers() -> None:
    """Back to a process that has configured nothing. The API has no public way: providers are set once."""
    trace_module: Any = trace
    trace_module._TRACER_PROVIDER = None
    trace_module._TRACER_PROVIDER_SET_ONCE._done = False
    metrics_module: Any = import_module("opentelemetry.metrics._internal")
    metrics_module._METER_PROVIDER = None
    metrics_module._METER_PROVIDER_SET_ONCE._done = False
    # It would go on handing out meters of the last provider, which is shut down.
    metrics_module._PROXY_METER_PROVIDER = type(metrics_module._PROXY_METER_PROVIDER)()
