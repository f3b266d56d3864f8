"""The words of any library: what they refuse where a program is set up, and what they tell of where a message is at
hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from queueprop import Destination, Settings
from queueprop.kit.library import Source
from queueprop.testing import CapturedSpans

from .memory import Channel, words


@pytest.mark.parametrize(
    ("word", "wrong", "says"),
    [
        (
            words.publish,
            42,
            "traced_publish wants a channel's publish, not 42",
        ),
        (words.publish, lambda queue, body: None, "or a function that takes headers"),
        (words.get, "orders", "traced_get wants a channel's get, not 'orders'"),
        (words.get, Channel().publish, "traced_get wants a channel's get, not the function Channel.publish"),
        (words.settle, None, "traced_settle wants a channel's ack, not None"),
    ],
)
def test_what_is_no_call_is_refused(word: Callable[..., Any], wrong: Any, says: str) -> None:
    """At once, in one line with the right form."""
    with pytest.raises(TypeError) as refused:
        word(wrong, None)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_is_no_settings_is_refused() -> None:
    """By every word that wraps a call or a handler."""
    wrong: Any = {"propagation": "link"}
    for word, given in (
        (words.publish, Channel().publish),
        (words.get, Channel().get),
        (words.settle, Channel().ack),
    ):
        with pytest.raises(TypeError, match="wants Settings"):
            word(given, wrong)
    with pytest.raises(TypeError, match="wants Settings"):
        words.consumer(None, Source, None, wrong)


@pytest.mark.parametrize("handler", ["orders", Channel, 3])
def test_what_is_no_handler_is_refused(handler: Any) -> None:
    """When it is decorated, bare or with options."""
    form = r'wants a function or method, as in @traced_consumer\(queue="orders"\)'
    with pytest.raises(TypeError, match=form):
        words.consumer(handler, Source, None, None)
    with pytest.raises(TypeError, match=form):
        words.consumer(None, Source, None, None)(handler)


def test_what_is_no_destination_is_refused_or_not_used(
    captured_spans: CapturedSpans, caplog: pytest.LogCaptureFixture
) -> None:
    """Refused by a decorator; where a message is at hand it has the destination that it tells, and one line says so."""
    wrong: Any = "orders"
    with pytest.raises(TypeError, match="wants a Destination"):
        words.consumer(None, Source, wrong, None)
    channel = Channel()
    channel.publish("orders", "1")
    with words.message(channel.get("orders"), wrong, None):
        pass
    [span] = captured_spans
    assert span.attributes is not None
    assert span.attributes["messaging.destination.name"] == "orders"
    assert "it wants a Destination" in caplog.text


def test_what_is_no_loop_is_refused() -> None:
    """As a loop would."""
    with pytest.raises(TypeError, match="traced_messages wants a loop over parcels, not 7"):
        words.messages(7, None, None)  # type: ignore[call-overload]


def test_what_is_no_message_goes_on_without_a_span(
    captured_spans: CapturedSpans, caplog: pytest.LogCaptureFixture
) -> None:
    """One line says so, however often, in a loop, a batch and by itself."""
    for given in words.messages([b"x", b"y"], None, None):
        assert given in (b"x", b"y")
    with words.message(b"x", None, None) as span:
        assert not span.is_recording()
    with words.batch([b"x"], None, None), words.batch(8, None, None):  # type: ignore[arg-type]
        pass
    assert [it for span in captured_spans for it in span.links] == []
    assert caplog.text.count("it is no parcel, as get gives it, and has no span") == 1
    assert caplog.text.count("it wants a list of messages") == 1


def test_a_handler_that_is_given_no_message_runs(
    captured_spans: CapturedSpans, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a span, and one line says why."""
    handle: Any = words.consumer(lambda given: given, lambda _: None, None, Settings())  # type: ignore[arg-type, return-value]
    assert [handle(1), handle(2)] == [1, 2]
    assert len(captured_spans) == 0
    assert caplog.text.count("none of its arguments is a parcel, as get gives it") == 1


def test_a_destination_that_is_given_is_the_one(captured_spans: CapturedSpans) -> None:
    """Instead of what the message tells."""
    channel = Channel()
    channel.publish("orders", "1")
    with words.message(channel.get("orders"), Destination("memory", "mine"), None):
        pass
    [span] = captured_spans
    assert span.name == "process mine"
