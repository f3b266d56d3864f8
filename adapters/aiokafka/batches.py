"""Batches: the create spans of what is in one are kept until it is known where it goes."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from typing import Any

from queueprop import guard
from queueprop.adapters.aiokafka.destinations import destination_of
from queueprop.adapters.aiokafka.headers import copied, with_room
from queueprop.adapters.aiokafka.publishing import Publish, note_value
from queueprop.engine.engine import Engine
from queueprop.engine.message import Destination, Message
from queueprop.engine.operations import Create, Send
from queueprop.kit import kafka
from queueprop.kit.calls import Arguments, Options, Wrapped
from queueprop.kit.library import Publication


class Batch:
    """A ``BatchBuilder`` that is being filled."""

    _pending: tuple[Create, list[Any], list[Any]] | None = None

    def __init__(self, engine: Engine, is_active: Callable[[], bool], producer: Any) -> None:
        self._engine = engine
        self._is_active = is_active
        self._producer = producer
        self._created: list[Create] = []

    def append(self, wrapped: Wrapped, builder: Any, args: Arguments, kwargs: Options) -> Any:
        """Around ``append``: a create span, where the batch takes the message."""
        try:
            pending = self._prepared(kwargs)
        except Exception as error:
            guard.fault("preparing a message of a batch with aiokafka", error)
            pending = None
        if pending is None:
            return wrapped(*args, **kwargs)
        create, _, going_out = self._pending = pending
        try:
            metadata = wrapped(*args, **{**kwargs, "headers": going_out})
        finally:
            self._pending = None
        if metadata is not None:
            self._created.append(create)
        return metadata

    def _prepared(self, kwargs: Options) -> tuple[Create, list[Any], list[Any]] | None:
        """The span of a message, its headers with the context, and those that go out so far."""
        given, key = kwargs.get("headers"), kwargs.get("key")
        written = copied(given)
        if written is None or not self._is_active():
            return None
        going_out = list(written)
        native = Publish(None, kwargs.get("value"), key, None, kwargs.get("timestamp"), given)
        message = Message(headers=written, attributes=kafka.key_attributes(key), native=native)
        create = self._engine.create(destination_of(self._producer, None), message)
        create.open()
        return create, written, going_out

    def serialize(self, wrapped: Wrapped, builder: Any, args: Arguments, kwargs: Options) -> Any:
        """Around ``_serialize``, behind which the size of the message is known, and before its headers are used."""
        key, value = wrapped(*args, **kwargs)
        pending, self._pending = self._pending, None
        if pending is None:
            return key, value
        try:
            create, written, going_out = pending
            note_value(create, value)
            going_out[:] = with_room(self._producer, None, key, value, going_out, written)
        except Exception as error:
            guard.fault("writing the headers of a message of a batch with aiokafka", error)
        return key, value

    def created_for(self, destination: Destination) -> list[Create]:
        """The create spans of what is in it: they end, now that it is known where the messages go."""
        for create in self._created:
            create.close(destination)
        return self._created

    def leave(self, builder: Any, destination: Destination) -> None:
        """Leaves it to aiokafka, whose own sends may fill it up; with what was appended while it waited."""
        self.created_for(destination)
        self._created = []
        for name in ("append", "_serialize"):
            vars(builder).pop(name, None)


batches_by_builder: weakref.WeakKeyDictionary[Any, Batch] = weakref.WeakKeyDictionary()


class BatchPublication(Publication):
    """A ``send_batch``: a CLIENT span, beside the create spans of what is in it."""

    def __init__(self, builder: Any, topic: Any, partition: Any, producer: Any) -> None:
        self._builder = builder
        self._batch = batches_by_builder.get(builder)
        super().__init__(destination_of(producer, topic, partition), [Message()] * builder.record_count())

    def begin(self, engine: Engine) -> Send:
        created = [] if self._batch is None else self._batch.created_for(self.destination)
        messages: Any = self.message
        return engine.send(self.destination, messages, created=created)

    def end(self, result: Any) -> None:
        if self._batch is not None:
            self._batch.leave(self._builder, self.destination)
        if asyncio.isfuture(result):
            self.send.end_with(result)
        else:
            self.send.close()  # of a function around it
