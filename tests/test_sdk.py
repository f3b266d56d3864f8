from __future__ import annotations

import importlib.util
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import EntryPoint, EntryPoints
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple, cast

import pytest
from opentelemetry import metrics, trace
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.metrics import _internal as metrics_api
from opentelemetry.trace import NoOpTracerProvider, ProxyTracerProvider, SpanContext, TraceFlags
from opentelemetry.util._once import Once

pytest.importorskip("opentelemetry.sdk.trace")
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import Counter, MeterProvider
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    ConsoleMetricExporter,
    InMemoryMetricReader,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    ConsoleSpanExporter,
    SpanExporter,
    SpanExportResult,
)
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from queueprop import guard, sdk
from queueprop.process import flush as flushing
from queueprop.sdk import configure_tracing
from queueprop.sdk import exporters as choosing
from queueprop.sdk import metrics as of_metrics
from queueprop.sdk.spans import BatchProcessor, IdGenerator, ProcessExporter


class Exporting(MetricExporter):
    """Takes metrics, and tells of each time."""

    def __init__(self, delta: bool = False) -> None:
        super().__init__({Counter: AggregationTemporality.DELTA} if delta else None)
        self.data: list[MetricsData] = []
        self.came = threading.Semaphore(0)
        self.result: MetricExportResult | Exception = MetricExportResult.SUCCESS

    def export(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any
    ) -> MetricExportResult:
        self.data.append(metrics_data)
        self.came.release()
        if isinstance(self.result, Exception):
            raise self.result
        return self.result

    def values(self) -> list[Any]:
        """Of the first point of each export."""
        first: list[Any] = [data.resource_metrics[0].scope_metrics[0].metrics[0] for data in self.data]
        return [metric.data.data_points[0].value for metric in first]

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None: ...

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True


class Installed(NamedTuple):
    """What would be called at the end of the process, and the seconds for it."""

    flush: Callable[[], object]
    shutdown: Callable[[], object]
    timeout: float
    child_timeout: float


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Installed]]:
    """A process without a tracer provider and OTEL_* variables; nothing is installed for its end."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    hooks: list[Installed] = []

    class Recorded:
        def __init__(self, *arguments: Any) -> None:
            self.arguments = arguments

        def install(self) -> None:
            hooks.append(Installed(*self.arguments))

        def run(self, task: Callable[[], None]) -> None:
            task()

        def is_given_up(self) -> bool:
            return False

    monkeypatch.setattr(sdk, "HandOver", Recorded)
    monkeypatch.setattr(sdk, "_configured", None)
    monkeypatch.setattr(flushing, "run_for_spans", flushing.run_for_spans)
    monkeypatch.setattr(flushing, "run_for_metrics", flushing.run_for_metrics)
    monkeypatch.setattr(flushing, "is_given_up", flushing.is_given_up)
    monkeypatch.setattr(guard, "_logged", {})
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER_SET_ONCE", Once())
    monkeypatch.setattr(metrics_api, "_METER_PROVIDER", None)
    monkeypatch.setattr(metrics_api, "_METER_PROVIDER_SET_ONCE", Once())
    # The stand-in keeps the provider that was set, and would give it, shut down, to the tests that come next.
    monkeypatch.setattr(metrics_api, "_PROXY_METER_PROVIDER", metrics_api._ProxyMeterProvider())
    yield hooks
    for hook in hooks:
        hook.shutdown()


def processors(provider: TracerProvider) -> tuple[Any, ...]:
    return provider._active_span_processor._span_processors


def exporters(provider: TracerProvider) -> list[Any]:
    return [processor.span_exporter._exporter for processor in processors(provider)]


def url(exporter: OTLPSpanExporter) -> str:
    return exporter._endpoint


def test_the_provider_becomes_the_global_one(installed: list[Installed]) -> None:
    """It exports over OTLP/HTTP to the local Collector, and is shut down at the end, in bounded time."""
    provider = configure_tracing("orders")
    assert trace.get_tracer_provider() is provider
    assert [type(exporter) for exporter in exporters(provider)] == [OTLPSpanExporter]
    assert url(exporters(provider)[0]) == "http://localhost:4318/v1/traces"
    assert [hook[2:] for hook in installed] == [(5.0, 2.0)]


def test_what_the_end_has_waited_for_in_vain_is_not_waited_for_again(
    installed: list[Installed], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finalizers of multiprocessing come after the exit hooks in a child of Python 3.13, and one of ours flushes."""
    assert flushing.flush()
    monkeypatch.setattr("queueprop.sdk.HandOver.is_given_up", lambda self: True)
    configure_tracing(exporter=InMemorySpanExporter())
    assert not flushing.flush()


def test_flush_and_the_end_share_a_thread(installed: list[Installed]) -> None:
    """The one of the provider's own kind: it may have been set up before gevent patched."""
    provider = configure_tracing(exporter=InMemorySpanExporter())
    [hook] = installed
    assert (hook.flush, hook.shutdown) == (provider.force_flush, provider.shutdown)
    assert flushing.run_for_metrics is flushing.beside
    done: list[int] = []
    flushing.run_for_spans(lambda: done.append(1))
    assert done == [1]
    assert flushing.run_for_spans is not flushing.beside


def test_the_times_at_the_end_can_be_set(installed: list[Installed], monkeypatch: pytest.MonkeyPatch) -> None:
    """The process's by argument, a forked child's by the setting flush_timeout."""
    monkeypatch.setenv("QUEUEPROP_FLUSH_TIMEOUT", "0.5")
    configure_tracing(exit_timeout=7)
    assert [hook[2:] for hook in installed] == [(7, 0.5)]


