"""The page of ``queueprop watch --web``: for this machine alone, and for no other site's page."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from importlib.resources import files
from typing import Any

import anyio
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from queueprop.cli.watch import views
from queueprop.cli.watch.receiver import LOCAL_HOSTS, Receiver

_FILES = {
    "/": ("page.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}

_HEADERS = {
    # Nothing but our own three files, no inline script, and in no frame.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

_EVERY = 0.5
"""Seconds between two looks at what has come."""

_MOST_STREAMS = 20

_MOST_FOUND = 100


class Page:
    """The application. ``show`` it a receiver before it is asked; ``stop`` ends its streams."""

    def __init__(self) -> None:
        self._receiver: Receiver | None = None
        self._stopping = False
        self._streams = 0
        self._overview = (-1, "")
        routes: list[Any] = [
            *(Route(path, _file(*found), methods=["GET"]) for path, found in _FILES.items()),
            Route("/events", self._events, methods=["GET"]),
            Route("/api/traces", self._search, methods=["GET"]),
            Route("/api/traces/{trace_id}", self._trace, methods=["GET"]),
        ]
        middleware = [
            Middleware(_Secured),
            Middleware(TrustedHostMiddleware, allowed_hosts=list(LOCAL_HOSTS), www_redirect=False),
        ]
        self.app: ASGIApp = Starlette(routes=routes, middleware=middleware)

    def show(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def stop(self) -> None:
        self._stopping = True

    async def _events(self, request: Request) -> Response:
        if self._streams >= _MOST_STREAMS:
            return JSONResponse({"error": "the page is open too often"}, 503)
        return EventSourceResponse(self._stream())

    async def _stream(self) -> AsyncIterator[dict[str, str]]:
        self._streams += 1
        told = ""
        try:
            while not self._stopping:
                found = await run_in_threadpool(self._told)
                if found != told:
                    told = found
                    yield {"data": told}
                await anyio.sleep(_EVERY)
        finally:
            self._streams -= 1

    def _told(self) -> str:
        """The overview, made once however many look at it."""
        receiver = self._shown
        version, told = self._overview
        now = receiver.version
        if now != version:
            told = json.dumps(views.overview(receiver))
            self._overview = now, told
        return told

    async def _search(self, request: Request) -> Response:
        part = request.query_params.get("q", "").strip().lower()
        store = self._shown.store
        with store.lock:
            found = views.summaries(store.search(part, _MOST_FOUND))
        return JSONResponse(found)

    async def _trace(self, request: Request) -> Response:
        store = self._shown.store
        trace = store.trace(request.path_params["trace_id"])
        if trace is None:
            return JSONResponse({"error": "there is no such trace, or it is no longer kept"}, 404)
        return JSONResponse(await run_in_threadpool(views.waterfall, store, trace))

    @property
    def _shown(self) -> Receiver:
        assert self._receiver is not None
        return self._receiver


def _file(name: str, media_type: str) -> Any:
    content = (files("queueprop.cli.watch") / name).read_bytes()

    async def answer(request: Request) -> Response:
        return Response(content, media_type=media_type)

    return answer


class _Secured:
    """Adds the headers to every answer, refusals included."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await self._app(scope, receive, send_secured)
