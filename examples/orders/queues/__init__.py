"""The queues that the example runs on, a module each. ORDERS_QUEUE names one.

A further queue is one more module here, with what ``Queue`` says, and its name in ``config.py``. Neither service knows
which one it is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from importlib import import_module
from typing import Any, Protocol, cast

from examples.orders import config

READY = "waiting for messages"
"""What the worker logs when it has begun."""

Publish = Callable[[dict[str, Any]], Awaitable[None]]
Handler = Callable[[dict[str, Any]], None]


class Queue(Protocol):
    """What such a module has."""

    LIBRARY: str
    """What ``queueprop.instrument()`` is told."""

    def publisher(self) -> AbstractAsyncContextManager[Publish]:
        """A connection, and inside it the function that publishes a message."""
        ...

    def work(self, handle: Handler) -> None:
        """Handles messages until SIGTERM; that one which is being handled then is finished."""
        ...


def chosen() -> Queue:
    return cast(Queue, import_module(f"{__name__}.{config.QUEUE}"))
