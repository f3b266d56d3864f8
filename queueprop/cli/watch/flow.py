"""What flows between services and queues, laid out as a picture: places of boxes and curves, in pixels.

A layout of a few boxes in columns is less than any library for graphs would bring along.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from queueprop.cli.watch.store import Store

MOST_NODES = 40

_WIDTH, _HEIGHT, _GAP_X, _GAP_Y, _MARGIN = 180, 48, 110, 30, 16


class Node(NamedTuple):
    """A box."""

    kind: str
    """``service`` or ``queue``."""
    name: str
    system: str = ""
    """Of a queue."""


class _Edge(NamedTuple):
    source: Node
    target: Node
    messages: int
    orphans: int


def picture(store: Store) -> dict[str, Any]:
    """The boxes and the curves between them; those with the most messages, where there are too many."""
    edges = _edges(store)
    busiest: Counter[Node] = Counter()
    for edge in edges:
        busiest[edge.source] += edge.messages
        busiest[edge.target] += edge.messages
    shown = {node for node, _ in busiest.most_common(MOST_NODES)}
    edges = [edge for edge in edges if edge.source in shown and edge.target in shown]
    places = _places(sorted(shown), edges)
    boxes = [(node, places[node]) for node in sorted(shown)]
    return {
        "width": max((x for _, (x, _) in boxes), default=0) + _WIDTH + _MARGIN,
        "height": max((y for _, y in places.values()), default=0) + _HEIGHT + _GAP_Y + _MARGIN,
        "nodes": [
            {
                "kind": node.kind,
                "name": node.name,
                "system": node.system,
                "x": x,
                "y": y,
                "width": _WIDTH,
                "height": _HEIGHT,
            }
            for node, (x, y) in boxes
        ],
        "edges": [_curve(edge, places) for edge in edges],
        "left_out": len(busiest) - len(shown),
    }


def _edges(store: Store) -> list[_Edge]:
    with store.lock:
        flows = dict(store.flows)
        orphaned = dict(store.orphaned_flows)
    return sorted(
        _Edge(_node(kind, 0, source), _node(kind, 1, target), count, orphaned.get((source, target), 0))
        for (kind, source, target), count in flows.items()
    )


_ENDS = {"publish": ("service", "queue"), "deliver": ("queue", "service"), "route": ("queue", "queue")}


def _node(flow: str, end: int, name: Any) -> Node:
    kind = _ENDS[flow][end]
    return Node(kind, name) if kind == "service" else Node(kind, name[1], name[0])


def _places(nodes: Sequence[Node], edges: Sequence[_Edge]) -> dict[Any, tuple[float, float]]:
    """Of each box its upper left corner; and of each column that an edge crosses, the place that is left for it."""
    columns = _columns(nodes, edges)
    rows: dict[int, list[Any]] = {}
    for node in nodes:
        rows.setdefault(columns[node], []).append(node)
    before: dict[Any, list[Any]] = {}
    for edge in edges:
        crossed = _crossed(edge, columns)
        for step in crossed:
            rows[step[1]].append(step)
        steps: list[Any] = [edge.source, *crossed, edge.target]
        for one, other in pairwise(steps):
            before.setdefault(other, []).append(one)
    tallest = max(map(len, rows.values()), default=0)
    places: dict[Any, tuple[float, float]] = {}
    for column, found in sorted(rows.items()):
        # Near those that lead to it, so that few curves cross.
        found.sort(key=lambda step: _mean([places[it][1] for it in before.get(step, ()) if it in places]))
        top = _MARGIN + (tallest - len(found)) * (_HEIGHT + _GAP_Y) / 2
        for row, step in enumerate(found):
            places[step] = _MARGIN + column * (_WIDTH + _GAP_X), top + row * (_HEIGHT + _GAP_Y)
    return places


def _crossed(edge: _Edge, columns: Mapping[Node, int]) -> list[tuple[_Edge, int]]:
    return [(edge, column) for column in range(columns[edge.source] + 1, columns[edge.target])]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0


def _columns(nodes: Sequence[Node], edges: Iterable[_Edge]) -> dict[Node, int]:
    """Each box behind the last of those that lead to it, as far as they are not in a circle."""
    targets: dict[Node, list[Node]] = {node: [] for node in nodes}
    for edge in edges:
        targets[edge.source].append(edge.target)
    entered = {target for found in targets.values() for target in found}
    columns = dict.fromkeys(targets, 0)
    # Those that nothing leads to are the beginnings; of a circle the first service is.
    order = _depth_first(
        sorted(targets, key=lambda node: (node in entered, node.kind != "service", node)), targets
    )
    place = {node: number for number, node in enumerate(order)}
    for node in order:
        for target in targets[node]:
            if place[target] > place[node]:
                columns[target] = max(columns[target], columns[node] + 1)
    for node in order:
        if node not in entered:  # not farther from what it leads to than it has to be
            columns[node] = max(0, min((columns[target] for target in targets[node]), default=0) - 1)
    return columns


def _depth_first(starts: Iterable[Node], targets: Mapping[Node, Sequence[Node]]) -> list[Node]:
    """All of them, each before those that it leads to (but for circles)."""
    done: set[Node] = set()
    found: list[Node] = []
    for start in starts:
        stack = [] if start in done else [(start, iter(targets[start]))]
        done.add(start)
        while stack:
            node, left = stack[-1]
            following = next((it for it in left if it not in done), None)
            if following is None:
                found.append(node)
                stack.pop()
            else:
                done.add(following)
                stack.append((following, iter(targets[following])))
    return found[::-1]


def _curve(edge: _Edge, places: Mapping[Any, tuple[float, float]]) -> dict[str, Any]:
    (x1, y1), (x2, y2) = places[edge.source], places[edge.target]
    half = _HEIGHT / 2
    if x2 > x1:
        y1, y2 = y1 + half, y2 + half
        path, x, y = f"M{x1 + _WIDTH:g},{y1:g}", x1 + _WIDTH, y1
        ends = [(place[0], place[1] + half) for step, place in places.items() if _is_of(step, edge)]
        for end_x, end_y in sorted(ends):
            path += f" {_to(x, y, end_x, end_y)} H{end_x + _WIDTH:g}"
            x, y = end_x + _WIDTH, end_y
        path += f" {_to(x, y, x2, y2)}"
        label = (x + x2) / 2, (y + y2) / 2 - 6
    else:  # back, below the boxes
        x1, x2 = x1 + _WIDTH / 2, x2 + _WIDTH / 2
        y1, y2 = y1 + _HEIGHT, y2 + _HEIGHT
        low = max(y1, y2) + _GAP_Y
        path = f"M{x1:g},{y1:g} C{x1:g},{low:g} {x2:g},{low:g} {x2:g},{y2:g}"
        label = (x1 + x2) / 2, low - 8
    return {
        "path": path,
        "x": label[0],
        "y": label[1],
        "count": edge.messages,
        "orphans": edge.orphans,
    }


def _is_of(step: Any, edge: _Edge) -> bool:
    return not isinstance(step, Node) and step[0] == edge


def _to(x1: float, y1: float, x2: float, y2: float) -> str:
    middle = (x1 + x2) / 2
    return f"C{middle:g},{y1:g} {middle:g},{y2:g} {x2:g},{y2:g}"
