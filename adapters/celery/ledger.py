"""Which tasks have told their end in a child of the pool, for the parent: the span of each other one is the parent's.

A child that is stopped (a hard time limit, ``revoke(terminate=True)``, ``sys.exit``) unwinds and ends its span itself,
where it gets so far; one that is killed does not. An exit code does not tell the one from the other.
"""

from __future__ import annotations

import atexit
import mmap
import os
import tempfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from queueprop import guard


class Ledger:
    """In memory that forked children share; for spawned ones, a file that they are told of by their environment."""

    def __init__(self) -> None:
        self._page: Any = None

    def note(self, task_id: object) -> None:
        """This execution has handed over its span. (An id is whatever a message says it is.)"""
        place, sign = _entry(task_id)
        self._shared()[place : place + _SIZE] = sign

    def take(self, task_id: object) -> bool:
        """Whether it has; asked once for each execution, since a task that comes again has the same id."""
        page, (place, sign) = self._shared(), _entry(task_id)
        if page[place : place + _SIZE] != sign:
            return False
        page[place : place + _SIZE] = bytes(_SIZE)
        return True

    def prepare(self, spawns: bool) -> None:
        """In a worker, before it has children."""
        if not spawns:
            self._shared()
            return
        try:
            handle, path = tempfile.mkstemp(prefix="queueprop-celery-")
            os.truncate(handle, _PLACES * _SIZE)
            self._page = mmap.mmap(handle, _PLACES * _SIZE)
            os.close(handle)
            os.environ[_VARIABLE] = path
            atexit.register(_remove, path, os.getpid())
        except OSError as error:
            guard.fault("sharing what spawned children of a pool tell", error)

    def _shared(self) -> Any:
        if self._page is None:
            self._page = _opened(os.environ.get(_VARIABLE)) or _made()
        return self._page


ledger = Ledger()

_VARIABLE = "_QUEUEPROP_CELERY_LEDGER"
_PLACES = 4096
_SIZE = 8


def _entry(task_id: object) -> tuple[int, bytes]:
    """Where it stands, and by what it is known there."""
    text = repr(task_id).encode(errors="replace")
    place = zlib.crc32(text) % _PLACES * _SIZE
    return place, zlib.crc32(text, 1).to_bytes(4, "big") + (zlib.adler32(text) or 1).to_bytes(4, "big")


def _opened(path: str | None) -> Any:
    if path is None:
        return None
    try:
        with Path(path).open("r+b") as file:
            return mmap.mmap(file.fileno(), _PLACES * _SIZE)
    except (OSError, ValueError):
        return None  # of a worker that is gone


def _made() -> Any:
    try:
        return mmap.mmap(-1, _PLACES * _SIZE)
    except OSError:
        return bytearray(_PLACES * _SIZE)


def _remove(path: str, pid: int) -> None:
    if os.getpid() == pid:
        with suppress(OSError):
            os.remove(path)
