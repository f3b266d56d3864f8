"""Runs a handler inside a scope, whatever kind of callable it is: sync, async, generator, async generator."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from typing import Any, Protocol, TypeVar, cast

from queueprop import guard

F = TypeVar("F", bound=Callable[..., Any])


class Scoped(Protocol):
    """What a handler runs inside: an operation of the engine, or a carried context."""

    def open(self) -> object: ...
    def close(self, error: BaseException | None = None) -> None: ...
    def detach(self) -> None: ...
    def reattach(self) -> None: ...


Begin = Callable[[tuple[Any, ...], dict[str, Any]], "Scoped | None"]


def run_inside(handler: F, begin: Begin) -> F:
    """Wraps ``handler`` so that each call runs inside the scope that ``begin(args, kwargs)`` makes for it.

    A generator's body runs inside, from its first step to its end; what its consumer does between two steps does
    not. ``begin`` may give ``None``: that call runs as it is.
    """
    if inspect.isasyncgenfunction(handler):
        wrapper = _async_generator(handler, begin)
    elif inspect.isgeneratorfunction(handler):
        wrapper = _generator(handler, begin)
    elif inspect.iscoroutinefunction(handler):
        wrapper = _coroutine(handler, begin)
    else:
        wrapper = _function(handler, begin)
    return cast(F, functools.wraps(handler)(wrapper))


def _begun(begin: Begin, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Scoped | None:
    try:
        return begin(args, kwargs)
    except Exception as error:
        guard.fault("reading a message before its handler", error)
        return None


def _function(handler: Callable[..., Any], begin: Begin) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        scope = _begun(begin, args, kwargs)
        if scope is None:
            return handler(*args, **kwargs)
        scope.open()
        try:
            result = handler(*args, **kwargs)
        except BaseException as error:
            scope.close(error)
            raise
        if inspect.iscoroutine(result):
            # A plain callable around an async handler (a partial's cousin, a decorated one): its body comes later.
            scope.detach()
            return _awaited(scope, result)
        scope.close()
        return result

    return call


async def _awaited(scope: Scoped, body: Coroutine[Any, Any, Any]) -> Any:
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
        scope = _begun(begin, args, kwargs)
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
        scope = _begun(begin, args, kwargs)
        return (yield from body) if scope is None else (yield from _steps(scope, body))

    return call


def _steps(scope: Scoped, body: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    scope.open()
    try:
        step, argument = body.send, None
        while True:
            try:
                value = step(argument)
            except StopIteration as end:
                return end.value
            scope.detach()
            try:
                step, argument = body.send, (yield value)
            except GeneratorExit:
                scope.reattach()
                body.close()
                raise
            except BaseException as thrown:
                step, argument = body.throw, thrown
            scope.reattach()
    except BaseException as error:
        scope.close(error)
        raise
    finally:
        scope.close()


def _async_generator(handler: Callable[..., Any], begin: Begin) -> Callable[..., Any]:
    async def call(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        body = handler(*args, **kwargs)
        scope = _begun(begin, args, kwargs) or _Nowhere()
        scope.open()
        try:
            step, argument = body.asend, None
            while True:
                try:
                    value = await step(argument)
                except StopAsyncIteration:
                    return
                scope.detach()
                try:
                    step, argument = body.asend, (yield value)
                except GeneratorExit:
                    scope.reattach()
                    await body.aclose()
                    raise
                except BaseException as thrown:
                    step, argument = body.athrow, thrown
                scope.reattach()
        except BaseException as error:
            scope.close(error)
            raise
        finally:
            scope.close()

    return call


class _Nowhere:
    """The scope of a call that is left as it is (an async generator has no ``yield from``)."""

    def open(self) -> None: ...
    def close(self, error: BaseException | None = None) -> None: ...
    def detach(self) -> None: ...
    def reattach(self) -> None: ...
