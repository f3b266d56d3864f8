"""What is done around a library's calls, by what its ``Library`` says: the logic once, in a sync and an async shell.

Each hook is called as in wrapt, ``hook(bound method, its object, args, kwargs)``. The instrumentor's patches and the
words of the explicit API are made of the same ones.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from opentelemetry.context import get_current
from opentelemetry.trace import INVALID_SPAN, Span

from queueprop import guard
from queueprop.engine.engine import Engine
from queueprop.engine.message import Destination, Message
from queueprop.engine.operations import HandledAgain, Process, ProcessBatch, Settle
from queueprop.engine.scope import Scope, current_scope
from queueprop.kit import calls, checks
from queueprop.kit.calls import Arguments, Hook, Options, Wrapped
from queueprop.kit.deliveries import Delivery
from queueprop.kit.equality import equal_to
from queueprop.kit.handlers import run_inside
from queueprop.kit.iteration import AsyncMessages, Begin
from queueprop.kit.kept import Kept
from queueprop.kit.library import Library, Publication, Settlement, Source
from queueprop.kit.nesting import Mark, is_inside, is_spoken_for
from queueprop.kit.unsettled import Unsettled
from queueprop.process import sigterm

F = TypeVar("F", bound=Callable[..., Any])
L = TypeVar("L")


def _always() -> bool:
    return True


def _leaves_none_alone(via: Any) -> bool:
    return False


def _is_nobody_s(handler: Any) -> bool:
    return False


def _no_scope(native: Any) -> None:
    return None


def _inside(library: str, step: Callable[..., Any], *args: Any) -> Any:
    """A step of a loop that goes by pull calls of the library's own."""
    with Mark("pull", library):
        return step(*args)


async def _inside_async(library: str, step: Callable[..., Any], *args: Any) -> Any:
    with Mark("pull", library):
        return await step(*args)


