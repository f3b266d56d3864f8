"""What FastStream's commands and messages are at each kind of broker: destinations, headers, addresses.

Which kind it is tells the module of FastStream's own producer or message. What lies behind these is reached for by
name, in every version's place, and where it is not there the telemetry has one attribute less.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from opentelemetry.util.types import AttributeValue

from queueprop.engine import semconv
from queueprop.engine.message import Destination, Message, remembered
from queueprop.kit import kafka, rabbitmq, redis
from queueprop.kit.calls import text

Address = tuple[str | None, int | None]


class Command(NamedTuple):
    """One publish call of FastStream's, in whatever version."""

    destination: object
    headers: Any
    correlation_id: object
    bodies: Sequence[Any]
    exchange: Any = None
    key: Any = None
    message_id: Any = None
    keys: Sequence[Any] = ()
    """Those of a batch's messages, where they may have their own."""
    is_reply: bool = True
    """Whether it answers a request; before FastStream 0.6 that is not told."""


class Broker:
    """One kind of broker. This one is any that has none of its own below."""

    ends_connections = False
    """Whether exceeding its limit ends the connection, so that a message's size is looked at before: ``fits``."""

    def __init__(self, system: str) -> None:
        self.system = system

    # Publishing

    def publishes_to(self, producer: Any, command: Command) -> Destination:
        name, address = text(command.destination), self.address_of(producer)
        if name is not None and self.is_made_up(name, command):
            return _made_up(self.system, name, address)
        return _destination(self.system, name, None, None, *address)

    def is_made_up(self, name: str, command: Command) -> bool:
        """Whether who asked has made up this name, for the one reply to a request."""
        return False

    def address_of(self, producer: Any) -> Address:
        return None, None

    def published(self, command: Command, headers: Any, body: Any) -> Message:
        return Message(
            headers=headers,
            id=text(command.message_id),
            conversation_id=text(command.correlation_id),
            body=body if isinstance(body, (bytes, str)) else None,
            native=command,
        )

    def takes_headers(self, producer: Any) -> bool:
        """Whether it can send a message with headers; else FastStream refuses one that has any."""
        return True

    def fits(self, producer: Any, body: Any, headers: Mapping[str, Any]) -> bool:
        """Whether a message with these headers is within the broker's limit."""
        return True

    def is_too_large(self, error: Exception) -> bool:
        """Whether the client has refused a message for its size, headers included, and sent nothing."""
        return False

    def failure_of(self, answer: Any) -> tuple[str, str] | None:
        """``error.type`` and description of a publish that went wrong, although nothing was raised."""
        return None

    def told_by(self, answer: Any) -> Mapping[str, AttributeValue]:
        """What the call's answer tells of the message."""
        return {}

    # Consuming

    def consumed_from(self, raw: Any, consumer: Any, subscriber: Any) -> Destination:
        address = self.delivered_by(raw, subscriber)
        return _destination(
            self.system,
            self.name_of(raw),
            self.template_of(raw, subscriber),
            self.group_of(subscriber),
            *address,
        )

    def name_of(self, raw: Any) -> str | None:
        return None

    def template_of(self, raw: Any, subscriber: Any) -> str | None:
        """The pattern that was subscribed to: of the names that match it there may be any number."""
        return None

    def group_of(self, subscriber: Any) -> str | None:
        return None

    def delivered_by(self, raw: Any, subscriber: Any) -> Address:
        return None, None

    def message(self, raw: Any, headers: Any, body: Any) -> Message:
        return Message(headers=headers, body=body)


