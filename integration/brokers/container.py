"""Brokers in containers, through testcontainers."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from .broker import Broker, BrokerError, Protocol, Unavailable
from .program import Port

if TYPE_CHECKING:
    from testcontainers.core.container import DockerContainer

_GUARD = Path(__file__).with_name("container_guard.py")


class ContainerBroker(Broker):
    """A broker in a container of its own.

    The port on this side is chosen by us: one that the daemon chooses would be another one after a restart.
    """

    rung = "containers"
    port: int
    """The port inside the container."""
    stop_command: ClassVar[Sequence[str]] = ()
    """Ends the server from inside, where an image's entry point may be a script that keeps signals from it."""

    def __init__(self, protocol: Protocol, image: str) -> None:
        """Raises Unavailable when no Docker daemon answers, or it neither has nor can pull the image."""
        super().__init__(protocol, image)
        for reason in (_daemon_problem(), _image_problem(image)):
            if reason:
                raise Unavailable(reason)
        self._container: DockerContainer | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    def stop(self) -> None:
        if self._container is None:
            return
        container = self._container.get_wrapped_container()
        if self.stop_command:
            container.exec_run(list(self.stop_command))
        container.stop(timeout=10)

    def close(self) -> None:
        container, self._container = self._container, None
        if container is not None:
            container.stop()
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.kill()
            guard.wait()

    @abstractmethod
    def _make(self) -> DockerContainer:
        """The container, not yet started, without ports bound."""

    @abstractmethod
    def _url(self, host: str, port: int) -> str:
        """The URL of a broker that answers there."""

    def _launch(self) -> None:
        if self._container is not None:
            self._container.get_wrapped_container().start()
            return
        self._container = self._create()
        self._guard = subprocess.Popen(
            [sys.executable, "-I", str(_GUARD), str(os.getpid()), self._container.get_container_id()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        host, port = self._container.get_container_host_ip(), self._container.get_exposed_port(self.port)
        self.url = self._url(host, int(port))

    def _create(self) -> DockerContainer:
        for attempt in range(3):
            port = Port()
            port.release()
            container = self._make().with_bind_ports(self.port, port.number)
            try:
                return container.start()
            except BaseException as error:
                with contextlib.suppress(Exception):
                    container.stop()
                if not isinstance(error, Exception):
                    raise
                if attempt == 2 or "port" not in str(error):
                    raise BrokerError(f"{self} did not start: {type(error).__name__}: {error}") from error
        raise AssertionError("unreachable")

    def _ended(self) -> str | None:
        assert self._container is not None
        container = self._container.get_wrapped_container()
        container.reload()
        if container.status not in ("exited", "dead"):
            return None
        return f"ended with status {container.attrs['State'].get('ExitCode')}"

    def _log(self) -> str:
        if self._container is None:
            return ""
        return str(self._container.get_wrapped_container().logs(tail=50), errors="replace")


@functools.cache
def _daemon_problem() -> str | None:
    """Why there is no Docker daemon to ask, or None."""
    try:
        from testcontainers.core.docker_client import DockerClient
    except ImportError as error:
        return f"testcontainers cannot be imported ({error})"
    try:
        DockerClient(timeout=5).client.ping()
    except Exception as error:
        return f"no Docker daemon answers ({type(error).__name__}: {error})"
    return None


@functools.cache
def _image_problem(image: str) -> str | None:
    """Why the daemon cannot run the image, or None. Pulls it when it is not there."""
    if _daemon_problem():
        return None
    from testcontainers.core.config import testcontainers_config
    from testcontainers.core.docker_client import DockerClient

    images = DockerClient().client.images
    name = testcontainers_config.hub_image_name_prefix + image
    try:
        images.get(name)
        return None
    except Exception:
        try:
            images.pull(name)
        except Exception as error:
            return f"the image {name} is not there and cannot be pulled ({type(error).__name__}: {error})"
    return None
