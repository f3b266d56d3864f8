"""What the probe finds in a process, and how it comes into one."""

from __future__ import annotations

import atexit
import json
import os
import runpy
import signal
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SimpleSpanProcessor,
    SpanExporter,
    SpanExportResult,
)

import queueprop.sdk
from queueprop import Settings
from queueprop.adapters.rq import RQInstrumentor
from queueprop.cli.doctor import probe
from queueprop.sdk.spans import BatchProcessor, ProcessExporter


class _Exporter(SpanExporter):
    _endpoint = "http://collector:4318/v1/traces"
    _headers = (("api-key", "secret"),)

    def export(self, spans: Any) -> SpanExportResult:
        return SpanExportResult.SUCCESS


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[TracerProvider]:
    provider = TracerProvider(resource=Resource.create({"service.name": "shop"}), shutdown_on_exit=False)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield provider
    provider.shutdown()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(probe.FOLDER, str(tmp_path))
    monkeypatch.setenv(probe.SECONDS, "0")
    monkeypatch.setattr(probe, "_begun", False)
    monkeypatch.setattr(probe, "_PAUSE", 0.001)
    monkeypatch.setattr(probe, "_QUIET", 0.001)
    monkeypatch.setattr(atexit, "register", lambda *given, **options: None)
    return tmp_path


def test_facts_are_json(provider: TracerProvider) -> None:
    """They are plain data, and nothing of them was in the way."""
    facts = json.loads(json.dumps(probe.facts()))
    assert facts["troubles"] == []
    assert facts["pid"] == os.getpid()
    assert facts["versions"]["queueprop"] == queueprop.__version__
    assert "queueprop" in facts["modules"]
    assert facts["metering"] == {"provider": None} or facts["metering"]["provider"]
    assert facts["program"]["python"].startswith("3.")


def test_no_provider_is_made_by_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has set no provider has none afterwards."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    assert probe.facts()["tracing"] == {"provider": None}
    assert trace._TRACER_PROVIDER is None


def test_processors_and_exporters(provider: TracerProvider) -> None:
    """Of each processor: its exporter, where it sends to, and the names of the headers, whose values are secret."""
    provider.add_span_processor(BatchSpanProcessor(_Exporter()))
    provider.add_span_processor(BatchProcessor(ProcessExporter(_Exporter)))
    provider.add_span_processor(SimpleSpanProcessor(_Exporter()))
    provider.add_span_processor(types.SimpleNamespace(shutdown=lambda: None))  # type: ignore[arg-type]
    tracing = probe.facts()["tracing"]
    assert tracing["resource"]["service.name"] == "shop"
    assert tracing["sampler"].startswith("ParentBased")
    assert not tracing["is_configured_by_queueprop"]
    batch, ours, simple, other = tracing["processors"]
    for each in (batch, ours, simple):
        assert each["exporter"].endswith("._Exporter")
        assert each["endpoint"] == "http://collector:4318/v1/traces"
        assert each["headers"] == ["api-key"]
    assert [each["is_batch"] for each in (batch, ours, simple, other)] == [True, True, False, False]
    assert batch["locks"] == ["native"]
    assert other["exporter"] is None
    assert "secret" not in json.dumps(tracing)


def test_headers_of_each_kind() -> None:
    """HTTP's exporters have them in a mapping, gRPC's as pairs."""
    assert probe._names_of_headers({"a": "b"}) == {"a"}
    assert probe._names_of_headers([("a", "b"), 1]) == {"a"}
    assert probe._names_of_headers(None) == set()


def test_green_locks() -> None:
    """What gevent has patched has gevent's locks."""
    from gevent.lock import Semaphore

    owner = types.SimpleNamespace(one=Semaphore(), two=threading.Lock())
    assert probe._kinds_of_locks([owner, None]) == {"green", "native"}
    older = types.SimpleNamespace(condition=threading.Condition(threading.Lock()))
    assert probe._kinds_of_locks([older]) == {"native"}


