"""What stands for somebody else's object by wrapt's proxy. Imported where one is made: wrapt takes its time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import wrapt

if TYPE_CHECKING:
    _Proxy = wrapt.ObjectProxy[Any]
else:
    _Proxy = wrapt.ObjectProxy


class Proxy(_Proxy):
    """What it stands for is copied and pickled in its place: wrapt's own proxy raises NotImplementedError for each."""

    def __copy__(self) -> Any:
        return copy.copy(self.__wrapped__)

    def __deepcopy__(self, memo: Any) -> Any:
        return copy.deepcopy(self.__wrapped__, memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.__wrapped__.__reduce_ex__(protocol)


class Equal(Proxy):
    """Equal to the handler, and called as what wraps it; ``equality.py`` says what for."""

    def __init__(self, handler: Callable[..., Any], wrapper: Callable[..., Any]) -> None:
        super().__init__(handler)
        self._self_call = wrapper

    def __repr__(self) -> str:
        return repr(self.__wrapped__)  # a library may tell of it

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._self_call(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # A function is pickled by its name alone, and its copy is itself.
        return copy.copy, (self.__wrapped__,)
