"""What waits on Redis, with an embedded Valkey: in the forms of each library, and in none."""

from __future__ import annotations

import builtins
import json
import pickle
import sys
import time
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis

from queueprop.cli import urls
from queueprop.cli.peek import pickles, redis
from queueprop.cli.peek.sight import Context, Sight
from queueprop.cli.refusal import Refused

CARRIER = {"traceparent": f"00-{'1' * 32}-{'2' * 16}-01"}


@pytest.fixture
def connection(valkey_url: str) -> Iterator[Any]:
    with Redis.from_url(valkey_url) as connection:
        connection.flushall()
        yield connection


@pytest.fixture
def broker(valkey_url: str, connection: Any) -> urls.BrokerURL:
    return urls.parse(valkey_url)


def look(
    broker: urls.BrokerURL, limit: int = 20, library: str | None = None, with_bodies: bool = False
) -> Sight:
    (found,) = redis.look(broker, "orders", limit, library, with_bodies)
    return found


def _states(sight: Sight) -> list[str]:
    return [Context(message.headers).state for message in sight.messages]


def _job(connection: Any, id: str, **fields: Any) -> None:
    connection.hset(f"rq:job:{id}", mapping=fields)


def test_rq(broker: urls.BrokerURL, connection: Any) -> None:
    """Jobs in their order, then scheduled ones; ``meta`` as pickle, as JSON, as junk, and without a context."""
    connection.rpush("rq:queue:orders", "a", "b", "c", "d", "gone")
    connection.zadd("rq:scheduled:orders", {"e": 1})
    data = zlib.compress(b"arguments")
    _job(connection, "a", meta=pickle.dumps({"queueprop": CARRIER}), description="m.f('secret')", data=data)
    _job(
        connection,
        "b",
        meta=json.dumps({"queueprop": CARRIER}),
        enqueued_at="2026-01-01T00:00:00.500000Z",
        data=b"raw",
    )
    _job(connection, "c", meta=b"\x80\x04junk", created_at="2026-01-01T00:00:00Z")
    _job(connection, "d", meta=pickle.dumps({"queueprop": "junk"}), enqueued_at="yesterday")
    _job(connection, "e", meta=pickle.dumps({}))
    sight = look(broker)
    assert (sight.library, sight.total) == ("RQ", 6)
    assert [message.id for message in sight.messages] == ["a", "b", "c", "d", "gone", "e"]
    assert _states(sight) == ["ok", "ok", "malformed", "malformed", "missing", "missing"]
    assert [message.place for message in sight.messages][-2:] == ["", "scheduled"]
    assert sight.messages[0].name == "m.f"
    assert [message.sent_at for message in sight.messages][:4] == [None, 1767225600.5, 1767225600, None]
    assert {message.body for message in sight.messages} == {None}
    assert [message.body for message in look(broker, with_bodies=True).messages][:2] == [b"arguments", b"raw"]
    assert [message.id for message in look(broker, limit=2).messages] == ["a", "b"]


def test_an_empty_queue_of_rq(broker: urls.BrokerURL, connection: Any) -> None:
    """RQ knows it all the same."""
    connection.sadd("rq:queues", "rq:queue:orders")
    assert look(broker, library="rq") == Sight("RQ", [], 0)


def test_dramatiq(broker: urls.BrokerURL, connection: Any) -> None:
    """Messages in their order, then delayed ones; one that is gone, and junk."""
    message = {
        "message_id": "A",
        "actor_name": "mail",
        "message_timestamp": 1_700_000_000_000,
        "args": ["secret"],
    }
    connection.rpush("dramatiq:orders", "a", "b", "gone")
    connection.hset("dramatiq:orders.msgs", "a", json.dumps({**message, "options": {"queueprop": CARRIER}}))
    connection.hset("dramatiq:orders.msgs", "b", "[1]")
    connection.rpush("dramatiq:orders.DQ", "c")
    connection.hset("dramatiq:orders.DQ.msgs", "c", json.dumps({**message, "options": {}}))
    sight = look(broker)
    assert (sight.library, sight.total) == ("Dramatiq", 4)
    assert _states(sight) == ["ok", "malformed", "malformed", "missing"]
    first, second, _, last = sight.messages
    assert (first.id, first.name, first.sent_at) == ("A", "mail", 1_700_000_000)
    assert (second.id, last.place) == ("b", "delayed")
    assert len(look(broker, limit=3).messages) == 3


def test_bullmq(broker: urls.BrokerURL, connection: Any) -> None:
    """Waiting, paused, prioritized and delayed jobs; the next one first, and its marker is none."""
    connection.lpush("bull:orders:wait", "1", "2", "3", "0:0")
    connection.zadd("bull:orders:delayed", {"4": 1})
    context = json.dumps(CARRIER)
    for id, opts in [("1", {"tm": context}), ("2", {"tm": "junk"}), ("3", {"tm": 7}), ("4", {})]:
        fields = {
            "name": "mail",
            "opts": json.dumps(opts),
            "timestamp": 1_700_000_000_000,
            "data": '{"a": 1}',
        }
        connection.hset(f"bull:orders:{id}", mapping=fields)
    sight = look(broker)
    assert sight.library == "BullMQ"
    assert [message.id for message in sight.messages] == ["1", "2", "3", "4"]
    assert _states(sight) == ["ok", "malformed", "malformed", "missing"]
    assert (sight.messages[0].name, sight.messages[0].sent_at) == ("mail", 1_700_000_000)
    assert sight.messages[3].place == "delayed"
    assert look(broker, with_bodies=True).messages[0].body == b'{"a": 1}'


