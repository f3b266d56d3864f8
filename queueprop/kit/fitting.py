"""Headers that must fit into so many bytes: first the baggage goes, then the tracestate, then all of the context.

A message that fits without our headers must still be sent: Kafka refuses what is too large, RabbitMQ closes the
connection for a frame that is, others disconnect the client.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
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
    for shorter in _shorter(written):
        if fits(shorter):
            return shorter
    say_no_room(where, about)
    propagation.write(bare, Context())  # nor with an earlier one
    return bare


def sent_shorter(written: H, plain: H, send: Callable[[H], bool], where: str, about: object = "") -> bool:
    """Sends a message with less of the context, after it was refused for its size with all of it.

    For a library that alone knows its limit, and does nothing but refuse a message that is beyond it.

    Args:
        written, plain, where, about: as above.
        send: sends it with these headers; False where it was refused for its size again.

    Returns whether it was sent.
    """
    for shorter in _shorter(written):
        if send(shorter):
            return True
    propagation.write(plain, Context())
    if not send(plain):
        return False
    say_no_room(where, about)
    return True


def _shorter(written: H) -> Iterator[H]:
    for names in (("baggage",), ("baggage", "tracestate")):
        shorter = copy.copy(written)
        headers.remove(shorter, names)
        yield shorter


def say_no_room(where: str, about: object = "") -> None:
    """Tells of a message that goes out without a context. Arguments as for ``fitted``."""
    guard.mistake(
        where,
        "a message leaves no room for a trace context; it goes out without one, and its consumer begins a trace of its "
        "own; make it smaller, or raise the limit on its size",
        about=f"to {about}",
    )
