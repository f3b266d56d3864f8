"""What the contract asks of a library: a ``Driver`` with small verbs. It holds no expectation of its own.

A driver is bound to one column of the matrix, that is to one consumption style and one API (explicit or
instrumentor), and its class says beforehand what the column lacks. Everything else is a scenario's business.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar
from urllib.parse import urlsplit

from integration.contract.actions import Handler, do
from queueprop import Settings
from queueprop.kit.instrumentor import Adapter

T = TypeVar("T")

Scope = Callable[[T], AbstractContextManager[Any]]

Api = Literal["explicit", "instrumentor"]

Need = Literal[
    "ambient",  # what is current around the polling loop is current where the messages are handled
    "baggage at rest",  # a plain client can write headers of its own
    "batch",
    "batch receive",
    "broken headers",
    "concurrency",
    "containers",
    "delay",
    "exits",
    "forward",
    "instrumentor",
    "kill",
    "many",
    "redelivery",
    "restart",
    "retry",
    "same thread",  # the user's thread handles the messages
    "settle",
    "sent at",
    "wire",
    "worker processes",
]


@dataclass(frozen=True)
class Counts:
    """Where the messages of a run ended up. Compared between a traced and a plain run."""

    left: int = 0
    unacked: int = 0
    dead: int = 0


@dataclass(frozen=True)
class WireMessage:
    """A message as a plain client reads it: the fields of propagators, in order, and what the user put beside
    them.
    """

    body: str
    fields: Sequence[tuple[str, object]]
    headers: Mapping[str, object] = field(default_factory=dict)

    def values(self, name: str) -> list[object]:
        return [value for key, value in self.fields if key.lower() == name]


_PROPAGATION = re.compile(
    r"traceparent|tracestate|baggage|b3|x-b3-.*|uber-trace-id|uberctx-.*", re.IGNORECASE
)


def split_headers(pairs: Iterable[tuple[Any, object]]) -> tuple[list[tuple[str, object]], dict[str, object]]:
    """The fields that some propagator may have written, in order, and the headers of the user."""
    fields: list[tuple[str, object]] = []
    headers: dict[str, object] = {}
    for key, value in pairs:
        name = key.decode() if isinstance(key, bytes) else str(key)
        if _PROPAGATION.fullmatch(name):
            fields.append((name, value))
        else:
            headers[name] = value
    return fields, headers


@dataclass(frozen=True)
class Refusal:
    """One thing that can become of a message whose handler always raises, and how often it is delivered for
    that.
    """

    name: str
    deliveries: int = 1


@dataclass(frozen=True)
class Failing:
    """A publish that the library refuses, and the exception that its caller gets."""

    name: str
    publish: Callable[[], object]


class Column(NamedTuple):
    """One column of the matrix."""

    library: str
    style: str
    api: Api

    def __str__(self) -> str:
        return f"{self.library}-{self.style}-{self.api}"


class Driver(ABC):
    """One library in one consumption style through one API.

    ``url`` is the broker's. A plain driver (``tracing`` not entered) uses the library as if queueprop did not
    exist.
    """

    library: ClassVar[str]
    system: ClassVar[str]
    """``messaging.system``."""
    wire_type: ClassVar[type] = str
    """The type of a propagation field on the wire."""

    broker: ClassVar[str | None] = None
    """The broker that it needs: the fixtures ``<broker>_broker`` and ``private_<broker>`` give it."""

    is_quick: ClassVar[bool] = False
    """Whether all of its styles are shown where time counts (``--columns=quick``): its broker is in the process."""

    styles: ClassVar[Sequence[str]] = ()
    """The library's ways to consume; the first is shown everywhere."""
    ways: ClassVar[Sequence[str]] = ("publish",)
    """The library's calls that publish, each of which makes one message out of one body."""
    batch_ways: ClassVar[Sequence[str]] = ()
    """Its calls that publish several messages."""
    delayed_ways: ClassVar[Sequence[str]] = ()
    """Those of its calls that publish for later."""
    refusals: ClassVar[Sequence[Refusal]]
    """What can become of a message whose handler raised. ``requeue`` is a redelivery by the broker."""
    tells_attempt: ClassVar[bool] = False
    tells_delay: ClassVar[bool] = False
    send_time_resolution: ClassVar[float] = 0.001
    """Seconds by which a send time may be off: a broker that keeps whole seconds is off by one."""
    delay_resolution: ClassVar[float] = 0.001
    """Seconds by which a delay may be off."""

    _numbers = itertools.count(1)

    def __init__(self, style: str, api: Api, url: str | None = None) -> None:
        self.style = style
        self.api = api
        self.url = url
        self._settings: Settings | None = None
        number = f"{os.getpid()}-{next(Driver._numbers)}"
        self.queue = f"orders-{number}"
        self.other_queue = f"shipments-{number}"

    # What the column is.

    @classmethod
    def columns(cls) -> Sequence[Column]:
        """Every style of the library's with every API."""
        return [
            Column(cls.library, style, api) for style in cls.styles for api in ("explicit", "instrumentor")
        ]

    @classmethod
    def absent(cls, column: Column) -> str | None:
        """Why the column cannot be had at all: its style came with a later version of the library."""
        return None

    @classmethod
    def receives(cls, style: str) -> bool:
        """Whether the user pulls each message by a call of their own, which has a receive span."""
        return False

    @classmethod
    def remarks(cls, column: Column) -> Mapping[int, str]:
        """What a reader of the matrix should know of how a behaviour was shown here."""
        return {}

    @classmethod
    def tells_killed(cls, style: str) -> bool:
        """Whether a delivery whose process was killed has a span, with ERROR, that somebody else made."""
        return False

    @classmethod
    def exits(cls, style: str) -> Sequence[str]:
        """The ways to leave the loop of a style: ``break``, ``return``, ``exception``, ``cancel``, ``closed
        elsewhere``.
        """
        return ()

    @classmethod
    def at_once(cls, style: str) -> int:
        """How many handlers run at once: eight threads or processes, or a hundred tasks."""
        return 8

    @classmethod
    def many(cls, column: Column) -> int:
        """How many messages one thread is given to show that nothing leaks."""
        return 10_000

    @classmethod
    def costly(cls, style: str) -> bool:
        """Whether a delivery takes so long that long lists of cases are thinned to one of each kind."""
        return False

    @classmethod
    @abstractmethod
    def lacks(cls, column: Column) -> Mapping[Need, str]:
        """What the column has not, and why, in words short enough for a cell of the matrix."""

    # Life.

    @abstractmethod
    def open(self) -> None: ...

    @abstractmethod
    def close(self) -> None: ...

    @contextmanager
    def tracing(self, settings: Settings) -> Iterator[None]:
        """queueprop is on inside: the explicit API wraps what the verbs call, or the instrumentor is
        installed.
        """
        self._settings = settings
        instrumentor = self.instrumentor() if self.api == "instrumentor" else None
        if instrumentor is not None:
            instrumentor.instrument(settings=settings)
        try:
            yield
        finally:
            self._settings = None
            if instrumentor is not None and instrumentor.is_instrumented_by_opentelemetry:
                instrumentor.uninstrument()

    @property
    def _is_explicit(self) -> bool:
        """Whether the verbs wrap what they call."""
        return self.api == "explicit" and self._settings is not None

    def _wrapped(self, word: Callable[..., Any], call: T) -> T:
        """The call as the user of the explicit API wraps it: ``self._wrapped(adapter.traced_get, queue.get)``."""
        wrapped: T = word(call, settings=self._settings) if self._is_explicit else call
        return wrapped

    def _explicitly(self, scope: Callable[[], AbstractContextManager[Any]]) -> AbstractContextManager[Any]:
        """What the user of a pull call writes, also where the instrumentor is on."""
        on = self._is_explicit or (self.api == "instrumentor" and self.instrumentor().is_active)
        return scope() if on else contextlib.nullcontext()

    @contextmanager
    def _untraced(self) -> Iterator[None]:
        """A client without queueprop, in a process where the instrumentor is on."""
        instrumentor = self.instrumentor()
        installed, instrumentor._installed = instrumentor._installed, False
        try:
            yield
        finally:
            instrumentor._installed = installed

    # The producer's side.

    @abstractmethod
    def publish(
        self,
        body: str,
        headers: Mapping[str, str] | None = None,
        *,
        way: str | None = None,
        delay: float | None = None,
        refusal: str | None = None,
        retries: int = 0,
    ) -> None:
        """Publishes by one of ``ways``. ``refusal`` and ``retries`` say what the library does when the
        handler raises.
        """

    def publish_with(self, body: str, container: object) -> None:
        """Publishes with this very object as the library's headers (properties, meta)."""
        raise NotImplementedError

    @classmethod
    def containers(cls) -> Mapping[str, Callable[[], object]]:
        """Makers of every kind of header object that the library itself accepts from its callers."""
        return {}

    def publish_carrying(self, body: str, fields: Mapping[str, str]) -> None:
        """Publishes with these propagation fields where the caller of the library would write them."""
        self.publish(body, fields)

    def publish_batch(self, bodies: Sequence[str], *, way: str) -> None:
        raise NotImplementedError

    @abstractmethod
    def failing(self) -> Sequence[Failing]:
        """Publishes that fail, in each way that the library knows."""

    # The consumer's side.

    @abstractmethod
    def consume(self, handler: Handler, count: int = 1) -> None:
        """Handles deliveries until ``count`` of them are over, and returns. What a handler raised does not
        come out.
        """

    def consume_twice(self, handler: Handler) -> None:
        """Handles one delivery twice, as a user would in this style: in the handler, or what was pulled once more."""
        self.consume(do("twice", each=handler.action))

    def consume_batch(self, handler: Handler, count: int) -> None:
        raise NotImplementedError

    def consume_concurrently(self, handler: Handler, count: int) -> None:
        """``count`` messages at once: in threads, tasks or processes, whatever the style has."""
        raise NotImplementedError

    def leave(self, how: str, handler: Handler) -> None:
        """Begins to consume and leaves after the first message by one of ``exits``, which it also swallows."""
        raise NotImplementedError

    def leave_loop(
        self, how: str, loop: Iterable[T], handle: Callable[[T], object], scope: Scope[T] = nullcontext
    ) -> None:
        """Handles the first message of a loop and leaves it: by ``break``, ``return`` or an exception.

        ``scope`` is around the loop's body: ``with traced_message(message)``.
        """
        with contextlib.suppress(_LeftError):
            _handle_first(how, loop, handle, scope)

    async def leave_loop_async(
        self,
        how: str,
        loop: AsyncIterable[T],
        handle: Callable[[T], Awaitable[object]],
        scope: Scope[T] = nullcontext,
    ) -> None:
        """The same for ``async for``."""
        with contextlib.suppress(_LeftError):
            await _handle_first_async(how, loop, handle, scope)

    def consume_killed(self, handler: Handler) -> None:
        """Consumes in a process that ``handler`` kills with SIGKILL, then lets the library notice and
        redeliver.
        """
        raise NotImplementedError

    # What a plain client sees.

    def plant(
        self, body: str, fields: Mapping[str, object], headers: Mapping[str, str] | None = None
    ) -> None:
        """Publishes without queueprop, with these propagation fields as a foreign producer would have written
        them.
        """
        raise NotImplementedError

    @classmethod
    def junk_carriers(cls) -> Sequence[object]:
        """What may stand where the library's messages keep all of their headers, and is no container of headers."""
        return ()

    def plant_junk(self, body: str, junk: object) -> None:
        """Publishes without queueprop, with one of ``junk_carriers`` in place of the headers."""
        raise NotImplementedError

    @classmethod
    def can_plant(cls, value: object) -> bool:
        """Whether the wire of this library can carry such a value in a header."""
        return True

    def wire(self, queue: str | None = None) -> list[WireMessage]:
        """The messages that wait in a queue (ours by default), unchanged and left where they are."""
        raise NotImplementedError

    @abstractmethod
    def counts(self) -> Counts: ...

    def reconnect(self) -> None:
        """New connections, channels, producers and consumers, after the broker was restarted."""
        raise NotImplementedError

    # The instrumentor.

    packages: ClassVar[frozenset[str]] = frozenset()
    """The top-level names of the library's modules."""

    @classmethod
    def instrumentor(cls) -> Adapter:
        raise NotImplementedError

    @contextmanager
    def subclassed(self) -> Iterator[None]:
        """Inside, the verbs use subclasses of the library's classes, made here."""
        raise NotImplementedError
        yield

    def kept_publish(self) -> Callable[[str], object]:
        """A publish call on objects made now, to be used later."""
        raise NotImplementedError

    # What the telemetry should say.

    @property
    def send_name(self) -> str:
        return f"publish {self.queue}"

    @property
    def create_name(self) -> str:
        return f"create {self.queue}"

    @property
    def batch_send_name(self) -> str:
        return self.send_name

    @property
    def receive_name(self) -> str:
        return f"poll {self.queue}"

    @property
    def settle_name(self) -> str:
        return f"ack {self.queue}"

    @property
    def process_name(self) -> str:
        return f"process {self.queue}"

    def send_attributes(self) -> dict[str, Any]:
        """The exact attributes of a PRODUCER span; a type stands for any value of it."""
        return self._attributes("publish", "send")

    def process_attributes(self) -> dict[str, Any]:
        return {
            **self._attributes("process", "process"),
            "queueprop.message.delivery_attempt": 1,
            "queueprop.message.queue_time": float,
        }

    def _attributes(self, name: str, kind: str) -> dict[str, Any]:
        """What the two have in common."""
        address = urlsplit(self.url or "")
        server = {"server.address": address.hostname, "server.port": address.port} if address.hostname else {}
        return {
            "messaging.system": self.system,
            "messaging.operation.name": name,
            "messaging.operation.type": kind,
            "messaging.destination.name": self.queue,
            **server,
        }


class _LeftError(Exception):
    """A loop's body raises it to leave."""


def _handle_first(how: str, loop: Iterable[T], handle: Callable[[T], object], scope: Scope[T]) -> None:
    for message in loop:
        with scope(message):
            handle(message)
            if how == "break":
                break
            if how == "return":
                return
            raise _LeftError


async def _handle_first_async(
    how: str, loop: AsyncIterable[T], handle: Callable[[T], Awaitable[object]], scope: Scope[T]
) -> None:
    async for message in loop:
        with scope(message):
            await handle(message)
            if how == "break":
                break
            if how == "return":
                return
            raise _LeftError
