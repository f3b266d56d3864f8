"""What is done around aiokafka's own methods, each as ``hook(bound method, its object, args, kwargs)``."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

from aiokafka import AIOKafkaProducer
from opentelemetry.context import Context

from queueprop import guard
from queueprop.adapters.aiokafka.batches import Batch, batches_by_builder
from queueprop.adapters.aiokafka.headers import HEADERS_AT, copied
from queueprop.adapters.aiokafka.library import AIOKAFKA
from queueprop.adapters.aiokafka.publishing import RecordPublication
from queueprop.engine.engine import Engine
from queueprop.kit import calls
from queueprop.kit.calls import Arguments, Hook, Options, Wrapped
from queueprop.kit.hooks import Hooks as LibraryHooks
from queueprop.kit.iteration import AsyncMessages
from queueprop.kit.library import Source
from queueprop.kit.nesting import is_inside, work_at_hand
from queueprop.wire import propagation


class Hooks(LibraryHooks):
    """What aiokafka has besides: batches that are filled before anybody says where they go."""

    def __init__(self, engine: Engine, *is_active: Callable[[], bool], joins: bool = False) -> None:
        super().__init__(AIOKAFKA, engine, *is_active)
        self._joins = joins  # without patches, the accumulator below is wrapped on the object

    async def send(self, wrapped: Wrapped, producer: Any, args: Arguments, kwargs: Options) -> Any:
        """Around ``send`` and ``send_batch``, and around ``send_and_wait`` in the explicit API."""
        if is_inside("publish", AIOKAFKA.name):
            args, kwargs = _handed_down(producer, args, kwargs)
            return await wrapped(*args, **kwargs)
        if self._joins:
            _join_accumulator(producer)
        return await self.publish_async(wrapped, producer, args, kwargs)

    def create_batch(self, wrapped: Wrapped, producer: Any, args: Arguments, kwargs: Options) -> Any:
        """Around ``create_batch``: what is appended to it has create spans."""
        builder = wrapped(*args, **kwargs)
        try:
            if builder not in batches_by_builder and isinstance(producer, AIOKafkaProducer):
                batches_by_builder[builder] = batch = Batch(self.engine, self.is_active, producer)
                _join(builder, "append", batch.append)
                _join(builder, "_serialize", batch.serialize)
        except Exception as error:
            guard.fault("preparing a batch of aiokafka", error)
        return builder

    def iterate(self, wrapped: Wrapped, consumer: Any, args: Arguments, kwargs: Options) -> Any:
        """Around ``__aiter__``, which gives the consumer itself: each loop has an iterator of its own."""
        return self.loop(AsyncMessages, wrapped(*args, **kwargs), Source(consumer))


def _handed_down(producer: Any, args: Arguments, kwargs: Options) -> tuple[Arguments, Options]:
    """The arguments of a ``send`` below one that is traced already.

    Of a traced function the producer is known only here: what the function was given to hand on is written anew
    further below, where the size of the message is known.
    """
    publication = work_at_hand("publish", AIOKAFKA.name)
    if not isinstance(publication, RecordPublication) or publication.is_bound:
        return args, kwargs
    if not isinstance(producer, AIOKafkaProducer):
        return args, kwargs
    try:
        publication.producer = producer
        plain = copied(calls.given(HEADERS_AT, "headers", args, kwargs))
        if not plain:
            return args, kwargs
        propagation.write(plain, Context())
        return calls.replaced(HEADERS_AT, "headers", plain, args, kwargs)
    except Exception as error:
        guard.fault(_WRITING, error)
        return args, kwargs


async def add_message(wrapped: Wrapped, accumulator: Any, args: Arguments, kwargs: Options) -> Any:
    """Around ``MessageAccumulator.add_message``: key and value are bytes, and the partition is chosen."""
    publication = work_at_hand("publish", AIOKAFKA.name)
    if not isinstance(publication, RecordPublication) or publication.producer is None:
        return await wrapped(*args, **kwargs)
    try:
        where, key, value, headers = _added_arguments(*args, **kwargs)
        if where.topic == publication.given.topic:
            publication.note(where.partition, value)
        written = publication.headers_of_record(key, value, headers)
        args, kwargs = calls.replaced(HEADERS_AT, "headers", written, args, kwargs)
    except Exception as error:
        guard.fault(_WRITING, error)
    return await wrapped(*args, **kwargs)


_WRITING = "writing the headers of a publish with aiokafka"


def _added_arguments(
    tp: Any,
    key: Any,
    value: Any,
    timeout: Any = None,
    timestamp_ms: Any = None,
    headers: Any = None,
    **of_a_subclass: Any,
) -> tuple[Any, Any, Any, Any]:
    return tp, key, value, headers


def _join_accumulator(producer: Any) -> None:
    try:
        if isinstance(producer, AIOKafkaProducer):
            _join(producer._message_accumulator, "add_message", add_message)
    except Exception as error:
        guard.fault("preparing a publish with aiokafka", error)


def _join(instance: Any, name: str, hook: Hook) -> None:
    """Wraps a method of one object, for those who patch no classes."""
    if name not in vars(instance):
        setattr(instance, name, functools.partial(_joined, hook, weakref.ref(instance), name))


def _joined(hook: Hook, reference: Any, name: str, /, *args: Any, **kwargs: Any) -> Any:
    instance = reference()
    return hook(getattr(type(instance), name).__get__(instance), instance, args, kwargs)
