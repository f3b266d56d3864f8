"""Queues on Redis: RQ's, Dramatiq's, BullMQ's and Celery's (kombu's). Reading them changes nothing."""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from queueprop.cli.peek import pickles
from queueprop.cli.peek.sight import Sight, Waiting, seconds_of, text_of
from queueprop.cli.refusal import Refused, reason
from queueprop.cli.urls import BrokerURL
from queueprop.wire import propagation

LIBRARIES = ("rq", "dramatiq", "bullmq", "celery")
_TIMEOUT = 10.0
_LONGEST = 16_777_216  # bytes of one message that are fetched: with Celery, the message is all there is


def look(broker: BrokerURL, queue: str, limit: int, library: str | None, with_bodies: bool) -> list[Sight]:
    """What waits in the queue of this name, of each library that has one; the next ones first.

    Raises Refused where none has, where Redis does not answer, and without redis-py.
    """
    try:
        from redis import Redis, RedisError
    except ModuleNotFoundError:
        raise Refused("peek needs redis for redis:// URLs: pip install redis") from None
    try:
        with Redis.from_url(
            broker.url, socket_timeout=_TIMEOUT, socket_connect_timeout=_TIMEOUT
        ) as connection:
            chosen = [_LOOKS[library]] if library else list(_LOOKS.values())
            found = (look(connection, queue, limit, with_bodies) for look in chosen)
            sights = [sight for sight in found if sight is not None]
    except (RedisError, OSError, ValueError) as error:
        raise Refused(f"{broker.shown} cannot be read: {reason(error)}") from None
    if not sights:
        names = f"of {library}" if library else "of RQ, Dramatiq, BullMQ or Celery"
        raise Refused(
            f"there is no queue {queue!r} {names} at {broker.shown} (an empty one of Dramatiq or Celery leaves no key)"
        )
    return sights


# RQ: a list of ids, and a hash for each job


def _rq(connection: Any, queue: str, limit: int, with_bodies: bool) -> Sight | None:
    key, scheduled = f"rq:queue:{queue}", f"rq:scheduled:{queue}"
    if not (connection.exists(key, scheduled) or connection.sismember("rq:queues", key)):
        return None
    ids = [(each, "") for each in connection.lrange(key, 0, limit - 1)]
    ids += [(each, "scheduled") for each in connection.zrange(scheduled, 0, limit - 1)]
    fields = ["meta", "description", "enqueued_at", "created_at", *(["data"] if with_bodies else [])]
    jobs = ((each, place, connection.hmget(b"rq:job:" + each, fields)) for each, place in ids[:limit])
    messages = [_rq_job(*job) for job in jobs]
    total = connection.llen(key) + connection.zcard(scheduled)
    return Sight("RQ", messages, total)


def _rq_job(id: bytes, place: str, found: Sequence[bytes | None]) -> Waiting:
    meta, description, enqueued_at, created_at, *data = found
    return Waiting(
        text_of(id),
        (text_of(description) or "").partition("(")[0] or None,  # what follows are its arguments
        _rq_headers(meta),
        sent_at=_utc(enqueued_at) or _utc(created_at),
        place=place,
        body=_inflated(data[0]) if data and data[0] else None,
    )


def _rq_headers(meta: bytes | None) -> object:
    if not meta:
        return None
    try:
        value = pickles.plain_value(meta)
    except pickles.Unreadable:
        return propagation.broken()
    return _carrier(value, "queueprop")


def _utc(stored: bytes | None) -> float | None:
    """RQ's times: ISO 8601, in UTC."""
    with contextlib.suppress(ValueError):
        moment = datetime.datetime.fromisoformat((text_of(stored) or "").removesuffix("Z"))
        return moment.replace(tzinfo=datetime.timezone.utc).timestamp()
    return None


def _inflated(data: bytes) -> bytes:
    import zlib

    with contextlib.suppress(zlib.error):
        return zlib.decompressobj().decompress(data, _LONGEST_BODY)
    return data[:_LONGEST_BODY]


_LONGEST_BODY = 4096


# Dramatiq: a list of ids, and one hash with all messages


def _dramatiq(connection: Any, queue: str, limit: int, with_bodies: bool) -> Sight | None:
    names = [(f"dramatiq:{queue}", ""), (f"dramatiq:{queue}.DQ", "delayed")]
    if not connection.exists(*(name for name, _ in names)):
        return None
    total = 0
    messages: list[Waiting] = []
    for name, place in names:
        total += connection.llen(name)
        ids = connection.lrange(name, 0, limit - len(messages) - 1) if len(messages) < limit else []
        stored = connection.hmget(f"{name}.msgs", ids) if ids else []
        messages += [_dramatiq_message(*pair, place) for pair in zip(ids, stored, strict=True)]
    return Sight("Dramatiq", messages, total)


