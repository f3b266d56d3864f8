"""Reference counting alone frees an operation and its span when it is over: nothing waits for the collector."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import subprocess
import sys
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import INVALID_SPAN

from queueprop import Message, Settings, carry_context
from queueprop.engine.engine import Engine, engine_for
from queueprop.engine.operations import Operation
from queueprop.kit.handlers import run_inside
from queueprop.kit.iteration import iterate_inside
from tests.telemetry import ORDERS, TRACEPARENT


class Refused(Exception):
    """A failure of the application's. (Unlike a builtin exception it can be referred to weakly.)"""


@pytest.fixture
def engine() -> Engine:
    """Its spans go nowhere, so that nobody else holds them."""
    return engine_for(Settings(tracer_provider=TracerProvider(shutdown_on_exit=False)))


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def message() -> Message:
    return Message({"traceparent": TRACEPARENT, "baggage": "user=7"}, native=object())


OPERATIONS: dict[str, Callable[[Engine], Operation]] = {
    "send": lambda engine: engine.send(ORDERS, Message({})),
    "send of a batch": lambda engine: engine.send(ORDERS, [Message({}), Message({})]),
    "process": lambda engine: engine.process(ORDERS, message()),
    "process of a batch": lambda engine: engine.process(ORDERS, [message(), message()]),
    "receive": lambda engine: engine.receive(ORDERS),
    "settle": lambda engine: engine.settle(ORDERS, message()),
}


every_operation = pytest.mark.parametrize("make", OPERATIONS.values(), ids=OPERATIONS.keys())


@every_operation
def test_a_closed_operation_is_freed(engine: Engine, make: Callable[[Engine], Operation]) -> None:
    """As soon as the caller lets go of it, and its span with it."""
    operation = make(engine)
    span = weakref.ref(operation.open())
    operation.close()
    gone = weakref.ref(operation)
    del operation
    assert gone() is None
    assert span() is None or span() is INVALID_SPAN  # a receive has no span while it is open


@every_operation
def test_an_excluded_operation_is_freed(make: Callable[[Engine], Operation]) -> None:
    """Also where the destination is excluded and only the context passes."""
    operation = make(Engine(Settings(exclude=("orders",))))
    operation.open()
    operation.close()
    gone = weakref.ref(operation)
    del operation
    assert gone() is None


def test_a_message_keeps_its_span_only_as_long_as_it_lives(engine: Engine) -> None:
    """A late settle needs the process span's context: the message has it, and takes it along when it goes."""
    one = message()
    process = engine.process(ORDERS, one)
    span = weakref.ref(process.open())
    process.close()
    del process
    assert span() is not None
    del one
    assert span() is None


def test_a_failed_operation_is_freed(engine: Engine) -> None:
    """The exception does not keep the operation, nor the operation the exception."""
    process = engine.process(ORDERS, message())
    span = weakref.ref(process.open())
    error = Refused()
    gone = weakref.ref(error)
    process.close(error)
    del error
    assert gone() is None
    del process
    assert span() is None


