"""Ctrl-C, SIGTERM and SIGHUP, so that they never fall between a process's start and the note of it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """One of the signals came."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.status = 128 + number


class StopSignals:
    """A context manager, for the main thread: the first signal raises Stopped; those behind it change nothing."""

    def __init__(self) -> None:
        self._number: int | None = None
        self._is_raised = False
        self._held = 0

    def __enter__(self) -> StopSignals:
        self._before: dict[int, Any] = {number: signal.signal(number, self._on_signal) for number in _NUMBERS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """A signal that comes meanwhile raises at the end."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        self._raise()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._number is None:
            self._number = number
            self._raise()

    def _raise(self) -> None:
        if self._number is not None and not self._held and not self._is_raised:
            self._is_raised = True
            raise Stopped(self._number)
