"""run_inside: a handler of any kind runs inside its scope, and is otherwise what it was."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import inspect
import types
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from typing import Any
from unittest.mock import AsyncMock

import pytest
from opentelemetry import trace
from opentelemetry.context import get_current
from opentelemetry.trace import StatusCode

from queueprop import Message
from queueprop.engine.engine import Engine
from queueprop.engine.operations import Process
from queueprop.kit.handlers import carried, prepared, run_inside
from tests.telemetry import (
    CREATION,
    ORDERS,
    TRACE,
    TRACEPARENT,
    Telemetry,
    attributes,
    current_ids,
    ids,
    parent,
)


def trace_id() -> int:
    """The trace that is current, 0 where there is none."""
    return trace.get_current_span().get_span_context().trace_id


class Decorator:
    """As an adapter makes one: each call is the processing of one delivery."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.begun = 0

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Process:
        self.begun += 1
        return self._engine.process(ORDERS, Message({"traceparent": TRACEPARENT}))

    def __call__(self, handler: Any) -> Any:
        return run_inside(handler, self.begin)


@pytest.fixture
def traced(telemetry: Telemetry) -> Decorator:
    return Decorator(telemetry.engine())


class TestFunctions:
    """Plain functions and callables."""

    def test_it_runs_inside(self, telemetry: Telemetry, traced: Decorator) -> None:
        """Arguments and result go through; the span is that of the call, and the caller's context is back after it."""

        def handle(a: int, *, b: int) -> tuple[int, int, int]:
            return a, b, trace_id()

        before = get_current()
        assert traced(handle)(1, b=2) == (1, 2, TRACE)
        assert get_current() is before
        assert parent(telemetry.only("process orders")) == CREATION

    def test_every_call_is_a_delivery(self, telemetry: Telemetry, traced: Decorator) -> None:
        """Decorated once, called twice: two spans."""
        handle: Callable[[], None] = traced(lambda: None)
        handle()
        handle()
        assert len(telemetry.spans) == 2

    def test_its_exception_is_the_same(self, telemetry: Telemetry, traced: Decorator) -> None:
        """The span is an ERROR, the caller gets the very exception."""
        error = ValueError("theirs")

        def handle() -> None:
            raise error

        with pytest.raises(ValueError, match="theirs") as raised:
            traced(handle)()
        assert raised.value is error
        assert telemetry.only().status.status_code is StatusCode.ERROR

    def test_it_looks_as_before(self, traced: Decorator) -> None:
        """Name, docstring, signature, attributes and __wrapped__ are those of the handler."""

        def handle(a: int, *, b: str = "x") -> float:
            """Handles."""
            return 0.0

        handle.queue = "orders"  # type: ignore[attr-defined]
        decorated = traced(handle)
        assert (decorated.__name__, decorated.__doc__, decorated.queue) == ("handle", "Handles.", "orders")
        assert inspect.signature(decorated) == inspect.signature(handle)
        assert decorated.__wrapped__ is handle

    def test_methods(self, telemetry: Telemetry, traced: Decorator) -> None:
        """Decorated in the class: self is bound as usual; a bound method can be decorated as well."""

        class Worker:
            @traced
            def handle(self, a: int) -> tuple[object, int, int]:
                return self, a, trace_id()

            def plain(self, a: int) -> tuple[object, int, int]:
                return self, a, trace_id()

        worker = Worker()
        assert worker.handle(1) == (worker, 1, TRACE)
        assert traced(worker.plain)(2) == (worker, 2, TRACE)
        assert len(telemetry.spans) == 2

    @pytest.mark.parametrize("kind", [staticmethod, classmethod])
    def test_static_and_class_methods(self, telemetry: Telemetry, traced: Decorator, kind: Any) -> None:
        """Above @staticmethod or @classmethod as well as below it: called on the class or an object, it works."""

        def handle(*args: Any) -> int:
            assert args[-1] == 7
            assert len(args) == (1 if kind is staticmethod else 2)
            return trace_id()

        above: Any = type("Above", (), {"handle": traced(kind(handle))})
        below: Any = type("Below", (), {"handle": kind(traced(handle))})
        for owner in (above, below):
            assert owner.handle(7) == owner().handle(7) == TRACE
        assert len(telemetry.spans) == 4

    def test_partials(self, telemetry: Telemetry, traced: Decorator) -> None:
        """A functools.partial has no name; it is decorated all the same."""
        assert traced(functools.partial(lambda a, b: (a, b, trace_id()), 1))(2) == (1, 2, TRACE)
        assert len(telemetry.spans) == 1

    def test_callable_objects(self, telemetry: Telemetry, traced: Decorator) -> None:
        """An object with __call__."""

        class Handler:
            def __call__(self, a: int) -> tuple[int, int]:
                return a, trace_id()

        assert traced(Handler())(1) == (1, TRACE)
        assert len(telemetry.spans) == 1

    def test_classes_and_builtins(self, telemetry: Telemetry, traced: Decorator) -> None:
        """Whatever can be called."""
        assert traced(dict)(a=1) == {"a": 1}
        assert traced(len)([1]) == 1
        assert len(telemetry.spans) == 2

    def test_what_begin_leaves_alone(self, telemetry: Telemetry) -> None:
        """`begin` may give None: that call runs as it is, of whatever kind the handler is."""

        def nothing(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            return None

        def generator() -> Iterator[int]:
            yield 1

        async def coroutine() -> int:
            return 2

        async def async_generator() -> AsyncIterator[int]:
            yield 3

        async def run() -> list[int]:
            return [await run_inside(coroutine, nothing)()] + [
                one async for one in run_inside(async_generator, nothing)()
            ]

        assert run_inside(lambda: 0, nothing)() == 0
        assert list(run_inside(generator, nothing)()) == [1]
        assert asyncio.run(run()) == [2, 3]

    @pytest.mark.usefixtures("guarded")
    def test_a_begin_that_raises(self, telemetry: Telemetry, caplog: pytest.LogCaptureFixture) -> None:
        """A message that we cannot read is handled, untraced, and the log says so once."""

        def broken(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise LookupError("begin")

        async def coroutine() -> int:
            return 8

        def generator() -> Generator[int, None, None]:
            yield 9

        handle: Callable[[], int] = run_inside(lambda: 7, broken)
        assert [handle(), handle()] == [7, 7]
        assert asyncio.run(run_inside(coroutine, broken)()) == 8
        assert list(run_inside(generator, broken)()) == [9]
        assert len(caplog.records) == 1

    def test_asynchronous_mocks(self, telemetry: Telemetry, traced: Decorator) -> None:
        """What says that it is a coroutine function is awaited as one."""
        assert asyncio.run(traced(AsyncMock(return_value=7))()) == 7
        assert len(telemetry.spans) == 1


class TestCoroutines:
    """Coroutine functions, and what returns a coroutine."""

    def test_the_body_runs_inside(self, telemetry: Telemetry, traced: Decorator) -> None:
        """Across its awaits; nothing is current after it, nor before it is awaited."""

        async def handle(a: int) -> tuple[int, list[int]]:
            seen = [trace_id()]
            await asyncio.sleep(0)
            seen.append(trace_id())
            return a, seen

        async def run() -> object:
            before = get_current()
            body = traced(handle)(1)
            assert get_current() is before
            result = await body
            assert get_current() is before
            return result

        assert asyncio.run(run()) == (1, [TRACE, TRACE])
        assert len(telemetry.spans) == 1

    def test_it_is_a_coroutine_function_still(self, traced: Decorator) -> None:
        """Libraries look at that to tell how to call a handler; so it is for generators and async generators."""

        async def coroutine() -> None: ...

        async def async_generator() -> AsyncIterator[int]:
            yield 1

        def generator() -> Iterator[int]:
            yield 1

        assert inspect.iscoroutinefunction(traced(coroutine))
        assert inspect.isasyncgenfunction(traced(async_generator))
        assert inspect.isgeneratorfunction(traced(generator))
        assert inspect.iscoroutinefunction(traced(functools.partial(coroutine)))

    def test_its_exception_is_the_same(self, telemetry: Telemetry, traced: Decorator) -> None:
        """ERROR, and the very exception."""
        error = ValueError("theirs")

        async def handle() -> None:
            raise error

        with pytest.raises(ValueError, match="theirs") as raised:
            asyncio.run(traced(handle)())
        assert raised.value is error
        assert telemetry.only().status.status_code is StatusCode.ERROR

    def test_cancelled(self, telemetry: Telemetry, traced: Decorator) -> None:
        """A cancel in the middle ends the span, and the task is cancelled as it would be."""

        async def handle() -> None:
            await asyncio.sleep(60)

        async def run() -> bool:
            task = asyncio.create_task(traced(handle)())
            await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            return task.cancelled()

        assert asyncio.run(run())
        assert "CancelledError" in attributes(telemetry.only())["error.type"]

    def test_abandoned(self, telemetry: Telemetry, traced: Decorator) -> None:
        """A coroutine that is closed in the middle ends its span without an error."""

        class Never:
            def __await__(self) -> Generator[None, None, None]:
                yield

        async def handle() -> None:
            await Never()

        before = get_current()
        body: Coroutine[Any, Any, None] = traced(handle)()
        body.send(None)
        body.close()
        assert telemetry.only().status.status_code is StatusCode.UNSET
        assert get_current() is before

    def test_a_hundred_tasks(self, telemetry: Telemetry) -> None:
        """Interleaved, each sees its own message's trace, never another's."""

        def begin(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Process:
            return engine.process(ORDERS, Message({"traceparent": f"00-{args[0]:032x}-{1:016x}-01"}))

        async def handle(number: int) -> bool:
            seen = []
            for _ in range(3):
                await asyncio.sleep(0)
                seen.append(trace_id())
            return seen == [number] * 3

        async def run() -> list[bool]:
            handler = run_inside(handle, begin)
            return list(await asyncio.gather(*(handler(number) for number in range(1, 101))))

        engine = telemetry.engine()
        assert asyncio.run(run()) == [True] * 100
        assert len(telemetry.spans) == 100

    @pytest.mark.parametrize("kind", ["function", "lambda", "callable object", "partial of one"])
    def test_a_plain_callable_around_an_async_handler(
        self, telemetry: Telemetry, traced: Decorator, kind: str
    ) -> None:
        """Its body comes when the coroutine is awaited: it runs inside, and the span lasts until it ends."""

        async def handle(a: int) -> tuple[int, int]:
            await asyncio.sleep(0)
            return a, trace_id()

        def function(a: int) -> Awaitable[tuple[int, int]]:
            return handle(a)

        class Handler:
            async def __call__(self, a: int) -> tuple[int, int]:
                return await handle(a)

        handlers: dict[str, Callable[[int], Awaitable[tuple[int, int]]]] = {
            "function": function,
            "lambda": lambda a: handle(a),
            "callable object": Handler(),
            "partial of one": functools.partial(function),
        }

        async def run() -> object:
            before = get_current()
            body = traced(handlers[kind])(1)
            assert get_current() is before
            assert len(telemetry.spans) == 0
            result = await body
            assert get_current() is before
            return result

        assert asyncio.run(run()) == (1, TRACE)
        assert len(telemetry.spans) == 1

    def test_a_plain_callable_whose_coroutine_raises(self, telemetry: Telemetry, traced: Decorator) -> None:
        """The error of the body is the span's."""

        async def handle() -> None:
            raise ValueError("theirs")

        with pytest.raises(ValueError, match="theirs"):
            asyncio.run(traced(lambda: handle())())
        assert telemetry.only().status.status_code is StatusCode.ERROR

    @pytest.mark.filterwarnings("ignore::RuntimeWarning")
    def test_a_coroutine_of_another_class(self, telemetry: Telemetry, traced: Decorator) -> None:
        """What a compiled handler returns is a coroutine by its methods alone: it is awaited inside."""

        async def body() -> int:
            return trace_id()

        class Compiled(Coroutine[Any, Any, Any]):
            def __init__(self) -> None:
                self._body = body()

            def send(self, value: Any) -> Any:
                return self._body.send(value)

            def throw(self, *error: Any) -> Any:
                return self._body.throw(*error)

            def close(self) -> None:
                self._body.close()

            def __await__(self) -> Generator[Any, Any, Any]:
                return self._body.__await__()

        handler = traced(lambda: Compiled())

        async def run() -> int:
            found: int = await handler()
            return found

        assert asyncio.run(run()) == TRACE
        assert parent(telemetry.only("process orders")) == CREATION

    @pytest.mark.parametrize("fails", [False, True])
    def test_a_task_that_was_begun(self, telemetry: Telemetry, traced: Decorator, fails: bool) -> None:
        """It is returned as it is; the span lasts until it is done, and has its error."""

        async def body() -> int:
            await asyncio.sleep(0)
            if fails:
                raise LookupError("no such order")
            return trace_id()

        begun: list[asyncio.Task[int]] = []

        def handler() -> asyncio.Task[int]:
            begun.append(asyncio.ensure_future(body()))
            return begun[0]

        async def run() -> None:
            returned = traced(handler)()
            assert returned is begun[0]
            assert trace_id() == 0
            assert len(telemetry.spans) == 0
            [found] = await asyncio.gather(returned, return_exceptions=True)
            assert fails or found == TRACE

        asyncio.run(run())
        span = telemetry.only("process orders")
        assert span.status.status_code is (StatusCode.ERROR if fails else StatusCode.UNSET)
        assert attributes(span).get("error.type") == ("LookupError" if fails else None)

    def test_a_task_that_is_dropped(self, telemetry: Telemetry, traced: Decorator) -> None:
        """It is never done, and its span ends all the same."""

        async def run() -> None:
            future = traced(asyncio.get_running_loop().create_future)()
            assert len(telemetry.spans) == 0
            del future

        asyncio.run(run())
        gc.collect()
        assert telemetry.only("process orders").status.status_code is StatusCode.UNSET

    @pytest.mark.usefixtures("guarded")
    def test_what_cannot_be_waited_for(
        self, telemetry: Telemetry, traced: Decorator, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is returned as it is, its span ends at once, and the log tells of it."""

        class Odd:
            _asyncio_future_blocking = False

            def add_done_callback(self, callback: Any) -> None:
                raise RuntimeError("the loop is closed")

        odd = Odd()
        assert traced(lambda: odd)() is odd
        telemetry.only("process orders")
        assert "failed while waiting for the end of a handler" in caplog.text
        assert trace_id() == 0

    def test_a_generator_that_is_awaited(self, telemetry: Telemetry, traced: Decorator) -> None:
        """``types.coroutine`` makes a coroutine function of one, which it is still."""

        @types.coroutine
        def handler() -> Generator[Any, Any, int]:
            yield from asyncio.sleep(0).__await__()
            return trace_id()

        async def run() -> int:
            found: int = await traced(handler)()
            return found

        assert asyncio.run(run()) == TRACE

    def test_a_coroutine_that_is_never_awaited(self, telemetry: Telemetry, traced: Decorator) -> None:
        """Closed or dropped before its first step: nothing stays current, and its span, once begun, ends."""

        async def handle() -> None: ...

        before = get_current()
        around: Callable[[], Coroutine[Any, Any, None]] = lambda: handle()  # noqa: E731
        for handler in (traced(handle), traced(around)):
            handler().close()
            handler()
            gc.collect()
        assert get_current() is before
        assert len(telemetry.spans) == traced.begun


class TestGenerators:
    """Generators: their body is inside, what their consumer does between two steps is not."""

    def test_the_body_runs_inside(self, telemetry: Telemetry, traced: Decorator) -> None:
        """From its first step to its end, not between the steps; values, sent values and the result go through."""
        seen: list[int] = []

        def handle(a: int) -> Generator[int, str, str]:
            seen.append(trace_id())
            got = yield a
            seen.append(trace_id())
            got += yield a + 1
            seen.append(trace_id())
            return got

        steps = traced(handle)(1)
        before = get_current()
        assert len(telemetry.spans) == 0
        assert next(steps) == 1
        assert get_current() is before
        assert steps.send("x") == 2
        assert get_current() is before
        with pytest.raises(StopIteration) as end:
            steps.send("y")
        assert end.value.value == "xy"
        assert seen == [TRACE] * 3
        assert get_current() is before
        assert telemetry.only().status.status_code is StatusCode.UNSET

    def test_one_that_is_never_started(self, telemetry: Telemetry, traced: Decorator) -> None:
        """No step, no delivery, no span."""

        def handle() -> Iterator[int]:
            yield 1

        traced(handle)().close()
        traced(handle)()
        assert (traced.begun, len(telemetry.spans)) == (0, 0)

    def test_its_exception(self, telemetry: Telemetry, traced: Decorator) -> None:
        """ERROR, the very exception, and the context as it was."""
        error = ValueError("theirs")

        def handle() -> Iterator[int]:
            yield 1
            raise error

        before = get_current()
        with pytest.raises(ValueError, match="theirs") as raised:
            list(traced(handle)())
        assert raised.value is error
        assert telemetry.only().status.status_code is StatusCode.ERROR
        assert get_current() is before

    def test_throw(self, telemetry: Telemetry, traced: Decorator) -> None:
        """What is thrown in arrives inside; the body may catch it and go on, or let it out."""
        seen: list[object] = []

        def handle() -> Generator[int, None, None]:
            try:
                yield 1
            except KeyError as error:
                seen.append((error, trace_id()))
            yield 2

        error = KeyError("in")
        steps = traced(handle)()
        next(steps)
        assert steps.throw(error) == 2
        assert seen == [(error, TRACE)]
        with pytest.raises(ValueError, match="out"):
            steps.throw(ValueError("out"))
        assert attributes(telemetry.only())["error.type"] == "ValueError"

    def test_close(self, telemetry: Telemetry, traced: Decorator) -> None:
        """Closing in the middle runs the body's finally inside the span, and is no failure."""
        seen: list[int] = []

        def handle() -> Iterator[int]:
            try:
                yield 1
            finally:
                seen.append(trace_id())

        before = get_current()
        steps = traced(handle)()
        next(steps)
        steps.close()
        assert seen == [TRACE]
        assert telemetry.only().status.status_code is StatusCode.UNSET
        assert get_current() is before

    def test_dropped(self, telemetry: Telemetry, traced: Decorator) -> None:
        """A consumer that breaks out of its loop drops the generator: the span ends then."""

        def handle() -> Iterator[int]:
            yield 1
            yield 2

        before = get_current()
        for _ in traced(handle)():
            break
        assert telemetry.only().status.status_code is StatusCode.UNSET
        assert get_current() is before

    def test_a_body_that_fails_while_it_is_closed(self, telemetry: Telemetry, traced: Decorator) -> None:
        """An exception of its finally is the span's and the caller's."""

        def handle() -> Iterator[int]:
            try:
                yield 1
            finally:
                raise ValueError("cleanup")

        steps = traced(handle)()
        next(steps)
        with pytest.raises(ValueError, match="cleanup"):
            steps.close()
        assert telemetry.only().status.status_code is StatusCode.ERROR

    def test_a_body_that_will_not_be_closed(self, traced: Decorator) -> None:
        """It yields when it should end: Python's own RuntimeError, as without us."""

        def handle() -> Generator[int, None, None]:
            try:
                yield 1
            except GeneratorExit:
                yield 2

        plain: Generator[int, None, None] = handle()
        ours: Generator[int, None, None] = traced(handle)()
        for steps in (plain, ours):
            next(steps)
            with pytest.raises(RuntimeError, match="generator ignored GeneratorExit"):
                steps.close()

    def test_what_close_returns(self, traced: Decorator) -> None:
        """From Python 3.13 on, close() gives what the body returns: the same with and without us."""

        def handle() -> Generator[int, None, str]:
            with contextlib.suppress(GeneratorExit):
                yield 1
            return "closed"

        plain, ours = handle(), traced(handle)()
        next(plain)
        next(ours)
        assert ours.close() == plain.close()  # type: ignore[func-returns-value]

    def test_wrong_arguments(self, traced: Decorator) -> None:
        """The TypeError of a wrong call is the same; nothing is current after it."""

        def handle(a: int) -> Iterator[int]:
            yield a

        before = get_current()
        with pytest.raises(TypeError, match="argument"):
            next(traced(handle)())
        assert get_current() is before

    def test_two_interleaved(self, telemetry: Telemetry) -> None:
        """Two generators stepped in turn each see their own trace, and the consumer neither."""

        def begin(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Process:
            return engine.process(ORDERS, Message({"traceparent": f"00-{args[0]:032x}-{1:016x}-01"}))

        def handle(number: int) -> Iterator[bool]:
            for _ in range(3):
                yield trace_id() == number

        engine = telemetry.engine()
        handler = run_inside(handle, begin)
        before = get_current()
        for pair in zip(handler(1), handler(2), strict=True):
            assert pair == (True, True)
            assert get_current() is before
        assert len(telemetry.spans) == 2

    def test_an_object_whose_call_is_a_generator(self, telemetry: Telemetry, traced: Decorator) -> None:
        """Its body is inside, as that of a function; partials of it, too."""

        class Handler:
            def __call__(self, a: int) -> Iterator[int]:
                yield trace_id()

        assert list(traced(Handler())(1)) == [TRACE]
        assert list(traced(functools.partial(Handler(), 1))()) == [TRACE]
        assert len(telemetry.spans) == 2


class TestAsyncGenerators:
    """Async generators, by the same rule."""

    def test_the_body_runs_inside(self, telemetry: Telemetry, traced: Decorator) -> None:
        """Not what is done between the steps; sent values go through."""
        seen: list[int] = []

        async def handle(a: int) -> AsyncGenerator[int, str]:
            seen.append(trace_id())
            got = yield a
            await asyncio.sleep(0)
            seen.append(trace_id())
            yield len(got)

        async def run() -> None:
            before = get_current()
            steps = traced(handle)(1)
            assert await anext(steps) == 1
            assert get_current() is before
            assert await steps.asend("xyz") == 3
            assert get_current() is before
            with pytest.raises(StopAsyncIteration):
                await anext(steps)
            assert get_current() is before

        asyncio.run(run())
        assert seen == [TRACE] * 2
        assert telemetry.only().status.status_code is StatusCode.UNSET

    def test_its_exception_and_athrow(self, telemetry: Telemetry, traced: Decorator) -> None:
        """What is thrown in arrives inside; what comes out is the span's."""
        seen: list[int] = []

        async def handle() -> AsyncGenerator[int, None]:
            try:
                yield 1
            except KeyError:
                seen.append(trace_id())
            yield 2

        async def run() -> None:
            steps = traced(handle)()
            await anext(steps)
            assert await steps.athrow(KeyError("in")) == 2
            with pytest.raises(ValueError, match="out"):
                await steps.athrow(ValueError("out"))

        asyncio.run(run())
        assert seen == [TRACE]
        assert attributes(telemetry.only())["error.type"] == "ValueError"

    def test_aclose(self, telemetry: Telemetry, traced: Decorator) -> None:
        """Closing runs the body's finally inside the span, awaits included, and is no failure."""
        seen: list[int] = []

        async def handle() -> AsyncIterator[int]:
            try:
                yield 1
            finally:
                await asyncio.sleep(0)
                seen.append(trace_id())

        async def run() -> None:
            before = get_current()
            steps = traced(handle)()
            await anext(steps)
            await steps.aclose()
            assert get_current() is before

        asyncio.run(run())
        assert seen == [TRACE]
        assert telemetry.only().status.status_code is StatusCode.UNSET

    def test_abandoned(self, telemetry: Telemetry, traced: Decorator) -> None:
        """A consumer that breaks and lets go of it: the event loop closes it, and the span ends."""

        async def handle() -> AsyncIterator[int]:
            yield 1
            yield 2

        async def run() -> None:
            before = get_current()
            async for _ in traced(handle)():
                break
            assert get_current() is before
            await asyncio.sleep(0)
            await asyncio.sleep(0)

        asyncio.run(run())
        assert telemetry.only().status.status_code is StatusCode.UNSET

    def test_cancelled(self, telemetry: Telemetry, traced: Decorator) -> None:
        """A cancel while the body awaits ends the span with the cancellation."""

        async def handle() -> AsyncIterator[int]:
            await asyncio.sleep(60)
            yield 1

        async def consume() -> None:
            async for _ in traced(handle)():
                pass

        async def run() -> None:
            task = asyncio.create_task(consume())
            await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

        asyncio.run(run())
        assert "CancelledError" in attributes(telemetry.only())["error.type"]

    def test_an_object_whose_call_is_an_async_generator(
        self, telemetry: Telemetry, traced: Decorator
    ) -> None:
        """Its body is inside."""

        class Handler:
            async def __call__(self) -> AsyncIterator[int]:
                yield trace_id()

        async def run() -> list[int]:
            return [one async for one in traced(Handler())()]

        assert asyncio.run(run()) == [TRACE]

    def test_two_steps_of_one_task_interleaved(self, telemetry: Telemetry, traced: Decorator) -> None:
        """Two of them in one task do not mix."""

        async def handle() -> AsyncIterator[object]:
            yield current_ids()
            yield current_ids()

        async def run() -> None:
            one, other = traced(handle)(), traced(handle)()
            first, second = await anext(one), await anext(other)
            assert (await anext(one), await anext(other)) == (first, second)
            assert first != second
            await one.aclose()
            await other.aclose()

        asyncio.run(run())
        assert {ids(span) for span in telemetry.spans} != {None}
        assert len(telemetry.spans) == 2


class TestPrepared:
    def test_what_is_made_is_entered(self, telemetry: Telemetry) -> None:
        """The body runs inside the operation."""
        message = Message(headers={"traceparent": TRACEPARENT})
        with prepared(lambda: telemetry.engine().process(ORDERS, message), "reading") as span:
            assert current_ids() == ids(span)
        assert telemetry.only().name == span.name  # type: ignore[attr-defined]

    def test_of_nothing_there_is_no_span(self, telemetry: Telemetry) -> None:
        """An empty pull has a body, too: it runs outside."""
        with prepared(lambda: None, "reading") as span:
            assert not span.get_span_context().is_valid
        assert list(telemetry.spans) == []

    @pytest.mark.usefixtures("guarded")
    def test_a_fault_of_ours_keeps_no_body_from_running(self, caplog: pytest.LogCaptureFixture) -> None:
        """What cannot be read is logged, and handled without a span."""

        def broken() -> None:
            raise LookupError("no headers")

        with prepared(broken, "reading a message of the shop") as span:
            assert not span.get_span_context().is_valid
        assert "reading a message of the shop" in caplog.text


class TestCarried:
    def test_a_callback_has_the_context_of_its_making(self, telemetry: Telemetry) -> None:
        """Wherever it is called; what was current there is back, also where it raises."""
        tracer = telemetry.settings().tracer_provider.get_tracer("test")  # type: ignore[union-attr]
        with tracer.start_as_current_span("made") as made:
            call = carried(lambda *args, **options: (args, options, trace.get_current_span()))
            fail = carried(lambda: 1 // 0)
        with tracer.start_as_current_span("elsewhere") as elsewhere:
            before = get_current()
            assert call(1, two=2) == ((1,), {"two": 2}, made)
            with pytest.raises(ZeroDivisionError):
                fail()
            assert get_current() is before
            assert trace.get_current_span() is elsewhere
