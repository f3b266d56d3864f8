"""The instruments: two histograms and two counters of the conventions, and two of our own."""

from __future__ import annotations

from collections.abc import Mapping
from weakref import WeakKeyDictionary

from opentelemetry.metrics import MeterProvider, NoOpMeterProvider
from opentelemetry.util.types import AttributeValue

from queueprop.engine import semconv
from queueprop.engine.message import LONGEST_VALUE, Labels

Attributes = Mapping[str, AttributeValue]

OTHER = "_other"
"""What metrics call the destinations beyond ``Settings(destination_limit=...)``."""


class Instruments:
    """The instruments of one meter provider. ``enabled`` is false where nothing would be measured.

    The bucket boundaries are advisory (API 1.30 and newer): a View of the user's wins over them.
    """

    __slots__ = (
        "_known",
        "_limit",
        "consumed",
        "context_missing",
        "enabled",
        "operation_duration",
        "process_duration",
        "queue_time",
        "sent",
        "unattached",
    )

    def __init__(self, provider: MeterProvider, version: str, limit: int = 1000) -> None:
        self.enabled = _measures(provider)
        self._limit = limit
        self._known = _known_to(provider)
        meter = provider.get_meter("queueprop", version, schema_url=semconv.SCHEMA_URL)
        self.operation_duration = meter.create_histogram(
            semconv.CLIENT_OPERATION_DURATION,
            unit="s",
            description="Duration of a messaging operation that a producer or consumer client started.",
            explicit_bucket_boundaries_advisory=semconv.DURATION_BUCKETS,
        )
        self.process_duration = meter.create_histogram(
            semconv.PROCESS_DURATION,
            unit="s",
            description="Duration of processing a message.",
            explicit_bucket_boundaries_advisory=semconv.DURATION_BUCKETS,
        )
        self.sent = meter.create_counter(
            semconv.CLIENT_SENT_MESSAGES,
            unit="{message}",
            description="Messages that a producer tried to send.",
        )
        self.consumed = meter.create_counter(
            semconv.CLIENT_CONSUMED_MESSAGES,
            unit="{message}",
            description="Messages that were delivered to the application, once a delivery.",
        )
        self.context_missing = meter.create_counter(
            semconv.CONTEXT_MISSING,
            unit="{message}",
            description="Deliveries whose message carried no usable context, by reason.",
        )
        self.unattached = meter.create_counter(
            semconv.CONTEXT_UNATTACHED,
            unit="{message}",
            description="Messages that were pulled and then handled outside of their context.",
        )
        self.queue_time = meter.create_histogram(
            semconv.MESSAGE_QUEUE_TIME,
            unit="s",
            description="Time from a message's publish to its processing, without the delay that was asked for.",
            explicit_bucket_boundaries_advisory=semconv.QUEUE_TIME_BUCKETS,
        )

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
        identity = _identity(labels)
        if identity in self._known:
            return True
        if len(self._known) >= self._limit or _length(identity) > LONGEST_VALUE:
            return False
        self._known.add(identity)
        return True


def _measures(provider: MeterProvider) -> bool:
    # The API's own stand-in, for as long as no provider is set, has no public name.
    return not isinstance(provider, NoOpMeterProvider) and type(provider).__name__ != "_ProxyMeterProvider"


_Identity = tuple[object, ...]

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
