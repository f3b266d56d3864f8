"""The libraries without a broker: their own objects, down to where they would use a socket."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

LIBRARIES = (
    *("pika", "aio-pika", "aiokafka", "confluent-kafka", "faststream"),
    *("bullmq", "celery", "kombu", "dramatiq", "rq"),
)

BY_HAND = ("pika", "aio-pika", "aiokafka", "confluent-kafka", "celery")
"""Those that are measured by hand as well."""

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
"""The creation context of every delivery."""

Handler = Callable[[], object]


class Stub(ABC):
    """One library. It is made once the library is instrumented, if at all."""

    system: ClassVar[str]
    """``messaging.system``"""

    cut: ClassVar[str]
    """Where it ends: what below is a stand-in. Empty where nothing is."""

    published_to = "orders"
    consumed_from = "orders"

    @abstractmethod
    def publishes(self, count: int) -> Callable[[], object]:
        """Prepares as many publishes, and gives what does them."""

    @abstractmethod
    def deliveries(self, count: int, handler: Handler) -> Callable[[], object]:
        """Prepares as many deliveries, all with ``TRACEPARENT``, and gives what hands them to a handler."""

    def publishes_by_hand(self, count: int) -> Callable[[], object]:
        """The same with what OpenTelemetry documents to do by hand; only for those of ``BY_HAND``."""
        raise NotImplementedError

    def deliveries_by_hand(self, count: int, handler: Handler) -> Callable[[], object]:
        """The same, with a link to the creation context."""
        raise NotImplementedError

    @abstractmethod
    def written(self) -> Mapping[str, str]:
        """The headers of the latest publish, as they went out."""


def stub_of(library: str) -> Stub:
    """Raises ImportError where the library is not installed."""
    module = importlib.import_module(f"{__name__}.{library.replace('-', '_')}")
    made: Stub = module.make()
    return made


def texts(headers: Mapping[str, object] | None) -> dict[str, str]:
    """Headers as text, whatever the library has."""
    return {
        name: value.decode() if isinstance(value, bytes) else str(value)
        for name, value in (headers or {}).items()
    }
