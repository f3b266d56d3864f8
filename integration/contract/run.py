"""A ``Rig`` makes runs; a ``Run`` is one driver with telemetry of its own, and the questions that scenarios
ask.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from opentelemetry.sdk.trace.sampling import Sampler

from integration.contract.driver import Column, Driver
from integration.contract.telemetry import Point, Seen, SpanRecord, Telemetry, telemetry
from queueprop import Settings

T = TypeVar("T")


class Rig:
    """One column on one broker. Every run gets queues, providers and a driver of its own."""

    def __init__(
        self,
        driver_class: type[Driver],
        column: Column,
        url: str | None,
        folder: Path,
        private_broker: Callable[[], Any],
    ) -> None:
        self.driver_class = driver_class
        self.column = column
        self.lacks = driver_class.lacks(column)
        self.private_broker = private_broker
        self._url = url
        self.folder = folder
        self._numbers = itertools.count(1)

    def thinned(self, cases: Iterable[T], few: int) -> list[T]:
        """All cases; the first ``few`` of them where each delivery takes a second."""
        found = list(cases)
        return found[:few] if self.driver_class.costly(self.column.style) else found

    @contextmanager
    def run(
        self,
        settings: Settings | None = None,
        *,
        traced: bool = True,
        sdk: bool = True,
        sampler: Sampler | None = None,
        propagators: str | None = None,
        url: str | None = None,
    ) -> Iterator[Run]:
        """queueprop is on inside (unless ``traced`` is false), with an SDK (unless ``sdk`` is false)."""
        path = self.folder / f"run-{next(self._numbers)}.jsonl"
        with contextlib.ExitStack() as stack:
            told = stack.enter_context(telemetry(path, sampler=sampler, sdk=sdk, propagators=propagators))
            driver = self.driver_class(self.column.style, self.column.api, url or self._url)
            driver.open()
            stack.callback(driver.close)
            if traced:
                stack.enter_context(driver.tracing(settings if settings is not None else Settings()))
            yield Run(driver, told)


@contextmanager
def together(rigs: Sequence[Rig], url: str) -> Iterator[list[Run]]:
    """A run of each rig, all at the same time on one broker, with queueprop on and one telemetry."""
    path = rigs[0].folder / "together.jsonl"
    with contextlib.ExitStack() as stack:
        told = stack.enter_context(telemetry(path))
        drivers = [rig.driver_class(rig.column.style, rig.column.api, url) for rig in rigs]
        for driver in drivers:
            driver.open()
            stack.callback(driver.close)
        for driver in drivers:
            stack.enter_context(driver.tracing(Settings()))
        yield [Run(driver, told) for driver in drivers]


class Run:
    """``driver`` acts; the rest tells what came of it, while the run lasts and afterwards."""

    def __init__(self, driver: Driver, told: Telemetry) -> None:
        self.driver = driver
        self.told = told

    @property
    def spans(self) -> list[SpanRecord]:
        return self.told.spans

    @property
    def ours(self) -> list[SpanRecord]:
        return [span for span in self.told.spans if span.is_ours]

    @property
    def producers(self) -> list[SpanRecord]:
        return [span for span in self.ours if span.kind == "PRODUCER"]

    @property
    def consumers(self) -> list[SpanRecord]:
        return [span for span in self.ours if span.kind == "CONSUMER"]

    @property
    def producer(self) -> SpanRecord:
        return only(self.producers)

    @property
    def consumer(self) -> SpanRecord:
        return only(self.consumers)

    @property
    def seen(self) -> list[Seen]:
        return self.told.seen

    @property
    def handled(self) -> Seen:
        """What the only handler saw."""
        return only(self.told.seen)

    def seen_of(self, body: str) -> list[Seen]:
        return [seen for seen in self.told.seen if seen.body == body]

    def consumer_of(self, seen: Seen) -> SpanRecord:
        """The CONSUMER span that was current when a handler looked."""
        return only([span for span in self.consumers if span.context == (seen.trace_id, seen.span_id)])

    def points(self, metric: str) -> list[Point]:
        return [point for point in self.told.points if point.metric == metric]

    def total(self, metric: str, **attributes: Any) -> float:
        """The sum of a metric's points that have these attributes (``_`` for ``.`` in their names)."""
        wanted = {name.replace("__", "."): value for name, value in attributes.items()}
        return sum(
            point.count or point.value
            for point in self.points(metric)
            if wanted.items() <= dict(point.attributes).items()
        )

    def missing(self, reason: str) -> float:
        return self.total("queueprop.context.missing", queueprop__reason=reason)

    def complaints(self) -> list[str]:
        """What queueprop and OpenTelemetry logged above DEBUG."""
        return [f"{record.name}: {record.text}" for record in self.told.logged]


def only(things: Sequence[T]) -> T:
    assert len(things) == 1, f"{len(things)} instead of one: {things}"
    return things[0]
