"""The command itself: listen, show, until somebody stops it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from time import sleep
from typing import NamedTuple
from urllib.parse import urlsplit

from rich.console import Console

from queueprop.cli.demo.signals import Stopped, StopSignals
from queueprop.cli.watch.forward import Forward
from queueprop.cli.watch.page import Page
from queueprop.cli.watch.receiver import Bound, Receiver, is_local, listen
from queueprop.cli.watch.screen import Screen

_EVERY = 0.5
"""Seconds between two looks at what has come."""


class Options(NamedTuple):
    host: str = "127.0.0.1"
    port: int = 4318
    web: bool = False
    web_port: int = 4319
    forward: str | None = None


def main(options: Options, environ: Mapping[str, str] = os.environ, console: Console | None = None) -> int:
    """Runs until a signal comes, and returns the exit status: 0, or 1 where it cannot listen."""
    if console is None:
        # Not every terminal has the characters of the tree.
        with contextlib.suppress(AttributeError):
            sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
        console = Console(highlight=False)
    with StopSignals() as signals:
        try:
            _watch(options, environ, console, signals)
        except Stopped:
            pass  # nothing else ends it
        except (OSError, ValueError) as error:
            print(f"queueprop watch: {error}", file=sys.stderr)
            return 1
    return 0


def _watch(options: Options, environ: Mapping[str, str], console: Console, signals: StopSignals) -> None:
    forward = _forward(options, environ)
    page = Page() if options.web else None
    beside = [Bound(page.app, listen("127.0.0.1", options.web_port))] if page is not None else []
    receiver = Receiver(forward, options.host, options.port, beside=beside)
    if page is not None:
        page.show(receiver)
    # The screen is the last to end: it says what was dropped when the receiver did.
    with Screen(console, receiver, beside[0].url if beside else None) as screen, receiver:
        try:
            while True:
                sleep(_EVERY)
                with signals.held():
                    screen.update()
        finally:
            if page is not None:
                page.stop()


def _forward(options: Options, environ: Mapping[str, str]) -> Forward | None:
    """Raises ValueError for a URL that is none, or that is this one's own."""
    if options.forward is None:
        return None
    forward = Forward.to_collector(options.forward, environ)
    target = urlsplit(forward.url)
    port = target.port or {"http": 80, "https": 443}[target.scheme]
    if port == options.port and is_local(target.hostname or ""):
        raise ValueError(f"--forward {options.forward}: that is where it listens itself")
    return forward
