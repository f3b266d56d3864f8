"""A plain in-process queue on the core API alone: what a user with a queue of their own would write.

``_Broker`` stands for the library: it knows headers, acks, requeues, dead letters and delays, and nothing of
queueprop.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import queueprop
from integration.contract.actions import Delivery, Handler, run, run_async
from integration.contract.driver import (
    Api,
    Column,
    Counts,
    Driver,
    Failing,
    Need,
    Refusal,
    WireMessage,
    split_headers,
)
from integration.contract.telemetry import DEADLINE, tell_library_error, wait_until
from queueprop import Destination, Message

_STYLES = ("callback", "with", "pull", "async", "generator", "async generator")

# Stands for all of the headers, where they are junk.
_WHOLE = "*"

Handle = Callable[["_Envelope"], Any]


class MemoryDriver(Driver):
    """``callback`` and ``async`` decorate a handler, ``with`` wraps the body of a loop, ``pull`` also the call that
    gets the message, and the generators work in steps.
    """

    library = "memory"
    system = "memory"
    refusals = (Refusal("dead-letter"), Refusal("drop"), Refusal("requeue", 2), Refusal("retry", 3))
    batch_ways = ("put_many",)
    delayed_ways = ("publish",)
    tells_attempt = True
    tells_delay = True

    @classmethod
    def columns(cls) -> Sequence[Column]:
        return [Column(cls.library, style, "explicit") for style in _STYLES]

    @classmethod
    def lacks(cls, column: Column) -> Mapping[Need, str]:
        return {
            **(
                {}
                if cls.exits(column.style)
                else {"exits": "a call for each message: there is no loop to leave"}
            ),
            "containers": "send_span writes into headers that the caller hands over, by design",
            "instrumentor": "the core alone: no library to instrument",
            "kill": "the queue is gone with its process",
            **({} if column.style in ("with", "pull") else {"settle": "the decorator knows of no ack"}),
            "restart": "the queue is gone with its process",
            "worker processes": "the queue is in this process",
        }

    @classmethod
    def exits(cls, style: str) -> Sequence[str]:
        return {
            "callback": (),
            "with": ("break", "return", "exception"),
            "pull": ("break", "return", "exception"),
            "async": ("cancel",),
            "generator": ("break", "exception", "closed elsewhere", "dropped"),
            "async generator": ("break", "cancel", "closed elsewhere"),
        }[style]

    @classmethod
    def receives(cls, style: str) -> bool:
        return style == "pull"

    @classmethod
    def at_once(cls, style: str) -> int:
        return 100 if style.startswith("async") else 8

    def __init__(self, style: str, api: Api, url: str | None = None) -> None:
        super().__init__(style, api, url)
        self._broker = _Broker()
        self._destinations = {name: Destination(self.system, name) for name in (self.queue, self.other_queue)}

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass

    def publish(
        self,
        body: str,
        headers: Mapping[str, str] | None = None,
        *,
        way: str | None = None,
        delay: float | None = None,
        refusal: str | None = None,
        retries: int = 0,
    ) -> None:
        if refusal == "retry":
            retries = 2
        envelope = _Envelope(
            body, dict(headers or {}), refusal=refusal or "drop", retries=retries, delay=delay
        )
        self._put(self.queue, envelope)

    def publish_batch(self, bodies: Sequence[str], *, way: str) -> None:
        envelopes = [_Envelope(body, {}) for body in bodies]
        with queueprop.send_span(
            self._destinations[self.queue],
            [Message(headers=it.headers) for it in envelopes],
            settings=self._settings,
        ):
            for envelope in envelopes:
                self._broker.put(self.queue, envelope)

    def failing(self) -> Sequence[Failing]:
        return [Failing("the queue is full", lambda: self._put("full", _Envelope("too much", {})))]

    def plant(
        self, body: str, fields: Mapping[str, object], headers: Mapping[str, str] | None = None
    ) -> None:
        self._broker.put(self.queue, _Envelope(body, {**(headers or {}), **fields}))

    @classmethod
    def junk_carriers(cls) -> Sequence[object]:
        return (None, 7, "traceparent", b"\xff", [1, 2], {"traceparent"}, object())

    def plant_junk(self, body: str, junk: object) -> None:
        self._broker.put(self.queue, _Envelope(body, {_WHOLE: junk}))

    def wire(self, queue: str | None = None) -> list[WireMessage]:
        return [
            WireMessage(it.body, *split_headers(it.headers.items()))
            for it in self._broker.waiting(queue or self.queue)
        ]

    def counts(self) -> Counts:
        return Counts(
            len(self._broker.waiting(self.queue)), len(self._broker.unacked), len(self._broker.dead)
        )

    def consume(self, handler: Handler, count: int = 1) -> None:
        if self.style.startswith("async"):
            asyncio.run(self._consume_tasks(handler, count, 1))
        else:
            self._consume_here(handler, count)

    def consume_batch(self, handler: Handler, count: int) -> None:
        envelopes = [self._broker.get(self.queue) for _ in range(count)]
        messages = [Message(headers=envelope.headers, native=envelope) for envelope in envelopes]
        with queueprop.process_span(self._destinations[self.queue], messages, settings=self._settings):
            for envelope in envelopes:
                run(handler, self._delivery(envelope))
        for envelope in envelopes:
            self._broker.ack(envelope)

    def consume_concurrently(self, handler: Handler, count: int) -> None:
        if self.style.startswith("async"):
            asyncio.run(self._consume_tasks(handler, count, count))
            return
        with ThreadPoolExecutor(count) as executor:
            for future in [executor.submit(self._consume_here, handler, 1) for _ in range(count)]:
                future.result(DEADLINE)

    def leave(self, how: str, handler: Handler) -> None:
        if self.style in ("with", "pull"):
            with contextlib.suppress(_LeftError):
                self._leave_loop(how, handler)
        elif self.style == "generator":
            self._leave_generator(how, handler)
        elif self.style == "async":
            asyncio.run(self._leave_task(self._hold, handler))
        elif how == "cancel":
            asyncio.run(self._leave_task(self._hold_in_generator, handler))
        else:
            asyncio.run(self._leave_async_generator(how, handler))

    # Publishing

    def _put(self, queue: str, envelope: _Envelope) -> None:
        if self._settings is None:
            self._broker.put(queue, envelope)
            return
        destination = self._destinations.get(queue) or Destination(self.system, queue)
        message = Message(headers=envelope.headers, delay=envelope.delay)
        with queueprop.send_span(destination, message, settings=self._settings):
            self._broker.put(queue, envelope)

    def _delivery(self, envelope: _Envelope) -> Delivery:
        def publish(body: str, headers: Mapping[str, object] | None = None) -> None:
            self._put(self.other_queue, _Envelope(body, dict(headers or {})))

        return Delivery(envelope.body, envelope.headers, publish)

    # Consuming

    def _consume_here(self, handler: Handler, count: int) -> None:
        handle = self._handle_for(handler)
        for _ in range(count):
            envelope = self._get()
            with self._settled(envelope):
                handle(envelope)

    def _get(self) -> _Envelope:
        if self.style != "pull" or self._settings is None:
            return self._broker.get(self.queue)
        with queueprop.receive_span(self._destinations[self.queue], settings=self._settings) as receipt:
            envelope = self._broker.get(self.queue)
            receipt.add(_message(envelope))
        return envelope

    async def _consume_tasks(self, handler: Handler, count: int, at_once: int) -> None:
        handle = self._handle_for(handler)
        open_places = asyncio.Semaphore(at_once)

        async def one() -> None:
            async with open_places:
                envelope = self._broker.get(self.queue)
                with self._settled(envelope):
                    await handle(envelope)

        if at_once == 1:
            for _ in range(count):
                await one()
        else:
            await asyncio.gather(*(one() for _ in range(count)))

    def _handle_for(self, handler: Handler) -> Handle:
        """The handler of this style, decorated where tracing is on."""
        return {
            "callback": self._callback,
            "with": self._with,
            "pull": self._with,
            "async": self._async,
            "generator": self._generator,
            "async generator": self._async_generator,
        }[self.style](handler)

    def _decorated(self, handle: Any) -> Any:
        if self._settings is None:
            return handle
        destination = self._destinations[self.queue]
        return queueprop.traced_consumer(destination, headers=_message, settings=self._settings)(handle)

    def _callback(self, handler: Handler) -> Handle:
        def handle(envelope: _Envelope) -> None:
            run(handler, self._delivery(envelope))

        decorated: Handle = self._decorated(handle)
        return decorated

    def _with(self, handler: Handler) -> Handle:
        def handle(envelope: _Envelope) -> None:
            message = _message(envelope)
            with self._process_span(message):
                run(handler, self._delivery(envelope))
            with self._settle_span(message):
                self._broker.ack(envelope)

        return handle

    def _process_span(self, message: Message) -> contextlib.AbstractContextManager[Any]:
        if self._settings is None:
            return contextlib.nullcontext()
        return queueprop.process_span(self._destinations[self.queue], message, settings=self._settings)

    def _settle_span(self, message: Message) -> contextlib.AbstractContextManager[Any]:
        if self._settings is None or not self._settings.settle_spans:
            return contextlib.nullcontext()
        return queueprop.settle_span(self._destinations[self.queue], message, settings=self._settings)

    def _async(self, handler: Handler) -> Handle:
        async def handle(envelope: _Envelope) -> None:
            await run_async(handler, self._delivery(envelope))

        decorated: Handle = self._decorated(handle)
        return decorated

    def _generator(self, handler: Handler) -> Handle:
        steps = self._decorated(self._steps(handler))
        return lambda envelope: [None for _ in steps(envelope)]

    def _steps(self, handler: Handler) -> Callable[[_Envelope], Iterator[str]]:
        def handle(envelope: _Envelope) -> Iterator[str]:
            yield "begun"
            run(handler, self._delivery(envelope))
            yield "done"

        return handle

    def _async_generator(self, handler: Handler) -> Handle:
        steps = self._decorated(self._async_steps(handler))

        async def handle(envelope: _Envelope) -> None:
            async for _ in steps(envelope):
                pass

        return handle

    def _async_steps(self, handler: Handler) -> Callable[[_Envelope], Any]:
        async def handle(envelope: _Envelope) -> Any:
            yield "begun"
            await run_async(handler, self._delivery(envelope))
            yield "done"

        return handle

    @contextmanager
    def _settled(self, envelope: _Envelope) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            tell_library_error(error)
            self._broker.refuse(envelope)
        else:
            self._broker.ack(envelope)

    # Leaving in the middle

    def _leave_loop(self, how: str, handler: Handler) -> None:
        while True:
            envelope = self._get()
            with self._process_span(_message(envelope)):
                run(handler, self._delivery(envelope))
                if how == "break":
                    break
                if how == "return":
                    return
                raise _LeftError

    def _leave_generator(self, how: str, handler: Handler) -> None:
        steps = self._decorated(self._steps(handler))(self._broker.get(self.queue))
        if how == "break":
            for step in steps:
                if step == "done":
                    break
            steps.close()
            return
        next(steps)
        next(steps)
        if how == "exception":
            with contextlib.suppress(_LeftError):
                steps.throw(_LeftError())
        elif how == "closed elsewhere":
            contextvars.Context().run(steps.close)
            thread = threading.Thread(target=steps.close)
            thread.start()
            thread.join(DEADLINE)
        del steps

    async def _leave_task(self, hold: Callable[[Handler, asyncio.Event], Any], handler: Handler) -> None:
        begun = asyncio.Event()
        task = asyncio.create_task(hold(handler, begun))
        await asyncio.wait_for(begun.wait(), DEADLINE)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def _hold(self, handler: Handler, begun: asyncio.Event) -> None:
        async def handle(envelope: _Envelope) -> None:
            run(handler, self._delivery(envelope))
            begun.set()
            await asyncio.sleep(DEADLINE)

        await self._decorated(handle)(self._broker.get(self.queue))

    async def _hold_in_generator(self, handler: Handler, begun: asyncio.Event) -> None:
        async def handle(envelope: _Envelope) -> Any:
            yield "begun"
            run(handler, self._delivery(envelope))
            begun.set()
            await asyncio.sleep(DEADLINE)

        async for _ in self._decorated(handle)(self._broker.get(self.queue)):
            pass

    async def _leave_async_generator(self, how: str, handler: Handler) -> None:
        steps = self._decorated(self._async_steps(handler))(self._broker.get(self.queue))
        async for step in steps:
            if step == "done":
                break
        if how == "closed elsewhere":
            await asyncio.create_task(steps.aclose())
        else:
            await steps.aclose()


class _LeftError(Exception):
    """A loop's body raises it to leave."""


