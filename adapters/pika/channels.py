"""What is known of pika's channels: whose they are, what lies below them, and which broker they speak to."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from queueprop import guard
from queueprop.kit import rabbitmq
from queueprop.kit.destinations import Destinations
from queueprop.kit.rivals import Rival, Rivals, how_to_choose

_RIVAL = Rival.contrib("pika", "PikaInstrumentor")
RIVALS = Rivals("pika", _RIVAL)


def is_wrapped_by_another(channel: Any) -> bool:
    """Whether another instrumentation has wrapped this very channel, which lasts when that one is switched off."""
    if RIVALS.modules[0] not in sys.modules:
        return False  # asked at each message, and nearly nobody has it
    for one in (channel, getattr(channel, "_cookie", None)):  # a Channel's cookie is the facade above it
        if hasattr(getattr(one, "__dict__", _NOTHING).get("basic_publish"), "_original_function"):
            guard.mistake(
                "instrumenting pika",
                "opentelemetry.instrumentation.pika has instrumented a channel, and a channel stays so; queueprop "
                f"leaves that one to it; {how_to_choose('pika', _RIVAL)}",
            )
            return True
    return False


_NOTHING: Mapping[str, Any] = {}


def channel_below(channel: Any) -> Any:
    return getattr(channel, "_impl", channel)


def broker_of(channel: Any) -> tuple[str, str | None, int | None]:
    """``messaging.system``, host and port."""
    parameters = parameters_of(channel)
    return rabbitmq.SYSTEM, getattr(parameters, "host", None), getattr(parameters, "port", None)


def parameters_of(channel: Any) -> Any:
    connection = getattr(channel, "connection", None)
    return getattr(getattr(connection, "_impl", connection), "params", None)


published_to = Destinations(
    lambda channel, exchange, key: rabbitmq.producer_destination(exchange, key, *broker_of(channel))
).of
