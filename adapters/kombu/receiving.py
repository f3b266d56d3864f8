"""Where a delivery meets the user's code: ``Consumer._receive_callback``, which knows callbacks of every kind.

It knows callbacks as well as an ``on_message`` that was set later, and what could not be decoded. Code of kombu's or
Celery's own that is registered there only buffers or dispatches, so there is no span around it.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Sequence
from typing import Any

from kombu.messaging import Consumer

from queueprop import guard
from queueprop.adapters.kombu.celery import is_control
from queueprop.engine.scope import Scope
from queueprop.kit.calls import Arguments, Options, beneath_partials
from queueprop.kit.handlers import run_inside
from queueprop.kit.hooks import Hooks
from queueprop.kit.library import Source
from queueprop.kit.proxies import Proxy


def is_received_here(callback: Any) -> bool:
    """Whether what is registered with a queue is a Consumer's."""
    return isinstance(callback, types.MethodType) and isinstance(callback.__self__, Consumer)


def deliver(hooks: Hooks, callback: types.MethodType, queue: str, raw: Any) -> Any:
    """In place of a consumer's ``_receive_callback``, with a delivery as the transport gives it."""
    receive: Callable[[Any], Any] = callback
    try:
        consumer = callback.__self__
        exchange = (getattr(raw, "delivery_info", None) or {}).get("exchange")
        if hooks.is_active() and _has_handler_of_the_user(consumer) and not is_control(exchange):
            receive = _rebound(callback, _Receiving(consumer, hooks, queue))
    except Exception as error:
        guard.fault("looking at a delivery of kombu", error)
    return receive(raw)


def is_of_the_user(callback: Any) -> bool:
    """Whether what is registered with a queue is a function of the user's, which is given what the transport gives."""
    try:
        return callable(callback) and not _is_of_a_library(callback)
    except Exception as error:
        guard.fault("looking at a callback of kombu's", error)
        return False


def registered(hooks: Hooks, callback: Callable[..., Any], queue: str) -> Callable[..., Any]:
    """In place of such a function."""

    def begin(args: Arguments, kwargs: Options) -> Scope | None:
        found = hooks.library.delivery_among((*args, *kwargs.values())) if hooks.is_active() else None
        if found is None or is_control(found[0].delivery_info.get("exchange")):
            return None
        return hooks.process(found[0], Source(None, queue))

    return run_inside(callback, begin)


class _Receiving(Proxy):
    """A consumer as its ``_receive_callback`` sees it for one delivery: what it calls runs in the message's span.

    The consumer itself stays as it is: it is the user's, and several threads may look at it.
    """

    def __init__(self, consumer: Any, hooks: Hooks, queue: str) -> None:
        super().__init__(consumer)
        self._self_hooks = hooks
        self._self_queue = queue
        self._self_is_undecodable = False

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "__wrapped__" or name.startswith("_self_"):
            super().__setattr__(name, value)
        else:
            setattr(self.__wrapped__, name, value)

    @property
    def on_message(self) -> Any:
        handler = self.__wrapped__.on_message
        return handler and (lambda message: self._self_handle(message, handler, message))

    def receive(self, body: Any, message: Any) -> Any:
        return self._self_handle(message, self.__wrapped__.receive, body, message)

    @property
    def on_decode_error(self) -> Any:
        handler = self.__wrapped__.on_decode_error
        return handler if self._self_is_undecodable else functools.partial(self._self_refuse, handler)

    def _self_handle(self, message: Any, handler: Callable[..., Any], *args: Any) -> Any:
        process = self._self_process(message)
        if process is None:
            return handler(*args)
        process.open()
        try:
            result = handler(*args)
        except BaseException as raised:
            process.close(raised)
            raise
        process.close()
        return result

    def _self_refuse(self, handler: Any, message: Any, error: Exception) -> None:
        """What could not be decoded is an error of its span, also where a callback of the user's deals with it."""
        self._self_is_undecodable = True
        process = self._self_process(message)
        if process is not None:
            process.open()
        try:
            if handler is None:
                raise error
            handler(message, error)
        except BaseException as raised:
            if process is not None:
                process.close(raised)
            raise
        if process is not None:
            process.close(error)

    def _self_process(self, message: Any) -> Scope | None:
        try:
            return self._self_hooks.process(message, Source(None, self._self_queue))
        except Exception as error:
            guard.fault("reading a message before its handler", error)
            return None


def _rebound(callback: types.MethodType, consumer: Any) -> Callable[[Any], Any]:
    """The same method of another object, with whatever wrapper somebody else has put around it."""
    if type(callback) is types.MethodType:
        return types.MethodType(callback.__func__, consumer)
    owner = type(callback.__self__)
    bound: Callable[[Any], Any] = inspect.getattr_static(owner, callback.__name__).__get__(consumer, owner)
    return bound


def _has_handler_of_the_user(consumer: Any) -> bool:
    if consumer.on_message:
        handlers: Sequence[Any] = (consumer.on_message,)
    elif _has_receive_of_its_own(consumer):
        handlers = (consumer.receive,)
    else:
        handlers = consumer.callbacks
    return not handlers or not all(map(_is_of_a_library, handlers))


def _has_receive_of_its_own(consumer: Any) -> bool:
    if "receive" in vars(consumer):
        return True
    return next(kind for kind in type(consumer).__mro__ if "receive" in vars(kind)) is not Consumer


def _is_of_a_library(handler: Any) -> bool:
    """Whether this callback is kombu's or Celery's own, which buffers or dispatches."""
    return str(getattr(beneath_partials(handler), "__module__", "")).partition(".")[0] in ("celery", "kombu")
