"""The instruments: two histograms and two counters of the conventions, and two of our own."""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry.metrics import MeterProvider, NoOpMeterProvider
from opentelemetry.util.types import AttributeValue

from queueprop.engine import semconv

Attributes = Mapping[str, AttributeValue]


class Instruments:
    """The instruments of one meter provider. ``enabled`` is false where nothing would be measured.

    The bucket boundaries are advisory (API 1.30 and newer): a View of the user's wins over them.
    """

    __slots__ = (
        "consumed",
        "context_missing",
        "enabled",
        "operation_duration",
        "process_duration",
        "queue_time",
        "sent",
        "unattached",
    )

    def __init__(self, provider: MeterProvider, version: str) -> None:
        self.enabled = _measures(provider)
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


def _measures(provider: MeterProvider) -> bool:
    # The API's own stand-in, for as long as no provider is set, has no public name.
    return not isinstance(provider, NoOpMeterProvider) and type(provider).__name__ != "_ProxyMeterProvider"
