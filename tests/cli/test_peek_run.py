"""``queueprop peek`` from its arguments to its exit status, and what it tells of a message."""

from __future__ import annotations

import json
from typing import Any

import pytest

from queueprop.cli import main, urls
from queueprop.cli.peek import kafka, rabbitmq, redis, sight
from queueprop.cli.peek.sight import Context, Sight, Waiting

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HEADERS = {"traceparent": f"00-{TRACE}-{SPAN}-01", "baggage": "tenant=sh%0Aop", "tracestate": "a=b"}


@pytest.fixture(autouse=True)
def looked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the looks of the brokers were asked for; each sees these messages."""
    asked: list[tuple[Any, ...]] = []
    messages = [
        Waiting(
            "1", "send\x1b_mail", HEADERS, sender="shop", sent_at=1.0, place="delayed", body=b"se\xffcret"
        ),
        Waiting(None, None, {"traceparent": f"00-{TRACE}-{SPAN}-00"}, body="text"),
        Waiting(None, None, None),
        Waiting(None, None, {"traceparent": "junk"}),
    ]

    def look(*given: Any) -> Any:
        asked.append(given)
        found = Sight("X", messages, 7, ["a note"])
        return [found] if isinstance(given[-1], bool) else found

    def look_at_rabbitmq(*given: Any) -> Any:
        asked.append(given)
        if not given[3]:
            raise rabbitmq.NotAllowed("It has effects.")
        given[4]("It has effects.")
        return Sight("X", [], 0)

    monkeypatch.setattr(urls, "connect_once", lambda broker: None)
    monkeypatch.setattr(redis, "look", look)
    monkeypatch.setattr(kafka, "look", look)
    monkeypatch.setattr(rabbitmq, "look", look_at_rabbitmq)
    return asked


def peek(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["peek", *arguments])
    assert isinstance(end.value.code, int)
    return end.value.code


def test_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """A message is a line, its baggage another; control characters of a message reach no terminal."""
    assert peek("redis://h", "orders") == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    lines = output.splitlines()
    assert lines[:2] == ["orders at redis://h (X): 4 of 7 waiting", "  a note"]
    assert lines[2].startswith(f"   1  trace {TRACE} span {SPAN}  ")
    assert lines[2].endswith(" d ago  send\\x1b_mail  id 1  from shop  delayed")
    assert lines[3] == "      baggage tenant=sh\\nop"
    assert lines[4] == f"   2  trace {TRACE} span {SPAN} not sampled"
    assert lines[5:7] == ["   3  no context", "   4  malformed context"]
    assert lines[7].startswith("2 of 4 without a context")
    assert "secret" not in output


def test_bodies_where_they_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    """And not otherwise."""
    peek("redis://h", "orders", "--bodies")
    assert "      body se\\xffcret\n" in capsys.readouterr().out
    peek("redis://h", "orders", "--bodies", "--json")
    bodies = [each["body"] for each in _messages(capsys.readouterr().out)[:2]]
    assert bodies == ["se\\xffcret", "text"]


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    """One object; what is not known is not in it."""
    assert peek("redis://u:pw@h", "orders", "--json") == 0
    output = capsys.readouterr().out
    assert "pw" not in output
    first, *_, last = _messages(output)
    assert first.pop("age") > 1e9
    assert first == {
        "id": "1",
        "name": "send\\x1b_mail",
        "sender": "shop",
        "place": "delayed",
        "sent_at": 1.0,
        "context": "ok",
        "trace_id": TRACE,
        "span_id": SPAN,
        "sampled": True,
        "tracestate": "a=b",
        "baggage": {"tenant": "sh\\nop"},
    }
    assert last == {"context": "malformed"}


def _messages(output: str) -> list[dict[str, Any]]:
    (queue,) = json.loads(output)["queues"]
    return list(queue["messages"])


def test_options_reach_the_broker(looked: list[tuple[Any, ...]]) -> None:
    """Each goes to the broker that it is for."""
    peek("redis://h", "orders", "--library", "rq", "--limit", "3")
    peek("kafka://h", "orders", "--group", "mailers")
    assert [each[1:] for each in looked] == [("orders", 3, "rq", False), ("orders", 20, "mailers")]


def test_rabbitmq_wants_a_yes(capsys: pytest.CaptureFixture[str]) -> None:
    """Its effects are said before they are had, and without it nothing is done."""
    assert peek("amqp://h", "orders") == 2
    output, errors = capsys.readouterr()
    assert (output, errors) == ("", "queueprop peek: It has effects. Nothing is done without --yes.\n")
    assert peek("amqp://h", "orders", "--yes") == 0
    output, errors = capsys.readouterr()
    assert (output, errors) == ("orders at amqp://h (X): 0 waiting\n", "queueprop peek: It has effects.\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["redi://h", "orders"],
        ["amqp://h", "orders", "--library", "rq"],
        ["redis://h", "orders", "--group", "mailers"],
    ],
)
def test_what_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """One line, and the status 2."""
    assert peek(*arguments) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("queueprop peek: ")
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (-1, "in the future"),
        (0.5, "0.5 s ago"),
        (90, "1.5 min ago"),
        (5400, "1.5 h ago"),
        (129600, "1.5 d ago"),
    ],
)
def test_ages(seconds: float, told: str) -> None:
    """In the unit that a person would take."""
    assert sight.age(seconds) == told


@pytest.mark.parametrize(
    "value", [None, True, "soon", float("nan"), float("inf"), -1, 0, 10**400, 1e20, [], b"\xff"]
)
def test_times_that_are_none(value: object) -> None:
    """A message may say anything."""
    assert sight.seconds_of(value) is None


def test_times_that_are() -> None:
    """Of any type, in any unit."""
    assert sight.seconds_of("1700000000123", 0.001) == pytest.approx(1_700_000_000.123)
    assert sight.seconds_of(b"17") == 17


def test_text_that_is_none() -> None:
    """Text is text, and bytes that are none are shown as they are."""
    assert [sight.text_of(value) for value in (None, 7, "", "a", b"\xff")] == [None, None, None, "a", "\\xff"]


def test_a_context() -> None:
    """It is read as a consumer would."""
    assert Context(HEADERS).trace_id == TRACE
    assert (Context(None).trace_id, Context(None).span_id, Context(None).state) == (None, None, "missing")
