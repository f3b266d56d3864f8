"""aiokafka: Kafka's messages in their producers' traces. aiokafka 0.11 and newer.

The context travels in the record's headers, as UTF-8 bytes under lowercase names. The caller's headers are copied
before anything is written.

Three things shape this file:

- What a message's key and value are on the wire, and its partition, is known behind aiokafka's serializers and its
  partitioner, which must not run twice. So the span begins at the producer's ``send``, and the context is put in where
  the message goes into the accumulator, when all of that is settled.
- ``async for`` iterates the consumer itself, so each loop is given an iterator of its own: its span ends with the loop.
- A batch is filled before anybody says which topic it is for. Its create spans are kept until it is sent.
"""

from __future__ import annotations

import asyncio
import functools
import weakref
from collections.abc import (
    AsyncIterable,
    Callable,
    Collection,
    Hashable,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, ParamSpec, TypeVar, overload

from opentelemetry.context import Context
from opentelemetry.trace import Span
from opentelemetry.util.types import AttributeValue

from queueprop import guard
from queueprop.engine import semconv
from queueprop.engine.engine import Engine
from queueprop.engine.message import Destination, Message
from queueprop.engine.operations import Create, Send
from queueprop.kit import calls, checks, kafka
from queueprop.kit.calls import Arguments, Hook, Options, Wrapped
from queueprop.kit.fitting import fitted
from queueprop.kit.hooks import Hooks
from queueprop.kit.instrumentor import Adapter, Patch, Rival, Rivals
from queueprop.kit.iteration import AsyncMessages, Begin, MessageList, Messages
from queueprop.kit.libraries import missing_extra
from queueprop.kit.library import Library, Publication, Settlement, Source
from queueprop.kit.nesting import Everything, is_inside, work_at_hand
from queueprop.kit.words import Call, Words
from queueprop.settings import Settings
from queueprop.wire import propagation

try:
    from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
    from aiokafka.errors import ConsumerStoppedError
    from aiokafka.producer.message_accumulator import MessageAccumulator
    from aiokafka.record.default_records import DefaultRecordBatchBuilder
except ModuleNotFoundError as error:
    if error.name != "aiokafka":
        raise
    raise missing_extra(__name__, "aiokafka", "aiokafka") from None

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


class Publish(NamedTuple):
    """What a ``publish_hook`` is given: the call's arguments, before aiokafka's serializers.

    Of a message that goes into a batch, the topic and the partition are not known yet.
    """

    topic: str | None
    value: Any
    key: Any
    partition: int | None
    timestamp_ms: int | None
    headers: Any


def traced_publish(publish: Callable[P, R], *, settings: Settings | None = None) -> Callable[P, R]:
    """Wraps a producer's publish: ``send = traced_publish(producer.send)``.

    The PRODUCER span ends when the broker has answered, which the future of ``send`` tells: a failed delivery is an
    error of the span. Headers are copied before the context is written; a tuple of headers goes out as a list. The
    context is left out where it alone would make the message larger than ``max_request_size``, and where the broker
    knows no headers; around a function of yours, whose producer nobody knows, neither is looked at.

    Args:
        publish: ``send``, ``send_and_wait`` or ``send_batch`` of an AIOKafkaProducer, a ``functools.partial`` of one of
            them, or a coroutine function with the same arguments around ``send``.
        settings: instead of those of the environment.

    Raises TypeError for what can be none of these, as do the other words here.
    """
    takes = None if _name_of(publish) == "send_batch" else "headers"
    checks.check_call("traced_publish", publish, "aiokafka", _PUBLISH.names, _PUBLISH.form, takes)
    return calls.hooked(publish, _joining(settings, "traced_publish").send)


def traced_create_batch(create: Callable[P, R], *, settings: Settings | None = None) -> Callable[P, R]:
    """Wraps a producer's ``create_batch``, whose messages then carry contexts of their own::

        create_batch = traced_create_batch(producer.create_batch)
        send_batch = traced_publish(producer.send_batch)

    Each message that is appended has a create span (PRODUCER); the span of ``send_batch`` (CLIENT) links to them.
    """
    form = "a producer's create_batch, as in traced_create_batch(producer.create_batch)"
    checks.check_call("traced_create_batch", create, "aiokafka", ("create_batch",), form)
    return calls.hooked(create, _joining(settings, "traced_create_batch").create_batch)


@overload
def traced_consumer(handler: F) -> F: ...
@overload
def traced_consumer(
    *, destination: Destination | None = None, settings: Settings | None = None
) -> Callable[[F], F]: ...
def traced_consumer(
    handler: F | None = None, *, destination: Destination | None = None, settings: Settings | None = None
) -> F | Callable[[F], F]:
    """Decorates a handler that is given a record, anywhere among its arguments::

        @traced_consumer
        async def handle(record): ...

    Args:
        destination: instead of the record's topic and partition.
        settings: instead of those of the environment.
    """
    return _words.consumer(handler, Source, destination, settings)


@overload
def traced_messages(
    iterable: AsyncIterable[T], destination: Destination | None = None, *, settings: Settings | None = None
) -> AsyncMessages[T]: ...
@overload
def traced_messages(
    iterable: Iterable[T], destination: Destination | None = None, *, settings: Settings | None = None
) -> Messages[T]: ...
def traced_messages(
    iterable: Any, destination: Destination | None = None, *, settings: Settings | None = None
) -> Any:
    """A loop whose body runs inside each record's CONSUMER span::

        async for record in traced_messages(consumer): ...
        for record in traced_messages(records): ...  # of one partition, as getmany gives them

    The span ends when the next record is asked for, and when the loop is left, unless the iterator is kept: then it
    ends when that is closed or dropped. Close an async generator of yours around the loop (``contextlib.aclosing``):
    one that is left by ``break`` is closed by the event loop, and late; before Python 3.12 its last span then stays
    current in your task.

    Args:
        iterable: an AIOKafkaConsumer, or whatever gives records, sync or async.
        destination: instead of each record's topic and partition.
        settings: instead of those of the environment.
    """
    source = Source(iterable) if isinstance(iterable, AIOKafkaConsumer) else None
    return _words.messages(iterable, destination, settings, source)


def traced_message(
    record: Any, destination: Destination | None = None, *, settings: Settings | None = None
) -> AbstractContextManager[Span]:
    """The CONSUMER span of one record, as a context manager::

        record = await consumer.getone()
        with traced_message(record): ...

    Args as for ``traced_messages``. The record's consumer group is known where its consumer is traced
    (``AIOKafkaInstrumentor``, ``traced_get``).
    """
    return _words.message(record, destination, settings)


def traced_batch(
    records: Iterable[Any], destination: Destination | None = None, *, settings: Settings | None = None
) -> AbstractContextManager[Span]:
    """One CONSUMER span for a batch, with a link for each record, as a context manager. Args as for
    ``traced_messages``."""
    return _words.batch(records, destination, settings)


def traced_get(get: Callable[P, R], *, settings: Settings | None = None) -> Callable[P, R]:
    """Wraps a consumer's pull call, which then has a receive span: ``getone = traced_get(consumer.getone)``.

    It opens no scope: handle a record inside ``traced_message``, which then also knows the consumer. The lists of
    ``getmany`` do it by themselves: what iterates one handles each record inside its span, once a record.
    """
    return _words.get(get, settings)


def traced_settle(settle: Callable[P, R], *, settings: Settings | None = None) -> Callable[P, R]:
    """Wraps a consumer's ``commit``: ``commit = traced_settle(consumer.commit)``; or, in a transaction, its producer's
    ``send_offsets_to_transaction``.

    Under ``Settings(settle_spans=True)``, which the loop must have too, a commit is a span: a child of the span of the
    last record that was handled. Of each further partition that it commits, it links to the last record.
    """
    return _words.settle(settle, settings)


class AIOKafkaInstrumentor(Adapter):
    """Traces every producer and consumer of aiokafka from now on.

    ``opentelemetry-instrument`` finds it by itself, unless
    ``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=queueprop_aiokafka``.
    """

    library = "aiokafka"
    requires = ("aiokafka >= 0.11",)
    rivals = Rivals("aiokafka", Rival.contrib("aiokafka", "AIOKafkaInstrumentor"))

    def patches(self) -> Iterable[Patch]:
        hooks = _Hooks(AIOKAFKA, self.engine, lambda: self.is_active)
        yield Patch(AIOKafkaProducer, "send", hooks.send)
        yield Patch(AIOKafkaProducer, "create_batch", hooks.create_batch)
        yield Patch(AIOKafkaProducer, "send_batch", hooks.send)
        yield Patch(AIOKafkaProducer, "send_offsets_to_transaction", hooks.settle_async)
        yield Patch(MessageAccumulator, "add_message", add_message)
        yield Patch(AIOKafkaConsumer, "__aiter__", hooks.iterate)
        yield Patch(AIOKafkaConsumer, "getone", hooks.pull_async)
        yield Patch(AIOKafkaConsumer, "getmany", hooks.pull_async)
        yield Patch(AIOKafkaConsumer, "commit", hooks.settle_async)


class _AIOKafka(Library):
    name = "aiokafka"
    message_form = "record of aiokafka's, as getone and getmany give them"
    message_type = ConsumerRecord
    message_fields = ("topic", "partition", "offset", "timestamp", "headers", "key", "serialized_value_size")
    settles_each = False
    is_async = True
    loops_pull = True

    def publication(
        self, producer: Any, args: Arguments, kwargs: Options, call: Wrapped
    ) -> Publication | None:
        if _name_of(call) == "send_batch":
            batch = calls.bound(_send_batch_arguments, args, kwargs)
            return None if batch is None else _BatchPublication(*batch, producer)
        given = calls.bound(_send_arguments, args, kwargs)
        return None if given is None else _Publication(Publish(*given), producer)

    def message(self, record: Any) -> Message:
        size, timestamp = record.serialized_value_size, record.timestamp
        attributes: dict[str, AttributeValue] = {
            kafka.OFFSET: record.offset,
            semconv.DESTINATION_PARTITION_ID: str(record.partition),
            **kafka.key_attributes(record.key),
        }
        if size == -1:  # not by its value: a deserializer may make something of nothing
            attributes[kafka.TOMBSTONE] = True
        return Message(
            headers=record.headers,
            body_size=size if size >= 0 else None,
            sent_at=timestamp / 1000 if isinstance(timestamp, int) and timestamp >= 0 else None,
            attributes=attributes,
            native=record,
        )

    def consumed_from(self, record: Any, source: Source | None) -> Destination:
        return self.pulled_from(() if record is None else (record,), source)

    def pulled_from(self, records: Sequence[Any], source: Source | None) -> Destination:
        consumer = None if source is None else source.via
        return kafka.destination_of_all(
            [(record.topic, record.partition) for record in records],
            getattr(consumer, "_group_id", None),
            *_told(getattr(consumer, "_client", None)),
        )

    def is_nothing(self, native: Any) -> bool:
        return False  # None is no record: nothing of aiokafka's gives it

    def source(self, consumer: Any, args: Arguments, kwargs: Options, call: Wrapped) -> Source:
        return Source(consumer, gives_several=_name_of(call) == "getmany")

    def pulls(self, returned: Any) -> Sequence[Any]:
        lists = returned.values() if isinstance(returned, dict) else ([returned],)
        records = [record for some in lists if isinstance(some, list) for record in some]
        return [record for record in records if isinstance(record, ConsumerRecord)]

    def handed_over(self, returned: Any, step: Begin) -> Any:
        if type(returned) is not dict or any(type(some) is not list for some in returned.values()):
            return returned  # of getone, of a function around getmany, or traced already
        return {partition: MessageList(some, step) for partition, some in returned.items()}

    def is_end(self, error: BaseException) -> bool:
        return isinstance(error, ConsumerStoppedError)

    def settlement_of(self, record: Any, source: Source | None) -> tuple[Any, Hashable]:
        consumer = None if source is None else source.via
        return consumer, TopicPartition(record.topic, record.partition)

    def settled(self, via: Any, args: Arguments, kwargs: Options, call: Wrapped) -> Settlement | None:
        offsets = calls.given(0, "offsets", args, kwargs)
        partitions: Any = offsets if isinstance(offsets, Mapping) else ()
        if _name_of(call) == "send_offsets_to_transaction":
            group = calls.given(1, "group_id", args, kwargs)
            holders = [it for it in self.unsettled.holders() if getattr(it, "_group_id", None) == group]
            told = _told(getattr(via, "client", None))
        else:
            is_known = isinstance(via, AIOKafkaConsumer)
            holders, group = [via] if is_known else [], getattr(via, "_group_id", None)
            told = _told(getattr(via, "_client", None))
            if not isinstance(offsets, Mapping):
                partitions = via.assignment() if is_known else _WHATEVER

        def destination(settled: Sequence[Destination]) -> Destination:
            return kafka.destination_of_all([(it.name, it.partition_id) for it in settled], group, *told)

        return Settlement("commit", holders, picks=partitions.__contains__, destination=destination)


AIOKAFKA = _AIOKafka()

_PUBLISH = Call(
    "a producer's send, send_and_wait or send_batch, as in traced_publish(producer.send)",
    ("send", "send_and_wait", "send_batch"),
)
_words = Words(
    AIOKAFKA,
    publish=_PUBLISH,
    handler="as in @traced_consumer",
    iterable="a consumer or records, as in traced_messages(consumer)",
    get=Call("a consumer's getone or getmany, as in traced_get(consumer.getone)", ("getone", "getmany")),
    settle=Call(
        "a consumer's commit or a producer's send_offsets_to_transaction, as in traced_settle(consumer.commit)",
        ("commit", "send_offsets_to_transaction"),
    ),
)


def _joining(settings: Settings | None, word: str) -> _Hooks:
    """The hooks of the explicit API, inside those of the instrumentor."""
    return _Hooks(AIOKAFKA, checks.engine_of(settings, word), joins=True)


_WHATEVER = Everything()


def _name_of(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__name__", ""))


class _Hooks(Hooks):
    """What aiokafka has besides: batches that are filled before anybody says where they go."""

    def __init__(
        self, library: Library, engine: Engine, *is_active: Callable[[], bool], joins: bool = False
    ) -> None:
        super().__init__(library, engine, *is_active)
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
            if builder not in _batches and isinstance(producer, AIOKafkaProducer):
                _batches[builder] = batch = _Batch(self.engine, self.is_active, producer)
                _join(builder, "append", batch.append)
                _join(builder, "_serialize", batch.serialize)
        except Exception as error:
            guard.fault("preparing a batch of aiokafka", error)
        return builder

    def iterate(self, wrapped: Wrapped, consumer: Any, args: Arguments, kwargs: Options) -> Any:
        """Around ``__aiter__``, which gives the consumer itself: each loop has an iterator of its own."""
        return self.loop(AsyncMessages, wrapped(*args, **kwargs), Source(consumer))


# Publishing


class _Publication(Publication):
    """A ``send``. Its headers are written in the accumulator below it."""

    def __init__(self, given: Publish, producer: Any) -> None:
        self.given = given
        self.producer = producer if isinstance(producer, AIOKafkaProducer) else None
        self.is_bound = self.producer is not None
        """Whether it was known at once which producer it is, and not only below a function."""
        attributes = kafka.key_attributes(given.key)
        if given.partition is not None:
            attributes[semconv.DESTINATION_PARTITION_ID] = str(given.partition)
        body = None if self.is_bound else given.value
        message = Message(
            headers=_copied(given.headers) if given.headers or not self.is_bound else None,
            attributes=attributes,
            body=body if isinstance(body, (bytes, str)) else None,
            native=given,
        )
        super().__init__(_published_to(given.topic, None, self.producer), message)

    def arguments(self, args: Arguments, kwargs: Options) -> tuple[Arguments, Options]:
        handed_on = self._headers_of_call()
        if handed_on is self.given.headers:
            return args, kwargs
        return calls.replaced(_HEADERS, "headers", handed_on, args, kwargs)

    def _headers_of_call(self) -> Any:
        """What ``send`` is called with. Of a producer that is not known the accumulator is not, either."""
        given = self.given.headers
        if self.producer is None:
            return self.message.headers or given  # type: ignore[union-attr]
        copied = None if isinstance(given, list) else _copied(given)
        return copied or given  # of other collections aiokafka's extensions know nothing

    def headers_of_record(self, key: Any, value: Any, given: Any) -> Any:
        """What goes into the accumulator, in place of what came down to it."""
        written = _copied(given)
        if written is None:
            return given
        self.send.write(written)
        return _with_room(self.producer, self.given.topic, key, value, given, written)

    def end(self, result: Any) -> None:
        end = self.send.end_with if asyncio.isfuture(result) else self.send.close_with
        end(result, _describe_answer)


class _BatchPublication(Publication):
    """A ``send_batch``: a CLIENT span, beside the create spans of what is in it."""

    def __init__(self, builder: Any, topic: Any, partition: Any, producer: Any) -> None:
        self._builder = builder
        self._batch = _batches.get(builder)
        super().__init__(_published_to(topic, partition, producer), [Message()] * builder.record_count())

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


def _handed_down(producer: Any, args: Arguments, kwargs: Options) -> tuple[Arguments, Options]:
    """The arguments of a ``send`` below one that is traced already.

    Of a traced function the producer is known only here: what the function was given to hand on is written anew
    further below, where the size of the message is known.
    """
    publication = work_at_hand("publish", AIOKAFKA.name)
    if not isinstance(publication, _Publication) or publication.is_bound:
        return args, kwargs
    if not isinstance(producer, AIOKafkaProducer):
        return args, kwargs
    try:
        publication.producer = producer
        plain = _copied(calls.given(_HEADERS, "headers", args, kwargs))
        if not plain:
            return args, kwargs
        propagation.write(plain, Context())
        return calls.replaced(_HEADERS, "headers", plain, args, kwargs)
    except Exception as error:
        guard.fault(_WRITING, error)
        return args, kwargs


def _with_room(producer: Any, topic: str | None, key: Any, value: Any, given: Any, written: Any) -> Any:
    """The headers that go out: with the context in them, or with what of it there is room for."""
    if not _takes_headers(producer._message_accumulator):
        return given
    limit = producer._max_request_size
    return fitted(
        written,
        lambda: list(given or ()),
        lambda headers: DefaultRecordBatchBuilder.estimate_size_in_bytes(key, value, headers) <= limit,
        "publishing with aiokafka",
        topic or "a batch",
    )


_HEADERS = 5  # its place among the arguments of send, and of the accumulator's add_message
_WRITING = "writing the headers of a publish with aiokafka"


def _note(made: Send | Create, value: Any, partition: int | None = None) -> None:
    """What the serializers have made of the message's value, and the partition that was chosen."""
    try:
        if not made.span.is_recording():
            return
        if partition is not None:
            made.span.set_attribute(semconv.DESTINATION_PARTITION_ID, str(partition))
        if value is None:
            made.span.set_attribute(kafka.TOMBSTONE, True)
        elif made.telemetry.settings.body_size:
            made.span.set_attribute(semconv.MESSAGE_BODY_SIZE, len(value))
    except Exception as error:
        guard.fault("describing a message of aiokafka", error)


_ADDED = ("tp", "key", "value")


async def add_message(wrapped: Wrapped, accumulator: Any, args: Arguments, kwargs: Options) -> Any:
    """Around ``MessageAccumulator.add_message``: key and value are bytes, and the partition is chosen."""
    publication = work_at_hand("publish", AIOKAFKA.name)
    if not isinstance(publication, _Publication) or publication.producer is None:
        return await wrapped(*args, **kwargs)
    try:
        where, key, value = (calls.given(i, name, args, kwargs) for i, name in enumerate(_ADDED))
        send, given = publication.send, publication.given
        if where.topic == given.topic:
            _note(send, value, where.partition if given.partition is None else None)
        written = publication.headers_of_record(key, value, calls.given(_HEADERS, "headers", args, kwargs))
        args, kwargs = calls.replaced(_HEADERS, "headers", written, args, kwargs)
    except Exception as error:
        guard.fault(_WRITING, error)
    return await wrapped(*args, **kwargs)


def _describe_answer(metadata: Any) -> Mapping[str, AttributeValue]:
    """What the broker answered; nothing with ``acks=0``. A function around ``send`` may answer something else."""
    attributes: dict[str, AttributeValue] = {}
    partition, offset = getattr(metadata, "partition", None), getattr(metadata, "offset", None)
    if isinstance(partition, int):
        attributes[semconv.DESTINATION_PARTITION_ID] = str(partition)
    if isinstance(offset, int) and offset >= 0:
        attributes[kafka.OFFSET] = offset
    return attributes


class _Batch:
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
        copied = _copied(given)
        if copied is None or not self._is_active():
            return None
        going_out = list(copied)
        native = Publish(None, kwargs.get("value"), key, None, kwargs.get("timestamp"), given)
        message = Message(headers=copied, attributes=kafka.key_attributes(key), native=native)
        create = self._engine.create(_published_to(None, None, self._producer), message)
        create.open()
        return create, copied, going_out

    def serialize(self, wrapped: Wrapped, builder: Any, args: Arguments, kwargs: Options) -> Any:
        """Around ``_serialize``, behind which the size of the message is known, and before its headers are used."""
        key, value = wrapped(*args, **kwargs)
        pending, self._pending = self._pending, None
        if pending is None:
            return key, value
        try:
            create, written, going_out = pending
            _note(create, value)
            going_out[:] = _with_room(self._producer, None, key, value, going_out, written)
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


_batches: weakref.WeakKeyDictionary[Any, _Batch] = weakref.WeakKeyDictionary()


def _takes_headers(accumulator: Any) -> bool:
    """Whether the broker's version has headers. aiokafka 0.13 and newer speak to no other."""
    return bool(getattr(accumulator, "_api_version", _HEADERS_SINCE) >= _HEADERS_SINCE)


_HEADERS_SINCE = (0, 11)


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


def _copied(headers: Any) -> list[Any] | None:
    """Headers that are ours to write to; None for what is not what aiokafka takes: it says so."""
    if headers is None:
        return []
    is_taken = isinstance(headers, Collection) and not isinstance(headers, (Mapping, str, bytes))
    return list(headers) if is_taken else None


# Arguments


def _send_arguments(
    topic: Any,
    value: Any = None,
    key: Any = None,
    partition: Any = None,
    timestamp_ms: Any = None,
    headers: Any = None,
    **of_a_subclass: Any,
) -> tuple[Any, Any, Any, Any, Any, Any]:
    return topic, value, key, partition, timestamp_ms, headers


def _send_batch_arguments(batch: Any, topic: Any, *, partition: Any) -> tuple[Any, Any, Any]:
    return batch, topic, partition


# Destinations


def _published_to(topic: Any, partition: Any, producer: Any) -> Destination:
    return kafka.destination(topic, partition, None, *_told(getattr(producer, "client", None)))


def _told(client: Any) -> tuple[str | None, str | None, int | None]:
    """The client's id, and host and port of the first server that it was told."""
    servers = getattr(client, "_bootstrap_servers", None)
    first = servers if isinstance(servers, str) or not servers else next(iter(servers))
    return (getattr(client, "_client_id", None), *kafka.address(first if isinstance(first, str) else ""))
