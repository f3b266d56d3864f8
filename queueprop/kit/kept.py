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
        # Not the class's own, which may be a rule for its users, and takes longer.
        object.__setattr__(native, attribute, found)
    return found


class _StandIn:
    __slots__ = ("__weakref__",)


class _Shelf(weakref.ref[Any]):
    """What is kept beside one holder: a reference to it, so that a delivery needs no function and no tuple of its own
    for that.
    """

    __slots__ = ("number", "values")

    number: int
    """The holder's, by which the shelf is found."""

    values: dict[Hashable, Any]


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
        self._shelves: dict[int, _Shelf] = {}

    def find(self, holder: object, key: Hashable = None) -> V | None:
        """The value; None where there is none."""
        shelf = self._shelves.get(id(holder))
        return shelf.values.get(key) if shelf is not None and shelf() is holder else None

    def find_or_make(self, holder: object, key: Hashable, make: Callable[[], V]) -> V:
        """The value; where there is none, what ``make`` gives, which is kept from now on. Raises what ``put`` does."""
        shelf = self._shelves.get(id(holder))
        if shelf is None or shelf() is not holder:
            value = make()
            self._begin_shelf(holder, {key: value})
            return value
        found: V | None = shelf.values.get(key)
        if found is None:
            found = make()
            self.put(holder, key, found)
        return found

    def put(self, holder: object, key: Hashable, value: V) -> None:
        """Raises TypeError for a holder that cannot be referred to weakly."""
        shelf = self._shelves.get(id(holder))
        if shelf is None or shelf() is not holder:
            self._begin_shelf(holder, {key: value})
            return
        values = shelf.values
        values.pop(key, None)  # the latest comes last
        values[key] = value
        if len(values) > self._most:
            values.pop(next(iter(values)), None)

    def take(self, holder: object, key: Hashable = None) -> V | None:
        """The value, which is kept no longer."""
        shelf = self._shelves.get(id(holder))
        return shelf.values.pop(key, None) if shelf is not None and shelf() is holder else None

    def keys(self, holder: object) -> Sequence[Any]:
        """All keys of a holder, the oldest first."""
        shelf = self._shelves.get(id(holder))
        return list(shelf.values) if shelf is not None and shelf() is holder else ()

    def clear(self, holder: object) -> None:
        """Keeps nothing of this holder any longer."""
        shelf = self._shelves.get(id(holder))
        if shelf is not None and shelf() is holder:
            shelf.values.clear()

    def holders(self) -> list[Any]:
        """All holders that live."""
        found = (shelf() for shelf in list(self._shelves.values()))
        return [holder for holder in found if holder is not None]

    def _begin_shelf(self, holder: object, values: dict[Hashable, Any]) -> None:
        shelf = _Shelf(holder, self._forget)
        shelf.number = number = id(holder)
        shelf.values = values
        self._shelves[number] = shelf  # last, when there is nothing left to do for it

    def _forget(self, gone: _Shelf) -> None:
        if self._shelves.get(gone.number) is not gone:
            return  # a new holder has the number
        self._shelves.pop(gone.number, None)
        if self._when_gone is not None:
            for value in gone.values.values():
                self._when_gone(value)
