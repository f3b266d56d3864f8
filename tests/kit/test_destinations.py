"""Where a library's object sends to, asked of it once."""

from __future__ import annotations

from typing import Any

import pytest

from queueprop import Destination
from queueprop.engine.message import LONGEST_VALUE
from queueprop.kit.destinations import Destinations


class Channel:
    def __init__(self, host: str | None = "rabbit.example") -> None:
        self.host = host


def made(channel: Any, *names: Any) -> Destination:
    return Destination("rabbitmq", ":".join(map(str, names)), server_address=getattr(channel, "host", None))


def test_it_is_made_once_for_each_object_and_its_names() -> None:
    """Another channel may be of another broker."""
    destinations, channel, other = Destinations(made), Channel(), Channel("other.example")
    orders = destinations.of(channel, "", "orders")
    assert destinations.of(channel, "", "orders") is orders
    assert destinations.of(channel, "", "mails").name == ":mails"
    assert destinations.of(other, "", "orders").server_address == "other.example"
    assert destinations.of(channel, "", "orders") is orders


def test_an_address_that_is_not_known_yet() -> None:
    """It is asked for again."""
    destinations, channel = Destinations(made), Channel(None)
    assert destinations.of(channel, "orders").server_address is None
    channel.host = "rabbit.example"
    assert destinations.of(channel, "orders").server_address == "rabbit.example"


@pytest.mark.parametrize("name", ["x" * (LONGEST_VALUE + 1), b"orders", 7, ["orders"], None])
def test_what_is_no_plain_short_name_is_not_remembered(name: object) -> None:
    """Nothing that the caller may alter, and nothing large."""
    destinations, channel = Destinations(made), Channel()
    destinations.of(channel, "known")
    assert destinations.of(channel, name) is not destinations.of(channel, name)


def test_what_takes_no_weak_reference() -> None:
    """A double of somebody's tests: it is asked each time."""
    destinations = Destinations(
        lambda holder, name: Destination("kafka", name, server_address="kafka.example")
    )
    assert destinations.of(7, "orders") == destinations.of(7, "orders")
    assert destinations.of(7, "orders") is not destinations.of(7, "orders")


def test_names_have_a_bound() -> None:
    """Of one object the latest are remembered, so many: a routing key may have an id in it."""
    destinations, channel = Destinations(made, most=2), Channel()
    first = destinations.of(channel, "0")
    for number in range(1, 3):
        destinations.of(channel, str(number))
    assert destinations.of(channel, "0") is not first
