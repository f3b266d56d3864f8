"""What an operation is about: a ``Destination`` (static, built once) and a ``Message`` (one delivery)."""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ParamSpec

from opentelemetry.context import Context
from opentelemetry.trace import SpanKind
from opentelemetry.util.types import AttributeValue

from queueprop.engine import semconv

Attributes = Mapping[str, AttributeValue]
P = ParamSpec("P")

LONGEST_VALUE = 1024
"""Characters of a text from outside (a name, an id, a key, a header) that become a value of an attribute."""


@dataclass(frozen=True)
class Destination:
    """A queue, topic or exchange, as the telemetry calls it. Build it once and keep it: it caches its attributes.

    Args:
        system: ``messaging.system``: ``rabbitmq``, ``kafka``, or the name that its users would search for.
        name: the destination's name; ``None`` where it has none. Telemetry has its first 1,024 characters.
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
    _labels: dict[tuple[str, str, SpanKind | None, Templates | None], Labels] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def labels(
        self, kind: str, name: str, span_kind: SpanKind | None = None, templates: Templates | None = None
    ) -> Labels:
        """Those of the operation of this type (``semconv.SEND``...) and name (``publish``, ``ack``...) here.

        ``span_kind`` is the type's own unless given: a send beside create spans is a CLIENT. ``templates`` are those of
        the settings, where they have any.
        """
        key = (kind, name, span_kind, templates)
        known = self._labels.get(key)
        if known is None:
            template = templates.of(self) if templates is not None else self.template
            known = Labels(self, kind, name, span_kind or _KINDS[kind], template)
            if len(self._labels) < _MOST_LABELS:
                self._labels[key] = known
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

    def __getstate__(self) -> dict[str, Any]:
        # Copied or pickled without what it has cached, which belongs to this process.
        return {**self.__dict__, "_labels": {}}


class Templates:
    """``Settings(destination_templates=...)``: what the names of destinations stand for, by their patterns."""

    def __init__(self, patterns: Iterable[tuple[str, str]]) -> None:
        self._patterns = [
            (re.compile(fnmatch.translate(pattern)).match, template) for pattern, template in patterns
        ]

    def of(self, destination: Destination) -> str | None:
        """The template of the first pattern that matches the destination's name; else the destination's own."""
        for matches, template in self._patterns:
            if matches(destination.name or ""):
                return template
        return destination.template


def bounded(value: AttributeValue) -> AttributeValue:
    """A value from outside, as that of an attribute: of a text its first 1,024 characters."""
    return value[:LONGEST_VALUE] if isinstance(value, str) and len(value) > LONGEST_VALUE else value


def remembered(make: Callable[P, Destination]) -> Callable[P, Destination]:
    """Keeps the destinations that a function of texts has made: the latest 1,000 at most, and none of a long name.

    A message may have a destination of its own (a reply queue, a routing key with an id), so what is kept has a bound.
    """
    kept: dict[tuple[object, ...], Destination] = {}

    @functools.wraps(make)
    def find(*key: P.args, **none: P.kwargs) -> Destination:
        try:
            return kept[key]
        except KeyError:
            destination = make(*key, **none)
        if len(destination.name or "") <= LONGEST_VALUE:
            if len(kept) >= _MOST_DESTINATIONS:
                _forget(kept)  # those that are in use are soon made again
            kept[key] = destination
        return destination

    return find


def _forget(kept: dict[tuple[object, ...], Destination]) -> None:
    gone = list(kept.values())
    kept.clear()
    for destination in gone:
        # It and its operations know each other: together they would wait for the garbage collector.
        destination._labels.clear()


_MOST_DESTINATIONS = 1000
_MOST_LABELS = 32  # of one destination


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

    def __getstate__(self) -> dict[str, Any]:
        # Copied or pickled without the context of its handling, which belongs to this process.
        return {one.name: getattr(self, one.name) for one in fields(self) if one.init}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        self.process_context = None


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

    __slots__ = (
        "attributes",
        "destination",
        "kind",
        "measured",
        "name",
        "span_kind",
        "span_name",
        "template",
    )

    def __init__(
        self, destination: Destination, kind: str, name: str, span_kind: SpanKind, template: str | None
    ) -> None:
        self.destination = destination
        self.kind = kind
        self.name = name
        self.span_kind = span_kind
        self.template = template
        label = template or destination.label
        self.span_name = f"{name} {bounded(label)}" if label else name
        self.attributes = _span_attributes(destination, kind, name, template)
        self.measured: tuple[object, Mapping[str, AttributeValue]] | None = None
        """What it is called on metrics, and by whom: see ``Instruments.attributes_of``."""


def _span_attributes(
    destination: Destination, kind: str, name: str, template: str | None
) -> dict[str, AttributeValue]:
    optional: dict[str, AttributeValue | None] = {
        semconv.DESTINATION_NAME: destination.name,
        semconv.DESTINATION_TEMPLATE: template,
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
        **{key: bounded(value) for key, value in optional.items() if value is not None},
        **{key: bounded(value) for key, value in further.items()},
    }
