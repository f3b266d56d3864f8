"""Each library without a broker, one message at a time: what is published, and what a handler is given.

They are the library's own objects, as far down as ``benchmarks/stubs`` goes, but with headers, bodies and names of the
caller's choice, odd ones included. What is raised here is what the library (or ours) has raised.
"""

from __future__ import annotations

import asyncio
import importlib
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import queueprop
from queueprop import Settings

LIBRARIES = (
    "core",
    "pika",
    "aio-pika",
    "aiokafka",
    "confluent-kafka",
    "kombu",
    "celery",
    "dramatiq",
    "rq",
    "bullmq",
    "faststream",
)

Handler = Callable[[str], object]
AsyncHandler = Callable[[str], Awaitable[object]]


class Line(ABC):
    """One library. It is made once the library is instrumented, if at all.

    Args:
        settings: with which it is traced; None for a plain run.
    """

    library: ClassVar[str]

    carrier: ClassVar[str] = "pairs"
    """What it takes as headers: ``dict`` or ``pairs`` (``str`` names, ``bytes`` values)."""

    settles = False
    """Whether a delivery is acknowledged by its handler, where ``settle`` was asked for."""

    def __init__(self, settings: Settings | None = None, settle: bool = False) -> None:
        self.settings = settings
        self.settle = settle

    @abstractmethod
    def publish(self, headers: Any, body: str = "", name: str = "orders") -> object:
        """Publishes one message. Returns what the headers of it were when it went out, for ``deliver``."""

    @abstractmethod
    def deliver(self, headers: Any, handler: Handler, body: str = "", name: str = "orders") -> object:
        """Hands one message with these headers to a handler."""

    def close(self) -> None:  # noqa: B027 - most have started nothing
        """Ends what it has started."""


class AsyncLine(Line):
    """One whose library is asyncio's: ``publish`` and ``deliver`` run its loop."""

    def __init__(self, settings: Settings | None = None, settle: bool = False) -> None:
        super().__init__(settings, settle)
        self.loop = asyncio.new_event_loop()

    def publish(self, headers: Any, body: str = "", name: str = "orders") -> object:
        return self.loop.run_until_complete(self.publish_async(headers, body, name))

    def deliver(self, headers: Any, handler: Handler, body: str = "", name: str = "orders") -> object:
        async def handle(given: str) -> object:
            return handler(given)

        return self.loop.run_until_complete(self.deliver_async(headers, handle, body, name))

    @abstractmethod
    async def publish_async(self, headers: Any, body: str = "", name: str = "orders") -> object: ...

    @abstractmethod
    async def deliver_async(
        self, headers: Any, handler: AsyncHandler, body: str = "", name: str = "orders"
    ) -> object: ...

    def close(self) -> None:
        self.loop.close()


def line_class(library: str) -> type[Line]:
    """Raises ImportError where the library is not installed."""
    module = importlib.import_module(f"{__name__}.{library.replace('-', '_')}")
    found: type[Line] = module.make
    return found


@contextmanager
def instrumented(library: str, settings: Settings | None) -> Iterator[None]:
    """Nothing is where there are no settings, and what has none to instrument is traced by its line itself."""
    if settings is None or library in ("core", "faststream"):
        yield
        return
    queueprop.instrument(library, settings=settings)
    try:
        yield
    finally:
        queueprop.uninstrument(library)
