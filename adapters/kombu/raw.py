"""Deliveries of py-amqp's, which a queue's own callback is given as the transport gives them."""

from __future__ import annotations

from typing import Any

from amqp.basic_message import Message as RawMessage


def read(raw: Any) -> Any:
    """The message in a delivery of py-amqp's, as kombu reads it, the same one each time; None of whatever else."""
    if not isinstance(raw, RawMessage):
        return None
    message = vars(raw).get(_READ)
    if message is None:
        message = vars(raw)[_READ] = raw.channel.message_to_python(raw)
    return message


_READ = "_queueprop_read"
