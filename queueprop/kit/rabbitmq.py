"""What every adapter shares that speaks to RabbitMQ: names of destinations, the count of deliveries, sizes of frames.

By the conventions for messaging a name is made of what is there of exchange, routing key and queue, with colons
between.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, ClassVar

from queueprop import guard
from queueprop.engine.message import Destination, Message, remembered
from queueprop.kit import calls
from queueprop.kit.calls import Arguments, Options
from queueprop.kit.fitting import fitted
from queueprop.kit.library import Publication, Settlement
from queueprop.wire.headers import is_altered

SYSTEM = "rabbitmq"
ROUTING_KEY = "messaging.rabbitmq.destination.routing_key"
DELIVERY_TAG = "messaging.rabbitmq.message.delivery_tag"

# Names that the server makes up: of queues without a name, and for direct replies.
SERVER_NAMED = ("amq.gen-", "amq.rabbitmq.reply-to")

# And what a robust channel of aio-pika makes up, so that it can declare the queue again.
_CLIENT_NAMED = re.compile("amq_[0-9a-f]{32}")


def producer_destination(
    exchange: object,
    routing_key: object,
    system: str = SYSTEM,
    host: str | None = None,
    port: int | None = None,
) -> Destination:
    """Where a message is published to: ``{exchange}:{routing_key}``, or the one that is there; else ``amq.default``.

    Args:
        exchange: its name; empty for the default exchange. Whatever is no name counts as empty.
        routing_key: as published.
        system: another broker, where a library gives it the exchanges of RabbitMQ.
        host: of the broker, as the client was told it.
        port: its port.
    """
    if type(exchange) is not str or type(routing_key) is not str:
        exchange, routing_key = _name(exchange), _name(routing_key)
    return _destination((exchange, routing_key), routing_key, system, host, port)


def consumer_destination(
    exchange: object,
    routing_key: object,
    queue: object,
    system: str = SYSTEM,
    host: str | None = None,
    port: int | None = None,
) -> Destination:
    """Where a message is delivered from: ``{exchange}:{routing_key}:{queue}`` without what is empty or unknown.

    Routing key and queue stand once when they are equal. Args as for ``producer_destination``, and:

    Args:
        queue: the queue that it comes from; empty where the library does not tell it.
    """
    exchange, key, queue = [it if type(it) is str else _name(it) for it in (exchange, routing_key, queue)]
    return _destination((exchange, key) if key == queue else (exchange, key, queue), key, system, host, port)


def published(properties: Any, headers: Any, body: Any, native: Any) -> Message:
    """A message that goes out.

    Args:
        properties: whatever has the fields of AMQP's basic properties.
        headers: ours to write to; None where they are not what the library takes.
        body: its size is told where it is bytes or text.
        native: what a ``publish_hook`` is given.
    """
    id, conversation_id = getattr(properties, "message_id", None), getattr(properties, "correlation_id", None)
    return Message(
        headers=headers,
        id=None if id is None else calls.text(id),
        conversation_id=None if conversation_id is None else calls.text(conversation_id),
        body=body,
        native=native,
    )


def delivered(method: Any, properties: Any, body: Any, native: Any) -> Message:
    """A message that came in; ``method`` has the fields of AMQP's ``basic.deliver``. Others as for ``published``."""
    headers, sent_at, tag = properties.headers, properties.timestamp, method.delivery_tag
    id, conversation_id = properties.message_id, properties.correlation_id
    return Message(
        headers=headers,
        id=None if id is None else calls.text(id),
        conversation_id=None if conversation_id is None else calls.text(conversation_id),
        body=body,
        sent_at=sent_at.timestamp() if isinstance(sent_at, datetime) else sent_at,
        attempt=delivery_attempt(headers, method.redelivered),
        attributes=None if tag is None else {DELIVERY_TAG: tag},
        native=native,
    )


def delivery_attempt(headers: object, redelivered: bool | None) -> int | None:
    """Which delivery of a message this is, from 1, where that can be known.

    Classic queues only tell that there was one before. Quorum queues count: until RabbitMQ 4.2 every redelivery in
    ``x-delivery-count``; from 4.3 that counts failed ones alone (a ``basic_reject``, a lost channel, and not a
    ``basic_nack``), and ``x-acquired-count`` counts all. What was dead-lettered had others, in another queue.

    Args:
        headers: as delivered, whatever they are.
        redelivered: the delivery's own flag; ``None`` where there is none.
    """
    if type(headers) is not dict and not isinstance(headers, Mapping):
        headers = {}
    if "x-death" in headers:
        return None
    if redelivered is False:
        return 1
    earlier = headers.get("x-acquired-count", headers.get("x-delivery-count"))
    return earlier + 1 if isinstance(earlier, int) and earlier > 0 else None


