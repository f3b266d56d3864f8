"""Values beside somebody else's objects: kept for as long as these live, found by identity, bounded."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

V = TypeVar("V")


def stand_in(native: Any, attribute: str) -> object:
    """What stands for an object that takes no weak reference, and goes with it.

    It lies in an attribute that its library has left over.
    """
    found = getattr(native, attribute, None)
    if not isinstance(found, _StandIn):
        found = _StandIn()
        setattr(native, attribute, found)
    return found


class _StandIn:
    __slots__ = ("__weakref__",)


class Kept(Generic[V]):
    """By holder and key: a message and None, a channel and its delivery tags, a consumer and its partitions.

    The holder needs neither a hash nor room for attributes, only to be weakly referable. There is no lock: signal
    handlers and finalizers run wherever a thread stands, and may ask here, too; a process may fork while another
    thread is here. Each step on a dictionary is atomic.

    Args:
        most: so many keys of one holder; then the oldest go.
        when_gone: is given the values of a holder that is gone, from wherever the garbage collector runs.
    """

    def __init__(self, most: int = 10_000, when_gone: Callable[[V], None] | None = None) -> None:
        self._most = most
        self._when_gone = when_gone
        self._shelves: dict[int, tuple[weakref.ref[Any], dict[Hashable, V]]] = {}

    def find(self, holder: object, key: Hashable = None) -> V | None:
        """The value; None where there is none."""
        shelf = self._shelves.get(id(holder))
        return shelf[1].get(key) if shelf is not None and shelf[0]() is holder else None

    def put(self, holder: object, key: Hashable, value: V) -> None:
        """Raises TypeError for a holder that cannot be referred to weakly."""
        shelf = self._shelves.get(id(holder))
        if shelf is None or shelf[0]() is not holder:
            number = id(holder)
            shelf = self._shelves[number] = (weakref.ref(holder, lambda gone: self._forget(number, gone)), {})
        values = shelf[1]
        values.pop(key, None)  # the latest comes last
        values[key] = value
        if len(values) > self._most:
            values.pop(next(iter(values)), None)

    def take(self, holder: object, key: Hashable = None) -> V | None:
        """The value, which is kept no longer."""
        shelf = self._shelves.get(id(holder))
        return shelf[1].pop(key, None) if shelf is not None and shelf[0]() is holder else None

    def keys(self, holder: object) -> Sequence[Any]:
        """All keys of a holder, the oldest first."""
        shelf = self._shelves.get(id(holder))
        return list(shelf[1]) if shelf is not None and shelf[0]() is holder else ()

    def clear(self, holder: object) -> None:
        """Keeps nothing of this holder any longer."""
        shelf = self._shelves.get(id(holder))
        if shelf is not None and shelf[0]() is holder:
            shelf[1].clear()

    def holders(self) -> list[Any]:
        """All holders that live."""
        found = (reference() for reference, _ in list(self._shelves.values()))
        return [holder for holder in found if holder is not None]

    def _forget(self, number: int, gone: weakref.ref[Any]) -> None:
        shelf = self._shelves.get(number)
        if shelf is None or shelf[0] is not gone:
            return  # a new holder has the number
        self._shelves.pop(number, None)
        if self._when_gone is not None:
            for value in shelf[1].values():
                self._when_gone(value)