class Hooks:
    """The hooks of one library, by the settings of one engine.

    Args:
        library: what there is to know of its calls and messages.
        engine: makes the operations.
        is_active: whether deliveries are traced, asked at each; the instrumentor answers. It also leaves to others
            what is theirs, where the explicit API does what it is told.
    """

    def __init__(self, library: Library, engine: Engine, is_active: Callable[[], bool] = _always) -> None:
        self.library = library
        self.engine = engine
        self.is_active = is_active
        self.settles = engine.settings.settle_spans
        self._reading = f"reading a message of {library.name}"
        self._writing = f"writing the headers of a publish with {library.name}"
        self._leaves_alone = _leaves_none_alone if is_active is _always else library.leaves_alone
        self._entered: Kept[AbstractContextManager[Span]] = Kept()

    # Publishing

    def publish(self, wrapped: Wrapped, producer: Any, args: Arguments, kwargs: Options) -> Any:
        """Around a call that publishes."""
        is_inner = is_inside("publish", self.library.name)
        publication = None if is_inner else self._publication(producer, args, kwargs, wrapped)
        if publication is None:
            return wrapped(*args, **kwargs)
        with publication.mark:
            publication.send.open()
            try:
                try:
                    args, kwargs = publication.arguments(args, kwargs)
                except Exception as error:
                    guard.fault(self._writing, error)
                result = wrapped(*args, **kwargs)
            except BaseException as error:
                publication.fail(error)
                raise
        try:
            publication.end(result)
        except Exception as error:
            self._failed_to_end(publication, error)
        return result

    async def publish_async(self, wrapped: Wrapped, producer: Any, args: Arguments, kwargs: Options) -> Any:
        """The same around a coroutine function."""
        is_inner = is_inside("publish", self.library.name)
        publication = None if is_inner else self._publication(producer, args, kwargs, wrapped)
        if publication is None:
            return await wrapped(*args, **kwargs)
        with publication.mark:
            publication.send.open()
            try:
                try:
                    args, kwargs = publication.arguments(args, kwargs)
                except Exception as error:
                    guard.fault(self._writing, error)
                result = await wrapped(*args, **kwargs)
            except BaseException as error:
                publication.fail(error)
                raise
        try:
            publication.end(result)
        except Exception as error:
            self._failed_to_end(publication, error)
        return result

    def _publication(
        self, producer: Any, args: Arguments, kwargs: Options, call: Wrapped
    ) -> Publication | None:
        library = self.library
        try:
            if self._leaves_alone(producer):
                return None
            publication = library.publication(producer, args, kwargs, call)
            if publication is None:
                return None
            if publication.about is not None and is_inside("publish", library.name, publication.about):
                return None
            publication.mark = Mark("publish", library.name, publication.about, publication)
            publication.send = publication.begin(self.engine)
            return publication
        except Exception as error:
            guard.fault(f"preparing a publish with {library.name}", error)
            return None

    def _failed_to_end(self, publication: Publication, error: Exception) -> None:
        publication.send.close()
        guard.fault(f"ending a publish with {self.library.name}", error)

    # Pulling

    def pull(self, wrapped: Wrapped, via: Any, args: Arguments, kwargs: Options) -> Any:
        """Around a call that returns messages, which opens no scope for what follows."""
        source = self._source(via, args, kwargs, wrapped)
        if source is None:
            return wrapped(*args, **kwargs)
        return self.pull_from(source, wrapped, *args, **kwargs)

    def pull_from(self, source: Source, pull: Wrapped, *args: Any, **kwargs: Any) -> Any:
        """The same where the source is known already: a step of a loop."""
        if is_inside("pull", self.library.name, source.about):
            return pull(*args, **kwargs)
        started_at = time.time_ns()
        try:
            with Mark("pull", self.library.name, source.about):
                returned = pull(*args, **kwargs)
        except BaseException as error:
            self._failed_to_pull(source, started_at, error)
            raise
        return self._pulled(returned, source, started_at)

    async def pull_async(self, wrapped: Wrapped, via: Any, args: Arguments, kwargs: Options) -> Any:
        """The same around a coroutine function."""
        source = self._source(via, args, kwargs, wrapped)
        if source is None:
            return await wrapped(*args, **kwargs)
        return await self.pull_from_async(source, wrapped, *args, **kwargs)

    async def pull_from_async(self, source: Source, pull: Wrapped, *args: Any, **kwargs: Any) -> Any:
        """The same where the source is known already."""
        if is_inside("pull", self.library.name, source.about):
            return await pull(*args, **kwargs)
        started_at = time.time_ns()
        try:
            with Mark("pull", self.library.name, source.about):
                returned = await pull(*args, **kwargs)
        except BaseException as error:
            self._failed_to_pull(source, started_at, error)
            raise
        return self._pulled(returned, source, started_at)

    def _source(self, via: Any, args: Arguments, kwargs: Options, call: Wrapped) -> Source | None:
        try:
            if self.library.loops_pull and is_inside("pull", self.library.name):
                return None  # it is the step of a loop, at each message
            return None if self._leaves_alone(via) else self.library.source(via, args, kwargs, call)
        except Exception as error:
            guard.fault(f"preparing a pull with {self.library.name}", error)
            return None

    def _pulled(self, returned: Any, source: Source, started_at: int) -> Any:
        """What the call's caller is given."""
        try:
            found = [self._native(given) for given in self.library.pulls(returned)]
            self._receive([it for it in found if it is not None], source, started_at, None)
            self._tell_unattached()
            if not self.engine.settings.loop_spans:
                return returned
            return self.library.handed_over(returned, self.step(source))
        except Exception as fault:
            guard.fault(f"tracing a pull with {self.library.name}", fault)
            return returned

    def _failed_to_pull(self, source: Source, started_at: int, error: BaseException) -> None:
        try:
            if not self.library.is_end(error):
                self._receive((), source, started_at, error)
        except Exception as fault:
            guard.fault(f"tracing a pull with {self.library.name}", fault)

    def _receive(
        self, natives: Sequence[Any], source: Source, started_at: int, error: BaseException | None
    ) -> None:
        """The span of the call. What it returned is counted here, and waits to be handled."""
        of = self.library.deliveries.of
        fresh = [native for native in natives if not of(native).is_pulled]
        if natives and not fresh:
            return  # a loop over what was pulled before
        receive = self.engine.receive(
            self.library.pulled_from(natives, source),
            batch=source.gives_several,
            started_at=started_at,
            has_span=self.engine.settings.receive_spans,
            counts=True,
        )
        taken = [self._taken(native, source, receive.add) for native in fresh]
        receive.open()
        for delivery in taken:
            delivery.is_counted = not receive.closed  # else it is suppressed, and its handling may not be
            # Of what is not traced nobody is to be told that it is not attached.
            delivery.is_attached = receive.closed
        receive.close(error)

    def _taken(self, native: Any, source: Source, add: Callable[[Message], None]) -> Delivery:
        library = self.library
        delivery, message = library.deliveries.of(native), library.message(native)
        add(message)
        delivery.is_pulled = True
        delivery.source = source
        delivery.destination = self._consumed_from(native, source)
        if self.settles and library.settles_each:
            self.await_settlement(native, source, delivery.destination, message)
        return delivery

    def _tell_unattached(self) -> None:
        """Of what was pulled and never handled inside its context. The garbage collector has noted it."""
        unattached = self.library.deliveries.unattached
        while unattached:
            destination = unattached.popleft()
            self.engine.count_unattached(destination)
            guard.mistake(
                f"handling messages of {destination.label or destination.system}",
                f"one was pulled and handled outside of its trace; {self.library.advice}",
            )

    # Handling

    def callback(
        self,
        handler: F,
        source: Source | Callable[[Any], Source] = Source,
        destination: Destination | None = None,
        wants_message: bool = False,
    ) -> F:
        """A handler that runs inside its message's span, wherever among its arguments the message is.

        Args:
            handler: sync, async or a generator function.
            source: where all of its messages are from; or what makes a source of what stands beside the message among
                the arguments (a channel).
            destination: instead of the one that the message tells.
            wants_message: whether a call without any is somebody's mistake.
        """
        library = self.library
        fixed = latest = source if isinstance(source, Source) else None

        def begin(args: Arguments, kwargs: Options) -> Scope | None:
            nonlocal latest
            found = library.delivery_among((*args, *kwargs.values()) if kwargs else args)
            if found is not None:
                native, via = found
                known = latest
                if fixed is None and (known is None or known.via is not via):
                    known = latest = source(via)  # type: ignore[operator]
                return self.process(native, known, destination)
            if wants_message:
                checks.say_no_message(handler, f"a {library.message_form}")
            return None

        return run_inside(handler, begin)

    def process(
        self,
        native: Any,
        source: Source | None = None,
        destination: Destination | None = None,
        is_looped: bool = False,
    ) -> Process | HandledAgain | None:
        """The handling of one delivery: its CONSUMER span, or the context of the one that it has already.

        None where nothing is to be traced. ``is_looped`` is a handling by the body of a loop.
        """
        library = self.library
        if native is None or library.is_nothing(native) or not self.is_active():
            return None
        if source is not None and self._leaves_alone(source.via):
            return None
        delivery = library.deliveries.of(native)
        earlier = delivery.process
        if earlier is not None and earlier.is_to_join:
            return HandledAgain(earlier)
        if source is None:
            source = delivery.source
        else:
            delivery.source = source
        if destination is None:
            destination = delivery.destination or self._consumed_from(native, source)
        message = library.message(native)
        delivery.process = process = self.engine.process(
            destination, message, is_counted=not delivery.is_counted
        )
        delivery.is_attached = True
        delivery.was_looped = is_looped
        if self.settles:
            self.await_settlement(native, source, destination, message)
        return process

    def _consumed_from(self, native: Any, source: Source | None) -> Destination:
        library = self.library
        route = None if source is None else library.route(native)
        if source is None or route is None:
            return library.consumed_from(native, source)
        latest = source.latest
        if latest is None or latest[0] != route:
            latest = source.latest = route, library.consumed_from(native, source)
        return latest[1]

    def registers(
        self,
        index: int,
        name: str,
        source: Callable[..., Source] | None = None,
        is_theirs: Callable[[Any], bool] = _is_nobody_s,
    ) -> Hook:
        """The hook around a method that registers a handler, sync or async, which then runs as in ``callback``.

        Args:
            index, name: the place and the name of the handler among the arguments.
            source: what is consumed from; else it is asked as ``Library.source`` is.
            is_theirs: whether a handler is the library's own, which only buffers.
        """

        def register(wrapped: Wrapped, via: Any, args: Arguments, kwargs: Options) -> Any:
            try:
                handler = calls.given(index, name, args, kwargs)
                above = is_spoken_for(via, getattr(handler, "__self__", None))
                if callable(handler) and not above and not is_theirs(handler):
                    of = (source or self.library.source)(via, args, kwargs, wrapped)
                    traced = equal_to(handler, self.callback(handler, of))
                    args, kwargs = calls.replaced(index, name, traced, args, kwargs)
            except Exception as error:
                guard.fault(f"wrapping a callback of {self.library.name}", error)
            return wrapped(*args, **kwargs)

        return register

    def iterates(self, kind: Callable[..., Any]) -> Hook:
        """The hook around a method that gives an iterator over messages, which is then as in ``loop``."""

        def iterate(wrapped: Wrapped, via: Any, args: Arguments, kwargs: Options) -> Any:
            messages = wrapped(*args, **kwargs)
            source = self._source(via, args, kwargs, wrapped)
            return messages if source is None else self.loop(kind, messages, source)

        return iterate

    async def enter_async(self, wrapped: Wrapped, manager: Any, args: Arguments, kwargs: Options) -> Any:
        """Around the ``__aenter__`` of the library's own context manager about a message, which it gives."""
        native = await wrapped(*args, **kwargs)
        scope = self.handled(native)
        scope.__enter__()
        self._entered.put(manager, None, scope)
        return native

    async def exit_async(self, wrapped: Wrapped, manager: Any, args: Arguments, kwargs: Options) -> Any:
        """Around its ``__aexit__``, which may settle: the span has the error of that, else that of the block.

        Where SIGTERM would have killed the process, nobody settles a message that was not handled to its end: the
        broker gives it to somebody else.
        """
        scope = self._entered.take(manager)
        error_of_block = calls.given(1, "exc_val", args, kwargs)
        if error_of_block is not None and sigterm.is_ending():
            if scope is not None:
                scope.__exit__(type(error_of_block), error_of_block, None)
            return None
        if scope is None:
            return await wrapped(*args, **kwargs)
        try:
            result = await wrapped(*args, **kwargs)
        except BaseException as error:
            scope.__exit__(type(error), error, None)
            raise
        scope.__exit__(None if error_of_block is None else type(error_of_block), error_of_block, None)
        return result

    def loop(
        self,
        kind: Callable[..., L],
        messages: Any,
        source: Source | None = None,
        destination: Destination | None = None,
    ) -> L:
        """A loop over messages, as an iterator of this kind; see ``iteration.py``."""
        is_async = kind is AsyncMessages
        if not self.engine.settings.loop_spans:
            pull = self.pull_from_async if is_async else self.pull_from
            return kind(messages, _no_scope, functools.partial(pull, source or Source(None)))
        inside = None
        if self.library.loops_pull:
            inside = functools.partial(_inside_async if is_async else _inside, self.library.name)
        return kind(messages, self.step(source, destination), inside)

    def step(self, source: Source | None = None, destination: Destination | None = None) -> Begin:
        """What is done with each message that a loop is given: its scope."""

        def begin(given: Any) -> Scope | None:
            return self.process(self._native(given), source, destination, is_looped=True)

        return begin

    def handled(self, given: Any, destination: Destination | None = None) -> AbstractContextManager[Span]:
        """``process`` for one pulled message, as a context manager in any case."""
        try:
            native = self._native(given)
            self._tell_of_workers(native)
            return self.process(native, None, destination) or nullcontext(INVALID_SPAN)
        except Exception as error:
            guard.fault(self._reading, error)
            return nullcontext(INVALID_SPAN)

    def _native(self, given: Any) -> Any:
        """The message; None where there is none in it."""
        library = self.library
        native = library.native(given)
        if library.is_nothing(native):
            return None
        if library.is_message(native):
            return native
        checks.say(self._reading, f"it is no {library.message_form}, and has no span", given)
        return None

    def _tell_of_workers(self, native: Any) -> None:
        delivery = None if native is None else self.library.deliveries.find(native)
        if delivery is None or not delivery.was_looped:
            return
        process = delivery.process
        if process is not None and process.closed and process.is_to_join:
            label = process.labels.destination.label or process.labels.destination.system
            guard.mistake(
                f"handling messages of {label}",
                "a loop has handed one on, and its span had ended with the loop's step; for loops that only hand on, "
                "Settings(loop_spans=False) makes the span here",
            )

    def handled_together(
        self, given: Iterable[Any], destination: Destination | None = None
    ) -> AbstractContextManager[Span]:
        """The handling of several deliveries at once, as a context manager in any case."""
        try:
            natives = [self._native(it) for it in given]
            return self._batch([it for it in natives if it is not None], destination)
        except Exception as error:
            guard.fault(f"reading the messages of a batch of {self.library.name}", error)
            return nullcontext(INVALID_SPAN)

    def _batch(self, natives: Sequence[Any], destination: Destination | None) -> ProcessBatch:
        library = self.library
        deliveries = [library.deliveries.of(native) for native in natives]
        source = next((it.source for it in deliveries if it.source is not None), None)
        messages = [library.message(native) for native in natives]
        destination = destination or library.pulled_from(natives, source)
        process = self.engine.process(
            destination, messages, is_counted=[not it.is_counted for it in deliveries]
        )
        for native, delivery, message in zip(natives, deliveries, messages, strict=True):
            delivery.is_attached = delivery.is_counted = True
            delivery.batch = process
            if self.settles:
                its_own = delivery.destination or destination
                self.await_settlement(native, delivery.source, its_own, message)
        return process

    # Settling

    def settle(self, wrapped: Wrapped, via: Any, args: Arguments, kwargs: Options) -> Any:
        """Around an ack, nack, reject or commit."""
        settling = self._settling(wrapped, via, args, kwargs)
        if settling is None:
            return wrapped(*args, **kwargs)
        with Mark("settle", self.library.name), settling.settle:
            result = wrapped(*args, **kwargs)
        settling.forget()
        return result

    async def settle_async(self, wrapped: Wrapped, via: Any, args: Arguments, kwargs: Options) -> Any:
        """The same around a coroutine function."""
        settling = self._settling(wrapped, via, args, kwargs)
        if settling is None:
            return await wrapped(*args, **kwargs)
        with Mark("settle", self.library.name), settling.settle:
            result = await wrapped(*args, **kwargs)
        settling.forget()
        return result

    def _settling(self, wrapped: Wrapped, via: Any, args: Arguments, kwargs: Options) -> _Settling | None:
        library = self.library
        if not self.settles or is_inside("settle", library.name):
            return None
        try:
            settlement = library.settled(via, args, kwargs, wrapped)
            if settlement is None:
                return None
            settling = _Settling(library, settlement)
            return settling if settling.begin(self.engine) else None
        except Exception as error:
            guard.fault(f"preparing a settlement with {library.name}", error)
            return None

    def await_settlement(
        self,
        native: Any,
        source: Source | None,
        destination: Destination,
        message: Message,
    ) -> None:
        """Where settlements are traced: remembers a delivery, without its body, until it is settled."""
        library = self.library
        place = library.settlement_of(native, source)
        if place is None or place[0] is None:
            return
        library.unsettled.put(*place, Unsettled(destination, message, library.deliveries.of(native)))