def test_a_second_call_is_one_warning(caplog: pytest.LogCaptureFixture, installed: list[Installed]) -> None:
    """It returns the first provider and changes nothing."""
    first = configure_tracing("first")
    assert configure_tracing("second") is first
    assert first.resource.attributes["service.name"] == "first"
    assert [record.message for record in caplog.records] == [
        "queueprop, configure_tracing(): it was called before; this call changes nothing"
    ]
    assert len(installed) == len(processors(first)) == 1


def test_a_provider_of_someone_else_is_left_alone(
    caplog: pytest.LogCaptureFixture, installed: list[Installed]
) -> None:
    """opentelemetry-instrument's, or any other: it is returned, nothing is added, and one warning says so."""
    present: trace.TracerProvider = NoOpTracerProvider()
    trace.set_tracer_provider(present)
    assert configure_tracing("orders") is present
    assert [record.message for record in caplog.records] == [
        "queueprop, configure_tracing(): it changes nothing: there is a tracer provider already (NoOpTracerProvider)"
    ]
    assert installed == []


def test_the_proxy_of_the_api_is_no_provider() -> None:
    """The API hands it out as long as nobody has set one."""
    assert isinstance(trace.get_tracer_provider(), ProxyTracerProvider)
    assert isinstance(configure_tracing(), TracerProvider)


def test_code_goes_over_environment_in_the_resource(monkeypatch: pytest.MonkeyPatch) -> None:
    """service_name over OTEL_SERVICE_NAME, attributes over OTEL_RESOURCE_ATTRIBUTES, one by one."""
    monkeypatch.setenv("OTEL_SERVICE_NAME", "environment")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "team=environment,region=eu")
    attributes = configure_tracing("code", resource_attributes={"team": "code"}).resource.attributes
    assert (attributes["service.name"], attributes["team"], attributes["region"]) == ("code", "code", "eu")


def test_the_resource_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """OTEL_SERVICE_NAME names the service when the code does not."""
    monkeypatch.setenv("OTEL_SERVICE_NAME", "environment")
    assert configure_tracing().resource.attributes["service.name"] == "environment"


def test_the_sdk_can_be_disabled(monkeypatch: pytest.MonkeyPatch, installed: list[Installed]) -> None:
    """OTEL_SDK_DISABLED: no spans, no exporter, no hooks."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", " True ")
    provider = configure_tracing()
    assert not provider.get_tracer("x").start_span("x").is_recording()
    assert processors(provider) == ()
    assert installed == []


@pytest.mark.parametrize(
    ("ratio", "environment", "description"),
    [
        (None, {}, "ParentBased{root:TraceIdRatioBased{1.0}"),
        (None, {"OTEL_TRACES_SAMPLER": " "}, "ParentBased{root:TraceIdRatioBased{1.0}"),
        (0.25, {}, "ParentBased{root:TraceIdRatioBased{0.25}"),
        (0.25, {"OTEL_TRACES_SAMPLER": "always_off"}, "ParentBased{root:TraceIdRatioBased{0.25}"),
        (0, {}, "ParentBased{root:TraceIdRatioBased{0}"),
        (None, {"OTEL_TRACES_SAMPLER": "always_off"}, "AlwaysOffSampler"),
        (
            None,
            {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.1"},
            "ParentBased{root:TraceIdRatioBased{0.1}",
        ),
    ],
)
def test_the_sampler(
    monkeypatch: pytest.MonkeyPatch, ratio: float | None, environment: dict[str, str], description: str
) -> None:
    """Parent-based with a ratio of 1 by default; the variables, and over them the code, say otherwise."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert configure_tracing(sample_ratio=ratio).sampler.get_description().startswith(description)


def test_a_parent_that_is_sampled_counts_more_than_the_ratio() -> None:
    """A trace is recorded whole or not at all."""
    provider = configure_tracing(sample_ratio=0, exporter=InMemorySpanExporter())
    sampled = SpanContext(1, 1, is_remote=True, trace_flags=TraceFlags(1))
    parent = trace.set_span_in_context(trace.NonRecordingSpan(sampled))
    tracer = provider.get_tracer("x")
    assert tracer.start_span("x", context=parent).is_recording()
    assert not tracer.start_span("x").is_recording()


def test_a_ratio_out_of_range_is_refused() -> None:
    """In code it is a mistake to be seen at once."""
    with pytest.raises(ValueError, match=r"[Pp]robability|0"):
        configure_tracing(sample_ratio=2)


@pytest.mark.parametrize(
    ("endpoint", "wanted"),
    [
        ("http://collector:4318", "http://collector:4318/v1/traces"),
        ("http://collector:4318/", "http://collector:4318/v1/traces"),
        ("http://collector:4318/v1/traces", "http://collector:4318/v1/traces"),
        ("http://collector/otlp", "http://collector/otlp/v1/traces"),
    ],
)
def test_the_endpoint_is_a_base_url(monkeypatch: pytest.MonkeyPatch, endpoint: str, wanted: str) -> None:
    """In code, over the environment, with or without the path of traces."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://elsewhere:4318")
    assert url(exporters(configure_tracing(endpoint=endpoint))[0]) == wanted


def test_the_exporter_is_made_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """OTEL_EXPORTER_OTLP_* as the exporter reads them."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://elsewhere:4318")
    assert url(exporters(configure_tracing())[0]) == "http://elsewhere:4318/v1/traces"


