"""Server programs that the tests start: own port, own folder, and gone at the end."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from queueprop.cli.demo.processes import free_port

from .broker import Broker, BrokerError, Protocol, Rung

_KEEPER = Path(__file__).with_name("keeper.py")


class Program:
    """One process under a keeper, which ends it when this process is gone, however that came about.

    It is in a session of its own, so that Ctrl-C reaches pytest and not the server that a test still needs.
    """

    def __init__(self, command: Sequence[str], folder: Path, *, env: Mapping[str, str] | None = None) -> None:
        """Start ``command`` in ``folder``; what it prints goes to a file there."""
        self._log_file = folder / f"{Path(command[0]).name}.log"
        with self._log_file.open("ab") as output:
            self._keeper = subprocess.Popen(
                [sys.executable, "-I", str(_KEEPER), str(os.getpid()), str(folder), *command],
                cwd=folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def status(self) -> int | None:
        """The exit status, once the program has ended."""
        return self._keeper.poll()

    def log(self) -> str:
        """What the program has printed."""
        return self._log_file.read_text(errors="replace") if self._log_file.exists() else ""

    def stop(self) -> None:
        """End the program, in order if it can be, and wait for it."""
        self._keeper.terminate()
        self._keeper.wait()

    def kill(self) -> None:
        """End the program with SIGKILL, and wait for it."""
        self._keeper.send_signal(signal.SIGUSR1)
        self._keeper.wait()


class Port:
    """A free port on 127.0.0.1 that no other process of the tests is given, also while its server is down.

    On Linux a socket that is bound and never listens holds it: a server may still listen there (both say
    SO_REUSEADDR), and nobody else finds it free.
    """

    def __init__(self) -> None:
        for _ in range(200):
            self.number = free_port()
            try:
                self._held = self._hold()
            except OSError:
                continue  # another has taken it in between
            return
        raise BrokerError("no free port was found between 20000 and 30000")

    def release(self) -> None:
        if self._held is not None:
            self._held.close()

    def _hold(self) -> socket.socket | None:
        if sys.platform != "linux":
            return None
        held = socket.socket()
        try:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind(("127.0.0.1", self.number))
        except OSError:
            held.close()
            raise
        return held


class ProgramBroker(Broker):
    """A broker that is a server program. ``folder`` is its own, and ``port`` the one that it answers on."""

    def __init__(self, protocol: Protocol, rung: Rung, what: str) -> None:
        super().__init__(protocol, what)
        self.rung = rung
        self.folder: Path | None = None
        self._ports: list[Port] = []
        self._programs: list[Program] = []

    @property
    def is_running(self) -> bool:
        """Whether it was started and not stopped since."""
        return bool(self._programs)

    def stop(self) -> None:
        while self._programs:
            self._programs.pop().stop()

    def kill(self) -> None:
        """End the broker with SIGKILL. Its port and what it has on disk stay, for the next ``start()``."""
        while self._programs:
            self._programs.pop().kill()

    def close(self) -> None:
        self.stop()
        while self._ports:
            self._ports.pop().release()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = None

    def _launch(self) -> None:
        if self._programs:
            raise BrokerError(f"{self} is running already")
        if self.folder is None:
            self.folder = Path(tempfile.mkdtemp(prefix=f"queueprop-{self.protocol.name.lower()}-"))
            self._prepare(self.folder)
        self._run(self.folder)

    @abstractmethod
    def _prepare(self, folder: Path) -> None:
        """Before the first start: take ports with ``_port()``, set ``url``, write what the server reads."""

    @abstractmethod
    def _run(self, folder: Path) -> None:
        """Start the server's programs with ``_program()``, the server itself last."""

    def _port(self) -> int:
        self._ports.append(Port())
        return self._ports[-1].number

    def _program(self, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        assert self.folder is not None
        self._programs.append(Program(command, self.folder, env=env))

    def _ended(self) -> str | None:
        status = self._programs[-1].status()
        return None if status is None else f"ended with status {status}"

    def _log(self) -> str:
        return self._programs[-1].log()
