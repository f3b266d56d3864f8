"""Destination and Message: names, attributes, what is cached."""

from __future__ import annotations

import copy
import dataclasses
import gc
import pickle
import weakref
from typing import Any

import pytest
from opentelemetry.trace import SpanKind
from opentelemetry.util.types import AttributeValue

from queueprop import Destination, Message
from queueprop.engine import semconv
from queueprop.engine.engine import engine_for
from queueprop.engine.message import Templates, bounded, remembered
from tests.telemetry import ORDERS, Telemetry


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
    assert "_labels" not in repr(one)
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


@pytest.mark.parametrize("transfer", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_message_can_be_handed_on(telemetry: Telemetry, transfer: Any) -> None:
    """Copied or pickled, also while it is handled: the context of its handling stays behind."""
    message = Message({"tenant": "acme"}, id="7", attempt=2)
    with telemetry.engine().process(ORDERS, message):
        other = transfer(message)
    assert message.process_context is not None
    assert (other, other.process_context) == (Message({"tenant": "acme"}, id="7", attempt=2), None)


def test_it_is_handed_on_without_what_it_has_cached() -> None:
    """That belongs to one process, and may be large: its metrics know other destinations."""
    one = Destination("q", "orders")
    before = pickle.dumps(one)
    for name in ("publish", "enqueue"):
        one.labels(semconv.SEND, name)
    assert pickle.dumps(one) == before
    assert copy.copy(one)._labels == {}


def test_operations_without_end() -> None:
    """Names that are made for each call are not kept."""
    destination = Destination("q", "orders")
    for number in range(1000):
        assert destination.labels(semconv.SEND, f"publish {number}").name == f"publish {number}"
    assert len(destination._labels) < 100


class TestTemplates:
    """Settings(destination_templates=...): what the names of destinations stand for."""

    TEMPLATES = Templates([("orders.*", "orders.{id}"), ("orders.eu.*", "never"), ("reply-??", "reply-{id}")])

    @pytest.mark.parametrize(
        ("destination", "template"),
        [
            (Destination("q", "orders.7"), "orders.{id}"),
            (Destination("q", "orders.eu.7"), "orders.{id}"),
            (Destination("q", "reply-42"), "reply-{id}"),
            (Destination("q", "orders"), None),
            (Destination("q", "Orders.7"), None),
            (Destination("q"), None),
            (Destination("q", "orders.7", template="orders.{region}"), "orders.{id}"),
            (Destination("q", "mails.7", template="mails.{region}"), "mails.{region}"),
            (Destination("q", "reply-17", temporary=True, anonymous=True), "reply-{id}"),
        ],
    )
    def test_which_one(self, destination: Destination, template: str | None) -> None:
        """The first that matches, before one that the destination has: it names the span, and is an attribute beside
        the name. Without any, all is as it was.
        """
        operation = destination.labels(semconv.SEND, "publish", None, self.TEMPLATES)
        assert operation.attributes.get("messaging.destination.template") == template
        assert operation.attributes.get("messaging.destination.name") == destination.name
        assert operation.span_name == f"publish {template or destination.name or ''}".strip()
        assert operation.destination is destination

    def test_of_two_settings(self) -> None:
        """One destination under two settings has the name that each of them gives it."""
        destination = Destination("q", "orders.7")
        names = [
            destination.labels(semconv.SEND, "publish", None, templates).span_name
            for templates in (None, self.TEMPLATES, Templates([("*", "all")]), None)
        ]
        assert names == ["publish orders.7", "publish orders.{id}", "publish all", "publish orders.7"]

    def test_in_use(self, telemetry: Telemetry) -> None:
        """Each kind of operation has it, the create spans of a batch included, also of a topic that is known later."""
        engine = engine_for(telemetry.settings(destination_templates={"orders.*": "orders.{id}"}))
        destination = Destination("q", "orders.7")
        created = engine.create(Destination("q"), Message({}))
        created.open()
        created.close(destination)
        for operation in (
            engine.send(destination, [Message({})]),
            engine.process(destination, Message({})),
            engine.settle(destination, Message({})),
        ):
            with operation:
                pass
        receive = engine.receive(destination)
        receive.open()
        receive.add(Message({}))
        receive.close()
        names = {span.name for span in telemetry.spans}
        assert names == {f"{name} orders.{{id}}" for name in ("create", "publish", "process", "ack", "poll")}
        assert {(span.attributes or {})["messaging.destination.template"] for span in telemetry.spans} == {
            "orders.{id}"
        }


class TestRemembered:
    """remembered(): destinations that are kept."""

    def test_it_is_made_once(self) -> None:
        """For the same arguments the same destination."""
        make = remembered(lambda name, group: Destination("q", name, consumer_group=group))
        assert make("orders", None) is make("orders", None)
        assert make("orders", "g") is not make("orders", None)
        assert make("orders", "g").consumer_group == "g"

    def test_names_without_end(self) -> None:
        """At most 1,000 are kept, and what was kept is freed at once, with all that it has cached."""
        make = remembered(lambda name: Destination("q", name))
        gc.collect()
        gc.disable()
        kept = []
        for number in range(5000):
            destination = make(f"reply-{number}")
            destination.labels(semconv.SEND, "publish")
            kept.append(weakref.ref(destination))
            del destination
        alive = sum(one() is not None for one in kept)
        gc.enable()
        assert 0 < alive <= 1000

    def test_long_names_are_not_kept(self) -> None:
        """They may be of any length; each is made when it is asked for."""
        make = remembered(lambda name: Destination("q", name))
        name = "x" * 100_000
        gone = weakref.ref(make(name))
        assert make(name).name == name
        assert gone() is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a" * 1024, "a" * 1024),
        ("a" * 1025, "a" * 1024),
        ("", ""),
        (7, 7),
        (True, True),
        (("a" * 2000,), ("a" * 2000,)),
    ],
)
def test_texts_have_a_bound(value: Any, expected: Any) -> None:
    """bounded(): of a text the first 1,024 characters; what is no text stays as it is."""
    assert bounded(value) == expected


def test_all_that_a_destination_tells_has_a_bound() -> None:
    """Name, template, group, routing key, server: each attribute, and the span's name."""
    long = "x" * 1_000_000
    for destination in (
        Destination(
            "q", long, consumer_group=long, client_id=long, server_address=long, attributes={"key": long}
        ),
        Destination("q", long, template=long),
        Destination("q", server_address=long, server_port=1),
    ):
        operation = destination.labels(semconv.SEND, "publish")
        assert max(len(str(value)) for value in operation.attributes.values()) == 1024
        assert len(operation.span_name) <= 1024 + len("publish ")


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