class Seen:
    """What a handler's scope was, to see it go."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.operation: weakref.ref[Operation] | None = None
        self.error: weakref.ref[Refused] | None = None

    def begin(self, *args: Any) -> Operation:
        operation = self._engine.process(ORDERS, message())
        self.operation = weakref.ref(operation)
        return operation

    def refuse(self) -> Refused:
        error = Refused()
        self.error = weakref.ref(error)
        return error

    @property
    def is_gone(self) -> bool:
        assert self.operation is not None
        assert self.error is not None
        return self.operation() is None and self.error() is None


def test_a_failed_function_leaves_no_cycle(engine: Engine) -> None:
    """The exception of a handler is freed once the caller has dealt with it, and the operation too."""
    seen = Seen(engine)

    def handle() -> None:
        raise seen.refuse()

    with contextlib.suppress(Refused):
        run_inside(handle, seen.begin)()
    assert seen.is_gone


def test_a_failed_generator_leaves_no_cycle(engine: Engine) -> None:
    """The same for a generator."""
    seen = Seen(engine)

    def handle() -> Iterator[int]:
        yield 1
        raise seen.refuse()

    try:
        for _ in run_inside(handle, seen.begin)():
            pass
    except Refused:
        pass
    assert seen.is_gone


def test_an_exception_thrown_into_a_generator_leaves_no_cycle(engine: Engine) -> None:
    """Neither does what its consumer threw into it."""
    seen = Seen(engine)

    def handle() -> Generator[int, None, None]:
        yield 1

    steps = run_inside(handle, seen.begin)()
    next(steps)
    with contextlib.suppress(Refused):
        steps.throw(seen.refuse())
    del steps
    assert seen.is_gone


def test_an_exception_thrown_into_an_async_generator_leaves_no_cycle(engine: Engine) -> None:
    """The same for an async generator."""
    seen = Seen(engine)

    async def handle() -> AsyncGenerator[int, None]:
        yield 1

    async def caller() -> None:
        steps = run_inside(handle, seen.begin)()
        await anext(steps)
        with contextlib.suppress(Refused):
            await steps.athrow(seen.refuse())

    asyncio.run(caller())
    assert seen.is_gone


def test_a_failed_coroutine_leaves_no_cycle(engine: Engine) -> None:
    """The same for a coroutine function, and for a plain function around one."""
    seen = Seen(engine)

    async def handle() -> None:
        raise seen.refuse()

    async def caller(handler: Callable[[], Any]) -> None:
        with contextlib.suppress(Refused):
            await handler()

    for handler in (run_inside(handle, seen.begin), run_inside(lambda: handle(), seen.begin)):
        asyncio.run(caller(handler))
        assert seen.is_gone


def test_a_failed_async_generator_leaves_no_cycle(engine: Engine) -> None:
    """The same for an async generator."""
    seen = Seen(engine)

    async def handle() -> AsyncIterator[int]:
        yield 1
        raise seen.refuse()

    async def caller() -> None:
        try:
            async for _ in run_inside(handle, seen.begin)():
                pass
        except Refused:
            pass

    asyncio.run(caller())
    assert seen.is_gone


def test_a_loop_leaves_no_cycle(engine: Engine) -> None:
    """Each message of a loop is freed when the next one comes, and the last with the loop."""
    seen = Seen(engine)
    spans: list[weakref.ref[Operation]] = []

    for _ in iterate_inside([1, 2, 3], seen.begin):
        assert seen.operation is not None
        spans.append(seen.operation)
        assert [one() is None for one in spans[:-1]] == [True] * (len(spans) - 1)
    assert spans[-1]() is None


# Publishes to, and handles from, that many destinations that are made for one message each: those of a user's own and
# those of an adapter. What it adds to the process is printed, in MiB.
NAMES = """
import gc, os, sys
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from queueprop import Destination, Message, Settings
from queueprop.kit import rabbitmq
from queueprop.engine.engine import engine_for

reader = InMemoryMetricReader()
engine = engine_for(Settings(tracer_provider=TracerProvider(), meter_provider=MeterProvider([reader])))

def own(name):
    return Destination("my-queue", name), Destination("my-queue", name)

def adapter_s(name):
    server = ("rabbitmq", "broker.example", 5672)
    return rabbitmq.producer_destination("", name, *server), rabbitmq.consumer_destination("shop", "", name, *server)

def handle(number):
    to, source = (own, adapter_s)[number % 2](f"reply-{number:08}-4bf92f3577b34da6a3ce929d0e0e4736")
    headers = {}
    with engine.send(to, Message(headers)):
        pass
    with engine.process(source, Message(headers if number % 3 else {}, sent_at=1.0)):
        pass

def resident():
    gc.collect()
    with open("/proc/self/statm") as figures:
        return int(figures.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

for number in range(-4, 0):
    handle(number)
before = resident()
for number in range(int(sys.argv[1])):
    handle(number)
print(resident() - before)
"""


@pytest.mark.skipif(
    not os.path.exists("/proc/self/statm"), reason="this system does not tell its memory there"
)
def test_destinations_without_end(tmp_path: Path) -> None:
    """20,000 of them, each for one message, with traces and metrics of the real SDK: under 10 MiB, as any number."""
    result = subprocess.run(
        [sys.executable, "-c", NAMES, "20000"],
        cwd=tmp_path,
        env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    assert float(result.stdout) < 10


def test_a_carried_context_is_freed_with_its_function(engine: Engine) -> None:
    """carry_context keeps the span that it carries no longer than the function itself lives."""
    process = engine.process(ORDERS, message())
    span = weakref.ref(process.open())
    carried: Callable[[], None] = carry_context(lambda: None)
    process.close()
    del process
    carried()
    assert span() is not None
    del carried
    assert span() is None
