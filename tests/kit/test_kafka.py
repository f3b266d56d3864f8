"""Kafka's attributes and destinations: keys as text, what records have in common."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from queueprop.kit import kafka


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (b"k", "k"),
        (bytearray(b"k"), "k"),
        (memoryview(b"k"), "k"),
        ("k", "k"),
        (7, "7"),
        (UUID(int=7), "00000000-0000-0000-0000-000000000007"),
        (b"k" * 5000, "k" * 1024),
        ("k" * 5000, "k" * 1024),
    ],
)
def test_a_key_as_text(key: Any, text: str) -> None:
    """As it is written in one way; of a longer one the first 1,024 characters."""
    assert kafka.key_attributes(key) == {kafka.KEY: text}


@pytest.mark.parametrize(
    "key", [None, b"\xff", pytest.param(10**5000, id="a large number"), 1.5, ("k",), object()]
)
def test_a_key_without_a_text(key: Any) -> None:
    """None, no UTF-8, more digits than Python likes to print, and what has several forms."""
    assert kafka.key_attributes(key) == {}


@pytest.mark.parametrize(
    ("places", "topic", "partition"),
    [
        ([], None, None),
        ([("orders", 0)], "orders", "0"),
        ([("orders", 0), ("orders", 0)], "orders", "0"),
        ([("orders", 0), ("orders", 1)], "orders", None),
        ([("orders", 0), ("refunds", 0)], None, None),
    ],
)
def test_what_several_have_in_common(
    places: list[tuple[str, int]], topic: str | None, partition: str | None
) -> None:
    """Topic and partition, as far as they are the same everywhere."""
    destination = kafka.destination_of_all(places, "billing", "till", "kafka.example", 9092)
    assert (destination.name, destination.partition_id) == (topic, partition)
    assert (destination.consumer_group, destination.client_id) == ("billing", "till")
    assert (destination.server_address, destination.server_port) == ("kafka.example", 9092)


def test_names_that_are_none() -> None:
    """A pattern instead of a topic, a double's group: there is no name."""
    destination = kafka.destination_of_all([(b"orders", 0)], 7)
    assert (destination.name, destination.consumer_group) == (None, None)


@pytest.mark.parametrize(
    ("server", "told"),
    [
        ("kafka.example:9092", ("kafka.example", 9092)),
        ("SASL_SSL://kafka.example:9092, other:1", ("kafka.example", 9092)),
        ("[::1]:9092", ("::1", 9092)),
        ("kafka.example", ("kafka.example", None)),
        ("", (None, None)),
    ],
)
def test_an_address(server: str, told: tuple[str | None, int | None]) -> None:
    """Of several servers it is the first one's."""
    assert kafka.address(server) == told


def test_destinations_are_made_once() -> None:
    """They keep what their spans are labelled with."""
    assert kafka.destination("orders", 0) is kafka.destination("orders", 0)


@pytest.mark.parametrize(
    ("servers", "told"),
    [
        ("kafka.example:9092", ("kafka.example", 9092)),
        (["a:1", "b:2"], ("a", 1)),
        ("a:1,b:2", ("a", 1)),
        ("[::1]:9092", ("::1", 9092)),
        ("SSL://a:1", ("a", 1)),
        ("a", ("a", None)),
        ([], (None, None)),
    ],
)
def test_a_client_of_aiokafka_s(servers: Any, told: Any) -> None:
    """Its id, and host and port of the first server that it was told; an id that is no text is none."""
    assert kafka.told_to(SimpleNamespace(_bootstrap_servers=servers, _client_id="x")) == ("x", *told)
    assert kafka.told_to(SimpleNamespace(_bootstrap_servers=servers, _client_id=1)) == (None, *told)
