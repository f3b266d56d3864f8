"""A hostile SDK and hostile user code: what somebody else's code may do where queueprop calls it.

Each hostility is a place that is called (a span processor's ``on_end``, a sampler, a hook ...), and each behaviour what
it does there: raise, give something odd, or block.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from opentelemetry import context, trace
from opentelemetry.metrics import MeterProvider as ApiMeterProvider
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.propagate import get_global_textmap, set_global_textmap
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler, SamplingResult

from queueprop import Settings

BLOCK = 0.02
"""Seconds that a behaviour blocks each time."""


class Broken(Exception):
    """What hostile code raises of its own."""


class Unreadable:
    """An answer that is of no use to anybody."""

    def __bool__(self) -> bool:
        raise Broken("bool")

    def __str__(self) -> str:
        raise Broken("str")

    __repr__ = __str__


class Behaviour:
    """What is done at a place; called with whatever it is given, and counted.

    Attributes:
        calls: how often it was called.
        at_once: how many threads were inside at the same time, at most.
    """

    def __init__(self, name: str, act: Callable[[], Any], passes_on: bool = False) -> None:
        self.name = name
        self.calls = 0
        self.at_once = 0
        self._inside = 0
        self._act = act
        self._passes_on = passes_on
        self._lock = threading.Lock()

    def __call__(self, original: Callable[..., Any] | None, *args: Any, **kwargs: Any) -> Any:
        """``original`` is what it stands for, which a behaviour that only blocks calls afterwards."""
        with self._lock:
            self.calls += 1
            self._inside += 1
            self.at_once = max(self.at_once, self._inside)
        try:
            found = self._act()
        finally:
            with self._lock:
                self._inside -= 1
        if self._passes_on:
            return None if original is None else original(*args, **kwargs)
        return found


def _raise(error: type[BaseException]) -> Callable[[], Any]:
    def act() -> Any:
        raise error("hostile")

    return act


BEHAVIOURS: dict[str, Callable[[], Behaviour]] = {
    name: lambda name=name, act=act, passes_on=passes_on: Behaviour(name, act, passes_on)  # type: ignore[misc]
    for name, act, passes_on in (
        ("raises", _raise(Broken), False),
        ("raises StopIteration", _raise(StopIteration), False),
        ("raises RecursionError", _raise(RecursionError), False),
        ("gives None", lambda: None, False),
        ("gives an object", object, False),
        ("gives what raises", Unreadable, False),
        ("gives a text", lambda: "odd", False),
        ("gives a large number", lambda: 10**60, False),
        ("gives a list", list, False),
        ("blocks", lambda: time.sleep(BLOCK), True),
    )
}

Make = Callable[[Behaviour, Mapping[str, Any]], Any]
Hostility = Callable[[Behaviour, Mapping[str, Any]], Any]
"""A context manager that gives the settings, of the behaviour and what else the settings are to have."""


# Where it is called: the SDK


def _replaced(kind: type, names: tuple[str, ...], behaviour: Behaviour) -> Any:
    """An object of a subclass whose methods of these names behave so."""

    def method(name: str) -> Callable[..., Any]:
        original = getattr(kind, name)

        def hostile(self: Any, *args: Any, **kwargs: Any) -> Any:
            return behaviour(original, self, *args, **kwargs)

        return hostile

    return type(f"Hostile{kind.__name__}", (kind,), {name: method(name) for name in names})


class _AlwaysOn(Sampler):
    def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
        return ALWAYS_ON.should_sample(*args, **kwargs)

    def get_description(self) -> str:
        return "on"


class _Quiet(SpanProcessor):
    def on_start(self, span: Any, parent_context: Any = None) -> None: ...

    def on_end(self, span: Any) -> None: ...


def processor(*names: str) -> Hostility:
    def settings(behaviour: Behaviour) -> dict[str, Any]:
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(_replaced(_Quiet, names, behaviour)())
        return {"tracer_provider": provider}

    return _with(settings)


def sampler(behaviour: Behaviour) -> dict[str, Any]:
    made: Any = _replaced(_AlwaysOn, ("should_sample",), behaviour)()
    return {"tracer_provider": TracerProvider(sampler=made, shutdown_on_exit=False)}


def ids(*names: str) -> Hostility:
    def settings(behaviour: Behaviour) -> dict[str, Any]:
        made = _replaced(RandomIdGenerator, names, behaviour)()
        return {"tracer_provider": TracerProvider(id_generator=made, shutdown_on_exit=False)}

    return _with(settings)


def provider_method(behaviour: Behaviour) -> dict[str, Any]:
    return {"tracer_provider": _replaced(TracerProvider, ("get_tracer",), behaviour)(shutdown_on_exit=False)}


class _Tracer(trace.Tracer):
    """Hands on to an SDK's, but for one method of it, or of its spans."""

    def __init__(self, behaviour: Behaviour, of_span: str | None) -> None:
        self._tracer = TracerProvider(shutdown_on_exit=False).get_tracer("hostile")
        self._behaviour = behaviour
        self._of_span = of_span

    def start_span(self, *args: Any, **kwargs: Any) -> Any:
        if self._of_span is None:
            return self._behaviour(self._tracer.start_span, *args, **kwargs)
        return _Span(self._tracer.start_span(*args, **kwargs), self._of_span, self._behaviour)

    def start_as_current_span(self, *args: Any, **kwargs: Any) -> Any:
        return self._tracer.start_as_current_span(*args, **kwargs)


