"""Contexts, headers and attributes as the scenarios compare them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from opentelemetry import context, trace

from integration.contract.driver import Driver, WireMessage
from integration.contract.run import only
from integration.contract.telemetry import SpanRecord

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SPAN_ID = "b7ad6b7169203331"
VALID = f"00-{TRACE_ID}-{SPAN_ID}-01"

# The fields of a sampled context without baggage, by the name in OTEL_PROPAGATORS.
FIELDS: Mapping[str, set[str]] = {
    "b3multi": {"x-b3-traceid", "x-b3-spanid", "x-b3-sampled"},
    "jaeger": {"uber-trace-id"},
    "none": set(),
}

# Every way in which a traceparent can be wrong: what is there but no text, and every rule of the W3C's.
MALFORMED: Mapping[str, object] = {
    "None": None,
    "an int": 7,
    "a float": 0.5,
    "a list": [VALID],
    "a nested table": {"traceparent": VALID},
    "bytes that are no traceparent": b"\x00\x01\x02",
    "bytes that are no UTF-8": b"\xff\xfe" + VALID.encode()[2:],
    "empty": "",
    "white space": "   ",
    "a megabyte": "0" * 1_000_000,
    "a megabyte behind a valid one": VALID + "0" * 1_000_000,
    "no hex version": f"0g-{TRACE_ID}-{SPAN_ID}-01",
    "an uppercase version": f"0A-{TRACE_ID}-{SPAN_ID}-01",
    "a version of one digit": f"0-{TRACE_ID}-{SPAN_ID}-01",
    "a version of three digits": f"000-{TRACE_ID}-{SPAN_ID}-01",
    "version ff": f"ff-{TRACE_ID}-{SPAN_ID}-01",
    "version 00 with more behind it": f"{VALID}-more",
    "version 00 with a hyphen behind it": f"{VALID}-",
    "a higher version that is too short": f"cc-{TRACE_ID}-{SPAN_ID}-1",
    "a higher version that goes on without a hyphen": f"cc-{TRACE_ID}-{SPAN_ID}-01x",
    "a trace id of zeros": f"00-{'0' * 32}-{SPAN_ID}-01",
    "a short trace id": f"00-{TRACE_ID[:-1]}-{SPAN_ID}-01",
    "a long trace id": f"00-{TRACE_ID}0-{SPAN_ID}-01",
    "an uppercase trace id": f"00-{TRACE_ID.upper()}-{SPAN_ID}-01",
    "a trace id that is not hex": f"00-{TRACE_ID[:-1]}g-{SPAN_ID}-01",
    "a parent id of zeros": f"00-{TRACE_ID}-{'0' * 16}-01",
    "a short parent id": f"00-{TRACE_ID}-{SPAN_ID[:-1]}-01",
    "a long parent id": f"00-{TRACE_ID}-{SPAN_ID}0-01",
    "an uppercase parent id": f"00-{TRACE_ID}-{SPAN_ID.upper()}-01",
    "a parent id that is not hex": f"00-{TRACE_ID}-{SPAN_ID[:-1]}g-01",
    "flags of one digit": f"00-{TRACE_ID}-{SPAN_ID}-1",
    "flags of three digits": f"00-{TRACE_ID}-{SPAN_ID}-001",
    "flags that are not hex": f"00-{TRACE_ID}-{SPAN_ID}-0g",
    "uppercase flags": f"00-{TRACE_ID}-{SPAN_ID}-0A",
    "no flags": f"00-{TRACE_ID}-{SPAN_ID}",
    "no hyphens": f"00{TRACE_ID}{SPAN_ID}01",
    "two joined by a comma": f"{VALID},{VALID}",
    "a newline behind it": f"{VALID}\n",
    "a space inside": f"00- {TRACE_ID}-{SPAN_ID}-01",
    "digits that are not ASCII": f"00-{TRACE_ID[:-1]}٣-{SPAN_ID}-01",
}

# One of each kind, for columns where each delivery costs half a second of imports.
MALFORMED_KINDS = ("None", "a nested table", "bytes that are no UTF-8", "version ff")

# Names that may be on a span of ours; of the metrics, see LOW_CARDINALITY.
KNOWN_ATTRIBUTES = frozenset(
    [
        "messaging.system",
        "messaging.operation.name",
        "messaging.operation.type",
        "messaging.destination.name",
        "messaging.destination.template",
        "messaging.destination.temporary",
        "messaging.destination.anonymous",
        "messaging.destination.partition.id",
        "messaging.consumer.group.name",
        "messaging.client.id",
        "messaging.batch.message_count",
        "messaging.message.id",
        "messaging.message.conversation_id",
        "messaging.message.body.size",
        "messaging.rabbitmq.destination.routing_key",
        "messaging.rabbitmq.message.delivery_tag",
        "messaging.kafka.message.key",
        "messaging.kafka.message.tombstone",
        "messaging.kafka.offset",
        "messaging.kafka.cluster.id",
        "server.address",
        "server.port",
        "network.peer.address",
        "network.peer.port",
        "error.type",
        "queueprop.context.reason",
        "queueprop.message.queue_time",
        "queueprop.message.delivery_attempt",
        "queueprop.message.delay",
        "bullmq.job.name",
        "celery.task.name",
        "code.function.name",
    ]
)

LOW_CARDINALITY = frozenset(
    [
        "messaging.system",
        "messaging.operation.name",
        "messaging.operation.type",
        "messaging.destination.name",
        "messaging.destination.template",
        "messaging.destination.partition.id",
        "messaging.consumer.group.name",
        "server.address",
        "server.port",
        "error.type",
        "queueprop.reason",
    ]
)

BUCKETS = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10]


@dataclass(frozen=True)
class Carried:
    """The context that a message carries."""

    text: str

    @property
    def trace_id(self) -> str:
        return self.text.split("-")[1]

    @property
    def span_id(self) -> str:
        return self.text.split("-")[2]

    @property
    def context(self) -> tuple[str, str]:
        return self.trace_id, self.span_id


def carried(message: WireMessage) -> Carried:
    """Fails unless there is exactly one."""
    return Carried(text(only(message.values("traceparent"))))


def on_the_wire(driver: Driver) -> Carried:
    """What the only waiting message carries."""
    return carried(only(driver.wire()))


def text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def ids(span_context: trace.SpanContext) -> tuple[str, str]:
    return f"{span_context.trace_id:032x}", f"{span_context.span_id:016x}"


def contents(container: object) -> object:
    """A copy of everything in a header object, down to its values, to be compared later."""
    if isinstance(container, Mapping):
        return {key: contents(value) for key, value in container.items()}
    if isinstance(container, (list, tuple)):
        return [contents(item) for item in container]
    if hasattr(container, "__dict__"):
        return {name: contents(value) for name, value in vars(container).items()}
    return container


@contextmanager
def current(values: context.Context) -> Iterator[None]:
    token = context.attach(values)
    try:
        yield
    finally:
        context.detach(token)


def assert_attributes(span: SpanRecord, expected: Mapping[str, Any]) -> None:
    """Exactly these; a type in place of a value stands for any value of that type."""
    found = dict(span.attributes)
    assert found.keys() == expected.keys(), sorted(found.keys() ^ expected.keys())
    assert found.keys() <= KNOWN_ATTRIBUTES, sorted(found.keys() - KNOWN_ATTRIBUTES)
    for name, value in expected.items():
        if isinstance(value, type):
            assert isinstance(found[name], value), name
        else:
            assert found[name] == value, name
    assert span.name.split(" ")[0] == found["messaging.operation.name"]
