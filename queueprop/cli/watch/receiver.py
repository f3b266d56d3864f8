"""The OTLP/HTTP receiver: a thread that answers, keeps what came in a store, and hands it on."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import NamedTuple

import anyio
import uvicorn
from anyio import CapacityLimiter, to_thread
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from queueprop.cli.watch import otlp
from queueprop.cli.watch.forward import Forward, Forwarder
from queueprop.cli.watch.otlp import LARGEST_REQUEST, PROTOBUF, Refused
from queueprop.cli.watch.store import Store
from queueprop.testing.tree import SpanRecord

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1", "[::1]")
"""The Host of requests that are meant for here: another site's page whose name is made to point here has its own."""

_MOST_IN_FLIGHT = 4 * LARGEST_REQUEST
"""Bytes of all requests that are being read: beyond them a sender is asked to come again."""

_MOST_READ = 16 * LARGEST_REQUEST
"""Bytes of a request that is refused at its end."""

_LARGE = 256 << 10
"""Bytes of a request that others do not wait for."""

_PATIENCE = 30.0
"""Seconds for a request to come whole."""

_STARTUP = 20.0


class Bound(NamedTuple):
    """An application on the socket that it listens on."""

    app: ASGIApp
    socket: socket.socket

    @property
    def url(self) -> str:
        host, port = self.socket.getsockname()[:2]
        host = "127.0.0.1" if host == "0.0.0.0" else "::1" if host == "::" else host
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def listen(host: str, port: int) -> socket.socket:
    """Raises OSError, with the address in it, where that cannot be listened on."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
            found.listen(2048)
        except OSError:
            found.close()
            raise
    except OSError as error:
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    return found


class Servers:
    """A context manager: a thread with a server for each application; ends them in order."""

    def __init__(self, *bound: Bound) -> None:
        self._bound = bound

    def __enter__(self) -> Servers:
        self._servers = [uvicorn.Server(_config(one.app)) for one in self._bound]
        self._thread = threading.Thread(target=self._run, name="otlp", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self._servers:
            server.should_exit = True
        self._thread.join(_STARTUP)
        for one in self._bound:
            one.socket.close()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        await asyncio.gather(
            *(
                server.serve(sockets=[one.socket])
                for server, one in zip(self._servers, self._bound, strict=True)
            )
        )


def _config(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        limit_concurrency=500,
        # Exporters keep their connections, and would lose a request to one that is closed in that moment.
        timeout_keep_alive=120,
        timeout_graceful_shutdown=3,
        server_header=False,
        proxy_headers=False,
        ws="none",
    )


class Receiver:
    """A context manager: receives from its beginning to its end.

    Args:
        forward: where everything also goes.
        host: the address to listen on.
        port: 0 takes a free one.
        store: keeps the spans.
        beside: other applications, such as the page, for the same thread.

    Raises OSError when the address cannot be listened on.
    """

    def __init__(
        self,
        forward: Forward | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        store: Store | None = None,
        beside: Sequence[Bound] = (),
    ) -> None:
        self._forward = forward
        self.store = Store() if store is None else store
        self.forwarder: Forwarder | None = None
        self._in_flight = 0
        self._threads: CapacityLimiter | None = None
        self._bound = Bound(self._app(host), listen(host, port))
        self._servers = Servers(self._bound, *beside)
        self.endpoint = self._bound.url
        """What OTEL_EXPORTER_OTLP_ENDPOINT is set to."""

    def __enter__(self) -> Receiver:
        if self._forward is not None:
            self.forwarder = Forwarder(self._forward)
        self._servers.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._servers.__exit__(kind, error, trace)
        if self.forwarder is not None:
            self.forwarder.close(*(() if kind is None else (0,)))

    @property
    def failure(self) -> str | None:
        """Why spans could not be passed on: the first time."""
        return self.forwarder.failure if self.forwarder is not None else None

    @property
    def version(self) -> int:
        """Another one whenever there is something else to show."""
        forwarder = self.forwarder
        return self.store.version + (forwarder.sent + forwarder.dropped if forwarder is not None else 0)

    def spans(self) -> list[SpanRecord]:
        """What has come so far."""
        return self.store.spans()

    def clear(self) -> None:
        """Forgets them."""
        self.store.clear()

    def _app(self, host: str) -> Starlette:
        routes = [Route(f"/v1/{signal}", self._take, methods=["POST"]) for signal in otlp.SIGNALS]
        # Who listens for other machines is called by names that nobody knows here.
        hosts = [*LOCAL_HOSTS, host] if is_local(host) else ["*"]
        guard = Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)
        return Starlette(routes=routes, middleware=[guard])

    async def _take(self, request: Request) -> Response:
        media, size = PROTOBUF, 0
        try:
            parts: list[bytes] = []
            with anyio.fail_after(_PATIENCE):
                async for part in request.stream():
                    size += len(part)
                    self._in_flight += len(part)
                    self._append(part, parts, size)
            media = otlp.media_type(request.headers.get("content-type", ""))
            self._check(size)
            encoding = request.headers.get("content-encoding", "")
            take = partial(self._keep, request.url.path.rpartition("/")[2], b"".join(parts), media, encoding)
            # A small one is kept in less time than a thread takes to begin.
            is_large = size > _LARGE or bool(encoding)
            answer = await to_thread.run_sync(take, limiter=self._limiter()) if is_large else take()
        except TimeoutError:
            return self._refuse(Refused(408, f"the request did not come whole within {_PATIENCE:g} s"), media)
        except ClientDisconnect:
            return self._refuse(Refused(400, "the request did not come whole"), media)
        except Refused as refused:
            return self._refuse(refused, media)
        finally:
            self._in_flight -= size
        return Response(answer, media_type=media)

    def _append(self, part: bytes, parts: list[bytes], size: int) -> None:
        """What is not going to be taken is read all the same: its sender would not see an answer before the end."""
        if size > _MOST_READ:
            self._check(size)
        if size > LARGEST_REQUEST or self._in_flight > _MOST_IN_FLIGHT:
            parts.clear()
        else:
            parts.append(part)

    def _check(self, size: int) -> None:
        if size > LARGEST_REQUEST:
            raise Refused(413, f"more than {LARGEST_REQUEST} bytes: send fewer spans at once")
        if self._in_flight > _MOST_IN_FLIGHT:
            raise Refused(503, "too much is being sent at the same time: send it again")

    def _refuse(self, refused: Refused, media: str) -> Response:
        self.store.refuse()
        headers = {"Retry-After": "1"} if refused.status == 503 else None
        return Response(otlp.refusal(refused, media), refused.status, headers, media)

    def _limiter(self) -> CapacityLimiter:
        if self._threads is None:  # it belongs to the loop that it is made in
            self._threads = CapacityLimiter(2)
        return self._threads

    def _keep(self, signal: str, body: bytes, media: str, encoding: str) -> bytes:
        """Returns the answer, once what came is kept. Raises Refused."""
        content = otlp.unpacked(body, encoding)
        spans, rejected, why = 0, 0, ""
        if signal == "traces":
            found = otlp.traces(content, media)
            spans, rejected, why = len(found.spans), found.rejected, found.why
            self.store.add(found.spans, rejected)
        elif signal == "metrics":
            self.store.add_missing(otlp.missing_contexts(content, media))
        else:
            otlp.check(content, media, signal)
        if self.forwarder is not None:
            headers = {"Content-Type": media, **({"Content-Encoding": encoding} if encoding else {})}
            self.forwarder.put(signal, body, headers, spans)
        return otlp.answer(signal, media, rejected, why)


def is_local(host: str) -> bool:
    """Whether an address is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
