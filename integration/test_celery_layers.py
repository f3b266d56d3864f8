"""Celery with others that trace it: one span a task, whoever makes it.

Each order of switching on is a program of its own, without a broker.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("celery")

PROGRAM = Path(__file__).with_name("celery_layers.py")


def run(*names: str) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    ended = subprocess.run(
        [sys.executable, str(PROGRAM), *names],
        env={**environment, "DD_TRACE_ENABLED": "false"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    told: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return told


def _needs(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")


def _assert_ours_in_full(told: dict[str, Any]) -> None:
    """One PRODUCER span, and a CONSUMER span for each of two attempts, which is current in the task."""
    kinds = sorted((it["kind"], it["system"]) for it in told["spans"])
    assert kinds == [("CONSUMER", "celery"), ("CONSUMER", "celery"), ("PRODUCER", "celery")], told
    (producer,) = [it for it in told["spans"] if it["kind"] == "PRODUCER"]
    consumers = [it for it in told["spans"] if it["kind"] == "CONSUMER"]
    assert {it["parent_id"] for it in consumers} == {producer["span_id"]}
    assert told["seen"]["current"] == consumers[-1]["span_id"]
    assert told["seen"]["retries"] == 1
    for headers in told["sent"]:
        assert headers["traceparent"].split("-")[2] == producer["span_id"]
        assert headers["tenant"] == "a"


@pytest.mark.parametrize("names", [("queueprop",), ("queueprop", "kombu"), ("kombu", "queueprop")])
def test_with_kombu_s_adapter_a_task_has_one_producer_span(names: tuple[str, ...]) -> None:
    """Celery's own, whichever was first, and none for the retry."""
    _assert_ours_in_full(run(*names))


@pytest.mark.parametrize("names", [("queueprop", "sentry"), ("sentry", "queueprop")])
def test_beside_sentry_ours_works_in_full(names: tuple[str, ...]) -> None:
    """Whichever was first; and what Sentry writes, its nested ``headers`` among it, arrives."""
    _needs("sentry_sdk")
    told = run(*names)
    _assert_ours_in_full(told)
    assert "sentry-trace" in told["sent"][0]["headers"]
    assert "sentry-trace" in told["seen"]["headers"]


@pytest.mark.parametrize(
    "names", [("queueprop", "contrib"), ("contrib", "queueprop"), ("kombu", "queueprop", "contrib")]
)
def test_opentelemetry_s_own_keeps_it(names: tuple[str, ...]) -> None:
    """Whichever was first: no span of ours, of kombu's adapter neither, and one warning that says how to choose."""
    _needs("opentelemetry.instrumentation.celery")
    told = run(*names)
    assert {it["scope"] for it in told["spans"]} == {"opentelemetry.instrumentation.celery"}
    (warning,) = told["warnings"]
    assert "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=celery" in warning
    assert "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=queueprop_celery" in warning


@pytest.mark.parametrize("names", [("queueprop", "ddtrace"), ("ddtrace", "queueprop")])
def test_ddtrace_s_integration_keeps_it(names: tuple[str, ...]) -> None:
    """Whichever was first: no span of ours, and one warning that says how to choose."""
    _needs("ddtrace")
    told = run(*names)
    assert told["spans"] == []
    (warning,) = told["warnings"]
    assert "DD_TRACE_CELERY_ENABLED=false" in warning
