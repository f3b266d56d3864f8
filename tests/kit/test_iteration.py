"""Loops: the body runs inside the message's span, whatever ends it."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import copy
import gc
import inspect
import pickle
import sys
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any, ClassVar

import pytest
from opentelemetry import trace
from opentelemetry.context import get_current
from opentelemetry.trace import StatusCode

from queueprop import Message
from queueprop.engine.operations import Process
from queueprop.kit.iteration import AsyncMessages, GeneratorMessages, MessageList, Messages, iterate_inside
from tests.telemetry import ORDERS, Telemetry, traceparent


class Loop:
    """As an adapter's traced_messages; the messages are the numbers of their traces, 0 is an idle tick."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._engine = telemetry.engine()

    def begin(self, number: int) -> Process | None:
        if number == 0:
            return None
        return self._engine.process(ORDERS, Message({"traceparent": traceparent(number)}))


@pytest.fixture
def loop(telemetry: Telemetry) -> Loop:
    return Loop(telemetry)


def trace_id() -> int:
    """The trace that is current, 0 where there is none."""
    return trace.get_current_span().get_span_context().trace_id


async def arriving(*numbers: int) -> AsyncIterator[int]:
    for number in numbers:
        await asyncio.sleep(0)
        yield number


def in_a_new_list(messages: list[int]) -> list[int]:
    found: list[int] = []
    found.extend(messages)
    found += messages
    return found


LOOKS: dict[str, Callable[[list[int]], object]] = {
    "in": lambda messages: 2 in messages,
    "index": lambda messages: messages.index(2),
    "count": lambda messages: messages.count(2),
    "==": lambda messages: messages == [3, 1, 2],
    "<": lambda messages: messages < [4],
    "bool": bool,
    "len": len,
    "repr": repr,
    "an f-string": lambda messages: f"{messages}",
    "a slice": lambda messages: messages[::-1],
    "an item": lambda messages: messages[1],
    "+": lambda messages: ([0] + messages, messages + [4], messages * 2),  # noqa: RUF005
    "copy": lambda messages: (messages.copy(), copy.copy(messages), copy.deepcopy(messages)),
    "pickle": lambda messages: pickle.loads(pickle.dumps(messages)),
    "list": list,
    "tuple": tuple,
    "sorted": sorted,
    "sorted by a key": lambda messages: sorted(messages, key=lambda message: -message),
    "*": lambda messages: [0, *messages],
    "a call": lambda messages: max(*messages),
    "another list": in_a_new_list,
}
"""What hands no message to whoever handles it."""

HANDLES: dict[str, Callable[[list[int]], object]] = {
    "for": lambda messages: [trace_id() for _ in messages],
    "reversed": lambda messages: [trace_id() for _ in reversed(messages)][::-1],
    "a generator": lambda messages: list(trace_id() for _ in messages),  # noqa: C400
    "enumerate": lambda messages: [trace_id() for _ in enumerate(messages)],
    "map": lambda messages: list(map(lambda _: trace_id(), messages)),  # noqa: C417
    "len before": lambda messages: (len(messages), [trace_id() for _ in messages])[1],
    "len behind iter": lambda messages: (several := iter(messages), len(messages), [trace_id() for _ in several])[2],
    "len within": lambda messages: [trace_id() for _ in messages if len(messages) == 3],
    "list behind a loop's first step": lambda messages: [
        trace_id() for _ in messages if list(messages) == [3, 1, 2]
    ],
}  # fmt: skip


