"""A wrapper that compares as what it wraps: libraries compare callbacks, to find one or to refuse a second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import wrapt

F = TypeVar("F", bound=Callable[..., Any])


def equal_to(handler: F, wrapper: F) -> F:
    """``wrapper``, for a library that compares callbacks: it is equal to the handler, and has its hash."""
    return cast(F, _Equal(handler, wrapper))


class _Equal(wrapt.ObjectProxy):  # type: ignore[type-arg]
    def __init__(self, handler: Callable[..., Any], wrapper: Callable[..., Any]) -> None:
        super().__init__(handler)
        self._self_call = wrapper

    def __repr__(self) -> str:
        return repr(self.__wrapped__)  # a library may tell of it

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._self_call(*args, **kwargs)
