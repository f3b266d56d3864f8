"""confluent-kafka: its producer, which reaches nobody, and messages as its consumers give them."""

from __future__ import annotations

from typing import Any

import confluent_kafka
from confluent_kafka import Message

from integration.torture.lines import Handler, Line
from queueprop import Settings
from queueprop.adapters.confluent_kafka import traced_message, traced_publish


class ConfluentKafka(Line):
    """By the explicit API, with the instrumented producer below: what goes into that is what goes out."""

    library = "confluent-kafka"

    def __init__(self, settings: Settings | None = None, settle: bool = False) -> None:
        super().__init__(settings, settle)
        # Nobody is there, and what waits is thrown away: that is its delivery report.
        self._producer = confluent_kafka.Producer({"bootstrap.servers": "127.0.0.1:1", "log_level": 0})
        self._latest: Any = None
        self._offset = 0
        self._publish: Any = self._produce
        if settings is not None:
            self._publish = traced_publish(self._publish, settings=settings)

    def _produce(
        self,
        topic: Any,
        value: Any = None,
        key: Any = None,
        partition: Any = -1,
        callback: Any = None,
        on_delivery: Any = None,
        timestamp: Any = 0,
        headers: Any = None,
    ) -> None:
        _check_names(headers)
        self._latest = headers
        self._producer.produce(
            topic, value, key, partition, on_delivery=on_delivery, timestamp=timestamp, headers=headers
        )

    def publish(self, headers: Any, body: str = "", name: str = "orders") -> object:
        self._publish(name, body.encode(), key=b"k", headers=headers)
        self._producer.purge()
        self._producer.poll(0)
        return self._latest

    def deliver(self, headers: Any, handler: Handler, body: str = "", name: str = "orders") -> object:
        self._offset += 1
        topic = name.encode().decode()  # each message of a broker's has a text of its own
        message: Any = Message(topic, 0, self._offset, b"k", body.encode(), headers, None, (1, 0))
        if self.settings is None:
            return handler(message.value().decode())
        with traced_message(message, settings=self.settings):
            return handler(message.value().decode())

    def close(self) -> None:
        self._producer.purge()
        self._producer.flush(1)


def _check_names(headers: Any) -> None:
    """Raises UnicodeEncodeError for a name that is no UTF-8. confluent-kafka raises it for a value, but a name like
    that is the end of the process (seen with 2.15). Names are found as it finds them, in C, whatever a subclass says.
    """
    names: list[Any] = []
    if issubclass(type(headers), dict):
        names = list(dict.keys(headers))
    elif issubclass(type(headers), list):
        pairs = [pair for pair in list.__iter__(headers) if issubclass(type(pair), tuple)]
        names = [tuple.__getitem__(pair, 0) for pair in pairs if tuple.__len__(pair) == 2]
    for name in names:
        if issubclass(type(name), str):
            str.encode(name)


make = ConfluentKafka
