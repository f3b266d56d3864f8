"""The libraries on real brokers, those of which OpenTelemetry has an instrumentation."""

from __future__ import annotations

import importlib
import os

from benchmarks.stubs import Stub

URL = "BENCHMARKS_BROKER_URL"
"""The variable that names the broker: it has a password, which belongs in no command line."""


def client_of(library: str) -> Stub:
    """Raises ImportError where the library is not installed."""
    module = importlib.import_module(f"{__name__}.{library.replace('-', '_')}")
    made: Stub = module.make(os.environ[URL])
    return made
