"""``make torture``: everything around queueprop is broken on purpose, and what comes of it is counted.

    make torture                    all parts, in under three hours on two cores
    make torture-fuzz               one of them
    python -m integration.torture --short [part ...]      a form of minutes, which `make test-all` runs

The exit status is 0 where everything holds, 1 where something does not.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Iterator
from functools import partial
from importlib import import_module

from rich.console import Console

from .report import Row, Run, printed

PARTS: tuple[str, ...] = ("fuzz", "faults", "hostile", "soak", "celery_many", "concurrency", "trust")
"""Each is a module beside this one, with a function ``run`` as ``report.Run`` says."""


def main() -> int:
    arguments = argparse.ArgumentParser(prog="python -m integration.torture", description=__doc__)
    arguments.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)} (default: all)")
    arguments.add_argument("--short", action="store_true", help="in minutes")
    given = arguments.parse_args()
    for part in given.parts:
        if part not in PARTS:
            arguments.error(f"there is no part {part}: {', '.join(PARTS)}")
    console = Console(width=None if sys.stdout.isatty() else 180)  # a file has no edge to fold at
    return 0 if printed(_rows(tuple(given.parts) or PARTS, given.short, console), console) else 1


def _rows(parts: tuple[str, ...], is_short: bool, console: Console) -> Iterator[Row]:
    for part in parts:
        began = time.monotonic()
        yield from _rows_of(part, is_short, console)
        console.print(f"{part}: took {time.monotonic() - began:.0f} s", highlight=False)


def _rows_of(part: str, is_short: bool, console: Console) -> Iterator[Row]:
    """What brings a part down, such as a broker that does not start, costs the other parts nothing."""
    run: Run = import_module(f"{__package__}.{part}").run
    try:
        yield from run(is_short, partial(_say, console, part))
    except Exception as error:
        traceback.print_exc()
        yield Row(part, "all", "to its end", False, {type(error).__name__: str(error).partition("\n")[0]})


def _say(console: Console, part: str, text: str) -> None:
    console.print(f"{part}: {text}", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
