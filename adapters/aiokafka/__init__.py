"""aiokafka: Kafka's messages in their producers' traces. aiokafka 0.11 and newer.

The context travels in the record's headers, as UTF-8 bytes under lowercase names. The caller's headers are copied
before anything is written.

Three things shape this adapter:

- What a message's key and value are on the wire, and its partition, is known behind aiokafka's serializers and its
  partitioner, which must not run twice. So the span begins at the producer's ``send``, and the context is put in where
  the message goes into the accumulator, when all of that is settled: ``publishing.py``.
- ``async for`` iterates the consumer itself, so each loop is given an iterator of its own: its span ends with the loop.
- A batch is filled before anybody says which topic it is for. Its create spans are kept until it is sent:
  ``batches.py``.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from opentelemetry.trace import Span

from queueprop.engine.message import Destination
from queueprop.kit import calls, checks
from queueprop.kit.iteration import AsyncMessages, Messages
from queueprop.kit.libraries import missing_extra
from queueprop.kit.library import Source
from queueprop.kit.on_demand import on_demand
from queueprop.kit.words import Call, Words
from queueprop.settings import Settings

try:
    from aiokafka import AIOKafkaConsumer
except ModuleNotFoundError as error:
    if error.name != "aiokafka":
        raise
    raise missing_extra(__name__, "aiokafka", "aiokafka") from None

from queueprop.adapters.aiokafka.hooks import Hooks
from queueprop.adapters.aiokafka.library import AIOKAFKA
from queueprop.adapters.aiokafka.publishing import Publish

if TYPE_CHECKING:
    from queueprop.adapters.aiokafka.instrumentor import AIOKafkaInstrumentor
else:
    __getattr__, __dir__ = on_demand(__name__, AIOKafkaInstrumentor="instrumentor")

__all__ = [
    "AIOKAFKA",
    "AIOKafkaInstrumentor",
    "Publish",
    "traced_batch",
    "traced_consumer",
    "traced_create_batch",
    "traced_get",
    "traced_message",
    "traced_messages",
    "traced_publish",
    "traced_settle",
]

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


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
    takes = None if calls.name_of(publish) == "send_batch" else "headers"
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


def _joining(settings: Settings | None, word: str) -> Hooks:
    """The hooks of the explicit API, inside those of the instrumentor."""
    return Hooks(checks.engine_of(settings, word), joins=True)
