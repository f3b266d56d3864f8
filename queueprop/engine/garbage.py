"""What the garbage collector ends is ended beside it.

It runs in whichever thread asks for memory, wherever that stands: in a lock of the SDK's as well. A loop or a coroutine
that is collected there ends its span, and would wait for that lock for ever.
"""

from __future__ import annotations

import _thread
import gc
from collections.abc import Callable
from functools import partial
from types import BuiltinFunctionType

_LONGEST = 0.1
"""Seconds that the collector waits for what it has ended: nearly always nobody holds a lock, and it is over at once."""


class _Collecting(set[str]):
    """Not empty while garbage is collected: ``gc.callbacks`` are called with ``start`` or ``stop`` and some counts.

    Nothing of it is written in Python, where a signal's handler might be called: what that raises in a callback, a time
    limit for instance, would be lost.
    """

    start = property(None, set.update)
    stop = property(None, set.difference_update)


collecting = _Collecting()
_note = partial(setattr, collecting)
_enders: set[int] = set()
"""The threads in which something is being ended."""


def watch() -> None:
    """Notes from now on when garbage is collected. Once is enough; more is no harm."""
    if _note not in gc.callbacks:
        gc.callbacks.append(_note)


def is_ended_beside(end: Callable[[], object]) -> bool:
    """Runs ``end`` in a thread of its own, to be asked while ``collecting``. Returns whether it does.

    Under gevent and eventlet that is a greenlet, which has its turn later; and where no thread can be started, since
    the interpreter is ending, the answer is False.
    """
    if _thread.get_ident() in _enders:
        return False
    start = _thread.start_new_thread
    over = _thread.allocate_lock()
    over.acquire()

    def run() -> None:
        this = _thread.get_ident()
        _enders.add(this)
        try:
            end()
        finally:
            _enders.discard(this)
            over.release()

    try:
        start(run, ())
    except RuntimeError:
        return False
    if isinstance(start, BuiltinFunctionType):
        over.acquire(timeout=_LONGEST)
    return True
