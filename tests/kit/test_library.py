"""Library: what holds for one that says no more than it must."""

from __future__ import annotations

from typing import Any

from queueprop import Destination, Message
from queueprop.kit.calls import Arguments, Options, Wrapped
from queueprop.kit.library import Library, Publication, Source


class Parcel:
    headers: dict[str, Any]


class Plain(Library):
    name = "plain"
    message_form = "parcel"
    message_type = Parcel

    def publication(self, producer: Any, args: Arguments, kwargs: Options, call: Wrapped) -> Publication:
        return Publication(Destination("plain"), Message())

    def message(self, native: Any) -> Message:
        return Message(native.headers)

    def consumed_from(self, native: Any, source: Source | None) -> Destination:
        return Destination("plain")


class Lookalikes(Plain):
    message_fields = ("headers", "tag")


PLAIN, LOOKALIKES = Plain(), Lookalikes()


class Double:
    """As somebody's tests have it."""

    headers = tag = None


def test_what_is_a_message() -> None:
    """What is of its type; where the library names fields, what has them all as well."""
    parcel = Parcel()
    assert PLAIN.is_message(parcel)
    assert not PLAIN.is_message(Double())
    assert LOOKALIKES.is_message(parcel)
    assert LOOKALIKES.is_message(Double())
    assert not LOOKALIKES.is_message(Plain())
    assert PLAIN.is_nothing(None)
    assert not PLAIN.is_nothing(parcel)


def test_the_message_among_arguments() -> None:
    """The first of its type, with nothing beside it; what only looks like one may be an argument of another kind."""
    parcel = Parcel()
    assert PLAIN.delivery_among([1, parcel, Parcel()]) == (parcel, None)
    assert LOOKALIKES.delivery_among([1, Double()]) is None


def test_pulls() -> None:
    """A call returns a message or nothing, from what it was called on; an error of it is one."""
    channel, parcel = Double(), Parcel()
    assert PLAIN.source(channel, (), {}, print).via is channel
    assert PLAIN.native(parcel) is parcel
    assert PLAIN.pulls(parcel) == (parcel,)
    assert PLAIN.pulls(None) == ()
    assert PLAIN.pulled_from([], None) == Destination("plain")
    assert PLAIN.handed_over(parcel, lambda given: None) is parcel
    assert not PLAIN.is_end(LookupError())
    assert PLAIN.identity(parcel) == (parcel, None)


def test_nobody_else_traces_and_nothing_is_settled() -> None:
    """A library without acks says nothing of them, and leaves nothing to others."""
    assert not PLAIN.leaves_alone(Double())
    assert PLAIN.settlement_of(Parcel(), None) is None
    assert PLAIN.settled(Double(), (), {}, print) is None
