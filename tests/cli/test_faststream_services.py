"""The demo's two services on RabbitMQ with FastStream, without a broker: on FastStream's own ``TestRabbitBroker``."""

from __future__ import annotations

import asyncio
import json
import logging
import runpy
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("faststream.rabbit")

import uvicorn
from faststream.rabbit import RabbitBroker, TestRabbitBroker
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

import queueprop
import queueprop.sdk
from queueprop.cli.demo.brokers import load
from queueprop.cli.demo.faststream import notification_service, order_service
from queueprop.testing import capture_spans


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What the services ask of everything around them, which does nothing here."""
    noted: list[Any] = []

    def note(name: str) -> Any:
        return lambda *args, **kwargs: noted.append((name, args, kwargs))

    def run(work: Any) -> None:
        work.close()
        noted.append(("asyncio.run", (), {}))

    monkeypatch.delenv("WITHOUT_QUEUEPROP", raising=False)
    monkeypatch.setattr(queueprop.sdk, "configure_tracing", note("configure_tracing"))
    monkeypatch.setattr(queueprop, "instrument", note("instrument"))
    monkeypatch.setattr(FastAPIInstrumentor, "instrument_app", note("instrument_app"))
    monkeypatch.setattr(uvicorn, "run", note("uvicorn.run"))
    monkeypatch.setattr(asyncio, "run", run)
    handlers = logging.getLogger().handlers[:]
    yield noted
    logging.getLogger().handlers[:] = handlers


def _run(service: ModuleType) -> None:
    # By its path: pytest's loader, which has the modules of a plugin's package, cannot run one on Python 3.10.
    runpy.run_path(str(service.__file__), run_name="__main__")


def test_both_services(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """They configure tracing and instrument FastStream; the one listens on PORT, the other works."""
    monkeypatch.setenv("PORT", "8123")
    _run(order_service)
    assert [name for name, _, _ in calls] == [
        "configure_tracing",
        "instrument_app",
        "instrument",
        "uvicorn.run",
    ]
    assert (calls[2][1], calls[3][2]["port"]) == (("faststream",), 8123)
    del calls[:]
    _run(notification_service)
    assert [name for name, _, _ in calls] == ["configure_tracing", "instrument", "asyncio.run"]
    assert calls[1][1] == ("faststream",)


def test_services_without_queueprop(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The second run of the demo instruments FastAPI alone."""
    monkeypatch.setenv("WITHOUT_QUEUEPROP", "1")
    _run(order_service)
    _run(notification_service)
    assert "instrument" not in [name for name, _, _ in calls]


def test_the_demo_knows_it() -> None:
    """Its services are these modules."""
    broker = load("faststream")
    assert (broker.order_service, broker.notification_service) == (
        "queueprop.cli.demo.faststream.order_service",
        "queueprop.cli.demo.faststream.notification_service",
    )
    assert "faststream" in broker.needs


class Shop(RabbitBroker):
    """Keeps what is declared and published."""

    def __init__(self) -> None:
        super().__init__()
        self.declared: list[Any] = []
        self.published: list[Any] = []

    async def connect(self, *args: Any, **kwargs: Any) -> Any:
        return None

    async def declare_queue(self, queue: Any) -> Any:
        self.declared.append(queue)

    async def publish(self, message: Any = None, queue: Any = "", *args: Any, **options: Any) -> Any:
        self.published.append((message, queue, options["expiration"]))


@pytest.mark.parametrize(("delay", "queue"), [(0, "emails"), (1.5, "emails-later")])
def test_order_is_queued(monkeypatch: pytest.MonkeyPatch, delay: float, queue: str) -> None:
    """Its confirmation goes to the worker's queue, or to one where it waits and expires into that."""
    shop = Shop()
    monkeypatch.setattr(order_service, "broker", shop)

    async def take() -> dict[str, str]:
        async with order_service.connected(order_service.app):
            body = json.dumps({"item": "tea", "email": "a@b", "retries": 2, "delay": delay})
            return await order_service.take_order(order_service.Order.model_validate_json(body))

    assert asyncio.run(take()) == {"queue": queue}
    mail = {"email": "a@b", "item": "tea", "retries": 2}
    assert shop.published == [(mail, queue, delay or None)]
    assert [it.name for it in shop.declared] == ["emails", "emails-later"]


@pytest.mark.parametrize(
    ("email", "error"), [("a@b", None), ("nobody@b", ValueError), ("busy@b", ConnectionError)]
)
def test_mail_is_sent_in_a_span(email: str, error: type[Exception] | None) -> None:
    """It is the program's own span; what fails comes again where the order allows it, and is an error."""

    async def send() -> None:
        async with TestRabbitBroker(notification_service.broker) as broker:
            await broker.publish({"email": email, "item": "tea", "retries": 1}, "emails")

    with capture_spans() as spans:
        if error is None:
            asyncio.run(send())
        else:
            with pytest.raises(error):
                asyncio.run(send())
    assert [span.name for span in spans] == ["send mail"]


def test_the_worker_says_that_it_waits(caplog: pytest.LogCaptureFixture) -> None:
    """When its broker is connected; and it ends when it is told to."""
    caplog.set_level(logging.INFO)

    async def work() -> None:
        async with TestRabbitBroker(notification_service.broker):
            task = asyncio.ensure_future(notification_service.app.run())
            while "waiting for messages" not in caplog.text:
                assert not task.done()
                await asyncio.sleep(0.01)
            notification_service.app.exit()
            await asyncio.wait_for(task, 60)

    asyncio.run(work())
