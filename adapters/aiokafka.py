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
import time
import weakref
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any, NamedTuple, ParamSpec, TypeVar, overload
from uuid import UUID

from opentelemetry.context import Context, get_current
from opentelemetry.trace import Span
from opentelemetry.util.types import AttributeValue

from queueprop import guard
from queueprop.engine import semconv
from queueprop.engine.engine import Engine, engine_for
from queueprop.engine.message import Destination, Message
from queueprop.engine.operations import Create, Process, ProcessBatch, Send
from queueprop.engine.scope import current_scope
from queueprop.kit import calls
from queueprop.kit.calls import Arguments, Hook, Options, Wrapped
from queueprop.kit.handlers import prepared, run_inside
from queueprop.kit.instrumentor import Adapter, Patch, Rivals, missing_extra
from queueprop.kit.iteration import AsyncMessages, Messages, iterate_inside
from queueprop.settings import Settings
from queueprop.wire import headers, propagation

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

SYSTEM = "kafka"
KEY = "messaging.kafka.message.key"
TOMBSTONE = "messaging.kafka.message.tombstone"
OFFSET = "messaging.kafka.offset"


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
    """
    hooks = _Hooks(engine_for(settings))
    hook = hooks.send_batch if _name_of(publish) == "send_batch" else hooks.send
    return calls.hooked(publish, hook)


def traced_create_batch(create: Callable[P, R], *, settings: Settings | None = None) -> Callable[P, R]:
    """Wraps a producer's ``create_batch``, whose messages then carry contexts of their own::

        create_batch = traced_create_batch(producer.create_batch)
        send_batch = traced_publish(producer.send_batch)

    Each message that is appended has a create span (PRODUCER); the span of ``send_batch`` (CLIENT) links to them.
    """
    return calls.hooked(create, _Hooks(engine_for(settings)).create_batch)


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
    hooks = _Hooks(engine_for(settings))

    def begin(args: Arguments, kwargs: Options) -> Process | None:
        for argument in (*args, *kwargs.values()):
            if isinstance(argument, ConsumerRecord):
                return hooks.process(argument, None, destination)
        return None

    def decorate(decorated: F) -> F:
        return run_inside(decorated, begin)

    return decorate if handler is None else decorate(handler)


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
    hooks = _Hooks(engine_for(settings))
    consumer = iterable if isinstance(iterable, AIOKafkaConsumer) else None
    source = _LoopOf(iterable.__aiter__()) if consumer is not None else iterable
    return iterate_inside(source, lambda record: hooks.process(record, consumer, destination))


def traced_message(
    record: Any, destination: Destination | None = None, *, settings: Settings | None = None
) -> AbstractContextManager[Span]:
    """The CONSUMER span of one record, as a context manager::

        record = await consumer.getone()
        with traced_message(record): ...

    Args as for ``traced_messages``. The record's consumer group is known where its consumer is traced
    (``AIOKafkaInstrumentor``, ``traced_get``).
    """
    hooks = _Hooks(engine_for(settings))
    return prepared(lambda: hooks.process(record, None, destination), _READING)


def traced_batch(
    records: Sequence[Any], destination: Destination | None = None, *, settings: Settings | None = None
) -> AbstractContextManager[Span]:
    """One CONSUMER span for a batch, with a link for each record, as a context manager. Args as for
    ``traced_messages``."""
    hooks = _Hooks(engine_for(settings))
    return prepared(lambda: hooks.process_batch(records, destination), _READING)


def traced_get(get: Callable[P, R], *, settings: Settings | None = None) -> Callable[P, R]:
    """Wraps a consumer's pull call, which then has a receive span: ``getone = traced_get(consumer.getone)``.

    It opens no scope: handle a record inside ``traced_message``, which then also knows the consumer. The lists of
    ``getmany`` do it by themselves: what iterates one handles each record inside its span, once a record.
    """
    hooks = _Hooks(engine_for(settings))
    return calls.hooked(get, hooks.getmany if _name_of(get) == "getmany" else hooks.getone)


def traced_settle(settle: Callable[P, R], *, settings: Settings | None = None) -> Callable[P, R]:
    """Wraps a consumer's ``commit``: ``commit = traced_settle(consumer.commit)``; or, in a transaction, its producer's
    ``send_offsets_to_transaction``.

    Under ``Settings(settle_spans=True)``, which the loop must have too, a commit is a span: a child of the span of the
    last record that was handled. Of each further partition that it commits, it links to the last record.
    """
    hooks = _Hooks(engine_for(settings))
    in_transaction = _name_of(settle) == "send_offsets_to_transaction"
    return calls.hooked(settle, hooks.send_offsets if in_transaction else hooks.commit)


class AIOKafkaInstrumentor(Adapter):
    """Traces every producer and consumer of aiokafka from now on."""

    library = "aiokafka"
    requires = ("aiokafka >= 0.11",)
    rivals = Rivals("aiokafka", "opentelemetry.instrumentation.aiokafka:AIOKafkaInstrumentor")

    def patches(self) -> Iterable[Patch]:
        hooks = _Hooks(self.engine, lambda: self.is_active)
        yield Patch(AIOKafkaProducer, "send", hooks.send)
        yield Patch(AIOKafkaProducer, "create_batch", hooks.create_batch)
        yield Patch(AIOKafkaProducer, "send_batch", hooks.send_batch)
        yield Patch(AIOKafkaProducer, "send_offsets_to_transaction", hooks.send_offsets)
        yield Patch(MessageAccumulator, "add_message", add_message)
        yield Patch(AIOKafkaConsumer, "__aiter__", hooks.iterate)
        yield Patch(AIOKafkaConsumer, "getone", hooks.getone)
        yield Patch(AIOKafkaConsumer, "getmany", hooks.getmany)
        yield Patch(AIOKafkaConsumer, "commit", hooks.commit)


def _name_of(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__name__", ""))


class _Hooks:
    """What is done around aiokafka's own methods, each as ``hook(bound method, its object, args, kwargs)``."""

    def __init__(self, engine: Engine, is_active: Callable[[], bool] | None = None) -> None:
        self.engine = engine
        self._is_active = is_active or (lambda: True)
        self._joins = is_active is None  # without patches, the accumulator below is wrapped on the object

    # The producer's side

    async def send(self, wrapped: Wrapped, producer: Any, args: Arguments, kwargs: Options) -> Any:
        """Around ``send``, and around ``send_and_wait`` in the explicit API."""
        if self.engine.is_sending(_OWNER):
            args, kwargs = _handed_down(producer, args, kwargs)
            return await wrapped(*args, **kwargs)
        try:
            given = Publish(*_send_arguments(*args, **kwargs))
        except TypeError:
            return await wrapped(*args, **kwargs)  # aiokafka says what is wrong with them
        try:
            publication = self._publication(given, producer)
        except Exception as error:
            guard.fault("preparing a publish with aiokafka", error)
            return await wrapped(*args, **kwargs)
        send = publication.send
        send.open()
        try:
            with calls.during(_publication, publication):
                handed_on = publication.headers_of_call
                if handed_on is not given.headers:
                    args, kwargs = calls.replaced(_HEADERS, "headers", handed_on, args, kwargs)
                result = await wrapped(*args, **kwargs)
        except BaseException as error:
            send.close(error)
            raise
        end = send.end_with if asyncio.isfuture(result) else send.close_with
        end(result, _describe_answer)
        return result

    def _publication(self, given: Publish, producer: Any) -> _Publication:
        producer = producer if isinstance(producer, AIOKafkaProducer) else None
        is_read = producer is None or self.engine.settings.capture_headers
        message = Message(
            headers=_copied(given.headers) if is_read else None,  # else they are written further below
            attributes=(
                None if given.partition is None else {semconv.DESTINATION_PARTITION_ID: str(given.partition)}
            ),
            body=given.value if producer is None and isinstance(given.value, (bytes, str)) else None,
            native=given,
            describe=_describe_publish,
        )
        destination = _published_to(given.topic, None, producer)
        if producer is not None and self._joins:
            _join(producer._message_accumulator, "add_message", add_message)
        return _Publication(self.engine.send(destination, message, owner=_OWNER), message, given, producer)

    def create_batch(self, wrapped: Wrapped, producer: Any, args: Arguments, kwargs: Options) -> Any:
        """Around ``create_batch``: what is appended to it has create spans."""
        builder = wrapped(*args, **kwargs)
        try:
            if builder not in _batches and isinstance(producer, AIOKafkaProducer):
                _batches[builder] = batch = _Batch(self.engine, self._is_active, producer)
                _join(builder, "append", batch.append)
                _join(builder, "_serialize", batch.serialize)
        except Exception as error:
            guard.fault("preparing a batch of aiokafka", error)
        return builder

    async def send_batch(self, wrapped: Wrapped, producer: Any, args: Arguments, kwargs: Options) -> Any:
        """Around ``send_batch``."""
        if self.engine.is_sending(_OWNER):
            return await wrapped(*args, **kwargs)
        try:
            builder, topic, partition = _send_batch_arguments(*args, **kwargs)
        except TypeError:
            return await wrapped(*args, **kwargs)  # as above
        try:
            destination = _published_to(topic, partition, producer)
            batch = _batches.get(builder)
            created = [] if batch is None else batch.created_for(destination)
            messages = [Message()] * builder.record_count()
            send = self.engine.send(destination, messages, owner=_OWNER, created=created)
        except Exception as error:
            guard.fault("preparing the publish of a batch with aiokafka", error)
            return await wrapped(*args, **kwargs)
        send.open()
        try:
            future = await wrapped(*args, **kwargs)
        except BaseException as error:
            send.close(error)
            raise
        if batch is not None:
            batch.leave(builder, destination)
        if asyncio.isfuture(future):
            send.end_with(future)
        else:
            send.close()  # of a function around it
        return future

    # The consumer's side

    def iterate(self, wrapped: Wrapped, consumer: Any, args: Arguments, kwargs: Options) -> Any:
        """Around ``__aiter__``, which gives the consumer itself: each loop has an iterator of its own."""
        source = wrapped(*args, **kwargs)
        return AsyncMessages(_LoopOf(source), lambda record: self.process(record, consumer))

    async def getone(self, wrapped: Wrapped, consumer: Any, args: Arguments, kwargs: Options) -> Any:
        """Around ``getone``: a pull call, which opens no scope for what follows."""
        if _is_pulling.get():
            return await wrapped(*args, **kwargs)
        started_at = time.time_ns()
        try:
            with calls.during(_is_pulling, True):
                record = await wrapped(*args, **kwargs)
        except BaseException as error:
            self._received([], consumer, started_at, error)
            raise
        self._received([record], consumer, started_at)
        return record

    async def getmany(self, wrapped: Wrapped, consumer: Any, args: Arguments, kwargs: Options) -> Any:
        """Around ``getmany``, which gives a list for each partition."""
        if _is_pulling.get():
            return await wrapped(*args, **kwargs)
        started_at = time.time_ns()
        try:
            with calls.during(_is_pulling, True):
                found = await wrapped(*args, **kwargs)
        except BaseException as error:
            self._received([], consumer, started_at, error, batch=True)
            raise
        if type(found) is not dict or any(type(some) is not list for some in found.values()):
            return found  # of a function around it, or traced already
        records = [record for some in found.values() for record in some]
        self._received(records, consumer, started_at, batch=True)
        return {
            partition: Records(some, lambda record: self.process(record, consumer))
            for partition, some in found.items()
        }

    def _received(
        self,
        records: Sequence[Any],
        consumer: Any,
        started_at: int,
        error: BaseException | None = None,
        batch: bool = False,
    ) -> None:
        try:
            records = [record for record in records if isinstance(record, ConsumerRecord)]
            if isinstance(consumer, AIOKafkaConsumer):
                for record in records:
                    _pulled.add(record, consumer)
            if not self.engine.settings.receive_spans or isinstance(error, ConsumerStoppedError):
                return
            destination = _of_all(records, consumer)
            receive = self.engine.receive(destination, batch=batch, started_at=started_at)
            for record in records:
                receive.add(_message_of(record, destination))
            receive.open()
            receive.close(error)
        except Exception as fault:
            guard.fault("tracing a pull of aiokafka", fault)

    def process(
        self, record: Any, consumer: Any = None, destination: Destination | None = None
    ) -> Process | None:
        if not self._is_active():
            return None
        if consumer is None:
            consumer = _pulled.find(record)
        if destination is None:
            destination = _consumed_from(record.topic, record.partition, consumer)
        process = self.engine.process(destination, _message_of(record, destination), owner=_OWNER)
        if self.engine.settings.settle_spans:
            _uncommitted.add(record, consumer, process)
        return process

    def process_batch(
        self, records: Sequence[Any], destination: Destination | None
    ) -> AbstractContextManager[Span]:
        records = _without_spans(records)
        consumer = _pulled.find(records[0]) if records else None
        if destination is None:
            destination = _of_all(records, consumer)
        messages = [_message_of(record, destination) for record in records]
        process = self.engine.process(destination, messages)
        if self.engine.settings.settle_spans:
            for record in records:
                _uncommitted.add(record, consumer, process)
        return process

    async def commit(self, wrapped: Wrapped, consumer: Any, args: Arguments, kwargs: Options) -> Any:
        """Around ``commit``."""
        return await self._settle(
            lambda: _uncommitted.of(consumer, calls.given(0, "offsets", args, kwargs)),
            lambda settled: _of_all(settled, consumer),
            lambda: wrapped(*args, **kwargs),
        )

    async def send_offsets(self, wrapped: Wrapped, producer: Any, args: Arguments, kwargs: Options) -> Any:
        """Around ``send_offsets_to_transaction``, which commits for a consumer: with what the producer sent."""
        group = calls.given(1, "group_id", args, kwargs)
        return await self._settle(
            lambda: _uncommitted.of_group(group, calls.given(0, "offsets", args, kwargs)),
            lambda settled: _of_all(settled, None, group, producer.client),
            lambda: wrapped(*args, **kwargs),
        )

    async def _settle(
        self,
        find: Callable[[], dict[Any, _Uncommitted]],
        destination_of: Callable[[Sequence[_Uncommitted]], Destination],
        settle: Callable[[], Any],
    ) -> Any:
        if not self.engine.settings.settle_spans or _is_settling.get():
            return await settle()
        try:
            settled = find()
            messages = [one.message for one in settled.values()]
            destination = destination_of(list(settled.values()))
        except Exception as error:
            guard.fault("preparing a commit with aiokafka", error)
            return await settle()
        if not messages:
            return await settle()
        with calls.during(_is_settling, True), self.engine.settle(destination, messages, operation="commit"):
            result = await settle()
        _uncommitted.forget(settled)
        return result


