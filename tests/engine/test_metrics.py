"""Metrics: what is counted and how long it took, equal to the spans."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from opentelemetry import metrics
from opentelemetry.metrics import MeterProvider, NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider as SdkMeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from queueprop import Destination, Message, Settings
from queueprop.engine import semconv
from queueprop.engine import telemetry as spans
from queueprop.engine.engine import Engine, engine_for
from queueprop.engine.metrics import Instruments
from tests.telemetry import ORDERS, TRACEPARENT, Telemetry, is_since

CLIENT_DURATION = "messaging.client.operation.duration"
PROCESS_DURATION = "messaging.process.duration"
SENT = "messaging.client.sent.messages"
CONSUMED = "messaging.client.consumed.messages"
MISSING = "queueprop.context.missing"
QUEUE_TIME = "queueprop.message.queue_time"


class Refused(Exception):
    """A failure of the application's."""


@pytest.fixture
def engine(telemetry: Telemetry) -> Engine:
    return engine_for(telemetry.measured())


def seconds(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


def test_a_send(telemetry: Telemetry, engine: Engine) -> None:
    """One attempt is counted; its duration is its span's; under low-cardinality attributes alone."""
    with engine.send(ORDERS, Message({}, id="m1", attributes={"messaging.kafka.offset": 7})):
        pass
    expected = {
        "messaging.system": "my-queue",
        "messaging.operation.name": "publish",
        "messaging.destination.name": "orders",
    }
    (duration,) = telemetry.points(CLIENT_DURATION)
    assert (duration.count, duration.sum, dict(duration.attributes)) == (
        1,
        seconds(telemetry.only()),
        {**expected, "messaging.operation.type": "send"},
    )
    (sent,) = telemetry.points(SENT)
    assert (sent.value, dict(sent.attributes)) == (1, expected)
    assert telemetry.points(PROCESS_DURATION) == telemetry.points(CONSUMED) == []


def test_a_failed_send(telemetry: Telemetry, engine: Engine) -> None:
    """An attempt that failed counts as sent, with its error.type, on both."""
    with pytest.raises(Refused), engine.send(ORDERS, Message({})):
        raise Refused
    for metric in (CLIENT_DURATION, SENT):
        (point,) = telemetry.points(metric)
        assert point.attributes["error.type"] == f"{Refused.__module__}.Refused"


def test_a_failure_that_no_exception_tells(telemetry: Telemetry, engine: Engine) -> None:
    """`fail` is on the metric as on the span."""
    send = engine.send(ORDERS, Message({}))
    send.open()
    send.fail("nacked", "refused")
    send.close()
    (sent,) = telemetry.points(SENT)
    assert sent.attributes["error.type"] == "nacked"


def test_a_batch_of_sends(telemetry: Telemetry, engine: Engine) -> None:
    """Each message counts, the call has one duration; create spans are no operations of their own."""
    with engine.send(ORDERS, [Message({}), Message({}), Message({})]):
        pass
    (duration,) = telemetry.points(CLIENT_DURATION)
    assert (duration.count, duration.sum) == (1, seconds(telemetry.only("publish orders")))
    assert [point.value for point in telemetry.points(SENT)] == [3]


def test_a_delivery(telemetry: Telemetry, engine: Engine) -> None:
    """messaging.process.duration, and not the client's; consumed once; the time in the queue where it is known."""
    began = time.time()
    message = Message({"traceparent": TRACEPARENT}, sent_at=began - 5)
    with engine.process(ORDERS, message):
        pass
    (duration,) = telemetry.points(PROCESS_DURATION)
    assert (duration.count, duration.sum) == (1, seconds(telemetry.only()))
    (consumed,) = telemetry.points(CONSUMED)
    assert (consumed.value, consumed.attributes["messaging.operation.name"]) == (1, "process")
    (waited,) = telemetry.points(QUEUE_TIME)
    span_attributes = telemetry.only().attributes or {}
    assert waited.sum == span_attributes["queueprop.message.queue_time"]
    assert is_since(began, 5, waited.sum)
    assert telemetry.points(CLIENT_DURATION) == telemetry.points(MISSING) == []


def test_a_delivery_that_was_counted_at_its_pull(telemetry: Telemetry, engine: Engine) -> None:
    """It is not counted again; that it came without a context, and how long it waited, is known at its handling."""
    message = Message({}, sent_at=time.time() - 5)
    with engine.process(ORDERS, message, is_counted=False):
        pass
    assert telemetry.points(CONSUMED) == []
    (missing,) = telemetry.points(MISSING)
    assert missing.value == 1
    (waited,) = telemetry.points(QUEUE_TIME)
    assert waited.count == 1


def test_a_failed_delivery(telemetry: Telemetry, engine: Engine) -> None:
    """error.type on duration and count; the time in the queue has nothing to do with it."""
    with pytest.raises(Refused), engine.process(ORDERS, Message({}, sent_at=time.time())):
        raise Refused
    for metric in (PROCESS_DURATION, CONSUMED):
        (point,) = telemetry.points(metric)
        assert point.attributes["error.type"] == f"{Refused.__module__}.Refused"
    for metric in (QUEUE_TIME, MISSING):
        (point,) = telemetry.points(metric)
        assert "error.type" not in point.attributes


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        (None, "missing"),
        ({}, "missing"),
        ({"baggage": "user=7"}, "missing"),
        ({"traceparent": "junk"}, "malformed"),
        ({"traceparent": None}, "malformed"),
        ([("traceparent", TRACEPARENT), ("traceparent", TRACEPARENT)], "malformed"),
        ({"traceparent": TRACEPARENT}, None),
        ({"traceparent": TRACEPARENT, "tracestate": "junk"}, None),
    ],
)
def test_contexts_that_were_not_there(
    telemetry: Telemetry, engine: Engine, headers: object, reason: str | None
) -> None:
    """queueprop.context.missing counts them by reason and destination, so that the producer can be found."""
    with engine.process(ORDERS, Message(headers)):
        pass
    points = telemetry.points(MISSING)
    assert [(point.value, point.attributes["queueprop.reason"]) for point in points] == (
        [] if reason is None else [(1, reason)]
    )
    assert all(point.attributes["messaging.destination.name"] == "orders" for point in points)


