"""A span that its worker keeps. Imported where there is one: wrapt takes its time."""

from __future__ import annotations

import os
import time

from opentelemetry.trace import Span

from queueprop.kit.proxies import Proxy


class Withheld(Proxy):
    """A span that ends later than it says."""

    def __init__(self, span: Span) -> None:
        super().__init__(span)
        self._self_pid = os.getpid()
        self._self_ended_at: int | None = None

    def end(self, end_time: int | None = None) -> None:
        self._self_ended_at = time.time_ns() if end_time is None else end_time

    def _self_release(self) -> None:
        if self._self_pid == os.getpid():
            self.__wrapped__.end(self._self_ended_at)
