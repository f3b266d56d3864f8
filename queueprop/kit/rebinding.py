"""Names that modules have imported: a patch of the module that defines a function or a class does not reach them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any


def rebind(pairs: Iterable[tuple[Any, Any]], but: str | None = None) -> None:
    """Binds whatever module's name is bound to the first of a pair to the second.

    A copy in a class's attribute, in a function's default or in a list is not reached.

    Args:
        pairs: each an object and what takes its place.
        but: the package whose modules keep their names.
    """
    new = {id(old): (old, replacement) for old, replacement in pairs}
    for names in _namespaces(but):
        for name, value in names.copy().items():
            found = new.get(id(value))
            if found is not None:
                names[name] = found[1]


def _namespaces(but: str | None) -> Iterator[dict[str, Any]]:
    # A copy is made in one step; while a list of its items is, garbage may be collected, and import something.
    for name, module in sys.modules.copy().items():
        if not isinstance(module, ModuleType) or (but is not None and name.startswith(but)):
            continue
        # Past its own ways to give attributes: a module may be loaded by being asked for one.
        names = object.__getattribute__(module, "__dict__")
        if type(names) is dict:
            yield names
