"""The guard: a fault of ours is told once a place and never reaches the user's call; nor does the telling.

Code that runs inside a user's publish or consume catches ``Exception`` around its own work and hands it to
``fault``; the call then goes on untraced. What is not ours goes through: a time limit of a library is often an
``Exception`` that a signal handler raises wherever the program stands, our code included.

Logging is the program's own and may be broken (a handler that raises, a closed stderr), or ship records through
the very library that is traced. So all that queueprop says is said here: what raises meanwhile is dropped, nothing is
said from within, and what a log handler publishes meanwhile is not traced. A line that nobody would see goes to stderr.

It imports nothing of ours: every floor stands on it.
"""

from __future__ import annotations

import functools
import logging
import mmap
import os
import signal
import sys
import traceback
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from importlib import import_module
from itertools import islice
from types import CodeType
from typing import Any

from opentelemetry import context

_logger = logging.getLogger("queueprop")

# Our own test suite sets it, so that a fault fails a test instead of hiding in a log. Nobody else should.
raise_faults = os.environ.get("_QUEUEPROP_RAISE_FAULTS") == "1"

_not_ours: tuple[type[BaseException], ...] = ()

# How often each thing was to be said. A forked child has its parent's: what that one said is said. So is what its
# siblings say: they share a page. A program that is started as a part of this one is told by its environment.
_logged: dict[str, int] = {}
_MOST = 1000
"""Of that many different things; whoever has not noticed by then is not helped by more."""

_LONGEST_LINE = 1000
_LONGEST_NAME = 200


def _suppressing_keys() -> tuple[str, ...]:
    """The keys of a context under which ``suppress_instrumentation()`` of OpenTelemetry's says to trace nothing.

    It is not imported for them where it need not be: that takes longer than to import all of queueprop.
    """
    key = getattr(context, "_SUPPRESS_INSTRUMENTATION_KEY", None)
    if isinstance(key, str):
        return key, "suppress_instrumentation"
    from opentelemetry.instrumentation.utils import suppress_instrumentation

    with suppress_instrumentation():
        return tuple(
            name for name, value in context.get_current().items() if value is True and "suppress" in name
        )


SUPPRESSING_KEYS = _suppressing_keys()


def let_through(*types: type[BaseException]) -> None:
    """Names exceptions that a library raises from outside (its time limits): the guard never swallows them."""
    global _not_ours
    _not_ours = tuple(dict.fromkeys((*_not_ours, *types)))


def fault(where: str, error: Exception, about: object = "") -> None:
    """Takes a fault of ours, or of the SDK: the first one of a place is logged with its traceback, later ones at DEBUG.

    Raises ``error`` again when it is not ours, and always under queueprop's own test suite.

    Args:
        where: what was being done, in words that a user understands ("starting the span of a publish").
        error: the exception, as caught.
        about: which message or destination it was; told, but another one is no other place.
    """
    if raise_faults or is_not_ours(error):
        raise error
    times = _count(where)
    if times == 1:
        log(
            logging.WARNING,
            "queueprop failed while %s; the message goes on without it. %s (Said once.)",
            _named(where, about),
            _whose(error),
            exc_info=error,
        )
    elif times & (times - 1) == 0:
        # Not each time: a log that is shipped through a traced queue would feed itself.
        log(
            logging.DEBUG,
            "queueprop failed %d times while %s: %s",
            times,
            _named(where, about),
            _shown(error),
        )


def slip(where: str, error: Exception) -> None:
    """Takes what a function of the user's raised (a hook, a ``trust`` function): one line, once a place.

    ``where`` names that function. Raises ``error`` again when it was meant for the program.
    """
    if is_not_ours(error):
        raise error
    mistake(where, f"it raised {_shown(error)}{_place(error)}; the message goes on without it")


def environment() -> dict[str, str]:
    """A variable for a program that is started as a part of this one: there is not said again what was said here.

    It has a bound, however many programs have started one another: a system refuses to start one with too much.
    """
    said = dict.fromkeys((*(f"{_key(what):x}" for what in _logged), *_said_before))
    return {_SAID: ",".join(islice(said, _MOST))}


def is_not_ours(error: Exception) -> bool:
    """Whether it was meant for the program and not for our code: a library's time limit, a signal handler's error."""
    return isinstance(error, _not_ours) or _comes_from_a_signal(error)


def mistake(where: str, text: str, about: object = "") -> None:
    """Tells the user of something to mend in their code or settings: one line, once a place and text.

    It reaches a person: on stderr, where no handler of the program's logging would show it. Who wants none of it
    gives the logger ``queueprop`` a level, or a handler of its own without propagation.

    Args:
        where: what was being done.
        text: what is wrong, and what to do.
        about: which message or destination it was; told, but another one is no other place.
    """
    collected = _collected.get()
    if collected is not None:
        collected.append(one_line(f"{_named(where, about)}: {text}"))
        return
    if _count(f"{where}: {text}") > 1:
        return
    line = f"queueprop, {_named(where, about)}: {text}"
    log(logging.WARNING, "%s", one_line(line))
    if not _is_seen():
        with suppress(Exception):
            print(one_line(line), file=sys.stderr, flush=True)


@contextmanager
def collecting() -> Iterator[list[str]]:
    """What a user would be told inside goes into the list instead, also what was told before."""
    collected: list[str] = []
    token = _collected.set(collected)
    try:
        yield collected
    finally:
        _collected.reset(token)


