"""Loops over messages: the loop's body runs inside the message's span.

The span of a message opens when the loop is given it and closes when the loop asks for the next one, or ends, or
drops the iterator (``break``, ``return``, an exception, a cancel). A plain ``for`` does not tell its iterator what
ended it, so an exception in the body ends the span without an error on it.
"""

from __future__ import annotations

import asyncio
import sys
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Callable, Generator, Iterable, Iterator
from contextlib import suppress
from typing import Any, Generic, TypeVar, overload

from opentelemetry.context import Context, attach, get_current

from queueprop import guard
from queueprop.engine.scope import Scope

T = TypeVar("T")

Begin = Callable[[Any], "Scope | None"]

Around = Callable[..., Any]
"""What is done around each step of the source, ``around(step, *arguments)``: a pull's span, or a mark."""


@overload
def iterate_inside(messages: AsyncIterable[T], begin: Begin) -> AsyncMessages[T]: ...
@overload
def iterate_inside(messages: Iterable[T], begin: Begin) -> Messages[T]: ...
def iterate_inside(messages: Any, begin: Begin) -> Any:
    """One pass over ``messages``, sync or async; each is handled inside the scope that ``begin(message)`` makes.

    ``begin`` may give ``None`` (an idle tick is no message): nothing is current then.
    """
    if hasattr(messages, "__aiter__"):
        return AsyncMessages(messages.__aiter__(), begin)
    return Messages(iter(messages), begin)


class _Loop:
    """The scope of the message that a loop's body has in hand."""

    _scope: Scope | None = None
    _before: Context | None = None
    _inside: Context | None = None

    def __init__(self, begin: Begin, around: Around | None) -> None:
        self._begin = begin
        self._around = around

    def _enter(self, message: Any) -> None:
        try:
            self._scope = self._begin(message)
        except Exception as error:
            guard.fault("reading a message of a loop", error)
        if self._scope is not None:
            self._before = get_current()
            self._scope.open()
            self._inside = get_current()

    def _move_on(self) -> None:
        """At the loop's next step, or when it is over."""
        self.leave()
        before, inside = self._before, self._inside
        self._before = self._inside = None
        if before is not None and get_current() is inside:
            attach(before)  # it was ended elsewhere, which could change nothing here

    def leave(self) -> None:
        """Ends the span of the message in hand, from anywhere: its loop is over, though the iterator may be kept."""
        scope, self._scope = self._scope, None
        if scope is not None:
            scope.close()

    def __del__(self) -> None:
        self._move_on()


class Messages(_Loop, Generic[T]):
    """An iterator whose consumer handles each message inside its span. ``close`` ends it, and its source, from
    anywhere; what is current in the loop is restored at its next step."""

    def __init__(self, source: Iterator[T], begin: Begin, around: Around | None = None) -> None:
        super().__init__(begin, around)
        self._source = source

    def __iter__(self) -> Messages[T]:
        return self

    def __next__(self) -> T:
        self._move_on()
        around = self._around
        message = next(self._source) if around is None else around(next, self._source)
        self._enter(message)
        return message

    def close(self) -> None:
        self.leave()
        close = getattr(self._source, "close", None)
        if close is not None:
            close()


class GeneratorMessages(Messages[T], Generator[T, Any, None]):
    """As ``Messages``, where a library gave its caller a generator: it is one still."""

    def __iter__(self) -> GeneratorMessages[T]:
        return self

    def send(self, value: Any) -> T:
        return self._step(self._source.send, value)  # type: ignore[attr-defined]

    def throw(self, *error: Any) -> T:
        return self._step(self._source.throw, *error)  # type: ignore[attr-defined]

    def _step(self, step: Callable[..., T], *given: Any) -> T:
        self._move_on()
        message = step(*given) if self._around is None else self._around(step, *given)
        self._enter(message)
        return message


class AsyncMessages(_Loop, Generic[T]):
    """As ``Messages``, for ``async for``. Each step must run in the loop's own task (``anext`` under
    ``asyncio.wait_for`` does not before Python 3.12: the body is outside then).

    Several tasks may loop over one of these: each has the span of its own message.
    """

    _task: weakref.ref[asyncio.Task[Any]] | None = None

    def __init__(self, source: AsyncIterator[T], begin: Begin, around: Around | None = None) -> None:
        super().__init__(begin, around)
        self._source = source

    def __aiter__(self) -> AsyncMessages[T]:
        if self._other_task() is None:
            return self
        return AsyncMessages(self._source.__aiter__(), self._begin, self._around)

    async def __anext__(self) -> T:
        self._move_on()
        task = _current_task()
        self._task = None if task is None else weakref.ref(task)
        step, around = self._source.__anext__, self._around
        message = await step() if around is None else await around(step)
        self._enter(message)
        return message

    async def aclose(self) -> None:
        self._end_in_its_task()
        self.leave()
        close = getattr(self._source, "aclose", None)
        if close is not None:
            await close()

    def __del__(self) -> None:
        self._end_in_its_task()
        super().__del__()

    def _end_in_its_task(self) -> None:
        """An async generator around the loop that is left by ``break`` is closed by a task of the event loop's own.
        What is to be restored is its consumer's context, which Python tells from 3.12 on."""
        task, current = self._other_task(), _current_task()
        if task is None or current is None or task.get_loop() is not current.get_loop():
            return
        if sys.version_info >= (3, 12):
            with suppress(RuntimeError):  # that context is in use
                task.get_context().run(self._move_on)

    def _other_task(self) -> asyncio.Task[Any] | None:
        """The task that loops over this, where it is not the one at hand and is not over."""
        task = None if self._task is None else self._task()
        return None if task is None or task is _current_task() or task.done() else task


class MessageList(list[T]):
    """Messages as a pull call returned them: a list, but whatever iterates it handles each inside its CONSUMER span,
    and each once more inside its context when it is iterated again."""

    __slots__ = ("_begin",)

    def __init__(self, messages: Iterable[T], begin: Begin) -> None:
        super().__init__(messages)
        self._begin = begin

    def __iter__(self) -> Iterator[T]:
        return Messages(super().__iter__(), self._begin)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return list, (self[:],)  # copied and pickled as a list is

    @staticmethod
    def plain(messages: Iterable[T]) -> list[T]:
        """The messages, without handling them."""
        return messages[:] if isinstance(messages, MessageList) else list(messages)


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # not under asyncio
        return None
