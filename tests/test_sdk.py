from __future__ import annotations

import importlib.util
import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import EntryPoint, EntryPoints
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
from opentelemetry import trace
from opentelemetry.trace import NoOpTracerProvider, ProxyTracerProvider, SpanContext, TraceFlags
from opentelemetry.util._once import Once

pytest.importorskip("opentelemetry.sdk.trace")
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
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

    monkeypatch.setattr(sdk, "HandOver", Recorded)
    monkeypatch.setattr(sdk, "_configured", None)
    monkeypatch.setattr(flushing, "run_for_spans", flushing.run_for_spans)
    monkeypatch.setattr(guard, "_logged", {})
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER_SET_ONCE", Once())
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


def test_flush_and_the_end_share_a_thread(installed: list[Installed]) -> None:
    """The one of the provider's own kind: it may have been set up before gevent patched."""
    provider = configure_tracing(exporter=InMemorySpanExporter())
    [hook] = installed
    assert (hook.flush, hook.shutdown) == (provider.force_flush, provider.shutdown)
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
        ("OTEL_TRACES_EXPORTER", "oltp", "oltp"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "otlp_proto_grpc"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json", "http/json"),
    ],
)
def test_an_exporter_that_is_not_installed_is_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variable: str, value: str, name: str
) -> None:
    """OTLP over HTTP takes its place."""
    install(monkeypatch, "something-else")
    monkeypatch.setenv(variable, value)
    assert [type(exporter) for exporter in exporters(configure_tracing())] == [OTLPSpanExporter]
    assert [record.message for record in caplog.records] == [
        f"queueprop, configure_tracing(): the exporter {name!r} is not installed; OTLP over HTTP is used instead"
    ]


def test_the_protocol_may_be_grpc_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets the endpoint as it stands: gRPC has no path."""
    made: list[dict[str, object]] = []

    class Grpc(InMemorySpanExporter):
        def __init__(self, **arguments: object) -> None:
            made.append(arguments)
            super().__init__()

    install(monkeypatch, "otlp_proto_grpc", Grpc)
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

    exporter = sdk._ProcessExporter(Recording)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    exporter.shutdown()
    assert exporter.force_flush() is True
    exporter.export([])
    exporter.export([])
    exporter.force_flush()
    exporter.shutdown()
    assert [recording.calls for recording in made] == [[], ["export", "export", "force_flush", "shutdown"]]


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
        exporter = sdk._ProcessExporter(InMemorySpanExporter)
        assert exporter.export([]) is SpanExportResult.SUCCESS
        assert hub.resolver == "in threads"

    def test_when_they_cannot(self, hub: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
        """The one that blocks, rather than none."""
        self.threads(monkeypatch, [self.no_thread])
        exporter = sdk._ProcessExporter(InMemorySpanExporter)
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
        exporter = sdk._ProcessExporter(Overtaken)
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
        exporter = sdk._ProcessExporter(Failing)
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
        exporter = sdk._ProcessExporter(InMemorySpanExporter)
        assert exporter.export([]) is SpanExportResult.SUCCESS
        assert hub.resolver == "in threads"

    def test_a_time_limit_goes_through(self, hub: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
        """One that a signal handler raises, in whatever greenlet."""
        self.threads(monkeypatch, [TimeoutError("of the program's")])
        monkeypatch.setattr(guard, "_not_ours", (TimeoutError,))
        with pytest.raises(TimeoutError):
            sdk._ProcessExporter(InMemorySpanExporter).export([])


def test_ids_do_not_depend_on_the_random_module() -> None:
    """A job that calls random.seed() would otherwise repeat the ids of the one before."""
    generator = sdk._IdGenerator()
    random.seed(1)
    first = generator.generate_trace_id(), generator.generate_span_id()
    random.seed(1)
    assert (generator.generate_trace_id(), generator.generate_span_id()) != first


def test_an_id_is_never_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zero means that there is none."""
    generator = sdk._IdGenerator()
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
    assert sdk._IdGenerator().generate_span_id()


def install(
    monkeypatch: pytest.MonkeyPatch, name: str, exporter: Callable[..., SpanExporter] = InMemorySpanExporter
) -> None:
    """Registers an exporter as packages do, and no other."""

    class Installed(EntryPoint):
        def load(self) -> object:
            return exporter

    def entry_points(*, group: str, name: str) -> EntryPoints:
        return EntryPoints([point]).select(group=group, name=name)

    point = Installed(name, "some.module:Exporter", "opentelemetry_traces_exporter")
    monkeypatch.setattr(sdk, "entry_points", entry_points)


def batches(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> tuple[int, ...]:
    """What the SDK's processor is made with, in the order of BATCH_VARIABLES."""
    given: dict[str, int] = {}

    def record(self: BatchSpanProcessor, exporter: SpanExporter, **arguments: int) -> None:
        given.update(arguments)

    monkeypatch.setattr(BatchSpanProcessor, "__init__", record)
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    sdk._BatchProcessor(sdk._ProcessExporter(InMemorySpanExporter))
    names = ("max_queue_size", "max_export_batch_size", "schedule_delay_millis", "export_timeout_millis")
    return tuple(given[name] for name in names)
