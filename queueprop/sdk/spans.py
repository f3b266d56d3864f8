"""How spans leave the process: in batches, through an exporter of each process's own, with ids of its own."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from typing import cast

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

from queueprop.sdk.environment import number
from queueprop.sdk.exports import PerProcess


class ProcessExporter(PerProcess, SpanExporter):
    """The spans' exporter of each process."""

    def __init__(self, make: Callable[[], SpanExporter]) -> None:
        super().__init__(make, SpanExportResult.SUCCESS)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return cast(SpanExportResult, self.hand_over(spans))


class BatchProcessor(BatchSpanProcessor):
    """The SDK's, whose ``force_flush`` is False also when an export failed."""

    def __init__(self, exporter: ProcessExporter) -> None:
        queue = number("OTEL_BSP_MAX_QUEUE_SIZE", 2048)
        super().__init__(
            exporter,
            max_queue_size=queue,
            max_export_batch_size=min(number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512), queue),
            schedule_delay_millis=number("OTEL_BSP_SCHEDULE_DELAY", 5000),
            export_timeout_millis=number("OTEL_BSP_EXPORT_TIMEOUT", 30000),
        )
        self._handed_to = exporter

    def force_flush(self, timeout_millis: int | None = None) -> bool:
        failures = self._handed_to.failures
        # None is for the processor to fill in; oldest releases annotate it as int.
        in_time = super().force_flush(cast(int, timeout_millis))
        return in_time and self._handed_to.failures == failures


class IdGenerator(RandomIdGenerator):
    """Draws from a generator of its own, which every forked child seeds anew.

    The SDK's draws from that of the ``random`` module, so a job that calls ``random.seed()`` repeats its ids.
    """

    def __init__(self) -> None:
        self._random = random.Random()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._random.seed)

    def generate_span_id(self) -> int:
        while not (span_id := self._random.getrandbits(64)):
            pass
        return span_id

    def generate_trace_id(self) -> int:
        while not (trace_id := self._random.getrandbits(128)):
            pass
        return trace_id
