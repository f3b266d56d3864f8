"""What every adapter shares that speaks to RabbitMQ: names of destinations, the count of deliveries, sizes of frames.

By the conventions for messaging a name is made of what is there of exchange, routing key and queue, with colons
between.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from queueprop import guard
from queueprop.engine.message import Destination, remembered

SYSTEM = "rabbitmq"
ROUTING_KEY = "messaging.rabbitmq.destination.routing_key"
DELIVERY_TAG = "messaging.rabbitmq.message.delivery_tag"

# Names that the server makes up: of queues without a name, and for direct replies.
SERVER_NAMED = ("amq.gen-", "amq.rabbitmq.reply-to")

# And what a robust channel of aio-pika makes up, so that it can declare the queue again.
_CLIENT_NAMED = re.compile("amq_[0-9a-f]{32}")


def producer_destination(
    exchange: str, routing_key: str, system: str = SYSTEM, host: str | None = None, port: int | None = None
) -> Destination:
    """Where a message is published to: ``{exchange}:{routing_key}``, or the one that is there; else ``amq.default``.

    Args:
        exchange: its name; empty for the default exchange.
        routing_key: as published.
        system: another broker, where a library gives it the exchanges of RabbitMQ.
        host: of the broker, as the client was told it.
        port: its port.
    """
    return _destination((exchange, routing_key), routing_key, system, host, port)


def consumer_destination(
    exchange: str,
    routing_key: str,
    queue: str,
    system: str = SYSTEM,
    host: str | None = None,
    port: int | None = None,
) -> Destination:
    """Where a message is delivered from: ``{exchange}:{routing_key}:{queue}`` without what is empty or unknown.

    Routing key and queue stand once when they are equal. Args as for ``producer_destination``, and:

    Args:
        queue: the queue that it comes from; empty where the library does not tell it.
    """
    parts = (exchange, routing_key) if routing_key == queue else (exchange, routing_key, queue)
    return _destination(parts, routing_key, system, host, port)


def delivery_attempt(headers: object, redelivered: bool | None) -> int | None:
    """Which delivery of a message this is, from 1, where that can be known.

    Classic queues only tell that there was one before. Quorum queues count: until RabbitMQ 4.2 every redelivery in
    ``x-delivery-count``; from 4.3 that counts failed ones alone (a ``basic_reject``, a lost channel, and not a
    ``basic_nack``), and ``x-acquired-count`` counts all. What was dead-lettered had others, in another queue.

    Args:
        headers: as delivered, whatever they are.
        redelivered: the delivery's own flag; ``None`` where there is none.
    """
    if not isinstance(headers, Mapping):
        headers = {}
    if "x-death" in headers:
        return None
    if redelivered is False:
        return 1
    earlier = headers.get("x-acquired-count", headers.get("x-delivery-count"))
    return earlier + 1 if isinstance(earlier, int) and earlier > 0 else None


def fits_a_frame(headers: Mapping[Any, Any], frame_max: int, encode: Callable[[], int]) -> bool:
    """Whether properties with these headers keep to the size of a frame; else the broker would close the connection.

    Args:
        headers: as they would go out.
        frame_max: in bytes, as client and broker have agreed; 0 where there is no limit, or none is known.
        encode: the length in bytes of the encoded properties. Asked only where they may be near the limit; where it
            raises, the library is about to say what is wrong with them.
    """
    if not isinstance(frame_max, int) or not frame_max or _at_most(headers) < frame_max:
        return True
    try:
        return encode() + _AROUND_PROPERTIES <= frame_max
    except Exception as error:
        if guard.is_not_ours(error):
            raise
        return True


def _at_most(headers: Mapping[Any, Any]) -> int:
    """An upper bound of the encoded size, which costs next to nothing; beyond every limit where tables are nested."""
    size = _OTHER_PROPERTIES
    for name, value in headers.items():
        if not isinstance(name, (str, bytes)):
            return _UNKNOWN
        if isinstance(value, (str, bytes)):
            size += 4 * (len(name) + len(value)) + 16
        else:
            size += 4 * len(name) + (16 if value is None or isinstance(value, int) else _UNKNOWN)
    return size


_AROUND_PROPERTIES = 20  # bytes of their frame
_OTHER_PROPERTIES = 13 * 256
_UNKNOWN = 1 << 40


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
