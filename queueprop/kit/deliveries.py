"""What is known of each delivery, beside the library's own message: whichever layer has seen it, it is traced once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import Any

from queueprop.engine.message import Destination
from queueprop.engine.operations import Process, ProcessBatch
from queueprop.kit.kept import Kept


class Delivery:
    """One delivery, from where it is first seen until its message is dropped.

    What most deliveries do not need is a default of the class, so that making one is no call.
    """

    destination: Destination | None = None
    source: Any = None
    process: Process | None = None
    """Its handling, once that has begun."""
    batch: ProcessBatch | None = None
    """Its handling together with others."""
    is_pulled = False
    """Whether a call of the user's returned it: nothing has handled it yet."""
    is_attached = False
    """Whether it was handled inside its context, by whatever word."""
    is_counted = False
    is_settled = False
    was_looped = False
    """Whether its span is that of a loop's step, which may be over before a worker takes it up."""


class Deliveries:
    """All of one library."""

    def __init__(self, identity: Callable[[Any], tuple[object, Hashable] | None]) -> None:
        self._identity = identity
        self._kept: Kept[Delivery] = Kept(when_gone=self._gone)
        self.unattached: deque[Destination] = deque(maxlen=10_000)
        """Where those were from that nobody has handled inside their context. Filled by the garbage collector, which
        may run anywhere, in the middle of a counter's lock as well: so they are counted later."""

    def find(self, native: Any) -> Delivery | None:
        """What is known of it; None where it was not seen before."""
        identity = self._identity(native)
        return None if identity is None else self._kept.find(*identity)

    def of(self, native: Any) -> Delivery:
        """The same, made where it was not seen before."""
        identity = self._identity(native)
        if identity is None:
            return Delivery()
        holder, key = identity
        try:
            return self._kept.find_or_make(holder, key, Delivery)
        except TypeError:  # a double of somebody's tests that takes no weak reference
            return Delivery()

    def drop(self, native: Any) -> None:
        """Nobody will ask for it again, although its holder lives."""
        identity = self._identity(native)
        delivery = None if identity is None else self._kept.take(*identity)
        if delivery is not None:
            self._gone(delivery)

    def _gone(self, delivery: Delivery) -> None:
        if delivery.is_pulled and not delivery.is_attached and delivery.destination is not None:
            self.unattached.append(delivery.destination)
