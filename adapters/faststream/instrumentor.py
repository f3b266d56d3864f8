"""Puts a middleware of ours into every broker of FastStream's, and hooks around what middlewares do not see."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from faststream import BaseMiddleware

from queueprop import guard
from queueprop.adapters.faststream import FASTSTREAM, QueuepropMiddleware, _Middleware
from queueprop.adapters.faststream.chain import is_rival
from queueprop.adapters.faststream.middlewares import has_rival, insert, middlewares_of
from queueprop.adapters.faststream.polling import (
    STARTS,
    get_one,
    kinds_of,
    looped,
    pulling,
    starts,
    take_over_client,
)
from queueprop.adapters.faststream.versions import STEPS_OF_A_MESSAGE, BrokerUsecase, SubscriberUsecase
from queueprop.kit.calls import Arguments, Options, Wrapped
from queueprop.kit.hooks import Hooks
from queueprop.kit.instrumentor import Adapter, Patch
from queueprop.kit.rivals import Rivals
from queueprop.settings import Settings


class FastStreamInstrumentor(Adapter):
    """Traces every broker, be it made before or later, and in a ``TestBroker``, too. (Before 0.6, every broker that
    connects from now on.)

    It puts a middleware of ours before the broker's own, unless there is a ``QueuepropMiddleware`` among them, or a
    ``TelemetryMiddleware`` of FastStream's. ``opentelemetry-instrument`` finds it by itself, unless
    ``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=queueprop_faststream``.
    """

    __module__ = "queueprop.adapters.faststream"

    library = "faststream"
    requires = ("faststream >= 0.5",)
    rivals = Rivals("faststream")

    def patches(self) -> Iterable[Patch]:
        self._hooks = Hooks(FASTSTREAM, self.engine, self.is_on)
        yield Patch(BrokerUsecase, "connect", self._join)
        for owner, name in STEPS_OF_A_MESSAGE:  # a broker may have been connected before
            yield Patch(owner, name, self._join)
        for name in STARTS:
            yield Patch(SubscriberUsecase, name, self._start)
        self._pulls: set[tuple[type, str]] = set()
        for kind in kinds_of(SubscriberUsecase):
            yield from self._pull_patches(kind)

    def _pull_patches(self, kind: type) -> Iterable[Patch]:
        for place in pulling(kind):
            if place not in self._pulls:
                self._pulls.add(place)
                yield Patch(*place, self._iterate if place[1] == "__aiter__" else self._get_one)

    def _instrument(self, settings: Settings | None = None, **options: Any) -> None:
        starts.are_patched = True
        super()._instrument(settings, **options)

    def _uninstrument(self, **options: Any) -> None:
        super()._uninstrument(**options)
        starts.leave()

    def _start(self, wrapped: Wrapped, subscriber: Any, args: Arguments, kwargs: Options) -> Any:
        """Around the steps of a subscriber's start. Its class may have been imported meanwhile."""
        take_over_client(subscriber)
        try:
            self._undo.extend(map(self._patch, self._pull_patches(type(subscriber))))
        except Exception as error:
            guard.fault("preparing a subscriber of FastStream", error)
        return wrapped(*args, **kwargs)

    def _iterate(self, wrapped: Wrapped, subscriber: Any, args: Arguments, kwargs: Options) -> Any:
        messages = wrapped(*args, **kwargs)
        return messages if has_rival(subscriber) else looped(self._hooks, subscriber, messages)

    async def _get_one(self, wrapped: Wrapped, subscriber: Any, args: Arguments, kwargs: Options) -> Any:
        if has_rival(subscriber):
            return await wrapped(*args, **kwargs)
        return await get_one(self._hooks, wrapped, subscriber, args, kwargs)

    def __call__(self, msg: Any = None, /, **options: Any) -> BaseMiddleware:
        """It is itself the middleware: a broker that has it asks at each message whether it is installed."""
        return _Middleware(msg, self._hooks if self.is_active else None, options)

    def _join(self, wrapped: Wrapped, instance: Any, args: Arguments, kwargs: Options) -> Any:
        """Around what a broker, or a publisher or subscriber of it, does first: it is to have the middleware."""
        try:
            middlewares = middlewares_of(instance)
            if any(map(is_rival, middlewares)):
                guard.mistake(f"instrumenting {self.library}", _STANDS_DOWN)
            elif not any(isinstance(it, (QueuepropMiddleware, FastStreamInstrumentor)) for it in middlewares):
                insert(instance, self)
        except Exception as error:
            guard.fault("instrumenting a broker of FastStream", error)
        return wrapped(*args, **kwargs)


_STANDS_DOWN = (
    "a broker has FastStream's TelemetryMiddleware, which traces it already, so queueprop stands down there; to have "
    "queueprop's spans, take that one out of the broker's middlewares; to keep the other's, disable queueprop's: "
    "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=queueprop_faststream"
)