_OWNER = "aiokafka"
_READING = "reading a message of aiokafka"
_HEADERS = 5  # its place among the arguments of send, and of the accumulator's add_message

# The explicit API above the instrumentor, and a loop above getone, pull the very same message: that is one pull.
_is_pulling: ContextVar[bool] = ContextVar("queueprop-aiokafka-pulling", default=False)
_is_settling: ContextVar[bool] = ContextVar("queueprop-aiokafka-settling", default=False)


class _LoopOf(AsyncIterator[Any]):
    """The consumer's own steps, without a receive span for each."""

    def __init__(self, source: AsyncIterator[Any]) -> None:
        self._source = source

    def __aiter__(self) -> _LoopOf:
        return _LoopOf(self._source.__aiter__())  # the instrumentor's may be another one

    async def __anext__(self) -> Any:
        with calls.during(_is_pulling, True):
            return await self._source.__anext__()

    async def aclose(self) -> None:
        close = getattr(self._source, "aclose", None)
        if close is not None:
            await close()


class Records(list[Any]):
    """A partition's records, as ``getmany`` gives them: a list, but whatever iterates it first handles each record
    inside its CONSUMER span. Once a record: what is iterated again is a list's."""

    __slots__ = ("_begin", "_handled")

    def __init__(self, records: Iterable[Any], begin: Callable[[Any], Process | None]) -> None:
        super().__init__(records)
        self._begin = begin
        self._handled: set[int] = set()

    def __iter__(self) -> Iterator[Any]:
        return Messages(super().__iter__(), self._begin_once)

    def _begin_once(self, record: Any) -> Process | None:
        if id(record) in self._handled:
            return None
        self._handled.add(id(record))
        return self._begin(record)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return list, (self[:],)  # copied and pickled as a list is


