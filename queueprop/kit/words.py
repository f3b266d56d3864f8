"""The words of the explicit API, for any ``Library``. An adapter gives them docstrings with its own examples."""

from __future__ import annotations

import inspect
import types
from collections.abc import AsyncIterable, Callable, Collection, Iterable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, TypeVar, overload

from opentelemetry.trace import Span

from queueprop.engine.message import Destination
from queueprop.kit import calls, checks
from queueprop.kit.hooks import Hooks
from queueprop.kit.iteration import AsyncMessages, MessageList, Messages
from queueprop.kit.library import Library, Source
from queueprop.settings import Settings

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class Call(NamedTuple):
    """A call that a word wraps, as it is told to who gives something else."""

    form: str
    """``a channel's basic_publish, as in traced_publish(channel.basic_publish)``"""
    names: Collection[str]
    """Of the methods of the library's objects that it may be."""
    takes: str | None = None
    """The argument by which a function of the user's hands on what carries the context."""
    is_one: Callable[[Any], bool] | None = None
    """What else must hold for it."""


class Words:
    """Each is a word of ``queueprop.adapters.<library>``, with the arguments that every library's has.

    Args:
        publish, get, settle: the calls that these words wrap.
        handler: ``as in @traced_consumer(queue="orders")``.
        iterable: ``a consumer or records, as in traced_messages(consumer)``.
    """

    def __init__(
        self, library: Library, *, publish: Call, handler: str, iterable: str, get: Call, settle: Call
    ) -> None:
        self._library = library
        self._calls = {"traced_publish": publish, "traced_get": get, "traced_settle": settle}
        self._handler = f"a function or method, {handler}"
        self._iterable = iterable
        self._latest: Hooks | None = None

    def publish(self, publish: F, settings: Settings | None) -> F:
        hooks = self._set_up("traced_publish", publish, settings)
        return calls.hooked(publish, hooks.publish_async if self._is_async(publish) else hooks.publish)

    def consumer(
        self,
        handler: F | None,
        source: Source | Callable[[Any], Source],
        destination: Destination | None,
        settings: Settings | None,
    ) -> F | Callable[[F], F]:
        """Bare, or with options: then the decorator that is to be called with the handler."""
        checks.check_destination("traced_consumer", destination)
        hooks = Hooks(self._library, checks.engine_of(settings, "traced_consumer"))

        def decorate(decorated: F) -> F:
            checks.check_handler("traced_consumer", decorated, self._handler)
            return hooks.callback(decorated, source, destination, wants_message=True)

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
        checks.check_iterable("traced_messages", iterable, self._iterable)
        hooks, known = self._at_hand("traced_messages", settings, destination)
        if hasattr(iterable, "__aiter__"):
            return hooks.loop(AsyncMessages, iterable.__aiter__(), source, known)
        return hooks.loop(Messages, iter(iterable), source, known)

    def message(
        self, native: Any, destination: Destination | None, settings: Settings | None
    ) -> AbstractContextManager[Span]:
        hooks, known = self._at_hand("traced_message", settings, destination)
        return hooks.handled(native, known)

    def batch(
        self, natives: Iterable[Any], destination: Destination | None, settings: Settings | None
    ) -> AbstractContextManager[Span]:
        hooks, known = self._at_hand("traced_batch", settings, destination)
        batch = MessageList.plain(checks.messages_at_hand("traced_batch", natives))
        return hooks.handled_together(batch, known)

    def get(self, get: F, settings: Settings | None) -> F:
        hooks = self._set_up("traced_get", get, settings)
        return calls.hooked(get, hooks.pull_async if self._is_async(get) else hooks.pull)

    def settle(self, settle: F, settings: Settings | None) -> F:
        hooks = self._set_up("traced_settle", settle, settings)
        return calls.hooked(settle, hooks.settle_async if self._is_async(settle) else hooks.settle)

    def _set_up(self, word: str, given: Any, settings: Settings | None) -> Hooks:
        call = self._calls[word]
        module = checks.module_of(self._library.name)
        checks.check_call(word, given, module, call.names, call.form, call.takes)
        if call.is_one is not None and not call.is_one(given):
            raise checks.refused(word, call.form, given)
        return Hooks(self._library, checks.engine_of(settings, word))

    def _at_hand(
        self, word: str, settings: Settings | None, destination: Destination | None
    ) -> tuple[Hooks, Destination | None]:
        engine, known = checks.at_hand(word, settings, destination)
        hooks = self._latest  # nearly always of the same settings
        if hooks is None or hooks.engine is not engine:
            hooks = self._latest = Hooks(self._library, engine)
        return hooks, known

    def _is_async(self, function: Any) -> bool:
        function = calls.beneath_partials(function)
        if not isinstance(getattr(function, "__code__", None), types.CodeType):
            return self._library.is_async  # a double of unittest.mock says of itself whatever it is asked
        return self._library.is_async or inspect.iscoroutinefunction(function)
