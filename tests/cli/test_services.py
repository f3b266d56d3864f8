"""The demo's two services on RQ, without a broker."""

from __future__ import annotations

import json
import logging
import runpy
from collections.abc import Iterator
from datetime import timedelta
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import rq
import uvicorn
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

import queueprop
import queueprop.sdk
from queueprop.cli.demo.rq import notification_service, order_service
from queueprop.testing import capture_spans


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What the services ask of everything around them, which does nothing here."""
    noted: list[Any] = []

    def note(name: str) -> Any:
        return lambda *args, **kwargs: noted.append((name, args, kwargs))

    monkeypatch.delenv("WITHOUT_QUEUEPROP", raising=False)
    monkeypatch.setattr(queueprop.sdk, "configure_tracing", note("configure_tracing"))
    monkeypatch.setattr(queueprop, "instrument", note("instrument"))
    monkeypatch.setattr(FastAPIInstrumentor, "instrument_app", note("instrument_app"))
    monkeypatch.setattr(uvicorn, "run", note("run"))
    for worker in ("Worker", "SimpleWorker"):
        monkeypatch.setattr(
            rq, worker, lambda queues, connection, name=worker: SimpleNamespace(work=note(name))
        )
    handlers = logging.getLogger().handlers[:]
    yield noted
    logging.getLogger().handlers[:] = handlers


def _run(service: ModuleType) -> None:
    # By its path: pytest's loader, which has the modules of a plugin's package, cannot run one on Python 3.10.
    runpy.run_path(str(service.__file__), run_name="__main__")


def test_order_service(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """It configures tracing, instruments FastAPI and RQ, and listens on PORT."""
    monkeypatch.setenv("PORT", "8123")
    _run(order_service)
    assert [name for name, _, _ in calls] == ["configure_tracing", "instrument_app", "instrument", "run"]
    assert calls[0][1] == ("order-service",)
    assert calls[3][2]["port"] == 8123


def test_notification_service(calls: list[Any]) -> None:
    """It configures tracing, instruments RQ, and works with a scheduler, for delays."""
    _run(notification_service)
    assert [name for name, _, _ in calls] == ["configure_tracing", "instrument", "Worker"]
    assert calls[0][1] == ("notification-service",)
    assert calls[2][2]["with_scheduler"] is True


def test_services_without_queueprop(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The second run of the demo instruments FastAPI alone."""
    monkeypatch.setenv("WITHOUT_QUEUEPROP", "1")
    _run(order_service)
    _run(notification_service)
    assert [name for name, _, _ in calls] == [
        "configure_tracing",
        "instrument_app",
        "run",
        "configure_tracing",
        "SimpleWorker",
    ]


@pytest.fixture
def queued(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What order-service puts into its queue."""
    queued: list[Any] = []

    def enqueue(*args: Any, **kwargs: Any) -> Any:
        queued.append((args, kwargs))
        return SimpleNamespace(id="job-1")

    monkeypatch.setattr(order_service.emails, "enqueue", enqueue)
    monkeypatch.setattr(order_service.emails, "enqueue_in", enqueue)
    return queued


def _order(**order: object) -> None:
    body = json.dumps({"item": "tea", "email": "a@b", **order})
    assert order_service.take_order(order_service.Order.model_validate_json(body)) == {"job": "job-1"}


def test_order_is_queued(queued: list[Any]) -> None:
    """An order queues its confirmation, which is not tried again."""
    _order()
    assert queued == [((notification_service.send_confirmation, "a@b", "tea"), {"retry": None})]


def test_order_that_may_be_tried_again(queued: list[Any]) -> None:
    """``retries`` are RQ's."""
    _order(retries=2)
    assert queued[0][1]["retry"].max == 2


def test_delayed_order(queued: list[Any]) -> None:
    """``delay`` is in seconds."""
    _order(delay=1.5)
    assert queued == [((timedelta(seconds=1.5), notification_service.send_confirmation, "a@b", "tea"), {})]


def test_mail_is_sent_in_a_span() -> None:
    """A delivery has one span of its own inside of that of the message."""
    with capture_spans() as spans:
        notification_service.send_confirmation("ada@example.com", "tea")
    assert [span.name for span in spans] == ["send mail"]


def test_mail_that_fails() -> None:
    """Nobody's mailbox is not there, and the job fails."""
    with pytest.raises(ValueError, match="no such mailbox"):
        notification_service.send_confirmation("nobody@example.com", "tea")


@pytest.mark.parametrize("retries_left", [1, 0])
def test_mail_server_is_busy_the_first_time(retries_left: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the job may be tried again it fails; the last attempt goes through."""
    monkeypatch.setattr(
        notification_service, "get_current_job", lambda: SimpleNamespace(retries_left=retries_left)
    )
    if retries_left:
        with pytest.raises(ConnectionError, match="busy"):
            notification_service.send_confirmation("busy@example.com", "tea")
    else:
        notification_service.send_confirmation("busy@example.com", "tea")


def test_called_without_a_job() -> None:
    """Called as a function there is nothing to try again."""
    notification_service.send_confirmation("busy@example.com", "tea")