def test_headers_reach_the_exporter(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are given."""
    made: list[dict[str, object]] = []

    def exporter(**arguments: object) -> SpanExporter:
        made.append(arguments)
        return InMemorySpanExporter()

    monkeypatch.setattr("opentelemetry.exporter.otlp.proto.http.trace_exporter.OTLPSpanExporter", exporter)
    configure_tracing(headers={"api-key": "k"})
    assert made == [{"headers": {"api-key": "k"}}]


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("otlp", [OTLPSpanExporter]),
        ("otlp_proto_http", [OTLPSpanExporter]),
        (" Console , otlp,otlp", [ConsoleSpanExporter, OTLPSpanExporter]),
        ("none", []),
        ("installed", [InMemorySpanExporter]),
    ],
)
def test_the_environment_names_the_exporters(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    value: str,
    wanted: list[type],
) -> None:
    """OTEL_TRACES_EXPORTER: one or several, none, or one that a package has registered."""
    install(monkeypatch, "installed")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", value)
    assert [type(exporter) for exporter in exporters(configure_tracing())] == wanted
    assert caplog.records == []


def test_an_exporter_in_code_goes_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also over ``none``."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    exporter = InMemorySpanExporter()
    assert exporters(configure_tracing(exporter=exporter)) == [exporter]


@pytest.mark.parametrize(
    ("variable", "value", "name"),
    [
        ("OTEL_TRACES_EXPORTER", "oltp", "'oltp' is not installed (did you mean 'otlp'?)"),
        (
            "OTEL_EXPORTER_OTLP_PROTOCOL",
            "grpc",
            "'otlp_proto_grpc' is not installed (pip install opentelemetry-exporter-otlp-proto-grpc)",
        ),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json", "'http/json' is not installed"),
    ],
)
def test_an_exporter_that_is_not_installed_is_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variable: str, value: str, name: str
) -> None:
    """It says what to install, once for spans and metrics. OTLP over HTTP takes its place."""
    install(monkeypatch, "something-else")
    monkeypatch.setenv(variable, value)
    assert [type(exporter) for exporter in exporters(configure_tracing())] == [OTLPSpanExporter]
    assert [record.message for record in caplog.records] == [
        f"queueprop, configure_tracing(): the exporter {name}; OTLP over HTTP is used instead"
    ]


def test_the_protocol_may_be_grpc_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets the endpoint as it stands: gRPC has no path."""
    made: list[dict[str, object]] = []

    class Grpc(InMemorySpanExporter):
        def __init__(self, **arguments: object) -> None:
            made.append(arguments)
            super().__init__()

    install(monkeypatch, "otlp_proto_grpc", Grpc)
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    provider = configure_tracing(endpoint="http://collector:4317")
    assert [type(exporter) for exporter in exporters(provider)] == [Grpc]
    assert made == [{"endpoint": "http://collector:4317"}]


def test_an_exporter_that_cannot_be_made_is_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, installed: list[Installed]
) -> None:
    """The worker runs on without export."""

    def broken() -> SpanExporter:
        raise ValueError("no such compression: 'lz4'")

    install(monkeypatch, "broken", broken)
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "broken")
    assert exporters(configure_tracing()) == []
    assert [record.message for record in caplog.records] == [
        "queueprop, configure_tracing(): no spans are exported: the exporter cannot be made: no such compression: 'lz4'"
    ]


def test_a_missing_exporter_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK is there, the OTLP exporter is not."""
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "queueprop\[sdk\]"$'):
        configure_tracing()


def test_a_missing_sdk_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, and not the traceback of an import inside."""
    specification = importlib.util.spec_from_file_location("without_sdk", sdk.__file__)
    assert specification is not None
    assert specification.loader is not None
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(ModuleNotFoundError) as raised:
        specification.loader.exec_module(importlib.util.module_from_spec(specification))
    assert str(raised.value) == 'queueprop.sdk needs the OpenTelemetry SDK: pip install "queueprop[sdk]"'
    assert raised.value.__suppress_context__
    assert raised.value.name == "opentelemetry.sdk.resources"


BATCH_VARIABLES = (
    "OTEL_BSP_MAX_QUEUE_SIZE",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
    "OTEL_BSP_SCHEDULE_DELAY",
    "OTEL_BSP_EXPORT_TIMEOUT",
)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({}, (2048, 512, 5000, 30000)),
        (dict(zip(BATCH_VARIABLES, ("100", "10", "50", "60"), strict=True)), (100, 10, 50, 60)),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "100"}, (100, 100, 5000, 30000)),
        (dict.fromkeys(BATCH_VARIABLES, ""), (2048, 512, 5000, 30000)),
    ],
)
def test_the_batches(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, str], wanted: tuple[int, ...]
) -> None:
    """2048, 512, 5 s and 30 s, unless OTEL_BSP_* say otherwise; a batch is never larger than the queue."""
    assert batches(monkeypatch, values) == wanted


@pytest.mark.parametrize("wrong", ["many", "0", "-1", "1.5"])
def test_a_wrong_number_is_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, wrong: str
) -> None:
    """And the default."""
    assert batches(monkeypatch, {"OTEL_BSP_SCHEDULE_DELAY": wrong}) == (2048, 512, 5000, 30000)
    assert [record.message for record in caplog.records] == [
        f"queueprop, OTEL_BSP_SCHEDULE_DELAY: wants a whole number above 0, not {wrong!r}; 5000 is used instead"
    ]


