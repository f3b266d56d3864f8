"""pika: a blocking connection that encodes and decodes frames, and a socket that is not there."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from pika import BasicProperties, BlockingConnection, ConnectionParameters, frame, spec
from pika.channel import Channel
from pika.connection import Connection

from benchmarks.stubs import TRACEPARENT, Handler, Stub, texts
from benchmarks.stubs.by_hand import ByHand, injected


class _Wire(Connection):  # type: ignore[misc]
    """Sends into nothing."""

    def __init__(self) -> None:
        super().__init__(ConnectionParameters("rabbit.example"), internal_connection_workflow=False)
        self._set_connection_state(self.CONNECTION_OPEN)
        self._opened = True
        self._body_max_length = 131_064
        self.emitted: list[bytes] = []

    def _adapter_emit_data(self, data: bytes) -> None:
        self.emitted.append(data)

    def _adapter_call_later(self, delay: Any, callback: Any) -> object:
        return object()

    def _adapter_remove_timeout(self, timeout_id: object) -> None: ...

    def _adapter_add_callback_threadsafe(self, callback: Any) -> None: ...

    def _adapter_connect_stream(self) -> None: ...

    def _adapter_disconnect_stream(self) -> None: ...


class _Blocking(BlockingConnection):  # type: ignore[misc]
    """Never waits for the broker's answers."""

    def __init__(self, wire: _Wire) -> None:
        self._impl = wire
        self._channels_pending_dispatch: set[int] = set()
        self._ready_events: deque[Any] = deque()

    def _flush_output(self, *waiters: Any) -> None: ...

    def __del__(self) -> None: ...


class Pika(Stub):
    system = "rabbitmq"
    cut = "the socket"

    def __init__(self) -> None:
        self._wire = _Wire()
        self._channel = _Blocking(self._wire).channel(1)
        below = self._channel._impl
        below._set_state(Channel.OPEN)
        below._rpc = lambda *_: None
        self._take: Callable[[Any], object] = lambda headers: None
        self._channel.basic_consume("orders", self._on_message, auto_ack=True, consumer_tag="consumer")

    def _on_message(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        self._take(properties.headers)

    def publishes(self, count: int) -> Callable[[], None]:
        publish = self._channel.basic_publish
        self._wire.emitted.clear()

        def run() -> None:
            for _ in range(count):
                publish("", "orders", b"hello", BasicProperties(headers={"tenant": "acme"}))

        return run

    def deliveries(self, count: int, handler: Handler) -> Callable[[], None]:
        return self._delivers(count, lambda headers: handler())

    def publishes_by_hand(self, count: int) -> Callable[[], None]:
        publish, by_hand = self._channel.basic_publish, ByHand(self.system)
        self._wire.emitted.clear()

        def run() -> None:
            for _ in range(count):
                with by_hand.sending():
                    headers = {"tenant": "acme", **injected()}
                    publish("", "orders", b"hello", BasicProperties(headers=headers))

        return run

    def deliveries_by_hand(self, count: int, handler: Handler) -> Callable[[], None]:
        return self._delivers(count, ByHand(self.system).around(handler))

    def _delivers(self, count: int, take: Callable[[Any], object]) -> Callable[[], None]:
        self._take = take
        data = b"".join(one.marshal() for one in _delivery())

        def run() -> None:
            for _ in range(count):
                self._wire._on_data_available(data)
                self._channel._dispatch_events()

        return run

    def written(self) -> Mapping[str, str]:
        data = self._wire.emitted[-2]  # method, header, body
        _, header = frame.decode_frame(data)
        return texts(header.properties.headers)


def _delivery() -> list[Any]:
    properties = BasicProperties(headers={"tenant": "acme", "traceparent": TRACEPARENT})
    deliver = spec.Basic.Deliver("consumer", 1, False, "", "orders")
    return [frame.Method(1, deliver), frame.Header(1, 5, properties), frame.Body(1, b"hello")]


make = Pika
