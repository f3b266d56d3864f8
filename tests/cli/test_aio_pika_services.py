"""The demo's two services on RabbitMQ with aio-pika, without a broker."""

from __future__ import annotations

import asyncio
import json
import logging
import runpy
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import aio_pika
import pytest
import uvicorn
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

import queueprop
import queueprop.sdk
from queueprop.cli.demo.aio_pika import notification_service, order_service
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


def test_order_service(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """It configures tracing, instruments FastAPI and aio-pika, and listens on PORT."""
    monkeypatch.setenv("PORT", "8123")
    _run(order_service)
    names = [name for name, _, _ in calls]
    assert names == ["configure_tracing", "instrument_app", "instrument", "uvicorn.run"]
    assert (calls[0][1], calls[2][1]) == (("order-service",), ("aio-pika",))
    assert calls[3][2]["port"] == 8123


def test_notification_service(calls: list[Any]) -> None:
    """It configures tracing, instruments aio-pika, and works."""
    _run(notification_service)
    assert [name for name, _, _ in calls] == ["configure_tracing", "instrument", "asyncio.run"]
    assert (calls[0][1], calls[1][1]) == (("notification-service",), ("aio-pika",))


def test_services_without_queueprop(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The second run of the demo instruments FastAPI alone."""
    monkeypatch.setenv("WITHOUT_QUEUEPROP", "1")
    _run(order_service)
    _run(notification_service)
    assert "instrument" not in [name for name, _, _ in calls]


class FakeChannel:
    """What of a channel the services use, and a connection around it."""

    def __init__(self) -> None:
        self.declared: list[tuple[str, Any]] = []
        self.published: list[tuple[Any, str]] = []
        self.prefetch = 0
        self.default_exchange = self

    async def declare_queue(self, name: str, durable: bool, arguments: Any = None) -> str:
        assert durable
        self.declared.append((name, arguments))
        return name

    async def publish(self, message: Any, queue: str) -> None:
        self.published.append((message, queue))

    async def set_qos(self, prefetch_count: int) -> None:
        self.prefetch = prefetch_count


@pytest.fixture
def channel(monkeypatch: pytest.MonkeyPatch) -> FakeChannel:
    channel = FakeChannel()

    @asynccontextmanager
    async def connection() -> AsyncIterator[Any]:
        async def open_channel() -> FakeChannel:
            return channel

        yield SimpleNamespace(channel=open_channel)

    async def connect(url: str) -> Any:
        return connection()

    monkeypatch.setattr(aio_pika, "connect_robust", connect)
    return channel


def _order(**order: object) -> dict[str, str]:
    async def take() -> dict[str, str]:
        async with order_service.connected(order_service.app):
            body = json.dumps({"item": "tea", "email": "a@b", **order})
            return await order_service.take_order(order_service.Order.model_validate_json(body))

    return asyncio.run(take())


def test_order_is_queued(channel: FakeChannel) -> None:
    """An order queues its confirmation; what waits goes to the same queue when it expires."""
    assert _order(retries=2) == {"queue": "emails"}
    ((message, queue),) = channel.published
    assert (queue, json.loads(message.body), message.headers["retries"], message.expiration) == (
        "emails",
        {"email": "a@b", "item": "tea"},
        2,
        None,
    )
    (_, nothing), (later, arguments) = channel.declared
    assert (nothing, later, arguments["x-dead-letter-routing-key"]) == (None, "emails-later", "emails")


def test_delayed_order(channel: FakeChannel) -> None:
    """It expires in a queue that nobody consumes from."""
    assert _order(delay=1.5) == {"queue": "emails-later"}
    assert channel.published[0][0].expiration == 1.5


class FakeMessage:
    def __init__(self, email: str, retries: int = 0, redelivered: bool = False) -> None:
        self.body = json.dumps({"email": email, "item": "tea"}).encode()
        self.headers = {"retries": retries}
        self.redelivered = redelivered
        self.requeues: bool | None = None

    @asynccontextmanager
    async def process(self, requeue: bool) -> AsyncIterator[None]:
        self.requeues = requeue
        yield


def test_mail_is_sent_in_a_span() -> None:
    """It is the program's own span, inside queueprop's."""
    message = FakeMessage("a@b")
    with capture_spans() as spans:
        asyncio.run(notification_service.confirm(message))  # type: ignore[arg-type]
    assert [span.name for span in spans] == ["send mail"]
    assert message.requeues is False


@pytest.mark.parametrize(
    ("message", "error"),
    [(FakeMessage("nobody@b"), ValueError), (FakeMessage("busy@b", retries=1), ConnectionError)],
)
def test_mail_that_fails(message: Any, error: type[Exception]) -> None:
    """It is tried again where the order allows it."""
    with capture_spans(), pytest.raises(error):
        asyncio.run(notification_service.confirm(message))
    assert message.requeues is bool(message.headers["retries"])


def test_mail_server_is_busy_the_first_time() -> None:
    """The second delivery gets through, and would not be tried again."""
    message = FakeMessage("busy@b", retries=2, redelivered=True)
    with capture_spans():
        asyncio.run(notification_service.confirm(message))  # type: ignore[arg-type]
    assert message.requeues is False


def test_the_worker_goes_on_after_a_mail_that_failed(
    channel: FakeChannel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One message at a time, from the queue that it declares."""
    left = [FakeMessage("nobody@b"), FakeMessage("a@b")]

    class Queue:
        @asynccontextmanager
        async def iterator(self) -> AsyncIterator[Any]:
            async def messages() -> AsyncIterator[Any]:
                while left:
                    yield left.pop(0)

            yield messages()

    async def declare_queue(name: str, durable: bool) -> Queue:
        return Queue()

    monkeypatch.setattr(channel, "declare_queue", declare_queue)
    caplog.set_level(logging.INFO)
    with capture_spans() as spans:
        asyncio.run(notification_service.run())
    assert channel.prefetch == 1
    assert [span.name for span in spans] == ["send mail"] * 2
    assert "failed: no such mailbox: nobody@b" in caplog.messages
