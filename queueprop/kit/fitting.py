"""Headers that must fit into so many bytes: first the baggage goes, then the tracestate, then all of the context.

A message that fits without our headers must still be sent: Kafka refuses what is too large, RabbitMQ closes the
connection for a frame that is, others disconnect the client.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

from opentelemetry.context import Context

from queueprop import guard
from queueprop.wire import headers, propagation

H = TypeVar("H")


def fitted(
    written: H, plain: Callable[[], H], fits: Callable[[H], bool], where: str, about: object = ""
) -> H:
    """What of the context goes out.

    Args:
        written: the headers with all of it.
        plain: makes the headers as they were, ours to write to. Where these do not fit either they go out as they
            are: the library has its answer to that.
        fits: whether a message with these headers is within the limit.
        where: for the log, where nothing of it has room: ``publishing with pika``.
        about: for the log: the destination's name.
    """
    if fits(written):
        return written
    bare = plain()
    if not fits(bare):
        return bare
    for names in (("baggage",), ("baggage", "tracestate")):
        shorter = copy.copy(written)
        headers.remove(shorter, names)
        if fits(shorter):
            return shorter
    guard.mistake(
        where, "a message leaves no room for a trace context; it goes out without one", about=f"to {about}"
    )
    propagation.write(bare, Context())  # nor with an earlier one
    return bare
