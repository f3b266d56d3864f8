"""How confluent-kafka's calls and messages are read."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Sequence
from typing import Any

from confluent_kafka import cimpl
from confluent_kafka.error import ConsumeError
from confluent_kafka.serialization import SerializationError
from opentelemetry.util.types import AttributeValue

from queueprop.adapters.confluent_kafka import shares
from queueprop.adapters.confluent_kafka.aio import aio_publication
from queueprop.adapters.confluent_kafka.batches import BatchPublication, batch_of, producing_each
from queueprop.adapters.confluent_kafka.clients import (
    AIO_PRODUCER,
    C_SHARE_CONSUMER,
    beneath,
    beneath_of,
    destination_of,
    keep_beneath,
    referable,
)
from queueprop.adapters.confluent_kafka.deliveries import MessageDeliveries, topic_of
from queueprop.adapters.confluent_kafka.polling import source_of
from queueprop.adapters.confluent_kafka.publishing import LIBRARY, ProducePublication, fitting, signature_of
from queueprop.adapters.confluent_kafka.settling import (
    acknowledgement,
    assigned,
    group_of,
    may_be_of,
    places_of,
    settlement,
)
from queueprop.engine import semconv
from queueprop.engine.message import Destination, Message
from queueprop.kit import calls, kafka
from queueprop.kit.calls import Arguments, Options, Wrapped, name_of
from queueprop.kit.iteration import Begin, MessageList
from queueprop.kit.library import Library, Publication, Settlement, Source
from queueprop.kit.nesting import is_spoken_for


class _ConfluentKafka(Library):
    name = LIBRARY
    message_form = "message of confluent-kafka's, as poll and consume give them"
    message_type = cimpl.Message
    message_fields = ("topic", "partition", "offset", "timestamp", "headers", "key", "value", "error")
    settles_each = False
    loops_pull = True

    deliveries: MessageDeliveries

    def __init__(self) -> None:
        super().__init__()
        self.deliveries = MessageDeliveries()

    def publication(
        self, producer: Any, args: Arguments, kwargs: Options, call: Wrapped
    ) -> Publication | None:
        if isinstance(producer, AIO_PRODUCER):
            keep_beneath(producer)
            return aio_publication(call, args, kwargs, beneath_of(producer))
        if isinstance(call, functools.partial) and call.func is producing_each:
            batch = batch_of(args, kwargs)
            if batch is None:
                return None
            return BatchPublication(batch.topic, batch.messages, batch.partition, producer)
        if isinstance(call, functools.partial) and call.func is fitting:
            call = call.args[0]
        signature = signature_of(call)
        given = signature.bound(args, kwargs)
        return None if given is None else ProducePublication(given, signature, producer)

    def message(self, message: Any) -> Message:
        key, (kind, at) = message.key(), message.timestamp()
        attributes: dict[str, AttributeValue] = {
            kafka.OFFSET: message.offset(),
            semconv.DESTINATION_PARTITION_ID: str(message.partition()),
            **kafka.key_attributes(key),
        }
        body, attempt = message.value(), shares.attempt_of(message)
        if body is None:
            attributes[kafka.TOMBSTONE] = True
        if attempt is not None and message.error() is not None:
            attributes[semconv.ERROR_TYPE] = message.error().name()
        return Message(
            headers=message.headers(),
            body=body if isinstance(body, (bytes, str)) else None,
            sent_at=at / 1000 if kind != cimpl.TIMESTAMP_NOT_AVAILABLE else None,
            attempt=attempt,
            attributes=attributes,
            native=message,
        )

    def route(self, message: Any) -> tuple[object, ...]:
        return topic_of(message), message.partition()

    def consumed_from(self, message: Any, source: Source | None) -> Destination:
        return self.pulled_from(() if message is None else (message,), source)

    def pulled_from(self, messages: Sequence[Any], source: Source | None) -> Destination:
        places = [(topic_of(message), message.partition()) for message in messages]
        return destination_of(places, None if source is None else source.via)

    def is_nothing(self, native: Any) -> bool:
        if native is None or not isinstance(native, cimpl.Message) or native.error() is None:
            return native is None
        return not shares.is_undecodable(native)

    def source(self, consumer: Any, args: Arguments, kwargs: Options, call: Wrapped) -> Source:
        gives_several = name_of(call) == "consume" or isinstance(consumer, C_SHARE_CONSUMER)
        return source_of(consumer, gives_several)

    def pulls(self, returned: Any) -> Sequence[Any]:
        given = returned[:] if isinstance(returned, list) or shares.is_batch(returned) else (returned,)
        found = [one for one in given if isinstance(one, cimpl.Message) and not self.is_nothing(one)]
        self.deliveries.begin(found)
        return found

    def handed_over(self, returned: Any, step: Begin) -> Any:
        if shares.is_batch(returned):
            return shares.SharedMessages(returned, step)
        return MessageList(returned, step) if type(returned) is list else returned

    def is_end(self, error: BaseException) -> bool:
        # What poll() would give as a message, and that the consumer was closed.
        if isinstance(error, ConsumeError):
            return not isinstance(error, SerializationError)
        return isinstance(error, (RuntimeError, NotImplementedError))

    def leaves_alone(self, via: Any) -> bool:
        return beneath.find(via) is not None or is_spoken_for(via)

    def settlement_of(self, message: Any, source: Source | None) -> tuple[Any, Hashable]:
        place: tuple[Any, ...] = topic_of(message), message.partition()
        if shares.attempt_of(message) is not None:  # whose messages are settled one by one
            place = (*place, message.offset())
        return None if source is None else source.via, place

    def settled(self, via: Any, args: Arguments, kwargs: Options, call: Wrapped) -> Settlement | None:
        keep_beneath(via)
        if beneath.find(via) is not None:
            return None  # what an AIO client does in a pool's thread
        name = name_of(call)
        if name == "send_offsets_to_transaction":
            offsets = calls.given(0, "positions", args, kwargs)
            group = group_of(calls.given(1, "group_metadata", args, kwargs))
            holders = [it for it in self.unsettled.holders() if may_be_of(it, group)]
            return settlement("commit", via, holders, places_of(offsets))
        if name in shares.CALLS:
            return acknowledgement(name, via, args, kwargs)
        message, offsets = (calls.given(*it, args, kwargs) for it in ((0, "message"), (1, "offsets")))
        if isinstance(message, cimpl.Message):
            places: Any = {(message.topic(), message.partition())}
        else:
            places = places_of(assigned(via) if offsets is None else offsets)
        return settlement(name, via, [referable(via)], places)


CONFLUENT_KAFKA = _ConfluentKafka()
