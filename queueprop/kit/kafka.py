"""What every adapter shares that speaks to Kafka: attributes, destinations, and addresses."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any
from uuid import UUID

from opentelemetry.util.types import AttributeValue

from queueprop.engine.message import Destination, bounded, remembered

SYSTEM = "kafka"
KEY = "messaging.kafka.message.key"
TOMBSTONE = "messaging.kafka.message.tombstone"
OFFSET = "messaging.kafka.offset"


def key_attributes(key: Any) -> dict[str, AttributeValue]:
    """The key as text, where there is one way to write it, and what of it an attribute has room for; else nothing."""
    if key is None:
        return {}
    try:
        if type(key) is bytes:
            return {KEY: bounded(key.decode())}
        if not isinstance(key, (bytes, bytearray, memoryview, str, int, UUID)):
            return {}
        text = str(key) if isinstance(key, (str, int, UUID)) else bytes(key).decode()
    except ValueError:  # no UTF-8, or a number of more digits than Python likes to print
        return {}
    return {KEY: bounded(text)}


def destination(
    topic: Any,
    partition: Any = None,
    group: str | None = None,
    client_id: str | None = None,
    host: str | None = None,
    port: int | None = None,
) -> Destination:
    """A topic, or one partition of it.

    Args:
        topic: its name; None where several have nothing in common.
        partition: its number.
        group: the group that consumes.
        client_id: as the client calls itself.
        host: of the first server that the client was told.
        port: its port.
    """
    name = topic if isinstance(topic, str) else None
    return _destination(name, None if partition is None else str(partition), group, client_id, host, port)


def destination_of_all(
    places: Sequence[tuple[Any, Any]],
    group: Any = None,
    client_id: str | None = None,
    host: str | None = None,
    port: int | None = None,
) -> Destination:
    """Where these are all from, each a topic and a partition: what differs between them is left out."""
    topics = {topic for topic, _ in places}
    topic = topics.pop() if len(topics) == 1 else None
    partition = places[0][1] if len(set(places)) == 1 else None
    group = group if isinstance(group, str) else None
    return destination(topic, partition, group, client_id, host, port)


def told_to(client: Any) -> tuple[str | None, str | None, int | None]:
    """The id of a client of aiokafka's, and host and port of the first server that it was told."""
    servers = getattr(client, "_bootstrap_servers", None)
    first = servers if isinstance(servers, str) or not servers else next(iter(servers))
    host, port = address(first if isinstance(first, str) else "")
    client_id = getattr(client, "_client_id", None)
    return client_id if isinstance(client_id, str) else None, host, port


@lru_cache(maxsize=256)
def address(server: str) -> tuple[str | None, int | None]:
    """Host and port of a server as clients are told it: ``host:port``, or several, with a scheme or without."""
    server = server.split(",")[0].strip().rpartition("://")[2]
    host, separator, port = server.rpartition(":")
    if not separator or not port.isdecimal():
        return server or None, None
    return host.strip("[]"), int(port)


@remembered
def _destination(
    topic: str | None,
    partition: str | None,
    group: str | None,
    client_id: str | None,
    address: str | None,
    port: int | None,
    /,
) -> Destination:
    return Destination(
        SYSTEM,
        topic,
        partition_id=partition,
        consumer_group=group,
        client_id=client_id,
        server_address=address,
        server_port=port,
    )