class _Settling:
    """A settling call under way: what it settles, and its operation."""

    settle: Settle

    def __init__(self, library: Library, settlement: Settlement) -> None:
        self._library = library
        self._settlement = settlement
        self._found = list(self._find())

    def begin(self, engine: Engine) -> bool:
        """Whether it settles something that was handed to the user."""
        settled = [unsettled for _, _, unsettled in self._found]
        if not settled:
            in_hand = self._in_hand()
            if in_hand is None:
                return False
            settled = [in_hand]
        settlement = self._settlement
        destination = settled[-1].destination
        if settlement.destination is not None:
            destination = settlement.destination([one.destination for one in settled])
        messages = [one.message for one in settled]
        self.settle = engine.settle(destination, messages, operation=settlement.operation)
        return True

    def forget(self) -> None:
        """It has succeeded: what it settled is not unsettled any more, unless it was delivered anew meanwhile."""
        kept = self._library.unsettled
        for holder, key, unsettled in self._found:
            if kept.find(holder, key) is unsettled:
                kept.take(holder, key)

    def _find(self) -> Iterator[tuple[Any, Any, Unsettled]]:
        kept, settlement = self._library.unsettled, self._settlement
        for holder in settlement.holders:
            keys = (
                [settlement.key] if settlement.picks is None else filter(settlement.picks, kept.keys(holder))
            )
            for key in keys:
                unsettled = kept.find(holder, key)
                if unsettled is not None:
                    yield holder, key, unsettled

    def _in_hand(self) -> Unsettled | None:
        """The message that is being handled here, if it is that one and nobody knows its channel or consumer."""
        scope = current_scope(get_current())
        if not isinstance(scope, Process) or scope.closed or scope.message.native is None:
            return None
        library, native = self._library, scope.message.native
        delivery = library.deliveries.find(native)
        if delivery is None or delivery.is_settled:
            return None
        place = library.settlement_of(native, delivery.source)
        if place is None or place[0] is not None:
            return None
        if not self._settlement.is_about(place[1]):
            return None
        delivery.is_settled = library.settles_each
        return Unsettled(scope.labels.destination, scope.message, delivery)
