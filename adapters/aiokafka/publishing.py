"""A message on its way, from the call of ``send`` to the broker's answer."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from aiokafka import AIOKafkaProducer
from opentelemetry.util.types import AttributeValue

from queueprop import guard
from queueprop.adapters.aiokafka.destinations import published_to
from queueprop.adapters.aiokafka.headers import HEADERS_AT, copied, read_from, with_room
from queueprop.engine import semconv
from queueprop.engine.engine import Engine
from queueprop.engine.message import Message
from queueprop.engine.operations import Create, Send
from queueprop.kit import calls, kafka
from queueprop.kit.calls import Arguments, Options
from queueprop.kit.library import Publication


class Publish(NamedTuple):
    """What a ``publish_hook`` is given: the call's arguments, before aiokafka's serializers.

    Of a message that goes into a batch, the topic and the partition are not known yet.
    """

    topic: str | None
    value: Any
    key: Any
    partition: int | None
    timestamp_ms: int | None
    headers: Any


Publish.__module__ = "queueprop.adapters.aiokafka"  # where users find it, and where it is pickled from


class RecordPublication(Publication):
    """A ``send``. Its headers are written in the accumulator below it."""

    _partition: str | None = None
    """Where the partitioner has put it; None where the call has said it, which is told already."""

    def __init__(self, given: Publish, producer: Any) -> None:
        self.given = given
        self.producer = producer if isinstance(producer, AIOKafkaProducer) else None
        self.is_bound = self.producer is not None
        """Whether it was known at once which producer it is, and not only below a function."""
        attributes = kafka.key_attributes(given.key)
        if given.partition is not None:
            attributes[semconv.DESTINATION_PARTITION_ID] = str(given.partition)
        body = None if self.is_bound else given.value
        message = Message(
            headers=read_from(given.headers) if self.is_bound else copied(given.headers),
            attributes=attributes,
            body=body if isinstance(body, (bytes, str)) else None,
            native=given,
        )
        super().__init__(published_to(self.producer, given.topic), message)

    def begin(self, engine: Engine) -> Send:
        send = super().begin(engine)
        send.writes_later = self.is_bound
        return send

    def arguments(self, args: Arguments, kwargs: Options) -> tuple[Arguments, Options]:
        given = self.given.headers
        if given is None or type(given) is list:
            handed_on = given if self.is_bound else self.message.headers  # type: ignore[union-attr]
        else:
            handed_on = self._headers_of_call(given)
        if handed_on is given or not handed_on:
            return args, kwargs
        return calls.replaced(HEADERS_AT, "headers", handed_on, args, kwargs)

    def _headers_of_call(self, given: Any) -> Any:
        """What ``send`` is called with. Of a producer that is not known the accumulator is not, either; of other
        collections than lists aiokafka's extensions know nothing.
        """
        if self.producer is None:
            return self.message.headers  # type: ignore[union-attr]
        return None if isinstance(given, list) else copied(given)

    def headers_of_record(self, key: Any, value: Any, given: Any) -> Any:
        """What goes into the accumulator, in place of what came down to it."""
        written = copied(given)
        if written is None:
            return given
        self.send.write(written)
        return with_room(self.producer, self.given.topic, key, value, given, written)

    def note(self, partition: int, value: Any) -> None:
        """What the serializers and the partitioner have made of it. The partition is told with the answer."""
        if self.given.partition is None:
            self._partition = str(partition)
        if value is None or self.send.telemetry.settings.body_size:
            note_value(self.send, value)

    def fail(self, error: BaseException) -> None:
        self.send.tell(self._describe(), None)
        super().fail(error)

    def end(self, result: Any) -> None:
        if asyncio.isfuture(result):
            self.send.end_with(result, self._describe(), describes_failure=True)
        else:
            self.send.close_with(result, self._describe())

    def _describe(self) -> Callable[[Any], Mapping[str, AttributeValue]]:
        """It waits for the answer, so it knows nothing of the message, which may be large."""
        if self.given.partition is not None:
            return _describe_offset
        return _describe_answer if self._partition is None else functools.partial(_described, self._partition)


def _describe_answer(metadata: Any) -> Mapping[str, AttributeValue]:
    """What the broker answered; nothing with ``acks=0``. A function around ``send`` may answer something else."""
    partition = getattr(metadata, "partition", None)
    return _described(str(partition), metadata) if isinstance(partition, int) else _describe_offset(metadata)


def _described(partition: str, metadata: Any) -> Mapping[str, AttributeValue]:
    return {semconv.DESTINATION_PARTITION_ID: partition, **_describe_offset(metadata)}


def _describe_offset(metadata: Any) -> Mapping[str, AttributeValue]:
    offset = getattr(metadata, "offset", None)
    return {kafka.OFFSET: offset} if isinstance(offset, int) and offset >= 0 else {}


def note_value(made: Send | Create, value: Any) -> None:
    """What the serializers have made of the message's value."""
    try:
        if not made.span.is_recording():
            return
        if value is None:
            made.span.set_attribute(kafka.TOMBSTONE, True)
        elif made.telemetry.settings.body_size:
            made.span.set_attribute(semconv.MESSAGE_BODY_SIZE, len(value))
    except Exception as error:
        guard.fault("describing a message of aiokafka", error)
