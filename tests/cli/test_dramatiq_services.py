"""The demo's two services on Dramatiq, without a server: on Dramatiq's broker in memory."""

from __future__ import annotations

import json
import logging
import runpy
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import dramatiq
import pytest
import redis
import uvicorn
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import CurrentMessage
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

import queueprop
import queueprop.sdk
from queueprop.cli.demo import redis_server
from queueprop.cli.demo.dramatiq import broker, notification_service, order_service
from queueprop.testing import capture_spans


class EndOfWork(Exception):
    pass


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What the services ask of everything around them, which does nothing here; the worker ends as it has begun."""
    noted: list[Any] = []

    def note(name: str) -> Any:
        return lambda *args, **kwargs: noted.append((name, args, kwargs))

    def end(seconds: float) -> None:
        raise EndOfWork

    monkeypatch.delenv("WITHOUT_QUEUEPROP", raising=False)
    monkeypatch.setattr(queueprop.sdk, "configure_tracing", note("configure_tracing"))
    monkeypatch.setattr(queueprop, "instrument", note("instrument"))
    monkeypatch.setattr(FastAPIInstrumentor, "instrument_app", note("instrument_app"))
    monkeypatch.setattr(uvicorn, "run", note("run"))
    worker = SimpleNamespace(start=note("start"), stop=note("stop"))
    monkeypatch.setattr(dramatiq, "Worker", lambda broker, worker_timeout: worker)
    monkeypatch.setattr(time, "sleep", end)
    root, library = logging.getLogger(), logging.getLogger("dramatiq")
    handlers, level = root.handlers[:], library.level
    yield noted
    root.handlers[:] = handlers
    library.setLevel(level)


def _run(service: ModuleType) -> None:
    # By its path: pytest's loader, which has the modules of a plugin's package, cannot run one on Python 3.10.
    runpy.run_path(str(service.__file__), run_name="__main__")


def test_both_services(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """They configure tracing and instrument Dramatiq; the one listens on PORT, the other works, and stops in order."""
    monkeypatch.setenv("PORT", "8123")
    _run(order_service)
    assert [name for name, _, _ in calls] == ["configure_tracing", "instrument_app", "instrument", "run"]
    assert calls[2][1] == ("dramatiq",)
    assert calls[3][2]["port"] == 8123
    del calls[:]
    with pytest.raises(EndOfWork):
        _run(notification_service)
    assert [name for name, _, _ in calls] == ["configure_tracing", "instrument", "start", "stop"]


def test_services_without_queueprop(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The second run of the demo instruments FastAPI alone."""
    monkeypatch.setenv("WITHOUT_QUEUEPROP", "1")
    _run(order_service)
    with pytest.raises(EndOfWork):
        _run(notification_service)
    assert "instrument" not in [name for name, _, _ in calls]


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> StubBroker:
    """The two services' broker, in memory, with the actor of the worker's."""
    made = StubBroker()
    made.add_middleware(CurrentMessage())
    declare: Any = dramatiq.actor
    actor = declare(
        notification_service.send_confirmation.fn,
        broker=made,
        queue_name="emails",
        max_retries=0,
        min_backoff=1,
    )
    monkeypatch.setattr(order_service, "send_confirmation", actor)
    return made


def _order(shop: StubBroker, **order: object) -> list[str]:
    """Takes an order, and works it off; the spans of its deliveries."""
    body = json.dumps({"item": "tea", "email": "ada@example.com", **order})
    worker = dramatiq.Worker(shop, worker_timeout=5, worker_threads=1)
    worker.start()
    with capture_spans() as spans:
        assert order_service.take_order(order_service.Order.model_validate_json(body))["message"]
        shop.join("emails", fail_fast=False)
    worker.stop()
    return [span.name for span in spans]


def test_orders_are_confirmed(shop: StubBroker) -> None:
    """A delivery has one span of its own: at once, and after a delay."""
    assert _order(shop) == _order(shop, delay=0.01) == ["send mail"]
    assert shop.dead_letters == []


def test_a_mailbox_that_is_not_there(shop: StubBroker) -> None:
    """It fails for good."""
    assert _order(shop, email="nobody@example.com") == ["send mail"]
    assert len(shop.dead_letters) == 1


def test_a_mail_server_that_is_busy_the_first_time(shop: StubBroker) -> None:
    """The message is tried again, and the last attempt goes through."""
    assert _order(shop, email="busy@example.com", retries=1) == ["send mail"] * 2
    assert shop.dead_letters == []


@pytest.mark.parametrize("is_private", [True, False])
def test_the_broker_is_a_redis(is_private: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On somebody else's server the keys of the demo are removed."""
    removed: list[Any] = []

    class Client:
        def __enter__(self) -> Client:
            return self

        def __exit__(self, *args: object) -> None: ...

        def scan_iter(self, pattern: str) -> list[str]:
            return [pattern.replace("*", "emails")]

        delete = removed.append

    @contextmanager
    def found(processes: Any, environ: Mapping[str, str]) -> Iterator[Any]:
        yield SimpleNamespace(what="Redis", url="redis://there", is_private=is_private)

    monkeypatch.setattr(redis_server, "redis_server", found)
    monkeypatch.setattr(redis.Redis, "from_url", lambda url: Client())
    with broker.Dramatiq().server(None, {}) as server:  # type: ignore[arg-type]
        assert server.environment["REDIS_URL"] == "redis://there"
    expected = f"{server.environment['NAMESPACE']}:emails"
    assert removed == ([] if is_private else [expected])
