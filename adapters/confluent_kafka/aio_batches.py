"""What stands for the producer below an AIOProducer. Imported where there is one: wrapt takes its time."""

from __future__ import annotations

from typing import Any

from queueprop.adapters.confluent_kafka.batches import producing_each
from queueprop.kit.proxies import Proxy


class Batches(Proxy):
    """The producer, whose batches carry the contexts of their messages."""

    produces_each = True

    def produce_batch(self, *args: Any, **kwargs: Any) -> Any:
        return producing_each(self.__wrapped__.produce_batch, *args, **kwargs)
