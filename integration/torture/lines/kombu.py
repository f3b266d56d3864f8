"""kombu, all of it: over its own transport in memory."""

from __future__ import annotations

import itertools
from typing import Any

import kombu

from integration.torture.lines import Handler, Line
from queueprop import Settings

_numbers = itertools.count()


class Kombu(Line):
    library = "kombu"
    carrier = "dict"
    settles = True

    def __init__(self, settings: Settings | None = None, settle: bool = False) -> None:
        super().__init__(settings, settle)
        self._name = f"orders-{next(_numbers)}"  # all of a process's share one memory
        self._connection = kombu.Connection("memory://", transport_options={"polling_interval": 0})
        self._channel = self._connection.default_channel
        exchange = kombu.Exchange(self._name, "direct")
        self._queue: Any = kombu.Queue(self._name, exchange, "in")(self._channel)
        self._queue.declare()
        self._out: Any = kombu.Queue(f"{self._name}-out", exchange, "out")(self._channel)
        self._out.declare()
        self._producer = kombu.Producer(self._channel, exchange, "out")
        self._handler: Handler = lambda body: None
        channel = self._connection.channel()
        self._consumer = kombu.Consumer(
            channel, [self._queue.bind(channel)], callbacks=[self._on_message], no_ack=not settle
        )
        self._consumer.consume()

    def _on_message(self, body: Any, message: Any) -> None:
        self._handler(body)
        if self.settle:
            message.ack()

    def publish(self, headers: Any, body: str = "", name: str = "out") -> object:
        """To a routing key of this name; only "out" is bound, so that nothing else is kept."""
        self._producer.publish(body, routing_key="out" if name == "orders" else name, headers=headers)
        return self._channel._get(self._out.name)["headers"] if name in ("out", "orders") else None

    def deliver(self, headers: Any, handler: Handler, body: str = "", name: str = "orders") -> object:
        """Below the producer, so that the headers stay those that are given."""
        self._handler = handler
        message = self._channel.prepare_message(body.encode(), content_type="text/plain")
        message["headers"] = headers
        message["properties"]["delivery_info"] = {"exchange": self._name, "routing_key": "in"}
        message["properties"]["delivery_tag"] = self._channel._next_delivery_tag()
        message["body"], message["properties"]["body_encoding"] = self._channel.encode_body(
            message["body"], self._channel.body_encoding
        )
        self._channel._put(self._name, message)
        return self._connection.drain_events(timeout=1)

    def close(self) -> None:
        self._consumer.cancel()
        self._connection.close()


make = Kombu
