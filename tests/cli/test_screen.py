"""What the demo writes."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from queueprop.cli.demo.screen import Screen
from queueprop.cli.demo.verdict import Verdict
from queueprop.cli.drawing import fitted
from queueprop.testing.tree import Reference, SpanRecord, render_tree

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPANS = [
    SpanRecord(
        "publish emails",
        TRACE,
        "a1",
        kind="PRODUCER",
        end_ns=10,
        resource={"service.name": "order-service", "process.pid": 71},
    ),
    SpanRecord(
        "process emails",
        TRACE,
        "b1",
        kind="CONSUMER",
        parent=Reference(TRACE, "a1"),
        start_ns=10,
        end_ns=40,
        status="ERROR",
        status_description="no such mailbox: nobody@example.com",
        resource={"service.name": "notification-service", "process.pid": 72},
    ),
]


def _screen(width: int = 200, terminal: bool = False) -> tuple[Screen, io.StringIO]:
    output = io.StringIO()
    console = Console(
        file=output, width=width, force_terminal=terminal, color_system="standard" if terminal else None
    )
    return Screen(console), output


@pytest.mark.parametrize(
    ("width", "has_pid", "timeline"),
    [
        (None, True, 30),
        (200, True, 30),
        (118, True, 30),
        (117, True, 20),
        (107, False, 20),
        (95, False, 10),
        (88, False, 0),
    ],
)
def test_tree_fits(width: int | None, has_pid: bool, timeline: int) -> None:
    """The narrower the terminal, the less stands beside the names; no line is wider than it."""
    lines = fitted(SPANS, width)
    assert width is None or max(map(len, lines)) <= width
    assert ("pid 71" in lines[1]) == has_pid
    assert (lines[1].rindex("|") - lines[1].index("|") - 1 if "|" in lines[1] else 0) == timeline
    assert "ERROR" in lines[2]


def test_tree_in_a_terminal_that_is_too_narrow() -> None:
    """Nothing is cut where nothing fits: the terminal wraps."""
    assert fitted(SPANS, 40)[2].endswith("nobody@example.com")


def test_plain_text_is_that_of_render_tree() -> None:
    """Without a terminal the tree is render_tree's, neither cut, nor wrapped, nor coloured."""
    screen, output = _screen(width=20)
    screen.traces(SPANS, {})
    assert output.getvalue() == f"\n{render_tree(SPANS, timeline=30)}\n\n"


def test_colours_do_not_change_the_text() -> None:
    """On a terminal the same text has colours."""
    screen, output = _screen(terminal=True)
    screen.traces(SPANS, {})
    assert "\x1b[" in output.getvalue()
    assert Console().render_str(output.getvalue()) is not None
    from rich.text import Text

    assert Text.from_ansi(output.getvalue()).plain.strip() == render_tree(SPANS, timeline=30)


def test_orphans_are_marked() -> None:
    """Below a delivery that is orphaned stands why."""
    screen, output = _screen(terminal=True)
    screen.traces(SPANS, {(TRACE, "b1"): "no context"})
    assert "\x1b[1;31m✗ orphan: no context" in output.getvalue()


def test_log_lines_with_their_trace_id() -> None:
    """Log lines of the services are shown, inside of a span and outside; what else they print is not."""
    screen, output = _screen()
    screen.log("order-service", f"INFO trace_id={TRACE} ordered: tea")
    screen.log("notification-service", "INFO trace_id= confirming tea")
    screen.log("notification-service", "INFO trace_id= waiting for messages")
    screen.log("notification-service", "Traceback (most recent call last):")
    assert output.getvalue().splitlines() == [
        f"  order-service         INFO trace_id={TRACE} ordered: tea",
        "  notification-service  INFO trace_id= confirming tea",
    ]


def test_trace_has_the_colour_of_its_log_lines() -> None:
    """A trace id has one colour wherever it stands, and the next trace another."""
    screen, output = _screen(terminal=True)
    screen.log("x", f"INFO trace_id={TRACE} one")
    screen.log("x", f"INFO trace_id={'a' * 32} two")
    screen.log("x", f"INFO trace_id={TRACE} three")
    one, two, three = (line.partition("trace_id=")[2][:5] for line in output.getvalue().splitlines())
    assert one == three != two


@pytest.mark.parametrize(("width", "longest"), [(110, 110), (60, 120)])
def test_long_log_lines_are_cut_on_a_terminal(width: int, longest: int) -> None:
    """A log line is one row of a terminal, or two of a narrow one, with its trace id."""
    from rich.text import Text

    screen, output = _screen(width=width, terminal=True)
    screen.log("x", f"ERROR trace_id={TRACE} {'long ' * 40}")
    (line,) = Text.from_ansi(output.getvalue()).plain.splitlines()
    assert len(line) == longest
    assert TRACE in line


def test_comparison() -> None:
    """Both runs stand beside one another."""
    screen, output = _screen()
    screen.headline("Both")
    screen.step("counting")
    screen.comparison([Verdict(5, 6, 6, 0, 5), Verdict(5, 6, 6, 6, 11)])
    rows = [line.replace("│", " ").split() for line in output.getvalue().splitlines() if "│" in line]
    assert ["traces", "5", "11"] in rows
    assert ["orphans", "0", "6"] in rows


@pytest.mark.parametrize(
    ("verdict", "colour"), [(Verdict(5, 6, 6, 0, 5), "32"), (Verdict(5, 6, 6, 6, 11), "31")]
)
def test_verdict(verdict: Verdict, colour: str) -> None:
    """Green where all is whole, else red."""
    screen, output = _screen(terminal=True)
    screen.verdict(verdict, ": because.")
    screen.error("and this")
    assert f"\x1b[1;{colour}m{verdict}\x1b[0m: because." in output.getvalue()
