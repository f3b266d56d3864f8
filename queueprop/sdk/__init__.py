"""``configure_tracing()``: the OpenTelemetry SDK as a worker needs it, for spans and metrics. Needs the extra
``queueprop[sdk]``.
"""

from __future__ import annotations

import _thread
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import BuiltinFunctionType
from typing import cast

from opentelemetry import trace
from opentelemetry.util.types import AttributeValue

from queueprop import guard
from queueprop.process import flush as flushing
from queueprop.process.exit import HandOver
from queueprop.sdk import exporters
from queueprop.sdk.environment import is_disabled, variable
from queueprop.sdk.exporters import TRACES, WHERE, Collector
from queueprop.settings import Settings

try:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.sdk.trace.sampling import ParentBased, Sampler, TraceIdRatioBased
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(exporters.HINT, name=error.name) from None
from queueprop.sdk import metrics
from queueprop.sdk.spans import BatchProcessor, IdGenerator, ProcessExporter

_configured: trace.TracerProvider | None = None


def configure_tracing(
    service_name: str | None = None,
    *,
    endpoint: str | None = None,
    headers: Mapping[str, str] | None = None,
    sample_ratio: float | None = None,
    resource_attributes: Mapping[str, AttributeValue] | None = None,
    exporter: SpanExporter | None = None,
    exit_timeout: float = 5.0,
) -> TracerProvider:
    """Makes the global tracer provider, and a meter provider where one is asked for: OTLP over HTTP, handed over at
    every end of the process.

    What is not given here comes from the standard ``OTEL_*`` variables, else from their defaults: a
    Collector at ``http://localhost:4318``, every trace sampled unless its parent was not, batches of 512
    every 5 s out of a queue of 2048, metrics every 60 s (OTEL_METRIC_EXPORT_INTERVAL, in ms). A wrong value
    in a variable is one warning and the default. Unlike ``opentelemetry-instrument`` with its distribution, it
    sends over HTTP and not gRPC unless OTEL_EXPORTER_OTLP_PROTOCOL says so, exports no logs, and no metrics
    unless they are asked for.

    Metrics are exported where OTEL_METRICS_EXPORTER says so: ``otlp``, to the same Collector as spans;
    ``console``, ``prometheus``, or any that is installed. A meter provider that is there already stays as it
    is. Not by default: a Jaeger refuses them.

    Arguments:
        service_name: else OTEL_SERVICE_NAME, else ``service.name`` in OTEL_RESOURCE_ATTRIBUTES.
        endpoint: the Collector's base URL (``http://collector:4318``), as in OTEL_EXPORTER_OTLP_ENDPOINT;
            with the path ``/v1/traces`` it is understood as well. Metrics go there, too.
        headers: sent with each export, of spans and of metrics; else OTEL_EXPORTER_OTLP_HEADERS.
        sample_ratio: the part of new traces that is recorded, 0 to 1, parent-based; else OTEL_TRACES_SAMPLER
            and OTEL_TRACES_SAMPLER_ARG.
        resource_attributes: besides those of OTEL_RESOURCE_ATTRIBUTES, and over them; of spans and metrics.
        exporter: instead of the one that OTEL_TRACES_EXPORTER names (``otlp``, ``console``, ``none``, or any
            that is installed).
        exit_timeout: seconds that the process waits for its last spans and metrics when it ends. A forked
            child waits for the setting ``flush_timeout``.

    Returns the global tracer provider. When there is one already, from an earlier call or from someone else
    (``opentelemetry-instrument``), that one is returned as it is, with a warning, and no meter provider is
    made. With OTEL_SDK_DISABLED=true the provider makes no spans, and nothing else is installed.

    Where SIGTERM would have killed the process, it ends in order instead, with the exit status 143; a
    handler of yours, installed before or after, stays yours. ``queueprop.process.exit`` says it in full.

    Raises ModuleNotFoundError when the spans' exporter is not installed, ValueError for a ratio outside 0 to 1.
    """
    global _configured
    present = trace.get_tracer_provider()
    if not isinstance(present, trace.ProxyTracerProvider):
        _warn_of(present)
        return cast(TracerProvider, present)
    resource = Resource.create(_resource_attributes(service_name, resource_attributes))
    provider = TracerProvider(
        sampler=_sampler(sample_ratio),
        resource=resource,
        id_generator=IdGenerator(),
        shutdown_on_exit=False,  # it has no bound; HandOver does the same with one
    )
    if not is_disabled():
        collector = Collector(endpoint, headers)
        for make in [lambda: exporter] if exporter is not None else _exporter_factories(collector):
            _add_exporter(provider, make)
        _hand_over(provider, _meters(resource, collector), exit_timeout)
    trace.set_tracer_provider(provider)
    _configured = provider
    return provider


