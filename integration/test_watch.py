"""``queueprop watch`` as it is used: its own process, programs that send to it, a browser that looks at the page."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import SpanKind

import queueprop
from queueprop import Destination, Settings
from queueprop.cli.demo.processes import free_port, until

from .brokers import Unavailable
from .node_modules import Node
from .observability import Collector, fetched

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

PATIENCE = 60.0
NASTY = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
ORDERS = Destination(system="rabbitmq", name="orders")
BROKEN = Destination(system="rabbitmq", name=f"imports {NASTY}")


class Watch(NamedTuple):
    """A running one."""

    process: subprocess.Popen[str]
    endpoint: str
    page: str


@contextmanager
def watching(*options: str) -> Iterator[Watch]:
    port, page = free_port(), free_port()
    ports = ("--port", str(port), "--web", "--web-port", str(page))
    command = [sys.executable, "-c", "import queueprop.cli; queueprop.cli.main()", "watch", *ports, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    watch = Watch(process, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{page}")
    try:
        until("the page", lambda: answers(watch), PATIENCE)
        yield watch
    finally:
        process.kill()
        process.communicate()


def answers(watch: Watch) -> bool:
    assert watch.process.poll() is None, watch.process.communicate()[0]
    try:
        urlopen(watch.page, timeout=5).close()
    except OSError:
        return False
    return True


@pytest.fixture
def watch() -> Iterator[Watch]:
    with watching() as one:
        yield one


def end(watch: Watch, number: int = signal.SIGINT) -> str:
    """What it has written, from its start to its end in order."""
    watch.process.send_signal(number)
    output, _ = watch.process.communicate(timeout=PATIENCE)
    assert watch.process.returncode == 0, output
    return output


class Traffic(NamedTuple):
    """Two services that send to it."""

    shop: TracerProvider
    mailer: TracerProvider

    @classmethod
    def to(cls, endpoint: str) -> Traffic:
        return cls(*(provider(name, endpoint) for name in ("shop", "mailer")))

    def order(self, headers: dict[str, str] | None = None) -> str:
        """An order and its delivery, with the headers of its publish or with others; the order's trace id."""
        sent: dict[str, str] = {}
        shop, mailer = (Settings(tracer_provider=it) for it in self)
        with (
            self.shop.get_tracer("shop").start_as_current_span(
                "POST /orders", kind=SpanKind.SERVER, attributes={NASTY: NASTY}
            ) as span,
            queueprop.send_span(ORDERS, headers=sent, settings=shop),
        ):
            pass
        destination, given = (ORDERS, sent) if headers is None else (BROKEN, headers)
        with (
            queueprop.process_span(destination, headers=given, settings=mailer),
            self.mailer.get_tracer("mail").start_as_current_span(f"send mail {NASTY}"),
        ):
            pass
        return f"{span.get_span_context().trace_id:032x}"


def provider(name: str, endpoint: str) -> TracerProvider:
    made = TracerProvider(resource=Resource({"service.name": name}), shutdown_on_exit=False)
    made.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{endpoint}/v1/traces")))
    return made


