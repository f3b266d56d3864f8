"""The documentation tells what is so: its code is of the right types, and nothing that people see is left out."""

from __future__ import annotations

import ast
import builtins
import pkgutil
import re
import subprocess
import symtable
import sys
import textwrap
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from pytest_examples import CodeExample, find_examples

from integration.pages import Block, blocks
from scripts.messages import said

CHECKOUT = Path(__file__).resolve().parent.parent.parent
DOCS = CHECKOUT / "docs"
README = CHECKOUT / "README.md"
PAGES = [README, *sorted(DOCS.rglob("*.md"))]


def _named(path: Path) -> str:
    return path.relative_to(CHECKOUT).as_posix()


def test_code_on_the_pages_is_of_the_right_types(tmp_path: Path) -> None:
    """Every Python block is checked by mypy against what is installed; names that it does not make are Any."""
    places = {}
    for number, example in enumerate(find_examples(README, DOCS)):
        module = tmp_path / f"block_{number}.py"
        places[module.name] = f"{_named(example.path)}:{example.start_line}"
        module.write_text(_as_module(example), encoding="utf-8")
    assert len(places) > 50
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file=",
        "--ignore-missing-imports",
        "--check-untyped-defs",
    ]
    silent = ["--no-error-summary", "--follow-imports=silent"]
    result = subprocess.run(
        [*command, *silent, *sorted(places)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    told = re.sub(r"block_\d+\.py", lambda found: f"{places[found[0]]}, line", result.stdout)
    assert result.returncode == 0, told + result.stderr


def _as_module(example: CodeExample) -> str:
    body = example.source
    outside = _outside_of_functions(ast.parse(body))
    if any(isinstance(it, (ast.Await, ast.AsyncFor, ast.AsyncWith)) for it in outside):
        body = "async def _block() -> None:\n" + textwrap.indent(body, "    ")
    names = _free_names(symtable.symtable(body, "block", "exec"))
    declared = "".join(f"{name}: Any = None\n" for name in sorted(names - set(dir(builtins))))
    return f"from typing import Any\n\n{declared}\n{body}"


def _free_names(module: symtable.SymbolTable) -> set[str]:
    """What a block uses and has not made: a channel, a queue, a handler."""
    made = {it.get_name() for it in module.get_symbols() if it.is_assigned() or it.is_imported()}
    scopes, used = [module], set[str]()
    while scopes:
        scope = scopes.pop()
        scopes += scope.get_children()
        used |= {it.get_name() for it in scope.get_symbols() if it.is_referenced() and it.is_global()}
    return used - made


def _outside_of_functions(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield child
            yield from _outside_of_functions(child)


COMMANDS = [
    pytest.param(block, id=f"{_named(page)}:{block.line}")
    for page in PAGES
    for block in blocks(page)
    if block.language == "sh"
]


@pytest.mark.parametrize("block", COMMANDS)
def test_commands_on_the_pages_are_there(block: Block) -> None:
    """Extras that are installed are extras, `make` makes what the Makefile has, and modules are in the checkout."""
    known = set(metadata.metadata("queueprop").get_all("Provides-Extra") or [])
    for extras in re.findall(r"queueprop\[([\w,-]+)\]", block.text):
        assert set(extras.split(",")) <= known
    makefile = (CHECKOUT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make ([\w-]+)", block.text, re.MULTILINE):
        assert re.search(rf"^[\w \-]*\b{target}\b[\w \-]*:", makefile, re.MULTILINE)


def test_every_message_is_explained() -> None:
    """What the package says to people, in warnings and errors, is on the page that says what to do, word for word."""
    page = _plain((DOCS / "messages.md").read_text(encoding="utf-8"))
    found = list(said())
    assert len(found) > 50
    missing = [
        f"{one.place}: {part.strip()}"
        for one in found
        for part in one.parts
        if _plain(part).strip(" ;:,.") not in page
    ]
    assert missing == []


def test_every_variable_is_explained() -> None:
    """Each setting that the environment has is in the table of settings."""
    page = (DOCS / "settings.md").read_text(encoding="utf-8")
    source = (CHECKOUT / "queueprop" / "settings.py").read_text(encoding="utf-8")
    names = re.findall(r"^    (\w+): .* = _setting\(", source, re.MULTILINE)
    assert len(names) > 10
    assert [name for name in names if f"| `QUEUEPROP_{name.upper()}` |" not in page] == []


@pytest.mark.parametrize(
    "library", sorted(it.name for it in pkgutil.iter_modules([str(CHECKOUT / "adapters")]))
)
def test_every_library_has_a_page(library: str) -> None:
    """With a quickstart, in the table of the README and on the first page, and in the reference."""
    name = library.replace("_", "-")
    page = DOCS / "libraries" / f"{name}.md"
    assert {"install", "the screen", "the worker", "a publish"} <= {block.title for block in blocks(page)}
    assert f"(docs/libraries/{name}.md)" in README.read_text(encoding="utf-8")
    assert f"(libraries/{name}.md)" in (DOCS / "index.md").read_text(encoding="utf-8")
    assert f"queueprop.adapters.{library}\n" in (DOCS / "reference" / "adapters.md").read_text(
        encoding="utf-8"
    )


def test_the_readme_is_one_screen_of_why() -> None:
    """Short, the demo first, and what it links to is there."""
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 130
    first = next(block for block in blocks(README) if block.language == "sh")
    assert first.text.startswith('uvx --from "queueprop[demo]" queueprop demo\n')
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (CHECKOUT / link).exists(), link


def test_pages_are_found_from_the_navigation() -> None:
    """A page that nobody is led to is not read, and one that is not there is no page."""
    nav = yaml.safe_load((CHECKOUT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    named = set(re.findall(r"[\w/-]+\.md", str(nav)))
    there = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    assert there - named == set()
    assert named - there <= {"trust.md"}


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text)


@pytest.mark.parametrize(("picture", "traces", "consumers"), [("whole", 1, 2), ("broken", 2, 0)])
def test_pictures_show_what_the_page_says(picture: str, traces: int, consumers: int) -> None:
    """Of a run with queueprop one trace with both attempts; without, two that have nothing in common."""
    drawn = (DOCS / "pictures" / f"{picture}.svg").read_text(encoding="utf-8").replace("&#160;", " ")
    assert len(set(re.findall(r"\b[0-9a-f]{32}\b", drawn))) == traces
    assert drawn.count("CONSUMER") == consumers
    assert "ConnectionError" in drawn
