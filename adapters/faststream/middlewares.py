"""The middlewares that a broker of FastStream's has, in whatever version, and ours among them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from queueprop.adapters.faststream.chain import is_rival
from queueprop.adapters.faststream.versions import LAST_IS_OUTERMOST, STEPS_OF_A_MESSAGE
from queueprop.kit.nesting import take_over


def has_rival(instance: Any) -> bool:
    return any(map(is_rival, middlewares_of(instance)))


def middlewares_of(instance: Any) -> Sequence[Any]:
    """Those of the broker, of which this is one, or a publisher or subscriber."""
    config = config_of(instance)
    if config is not None:
        found: Sequence[Any] = config.broker_middlewares
    elif hasattr(instance, "_broker_middlewares"):
        found = instance._broker_middlewares
    else:
        found = instance._middlewares
    return found


def config_of(instance: Any) -> Any:
    """Which a broker shares with its publishers and subscribers; None before 0.6, where each has its own list."""
    if not STEPS_OF_A_MESSAGE:
        return None
    return getattr(instance, "_outer_config", None) or instance.config


def insert(instance: Any, middleware: Any) -> None:
    config = config_of(instance)
    if config is not None:
        config.insert_middleware(middleware)
        return
    instance._middlewares = outermost(middleware, instance._middlewares)
    for it in (*instance._subscribers.values(), *instance._publishers.values()):
        it._broker_middlewares = outermost(middleware, it._broker_middlewares)
        take_over(it)  # one of RabbitMQ's is started before its `start`


def outermost(middleware: Any, others: Iterable[Any]) -> tuple[Any, ...]:
    """Before 0.5.31 the last of a broker's middlewares is around the others."""
    return (*others, middleware) if LAST_IS_OUTERMOST else (middleware, *others)
