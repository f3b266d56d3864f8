"""Redis, below the libraries that use it: the address of a server."""

from __future__ import annotations

from typing import Any

PORT = 6379


def address_of(client: Any) -> tuple[str | None, int | None]:
    """Host and port that a client of redis-py connects to; a Unix socket's path and None. None for what is unknown."""
    options = getattr(getattr(client, "connection_pool", None), "connection_kwargs", None)
    if not isinstance(options, dict):
        return None, None
    if "path" in options:  # a Unix socket
        return options["path"], None
    host = options.get("host")
    return (host, int(options.get("port", PORT))) if host else (None, None)