class _Span(trace.NonRecordingSpan):
    """A span of somebody's, one of whose methods behaves."""

    def __init__(self, span: Any, hostile: str, behaviour: Behaviour) -> None:
        super().__init__(span.get_span_context())
        self._span, self._hostile, self._behaviour = span, hostile, behaviour

    def __getattribute__(self, name: str) -> Any:
        get = object.__getattribute__
        if name.startswith("_") or name not in SPAN_METHODS:
            return get(self, name)
        original = getattr(get(self, "_span"), name)
        if name != get(self, "_hostile"):
            return original
        behaviour = get(self, "_behaviour")
        return lambda *args, **kwargs: behaviour(original, *args, **kwargs)


SPAN_METHODS = (
    "get_span_context",
    "is_recording",
    "set_attribute",
    "set_attributes",
    "set_status",
    "record_exception",
    "add_event",
    "update_name",
    "end",
)


def tracer(of_span: str | None = None) -> Hostility:
    def settings(behaviour: Behaviour) -> dict[str, Any]:
        class Provider(trace.TracerProvider):
            def get_tracer(self, *args: Any, **kwargs: Any) -> Any:
                return _Tracer(behaviour, of_span)

        return {"tracer_provider": Provider()}

    return _with(settings)


class _Meters(ApiMeterProvider):
    """Hands on to an SDK's, but for one method: its own, its meter's, or its instruments'."""

    def __init__(self, behaviour: Behaviour, hostile: str) -> None:
        self._provider = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
        self._behaviour, self._hostile = behaviour, hostile

    def get_meter(self, *args: Any, **kwargs: Any) -> Any:
        if self._hostile == "get_meter":
            return self._behaviour(self._provider.get_meter, *args, **kwargs)
        return _Proxy(self._provider.get_meter(*args, **kwargs), self._hostile, self._behaviour)


class _Proxy:
    """Of a meter, and of the instruments that it makes."""

    def __init__(self, wrapped: Any, hostile: str, behaviour: Behaviour) -> None:
        self._wrapped, self._hostile, self._behaviour = wrapped, hostile, behaviour

    def __getattr__(self, name: str) -> Any:
        original = getattr(self._wrapped, name)
        if name == self._hostile:
            return lambda *args, **kwargs: self._behaviour(original, *args, **kwargs)
        if name.startswith("create_"):
            return lambda *args, **kwargs: _Proxy(original(*args, **kwargs), self._hostile, self._behaviour)
        return original


def meters(hostile: str) -> Hostility:
    return _with(lambda behaviour: {"meter_provider": _Meters(behaviour, hostile)})


# The user's own code


def setting(name: str) -> Hostility:
    def settings(behaviour: Behaviour) -> dict[str, Any]:
        return {name: lambda *args: behaviour(lambda *_: True, *args)}

    return _with(settings)


def _ends_the_span(span: Any, native: Any) -> None:
    span.end()


def _leaves_a_context(span: Any, native: Any) -> None:
    context.attach(context.set_value("left", True))


