"""Prometheus, as ``deploy/compose.yaml`` starts it, and what its HTTP API tells."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import yaml

from integration.brokers.broker import Protocol
from integration.brokers.program import ProgramBroker

_DEPLOY = Path(__file__).parents[2] / "deploy"


class Prometheus(ProgramBroker):
    """A Prometheus of one's own, with the rules of ``deploy/prometheus``."""

    def __init__(self, program: Path) -> None:
        super().__init__(Protocol("prometheus", self._handshake, patience=30), "native", program.name)
        self._server = program

    @property
    def otlp(self) -> str:
        """Where it takes OTLP over HTTP: what PROMETHEUS_ENDPOINT is set to for a Collector."""
        return f"{self.url}/api/v1/otlp"

    def query(self, expression: str) -> Sequence[Any]:
        """The series that it finds now, each with ``metric`` and ``value``."""
        found: Sequence[Any] = self._asked(f"query?{urlencode({'query': expression})}")["result"]
        return found

    def rules(self) -> Sequence[Any]:
        """The rules that it has loaded, each with its ``name``, ``query`` and ``health``."""
        return [rule for group in self._asked("rules")["groups"] for rule in group["rules"]]

    def _asked(self, what: str) -> Any:
        with urlopen(f"{self.url}/api/v1/{what}", timeout=30) as answer:
            return json.load(answer)["data"]

    def _prepare(self, folder: Path) -> None:
        self._number = self._port()
        self.url = f"http://127.0.0.1:{self._number}"

    def _run(self, folder: Path) -> None:
        self._program(
            [
                str(self._server),
                f"--config.file={_DEPLOY / 'prometheus' / 'prometheus.yaml'}",
                *_flags(),
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{self._number}",
            ]
        )

    def _handshake(self, url: str, timeout: float) -> None:
        with urlopen(f"{url}/-/ready", timeout=timeout):
            pass


def _flags() -> Sequence[str]:
    """What the compose file gives it besides its configuration."""
    compose = yaml.safe_load((_DEPLOY / "compose.yaml").read_text())
    command: Sequence[str] = compose["services"]["prometheus"]["command"]
    return [flag for flag in command if not flag.startswith("--config.file=")]