class _Kafka(Broker):
    """By aiokafka."""

    def publishes_to(self, producer: Any, command: Command) -> Destination:
        told = kafka.told_to(_reach(_client_of(producer), "client"))
        return kafka.destination(command.destination, None, None, *told)

    def published(self, command: Command, headers: Any, body: Any) -> Message:
        message = super().published(command, headers, body)
        message.attributes = kafka.key_attributes(command.key) or None
        return message

    def is_too_large(self, error: Exception) -> bool:
        return type(error).__name__ in ("MessageSizeTooLargeError", "BatchBufferOverflowException")

    def told_by(self, answer: Any) -> Mapping[str, AttributeValue]:
        partition, offset = getattr(answer, "partition", None), getattr(answer, "offset", None)
        if not isinstance(partition, int):
            return {}
        place = {semconv.DESTINATION_PARTITION_ID: str(partition)}
        return {**place, kafka.OFFSET: offset} if isinstance(offset, int) else place

    def consumed_from(self, raw: Any, consumer: Any, subscriber: Any) -> Destination:
        group = text(_reach(consumer, "_group_id") or _reach(subscriber, "group_id"))
        return kafka.destination(raw.topic, raw.partition, group, *kafka.told_to(_reach(consumer, "_client")))

    def message(self, raw: Any, headers: Any, body: Any) -> Message:
        return _record(raw.headers, raw.offset, raw.key, raw.value, raw.timestamp)


class _Confluent(_Kafka):
    """By confluent-kafka, whose records have methods where aiokafka's have fields."""

    def publishes_to(self, producer: Any, command: Command) -> Destination:
        client_id, _, address = _configured(_client_of(producer))
        return kafka.destination(command.destination, None, None, client_id, *address)

    def is_too_large(self, error: Exception) -> bool:
        told: Any = error.args[0] if error.args else None
        name = getattr(told, "name", None)  # of a KafkaError
        return callable(name) and name() == "MSG_SIZE_TOO_LARGE"

    def told_by(self, answer: Any) -> Mapping[str, AttributeValue]:
        if not callable(getattr(answer, "partition", None)):
            return {}
        place = {semconv.DESTINATION_PARTITION_ID: str(answer.partition())}
        return {**place, kafka.OFFSET: answer.offset()}

    def consumed_from(self, raw: Any, consumer: Any, subscriber: Any) -> Destination:
        client_id, group, address = _configured(consumer)
        return kafka.destination(raw.topic(), raw.partition(), group, client_id, *address)

    def message(self, raw: Any, headers: Any, body: Any) -> Message:
        _, timestamp = raw.timestamp()
        return _record(raw.headers(), raw.offset(), raw.key(), raw.value(), timestamp)


class _Rabbit(Broker):
    ends_connections = True

    def publishes_to(self, producer: Any, command: Command) -> Destination:
        exchange: Any = getattr(command.exchange, "name", command.exchange)
        return rabbitmq.producer_destination(
            "" if exchange == "default" else exchange,
            command.destination,
            self.system,
            *_at(_reach(_connection_of(producer), "url")),
        )

    def fits(self, producer: Any, body: Any, headers: Mapping[str, Any]) -> bool:
        tune = _reach(_connection_of(producer), "transport", "connection", "connection_tune")
        frame_max = _reach(tune, "frame_max") or 0
        return rabbitmq.surely_fits(headers, frame_max) or rabbitmq.fits_a_frame(
            frame_max, lambda: rabbitmq.OTHER_PROPERTIES + len(_encoded(headers))
        )

    def failure_of(self, answer: Any) -> tuple[str, str] | None:
        returned = getattr(answer, "delivery", None)  # a message that came back, unless `on_return_raises`
        if returned is None:
            return None
        reason = str(returned.reply_text)
        return reason, f"{reason} for routing key {returned.routing_key!r}"

    def consumed_from(self, raw: Any, consumer: Any, subscriber: Any) -> Destination:
        queue = _reach(subscriber, "_queue_obj", "name") or _reach(subscriber, "queue", "name")
        address = _at(_reach(raw, "_IncomingMessage__channel", "connection", "url"))
        return rabbitmq.consumer_destination(raw.exchange, raw.routing_key, queue, self.system, *address)

    def message(self, raw: Any, headers: Any, body: Any) -> Message:
        return rabbitmq.delivered(raw, raw, raw.body, None)


