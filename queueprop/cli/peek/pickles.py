"""RQ's ``meta``, which is a pickle, read without running anything of it.

A pickle is a program, and a queue may have messages of anybody's. Of this one only plain values are kept: whatever it
would import is an empty stand-in instead, so that nothing is called that does anything.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

_LONGEST = 262_144
"""Bytes. What is longer is not read: a context is hundreds."""


class Unreadable(ValueError):
    """It is no value that can be read."""


def plain_value(stored: bytes) -> Any:
    """The value, of plain types; JSON as well, for queues with RQ's JSONSerializer. Raises Unreadable."""
    if len(stored) > _LONGEST:
        raise Unreadable("too long")
    try:
        if stored[:1] in (b"{", b"[", b"n"):
            return json.loads(stored)
        return _Reader(io.BytesIO(stored)).load()
    except Exception as error:  # of a pickle: whatever its opcodes make of a wrong stack
        raise Unreadable(type(error).__name__) from None


class _StandIn:
    """Whatever would be imported."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


class _Reader(pickle._Unpickler):
    """Python's own reader in Python: that in C makes room for whatever size an opcode names."""

    dispatch: ClassVar[dict[int, Callable[..., None]]] = {
        code: load
        for code, load in pickle._Unpickler.dispatch.items()
        if code not in (pickle.BYTEARRAY8[0], pickle.EXT1[0], pickle.EXT2[0], pickle.EXT4[0])
    }

    def find_class(self, module: str, name: str) -> Any:
        return _StandIn