def _dramatiq_message(id: bytes, stored: bytes | None, place: str) -> Waiting:
    message = _object(stored)
    headers = propagation.broken() if message is None else _carrier(message.get("options"), "queueprop")
    message = message or {}
    return Waiting(
        text_of(message.get("message_id")) or text_of(id),
        text_of(message.get("actor_name")),
        headers,
        sent_at=seconds_of(message.get("message_timestamp"), 0.001),
        place=place,
        body=stored,
    )


# BullMQ: lists and sorted sets of ids, and a hash for each job


def _bullmq(connection: Any, queue: str, limit: int, with_bodies: bool) -> Sight | None:
    prefix = f"bull:{queue}:"
    if not connection.exists(
        *(prefix + name for name in ("meta", "wait", "delayed", "prioritized", "paused"))
    ):
        return None
    total, ids = 0, []
    for name, place in (("wait", ""), ("paused", "paused")):  # the next is the last
        total += connection.llen(prefix + name)
        ids += [(each, place) for each in reversed(connection.lrange(prefix + name, -limit, -1))]
    for name in ("prioritized", "delayed"):
        total += connection.zcard(prefix + name)
        ids += [(each, name) for each in connection.zrange(prefix + name, 0, limit - 1)]
    fields = ["name", "opts", "timestamp", *(["data"] if with_bodies else [])]
    jobs = [each for each in ids if not each[0].startswith(b"0:")][:limit]  # a marker is no job
    messages = [_bullmq_job(id, place, connection.hmget(prefix.encode() + id, fields)) for id, place in jobs]
    return Sight("BullMQ", messages, total)


def _bullmq_job(id: bytes, place: str, found: Sequence[bytes | None]) -> Waiting:
    name, opts, timestamp, *data = found
    options = _object(opts)
    return Waiting(
        text_of(id),
        text_of(name),
        _bullmq_headers(options),
        sent_at=seconds_of(timestamp, 0.001),
        place=place,
        body=data[0] if data else None,
    )


def _bullmq_headers(options: Mapping[str, Any] | None) -> object:
    """As the adapter reads it, which cannot be imported without BullMQ."""
    found = (options or {}).get("tm")
    if found is None:
        return None
    carrier = _object(found) if isinstance(found, str) else None
    return propagation.broken() if carrier is None else carrier


# Celery and whatever else is kombu's: a list for each priority, whose items are the messages


_PRIORITIES = (
    "",
    "\x06\x163",
    "\x06\x166",
    "\x06\x169",
)  # kombu's default: the lower the number, the earlier


def _celery(connection: Any, queue: str, limit: int, with_bodies: bool) -> Sight | None:
    keys = [queue + priority for priority in _PRIORITIES]
    lists = [key for key in keys if connection.type(key) == b"list"]
    if not lists and not connection.exists(f"_kombu.binding.{queue}"):
        return None
    total = sum(connection.llen(key) for key in lists)
    stored = (item for key in lists for item in _from_the_right(connection, key))
    return Sight("Celery", [_kombu_message(item) for item in islice(stored, limit)], total)


def _from_the_right(connection: Any, key: str) -> Iterator[bytes]:
    """One by one: a message may be large. The next is the last of the list."""
    place = -1
    while (item := connection.lindex(key, place)) is not None:
        yield item
        place -= 1


def _kombu_message(stored: bytes) -> Waiting:
    message = _object(stored)
    if message is None or not isinstance(message.get("headers"), dict):
        return Waiting(None, None, propagation.broken(), body=stored)
    headers = message["headers"]
    properties = message["properties"] if isinstance(message.get("properties"), dict) else {}
    return Waiting(
        text_of(headers.get("id")) or text_of(properties.get("correlation_id")),
        text_of(headers.get("task")),
        headers,
        sender=text_of(headers.get("origin")),
        sent_at=sent_at_of_celery(headers) or seconds_of(properties.get("timestamp")),
        body=text_of(message.get("body")),
    )


def sent_at_of_celery(headers: Mapping[str, Any]) -> float | None:
    """Celery itself tells no time; queueprop's adapter does, beside the context."""
    return seconds_of(headers.get(SENT_AT))


SENT_AT = "queueprop-sent-at"


# What is stored is input


def _carrier(value: object, name: str) -> object:
    """The context in an option: None where there is none, and for junk what reads as broken."""
    found = value.get(name) if isinstance(value, Mapping) else None
    return found if found is None or isinstance(found, Mapping) else propagation.broken()


def _object(stored: bytes | str | None) -> dict[str, Any] | None:
    if not stored or len(stored) > _LONGEST:
        return None
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(stored)
        return value if isinstance(value, dict) else None
    return None


_Look = Callable[[Any, str, int, bool], "Sight | None"]
_LOOKS: Mapping[str, _Look] = {"rq": _rq, "dramatiq": _dramatiq, "bullmq": _bullmq, "celery": _celery}
