"""A PostgreSQL of a test's own: a private cluster that logs every statement, from the programs of this machine."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .brokers import BrokerError, Unavailable
from .brokers.program import Port, Program

_STARTUP = 30.0
_USER = "postgres"  # the server refuses to run as root


class PostgreSQL:
    """``url`` is as SQLAlchemy takes it, ``conninfo`` as libpq does, ``log()`` what the server has logged."""

    def __init__(self, port: int, program: Program) -> None:
        self.port = port
        self.conninfo = f"postgresql://{_USER}@127.0.0.1:{port}/{_USER}?gssencmode=disable"
        self.url = self.conninfo.replace("postgresql:", "postgresql+psycopg:")
        self._program = program

    def log(self) -> str:
        return self._program.log()


@contextmanager
def postgresql() -> Iterator[PostgreSQL]:
    """Raises Unavailable where PostgreSQL is not installed."""
    programs, run_as = _programs(), _run_as()
    folder = Path(tempfile.mkdtemp(prefix="queueprop-postgresql-"))
    port = Port()
    try:
        if run_as:
            shutil.chown(folder, _USER)
        _initialize([*run_as, str(programs / "initdb")], folder)
        program = Program([*run_as, str(programs / "postgres"), *_options(folder, port)], folder)
        try:
            _await(program, port)
            yield PostgreSQL(port.number, program)
        finally:
            _disconnect(port)
            program.stop()
    finally:
        port.release()
        shutil.rmtree(folder, ignore_errors=True)


def _programs() -> Path:
    """Their folder: Debian keeps what belongs to one version off the PATH."""
    found = [*map(Path, filter(None, [shutil.which("initdb")]))]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        raise Unavailable("PostgreSQL is not installed (on Debian and Ubuntu: apt-get install postgresql)")
    return found[-1].parent


def _run_as() -> Sequence[str]:
    if os.geteuid() != 0:
        return ()
    try:
        pwd.getpwnam(_USER)
    except KeyError:
        raise Unavailable(f"root cannot run PostgreSQL, and there is no user {_USER}") from None
    return ("setpriv", f"--reuid={_USER}", f"--regid={_USER}", "--clear-groups")


def _initialize(initdb: Sequence[str], folder: Path) -> None:
    command = [*initdb, "--pgdata", str(folder / "data"), "--username", _USER, "--auth=trust", "--no-sync"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if result.returncode:
        raise BrokerError(f"initdb ended with {result.returncode}: {result.stdout}{result.stderr}")


def _options(folder: Path, port: Port) -> Sequence[str]:
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": str(port.number),
        "unix_socket_directories": "",
        "fsync": "off",
        "log_statement": "all",
    }
    return ["-D", str(folder / "data"), *(f"--{name}={value}" for name, value in settings.items())]


def _await(program: Program, port: Port) -> None:
    import psycopg  # of the dependency group `examples`, which not every environment of the tests has

    deadline = time.monotonic() + _STARTUP
    while True:
        try:
            return psycopg.connect(host="127.0.0.1", port=port.number, user=_USER, connect_timeout=2).close()
        except psycopg.OperationalError as error:
            if program.status() is not None or time.monotonic() > deadline:
                raise BrokerError(f"PostgreSQL does not start: {error}\n{program.log()}") from error
        time.sleep(0.05)


def _disconnect(port: Port) -> None:
    """Whoever has not closed a connection: the server would wait for that."""
    import psycopg

    others = "backend_type = 'client backend' AND pid <> pg_backend_pid()"
    with (
        contextlib.suppress(psycopg.OperationalError),  # the server has ended
        psycopg.connect(host="127.0.0.1", port=port.number, user=_USER, autocommit=True) as connection,
    ):
        connection.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")
