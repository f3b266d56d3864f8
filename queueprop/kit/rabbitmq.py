"""What every adapter shares that speaks to RabbitMQ: the names of destinations, and the count of deliveries.

By the conventions for messaging a name is made of what is there of exchange, routing key and queue, with colons
between.
"""

from __future__ import annotations

from collections.abc import Mapping

from queueprop.engine.message import Destination, remembered

SYSTEM = "rabbitmq"
ROUTING_KEY = "messaging.rabbitmq.destination.routing_key"
DELIVERY_TAG = "messaging.rabbitmq.message.delivery_tag"

# Names that the server makes up: of queues without a name, and for direct replies.
SERVER_NAMED = ("amq.gen-", "amq.rabbitmq.reply-to")


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


@remembered
def _destination(
    parts: tuple[str, ...], routing_key: str, system: str, host: str | None, port: int | None, /
) -> Destination:
    lasting = [part for part in parts if part and not part.startswith(SERVER_NAMED)]
    name = ":".join(filter(None, parts))
    is_made_up = any(part.startswith(SERVER_NAMED) for part in parts)
    return Destination(
        system=system,
        name=name or "amq.default",
        # A name that the server made up is of high cardinality; what stands beside it is not.
        template=":".join(lasting) or None if is_made_up else None,
        # Queues of such names go away with the connection that declared them.
        temporary=is_made_up,
        anonymous=is_made_up,
        server_address=host,
        server_port=port,
        attributes={ROUTING_KEY: routing_key} if routing_key and system == SYSTEM else {},
    )
