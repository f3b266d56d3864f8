"""Runs a handler inside a scope, whatever kind of callable it is: sync, async, generator, async generator."""

from __future__ import annotations

import inspect
import types
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeVar, cast

from opentelemetry.context import get_current
from opentelemetry.trace import INVALID_SPAN, Span

from queueprop import guard
from queueprop.engine.operations import error_of
from queueprop.engine.scope import CarriedContext, Scope
from queueprop.kit.calls import beneath_partials, wraps

F = TypeVar("F", bound=Callable[..., Any])


Begin = Callable[[tuple[Any, ...], dict[str, Any]], "Scope | None"]


def run_inside(handler: F, begin: Begin) -> F:
    """Wraps ``handler`` so that each call runs inside the scope that ``begin(args, kwargs)`` makes for it.

    A generator's body runs inside, from its first step to its end; what its consumer does between two steps does
    not. ``begin`` may give ``None``: that call runs as it is.
    """
    if isinstance(handler, (staticmethod, classmethod)):
        return cast(F, type(handler)(run_inside(handler.__func__, begin)))
    if _is_a(inspect.isasyncgenfunction, handler):
        wrapper = _async_generator(handler, begin)
    elif _is_a(inspect.isgeneratorfunction, handler):
        wrapper = _generator(handler, begin)
        if _is_a(_is_old_coroutine, handler):
            wrapper = types.coroutine(wrapper)
    elif _is_a(inspect.iscoroutinefunction, handler):
        wrapper = _coroutine(handler, begin)
    else:
        wrapper = _function(handler, begin)
    return cast(F, wraps(handler)(wrapper))


def carried(callback: Callable[..., Any]) -> Callable[..., Any]:
    """``callback``, which a library calls from wherever it stands: inside the context that is current now."""
    context = get_current()

    def call(*args: Any, **kwargs: Any) -> Any:
        scope = CarriedContext(context)
        scope.open()
        try:
            return callback(*args, **kwargs)
        finally:
            scope.close()

    return call


def prepared(
    begin: Callable[[], AbstractContextManager[Span] | None], what: str
) -> AbstractContextManager[Span]:
    """What ``begin`` makes, as a context manager in any case: an empty one for ``None``, and where that failed.

    Args:
        begin: reads a message and makes its operation.
        what: for the log, where it raises: ``reading a message of pika``.
    """
    try:
        return begin() or nullcontext(INVALID_SPAN)
    except Exception as error:
        guard.fault(what, error)
        return nullcontext(INVALID_SPAN)


def _is_a(kind: Callable[[Any], bool], handler: Any) -> bool:
    """Whether calling ``handler`` is calling a function of this kind: it, or the ``__call__`` of an object."""
    handler = beneath_partials(handler)
    return kind(handler) or kind(type(handler).__call__)


def _is_old_coroutine(function: Any) -> bool:
    """Whether it is a generator function that ``types.coroutine`` has made awaitable."""
    code = getattr(function, "__code__", None)
    return bool(getattr(code, "co_flags", 0) & inspect.CO_ITERABLE_COROUTINE)


_READING = "reading a message before its handler"


def _begun(begin: Begin, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Scope | None:
    try:
        return begin(args, kwargs)
    except Exception as error:
        guard.fault(_READING, error)
        return None


def _function(handler: Callable[..., Any], begin: Begin) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            scope = begin(args, kwargs)
        except Exception as error:
            guard.fault(_READING, error)
            scope = None
        if scope is None:
            return handler(*args, **kwargs)
        scope.open()
        try:
            result = handler(*args, **kwargs)
        except BaseException as error:
            scope.close(error)
            raise
        if result is not None:
            return _ended_with(scope, result)
        scope.close()
        return None

    return call


def _ended_with(scope: Scope, result: Any) -> Any:
    """Ends the scope with what a handler has returned: at once, unless that goes on. Returns what is to be returned."""
    try:
        if isinstance(result, Coroutine):
            # A plain callable around an async handler (a lambda, one that is decorated or compiled): its body comes
            # later, or never.
            scope.detach()
            body = _awaited(scope, result)
            weakref.finalize(body, scope.close).atexit = False
            return body
        if _is_future(result):
            scope.detach()
            result.add_done_callback(partial(_end_with, scope))
            weakref.finalize(result, scope.close).atexit = False  # one that is dropped is never done
            return result
    except Exception as error:  # of a proxy's class, or of a loop that is closed
        scope.close(error if guard.is_not_ours(error) else None)
        guard.fault("waiting for the end of a handler", error)
    scope.close()
    return result


def _is_future(result: object) -> bool:
    """As ``asyncio.isfuture``: a task, too, and a loop's own class. Nobody waits for one of ``concurrent.futures``."""
    return hasattr(type(result), "_asyncio_future_blocking")


def _end_with(scope: Scope, future: Any) -> None:
    scope.close(error_of(future))


async def _awaited(scope: Scope, body: Coroutine[Any, Any, Any]) -> Any:
    scope.reattach()
    try:
        result = await body
    except BaseException as error:
        scope.close(error)
        raise
    scope.close()
    return result


def _coroutine(handler: Callable[..., Any], begin: Begin) -> Callable[..., Any]:
    async def call(*args: Any, **kwargs: Any) -> Any:
        try:
            scope = begin(args, kwargs)
        except Exception as error:
            guard.fault(_READING, error)
            scope = None
        if scope is None:
            return await handler(*args, **kwargs)
        scope.open()
        try:
            result = await handler(*args, **kwargs)
        except BaseException as error:
            scope.close(error)
            raise
        scope.close()
        return result

    return call


def _generator(handler: Callable[..., Any], begin: Begin) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        body = handler(*args, **kwargs)
        scope = _begun(begin, args, kwargs) or _Nowhere()
        step: Callable[[Any], Any] = body.send
        argument: Any = None
        scope.open()
        try:
            while True:
                try:
                    value = step(argument)
                except StopIteration as end:
                    result = end.value
                    break
                scope.detach()
                try:
                    step, argument = body.send, (yield value)
                except BaseException as thrown:  # GeneratorExit as well: the body ends as it would alone
                    step, argument = body.throw, thrown
                scope.reattach()
        except BaseException as error:
            argument = None  # an exception that was thrown in knows this frame
            scope.close(error)
            raise
        scope.close()
        return result

    return call


def _async_generator(handler: Callable[..., Any], begin: Begin) -> Callable[..., Any]:
    async def call(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        body = handler(*args, **kwargs)
        scope = _begun(begin, args, kwargs) or _Nowhere()
        step: Callable[[Any], Any] = body.asend
        argument: Any = None
        scope.open()
        try:
            while True:
                try:
                    value = await step(argument)
                except StopAsyncIteration:
                    break
                scope.detach()
                try:
                    step, argument = body.asend, (yield value)
                except BaseException as thrown:
                    step, argument = body.athrow, thrown
                scope.reattach()
        except BaseException as error:
            argument = None  # as above
            scope.close(error)
            raise
        scope.close()

    return call


class _Nowhere:
    """The scope of a call that is left as it is."""

    def open(self) -> None: ...
    def close(self, error: BaseException | None = None) -> None: ...
    def detach(self) -> None: ...
    def reattach(self) -> None: ...
