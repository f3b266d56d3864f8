"""``Telemetry``: tracer, instruments and rules of one ``Settings``. What operations ask."""

from __future__ import annotations

import fnmatch
import re
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

from opentelemetry.context import Context
from opentelemetry.metrics import MeterProvider, NoOpMeterProvider
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    NonRecordingSpan,
    NoOpTracerProvider,
    Span,
    SpanContext,
    get_current_span,
)
from opentelemetry.util.types import AttributeValue

from queueprop import guard
from queueprop.engine import garbage, no_sdk, semconv
from queueprop.engine.message import Attributes, Destination, Labels, Message, Templates, bounded
from queueprop.engine.metrics import Instruments
from queueprop.engine.providers import get_meter_provider, get_tracer_provider
from queueprop.engine.scope import records, span_context_of
from queueprop.settings import Settings, SpanHook
from queueprop.version import __version__
from queueprop.wire import headers, propagation
from queueprop.wire.propagation import SPAN_KEY


class Telemetry:
    """How the operations of one ``Settings`` tell of themselves. Thread-safe; made once and kept."""

    def __init__(self, settings: Settings | None = None) -> None:
        garbage.watch()
        self.settings = settings = settings if settings is not None else Settings()
        self.baggage_allow: Collection[str] | None = (
            None if "*" in settings.baggage_allow else frozenset(settings.baggage_allow)
        )
        self.continues = settings.propagation == "parent"
        self.trusts_all = settings.trust == "all"
        self.excluded = _any_of(settings.exclude)
        templates: Any = settings.destination_templates
        self.templates = Templates(templates) if templates else None
        self._details = bool(settings.capture_headers or settings.body_size)
        self.enriches_sends = self._details or settings.publish_hook is not None
        self.enriches_processes = self._details or settings.consume_hook is not None
        self._given_tracer_provider = settings.tracer_provider
        self._given_meter_provider = settings.meter_provider
        self._get_tracer_provider: Callable[[], Any] = get_tracer_provider
        self._get_meter_provider: Callable[[], Any] = get_meter_provider
        self._tracer_provider: Any = None
        self._tracer: Any = None
        self._meter_provider: Any = None
        self._instruments: Any = None

    def start_span(
        self,
        labels: Labels,
        parent: Context,
        attributes: Attributes,
        links: Sequence[Link] | None = None,
        started_at: int | None = None,
    ) -> Span:
        """Starts it. Where the SDK has none to give, a span that records nothing hands on what came in."""
        provider: Any = None
        try:
            provider = self._given_tracer_provider or self._get_tracer_provider()
            if provider is not self._tracer_provider:
                self._take_tracer(provider)
            if self._tracer is None:
                ambient = parent.get(SPAN_KEY, INVALID_SPAN)
                return ambient if isinstance(ambient, NonRecordingSpan) else _handing_on(parent)
            span: Span = self._tracer.start_span(
                labels.span_name, parent, labels.span_kind, attributes, links, started_at
            )
            context = span.get_span_context()
            if not isinstance(context, SpanContext):
                raise TypeError(f"the context of a span is {context!r}")
            if context.is_valid:
                return span
        except Exception as error:
            if provider is None:
                self._get_tracer_provider = _Later(get_tracer_provider, NoOpTracerProvider())
            guard.fault("starting a span", error, about=labels.span_name)
        return _handing_on(parent)

    def _take_tracer(self, provider: Any) -> None:
        """None for as long as the API's stand-in is the global provider, whose tracer would only hand on what came in.

        One that is given may have been kept from before an SDK was set: its tracers become that one's.
        """
        no_sdk.say_if_missing(provider)
        if no_sdk.is_stand_in(provider) and provider is not self._given_tracer_provider:
            self._tracer = None
        else:
            self._tracer = provider.get_tracer("queueprop", __version__, schema_url=semconv.SCHEMA_URL)
        self._tracer_provider = provider

    def instruments(self) -> Instruments:
        """Those of the meter provider. Where it cannot make them nothing is measured, until there is another one."""
        provider: Any = None
        try:
            provider = self._given_meter_provider or self._get_meter_provider()
            if provider is not self._meter_provider:
                self._make_instruments(provider)
        except Exception as error:
            if provider is None:
                self._get_meter_provider = _Later(get_meter_provider, NoOpMeterProvider())
            self._instruments = Instruments(NoOpMeterProvider(), __version__)
            self._meter_provider = provider
            guard.fault("making the instruments of the metrics", error)
        instruments: Instruments = self._instruments
        return instruments

    def _make_instruments(self, provider: MeterProvider) -> None:
        """Makes them while no other thread does, not even for another engine: of two threads that make the same
        instruments of one provider at once, older SDKs fail one.
        """
        has_turn = _making_instruments.acquire(timeout=_LONGEST_TURN)
        try:
            self._instruments = Instruments(provider, __version__, self.settings.destination_limit)
            self._meter_provider = provider
        finally:
            if has_turn:
                _making_instruments.release()

    def count_unattached(self, destination: Destination) -> None:
        """A delivery that was pulled, and handled outside of its context."""
        instruments = self.instruments()
        if instruments.enabled:
            labels = destination.labels(semconv.PROCESS, "process", None, self.templates)
            instruments.unattached.add(1, instruments.attributes_of(labels))

    def excludes(self, destination: Destination) -> bool:
        return self.excluded is not None and self.excluded(destination.name or "") is not None

    def ambient_parent(self, current: Context, incoming: Context) -> Context:
        """The parent under ``Settings(propagation="link")``: the ambient span unless it is over, with the message's
        baggage.
        """
        ambient = get_current_span(current)
        return Context({**incoming, SPAN_KEY: INVALID_SPAN if _is_over(ambient) else ambient})

    def write(
        self,
        headers: object,
        context: Context,
        propagator: propagation.Configured | None = None,
        is_free: bool = False,
    ) -> None:
        """Puts the context into headers, unless these are None; what cannot be written to is said once, in one line.

        Args:
            propagator: the one that is configured, where it is at hand.
            is_free: whether the headers are known to carry no context: by ``propagator.is_free``.
        """
        if headers is None:
            return
        try:
            (propagator or propagation.configured()).write(headers, context, self.baggage_allow, is_free)
        except TypeError as error:
            guard.mistake("writing the headers of a message", str(error))
        except Exception as error:
            guard.fault("writing the headers of a message", error)

    def trusts(self, destination: Destination, message: Message) -> bool:
        trust = self.settings.trust
        if isinstance(trust, str):
            return trust == "all"
        try:
            return bool(trust(destination, message))
        except Exception as error:
            guard.slip("asking Settings(trust=...) about a message, which counts as untrusted then", error)
            return False

    def enrich(self, span: Span, message: Message, hook: HookName) -> None:
        """What only a recorded span is worth: the library's attributes, captured headers, sizes, the hook."""
        if not records(span):
            return
        try:
            if message.describe is not None:
                span.set_attributes(message.describe(message.native))
            if self._details:
                span.set_attributes(_details(message, self.settings))
        except Exception as error:
            guard.fault("describing a message", error)
        self.run_hook(hook, span, message)

    def run_hook(self, name: HookName, span: Span, message: Message) -> None:
        """Calls the hook of this name, where the settings have one."""
        hook: SpanHook | None = getattr(self.settings, name)
        if hook is None:
            return
        try:
            hook(span, message if message.native is None else message.native)
        except Exception as error:
            guard.slip(f"calling Settings({name}=...)", error)


