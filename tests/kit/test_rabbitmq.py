"""RabbitMQ's names by the conventions: of exchange, routing key and queue, with those that the server made up aside."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from queueprop import Message, guard
from queueprop.kit import rabbitmq

BROKER = ("rabbitmq", "rabbit.example", 5672)


@pytest.mark.parametrize(
    ("exchange", "routing_key", "name", "label"),
    [
        ("shop", "orders", "shop:orders", "shop:orders"),
        ("", "orders", "orders", "orders"),
        ("fanout", "", "fanout", "fanout"),
        ("", "", "amq.default", "amq.default"),
        ("", "amq.gen-1", "amq.gen-1", "rabbit.example:5672"),
        ("", "amq.rabbitmq.reply-to.1", "amq.rabbitmq.reply-to.1", "rabbit.example:5672"),
        ("", f"amq_{'0f' * 16}", f"amq_{'0f' * 16}", "rabbit.example:5672"),
        ("", "amq_orders", "amq_orders", "amq_orders"),
    ],
)
def test_where_a_message_is_published_to(exchange: str, routing_key: str, name: str, label: str) -> None:
    """Exchange and routing key, or the one that is there; a name that a server or client made up names no span."""
    destination = rabbitmq.producer_destination(exchange, routing_key, *BROKER)
    assert (destination.name, destination.label) == (name, label)


@pytest.mark.parametrize(
    ("exchange", "routing_key", "queue", "name", "label"),
    [
        ("", "orders", "orders", "orders", "orders"),
        ("shop", "new", "orders", "shop:new:orders", "shop:new:orders"),
        ("shop", "orders", "orders", "shop:orders", "shop:orders"),
        ("fanout", "", "orders", "fanout:orders", "fanout:orders"),
        ("shop", "new", "", "shop:new", "shop:new"),
        ("", "", "", "amq.default", "amq.default"),
        ("shop", "", "amq.gen-1", "shop:amq.gen-1", "shop"),
        ("", "amq.gen-1", "amq.gen-1", "amq.gen-1", "rabbit.example:5672"),
        ("dead", "amq.gen-1", "graves", "dead:amq.gen-1:graves", "dead:graves"),
    ],
)
def test_where_a_message_is_delivered_from(
    exchange: str, routing_key: str, queue: str, name: str, label: str
) -> None:
    """Exchange, routing key and queue: what is there, once each; what the server made up is in no label."""
    destination = rabbitmq.consumer_destination(exchange, routing_key, queue, *BROKER)
    assert (destination.name, destination.label) == (name, label)
    is_made_up = "amq.gen" in name
    assert (destination.anonymous, destination.temporary) == (is_made_up, is_made_up)


def test_the_broker_stands_beside_the_name() -> None:
    """Host and port are attributes, and the routing key is one that only RabbitMQ has."""
    destination = rabbitmq.producer_destination("shop", "orders", *BROKER)
    assert (destination.server_address, destination.server_port) == ("rabbit.example", 5672)
    assert destination.attributes == {"messaging.rabbitmq.destination.routing_key": "orders"}
    assert rabbitmq.producer_destination("shop", "").attributes == {}
    elsewhere = rabbitmq.producer_destination("shop", "orders", "redis")
    assert (elsewhere.system, elsewhere.attributes) == ("redis", {})


def test_a_destination_is_built_once() -> None:
    """What is published there again is the same object: it caches its attributes."""
    assert rabbitmq.producer_destination("shop", "orders", *BROKER) is rabbitmq.producer_destination(
        "shop", "orders", *BROKER
    )


@pytest.mark.parametrize(
    ("headers", "redelivered", "attempt"),
    [
        ({}, False, 1),
        (None, False, 1),
        ({}, True, None),
        ([("x-delivery-count", 1)], True, None),
        ({"x-delivery-count": 2}, True, 3),
        ({"x-delivery-count": 1, "x-acquired-count": 3}, True, 4),
        ({"x-delivery-count": 0}, True, None),
        ({"x-delivery-count": "2"}, True, None),
        ({"x-delivery-count": 2}, None, 3),
        ({"x-death": [{"count": 1}], "x-delivery-count": 2}, True, None),
        ({"x-death": [{"count": 1}]}, False, None),
    ],
)
def test_which_delivery_it_is(headers: object, redelivered: bool | None, attempt: int | None) -> None:
    """The first by its flag, later ones where a quorum queue counts; unknown behind a dead letter."""
    assert rabbitmq.delivery_attempt(headers, redelivered) == attempt


class TestFrames:
    @pytest.mark.parametrize(
        ("headers", "encoded", "fits"),
        [
            ({"large": "x" * 131_000}, 131_052, True),
            ({"large": "x" * 131_000}, 131_053, False),
            ({"nested": {"a": 1}}, 131_053, False),
            ({7: "x"}, 131_053, False),
        ],
    )
    def test_what_may_be_near_the_limit_is_measured(
        self, headers: dict[Any, Any], encoded: int, fits: bool
    ) -> None:
        """Around the properties stand 20 bytes of their frame."""
        assert not rabbitmq.surely_fits(headers, 131_072)
        assert rabbitmq.fits_a_frame(131_072, lambda: encoded) is fits

    @pytest.mark.parametrize("frame_max", [131_072, 0])
    def test_what_is_far_from_it_is_not(self, frame_max: int) -> None:
        """Nor is anything where there is no limit."""
        headers: dict[Any, Any] = {
            "traceparent": "x" * 55,
            "bytes": b"x" * 55,
            b"name": "x" * 55,
            "none": None,
            "number": 7,
            "limits": [None, 300],
            "stamps": {},
        }
        assert rabbitmq.surely_fits(headers, frame_max)

    @pytest.mark.parametrize("value", [{"": "x" * 200_000}, ["x" * 200_000], [[]], [7] * 10_000])
    def test_what_may_be_large_inside(self, value: object) -> None:
        """A table with something in it, and a list of more than a few numbers, are not taken for small ones."""
        assert not rabbitmq.surely_fits({"nested": value}, 131_072)

    def test_what_cannot_be_encoded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is left to the library, which says why; what was meant for the program comes out."""
        assert rabbitmq.fits_a_frame(131_072, _raises(TypeError("no")))
        meant = TimeoutError("a time limit of the program's")
        monkeypatch.setattr(guard, "is_not_ours", lambda error: error is meant)
        with pytest.raises(TimeoutError):
            rabbitmq.fits_a_frame(131_072, _raises(meant))


