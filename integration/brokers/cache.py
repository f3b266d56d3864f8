"""What is fetched once and kept between runs, in ``~/.cache/queueprop``."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "queueprop"


def cached(name: str, fetch: Callable[[Path], None]) -> Path:
    """The folder of this name; where it is not there yet, ``fetch`` is given one to fill."""
    kept = home() / name
    if kept.is_dir():
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    # Beside it, and moved as a whole: another process of the tests may fetch it, too.
    fetched = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=kept.parent))
    try:
        fetch(fetched)
        if not kept.is_dir():
            fetched.rename(kept)
    finally:
        shutil.rmtree(fetched, ignore_errors=True)
    return kept
