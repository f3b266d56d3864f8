"""What an adapter says of its library: how its calls and messages are read. ``hooks.py`` does the rest.

Three answers are required, and what kind of object a message is; the others have defaults that fit most libraries.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from typing import Any, ClassVar

from queueprop.engine.engine import Engine
from queueprop.engine.message import Destination, Message
from queueprop.engine.operations import Send
from queueprop.kit import checks
from queueprop.kit.calls import Arguments, Options, Wrapped
from queueprop.kit.deliveries import Deliveries
from queueprop.kit.iteration import Begin
from queueprop.kit.kept import Kept
from queueprop.kit.nesting import Mark, is_spoken_for
from queueprop.kit.unsettled import Unsettled


class Library(ABC):
    """One client library or framework, as its adapter knows it. One object of it a process."""

    name: ClassVar[str]
    """As its users call it: in the log, and as the name of its extra. Its module has ``_`` for ``-``."""

    message_form: ClassVar[str]
    """What its messages are, to who gives something else: ``message of kombu's, as get and itermessages give them``."""

    message_type: ClassVar[type]
    """What its deliveries are instances of, as handlers and loops are given them."""

    message_fields: ClassVar[Sequence[str]] = ()
    """What else must have to be taken for one: a double of somebody's tests. Empty: nothing else is."""

    settles_each: ClassVar[bool] = True
    """Whether a delivery has an ack of its own. Else one commit settles all before it (Kafka)."""

    is_async: ClassVar[bool] = False
    """Whether its calls are coroutine functions."""

    loops_pull: ClassVar[bool] = False
    """Whether its loops go by its own pull calls, which are then not the user's."""

    def __init__(self) -> None:
        self.deliveries = Deliveries(self.identity)
        self.unsettled: Kept[Unsettled] = Kept()

    # What must be said

    @abstractmethod
    def publication(
        self, producer: Any, args: Arguments, kwargs: Options, call: Wrapped
    ) -> Publication | None:
        """A publish call, read. None: it is not to be traced, or the library is about to refuse it."""

    @abstractmethod
    def message(self, native: Any) -> Message:
        """A delivery's message. Its headers are only read."""

    @abstractmethod
    def consumed_from(self, native: Any, source: Source | None) -> Destination:
        """Where a message was delivered or pulled from; ``native`` is None where a pull call raised."""

    # What may be said

    def route(self, native: Any) -> tuple[object, ...] | None:
        """What of a delivery ``consumed_from`` looks at; asked first, so that it is asked again only where this differs
        from that of the delivery before, of the same source. None: it is asked each time.
        """
        return None

    def delivery_among(self, given: Sequence[Any]) -> tuple[Any, Any] | None:
        """The message among a handler's arguments, and the channel or consumer beside it (or None)."""
        for argument in given:
            if isinstance(argument, self.message_type):
                return argument, None
        return None

    def native(self, given: Any) -> Any:
        """The message in what a loop or a pull call gives: ``(body, message)`` where that is how it gives it."""
        return given

    def is_nothing(self, native: Any) -> bool:
        """Whether it is no message: an idle tick, what an empty queue gives."""
        return native is None

    def is_message(self, native: Any) -> bool:
        """Whether it is a message, or looks like one."""
        if isinstance(native, self.message_type):
            return True
        fields = self.message_fields
        return bool(fields) and all(hasattr(native, name) for name in fields)

    def identity(self, native: Any) -> tuple[object, Hashable] | None:
        """A holder and a key that tell this delivery from every other; see ``Kept``. None: nothing does."""
        return native, None

    def source(self, via: Any, args: Arguments, kwargs: Options, call: Wrapped) -> Source:
        """Where a call pulls from or registers a handler for."""
        return Source(via)

    def pulls(self, returned: Any) -> Sequence[Any]:
        """The messages that a pull call returned."""
        native = self.native(returned)
        return () if self.is_nothing(native) else (native,)

    def pulled_from(self, natives: Sequence[Any], source: Source | None) -> Destination:
        """What a pull call's span names: what all that it returned has in common."""
        return self.consumed_from(natives[0] if natives else None, source)

    def handed_over(self, returned: Any, step: Begin) -> Any:
        """What a pull call's caller is given: what it returned, or lists that handle each message inside its scope."""
        return returned

    def is_end(self, error: BaseException) -> bool:
        """Whether what a pull call raised is no failure: its consumer was stopped."""
        return False

    @property
    def advice(self) -> str:
        """What to do about a message that was pulled and handled outside of its trace."""
        return f"handle it inside `with traced_message(message):` of queueprop.adapters.{checks.module_of(self.name)}"

    def leaves_alone(self, via: Any) -> bool:
        """Whether somebody else traces what goes through this channel or consumer: a layer above."""
        return is_spoken_for(via)

    def settlement_of(self, native: Any, source: Source | None) -> tuple[Any, Hashable] | None:
        """Under which holder and key its settlement finds a delivery: its channel and tag, its consumer and partition.

        The holder is None where it is not known. None: it needs no settlement, or cannot be found.
        """
        return None

    def settled(self, via: Any, args: Arguments, kwargs: Options, call: Wrapped) -> Settlement | None:
        """A settling call, read. None: it settles nothing that concerns us."""
        return None


