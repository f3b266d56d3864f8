"""The command: what it writes, and how it ends."""

from __future__ import annotations

import io
import re
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any
from urllib.request import Request, urlopen

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from rich.console import Console
from rich.text import Text

from queueprop.cli import drawing, main
from queueprop.cli.watch import run, screen
from queueprop.cli.watch.forward import Forward
from queueprop.cli.watch.otlp import Missing, RawSpan
from queueprop.cli.watch.receiver import Receiver, listen
from queueprop.cli.watch.run import Options
from queueprop.cli.watch.screen import Screen
from tests.otlp import REMOTE, process, publish, request, span

PROTOBUF = {"Content-Type": "application/x-protobuf"}


def add(receiver: Receiver, *spans: Span) -> None:
    resource = request(service="shop").resource_spans[0].resource.SerializeToString()
    receiver.store.add([RawSpan(it, it.SerializeToString(), resource) for it in spans])


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as one:
        yield one


def console(terminal: bool = False, width: int = 200) -> tuple[Console, io.StringIO]:
    output = io.StringIO()
    return Console(file=output, width=width, force_terminal=terminal, highlight=False), output


class TestScreen:
    """What is written while spans come."""

    def test_traces_and_table(self, receiver: Receiver) -> None:
        """Each trace as a tree, its orphans with the reason; at the end what each destination has."""
        into, output = console()
        with Screen(into, receiver) as shown:
            add(receiver, publish(1, 1), process(1, 2, parent=1, flags=REMOTE), process(2, 1, "junk"))
            shown.update(quiet=0)
            text = output.getvalue()
        assert f"listening on {receiver.endpoint}" in text
        assert f"trace {1:032x}: 2 spans" in text
        assert "└─ CONSUMER process orders" in text
        assert text.count("✗ orphan") == 1
        assert "CONSUMER process junk" in text
        assert "✗ orphan: no context" in text
        assert "destination" not in text  # no terminal: once, at the end
        rest = output.getvalue()[len(text) :]
        rows = [line.replace("│", " ").split() for line in rest.splitlines() if "│" in line]
        assert rows == [
            ["junk", "(rabbitmq)", "0", "1", "1", "no", "context"],
            ["orders", "(rabbitmq)", "1", "1", "0"],
        ]
        assert rest.strip().endswith("3 spans, 2 traces, 1 orphan")

    def test_on_a_terminal(self, receiver: Receiver) -> None:
        """Colours; the table stands below all the time, and is not wider than the terminal."""
        into, output = console(terminal=True, width=80)
        with Screen(into, receiver, "http://127.0.0.1:1") as shown:
            add(receiver, process(1, 1, "a long name of a queue " * 5))
            shown.update(quiet=0)
            assert "deliveries" in output.getvalue()
        assert "\x1b[1;31m✗ orphan: no context" in output.getvalue()
        assert "as a page: http://127.0.0.1:1" in Text.from_ansi(output.getvalue()).plain

    def test_nothing_came(self, receiver: Receiver) -> None:
        """No table of nothing."""
        into, output = console()
        with Screen(into, receiver):
            pass
        assert output.getvalue().strip().endswith("0 spans, 0 traces, 0 orphans")
        assert "destination" not in output.getvalue()

    def test_too_many_at_once(self, receiver: Receiver) -> None:
        """Nobody reads hundreds: some are shown, broken ones first, and the others are counted."""
        into, output = console()
        with Screen(into, receiver) as shown:
            add(receiver, *(span("whole", number, 1) for number in range(1, 13)), process(99, 1))
            shown.update(quiet=0)
            text = output.getvalue()
            assert text.count("\ntrace ") == screen.MOST_TRACES
            assert "process orders" in text
            assert "… 3 more traces, without an orphan, came at the same time" in text
            add(receiver, *(process(number, 2) for number in range(1, 12)))
            shown.update(quiet=0)
            assert "… 1 more trace, with 1 orphan, came at the same time" in output.getvalue()

    def test_large_and_deep_trace(self, receiver: Receiver) -> None:
        """The first spans are drawn, however deep they lie, and the others counted."""
        into, output = console()
        with Screen(into, receiver) as shown:
            add(receiver, *(span("x", 1, number, parent=number - 1 or None) for number in range(1, 1001)))
            shown.update(quiet=0)
        assert output.getvalue().count("INTERNAL x") == screen.MOST_SPANS
        assert "… 800 more spans of this trace" in output.getvalue()

    def test_many_destinations(self, receiver: Receiver) -> None:
        """The table is no longer than a terminal."""
        into, output = console()
        add(receiver, *(publish(1, number, f"queue {number}") for number in range(1, 21)))
        with Screen(into, receiver):
            pass
        assert "… 8 more" in output.getvalue()

    def test_what_is_not_here(self, receiver: Receiver) -> None:
        """What was refused, rejected, no longer kept; what the metric tells beyond the spans."""
        into, output = console()
        receiver.store.refuse()
        receiver.store.add([], rejected=2)
        receiver.store.evicted, receiver.store.unshown = 1000, 5
        add(receiver, process(1, 1))
        receiver.store.add_missing([Missing((1,), ("rabbitmq", "orders"), "missing", 5, False)])
        with Screen(into, receiver):
            pass
        assert "1,000 older traces no longer kept, 5 traces of them never shown here" in output.getvalue()
        assert "1 request refused, 2 spans rejected" in output.getvalue()
        assert "1 no context  (by its metric: 5 no context)" in output.getvalue()

    def test_forward(self) -> None:
        """What went on, and what did not."""
        into, output = console()
        with Receiver(Forward.to_collector("http://127.0.0.1:1", {})) as receiver:
            assert receiver.forwarder is not None
            receiver.forwarder.sent, receiver.forwarder.dropped = 5, 1
            with Screen(into, receiver):
                pass
            receiver.forwarder.failure = "no spans went there"
            with Screen(into, receiver):
                pass
        assert "5 spans handed on, 1 span dropped" in output.getvalue()
        assert output.getvalue().strip().endswith("no spans went there")

    def test_nothing_of_a_span_steers_the_terminal(self, receiver: Receiver) -> None:
        """Escape sequences in names, messages, services, destinations stay text."""
        into, output = console()
        nasty = "\x1b]0;owned\x07\x1b[2J[bold]"
        broken = process(1, 1, nasty, error=True, **{"error.type": nasty, "messaging.system": nasty})
        broken.status.message = nasty
        raw = request(service=nasty, **{"process.pid": nasty}).resource_spans[0].resource.SerializeToString()
        receiver.store.add([RawSpan(broken, broken.SerializeToString(), raw)])
        receiver.store.add_missing([Missing((1,), ("x", nasty), nasty, 5, False)])
        with Screen(into, receiver):
            pass
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f]", output.getvalue())
        assert "[bold]" in output.getvalue()

    def test_colours_do_not_pile_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """For how many trace ids a colour is remembered is bounded."""
        monkeypatch.setattr(drawing, "_MOST_COLOURED", 2)
        painter = drawing.Painter()
        for number in range(5):
            painter.styled(f"trace {number:032x}")
        assert len(painter._colours) <= 2


