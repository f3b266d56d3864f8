"""What waits in RabbitMQ, with a double of pika's connection: what is asked of the broker, and what is not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pika = pytest.importorskip("pika")

from pika.exceptions import AMQPConnectionError, ChannelClosedByBroker  # noqa: E402
from pika.spec import BasicProperties  # noqa: E402

from queueprop.cli import urls  # noqa: E402
from queueprop.cli.peek import rabbitmq  # noqa: E402
from queueprop.cli.peek.sight import Sight  # noqa: E402
from queueprop.cli.refusal import Refused  # noqa: E402

BROKER = urls.parse("amqp://shop:pw@127.0.0.1/orders")


class _Channel:
    def __init__(self, *messages: BasicProperties) -> None:
        self.is_open = True
        self.is_stream = False
        self.messages = list(messages)
        self.given_back: list[Any] = []
        self.taken = 0

    def queue_declare(self, queue: str, passive: bool) -> Any:
        assert passive
        return SimpleNamespace(method=SimpleNamespace(message_count=len(self.messages)))

    def basic_get(self, queue: str) -> Any:
        if self.is_stream:
            self.is_open = False
            raise ChannelClosedByBroker(540, "NOT_IMPLEMENTED - basic.get not supported by stream queues")
        if self.taken == len(self.messages):
            return None, None, None
        self.taken += 1
        return self._delivery(self.taken)

    def basic_nack(self, delivery_tag: int, multiple: bool, requeue: bool) -> None:
        self.given_back.append((delivery_tag, multiple, requeue))

    def basic_qos(self, prefetch_count: int) -> None:
        self.prefetch = prefetch_count

    def consume(self, queue: str, arguments: dict[str, str], inactivity_timeout: float) -> Iterator[Any]:
        assert arguments == {"x-stream-offset": "first"}
        for tag in range(1, len(self.messages) + 1):
            yield self._delivery(tag)
        yield None, None, None

    def _delivery(self, tag: int) -> Any:
        method = SimpleNamespace(delivery_tag=tag, redelivered=tag == 2, routing_key="orders")
        return method, self.messages[tag - 1], b"secret"


@pytest.fixture
def channel(monkeypatch: pytest.MonkeyPatch) -> _Channel:
    channel = _Channel(
        BasicProperties(
            message_id="a", type="mail", app_id="shop", timestamp=1_700_000_000, headers={"x": 1}
        ),
        BasicProperties(
            headers={"id": "b", "task": "m.mail", "origin": "gen1", "queueprop-sent-at": 1_700_000_001.5}
        ),
        BasicProperties(),
    )
    monkeypatch.setattr(pika, "BlockingConnection", _connecting(lambda: channel))
    return channel


def _connecting(open_channel: Any) -> Any:
    class Connection:
        is_open = True

        def __init__(self, parameters: Any) -> None:
            assert parameters.virtual_host == "orders"

        def channel(self) -> Any:
            return open_channel()

        def close(self) -> None:
            self.is_open = False

    return Connection


def look(limit: int = 20, is_allowed: bool = True) -> tuple[Sight, list[str]]:
    said: list[str] = []
    return rabbitmq.look(BROKER, "orders", limit, is_allowed, said.append), said


def test_messages_are_given_back(channel: _Channel) -> None:
    """All of them at once, after the effects were said; what they tell of themselves is told."""
    sight, said = look()
    assert "Up to 20 of 3 in 'orders'" in said[0]
    assert channel.given_back == [(3, True, True)]
    first, second, third = sight.messages
    assert (first.id, first.name, first.sender, first.sent_at) == ("a", "mail", "shop", 1_700_000_000)
    assert (second.id, second.name, second.sender, second.sent_at) == ("b", "m.mail", "gen1", 1_700_000_001.5)
    assert second.place == "redelivered"
    assert (third.id, third.name, third.headers) == (None, "orders", {})


def test_not_more_than_the_limit(channel: _Channel) -> None:
    """What is beyond it is not touched."""
    look(limit=2)
    assert (channel.taken, channel.given_back) == (2, [(2, True, True)])


def test_nothing_without_a_yes(channel: _Channel) -> None:
    """No message is taken."""
    with pytest.raises(rabbitmq.NotAllowed, match="marked as redelivered"):
        look(is_allowed=False)
    assert channel.taken == 0


def test_an_empty_queue(channel: _Channel) -> None:
    """There are no effects to allow."""
    channel.messages = []
    assert look(is_allowed=False) == (Sight("RabbitMQ", [], 0), [])


def test_it_was_emptied_meanwhile(channel: _Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Consumers were quicker: nothing is given back."""
    monkeypatch.setattr(channel, "basic_get", lambda queue: (None, None, None))
    assert look()[0] == Sight("RabbitMQ", [], 3)
    assert channel.given_back == []


