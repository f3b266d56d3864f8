"""A client library in memory, of the shape that most have, and what an adapter of ours says of it.

``Channel`` stands for the library: it knows nothing of queueprop. ``MEMORY`` is its ``Library``, and the words and
patches are made as an adapter makes them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any

from queueprop import Destination, Message
from queueprop.kit import calls
from queueprop.kit.calls import Arguments, Options, Wrapped
from queueprop.kit.fitting import fitted
from queueprop.kit.hooks import Hooks
from queueprop.kit.instrumentor import Adapter, Patch
from queueprop.kit.iteration import Begin, MessageList, Messages
from queueprop.kit.library import Library, Publication, Settlement, Source
from queueprop.kit.rivals import Rivals
from queueprop.kit.words import Call, Words
from queueprop.wire.headers import is_altered


class Parcel:
    """A message as the library hands it over."""

    def __init__(self, queue: str, body: str, headers: dict[str, Any], tag: int) -> None:
        self.queue, self.body, self.headers, self.tag = queue, body, headers, tag


class Channel:
    """The library. ``publish`` refuses a queue called "full", and hands a parcel back when it is the "returned"."""

    def __init__(self, limit: int = 1 << 20) -> None:
        self.queues: dict[str, deque[Parcel]] = {}
        self.settled: list[tuple[str, int, bool]] = []
        self.on_return: Callable[[Channel], object] | None = None
        self.limit = limit
        self._tags = 0

    def publish(self, queue: str, body: str, headers: dict[str, Any] | None = None) -> str:
        if queue == "full":
            raise OverflowError("no place left")
        if queue == "returned" and self.on_return is not None:
            self.on_return(self)
        self._tags += 1
        self.queues.setdefault(queue, deque()).append(Parcel(queue, body, dict(headers or {}), self._tags))
        return f"{queue}: {body}"

    async def publish_async(self, queue: str, body: str, headers: dict[str, Any] | None = None) -> str:
        return self.publish(queue, body, headers)

    def get(self, queue: str) -> Parcel | None:
        if queue == "full":
            raise OverflowError("no such queue")
        waiting = self.queues.get(queue)
        return waiting.popleft() if waiting else None

    async def get_async(self, queue: str) -> Parcel | None:
        return self.get(queue)

    def getmany(self, queue: str) -> list[Parcel]:
        waiting = self.queues.pop(queue, ())
        return list(waiting)

    def consume(self, queue: str) -> Iterator[Parcel]:
        while (parcel := self.get(queue)) is not None:
            yield parcel

    async def consume_async(self, queue: str) -> AsyncIterator[Parcel]:
        while (parcel := await self.get_async(queue)) is not None:
            yield parcel

    def ack(self, tag: int, multiple: bool = False) -> None:
        if tag < 0:
            raise OverflowError("no such tag")
        self.settled.append(("ack", tag, multiple))

    async def ack_async(self, tag: int, multiple: bool = False) -> None:
        self.ack(tag, multiple)


class MemoryLibrary(Library):
    name = "memory"
    message_form = "parcel, as get gives it"
    message_type = Parcel

    def __init__(self, *, settles_each: bool = True, loops_pull: bool = False) -> None:
        super().__init__()
        self.settles_each = settles_each  # type: ignore[misc]
        self.loops_pull = loops_pull  # type: ignore[misc]
        self.theirs: set[Any] = set()

    def publication(
        self, channel: Any, args: Arguments, kwargs: Options, call: Wrapped
    ) -> Publication | None:
        given = calls.bound(_publish_arguments, args, kwargs)
        return None if given is None else _Publication(channel, *given)

    def message(self, parcel: Any) -> Message:
        return Message(
            headers=parcel.headers, body=parcel.body, attributes={"tag": parcel.tag}, native=parcel
        )

    def consumed_from(self, parcel: Any, source: Source | None) -> Destination:
        name = parcel.queue if parcel is not None else None if source is None else source.name
        return Destination("memory", name)

    def delivery_among(self, given: Sequence[Any]) -> tuple[Any, Any] | None:
        parcel = next((it for it in given if isinstance(it, Parcel)), None)
        return (
            None if parcel is None else (parcel, next((it for it in given if isinstance(it, Channel)), None))
        )

    def source(self, channel: Any, args: Arguments, kwargs: Options, call: Wrapped) -> Source:
        queue = calls.given(0, "queue", args, kwargs)
        return Source(channel, queue, gives_several=call.__name__ == "getmany")

    def pulls(self, returned: Any) -> Sequence[Any]:
        return returned if isinstance(returned, list) else super().pulls(returned)

    def handed_over(self, returned: Any, step: Begin) -> Any:
        return MessageList(returned, step) if isinstance(returned, list) else returned

    def leaves_alone(self, channel: Any) -> bool:
        return channel in self.theirs

    def settlement_of(self, parcel: Any, source: Source | None) -> tuple[Any, Any]:
        return (None if source is None else source.via), parcel.tag

    def settled(self, channel: Any, args: Arguments, kwargs: Options, call: Wrapped) -> Settlement | None:
        tag = calls.given(0, "tag", args, kwargs)
        if calls.given(1, "multiple", args, kwargs):
            return Settlement("ack", [channel], picks=lambda it: it <= tag)
        return Settlement("ack", [channel], key=tag)


class _Publication(Publication):
    def __init__(self, channel: Any, queue: str, body: str, headers: dict[str, Any] | None) -> None:
        self._given = headers or {}
        self._written = dict(self._given)
        self._limit = getattr(channel, "limit", 1 << 20)
        about = body if queue == "returned" else None
        super().__init__(
            Destination("memory", queue), Message(self._written, body=body, native=(queue, body)), about
        )

    def arguments(self, args: Arguments, kwargs: Options) -> tuple[Arguments, Options]:
        if not is_altered(self._written, self._given):
            return args, kwargs
        written = fitted(
            self._written,
            lambda: dict(self._given),
            self._fits,
            "publishing in memory",
            self.destination.name,
        )
        return calls.replaced(2, "headers", written, args, kwargs)

    def _fits(self, headers: dict[str, Any]) -> bool:
        return sum(len(name) + len(str(value)) for name, value in headers.items()) <= self._limit


def _publish_arguments(queue: Any, body: Any, headers: Any = None) -> tuple[Any, Any, Any]:
    return queue, body, headers


MEMORY = MemoryLibrary()


def words_of(library: Library) -> Words:
    return Words(
        library,
        publish=Call("a channel's publish", ("publish", "publish_async"), takes="headers"),
        handler='as in @traced_consumer(queue="orders")',
        iterable="a loop over parcels",
        get=Call("a channel's get", ("get",), is_one=lambda get: "publish" not in str(get)),
        settle=Call("a channel's ack", ("ack",)),
    )


words = words_of(MEMORY)


class MemoryInstrumentor(Adapter):
    library = "memory"
    requires = ()
    rivals = Rivals("memory")

    def patches(self) -> Iterable[Patch]:
        hooks = Hooks(MEMORY, self.engine, self.is_on)
        yield Patch(Channel, "publish", hooks.publish)
        yield Patch(Channel, "publish_async", hooks.publish_async)
        yield Patch(Channel, "get", hooks.pull)
        yield Patch(Channel, "getmany", hooks.pull)
        yield Patch(Channel, "ack", hooks.settle)
        yield Patch(Channel, "consume", hooks.iterates(Messages))
