"""Celery's tasks as messages: the context in their headers, their destination, their times, which attempt it is.

What a worker knows of a task is a mapping (the *request*): of the second protocol it is the message's headers with
Celery's own keys beside the user's; of the first, the body, with the message's headers in ``headers``.
"""

from __future__ import annotations

import datetime
import re
import time
import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeGuard

from opentelemetry.util.types import AttributeValue

from queueprop import guard
from queueprop.engine import semconv
from queueprop.engine.message import Destination, Message, bounded, remembered
from queueprop.kit import calls
from queueprop.kit.kombu import broker_of
from queueprop.wire import propagation
from queueprop.wire.headers import text

SYSTEM = "celery"
"""``messaging.system``: the conventions have no value for Celery, and this is what its users would search for. The
broker's name is in ``server.address``.
"""

SENT_AT = "queueprop-sent-at"
"""A header of our own, in seconds since the epoch: Celery tells no time of sending."""

TASK_NAME = "celery.task.name"
_FUNCTION = "code.function.name"


class TaskMessage(NamedTuple):
    """What ``publish_hook`` and ``consume_hook`` are given."""

    name: str | None
    id: str | None
    args: Any
    kwargs: Any
    headers: Mapping[str, Any]
    """What the caller of a publish gave as headers; of a delivery, all that came with it, Celery's own included."""


# Of a delivery


def headers_in(request: Mapping[str, Any]) -> object:
    """Where the context of a task lies: at the top of its request, or (first protocol) in ``headers``."""
    nested = request.get("headers")
    if not nested or not _is_mapping(nested):
        return request
    return nested if propagation.read(request).reason == "missing" else request


def message_of(
    request: Mapping[str, Any], task: Any, name: Any, headers: object, reason: str | None
) -> Message:
    """A delivery of a task; ``task`` is the registered one, None where there is none of this name."""
    given = request.get(SENT_AT)
    sent_at = _seconds(_nested(request, SENT_AT) if given is None else given)
    eta, retries = request.get("eta"), request.get("retries")
    task_id, root_id = calls.text(request.get("id")), calls.text(request.get("root_id"))
    known = attributes_of(task, name)
    return Message(
        headers=headers,
        id=task_id,
        conversation_id=root_id,
        sent_at=sent_at,
        delay=None if sent_at is None or eta is None else _until(eta, sent_at),
        attempt=1 + retries if type(retries) is int and 0 <= retries < _MOST_RETRIES else 1,
        native=TaskMessage(calls.text(name), task_id, request.get("args"), request.get("kwargs"), request),
        attributes=known if reason is None else {**known, semconv.REASON: reason},
    )


_MOST_RETRIES = 2**31
"""A message may say anything, and an exporter logs a traceback for each number that it cannot send."""


def consumed_from(app: Any, request: Mapping[str, Any]) -> Destination:
    """The queue of a delivery, which tells only by which exchange and routing key it came."""
    info = request.get("delivery_info")
    info = info if _is_mapping(info) else {}
    route = info.get("exchange"), info.get("routing_key"), request.get("is_eager")
    latest = _latest.get(app)
    if latest is not None and latest[0] == route:
        return latest[1]
    exchange, routing_key, is_eager = route
    name = _queue_of(app, exchange, routing_key)
    if name is None and is_eager:
        name = calls.text(app.conf.task_default_queue)
    destination = _destination_at(name, *address_of(app))
    if "amqp" in vars(app):  # else its queues are not known yet
        _latest[app] = route, destination
    return destination


_latest: weakref.WeakKeyDictionary[Any, tuple[tuple[Any, Any, Any], Destination]] = (
    weakref.WeakKeyDictionary()
)
"""By application, how its latest delivery came, and where from: the next one nearly always comes so, too."""


def attributes_of(task: Any, name: Any) -> dict[str, AttributeValue]:
    found: dict[str, AttributeValue] = {}
    if isinstance(name, str):
        found[TASK_NAME] = bounded(name)
    function: Any = getattr(task, "run", None)
    if hasattr(function, "__qualname__"):
        found[_FUNCTION] = f"{getattr(function, '__module__', '')}.{function.__qualname__}"
    return found


