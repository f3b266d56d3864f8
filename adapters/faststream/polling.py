"""How a subscriber of FastStream's comes by its messages: by a loop of its own, or asked by its user."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Container, Iterator
from typing import Any

from queueprop import guard
from queueprop.adapters.faststream.versions import SubscriberUsecase
from queueprop.kit.calls import Arguments, Options, Wrapped
from queueprop.kit.hooks import Hooks
from queueprop.kit.iteration import AsyncMessages
from queueprop.kit.library import Source
from queueprop.kit.nesting import speaking_for, take_over

STARTS = tuple(name for name in ("setup", "start", "_post_start") if name in vars(SubscriberUsecase))
"""The steps of a start. Before 0.6 RabbitMQ's consume between the first two; since 0.6 there is the last one."""
PULLS = ("get_one", "__aiter__")


def take_over_client(subscriber: Any) -> None:
    """At each step of its start: what it consumes by is there after the last of them."""
    try:
        for it in (subscriber, *_consumers_of(subscriber)):
            take_over(it)
    except Exception as error:
        guard.fault("preparing a subscriber of FastStream", error)


class Starts:
    """The starts of subscribers, which nothing tells a middleware of."""

    are_patched = False
    """Whether the instrumentor has hooks around all of them."""

    def __init__(self) -> None:
        self._is_ours: Callable[[Any], bool] | None = None
        self._are_watched = False

    def watch(self, is_ours: Callable[[Any], bool]) -> None:
        """For a middleware that is somebody's own: of every subscriber that is ours, from now on. Once a process."""
        self._is_ours = is_ours
        if self.are_patched or self._are_watched:
            return
        import wrapt  # with the first middleware, and not with the adapter: it takes its time

        self._are_watched = True

        def start(wrapped: Wrapped, subscriber: Any, args: Arguments, kwargs: Options) -> Any:
            if is_ours(subscriber):
                take_over_client(subscriber)
            return wrapped(*args, **kwargs)

        for name in STARTS:
            setattr(SubscriberUsecase, name, wrapt.FunctionWrapper(vars(SubscriberUsecase)[name], start))

    def leave(self) -> None:
        """The instrumentor's hooks are gone; somebody's own middlewares may still be there."""
        self.are_patched = False
        if self._is_ours is not None:
            self.watch(self._is_ours)


starts = Starts()


def pulling(kind: type) -> Iterator[tuple[type, str]]:
    """The classes that say how a subscriber of this kind is asked for messages, and by which methods."""
    for name in PULLS:
        owner = next((it for it in kind.__mro__ if name in vars(it)), None)
        if owner is not None:
            yield owner, name


def kinds_of(kind: type) -> Iterator[type]:
    yield kind
    derived: list[type] = kind.__subclasses__()
    for it in derived:
        yield from kinds_of(it)


def looped(hooks: Hooks, subscriber: Any, messages: Any, destination: Any = None) -> AsyncMessages[Any]:
    """A loop over a subscriber, whose body runs inside each message's span."""
    return hooks.loop(AsyncMessages, _Steps(subscriber, messages), Source(subscriber), destination)


async def get_one(hooks: Hooks, wrapped: Wrapped, subscriber: Any, args: Arguments, kwargs: Options) -> Any:
    """Around ``get_one``: a receive span."""
    return await hooks.pull_async(functools.partial(_speaking, subscriber, wrapped), subscriber, args, kwargs)


async def _speaking(subscriber: Any, call: Wrapped, *args: Any, **kwargs: Any) -> Any:
    with speaking_for(_Client(subscriber)):
        return await call(*args, **kwargs)


class _Client(Container[object]):
    """What a subscriber consumes by, and nothing else: middlewares of the user's run inside, and what they publish or
    consume by is theirs.
    """

    def __init__(self, subscriber: Any) -> None:
        self._subscriber = subscriber

    def __contains__(self, transport: object) -> bool:
        queue = getattr(self._subscriber, "_queue_obj", None)  # aio-pika's, or an iterator over it
        if queue is not None and (transport is queue or getattr(transport, "_amqp_queue", None) is queue):
            return True
        return any(transport is it for it in _consumers_of(self._subscriber))


def _consumers_of(subscriber: Any) -> Iterator[Any]:
    """aiokafka's consumer, or FastStream's own for confluent-kafka, and the C one in it."""
    consumer = getattr(subscriber, "consumer", None)
    for it in (consumer, getattr(consumer, "consumer", None)):
        if it is not None:
            yield it


class _Steps(AsyncIterator[Any]):
    """FastStream's own loop over its client, which that one's adapter leaves alone."""

    def __init__(self, subscriber: Any, messages: Any) -> None:
        self._subscriber = subscriber
        self._messages = messages

    async def __anext__(self) -> Any:
        return await _speaking(self._subscriber, self._messages.__anext__)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._messages, name)

    async def aclose(self) -> None:
        await self._messages.aclose()
