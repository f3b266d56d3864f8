"""The programs: from the cache, or built from their Go modules into it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from integration.brokers import Unavailable
from integration.brokers.cache import home

_MANIFEST = Path(__file__).with_name("otelcol.yaml")
_BUILDER = "go.opentelemetry.io/collector/cmd/builder"
_JAEGER = "github.com/jaegertracing/jaeger@v1.76.0"
_PROMETHEUS = "github.com/prometheus/prometheus@v0.305.0"  # Prometheus 3.5.0


def fetched(name: str) -> Path:
    """One of the programs out of the cache. Raises Unavailable, with what would make it."""
    program = _cached(name)
    if not program.exists():
        command = "make dashboard" if name.startswith("prom") else "make sampling"
        raise Unavailable(f"no {name} in {program.parent}: `{command}` builds it, in minutes, with Go")
    return program


def built(name: str) -> Path:
    """One of the programs, built where it is not in the cache yet.

    Raises Unavailable where there is no Go, or where the modules cannot be had.
    """
    program = _cached(name)
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        # Beside its place, so that it can be moved there whole.
        with tempfile.TemporaryDirectory(dir=program.parent, prefix="build-") as folder:
            _PROGRAMS[name].build(Path(folder)).replace(program)
    return program


class _Program(NamedTuple):
    build: Callable[[Path], Path]
    """Builds it in a folder, and says where it is."""
    key: Callable[[], str]
    """What it is built from: a part of its name in the cache."""


def _cached(name: str) -> Path:
    return home() / f"{name}-{_PROGRAMS[name].key()}"


def _collector(folder: Path) -> Path:
    version = re.search(r"version: (\S+)", _MANIFEST.read_text())
    assert version is not None
    # It writes a module that imports the components, and compiles that.
    _go(folder, "run", f"{_BUILDER}@v{version[1]}", f"--config={_MANIFEST}")
    return folder / "otelcol" / "otelcol"


def _collector_key() -> str:
    return hashlib.sha256(_MANIFEST.read_bytes()).hexdigest()[:12]


def _of_module(module: str, package: str) -> _Program:
    """A program that is a package of a module, in a copy of that."""

    def build(folder: Path) -> Path:
        found = json.loads(_go(folder, "mod", "download", "-json", module))
        # `go install` refuses a module that replaces others, and Go's own copy cannot be written to.
        source = shutil.copytree(found["Dir"], folder / "source", copy_function=shutil.copyfile)
        for path in (source, *source.rglob("*/")):
            path.chmod(0o755)
        _go(source, "build", "-o", str(folder / "program"), package)
        return folder / "program"

    return _Program(build, lambda: module.rpartition("@v")[2])


_PROGRAMS = {
    "otelcol": _Program(_collector, _collector_key),
    "jaeger": _of_module(_JAEGER, "./cmd/all-in-one"),
    "prometheus": _of_module(_PROMETHEUS, "./cmd/prometheus"),
    "promtool": _of_module(_PROMETHEUS, "./cmd/promtool"),
}


def _go(folder: Path, *arguments: str) -> str:
    """Runs Go, one compiler at a time: these are large programs, and others want a core, too."""
    go = shutil.which("go")
    if go is None:
        raise Unavailable("go is not on the PATH")
    flags = os.environ.get("GOFLAGS", "")
    command: Sequence[str] = (go, *arguments)
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "GOFLAGS": f"{flags} -p=1".strip()},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        told = f"{done.stdout}{done.stderr}".strip()[-1000:]
        raise Unavailable(f"`go {' '.join(arguments)}` ended with {done.returncode}: {told}")
    return done.stdout