def _without_spans(records: Iterable[Any]) -> list[Any]:
    return records[:] if isinstance(records, Records) else list(records)


# Publishing


class _Publication:
    """A ``send`` under way, for the accumulator below it."""

    def __init__(self, send: Send, message: Message, given: Publish, producer: Any) -> None:
        self.send = send
        self.message = message
        self.given = given
        self.producer = producer
        self.is_bound = producer is not None
        """Whether it was known at once which producer it is, and not only below a function."""

    @property
    def headers_of_call(self) -> Any:
        """What ``send`` is called with. Of a producer that is not known the accumulator is not, either."""
        given = self.given.headers
        if self.producer is None:
            return self.message.headers or given
        copied = None if isinstance(given, list) else _copied(given)
        return copied or given  # of other collections aiokafka's extensions know nothing

    def headers_of_record(self, key: Any, value: Any, given: Any) -> Any:
        """What goes into the accumulator, in place of what came down to it."""
        written = _copied(given)
        if written is None:
            return given
        self.send.write(written)
        return _with_room(self.producer, self.given.topic, key, value, given, written)


_publication: ContextVar[_Publication | None] = ContextVar("queueprop-aiokafka-publication", default=None)


def _handed_down(producer: Any, args: Arguments, kwargs: Options) -> tuple[Arguments, Options]:
    """The arguments of a ``send`` below one that is traced already.

    Of a traced function the producer is known only here: what the function was given to hand on is written anew
    further below, where the size of the message is known.
    """
    publication = _publication.get()
    if publication is None or publication.is_bound or not isinstance(producer, AIOKafkaProducer):
        return args, kwargs
    publication.producer = producer
    plain = _copied(calls.given(_HEADERS, "headers", args, kwargs))
    if not plain:
        return args, kwargs
    propagation.write(plain, Context())
    return calls.replaced(_HEADERS, "headers", plain, args, kwargs)


