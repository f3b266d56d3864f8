"""A delivery as its settlement needs it: without its body, which may be large, and without the library's objects."""

from __future__ import annotations

from queueprop.engine.message import Destination, Message
from queueprop.engine.operations import Process, ProcessBatch


class Unsettled:
    """One delivery that waits for its ack or commit.

    Args:
        destination: where it was delivered from.
        message: as read; what of it is not needed is not kept.
        process: its handling, once there is one.
    """

    __slots__ = ("_message", "destination", "process")

    def __init__(
        self, destination: Destination, message: Message, process: Process | ProcessBatch | None = None
    ) -> None:
        self.destination = destination
        self.process = process
        self._message = Message(
            headers=message.headers,
            id=message.id,
            conversation_id=message.conversation_id,
            attributes=message.attributes,
        )

    @property
    def message(self) -> Message:
        """The message, with the context that its settlement's span is a child of."""
        self._message.process_context = None if self.process is None else self.process.settle_context
        return self._message
