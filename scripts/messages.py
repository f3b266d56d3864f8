"""What the package says to people, read out of its source: docs/messages.md has to have all of it."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).resolve().parent.parent
SAY = ("mistake", "slip", "say", "refused", "_say_of_variable")
RAISED = ("TypeError", "ValueError", "MissingExtra", "MissingSDK", "ModuleNotFoundError")

NOT_FOR_PEOPLE = (
    "cli/",
    "testing/tree.py",
    "wire/propagation.py",
    "engine/telemetry.py",
    "bullmq/publishing.py",
)
"""The demo; what is raised inside and told otherwise; what the library is about to say itself."""


class Said(NamedTuple):
    """One place in the source that says something."""

    place: str
    parts: tuple[str, ...]
    """What is constant in it, between the names and values."""


def said() -> Iterator[Said]:
    """All of the package, in the order of files and lines."""
    for folder in ("queueprop", "adapters"):
        for path in sorted((CHECKOUT / folder).rglob("*.py")):
            name = path.relative_to(CHECKOUT).as_posix()
            if "queueprop/adapters/" in name:  # a symbolic link to the other folder
                continue
            yield from _said_in(name, ast.parse(path.read_text(encoding="utf-8")))


def _said_in(name: str, tree: ast.Module) -> Iterator[Said]:
    constants = _constants(tree)
    hidden = any(part in name for part in NOT_FOR_PEOPLE)
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Call, ast.Raise)):
            continue
        texts: list[ast.expr] = []
        if isinstance(node, ast.Call) and _name_of(node.func) in SAY:
            texts = node.args[:2]
        elif isinstance(node, ast.Call) and _name_of(node.func) == "log" and _is_warning(node):
            texts = node.args[1:2]
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and not hidden:
            texts = node.exc.args[:1] if _name_of(node.exc.func) in RAISED else []
        parts = tuple(part for text in texts for part in _parts(text, constants) if _is_telling(part))
        if parts and not name.startswith("queueprop/cli/"):
            yield Said(f"{name}:{node.lineno}", parts)


def _constants(tree: ast.Module) -> Mapping[str, ast.expr]:
    """What the module's names stand for."""
    return {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _parts(text: ast.expr, constants: Mapping[str, ast.expr]) -> Iterator[str]:
    if isinstance(text, ast.Constant) and isinstance(text.value, str):
        yield from text.value.replace("%r", "%s").replace("%g", "%s").replace("%d", "%s").split("%s")
    elif isinstance(text, ast.JoinedStr):
        for value in text.values:
            yield from _parts(value, constants)
    elif isinstance(text, (ast.BinOp, ast.IfExp, ast.FormattedValue, ast.Call)):
        for child in ast.iter_child_nodes(text):
            if isinstance(child, ast.expr):
                yield from _parts(child, constants)
    elif isinstance(text, ast.Name) and text.id in constants:
        yield from _parts(constants[text.id], constants)


def _is_telling(part: str) -> bool:
    """Whether it is more than a joint between two values."""
    return len(part.split()) >= 3


def _is_warning(call: ast.Call) -> bool:
    return any(getattr(it, "attr", "") == "WARNING" for it in ast.walk(call.args[0])) if call.args else False


def _name_of(function: ast.expr) -> str:
    return str(getattr(function, "attr", None) or getattr(function, "id", ""))
