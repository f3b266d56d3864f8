"""What a commit or an acknowledgement settles, and where that is from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from confluent_kafka import KafkaException, TopicPartition

from queueprop.adapters.confluent_kafka import shares
from queueprop.adapters.confluent_kafka.clients import SOMEBODY, beneath_of, destination_of, known, referable
from queueprop.engine.message import Destination
from queueprop.kit.calls import Arguments, Options
from queueprop.kit.library import Settlement
from queueprop.kit.nesting import Everything


def settlement(operation: str, client: Any, holders: Sequence[Any], places: Any) -> Settlement:
    """Of what these holders were given from these places, each a topic and a partition."""

    def destination(settled: Sequence[Destination]) -> Destination:
        return destination_of([(it.name, it.partition_id) for it in settled], client)

    return Settlement(operation, holders, picks=places.__contains__, destination=destination)


def acknowledgement(name: str, via: Any, args: Arguments, kwargs: Options) -> Settlement | None:
    """One of a ShareConsumer's: of a single message, or by a commit."""
    if name.startswith("commit"):
        # All that it was given and has not acknowledged one by one. Of one that is not known that is anybody's.
        holder = referable(via)
        return None if holder is SOMEBODY else settlement("commit", via, [holder], _WHATEVER)
    said = shares.acknowledged(name, args, kwargs)
    return None if said is None else Settlement(said[0], [referable(via)], said[1])


_WHATEVER: Any = Everything()


def group_of(metadata: Any) -> str | None:
    """The group in what ``consumer_group_metadata()`` gives: librdkafka's own form, ended by a zero byte."""
    if not isinstance(metadata, bytes) or not metadata.startswith(_METADATA):
        return None
    return metadata[len(_METADATA) + _GENERATION :].partition(b"\0")[0].decode(errors="replace")


_METADATA, _GENERATION = b"CGMDv2:", 4


def may_be_of(consumer: Any, group: str | None) -> bool:
    own = known(beneath_of(consumer)).group
    return own is None or group is None or own == group


def places_of(offsets: Any) -> set[tuple[str, int]]:
    if not isinstance(offsets, (list, tuple)):
        return set()
    return {(it.topic, it.partition) for it in offsets if isinstance(it, TopicPartition)}


def assigned(consumer: Any) -> Any:
    try:
        return beneath_of(consumer).assignment()
    except (
        AttributeError,
        KafkaException,
        RuntimeError,
    ):  # a function around commit; a consumer that is closed
        return ()
