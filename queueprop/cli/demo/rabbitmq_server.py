"""A RabbitMQ for the demo: QUEUEPROP_RABBITMQ_URL, else a private node of the rabbitmq-server on the PATH."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pika import BlockingConnection, URLParameters
from pika.exceptions import AMQPError

from queueprop.cli.demo.brokers import NoServer
from queueprop.cli.demo.processes import STARTUP, Died, Process, Processes, free_port, until

_NONE = (
    "no RabbitMQ to be had: install rabbitmq-server, so that it is on the PATH, or set QUEUEPROP_RABBITMQ_URL"
)

# What distributions put on the PATH changes to their user and folders; this is what it then runs.
_BEHIND = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")


class Found(NamedTuple):
    url: str
    what: str
    is_private: bool
    """Whether it is the demo's own, and gone afterwards."""


@contextmanager
def rabbitmq_server(processes: Processes, environ: Mapping[str, str]) -> Iterator[Found]:
    """The first that can be had. Raises NoServer."""
    given = environ.get("QUEUEPROP_RABBITMQ_URL", "").strip()
    if given:
        if not _answers(given):
            raise NoServer("the RabbitMQ that QUEUEPROP_RABBITMQ_URL names does not answer")
        yield Found(given, "the RabbitMQ of QUEUEPROP_RABBITMQ_URL", is_private=False)
        return
    program = shutil.which("rabbitmq-server", path=environ.get("PATH"))
    mapper = _port_mapper(environ)
    if program is None or mapper is None:
        raise NoServer(_NONE)
    if _BEHIND.exists():
        program = str(_BEHIND)
    try:
        url, started = _start(program, mapper, processes)
    except (Died, OSError, TimeoutError) as error:
        raise NoServer(f"the rabbitmq-server of this machine does not start: {error}") from None
    try:
        yield Found(url, "a private node of this machine's rabbitmq-server", is_private=True)
    finally:
        processes.stop(*reversed(started))


def _start(program: str, mapper: str, processes: Processes) -> tuple[str, list[Process]]:
    """A node with name, ports, folders, cookie and port mapper of its own: it meets no other."""
    port, mapper_port, folder = free_port(), free_port(), processes.folder
    url = f"amqp://guest:guest@127.0.0.1:{port}/%2F"
    (folder / "rabbitmq.conf").write_text("disk_free_limit.absolute = 50MB\nlog.file.level = error\n")
    (folder / "rabbitmq-env.conf").write_text("")
    (folder / "enabled_plugins").write_text("[].\n")
    environment = {
        **{name: "" for name in os.environ if name.startswith(("RABBITMQ_", "ERL_"))},
        "HOME": str(folder),
        "ERL_EPMD_PORT": str(mapper_port),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODENAME": f"queueprop-demo-{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_CONF_ENV_FILE": str(folder / "rabbitmq-env.conf"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        # The script then becomes the server, and does not stay between us and the server's signals.
        "RUNNING_UNDER_SYSTEMD": "true",
    }
    # Erlang would start a port mapper that nobody stops; it leaves that alone when one is there.
    started = [
        processes.start("epmd", [mapper, "-port", str(mapper_port), "-address", "127.0.0.1"], environment),
        processes.start("rabbitmq-server", [program], environment),
    ]
    until("the server", lambda: _answers(url), STARTUP, *started)
    return url, started


def _port_mapper(environ: Mapping[str, str]) -> str | None:
    """Erlang's epmd: on the PATH, or where Erlang has its programs."""
    path = environ.get("PATH")
    found = shutil.which("epmd", path=path)
    erl = shutil.which("erl", path=path)
    if found is not None or erl is None:
        return found
    ask = [erl, "-noshell", "-boot", "start_clean", "-eval", 'io:put_chars(os:getenv("BINDIR")), halt().']
    folder = subprocess.run(ask, capture_output=True, text=True, timeout=30, check=False).stdout
    return shutil.which("epmd", path=folder)


def _answers(url: str) -> bool:
    try:
        parameters = URLParameters(url)
        parameters.socket_timeout = parameters.stack_timeout = parameters.blocked_connection_timeout = 2
        BlockingConnection(parameters).close()
    except (AMQPError, OSError, ValueError):  # ValueError: not a URL of RabbitMQ
        return False
    return True