class TestCommand:
    """From its start to its end."""

    @pytest.fixture
    def sleeps(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
        """Instead of its first sleep something is done; its second one is ended by Ctrl-C."""

        def at_first(act: Callable[[], None]) -> None:
            acts: Iterator[Callable[[], None]] = iter([act, lambda: signal.raise_signal(signal.SIGINT)])

            def sleep(seconds: float) -> None:
                next(acts)()

            monkeypatch.setattr(run, "sleep", sleep)

        return at_first

    def test_whole(self, sleeps: Any) -> None:
        """It listens, shows, hands on, and ends with Ctrl-C and the status 0; what came last is shown, too."""
        into, output = console()

        def send() -> None:
            text = output.getvalue()
            endpoint, page = re.findall(r"http://127\.0\.0\.1:\d+", text)
            body = request(process(1, 1)).SerializeToString()
            urlopen(Request(f"{endpoint}/v1/traces", body, PROTOBUF), timeout=60).close()
            with urlopen(page, timeout=60) as response:
                assert b"queueprop" in response.read()

        sleeps(send)
        with Receiver() as collector:
            options = Options(port=0, web=True, web_port=0, forward=collector.endpoint)
            assert run.main(options, {}, into) == 0
            assert collector.store.orphaned == 1
        assert "✗ orphan: no context" in output.getvalue()
        assert output.getvalue().strip().endswith("1 span handed on")

    def test_without_a_page(self, sleeps: Any) -> None:
        """The page is there only where it is asked for."""
        into, output = console()
        sleeps(lambda: None)
        assert run.main(Options(port=0), {}, into) == 0
        assert output.getvalue().count("http://") == 1

    def test_standard_output(self, sleeps: Any, capsys: pytest.CaptureFixture[str]) -> None:
        """Without a console of somebody's it is the process's own."""
        sleeps(lambda: None)
        assert run.main(Options(port=0), {}) == 0
        assert "listening on http://127.0.0.1:" in capsys.readouterr().out

    def test_port_that_is_taken(self, capsys: pytest.CaptureFixture[str]) -> None:
        """One line, and the status 1."""
        with listen("127.0.0.1", 0) as taken:
            port = taken.getsockname()[1]
            assert run.main(Options(port=port), {}, console()[0]) == 1
            assert run.main(Options(port=0, web=True, web_port=port), {}, console()[0]) == 1
        line = f"queueprop watch: cannot listen on 127.0.0.1:{port}: Address already in use"
        assert capsys.readouterr().err.splitlines() == [line, line]

    @pytest.mark.parametrize(
        ("url", "why"),
        [
            ("c:4318", "it wants http://host:port or https://host:port"),
            ("http://localhost:4318", "that is where it listens itself"),
            ("http://[::1]:4318/v1/traces", "that is where it listens itself"),
        ],
    )
    def test_forward_that_cannot_be(self, url: str, why: str, capsys: pytest.CaptureFixture[str]) -> None:
        """It is told before anything is listened on."""
        assert run.main(Options(forward=url), {}, console()[0]) == 1
        assert capsys.readouterr().err == f"queueprop watch: --forward {url}: {why}\n"

    def test_forward_without_a_port(self) -> None:
        """That of its scheme; another machine's port may be the same."""
        for url in ("https://collector", "http://collector:4318"):
            forward = run._forward(Options(forward=url), {})
            assert forward is not None
            assert forward.url == f"{url}/v1/traces"

    def test_options(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The command line's are the run's, and its status is the command's."""
        asked: list[Options] = []

        def told(options: Options) -> int:
            asked.append(options)
            return 1

        monkeypatch.setattr(run, "main", told)
        for arguments, options in (
            ([], Options("127.0.0.1", 4318, False, 4319, None)),
            (
                ["--host", "::", "--port", "1", "--web", "--web-port", "2", "--forward", "http://c"],
                Options("::", 1, True, 2, "http://c"),
            ),
        ):
            with pytest.raises(SystemExit) as end:
                main(["watch", *arguments])
            assert (end.value.code, asked.pop()) == (1, options)

    @pytest.mark.parametrize("module", ["rich", "sse_starlette", "google.rpc"])
    def test_without_what_it_needs(
        self, module: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One line names what is missing and what to install; the status is 2."""
        for name in [name for name in sys.modules if name == module or name.startswith(f"{module}.")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(SystemExit) as end:
            main(["watch"])
        assert end.value.code == 2
        assert capsys.readouterr().err == f'queueprop watch needs {module}: pip install "queueprop[watch]"\n'
