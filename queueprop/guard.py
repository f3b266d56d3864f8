"""The guard: a fault of ours is logged once a place and never reaches the user's call.

Code that runs inside a user's publish or consume catches ``Exception`` around its own work and hands it to
``fault``; the call then goes on untraced. What is not ours goes through: a time limit of a library is often an
``Exception`` that a signal handler raises wherever the program stands, our code included.
"""

from __future__ import annotations

import functools
import logging
import os
import signal
from types import CodeType
from typing import Any

_logger = logging.getLogger("queueprop")

# Our own test suite sets it, so that a fault fails a test instead of hiding in a log. Nobody else should.
raise_faults = os.environ.get("_QUEUEPROP_RAISE_FAULTS") == "1"

_not_ours: tuple[type[BaseException], ...] = ()
_logged: set[str] = set()


def let_through(*types: type[BaseException]) -> None:
    """Names exceptions that a library raises from outside (its time limits): the guard never swallows them."""
    global _not_ours
    _not_ours = tuple(dict.fromkeys((*_not_ours, *types)))


def fault(where: str, error: Exception) -> None:
    """Takes a fault of ours: the first one of a place is logged with its traceback, later ones at DEBUG.

    ``where`` says what was being done, in words that a user understands ("starting the span of a publish").
    Raises ``error`` again when it is not ours, and always under queueprop's own test suite.
    """
    if raise_faults or is_not_ours(error):
        raise error
    if where in _logged:
        _logger.debug("queueprop failed again while %s: %r", where, error)
        return
    _logged.add(where)
    _logger.warning(
        "queueprop failed while %s; the message goes on without it. Please report this. (Said once.)",
        where,
        exc_info=error,
    )


def is_not_ours(error: Exception) -> bool:
    """Whether it was meant for the program and not for our code: a library's time limit, a signal handler's error."""
    return isinstance(error, _not_ours) or _comes_from_a_signal(error)


def mistake(where: str, text: str) -> None:
    """Tells the user of something to mend in their code or settings: one line, once a place and text."""
    if (where + text) in _logged:
        return
    _logged.add(where + text)
    _logger.warning("queueprop, %s: %s", where, text)


def _comes_from_a_signal(error: Exception) -> bool:
    """Whether a Python signal handler raised it: then it was meant for the program, not for our code."""
    handlers = _signal_handlers()
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code in handlers:
            return True
        trace = trace.tb_next
    return False


def _signal_handlers() -> set[CodeType]:
    codes = (_code_of(signal.getsignal(number)) for number in signal.valid_signals())
    return {code for code in codes if code is not None}


def _code_of(handler: Any) -> CodeType | None:
    """The code of a function, of a method, of an object that can be called, or of a partial of one."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    function = getattr(handler, "__func__", handler)
    # Not getattr: an enum has no __call__ (SIG_IGN is a member of one), and its metaclass has.
    calls = (vars(kind)["__call__"] for kind in type(handler).__mro__ if "__call__" in vars(kind))
    return getattr(function, "__code__", None) or getattr(next(calls, None), "__code__", None)
