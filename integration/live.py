"""What the live tests of several libraries share: the spans of a test, and processes that are killed."""

from __future__ import annotations

import os
import signal
import tempfile
import traceback
import uuid
from collections.abc import Callable

from opentelemetry import trace

from integration.contract.telemetry import SpanRecord, Telemetry

NOTHING = ("0" * 32, "0" * 16)
"""What ``current`` gives where no span is current."""


def current() -> tuple[str, str]:
    """The trace and the span that are current, in hexadecimal."""
    found = trace.get_current_span().get_span_context()
    return f"{found.trace_id:032x}", f"{found.span_id:016x}"


def unique(name: str) -> str:
    """The name of a queue or topic of a test's own."""
    return f"{name}-{uuid.uuid4().hex[:8]}"


def origin(span: SpanRecord) -> tuple[str, str | None]:
    """The trace that it is in, and its parent."""
    return span.trace_id, span.parent_id


class Spans:
    """What a test's telemetry recorded, so far."""

    def __init__(self, told: Telemetry) -> None:
        self._told = told

    @property
    def everything(self) -> list[SpanRecord]:
        return self._told.spans

    @property
    def all(self) -> list[SpanRecord]:
        """Those of queueprop."""
        return [span for span in self.everything if span.is_ours]

    def of(self, operation: str) -> list[SpanRecord]:
        """Those of one operation type: ``send``, ``process``..."""
        return [span for span in self.all if span.attributes["messaging.operation.type"] == operation]

    @property
    def complaints(self) -> list[str]:
        """What was logged."""
        return [record.text for record in self._told.logged]


class Bodies:
    """The bodies that were handled, by whatever process: a digit each."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile("ab+", buffering=0)  # noqa: SIM115 - it lives as long as this

    def add(self, body: bytes) -> None:
        self._file.write(body)

    @property
    def all(self) -> list[str]:
        return list(os.pread(self._file.fileno(), 100, 0).decode())


def run_killed(work: Callable[[], object]) -> None:
    """Runs it in a process of its own, which must die of SIGKILL."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:  # its exception is the reason that it was not killed
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
