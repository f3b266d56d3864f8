"""confluent-kafka: Kafka's messages in their producers' traces. confluent-kafka 2.3 and newer.

The context travels in the record's headers, as UTF-8 bytes under lowercase names. The caller's headers are copied
before anything is written.

What shapes this adapter:

- Producers, consumers and messages are C types: ``clients.py`` has what stands for the clients while the library is
  instrumented, ``deliveries.py`` how a message is known again.
- ``produce`` only enqueues. The delivery report ends the span, whoever calls ``poll`` or ``flush``: ``reports.py``.
- ``poll`` gives errors and the end of a partition as messages. They are none: no span, no count.
- Hooks are below the serializers, which therefore run once and do not see our headers.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar, overload

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
    from confluent_kafka import cimpl
except ModuleNotFoundError as error:
    if error.name != "confluent_kafka":
        raise
    raise missing_extra(__name__, "confluent-kafka", "confluent-kafka") from None

from queueprop.adapters.confluent_kafka import shares
from queueprop.adapters.confluent_kafka.clients import AIO_CONSUMER, C_CONSUMER, is_of_aio
from queueprop.adapters.confluent_kafka.hooks import Hooks
from queueprop.adapters.confluent_kafka.library import CONFLUENT_KAFKA
from queueprop.adapters.confluent_kafka.polling import AIOPolls, Polls, source_of
from queueprop.adapters.confluent_kafka.publishing import Publish

if TYPE_CHECKING:
    from confluent_kafka.aio import AIOConsumer

if TYPE_CHECKING:
    from queueprop.adapters.confluent_kafka.instrumentor import ConfluentKafkaInstrumentor
else:
    __getattr__, __dir__ = on_demand(__name__, ConfluentKafkaInstrumentor="instrumentor")

__all__ = [
    "CONFLUENT_KAFKA",
    "ConfluentKafkaInstrumentor",
    "Publish",
    "traced_batch",
    "traced_consumer",
    "traced_get",
    "traced_message",
    "traced_messages",
    "traced_publish",
    "traced_settle",
]

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


def traced_publish(publish: F, *, settings: Settings | None = None) -> F:
    """Wraps a producer's publish: ``produce = traced_publish(producer.produce)``.

    The PRODUCER span ends with the message's delivery report, whoever calls ``poll`` or ``flush`` for it: a failed
    delivery is an error of the span. Callbacks are called as ever, in the context of their ``produce``. Where a message
    has no callback, and the producer may have a configured one that nobody can tell (it was made while the library was
    not instrumented, and holds callbacks), the span ends when the call has returned.

    The caller's headers are copied before the context is written. What of it makes a message too large is left out.

    Args:
        publish: ``produce`` or ``produce_batch`` of a producer, ``produce`` of an AIOProducer, a ``functools.partial``
            of one of them, or a function of yours around ``produce`` that takes ``headers``.
        settings: instead of those of the environment.

    Raises TypeError for what can be none of these, as do the other words here.
    """
    takes_none = calls.name_of(publish) == "produce_batch" or is_of_aio(publish)
    takes = None if takes_none else "headers"
    checks.check_call("traced_publish", publish, "confluent_kafka", _PUBLISH.names, _PUBLISH.form, takes)
    hooks = Hooks(CONFLUENT_KAFKA, checks.engine_of(settings, "traced_publish"))
    return calls.hooked(publish, hooks.hook_of(publish))


@overload
def traced_consumer(handler: F) -> F: ...
@overload
def traced_consumer(
    *, destination: Destination | None = None, settings: Settings | None = None
) -> Callable[[F], F]: ...
def traced_consumer(
    handler: F | None = None, *, destination: Destination | None = None, settings: Settings | None = None
) -> F | Callable[[F], F]:
    """Decorates a handler that is given a message, anywhere among its arguments::

        @traced_consumer
        def handle(message): ...

    Args:
        destination: instead of the message's topic and partition.
        settings: instead of those of the environment.
    """
    return _words.consumer(handler, Source, destination, settings)


@overload
def traced_messages(
    iterable: cimpl.Consumer,
    destination: Destination | None = None,
    *,
    timeout: float = 1.0,
    settings: Settings | None = None,
) -> Messages[Any]: ...
@overload
def traced_messages(
    iterable: AIOConsumer,
    destination: Destination | None = None,
    *,
    timeout: float = 1.0,
    settings: Settings | None = None,
) -> AsyncMessages[Any]: ...
@overload
def traced_messages(
    iterable: AsyncIterable[T], destination: Destination | None = None, *, settings: Settings | None = None
) -> AsyncMessages[T]: ...
@overload
def traced_messages(
    iterable: Iterable[T], destination: Destination | None = None, *, settings: Settings | None = None
) -> Messages[T]: ...
def traced_messages(
    iterable: Any,
    destination: Destination | None = None,
    *,
    timeout: float = 1.0,
    settings: Settings | None = None,
) -> Any:
    """A loop whose body runs inside each message's CONSUMER span::

        for message in traced_messages(consumer):
            if message is None or message.error(): ...  # as poll() gives them: outside of any span
            ...

        async for message in traced_messages(aio_consumer): ...
        for message in traced_messages(messages): ...  # as consume() gives them

    The span ends when the next message is asked for, and when the loop is left. A loop over a consumer has no end of
    its own: leave it by ``break``.

    Args:
        iterable: a Consumer or an AIOConsumer, which is polled, or whatever gives messages.
        destination: instead of each message's topic and partition.
        timeout: seconds that each ``poll`` of a consumer waits; then the loop is given None.
        settings: instead of those of the environment.
    """
    source = None
    if isinstance(iterable, C_CONSUMER):
        source, iterable = source_of(iterable), Polls(iterable, timeout)
    elif isinstance(iterable, AIO_CONSUMER):
        source, iterable = source_of(iterable), AIOPolls(iterable, timeout)
    return _words.messages(iterable, destination, settings, source)


def traced_message(
    message: Any, destination: Destination | None = None, *, settings: Settings | None = None
) -> AbstractContextManager[Span]:
    """The CONSUMER span of one message, as a context manager::

        message = consumer.poll(1.0)
        with traced_message(message): ...

    Of None, of an error and of the end of a partition there is none. Args as for ``traced_messages``. The consumer
    group is known where the consumer was made while the library was instrumented.
    """
    return _words.message(message, destination, settings)


def traced_batch(
    messages: Iterable[Any], destination: Destination | None = None, *, settings: Settings | None = None
) -> AbstractContextManager[Span]:
    """One CONSUMER span for a batch, with a link for each message, as a context manager. Args as for
    ``traced_messages``."""
    return _words.batch(messages, destination, settings)


def traced_get(get: F, *, settings: Settings | None = None) -> F:
    """Wraps a consumer's ``poll`` or ``consume``, which then has a receive span: ``poll = traced_get(consumer.poll)``.

    It opens no scope: handle a message inside ``traced_message``. The lists of ``consume``, and what a ShareConsumer's
    ``poll`` gives, do it by themselves: what iterates one handles each message inside its span, once a message. What
    looks at one or copies it (``in``, ``list``, ``sorted``) handles none; of a copy, handle each as of ``poll``.
    """
    return _words.get(get, settings)


def traced_settle(settle: F, *, settings: Settings | None = None) -> F:
    """Wraps a consumer's ``commit`` or ``store_offsets``: ``commit = traced_settle(consumer.commit)``; or, in a
    transaction, its producer's ``send_offsets_to_transaction``. Of a ShareConsumer, its ``acknowledge``,
    ``acknowledge_offset``, ``commit_sync`` or ``commit_async``: what is not acknowledged by itself is settled by the
    commit.

    Under ``Settings(settle_spans=True)``, which the loop must have too, a commit is a span: a child of the span of the
    last message that was handled. Of each further partition that it commits, it links to the last message.
    """
    return _words.settle(settle, settings)


_PUBLISH = Call(
    "a producer's produce or produce_batch, as in traced_publish(producer.produce)",
    ("produce", "produce_batch"),
)
_words = Words(
    CONFLUENT_KAFKA,
    publish=_PUBLISH,
    handler="as in @traced_consumer",
    iterable="a consumer or messages, as in traced_messages(consumer)",
    get=Call("a consumer's poll or consume, as in traced_get(consumer.poll)", ("poll", "consume")),
    settle=Call(
        "a consumer's commit, store_offsets or acknowledge, or a producer's send_offsets_to_transaction, "
        "as in traced_settle(consumer.commit)",
        ("commit", "store_offsets", "send_offsets_to_transaction", *shares.CALLS),
    ),
)