def _warn_of(present: trace.TracerProvider) -> None:
    if present is _configured:
        guard.mistake(WHERE, "it was called before; this call changes nothing")
    else:
        name = type(present).__qualname__
        guard.mistake(WHERE, f"it changes nothing: there is a tracer provider already ({name})")


def _meters(resource: Resource, collector: Collector) -> metrics.Meters | None:
    try:
        return metrics.install(resource, collector)
    except Exception as error:
        if guard.is_not_ours(error):
            raise
        guard.mistake(WHERE, f"no metrics are exported: {error}")
        return None


def _hand_over(provider: TracerProvider, meters: metrics.Meters | None, exit_timeout: float) -> None:
    flush: Callable[[], object] = provider.force_flush
    shutdown: Callable[[], object] = provider.shutdown
    if meters is not None:
        flush, shutdown = _both(flush, meters.force_flush), _both(shutdown, meters.shutdown)
    hand_over = HandOver(flush, shutdown, exit_timeout, Settings().flush_timeout)
    hand_over.install()
    flushing.run_for_spans = hand_over.run
    flushing.is_given_up = hand_over.is_given_up
    if meters is not None:
        flushing.run_for_metrics = _of_the_same_kind(hand_over)


def _both(first: Callable[[], object], then: Callable[[], object]) -> Callable[[], None]:
    """One after the other, also when the first raises: the end of a process has one thread for them."""

    def call() -> None:
        with ExitStack() as stack:
            stack.callback(then)
            first()

    return call


def _of_the_same_kind(hand_over: HandOver) -> Callable[[flushing.Task], None]:
    """Where the meters are asked: beside the spans, which takes a child no longer than the spans alone.

    Where gevent or eventlet has patched since, the locks are native ones, which a greenlet must not wait for: then
    after the spans, in their thread.
    """
    is_native = _starts_native_threads()

    def run(task: flushing.Task) -> None:
        run_it = flushing.beside if _starts_native_threads() == is_native else hand_over.run
        run_it(task)

    return run


def _starts_native_threads() -> bool:
    return isinstance(_thread.start_new_thread, BuiltinFunctionType)


def _sampler(ratio: float | None) -> Sampler | None:
    if ratio is None and variable("OTEL_TRACES_SAMPLER"):
        return None  # the SDK reads it, and its argument, by itself
    return ParentBased(TraceIdRatioBased(1.0 if ratio is None else ratio))


def _resource_attributes(
    service_name: str | None, attributes: Mapping[str, AttributeValue] | None
) -> dict[str, AttributeValue]:
    named: dict[str, AttributeValue] = {} if service_name is None else {"service.name": service_name}
    return {**(attributes or {}), **named}


def _add_exporter(provider: TracerProvider, make: Callable[[], SpanExporter]) -> None:
    try:
        exporter = ProcessExporter(make)
    except Exception as error:
        guard.mistake(WHERE, f"no spans are exported: the exporter cannot be made: {error}")
        return
    provider.add_span_processor(BatchProcessor(exporter))


def _exporter_factories(collector: Collector) -> list[Callable[[], SpanExporter]]:
    return [_exporter_factory(name, collector) for name in exporters.names(TRACES)]


def _exporter_factory(name: str, collector: Collector) -> Callable[[], SpanExporter]:
    make = exporters.factory(TRACES, name, collector)
    if make is None:
        exporters.say_missing(TRACES, name, "OTLP over HTTP is used instead")
        make = exporters.otlp_http(TRACES, collector)
    return make
