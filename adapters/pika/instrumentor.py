"""Puts the hooks around pika's own methods."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

from pika.adapters.blocking_connection import BlockingChannel
from pika.channel import Channel

from queueprop import guard
from queueprop.adapters.pika import PIKA, Delivery
from queueprop.adapters.pika.channels import RIVALS, channel_below
from queueprop.engine.engine import Engine
from queueprop.kit import calls
from queueprop.kit.calls import Arguments, Options, Wrapped
from queueprop.kit.hooks import Hooks
from queueprop.kit.instrumentor import Adapter, Patch
from queueprop.kit.iteration import GeneratorMessages
from queueprop.kit.library import Library, Source
from queueprop.kit.nesting import Mark, is_spoken_for


class PikaInstrumentor(Adapter):
    """Traces every channel of pika that publishes or consumes from now on.

    ``opentelemetry-instrument`` finds it by itself, unless ``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=queueprop_pika``.
    """

    __module__ = "queueprop.adapters.pika"

    library = "pika"
    requires = ("pika >= 1.3",)
    rivals = RIVALS

    def patches(self) -> Iterable[Patch]:
        hooks = _Hooks(PIKA, self.engine, self.is_on)
        for channel in (Channel, BlockingChannel):
            yield Patch(channel, "basic_publish", hooks.publish)
            yield Patch(
                channel, "basic_consume", hooks.registers(1, "on_message_callback", _consumed, _is_pika_s)
            )
        yield Patch(BlockingChannel, "consume", hooks.iterate)
        yield Patch(BlockingChannel, "cancel", hooks.cancel)
        yield Patch(BlockingChannel, "basic_get", hooks.pull)
        yield Patch(Channel, "basic_get", hooks.registers(1, "callback", _consumed, _is_pika_s))
        for name in ("basic_ack", "basic_nack", "basic_reject"):
            yield Patch(Channel, name, hooks.settle)
        yield Patch(Channel, "basic_recover", hooks.recover)


def _consumed(channel: Any, args: Arguments, kwargs: Options, call: Wrapped) -> Source:
    """What ``basic_consume`` and a Channel's ``basic_get``, which answers by a callback, too, are about."""
    queue = calls.given(0, "queue", args, kwargs)
    return Source(channel, queue, bool(calls.given(2, "auto_ack", args, kwargs)))


def _is_pika_s(callback: Any) -> bool:
    return str(getattr(callback, "__module__", "")).startswith("pika.")


class _Hooks(Hooks):
    """What pika has besides: generators that are kept by their channel, and all that a channel forgets at once."""

    def __init__(self, library: Library, engine: Engine, is_active: Callable[[], bool]) -> None:
        super().__init__(library, engine, is_active)
        self._loops: weakref.WeakKeyDictionary[Any, weakref.ref[GeneratorMessages[Any]]] = (
            weakref.WeakKeyDictionary()
        )

    def publish(self, wrapped: Wrapped, channel: Any, args: Arguments, kwargs: Options) -> Any:
        """Around ``basic_publish`` of both layers. A Channel that is closed knows no more of the facade above it."""
        if is_spoken_for(channel):
            with Mark("publish", self.library.name):
                return wrapped(*args, **kwargs)
        return super().publish(wrapped, channel, args, kwargs)

    def iterate(self, wrapped: Wrapped, channel: Any, args: Arguments, kwargs: Options) -> Any:
        """Around ``consume``, which gives a generator. A second one on the channel goes on where the first ended."""
        if is_spoken_for(channel):
            return wrapped(*args, **kwargs)
        self._leave_loop(channel)
        messages = wrapped(*args, **kwargs)
        loop = self.loop(GeneratorMessages, messages, self.library.source(channel, args, kwargs, wrapped))
        self._loops[channel] = weakref.ref(loop)
        return loop

    def cancel(self, wrapped: Wrapped, channel: Any, args: Arguments, kwargs: Options) -> Any:
        """Around ``cancel``, which ends the generator of ``consume``: the last message of one that is kept is over.

        pika then rejects what was fetched and not handed over yet, each in its message's trace.
        """
        self._leave_loop(channel)
        if self.settles and not self.library.leaves_alone(channel):
            try:
                for source, delivery in _fetched(channel):
                    destination, message = (
                        self.library.consumed_from(delivery, source),
                        self.library.message(delivery),
                    )
                    self.await_settlement(delivery, source, destination, message)
            except Exception as error:
                guard.fault("preparing a cancel with pika", error)
        return wrapped(*args, **kwargs)

    def _leave_loop(self, channel: Any) -> None:
        reference = self._loops.pop(channel, None)
        loop = reference() if reference is not None else None
        if loop is not None:
            loop.leave()

    def recover(self, wrapped: Wrapped, channel: Any, args: Arguments, kwargs: Options) -> Any:
        """Around ``basic_recover``: what is unsettled comes again, with other delivery tags."""
        result = wrapped(*args, **kwargs)
        try:
            self.library.unsettled.clear(channel_below(channel))
        except Exception as error:
            guard.fault("forgetting what pika asked for again", error)
        return result


def _fetched(channel: Any) -> list[tuple[Source, Delivery]]:
    """What ``consume`` has fetched and not handed over yet, each with its queue; nothing where it needs no ack."""
    consumer = channel._queue_consumer_generator
    if consumer is None:
        return []
    queue, auto_ack, _ = consumer.params
    events = [] if auto_ack else list(consumer.pending_events)
    return [
        (Source(channel, queue, False), Delivery(event.method, event.properties, event.body))
        for event in events
        if hasattr(event, "method")  # and no word of the broker's that the consumer is cancelled
    ]