def _with_room(producer: Any, topic: str | None, key: Any, value: Any, given: Any, written: Any) -> Any:
    """The headers that go out: with the context in them, or with what of it there is room for."""
    if written is None or not _takes_headers(producer._message_accumulator):
        return given
    limit = producer._max_request_size
    if _size_of(key, value, written) <= limit:
        return written
    plain = list(given or ())
    if _size_of(key, value, plain) > limit:
        return written  # nobody has held it against the message, so far
    for names in (("baggage",), ("baggage", "tracestate")):
        shorter = list(written)
        headers.remove(shorter, names)
        if _size_of(key, value, shorter) <= limit:
            return shorter
    guard.mistake(
        f"publishing to {topic}" if topic is not None else "filling a batch of aiokafka",
        "the message leaves no room for a trace context within max_request_size; it goes out without one",
    )
    propagation.write(plain, Context())  # nor with an earlier one
    return plain


def _size_of(key: Any, value: Any, given: Any) -> int:
    size: int = DefaultRecordBatchBuilder.estimate_size_in_bytes(key, value, given)
    return size


def _note_value(made: Send | Create, value: Any) -> None:
    """What the serializers have made of the message's value."""
    if value is None:
        made.span.set_attribute(TOMBSTONE, True)
    elif made.engine.settings.body_size:
        made.span.set_attribute(semconv.MESSAGE_BODY_SIZE, len(value))