class Publication:
    """One publish call, as it was read.

    Args:
        destination: where the message goes.
        message: with headers that are ours to write to; several where the call publishes several.
        about: which publish it is, by identity, where the library may publish another one inside it.
    """

    operation = "publish"
    about: object = None
    send: Send
    mark: Mark

    def __init__(
        self, destination: Destination, message: Message | Sequence[Message], about: object = None
    ) -> None:
        self.destination = destination
        self.message = message
        if about is not None:
            self.about = about

    def begin(self, engine: Engine) -> Send:
        """The operation. (``engine.send`` is overloaded for one and for several.)"""
        return engine.send(self.destination, self.message, operation=self.operation)

    def arguments(self, args: Arguments, kwargs: Options) -> tuple[Arguments, Options]:
        """The call's arguments, now that the context is in the headers."""
        return args, kwargs

    def fail(self, error: BaseException) -> None:
        """The call has raised. What overrides this raises nothing, and calls it."""
        self.send.close(error)

    def end(self, result: Any) -> None:
        """The call has returned ``result``. Where that is no answer yet (a future, a batch that waits): override."""
        self.send.close()


class Source:
    """Where deliveries come from.

    Args:
        via: the channel, consumer or queue object; kept weakly where it can be.
        name: the queue, where the library's messages do not tell it.
        needs_no_settlement: whether it was asked for deliveries without acks; None where that is not known.
        gives_several: whether its pull call returns several messages at once.
        about: which pull call it is, by identity, where the library may pull another one inside it.
    """

    __slots__ = ("_via", "about", "gives_several", "latest", "name", "needs_no_settlement")

    latest: tuple[tuple[object, ...], Destination] | None
    """The route of the latest delivery, and its destination; see ``Library.route``."""

    def __init__(
        self,
        via: Any,
        name: str | None = None,
        needs_no_settlement: bool | None = None,
        gives_several: bool = False,
        about: object = None,
    ) -> None:
        self.name = name
        self.needs_no_settlement = needs_no_settlement
        self.gives_several = gives_several
        self.about = about
        self.latest = None
        self._via: Callable[[], Any] | None = None
        if via is None:
            return
        try:
            self._via = weakref.ref(via)
        except TypeError:
            self._via = lambda: via

    @property
    def via(self) -> Any:
        """The channel, consumer or queue object; None where it is gone."""
        return None if self._via is None else self._via()


class Settlement:
    """One settling call, as it was read: what of a holder's unsettled deliveries it is about.

    Args:
        operation: ``ack``, ``nack``, ``reject``, ``commit``.
        holders: as in ``Library.settlement_of``.
        key: the delivery's key.
        picks: instead, whether a key is among those that are settled at once.
        destination: makes one of those of all that it settles; else it is the last one's.
    """

    __slots__ = ("destination", "holders", "key", "operation", "picks")

    def __init__(
        self,
        operation: str,
        holders: Sequence[Any],
        key: Hashable = None,
        picks: Callable[[Any], bool] | None = None,
        destination: Callable[[Sequence[Destination]], Destination] | None = None,
    ) -> None:
        self.operation = operation
        self.holders = holders
        self.key = key
        self.picks = picks
        self.destination = destination

    def is_about(self, key: Hashable) -> bool:
        """Whether it settles the delivery of this key."""
        return key == self.key if self.picks is None else self.picks(key)
