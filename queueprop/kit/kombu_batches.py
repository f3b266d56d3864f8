"""Publishes that a batch of kombu's holds back (``Producer.batch()``, from 5.7 on). They end as the batch does."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from queueprop import guard
from queueprop.engine.operations import Send


def defer(producer: Any, send: Send) -> bool:
    """Whether the message waits in a batch, which will end its span. A double of somebody's tests has none."""
    batch = getattr(getattr(producer, "_batch_local", None), "current", None)
    session: Any = getattr(batch, "session", None)
    waiting = getattr(session, "_buffered", 0)
    if not waiting or not isinstance(waiting, int):
        return False  # no batch, a transport that publishes at once, or flushed because the batch was full
    try:
        send.detach()
        held = getattr(session, "_queueprop", None)
        if held is None:
            held = session._queueprop = _HeldBack(session)
        held.sends.append(send)
    except Exception as error:
        guard.fault("waiting for a batch of kombu", error)
        return False
    return True


class _HeldBack:
    """The publishes of one batch that have not gone out yet."""

    def __init__(self, session: Any) -> None:
        self.sends: list[Send] = []
        session.flush = functools.partial(self._flush, session.flush)
        session.discard = functools.partial(self._discard, session.discard)
        session.close = functools.partial(self._discard, session.close)

    def _flush(self, flush: Callable[[], Any]) -> Any:
        sends, self.sends = self.sends, []
        try:
            result = flush()
        except BaseException as error:
            for send in sends:
                send.close(error)
            raise
        for send in sends:
            send.close()
        return result

    def _discard(self, end: Callable[[], Any]) -> Any:
        sends, self.sends = self.sends, []
        reason = sys.exc_info()[1]
        for send in sends:
            send.fail("discarded", "the batch was discarded before it was sent")
            send.close(reason)
        return end()
