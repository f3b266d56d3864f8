"""What the handlers of the scenarios do.

A handler may run in another process, so it is a name with options that travel as text, and what it saw is
told through the run's records. ``run`` and ``run_async`` are what a driver calls inside the library's own
callback.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from opentelemetry import baggage, trace

import queueprop
from integration.contract.telemetry import DEADLINE, RECORDS, tell, wait_until
from queueprop.logs import TraceContextFilter

HANDLER = "_QUEUEPROP_CONTRACT_HANDLER"


class HandlerError(Exception):
    """What a handler of the contract raises. ``marker`` stays with the object, wherever the library carries
    it.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.marker = uuid.uuid4().hex


@dataclass(frozen=True)
class Handler:
    """The name of an action and its options."""

    action: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def dump(self) -> str:
        return json.dumps([self.action, dict(self.options)])

    @staticmethod
    def load(text: str) -> Handler:
        action, options = json.loads(text)
        return Handler(action, options)


@dataclass(frozen=True)
class Delivery:
    """One message as the library gave it to the handler.

    ``publish`` sends a body on, with the library's header object if it is given one, to the driver's other
    queue.
    """

    body: str
    headers: Any
    publish: Callable[..., object]


def do(action: str, **options: Any) -> Handler:
    if action not in _ACTIONS:
        raise LookupError(f"no such action: {action}")
    return Handler(action, options)


def run(handler: Handler, delivery: Delivery) -> Any:
    return _ACTIONS[handler.action](delivery, **handler.options)


async def run_async(handler: Handler, delivery: Delivery) -> Any:
    """The same on an event loop: to meet others is then to await them."""
    if handler.action == "meet":
        return await _meet_async(delivery, **handler.options)
    await asyncio.sleep(0)
    return run(handler, delivery)


def observe(delivery: Delivery, note: str | None = None) -> None:
    """Tells what is current, and makes a span and a log record of the handler's own."""
    span = trace.get_current_span()
    context = span.get_span_context()
    with trace.get_tracer("contract.handler").start_as_current_span("work") as child:
        child_id = f"{child.get_span_context().span_id:016x}"
    tell(
        "seen",
        {
            "body": delivery.body,
            "pid": os.getpid(),
            "trace_id": f"{context.trace_id:032x}",
            "span_id": f"{context.span_id:016x}",
            "flags": int(context.trace_flags),
            "recording": span.is_recording(),
            "baggage": {key: str(value) for key, value in baggage.get_all().items()},
            "tracestate": context.trace_state.to_header(),
            "headers": plain(delivery.headers),
            "child_id": child_id,
            "logged_trace_id": _logged_trace_id(),
            "note": note,
        },
    )


def plain(headers: Any) -> Any:
    """Headers in a form that can be compared after it went through JSON."""
    if isinstance(headers, Mapping):
        return {str(key): plain(value) for key, value in headers.items()}
    if isinstance(headers, (list, tuple)):
        return [plain(item) for item in headers]
    return headers if headers is None or isinstance(headers, str) else repr(headers)


def deliveries(body: str) -> int:
    """How many handlers have told of this body so far, in whatever process."""
    with open(os.environ[RECORDS], "rb") as file:
        needle = b'{"kind": "seen", "it": {"body": ' + json.dumps(body).encode() + b","
        return sum(line.startswith(needle) for line in file)


def _twice(delivery: Delivery, each: str) -> None:
    """As a retry loop of the user's inside the handler."""
    for _ in range(2):
        _ACTIONS[each](delivery)


def _nothing(delivery: Delivery) -> None:
    pass


def _fail(delivery: Delivery, text: str = "the handler gave up", times: int | None = None) -> None:
    """Raises; with ``times``, only on that many first deliveries of the body."""
    observe(delivery)
    if times is None or deliveries(delivery.body) <= times:
        error = HandlerError(text)
        tell("raised", {"marker": error.marker})
        raise error


def _forward(delivery: Delivery) -> None:
    """Sends on what it got, with the headers that it got."""
    observe(delivery)
    delivery.publish(delivery.body, delivery.headers)


def _answer(delivery: Delivery) -> None:
    """Publishes something of its own, without headers."""
    observe(delivery)
    delivery.publish(f"answer to {delivery.body}")


def _meet(delivery: Delivery, count: int) -> None:
    """Waits inside the handler until ``count`` handlers are there, so that all of them are open at once."""
    observe(delivery, "before")
    _arrive()
    wait_until(lambda: _arrived() >= count, f"{count} handlers at once")
    observe(delivery, "after")


async def _meet_async(delivery: Delivery, count: int) -> None:
    observe(delivery, "before")
    _arrive()
    end = time.monotonic() + DEADLINE
    while _arrived() < count:
        assert time.monotonic() < end, f"waited in vain for {count} handlers at once"
        await asyncio.sleep(0.002)
    observe(delivery, "after")


def _executor(delivery: Delivery) -> None:
    """Hands work to a thread and to an executor."""
    observe(delivery)
    thread = threading.Thread(target=queueprop.carry_context(observe), args=(delivery, "thread"))
    thread.start()
    thread.join(DEADLINE)
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        executor.submit(queueprop.carry_context(observe), delivery, "executor").result(DEADLINE)
        executor.submit(observe, delivery, "without carry_context").result(DEADLINE)


def _kill(delivery: Delivery, times: int = 1) -> None:
    """Kills its own process, on that many first deliveries of the body."""
    observe(delivery)
    if deliveries(delivery.body) <= times:
        os.kill(os.getpid(), signal.SIGKILL)
        signal.pause()


def _check_current(delivery: Delivery) -> None:
    """As little as can show a leak: tells only what is wrong. The body ends in the trace id that is expected."""
    if delivery.body != f"{trace.get_current_span().get_span_context().trace_id:032x}":
        observe(delivery, "in another trace")


_ACTIONS: dict[str, Callable[..., Any]] = {
    "answer": _answer,
    "check current": _check_current,
    "executor": _executor,
    "fail": _fail,
    "forward": _forward,
    "kill": _kill,
    "meet": _meet,
    "nothing": _nothing,
    "observe": observe,
    "twice": _twice,
}


def _arrive() -> None:
    with open(f"{os.environ[RECORDS]}.arrived", "ab", buffering=0) as file:
        file.write(b".")


def _arrived() -> int:
    return os.stat(f"{os.environ[RECORDS]}.arrived").st_size


def _logged_trace_id() -> str | None:
    """The trace id on a log record that is made here, as an application's log handler would print it."""
    record = logging.makeLogRecord({"name": "contract.handler", "msg": "at work"})
    TraceContextFilter().filter(record)
    return getattr(record, "trace_id", None)
