"""What an operation is about: a ``Destination`` (static, built once) and a ``Message`` (one delivery)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import SpanKind
from opentelemetry.util.types import AttributeValue

from queueprop.engine import semconv

Attributes = Mapping[str, AttributeValue]


@dataclass(frozen=True)
class Destination:
    """A queue, topic or exchange, as the telemetry calls it. Build it once and keep it: it caches its attributes.

    Args:
        system: ``messaging.system``: ``rabbitmq``, ``kafka``, or the name that its users would search for.
        name: the destination's name; ``None`` where it has none.
        template: a low-cardinality form of the name (``orders.{region}``); it then names the spans.
        temporary: the destination goes away with its connection; its name is kept out of span names and metrics.
        anonymous: the broker made its name up; likewise.
        partition_id: the partition within the destination.
        consumer_group: the group that consumes.
        client_id: the client that publishes or consumes.
        server_address: host of the broker, as the client was told it.
        server_port: its port.
        attributes: what else is the same for every message (``messaging.rabbitmq.destination.routing_key``).
    """

    system: str
    name: str | None = None
    template: str | None = None
    temporary: bool = False
    anonymous: bool = False
    partition_id: str | None = None
    consumer_group: str | None = None
    client_id: str | None = None
    server_address: str | None = None
    server_port: int | None = None
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict, hash=False)
    _labels: dict[tuple[str, str, SpanKind | None], Labels] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def labels(self, kind: str, name: str, span_kind: SpanKind | None = None) -> Labels:
        """Those of the operation of this type (``semconv.SEND``...) and name (``publish``, ``ack``...) here.

        ``span_kind`` is the type's own unless given: a send beside create spans is a CLIENT.
        """
        key = (kind, name, span_kind)
        known = self._labels.get(key)
        if known is None:
            known = self._labels[key] = Labels(self, kind, name, span_kind or _KINDS[kind])
        return known

    @property
    def label(self) -> str | None:
        """What stands behind the operation in a span's name: never a name of high cardinality."""
        if self.template:
            return self.template
        if self.name and not self.temporary and not self.anonymous:
            return self.name
        if self.server_address and self.server_port:
            return f"{self.server_address}:{self.server_port}"
        return self.server_address


@dataclass(slots=True)
class Message:
    """One message of one publish or delivery. Everything but its headers is optional.

    Args:
        headers: a mapping or a list of pairs. A publish writes into it in place, so it must be yours.
        id: the message's own identifier.
        conversation_id: what ties it to others (RabbitMQ's correlation id).
        body: only looked at for its size, and only with ``Settings(body_size=True)``.
        body_size: that size in bytes, where it is known without the body.
        sent_at: when it was published, in seconds since the epoch (UTC).
        delay: the seconds for which it was meant to wait; they do not count as time in the queue.
        attempt: which delivery of the message this is, from 1.
        attributes: further span attributes of this message alone.
        native: the library's own message; hooks are given it.
        describe: gives further span attributes from ``native``; called only when the span is recorded.
    """

    headers: object = None
    id: str | None = None
    conversation_id: str | None = None
    body: bytes | str | None = None
    body_size: int | None = None
    sent_at: float | None = None
    delay: float | None = None
    attempt: int | None = None
    attributes: Mapping[str, AttributeValue] | None = None
    native: Any = None
    describe: Callable[[Any], Mapping[str, AttributeValue]] | None = None
    process_context: Context | None = field(default=None, init=False, repr=False, compare=False)
    """The context of its process span, once there is one: a later settle is its child, from any thread."""


_KINDS = {
    semconv.CREATE: SpanKind.PRODUCER,
    semconv.SEND: SpanKind.PRODUCER,
    semconv.RECEIVE: SpanKind.CLIENT,
    semconv.PROCESS: SpanKind.CONSUMER,
    semconv.SETTLE: SpanKind.CLIENT,
}

# They talk to no broker, so there is nobody at the other end.
_WITHOUT_PEER = (semconv.CREATE, semconv.PROCESS)
_PEER = (semconv.NETWORK_PEER_ADDRESS, semconv.NETWORK_PEER_PORT)


class Labels:
    """What all spans and measurements of one operation on one destination have in common, computed once."""

    __slots__ = ("attributes", "destination", "kind", "metric_attributes", "name", "span_kind", "span_name")

    def __init__(self, destination: Destination, kind: str, name: str, span_kind: SpanKind) -> None:
        self.destination = destination
        self.kind = kind
        self.name = name
        self.span_kind = span_kind
        label = destination.label
        self.span_name = f"{name} {label}" if label else name
        self.metric_attributes = _metric_attributes(destination, name)
        self.attributes = _span_attributes(destination, kind, name)


def _span_attributes(destination: Destination, kind: str, name: str) -> dict[str, AttributeValue]:
    optional: dict[str, AttributeValue | None] = {
        semconv.DESTINATION_NAME: destination.name,
        semconv.DESTINATION_TEMPLATE: destination.template,
        semconv.DESTINATION_TEMPORARY: destination.temporary or None,
        semconv.DESTINATION_ANONYMOUS: destination.anonymous or None,
        semconv.DESTINATION_PARTITION_ID: destination.partition_id,
        semconv.CONSUMER_GROUP_NAME: destination.consumer_group,
        semconv.CLIENT_ID: destination.client_id,
        semconv.SERVER_ADDRESS: destination.server_address,
        semconv.SERVER_PORT: destination.server_port,
    }
    further = destination.attributes
    if kind in _WITHOUT_PEER:
        further = {key: value for key, value in further.items() if key not in _PEER}
    return {
        semconv.SYSTEM: destination.system,
        semconv.OPERATION_NAME: name,
        semconv.OPERATION_TYPE: kind,
        **{key: value for key, value in optional.items() if value is not None},
        **further,
    }


def _metric_attributes(destination: Destination, name: str) -> dict[str, AttributeValue]:
    low_cardinality = not destination.temporary and not destination.anonymous and not destination.template
    optional: dict[str, AttributeValue | None] = {
        semconv.DESTINATION_NAME: destination.name if low_cardinality else None,
        semconv.DESTINATION_TEMPLATE: destination.template,
        semconv.DESTINATION_PARTITION_ID: destination.partition_id,
        semconv.CONSUMER_GROUP_NAME: destination.consumer_group,
        semconv.SERVER_ADDRESS: destination.server_address,
        semconv.SERVER_PORT: destination.server_port,
    }
    return {
        semconv.SYSTEM: destination.system,
        semconv.OPERATION_NAME: name,
        **{key: value for key, value in optional.items() if value is not None},
    }