class TestMessageList:
    """What a pull call returned."""

    @pytest.mark.parametrize("way", LOOKS)
    def test_what_looks_at_it_handles_nothing(self, telemetry: Telemetry, loop: Loop, way: str) -> None:
        """It gives what it gives of a list, opens no span, and the loop that comes then has them all."""
        messages = MessageList([3, 1, 2], loop.begin)
        assert LOOKS[way](messages) == LOOKS[way]([3, 1, 2])
        assert not telemetry.spans
        assert [trace_id() for _ in messages] == [3, 1, 2]
        assert len(telemetry.spans) == 3

    @pytest.mark.parametrize("way", HANDLES)
    def test_what_handles_each(self, telemetry: Telemetry, loop: Loop, way: str) -> None:
        """Each message in its own trace, whatever asks for the length of the list meanwhile."""
        before = get_current()
        assert HANDLES[way](MessageList([3, 1, 2], loop.begin)) == [3, 1, 2]
        assert get_current() is before
        assert len(telemetry.spans) == 3

    def test_where_no_python_calls(self) -> None:
        """A thread whose function is C has no frame that could be asked: the messages are iterated, as they were."""
        begun: list[int] = []
        done = threading.Event()

        def begin(message: int) -> None:
            begun.append(message)
            if message == 2:
                done.set()

        copied: list[int] = []
        _thread.start_new_thread(copied.extend, (MessageList([3, 1, 2], begin),))
        assert done.wait(60)
        assert begun == [3, 1, 2]


