"""The demo's two services on Kafka, without a broker."""

from __future__ import annotations

import asyncio
import json
import logging
import runpy
from collections.abc import AsyncIterator, Iterator
from types import ModuleType
from typing import Any

import aiokafka
import pytest
import uvicorn
from aiokafka import ConsumerRecord
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

import queueprop
import queueprop.sdk
from queueprop.cli.demo.kafka import notification_service, order_service
from queueprop.testing import capture_spans


class Client:
    """A producer that notes what it sends, or a consumer of its records, which has them again from where it seeks."""

    def __init__(self, *records: dict[str, object], **options: object) -> None:
        self.options = options
        self.calls: list[Any] = []
        self._records = records
        self._position = 0

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.calls.append("stopped")

    async def send_and_wait(self, topic: str, value: bytes, partition: int) -> None:
        self.calls.append((topic, json.loads(value), partition))

    def assign(self, partitions: list[Any]) -> None:
        self.calls.append(("assigned", *partitions))

    async def commit(self) -> None:
        self.calls.append(("committed", self._position))

    def seek(self, partition: Any, offset: int) -> None:
        self._position = offset

    async def __aiter__(self) -> AsyncIterator[Any]:
        while self._position < len(self._records):
            offset, self._position = self._position, self._position + 1
            value = json.dumps(self._records[offset]).encode()
            yield ConsumerRecord("emails", 0, offset, 0, 0, None, value, None, -1, len(value), ())


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> list[Client]:
    """Every producer and consumer that is made."""
    made: list[Client] = []

    def make(**options: object) -> Client:
        made.append(Client(**options))
        return made[-1]

    for module in (aiokafka, order_service, notification_service):
        for name in ("AIOKafkaProducer", "AIOKafkaConsumer"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, make)
    return made


@pytest.fixture
def calls(clients: list[Client], monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What the services ask of everything around them, which does nothing here."""
    noted: list[str] = []

    def note(name: str) -> Any:
        return lambda *args, **kwargs: noted.append(name)

    monkeypatch.delenv("WITHOUT_QUEUEPROP", raising=False)
    monkeypatch.setattr(queueprop.sdk, "configure_tracing", note("configure_tracing"))
    monkeypatch.setattr(queueprop, "instrument", note("instrument"))
    monkeypatch.setattr(FastAPIInstrumentor, "instrument_app", note("instrument_app"))
    monkeypatch.setattr(uvicorn, "run", note("run"))
    root, library = logging.getLogger(), logging.getLogger("aiokafka")
    handlers, level = root.handlers[:], library.level
    yield noted
    root.handlers[:] = handlers
    library.setLevel(level)


def _run(service: ModuleType) -> None:
    # By its path: pytest's loader, which has the modules of a plugin's package, cannot run one on Python 3.10.
    runpy.run_path(str(service.__file__), run_name="__main__")


@pytest.mark.parametrize("without", [False, True])
def test_services(
    calls: list[str], clients: list[Client], monkeypatch: pytest.MonkeyPatch, without: bool
) -> None:
    """Both configure tracing and instrument aiokafka (but in the demo's second run); the worker takes its partition,
    and stops its consumer at the end."""
    if without:
        monkeypatch.setenv("WITHOUT_QUEUEPROP", "1")
    _run(order_service)
    _run(notification_service)
    aiokafka_too = [] if without else ["instrument"]
    assert calls == [
        "configure_tracing",
        "instrument_app",
        *aiokafka_too,
        "run",
        "configure_tracing",
        *aiokafka_too,
    ]
    [consumer] = clients
    assert consumer.calls == [("assigned", ("emails", 0)), "stopped"]


def _orders(*orders: dict[str, object]) -> list[Any]:
    """What is sent, up to the end of the last delay."""

    async def take() -> list[Any]:
        app = order_service.app
        async with app.router.lifespan_context(app):
            for order in orders:
                body = json.dumps({"item": "tea", "email": "a@b", **order})
                taken = await order_service.take_order(order_service.Order.model_validate_json(body))
                assert taken == {"item": "tea"}
            await asyncio.gather(*order_service.later)
            return list(app.state.producer.calls)

    return asyncio.run(take())


def test_order_is_sent(clients: list[Client]) -> None:
    """The message is at the broker when the order is answered, and the producer ends with the service."""
    assert _orders({"retries": 1}) == [("emails", {"email": "a@b", "item": "tea", "retries": 1}, 0)]
    assert [producer.calls[-1] for producer in clients] == ["stopped"]


def test_delayed_order_is_sent_later(clients: list[Client]) -> None:
    """Kafka has no delays: a task sends, and the order is answered meanwhile."""
    sent = _orders({"email": "late@b", "delay": 0.01}, {"email": "soon@b"})
    assert [mail["email"] for _, mail, _ in sent] == ["soon@b", "late@b"]
    assert order_service.later == set()


@pytest.mark.parametrize(
    ("email", "retries", "deliveries", "told"),
    [
        ("ada@example.com", 0, 1, None),
        ("nobody@example.com", 0, 1, "no such mailbox"),
        ("busy@example.com", 0, 1, None),
        ("busy@example.com", 1, 2, "failed: the mail server is busy"),
    ],
)
def test_mail(
    email: str, retries: int, deliveries: int, told: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """One span a delivery, which has the failure; what fails is had again where it may be, then committed."""
    consumer = Client({"email": email, "item": "tea", "retries": retries})
    with capture_spans() as spans:
        asyncio.run(notification_service.work(consumer))
    assert [span.name for span in spans] == ["send mail", "process emails"] * deliveries
    failures = [it.status.description or "" for it in spans.named("process emails") if not it.status.is_ok]
    assert len(failures) == (told is not None)
    assert all(failure.partition(": ")[2] in caplog.text for failure in failures)
    assert consumer.calls == [("committed", 1)]
    assert [record.levelno > logging.INFO for record in caplog.records].count(True) == (told is not None)
    assert (told or "") in caplog.text
