"""The pictures of the documentation, of real runs: `make pictures` writes docs/pictures/*.svg.

The demo runs in a process of its own, with queueprop and then without; what it prints is drawn as a terminal would
show it: one order whose mail is tried again, whole in one trace, and the same order in pieces, as far as anybody can
tell which they are. (The trace of the first attempt says that the mail server was busy; the second looks like any
other's.)
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from queueprop.cli.demo.screen import STYLES
from queueprop.cli.drawing import Painter

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "pictures"
WITH, WITHOUT = "With queueprop", "The same without queueprop"
BUSY = "milk for busy@example.com"
"""The order whose mail fails once and is tried again."""

PROGRAM = "import sys; from queueprop.cli import main; sys.exit(main())"
WIDTH = 146  # columns


def main(broker: str = "rq") -> int:
    output = subprocess.run(
        [
            sys.executable,
            "-c",
            PROGRAM,
            "demo",
            "--broker",
            broker,
        ],
        env={**os.environ, "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=180,
    ).stdout
    _, _, rest = output.partition(WITH)
    whole, _, broken = rest.partition(WITHOUT)
    FOLDER.mkdir(parents=True, exist_ok=True)
    draw("whole.svg", "with queueprop: one trace", trees(whole, of_the_busy_order(whole)))
    draw(
        "broken.svg",
        "without: the order ends at the queue, and its mail fails in another trace",
        in_pieces(broken),
    )
    return 0


def of_the_busy_order(run: str) -> list[str]:
    """The trace that the order's log line names."""
    return [line.partition("trace_id=")[2][:32] for line in run.splitlines() if line.endswith(BUSY)]


def trees(run: str, ids: Sequence[str]) -> list[str]:
    """The traces with these ids, a blank line after each."""
    found: list[str] = []
    for block in run.split("\n\n"):
        if any(block.lstrip().startswith(f"trace {it}") for it in ids):
            found += [*block.strip().splitlines(), ""]
    return found


def in_pieces(run: str) -> list[str]:
    """The order's trace, which ends at the queue, and that of the attempt that failed."""
    blocks = [
        block.strip().splitlines() for block in run.split("\n\n") if block.lstrip().startswith("trace ")
    ]
    failed = next(it for it in blocks if "mail server is busy" in "".join(it))
    return [*trees(run, of_the_busy_order(run)), *failed, ""]


def draw(name: str, title: str, lines: Sequence[str]) -> None:
    if not lines:
        raise SystemExit(f"the demo has printed no trace for {name}")
    console = Console(
        record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    painter = Painter(STYLES)
    for line in lines:
        console.print(painter.styled(line if len(line) <= WIDTH else line[: WIDTH - 1] + "…"), soft_wrap=True)
    # The id is the same for the same text, so that a picture changes only where the run did.
    svg = console.export_svg(title=title, unique_id=name.partition(".")[0])
    (FOLDER / name).write_text(svg, encoding="utf-8")
    print(f"docs/pictures/{name}: {len(lines)} lines")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