class TestFor:
    """`for`."""

    def test_the_body_runs_inside(self, telemetry: Telemetry, loop: Loop) -> None:
        """Each message in its own trace; a span each, closed before the next; nothing is left after the loop."""
        before = get_current()
        for number in iterate_inside([1, 2, 3], loop.begin):
            assert trace_id() == number
            assert len(telemetry.spans) == number - 1
        assert get_current() is before
        assert [span.status.status_code for span in telemetry.spans] == [StatusCode.UNSET] * 3

    def test_waiting_for_a_message_is_outside(self, loop: Loop) -> None:
        """While the source is asked, no message's span is current: a poll is no child of the last message."""
        seen: list[int] = []

        def source() -> Iterator[int]:
            for number in (1, 2):
                seen.append(trace_id())
                yield number
            seen.append(trace_id())

        assert list(iterate_inside(source(), loop.begin)) == [1, 2]
        assert seen == [0, 0, 0]

    def test_idle_ticks(self, telemetry: Telemetry, loop: Loop) -> None:
        """What is no message (`begin` gives None) has no span; the message before it is over by then."""
        for number in iterate_inside([1, 0, 2, 0], loop.begin):
            assert trace_id() == number
        assert len(telemetry.spans) == 2

    def test_break(self, telemetry: Telemetry, loop: Loop) -> None:
        """The iterator is dropped by it: the span ends, the context is as before."""
        before = get_current()
        for _ in iterate_inside([1, 2], loop.begin):
            break
        assert get_current() is before
        assert len(telemetry.spans) == 1

    def test_return(self, telemetry: Telemetry, loop: Loop) -> None:
        """Likewise."""

        def work() -> int:
            for _ in iterate_inside([1, 2], loop.begin):
                return trace_id()
            return 0

        before = get_current()
        assert work() == 1
        assert get_current() is before
        assert len(telemetry.spans) == 1

    def test_an_exception(self, telemetry: Telemetry, loop: Loop) -> None:
        """It goes on, the context is as before, the span has ended."""

        def work() -> None:
            for _ in iterate_inside([1, 2], loop.begin):
                raise ValueError("theirs")

        before = get_current()
        with pytest.raises(ValueError, match="theirs"):
            work()
        assert get_current() is before
        assert len(telemetry.spans) == 1

    def test_an_exception_of_the_source(self, telemetry: Telemetry, loop: Loop) -> None:
        """What the library raises comes out as it is; the last message's span had ended before."""

        def source() -> Iterator[int]:
            yield 1
            raise ConnectionError("broker gone")

        before = get_current()
        with pytest.raises(ConnectionError, match="broker gone"):
            list(iterate_inside(source(), loop.begin))
        assert get_current() is before
        assert len(telemetry.spans) == 1

    def test_kept_in_a_variable(self, telemetry: Telemetry, loop: Loop) -> None:
        """After a break the scope stays until the iterator is closed or dropped: nothing tells us before."""
        before = get_current()
        messages = iterate_inside([1, 2], loop.begin)
        for _ in messages:
            break
        assert trace_id() == 1
        messages.close()
        assert get_current() is before
        assert len(telemetry.spans) == 1
        messages.close()
        del messages
        assert len(telemetry.spans) == 1

    def test_close_ends_the_source(self, loop: Loop) -> None:
        """A generator of the library's is closed by it, outside of any message's span; what has no close is left."""
        seen: list[int] = []

        def source() -> Iterator[int]:
            try:
                yield 1
            finally:
                seen.append(trace_id())

        messages = iterate_inside(source(), loop.begin)
        next(messages)
        messages.close()
        assert seen == [0]
        with contextlib.closing(iterate_inside([1], loop.begin)) as plain:
            next(plain)

    def test_two_interleaved(self, telemetry: Telemetry, loop: Loop) -> None:
        """Two loops stepped in turn: the message that came last is current, and at the end nothing is."""
        before = get_current()
        one, other = iterate_inside([1, 2], loop.begin), iterate_inside([11, 12], loop.begin)
        assert (next(one), trace_id()) == (1, 1)
        assert (next(other), trace_id()) == (11, 11)
        assert (next(one), trace_id()) == (2, 2)
        assert (next(other), trace_id()) == (12, 12)
        assert next(one, None) is None
        assert trace_id() == 12
        assert next(other, None) is None
        assert get_current() is before
        assert len(telemetry.spans) == 4

    def test_zip_and_list(self, telemetry: Telemetry, loop: Loop) -> None:
        """Whoever consumes it otherwise gets the same values, and leaves nothing behind."""
        before = get_current()
        pairs = list(zip(iterate_inside([1, 2], loop.begin), iterate_inside([3, 4], loop.begin), strict=True))
        assert pairs == [(1, 3), (2, 4)]
        assert get_current() is before
        assert len(telemetry.spans) == 4

    def test_closed_in_another_thread(self, telemetry: Telemetry, loop: Loop) -> None:
        """The span ends there, and what is current there is not touched; in the loop, its next step restores."""
        before = get_current()
        messages = iterate_inside(iter([1]), loop.begin)
        next(messages)
        left: list[object] = []

        def close() -> None:
            inside = get_current()
            messages.close()
            left.append(get_current() is inside)

        thread = threading.Thread(target=close)
        thread.start()
        thread.join()
        assert left == [True]
        assert len(telemetry.spans) == 1
        assert next(messages, None) is None
        assert get_current() is before

    def test_closed_in_another_thread_and_dropped(self, telemetry: Telemetry, loop: Loop) -> None:
        """So does the end of the loop by break."""
        before = get_current()
        for _ in (messages := iterate_inside([1, 2], loop.begin)):
            thread = threading.Thread(target=messages.close)
            thread.start()
            thread.join()
            break
        assert len(telemetry.spans) == 1
        del messages
        assert get_current() is before

    @pytest.mark.usefixtures("guarded")
    def test_a_begin_that_raises(self, caplog: pytest.LogCaptureFixture) -> None:
        """A message that we cannot read is handed over, untraced; the log says so once."""

        def broken(number: int) -> None:
            raise LookupError("begin")

        assert list(iterate_inside([1, 2], broken)) == [1, 2]
        assert len(caplog.records) == 1

    def test_it_is_an_iterator(self, loop: Loop) -> None:
        """iter() of it is itself, and a second loop over it goes on where the first stopped, as with any iterator."""
        messages = iterate_inside([1, 2, 3], loop.begin)
        assert isinstance(messages, Messages)
        assert iter(messages) is messages
        for _ in messages:
            break
        assert list(messages) == [2, 3]

    def test_a_generator_is_one_still(self, telemetry: Telemetry, loop: Loop) -> None:
        """Where a library gives a generator, send() and throw() are steps of it, each inside its message's trace."""

        def library() -> Generator[int, None, None]:
            for number in (1, 2, 3):
                with contextlib.suppress(LookupError):
                    yield number

        messages = GeneratorMessages(library(), loop.begin)
        assert isinstance(messages, Generator)
        assert iter(messages) is messages
        assert messages.send(None) == trace_id() == 1
        assert messages.throw(LookupError()) == trace_id() == 2
        assert next(messages) == trace_id() == 3
        messages.close()
        assert trace_id() == 0
        assert len(telemetry.spans) == 3

    def test_a_generator_has_all_that_one_has(self, loop: Loop) -> None:
        """It is known for one, tells its state, and says itself what it has not."""
        messages: Any = GeneratorMessages((number for number in (1, 2)), loop.begin)
        is_one: bool = inspect.isgenerator(messages)
        assert is_one
        assert inspect.getgeneratorstate(messages) == inspect.GEN_CREATED
        next(messages)
        assert inspect.getgeneratorstate(messages) == inspect.GEN_SUSPENDED
        messages.close()
        assert inspect.getgeneratorstate(messages) == inspect.GEN_CLOSED
        with pytest.raises(AttributeError, match="'generator' object has no attribute 'consumer_tag'"):
            _ = messages.consumer_tag
        with pytest.raises(AttributeError, match="__len__"):
            _ = messages.__len__

    def test_ten_thousand_messages(self, loop: Loop) -> None:
        """The very same context as before."""
        before = get_current()
        for _ in iterate_inside(range(1, 10_001), loop.begin):
            pass
        assert get_current() is before