def test_instrumentors_and_their_settings() -> None:
    """Who instruments, and with which settings."""
    RQInstrumentor().instrument(settings=Settings(propagation="link"))
    try:
        found = {each["class"]: each for each in probe.facts()["instrumentors"]}
    finally:
        RQInstrumentor().uninstrument()
    ours = found["queueprop.adapters.rq.RQInstrumentor"]
    assert ours["instrumented"]
    assert ours["settings"]["propagation"] == "'link'"
    assert not any(
        each["instrumented"] for each in probe.facts()["instrumentors"] if each["class"] == ours["class"]
    )


def test_without_opentelemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that has imported nothing is told of, too."""
    for name in ("opentelemetry.instrumentation.instrumentor", "opentelemetry.propagate", "queueprop.guard"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    facts = probe.facts()
    assert (facts["instrumentors"], facts["propagators"], facts["said"]) == ([], None, [])


def test_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of others than ours and OpenTelemetry's the name alone is told."""
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    monkeypatch.setenv("DATABASE_PASSWORD", "secret")
    variables = probe.facts()["variables"]
    assert variables["OTEL_SERVICE_NAME"] == "shop"
    assert variables["DATABASE_PASSWORD"] == ""
    assert not any(name.startswith("_") for name in variables)


def test_sigterm() -> None:
    """Whether SIGTERM kills, is ignored, or is handled, and by whom."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        found = []
        for handler in (signal.SIG_DFL, signal.SIG_IGN, _on_sigterm):
            signal.signal(signal.SIGTERM, handler)
            found.append(probe.facts()["sigterm"])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert found == ["default", "ignored", f"{__name__}._on_sigterm"]


def test_sigterm_of_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that is not Python's is not known."""
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    assert probe.facts()["sigterm"] == "unknown"


def _on_sigterm(signum: int, frame: object) -> None: ...


def test_servers_and_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """uWSGI's options, Celery's hooks, and gevent's patching are told where there are such modules."""
    hooked = types.SimpleNamespace(receivers=[1, 2])
    fakes: dict[str, Any] = {
        "uwsgi": types.SimpleNamespace(opt={b"enable-threads": True}),
        "celery.signals": types.SimpleNamespace(worker_process_init=hooked, worker_process_shutdown=None),
        "gevent.monkey": types.SimpleNamespace(is_module_patched=lambda name: name == "threading"),
        "eventlet.patcher": types.SimpleNamespace(already_patched={"thread": True}),
    }
    for name, module in fakes.items():
        monkeypatch.setitem(sys.modules, name, module)
    facts = probe.facts()
    assert facts["uwsgi"] == {"threads": True, "lazy": False}
    assert facts["worker_hooks"] == 2
    assert facts["green"] == {"gevent": True, "eventlet": True}
    for name in fakes:
        monkeypatch.delitem(sys.modules, name)
    facts = probe.facts()
    assert (facts["uwsgi"], facts["worker_hooks"]) == (None, None)
    assert facts["green"] == {"gevent": False, "eventlet": False}


def test_a_running_worker_is_seen() -> None:
    """A thread that is in RQ's loop says that this is a worker."""
    namespace: dict[str, Any] = {"__name__": "rq.worker", "look": probe.facts}
    exec("def work():\n    return look()", namespace)
    assert namespace["work"]()["running"] == ["rq"]
    assert probe.facts()["running"] == []


def test_what_raises_is_a_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    """An object of the program's that raises costs that fact alone."""

    class Broken:
        @property
        def sampler(self) -> Any:
            raise RuntimeError("no")

    monkeypatch.setattr(trace, "_TRACER_PROVIDER", Broken())
    facts = probe.facts()
    assert facts["troubles"] == ["tracing: RuntimeError('no')"]
    assert "tracing" not in facts
    assert facts["versions"]


def test_what_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """What queueprop has told the program."""
    from queueprop import guard

    monkeypatch.setattr(guard, "_logged", {"reading X: wants Y": 1})
    assert probe.facts()["said"] == ["reading X: wants Y"]


