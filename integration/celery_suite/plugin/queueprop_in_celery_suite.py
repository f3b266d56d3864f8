"""A pytest plugin for Celery's own tests: what became of each, and queueprop on where the environment says so.

It is found by PYTHONPATH, in a process that knows nothing else of these tests.
"""

from __future__ import annotations

import inspect
import json
import os
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider

import queueprop

OUTCOMES = "_QUEUEPROP_SUITE_OUTCOMES"
"""The file that they are written to."""
TRACED = "_QUEUEPROP_SUITE_TRACED"
"""The libraries that are instrumented, with commas; none where it is empty."""

_outcomes: defaultdict[str, list[str]] = defaultdict(list)
_spans: Counter[str] = Counter()


class _Count(SpanProcessor):
    """No exporter, and no thread: Celery's tests look at what is left running."""

    def on_end(self, span: ReadableSpan) -> None:
        scope = span.instrumentation_scope
        _spans[f"{scope.name if scope else ''} {span.kind.name}"] += 1


def pytest_configure() -> None:
    """Before a module of the tests is imported, as a program does that has its two lines at its beginning."""
    provider = TracerProvider()
    provider.add_span_processor(_Count())
    trace.set_tracer_provider(provider)
    if libraries := os.environ[TRACED]:
        queueprop.instrument(*libraries.split(","))
    _give_time()


def _give_time() -> None:
    """Celery's tests give a worker ten seconds to start and to stop, which is for a machine of their own: here two
    runs of them, and others, share it. Plain and traced alike.
    """
    from celery.contrib.testing import worker

    start = inspect.unwrap(worker.start_worker)
    parameters = inspect.signature(start).parameters.values()
    start.__defaults__ = tuple(
        60.0 if it.name in ("ping_task_timeout", "shutdown_timeout") else it.default
        for it in parameters
        if it.default is not it.empty
    )


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A test that passes has three reports, and one more for each subtest."""
    if report.when == "call" or not report.passed:
        _outcomes[report.nodeid].append(f"{report.when} {report.outcome}")


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if not report.passed:
        _outcomes[report.nodeid].append(f"collect {report.outcome}")


def pytest_sessionfinish() -> None:
    found = {"spans": _spans, "outcomes": {name: sorted(them) for name, them in _outcomes.items()}}
    Path(os.environ[OUTCOMES]).write_text(json.dumps(found))
