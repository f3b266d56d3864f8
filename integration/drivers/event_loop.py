"""An event loop for each thread, for the drivers of libraries on asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from opentelemetry.context import Context, attach, get_current

from integration.contract.actions import HandlerError
from integration.contract.telemetry import tell_library_error


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
