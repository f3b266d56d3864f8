"""Calls of a library's functions, as an adapter sees them: their arguments, and what is done around them."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Generic, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

Wrapped = Callable[..., Any]
Arguments = tuple[Any, ...]
Options = dict[str, Any]
Hook = Callable[[Wrapped, Any, Arguments, Options], Any]
"""What is done around a function: ``hook(wrapped, instance, args, kwargs)``, as in wrapt."""


def hooked(function: F, hook: Hook) -> F:
    """``function`` with ``hook`` around it, as a patch has it, for those who patch nothing.

    The hook's instance is the object whose method it is, None where it is nobody's. Around a ``functools.partial``
    goes what is inside it, so that the hook sees every argument.
    """
    if isinstance(function, functools.partial):
        partial = functools.partial(hooked(function.func, hook), *function.args, **function.keywords)
        return cast(F, partial)
    instance = getattr(function, "__self__", None)
    if inspect.iscoroutinefunction(hook):

        @wraps(function)
        async def call_later(*args: Any, **kwargs: Any) -> Any:
            return await hook(function, instance, args, kwargs)

        return cast(F, call_later)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return hook(function, instance, args, kwargs)

    return cast(F, call)


def beneath_partials(function: Any) -> Any:
    """What it calls, below the arguments that are bound already."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


def name_of(function: Any) -> str:
    """The name of a function, or of what a partial calls in the end; empty where there is none."""
    if isinstance(function, functools.partial):  # which may have been given a name of its own
        function = beneath_partials(function)
    return str(getattr(function, "__name__", ""))


def hook_methods(owner: Any, hooks: Iterable[tuple[str, Hook]]) -> None:
    """Puts hooks around methods of this very object, where there are none of ours yet: for those who patch nothing."""
    for name, hook in hooks:
        if not hasattr(vars(owner).get(name), _HOOKED):
            call = hooked(getattr(owner, name), functools.partial(_on, owner, hook))
            setattr(call, _HOOKED, True)
            setattr(owner, name, call)


def _on(owner: Any, hook: Hook, wrapped: Wrapped, instance: Any, args: Arguments, kwargs: Options) -> Any:
    return hook(wrapped, owner, args, kwargs)


_HOOKED = "_queueprop_hooked"


def wraps(function: Any) -> Callable[[T], T]:
    """``functools.wraps``, also for what has no name that a function could have: a double of ``unittest.mock``."""

    def decorate(wrapper: T) -> T:
        try:
            functools.update_wrapper(wrapper, function)  # type: ignore[arg-type]
        except TypeError:
            wrapper.__wrapped__ = function  # type: ignore[attr-defined]
        return wrapper

    return decorate


def bound(signature: Callable[..., T], args: Arguments, kwargs: Options) -> T | None:
    """What ``signature`` makes of a call's arguments; None where they do not fit: the library is about to say so."""
    try:
        return signature(*args, **kwargs)
    except TypeError:
        return None


def given(index: int, name: str, args: Arguments, kwargs: Options) -> Any:
    """The argument of this place or name; None where it is not given."""
    return args[index] if len(args) > index else kwargs.get(name)


def replaced(
    index: int, name: str, value: Any, args: Arguments, kwargs: Options
) -> tuple[Arguments, Options]:
    """The arguments with another value at this place or name."""
    if len(args) > index:
        return (*args[:index], value, *args[index + 1 :]), kwargs
    return args, {**kwargs, name: value}


def caller(frame: types.FrameType | None) -> types.FrameType | None:
    """The frame that called a function with a hook around it. ``frame`` is what called the hook: it, or what is between
    (wrapt has frames without its C extension, and so have we where nothing is patched).
    """
    while frame is not None and module_of(frame).startswith(("wrapt.", "queueprop.")):
        frame = frame.f_back
    return frame


def module_of(frame: types.FrameType) -> str:
    """The name of the module whose code a frame runs."""
    return str(frame.f_globals.get("__name__", ""))


named = tuple.__new__
"""``named(Kind, (field, ...))``: a NamedTuple, as its class makes one, but for the call of a function in between."""


def text(value: Any) -> str | None:
    """A text as it is; None for whatever else stands where a library has one."""
    return value if isinstance(value, str) else None


class during(Generic[T]):
    """A context variable's value for as long as a block runs: ``with during(variable, value): ...``"""

    __slots__ = ("_token", "_value", "_variable")

    def __init__(self, variable: ContextVar[T], value: T) -> None:
        self._variable = variable
        self._value = value

    def __enter__(self) -> None:
        self._token = self._variable.set(self._value)

    def __exit__(self, *error: object) -> None:
        # A coroutine that nobody awaits to its end is closed by the garbage collector, in whatever context that is.
        with suppress(ValueError):
            self._variable.reset(self._token)
