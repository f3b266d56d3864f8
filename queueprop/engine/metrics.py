"""The instruments: two histograms and two counters of the conventions, and two of our own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary, ref

from opentelemetry.metrics import Counter, Histogram, MeterProvider, NoOpMeterProvider
from opentelemetry.util.types import AttributeValue

from queueprop.engine import semconv
from queueprop.engine.message import LONGEST_VALUE, Labels

Attributes = Mapping[str, AttributeValue]

OTHER = "_other"
"""What metrics call the destinations beyond ``Settings(destination_limit=...)``."""


COUNTERS = ("consumed", "context_missing", "sent", "unattached")
HISTOGRAMS = ("operation_duration", "process_duration", "queue_time")


class Instruments:
    """The instruments of one meter provider. ``enabled`` is false where nothing would be measured.

    The bucket boundaries are advisory (API 1.30 and newer): a View of the user's wins over them.
    """

    consumed: Counter
    context_missing: Counter
    operation_duration: Histogram
    process_duration: Histogram
    queue_time: Histogram
    sent: Counter
    unattached: Counter

    __slots__ = (*COUNTERS, *HISTOGRAMS, "__weakref__", "_known", "_limit", "_own", "enabled", "provider")

    def __init__(self, provider: MeterProvider, version: str, limit: int = 1000) -> None:
        self.enabled = _measures(provider)
        self.provider = provider
        self._limit = limit
        self._known = _known_to(provider)
        self._own = made(provider, version)
        self.use(_elsewhere[1] if _elsewhere is not None and _elsewhere[0] is provider else None)
        _all.append(ref(self, _all.remove))

    def use(self, others: Mapping[str, Any] | None) -> None:
        """Measures with those of these names from now on; with its own again where that is None."""
        for name, instrument in (self._own if others is None else others).items():
            setattr(self, name, instrument)

    def attributes_of(self, labels: Labels) -> Attributes:
        """What all measurements of an operation have in common, decided once for each of its destinations.

        The SDK keeps some kilobytes for each set of attributes for ever, so there is a limit to the destinations that
        have one of their own. Those beyond it share one.
        """
        measured = labels.measured
        if measured is None or measured[0] is not self._known:
            attributes = _attributes(labels) if self._knows(labels) else _attributes_of_others(labels)
            measured = labels.measured = (self._known, attributes)
        return measured[1]

    def _knows(self, labels: Labels) -> bool:
        return self._admits(_identity(labels))

    def admitted(self, attributes: Attributes) -> Attributes:
        """The same for attributes that another process has decided on."""
        if self._admits(tuple(attributes.get(key) for key in _IDENTITY)):
            return attributes
        further = {
            key: value for key, value in attributes.items() if key not in _IDENTITY or key in _OF_OTHERS
        }
        return {**further, semconv.DESTINATION_NAME: OTHER}

    def _admits(self, identity: _Identity) -> bool:
        if identity in self._known:
            return True
        if len(self._known) >= self._limit or _length(identity) > LONGEST_VALUE:
            return False
        self._known.add(identity)
        return True


def made(provider: MeterProvider, version: str) -> dict[str, Any]:
    """The instruments of a provider, by the names that they have in ``Instruments``."""
    meter = provider.get_meter("queueprop", version, schema_url=semconv.SCHEMA_URL)
    return {
        "operation_duration": meter.create_histogram(
            semconv.CLIENT_OPERATION_DURATION,
            unit="s",
            description="Duration of a messaging operation that a producer or consumer client started.",
            explicit_bucket_boundaries_advisory=semconv.DURATION_BUCKETS,
        ),
        "process_duration": meter.create_histogram(
            semconv.PROCESS_DURATION,
            unit="s",
            description="Duration of processing a message.",
            explicit_bucket_boundaries_advisory=semconv.DURATION_BUCKETS,
        ),
        "sent": meter.create_counter(
            semconv.CLIENT_SENT_MESSAGES,
            unit="{message}",
            description="Messages that a producer tried to send.",
        ),
        "consumed": meter.create_counter(
            semconv.CLIENT_CONSUMED_MESSAGES,
            unit="{message}",
            description="Messages that were delivered to the application, once a delivery.",
        ),
        "context_missing": meter.create_counter(
            semconv.CONTEXT_MISSING,
            unit="{message}",
            description="Deliveries whose message carried no usable context, by reason.",
        ),
        "unattached": meter.create_counter(
            semconv.CONTEXT_UNATTACHED,
            unit="{message}",
            description="Messages that were pulled and then handled outside of their context.",
        ),
        "queue_time": meter.create_histogram(
            semconv.MESSAGE_QUEUE_TIME,
            unit="s",
            description="Time from a message's publish to its processing, without the delay that was asked for.",
            explicit_bucket_boundaries_advisory=semconv.QUEUE_TIME_BUCKETS,
        ),
    }


def measure_elsewhere(provider: MeterProvider, instruments: Mapping[str, Any]) -> None:
    """In this process, and not in its children: what would be measured with this provider is with these instruments."""
    global _elsewhere
    _elsewhere = (provider, instruments)
    for one in _alive():
        one.use(instruments if one.provider is provider else None)


def measure_here() -> None:
    """As before ``measure_elsewhere``."""
    global _elsewhere
    if _elsewhere is None:
        return
    _elsewhere = None
    for one in _alive():
        one.use(None)


def is_measured_elsewhere(provider: MeterProvider) -> bool:
    return _elsewhere is not None and _elsewhere[0] is provider


_elsewhere: tuple[MeterProvider, Mapping[str, Any]] | None = None
_all: list[ref[Instruments]] = []
"""No WeakSet: another thread may make some while they are gone through."""


def _alive() -> list[Instruments]:
    return [one for it in list(_all) if (one := it()) is not None]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=measure_here)


def _measures(provider: MeterProvider) -> bool:
    # The API's own stand-in, for as long as no provider is set, has no public name.
    return not isinstance(provider, NoOpMeterProvider) and type(provider).__name__ != "_ProxyMeterProvider"


_Identity = tuple[object, ...]

_IDENTITY = (
    semconv.OPERATION_NAME,
    semconv.SYSTEM,
    semconv.DESTINATION_NAME,
    semconv.DESTINATION_TEMPLATE,
    semconv.DESTINATION_PARTITION_ID,
    semconv.CONSUMER_GROUP_NAME,
    semconv.SERVER_ADDRESS,
    semconv.SERVER_PORT,
)
"""The attributes that stand for what ``_identity`` gives, in its order."""

_OF_OTHERS = (semconv.OPERATION_NAME, semconv.SYSTEM, semconv.SERVER_ADDRESS, semconv.SERVER_PORT)

# The destinations that have attributes of their own in the metrics of a provider, whichever engine measured them.
_known: WeakKeyDictionary[MeterProvider, set[_Identity]] = WeakKeyDictionary()


def _known_to(provider: MeterProvider) -> set[_Identity]:
    try:
        return _known.setdefault(provider, set())
    except TypeError:  # it cannot be referred to weakly, or has no hash
        return set()


def _identity(labels: Labels) -> _Identity:
    destination = labels.destination
    return (
        labels.name,
        destination.system,
        _name(labels),
        labels.template,
        destination.partition_id,
        destination.consumer_group,
        destination.server_address,
        destination.server_port,
    )


def _length(identity: _Identity) -> int:
    return sum(len(text) for text in identity if isinstance(text, str))


def _name(labels: Labels) -> str | None:
    """The destination's name, where it is one of few."""
    destination = labels.destination
    is_of_many = destination.temporary or destination.anonymous or labels.template
    return None if is_of_many else destination.name


def _attributes(labels: Labels) -> Attributes:
    return _without_none(
        {
            semconv.SYSTEM: labels.destination.system,
            semconv.OPERATION_NAME: labels.name,
            semconv.DESTINATION_NAME: _name(labels),
            semconv.DESTINATION_TEMPLATE: labels.template,
            semconv.DESTINATION_PARTITION_ID: labels.destination.partition_id,
            semconv.CONSUMER_GROUP_NAME: labels.destination.consumer_group,
            semconv.SERVER_ADDRESS: labels.destination.server_address,
            semconv.SERVER_PORT: labels.destination.server_port,
        }
    )


def _attributes_of_others(labels: Labels) -> Attributes:
    return _without_none(
        {
            semconv.SYSTEM: labels.destination.system,
            semconv.OPERATION_NAME: labels.name,
            semconv.DESTINATION_NAME: OTHER,
            semconv.SERVER_ADDRESS: labels.destination.server_address,
            semconv.SERVER_PORT: labels.destination.server_port,
        }
    )


def _without_none(attributes: Mapping[str, AttributeValue | None]) -> Attributes:
    return {key: value for key, value in attributes.items() if value is not None}
