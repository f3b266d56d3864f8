"""Puts the hooks around the methods of confluent-kafka's clients, and what stands for these in their places."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from confluent_kafka.deserializing_consumer import DeserializingConsumer

from queueprop.adapters.confluent_kafka import shares
from queueprop.adapters.confluent_kafka.clients import (
    AIO_CONSUMER,
    AIO_PRODUCER,
    ASYNC_DESERIALIZING_CONSUMER,
    HAS_AIO,
    HAS_SHARES,
    Consumer,
    Producer,
    ShareConsumer,
    Substitution,
    note,
)
from queueprop.adapters.confluent_kafka.hooks import Hooks
from queueprop.adapters.confluent_kafka.library import CONFLUENT_KAFKA
from queueprop.adapters.confluent_kafka.publishing import LIBRARY
from queueprop.kit.instrumentor import Adapter, Patch
from queueprop.kit.rivals import Rival, Rivals
from queueprop.settings import Settings


class ConfluentKafkaInstrumentor(Adapter):
    """Traces every producer and consumer of confluent-kafka that is made from now on.

    Subclasses and names that were there before are traced as well. Of a client that was made before, wrap the calls:
    ``traced_publish(producer.produce)``. ``opentelemetry-instrument`` finds it by itself, unless
    ``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=queueprop_confluent_kafka``.
    """

    __module__ = "queueprop.adapters.confluent_kafka"

    library = LIBRARY
    requires = ("confluent-kafka >= 2.3",)
    rivals = Rivals(
        LIBRARY,
        Rival(
            "opentelemetry.instrumentation.confluent_kafka:ConfluentKafkaInstrumentor",
            "opentelemetry-instrumentation-confluent-kafka",
            "confluent_kafka",
        ),
    )
    _substitution: Substitution | None = None

    def patches(self) -> Iterable[Patch]:
        hooks = Hooks(CONFLUENT_KAFKA, self.engine, self.is_on)
        for client in (Producer, Consumer):
            yield Patch(client, "__init__", note)
        yield Patch(Producer, "produce", hooks.produce)
        if hasattr(Producer, "produce_batch"):
            yield Patch(Producer, "produce_batch", hooks.produce_batch)
        yield Patch(Producer, "send_offsets_to_transaction", hooks.settle)
        for puller in (Consumer, DeserializingConsumer):
            yield Patch(puller, "poll", hooks.pull)
        yield Patch(Consumer, "consume", hooks.pull)
        for name in ("commit", "store_offsets"):
            yield Patch(Consumer, name, hooks.settle)
        if HAS_SHARES:
            yield from _share_patches(hooks)
        if HAS_AIO:
            yield from _aio_patches(hooks)

    def _instrument(self, settings: Settings | None = None, **options: Any) -> None:
        super()._instrument(settings, **options)
        self._substitution = Substitution()

    def _uninstrument(self, **options: Any) -> None:
        substitution, self._substitution = self._substitution, None
        if substitution is not None:
            substitution.undo()
        super()._uninstrument(**options)


def _share_patches(hooks: Hooks) -> Iterable[Patch]:
    from confluent_kafka import DeserializingShareConsumer

    yield Patch(ShareConsumer, "__init__", note)
    for puller in (ShareConsumer, DeserializingShareConsumer):
        yield Patch(puller, "poll", hooks.pull)
    for name in shares.CALLS:
        yield Patch(ShareConsumer, name, hooks.settle)


def _aio_patches(hooks: Hooks) -> Iterable[Patch]:
    yield Patch(AIO_PRODUCER, "produce", hooks.produce_later)
    yield Patch(AIO_PRODUCER, "send_offsets_to_transaction", hooks.settle_async)
    for puller in (AIO_CONSUMER, ASYNC_DESERIALIZING_CONSUMER):
        for name in ("poll", "consume"):
            if name in vars(puller):
                yield Patch(puller, name, hooks.pull_async)
    for name in ("commit", "store_offsets"):
        yield Patch(AIO_CONSUMER, name, hooks.settle_async)
