"""confluent-kafka: its own clients, on librdkafka's mock cluster, whose threads are in the process as well."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import confluent_kafka
from confluent_kafka import TopicPartition, cimpl
from opentelemetry.instrumentation.utils import suppress_instrumentation

from benchmarks.stubs import TRACEPARENT, Handler, Stub, texts
from benchmarks.stubs.by_hand import ByHand, as_pairs, from_pairs, injected
from queueprop.adapters.confluent_kafka import ConfluentKafkaInstrumentor, traced_messages

_HEADERS = [("tenant", b"acme"), ("traceparent", TRACEPARENT.encode())]


_NEVER = object()


class ConfluentKafka(Stub):
    system = "kafka"
    cut = ""
    consumed_from = "deliveries"

    def __init__(self) -> None:
        self._cluster = confluent_kafka.Producer(
            {"bootstrap.servers": "mock", "test.mock.num.brokers": 1, "log_level": 0}
        )
        [broker] = self._cluster.list_topics(timeout=10).brokers.values()
        self._client = {"bootstrap.servers": f"{broker.host}:{broker.port}", "log_level": 0}
        self._producer = confluent_kafka.Producer(
            {**self._client, "client.id": "shop", "queue.buffering.max.messages": 1_000_000}
        )
        self._consumer = confluent_kafka.Consumer(
            {**self._client, "client.id": "till", "group.id": "billing", "enable.auto.commit": False}
        )

    def publishes(self, count: int) -> Callable[[], object]:
        """Each is produced, and then reported, where its span ends."""

        def publish() -> None:
            for _ in range(count):
                self._producer.produce(
                    "orders", b"hello", key=b"k", partition=0, headers=[("tenant", b"acme")]
                )
            self._producer.flush()

        return publish

    def publishes_by_hand(self, count: int) -> Callable[[], object]:
        by_hand = ByHand(self.system)

        def publish() -> None:
            for _ in range(count):
                with by_hand.sending():
                    headers: Any = [("tenant", b"acme"), *as_pairs(injected())]
                    self._producer.produce("orders", b"hello", key=b"k", partition=0, headers=headers)
            self._producer.flush()

        return publish

    def deliveries(self, count: int, handler: Handler) -> Callable[[], object]:
        return self._delivers(count, lambda message: handler())

    def deliveries_by_hand(self, count: int, handler: Handler) -> Callable[[], object]:
        handle = ByHand(self.system, consumed_from=self.consumed_from).around(handler)
        return self._delivers(count, lambda message: handle(from_pairs(message.headers())))

    def _delivers(self, count: int, take: Callable[[Any], object]) -> Callable[[], object]:
        begin = self._end_of_topic()
        with suppress_instrumentation():
            plain: Any = cimpl.Producer(self._client)  # which OpenTelemetry's own leaves alone
            for _ in range(count):
                plain.produce("deliveries", b"hello", key=b"k", partition=0, headers=_HEADERS)
            plain.flush()
        self._consumer.assign([TopicPartition("deliveries", 0, begin)])
        return lambda: self._consume(count, take)

    def _consume(self, count: int, take: Callable[[Any], object]) -> None:
        is_ours = ConfluentKafkaInstrumentor().is_active
        messages: Any = traced_messages(self._consumer) if is_ours else iter(self._consumer.poll, _NEVER)
        handled = 0
        for message in messages:
            if message is not None:
                take(message)
                handled += 1
            if handled == count:
                break

    def _end_of_topic(self) -> int:
        self._producer.list_topics("deliveries", timeout=10)
        _, end = self._consumer.get_watermark_offsets(TopicPartition("deliveries", 0), timeout=10)
        return int(end)

    def written(self) -> Mapping[str, str]:
        with suppress_instrumentation():
            plain: Any = cimpl.Consumer({**self._client, "group.id": "wire"})
            _, end = plain.get_watermark_offsets(TopicPartition("orders", 0), timeout=10)
            plain.assign([TopicPartition("orders", 0, end - 1)])
            [message] = plain.consume(1, 10)
            plain.close()
        return texts(dict(message.headers()))


make = ConfluentKafka
