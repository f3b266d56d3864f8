"""The demo's two services on Kafka through confluent-kafka, without a broker."""

from __future__ import annotations

import asyncio
import json
import logging
import runpy
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import confluent_kafka
import pytest
import uvicorn
from confluent_kafka import TopicPartition
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

import queueprop
import queueprop.sdk
from queueprop.cli.demo.confluent_kafka import notification_service, order_service
from queueprop.testing import capture_spans


class EndError(Exception):
    """A consumer has no more."""


class Client:
    """A producer that notes what it sends, or a consumer of its messages, which has them again from where it seeks."""

    def __init__(self, *messages: dict[str, object] | None, options: object = None) -> None:
        self.options = options
        self.calls: list[Any] = []
        self._messages = messages
        self._position = 0

    def produce(self, topic: str, value: bytes, partition: int) -> None:
        self.calls.append((topic, json.loads(value), partition))

    def flush(self) -> None:
        self.calls.append("flushed")

    def assign(self, partitions: list[TopicPartition]) -> None:
        self.calls.append(("assigned", partitions[0].topic, partitions[0].partition))

    def consume(self, timeout: float) -> list[Any]:
        if self._position == len(self._messages):
            raise EndError
        offset, self._position = self._position, self._position + 1
        mail = self._messages[offset]
        message = SimpleNamespace(
            topic=lambda: "emails",
            timestamp=lambda: (0, 0),
            headers=lambda: None,
            key=lambda: None,
            error=lambda: "no broker" if mail is None else None,
            value=lambda: json.dumps(mail).encode(),
            offset=lambda: offset,
            partition=lambda: 0,
        )
        return [message]

    def commit(self, message: Any) -> None:
        self.calls.append(("committed", message.offset()))

    def seek(self, partition: TopicPartition) -> None:
        self._position = partition.offset

    def close(self) -> None:
        self.calls.append("closed")


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> list[Client]:
    """Every producer and consumer that is made."""
    made: list[Client] = []

    def make(options: object) -> Client:
        made.append(Client(options=options))
        return made[-1]

    for name in ("Producer", "Consumer"):
        monkeypatch.setattr(confluent_kafka, name, make)
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
    root = logging.getLogger()
    handlers = root.handlers[:]
    yield noted
    root.handlers[:] = handlers


def _run(service: ModuleType) -> None:
    # By its path: pytest's loader, which has the modules of a plugin's package, cannot run one on Python 3.10.
    runpy.run_path(str(service.__file__), run_name="__main__")


@pytest.mark.parametrize("without", [False, True])
def test_services(
    calls: list[str], clients: list[Client], monkeypatch: pytest.MonkeyPatch, without: bool
) -> None:
    """Both configure tracing and instrument the library (but in the demo's second run); the worker takes its
    partition, and closes its consumer at the end."""
    if without:
        monkeypatch.setenv("WITHOUT_QUEUEPROP", "1")
    _run(order_service)
    with pytest.raises(EndError):
        _run(notification_service)
    instrumented = [] if without else ["instrument"]
    assert calls == [
        "configure_tracing",
        "instrument_app",
        *instrumented,
        "run",
        "configure_tracing",
        *instrumented,
    ]
    [consumer] = clients
    assert consumer.calls == [("assigned", "emails", 0), "closed"]


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
            return [call for call in app.state.producer.calls if call != "flushed"]

    return asyncio.run(take())


def test_order_is_sent(clients: list[Client]) -> None:
    """The message is at the broker when the order is answered, and at the latest when the service ends."""
    assert _orders({"retries": 1}) == [("emails", {"email": "a@b", "item": "tea", "retries": 1}, 0)]
    assert [producer.calls[1:] for producer in clients] == [["flushed", "flushed"]]


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
    with capture_spans() as spans, pytest.raises(EndError):
        notification_service.work(consumer)
    assert [span.name for span in spans] == ["send mail", "process emails"] * deliveries
    failures = [it.status.description or "" for it in spans.named("process emails") if not it.status.is_ok]
    assert len(failures) == (told is not None)
    assert all(failure.partition(": ")[2] in caplog.text for failure in failures)
    assert consumer.calls == [("committed", 0)]
    assert [record.levelno > logging.INFO for record in caplog.records].count(True) == (told is not None)
    assert (told or "") in caplog.text


def test_an_error_of_the_consumer_s(caplog: pytest.LogCaptureFixture) -> None:
    """It comes as a message, is told, and the worker goes on."""
    consumer = Client(None, {"email": "a@b", "item": "tea", "retries": 0})
    with pytest.raises(EndError):
        notification_service.work(consumer)
    assert "no broker" in caplog.text
    assert consumer.calls == [("committed", 1)]
