"""Every test here starts without settings in the environment, and leaves no context behind."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from opentelemetry.context import attach, get_current
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from queueprop import guard
from queueprop.engine import engine as spans
from queueprop.testing import capture_spans
from tests.telemetry import Telemetry


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("QUEUEPROP_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(guard, "_logged", {})
    monkeypatch.setattr(guard, "_not_ours", ())
    monkeypatch.setattr(spans, "_default", None)


@pytest.fixture(autouse=True)
def _no_context_left_behind() -> Iterator[None]:
    before = get_current()
    yield
    after = get_current()
    if after != before:
        attach(before)  # the next test has done nothing wrong
    assert after == before


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard as users have it: it logs a fault instead of raising it."""
    monkeypatch.setattr(guard, "raise_faults", False)


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    with capture_spans(TracerProvider(sampler=ALWAYS_ON, shutdown_on_exit=False)) as captured:
        yield Telemetry(captured)