def test_a_context_that_nobody_expects_is_not_missing(telemetry: Telemetry) -> None:
    """Its publisher wanted none to be carried: a root, which counts as neither missing nor malformed."""
    process = Engine(telemetry.measured()).process(ORDERS, Message(None))
    process.expects_context = False
    with process:
        pass
    assert telemetry.only().parent is None
    assert telemetry.points(MISSING) == []


def test_an_untrusted_context_is_not_missing(telemetry: Telemetry) -> None:
    """It was there; that we do not continue it is no fault of the producer's."""
    engine = engine_for(telemetry.measured(trust="none"))
    with engine.process(ORDERS, Message({"traceparent": TRACEPARENT})):
        pass
    assert telemetry.points(MISSING) == []


def test_sampled_out(telemetry: Telemetry) -> None:
    """Metrics do not depend on sampling."""
    off = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    engine = engine_for(telemetry.measured(tracer_provider=off))
    with engine.process(ORDERS, Message({})):
        pass
    with engine.send(ORDERS, Message({})):
        pass
    counts = [len(telemetry.points(metric)) for metric in (PROCESS_DURATION, CLIENT_DURATION, SENT, CONSUMED)]
    assert counts == [1, 1, 1, 1]
    assert telemetry.points(PROCESS_DURATION)[0].sum > 0


def test_excluded(telemetry: Telemetry) -> None:
    """What has no span is not measured."""
    engine = engine_for(telemetry.measured(exclude=("orders",)))
    with engine.process(ORDERS, Message({})), engine.send(ORDERS, Message({})):
        pass
    assert telemetry.points(CONSUMED) == telemetry.points(SENT) == telemetry.points(MISSING) == []


