"""A delivery as its settlement needs it: without its body, which may be large, and without the library's objects."""

from __future__ import annotations

from queueprop.engine.message import Destination, Message
from queueprop.kit.deliveries import Delivery


class Unsettled:
    """One delivery that waits for its ack or commit.

    Args:
        destination: where it was delivered from.
        message: as read; what of it is not needed is not kept.
        delivery: what is known of it, its handling above all, once there is one.
    """

    __slots__ = ("_delivery", "_message", "destination")

    def __init__(self, destination: Destination, message: Message, delivery: Delivery) -> None:
        self.destination = destination
        self._delivery = delivery
        self._message = Message(
            headers=message.headers,
            id=message.id,
            conversation_id=message.conversation_id,
            attributes=message.attributes,
        )

    @property
    def message(self) -> Message:
        """The message, with the context that its settlement's span is a child of."""
        process = self._delivery.process or self._delivery.batch
        self._message.process_context = None if process is None else process.settle_context
        return self._message
