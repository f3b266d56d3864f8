"""What the drivers of libraries on asyncio share: each verb runs in an event loop of its thread."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from abc import abstractmethod
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Generic, TypeVar

from opentelemetry.context import Context, attach, get_current

from integration.contract.actions import Handler, HandlerError
from integration.contract.driver import Api, Driver, Failing
from integration.contract.telemetry import DEADLINE, tell_library_error
from integration.live import run_killed


class EventLoop:
    """Runs a driver's verbs, and tells of the handlers' exceptions that its library leaves to the loop."""

    def __init__(self) -> None:
        self.told: list[BaseException] = []
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(self._tell)

    def run(self, verb: Coroutine[Any, Any, Any]) -> Any:
        """A task has a context of its own: what the verb leaves current there is made current here, to be seen."""
        result, left = self._loop.run_until_complete(_watched(verb))
        if left != get_current():
            attach(left)
        return result

    async def all_told(self, count: int) -> None:
        """Returns when the loop was given so many exceptions."""
        while len(self.told) < count:
            await asyncio.sleep(0)

    def close(self) -> None:
        self._loop.close()

    def _tell(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, HandlerError):
            loop.default_exception_handler(context)
        elif not any(error is told for told in self.told):
            self.told.append(error)
            tell_library_error(error)


async def _watched(verb: Coroutine[Any, Any, Any]) -> tuple[Any, Context]:
    return await verb, get_current()


L = TypeVar("L", bound=EventLoop)


class AsyncioDriver(Driver, Generic[L]):
    """``L`` is a thread's loop, and what it publishes by."""

    def __init__(self, style: str, api: Api, url: str | None = None) -> None:
        super().__init__(style, api, url)
        self._event_loops: dict[int, L] = {}
        self._sending: list[asyncio.Future[Any]] = []

    @abstractmethod
    def make_event_loop(self) -> L: ...

    @property
    def _event_loop(self) -> L:
        number = threading.get_ident()
        if number not in self._event_loops:
            self._event_loops[number] = self.make_event_loop()
        return self._event_loops[number]

    def _run(self, verb: Coroutine[Any, Any, Any]) -> Any:
        return self._event_loop.run(verb)

    def close_event_loops(self) -> None:
        with self._untraced():
            while self._event_loops:
                self._event_loops.popitem()[1].close()

    def failing(self) -> Sequence[Failing]:
        return [Failing(name, lambda way=way: self._run(way())) for name, way in self.failing_ways().items()]  # type: ignore[misc]

    @abstractmethod
    def failing_ways(self) -> Mapping[str, Callable[[], Coroutine[Any, Any, Any]]]:
        """As ``failing``."""

    # What handlers publish: they are no coroutine functions.

    def send_soon(self, sending: Coroutine[Any, Any, Any]) -> None:
        self._sending.append(asyncio.ensure_future(sending))

    async def all_sent(self) -> None:
        """Returns when all that handlers have published is at the broker."""
        while self._sending:
            await self._sending.pop(0)

    # Consuming

    def consume_killed(self, handler: Handler) -> None:
        def consume() -> None:
            asyncio.events._set_running_loop(None)
            loop = self.make_event_loop()
            loop.run(self.consume_by(loop, handler, 1))

        run_killed(consume)
        self.consume(handler)

    @abstractmethod
    async def consume_by(self, loop: L, handler: Handler, count: int) -> None:
        """As ``consume``, in this loop."""


async def left_by_cancel(leaving: Coroutine[Any, Any, object], begun: asyncio.Event) -> None:
    """Runs it in a task, which is cancelled as soon as it has begun to handle a message."""
    task = asyncio.ensure_future(leaving)
    await asyncio.wait_for(begun.wait(), DEADLINE)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