class _Redis(Broker):
    """Lists, streams and channels: FastStream's own envelope has the headers."""

    def is_made_up(self, name: str, command: Command) -> bool:
        return command.is_reply and _NUID(name) is not None

    def address_of(self, producer: Any) -> Address:
        connection = _reach(producer, "_connection")
        return redis.address_of(_reach(connection, "client") or connection)

    def name_of(self, raw: Any) -> str | None:
        return text(raw.get("channel"))

    def delivered_by(self, raw: Any, subscriber: Any) -> Address:
        return redis.address_of(_reach(subscriber, "_client"))

    def template_of(self, raw: Any, subscriber: Any) -> str | None:
        pattern = raw.get("pattern")
        return pattern.decode(errors="replace") if isinstance(pattern, bytes) else text(pattern)

    def group_of(self, subscriber: Any) -> str | None:
        return text(_reach(subscriber, "stream_sub", "group"))

    def message(self, raw: Any, headers: Any, body: Any) -> Message:
        ids: Any = raw.get("message_ids") or ()
        id = ids[0].decode() if len(ids) == 1 and isinstance(ids[0], bytes) else None
        sent_at = int(id.partition("-")[0]) / 1000 if id is not None else None  # a stream's ids are times
        return Message(headers=headers, id=id, body=body, sent_at=sent_at)


class _Nats(Broker):
    ends_connections = True

    def is_made_up(self, name: str, command: Command) -> bool:
        return name.startswith("_INBOX.")

    def address_of(self, producer: Any) -> Address:
        return _connected_to(_nats_of(producer))

    def fits(self, producer: Any, body: Any, headers: Mapping[str, Any]) -> bool:
        room = _reach(_nats_of(producer), "max_payload")
        if not isinstance(room, int) or not isinstance(body, (bytes, str)):
            return True
        size = len(body) if isinstance(body, bytes) else len(body.encode())
        lines = (len(name) + len(str(value).encode()) + 4 for name, value in headers.items())
        return size + sum(lines) + _NATS_S_OWN <= room

    def name_of(self, raw: Any) -> str | None:
        return text(_reach(raw, "subject"))  # what watches a bucket is given something else

    def template_of(self, raw: Any, subscriber: Any) -> str | None:
        subject = _reach(subscriber, "subject")
        subject = text(_reach(subject, "template")) or text(subject)
        return subject if subject and not _NO_PATTERN(subject) else None

    def delivered_by(self, raw: Any, subscriber: Any) -> Address:
        return _connected_to(_reach(raw, "_client"))

    def message(self, raw: Any, headers: Any, body: Any) -> Message:
        is_stream_s = (text(_reach(raw, "reply")) or "").startswith("$JS.ACK")
        told = raw.metadata if is_stream_s else None
        return Message(
            headers=_reach(raw, "headers"),
            body=body if body is not None else _reach(raw, "data"),
            attempt=None if told is None else told.num_delivered,
            sent_at=None if told is None else told.timestamp.timestamp(),
        )


class _Mqtt(Broker):
    def takes_headers(self, producer: Any) -> bool:
        """There are none before MQTT 5.0."""
        return not any("V311" in it.__name__ for it in type(producer).__mro__)

    def is_made_up(self, name: str, command: Command) -> bool:
        return name.startswith("_zmqtt/reply/")

    def name_of(self, raw: Any) -> str | None:
        return text(_reach(raw, "topic"))

    def template_of(self, raw: Any, subscriber: Any) -> str | None:
        template = text(_reach(subscriber, "address", "template"))
        return template if template and not _NO_TOPIC_FILTER(template) else None


_NO_PATTERN = re.compile(r"[^*>{]*").fullmatch
_NO_TOPIC_FILTER = re.compile(r"[^+#{]*").fullmatch
_NUID = re.compile(r"[0-9A-Za-z]{22}").fullmatch
"""The id that FastStream makes up for the channel of a reply."""

_NATS_S_OWN = 256
"""Bytes that the version line, and the headers of FastStream's own, take at most."""

