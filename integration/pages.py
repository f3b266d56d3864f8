"""The code on the pages of the documentation: its blocks, and those that are files and commands of a quickstart."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).resolve().parent.parent / "docs"


class Block(NamedTuple):
    """One block of code: ```` ```python title="shop.py" ````."""

    language: str
    title: str | None
    text: str
    line: int
    """Of the page, at which the code begins."""


def blocks(page: Path) -> Iterator[Block]:
    """Those of a page, from its top."""
    text = page.read_text(encoding="utf-8")
    for found in _BLOCK.finditer(text):
        title = _TITLE.search(found["words"])
        line = text.count("\n", 0, found.start("code")) + 1
        yield Block(found["language"], title[1] if title else None, found["code"], line)


def files(page: Path) -> dict[str, str]:
    """The modules of a quickstart, by their names."""
    return {it.title: it.text for it in blocks(page) if it.title and it.title.endswith(".py")}


def command(page: Path, title: str) -> str:
    """The line of the one block with that title."""
    (found,) = [it.text.strip() for it in blocks(page) if it.title == title]
    return found


_BLOCK = re.compile(r"^```(?P<language>\w+)(?P<words>[^\n]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
_TITLE = re.compile(r'title="([^"]*)"')
