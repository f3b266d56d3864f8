"""A publish, and the message that goes out. Imported where one is to be traced: wrapt takes its time."""

from __future__ import annotations

import copy
from typing import Any

from queueprop import guard
from queueprop.adapters.aio_pika import Publish
from queueprop.adapters.aio_pika.channels import published_to
from queueprop.engine import semconv
from queueprop.kit import calls, rabbitmq
from queueprop.kit.proxies import Proxy


class AioPikaPublication(rabbitmq.TablePublication):
    """A ``publish``, with headers that are ours to write to."""

    library = "aio-pika"

    def __init__(self, exchange: Any, message: Any, routing_key: Any) -> None:
        self._channel = getattr(exchange, "channel", None)
        given = message.headers or {}
        headers = dict(given) if isinstance(given, dict) else None
        outgoing: Any = _Outgoing(message, headers)
        name: Any = getattr(exchange, "name", None)
        described = rabbitmq.published(
            message, headers, message.body, calls.named(Publish, (name, routing_key, outgoing))
        )
        destination = published_to(self._channel, name, routing_key)
        super().__init__(destination, described, given, outgoing, (0, "message"))

    def frame_max(self) -> int:
        underlay = getattr(getattr(self._channel, "_channel", None), "channel", None)  # None: not connected
        tune = getattr(getattr(underlay, "connection", None), "connection_tune", None)
        return getattr(tune, "frame_max", 0)

    def encoded(self) -> int:
        return len(self.outgoing.properties.marshal())

    def end(self, result: Any) -> None:
        returned = getattr(result, "delivery", None)  # a message that came back, unless ``on_return_raises``
        if returned is not None:
            text = returned.reply_text
            self.send.fail(text, f"{text} for routing key {returned.routing_key!r}")
        self.send.close_with(
            self.outgoing.sent, lambda it: {} if it is None else {semconv.MESSAGE_ID: it.message_id}
        )


class _Outgoing(Proxy):
    """The caller's message in all but its headers; so is a copy that a function of the user's makes of it."""

    headers: Any = None
    sent: Any = None
    """Its properties: aiormq gives them an id, where the caller gave none."""

    def __init__(self, message: Any, headers: dict[Any, Any] | None) -> None:
        super().__init__(message)
        self.headers = headers

    @property
    def properties(self) -> Any:
        self.sent = properties = self.__wrapped__.properties  # made anew each time
        properties.headers = self.headers
        return properties

    def __repr__(self) -> str:
        return repr(self.__wrapped__)  # aio-pika logs it

    def __copy__(self) -> Any:
        return _with_headers(super().__copy__(), self.headers)

    def __deepcopy__(self, memo: Any) -> Any:
        return _with_headers(super().__deepcopy__(memo), copy.deepcopy(self.headers, memo))


def _with_headers(message: Any, headers: Any) -> Any:
    try:
        if headers is not None:
            message.headers = headers
    except Exception as error:  # of a class of the user's
        guard.fault("copying a message of aio-pika", error)
    return message