class TestSettlement:
    """What AMQP's acks, nacks and rejects are about."""

    @pytest.mark.parametrize(
        ("operation", "tag", "multiple", "settled"),
        [
            ("ack", 2, False, [2]),
            ("ack", 2, True, [1, 2]),
            ("nack", 0, True, [1, 2, 3]),
            ("reject", 2, True, [2]),
            ("ack", 2, None, [2]),
        ],
    )
    def test_of_one_delivery_or_of_all_up_to_it(
        self, operation: str, tag: int, multiple: object, settled: list[int]
    ) -> None:
        """``multiple`` takes those before it, with the tag 0 all that there are; a reject is of one."""
        channel = object()
        settlement = rabbitmq.settlement(operation, channel, tag, multiple)
        assert (settlement.operation, settlement.holders) == (operation, (channel,))
        assert [key for key in (1, 2, 3) if settlement.is_about(key)] == settled


class TestTablePublication:
    """A publish whose headers have to fit into a frame."""

    class Publication(rabbitmq.TablePublication):
        library = "a client"

        def frame_max(self) -> int:
            return 131_072

        def encoded(self) -> int:
            return 131_046 + 2 * len(self.outgoing.headers)

    def made(self, headers: dict[str, str] | None, given: dict[str, str]) -> rabbitmq.TablePublication:
        destination = rabbitmq.producer_destination("", "orders")
        outgoing = SimpleNamespace(headers=headers)
        return self.Publication(destination, Message(headers), given, outgoing, (1, "properties"))

    def test_what_goes_out_takes_the_place_of_what_was_given(self) -> None:
        """By its place, or by its name; with a copy of the headers, which hold the context."""
        publication = self.made({"traceparent": "x"}, {})
        assert publication.arguments(("a", "b"), {}) == (("a", publication.outgoing), {})
        assert publication.arguments(("a",), {"properties": "b"}) == (
            ("a",),
            {"properties": publication.outgoing},
        )
        assert publication.outgoing.headers == {"traceparent": "x"}

    @pytest.mark.parametrize("headers", [None, {"tenant": "a"}])
    def test_where_nothing_was_written_the_call_stays_as_it_was(self, headers: dict[str, str] | None) -> None:
        """Nothing is recorded, or what stands there is no table: the very arguments of the caller."""
        publication = self.made(headers, {"tenant": "a"})
        args, kwargs = ("a", "b"), {"mandatory": True}
        assert publication.arguments(args, kwargs) == (args, kwargs)

    def test_what_has_no_room_is_left_out(self) -> None:
        """The broker would close the connection: first the baggage goes."""
        large = "x" * 131_000
        written = {"large": large, "traceparent": "x", "baggage": "y", "tracestate": "z"}
        publication = self.made(written, {"large": large})
        publication.arguments(("a", "b"), {})
        assert sorted(publication.outgoing.headers) == ["large", "traceparent", "tracestate"]


def _raises(error: Exception) -> Callable[[], int]:
    def encode() -> int:
        raise error

    return encode
