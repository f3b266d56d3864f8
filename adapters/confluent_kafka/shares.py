"""What a ShareConsumer has besides: batches, and acknowledgements of single messages. (Since confluent-kafka 2.15.)"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import confluent_kafka
from confluent_kafka import KafkaError
from confluent_kafka.cimpl import Message

from queueprop.adapters.confluent_kafka.clients import HAS_SHARES
from queueprop.kit import calls
from queueprop.kit.calls import Arguments, Options
from queueprop.kit.iteration import Begin, HandlesEach, Handling, MessageList

_Batch: Any = getattr(confluent_kafka, "Messages", type("_None", (), {}))

CALLS = ("acknowledge", "acknowledge_offset", "commit_sync", "commit_async")


class SharedMessages(_Batch, HandlesEach[Any]):  # type: ignore[misc]
    """What ``poll`` gave: but whatever iterates it handles each message inside its span."""

    def __init__(self, batch: Any, begin: Begin) -> None:
        super().__init__(batch)
        self._begin = begin
        self._handling = Handling(begin)

    def __iter__(self) -> Iterator[Any]:
        return self._handling.each_of(super().__iter__())

    def __reversed__(self) -> Iterator[Any]:
        return self._handling.each_of(reversed(self._records))

    def __contains__(self, message: Any) -> bool:
        return message in self._records  # without it, Python iterates

    def __len__(self) -> int:
        self._handling.counted()
        return len(self._records)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _Batch, (self._records,)  # copied and pickled as a plain one

    def __getitem__(self, index: Any) -> Any:
        found = self._records[index]
        return _Batch(found) if isinstance(index, slice) else found

    def records(self) -> list[Any]:
        return MessageList(self._records, self._begin)


def is_batch(returned: Any) -> bool:
    return HAS_SHARES and type(returned) is _Batch


def attempt_of(message: Any) -> int | None:
    """Which delivery it is; None of a message that no share group has."""
    return message.delivery_count() if HAS_SHARES and isinstance(message, Message) else None


def is_undecodable(message: Any) -> bool:
    """Whether its error is that a deserializer raised: then it is a message all the same, to be acknowledged."""
    return HAS_SHARES and message.error().code() in _UNDECODABLE


_UNDECODABLE = (KafkaError._KEY_DESERIALIZATION, KafkaError._VALUE_DESERIALIZATION)


def acknowledged(name: str, args: Arguments, kwargs: Options) -> tuple[str, tuple[str, int, int]] | None:
    """What an acknowledgement says, and of which message; None for what the library refuses."""
    given = calls.bound(_of_message if name == "acknowledge" else _of_offset, args, kwargs)
    if given is None or not isinstance(given[0], int) or given[0] not in _SAID:
        return None
    return _SAID[given[0]], given[1]


def _of_message(message: Any, ack_type: Any = 1) -> tuple[Any, Any] | None:
    if not isinstance(message, Message):
        return None
    return ack_type, (message.topic(), message.partition(), message.offset())


def _of_offset(topic: Any, partition: Any, offset: Any, ack_type: Any = 1) -> tuple[Any, Any] | None:
    is_place = isinstance(topic, str) and isinstance(partition, int) and isinstance(offset, int)
    return (ack_type, (topic, partition, offset)) if is_place else None


# Kafka's words, by the numbers of its protocol.
_SAID = {1: "accept", 2: "release", 3: "reject"}
