"""How measurements leave the process: a reader that collects at an interval, whenever it is flushed, and at the end.

Why not the SDK's ``PeriodicExportingMetricReader``: it exports with a lock in its hands and collects with locks of the
SDK's. Who forks meanwhile makes a child that can never export, or that stands still at its first measurement. RQ forks
for each job, and with a Collector that does not answer an export takes ten seconds of each minute. This one exports
outside of every lock that a child inherits, and no fork happens while it collects.

A forked child is an instance of its own (``service.instance.id``), as the newest SDKs have it: two processes that count
under one name make a counter that goes up and down. What the parent has measured and not yet exported stays the
parent's where only differences are exported (``OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE=delta``).

A total is inherited all the same. So what a worker records for its children (``engine.relay``) lies beside, in a
provider that no child has (``Meters.not_inherited``): a child would tell of it again, and each fork would have to
collect it.
"""

from __future__ import annotations

import logging
import os
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from weakref import WeakSet

from opentelemetry import metrics
from opentelemetry.sdk.metrics import Counter, MeterProvider
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    MetricExporter,
    MetricExportResult,
    MetricReader,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import Resource

from queueprop import guard
from queueprop.sdk import exporters
from queueprop.sdk.environment import number
from queueprop.sdk.exporters import METRICS, WHERE, Collector
from queueprop.sdk.exports import PerProcess

_INSTANCE = "service.instance.id"

_MOST_KEPT = 64
"""Collections that wait for their export: forks between two exports."""

_AT_FORK = 0.2
"""Seconds that a fork waits for a collection to end. Only somebody's slow callback lasts longer."""


class Meters(MeterProvider):
    """The SDK's, whose ``force_flush`` is False also when an export failed."""

    def __init__(self, readers: Sequence[MetricReader], resource: Resource) -> None:
        # Its own exit hook has no bound; HandOver does the same with one.
        super().__init__(metric_readers=readers, resource=resource, shutdown_on_exit=False)
        self._of = resource
        self._readers = readers
        self._exporting = [reader for reader in readers if isinstance(reader, Reader)]
        self._beside: Meters | None = None
        self._beside_in = 0

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        beside = self._not_inherited is None or self._not_inherited.force_flush(timeout_millis)
        failures = sum(reader.failures for reader in self._exporting)
        in_time = super().force_flush(timeout_millis) is not False
        return beside and in_time and sum(reader.failures for reader in self._exporting) == failures

    def shutdown(self, timeout_millis: float = 30_000) -> None:
        try:
            if self._not_inherited is not None:
                self._not_inherited.shutdown(timeout_millis)
        finally:
            super().shutdown(timeout_millis)

    def not_inherited(self) -> Meters | None:
        """Another one, whose measurements no child that is forked has, exported as these and at the same ends.

        This one itself where it is only asked from outside, as Prometheus does: nobody asks a child. None where it is
        both, or exports in a way of its own.
        """
        if len(self._exporting) != len(self._readers):
            is_asked = not any(
                isinstance(it, (Reader, PeriodicExportingMetricReader)) for it in self._readers
            )
            return self if is_asked else None
        if self._not_inherited is None:
            readers = [reader.not_inherited() for reader in self._exporting]
            self._beside, self._beside_in = Meters(readers, self._of), os.getpid()
            for reader in readers:
                reader.start()
        return self._not_inherited

    @property
    def _not_inherited(self) -> Meters | None:
        return self._beside if self._beside_in == os.getpid() else None


def install(resource: Resource, collector: Collector) -> Meters | None:
    """Makes the global meter provider that ``OTEL_METRICS_EXPORTER`` asks for. None where there is one already, or
    where nothing would be exported.
    """
    if not _is_stand_in(metrics.get_meter_provider()):
        return None
    made = [_reader(name, resource, collector) for name in exporters.names(METRICS, default="none")]
    readers = [reader for reader in made if reader is not None]
    if not readers:
        return None
    provider = Meters(readers, resource)
    metrics.set_meter_provider(provider)
    for reader in readers:
        if isinstance(reader, Reader):
            reader.start()
    return provider


def _is_stand_in(provider: object) -> bool:
    """Whether it is the API's own, for as long as nobody has set one. It has no public name."""
    of_the_api = type(provider).__module__.partition("._")[0] == "opentelemetry.metrics"
    return of_the_api and not isinstance(provider, metrics.NoOpMeterProvider)


def _reader(name: str, resource: Resource, collector: Collector) -> MetricReader | None:
    try:
        make = exporters.factory(METRICS, name, collector)
        if make is None:
            make = _instead(name, collector)
        return None if make is None else _reader_of(make, resource)
    except Exception as error:
        if guard.is_not_ours(error):
            raise
        guard.mistake(WHERE, f"no metrics are exported: the exporter {name!r} cannot be made: {error}")
        return None


def _instead(name: str, collector: Collector) -> exporters.Factory | None:
    """OTLP, where that was meant; whoever wants another exporter has no use for it."""
    if name.startswith("otlp"):
        exporters.say_missing(METRICS, name, "OTLP over HTTP is used instead")
        return exporters.otlp_http(METRICS, collector)
    exporters.say_missing(METRICS, name, "no metrics are exported through it")
    return None


def _reader_of(make: Callable[[], Any], resource: Resource) -> MetricReader:
    made = make()
    if isinstance(made, MetricReader):  # it is asked from outside, as Prometheus does
        return made
    if not isinstance(made, MetricExporter):
        raise TypeError(f"{type(made).__qualname__} is neither a MetricExporter nor a MetricReader")
    interval = number("OTEL_METRIC_EXPORT_INTERVAL", 60000) / 1000
    timeout = number("OTEL_METRIC_EXPORT_TIMEOUT", 30000)
    return Reader(make, made, resource, interval, timeout)


