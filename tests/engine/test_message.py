"""Destination and Message: names, attributes, what is cached."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import pytest
from opentelemetry.trace import SpanKind
from opentelemetry.util.types import AttributeValue

from queueprop import Destination, Message
from queueprop.engine import semconv


@pytest.mark.parametrize(
    ("destination", "name"),
    [
        (Destination("q", "orders"), "publish orders"),
        (Destination("q", "orders.7", template="orders.{id}"), "publish orders.{id}"),
        (Destination("q", "amq.gen-1", anonymous=True), "publish"),
        (Destination("q", "reply-1", temporary=True), "publish"),
        (Destination("q", "reply-1", temporary=True, template="reply-{id}"), "publish reply-{id}"),
        (Destination("q", "reply-1", temporary=True, server_address="b", server_port=1), "publish b:1"),
        (Destination("q", "orders", server_address="b", server_port=1), "publish orders"),
        (Destination("q", server_address="b", server_port=1), "publish b:1"),
        (Destination("q", server_address="/tmp/b.sock"), "publish /tmp/b.sock"),
        (Destination("q", server_port=1), "publish"),
        (Destination("q", ""), "publish"),
        (Destination("q"), "publish"),
    ],
)
def test_the_name_of_a_span(destination: Destination, name: str) -> None:
    """`{operation} {destination}`: its template, else its name where that is of low cardinality, else the server's
    address, or nothing."""
    assert destination.labels(semconv.SEND, "publish").span_name == name


@pytest.mark.parametrize(
    ("kind", "span_kind"),
    [
        ("create", SpanKind.PRODUCER),
        ("send", SpanKind.PRODUCER),
        ("receive", SpanKind.CLIENT),
        ("process", SpanKind.CONSUMER),
        ("settle", SpanKind.CLIENT),
    ],
)
def test_the_kind_of_a_span(kind: str, span_kind: SpanKind) -> None:
    """By the type of the operation."""
    operation = Destination("q", "orders").labels(kind, "x")
    assert (operation.span_kind, operation.attributes["messaging.operation.type"]) == (span_kind, kind)


def test_a_send_beside_create_spans() -> None:
    """The kind can be given: such a send is a CLIENT."""
    operation = Destination("q", "orders").labels(semconv.SEND, "publish", SpanKind.CLIENT)
    assert operation.span_kind is SpanKind.CLIENT


def test_all_attributes() -> None:
    """Every field that is known is on the span, under the name of the conventions; nothing else is."""
    destination = Destination(
        system="rabbitmq",
        name="orders.7",
        template="orders.{id}",
        temporary=True,
        anonymous=True,
        partition_id="3",
        consumer_group="mailers",
        client_id="c1",
        server_address="broker.example",
        server_port=5672,
        attributes={"messaging.rabbitmq.destination.routing_key": "k"},
    )
    assert destination.labels(semconv.PROCESS, "process").attributes == {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "orders.7",
        "messaging.destination.template": "orders.{id}",
        "messaging.destination.temporary": True,
        "messaging.destination.anonymous": True,
        "messaging.destination.partition.id": "3",
        "messaging.consumer.group.name": "mailers",
        "messaging.client.id": "c1",
        "server.address": "broker.example",
        "server.port": 5672,
        "messaging.rabbitmq.destination.routing_key": "k",
    }


@pytest.mark.parametrize(
    ("kind", "there"),
    [("create", False), ("send", True), ("receive", True), ("process", False), ("settle", True)],
)
def test_the_network_peer(kind: str, there: bool) -> None:
    """`network.peer.*` is on the operations that talk to the broker, and not on create or process."""
    peer: dict[str, AttributeValue] = {"network.peer.address": "10.0.0.1", "network.peer.port": 5672}
    attributes = Destination("q", attributes={**peer, "a": 1}).labels(kind, "x").attributes
    assert peer.items() <= attributes.items() if there else not peer.keys() & attributes.keys()
    assert attributes["a"] == 1


def test_what_is_not_known_is_left_out() -> None:
    """No empty, false or None attributes."""
    assert Destination("q").labels(semconv.SEND, "publish").attributes == {
        "messaging.system": "q",
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
    }


def test_operations_are_built_once() -> None:
    """The same operation of one destination is the same object, and another one is not."""
    destination = Destination("q", "orders")
    publish = destination.labels(semconv.SEND, "publish")
    assert destination.labels(semconv.SEND, "publish") is publish
    assert destination.labels(semconv.SEND, "enqueue") is not publish
    assert destination.labels(semconv.SEND, "publish", SpanKind.CLIENT) is not publish
    assert Destination("q", "orders").labels(semconv.SEND, "publish") is not publish


def test_a_destination_is_a_value() -> None:
    """Frozen; equal and hashable by what it says, whatever it has cached."""
    one, other = (
        Destination("q", "orders", attributes={"a": 1}),
        Destination("q", "orders", attributes={"a": 1}),
    )
    one.labels(semconv.SEND, "publish")
    assert one == other
    assert hash(one) == hash(other)
    assert one != Destination("q", "orders")
    assert "_operations" not in repr(one)
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.name = "x"  # type: ignore[misc]


@pytest.mark.parametrize("transfer", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_destination_can_be_handed_on(transfer: Any) -> None:
    """Copied or pickled (for a worker process), also when it is in use."""
    one = Destination("q", "orders")
    one.labels(semconv.SEND, "publish")
    other = transfer(one)
    assert other == one
    assert other.labels(semconv.SEND, "publish").span_name == "publish orders"
    assert dataclasses.replace(one, name="x").labels(semconv.SEND, "publish").span_name == "publish x"


def test_a_message_needs_nothing() -> None:
    """Everything is optional; headers alone may be given by position."""
    message = Message()
    assert message.headers is None
    assert message.process_context is None
    assert Message({"a": "1"}).headers == {"a": "1"}


def test_a_message_takes_no_other_field() -> None:
    """A misspelled one is an error where it is written."""
    with pytest.raises(TypeError):
        Message(headres={})  # type: ignore[call-arg]
    with pytest.raises(AttributeError):
        Message().headres = {}  # type: ignore[attr-defined]
