"""What is done around the calls that publish; around all others it is what every library has."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from queueprop.adapters.confluent_kafka.aio import join
from queueprop.adapters.confluent_kafka.batches import is_of_c, producing_each, say_unreached
from queueprop.adapters.confluent_kafka.clients import AIO_PRODUCER
from queueprop.adapters.confluent_kafka.publishing import fitting
from queueprop.kit import calls
from queueprop.kit.calls import Arguments, Options, Wrapped
from queueprop.kit.hooks import Hooks as LibraryHooks


class Hooks(LibraryHooks):
    """What confluent-kafka has besides: limits that it does not tell, and batches without headers."""

    def produce(self, wrapped: Wrapped, producer: Any, args: Arguments, kwargs: Options) -> Any:
        return self.publish(functools.partial(fitting, wrapped), producer, args, kwargs)

    def produce_batch(self, wrapped: Wrapped, producer: Any, args: Arguments, kwargs: Options) -> Any:
        if not is_of_c(wrapped):
            say_unreached(wrapped)
            return wrapped(*args, **kwargs)
        return self.publish(functools.partial(producing_each, wrapped), producer, args, kwargs)

    async def produce_later(self, wrapped: Wrapped, producer: Any, args: Arguments, kwargs: Options) -> Any:
        """Around the ``produce`` of an AIOProducer, and around a coroutine function."""
        if isinstance(producer, AIO_PRODUCER):
            join(producer)
        return await self.publish_async(wrapped, producer, args, kwargs)

    def hook_of(self, publish: Any) -> calls.Hook:
        if inspect.iscoroutinefunction(calls.beneath_partials(publish)):
            return self.produce_later
        return self.produce_batch if calls.name_of(publish) == "produce_batch" else self.produce
