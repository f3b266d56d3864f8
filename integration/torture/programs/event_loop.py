"""A loop for publishers that are coroutines, which runs while they publish."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

LONGEST = 30.0
"""Seconds that one publish may take; longer is a failure of it."""


@contextmanager
def connected(
    make: Callable[[], Awaitable[tuple[Callable[[str], Any], Callable[[], Any]]]],
) -> Iterator[Callable[[str], object]]:
    """``make`` connects and gives the coroutine functions that publish and close."""
    loop = asyncio.new_event_loop()
    try:
        publish, close = loop.run_until_complete(asyncio.wait_for(make(), LONGEST))
        try:
            yield lambda body: loop.run_until_complete(asyncio.wait_for(publish(body), LONGEST))
        finally:
            loop.run_until_complete(asyncio.wait_for(close(), LONGEST))
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
