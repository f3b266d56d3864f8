"""A handler for SIGTERM where it would kill by default, also where that default comes back later.

Servers put it back: uvicorn has handlers of its own while it serves, restores what was there before, and then raises
the signal again. So ``signal.signal`` is watched. A handler of anyone's is never touched, and whoever asks
(``signal.getsignal``, the answer of ``signal.signal``) hears of ours as what it stands for, the default.

Not seen is a default that is set past the module's attribute: by ``from signal import signal`` from before, or in C.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from queueprop import guard

Handler = Callable[[int, FrameType | None], None]
Wrapped = Callable[..., Any]


def stand_in_for_default(handler: Handler) -> None:
    """Lets ``handler`` have every SIGTERM that would kill the process by default, from now on. Once a process.

    In another than the main thread no handler can be set: there it begins with the next default that is.
    """
    import wrapt  # here: every adapter asks ``is_ending``, and few processes come this far

    stand_in = _StandIn(handler)
    setattr(signal, "signal", wrapt.FunctionWrapper(signal.signal, stand_in.signal))  # noqa: B010
    setattr(signal, "getsignal", wrapt.FunctionWrapper(signal.getsignal, stand_in.getsignal))  # noqa: B010
    if not _is_default(signal.getsignal(signal.SIGTERM)):
        return
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    except ValueError:
        guard.log(logging.DEBUG, "configured outside the main thread: SIGTERM is left as it is")


def begin_end() -> None:
    """Called by that handler once it lets the process end."""
    global _ends_in
    _ends_in = os.getpid()


def is_ending() -> bool:
    """Whether this process ends in order only because there is that handler: by default it would be dead by now."""
    return _ends_in == os.getpid()


_ends_in = 0


class _StandIn:
    def __init__(self, handler: Handler) -> None:
        self._handler = handler  # one object: a method is another one at each access

    def signal(
        self, wrapped: Wrapped, instance: object, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        given = {**dict(zip(("signalnum", "handler"), args, strict=False)), **kwargs}
        if len(args) + len(kwargs) == 2 and given.keys() == {"signalnum", "handler"}:
            signalnum, handler = given["signalnum"], given["handler"]
            if isinstance(signalnum, int) and signalnum == signal.SIGTERM and _is_default(handler):
                return self._shown(wrapped(signalnum, self._handler))
        return self._shown(wrapped(*args, **kwargs))

    def getsignal(
        self, wrapped: Wrapped, instance: object, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        return self._shown(wrapped(*args, **kwargs))

    def _shown(self, handler: object) -> object:
        return signal.SIG_DFL if handler is self._handler else handler


def _is_default(handler: object) -> bool:
    return isinstance(handler, int) and handler == signal.SIG_DFL
