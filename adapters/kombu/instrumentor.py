"""Puts the hooks around kombu's own functions and methods."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from kombu import common, compat
from kombu.entity import Queue
from kombu.message import Message
from kombu.messaging import Producer
from kombu.simple import SimpleBase

from queueprop import guard
from queueprop.adapters.kombu import KOMBU, SETTLEMENTS
from queueprop.adapters.kombu.celery import caller_of, is_housekeeping, publish_task, sends_tasks
from queueprop.adapters.kombu.receiving import deliver, is_of_the_user, is_received_here, registered
from queueprop.kit import calls
from queueprop.kit.calls import Arguments, Options, Wrapped
from queueprop.kit.hooks import Hooks
from queueprop.kit.instrumentor import Adapter, Patch
from queueprop.kit.iteration import GeneratorMessages
from queueprop.kit.library import Source
from queueprop.kit.nesting import is_spoken_for
from queueprop.kit.rebinding import rebind
from queueprop.kit.rivals import Rivals
from queueprop.settings import Settings


class KombuInstrumentor(Adapter):
    """Traces every producer of kombu, and every consumer that begins to consume from now on.

    Celery's own traffic is left alone: its events and remote control, and its consumers. A task message has a
    PRODUCER span unless an instrumentation of Celery made one: OpenTelemetry's, or ``CeleryInstrumentor`` of
    ``queueprop.adapters.celery``.

    ``opentelemetry-instrument`` finds it by itself, unless ``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=queueprop_kombu``.
    """

    __module__ = "queueprop.adapters.kombu"

    library = "kombu"
    requires = ("kombu >= 5.3",)
    rivals = Rivals("kombu")

    def patches(self) -> Iterable[Patch]:
        hooks = _Hooks(KOMBU, self.engine, self.is_on)
        yield Patch(Producer, "publish", hooks.publish)
        yield Patch(Queue, "consume", hooks.consume)
        yield Patch(Queue, "get", hooks.get)
        yield Patch(SimpleBase, "get", hooks.pull)
        yield Patch(compat.Consumer, "fetch", hooks.fetch)
        yield Patch(common, "drain_consumer", hooks.drain)
        for operation in SETTLEMENTS:
            yield Patch(Message, operation, hooks.settle)

    def _instrument(self, settings: Settings | None = None, **options: Any) -> None:
        plain = common.drain_consumer
        super()._instrument(settings, **options)
        self._drains = plain, common.drain_consumer
        rebind([self._drains])  # modules that have imported it by its name

    def _uninstrument(self, **options: Any) -> None:
        super()._uninstrument(**options)
        drains, self._drains = self._drains, None
        if drains is not None:
            plain, traced = drains
            rebind([(traced, plain)])

    _drains: tuple[Any, Any] | None = None
    """``drain_consumer`` as it was, and as it is meanwhile."""


class _Hooks(Hooks):
    """What kombu has besides: Celery above it, and consumers that have callbacks of several kinds."""

    def publish(self, wrapped: Wrapped, producer: Any, args: Arguments, kwargs: Options) -> Any:
        """Around ``Producer.publish``, through which everything goes that kombu sends."""
        caller = caller_of(sys._getframe(1))
        if is_housekeeping(caller) or is_spoken_for(producer):
            return wrapped(*args, **kwargs)
        publish = functools.partial(super().publish, wrapped, producer)
        if sends_tasks(caller):
            return publish_task(self.engine, publish, wrapped, args, kwargs)
        return publish(args, kwargs)

    def consume(self, wrapped: Wrapped, queue: Any, args: Arguments, kwargs: Options) -> Any:
        """Around ``Queue.consume``: the callback of a Consumer, or of a user, where the queue is still known."""
        callback = calls.given(1, "callback", args, kwargs)
        ours: Callable[..., Any]
        if is_received_here(callback):
            ours = functools.partial(deliver, self, callback, queue.name)
        elif is_of_the_user(callback):
            ours = registered(self, callback, queue.name)
        else:
            return wrapped(*args, **kwargs)
        args, kwargs = calls.replaced(1, "callback", ours, args, kwargs)
        return wrapped(*args, **kwargs)

    def get(self, wrapped: Wrapped, queue: Any, args: Arguments, kwargs: Options) -> Any:
        """Around ``Queue.get``."""
        if is_housekeeping(caller_of(sys._getframe(1))):
            return wrapped(*args, **kwargs)
        return self.pull(wrapped, queue, args, kwargs)

    def fetch(self, wrapped: Wrapped, consumer: Any, args: Arguments, kwargs: Options) -> Any:
        """Around ``fetch`` of kombu.compat. The callbacks that it is asked to call run inside the message's span."""
        if not calls.given(1, "enable_callbacks", args, kwargs):
            return wrapped(*args, **kwargs)
        args, kwargs = calls.replaced(1, "enable_callbacks", False, args, kwargs)
        message = wrapped(*args, **kwargs)
        if message:
            with self.handled(message):
                consumer.receive(message.payload, message)
        return message

    def drain(self, wrapped: Wrapped, _: Any, args: Arguments, kwargs: Options) -> Any:
        """Around ``drain_consumer``, the generator behind ``itermessages`` and ``collect_replies``."""
        source = Source(None, _only_queue(calls.given(0, "consumer", args, kwargs)))
        return self.loop(GeneratorMessages, wrapped(*args, **kwargs), source)


def _only_queue(consumer: Any) -> str | None:
    try:
        queues: Sequence[Any] = getattr(consumer, "queues", ())
        return queues[0].name if len(queues) == 1 else None
    except Exception as error:
        guard.fault("looking at a consumer of kombu", error)
        return None
