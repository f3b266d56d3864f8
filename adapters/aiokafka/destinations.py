"""Where aiokafka's producers send to."""

from __future__ import annotations

from typing import Any

from queueprop.engine.message import Destination
from queueprop.kit import kafka
from queueprop.kit.destinations import Destinations


def destination_of(producer: Any, topic: Any, partition: Any = None) -> Destination:
    return kafka.destination(topic, partition, None, *kafka.told_to(getattr(producer, "client", None)))


published_to = Destinations(destination_of).of
