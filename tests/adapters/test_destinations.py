"""What adapters remember of destinations, where each message has one of its own."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest

from queueprop.adapters.dramatiq import messages as dramatiq
from queueprop.adapters.rq import messages as rq
from queueprop.engine import semconv
from queueprop.engine.message import Destination
from queueprop.kit import kafka, rabbitmq

MAKERS: dict[str, Callable[[str], Destination]] = {
    "dramatiq": lambda name: dramatiq._destination_at(name, "broker.example", 6379),
    "rq": lambda name: rq._destination_at(name, "broker.example", 6379),
    "Kafka": lambda name: kafka.destination(name, None, None, "shop", "broker.example", 9092),
    "RabbitMQ": lambda name: rabbitmq.consumer_destination(
        "", name, name, "rabbitmq", "broker.example", 5672
    ),
}


@pytest.mark.parametrize("library", MAKERS)
def test_destinations_that_are_forgotten_wait_for_no_garbage_collector(library: str) -> None:
    """Of many names the latest are kept, and the others are gone at once: long-lived garbage may lie about for long."""
    gc.collect()
    gc.disable()
    try:
        before = _destinations()
        for number in range(3000):
            MAKERS[library](f"orders-{number}").labels(semconv.PROCESS, "process")
        assert _destinations() - before <= 1100
    finally:
        gc.enable()


def _destinations() -> int:
    return sum(type(one) is Destination for one in gc.get_objects())
