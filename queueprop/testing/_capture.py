"""The part of `queueprop.testing` that needs the SDK; imported when a capture begins, never before."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import DEFAULT_ON
from opentelemetry.util.types import Attributes

from queueprop.testing._forks import ForksFile as ForksFile

Sink = Callable[[ReadableSpan], None]


class Recorder(SpanProcessor):
    """Hands every span that would be exported to the captures that are open at its end.

    A provider cannot lose a processor again, so each gets one recorder for good, idle between captures.
    """

    def __init__(self) -> None:
        self._sinks: tuple[Sink, ...] = ()  # replaced, never altered: read without the lock
        self._lock = threading.Lock()

    @property
    def is_recording(self) -> bool:
        return bool(self._sinks)

    @contextmanager
    def recording(self, sink: Sink) -> Iterator[None]:
        with self._lock:
            self._sinks += (sink,)
        try:
            yield
        finally:
            with self._lock:
                self._sinks = tuple(other for other in self._sinks if other is not sink)

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is not None and span.context.trace_flags.sampled:
            for sink in self._sinks:
                sink(span)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """It holds nothing back. (The SDK's own answer is None in some versions, which counts as a failure there.)"""
        return True


class OwnTracerProvider(TracerProvider):
    """The provider that is set where the program has none. OpenTelemetry lets that be done once a process,
    so it stays, and while nothing is captured its tracers do what they would do without an SDK.
    """

    def __init__(self) -> None:
        super().__init__(sampler=DEFAULT_ON, shutdown_on_exit=False)
        self._recorder = recorder_of(self)

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes | None = None,
    ) -> trace.Tracer:
        tracer = super().get_tracer(
            instrumenting_module_name, instrumenting_library_version, schema_url, attributes
        )
        # The SDK gives the same tracer to who asks again.
        if "start_span" in vars(tracer):
            return tracer
        start_recorded = tracer.start_span

        def start_span(name: str, context: Context | None = None, *args: Any, **kwargs: Any) -> trace.Span:
            if self._recorder.is_recording:
                return start_recorded(name, context, *args, **kwargs)
            return trace.NonRecordingSpan(trace.get_current_span(context).get_span_context())

        # On the instance: `start_as_current_span` comes by here as well, also as a decorator made earlier.
        vars(tracer)["start_span"] = start_span
        return tracer


def recorder_of(provider: TracerProvider) -> Recorder:
    """The provider's recorder, made at its first capture. Raises TypeError when it takes no processors."""
    if not hasattr(provider, "add_span_processor"):
        raise TypeError(f"capture_spans() wants the SDK's TracerProvider, not {type(provider).__name__}")
    with _lock:
        recorder = vars(provider).get(_RECORDER)
        if not isinstance(recorder, Recorder):
            recorder = Recorder()
            provider.add_span_processor(recorder)
            # Kept on the provider itself: it lives as long, and not every provider can be a key.
            vars(provider)[_RECORDER] = recorder
        return recorder


def global_provider() -> TracerProvider:
    """The provider whose spans are captured: the global one, which is ours where the program has set none.

    One that takes no span processors (OpenTelemetry's no-op) is left alone, and ours is returned unset.
    """
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        trace.set_tracer_provider(OWN_PROVIDER)
    current = trace.get_tracer_provider()
    return cast(TracerProvider, current) if hasattr(current, "add_span_processor") else OWN_PROVIDER


_RECORDER = "_queueprop_recorder"
_lock = threading.Lock()

OWN_PROVIDER = OwnTracerProvider()
