"""A ``produce`` of an AIOProducer, whose messages wait for their batches."""

from __future__ import annotations

import asyncio
from typing import Any

from queueprop import guard
from queueprop.adapters.confluent_kafka.batches import WrittenHeaders
from queueprop.adapters.confluent_kafka.clients import known
from queueprop.adapters.confluent_kafka.publishing import (
    LIBRARY,
    Publish,
    Signature,
    published_to,
    signature_of,
)
from queueprop.adapters.confluent_kafka.reports import described
from queueprop.engine.message import Message
from queueprop.kit import calls, kafka
from queueprop.kit.calls import Arguments, Options, Wrapped
from queueprop.kit.library import Publication
from queueprop.kit.nesting import work_at_hand


class AIOPublication(Publication):
    """A ``produce`` of an AIOProducer's, whose message waits for its batch."""

    def __init__(self, given: Options, signature: Signature, producer: Any) -> None:
        topic, value, key = given.get("topic"), given.get("value"), given.get("key")
        partition = given.get("partition")
        attributes = kafka.key_attributes(key)
        if value is None and signature.names_body(given):
            attributes[kafka.TOMBSTONE] = True
        message = Message(
            headers=WrittenHeaders(),
            attributes=attributes,
            body=value if isinstance(value, (bytes, str)) else None,
            native=Publish(topic, value, key, partition, given.get("timestamp"), None),
        )
        super().__init__(published_to(topic, partition, known(producer)), message)

    def end(self, result: Any) -> None:
        if asyncio.isfuture(result):
            self.send.end_with(result, described)
        else:
            self.send.close()  # of a function around it


def add_message(wrapped: Wrapped, manager: Any, args: Arguments, kwargs: Options) -> Any:
    """Around the ``add_message`` of an AIOProducer's batches, which runs in its caller's task."""
    publication = work_at_hand("publish", LIBRARY)
    try:
        if isinstance(publication, AIOPublication):
            data, headers = calls.given(0, "msg_data", args, kwargs), publication.message.headers  # type: ignore[union-attr]
            if headers:
                data["headers"] = headers  # the dict is the producer's own
    except Exception as error:
        guard.fault("writing the headers of a publish with confluent-kafka", error)
    return wrapped(*args, **kwargs)


def join(producer: Any) -> None:
    """The batches of this AIOProducer carry what ``add_message`` is given, whatever client it has below."""
    try:
        calls.hook_methods(producer._batch_processor, [("add_message", add_message)])
        executor = producer._kafka_executor
        if not hasattr(type(executor._producer), "produces_each"):
            # Once a producer, and not with this module: wrapt takes its time.
            from queueprop.adapters.confluent_kafka.aio_batches import Batches

            executor._producer = Batches(executor._producer)
    except Exception as error:
        guard.fault("preparing a publish with confluent-kafka", error)


def aio_publication(call: Any, args: Arguments, kwargs: Options, producer: Any) -> AIOPublication | None:
    """None where the arguments do not fit."""
    signature = signature_of(call, _OF_AIO)
    if signature.names is _OF_AIO.names:
        args = args[: len(signature.names)]  # what else stands by place it drops
    given = signature.bound(args, kwargs)
    return None if given is None else AIOPublication(given, signature, producer)


_OF_AIO = Signature(("topic", "value", "key"), None)