_ADDED = ("tp", "key", "value")


async def add_message(wrapped: Wrapped, accumulator: Any, args: Arguments, kwargs: Options) -> Any:
    """Around ``MessageAccumulator.add_message``: key and value are bytes, and the partition is chosen."""
    publication = _publication.get()
    if publication is None or publication.producer is None:
        return await wrapped(*args, **kwargs)
    try:
        where, key, value = (calls.given(i, name, args, kwargs) for i, name in enumerate(_ADDED))
        send, given = publication.send, publication.given
        if send.span.is_recording() and where.topic == given.topic:
            if given.partition is None:
                send.span.set_attribute(semconv.DESTINATION_PARTITION_ID, str(where.partition))
            _note_value(send, value)
        written = publication.headers_of_record(key, value, calls.given(_HEADERS, "headers", args, kwargs))
        args, kwargs = calls.replaced(_HEADERS, "headers", written, args, kwargs)
    except Exception as error:
        guard.fault("writing the headers of a publish with aiokafka", error)
    return await wrapped(*args, **kwargs)


def _describe_answer(metadata: Any) -> Mapping[str, AttributeValue]:
    """What the broker answered; nothing with ``acks=0``. A function around ``send`` may answer something else."""
    attributes: dict[str, AttributeValue] = {}
    partition, offset = getattr(metadata, "partition", None), getattr(metadata, "offset", None)
    if isinstance(partition, int):
        attributes[semconv.DESTINATION_PARTITION_ID] = str(partition)
    if isinstance(offset, int) and offset >= 0:
        attributes[OFFSET] = offset
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
        given = kwargs.get("headers")
        copied = _copied(given)
        if not self._is_active() or copied is None:
            return wrapped(*args, **kwargs)
        try:
            key, value, timestamp = kwargs.get("key"), kwargs.get("value"), kwargs.get("timestamp")
            native = Publish(None, value, key, None, timestamp, given)
            message = Message(headers=copied, native=native, describe=_describe_publish)
            create = self._engine.create(_published_to(None, None, self._producer), message)
            create.open()
        except Exception as error:
            guard.fault("preparing a message of a batch with aiokafka", error)
            return wrapped(*args, **kwargs)
        going_out = list(given or ())
        self._pending = create, copied, going_out
        try:
            metadata = wrapped(*args, **{**kwargs, "headers": going_out})
        finally:
            self._pending = None
        if metadata is not None:
            self._created.append(create)
        return metadata

    def serialize(self, wrapped: Wrapped, builder: Any, args: Arguments, kwargs: Options) -> Any:
        """Around ``_serialize``, behind which the size of the message is known, and before its headers are used."""
        key, value = wrapped(*args, **kwargs)
        pending, self._pending = self._pending, None
        if pending is None:
            return key, value
        try:
            create, written, going_out = pending
            _note_value(create, value)
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


