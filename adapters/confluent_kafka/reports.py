"""The delivery reports of librdkafka, which end the spans of what was produced."""

from __future__ import annotations

import atexit
import functools
import os
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from opentelemetry.util.types import AttributeValue

from queueprop import guard
from queueprop.engine import semconv
from queueprop.engine.operations import Send
from queueprop.kit import kafka
from queueprop.kit.handlers import carried


class DeliveryReport:
    """What librdkafka calls when it is known what became of a message, in whichever thread asks it for reports."""

    __slots__ = ("__weakref__", "_callback", "_send")

    def __init__(self, send: Send, callback: Callable[..., Any] | None) -> None:
        self._send: Send | None = send
        self._callback = None if callback is None else carried(callback)
        _end_at_exit()
        _unreported[id(self)] = weakref.ref(self)

    def __call__(self, error: Any, message: Any) -> Any:
        send, self._send = self._send, None
        if send is not None:
            if error is not None:
                _tell(send, error)
            send.close_with(
                message, described if send.labels.destination.partition_id is None else _offset_of
            )
        return None if self._callback is None else self._callback(error, message)

    def __del__(self) -> None:
        _unreported.pop(id(self), None)
        # With delivery.report.only.error a success is told by nothing but this.
        if self._send is not None:
            self._send.close()

    def give_up(self) -> None:
        """The process ends, and nobody will be told any more."""
        send, self._send = self._send, None
        if send is not None:
            send.fail("unreported", "the producer was not flushed: nobody knows whether it was delivered")
            send.close()


def _tell(send: Send, error: Any) -> None:
    try:
        send.fail(error.name(), error.str())
    except Exception as fault:
        guard.fault("reading a delivery report of confluent-kafka", fault)


def _offset_of(message: Any) -> Mapping[str, AttributeValue]:
    offset = message.offset()
    return {kafka.OFFSET: offset} if isinstance(offset, int) and offset >= 0 else {}


def described(message: Any) -> Mapping[str, AttributeValue]:
    partition = message.partition()
    if not isinstance(partition, int) or partition < 0:
        return _offset_of(message)
    return {semconv.DESTINATION_PARTITION_ID: str(partition), **_offset_of(message)}


# A producer that goes without flush() reports nothing, and keeps its callbacks for ever.
_unreported: dict[int, weakref.ref[DeliveryReport]] = {}


@functools.lru_cache(maxsize=1)
def _end_at_exit() -> None:
    """At the first publish, so that it comes before the SDK's own end, which was set up before."""
    atexit.register(_give_up)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_unreported.clear)  # they are the parent's


def _give_up() -> None:
    for reference in list(_unreported.values()):
        report = reference()
        if report is not None:
            report.give_up()
