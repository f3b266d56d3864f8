"""pika: a blocking connection whose frames go nowhere, and the callbacks that were registered with it."""

from __future__ import annotations

from typing import Any

from pika import BasicProperties, frame, spec
from pika.channel import Channel

from benchmarks.stubs.pika import _Blocking, _Wire
from integration.torture.lines import Handler, Line
from queueprop import Settings


class Pika(Line):
    library = "pika"
    carrier = "dict"
    settles = True

    def __init__(self, settings: Settings | None = None, settle: bool = False) -> None:
        super().__init__(settings, settle)
        self._wire = _Wire()
        self._channel = _Blocking(self._wire).channel(1)
        self._channel._impl._set_state(Channel.OPEN)
        self._channel._impl._rpc = lambda *_: None
        self._handler: Handler = lambda body: None
        self._channel.basic_consume("orders", self._on_message, auto_ack=not settle, consumer_tag="consumer")
        self._tag = 0

    def _on_message(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        self._handler(body.decode())
        if self.settle:
            channel.basic_ack(method.delivery_tag)

    def publish(self, headers: Any, body: str = "", name: str = "orders") -> object:
        self._wire.emitted.clear()
        self._channel.basic_publish("", name, body.encode(), BasicProperties(headers=headers))
        data = next(one for one in self._wire.emitted if one[0] == spec.FRAME_HEADER)
        _, header = frame.decode_frame(data)
        return header.properties.headers

    def deliver(self, headers: Any, handler: Handler, body: str = "", name: str = "orders") -> object:
        """By the callback as it is registered: what no frame could hold gets there, too."""
        self._handler = handler
        self._tag += 1
        self._wire.emitted.clear()
        consumer = self._channel._consumer_infos["consumer"]
        method = spec.Basic.Deliver("consumer", self._tag, False, "", name)
        return consumer.on_message_callback(
            self._channel, method, BasicProperties(headers=headers), body.encode()
        )


make = Pika
