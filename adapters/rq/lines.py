"""What a work horse tells its parent: memory that both have mapped."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import struct
import tempfile
from typing import IO, NamedTuple


class Told(NamedTuple):
    ended: bool
    """Whether the span is ended and gone; else it is the parent's to end."""
    answered: bool | None
    """For the circuit of a parent that shares no memory."""
    function: str
    error_type: str
    error_text: str


class End(NamedTuple):
    """How a spawned horse finds its line: a descriptor, and what tells whether that is still the same file."""

    fd: int
    device: int
    inode: int


class Line:
    """From a work horse to its parent: memory that both have mapped.

    And no pipe: a job may close what it has inherited and open files of its own, and the pipe's number is one of theirs
    then. A mapping has no number. What stands in it is input, as anything from another process is.
    """

    def __init__(self, file: IO[bytes] | None) -> None:
        """``file``: for a horse that is a program of its own; a forked one has its parent's memory."""
        self._file = file
        if file is not None:
            file.truncate(LINE_SIZE)
        self._memory = mmap.mmap(-1 if file is None else file.fileno(), LINE_SIZE)

    @classmethod
    def of_parent(cls, end: End) -> Line:
        """In a spawned horse, before any job runs. Raises OSError where the descriptor is not the line's any more."""
        found = os.fstat(end.fd)
        if (found.st_dev, found.st_ino) != (end.device, end.inode):
            raise OSError(errno.EBADF, "the descriptor that leads to the worker is another file's")
        if found.st_size != LINE_SIZE:  # and is never cut: its parent would die of reading beyond
            raise OSError(errno.EINVAL, "the line to the worker is another version's")
        with open(end.fd, "r+b", buffering=0) as file:
            line = cls(file)
        line._file = None
        return line

    def lend(self) -> End:
        """Lets the next program that is spawned have it; ``take_back`` afterwards."""
        assert self._file is not None
        fd = self._file.fileno()
        found = os.fstat(fd)
        os.set_inheritable(fd, True)
        return End(fd, found.st_dev, found.st_ino)

    def take_back(self) -> None:
        if self._file is not None:
            self._file.close()  # what is mapped stays

    def tell(self, told: Told) -> None:
        texts = [
            text[:most].encode("utf-8", "replace")[:most]
            for text, most in zip(told[2:], _LONGEST_TEXTS, strict=True)
        ]
        body = _HEAD.pack(told.ended, _ANSWERS.index(told.answered), *map(len, texts)) + b"".join(texts)
        assert len(body) < _MEASURED_AT
        self._memory[1 : 1 + len(body)] = body
        self._memory[0] = 1  # last: a horse that is killed meanwhile has told nothing

    def told(self) -> Told | None:
        if not self._memory[0]:
            return None
        ended, answer, *lengths = _HEAD.unpack_from(self._memory, 1)
        at, texts = 1 + _HEAD.size, []
        for length, most in zip(lengths, _LONGEST_TEXTS, strict=True):
            texts.append(self._memory[at : at + min(length, most)].decode("utf-8", "ignore"))
            at += length
        return Told(ended, _ANSWERS[answer] if answer < len(_ANSWERS) else None, *texts)

    def put_measured(self, packed: bytes) -> None:
        """Before ``tell``, without which it counts for nothing. At most ``ROOM`` bytes."""
        at = _MEASURED_AT + _LENGTH.size
        self._memory[_MEASURED_AT:at] = _LENGTH.pack(len(packed))
        self._memory[at : at + len(packed)] = packed

    def measured(self) -> bytes:
        (length,) = _LENGTH.unpack_from(self._memory, _MEASURED_AT)
        at = _MEASURED_AT + _LENGTH.size
        return self._memory[at : at + min(length, ROOM)]

    def close(self) -> None:
        self.take_back()
        self._memory.close()


LINE_SIZE = 1 << 18
"""Of which the system gives what is written to."""


_MEASURED_AT = 4096


_LENGTH = struct.Struct("=I")


ROOM = LINE_SIZE - _MEASURED_AT - _LENGTH.size
"""Bytes for what a horse has measured: some thousands of publishes."""


_HEAD = struct.Struct("=?BHHH")


_LONGEST_TEXTS = (500, 500, 3000)
"""Bytes of the texts, which follow the head. An error's is whatever a user wrote."""


_ANSWERS = (None, False, True)


def unnamed_file() -> IO[bytes]:
    """A file that nobody else can find, and no disk need be writable for where the system has such."""
    with contextlib.suppress(AttributeError, OSError):
        return open(os.memfd_create("queueprop"), "r+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)