HookName = Literal["publish_hook", "consume_hook"]

_making_instruments = threading.RLock()
_LONGEST_TURN = 1.0
"""Seconds to wait for whoever makes instruments, which takes less than a millisecond: longer is a thread that a time
limit interrupted there, or one that a fork left behind, and nobody waits for those.
"""


def _handing_on(parent: Context) -> Span:
    """A span that records nothing, and is to what goes out what its parent would be."""
    return NonRecordingSpan(span_context_of(get_current_span(parent)))


def _is_over(span: Span) -> bool:
    """Whether it has ended. (One that was never recorded does not tell, and counts as going on.)"""
    return not records(span) and getattr(span, "end_time", None) is not None


class _Later:
    """Asks for a global provider in a minute; until then there is another one. (Where a variable names one that cannot
    be made, OpenTelemetry's API takes milliseconds, and logs a traceback, each time that it is asked.)
    """

    def __init__(self, ask: Callable[[], Any], until_then: object) -> None:
        self._ask = ask
        self._until_then = until_then
        self._at = time.monotonic() + _PAUSE

    def __call__(self) -> Any:
        return self._ask() if time.monotonic() >= self._at else self._until_then


_PAUSE = 60.0


def _any_of(patterns: Collection[str]) -> Any:
    if not patterns:
        return None
    return re.compile("|".join(map(fnmatch.translate, patterns))).match


def _details(message: Message, settings: Settings) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {}
    if settings.capture_headers:
        names = tuple(name.lower() for name in settings.capture_headers)
        for name, found in headers.read_all(message.headers, names).items():
            texts = [text for text in map(headers.text, found[:_MOST_VALUES]) if text is not None]
            if texts:
                attributes[semconv.HEADER + name] = [bounded(text) for text in texts]
    if settings.body_size:
        size = _body_size(message)
        if size is not None:
            attributes[semconv.MESSAGE_BODY_SIZE] = size
    return attributes


_MOST_VALUES = 16
"""Values of one captured header; of each its first 1,024 characters."""


def _body_size(message: Message) -> int | None:
    body = message.body
    if message.body_size is not None or body is None:
        return message.body_size
    return len(body.encode(errors="surrogatepass") if isinstance(body, str) else body)
