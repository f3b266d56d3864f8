"""pika: a blocking connection, publishes without confirms, a consumer without acks."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any

from opentelemetry.instrumentation.utils import suppress_instrumentation
from pika import BasicProperties, BlockingConnection, URLParameters

from benchmarks.stubs import TRACEPARENT, Handler, Stub, texts


class Pika(Stub):
    system = "rabbitmq"
    cut = ""

    def __init__(self, url: str) -> None:
        self._connection = BlockingConnection(URLParameters(url))
        self._channel = self._connection.channel()
        self.published_to = self.consumed_from = f"orders-{uuid.uuid4().hex[:8]}"
        self._channel.queue_declare(self.published_to, auto_delete=False, exclusive=True)

    def publishes(self, count: int) -> Callable[[], object]:
        self._channel.queue_purge(self.published_to)
        publish = self._channel.basic_publish

        def run() -> None:
            for _ in range(count):
                publish("", self.published_to, b"hello", BasicProperties(headers={"tenant": "acme"}))

        return run

    def deliveries(self, count: int, handler: Handler) -> Callable[[], object]:
        channel = self._channel
        channel.queue_purge(self.consumed_from)
        with suppress_instrumentation():
            for _ in range(count):
                headers = {"tenant": "acme", "traceparent": TRACEPARENT}
                channel.basic_publish("", self.consumed_from, b"hello", BasicProperties(headers=headers))
        left = count

        def on_message(channel: Any, method: Any, properties: Any, body: bytes) -> None:
            nonlocal left
            handler()
            left -= 1
            if not left:
                channel.stop_consuming()

        def run() -> None:
            channel.basic_consume(self.consumed_from, on_message, auto_ack=True)
            channel.start_consuming()

        return run

    def written(self) -> Mapping[str, str]:
        with suppress_instrumentation():
            _, properties, _ = self._channel.basic_get(self.published_to, auto_ack=True)
        return texts(properties.headers)


make = Pika
