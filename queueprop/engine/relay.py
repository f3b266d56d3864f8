"""What a process measures and another one records: a child that lives for one job hands it over to its parent.

A child's series are its own. One that lives for one job begins all of them anew, with a request of its own to the
Collector, and a cumulative counter that ends at 1. Its parent has one set of series for all of them.

That takes a meter provider whose measurements stay with the process (``Inheritable``): an SDK's are copied by a fork,
and the child would export its parent's as well. Who has another one measures as if there were no such thing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, cast

from opentelemetry.context import Context
from opentelemetry.metrics import MeterProvider
from opentelemetry.util.types import AttributeValue

from queueprop import guard
from queueprop.engine import metrics, semconv
from queueprop.engine.message import bounded
from queueprop.engine.metrics import COUNTERS, HISTOGRAMS, Attributes, Instruments
from queueprop.version import __version__


class Inheritable(Protocol):
    """A meter provider that knows another one beside it for what a fork is not to copy."""

    def not_inherited(self) -> MeterProvider | None:
        """That one, of this process; None where there is none."""


def records_for_children(instruments: Instruments) -> bool:
    """Whether this process records what its children hand over. From the first time on, what it measures itself is
    recorded in the same series.
    """
    provider: Any = instruments.provider
    if not instruments.enabled or metrics.is_measured_elsewhere(provider):
        return instruments.enabled
    try:
        not_inherited = getattr(provider, "not_inherited", None)
        kept = None if not_inherited is None else cast(Inheritable, provider).not_inherited()
        if kept is None:
            return False
        metrics.measure_elsewhere(provider, metrics.made(kept, __version__))
        return True
    except Exception as error:
        guard.fault("preparing the metrics of child processes", error)
        return False


class Relay:
    """In a child, from now to ``end``: what it measures with these instruments is not recorded but kept."""

    def __init__(self, instruments: Instruments) -> None:
        self._instruments = instruments
        self._measured: list[tuple[str, float, Attributes]] = []
        notes = {name: _Note(name, self._measured) for name in (*COUNTERS, *HISTOGRAMS)}
        metrics.measure_elsewhere(instruments.provider, notes)

    def end(self, room: int) -> bytes:
        """What it has kept, in so many bytes at most. What finds no room in them the child records itself."""
        metrics.measure_here()
        packed: list[str] = []
        left = room - len("[]")
        for name, attributes, values in self._grouped():
            text = json.dumps((name, attributes, values), separators=(",", ":"))
            left -= len(text) + len(",")
            if left >= 0:
                packed.append(text)
            else:
                left += len(text) + len(",")
                _record(self._instruments, name, attributes, values)
        return f"[{','.join(packed)}]".encode()

    def _grouped(self) -> Iterator[tuple[str, Attributes, list[float]]]:
        groups: dict[tuple[str, tuple[tuple[str, AttributeValue], ...]], list[float]] = {}
        for name, value, attributes in self._measured:
            groups.setdefault((name, tuple(attributes.items())), []).append(value)
        for (name, items), values in groups.items():
            yield name, dict(items), [sum(values)] if name in COUNTERS else values


class _Note:
    """An instrument that notes what it is told."""

    def __init__(self, name: str, measured: list[tuple[str, float, Attributes]]) -> None:
        self._name = name
        self._measured = measured

    def add(self, amount: float, attributes: Attributes, context: Context | None = None) -> None:
        self._measured.append((self._name, amount, attributes))

    record = add


def record(instruments: Instruments, packed: bytes, context: Context | None) -> None:
    """Records what a child has handed over, as far as it is what a child hands over.

    ``context`` is that of the message that the child handled, for exemplars.
    """
    for name, attributes, values in _entries(packed):
        of_message = context if name in _OF_MESSAGE else None
        _record(instruments, name, instruments.admitted(attributes), values, of_message)


_OF_MESSAGE = ("process_duration", "queue_time")


def _record(
    instruments: Instruments,
    name: str,
    attributes: Attributes,
    values: list[float],
    context: Context | None = None,
) -> None:
    instrument = getattr(instruments, name)
    measure = instrument.add if name in COUNTERS else instrument.record
    for value in values:
        measure(value, attributes, context)


# What comes from another process is input


def _entries(packed: bytes) -> Iterator[tuple[str, Attributes, list[float]]]:
    try:
        entries = json.loads(packed)
    except (ValueError, RecursionError):
        return
    for entry in entries if isinstance(entries, list) else ():
        if not isinstance(entry, list) or len(entry) != 3:
            continue
        name, attributes, values = entry
        if _are_amounts(name, values) and _are_attributes(attributes):
            yield name, {key: bounded(value) for key, value in attributes.items()}, values


def _are_amounts(name: object, values: object) -> bool:
    kinds = _KINDS.get(name) if isinstance(name, str) else None
    if kinds is None or not isinstance(values, list):
        return False
    return all(type(value) in kinds and 0 <= value < _MOST for value in values)


_KINDS: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(COUNTERS, (int,)),
    **dict.fromkeys(HISTOGRAMS, (int, float)),
}

_MOST = 1 << 53


def _are_attributes(attributes: object) -> bool:
    return isinstance(attributes, dict) and all(
        type(value) is _ATTRIBUTES.get(key) for key, value in attributes.items()
    )


_ATTRIBUTES: Mapping[str, type] = {
    semconv.SYSTEM: str,
    semconv.OPERATION_NAME: str,
    semconv.OPERATION_TYPE: str,
    semconv.DESTINATION_NAME: str,
    semconv.DESTINATION_TEMPLATE: str,
    semconv.DESTINATION_PARTITION_ID: str,
    semconv.CONSUMER_GROUP_NAME: str,
    semconv.SERVER_ADDRESS: str,
    semconv.SERVER_PORT: int,
    semconv.ERROR_TYPE: str,
    semconv.REASON: str,
}
