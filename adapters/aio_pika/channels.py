"""What is known of aio-pika's queues and channels, and of the broker that they speak to."""

from __future__ import annotations

from typing import Any

from queueprop.kit import rabbitmq
from queueprop.kit.destinations import Destinations
from queueprop.kit.library import Source


def source_of(given: Any) -> Source:
    """Of a queue or its iterator."""
    queue = getattr(given, "_amqp_queue", given)
    return Source(queue, getattr(queue, "name", None))


def channel_of(message: Any) -> Any:
    """aiormq's channel; ``message.channel`` raises once that is closed."""
    return getattr(message, "_IncomingMessage__channel", None)


def broker_of(channel: Any) -> tuple[str, str | None, int | None]:
    """``messaging.system``, host and port, of a channel of aiormq's or of aio-pika's, which keeps its connection to
    itself.
    """
    url = getattr(getattr(channel, "connection", None) or getattr(channel, "_connection", None), "url", None)
    if url is None:
        return rabbitmq.SYSTEM, None, None
    return rabbitmq.SYSTEM, url.host, url.port or (5671 if url.scheme == "amqps" else 5672)


published_to = Destinations(
    lambda channel, exchange, key: rabbitmq.producer_destination(exchange, key, *broker_of(channel))
).of
