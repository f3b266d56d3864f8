"""The Collector, with the configurations of ``deploy/collector``."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.request import urlopen

from integration.brokers.broker import Protocol
from integration.brokers.program import ProgramBroker

_FOLDER = Path(__file__).parents[2] / "deploy" / "collector"

CONFIGURATIONS: Sequence[Sequence[str]] = (
    ("gateway.yaml",),
    ("gateway.yaml", "grafana.yaml"),
    ("balancer.yaml",),
    ("to-kafka.yaml",),
    ("gateway.yaml", "from-kafka.yaml"),
    ("gateway.yaml", "from-kafka.yaml", "grafana.yaml"),
)
"""Which files of ``deploy/collector`` make a configuration together, each laid over those before it."""


def validation(program: Path, files: Sequence[str]) -> str:
    """What ``otelcol validate`` has against a configuration: nothing, if it is a good one."""
    command = [str(program), "validate", *_options(files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return f"{done.stdout}{done.stderr}".strip() if done.returncode else ""


class Collector(ProgramBroker):
    """A Collector of one's own. ``url`` takes OTLP over HTTP, ``grpc`` is the address that takes it over gRPC."""

    def __init__(self, program: Path, files: Sequence[str], **variables: str) -> None:
        """``variables`` are those that the configuration reads, besides its own addresses."""
        super().__init__(Protocol("otelcol", self._handshake, patience=30), "native", " + ".join(files))
        self._server = program
        self._files = files
        self._variables = variables

    def counted(self, metric: str, **labels: str) -> int:
        """The sum of a metric of the Collector's own, over all series that have these labels."""
        with urlopen(f"http://127.0.0.1:{self._metrics}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        wanted = [f'{name}="{value}"' for name, value in labels.items()]
        found = (re.fullmatch(rf"(?:otelcol_)?{metric}(?:_total)?(\{{.*\}})? (\S+)", line) for line in lines)
        return sum(int(float(one[2])) for one in found if one and all(it in (one[1] or "") for it in wanted))

    def _prepare(self, folder: Path) -> None:
        http, grpc, self._metrics, self._health = (self._port() for _ in range(4))
        self.url = f"http://127.0.0.1:{http}"
        self.grpc = f"127.0.0.1:{grpc}"
        self._own = {
            "OTLP_HTTP": f"127.0.0.1:{http}",
            "OTLP_GRPC": self.grpc,
            "HEALTH": f"127.0.0.1:{self._health}",
            "METRICS_HOST": "127.0.0.1",
            "METRICS_PORT": str(self._metrics),
        }

    def _run(self, folder: Path) -> None:
        environment: Mapping[str, str] = {**os.environ, **self._variables, **self._own}
        self._program([str(self._server), *_options(self._files)], env=environment)

    def _handshake(self, url: str, timeout: float) -> None:
        # Not by OTLP, which a configuration need not take.
        with urlopen(f"http://127.0.0.1:{self._health}/", timeout=timeout):
            pass


def _options(files: Sequence[str]) -> list[str]:
    """A name is a file's of ``deploy/collector``; a path or a ``yaml:`` text is itself."""
    return [f"--config={name if name.startswith('yaml:') else _FOLDER / name}" for name in files]
