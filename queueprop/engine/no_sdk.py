"""What a person is told where messages would be traced and nobody has set up an OpenTelemetry SDK: one line, once."""

from __future__ import annotations

import os
import sys

from opentelemetry.trace import ProxyTracerProvider

from queueprop import guard


def say_if_missing(provider: object) -> None:
    """Tells of it where ``provider``, from which a tracer is about to be taken, is still the API's stand-in for one.

    Not where OTEL_SDK_DISABLED says that none is wanted, and not for a no-op that somebody has set or given.
    """
    if is_stand_in(provider) and not _is_disabled():
        guard.mistake("tracing messages", _LAUNCHED if _LAUNCHER in sys.modules else _NOT_SET_UP)


def is_stand_in(provider: object) -> bool:
    """Whether it is what the API gives for as long as no provider is set."""
    return isinstance(provider, ProxyTracerProvider)


def _is_disabled() -> bool:
    return os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


_LAUNCHER = "opentelemetry.instrumentation.auto_instrumentation"

_UNLESS = "OTEL_SDK_DISABLED=true says that none are wanted"

_NOT_SET_UP = (
    "no OpenTelemetry SDK is set up in this process, so no spans are made; call queueprop.sdk.configure_tracing() when "
    'it starts (pip install "queueprop[sdk]"), or start it with opentelemetry-instrument and opentelemetry-distro '
    f"installed; {_UNLESS}"
)

_LAUNCHED = (
    "opentelemetry-instrument has set up no OpenTelemetry SDK, so no spans are made; it needs a distribution and an "
    f"exporter: pip install opentelemetry-distro opentelemetry-exporter-otlp; {_UNLESS}"
)
