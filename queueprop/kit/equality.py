"""A wrapper that compares as what it wraps: libraries compare callbacks, to find one or to refuse a second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])


def equal_to(handler: F, wrapper: F) -> F:
    """``wrapper``, for a library that compares callbacks: it is equal to the handler, and has its hash."""
    from queueprop.kit.proxies import Equal  # where one is made: most programs that trace by hand make none

    return cast(F, Equal(handler, wrapper))
