"""RabbitMQ's queues. A message is seen only by its delivery: it is taken, and given back; that has effects.

Streams are read without any.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from queueprop.cli.peek.redis import sent_at_of_celery
from queueprop.cli.peek.sight import Sight, Waiting, seconds_of, text_of
from queueprop.cli.refusal import Refused, reason
from queueprop.cli.urls import BrokerURL

_TIMEOUT = 10.0
_LONGEST_STEP = 3.0  # seconds that a stream may take for its next message
_NOT_IMPLEMENTED = 540

EFFECTS = (
    "RabbitMQ shows a message only by delivering it. Up to {limit} of {total} in {queue!r} are taken and given "
    "back: consumers do not get them meanwhile, afterwards they are marked as redelivered, and a quorum queue counts "
    "an attempt, which dead-letters what is at its delivery limit. A stream has none of that."
)


class NotAllowed(Exception):
    """Looking has effects, and nobody has said yes. The text says which."""


def look(broker: BrokerURL, queue: str, limit: int, is_allowed: bool, say: Callable[[str], object]) -> Sight:
    """What is ready in the queue, the next ones first.

    Args:
        is_allowed: whether messages may be taken and given back.
        say: is told the effects before there are any.

    Raises NotAllowed, where there is anything to take and it may not be; Refused where the queue is not there, the
    broker says no, and without pika.
    """
    try:
        import pika
        from pika.exceptions import ChannelClosedByBroker, ConnectionClosedByBroker
    except ModuleNotFoundError:
        raise Refused('peek needs pika for amqp:// URLs: pip install "queueprop[pika]"') from None
    try:
        parameters = pika.URLParameters(broker.url)
        parameters.socket_timeout = parameters.blocked_connection_timeout = _TIMEOUT
        with _connected(pika, parameters) as channel:
            total = channel.queue_declare(queue, passive=True).method.message_count
            if not total and not is_allowed:  # of a stream the count comes late
                return Sight("RabbitMQ", [], 0)
            effects = EFFECTS.format(limit=limit, total=total, queue=queue)
            if not is_allowed:
                raise NotAllowed(effects)
            say(effects)
            try:
                return Sight("RabbitMQ", _taken(channel, queue, limit), total)
            except (ChannelClosedByBroker, ConnectionClosedByBroker) as error:
                if error.reply_code != _NOT_IMPLEMENTED:
                    raise
        with _connected(pika, parameters) as channel:
            found = _streamed(channel, queue, limit)
            return Sight("RabbitMQ, a stream", found, max(total, len(found)))
    except NotAllowed:
        raise
    except Exception as error:  # pika's have no class in common: those of its connector are none of AMQPError
        raise Refused(f"{queue!r} at {broker.shown} cannot be read: {reason(error)}") from None


@contextlib.contextmanager
def _connected(pika: Any, parameters: Any) -> Any:
    connection = pika.BlockingConnection(parameters)
    try:
        yield connection.channel()
    finally:
        if connection.is_open:
            connection.close()


def _taken(channel: Any, queue: str, limit: int) -> list[Waiting]:
    """All are given back at once, in their order; where the connection is lost before that, RabbitMQ does it."""
    found: list[Waiting] = []
    last: int | None = None
    try:
        for _ in range(limit):
            method, properties, body = channel.basic_get(queue)
            if method is None:
                break
            last = method.delivery_tag
            found.append(_waiting(method, properties, body))
    finally:
        if last is not None and channel.is_open:
            channel.basic_nack(last, multiple=True, requeue=True)
    return found


def _streamed(channel: Any, queue: str, limit: int) -> list[Waiting]:
    """From the first message that the stream has kept. An ack only asks for more."""
    found: list[Waiting] = []
    channel.basic_qos(prefetch_count=limit)
    deliveries = channel.consume(
        queue, arguments={"x-stream-offset": "first"}, inactivity_timeout=_LONGEST_STEP
    )
    while len(found) < limit:
        method, properties, body = next(deliveries)
        if method is None:
            break
        found.append(_waiting(method, properties, body))
    return found


def _waiting(method: Any, properties: Any, body: bytes) -> Waiting:
    headers = properties.headers if isinstance(properties.headers, Mapping) else {}
    return Waiting(
        text_of(properties.message_id) or text_of(headers.get("id")),
        text_of(properties.type) or text_of(headers.get("task")) or text_of(method.routing_key),
        headers,
        sender=text_of(properties.app_id) or text_of(properties.user_id) or text_of(headers.get("origin")),
        sent_at=sent_at_of_celery(headers) or seconds_of(properties.timestamp),
        place="redelivered" if method.redelivered else "",
        body=body,
    )
