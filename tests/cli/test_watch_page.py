"""The page, as a browser's requests see it; `integration/test_watch.py` has a real browser."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest

from queueprop.cli.demo.processes import until
from queueprop.cli.watch import page as module
from queueprop.cli.watch.otlp import RawSpan
from queueprop.cli.watch.page import Page
from queueprop.cli.watch.receiver import Bound, Receiver, listen
from tests.otlp import process, request, span

RESOURCE = request(service="shop").resource_spans[0].resource.SerializeToString()
NASTY = '<script>alert(1)</script>"\u2028'


class Shown(NamedTuple):
    page: Page
    receiver: Receiver
    url: str

    def add(self, *spans: Any) -> None:
        self.receiver.store.add([RawSpan(it, it.SerializeToString(), RESOURCE) for it in spans])


@contextmanager
def showing() -> Iterator[Shown]:
    page = Page()
    bound = Bound(page.app, listen("127.0.0.1", 0))
    receiver = Receiver(beside=[bound])
    page.show(receiver)
    with receiver:
        try:
            yield Shown(page, receiver, bound.url)
        finally:
            page.stop()


@pytest.fixture
def shown() -> Iterator[Shown]:
    with showing() as one:
        yield one


def get(shown: Shown, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(shown.url).port or 0, timeout=60)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, {name.lower(): it for name, it in response.getheaders()}, response.read()
    finally:
        connection.close()


def told(stream: Any) -> dict[str, Any]:
    """The next state of the page that a stream tells."""
    line = next(line for line in stream if line.startswith(b"data: "))
    found: dict[str, Any] = json.loads(line[6:])
    return found


@pytest.mark.parametrize(
    ("path", "media"), [("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")]
)
def test_files(shown: Shown, path: str, media: str) -> None:
    """Three files, of ours alone: nothing of another host is in them, and no script inside the page."""
    status, headers, content = get(shown, path)
    assert (status, headers["content-type"]) == (200, f"{media}; charset=utf-8")
    text = content.decode().replace("http://www.w3.org/2000/svg", "")  # a name, and no address
    assert "http://" not in text
    assert "https://" not in text
    assert "<script>" not in text
    for writes_html in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert writes_html not in text


@pytest.mark.parametrize("path", ["/", "/events", "/api/traces", "/api/traces/x", "/nothing"])
@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", ""])
def test_host(shown: Shown, path: str, host: str) -> None:
    """A page of another site, whose name was made to point here, reads nothing."""
    status, headers, content = get(shown, path, Host=host)
    assert (status, content) == (400, b"Invalid host header")
    assert "content-security-policy" in headers


@pytest.mark.parametrize("host", ["localhost", "localhost:4319", "127.0.0.1:1"])
def test_own_host(shown: Shown, host: str) -> None:
    """The names that this machine has for itself."""
    assert get(shown, "/", Host=host)[0] == 200


@pytest.mark.parametrize("path", ["/", "/api/traces", "/nothing"])
def test_headers(shown: Shown, path: str) -> None:
    """Only our own files run and are read, in no frame; no other site's page may read anything."""
    _, headers, _ = get(shown, path, Origin="http://evil.example")
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert (headers["x-content-type-options"], headers["cache-control"]) == ("nosniff", "no-store")
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert not [name for name in headers if name.startswith("access-control")]
    assert get(shown, path, "POST")[0] in (404, 405)


def test_events(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    """What there is at first, then whatever changes; nothing where nothing does, which costs nothing either."""
    monkeypatch.setattr(module, "_EVERY", 0.01)
    looks: list[str] = []
    look = shown.page._told

    def counted() -> str:
        looks.append(look())
        return looks[-1]

    monkeypatch.setattr(shown.page, "_told", counted)
    with urlopen(f"{shown.url}/events", timeout=60) as stream:
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        assert told(stream)["received"] == 0
        until("some more looks", lambda: len(looks) > 3, 60)
        assert all(it is looks[0] for it in looks)
        shown.add(process(1, 1, NASTY))
        found = told(stream)
        assert (found["received"], found["orphaned"]) == (1, 1)
        assert found["traces"][0]["name"] == f"process {NASTY}"
        shown.receiver.store.version += 1  # something came that changes nothing here
        shown.add(span("x", 2, 1))
        assert told(stream)["received"] == 2


def test_stream_that_ends(shown: Shown) -> None:
    """Where a browser goes away, its place is free again."""
    with urlopen(f"{shown.url}/events", timeout=60) as stream:
        told(stream)
        assert shown.page._streams == 1
    until("the end", lambda: shown.page._streams == 0, 60)


def test_not_too_many(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams are bounded; a browser asks again by itself."""
    monkeypatch.setattr(module, "_MOST_STREAMS", 1)
    with urlopen(f"{shown.url}/events", timeout=60) as stream:
        told(stream)
        assert get(shown, "/events")[0] == 503


def test_end() -> None:
    """An open page holds nothing up."""
    with showing() as shown:
        stream = urlopen(f"{shown.url}/events", timeout=60)
        told(stream)
    with stream:
        assert b"data:" not in stream.read()


def test_search(shown: Shown) -> None:
    """By a part of the id, in whatever case; an empty one finds the newest."""
    shown.add(span("one", 0xABC, 1), span("two", 0xDEF, 1))
    for query, names in (("ABC", ["one"]), ("", ["two", "one"]), ("%20def", ["two"]), ("xyz", [])):
        status, _, content = get(shown, f"/api/traces?q={query}")
        assert (status, [it["name"] for it in json.loads(content)]) == (200, names)


def test_trace(shown: Shown) -> None:
    """Its rows; 404 for one that is not there."""
    shown.add(span(NASTY, 1, 1, **{NASTY: NASTY}))
    status, headers, content = get(shown, f"/api/traces/{1:032x}")
    assert (status, headers["content-type"]) == (200, "application/json")
    [row] = json.loads(content)["rows"]
    assert (row["name"], row["attributes"]) == (NASTY, {NASTY: NASTY})
    for trace_id in (f"{2:032x}", "xyz", "%00"):
        status, _, content = get(shown, f"/api/traces/{trace_id}")
        assert (status, json.loads(content)) == (
            404,
            {"error": "there is no such trace, or it is no longer kept"},
        )