class TestBrowser:
    """The page in a real Chromium, headless."""

    @pytest.fixture
    def open_page(self, watch: Watch) -> Iterator[Callable[[str], Chrome]]:
        """A browser at a path of the page, where this machine has one."""
        webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
        browser, driver = (
            shutil.which("chromium") or shutil.which("google-chrome"),
            shutil.which("chromedriver"),
        )
        if not browser or not driver:
            pytest.skip(
                "no chromium with a chromedriver on the PATH (Debian, Ubuntu: apt-get install chromium chromium-driver)"
            )
        options = webdriver.ChromeOptions()
        options.binary_location = browser
        for argument in ("--headless=new", "--no-sandbox", "--window-size=1400,900"):
            options.add_argument(argument)
        options.add_argument("--host-resolver-rules=MAP evil.example 127.0.0.1")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        chrome: Chrome = webdriver.Chrome(
            options=options, service=webdriver.ChromeService(executable_path=driver)
        )

        def open_page(url: str) -> Chrome:
            chrome.get(url)
            return chrome

        try:
            yield open_page
        finally:
            chrome.quit()

    def test_a_trace_as_it_comes(self, watch: Watch, open_page: Callable[[str], Chrome]) -> None:
        """Without a reload: the trace is in the list, its spans are in the waterfall, and a later one joins them."""
        chrome = open_page(watch.page)
        until("the empty page", lambda: watch.endpoint in text(chrome, "#flow"), PATIENCE)
        traffic = Traffic.to(watch.endpoint)
        trace_id = traffic.order()
        # Its first span comes last: the page may have looked in between.
        until("the trace", lambda: "POST /orders" in "".join(texts(chrome, "#list .row")), PATIENCE)
        assert len(texts(chrome, "#list .row")) == 1
        click(chrome, "#list .row")
        until("its spans", lambda: len(texts(chrome, "#trace button.span")) == 4, PATIENCE)
        rows = texts(chrome, "#trace button.span")
        assert [re.findall(r"SERVER|PRODUCER|CONSUMER|INTERNAL", row)[0] for row in rows] == [
            "SERVER",
            "PRODUCER",
            "CONSUMER",
            "INTERNAL",
        ]
        assert trace_id in text(chrome, "#trace")
        assert chrome.current_url.endswith(f"#{trace_id}")
        begin = (
            "return [...document.querySelectorAll('#trace .bar')].map((it) => it.getBoundingClientRect().x)"
        )
        begins = chrome.execute_script(begin)
        assert begins == sorted(begins)
        assert len(begins) == 4
        counted = ["4 spans", "1 trace", "0 orphans"]
        until("the counts", lambda: texts(chrome, "#counts .count") == counted, PATIENCE)
        chrome.get("about:blank")
        open_page(f"{watch.page}/#{trace_id}")
        until(
            "the same trace by its address", lambda: len(texts(chrome, "#trace button.span")) == 4, PATIENCE
        )
        assert complaints(chrome) == []

    def test_orphans(self, watch: Watch, open_page: Callable[[str], Chrome]) -> None:
        """They are counted, listed with their reason, drawn in the flow, and explained where one is opened."""
        traffic = Traffic.to(watch.endpoint)
        traffic.order()
        traffic.order(headers={})
        traffic.order(headers={"traceparent": "junk"})
        chrome = open_page(watch.page)
        until("the counts", lambda: "2 orphans" in text(chrome, "#counts"), PATIENCE)
        assert len(texts(chrome, "#list .row.bad")) == 2
        click(chrome, "#tab-orphans")
        assert texts(chrome, "#list .row .badge") == ["malformed context", "no context"]
        assert "1 malformed context" in text(chrome, "#destinations")
        assert len(texts(chrome, "#flow .edge.bad")) == 1
        assert "2 orphans" in text(chrome, "#flow .label.bad")
        assert set(texts(chrome, "#flow .node.service text")) == {"shop", "mailer"}
        click(chrome, "#list .row", 1)
        until("its spans", lambda: len(texts(chrome, "#trace button.span")) == 2, PATIENCE)
        assert len(texts(chrome, "#trace button.span.bad")) == 1
        click(chrome, "#trace button.span.bad")
        assert "the producer is not instrumented" in text(chrome, "#trace .details")
        assert "queueprop.context.reason" in text(chrome, "#trace .details")
        assert complaints(chrome) == []

    def test_search(self, watch: Watch, open_page: Callable[[str], Chrome]) -> None:
        """A part of a trace's id finds it; Enter opens the only one; another id finds nothing."""
        traffic = Traffic.to(watch.endpoint)
        ids = [traffic.order() for _ in range(3)]
        chrome = open_page(watch.page)
        until("the traces", lambda: len(texts(chrome, "#list .row")) == 3, PATIENCE)
        query = chrome.find_element("id", "query")
        query.send_keys(ids[1][4:24].upper())
        until("one alone", lambda: len(texts(chrome, "#list .row")) == 1, PATIENCE)
        query.send_keys("\n")
        until("it is open", lambda: ids[1] in text(chrome, "#trace"), PATIENCE)
        query.send_keys("xyz")
        until("none", lambda: "No trace has this" in text(chrome, "#list"), PATIENCE)

    def test_whatever_a_span_holds_is_text(self, watch: Watch, open_page: Callable[[str], Chrome]) -> None:
        """Names, attributes, destinations with HTML in them: nothing of it is an element, and nothing of it runs."""
        traffic = Traffic.to(watch.endpoint)
        traffic.order()
        traffic.order(headers={})
        chrome = open_page(watch.page)
        until("the traces", lambda: len(texts(chrome, "#list .row")) == 3, PATIENCE)
        for number in range(3):
            open_row(chrome, number)
            spans = len(texts(chrome, "#trace button.span"))
            for position in range(spans):
                click(chrome, "#trace button.span", position)
            assert len(texts(chrome, "#trace .details")) == spans > 0
        assert NASTY in text(chrome, "#destinations")
        assert NASTY in text(chrome, "#list")
        assert chrome.title == "queueprop watch"
        assert texts(chrome, "img") == []
        assert len(texts(chrome, "script")) == 1
        assert complaints(chrome) == []

    def test_other_sites(self, watch: Watch, open_page: Callable[[str], Chrome]) -> None:
        """A name that somebody else made to point here shows nothing; neither does a page of another origin read it."""
        trace_id = Traffic.to(watch.endpoint).order()
        port = watch.page.rpartition(":")[2]
        chrome = open_page(f"http://evil.example:{port}/api/traces/{trace_id}")
        assert text(chrome, "body") == "Invalid host header"
        read = f"""
            const done = arguments[arguments.length - 1];
            fetch("{watch.page}/api/traces/{trace_id}").then((it) => it.text()).then(done, () => done("refused"));
        """
        assert chrome.execute_async_script(read) == "refused"
        write = f"""
            const done = arguments[arguments.length - 1];
            const headers = {{ "Content-Type": "application/json" }};
            fetch("{watch.endpoint}/v1/traces", {{ method: "POST", body: "{{}}", headers }})
              .then(() => done("sent"), () => done("refused"));
        """
        assert chrome.execute_async_script(write) == "refused"

    def test_end(self, watch: Watch, open_page: Callable[[str], Chrome]) -> None:
        """It ends at once, with the page open, which says that it is not connected any more."""
        chrome = open_page(watch.page)
        until("the connection", lambda: text(chrome, "#connection") == "live", PATIENCE)
        begun = time.monotonic()
        end(watch)
        assert time.monotonic() - begun < 10
        until("the page's word", lambda: text(chrome, "#connection") == "not connected", PATIENCE)


