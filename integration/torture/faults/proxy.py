"""A TCP proxy that counts bytes and cuts, and a way to cut the connections of other processes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
import threading
from collections.abc import Iterable
from urllib.parse import urlsplit, urlunsplit


class Proxy:
    """Stands before a broker. ``url`` is the broker's, with the proxy's port."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 0)
        self._server = socket.create_server(("127.0.0.1", 0))
        port = self._server.getsockname()[1]
        user = parts.netloc.rpartition("@")[0]
        netloc = f"{user}@127.0.0.1:{port}" if user else f"127.0.0.1:{port}"
        self.url = urlunsplit(parts._replace(netloc=netloc))
        self.cuts = 0
        self._lock = threading.Lock()
        self._upstream_left: int | None = None
        self._downstream_left: int | None = None
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_upstream(self) -> None:
        """After 70 more bytes from the client: a publish without its body's end."""
        with self._lock:
            self._upstream_left = 70

    def cut_downstream(self) -> None:
        """With the next byte from the broker, which the client is not given: a confirm."""
        with self._lock:
            self._downstream_left = 0

    def close(self) -> None:
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            try:
                broker = socket.create_connection(self._target)
            except OSError:
                client.close()
                continue
            for one in ((client, broker, True), (broker, client, False)):
                threading.Thread(target=self._pass_on, args=one, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, is_upstream: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                let_through, is_cut = self._allowed(len(data), is_upstream)
                target.sendall(data[:let_through])
                if is_cut:
                    break
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.shutdown(socket.SHUT_RDWR)

    def _allowed(self, size: int, is_upstream: bool) -> tuple[int, bool]:
        """How many of so many bytes may pass, and whether the connection is cut behind them."""
        with self._lock:
            left = self._upstream_left if is_upstream else self._downstream_left
            if left is None:
                return size, False
            if size <= left and is_upstream:
                self._upstream_left = left - size
                return size, False
            self._upstream_left = self._downstream_left = None
            self.cuts += 1
            return left, True


_PIDFD_GETFD = 438  # Linux 5.6; Python has no function for it


def cut_connections(pids: Iterable[int], url: str) -> int:
    """Shuts down every connection that these processes have to a broker of this address; gives how many."""
    ports = {int(address.rpartition(":")[2]) for address in urlsplit(url).netloc.split(",")}
    libc = ctypes.CDLL(None, use_errno=True)
    cut = 0
    for pid in pids:
        handle = os.pidfd_open(pid)
        try:
            for name in os.listdir(f"/proc/{pid}/fd"):
                if not _is_socket(pid, name):
                    continue
                copy = libc.syscall(_PIDFD_GETFD, handle, int(name), 0)
                if copy < 0:
                    raise OSError(ctypes.get_errno(), "pidfd_getfd")
                with socket.socket(fileno=copy) as connection, contextlib.suppress(OSError):
                    peer = connection.getpeername()
                    if isinstance(peer, tuple) and peer[1] in ports:
                        connection.shutdown(socket.SHUT_RDWR)
                        cut += 1
        finally:
            os.close(handle)
    return cut


def _is_socket(pid: int, name: str) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:")
    except OSError:
        return False