_BROKERS: Mapping[str, Broker] = {
    "kafka": _Kafka(kafka.SYSTEM),
    "confluent": _Confluent(kafka.SYSTEM),
    "rabbit": _Rabbit(rabbitmq.SYSTEM),
    "redis": _Redis("redis"),
    "nats": _Nats("nats"),
    "mqtt": _Mqtt("mqtt"),
}
_OTHER = Broker("faststream")


def broker_of(native: object) -> Broker:
    """Of a producer, a message or a subscriber of FastStream's, or of a subclass of the user's."""
    return _broker_of(type(native))  # type: ignore[arg-type]


@functools.lru_cache(maxsize=256)
def _broker_of(kind: type) -> Broker:
    for it in kind.__mro__:
        package, _, rest = it.__module__.partition(".")
        if package == "faststream":
            found = _BROKERS.get(rest.partition(".")[0])
            if found is not None:
                return found
    return _OTHER


# Reading


def _record(headers: Any, offset: Any, key: Any, value: Any, timestamp: Any) -> Message:
    attributes: dict[str, AttributeValue] = {kafka.OFFSET: offset, **kafka.key_attributes(key)}
    if value is None:
        attributes[kafka.TOMBSTONE] = True
    return Message(
        headers=headers,
        body=value,
        sent_at=timestamp / 1000 if isinstance(timestamp, int) and timestamp >= 0 else None,
        attributes=attributes,
    )


@remembered
def _destination(
    system: str,
    name: str | None,
    template: str | None,
    group: str | None,
    host: str | None,
    port: int | None,
    /,
) -> Destination:
    return Destination(system, name, template, consumer_group=group, server_address=host, server_port=port)


def _made_up(system: str, name: str, address: Address) -> Destination:
    """Of such a name, which span names and metrics are without. It is not remembered: no other message goes there."""
    host, port = address
    return Destination(system, name, temporary=True, anonymous=True, server_address=host, server_port=port)


def _reach(found: Any, *names: str) -> Any:
    """What lies so deep; None where it does not, or is not there yet."""
    for name in names:
        try:
            found = getattr(found, name, None)
        except Exception:  # FastStream's own states raise what they like before they are connected
            return None
    return found


def _client_of(producer: Any) -> Any:
    """The client's producer, which FastStream keeps in a state of its own since 0.6. (That for confluent-kafka has the
    C client as ``producer``, too, which tells nothing.)
    """
    kept = _reach(producer, "_producer")
    return kept if _reach(kept, "config") is not None else _reach(kept, "producer") or kept


def _connection_of(producer: Any) -> Any:
    manager = _reach(producer, "declarer", "_RabbitDeclarerImpl__channel_manager")
    connection = _reach(manager, "_ChannelManagerImpl__connection", "connection")
    return connection or _reach(producer, "_channel", "_connection")


def _nats_of(producer: Any) -> Any:
    """The client, with JetStream or without."""
    names = ("_NatsFastProducerImpl__state", "_NatsJSFastProducer__state")
    state = next(filter(None, (_reach(producer, name) for name in names)), None)
    client = _reach(state, "connection") or _reach(producer, "_connection")
    return _reach(client, "_nc") or client


def _encoded(headers: Mapping[str, Any]) -> bytes:
    """As aio-pika's own library does it."""
    from pamqp import encode

    return encode.field_table(dict(headers))


def _configured(client: Any) -> tuple[str | None, str | None, Address]:
    """The client's id, group, host and port, as librdkafka was told them."""
    config = _reach(client, "config")
    config = config if isinstance(config, Mapping) else {}
    servers = config.get("bootstrap.servers")
    address = kafka.address(servers if isinstance(servers, str) else "")
    return text(config.get("client.id")), text(config.get("group.id")), address


def _at(url: Any) -> Address:
    """Of an AMQP URL, as aio-pika keeps it."""
    if not isinstance(_reach(url, "host"), str):  # none, or a double in a `TestBroker`
        return None, None
    return url.host, url.port or (5671 if url.scheme == "amqps" else 5672)


def _connected_to(client: Any) -> Address:
    url = _reach(client, "connected_url")
    host = _reach(url, "hostname")
    return (host, url.port) if isinstance(host, str) else (None, None)
