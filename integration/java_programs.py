"""Java and the programs of ``integration/java``, with OpenTelemetry's agent and without.

Maven fetches once what ``integration/java/pom.xml`` names; a compiler of Java is among it.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from integration.brokers.cache import cached
from integration.brokers.java import SHORT_LIVED, jars, java

if TYPE_CHECKING:
    from integration.otlp import OtlpServer  # needs OTLP's messages, which not every environment has

_FOLDER = Path(__file__).parent / "java"
_POM = _FOLDER / "pom.xml"
_PATIENCE = 60
"""Seconds that an answer may take."""


class Java:
    """Starts programs of ``integration/java``. Raises Unavailable, with the reason, where it cannot."""

    def __init__(self) -> None:
        self._java = java()
        self._jars = jars(_POM, f"java-{_key(_POM)}")
        self._classes = self._compiled()

    def start(self, log: Path, otlp: OtlpServer | None, **options: str) -> JavaProgram:
        """With the agent, where a server is there for its spans. ``options`` are variables of the agent."""
        command = [self._java, SHORT_LIVED, "-XX:+UseSerialGC", "-Xmx256m"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
        if otlp is not None:
            command.append(f"-javaagent:{self._jar('opentelemetry-javaagent')}")
            environment |= {
                "OTEL_EXPORTER_OTLP_ENDPOINT": otlp.endpoint,
                "OTEL_METRICS_EXPORTER": "none",
                "OTEL_LOGS_EXPORTER": "none",
                "OTEL_BSP_SCHEDULE_DELAY": "10",
                **options,
            }
        command += ["-cp", os.pathsep.join(map(str, [self._classes, *self._libraries()])), "Program"]
        return JavaProgram(command, environment, log)

    def _compiled(self) -> Path:
        """The folder of the classes, made anew when a source or a library is another one."""
        sources = sorted(_FOLDER.glob("*.java"))
        key = _key(_POM, *sources)

        def compile(folder: Path) -> None:
            command = [self._java, SHORT_LIVED, "-jar", str(self._jar("ecj")), "-17", "-d", str(folder)]
            command += ["-cp", os.pathsep.join(map(str, self._libraries())), *map(str, sources)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE)
            assert done.returncode == 0, done.stderr

        return cached(f"java-classes-{key}", compile)

    def _libraries(self) -> Sequence[Path]:
        return [
            jar
            for jar in sorted(self._jars.glob("*.jar"))
            if not jar.name.startswith(("ecj", "opentelemetry-javaagent"))
        ]

    def _jar(self, name: str) -> Path:
        [jar] = self._jars.glob(f"{name}-[0-9]*.jar")
        return jar


class JavaProgram:
    """One process, which answers whatever it is asked, one thing after the other."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                encoding="utf-8",
            )

    def ask(self, asked: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        patience = threading.Timer(_PATIENCE, self._process.kill)
        patience.start()
        try:
            print(json.dumps(asked), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        finally:
            patience.cancel()
        assert line, f"no answer: {self._log.read_text()}"
        answer: dict[str, Any] = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer

    def close(self) -> None:
        """It ends with its input."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(_PATIENCE)
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()


def _key(*files: Path) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