@dataclass(eq=False)
class _Envelope:
    body: str
    headers: dict[str, object]
    refusal: str = "drop"
    retries: int = 0
    delay: float | None = None
    attempt: int = 0
    queue: str = ""
    sent_at: float = 0.0


def _message(envelope: _Envelope) -> Message:
    return Message(
        headers=envelope.headers.get(_WHOLE, envelope.headers),
        attempt=envelope.attempt,
        sent_at=envelope.sent_at,
        delay=envelope.delay,
        native=envelope,
    )


class _Broker:
    """Queues with acks. Refused messages are dropped, kept as dead, or delivered again, as they were
    published.
    """

    def __init__(self) -> None:
        self.unacked: set[_Envelope] = set()
        self.dead: list[_Envelope] = []
        self._queues: dict[str, deque[_Envelope]] = {}
        self._lock = threading.Lock()

    def put(self, name: str, envelope: _Envelope) -> None:
        if name == "full":
            raise queue.Full("no place left")
        with self._lock:
            self._queues.setdefault(name, deque()).append(
                replace(envelope, headers=dict(envelope.headers), queue=name, sent_at=time.time())
            )

    def get(self, name: str) -> _Envelope:
        found: list[_Envelope] = []
        wait_until(lambda: self._take(name, found), f"a message in {name}")
        return found[0]

    def _take(self, name: str, found: list[_Envelope]) -> bool:
        with self._lock:
            waiting = self._queues.get(name)
            if not waiting or waiting[0].sent_at + (waiting[0].delay or 0) > time.time():
                return False
            envelope = waiting.popleft()
            envelope.attempt += 1
            self.unacked.add(envelope)
            found.append(envelope)
            return True

    def ack(self, envelope: _Envelope) -> None:
        with self._lock:
            self.unacked.discard(envelope)

    def refuse(self, envelope: _Envelope) -> None:
        again = envelope.attempt <= envelope.retries or (
            envelope.refusal == "requeue" and envelope.attempt == 1
        )
        with self._lock:
            self.unacked.discard(envelope)
            if again:
                self._queues[envelope.queue].append(envelope)
            elif envelope.refusal in ("dead-letter", "requeue", "retry"):
                self.dead.append(envelope)

    def waiting(self, name: str) -> list[_Envelope]:
        with self._lock:
            return list(self._queues.get(name, ()))
