"""create: the making of one message of a batch, before the batch is sent."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.trace import NoOpTracerProvider, SpanKind, get_current_span

from queueprop import Destination, Message, guard
from queueprop.wire import propagation
from tests.telemetry import ORDERS, Telemetry, attributes, ids, links, parent, written

NOWHERE = Destination("test", server_address="broker.example")


def test_its_context_is_in_the_message_and_never_current(telemetry: Telemetry) -> None:
    """The message carries it when ``open`` returns; the caller's own span stays current, and is its parent."""
    headers: dict[str, Any] = {}
    with telemetry.current() as ambient:
        create = telemetry.engine().create(ORDERS, Message(headers))
        create.open()
        assert get_current_span() is ambient
    assert written(headers) == ids(create.span)
    create.close()
    span = telemetry.spans.named("create orders")[0]
    assert (span.kind, parent(span)) == (SpanKind.PRODUCER, ids(ambient))


def test_the_destination_is_known_later(telemetry: Telemetry) -> None:
    """Then its span has the name and attributes of where it goes, and ended when the message was made."""
    create = telemetry.engine().create(NOWHERE, Message({}))
    create.open()
    made = create.span
    with telemetry.engine().send(ORDERS, [Message()], created=[create]) as send:
        create.close(ORDERS)
    created, sent = telemetry.spans
    assert created.name == "create orders"
    assert attributes(created)["messaging.destination.name"] == "orders"
    assert created.end_time is not None
    assert sent.start_time is not None
    assert created.end_time <= sent.start_time
    assert (links(sent), sent.kind) == ([ids(made)], SpanKind.CLIENT)
    assert ids(sent) == ids(send)


def test_what_is_never_sent_has_no_span(telemetry: Telemetry) -> None:
    """A message that no batch took: nothing is exported of it."""
    telemetry.engine().create(ORDERS, Message({})).open()
    assert not telemetry.spans


def test_suppressed(telemetry: Telemetry) -> None:
    """No span, no header; the batch that it goes out with links to nothing."""
    headers: dict[str, Any] = {}
    with suppress_instrumentation():
        create = telemetry.engine().create(ORDERS, Message(headers))
        create.open()
    create.close(ORDERS)
    with telemetry.engine().send(ORDERS, [Message()], created=[create]):
        pass
    assert headers == {}
    assert links(telemetry.only()) == []


class Broken:
    """A provider and a span that raise whatever is asked of them."""

    def get_tracer(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no tracer")

    def update_name(self, name: str) -> None:
        raise RuntimeError("no span")

    def end(self, at: int | None) -> None:
        raise RuntimeError("no end")


def test_a_fault_of_ours_is_logged(
    telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither ``open`` nor ``close`` raises; one warning tells of each thing that failed."""
    monkeypatch.setattr(guard, "raise_faults", False)
    monkeypatch.setattr(guard, "_logged", {})
    provider: Any = Broken()
    create = telemetry.engine(tracer_provider=provider).create(ORDERS, Message({}))
    create.open()
    create.span = Broken()  # type: ignore[assignment]
    create.close(ORDERS)
    assert [message.partition(" (create orders)")[0] for message in caplog.messages] == [
        "queueprop failed while starting a span",
        "queueprop failed while telling a destination to a span",
        "queueprop failed while ending a span",
    ]


def test_without_an_sdk(telemetry: Telemetry) -> None:
    """What is current goes on in the message."""
    headers: dict[str, Any] = {}
    with telemetry.current() as ambient:
        create = telemetry.engine(tracer_provider=NoOpTracerProvider()).create(ORDERS, Message(headers))
        create.open()
        create.close(ORDERS)
    assert written(headers) == ids(ambient)


@pytest.mark.parametrize("broken", ["start_span", "write"])
def test_a_fault_of_ours_costs_no_message(
    telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """Neither of the span nor of its headers: the batch goes on, and the caller sees nothing of it."""
    monkeypatch.setattr(guard, "raise_faults", False)
    engine = telemetry.engine()
    monkeypatch.setattr(engine, broken, lambda *args: {}.popitem())
    create = engine.create(ORDERS, Message({}))
    create.open()
    create.close()


def test_headers_that_raise_cost_no_message(
    telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever it is that writing them meets; the message has its span."""
    monkeypatch.setattr(guard, "raise_faults", False)
    monkeypatch.setattr(propagation._W3C, "write", lambda *args: {}.popitem())
    with telemetry.engine().send(ORDERS, Message({})):
        pass
    assert len(telemetry.spans) == 1
    assert "writing the headers of a message" in caplog.text
