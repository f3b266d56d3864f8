"""``queueprop peek``: looks, writes what it saw, and returns the exit status."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from queueprop import guard
from queueprop.cli import urls
from queueprop.cli.peek import kafka, rabbitmq, redis
from queueprop.cli.peek.sight import Context, Sight, Waiting, age, as_json, body_of
from queueprop.cli.quiet import quiet
from queueprop.cli.refusal import STATUS, Refused


def main(
    url: str,
    queue: str,
    *,
    limit: int,
    library: str | None = None,
    group: str | None = None,
    with_bodies: bool = False,
    is_allowed: bool = False,
    in_json: bool = False,
) -> int:
    """Shows what waits in a queue.

    Args:
        limit: how many messages of it.
        library: of the libraries on Redis, this one alone.
        group: of Kafka, what this group has not committed.
        with_bodies: shows bodies, too.
        is_allowed: where looking has effects, they may be had.
        in_json: writes one JSON object instead of lines.

    Returns 0, or 2 where it cannot be looked at, or has effects that are not allowed.
    """
    console, errors = Console(), Console(stderr=True)

    def say(text: str) -> None:
        errors.print(f"queueprop peek: {text}", markup=False, highlight=False, soft_wrap=True)

    try:
        broker = urls.parse(url)
        _check_options(broker, library, group)
        urls.connect_once(broker)
        with quiet(), guard.suppressed():
            if broker.kind == "redis":
                sights = redis.look(broker, queue, limit, library, with_bodies)
            elif broker.kind == "kafka":
                sights = [kafka.look(broker, queue, limit, group)]
            else:
                sights = [rabbitmq.look(broker, queue, limit, is_allowed, say)]
    except Refused as refused:
        say(str(refused))
        return STATUS
    except rabbitmq.NotAllowed as effects:
        say(f"{effects} Nothing is done without --yes.")
        return STATUS
    if in_json:
        print(json.dumps(_as_json(broker, queue, sights, with_bodies), indent=2))
    else:
        for sight in sights:
            _write(console, broker, queue, sight, with_bodies)
    return 0


def _check_options(broker: urls.BrokerURL, library: str | None, group: str | None) -> None:
    if library is not None and broker.kind != "redis":
        raise Refused(f"--library is for redis:// URLs, not {broker.shown}")
    if group is not None and broker.kind != "kafka":
        raise Refused(f"--group is for kafka:// URLs, not {broker.shown}")


def _as_json(
    broker: urls.BrokerURL, queue: str, sights: Sequence[Sight], with_bodies: bool
) -> dict[str, Any]:
    now = time.time()
    return {
        "broker": broker.shown,
        "queue": queue,
        "queues": [
            {
                "library": sight.library,
                "waiting": sight.total,
                "notes": list(sight.notes),
                "messages": [as_json(message, now, with_bodies) for message in sight.messages],
            }
            for sight in sights
        ],
    }


def _write(console: Console, broker: urls.BrokerURL, queue: str, sight: Sight, with_bodies: bool) -> None:
    def line(text: Text) -> None:
        console.print(text, soft_wrap=True)

    shown = len(sight.messages)
    count = f"{sight.total} waiting" if sight.total == shown else f"{shown} of {sight.total} waiting"
    line(
        Text.assemble((guard.one_line(queue, 200), "bold"), f" at {broker.shown} ({sight.library}): {count}")
    )
    for note in sight.notes:
        line(Text(f"  {note}", "dim"))
    now = time.time()
    without = 0
    for number, message in enumerate(sight.messages, 1):
        context = Context(message.headers)
        without += context.state != "ok"
        for each in _lines(number, message, context, now, with_bodies):
            line(each)
    if without:
        text = (
            "without a context that can be read: their producers are not instrumented, or write it wrongly."
        )
        line(Text(f"{without} of {shown} {text}", "red"))


def _lines(number: int, message: Waiting, context: Context, now: float, with_bodies: bool) -> list[Text]:
    first = Text(f"{number:4}  ")
    if context.state == "ok":
        first.append(f"trace {context.trace_id}", "green")
        first.append(f" span {context.span_id}", "dim")
        if not context.span.trace_flags.sampled:
            first.append(" not sampled", "yellow")
    else:
        first.append("no context" if context.state == "missing" else "malformed context", "red")
    told = [
        None if message.sent_at is None else age(now - message.sent_at),
        message.name,
        None if message.id is None else f"id {message.id}",
        None if message.sender is None else f"from {message.sender}",
        message.place or None,
    ]
    for each in filter(None, told):
        first.append(f"  {guard.one_line(each, 200)}")
    lines = [first]
    if context.baggage:
        pairs = ", ".join(f"{name}={value}" for name, value in context.baggage.items())
        lines.append(Text(f"      baggage {pairs}", "cyan"))
    if with_bodies:
        lines.append(Text(f"      body {body_of(message)}"))
    return lines