# Messages


def _message_of(record: Any, destination: Destination) -> Message:
    attributes: dict[str, AttributeValue] = {OFFSET: record.offset}
    if destination.partition_id is None:
        attributes[semconv.DESTINATION_PARTITION_ID] = str(record.partition)
    timestamp = record.timestamp
    return Message(
        headers=record.headers,
        body_size=record.serialized_value_size if record.serialized_value_size >= 0 else None,
        sent_at=timestamp / 1000 if isinstance(timestamp, int) and timestamp >= 0 else None,
        attributes=attributes,
        native=record,
        describe=_describe_record,
    )


def _describe_record(record: Any) -> Mapping[str, AttributeValue]:
    attributes = _describe_key(record.key)
    # By its size: a deserializer may make something of nothing.
    if record.serialized_value_size == -1:
        attributes[TOMBSTONE] = True
    return attributes


def _describe_publish(given: Publish) -> Mapping[str, AttributeValue]:
    return _describe_key(given.key)


def _describe_key(key: Any) -> dict[str, AttributeValue]:
    """The key as text, where there is one way to write it."""
    if isinstance(key, (bytes, bytearray, memoryview)):
        try:
            key = bytes(key).decode()
        except ValueError:
            return {}
    return {KEY: str(key)} if isinstance(key, (str, int, UUID)) else {}


