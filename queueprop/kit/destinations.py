"""Where a library's object sends to: asked of it once for each name, and not at each message."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from queueprop.engine.message import LONGEST_VALUE, Destination
from queueprop.kit.kept import Kept


class Destinations:
    """Those of channels or producers, whose broker's address stays the same as long as they live.

    Args:
        make: the destination of what such an object sends to these names.
        most: so many of one object are remembered; then the oldest go.
    """

    def __init__(self, make: Callable[..., Destination], most: int = 100) -> None:
        self._make = make
        self._kept: Kept[Destination] = Kept(most)

    def of(self, holder: Any, *names: Any) -> Destination:
        """The destination; remembered where the broker's address is known, and for names that are plain text."""
        try:
            known = self._kept.find(holder, names)
        except TypeError:  # no text: it has no hash
            known = None
        return known if known is not None else self._made(holder, names)

    def _made(self, holder: Any, names: tuple[Any, ...]) -> Destination:
        made = self._make(holder, *names)
        if made.server_address is None or any(type(name) is not str for name in names):
            return made
        if len(made.name or "") <= LONGEST_VALUE:
            with suppress(TypeError):  # a double of somebody's tests that takes no weak reference
                self._kept.put(holder, names, made)
        return made