def test_a_stream_that_is_not_counted_yet(channel: _Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    """RabbitMQ counts a stream's messages late: where it may, it looks all the same."""
    channel.is_stream = True
    nothing = SimpleNamespace(method=SimpleNamespace(message_count=0))
    monkeypatch.setattr(channel, "queue_declare", lambda queue, passive: nothing)
    sight, _ = look()
    assert (len(sight.messages), sight.total) == (3, 3)


@pytest.mark.parametrize(("limit", "count"), [(2, 2), (20, 3)])
def test_a_stream(limit: int, count: int, channel: _Channel) -> None:
    """It takes no ``basic_get``, and is read from its beginning."""
    channel.is_stream = True
    sight, _ = look(limit)
    assert sight.library == "RabbitMQ, a stream"
    assert (len(sight.messages), channel.prefetch) == (count, limit)
    assert channel.given_back == []


def test_a_stream_that_says_nothing(channel: _Channel) -> None:
    """What was counted and does not come is not waited for."""
    channel.is_stream = True
    channel.consume = lambda *given, **options: iter([(None, None, None)])  # type: ignore[method-assign]
    assert look()[0].messages == []


def test_the_broker_says_no(channel: _Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, without the password: a queue that is not there, one that is somebody's alone, a lost connection."""

    def refuse(queue: str) -> Any:
        raise ChannelClosedByBroker(403, "ACCESS_REFUSED - in exclusive use")

    monkeypatch.setattr(channel, "basic_get", refuse)
    with pytest.raises(Refused, match=r"'orders' at amqp://shop:.* cannot be read.*exclusive use") as refused:
        look()
    assert "pw" not in str(refused.value)

    class Lost:
        def __init__(self, parameters: Any) -> None:
            raise AMQPConnectionError(OSError("gone"))

    monkeypatch.setattr(pika, "BlockingConnection", Lost)
    with pytest.raises(Refused, match=r"cannot be read: .*gone"):
        look()


def test_it_is_no_rabbitmq(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of another protocol is one line, too: pika's connector has errors that are no AMQPError."""
    from pika.adapters.utils.connection_workflow import AMQPConnectorStackTimeout

    def connect(parameters: Any) -> Any:
        raise AMQPConnectorStackTimeout("Timeout during AMQP handshake")

    monkeypatch.setattr(pika, "BlockingConnection", connect)
    with pytest.raises(
        Refused, match="cannot be read: AMQPConnectorStackTimeout: Timeout during AMQP handshake"
    ):
        look()


def test_a_connection_that_is_closed_already(channel: _Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not closed again."""
    connecting = _connecting(lambda: channel)
    connecting.is_open = False
    connecting.close = None
    monkeypatch.setattr(pika, "BlockingConnection", connecting)
    assert len(look()[0].messages) == 3


def test_without_pika(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what to install."""
    monkeypatch.setitem(sys.modules, "pika", None)
    with pytest.raises(Refused, match=r"queueprop\[pika\]"):
        look()
