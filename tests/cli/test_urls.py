"""URLs of brokers as people type them, and what is said of those that are none."""

from __future__ import annotations

import socket

import pytest

from queueprop.cli import urls
from queueprop.cli.refusal import Refused, reason


@pytest.mark.parametrize(
    ("text", "kind", "url", "places"),
    [
        ("redis://h", "redis", "redis://h", [("h", 6379)]),
        ("rediss://:pw@h:1/2", "redis", "rediss://:pw@h:1/2", [("h", 1)]),
        ("valkey://h:7/0", "redis", "redis://h:7/0", [("h", 7)]),
        ("amqp://u:pw@h/v", "rabbitmq", "amqp://u:pw@h/v", [("h", 5672)]),
        ("PYAMQP://h", "rabbitmq", "amqp://h", [("h", 5672)]),
        ("amqps://h", "rabbitmq", "amqps://h", [("h", 5671)]),
        ("kafka://a,b:1", "kafka", "kafka://a,b:1", [("a", 9092), ("b", 1)]),
    ],
)
def test_urls_that_are_understood(text: str, kind: str, url: str, places: list[tuple[str, int]]) -> None:
    """Each broker's schemes, default ports, and other names of the same."""
    broker = urls.parse(text)
    assert (broker.kind, broker.url, broker.places) == (kind, url, places)
    assert "pw" not in broker.shown


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("redi://h", "did you mean redis://?"),
        ("orders", "is no broker that queueprop knows"),
        ("http://u:pw@h/x?y", "'http://u:***@h/x' is no broker"),
        ("http://u@h", "'http://u@h' is no broker"),
        ("redis://h:port", "is no URL"),
        ("redis://h:99999", "is no URL"),
        ("redis://h:0", "has the port 0"),
        ("redis://[h", "is no URL"),
        ("amqp://", "names no host"),
        ("kafka://u:pw@h", "takes no user and password"),
        ("kafka://h:x", "has no host and port in 'h:x'"),
        ("kafka://h,", "has no host and port in ''"),
        ("kafka://h:99999", "has no host and port"),
    ],
)
def test_urls_that_are_refused(text: str, said: str) -> None:
    """One line, which says what is wrong and what is right, and shows no password."""
    with pytest.raises(Refused) as refused:
        urls.parse(text)
    assert said in str(refused.value)
    assert "pw" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_one_server_that_answers_is_enough() -> None:
    """Of several servers one may be down."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        urls.connect_once(urls.parse(f"kafka://127.0.0.1:1,127.0.0.1:{server.getsockname()[1]}"))


def test_nothing_answers() -> None:
    """A broker that is down is refused with the system's reason."""
    with pytest.raises(Refused, match=r"redis://127\.0\.0\.1:1 does not answer: ConnectionRefusedError"):
        urls.connect_once(urls.parse("redis://127.0.0.1:1"))


def test_reasons_are_one_line() -> None:
    """Whatever a library's error says, and its cause where it says nothing."""
    inner = ValueError("no\nsuch host")
    assert reason(inner) == "ValueError: no such host"
    assert reason(RuntimeError(inner)) == "RuntimeError: no such host"
    outer = RuntimeError()
    outer.__cause__ = inner
    assert reason(outer) == "ValueError: no such host"
    assert reason(RuntimeError()) == "RuntimeError"
    assert (
        reason(
            RuntimeError(
                (),
            )
        )
        == "RuntimeError: ()"
    )
