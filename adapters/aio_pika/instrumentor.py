"""Puts the hooks around aio-pika's own methods."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from aio_pika import Exchange, IncomingMessage, Queue
from aio_pika.abc import AbstractQueueIterator
from aio_pika.message import ProcessContext
from aio_pika.queue import QueueIterator

from queueprop.adapters.aio_pika import AIO_PIKA
from queueprop.kit.hooks import Hooks
from queueprop.kit.instrumentor import Adapter, Patch
from queueprop.kit.iteration import AsyncMessages
from queueprop.kit.rivals import Rival, Rivals


class AioPikaInstrumentor(Adapter):
    """Traces what is published and consumed through aio-pika from now on, by the patterns RPC and Master as well.

    ``async with message.process():`` is the span of a message that ``queue.get()`` gave. ``opentelemetry-instrument``
    finds it by itself, unless ``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=queueprop_aio_pika``.
    """

    __module__ = "queueprop.adapters.aio_pika"

    library = "aio-pika"
    requires = ("aio-pika >= 9.4",)
    rivals = Rivals("aio-pika", Rival.contrib("aio_pika", "AioPikaInstrumentor"))

    def patches(self) -> Iterable[Patch]:
        hooks = Hooks(AIO_PIKA, self.engine, self.is_on)
        yield Patch(Exchange, "publish", hooks.publish_async)
        # A RobustQueue keeps the user's own callback, and calls this again after a reconnect.
        yield Patch(Queue, "consume", hooks.registers(0, "callback", is_theirs=_is_of_an_iterator))
        yield Patch(Queue, "get", hooks.pull_async)
        for loop in (Queue, QueueIterator):
            yield Patch(loop, "__aiter__", hooks.iterates(AsyncMessages))
        for name in ("ack", "nack", "reject"):
            yield Patch(IncomingMessage, name, hooks.settle_async)
        yield Patch(ProcessContext, "__aenter__", hooks.enter_async)
        yield Patch(ProcessContext, "__aexit__", hooks.exit_async)


def _is_of_an_iterator(callback: Any) -> bool:
    return isinstance(getattr(callback, "__self__", None), AbstractQueueIterator)
