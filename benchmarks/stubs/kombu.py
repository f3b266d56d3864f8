"""kombu, all of it: over its own transport in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import kombu

from benchmarks.stubs import TRACEPARENT, Handler, Stub, texts


class Kombu(Stub):
    system = "memory"
    cut = "nothing: its transport in memory"
    published_to = "shop:orders"
    consumed_from = "shop:orders"

    def __init__(self) -> None:
        self._connection = kombu.Connection("memory://", transport_options={"polling_interval": 0})
        self._channel = self._connection.default_channel
        exchange = kombu.Exchange("shop", "direct")
        self._queue: Any = kombu.Queue("orders", exchange, "orders")(self._channel)
        self._queue.declare()
        self._producer = kombu.Producer(self._channel, exchange, "orders")
        self._handler: Handler = lambda: None
        channel = self._connection.channel()
        self._consumer = kombu.Consumer(
            channel, [self._queue.bind(channel)], callbacks=[self._on_message], no_ack=True
        )
        self._is_consuming = False

    def _on_message(self, body: Any, message: Any) -> None:
        self._handler()

    def publishes(self, count: int) -> Callable[[], None]:
        self._stop()
        self._queue.purge()
        publish = self._producer.publish

        def run() -> None:
            for _ in range(count):
                publish("hello", headers={"tenant": "acme"})

        return run

    def deliveries(self, count: int, handler: Handler) -> Callable[[], None]:
        self._stop()
        self._queue.purge()
        for _ in range(count):
            # Below the producer, so that the context stays that of the message.
            message = self._channel.prepare_message(
                b"hello", headers={"tenant": "acme", "traceparent": TRACEPARENT}, content_type="text/plain"
            )
            self._channel.basic_publish(message, "shop", "orders")
        self._handler = handler
        self._consumer.consume()
        self._is_consuming = True

        def run() -> None:
            for _ in range(count):
                self._connection.drain_events(timeout=1)

        return run

    def _stop(self) -> None:
        if self._is_consuming:
            self._consumer.cancel()
            self._is_consuming = False

    def written(self) -> Mapping[str, str]:
        return texts(self._channel._get("orders")["headers"])


make = Kombu
