"""Faults of ours: each thing that an adapter says of its library to the kit, made to raise."""

from __future__ import annotations

from typing import Any

import pytest

from queueprop.kit.deliveries import Deliveries
from queueprop.kit.library import Library

OF_THE_LIBRARY = (
    *("publication", "message", "consumed_from", "pulled_from", "delivery_among", "native", "is_nothing"),
    *("is_message", "identity", "source", "pulls", "handed_over", "is_end", "leaves_alone"),
    *("settlement_of", "settled"),
)
OF_ITS_PUBLICATIONS = ("begin", "arguments", "end")


def break_word(monkeypatch: pytest.MonkeyPatch, library: Library, word: str) -> None:
    """Makes one of those, or a method of the library's own publications, raise whenever it is asked."""
    if not hasattr(library, word):
        _break_publications(monkeypatch, library, word)
        return
    monkeypatch.setattr(library, word, _raise)
    if word == "identity":
        monkeypatch.setattr(library, "deliveries", Deliveries(_raise))


def _break_publications(monkeypatch: pytest.MonkeyPatch, library: Library, word: str) -> None:
    plain = library.publication

    def publication(*given: Any) -> Any:
        read = plain(*given)
        if read is not None:
            setattr(read, word, _raise)
        return read

    monkeypatch.setattr(library, "publication", publication)


def _raise(*args: Any, **kwargs: Any) -> Any:
    raise LookupError("no")