class _Pulled:
    """Which consumer a record is from, which the record itself does not know. By identity: it has no hash."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[weakref.ref[Any], weakref.ref[Any]]] = {}

    def add(self, record: Any, consumer: Any) -> None:
        key, found = id(record), self._found
        found[key] = (weakref.ref(record, lambda _: found.pop(key, None)), weakref.ref(consumer))

    def find(self, record: Any) -> Any:
        found = self._found.get(id(record))
        return found[1]() if found is not None and found[0]() is record else None


_pulled = _Pulled()


class _Uncommitted(NamedTuple):
    """The last record of a partition that was handled, for its commit: without its body, which may be large."""

    topic: str
    partition: int
    offset: int
    headers: Any
    process: Process | ProcessBatch
    consumer: weakref.ref[Any] | None

    @property
    def message(self) -> Message:
        message = Message(headers=self.headers, attributes={OFFSET: self.offset})
        message.process_context = self.process.settle_context
        return message


class _Uncommitteds:
    """What was handled and not committed yet, by consumer and partition. Kept only where commits are traced."""

    def __init__(self) -> None:
        self._consumers: weakref.WeakKeyDictionary[Any, dict[Any, _Uncommitted]] = weakref.WeakKeyDictionary()

    def add(self, record: Any, consumer: Any, process: Process | ProcessBatch) -> None:
        if consumer is None:
            if isinstance(process, Process):
                _loose.add(process)
            return
        handled = self._consumers.setdefault(consumer, {})
        partition = TopicPartition(record.topic, record.partition)
        handled.pop(partition, None)  # the latest comes last
        handled[partition] = _Uncommitted(
            record.topic, record.partition, record.offset, record.headers, process, weakref.ref(consumer)
        )

    def of(self, consumer: Any, offsets: Any) -> dict[Any, _Uncommitted]:
        """What a commit is about: these partitions, or all that the consumer still has. It may not be known."""
        is_known = isinstance(consumer, AIOKafkaConsumer)
        handled = (self._consumers.get(consumer) if is_known else None) or _in_hand()
        assigned = consumer.assignment() if is_known else handled
        partitions = offsets if isinstance(offsets, Mapping) else assigned
        return {partition: one for partition, one in handled.items() if partition in partitions}

    def of_group(self, group: Any, offsets: Any) -> dict[Any, _Uncommitted]:
        """What these offsets are about, whichever consumer of the group has handled it; or what is in hand."""
        of_group = [
            handled
            for consumer, handled in list(self._consumers.items())
            if getattr(consumer, "_group_id", None) == group
        ]
        found = {partition: one for handled in of_group for partition, one in handled.items()} or _in_hand()
        partitions = offsets if isinstance(offsets, Mapping) else ()
        return {partition: one for partition, one in found.items() if partition in partitions}

    def forget(self, settled: Mapping[Any, _Uncommitted]) -> None:
        for partition, one in settled.items():
            consumer = None if one.consumer is None else one.consumer()
            handled = {} if consumer is None else self._consumers.get(consumer, {})
            if handled.get(partition) is one:
                del handled[partition]


_uncommitted = _Uncommitteds()

# What is handled with no consumer known: a record of the explicit API. It can be committed while it is in hand.
_loose: weakref.WeakSet[Process] = weakref.WeakSet()


def _in_hand() -> dict[Any, _Uncommitted]:
    scope = current_scope(get_current())
    if not isinstance(scope, Process) or scope not in _loose or scope.closed:
        return {}
    record = scope.message.native
    partition = TopicPartition(record.topic, record.partition)
    one = _Uncommitted(record.topic, record.partition, record.offset, record.headers, scope, None)
    return {partition: one}


# Destinations


def _published_to(topic: Any, partition: Any, producer: Any) -> Destination:
    return _destination(_name(topic), _text_of(partition), None, *_told(getattr(producer, "client", None)))


def _consumed_from(topic: Any, partition: Any, consumer: Any) -> Destination:
    client = getattr(consumer, "_client", None)
    return _destination(
        _name(topic), _text_of(partition), getattr(consumer, "_group_id", None), *_told(client)
    )


def _of_all(
    records: Sequence[Any], consumer: Any, group: str | None = None, client: Any = None
) -> Destination:
    """Where they are all from: what differs between them is left out. Without a consumer, its group and a client."""
    topics = {record.topic for record in records}
    partitions = {(record.topic, record.partition) for record in records}
    topic = topics.pop() if len(topics) == 1 else None
    partition = partitions.pop()[1] if len(partitions) == 1 else None
    if consumer is not None:
        return _consumed_from(topic, partition, consumer)
    return _destination(_name(topic), _text_of(partition), _name(group), *_told(client))


@functools.lru_cache(maxsize=4096)
def _destination(
    topic: str | None,
    partition: str | None,
    group: str | None,
    client_id: str | None,
    address: str | None,
    port: int | None,
) -> Destination:
    return Destination(
        SYSTEM,
        topic,
        partition_id=partition,
        consumer_group=group,
        client_id=client_id,
        server_address=address,
        server_port=port,
    )


def _told(client: Any) -> tuple[str | None, str | None, int | None]:
    """The client's id, and host and port of the first server that it was told."""
    servers = getattr(client, "_bootstrap_servers", None)
    first = servers if isinstance(servers, str) or not servers else next(iter(servers))
    return (getattr(client, "_client_id", None), *_address(_name(first) or ""))


@functools.lru_cache(maxsize=256)
def _address(server: str) -> tuple[str | None, int | None]:
    server = server.split(",")[0].strip().rpartition("://")[2]
    host, separator, port = server.rpartition(":")
    if not separator or not port.isdecimal():
        return server or None, None
    return host.strip("[]"), int(port)


def _name(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _text_of(partition: Any) -> str | None:
    return None if partition is None else str(partition)
