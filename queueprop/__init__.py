"""Carries OpenTelemetry context through message queues.

A producer writes W3C ``traceparent``, ``tracestate`` and ``baggage`` into the message's headers; the consumer's span is
attached to that trace, and the handler runs inside it. For the libraries that it knows see ``queueprop.adapters``; for
any other queue the functions here are enough.

(For pytest, which would warn of a package that was imported before it: PYTEST_DONT_REWRITE.)
"""

from queueprop.api import (
    carry_context,
    process_span,
    receive_span,
    send_span,
    settle_span,
    traced_consumer,
)
from queueprop.engine.message import Destination, Message
from queueprop.kit.libraries import instrument, uninstrument
from queueprop.settings import Settings
from queueprop.version import __version__
from queueprop.wire.propagation import extract, inject

__all__ = [
    "Destination",
    "Message",
    "Settings",
    "__version__",
    "carry_context",
    "extract",
    "inject",
    "instrument",
    "process_span",
    "receive_span",
    "send_span",
    "settle_span",
    "traced_consumer",
    "uninstrument",
]
