"""How publish calls of kombu's, and of subclasses of its classes, take their arguments by position."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Sequence
from typing import Any

from kombu.messaging import Producer


def parameters_of(method: Any) -> Sequence[str] | None:
    """The names of a bound method's positional parameters; None where it takes no headers."""
    function = getattr(method, "__func__", None)
    return _parameters(method) if function is None else _of_function(function)


@functools.lru_cache(maxsize=64)  # a publish costs less than a look at its signature
def _of_function(function: Callable[..., Any]) -> Sequence[str] | None:
    return _parameters(types.MethodType(function, function))


def _parameters(method: Callable[..., Any]) -> Sequence[str] | None:
    parameters = inspect.signature(method).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    if "headers" not in parameters and inspect.Parameter.VAR_KEYWORD not in kinds:
        return None
    names = _positional(method)
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        names += PUBLISH[len(names) :]  # a subclass that hands on what it is given
    return names


def _positional(function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [it.name for it in parameters if it.kind in (it.POSITIONAL_ONLY, it.POSITIONAL_OR_KEYWORD)]


PUBLISH = _positional(Producer.publish)[1:]
"""Those of ``Producer.publish`` itself."""