class Fails(InMemorySpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.FAILURE


class Raises(InMemorySpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        raise OSError("connection refused")


@pytest.mark.parametrize(
    ("exporter", "handed_over"), [(InMemorySpanExporter(), True), (Fails(), False), (Raises(), False)]
)
def test_force_flush_says_whether_the_spans_were_handed_over(
    exporter: SpanExporter, handed_over: bool
) -> None:
    """The SDK's batch processor says True although the export failed."""
    provider = configure_tracing(exporter=exporter)
    provider.get_tracer("x").start_span("x").end()
    assert provider.force_flush() is handed_over
    assert provider.force_flush() is True  # nothing was left


def test_a_child_has_an_exporter_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent's is neither used nor shut down in a child; one is made when the child needs it."""
    made: list[Recording] = []

    class Recording(SpanExporter):
        def __init__(self) -> None:
            self.calls: list[str] = []
            made.append(self)

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            self.calls.append("export")
            return SpanExportResult.SUCCESS

        def shutdown(self) -> None:
            self.calls.append("shutdown")

        def force_flush(self, timeout_millis: int = 30000) -> bool:
            self.calls.append("force_flush")
            return True

    exporter = ProcessExporter(Recording)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    exporter.shutdown()
    assert exporter.force_flush() is True
    exporter.export([])
    exporter.export([])
    exporter.force_flush()
    exporter.shutdown()
    assert [recording.calls for recording in made] == [[], ["export", "export", "force_flush", "shutdown"]]


def test_an_exporter_that_a_child_cannot_make() -> None:
    """Is a failure as one of the export is: what was to be handed over is in nobody's hands."""
    made = [InMemorySpanExporter()]
    exporter = ProcessExporter(made.pop)
    exporter._pid = -1  # as a forked child finds it
    with pytest.raises(IndexError):
        exporter.export([])
    assert exporter.failures == 1


class Blocking:
    """Stands for gevent's resolver that needs no thread."""

    def __init__(self, hub: object) -> None:
        pass


class TestResolver:
    """Where gevent has patched, an ending interpreter that starts no thread still finds the Collector."""

    @pytest.fixture
    def hub(self, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
        """Of a gevent whose threads can be started."""
        hub = SimpleNamespace(resolver="in threads")
        monkeypatch.setattr(flushing, "waits_in_gevent", lambda: True)
        self.module(monkeypatch, "gevent", get_hub=lambda: hub)
        self.module(monkeypatch, "gevent.resolver.blocking", Resolver=Blocking)
        self.threads(monkeypatch, [None])
        return hub

    def module(self, monkeypatch: pytest.MonkeyPatch, name: str, **content: object) -> None:
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)

    def threads(self, monkeypatch: pytest.MonkeyPatch, errors: list[Exception | None]) -> None:
        """What happens when one is started: the first time, the second..., and from the last of them on."""

        def start_new_thread(function: object, arguments: object) -> None:
            error = errors.pop(0) if errors[1:] else errors[0]
            if error is not None:
                raise error

        self.module(monkeypatch, "gevent.monkey", get_original=lambda module, name: start_new_thread)

    no_thread = RuntimeError("can't create new thread at interpreter shutdown")

    def test_while_threads_can_be_started(self, hub: SimpleNamespace) -> None:
        """Its own resolver goes on, which lets others run."""
        exporter = ProcessExporter(InMemorySpanExporter)
        assert exporter.export([]) is SpanExportResult.SUCCESS
        assert hub.resolver == "in threads"

    def test_when_they_cannot(self, hub: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
        """The one that blocks, rather than none."""
        self.threads(monkeypatch, [self.no_thread])
        exporter = ProcessExporter(InMemorySpanExporter)
        assert exporter.export([]) is SpanExportResult.SUCCESS
        assert isinstance(hub.resolver, Blocking)

    @pytest.mark.parametrize("raises", [True, False])
    def test_an_export_that_the_end_overtakes_is_repeated(
        self, hub: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, raises: bool
    ) -> None:
        """Also by an SDK that lets the error through. The second time it blocks."""
        with_resolvers: list[object] = []

        class Overtaken(InMemorySpanExporter):
            def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
                with_resolvers.append(hub.resolver)
                if hub.resolver != "in threads":
                    return SpanExportResult.SUCCESS
                if raises:
                    raise TestResolver.no_thread
                return SpanExportResult.FAILURE

        self.threads(monkeypatch, [None, self.no_thread])
        exporter = ProcessExporter(Overtaken)
        assert exporter.export([]) is SpanExportResult.SUCCESS
        assert with_resolvers == ["in threads", hub.resolver]
        assert isinstance(hub.resolver, Blocking)
        assert exporter.failures == 0

    @pytest.mark.parametrize("error", [None, no_thread])
    def test_a_failure_of_another_kind_is_not_repeated(
        self, hub: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, error: Exception | None
    ) -> None:
        """While threads can be started, and when it blocks already."""
        exports: list[object] = []

        class Failing(InMemorySpanExporter):
            def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
                exports.append(spans)
                if error is None:
                    return SpanExportResult.FAILURE
                raise RuntimeError("another one")

        self.threads(monkeypatch, [error])
        exporter = ProcessExporter(Failing)
        if error is None:
            assert exporter.export([]) is SpanExportResult.FAILURE
        else:
            with pytest.raises(RuntimeError, match="another one"):
                exporter.export([])
        assert len(exports) == exporter.failures == 1

    def test_a_gevent_that_is_not_as_we_know_it(
        self, hub: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The spans are exported all the same."""
        self.threads(monkeypatch, [TypeError("on purpose")])
        exporter = ProcessExporter(InMemorySpanExporter)
        assert exporter.export([]) is SpanExportResult.SUCCESS
        assert hub.resolver == "in threads"

    def test_a_time_limit_goes_through(self, hub: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
        """One that a signal handler raises, in whatever greenlet."""
        self.threads(monkeypatch, [TimeoutError("of the program's")])
        monkeypatch.setattr(guard, "_not_ours", (TimeoutError,))
        with pytest.raises(TimeoutError):
            ProcessExporter(InMemorySpanExporter).export([])


def test_ids_do_not_depend_on_the_random_module() -> None:
    """A job that calls random.seed() would otherwise repeat the ids of the one before."""
    generator = IdGenerator()
    random.seed(1)
    first = generator.generate_trace_id(), generator.generate_span_id()
    random.seed(1)
    assert (generator.generate_trace_id(), generator.generate_span_id()) != first


def test_an_id_is_never_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zero means that there is none."""
    generator = IdGenerator()
    drawn = iter([0, 7, 0, 0, 9])

    class Drawn(random.Random):
        def getrandbits(self, bits: int) -> int:
            return next(drawn)

    monkeypatch.setattr(generator, "_random", Drawn())
    assert generator.generate_span_id() == 7
    assert generator.generate_trace_id() == 9


def test_a_system_that_cannot_fork_has_no_hook_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows."""
    monkeypatch.delattr(os, "register_at_fork")
    assert IdGenerator().generate_span_id()


def test_an_endpoint_that_has_the_path_of_a_signal_is_understood(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """OTEL_EXPORTER_OTLP_ENDPOINT is a base URL. One with a path in it serves spans and metrics all the same, and one
    line says what to set.
    """
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/base/v1/traces/")
    provider = configure_tracing()
    assert url(exporters(provider)[0]) == "http://collector:4318/base/v1/traces"
    assert [url(it) for it in metric_exporters()] == ["http://collector:4318/base/v1/metrics"]
    [record] = caplog.records
    assert "set OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4318/base, or" in record.message


def test_an_endpoint_of_a_signal_s_own_is_its_own(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """OTEL_EXPORTER_OTLP_TRACES_ENDPOINT goes over the base, as it stands."""
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://base:4318")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://traces:4318/v1/traces")
    assert url(exporters(configure_tracing())[0]) == "http://traces:4318/v1/traces"
    assert [url(it) for it in metric_exporters()] == ["http://base:4318/v1/metrics"]
    assert caplog.records == []


def test_such_an_endpoint_over_grpc(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """gRPC has no path: the exporter gets none, and the line is the same."""
    made: list[dict[str, object]] = []

    def grpc(**arguments: object) -> SpanExporter:
        made.append(arguments)
        return InMemorySpanExporter()

    install(monkeypatch, "otlp_proto_grpc", grpc)
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317/v1/traces")
    configure_tracing()
    assert made == [{"endpoint": "http://collector:4317"}]
    assert len(caplog.records) == 1


class TestMetrics:
    """One bootstrap for spans and metrics."""

    @pytest.fixture(autouse=True)
    def _are_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OTEL_METRICS_EXPORTER", "otlp")

    def test_by_default_there_are_none(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """And no word of it: the name of the function says what it does unless more is asked for."""
        monkeypatch.delenv("OTEL_METRICS_EXPORTER")
        configure_tracing()
        assert not isinstance(metrics.get_meter_provider(), MeterProvider)
        assert caplog.records == []

    def test_they_go_where_the_spans_go(self, installed: list[Installed]) -> None:
        """Over OTLP/HTTP, every minute, from the same resource, and handed over at the same ends."""
        provider = configure_tracing("orders", resource_attributes={"team": "mail"})
        meters = cast(Any, metrics.get_meter_provider())
        assert isinstance(meters, MeterProvider)
        [exporter] = metric_exporters()
        assert (type(exporter), url(exporter)) == (OTLPMetricExporter, "http://localhost:4318/v1/metrics")
        assert readers()[0]._interval == 60
        assert meters._sdk_config.resource is provider.resource
        assert len(installed) == 1

    def test_endpoint_and_headers_are_those_of_the_spans(self) -> None:
        """As they are given in code."""
        configure_tracing(endpoint="http://collector:4318/v1/traces", headers={"api-key": "k"})
        [exporter] = metric_exporters()
        assert url(exporter) == "http://collector:4318/v1/metrics"

    @pytest.mark.parametrize("variables", [{"OTEL_METRICS_EXPORTER": "none"}, {"OTEL_SDK_DISABLED": "true"}])
    def test_none(self, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
        """No meter provider is made: nothing is measured, and one of the program's can be set later."""
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        configure_tracing()
        assert not isinstance(metrics.get_meter_provider(), MeterProvider)

    @pytest.mark.parametrize("theirs", [NoOpMeterProvider(), MeterProvider(shutdown_on_exit=False)])
    def test_a_meter_provider_of_someone_else_stays(
        self, caplog: pytest.LogCaptureFixture, theirs: metrics.MeterProvider
    ) -> None:
        """Without a word."""
        metrics.set_meter_provider(theirs)
        configure_tracing()
        assert metrics.get_meter_provider() is theirs
        assert readers() == []
        assert caplog.records == []

    @pytest.mark.parametrize(
        ("value", "wanted"),
        [
            ("console,otlp", [ConsoleMetricExporter, OTLPMetricExporter]),
            (" otlp_proto_http ", [OTLPMetricExporter]),
            ("installed", [Exporting]),
        ],
    )
    def test_the_environment_names_the_exporters(
        self, monkeypatch: pytest.MonkeyPatch, value: str, wanted: list[type]
    ) -> None:
        """OTEL_METRICS_EXPORTER: one or several, or one that a package has registered."""
        install(monkeypatch, "installed", Exporting, "metrics")
        monkeypatch.setenv("OTEL_METRICS_EXPORTER", value)
        configure_tracing()
        assert [type(it) for it in metric_exporters()] == wanted

    def test_a_reader_is_taken_as_it_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Prometheus' is one: it is asked from outside."""
        reader = InMemoryMetricReader()
        install(monkeypatch, "prometheus", lambda: reader, "metrics")
        monkeypatch.setenv("OTEL_METRICS_EXPORTER", "prometheus")
        configure_tracing()
        metrics.get_meter("x").create_counter("x").add(1)
        assert reader.get_metrics_data() is not None

    @pytest.mark.parametrize(
        ("exporter", "said"),
        [
            (
                None,
                "the exporter 'prometheus' is not installed (pip install opentelemetry-exporter-prometheus); no ",
            ),
            (
                object,
                "no metrics are exported: the exporter 'prometheus' cannot be made: object is neither a Metric",
            ),
            (
                lambda: 1 / 0,
                "no metrics are exported: the exporter 'prometheus' cannot be made: division by zero",
            ),
        ],
    )
    def test_an_exporter_that_is_not_to_be_had_is_one_warning(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, exporter: Any, said: str
    ) -> None:
        """What is missing is said with its package. Spans are exported all the same."""
        install(monkeypatch, "prometheus" if exporter else "another", exporter, "metrics")
        monkeypatch.setenv("OTEL_METRICS_EXPORTER", "prometheus")
        assert [type(it) for it in exporters(configure_tracing())] == [OTLPSpanExporter]
        [record] = caplog.records
        assert record.message.startswith(f"queueprop, configure_tracing(): {said}")
        assert readers() == []

    def test_grpc_that_is_not_installed(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """One line, and OTLP over HTTP."""
        install(monkeypatch, "another")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "grpc")
        configure_tracing()
        assert [type(it) for it in metric_exporters()] == [OTLPMetricExporter]
        [record] = caplog.records
        assert "pip install opentelemetry-exporter-otlp-proto-grpc" in record.message

    def test_otlp_that_is_not_installed_does_not_stop_who_does_not_need_it_for_spans(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """One warning that says what to install."""
        monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.metric_exporter", None)
        monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
        configure_tracing()
        [record] = caplog.records
        assert record.message.endswith('pip install "queueprop[sdk]"')

    def test_what_else_goes_wrong_is_one_warning(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Whatever is asked: the program has its spans."""

        def broken(*arguments: object) -> None:
            raise RuntimeError("on purpose")

        monkeypatch.setattr(metrics, "set_meter_provider", broken)
        assert isinstance(configure_tracing(), TracerProvider)
        [record] = caplog.records
        assert record.message == "queueprop, configure_tracing(): no metrics are exported: on purpose"

    def test_a_time_limit_goes_through(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """One of the program's, in the making of an exporter and in the rest."""

        def limit(*arguments: object) -> None:
            raise TimeoutError("of the program's")

        monkeypatch.setattr(guard, "_not_ours", (TimeoutError,))
        install(monkeypatch, "mine", limit, "metrics")
        monkeypatch.setenv("OTEL_METRICS_EXPORTER", "mine")
        with pytest.raises(TimeoutError):
            configure_tracing()

    @pytest.mark.parametrize(
        ("given", "seconds"), [("1500", 1.5), ("soon", 60), ("0", 60), ("9" * 5000, None)]
    )
    def test_the_interval(self, monkeypatch: pytest.MonkeyPatch, given: str, seconds: float | None) -> None:
        """OTEL_METRIC_EXPORT_INTERVAL, in milliseconds; a wrong one is the default, and never is as long as can be."""
        monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", given)
        configure_tracing()
        assert readers()[0]._interval == (threading.TIMEOUT_MAX if seconds is None else seconds)

    def test_they_are_exported_at_the_interval(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """By themselves, and again."""
        exporter = configured(monkeypatch, OTEL_METRIC_EXPORT_INTERVAL="1")
        counter = metrics.get_meter("x").create_counter("x")
        counter.add(1)
        assert exporter.came.acquire(timeout=A_HANG)
        assert exporter.came.acquire(timeout=A_HANG)

    def test_an_export_at_the_interval_that_raises_is_not_the_last(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is a warning."""
        exporter = configured(monkeypatch, OTEL_METRIC_EXPORT_INTERVAL="1")
        exporter.result = OSError("connection refused")
        metrics.get_meter("x").create_counter("x").add(1)
        assert exporter.came.acquire(timeout=A_HANG)
        assert exporter.came.acquire(timeout=A_HANG)
        assert any("connection refused" in record.message for record in caplog.records)

    def test_force_flush_says_whether_they_were_handed_over(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The SDK's says True although the export failed."""
        exporter = configured(monkeypatch)
        provider = cast(Any, metrics.get_meter_provider())
        metrics.get_meter("x").create_counter("x").add(1)
        assert provider.force_flush() is True
        exporter.result = MetricExportResult.FAILURE
        assert provider.force_flush() is False

    def test_one_export_at_a_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Another one waits for as long as it may, and then has failed."""
        configured(monkeypatch)
        [reader] = readers()
        with reader._exporting:
            assert cast(Any, metrics.get_meter_provider()).force_flush(1) is False
            assert reader.force_flush(1) is False

    def test_the_end_is_the_end_of_both(
        self, monkeypatch: pytest.MonkeyPatch, installed: list[Installed]
    ) -> None:
        """Also when the spans cannot be handed over; and an end that comes twice is one."""
        monkeypatch.setattr(TracerProvider, "force_flush", lambda *_: 1 / 0)
        exporter = configured(monkeypatch)
        metrics.get_meter("x").create_counter("x").add(1)
        [hook] = installed
        with pytest.raises(ZeroDivisionError):
            hook.flush()
        assert exporter.came.acquire(timeout=0)
        hook.shutdown()
        assert exporter.came.acquire(timeout=0)
        readers()[0].shutdown()
        assert not exporter.came.acquire(timeout=0)

    def test_where_gevent_has_patched_since_they_wait_for_the_spans_thread(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A greenlet must not wait for the native locks of before. Else they are handed over beside the spans."""
        configured(monkeypatch)
        threads: list[str] = []

        def note() -> None:
            threads.append(threading.current_thread().name)

        monkeypatch.setattr(flushing, "beside", lambda task: threads.append("beside"))
        flushing.run_for_metrics(note)
        monkeypatch.setattr("_thread.start_new_thread", lambda *_: None)
        flushing.run_for_metrics(note)
        assert threads == ["beside", threading.current_thread().name]

    def test_a_fork_waits_for_a_collection(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It holds locks of the SDK's, which nobody would release in the child."""
        configured(monkeypatch)
        [reader] = readers()
        reader.before_fork()
        assert reader._collecting.locked()
        assert reader.force_flush(1) is False
        reader.after_fork()
        assert reader.force_flush(1000) is True

    def test_a_collection_that_lasts_is_not_waited_for_for_ever(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The fork goes on without, and does not let go of what is somebody else's."""
        configured(monkeypatch)
        [reader] = readers()
        with reader._collecting:
            reader.before_fork()
            reader.after_fork()
            assert reader._collecting.locked()
        assert reader.force_flush(1000) is True

    def test_threads_that_fork_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """One holds the lock, the other has waited for it in vain: whoever holds it lets it go, and only that one."""
        configured(monkeypatch)
        [reader] = readers()
        reader.before_fork()
        other = threading.Thread(target=lambda: (reader.before_fork(), reader.after_fork()))
        other.start()
        other.join()
        assert reader._collecting.locked()
        reader.after_fork()
        assert reader.force_flush(1000) is True

    def test_what_a_parent_has_measured_stays_with_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where differences are exported, each is exported once. A child tells of itself under a name of its own."""
        exporter = configured(monkeypatch, Exporting(delta=True))
        [reader] = readers()
        counter = metrics.get_meter("x").create_counter("x")
        counter.add(5)
        reader.before_fork()
        reader.after_fork()
        reader.force_flush()
        assert exporter.values() == [5]
        counter.add(7)
        reader.before_fork()
        reader.in_child()
        counter.add(1)
        reader.force_flush()
        assert exporter.values() == [5, 1]
        parent, child = (data.resource_metrics[0].resource.attributes for data in exporter.data)
        assert child["service.instance.id"] != parent.get("service.instance.id")
        assert child["service.name"] == parent["service.name"]

    def test_what_no_child_is_to_inherit_is_measured_beside(
        self, monkeypatch: pytest.MonkeyPatch, installed: list[Installed]
    ) -> None:
        """By another provider, exported at the same ends, as the same instance; one for each process."""
        exporter = configured(monkeypatch, Exporting(delta=True))
        meters = cast(Any, metrics.get_meter_provider())
        beside = meters.not_inherited()
        assert meters.not_inherited() is beside is not meters
        counter = beside.get_meter("x").create_counter("x")
        counter.add(5)
        assert meters.force_flush() is True
        counter.add(7)
        installed[0].shutdown()
        assert exporter.values() == [5, 7]
        attributes = [dict(data.resource_metrics[0].resource.attributes) for data in exporter.data]
        assert attributes[0] == attributes[1] == dict(readers()[0]._resource.attributes)

    def test_of_that_a_fork_takes_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """No fork collects it, and a child exports none of it."""
        exporter = configured(monkeypatch, Exporting(delta=True))
        meters = cast(Any, metrics.get_meter_provider())
        beside = meters.not_inherited()
        [reader] = beside._exporting
        beside.get_meter("x").create_counter("x").add(5)
        for _ in range(100):
            reader.before_fork()
            reader.after_fork()
        assert meters.force_flush() is True
        assert exporter.values() == [5]
        monkeypatch.setattr(reader, "start", None)
        reader.in_child()
        assert reader._ended.is_set()
        monkeypatch.setattr(os, "getpid", lambda: 0)
        meters.force_flush()
        assert len(exporter.data) == 1
        assert meters.not_inherited() is not beside

    def test_an_export_beside_that_fails_is_a_failure(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As one of the provider's own."""
        exporter = configured(monkeypatch)
        meters = cast(Any, metrics.get_meter_provider())
        meters.not_inherited().get_meter("x").create_counter("x").add(1)
        exporter.result = MetricExportResult.FAILURE
        assert meters.force_flush() is False
        exporter.result = MetricExportResult.SUCCESS
        assert meters.force_flush() is True

    @pytest.mark.parametrize(
        ("value", "makes", "is_itself"),
        [
            ("asked", InMemoryMetricReader, True),
            ("asked,otlp", InMemoryMetricReader, False),
            ("asked", lambda: PeriodicExportingMetricReader(Exporting(), 600_000), False),
        ],
    )
    def test_where_it_is_asked_from_outside(
        self, monkeypatch: pytest.MonkeyPatch, value: str, makes: Callable[[], object], is_itself: bool
    ) -> None:
        """Nobody asks a child, so the provider may do by itself. Where it is both there is none."""
        install(monkeypatch, "asked", makes, "metrics")
        monkeypatch.setenv("OTEL_METRICS_EXPORTER", value)
        configure_tracing()
        meters = cast(Any, metrics.get_meter_provider())
        assert meters.not_inherited() is (meters if is_itself else None)

    def test_a_child_whose_sdk_has_named_it_keeps_that_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The newest SDKs do."""
        configured(monkeypatch)
        [reader] = readers()
        reader.in_child()
        resource = Resource({"service.instance.id": "the SDK's"})
        assert reader._own(resource) is resource

    def test_a_child_that_is_forked_after_the_end_measures_nothing(
        self, monkeypatch: pytest.MonkeyPatch, installed: list[Installed]
    ) -> None:
        """It starts no thread."""
        configured(monkeypatch)
        [reader] = readers()
        reader.shutdown()
        monkeypatch.setattr(reader, "start", None)
        reader.in_child()

    def test_a_time_limit_at_a_flush_goes_through(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """One of the program's."""
        exporter = configured(monkeypatch)
        exporter.result = TimeoutError("of the program's")
        monkeypatch.setattr(guard, "_not_ours", (TimeoutError,))
        metrics.get_meter("x").create_counter("x").add(1)
        with pytest.raises(TimeoutError):
            readers()[0].force_flush()
        exporter.result = MetricExportResult.SUCCESS

    def test_what_goes_wrong_at_a_fork_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The fork goes on."""
        configured(monkeypatch)
        told: list[str] = []
        monkeypatch.setattr(guard, "fault", lambda where, error: told.append(where))

        def broken(reader: object) -> None:
            raise OSError("on purpose")

        of_metrics._each(broken)()
        assert told == ["forking, with metrics"] * len(of_metrics._readers)

    def test_a_child_without_a_thread_hands_over_at_its_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As many threads as the system allows."""
        exporter = configured(monkeypatch)

        def start(thread: object) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", start)
        [reader] = readers()
        reader.in_child()
        metrics.get_meter("x").create_counter("x").add(1)
        assert reader.force_flush() is True
        assert exporter.came.acquire(timeout=0)

    def test_a_system_that_cannot_fork_has_no_hook_for_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Windows."""
        monkeypatch.delattr(os, "register_at_fork")
        specification = importlib.util.spec_from_file_location("without_fork", of_metrics.__file__)
        assert specification is not None
        assert specification.loader is not None
        specification.loader.exec_module(importlib.util.module_from_spec(specification))


A_HANG = 60  # seconds


def readers() -> list[Any]:
    """Of ours, in the global meter provider."""
    found = getattr(metrics.get_meter_provider(), "_exporting", [])
    return [reader for reader in found if isinstance(reader, of_metrics.Reader)]


def metric_exporters() -> list[Any]:
    return [reader._exports._exporter for reader in readers()]


def configured(
    monkeypatch: pytest.MonkeyPatch, exporter: Exporting | None = None, **variables: str
) -> Exporting:
    """Sets up metrics alone, and gives their exporter."""
    exporter = exporter or Exporting()
    install(monkeypatch, "mine", lambda: exporter, "metrics")
    for name, value in {"OTEL_METRICS_EXPORTER": "mine", "OTEL_TRACES_EXPORTER": "none", **variables}.items():
        monkeypatch.setenv(name, value)
    configure_tracing()
    return exporter


def install(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    exporter: Callable[..., object] = InMemorySpanExporter,
    signal: str = "traces",
) -> None:
    """Registers an exporter as packages do, and no other."""

    class Installed(EntryPoint):
        def load(self) -> object:
            return exporter

    def entry_points(*, group: str, name: str) -> EntryPoints:
        return EntryPoints([point]).select(group=group, name=name)

    point = Installed(name, "some.module:Exporter", f"opentelemetry_{signal}_exporter")
    monkeypatch.setattr(choosing, "entry_points", entry_points)


def batches(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> tuple[int, ...]:
    """What the SDK's processor is made with, in the order of BATCH_VARIABLES."""
    given: dict[str, int] = {}

    def record(self: BatchSpanProcessor, exporter: SpanExporter, **arguments: int) -> None:
        given.update(arguments)

    monkeypatch.setattr(BatchSpanProcessor, "__init__", record)
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    BatchProcessor(ProcessExporter(InMemorySpanExporter))
    names = ("max_queue_size", "max_export_batch_size", "schedule_delay_millis", "export_timeout_millis")
    return tuple(given[name] for name in names)


@pytest.mark.parametrize("is_code", [True, False])
def test_an_endpoint_without_a_scheme_is_understood(
    is_code: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """``collector:4318`` is what people write; each export would fail with words of the HTTP library's. One line."""
    if is_code:
        provider = configure_tracing(endpoint="collector:4318/")
    else:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318/")
        provider = configure_tracing()
    assert url(exporters(provider)[0]) == "http://collector:4318/v1/traces"
    (record,) = caplog.records
    assert "the endpoint 'collector:4318' is no URL; http://collector:4318 is used" in record.message