def texts(chrome: Chrome, selector: str) -> list[str]:
    """What each of them shows: asked in one step, since the page draws itself anew at any time."""
    script = "return [...document.querySelectorAll(arguments[0])].map((it) => it.textContent)"
    shown: list[str] = chrome.execute_script(script, selector)
    return shown


def text(chrome: Chrome, selector: str) -> str:
    """What the first of them shows."""
    return texts(chrome, selector)[0]


def click(chrome: Chrome, selector: str, number: int = 0) -> None:
    chrome.execute_script("document.querySelectorAll(arguments[0])[arguments[1]].click()", selector, number)


def open_row(chrome: Chrome, number: int) -> None:
    """Another one than is open, with its spans."""
    before = text(chrome, "#trace")
    click(chrome, "#list .row", number)
    until("its spans", lambda: text(chrome, "#trace") != before, PATIENCE)


def complaints(chrome: Chrome) -> list[str]:
    """What the browser has against the page: errors of scripts, and all that its policy did not let through."""
    return [it["message"] for it in chrome.get_log("browser")]  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_terminal(watch: Watch, number: int) -> None:
    """Traces and orphans as text, the counts at the end, the status 0."""
    traffic = Traffic.to(watch.endpoint)
    trace_id = traffic.order()
    traffic.order(headers={})
    output = end(watch, number)
    assert f"listening on {watch.endpoint}" in output
    assert f"trace {trace_id}: 4 spans" in output
    assert output.count("✗ orphan: no context") == 1
    assert "8 spans, 3 traces, 1 orphan" in output
    assert "\x1b" not in output


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_program_in_another_language(watch: Watch, compression: str) -> None:
    """OpenTelemetry JS sends JSON: its spans are read, and its orphan is found by what its spans say."""
    try:
        node = Node()
    except Unavailable as reason:
        pytest.skip(str(reason))
    [told] = node.run("otlp.mjs", {"endpoint": watch.endpoint, "compression": compression})
    output = end(watch)
    assert f"trace {told['trace_id']}: 2 spans" in output
    assert output.count("CONSUMER process orders") == 2
    assert output.count("✗ orphan: no context") == 1
    assert "request refused" not in output


def test_everything_goes_on_to_a_collector() -> None:
    """A real Collector gets what came, and hands it on: every span, with nothing refused or dropped."""
    try:
        program = fetched("otelcol")
    except Unavailable as reason:
        pytest.skip(str(reason))
    with watching() as behind:
        exporter = {"endpoint": behind.endpoint, "sending_queue": {"block_on_overflow": True}}
        pipeline = {"receivers": ["otlp"], "exporters": ["otlp_http"]}
        configuration = {
            "receivers": {"otlp": {"protocols": {"http": {"endpoint": "${env:OTLP_HTTP}"}}}},
            "extensions": {"health_check": {"endpoint": "${env:HEALTH}"}},
            "exporters": {"otlp_http": exporter},
            "service": {"extensions": ["health_check"], "pipelines": {"traces": pipeline}},
        }
        with closing(Collector(program, [f"yaml:{json.dumps(configuration)}"])) as collector:
            collector.start()
            with watching("--forward", collector.url) as first:
                traffic = Traffic.to(first.endpoint)
                for _ in range(20):
                    traffic.order()
                until("all spans behind it", lambda: "80 spans, 20 traces" in counts(behind), PATIENCE)
                output = end(first)
        assert output.rstrip().endswith("80 spans handed on")
        assert "0 orphans" in end(behind)


def counts(watch: Watch) -> str:
    with urlopen(f"{watch.page}/events", timeout=PATIENCE) as stream:
        line = next(line for line in stream if line.startswith(b"data: "))
    told = json.loads(line[6:])
    return f"{told['received']} spans, {told['kept']['traces']} traces"


def test_junk(watch: Watch) -> None:
    """Bad input gets its 4xx, is counted, and what comes after it is taken."""
    for content, encoding, status in ((b"junk", "", 400), (b"junk", "gzip", 400), (bytes(17 << 20), "", 413)):
        headers = {"Content-Type": "application/x-protobuf", "Content-Encoding": encoding}
        with pytest.raises(HTTPError) as refusal:
            urlopen(Request(f"{watch.endpoint}/v1/traces", content, headers), timeout=PATIENCE)
        refusal.value.close()
        assert refusal.value.code == status
    Traffic.to(watch.endpoint).order()
    output = end(watch)
    assert "4 spans, 1 trace, 3 requests refused, 0 orphans" in output
    assert "Traceback" not in output
