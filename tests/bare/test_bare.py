"""The wheel without any extra: no SDK, no broker library. tox runs this in its environment `bare`."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

import queueprop

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
QUEUE = queueprop.Destination(system="my-queue", name="orders")


@pytest.mark.parametrize("module", ["opentelemetry.sdk", "rq", "redis", "fastapi", "rich"])
def test_nothing_else_is_installed(module: str) -> None:
    """Otherwise this environment would prove nothing."""
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    assert found is None


def test_context_goes_on() -> None:
    """Without an SDK, what a handler publishes still belongs to the trace that its message came with."""
    forwarded: dict[str, object] = {}

    @queueprop.traced_consumer(QUEUE, headers=lambda headers: headers)
    def handle(headers: dict[str, object]) -> None:
        with queueprop.send_span(QUEUE, headers=forwarded):
            pass

    handle({"traceparent": TRACEPARENT, "baggage": "user=7"})
    assert forwarded == {"traceparent": TRACEPARENT, "baggage": "user=7"}


def test_instrument_without_libraries(caplog: pytest.LogCaptureFixture) -> None:
    """`instrument()` with no supported library installed does nothing, and says so in one line."""
    queueprop.instrument()
    queueprop.uninstrument()
    (record,) = [record for record in caplog.records if record.levelno > logging.INFO]
    assert 'pip install "queueprop[rq]"' in record.getMessage()


def test_what_an_import_costs() -> None:
    """Nothing of what patches, or of asyncio, is imported by a program that traces by hand."""
    program = (
        "import sys\nimport queueprop\n"
        "print({'wrapt', 'packaging', 'asyncio', 'opentelemetry.instrumentation'} & sys.modules.keys())"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout == "set()\n"


def test_it_says_that_there_is_no_sdk() -> None:
    """A program that publishes says so, once, on stderr, unless it is told that none is wanted."""
    program = (
        "import queueprop\nfor _ in range(3):\n"
        "    with queueprop.send_span(queueprop.Destination('my-queue', 'orders'), headers={}): pass"
    )
    told = _run(program)
    assert len(told.splitlines()) == 1
    assert told.startswith("queueprop, tracing messages: no OpenTelemetry SDK is set up in this process")
    assert _run(program, OTEL_SDK_DISABLED="true") == ""


def _run(program: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return result.stderr


def test_command_line_names_its_extra() -> None:
    """`queueprop demo` without the extra fails with one line that says what to install."""
    command = Path(sys.executable).parent / "queueprop"
    result = subprocess.run([command, "demo"], capture_output=True, text=True, timeout=60)
    assert result.returncode in (1, 2)
    assert len((result.stdout + result.stderr).strip().splitlines()) == 1
    assert "queueprop[cli]" in result.stdout + result.stderr


def test_adapter_names_its_extra() -> None:
    """Importing an adapter whose library is missing is an ImportError that says what to install."""
    with pytest.raises(ImportError, match=r"queueprop\[rq\]"):
        import queueprop.adapters.rq  # noqa: F401


def test_configure_tracing_names_its_extra() -> None:
    """Importing `queueprop.sdk` without the SDK is an ImportError that says what to install."""
    with pytest.raises(ImportError, match=r"queueprop\[sdk\]"):
        import queueprop.sdk  # noqa: F401


def test_logs_need_no_sdk() -> None:
    """Log correlation works on the API alone."""
    import queueprop.logs

    assert queueprop.logs.__file__


def test_plugin_loads_without_the_sdk(pytestconfig: pytest.Config) -> None:
    """pytest runs with our plugin in an environment that has no SDK: this very run does."""
    assert pytestconfig.pluginmanager.has_plugin("queueprop")
