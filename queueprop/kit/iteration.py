"""Loops over messages: the loop's body runs inside the message's span.

The span of a message opens when the loop is given it and closes when the loop asks for the next one, or ends, or
drops the iterator (``break``, ``return``, an exception, a cancel). A plain ``for`` does not tell its iterator what
ended it, so an exception in the body ends the span without an error on it.
"""

from __future__ import annotations

import sys
import types
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Callable, Generator, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from opentelemetry.context import Context, attach, get_current

from queueprop import guard
from queueprop.engine.scope import Scope
from queueprop.kit.calls import wraps

if TYPE_CHECKING:
    import asyncio

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
    """The scope of the message that a loop's body has in hand. In all else it is the iterator that it stands for."""

    _source: Any = None
    _scope: Scope | None = None
    _before: Context | None = None
    _inside: Context | None = None

    def __init__(self, source: Any, begin: Begin, around: Around | None) -> None:
        self._source = source
        self._begin = begin
        self._around = around

    if TYPE_CHECKING:
        pass  # who asks for what is nowhere is told so still
    else:

        @property
        def __class__(self) -> type:
            return self._source.__class__

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            return getattr(self._source, name)

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

    def hand_on(self) -> None:
        """From now on the messages go to somebody who does not handle them."""
        self._begin = _no_scope

    def __del__(self) -> None:
        self._move_on()


class Messages(_Loop, Generic[T]):
    """An iterator whose consumer handles each message inside its span. ``close`` ends it, and its source, from
    anywhere; what is current in the loop is restored at its next step. It is for one loop: threads that share a source
    have one of these each."""

    def __init__(self, source: Iterator[T], begin: Begin, around: Around | None = None) -> None:
        super().__init__(source, begin, around)

    def __iter__(self) -> Messages[T]:
        return self

    def __next__(self) -> T:
        self._move_on()
        around = self._around
        message: T = next(self._source) if around is None else around(next, self._source)
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
        return self._step(self._source.send, value)

    def throw(self, *error: Any) -> T:
        return self._step(self._source.throw, *error)

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
        super().__init__(source, begin, around)

    def __aiter__(self) -> AsyncMessages[T]:
        if self._other_task() is None:
            return self
        return AsyncMessages(self._source.__aiter__(), self._begin, self._around)

    async def __anext__(self) -> T:
        self._move_on()
        task = _current_task()
        self._task = None if task is None else weakref.ref(task)
        step, around = self._source.__anext__, self._around
        message: T = await step() if around is None else await around(step)
        self._enter(message)
        return message

    async def __aenter__(self) -> AsyncMessages[T]:
        """Of a source that is entered, and may give another. The span in hand ends with the block at the latest."""
        entered = await self._own("__aenter__")()
        return self if entered is self._source else entered

    async def __aexit__(self, *error: Any) -> Any:
        self._end()
        return await self._own("__aexit__")(*error)

    async def aclose(self) -> None:
        self._end()
        close = getattr(self._source, "aclose", None)
        if close is not None:
            await close()

    if TYPE_CHECKING:
        pass
    else:

        @property
        def close(self) -> Callable[..., Any]:
            """As ``aclose``, where that is what the source has."""
            close = self._source.close

            @wraps(close)
            def end(*args: Any, **kwargs: Any) -> Any:
                self._end()
                return close(*args, **kwargs)

            return end

    def _own(self, method: str) -> Callable[..., Any]:
        found: Callable[..., Any] | None = getattr(self._source, method, None)
        if found is None:  # as Python says it
            kind = type(self._source).__name__
            raise TypeError(f"{kind!r} object does not support the asynchronous context manager protocol")
        return found

    def _end(self) -> None:
        self._end_in_its_task()
        self.leave()

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


class HandlesEach(Generic[T]):
    """Messages, each of which is handled inside its span by whatever iterates these, forwards or ``reversed``.

    What looks at them or copies them handles none: ``message in messages``, their index and their text, a slice, a
    copy; nor do ``list``, ``tuple`` and ``sorted``, ``[*messages]`` and ``extend``, which do iterate them, but ask for
    their number first. (``set`` does not ask, and neither does a generator of the user's that only looks.)
    """

    __slots__ = ()

    if TYPE_CHECKING:

        def __getitem__(self, index: Any) -> Any: ...


class Handling:
    """What ``HandlesEach`` does of it: by whom the messages are iterated."""

    __slots__ = ("_begin", "_latest")

    def __init__(self, begin: Begin) -> None:
        self._begin = begin
        self._latest: tuple[weakref.ref[Messages[Any]], Place | None] | None = None

    def each_of(self, messages: Iterator[T]) -> Messages[T]:
        """For ``__iter__``, which calls it."""
        loop = Messages(messages, self._begin)
        self._latest = weakref.ref(loop), _place(sys._getframe(1).f_back)
        return loop

    def counted(self) -> None:
        """For ``__len__``, which calls it. Where the same instruction of the caller's has just begun to iterate, it
        copies: the one that begins a loop does nothing else."""
        latest = self._latest
        if latest is None:
            return
        self._latest = None
        loop, place = latest[0](), latest[1]
        if loop is not None and place is not None and place == _place(sys._getframe(1).f_back):
            loop.hand_on()


class MessageList(list[T], HandlesEach[T]):
    """Messages as a pull call returned them: a list, but whatever iterates it handles each inside its CONSUMER span,
    and each once more inside its context when it is iterated again."""

    __slots__ = ("_handling",)

    def __init__(self, messages: Iterable[T], begin: Begin) -> None:
        super().__init__(messages)
        self._handling = Handling(begin)

    def __iter__(self) -> Iterator[T]:
        return self._handling.each_of(super().__iter__())

    def __reversed__(self) -> Iterator[T]:
        return self._handling.each_of(super().__reversed__())

    def __len__(self) -> int:
        self._handling.counted()
        return super().__len__()

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return list, (self[:],)  # copied and pickled as a list is

    @staticmethod
    def plain(messages: Iterable[T]) -> list[T]:
        """The messages, without handling them."""
        return list(messages[:]) if isinstance(messages, HandlesEach) else list(messages)


Place = tuple[int, types.CodeType, int]


def _place(frame: types.FrameType | None) -> Place | None:
    """The instruction that a frame is at; None where no Python calls. The frame itself would keep alive what it has."""
    return None if frame is None else (id(frame), frame.f_code, frame.f_lasti)


def _no_scope(message: Any) -> None:
    return None


def _current_task() -> asyncio.Task[Any] | None:
    try:
        current: asyncio.Task[Any] | None = sys.modules["asyncio"].current_task()
    except (
        KeyError,
        AttributeError,
        RuntimeError,
    ):  # nobody has imported it, or not yet whole, or this is not under it
        return None
    return current
