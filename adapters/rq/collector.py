"""How long a work horse waits for the Collector, and what a worker keeps while nobody takes it."""

from __future__ import annotations

import math
import mmap
import struct
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from queueprop import guard
from queueprop.engine.operations import Process
from queueprop.process.flush import flush

if TYPE_CHECKING:
    from queueprop.adapters.rq.withheld import Withheld


def hand_over(timeout: float, patience: float, left: float = math.inf) -> bool | None:
    """Waits for the spans of this process to be handed over, and remembers whether that was worth it.

    Args:
        timeout: seconds that it may take.
        patience: of these, what the circuit allows.
        left: seconds until a time limit.

    Returns whether they were; None where nothing is to be learnt of it.
    """
    if not patience:
        return None
    started = time.monotonic()
    answered = flush(min(patience, left))
    if not answered and time.monotonic() - started < min(patience / 2, _NOTICED):
        return None  # a refusal that costs nothing, or too little time to know
    circuit.note(answered, timeout)
    return answered


_NOTICED = 0.1
"""Seconds of waiting in vain that are worth being remembered."""


class Circuit:
    """How long a work horse may wait until its spans are handed over.

    Each horse is a process of its own, and would find out anew that the Collector does not answer: that is
    ``flush_timeout`` a job. So what one has waited for in vain the next do not wait for. Now and then one tries: after
    a pause of two hundred times as long as it may wait, which at first is not long. An answer ends it.

    It lies in memory that forked children share, so that horses whose worker is not traced find it as well
    (``traced_consumer`` alone).
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _STATE.size)

    @property
    def is_open(self) -> bool:
        """Whether nobody has been answered since one has waited in vain."""
        return bool(_STATE.unpack(self.state)[0] > 0)

    @property
    def state(self) -> bytes:
        """All that it knows; for a process that does not share its memory."""
        return self._memory[:]

    @state.setter
    def state(self, state: bytes) -> None:
        self._memory[:] = state

    def patience(self, timeout: float) -> float:
        """Seconds of ``timeout`` that a horse may wait now; 0 for not at all."""
        wait, open_until = _STATE.unpack(self.state)
        if not 0 < wait < timeout:
            wait = timeout
        # Whatever stands there, it is no longer than the longest pause.
        return 0.0 if 0 < open_until - time.monotonic() <= PAUSE * timeout / 2 else wait

    def note(self, answered: bool | None, timeout: float) -> None:
        """What a horse has found out; None for nothing."""
        if answered is None:
            return
        if answered:
            self.state = bytes(_STATE.size)
            return
        before, _ = _STATE.unpack(self.state)
        wait = min(2 * before, timeout / 2) if before > 0 else timeout / 16
        self.state = _STATE.pack(wait, time.monotonic() + PAUSE * wait)


_STATE = struct.Struct("=dd")
"""Seconds that the next try may wait, 0 where all is well; and when that may be, by the monotonic clock."""


PAUSE = 200
"""So many times as long as the try that follows it is a pause: the tries cost half a hundredth of a worker's time."""


circuit = Circuit()


class Kept:
    """The spans of jobs that a worker keeps until somebody takes them: the last ones, when it is too long.

    Handed to the SDK they would be lost. Its exporter drops a batch after some seconds of trying, and every work horse
    would empty its copy of the SDK's queue when it is forked, which takes the longer the more there is.
    """

    def __init__(self) -> None:
        self._spans: deque[Withheld] = deque(maxlen=MOST_KEPT)

    def withhold(self, process: Process, timeout: float) -> None:
        """Puts off that the end of its span is told to the SDK; the end itself is when it is.

        ``timeout``: seconds that were waited in vain, for the log.
        """
        if not process.span.is_recording():
            return
        from queueprop.adapters.rq.withheld import Withheld  # where nobody takes spans: wrapt takes its time

        guard.mistake("handing over the spans of jobs", _NOBODY_TAKES_THEM % timeout)
        withheld: Any = Withheld(process.span)
        process.span = withheld
        self._spans.append(withheld)

    def release(self) -> None:
        """Tells the SDK of them. Those that a forked child has inherited are its parent's."""
        while self._spans:
            span = self._spans.popleft()
            try:
                span._self_release()
            except Exception as error:
                guard.fault("ending the span of a job", error)


MOST_KEPT = 2048
"""As many as the SDK's queue takes by default."""


_NOBODY_TAKES_THEM = (
    "nobody took them within %g s (is the Collector there?); jobs do not wait for that any more. Until somebody takes "
    f"them, what is recorded inside of jobs is lost, and the jobs' own spans are kept, the last {MOST_KEPT} of them"
)


kept = Kept()
