"""One message as a broker delivered it, alone or in a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from queueprop.adapters.faststream.brokers import Broker, broker_of


class Part:
    """One message as a broker delivered it: of a batch, or one that FastStream could not read."""

    __slots__ = ("__weakref__", "body", "broker", "consumer", "headers", "raw")

    def __init__(self, broker: Broker, raw: Any, headers: Any, body: Any, consumer: Any = None) -> None:
        self.broker = broker
        self.raw = raw
        self.headers = headers
        self.body = body
        self.consumer = consumer


def part_of(native: Any) -> Part:
    if isinstance(native, Part):
        return native
    consumer = getattr(native, "consumer", None)
    return Part(broker_of(native), native.raw_message, native.headers, native.body, consumer)


def parts_of(msg: Any) -> list[Part] | None:
    """The messages of a batch; None for a single message."""
    raw, each = msg.raw_message, getattr(msg, "batch_headers", None) or ()
    return _parts(broker_of(msg), raw, each, getattr(msg, "consumer", None))


def unread_parts(broker: Broker, raw: Any) -> list[Part]:
    """What FastStream has made no message of; one part where it was a single one."""
    return _parts(broker, raw, (), None) or [Part(broker, raw, {}, None)]


def _parts(broker: Broker, raw: Any, each: Sequence[Any], consumer: Any) -> list[Part] | None:
    if isinstance(raw, (tuple, list)):
        return [Part(broker, it, {}, None, consumer) for it in raw]
    if isinstance(raw, dict) and isinstance(raw.get("data"), list):  # of Redis
        shared = {key: value for key, value in raw.items() if key != "message_ids"}
        return [Part(broker, shared, it, None, consumer) for it in each or [{} for _ in raw["data"]]]
    return None
