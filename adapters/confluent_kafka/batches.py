"""A ``produce_batch``, whose messages get headers by being produced alone."""

from __future__ import annotations

import types
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException

from queueprop import guard
from queueprop.adapters.confluent_kafka.clients import C_PRODUCER, Producer, known
from queueprop.adapters.confluent_kafka.publishing import LIBRARY, Publish, code_of, is_taken, published_to
from queueprop.engine.message import Message
from queueprop.kit import calls, kafka
from queueprop.kit.calls import Arguments, Options, Wrapped
from queueprop.kit.fitting import sent_shorter
from queueprop.kit.library import Publication
from queueprop.kit.nesting import work_at_hand


class BatchPublication(Publication):
    """A ``produce_batch``: a CLIENT span, and a create span for each message.

    librdkafka's batches have no headers, and those in a caller's dicts are ignored. So each message is produced alone.
    """

    def __init__(self, topic: Any, messages: list[Any], partition: Any, producer: Any) -> None:
        self._given = messages
        several = [
            Message(
                headers=[],
                attributes=kafka.key_attributes(one.get("key")),
                body=one.get("value"),
                native=Publish(topic, one.get("value"), one.get("key"), one.get("partition"), None, None),
            )
            for one in messages
        ]
        super().__init__(published_to(topic, partition, known(producer)), several)

    def headers(self) -> list[Any]:
        return [message.headers for message in self.message]  # type: ignore[union-attr]

    def end(self, result: Any) -> None:
        errors = [one["_error"] for one in self._given if "_error" in one]
        if errors:
            self.send.fail(
                errors[0].name(), f"{len(errors)} of {len(self._given)} messages: {errors[0].str()}"
            )
        self.send.close()


class WrittenHeaders(list[Any]):
    """Headers of ours in a message that an AIOProducer keeps until its batch goes out."""


def producing_each(wrapped: Wrapped, *args: Any, **kwargs: Any) -> Any:
    """What ``produce_batch`` does, message by message, with headers."""
    given = batch_of(args, kwargs)
    publication = work_at_hand("publish", LIBRARY)
    if given is None:
        return wrapped(*args, **kwargs)
    if isinstance(publication, BatchPublication):
        headers = publication.headers()
    else:
        headers = [one.get("headers") for one in given.messages]
        if not any(isinstance(some, WrittenHeaders) for some in headers):
            return wrapped(*args, **kwargs)
    producer: Any = getattr(wrapped, "__self__", None)
    return sum(_produced(producer, given, *one) for one in zip(given.messages, headers, strict=True))


def is_of_c(produce_batch: Any) -> bool:
    """Whether it is a producer's own. What a class or function of the user's does around that one, it alone can do."""
    is_builtin = isinstance(produce_batch, types.BuiltinFunctionType)
    return is_builtin and isinstance(produce_batch.__self__, C_PRODUCER)


def say_unreached(produce_batch: Any) -> None:
    """Tells of one around it, where nothing is instrumented that it could call."""
    if not hasattr(vars(Producer).get("produce_batch"), "__wrapped__"):
        guard.mistake(
            "traced_publish with confluent-kafka",
            "a produce_batch of your own calls a producer's, whose messages carry no contexts; instrument "
            "confluent-kafka, or wrap the producer's own where it is called",
            about=calls.name_of(produce_batch),
        )


class Batch(NamedTuple):
    topic: str
    messages: list[Any]
    partition: int
    callback: Any


def batch_of(args: Arguments, kwargs: Options) -> Batch | None:
    """The arguments of a ``produce_batch``; None for what the library refuses, before it produces any of it."""
    given = calls.bound(_batch_arguments, args, kwargs)
    if given is None or not isinstance(given.topic, str) or not isinstance(given.messages, list):
        return None
    return given if all(map(_is_plain, given.messages)) else None


def _batch_arguments(
    topic: Any, messages: Any, partition: Any = -1, callback: Any = None, on_delivery: Any = None
) -> Batch:
    return Batch(topic, messages, partition, on_delivery if callback is None else callback)


def _is_plain(message: Any) -> bool:
    return (
        isinstance(message, dict)
        and isinstance(message.get("value"), (bytes, str, types.NoneType))
        and isinstance(message.get("key"), (bytes, str, types.NoneType))
        and isinstance(message.get("partition"), (int, types.NoneType))
        and message.get("timestamp") is None
    )


def _produced(producer: Any, batch: Batch, message: dict[str, Any], headers: Any) -> bool:
    """Whether one message of a batch was taken. Else its dict has the error, as the library writes it."""
    partition, callback = message.get("partition"), message.get("callback")

    def send(written: Any) -> bool:
        return is_taken(
            C_PRODUCER.produce,
            producer,
            batch.topic,
            message.get("value"),
            message.get("key"),
            batch.partition if partition is None else partition,
            batch.callback if callback is None else callback,
            headers=written if isinstance(written, list) else None,
        )

    try:
        if send(headers):
            return True
        if headers and sent_shorter(headers, [], send, "publishing with confluent-kafka", batch.topic):
            return True
        code: int = KafkaError.MSG_SIZE_TOO_LARGE
    except BufferError:
        code = KafkaError._QUEUE_FULL
    except KafkaException as error:
        code = code_of(error) or KafkaError._FAIL
    message["_error"] = KafkaError(code, f"Message failed: {KafkaError(code).str()}")
    return False
