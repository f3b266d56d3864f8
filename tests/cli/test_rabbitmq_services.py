"""The demo's two services on RabbitMQ, without a broker."""

from __future__ import annotations

import json
import logging
import runpy
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pika
import pytest
import uvicorn
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.trace import SpanKind

import queueprop
import queueprop.sdk
from queueprop.adapters.pika import traced_consumer
from queueprop.cli.demo.rabbitmq import notification_service, order_service
from queueprop.logs import TraceContextFilter
from queueprop.testing import capture_spans


class Channel:
    """Notes what it is asked for; it consumes until there is nothing more to deliver."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.deliveries: list[Any] = []
        self._callback: Any = None

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: self.calls.append((name, (*args, *kwargs.values())))

    def basic_consume(self, queue: str, callback: Any) -> None:
        self._callback = callback

    def start_consuming(self) -> None:
        if not self.deliveries:
            raise KeyboardInterrupt
        self._callback(self, *self.deliveries.pop(0))

    def called(self, name: str) -> list[Any]:
        return [args for called, args in self.calls if called == name]


@pytest.fixture
def channel(monkeypatch: pytest.MonkeyPatch) -> Channel:
    channel = Channel()

    class Connection:
        def __init__(self, parameters: Any) -> None: ...

        def __enter__(self) -> Connection:
            return self

        def __exit__(self, *_: object) -> None: ...

        def channel(self) -> Channel:
            return channel

    monkeypatch.setattr(pika, "BlockingConnection", Connection)
    return channel


@pytest.fixture
def calls(channel: Channel, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What the services ask of everything around them, which does nothing here."""
    noted: list[str] = []

    def note(name: str) -> Any:
        return lambda *args, **kwargs: noted.append(name)

    monkeypatch.delenv("WITHOUT_QUEUEPROP", raising=False)
    monkeypatch.setattr(queueprop.sdk, "configure_tracing", note("configure_tracing"))
    monkeypatch.setattr(queueprop, "instrument", note("instrument"))
    monkeypatch.setattr(FastAPIInstrumentor, "instrument_app", note("instrument_app"))
    monkeypatch.setattr(uvicorn, "run", note("run"))
    handlers = logging.getLogger().handlers[:]
    yield noted
    logging.getLogger().handlers[:] = handlers
    logging.getLogger("pika").setLevel(logging.NOTSET)


def _run(service: ModuleType) -> None:
    runpy.run_path(str(service.__file__), run_name="__main__")


@pytest.mark.parametrize("without", [False, True])
def test_services(calls: list[str], channel: Channel, monkeypatch: pytest.MonkeyPatch, without: bool) -> None:
    """Both configure tracing, instrument pika (but in the demo's second run), and declare their queues."""
    if without:
        monkeypatch.setenv("WITHOUT_QUEUEPROP", "1")
    _run(order_service)
    with pytest.raises(KeyboardInterrupt):
        _run(notification_service)
    pika_too = [] if without else ["instrument"]
    assert calls == [
        "configure_tracing",
        "instrument_app",
        *pika_too,
        "run",
        "configure_tracing",
        *pika_too,
    ]
    assert [args[0] for args in channel.called("queue_declare")] == ["emails", "emails-later", "emails"]


@pytest.mark.parametrize(
    ("delay", "queue", "expiration"), [(0, "emails", None), (1.5, "emails-later", "1500")]
)
def test_order_is_queued(channel: Channel, delay: float, queue: str, expiration: str | None) -> None:
    """One that is to wait expires in another queue, and goes on from there."""
    order = order_service.Order(item="tea", email="a@b", retries=1, delay=delay)
    assert order_service.take_order(order) == {"queue": queue}
    [(exchange, routing_key, body, properties, mandatory)] = channel.called("basic_publish")
    assert (exchange, routing_key, json.loads(body)) == ("", queue, {"email": "a@b", "item": "tea"})
    assert (properties.headers, properties.expiration, mandatory) == ({"retries": 1}, expiration, True)


@pytest.mark.parametrize(
    ("email", "retries", "redelivered", "settled"),
    [
        ("ada@example.com", 0, False, ("basic_ack", (7,))),
        ("nobody@example.com", 0, False, ("basic_nack", (7, False))),
        ("busy@example.com", 1, False, ("basic_nack", (7, True))),
        ("busy@example.com", 1, True, ("basic_ack", (7,))),
    ],
)
def test_mail(
    channel: Channel, email: str, retries: int, redelivered: bool, settled: tuple[str, Any]
) -> None:
    """One span a delivery; what fails is tried again where it may be, and else given up."""
    method = SimpleNamespace(delivery_tag=7, redelivered=redelivered)
    body = json.dumps({"email": email, "item": "tea"}).encode()
    channel.deliveries.append((method, pika.BasicProperties(headers={"retries": retries}), body))
    worker = notification_service.Worker(channel, "emails")
    with capture_spans() as spans, pytest.raises(KeyboardInterrupt):
        worker.run()
    assert [span.name for span in spans] == ["send mail"]
    assert channel.calls[-1] == settled


def test_a_failure_is_told_inside_its_span(channel: Channel, caplog: pytest.LogCaptureFixture) -> None:
    """The line has the trace id of the order whose mail failed; where pika hands the error on, none is current."""
    caplog.handler.addFilter(correlated := TraceContextFilter())
    method = pika.spec.Basic.Deliver("consumer", 7, routing_key="emails")
    body = json.dumps({"email": "nobody@example.com", "item": "tea"}).encode()
    on_message = traced_consumer(notification_service.Worker(channel, "emails").on_message)
    try:
        with capture_spans() as spans, pytest.raises(ValueError, match="no such mailbox"):
            on_message(channel, method, pika.BasicProperties(headers={"retries": 0}), body)
    finally:
        caplog.handler.removeFilter(correlated)
    (process,) = spans.kind(SpanKind.CONSUMER)
    failed = next(record for record in caplog.records if record.levelno > logging.INFO)
    assert failed.__dict__["trace_id"] == format(process.context.trace_id, "032x")