def test_a_clock_that_is_set_back(
    telemetry: Telemetry, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meanwhile: it took no time, and no span ends before it begins."""
    process = engine.process(ORDERS, Message({}))
    process.open()
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now - 3_000_000_000)
    process.close()
    (duration,) = telemetry.points(PROCESS_DURATION)
    assert (duration.count, duration.sum, seconds(telemetry.only())) == (1, 0, 0)


def test_a_span_made_after_the_fact(telemetry: Telemetry, engine: Engine) -> None:
    """Its duration is that from the given start."""
    began = time.time()
    process = engine.process(ORDERS, Message({}), started_at=time.time_ns() - 3_000_000_000)
    process.open()
    process.close()
    (duration,) = telemetry.points(PROCESS_DURATION)
    assert duration.sum == seconds(telemetry.only())
    assert is_since(began, 3, duration.sum)


@pytest.mark.parametrize(
    ("destination", "name"),
    [
        (Destination("my-queue", "orders"), "orders"),
        (Destination("my-queue", "amq.gen-1", anonymous=True), None),
        (Destination("my-queue", "reply-1", temporary=True), None),
        (Destination("my-queue", "orders.7", template="orders.{id}"), None),
        (Destination("my-queue"), None),
    ],
)
def test_low_cardinality_names_only(
    telemetry: Telemetry, engine: Engine, destination: Destination, name: str | None
) -> None:
    """A name that changes with each client or message is kept out of the metrics; the template is there instead."""
    with engine.send(destination, Message({})):
        pass
    (point,) = telemetry.points(SENT)
    assert point.attributes.get("messaging.destination.name") == name
    assert point.attributes.get("messaging.destination.template") == destination.template


def test_what_else_is_on_a_metric(telemetry: Telemetry, engine: Engine) -> None:
    """Server, partition and consumer group; no client id, no attributes of an adapter's own."""
    destination = Destination(
        "my-queue",
        "orders",
        server_address="broker.example",
        server_port=4000,
        consumer_group="mailers",
        client_id="c1",
        partition_id="3",
        attributes={"messaging.rabbitmq.destination.routing_key": "k"},
    )
    with engine.process(destination, Message({"traceparent": TRACEPARENT})):
        pass
    (point,) = telemetry.points(CONSUMED)
    assert dict(point.attributes) == {
        "messaging.system": "my-queue",
        "messaging.operation.name": "process",
        "messaging.destination.name": "orders",
        "messaging.destination.partition.id": "3",
        "messaging.consumer.group.name": "mailers",
        "server.address": "broker.example",
        "server.port": 4000,
    }


def sent_to(telemetry: Telemetry) -> dict[Any, int]:
    """How many messages were sent by the name, else the template, that their metrics have."""
    names = ("messaging.destination.name", "messaging.destination.template")
    return {
        next(point.attributes[name] for name in names if name in point.attributes): point.value
        for point in telemetry.points(SENT)
    }


def publish(engine: Engine, *names: str, **given: Any) -> None:
    for name in names:
        with engine.send(Destination("my-queue", name, **given), Message({})):
            pass


class TestLimit:
    """Settings(destination_limit=...): how many destinations metrics tell apart."""

    def test_those_beyond_it_are_one(self, telemetry: Telemetry) -> None:
        """The first ones keep their names, later ones are ``_other``, with system, operation and server; spans keep
        theirs.
        """
        engine = engine_for(telemetry.measured(destination_limit=2))
        server = {"server_address": "broker.example", "server_port": 4000}
        publish(engine, "a", "b", "c", "a", "d", consumer_group="g", **server)
        assert sent_to(telemetry) == {"a": 2, "b": 1, "_other": 2}
        other = next(point for point in telemetry.points(SENT) if "_other" in dict(point.attributes).values())
        assert dict(other.attributes) == {
            "messaging.system": "my-queue",
            "messaging.operation.name": "publish",
            "messaging.destination.name": "_other",
            "server.address": "broker.example",
            "server.port": 4000,
        }
        found = [(span.attributes or {})["messaging.destination.name"] for span in telemetry.spans]
        assert found == ["a", "b", "c", "a", "d"]

    def test_each_operation_counts(self, telemetry: Telemetry) -> None:
        """It is a bound on what the SDK keeps: for a publish to a destination, and again for a process from it."""
        engine = engine_for(telemetry.measured(destination_limit=3))
        for name in ("a", "b"):
            publish(engine, name)
            with engine.process(Destination("my-queue", name), Message({}, sent_at=time.time() - 1)):
                pass
        found = {
            metric: [point.attributes["messaging.destination.name"] for point in telemetry.points(metric)]
            for metric in (SENT, CONSUMED, MISSING, QUEUE_TIME, PROCESS_DURATION, CLIENT_DURATION)
        }
        assert found[SENT] == found[CLIENT_DURATION] == ["a", "b"]
        assert (
            found[CONSUMED]
            == found[MISSING]
            == found[QUEUE_TIME]
            == found[PROCESS_DURATION]
            == ["a", "_other"]
        )

    def test_one_of_each_provider(self, telemetry: Telemetry) -> None:
        """Engines that measure by one provider share it; another provider knows nothing yet, even of a destination
        that is kept.
        """
        other = Telemetry(telemetry.spans)
        engine, second, apart = (
            Engine(one.measured(destination_limit=1)) for one in (telemetry, telemetry, other)
        )
        for destination in (Destination("my-queue", "a"), Destination("my-queue", "b")):
            for each in (engine, second, apart, engine):
                with each.send(destination, Message({})):
                    pass
        assert sent_to(telemetry) == {"a": 3, "_other": 3}
        assert sent_to(other) == {"a": 1, "_other": 1}

    def test_none(self, telemetry: Telemetry) -> None:
        """0: no name at all."""
        publish(engine_for(telemetry.measured(destination_limit=0)), "a", "b")
        assert sent_to(telemetry) == {"_other": 2}

    def test_long_names(self, telemetry: Telemetry) -> None:
        """A name that would take more than a kilobyte is no name for a metric; the span has its beginning."""
        engine = engine_for(telemetry.measured())
        publish(engine, "x" * 1000, "y" * 1_000_000)
        assert sent_to(telemetry) == {"x" * 1000: 1, "_other": 1}
        assert [(span.attributes or {})["messaging.destination.name"] for span in telemetry.spans] == [
            "x" * 1000,
            "y" * 1024,
        ]
        assert [len(span.name) for span in telemetry.spans] == [1008, 1032]

    def test_names_that_are_kept_out_anyway_are_not_counted(self, telemetry: Telemetry) -> None:
        """Reply queues of the broker's naming have no name on metrics, and use none up."""
        engine = engine_for(telemetry.measured(destination_limit=2))
        for number in range(5):
            with engine.send(Destination("my-queue", f"amq.gen-{number}", anonymous=True), Message({})):
                pass
        publish(engine, "a")
        assert [point.attributes.get("messaging.destination.name") for point in telemetry.points(SENT)] == [
            None,
            "a",
        ]

    def test_a_provider_that_cannot_be_referred_to(self, telemetry: Telemetry) -> None:
        """Without a weak reference or a hash: each engine counts for itself."""

        class Odd(NoOpMeterProvider):
            __hash__ = None  # type: ignore[assignment]

        destination = Destination("my-queue", "a")
        for _ in range(2):
            instruments = Instruments(Odd(), "1", 1)
            names = [
                instruments.attributes_of(one.labels(semconv.SEND, "publish"))["messaging.destination.name"]
                for one in (destination, Destination("my-queue", "b"))
            ]
            assert names == ["a", "_other"]


class TestTemplates:
    """Settings(destination_templates=...) on metrics."""

    def test_a_template_stands_for_many(self, telemetry: Telemetry) -> None:
        """Names that match one are measured under it, and are one of the limit."""
        engine = engine_for(
            telemetry.measured(destination_templates={"reply.*": "reply.{id}"}, destination_limit=2)
        )
        publish(engine, *(f"reply.{number}" for number in range(10)), "orders")
        assert sent_to(telemetry) == {"reply.{id}": 10, "orders": 1}


class TestInstruments:
    """Units, descriptions, buckets, scope."""

    def test_as_the_conventions_want_them(self, engine: Engine) -> None:
        """Names, units, and the buckets of the conventions, without a View."""
        reader = InMemoryMetricReader()
        instruments = Instruments(SdkMeterProvider([reader], shutdown_on_exit=False), "1")
        instruments.operation_duration.record(1)
        instruments.process_duration.record(1)
        instruments.queue_time.record(1)
        instruments.sent.add(1)
        instruments.consumed.add(1)
        instruments.context_missing.add(1)
        data = reader.get_metrics_data()
        assert data is not None
        (scope,) = data.resource_metrics[0].scope_metrics
        assert (scope.scope.name, scope.scope.version) == ("queueprop", "1")
        assert scope.scope.schema_url == "https://opentelemetry.io/schemas/1.44.0"
        found: dict[str, Any] = {metric.name: metric for metric in scope.metrics}
        assert {name: metric.unit for name, metric in found.items()} == {
            CLIENT_DURATION: "s",
            PROCESS_DURATION: "s",
            QUEUE_TIME: "s",
            SENT: "{message}",
            CONSUMED: "{message}",
            MISSING: "{message}",
        }
        assert all(metric.description for metric in found.values())
        buckets = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
        for name in (CLIENT_DURATION, PROCESS_DURATION):
            assert found[name].data.data_points[0].explicit_bounds == buckets
        assert found[QUEUE_TIME].data.data_points[0].explicit_bounds == semconv.QUEUE_TIME_BUCKETS

    def test_a_view_wins(self) -> None:
        """The buckets are advice: a View of the user's decides."""
        reader = InMemoryMetricReader()
        view = View(
            instrument_name=PROCESS_DURATION,
            aggregation=ExplicitBucketHistogramAggregation(boundaries=(1, 2)),
        )
        provider = SdkMeterProvider([reader], views=[view], shutdown_on_exit=False)
        Instruments(provider, "1").process_duration.record(1)
        data: Any = reader.get_metrics_data()
        point = data.resource_metrics[0].scope_metrics[0].metrics[0].data.data_points[0]
        assert point.explicit_bounds == (1, 2)

    @pytest.mark.parametrize("provider", [NoOpMeterProvider(), None], ids=["no-op", "none set"])
    def test_where_nothing_is_measured(
        self, monkeypatch: pytest.MonkeyPatch, provider: MeterProvider | None
    ) -> None:
        """Without a meter provider, or with a no-op one, nothing is measured, and no time spent on it."""
        if provider is None:
            monkeypatch.setattr("opentelemetry.metrics._internal._METER_PROVIDER", None)
            monkeypatch.delenv("OTEL_PYTHON_METER_PROVIDER", raising=False)
            provider = metrics.get_meter_provider()
        assert not Instruments(provider, "1").enabled

    def test_an_sdk_that_measures(self) -> None:
        """Any other provider does."""
        assert Instruments(SdkMeterProvider(shutdown_on_exit=False), "1").enabled

    def test_the_global_provider_is_asked_each_time(
        self, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A meter provider that is set later, or replaced, is used from then on."""
        current: list[MeterProvider] = [NoOpMeterProvider()]
        monkeypatch.setattr(spans, "get_meter_provider", lambda: current[0])
        engine = Engine(telemetry.settings(meter_provider=None))
        with engine.send(ORDERS, Message({})):
            pass
        current[0] = telemetry.meter_provider
        with engine.send(ORDERS, Message({})):
            pass
        assert [point.value for point in telemetry.points(SENT)] == [1]


@pytest.mark.usefixtures("guarded")
def test_a_measurement_that_fails(
    telemetry: Telemetry, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault while measuring: the span ends all the same, and the call goes on."""

    def broken(*args: object) -> None:
        raise LookupError("ours")

    monkeypatch.setattr(engine.instruments().operation_duration, "record", broken)
    with engine.send(ORDERS, Message({})):
        pass
    assert telemetry.only().end_time is not None


def test_threads_that_begin_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """They make the instruments one after the other, also those of two engines: an older SDK fails one of two."""
    at_work = threading.Lock()
    overlaps: list[str] = []

    class Slow(Instruments):
        def __init__(self, *given: Any) -> None:
            if not at_work.acquire(blocking=False):
                overlaps.append(threading.current_thread().name)
                return
            time.sleep(0.02)
            super().__init__(*given)
            at_work.release()

    monkeypatch.setattr(spans, "Instruments", Slow)
    monkeypatch.setattr(spans, "_LONGEST_TURN", 60.0)  # also on a machine that is busy with other things
    provider = SdkMeterProvider()
    engines = [Engine(Settings(meter_provider=provider)) for _ in range(2)]
    start = threading.Barrier(4)

    def begin(engine: Engine) -> None:
        start.wait(60)
        engine.instruments()

    threads = [threading.Thread(target=begin, args=(engine,)) for engine in engines * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlaps == []


def test_a_thread_that_was_interrupted_while_it_made_instruments(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others wait for it for a moment, not for ever: their messages are measured."""
    monkeypatch.setattr(spans, "_making_instruments", threading.RLock())
    monkeypatch.setattr(spans, "_LONGEST_TURN", 0.01)
    interrupted = threading.Thread(target=spans._making_instruments.acquire)
    interrupted.start()
    interrupted.join()
    made = Engine(Settings(meter_provider=SdkMeterProvider())).instruments()
    assert made.enabled
