"""What stands for an object of somebody else's, to whoever is given it."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from queueprop.kit.equality import equal_to
from queueprop.kit.proxies import Proxy


class Order:
    """An object of a library's."""

    def __init__(self, items: list[str]) -> None:
        self.items = items


def handle(message: Any) -> Any:
    return message


def traced(message: Any) -> Any:
    return "traced", message


def pickled(given: Any) -> Any:
    return pickle.loads(pickle.dumps(given))


class TestProxies:
    """Any of them."""

    def test_copies_and_pickles_are_those_of_what_it_stands_for(self) -> None:
        """A shallow copy shares what it holds, a deep one and a pickled one do not; none of them is a proxy."""
        order = Order(["apples"])
        made = [make(Proxy(order)) for make in (copy.copy, copy.deepcopy, pickled)]
        assert [type(it) for it in made] == [Order] * 3
        assert [it.items for it in made] == [["apples"]] * 3
        assert [it.items is order.items for it in made] == [True, False, False]

    def test_what_cannot_be_copied_says_so_itself(self) -> None:
        """The very exception of what it stands for."""
        generator = (number for number in (1, 2))
        for make in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="generator"):
                make(Proxy(generator))

    def test_it_is_of_the_same_class_and_equal(self) -> None:
        """As any proxy: isinstance, equality and hash are those of what it stands for."""
        order = Order([])
        proxy: Any = Proxy(order)
        assert isinstance(proxy, Order)
        assert (proxy == order, order == proxy, proxy == Order([])) == (True, True, False)
        assert hash(proxy) == hash(order)


class TestCallbacks:
    """Which a library compares."""

    def test_it_is_the_handler_in_all_but_the_call(self) -> None:
        """Equal to it, told as it; copied and pickled it is the plain handler, as a function's copy is itself."""
        callback = equal_to(handle, traced)
        assert callback(1) == ("traced", 1)
        assert (callback == handle, hash(callback), repr(callback)) == (True, hash(handle), repr(handle))
        assert [make(callback) for make in (copy.copy, copy.deepcopy, pickled)] == [handle] * 3
        assert [type(make(callback)) for make in (copy.copy, copy.deepcopy, pickled)] == [type(handle)] * 3
