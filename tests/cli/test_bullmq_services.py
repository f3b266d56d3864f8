"""The demo's two services on BullMQ, without a server: on a queue and a worker that note what they are asked."""

from __future__ import annotations

import asyncio
import logging
import runpy
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("bullmq")

import uvicorn
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

import queueprop
import queueprop.sdk
from queueprop.cli.demo.bullmq import broker, notification_service, order_service
from queueprop.testing import capture_spans


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What the services ask of everything around them, which does nothing here."""
    noted: list[Any] = []

    def note(name: str) -> Any:
        return lambda *args, **kwargs: noted.append((name, args, kwargs))

    def run(coroutine: Any) -> None:
        coroutine.close()
        noted.append(("asyncio.run", (), {}))

    monkeypatch.delenv("WITHOUT_QUEUEPROP", raising=False)
    monkeypatch.setattr(queueprop.sdk, "configure_tracing", note("configure_tracing"))
    monkeypatch.setattr(queueprop, "instrument", note("instrument"))
    monkeypatch.setattr(FastAPIInstrumentor, "instrument_app", note("instrument_app"))
    monkeypatch.setattr(uvicorn, "run", note("run"))
    monkeypatch.setattr(asyncio, "run", run)
    root = logging.getLogger()
    handlers = root.handlers[:]
    yield noted
    root.handlers[:] = handlers


def _run(service: ModuleType) -> None:
    # By its path: pytest's loader, which has the modules of a plugin's package, cannot run one on Python 3.10.
    runpy.run_path(str(service.__file__), run_name="__main__")


def test_both_services(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """They configure tracing and instrument BullMQ; the one listens on PORT, the other works."""
    monkeypatch.setenv("PORT", "8123")
    _run(order_service)
    assert [name for name, _, _ in calls] == ["configure_tracing", "instrument_app", "instrument", "run"]
    assert calls[2][1] == ("bullmq",)
    assert calls[3][2]["port"] == 8123
    del calls[:]
    _run(notification_service)
    assert [name for name, _, _ in calls] == ["configure_tracing", "instrument", "asyncio.run"]


def test_services_without_queueprop(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The second run of the demo instruments FastAPI alone."""
    monkeypatch.setenv("WITHOUT_QUEUEPROP", "1")
    _run(order_service)
    _run(notification_service)
    assert "instrument" not in [name for name, _, _ in calls]


class FakeQueue:
    """What of a queue the order-service uses."""

    def __init__(self, name: str, opts: Any) -> None:
        self.given = (name, opts)
        self.added: list[Any] = []
        self.is_closed = False

    async def add(self, name: str, data: Any, opts: Any) -> Any:
        self.added.append((name, data, opts))
        return SimpleNamespace(id=len(self.added))

    async def close(self) -> None:
        self.is_closed = True


def test_an_order_is_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    """As often as it is to be tried, and as late, under keys of the demo's own."""
    monkeypatch.setattr(order_service, "Queue", FakeQueue)
    monkeypatch.setenv("NAMESPACE", "demo")
    order = order_service.Order(item="tea", email="a@example.com", retries=1, delay=0.5)

    async def take() -> dict[str, str]:
        async with order_service.connected(order_service.app):
            return await order_service.take_order(order)

    assert asyncio.run(take()) == {"job": "1"}
    emails = order_service.app.state.emails
    assert emails.given[1]["prefix"] == "demo"
    assert emails.added == [
        ("confirm", {"email": "a@example.com", "item": "tea"}, {"attempts": 2, "delay": 500})
    ]
    assert emails.is_closed


@pytest.mark.parametrize(
    ("email", "made", "error"),
    [
        ("ada@example.com", 0, None),
        ("nobody@example.com", 0, ValueError),
        ("busy@example.com", 0, ConnectionError),
        ("busy@example.com", 1, None),
    ],
)
def test_a_mail_is_sent(email: str, made: int, error: type[Exception] | None) -> None:
    """One span a delivery; a mailbox may not be there, and the mail server busy the first time."""
    job = SimpleNamespace(data={"item": "tea", "email": email}, attemptsMade=made)
    with capture_spans() as spans:
        if error is None:
            asyncio.run(notification_service.confirm(job, "token"))
        else:
            with pytest.raises(error):
                asyncio.run(notification_service.confirm(job, "token"))
    assert [span.name for span in spans] == ["send mail"]


def test_the_worker_says_when_it_is_ready(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And then works; what failed is told."""
    heard: dict[str, Any] = {}

    class FakeWorker:
        def __init__(self, name: str, processor: Any, options: Any) -> None:
            assert (name, processor) == ("emails", notification_service.confirm)

        def on(self, event: str, listener: Any) -> None:
            heard[event] = listener

        async def run(self) -> None:
            heard["failed"](None, ConnectionError("busy"), "active")

    monkeypatch.setattr(notification_service, "Worker", FakeWorker)
    with caplog.at_level(logging.INFO):
        asyncio.run(notification_service.run())
    assert [record.getMessage() for record in caplog.records] == ["waiting for messages", "failed: busy"]


def test_the_broker_is_that_of_dramatiq_s_demo() -> None:
    """A Redis, with keys of the demo's own."""
    made = broker.BullMQ()
    assert "bullmq" in made.needs
    assert made.order_service.endswith("bullmq.order_service")