def log(level: int, text: str, *arguments: object, exc_info: BaseException | None = None) -> None:
    """Logs, and raises nothing but what was meant for the program. What is said from within is not said."""
    if _saying.get():
        return
    token = _saying.set(True)
    try:
        if _logger.isEnabledFor(level):
            with suppressed():
                _logger.log(level, text, *arguments, exc_info=exc_info)
    except Exception as error:
        if is_not_ours(error):
            raise
    finally:
        _saying.reset(token)


@contextmanager
def suppressed() -> Iterator[None]:
    """What is done inside is not traced: by OpenTelemetry's switch for instrumentations, ours included."""
    token = context.attach(
        context.Context({**context.get_current(), **dict.fromkeys(SUPPRESSING_KEYS, True)})
    )
    try:
        yield
    finally:
        context.detach(token)


def one_line(text: object, longest: int = _LONGEST_LINE) -> str:
    """Somebody else's text as a part of a line: without control characters, and not longer than that."""
    shown = _text_of(text)
    if len(shown) > longest:
        shown = shown[:longest] + "..."
    return shown if shown.isprintable() else "".join(map(_escaped, shown))


_collected: ContextVar[list[str] | None] = ContextVar("queueprop-collected", default=None)

# A copy goes into the tasks that a handler makes: what they publish is not told of, either.
_saying: ContextVar[bool] = ContextVar("queueprop-saying", default=False)


def _count(what: str) -> int:
    """How often this was to be said by now; a thing too many counts as said."""
    if what not in _logged:
        if len(_logged) >= _MOST:
            return 3  # no first time, and none that is told
        _logged[what] = 1 if _is_said_by_another(_key(what)) else 0
    _logged[what] += 1
    return _logged[what]


def _key(what: str) -> int:
    return zlib.crc32(what.encode(errors="replace"))


def _is_said_by_another(key: int) -> bool:
    """Whether another process of this tree has said it; if not, this one is about to."""
    place = key % _PLACES * _PLACE
    with _one_at_a_time():
        sayer = int.from_bytes(_sayers[place : place + _PLACE], "big")
        if not sayer:
            _sayers[place : place + _PLACE] = os.getpid().to_bytes(_PLACE, "big")
    return f"{key:x}" in _said_before or sayer not in (0, os.getpid())


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Siblings that begin together look at the page one after another. One that died meanwhile is waited for once."""
    global _page_lock
    lock = _page_lock
    if lock is not None and not lock.acquire(True, _LONGEST_WAIT):
        lock = _page_lock = None
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


_LONGEST_WAIT = 0.1  # seconds, for what takes microseconds


_SAID = "_QUEUEPROP_SAID"
_LONGEST_KEY = 8  # hexadecimal digits
_said_before = frozenset(key for key in os.environ.get(_SAID, "").split(",") if 0 < len(key) <= _LONGEST_KEY)

_PLACE = 4  # bytes of a process id
_PLACES = 1 << 16


def _shared_page() -> Any:
    try:
        return mmap.mmap(-1, _PLACES * _PLACE)
    except OSError:
        return bytearray(_PLACES * _PLACE)


def _shared_lock() -> Any:
    """A lock for processes that are forked from this one, or None where the system has none.

    It is what ``multiprocessing.Lock`` is made of, and has neither a descriptor that a program may close nor a file;
    to import ``multiprocessing`` for it takes longer than to import all of queueprop.
    """
    try:
        kind = import_module("_multiprocessing").SemLock
        return kind(_SEMAPHORE, 1, 1, f"/queueprop-{os.getpid()}-{os.urandom(8).hex()}", True)
    except (ImportError, AttributeError, OSError, TypeError):
        return None


_SEMAPHORE = 1  # the kind that any thread may release

# Which process of those that were forked from one another has said a thing.
_sayers = _shared_page()
_page_lock = _shared_lock()


def _named(where: str, about: object) -> str:
    return f"{where} ({one_line(about, _LONGEST_NAME)})" if about else where


def _shown(error: BaseException) -> str:
    text = one_line(error, _LONGEST_NAME)
    return f"{type(error).__qualname__}: {text}" if text else type(error).__qualname__


def _text_of(value: object) -> str:
    try:
        return str(value)
    except Exception as error:
        if is_not_ours(error):
            raise
        return f"<{type(value).__name__}>"


def _escaped(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]


def _whose(error: BaseException) -> str:
    """Whom to tell: it may have been raised by code that is not ours (an SDK, a sampler, a header's class)."""
    raised_in = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        raised_in = str(frame.f_globals.get("__name__", ""))
    if not raised_in or raised_in.partition(".")[0] == "queueprop":
        return "Please report this."
    return f"It was raised in {raised_in}."


def _place(error: BaseException) -> str:
    """Where it was raised, behind what of it: `` (tasks.py:12)``."""
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        place = f" ({os.path.basename(frame.f_code.co_filename)}:{line})"
    return place


def _is_seen() -> bool:
    """Whether a warning of ours is shown where somebody may look, or somebody has asked not to be shown it."""
    try:
        if _logger.level > logging.WARNING or not _logger.propagate:
            return True
        if logging.root.manager.disable >= logging.WARNING:
            return True
        if _logger.disabled or not _logger.isEnabledFor(logging.WARNING):
            return False
        handlers = [*_logger.handlers, *logging.root.handlers]
        if not handlers:
            return logging.lastResort is not None
        return any(handler.level <= logging.WARNING and not _hides(handler) for handler in handlers)
    except Exception:
        return False


def _hides(handler: logging.Handler) -> bool:
    # OpenTelemetry's sends records to a Collector, which may well be what is not set up.
    return isinstance(handler, logging.NullHandler) or type(handler).__module__.startswith("opentelemetry.")


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
