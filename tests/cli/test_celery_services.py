"""The demo's two services on Celery, without a server: on kombu's transport in memory, and tasks that run in place."""

from __future__ import annotations

import json
import logging
import os
import runpy
import signal
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("celery")

import celery.beat
import uvicorn
from celery import Celery, signals
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

import queueprop
import queueprop.sdk
from queueprop.cli.demo.celery import broker, notification_service, order_service
from queueprop.testing import capture_spans


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What the services ask of everything around them, which does nothing here."""
    noted: list[Any] = []

    def note(name: str) -> Any:
        return lambda *args, **kwargs: noted.append((name, args, kwargs))

    class Beat:
        def __init__(self, app: Any, **options: Any) -> None:
            noted.append(("beat", (app,), options))

        start = staticmethod(note("start"))

    monkeypatch.delenv("WITHOUT_QUEUEPROP", raising=False)
    monkeypatch.setattr(queueprop.sdk, "configure_tracing", note("configure_tracing"))
    monkeypatch.setattr(queueprop, "instrument", note("instrument"))
    monkeypatch.setattr(FastAPIInstrumentor, "instrument_app", note("instrument_app"))
    monkeypatch.setattr(uvicorn, "run", note("run"))
    monkeypatch.setattr(celery.beat, "EmbeddedService", Beat)
    monkeypatch.setattr(Celery, "worker_main", note("worker_main"))
    loggers = [logging.getLogger(name) for name in ("celery", "kombu")]
    root, levels = logging.getLogger(), [logger.level for logger in loggers]
    handlers, receivers = root.handlers[:], signals.worker_ready.receivers
    signals.worker_ready.receivers = []
    yield noted
    root.handlers[:], signals.worker_ready.receivers = handlers, receivers
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def _run(service: ModuleType) -> None:
    # By its path: pytest's loader, which has the modules of a plugin's package, cannot run one on Python 3.10.
    runpy.run_path(str(service.__file__), run_name="__main__")


def test_both_services(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They configure tracing and instrument Celery; the one listens on PORT beside its beat, the other works, and says
    when it is ready.
    """
    monkeypatch.setenv("PORT", "8123")
    _run(order_service)
    assert [name for name, _, _ in calls] == [
        "configure_tracing",
        "instrument_app",
        "instrument",
        "beat",
        "start",
        "run",
    ]
    assert calls[2][1] == ("celery",)
    assert calls[-1][2]["port"] == 8123
    del calls[:]
    _run(notification_service)
    assert [name for name, _, _ in calls] == ["configure_tracing", "instrument", "worker_main"]
    with caplog.at_level(logging.INFO):
        signals.worker_ready.send(sender=None)
    assert [record.getMessage() for record in caplog.records] == ["waiting for messages"]


def test_services_without_queueprop(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The second run of the demo instruments FastAPI alone."""
    monkeypatch.setenv("WITHOUT_QUEUEPROP", "1")
    _run(order_service)
    _run(notification_service)
    assert "instrument" not in [name for name, _, _ in calls]


@pytest.fixture
def in_place(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tasks run where they are sent."""
    notification_service.app.conf.task_always_eager = True
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    yield
    notification_service.app.conf.task_always_eager = False


def _order(**order: object) -> list[str]:
    """Takes an order; the spans of what follows from it."""
    body = json.dumps({"item": "tea", "email": "ada@example.com", **order})
    with capture_spans() as spans:
        assert order_service.take_order(order_service.Order.model_validate_json(body))["task"]
    return [span.name for span in spans]


@pytest.mark.usefixtures("in_place")
def test_a_mail_is_sent_and_a_copy_is_kept() -> None:
    """The chain's two tasks, with one span each."""
    assert _order() == _order(delay=0.01) == ["send mail", "write copy"]


@pytest.mark.usefixtures("in_place")
def test_a_mailbox_that_is_not_there() -> None:
    """It fails for good, and there is nothing to keep."""
    with pytest.raises(ValueError, match="no such mailbox"), capture_spans() as spans:
        _order(email="nobody@example.com")
    assert [span.name for span in spans] == ["send mail"]


@pytest.mark.usefixtures("in_place")
def test_a_mail_server_that_is_busy_the_first_time() -> None:
    """The task is tried again, and the chain goes on."""
    assert _order(email="busy@example.com", retries=1) == ["send mail", "send mail", "write copy"]


@pytest.mark.usefixtures("in_place")
def test_a_process_that_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy of one order does that, with SIGKILL."""
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append((pid, number)))
    _order(item="sugar")
    assert killed == [(os.getpid(), signal.SIGKILL)]


@pytest.mark.usefixtures("in_place")
def test_the_beat_s_report() -> None:
    """It is due at once, and makes one span."""
    [entry] = notification_service.app.conf.beat_schedule.values()
    assert notification_service.app.now() - entry["last_run_at"] >= entry["schedule"]
    with capture_spans() as spans:
        notification_service.app.tasks[entry["task"]].apply()
    assert [span.name for span in spans] == ["count mails"]


def test_the_broker_is_that_of_dramatiq_s_demo() -> None:
    """A Redis, with keys of the demo's own; there are more deliveries than orders."""
    made = broker.Celery()
    assert "celery" in made.needs
    assert made.order_service.endswith("celery.order_service")
    assert (made.further, made.untold) == (5, 1)
