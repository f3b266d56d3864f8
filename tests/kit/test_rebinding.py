"""Names that modules have imported."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest

from queueprop.kit.rebinding import rebind


class Lazy(types.ModuleType):
    """A module that is loaded when it is asked for an attribute."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(name)


class Nameless(types.ModuleType):
    """A module that does not tell its names."""

    __dict__: Any = property(lambda self: None)


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Any:
    made = types.ModuleType("a_worker")
    monkeypatch.setitem(sys.modules, "a_worker", made)
    return made


def test_every_name_of_every_module(worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is called there, by identity: what is only equal stays, and is not asked."""

    class Odd:
        def __eq__(self, other: object) -> bool:
            raise AssertionError

    old, new, odd = [1], [2], Odd()
    worker.orders = worker.mails = old
    worker.equal, worker.odd = [1], odd
    lazy = Lazy("a_lazy_one")
    object.__getattribute__(lazy, "__dict__")["orders"] = old
    monkeypatch.setitem(sys.modules, "a_lazy_one", lazy)
    monkeypatch.setitem(sys.modules, "no_module_at_all", None)
    monkeypatch.setitem(sys.modules, "one_without_names", Nameless("one_without_names"))
    rebind([(old, new)])
    assert worker.orders is worker.mails is object.__getattribute__(lazy, "__dict__")["orders"] is new
    assert (worker.equal, worker.odd) == ([1], odd)
    rebind([(new, old)])
    assert worker.orders is old


def test_a_package_that_keeps_its_names(worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours, which needs what it stands in for."""
    kept: Any = types.ModuleType("a_package.inside")
    monkeypatch.setitem(sys.modules, kept.__name__, kept)
    old, new = [1], [2]
    worker.orders = kept.orders = old
    rebind([(old, new)], but="a_package")
    assert (worker.orders, kept.orders) == (new, old)
