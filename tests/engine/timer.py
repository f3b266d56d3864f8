"""A program: a real interval timer, whose handler raises, goes off while messages are sent and handled.

In a process of its own, because the exception comes up anywhere: in the locks of a coverage tool as well.
Prints how often the handler raised and how often that came out, and whether the context was as before each time.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType

from opentelemetry.context import get_current
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.trace import TracerProvider

from queueprop import Destination, Message, Settings
from queueprop.engine.engine import Engine
from queueprop.engine.operations import Operation

ORDERS = Destination("my-queue", "orders")
HEADERS = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "baggage": "user=7"}


class TimeLimit(Exception):
    """As a library's time limit."""


def expire(number: int, frame: FrameType | None) -> None:
    global raised
    raised += 1
    raise TimeLimit


def operations() -> list[Operation]:
    return [engine.process(ORDERS, Message(HEADERS)), engine.send(ORDERS, Message({}))]


def work(current: list[Operation]) -> None:
    for _ in range(1000):
        for operation in current:
            operation.open()
        for operation in reversed(current):
            operation.close()
        current[:] = operations()


engine = Engine(
    Settings(
        tracer_provider=TracerProvider(shutdown_on_exit=False),
        meter_provider=NoOpMeterProvider(),
        capture_headers=("x",),
        trust=lambda destination, message: True,
    )
)
with engine.process(ORDERS, Message({})):
    pass  # the SDK swallows whatever happens while it makes a tracer, so that is done beforehand
raised = came_out = restored = 0
signal.signal(signal.SIGALRM, expire)
before = get_current()
for turn in range(int(sys.argv[1])):
    current = operations()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.000_01 * (1 + turn))
        work(current)
    except TimeLimit:
        came_out += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for operation in reversed(current):
            operation.close()
    restored += get_current() is before
print(raised, came_out, restored)