class TestAsyncFor:
    """`async for`."""

    def test_the_body_runs_inside(self, telemetry: Telemetry, loop: Loop) -> None:
        """Across the body's awaits; a span each; nothing is left after the loop."""

        async def run() -> None:
            before = get_current()
            async for number in iterate_inside(arriving(1, 0, 2), loop.begin):
                assert trace_id() == number
                await asyncio.sleep(0)
                assert trace_id() == number
            assert get_current() is before

        asyncio.run(run())
        assert len(telemetry.spans) == 2

    def test_waiting_for_a_message_is_outside(self, loop: Loop) -> None:
        """While the source waits, no message's span is current."""
        seen: list[int] = []

        async def source() -> AsyncIterator[int]:
            for number in (1, 2):
                await asyncio.sleep(0)
                seen.append(trace_id())
                yield number

        async def run() -> list[int]:
            return [number async for number in iterate_inside(source(), loop.begin)]

        assert asyncio.run(run()) == [1, 2]
        assert seen == [0, 0]

    def test_break_and_exception(self, telemetry: Telemetry, loop: Loop) -> None:
        """The iterator is dropped by either: the span ends at once, the context is as before."""

        async def run() -> None:
            before = get_current()
            async for _ in iterate_inside(arriving(1, 2), loop.begin):
                break
            assert get_current() is before
            with pytest.raises(ValueError, match="theirs"):
                await failing()
            assert get_current() is before

        async def failing() -> None:
            async for _ in iterate_inside(arriving(1, 2), loop.begin):
                raise ValueError("theirs")

        asyncio.run(run())
        assert len(telemetry.spans) == 2

    def test_cancelled_in_the_body(self, telemetry: Telemetry, loop: Loop) -> None:
        """A cancel ends the loop and its span."""

        async def consume() -> None:
            async for _ in iterate_inside(arriving(1, 2), loop.begin):
                await asyncio.sleep(60)

        async def run() -> bool:
            task = asyncio.create_task(consume())
            for _ in range(5):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            cancelled = task.cancelled()
            del task
            gc.collect()
            return cancelled

        assert asyncio.run(run())
        assert len(telemetry.spans) == 1

    def test_cancelled_while_it_waits(self, telemetry: Telemetry, loop: Loop) -> None:
        """A cancel between two messages finds the last one's span ended."""

        async def source() -> AsyncIterator[int]:
            yield 1
            await asyncio.sleep(60)

        async def consume() -> None:
            async for _ in iterate_inside(source(), loop.begin):
                pass

        async def run() -> None:
            task = asyncio.create_task(consume())
            for _ in range(5):
                await asyncio.sleep(0)
            assert len(telemetry.spans) == 1
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

        asyncio.run(run())
        assert len(telemetry.spans) == 1

    def test_aclose(self, telemetry: Telemetry, loop: Loop) -> None:
        """It ends the span and the source, outside of the span; what has no aclose is left."""
        seen: list[int] = []

        async def source() -> AsyncIterator[int]:
            try:
                yield 1
            finally:
                seen.append(trace_id())

        class Plain:
            """An async iterator without aclose, as a library's consumer is one."""

            def __aiter__(self) -> Plain:
                return self

            async def __anext__(self) -> int:
                return 2

        async def run() -> None:
            before = get_current()
            for messages in (iterate_inside(source(), loop.begin), iterate_inside(Plain(), loop.begin)):
                assert isinstance(messages, AsyncMessages)
                assert aiter(messages) is messages
                await anext(messages)
                await messages.aclose()
                assert get_current() is before

        asyncio.run(run())
        assert seen == [0]
        assert len(telemetry.spans) == 2

    @pytest.mark.parametrize("ended_by", ["close", "async with", "another task"])
    def test_all_else_that_a_library_s_own_iterator_has(
        self, telemetry: Telemetry, loop: Loop, ended_by: str
    ) -> None:
        """It is of the same class, with the same attributes. Its ``close`` and its end of a block, wherever they are
        called, end the span of the message in hand before they are the source's own.
        """

        async def run() -> None:
            before = get_current()
            source = Entered()
            given: Any = iterate_inside(source, loop.begin)
            assert isinstance(given, Entered)
            assert (given.consumer_tag, hasattr(given, "no_such")) == ("ctag", False)
            messages = await given.__aenter__()
            assert (messages is given, source.calls) == (True, ["entered"])
            assert await anext(messages) == trace_id() == 1
            if ended_by == "close":
                assert await messages.close(timeout=1) == "closed"
            elif ended_by == "async with":
                assert await messages.__aexit__(None, None, None) == "closed"
            else:
                await asyncio.create_task(messages.close())
            assert (len(telemetry.spans), source.calls[1:]) == (1, ["closed in 0"])
            del given, messages
            assert get_current() is before

        class Entered:
            def __init__(self) -> None:
                self.consumer_tag = "ctag"
                self.calls: list[str] = []

            def __aiter__(self) -> Entered:
                return self

            async def __anext__(self) -> int:
                return 1

            async def close(self, timeout: int | None = None) -> str:
                self.calls.append(f"closed in {trace_id()}")
                return "closed"

            async def __aenter__(self) -> Entered:
                self.calls.append("entered")
                return self

            async def __aexit__(self, *error: object) -> str:
                return await self.close()

        asyncio.run(run())

    def test_what_is_not_entered_says_so(self, loop: Loop) -> None:
        """As Python says it of the source; what has no ``close`` has none. One that gives another is not stood for."""

        class Opened:
            def __aiter__(self) -> AsyncIterator[int]:
                return arriving(1)

        class Opening:
            def __aiter__(self) -> Opening:
                return self

            async def __anext__(self) -> int:
                return 1

            async def __aenter__(self) -> Opened:
                return opened

        opened = Opened()

        async def run() -> None:
            messages: Any = iterate_inside(arriving(1), loop.begin)
            assert not hasattr(messages, "close")
            with pytest.raises(TypeError, match="'async_generator' object does not support"):
                async with messages:
                    raise AssertionError
            messages = iterate_inside(Opening(), loop.begin)
            assert await messages.__aenter__() is opened

        asyncio.run(run())

    def test_a_fresh_iterator_a_loop(self, telemetry: Telemetry, loop: Loop) -> None:
        """A consumer that is its own iterator may be looped over again and again, in two tasks at once even."""

        class Consumer:
            def __init__(self) -> None:
                self.number = 0

            def __aiter__(self) -> Consumer:
                return self

            async def __anext__(self) -> int:
                self.number += 1
                await asyncio.sleep(0)
                return self.number

        consumer = Consumer()

        async def take(count: int) -> list[bool]:
            seen = []
            async for number in iterate_inside(consumer, loop.begin):
                await asyncio.sleep(0)
                seen.append(trace_id() == number)
                if len(seen) == count:
                    break
            return seen

        async def run() -> list[list[bool]]:
            first = await take(2)
            return [first, *await asyncio.gather(take(3), take(3))]

        assert asyncio.run(run()) == [[True] * 2, [True] * 3, [True] * 3]
        assert len(telemetry.spans) == 8

    def test_a_hundred_tasks(self, telemetry: Telemetry, loop: Loop) -> None:
        """Interleaved loops of many tasks: each body sees its own message."""

        async def consume(first: int) -> bool:
            seen = []
            async for number in iterate_inside(arriving(first, first + 1), loop.begin):
                await asyncio.sleep(0)
                seen.append(trace_id() == number)
            return seen == [True, True]

        async def run() -> list[bool]:
            return list(await asyncio.gather(*(consume(10 * number) for number in range(1, 101))))

        assert asyncio.run(run()) == [True] * 100
        assert len(telemetry.spans) == 200

    def test_closed_by_another_task(self, telemetry: Telemetry, loop: Loop) -> None:
        """A close from elsewhere ends the span; the loop ends with its next step, its task's context as before."""

        async def run() -> None:
            before = get_current()
            messages = iterate_inside(arriving(1, 2), loop.begin)
            async for _ in messages:
                await asyncio.create_task(messages.aclose())
                assert len(telemetry.spans) == 1
            assert get_current() is before

        asyncio.run(run())
        assert len(telemetry.spans) == 1

    def test_tasks_that_share_one(self, telemetry: Telemetry, loop: Loop) -> None:
        """Each task has the span of its own message, for as long as its own body runs."""

        class Source:
            numbers: ClassVar = [1, 2]

            def __aiter__(self) -> Source:
                return self

            async def __anext__(self) -> int:
                await asyncio.sleep(0)
                return self.numbers.pop(0)

        messages = iterate_inside(Source(), loop.begin)

        async def consume() -> tuple[int, int, int]:
            async for number in messages:
                before = trace_id()
                await asyncio.sleep(0.01)
                return number, before, trace_id()
            raise AssertionError

        async def run() -> list[tuple[int, int, int]]:
            return list(await asyncio.gather(consume(), consume()))

        assert asyncio.run(run()) == [(1, 1, 1), (2, 2, 2)]

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="Task.get_context() is new in Python 3.12")
    @pytest.mark.parametrize("way", ["break", "kept"])
    def test_an_async_generator_around_it(self, telemetry: Telemetry, loop: Loop, way: str) -> None:
        """Left by ``break`` it is closed by a task of the event loop's own: the consumer's context is restored."""

        async def wrapped() -> AsyncIterator[int]:
            async for number in iterate_inside(arriving(1, 2), loop.begin):
                yield number

        async def run() -> None:
            around = wrapped()
            async for _ in around:
                assert trace_id() == 1
                break
            if way == "kept":
                await asyncio.create_task(around.aclose())  # type: ignore[attr-defined]
            del around
            while not telemetry.spans:
                await asyncio.sleep(0)
            assert trace_id() == 0

        asyncio.run(run())

    def test_closed_by_another_task_of_the_same_message(self, telemetry: Telemetry, loop: Loop) -> None:
        """The loop goes on to its next step, which finds nothing: its context is as before."""
        messages = iterate_inside(arriving(1), loop.begin)

        async def run() -> None:
            async for _ in messages:
                await asyncio.create_task(messages.aclose())
            assert trace_id() == 0

        asyncio.run(run())
        assert len(telemetry.spans) == 1
