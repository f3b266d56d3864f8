"""Puts the hooks around aiokafka's own methods."""

from __future__ import annotations

from collections.abc import Iterable

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.producer.message_accumulator import MessageAccumulator

from queueprop.adapters.aiokafka.hooks import Hooks, add_message
from queueprop.kit.instrumentor import Adapter, Patch
from queueprop.kit.rivals import Rival, Rivals


class AIOKafkaInstrumentor(Adapter):
    """Traces every producer and consumer of aiokafka from now on.

    ``opentelemetry-instrument`` finds it by itself, unless
    ``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=queueprop_aiokafka``.
    """

    __module__ = "queueprop.adapters.aiokafka"

    library = "aiokafka"
    requires = ("aiokafka >= 0.11",)
    rivals = Rivals("aiokafka", Rival.contrib("aiokafka", "AIOKafkaInstrumentor"))

    def patches(self) -> Iterable[Patch]:
        hooks = Hooks(self.engine, self.is_on)
        yield Patch(AIOKafkaProducer, "send", hooks.send)
        yield Patch(AIOKafkaProducer, "create_batch", hooks.create_batch)
        yield Patch(AIOKafkaProducer, "send_batch", hooks.send)
        yield Patch(AIOKafkaProducer, "send_offsets_to_transaction", hooks.settle_async)
        yield Patch(MessageAccumulator, "add_message", add_message)
        yield Patch(AIOKafkaConsumer, "__aiter__", hooks.iterate)
        yield Patch(AIOKafkaConsumer, "getone", hooks.pull_async)
        yield Patch(AIOKafkaConsumer, "getmany", hooks.pull_async)
        yield Patch(AIOKafkaConsumer, "commit", hooks.settle_async)
