"""The demo's two services on kombu, without a broker: on kombu's transport in memory."""

from __future__ import annotations

import json
import logging
import runpy
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import kombu
import pytest
import redis
import uvicorn
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

import queueprop
import queueprop.sdk
from queueprop.cli.demo import redis_server
from queueprop.cli.demo.kombu import broker, notification_service, order_service
from queueprop.testing import capture_spans


class EndOfWork(Exception):
    pass


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What the services ask of everything around them, which does nothing here; the worker ends at its first wait."""
    noted: list[Any] = []

    def note(name: str) -> Any:
        return lambda *args, **kwargs: noted.append((name, args, kwargs))

    def end(*args: Any, **kwargs: Any) -> None:
        raise EndOfWork

    monkeypatch.delenv("WITHOUT_QUEUEPROP", raising=False)
    monkeypatch.setenv("BROKER_URL", "memory://")
    monkeypatch.setattr(queueprop.sdk, "configure_tracing", note("configure_tracing"))
    monkeypatch.setattr(queueprop, "instrument", note("instrument"))
    monkeypatch.setattr(FastAPIInstrumentor, "instrument_app", note("instrument_app"))
    monkeypatch.setattr(uvicorn, "run", note("run"))
    monkeypatch.setattr(kombu.Connection, "drain_events", end)
    handlers = logging.getLogger().handlers[:]
    yield noted
    logging.getLogger().handlers[:] = handlers


def _run(service: ModuleType) -> None:
    # By its path: pytest's loader, which has the modules of a plugin's package, cannot run one on Python 3.10.
    runpy.run_path(str(service.__file__), run_name="__main__")


def test_both_services(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """They configure tracing and instrument kombu; the one listens on PORT, the other consumes."""
    monkeypatch.setenv("PORT", "8123")
    _run(order_service)
    assert [name for name, _, _ in calls] == ["configure_tracing", "instrument_app", "instrument", "run"]
    assert calls[2][1] == ("kombu",)
    assert calls[3][2]["port"] == 8123
    del calls[:]
    with pytest.raises(EndOfWork):
        _run(notification_service)
    assert [name for name, _, _ in calls] == ["configure_tracing", "instrument"]


def test_services_without_queueprop(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The second run of the demo instruments FastAPI alone."""
    monkeypatch.setenv("WITHOUT_QUEUEPROP", "1")
    _run(order_service)
    with pytest.raises(EndOfWork):
        _run(notification_service)
    assert [name for name, _, _ in calls] == [
        "configure_tracing",
        "instrument_app",
        "run",
        "configure_tracing",
    ]


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Iterator[kombu.Connection]:
    """The two services' queue, in memory, and its consumer."""
    options = {"polling_interval": 0}
    with kombu.Connection("memory://", transport_options=options) as connection:
        monkeypatch.setattr(order_service, "broker", connection)
        emails = kombu.Queue("emails-of-the-test")
        monkeypatch.setattr(order_service, "emails", emails)
        with kombu.Consumer(connection, [emails], callbacks=[notification_service.on_order]):
            yield connection


def _order(**order: object) -> None:
    body = json.dumps({"item": "tea", "email": "ada@example.com", **order})
    assert order_service.take_order(order_service.Order.model_validate_json(body)) == {"item": "tea"}


def test_an_order_is_confirmed(shop: kombu.Connection) -> None:
    """A delivery has one span of its own inside of that of the message; without one the worker waits on."""
    with capture_spans() as spans:
        _order()
        notification_service.work(shop)
        idle: Any = SimpleNamespace(drain_events=_timeout)
        notification_service.work(idle)
    assert [span.name for span in spans] == ["send mail"]


def _timeout(timeout: float) -> None:
    raise TimeoutError


def test_a_delayed_order_is_published_later(shop: kombu.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """kombu has no delays: a timer publishes."""
    timers: list[threading.Timer] = []
    start = threading.Timer.start

    def noted_start(timer: threading.Timer) -> None:
        timers.append(timer)
        start(timer)

    monkeypatch.setattr(threading.Timer, "start", noted_start)
    _order(delay=0.01)
    timers[0].join(60)
    with capture_spans() as spans:
        notification_service.work(shop)
    assert [span.name for span in spans] == ["send mail"]


def test_a_mailbox_that_is_not_there(shop: kombu.Connection, caplog: pytest.LogCaptureFixture) -> None:
    """It fails for good, and the worker goes on."""
    _order(email="nobody@example.com")
    notification_service.work(shop)
    assert "no such mailbox" in caplog.text


def test_a_mail_server_that_is_busy_the_first_time(
    shop: kombu.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """The message is given back, and the last attempt goes through."""
    _order(email="busy@example.com", retries=1)
    notification_service.work(shop)
    assert "busy" in caplog.text
    message = SimpleNamespace(delivery_info={"redelivered": True}, ack=lambda: None)
    notification_service.on_order({"email": "busy@example.com", "item": "tea", "retries": 1}, message)


@pytest.mark.parametrize("is_private", [True, False])
def test_the_broker_is_a_redis(is_private: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On somebody else's server the queue is one of our own, and is removed."""
    removed: list[Any] = []

    class Client:
        def __enter__(self) -> Client:
            return self

        def __exit__(self, *args: object) -> None: ...

        delete = removed.append

    @contextmanager
    def found(processes: Any, environ: Mapping[str, str]) -> Iterator[Any]:
        yield SimpleNamespace(what="Redis", url="redis://there", is_private=is_private)

    monkeypatch.setattr(redis_server, "redis_server", found)
    monkeypatch.setattr(redis.Redis, "from_url", lambda url: Client())
    with broker.Kombu().server(None, {}) as server:  # type: ignore[arg-type]
        assert server.environment["BROKER_URL"] == "redis://there"
        assert ("QUEUE" in server.environment) is not is_private
    assert removed == ([] if is_private else [server.environment["QUEUE"]])
