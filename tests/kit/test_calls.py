"""Calls: a hook around a function, whatever it is; its arguments."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import sys
import types
from collections.abc import Callable
from typing import Any
from unittest.mock import create_autospec

from queueprop.kit import calls


class Channel:
    """A library's object."""

    def publish(self, body: str, *, headers: Any = None) -> str:
        """Publishes."""
        return f"{body} {headers}"

    async def send(self, body: str) -> str:
        return body


def with_headers(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
    assert isinstance(instance, Channel)
    return wrapped(*args, **{**kwargs, "headers": "ours"})


async def loudly(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
    return (await wrapped(*args, **kwargs)).upper()


def test_a_method_and_a_partial_of_one() -> None:
    """The hook is around it, and sees its object; the name and the documentation stay."""
    publish = calls.hooked(Channel().publish, with_headers)
    assert publish("hello") == "hello ours"
    assert (publish.__name__, publish.__doc__) == ("publish", "Publishes.")
    assert calls.hooked(functools.partial(Channel().publish, "hello"), with_headers)() == "hello ours"


def test_a_coroutine_function() -> None:
    """It is one still."""
    send = calls.hooked(Channel().send, loudly)
    assert asyncio.iscoroutinefunction(send)
    assert asyncio.run(send("hello")) == "HELLO"


def test_a_double() -> None:
    """What ``unittest.mock`` makes of a class has names that are no text: it is wrapped all the same."""
    double = create_autospec(Channel, instance=True)
    double.publish.return_value = "sent"
    double.publish.__qualname__ = double
    publish = calls.hooked(double.publish, lambda wrapped, instance, args, kwargs: wrapped(*args, **kwargs))
    assert publish("hello") == "sent"


def test_arguments() -> None:
    """By place or by name; what is replaced stands where it was."""
    assert calls.given(1, "headers", ("body", "h"), {}) == "h"
    assert calls.given(1, "headers", ("body",), {"headers": "h"}) == "h"
    assert calls.given(1, "headers", ("body",), {}) is None
    assert calls.replaced(1, "headers", "new", ("body", "h", 3), {"a": 1}) == (("body", "new", 3), {"a": 1})
    assert calls.replaced(1, "headers", "new", ("body",), {"a": 1}) == (("body",), {"a": 1, "headers": "new"})


def test_a_value_for_a_while() -> None:
    """It is as before afterwards; in a context that does not know it, nothing is complained of."""
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)
    with calls.during(variable, 1):
        assert variable.get() == 1
    assert variable.get() == 0
    elsewhere = calls.during(variable, 2)
    contextvars.copy_context().run(elsewhere.__enter__)
    elsewhere.__exit__(None, None, None)
    assert variable.get() == 0


def test_who_called_a_function_with_a_hook_around_it() -> None:
    """What we and wrapt have in between is nobody's caller."""
    found: list[types.FrameType | None] = []

    def hook(wrapped: Callable[..., Any], owner: Any, args: Any, kwargs: Any) -> Any:
        found.append(calls.caller(sys._getframe(1)))
        return wrapped(*args, **kwargs)

    def shop() -> int:
        return calls.hooked(int, hook)("7")

    assert shop() == 7
    (frame,) = found
    assert frame is not None
    assert (calls.module_of(frame), frame.f_code.co_name) == (__name__, "shop")
    assert calls.caller(None) is None


def test_what_a_partial_calls() -> None:
    """What it calls in the end, and that function's name, whatever name the partial was given."""
    bound = functools.partial(functools.partial(len, "one"))
    named: Any = functools.partial(len)
    named.__name__ = "length"
    assert calls.beneath_partials(bound) is len
    assert calls.beneath_partials(len) is len
    assert [calls.name_of(it) for it in (len, bound, named, 42)] == ["len", "len", "len", ""]