def settlement(operation: str, channel: object, tag: Any, multiple: object = False) -> Settlement:
    """Of one delivery; where ``multiple`` is true of all up to it, and for the tag 0 of all that there are."""
    if operation == "reject" or not multiple:
        return Settlement(operation, (channel,), key=tag)
    return Settlement(operation, (channel,), picks=lambda it: it <= tag or not tag)


class TablePublication(Publication):
    """A publish of a message whose headers are an AMQP table, which has to fit into a frame.

    Args:
        destination: as in ``Publication``.
        message: as there. Its headers are None where they are not what the library takes; it says so.
        given: the caller's own headers.
        outgoing: what goes out with headers of ours: a copy of the caller's properties, or of the message.
        argument: its place and its name among the call's arguments.
    """

    library: ClassVar[str]

    def __init__(
        self, destination: Destination, message: Message, given: Any, outgoing: Any, argument: tuple[int, str]
    ) -> None:
        self.destination = destination
        self.message = message
        self._headers: Any = message.headers
        self._given = given
        self._argument = argument
        self.outgoing = outgoing

    def arguments(self, args: Arguments, kwargs: Options) -> tuple[Arguments, Options]:
        headers = self._headers
        if headers is None or not is_altered(headers, self._given):
            return args, kwargs
        if not surely_fits(headers, _LEAST_FRAME) and not surely_fits(headers, self.frame_max()):
            headers = self._fitted()
        self.outgoing.headers = headers
        return calls.replaced(*self._argument, self.outgoing, args, kwargs)

    def _fitted(self) -> dict[Any, Any]:
        frame_max = self.frame_max()

        def fits(headers: dict[Any, Any]) -> bool:
            self.outgoing.headers = headers
            return surely_fits(headers, frame_max) or fits_a_frame(frame_max, self.encoded)

        where = f"publishing with {self.library}"
        return fitted(self._headers, lambda: dict(self._given), fits, where, self.destination.name)

    @abstractmethod
    def frame_max(self) -> int:
        """In bytes, as client and broker have agreed; 0 where there is no limit, or none is known."""

    @abstractmethod
    def encoded(self) -> int:
        """The length in bytes of the encoded properties of what goes out."""


def surely_fits(headers: Mapping[Any, Any], frame_max: int) -> bool:
    """Whether properties with these headers are within the size of a frame, by far: told without encoding them.

    Args:
        headers: as they would go out.
        frame_max: in bytes, as client and broker have agreed; 0 where there is no limit, or none is known.
    """
    if not isinstance(frame_max, int) or not frame_max:
        return True
    characters = 0
    for name, value in headers.items():
        if type(name) is str and type(value) is str:  # as nearly all are
            characters += len(name) + len(value)
            continue
        if not isinstance(name, (str, bytes)):
            return False
        characters += len(name)
        if isinstance(value, (str, bytes)):
            characters += len(value)
        elif _is_small(value):
            characters += 4 * len(value)
        elif value is not None and not isinstance(value, int):
            return False  # tables may be nested
    return OTHER_PROPERTIES + 4 * characters + 16 * len(headers) < frame_max


def _is_small(value: Any) -> bool:
    """Whether it is an empty table, or a list of numbers: each Celery message has one of both."""
    if type(value) is dict:
        return not value
    return type(value) is list and all(it is None or type(it) is int for it in value)


def fits_a_frame(frame_max: int, encode: Callable[[], int]) -> bool:
    """Whether properties keep to the size of a frame; else the broker would close the connection.

    Args:
        frame_max: as for ``surely_fits``.
        encode: the length in bytes of the encoded properties. Where it raises, the library is about to say what is
            wrong with them.
    """
    try:
        return encode() + _AROUND_PROPERTIES <= frame_max
    except Exception as error:
        if guard.is_not_ours(error):
            raise
        return True


_AROUND_PROPERTIES = 20  # bytes of their frame
_LEAST_FRAME = 4096  # bytes that every client and broker have to agree to; most tables are within them
OTHER_PROPERTIES = 13 * 256
"""As many bytes as the other basic properties have at most, encoded."""


def _name(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if isinstance(value, str) else ""


def _is_made_up(name: str) -> bool:
    return name.startswith(SERVER_NAMED) or _CLIENT_NAMED.fullmatch(name) is not None


@remembered
def _destination(
    parts: tuple[str, ...], routing_key: str, system: str, host: str | None, port: int | None, /
) -> Destination:
    lasting = [part for part in parts if part and not _is_made_up(part)]
    name = ":".join(filter(None, parts))
    is_made_up = any(map(_is_made_up, parts))
    return Destination(
        system=system,
        name=name or "amq.default",
        # A name that was made up is of high cardinality; what stands beside it is not.
        template=":".join(lasting) or None if is_made_up else None,
        # Queues of such names go away with the connection that declared them.
        temporary=is_made_up,
        anonymous=is_made_up,
        server_address=host,
        server_port=port,
        attributes={ROUTING_KEY: routing_key} if routing_key and system == SYSTEM else {},
    )
