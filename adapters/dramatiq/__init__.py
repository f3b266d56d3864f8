"""Dramatiq: messages in their senders' traces. Dramatiq 1.17 to 2, every broker that Dramatiq's own workers consume.

The context travels in the message's options, as ``options["queueprop"]``, a mapping of text. It is that of the moment
when the message is enqueued, not when it is built, and is put into a copy: ``send`` and ``enqueue`` return what went
out, and so what arrives; a message of the caller's own stays as it was.

What Dramatiq itself enqueues again (a retry, a delayed message that is due) is no publish: it keeps the context of its
first one. A pipeline's next message, callbacks of actors and of groups are publishes, inside the span of the message
that led to them.

Two things shape this adapter:

- Middleware hooks come in pairs that do not always meet, and in an order that depends on who was added first. So the
  two calls that matter are wrapped whole, on objects that the hooks hand out: ``Broker.enqueue`` of the broker, and
  ``process_message`` of a worker's thread. Where the middleware stands among others makes no difference then.
- A time limit and a shutdown are raised in a worker's thread at any point of it, code of ours included. Whatever
  was current before a message is put back behind it, in the frame that saw it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from queueprop.kit import checks
from queueprop.kit.jobs import Children
from queueprop.kit.libraries import missing_extra
from queueprop.kit.on_demand import on_demand
from queueprop.settings import Settings

try:
    from dramatiq import Middleware
except ModuleNotFoundError as error:
    if error.name != "dramatiq":
        raise
    raise missing_extra(__name__, "Dramatiq", "dramatiq") from None

from queueprop.adapters.dramatiq.hooks import Hooks
from queueprop.adapters.dramatiq.messages import OPTION as OPTION
from queueprop.adapters.dramatiq.messages import SYSTEM as SYSTEM
from queueprop.adapters.dramatiq.performing import MESSAGE_FAILED as MESSAGE_FAILED
from queueprop.adapters.dramatiq.performing import note_failure, note_skip

if TYPE_CHECKING:
    from queueprop.adapters.dramatiq.instrumentor import DramatiqInstrumentor
else:
    __getattr__, __dir__ = on_demand(__name__, DramatiqInstrumentor="instrumentor")

__all__ = [
    "OPTION",
    "SYSTEM",
    "DramatiqInstrumentor",
    "QueuepropMiddleware",
]


class QueuepropMiddleware(Middleware):
    """Traces what a broker enqueues, and what its workers process::

        broker.add_middleware(QueuepropMiddleware())

    Add it where the broker is made, before actors are declared or after, but before a worker starts; and anywhere
    among other middleware: what these enqueue is inside the message's span in any case. One object may serve several
    brokers.

    Dramatiq tells a middleware of its broker by the first hook. A broker without any actor or queue has none before
    its first message: that one has its span and its context, but an error of its enqueue is not on the span, and
    leaves the context in its options, until it is enqueued again; what its enqueue returns may be without the context;
    and pika's instrumentor, if it is on, traces it as well.

    Args:
        settings: instead of those of the environment.

    Raises TypeError for what are no settings.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        engine = checks.engine_of(settings, "QueuepropMiddleware")
        self._hooks = Hooks(engine)
        self._publishing = self._hooks.publishing
        self._children = Children(engine.settings.flush_timeout)

    # What a broker calls first, whatever it is used for.

    def before_declare_actor(self, broker: Any, actor: Any) -> None:
        self._hooks.join_broker(broker)

    def after_declare_actor(self, broker: Any, actor: Any) -> None:
        self._hooks.join_broker(broker)

    def before_declare_queue(self, broker: Any, queue_name: str) -> None:
        self._hooks.join_broker(broker)

    def after_declare_queue(self, broker: Any, queue_name: str) -> None:
        self._hooks.join_broker(broker)

    def before_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
        self._hooks.join_broker(broker)
        self._publishing.enqueue_unseen(broker, message, delay)

    def after_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
        self._publishing.enqueued_unseen(message)

    # A worker's threads, before they begin.

    def after_consumer_thread_boot(self, broker: Any, thread: Any) -> None:
        self._hooks.join_consumer(thread)

    def after_worker_thread_boot(self, broker: Any, thread: Any) -> None:
        self._hooks.join_worker(thread)

    # What became of a message: its exception stays within ``process_message``.

    def after_process_message(
        self, broker: Any, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        note_failure(message, exception)

    def after_skip_message(self, broker: Any, message: Any) -> None:
        note_skip(message)
