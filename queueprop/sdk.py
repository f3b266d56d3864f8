"""``configure_tracing()``: the OpenTelemetry SDK as a worker needs it. Needs the extra ``queueprop[sdk]``."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, cast

from opentelemetry import trace
from opentelemetry.util.types import AttributeValue

from queueprop import guard
from queueprop.process import flush as flushing
from queueprop.process.exit import HandOver
from queueprop.settings import Settings

_HINT = 'queueprop.sdk needs the OpenTelemetry SDK: pip install "queueprop[sdk]"'

try:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import (
        BatchSpanProcessor,
        ConsoleSpanExporter,
        SpanExporter,
        SpanExportResult,
    )
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
    from opentelemetry.sdk.trace.sampling import ParentBased, Sampler, TraceIdRatioBased
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(_HINT, name=error.name) from None

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
    """Makes the global tracer provider: OTLP over HTTP, in batches, flushed at every end of the process.

    What is not given here comes from the standard ``OTEL_*`` variables, else from their defaults: a
    Collector at ``http://localhost:4318``, every trace sampled unless its parent was not, batches of 512
    every 5 s out of a queue of 2048. A wrong value in a variable is one warning and the default.

    Arguments:
        service_name: else OTEL_SERVICE_NAME, else ``service.name`` in OTEL_RESOURCE_ATTRIBUTES.
        endpoint: the Collector's base URL (``http://collector:4318``), as in OTEL_EXPORTER_OTLP_ENDPOINT;
            with the path ``/v1/traces`` it is understood as well.
        headers: sent with each export; else OTEL_EXPORTER_OTLP_HEADERS.
        sample_ratio: the part of new traces that is recorded, 0 to 1, parent-based; else OTEL_TRACES_SAMPLER
            and OTEL_TRACES_SAMPLER_ARG.
        resource_attributes: besides those of OTEL_RESOURCE_ATTRIBUTES, and over them.
        exporter: instead of the one that OTEL_TRACES_EXPORTER names (``otlp``, ``console``, ``none``, or any
            that is installed).
        exit_timeout: seconds that the process waits for its last spans when it ends. A forked child waits
            for the setting ``flush_timeout``.

    Returns the global provider. When there is one already, from an earlier call or from someone else
    (``opentelemetry-instrument``), that one is returned as it is, with a warning. With
    OTEL_SDK_DISABLED=true the provider makes no spans, and nothing else is installed.

    Where SIGTERM would have killed the process, it ends in order instead, with the exit status 143; a
    handler of yours, installed before or after, stays yours. ``queueprop.process.exit`` says it in full.

    Raises ModuleNotFoundError when the exporter is not installed, ValueError for a ratio outside 0 to 1.
    """
    global _configured
    present = trace.get_tracer_provider()
    if not isinstance(present, trace.ProxyTracerProvider):
        _warn_of(present)
        return cast(TracerProvider, present)
    provider = TracerProvider(
        sampler=_sampler(sample_ratio),
        resource=Resource.create(_resource_attributes(service_name, resource_attributes)),
        id_generator=_IdGenerator(),
        shutdown_on_exit=False,  # it has no bound; HandOver does the same with one
    )
    if not _is_disabled():
        for make in [lambda: exporter] if exporter is not None else _exporter_factories(endpoint, headers):
            _add_exporter(provider, make)
        _hand_over(provider, exit_timeout)
    trace.set_tracer_provider(provider)
    _configured = provider
    return provider


def _warn_of(present: trace.TracerProvider) -> None:
    if present is _configured:
        guard.mistake("configure_tracing()", "it was called before; this call changes nothing")
    else:
        name = type(present).__qualname__
        guard.mistake(
            "configure_tracing()", f"it changes nothing: there is a tracer provider already ({name})"
        )


def _hand_over(provider: TracerProvider, exit_timeout: float) -> None:
    hand_over = HandOver(provider.force_flush, provider.shutdown, exit_timeout, Settings().flush_timeout)
    hand_over.install()
    flushing.run_for_spans = hand_over.run


def _is_disabled() -> bool:
    return _variable("OTEL_SDK_DISABLED").lower() == "true"


def _sampler(ratio: float | None) -> Sampler | None:
    if ratio is None and _variable("OTEL_TRACES_SAMPLER"):
        return None  # the SDK reads it, and its argument, by itself
    return ParentBased(TraceIdRatioBased(1.0 if ratio is None else ratio))


def _resource_attributes(
    service_name: str | None, attributes: Mapping[str, AttributeValue] | None
) -> dict[str, AttributeValue]:
    named: dict[str, AttributeValue] = {} if service_name is None else {"service.name": service_name}
    return {**(attributes or {}), **named}


def _add_exporter(provider: TracerProvider, make: Callable[[], SpanExporter]) -> None:
    try:
        exporter = _ProcessExporter(make)
    except Exception as error:
        guard.mistake("configure_tracing()", f"no spans are exported: the exporter cannot be made: {error}")
        return
    provider.add_span_processor(_BatchProcessor(exporter))


def _exporter_factories(
    endpoint: str | None, headers: Mapping[str, str] | None
) -> list[Callable[[], SpanExporter]]:
    names = [name.strip().lower() for name in _variable("OTEL_TRACES_EXPORTER", "otlp").split(",")]
    if "none" in names:
        return []
    return [_exporter_factory(name, endpoint, headers) for name in dict.fromkeys(names)]


def _exporter_factory(
    name: str, endpoint: str | None, headers: Mapping[str, str] | None
) -> Callable[[], SpanExporter]:
    if name == "console":
        return ConsoleSpanExporter
    if name == "otlp":
        name = _otlp_exporter()
    if name == _OTLP_HTTP:
        return _otlp_http(endpoint, headers)
    found = next(iter(entry_points(group="opentelemetry_traces_exporter", name=name)), None)
    if found is None:
        guard.mistake(
            "configure_tracing()", f"the exporter {name!r} is not installed; OTLP over HTTP is used instead"
        )
        return _otlp_http(endpoint, headers)
    arguments = _given(endpoint=endpoint, headers=headers) if name == _OTLP_GRPC else {}
    return lambda: cast(SpanExporter, found.load()(**arguments))


_OTLP_HTTP = "otlp_proto_http"
_OTLP_GRPC = "otlp_proto_grpc"


def _otlp_exporter() -> str:
    protocol = _variable("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    protocol = _variable("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", protocol).lower()
    return {"http/protobuf": _OTLP_HTTP, "grpc": _OTLP_GRPC}.get(protocol, protocol)


def _otlp_http(endpoint: str | None, headers: Mapping[str, str] | None) -> Callable[[], SpanExporter]:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(_HINT, name=error.name) from None
    url = endpoint and endpoint.rstrip("/").removesuffix("/v1/traces") + "/v1/traces"
    arguments = _given(endpoint=url, headers=headers)
    return lambda: OTLPSpanExporter(**arguments)


def _given(**arguments: Any) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value}


class _ProcessExporter(SpanExporter):
    """An exporter of its own for each process, made when a child first needs it.

    A forked child inherits the parent's open connections, and on a shared one each would read the other's
    answers. It also counts failed exports, which a batch processor forgets.
    """

    def __init__(self, make: Callable[[], SpanExporter]) -> None:
        self._make = make
        self._exporter = make()
        self._pid = os.getpid()
        self.failures = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self._pid != os.getpid():
            self._exporter = self._make()
            self._pid = os.getpid()
        result = SpanExportResult.FAILURE
        try:
            result = self._export(spans)
        finally:
            self.failures += result is not SpanExportResult.SUCCESS
        return result

    def _export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        _blocks_from_now_on()
        try:
            result = self._exporter.export(spans)
        except RuntimeError:
            if not _blocks_from_now_on():
                raise
        else:
            if result is SpanExportResult.SUCCESS or not _blocks_from_now_on():
                return result
        return self._exporter.export(spans)  # the end began meanwhile

    def shutdown(self) -> None:
        if self._pid == os.getpid():
            self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._pid != os.getpid() or self._exporter.force_flush(timeout_millis) is not False


def _blocks_from_now_on() -> bool:
    """Whether gevent's lookup of the Collector's address blocks, and did not before.

    It is done in a thread of gevent's, and from Python 3.12 on none can be started as soon as the interpreter is
    ending, which is when the last spans are exported. Better it blocks then.
    """
    if not flushing.waits_in_gevent():
        return False
    try:
        monkey, hub = import_module("gevent.monkey"), import_module("gevent").get_hub()
        blocking = import_module("gevent.resolver.blocking").Resolver
        if isinstance(hub.resolver, blocking):
            return False
        try:
            monkey.get_original("_thread", "start_new_thread")(int, ())
        except RuntimeError:
            hub.resolver = blocking(hub)
            return True
    except Exception as error:
        if guard.is_not_ours(error):
            raise
        guard.log(logging.DEBUG, "gevent's resolver: %s", error)  # the export may do without
    return False


class _BatchProcessor(BatchSpanProcessor):
    """The SDK's, whose ``force_flush`` is False also when an export failed."""

    def __init__(self, exporter: _ProcessExporter) -> None:
        queue = _number("OTEL_BSP_MAX_QUEUE_SIZE", 2048)
        super().__init__(
            exporter,
            max_queue_size=queue,
            max_export_batch_size=min(_number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512), queue),
            schedule_delay_millis=_number("OTEL_BSP_SCHEDULE_DELAY", 5000),
            export_timeout_millis=_number("OTEL_BSP_EXPORT_TIMEOUT", 30000),
        )
        self._handed_to = exporter

    def force_flush(self, timeout_millis: int | None = None) -> bool:
        failures = self._handed_to.failures
        # None is for the processor to fill in; oldest releases annotate it as int.
        in_time = super().force_flush(cast(int, timeout_millis))
        return in_time and self._handed_to.failures == failures


class _IdGenerator(RandomIdGenerator):
    """Draws from a generator of its own, which every forked child seeds anew.

    The SDK's draws from that of the ``random`` module, so a job that calls ``random.seed()`` repeats its ids.
    """

    def __init__(self) -> None:
        self._random = random.Random()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._random.seed)

    def generate_span_id(self) -> int:
        while not (span_id := self._random.getrandbits(64)):
            pass
        return span_id

    def generate_trace_id(self) -> int:
        while not (trace_id := self._random.getrandbits(128)):
            pass
        return trace_id


def _number(name: str, default: int) -> int:
    given = _variable(name, str(default))
    if given.isdecimal() and int(given) > 0:
        return int(given)
    guard.mistake(name, f"wants a whole number above 0, not {given!r}; {default} is used instead")
    return default


def _variable(name: str, default: str = "") -> str:
    return os.environ.get(name, "").strip() or default