def _empties(span: Any, native: Any) -> None:
    headers = getattr(native, "headers", None)
    if isinstance(headers, dict):
        headers.clear()


HOOKS: dict[str, Callable[[Any, Any], None]] = {
    "ends the span": _ends_the_span,
    "leaves a context": _leaves_a_context,
}


# The process


def propagator(*names: str) -> Hostility:
    @contextmanager
    def hostile(behaviour: Behaviour, others: Mapping[str, Any]) -> Iterator[Settings]:
        before = get_global_textmap()
        made = _replaced(type(before), names, behaviour)
        if names == ("fields",):
            made.fields = property(lambda self: behaviour(None))
        hostile_one = made.__new__(made)
        hostile_one.__dict__.update(vars(before))
        set_global_textmap(hostile_one)
        try:
            yield _settings(others)
        finally:
            set_global_textmap(before)

    return hostile


def logs(name: str) -> Hostility:
    """Where our own lines go. A sampler that raises makes that there are any."""

    @contextmanager
    def hostile(behaviour: Behaviour, others: Mapping[str, Any]) -> Iterator[Settings]:
        from queueprop import guard

        handler: Any = _replaced(logging.Handler, ("emit",), behaviour)()
        if name == "filter":
            handler = logging.NullHandler()
            handler.addFilter(lambda record: behaviour(None, record))
        logger, stderr, said = logging.getLogger("queueprop"), sys.stderr, dict(guard._logged)
        guard._logged.clear()
        logger.addHandler(handler)
        if name == "stderr":
            sys.stderr = type("Closed", (), {"write": lambda self, text: behaviour(None)})()
        try:
            refusing = Behaviour("raises", _raise(Broken))
            yield _settings({**others, **sampler(refusing), "trust": lambda *args: refusing(None)})
        finally:
            sys.stderr = stderr
            logger.removeHandler(handler)
            guard._logged.update(said)

    return hostile


def _with(made: Callable[[Behaviour], dict[str, Any]]) -> Hostility:
    @contextmanager
    def hostile(behaviour: Behaviour, others: Mapping[str, Any]) -> Iterator[Settings]:
        yield _settings({**others, **made(behaviour)})

    return hostile


def _settings(given: Mapping[str, Any]) -> Settings:
    defaults: dict[str, Any] = {
        "tracer_provider": TracerProvider(shutdown_on_exit=False),
        "meter_provider": NoOpMeterProvider(),
        "settle_spans": True,
        "capture_headers": ("tenant", "traceparent"),
        "body_size": True,
    }
    return Settings(**{**defaults, **given})


HOSTILITIES: dict[str, Hostility] = {
    "processor.on_start": processor("on_start"),
    "processor.on_end": processor("on_end"),
    "processor._on_ending": processor("_on_ending"),
    "sampler.should_sample": _with(sampler),
    "ids.trace": ids("generate_trace_id"),
    "ids.span": ids("generate_span_id"),
    "provider.get_tracer": _with(provider_method),
    "tracer.start_span": tracer(),
    **{f"span.{name}": tracer(name) for name in SPAN_METHODS},
    "meters.get_meter": meters("get_meter"),
    "meter.create_counter": meters("create_counter"),
    "meter.create_histogram": meters("create_histogram"),
    "counter.add": meters("add"),
    "histogram.record": meters("record"),
    "propagator.inject": propagator("inject"),
    "propagator.extract": propagator("extract"),
    "propagator.fields": propagator("fields"),
    "publish_hook": setting("publish_hook"),
    "consume_hook": setting("consume_hook"),
    "trust": setting("trust"),
    "log handler": logs("handler"),
    "log filter": logs("filter"),
    "stderr": logs("stderr"),
}

CALLED_ONCE = ("publish_hook", "consume_hook", "trust", "ids.span", "sampler.should_sample")
"""At most so often for each span that is made, whatever it does; ``trust`` and the hooks once a message."""

SIDE_BY_SIDE = (
    "processor.on_start",
    "processor.on_end",
    "sampler.should_sample",
    "ids.span",
    "tracer.start_span",
    "span.end",
    "propagator.inject",
    "propagator.extract",
    "publish_hook",
    "consume_hook",
    "trust",
)
"""Where neither the SDK nor ``logging`` has a lock of its own: threads that block there do not wait for each other."""
