"""Celery as users write it, read by mypy and pyright; nothing runs this file."""

from __future__ import annotations

from typing import Any

from celery import Celery
from typing_extensions import assert_type

from queueprop import Settings
from queueprop.adapters.celery import (
    CeleryInstrumentor,
    TaskMessage,
    traced_app,
    traced_consumer,
    traced_publish,
)

app = traced_app(Celery("shop", broker="redis://localhost"), settings=Settings(propagation="link"))


@traced_consumer
def send_mail(to: str) -> int:
    return len(to)


@traced_consumer(settings=Settings())
def send_letter(to: str) -> None: ...


def note(span: Any, message: TaskMessage) -> None:
    span.set_attribute("name", message.name or "")


def publish(to: str) -> int:
    return len(to)


def use() -> None:
    assert_type(send_mail("a"), int)
    send: Any = app.task(send_mail)
    traced_publish(send.delay)("a")
    assert_type(traced_publish(publish, settings=Settings())("a"), int)
    CeleryInstrumentor().instrument(settings=Settings(), consume_hook=note)
    CeleryInstrumentor().uninstrument()
