"""Kept: values beside somebody else's objects."""

from __future__ import annotations

import gc

import pytest

from queueprop.kit.kept import Kept, _Shelf, stand_in


class Holder:
    """Without a hash, as many libraries' messages are."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise ValueError("neither true nor false")


def test_by_holder_and_key() -> None:
    """A value is found by the very holder and an equal key, until it is taken."""
    kept: Kept[str] = Kept()
    one, other = Holder(), Holder()
    kept.put(one, 1, "a")
    kept.put(one, None, "b")
    kept.put(other, 1, "c")
    assert [kept.find(one, 1), kept.find(one), kept.find(other, 1), kept.find(other)] == ["a", "b", "c", None]
    assert (kept.take(one, 1), kept.take(one, 1), kept.find(one)) == ("a", None, "b")
    assert kept.keys(other) == [1]
    assert kept.keys(Holder()) == ()


def test_what_is_made_where_there_is_none() -> None:
    """It is made once for each holder and key, and kept."""
    kept: Kept[list[int]] = Kept()
    one, other = Holder(), Holder()
    made = kept.find_or_make(one, 1, list)
    assert kept.find_or_make(one, 1, list) is kept.find(one, 1) is made
    assert kept.find_or_make(one, 2, list) is not made
    assert kept.find_or_make(other, 1, list) is not made
    with pytest.raises(TypeError):
        kept.find_or_make(7, None, list)


def test_what_is_put_again_is_the_latest() -> None:
    """Keys are given in the order in which they were put last."""
    kept: Kept[int] = Kept()
    holder = Holder()
    for key in ("a", "b", "a"):
        kept.put(holder, key, 0)
    assert kept.keys(holder) == ["b", "a"]


def test_it_lives_as_long_as_its_holder() -> None:
    """What was kept of a holder that is gone is told, and kept no longer."""
    gone: list[str] = []
    kept: Kept[str] = Kept(when_gone=gone.append)
    holder, lasting = Holder(), Holder()
    kept.put(holder, 1, "a")
    kept.put(holder, 2, "b")
    kept.put(lasting, 1, "c")
    assert len(kept.holders()) == 2
    del holder
    gc.collect()
    assert gone == ["a", "b"]
    assert kept.holders() == [lasting] or len(kept.holders()) == 1


def test_a_holder_in_the_place_of_another() -> None:
    """Objects get the numbers of others that are gone: nothing of those is found under them."""
    kept: Kept[int] = Kept()
    for number in range(1000):
        holder = Holder()
        assert kept.find(holder) is None
        assert kept.take(holder) is None
        kept.put(holder, None, number)
    del holder
    assert kept.holders() == []


def test_a_holder_that_is_gone_takes_nothing_of_its_successor_s() -> None:
    """Where its end is told only when another object has its place."""
    kept: Kept[int] = Kept()
    holder, gone = Holder(), _Shelf(Holder())
    gone.number, gone.values = id(holder), {None: 0}
    kept.put(holder, None, 1)
    kept._forget(gone)
    assert kept.find(holder) == 1


def test_what_nobody_takes_is_bounded() -> None:
    """Of one holder the latest are kept, so many."""
    kept: Kept[int] = Kept(most=3)
    holder = Holder()
    for number in range(10):
        kept.put(holder, number, number)
    assert kept.keys(holder) == [7, 8, 9]
    kept.clear(holder)
    kept.clear(Holder())
    assert kept.keys(holder) == []


def test_what_takes_no_weak_reference() -> None:
    """It cannot be a holder."""
    kept: Kept[int] = Kept()
    with pytest.raises(TypeError):
        kept.put(7, None, 1)


def test_what_stands_for_an_object_without_weak_references() -> None:
    """It is the same each time, another one for each object, and goes with it; what lay there before is over."""

    class Slotted:
        __slots__ = ("left_over",)

    one, other = Slotted(), Slotted()
    one.left_over = "the library's"  # type: ignore[attr-defined]
    kept: Kept[str] = Kept()
    kept.put(stand_in(one, "left_over"), None, "a")
    assert kept.find(stand_in(one, "left_over")) == "a"
    assert kept.find(stand_in(other, "left_over")) is None
    del one
    gc.collect()
    assert kept.holders() == []
