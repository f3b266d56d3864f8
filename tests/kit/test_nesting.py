"""The one mark for what runs inside another of ours, and layers that speak for a transport."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import weakref

import pytest
from opentelemetry.trace import SpanKind

from queueprop import Message
from queueprop.kit.nesting import (
    Everything,
    Mark,
    _innermost,
    _taken_over,
    is_carried,
    is_in_a_span,
    is_inside,
    is_spoken_for,
    speaking_for,
    take_over,
    work_at_hand,
    works_at_hand,
)
from tests.telemetry import ORDERS, Telemetry


def test_inside_and_afterwards() -> None:
    """A call is told by its kind, its library and what it is about."""
    one, other = object(), object()
    assert not is_inside("publish", "pika")
    with Mark("publish", "pika", one):
        assert is_inside("publish", "pika", one)
        assert not is_inside("publish", "pika", other)
        assert not is_inside("publish", "pika")
        assert not is_inside("publish", "kombu", one)
        assert not is_inside("pull", "pika", one)
    assert not is_inside("publish", "pika", one)


def test_an_outer_one_still_holds() -> None:
    """A call further out is found behind others in between."""
    with Mark("publish", "kombu", work="outer"), Mark("pull", "pika", work="inner"):
        assert is_inside("publish", "kombu")
        assert work_at_hand("publish", "kombu") == "outer"
        assert work_at_hand("pull", "pika") == "inner"
        assert work_at_hand("settle", "pika") is None


def test_a_task_that_was_made_inside() -> None:
    """It is inside for as long as the call lasts, and not a moment longer."""

    async def main() -> list[bool]:
        seen: list[bool] = []
        begun, over = asyncio.Event(), asyncio.Event()

        async def task() -> None:
            seen.append(is_inside("publish", "aiokafka"))
            begun.set()
            await over.wait()
            seen.append(is_inside("publish", "aiokafka"))
            seen.append(work_at_hand("publish", "aiokafka") is None)

        with Mark("publish", "aiokafka", work=1):
            running = asyncio.create_task(task())
            await begun.wait()
        over.set()
        await running
        return seen

    assert asyncio.run(main()) == [True, False, True]


def test_tasks_that_make_tasks_keep_no_chain() -> None:
    """Each task begins inside a call of the task before: what is over is not kept."""
    context = contextvars.copy_context()
    for _ in range(100):

        def step() -> contextvars.Context:
            with Mark("publish", "aiokafka"):
                return contextvars.copy_context()

        context = context.run(step)
    mark, depth = context.get(_innermost), 0
    while mark is not None:
        mark, depth = mark._outer, depth + 1
    assert depth == 1


def test_closed_in_another_context() -> None:
    """A coroutine that is left is closed by the garbage collector, in whatever context: nothing is raised."""

    async def publish() -> None:
        with Mark("publish", "aiokafka"):
            await asyncio.sleep(0)

    left = publish()
    contextvars.copy_context().run(left.send, None)
    left.close()
    gc.collect()
    assert not is_inside("publish", "aiokafka")


def test_transports_that_are_spoken_for() -> None:
    """A layer above traces what goes through its channels, or through all."""
    channel, other = object(), object()
    assert not is_spoken_for(channel)
    with speaking_for({channel}):
        assert is_spoken_for(channel)
        assert is_spoken_for(None, channel)
        assert not is_spoken_for(other)
    with speaking_for(Everything()):
        assert is_spoken_for(other)
    assert not is_spoken_for(channel, other)


def test_speaking_until_closed_in_another_context() -> None:
    """What a layer above speaks for is over where it is closed: nothing is raised in place of what is."""

    async def publish() -> None:
        with speaking_for(Everything()):
            await asyncio.sleep(0)

    left = publish()
    contextvars.copy_context().run(left.send, None)
    with pytest.raises(LookupError):
        left.throw(LookupError("the user's"))
    assert not is_spoken_for(object())


def test_all_that_is_at_hand() -> None:
    """Of each kind the innermost one of this library that is not over, and the innermost kind first."""
    over = Mark("pull", "celery", work="over")
    with (
        Mark("perform", "celery", work=1),
        Mark("publish", "kombu", work=2),
        Mark("perform", "celery", work=3),
    ):
        with over:
            pass
        with Mark("publish", "celery", about=object(), work=4):
            assert list(works_at_hand("celery").items()) == [("publish", 4), ("perform", 3)]
    assert works_at_hand("celery") == {}


def test_whether_a_span_is_current(telemetry: Telemetry) -> None:
    """Anybody's."""
    assert not is_in_a_span()
    with telemetry.current("request"):
        assert is_in_a_span()


class Consumer:
    pass


def test_what_a_layer_above_has_taken_over() -> None:
    """It is that one's everywhere, for as long as it lives; what takes no weak reference is left as it is."""
    consumer, other = Consumer(), Consumer()
    number = id(consumer)
    take_over(consumer)
    take_over(None)
    assert contextvars.Context().run(is_spoken_for, other, consumer)
    assert not is_spoken_for(other, None)
    del consumer
    gc.collect()
    assert number not in _taken_over
    assert not is_spoken_for(other)


def test_an_object_that_has_the_number_of_one_that_was_taken_over() -> None:
    """It is nobody's until it is taken over itself, and stays so when the other's end is told late."""
    consumer, gone = Consumer(), weakref.ref(Consumer())
    _taken_over[id(consumer)] = gone
    assert not is_spoken_for(consumer)
    take_over(consumer)
    callback = _taken_over[id(consumer)].__callback__
    assert callback is not None
    callback(gone)
    assert is_spoken_for(consumer)


def test_headers_that_a_layer_above_has_written(telemetry: Telemetry) -> None:
    """They carry the PRODUCER span that is current; any other span, or other headers, do not."""
    headers: dict[str, object] = {}
    with telemetry.engine().send(ORDERS, Message(headers)):
        assert is_carried(headers)
        assert not is_carried({})
    assert not is_carried(headers)
    tracer = telemetry.spans.tracer_provider.get_tracer("test")
    with tracer.start_as_current_span("request", kind=SpanKind.SERVER):
        assert not is_carried(headers)
