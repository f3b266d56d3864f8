"""One publish of FastStream's: its command, in whatever version, and the headers that go out with it."""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from opentelemetry.context import Context

from queueprop import guard
from queueprop.adapters.faststream.brokers import Broker, Command
from queueprop.adapters.faststream.versions import PublishCommand
from queueprop.kit.calls import Arguments, Options
from queueprop.kit.fitting import fitted, say_no_room
from queueprop.kit.library import Publication
from queueprop.kit.nesting import Everything, speaking_for
from queueprop.wire import propagation

NAME = "faststream"


class OnePublish(Publication):
    """A publish, with headers that are ours to write to: those of each message, where there are several."""

    def __init__(self, broker: Broker, producer: Any, command: Command, is_batch: bool) -> None:
        self._broker = broker
        self._producer = producer
        self._is_each = is_batch and PublishCommand is not None
        self.is_written = False
        """Whether the context is in the headers that the middlewares are given."""
        given = command.headers or {}
        bodies = command.bodies
        self._each = [dict(given) for _ in bodies] if self._is_each else [dict(given)]
        messages: Any
        if self._is_each:
            commands = [command._replace(key=key) for key in command.keys] or [command] * len(bodies)
            messages = list(map(broker.published, commands, self._each, bodies))
        else:
            messages = broker.published(command, self._each[0], bodies[0] if bodies else None)
        super().__init__(broker.publishes_to(producer, command), messages, about=self._each)

    def arguments(self, args: Arguments, kwargs: Options) -> tuple[Arguments, Options]:
        """What the middlewares are given; of a batch the first message's headers, in a copy that is theirs to alter."""
        if not self._each or not self._broker.takes_headers(self._producer):
            return args, kwargs
        self.is_written = True
        first = self._each[0]
        return _with_headers(dict(first) if self._is_each else first, args, kwargs)

    def full_arguments(self, args: Arguments, kwargs: Options) -> tuple[Arguments, Options]:
        """What the producer is given, of what has come through the middlewares: with a context that has room."""
        if not self._is_each and not self._broker.ends_connections:
            return args, kwargs
        try:
            headers = _headers_of(args, kwargs)
            if not isinstance(headers, Mapping):
                return args, kwargs
            if self._is_each:
                return _with_headers(_HeadersOfEach(self._altered(headers)), args, kwargs)
            fits = functools.partial(self._broker.fits, self._producer, _body_of(args))
            if fits(headers):
                return args, kwargs
            bare = functools.partial(_bare, headers)
            shorter = fitted(dict(headers), bare, fits, _WHERE, self.destination.name)
            return _with_headers(shorter, args, kwargs)
        except Exception as error:
            guard.fault(_WHERE, error)
            return args, kwargs

    def bare_arguments(self, args: Arguments, kwargs: Options) -> tuple[Arguments, Options] | None:
        """Those of a message that has no room for a context; None where it has none that could be left out."""
        try:
            headers = _headers_of(args, kwargs) or {}
            bare = _bare(headers)
            return None if bare == headers else _with_headers(bare, args, kwargs)
        except Exception as error:
            guard.fault(_WHERE, error)
            return None

    def _altered(self, headers: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The headers of each message, with what the middlewares have done to the first one's."""
        first = self._each[0]
        gone = first.keys() - headers.keys()
        changed = {
            name: value for name, value in headers.items() if name not in first or first[name] != value
        }
        return [
            {**{name: value for name, value in own.items() if name not in gone}, **changed}
            for own in self._each
        ]

    def is_too_large(self, error: Exception) -> bool:
        return self._broker.is_too_large(error)

    def say_no_room(self) -> None:
        say_no_room(_WHERE, self.destination.name)

    def end(self, result: Any) -> None:
        send, broker = self.send, self._broker
        if asyncio.isfuture(result):  # with `no_confirm`
            send.end_with(result, broker.told_by)
            return
        failure = broker.failure_of(result)
        if failure is not None:
            send.fail(*failure)
        send.close_with(result, broker.told_by)


class HandOver:
    """The producer's own call, below every middleware, and what is done around it alone.

    Here FastStream speaks for its client, and here a message that the client refuses for its size is handed over a
    second time, without a context.
    """

    def __init__(self, publish: Any) -> None:
        self.publish = publish
        self.publication: OnePublish | None = None

    @classmethod
    def of(cls, publish: Any) -> Any:
        """Around the producer's call, once: a further middleware of ours finds that of the first one."""
        return publish if isinstance(getattr(publish, "__self__", None), cls) else cls(publish).hand_over

    async def hand_over(self, *args: Any, **kwargs: Any) -> Any:
        publication = self.publication
        with speaking_for(Everything()):
            if publication is None or not publication.is_written:
                return await self.publish(*args, **kwargs)
            full, options = publication.full_arguments(args, kwargs)
            try:
                return await self.publish(*full, **options)
            except Exception as error:
                bare = publication.bare_arguments(args, kwargs) if publication.is_too_large(error) else None
                if bare is None:
                    raise
            args, kwargs = bare
            result = await self.publish(*args, **kwargs)  # as without us
        publication.say_no_room()
        return result


_WHERE = "publishing with FastStream"


def _with_headers(headers: Any, args: Arguments, kwargs: Options) -> tuple[Arguments, Options]:
    if not _is_command(args):
        return args, {**kwargs, "headers": headers}
    outgoing = copy.copy(args[0])
    outgoing.headers = headers
    if _has_headers(outgoing.body):  # a message of aio-pika's, which FastStream then sends as it is
        outgoing.body = copy.copy(outgoing.body)
        outgoing.body.headers = headers
    return (outgoing, *args[1:]), kwargs


def _headers_of(args: Arguments, kwargs: Options) -> Any:
    if not _is_command(args):
        return kwargs.get("headers")
    command = args[0]
    return command.body.headers if _has_headers(command.body) else command.headers


def _body_of(args: Arguments) -> Any:
    if not args:
        return None
    return args[0].body if _is_command(args) else args[0]


def _bare(headers: Mapping[str, Any]) -> dict[str, Any]:
    bare = dict(headers)
    propagation.write(bare, Context())
    return bare


class _HeadersOfEach(dict[str, Any]):
    """The headers of a batch's messages: a producer of FastStream's copies those of the batch for each message, and
    gets the next one's. (That of a ``TestBroker`` does so for each handler, and begins with the first one's again.)
    """

    def __init__(self, each: Sequence[dict[str, Any]], further: Mapping[str, Any] | None = None) -> None:
        self._each = each
        self._further = further or {}
        self._next = itertools.cycle(each)
        super().__init__({**self._further, **each[0]})

    def __ror__(self, further: Any) -> Any:
        return _HeadersOfEach(self._each, further)

    def keys(self) -> Any:
        self._step()
        return super().keys()

    def items(self) -> Any:  # what `json` asks for
        self._step()
        return super().items()

    def copy(self) -> dict[str, Any]:
        self._step()
        return dict(super().items())

    def __iter__(self) -> Iterator[str]:  # without it, what copies a dict would not ask for the keys
        return super().__iter__()

    def _step(self) -> None:
        super().clear()
        super().update({**self._further, **next(self._next)})


def command_of(publish: Any, is_batch: bool, args: Arguments, kwargs: Options) -> Command | None:
    """The call, read. None: the library is about to refuse it, or it can carry no headers."""
    if _is_command(args):
        it = args[0]
        headers = _headers_of(args, kwargs)
        if not isinstance(headers, Mapping) and headers is not None:
            return None
        options = getattr(it, "message_options", None) or {}
        bodies = it.batch_bodies if is_batch else (it.body,)
        exchange, key = getattr(it, "exchange", None), getattr(it, "key", None)
        id = options.get("message_id")
        key_for = getattr(it, "key_for", None) if is_batch else None
        keys = () if key_for is None else tuple(map(key_for, range(len(bodies))))
        is_reply = getattr(it, "publish_type", None) == "REPLY"
        return Command(it.destination, headers, it.correlation_id, bodies, exchange, key, id, keys, is_reply)
    headers = kwargs.get("headers")
    if not isinstance(headers, Mapping) and (headers is not None or not _takes_headers(publish)):
        return None
    given = [kwargs[name] for name in _DESTINATIONS if kwargs.get(name)]
    exchange, key = kwargs.get("exchange"), kwargs.get("key")
    id = kwargs.get("message_id")
    return Command(given[0] if given else "", headers, kwargs.get("correlation_id"), args, exchange, key, id)


_DESTINATIONS = ("topic", "routing_key", "subject", "channel", "list", "stream")


def _is_command(args: Arguments) -> bool:
    return PublishCommand is not None and bool(args) and isinstance(args[0], PublishCommand)


def _has_headers(body: Any) -> bool:
    return type(body).__module__.partition(".")[0] == "aio_pika" and hasattr(body, "headers")


def _takes_headers(publish: Callable[..., Any]) -> bool:
    return "headers" in inspect.signature(publish).parameters
