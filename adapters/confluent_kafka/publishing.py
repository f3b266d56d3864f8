"""A produce call: its arguments, and what of the context fits into its message."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException

from queueprop import guard
from queueprop.adapters.confluent_kafka.clients import (
    C_PRODUCER,
    NOTHING,
    Known,
    configured_callback,
    find_known,
)
from queueprop.adapters.confluent_kafka.reports import DeliveryReport
from queueprop.engine.message import Destination, Message
from queueprop.engine.scope import records
from queueprop.kit import kafka
from queueprop.kit.calls import Arguments, Options, Wrapped
from queueprop.kit.fitting import sent_shorter
from queueprop.kit.library import Publication
from queueprop.kit.nesting import work_at_hand

LIBRARY = "confluent-kafka"


class Publish(NamedTuple):
    """What a ``publish_hook`` is given: the call's arguments.

    Where the library is instrumented that is behind the serializers.
    """

    topic: str | None
    value: Any
    key: Any
    partition: int | None
    timestamp: int | None
    headers: Any


def published_to(topic: Any, partition: Any, facts: Known) -> Destination:
    is_chosen = isinstance(partition, int) and partition >= 0
    return kafka.destination(
        topic, partition if is_chosen else None, None, facts.client_id, facts.host, facts.port
    )


# A message


class ProducePublication(Publication):
    """A ``produce``. The delivery report ends its span, where we may have it; else the call's return does.

    A callback of a message's own is called instead of the configured one. So ours calls that one where the message has
    none, and where nobody can tell whether there is one, ours is not there.
    """

    def __init__(self, given: Options, signature: Signature, producer: Any) -> None:
        self._given = given
        self._signature = signature
        self._report: DeliveryReport | None = None
        self.is_of_producer = isinstance(producer, C_PRODUCER)
        self._producer = producer
        self._facts = facts = find_known(producer) if self.is_of_producer else None
        get = given.get
        partition, key, value = get("partition"), get("key"), get("value")
        native = Publish(get("topic"), value, key, partition, get("timestamp"), get("headers"))
        attributes = kafka.key_attributes(key)
        if value is None and self.is_of_producer and signature.names_body(given):
            attributes[kafka.TOMBSTONE] = True
        self._headers = _copied(native.headers)
        message = Message(
            headers=self._headers,
            attributes=attributes,
            body=value if isinstance(value, (bytes, str)) else None,
            native=native,
        )
        super().__init__(published_to(native.topic, partition, facts or NOTHING), message)

    def arguments(self, args: Arguments, kwargs: Options) -> tuple[Arguments, Options]:
        given = {}
        # The library looks at `callback` where it is given, even as None.
        names, keywords = self._signature
        place = "callback" if "callback" in names and "callback" in self._given else "on_delivery"
        takes_report = keywords is None or place in keywords
        if takes_report and self._is_reported(self._given.get(place)):
            given[place] = self._report
        if self._headers:
            given["headers"] = self._headers
        return self._with(given, args, kwargs)

    def with_headers(self, headers: Any, args: Arguments, kwargs: Options) -> tuple[Arguments, Options]:
        return self._with({"headers": headers}, args, kwargs)

    def _with(self, given: Options, args: Arguments, kwargs: Options) -> tuple[Arguments, Options]:
        """The arguments, with these instead of the caller's; where that one gave them by place, so do we."""
        if not args or not given:
            return args, {**kwargs, **given}
        by_place = dict(zip(self._signature.names, args, strict=False))
        replaced = by_place.keys() & given.keys()
        if replaced:
            args = tuple({**by_place, **{name: given.pop(name) for name in replaced}}.values())
        return args, {**kwargs, **given}

    def _is_reported(self, callback: Any) -> bool:
        """Whether a report of ours ends the span."""
        send = self.send
        if callback is None:
            # Of a function around it, the producer is not known.
            if not self.is_of_producer:
                return False
            is_known, callback = configured_callback(self._producer, self._facts)
            # Without a span and a measurement to end, no report need be made in Python.
            if not is_known or (
                callback is None and not records(send.span) and not send.telemetry.instruments().enabled
            ):
                return False
        if send.closed:
            return False
        # The report may be served in another thread before the call has returned.
        send.wait()
        self._report = DeliveryReport(send, callback)
        return True

    def shorter(self, send: Callable[[Any], bool]) -> bool:
        """Sends it with less of the context."""
        plain = _copied(self._given.get("headers"))
        return sent_shorter(
            self._headers, plain, send, "publishing with confluent-kafka", self._given.get("topic")
        )

    def fail(self, error: BaseException) -> None:
        # The library has dropped the report by now, which is why it is held here.
        self.send.close(error)

    def end(self, result: Any) -> None:
        if self._report is None:
            self.send.close()
        self._report = None  # from now on the library alone has it, whose dropping it says something


