"""Dramatiq's messages: the context in their options, their destination, their times, the function of their actor."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import dramatiq
from dramatiq.broker import MessageProxy
from dramatiq.common import q_name
from opentelemetry.util.types import AttributeValue

from queueprop.engine.message import Destination, bounded, remembered
from queueprop.kit import redis
from queueprop.kit.jobs import with_carrier
from queueprop.wire.headers import text

OPTION = "queueprop"
"""The message's option in which the context travels."""

SYSTEM = "dramatiq"
"""``messaging.system``: the conventions have no value for Dramatiq, and this is what its users would search for."""

RETRIES = "retries"  # Dramatiq's own option: how many there were

# Beside the context, in seconds.
SENT_AT = "sent_at"
DELAY = "delay"
TIMES = (SENT_AT, DELAY)


def can_carry(message: Any) -> bool:
    """Whether it is a message that Dramatiq itself would take, or refuse for what the context has no part in.

    Options that are no dict stay what they are: a copy of them would be one, and be taken.
    """
    return (
        isinstance(message, (dramatiq.Message, MessageProxy))
        and isinstance(message.options, dict)
        and isinstance(message.queue_name, str)
    )


# The context in their options


def with_times(carrier: Mapping[str, str], delay: float | None) -> dict[str, str]:
    times = {SENT_AT: repr(time.time())}
    if delay is not None:
        times[DELAY] = repr(delay)
    return {**{k: v for k, v in carrier.items() if k not in TIMES}, **times}


def with_context(message: Any, carrier: dict[str, str] | None) -> Any:
    options = message.options if carrier is None else with_carrier(message.options, OPTION, carrier)
    return message if options is message.options else message._replace(options=options)


def seconds_in(carrier: Any, name: str) -> float | None:
    written = text(carrier.get(name)) if isinstance(carrier, dict) else None
    try:
        value = float(written or "")
    except ValueError:
        return None
    return value if 0 <= value < float("inf") else None


# What they say of themselves


def id_of(message: Any) -> str | None:
    """A delivery may have anything in its place."""
    return message.message_id if isinstance(message.message_id, str) else None


def delay_of(message: Any, milliseconds: Any) -> float | None:
    """The seconds for which a message is meant to wait: by the call, or by an option of its own."""
    try:
        if isinstance(milliseconds, (int, float)):
            return max(0.0, milliseconds / 1000)
        eta = message.options.get("eta")
        return max(0.0, eta / 1000 - time.time()) if isinstance(eta, (int, float)) else None
    except OverflowError:  # an integer that is no float any more
        return None


def function_of(broker: Any, message: Any) -> dict[str, AttributeValue] | None:
    name = message.actor_name
    if not isinstance(name, str):
        return None
    actor = broker.actors.get(name)
    if actor is None:
        return {_FUNCTION: bounded(name)}
    function: Any = actor.fn if hasattr(actor.fn, "__qualname__") else type(actor.fn)  # of a generic actor
    return {_FUNCTION: f"{getattr(function, '__module__', '')}.{function.__qualname__}"}


_FUNCTION = "code.function.name"


def destination_of(broker: Any, message: Any) -> Destination:
    return _destination_at(q_name(message.queue_name), *_server(broker))


@remembered
def _destination_at(name: str, host: str | None, port: int | None) -> Destination:
    return Destination(system=SYSTEM, name=name, server_address=host, server_port=port)


def _server(broker: Any) -> tuple[str | None, int | None]:
    """Host and port, where the broker is one of Dramatiq's own on a server."""
    parameters = getattr(broker, "parameters", None)
    if isinstance(parameters, list):  # of RabbitMQ: the first that answers
        parameters = parameters[0] if len(parameters) == 1 else None
    host, port = getattr(parameters, "host", None), getattr(parameters, "port", None)
    if host is not None:
        return host, port
    return redis.address_of(getattr(broker, "client", None))