def _celery(task_id: str, **headers: Any) -> str:
    return json.dumps(
        {
            "body": "c2VjcmV0",
            "headers": {"id": task_id, "task": "mail", "origin": "gen1@shop", **headers},
            "properties": {"correlation_id": task_id, "timestamp": 1_700_000_000},
        }
    )


def test_celery(broker: urls.BrokerURL, connection: Any) -> None:
    """Tasks, the next one first, those of lower priorities behind it, and junk."""
    connection.lpush("orders", _celery("a", **CARRIER), _celery("b", **{redis.SENT_AT: 1_700_000_001}))
    connection.lpush("orders\x06\x163", "junk", json.dumps({"headers": {"id": 7}, "properties": 7}))
    sight = look(broker)
    assert (sight.library, sight.total) == ("Celery", 4)
    assert [message.id for message in sight.messages] == ["a", "b", None, None]
    assert _states(sight) == ["ok", "missing", "malformed", "missing"]
    first, second, *_ = sight.messages
    assert (first.name, first.sender, first.sent_at) == ("mail", "gen1@shop", 1_700_000_000)
    assert second.sent_at == 1_700_000_001
    assert [message.id for message in look(broker, limit=1).messages] == ["a"]
    assert look(broker, limit=3).messages[2].headers is not None


def test_an_empty_queue_of_celery(broker: urls.BrokerURL, connection: Any) -> None:
    """kombu knows its binding."""
    connection.sadd("_kombu.binding.orders", "orders")
    assert look(broker) == Sight("Celery", [], 0)


def test_the_times_are_those_of_the_adapters() -> None:
    """Celery's adapter writes the time of a publish under this name."""
    adapter = pytest.importorskip("queueprop.adapters.celery")
    assert adapter.SENT_AT == redis.SENT_AT
    assert pytest.importorskip("queueprop.adapters.rq").META_KEY == "queueprop"
    assert pytest.importorskip("queueprop.adapters.dramatiq").OPTION == "queueprop"


def test_several_libraries_have_one(broker: urls.BrokerURL, connection: Any) -> None:
    """All are shown, or the one that is named."""
    connection.rpush("rq:queue:orders", "a")
    connection.rpush("dramatiq:orders", "b")
    assert [it.library for it in redis.look(broker, "orders", 20, None, False)] == ["RQ", "Dramatiq"]
    assert look(broker, library="dramatiq").library == "Dramatiq"


def test_there_is_none(broker: urls.BrokerURL) -> None:
    """It says of whose there is none."""
    with pytest.raises(Refused, match="no queue 'orders' of RQ, Dramatiq, BullMQ or Celery"):
        look(broker)
    with pytest.raises(Refused, match="no queue 'orders' of rq at"):
        look(broker, library="rq")


def test_keys_of_another_type(broker: urls.BrokerURL, connection: Any) -> None:
    """What Redis says is told in one line."""
    connection.set("rq:queue:orders", "text")
    with pytest.raises(Refused, match="cannot be read: ResponseError: WRONGTYPE"):
        look(broker)


def test_without_redis_py(broker: urls.BrokerURL, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what to install."""
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(Refused, match="pip install redis"):
        look(broker)


def test_what_is_too_long_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is what is nested without end."""
    assert redis._object("[" * 100_000) is None
    monkeypatch.setattr(redis, "_LONGEST", 1)
    assert redis._object("{}") is None


# Pickles


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return builtins.exec, ("import sys; sys.a_pickle_ran = True",)


def test_a_pickle_runs_nothing() -> None:
    """What it would call is an empty stand-in, whatever is done to that; the plain values beside it are read."""
    value = {
        "evil": _Evil(),
        "moment": time.struct_time(range(9)),
        "error": ValueError("x"),
        "queueprop": CARRIER,
    }
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        found = pickles.plain_value(pickle.dumps(value, protocol))
        assert found["queueprop"] == CARRIER
        assert type(found["evil"]).__name__ == "_StandIn"
    assert not hasattr(sys, "a_pickle_ran")


def test_a_pickle_sets_nothing() -> None:
    """State is dropped."""
    assert isinstance(pickles.plain_value(pickle.dumps(_WithState())), pickles._StandIn)


class _WithState:
    def __init__(self) -> None:
        self.x = 1


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"junk",
        b"{",
        b"\x80\x04\x96\xff\xff\xff\xff\xff\xff\x00\x00.",  # a bytearray of 2**48 bytes
        b"\x82\x01.",  # an extension's code
        b"x" * 300_000,
    ],
)
def test_what_is_no_pickle(stored: bytes) -> None:
    """It is unreadable, and nothing else is raised; nor is room made for what it says it has."""
    with pytest.raises(pickles.Unreadable):
        pickles.plain_value(stored)
