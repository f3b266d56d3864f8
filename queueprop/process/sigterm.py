"""A handler for SIGTERM where it would kill by default, also where that default comes back later.

Servers put it back: uvicorn has handlers of its own while it serves, restores what was there before, and then raises
the signal again. So ``signal.signal`` is watched. A handler of anyone's is never touched, and whoever asks
(``signal.getsignal``, the answer of ``signal.signal``) hears of ours as what it stands for, the default.

Not seen is a default that is set past the module's attribute: by ``from signal import signal`` from before, or in C.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

import wrapt

from queueprop import guard

Handler = Callable[[int, FrameType | None], None]
Wrapped = Callable[..., Any]


def stand_in_for_default(handler: Handler, stands: Callable[[bool], None]) -> None:
    """Lets ``handler`` have every SIGTERM that would kill the process by default, from now on. Once a process.

    In another than the main thread no handler can be set: there it begins with the next default that is.

    Arguments:
        handler: stands where the default would.
        stands: is told whether it does, each time when a handler of SIGTERM is set.
    """
    stand_in = _StandIn(handler, stands)
    setattr(signal, "signal", wrapt.FunctionWrapper(signal.signal, stand_in.signal))  # noqa: B010
    setattr(signal, "getsignal", wrapt.FunctionWrapper(signal.getsignal, stand_in.getsignal))  # noqa: B010
    if not _is_default(signal.getsignal(signal.SIGTERM)):
        return
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    except ValueError:
        guard.log(logging.DEBUG, "configured outside the main thread: SIGTERM is left as it is")


class _StandIn:
    def __init__(self, handler: Handler, stands: Callable[[bool], None]) -> None:
        self._handler = handler  # one object: a method is another one at each access
        self._stands = stands

    def signal(
        self, wrapped: Wrapped, instance: object, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        given = {**dict(zip(("signalnum", "handler"), args, strict=False)), **kwargs}
        if len(args) + len(kwargs) == 2 and given.keys() == {"signalnum", "handler"}:
            signalnum, handler = given["signalnum"], given["handler"]
            if isinstance(signalnum, int) and signalnum == signal.SIGTERM:
                return self._set(wrapped, signalnum, handler)
        return self._shown(wrapped(*args, **kwargs))

    def _set(self, wrapped: Wrapped, signalnum: int, handler: Any) -> object:
        stands = _is_default(handler)
        previous = wrapped(signalnum, self._handler if stands else handler)
        self._stands(stands)
        return self._shown(previous)

    def getsignal(
        self, wrapped: Wrapped, instance: object, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        return self._shown(wrapped(*args, **kwargs))

    def _shown(self, handler: object) -> object:
        return signal.SIG_DFL if handler is self._handler else handler


def _is_default(handler: object) -> bool:
    return isinstance(handler, int) and handler == signal.SIG_DFL