# How it comes into a program


def test_it_begins_once(folder: Path) -> None:
    """One report of a process, whoever begins it again; and none without a folder."""
    begun = []
    patch = pytest.MonkeyPatch()
    patch.setattr(probe, "start_new_thread", lambda target, arguments: begun.append(arguments))
    try:
        probe.begin()
        probe.begin()
        patch.setattr(probe, "_begun", False)
        patch.delenv(probe.FOLDER)
        probe.begin()
    finally:
        patch.undo()
    assert begun == [(str(folder), os.getpid(), 0.0)]


def test_a_wrong_number_of_seconds_is_nobodys_fault(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program goes on."""
    monkeypatch.setenv(probe.SECONDS, "soon")
    probe.begin()
    assert list(folder.iterdir()) == []


def test_it_waits_for_imports(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the program still imports, it has not set up anything yet."""
    asked = iter([True, True, False, False])
    monkeypatch.setattr(probe, "_is_importing", lambda: next(asked))
    probe._report_later(str(folder), os.getpid(), 0.0)
    (report,) = folder.glob("*.json")
    assert json.loads(report.read_text())["pid"] == os.getpid()
    assert next(asked, None) is False


def test_an_import_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside of an import, and not outside of one."""
    (tmp_path / "imported_for_a_test.py").write_text(
        "from queueprop.cli.doctor import probe\nis_importing = probe._is_importing()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import imported_for_a_test  # type: ignore[import-not-found]

    assert imported_for_a_test.is_importing
    assert not probe._is_importing()


def test_reports_are_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process reports once, a forked child not at all, and no more than so many do."""
    probe._report(str(folder), os.getpid() + 1)
    assert list(folder.iterdir()) == []
    probe._report(str(folder), os.getpid())
    (report,) = folder.iterdir()
    report.write_text("kept")
    probe._report(str(folder), os.getpid())
    assert report.read_text() == "kept"
    report.unlink()
    monkeypatch.setattr(probe, "MOST_REPORTS", 0)
    probe._report(str(folder), os.getpid())
    probe._report(str(folder / "gone"), os.getpid())
    assert list(folder.iterdir()) == []


def test_the_program_has_its_own_sitecustomize(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor's folder is off the path again, and the sitecustomize that ours has hidden is imported."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for place in (ours, theirs):
        place.mkdir()
    (theirs / "sitecustomize.py").write_text("import sys\nsys.imported_for_a_test = True\n")
    monkeypatch.setattr(sys, "path", [str(ours), str(theirs), *sys.path])
    monkeypatch.setattr(sys, "imported_for_a_test", False, raising=False)
    monkeypatch.setitem(sys.modules, "sitecustomize", types.ModuleType("sitecustomize"))
    probe.leave_the_path(str(ours))
    assert sys.imported_for_a_test  # type: ignore[attr-defined]
    assert str(ours) not in sys.path


def test_a_program_without_a_sitecustomize(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then ours stays in its place: Python's import takes it from there. One that raises is the program's own fault."""
    ours = types.ModuleType("sitecustomize")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setitem(sys.modules, "sitecustomize", ours)
    probe.leave_the_path(str(tmp_path / "ours"))
    assert sys.modules["sitecustomize"] is ours
    (tmp_path / "sitecustomize.py").write_text("import a_module_that_is_not_there\n")
    sys.path_importer_cache.clear()
    with pytest.raises(ImportError, match="a_module_that_is_not_there"):
        probe.leave_the_path(str(tmp_path / "ours"))
    monkeypatch.delitem(sys.modules, "sitecustomize")
    (tmp_path / "sitecustomize.py").unlink()
    sys.path_importer_cache.clear()
    probe.leave_the_path(str(tmp_path / "ours"))
    assert "sitecustomize" not in sys.modules


def test_it_needs_python_alone() -> None:
    """It runs where nothing of ours is: as a file of its own."""
    assert runpy.run_path(str(probe.__file__))["facts"]()["troubles"] == []
