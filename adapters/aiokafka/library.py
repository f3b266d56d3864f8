"""How aiokafka's calls and records are read."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import ConsumerStoppedError
from opentelemetry.util.types import AttributeValue

from queueprop.adapters.aiokafka.batches import BatchPublication
from queueprop.adapters.aiokafka.publishing import Publish, RecordPublication
from queueprop.engine import semconv
from queueprop.engine.message import Destination, Message
from queueprop.kit import calls, kafka
from queueprop.kit.calls import Arguments, Options, Wrapped, name_of
from queueprop.kit.iteration import Begin, MessageList
from queueprop.kit.library import Library, Publication, Settlement, Source
from queueprop.kit.nesting import Everything


class _AIOKafka(Library):
    name = "aiokafka"
    message_form = "record of aiokafka's, as getone and getmany give them"
    message_type = ConsumerRecord
    message_fields = ("topic", "partition", "offset", "timestamp", "headers", "key", "serialized_value_size")
    settles_each = False
    is_async = True
    loops_pull = True

    def publication(
        self, producer: Any, args: Arguments, kwargs: Options, call: Wrapped
    ) -> Publication | None:
        if name_of(call) == "send_batch":
            batch = calls.bound(_send_batch_arguments, args, kwargs)
            return None if batch is None else BatchPublication(*batch, producer)
        given = calls.bound(_send_arguments, args, kwargs)
        return None if given is None else RecordPublication(calls.named(Publish, given), producer)

    def message(self, record: Any) -> Message:
        size, timestamp = record.serialized_value_size, record.timestamp
        attributes: dict[str, AttributeValue] = {
            kafka.OFFSET: record.offset,
            semconv.DESTINATION_PARTITION_ID: str(record.partition),
            **kafka.key_attributes(record.key),
        }
        if size == -1:  # not by its value: a deserializer may make something of nothing
            attributes[kafka.TOMBSTONE] = True
        return Message(
            headers=record.headers,
            body_size=size if size >= 0 else None,
            sent_at=timestamp / 1000 if isinstance(timestamp, int) and timestamp >= 0 else None,
            attributes=attributes,
            native=record,
        )

    def route(self, record: Any) -> tuple[object, ...]:
        return record.topic, record.partition

    def consumed_from(self, record: Any, source: Source | None) -> Destination:
        return self.pulled_from(() if record is None else (record,), source)

    def pulled_from(self, records: Sequence[Any], source: Source | None) -> Destination:
        consumer = None if source is None else source.via
        return kafka.destination_of_all(
            [(record.topic, record.partition) for record in records],
            getattr(consumer, "_group_id", None),
            *kafka.told_to(getattr(consumer, "_client", None)),
        )

    def is_nothing(self, native: Any) -> bool:
        return False  # None is no record: nothing of aiokafka's gives it

    def source(self, consumer: Any, args: Arguments, kwargs: Options, call: Wrapped) -> Source:
        return Source(consumer, gives_several=name_of(call) == "getmany")

    def pulls(self, returned: Any) -> Sequence[Any]:
        lists = returned.values() if isinstance(returned, dict) else ([returned],)
        records = [record for some in lists if isinstance(some, list) for record in some[:]]
        return [record for record in records if isinstance(record, ConsumerRecord)]

    def handed_over(self, returned: Any, step: Begin) -> Any:
        if type(returned) is not dict or any(type(some) is not list for some in returned.values()):
            return returned  # of getone, of a function around getmany, or traced already
        return {partition: MessageList(some, step) for partition, some in returned.items()}

    def is_end(self, error: BaseException) -> bool:
        return isinstance(error, ConsumerStoppedError)

    def settlement_of(self, record: Any, source: Source | None) -> tuple[Any, Hashable]:
        consumer = None if source is None else source.via
        return consumer, TopicPartition(record.topic, record.partition)

    def settled(self, via: Any, args: Arguments, kwargs: Options, call: Wrapped) -> Settlement | None:
        offsets = calls.given(0, "offsets", args, kwargs)
        partitions: Any = offsets if isinstance(offsets, Mapping) else ()
        if name_of(call) == "send_offsets_to_transaction":
            group = calls.given(1, "group_id", args, kwargs)
            holders = [it for it in self.unsettled.holders() if getattr(it, "_group_id", None) == group]
            told = kafka.told_to(getattr(via, "client", None))
        else:
            is_known = isinstance(via, AIOKafkaConsumer)
            holders, group = [via] if is_known else [], getattr(via, "_group_id", None)
            told = kafka.told_to(getattr(via, "_client", None))
            if not isinstance(offsets, Mapping):
                partitions = via.assignment() if is_known else _WHATEVER

        def destination(settled: Sequence[Destination]) -> Destination:
            return kafka.destination_of_all([(it.name, it.partition_id) for it in settled], group, *told)

        return Settlement("commit", holders, picks=partitions.__contains__, destination=destination)


AIOKAFKA = _AIOKafka()

_WHATEVER = Everything()


# Arguments


def _send_arguments(
    topic: Any,
    value: Any = None,
    key: Any = None,
    partition: Any = None,
    timestamp_ms: Any = None,
    headers: Any = None,
    **of_a_subclass: Any,
) -> tuple[Any, Any, Any, Any, Any, Any]:
    return topic, value, key, partition, timestamp_ms, headers


def _send_batch_arguments(batch: Any, topic: Any, *, partition: Any) -> tuple[Any, Any, Any]:
    return batch, topic, partition