def _is_mapping(value: object) -> TypeGuard[Mapping[str, Any]]:
    # What a worker made is a dict, and an abstract class takes several calls to say so.
    return type(value) is dict or isinstance(value, Mapping)


def _nested(request: Mapping[str, Any], name: str) -> Any:
    nested = request.get("headers")
    return nested.get(name) if _is_mapping(nested) else None


def _seconds(value: Any) -> float | None:
    if value is None:
        return None
    try:
        seconds = float(text(value) or "")
    except ValueError:
        return None
    return seconds if 0 <= seconds < float("inf") else None


def _until(eta: Any, since: float) -> float | None:
    """The seconds for which a task is meant to wait, by its ``eta``."""
    if not isinstance(eta, (str, datetime.datetime)):
        return None
    try:
        # Python 3.10 reads no Z.
        moment = (
            datetime.datetime.fromisoformat(re.sub("[Zz]$", "+00:00", eta)) if isinstance(eta, str) else eta
        )
        aware = moment if moment.tzinfo else moment.replace(tzinfo=datetime.timezone.utc)
        return max(0.0, aware.timestamp() - since)
    except (ValueError, OverflowError):
        return None


# Of a publish


def outgoing(message: Any) -> tuple[Mapping[str, Any], Any, Any]:
    """What a task that is about to be sent says of itself (``id``, ``retries``...), its arguments by place and by name.

    ``message`` is what Celery has made of it: ``(headers, properties, body, event)``.
    """
    headers, _, body, _ = message
    if type(body) is not tuple and isinstance(body, Mapping):  # of the first protocol
        return body, body.get("args"), body.get("kwargs")
    args, kwargs, *_ = body
    return headers, args, kwargs


def delay_of(eta: Any) -> float | None:
    """The seconds for which a task that is sent now is meant to wait."""
    return _until(eta, time.time())


def sent_to(
    app: Any, options: Mapping[str, Any], address: tuple[str | None, int | None] | None = None
) -> Destination:
    """Where ``send_task_message`` sends with these options, as it finds that out itself.

    ``address`` is that of the Connection that it goes through, where that is known.
    """
    queue, exchange, key = options.get("queue"), options.get("exchange"), options.get("routing_key")
    name = queue if isinstance(queue, str) else getattr(queue, "name", None)
    if exchange and key:
        name = _queue_of(app, getattr(exchange, "name", exchange), key)
    elif name is None:
        name = app.conf.task_default_queue if exchange is None else getattr(exchange, "name", exchange)
    return _destination_at(calls.text(name), *(address or address_of(app)))


# Destinations


def _queue_of(app: Any, exchange: Any, routing_key: Any) -> str | None:
    """The queue that is bound so, where it is known; else the routing key, which is the queue's name by default."""
    key = calls.text(routing_key) or ""
    if key[1:2] == ".":
        key = _DELAYED.sub("", key)
    if exchange and isinstance(exchange, str):
        queues = vars(app.amqp).get("queues") if "amqp" in vars(app) else None
        for queue in queues.values() if queues else ():
            if queue.routing_key == key and getattr(queue.exchange, "name", None) == exchange:
                return calls.text(queue.name)
    return key or calls.text(exchange) or None


_DELAYED = re.compile(r"\A(?:[01]\.){28}")
"""What Celery puts before the routing key of a message that waits in RabbitMQ (native delayed delivery)."""


@remembered
def _destination_at(name: str | None, host: str | None, port: int | None) -> Destination:
    return Destination(system=SYSTEM, name=name, server_address=host, server_port=port)


def address_of(app: Any) -> tuple[str | None, int | None]:
    """Host and port of the broker that an application reads from, without connecting to it."""
    found = _addresses.get(app)
    if found is None:
        try:
            found = broker_of(app.connection_for_read())[1:]
        except Exception as error:  # a transport that is not installed; Celery is about to say so
            if guard.is_not_ours(error):
                raise
            found = None, None
        _addresses[app] = found
    return found


_addresses: weakref.WeakKeyDictionary[Any, tuple[str | None, int | None]] = weakref.WeakKeyDictionary()