# Sizes


def fitting(wrapped: Wrapped, *args: Any, **kwargs: Any) -> Any:
    """A ``produce`` that is refused for its size is tried with less of the context: no producer tells its limit."""
    try:
        return wrapped(*args, **kwargs)
    except KafkaException as error:
        if not _is_too_large(error):
            raise
        publication = work_at_hand("publish", LIBRARY)
        if not isinstance(publication, ProducePublication) or not publication.is_of_producer:
            raise

        def send(headers: Any) -> bool:
            again, options = publication.with_headers(headers, args, kwargs)
            return is_taken(wrapped, *again, **options)

        if not _sent(publication, send):
            raise


def _sent(publication: ProducePublication, send: Callable[[Any], bool]) -> bool:
    try:
        return publication.shorter(send)
    except KafkaException as error:
        guard.fault("shortening the headers of a publish with confluent-kafka", error)
        return False


def is_taken(produce: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
    try:
        produce(*args, **kwargs)
    except KafkaException as error:
        if not _is_too_large(error):
            raise
        return False
    return True


def _is_too_large(error: KafkaException) -> bool:
    return code_of(error) == KafkaError.MSG_SIZE_TOO_LARGE


def code_of(error: BaseException) -> int | None:
    told = error.args[0] if error.args else None
    return told.code() if isinstance(told, KafkaError) else None


# Arguments


class Signature(NamedTuple):
    """The arguments that a produce call takes."""

    names: tuple[str, ...]
    """In the order of their places."""
    keywords: frozenset[str] | None
    """Those that it takes by name; None where that is any."""

    def bound(self, args: Arguments, kwargs: Options) -> Options | None:
        """A call's arguments by name; None where they do not fit: the library is about to say so."""
        given = dict(zip(self.names, args, strict=False))
        if len(args) > len(self.names) or given.keys() & kwargs.keys():
            return None
        given.update(kwargs)
        # A class or function of the user's own may know its topic without being told.
        return given if "topic" in given or "topic" not in self.names else None

    def names_body(self, given: Options) -> bool:
        """Whether it is known which of the arguments is the message's body."""
        return "value" in self.names or "value" in given


_IN_C = Signature(
    ("topic", "value", "key", "partition", "callback", "on_delivery", "timestamp", "headers"), None
)


def signature_of(call: Any, otherwise: Signature = _IN_C) -> Signature:
    """What a call tells of its arguments; ``otherwise`` where it tells nothing.

    ``SerializingProducer.produce`` has another order than the C type's, and a class of the user's may have its own.
    """
    function = getattr(call, "__func__", call)
    if isinstance(function, types.BuiltinFunctionType):
        return otherwise
    try:
        return _signature_told(function, otherwise)
    except TypeError:  # one that has no hash
        return otherwise


@functools.lru_cache(maxsize=64)
def _signature_told(function: Any, otherwise: Signature) -> Signature:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return otherwise
    kinds = {it.kind for it in parameters}
    keywords = None
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        keywords = frozenset(
            it.name for it in parameters if it.kind in (it.POSITIONAL_OR_KEYWORD, it.KEYWORD_ONLY)
        )
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return Signature(otherwise.names, keywords)
    names = [it.name for it in parameters if it.kind in (it.POSITIONAL_ONLY, it.POSITIONAL_OR_KEYWORD)]
    return Signature(tuple(names[1:] if names[:1] == ["self"] else names), keywords)


def _copied(headers: Any) -> Any:
    """Headers that are ours to write to; None for what is not what the library takes: it says so."""
    if headers is None:
        return []
    if isinstance(headers, dict):
        # As pairs: into a dict whose names are bytes ours would go as such, of which the library makes "b'...'".
        return list(headers.items())
    return list(headers) if isinstance(headers, list) else None