class Reader(MetricReader):
    """Collects and exports every ``interval`` seconds, at each flush, and at the end.

    Arguments:
        make: gives the exporter of each process.
        exporter: the first of them, which says how it wants things measured.
        resource: what the measurements are told to come from.
        interval: seconds.
        timeout: milliseconds that an export at the interval may take, as far as the exporter looks at it.
    """

    def __init__(
        self,
        make: Callable[[], MetricExporter],
        exporter: MetricExporter,
        resource: Resource,
        interval: float,
        timeout: float,
    ) -> None:
        # The SDK's own reader takes them so; there is no public name. Without: cumulative, and the SDK's buckets.
        temporality = getattr(exporter, "_preferred_temporality", None)
        super().__init__(temporality, getattr(exporter, "_preferred_aggregation", None))
        self._of_differences = (temporality or {}).get(Counter) is AggregationTemporality.DELTA
        first = [exporter]
        self._exports = PerProcess(lambda: first.pop() if first else make(), MetricExportResult.SUCCESS)
        self._make = make
        self._resource = resource
        self._is_inherited = True
        self._interval = min(interval, threading.TIMEOUT_MAX)
        self._timeout = timeout
        self._inherited = resource.attributes.get(_INSTANCE)
        self._instance: str | None = None
        self._not_collected = 0
        self._collected: deque[MetricsData] = deque(maxlen=_MOST_KEPT)
        self._ended = threading.Event()
        self._held_by = 0
        """The thread that forks, while it does."""
        self._renew()
        _readers.add(self)

    def start(self) -> None:
        """Begins to collect at the interval. Also to be called in a forked child."""
        try:
            threading.Thread(target=self._tick, name="queueprop-metrics", daemon=True).start()
        except RuntimeError as error:  # as many threads as the system allows: what is left is the end's
            guard.log(logging.DEBUG, "metrics are only exported at the end: %s", error)

    def not_inherited(self) -> Reader:
        """Another one that is this process's alone: a child that is forked has none of it."""
        other = Reader(self._make, self._make(), self._resource, self._interval, self._timeout)
        other._is_inherited, other._instance = False, self._instance
        return other

    @property
    def failures(self) -> int:
        """How often something was not exported."""
        return self._exports.failures + self._not_collected

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Collects and exports. Returns whether that succeeded."""
        failures = self.failures
        try:
            with _held(self._exporting, timeout_millis / 1000):
                with _held(self._collecting, timeout_millis / 1000):
                    self.collect(timeout_millis)
                while self._collected:
                    self._export(self._collected.popleft(), timeout_millis)
        except Exception as error:  # an exporter, somebody's callback; the next time it may go well
            if guard.is_not_ours(error):
                raise
            self._not_collected += self.failures == failures
            guard.log(
                logging.WARNING,
                "queueprop, exporting metrics: %r; it is tried again at the next interval",
                error,
            )
        return self.failures == failures

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Exports what is left. There is no more after it."""
        if not self._ended.is_set():
            self._ended.set()
            self.force_flush(timeout_millis)
            self._exports.shutdown()

    def before_fork(self) -> None:
        if not self._collecting.acquire(timeout=_AT_FORK):
            return  # that of another thread, perhaps, which forks as well
        self._held_by = threading.get_ident()
        if self._of_differences and self._is_inherited:
            self.collect()  # these are the parent's to export; the child begins at nothing

    def after_fork(self) -> None:
        if self._held_by == threading.get_ident():
            self._held_by = 0
            self._collecting.release()

    def in_child(self) -> None:
        self._renew()
        self._collected.clear()
        self._instance = str(uuid.uuid4())
        if not self._is_inherited:
            self._ended.set()
        if not self._ended.is_set():
            self.start()

    def _renew(self) -> None:
        self._exporting, self._collecting = threading.Lock(), threading.Lock()
        self._held_by = 0

    def _receive_metrics(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any
    ) -> None:
        self._collected.append(metrics_data)

    def _tick(self) -> None:
        while not self._ended.wait(self._interval):
            self.force_flush(self._timeout)

    def _export(self, data: MetricsData, timeout_millis: float) -> None:
        with guard.suppressed():
            self._exports.hand_over(self._of_this_process(data), timeout_millis=timeout_millis)

    def _of_this_process(self, data: MetricsData) -> MetricsData:
        if self._instance is None:
            return data
        groups = [replace(it, resource=self._own(it.resource)) for it in data.resource_metrics]
        return replace(data, resource_metrics=groups)

    def _own(self, resource: Resource) -> Resource:
        """In a child, where the SDK has not done it already."""
        if resource.attributes.get(_INSTANCE) != self._inherited or self._instance is None:
            return resource
        return resource.merge(Resource({_INSTANCE: self._instance}))


@contextmanager
def _held(lock: threading.Lock, seconds: float) -> Iterator[None]:
    if not lock.acquire(timeout=min(seconds, threading.TIMEOUT_MAX)):
        raise TimeoutError("another export lasts too long")
    try:
        yield
    finally:
        lock.release()


_readers: WeakSet[Reader] = WeakSet()


def _each(step: Callable[[Reader], None]) -> Callable[[], None]:
    def run() -> None:
        for reader in list(_readers):
            try:
                step(reader)
            except Exception as error:
                guard.fault("forking, with metrics", error)

    return run


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_each(Reader.before_fork),
        after_in_parent=_each(Reader.after_fork),
        after_in_child=_each(Reader.in_child),
    )
