"""What is read of kombu below the libraries that use it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, Mock

import pytest

pytest.importorskip("amqp")

from queueprop.engine.message import Destination
from queueprop.kit.kombu import broker_of, client_of, fitted_to_frame, frame_max_of
from queueprop.kit.kombu_batches import defer


@pytest.mark.parametrize("producer", [Mock(), MagicMock(), Mock(spec=["publish"]), object()])
def test_a_producer_that_is_a_double(producer: object) -> None:
    """Celery's own tests send through such ones, and users' may: nothing is raised, no address told, no batch waits."""
    client = client_of(producer)
    assert broker_of(client)[1:] == (None, None)
    assert frame_max_of(client) == 0
    send = Mock()
    assert not defer(producer, send)
    assert send.mock_calls == []


def amqp_of(frame_max: int) -> Any:
    transport = SimpleNamespace(driver_type="amqp")
    return SimpleNamespace(transport=transport, _connection=SimpleNamespace(frame_max=frame_max))


def fitted(client: Any, beside: Any = None, **given: str) -> list[str]:
    written = {**given, "traceparent": "x" * 55, "baggage": "x" * 5000}
    orders = Destination("rabbitmq", "orders")
    return sorted(fitted_to_frame(written, given, client, "publishing with kombu", orders, beside))


def test_what_fits_into_a_frame_goes_out() -> None:
    """Where the transport has frames: the baggage stays here first, and the table of the layer above counts."""
    everything = ["baggage", "traceparent"]
    assert fitted(amqp_of(131_072)) == everything
    assert fitted(amqp_of(9000)) == everything
    assert fitted(amqp_of(6000)) == ["traceparent"]
    assert fitted(amqp_of(9000), beside={"argsrepr": "x" * 2000}) == ["traceparent"]
    assert fitted(None, beside={"argsrepr": "x" * 200_000}) == everything
