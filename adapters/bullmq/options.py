"""BullMQ's jobs as messages: the context in their options, as Node has it; their destination; their times."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

from opentelemetry.util.types import AttributeValue

from queueprop.engine.message import Destination, bounded, remembered
from queueprop.kit import calls, redis
from queueprop.wire import propagation

SYSTEM = "bullmq"
"""``messaging.system``: the conventions have no value for BullMQ, and this is what its users would search for."""

CONTEXT = "tm"
"""Where the context travels: text that is the JSON of an object. What is anything else stops a worker of Node's."""

_TELEMETRY = "telemetry"
_METADATA = "metadata"
"""What Node makes of it, and some write by hand: an object whose ``metadata`` is the same text."""

_NOTHING = object()

MAPPING = (dict, Mapping)
"""What options may be: nearly always the first, of which it is quickly told."""


def omits_context(opts: Any) -> bool:
    """Whether who publishes a job wants no context to be carried: then none is missing."""
    if not isinstance(opts, MAPPING):
        return False
    if opts.get("omc"):
        return True
    telemetry = opts.get(_TELEMETRY)
    return telemetry is not None and isinstance(telemetry, MAPPING) and bool(telemetry.get("omitContext"))


def headers_in(opts: Any) -> object:
    """What a job came with: None where there is nothing, and for junk what reads as broken."""
    found: object = _NOTHING
    if isinstance(opts, MAPPING):
        found = opts.get(CONTEXT, _NOTHING)
        telemetry = opts.get(_TELEMETRY) if found is _NOTHING else None
        if telemetry is not None and isinstance(telemetry, MAPPING):
            found = telemetry.get(_METADATA, _NOTHING)
    if found is _NOTHING:
        return None
    carrier = None
    if isinstance(found, str):
        with contextlib.suppress(ValueError, RecursionError):
            carrier = json.loads(found)
    return carrier if isinstance(carrier, dict) else propagation.broken()


def headers_for(opts: Any) -> dict[str, Any]:
    """Where a publish writes its context: ours to write to, with what a forwarded job has, to be replaced."""
    found = headers_in(opts)
    if not isinstance(found, dict):
        return {}
    return {name: value for name, value in found.items() if isinstance(value, str)}


def with_headers(opts: Mapping[str, Any], headers: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy of the options with this context, in one place; without any, an old one goes."""
    copied = {name: value for name, value in opts.items() if name != CONTEXT}
    written = {CONTEXT: json.dumps(headers, separators=(",", ":"))} if headers else {}
    telemetry = copied.pop(_TELEMETRY, None)
    if telemetry is not None and isinstance(telemetry, MAPPING):
        telemetry = {name: value for name, value in telemetry.items() if name != _METADATA}
        if telemetry and written:
            # Beside ``tm`` Node takes the one or the other, as Redis happens to order them.
            telemetry[_METADATA] = written.pop(CONTEXT)
    if telemetry:
        copied[_TELEMETRY] = telemetry
    return {**copied, **written}


def delay_in(opts: Any) -> float | None:
    """The seconds for which a job was meant to wait."""
    delay = opts.get("delay") if isinstance(opts, MAPPING) else None
    return delay / 1000 if isinstance(delay, (int, float)) and 0 < delay < _LONGEST_DELAY else None


_LONGEST_DELAY = 1e15  # a number of any size may stand there, which no float need hold


def attributes_of(name: Any) -> dict[str, AttributeValue] | None:
    """Of a job of this name, as bullmq-otel has it."""
    return {"bullmq.job.name": bounded(name)} if isinstance(name, str) else None


def destination_of(owner: Any, name: Any) -> Destination:
    """``owner`` is a queue, worker or flow producer; None where a call is nobody's."""
    client = getattr(owner, "client", None)
    if client is None:
        client = getattr(getattr(owner, "backend", None), "conn", None)
    return _destination_at(calls.text(name), *redis.address_of(client))


@remembered
def _destination_at(name: str | None, host: str | None, port: int | None) -> Destination:
    return Destination(system=SYSTEM, name=name, server_address=host, server_port=port)
