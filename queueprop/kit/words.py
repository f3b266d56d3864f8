"""The words of the explicit API, for any ``Library``. An adapter gives them docstrings with its own examples."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, ParamSpec, TypeVar, overload

from opentelemetry.trace import Span

from queueprop.engine.engine import engine_for
from queueprop.engine.message import Destination
from queueprop.kit import calls
from queueprop.kit.hooks import Hooks
from queueprop.kit.iteration import AsyncMessages, Messages
from queueprop.kit.library import Library, Source
from queueprop.settings import Settings

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class Words:
    """Each is a word of ``queueprop.adapters.<library>``, with the arguments that every library's has."""

    def __init__(self, library: Library) -> None:
        self._library = library

    def publish(self, publish: Callable[P, R], settings: Settings | None) -> Callable[P, R]:
        hooks = self._hooks(settings)
        return calls.hooked(publish, hooks.publish_async if self._is_async(publish) else hooks.publish)

    def consumer(
        self,
        handler: F | None,
        source: Callable[[Any], Source],
        destination: Destination | None,
        settings: Settings | None,
    ) -> F | Callable[[F], F]:
        """Bare, or with options: then the decorator that is to be called with the handler."""
        hooks = self._hooks(settings)

        def decorate(decorated: F) -> F:
            return hooks.callback(decorated, source, destination)

        return decorate if handler is None else decorate(handler)

    @overload
    def messages(
        self,
        iterable: AsyncIterable[T],
        destination: Destination | None,
        settings: Settings | None,
        source: Source | None = None,
    ) -> AsyncMessages[T]: ...
    @overload
    def messages(
        self,
        iterable: Iterable[T],
        destination: Destination | None,
        settings: Settings | None,
        source: Source | None = None,
    ) -> Messages[T]: ...
    def messages(
        self,
        iterable: Any,
        destination: Destination | None,
        settings: Settings | None,
        source: Source | None = None,
    ) -> Any:
        hooks = self._hooks(settings)
        if hasattr(iterable, "__aiter__"):
            return hooks.loop(AsyncMessages, iterable.__aiter__(), source, destination)
        return hooks.loop(Messages, iter(iterable), source, destination)

    def message(
        self, native: Any, destination: Destination | None, settings: Settings | None
    ) -> AbstractContextManager[Span]:
        return self._hooks(settings).handled(native, destination)

    def batch(
        self, natives: Sequence[Any], destination: Destination | None, settings: Settings | None
    ) -> AbstractContextManager[Span]:
        return self._hooks(settings).handled_together(natives, destination)

    def get(self, get: Callable[P, R], settings: Settings | None) -> Callable[P, R]:
        hooks = self._hooks(settings)
        return calls.hooked(get, hooks.pull_async if self._is_async(get) else hooks.pull)

    def settle(self, settle: Callable[P, R], settings: Settings | None) -> Callable[P, R]:
        hooks = self._hooks(settings)
        return calls.hooked(settle, hooks.settle_async if self._is_async(settle) else hooks.settle)

    def _hooks(self, settings: Settings | None) -> Hooks:
        return Hooks(self._library, engine_for(settings))

    def _is_async(self, function: Any) -> bool:
        while isinstance(function, functools.partial):
            function = function.func
        return self._library.is_async or inspect.iscoroutinefunction(function)
