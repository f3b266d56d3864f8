"""Fuzz: a million inputs into the codec, header containers, and what every adapter reads and writes.

- ``odd``: random odd containers, values and baggage into the codec (``tests/wire/fuzz.py``).
- ``same``: each library publishes and delivers the same inputs plain and traced: nothing is raised that plain does not
  raise, what plain handles is handled, no header of others is lost, no object of the caller's is altered.
- ``there and back``: legal baggage and tracestate, from a publish to the handler of what went out.
- ``guided``: atheris, by what the inputs cover of queueprop; for RQ's work horses, what they leave in memory, too.
- ``cost``: the CPU time of a publish and a delivery of 10 kB and of 1 MB: at most 300 times for 100 times the size.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from integration.torture import children
from integration.torture.lines import LIBRARIES
from integration.torture.report import Row

LINEAR = 300
"""So many times the CPU time for a hundred times the size, at most. What is linear takes a hundred times, and twice
that where only the large one is encoded once more to see whether it fits into a frame; quadratic is ten thousand.
"""

GUIDED = ("text", "containers", "told", *LIBRARIES)

SIZES = {
    "odd": 100_000,
    "same": 20_000,
    "trip": 3_000,
    "text": 300_000,
    "told": 120_000,
    "containers": 60_000,
}
SIZES_OF_SHORT = {"odd": 1_000, "same": 150, "trip": 20, "text": 3_000, "told": 2_000, "containers": 500}
OF_LIBRARY = 17_000
OF_SHORT = ("pika", "celery", "rq", "aiokafka")


def run(is_short: bool, say: Callable[[str], None]) -> Iterator[Row]:
    sizes = SIZES_OF_SHORT if is_short else SIZES
    libraries = OF_SHORT if is_short else LIBRARIES
    inputs = 0
    all_parts = (
        _odd(sizes, say),
        _same(sizes["same"], libraries, say),
        _trips(sizes["trip"], libraries, say),
        _guided(sizes, is_short, say),
        _costs(libraries, say),
    )
    holds = True
    for part in all_parts:
        for row in part:
            found = row.counts.get("inputs", 0)
            inputs += found if isinstance(found, int) else 0
            holds = holds and row.holds
            yield row
    yield Row("fuzz", "all", "in sum", holds, {"inputs": inputs})


def _odd(sizes: dict[str, int], say: Callable[[str], None]) -> Iterator[Row]:
    say("odd containers, values and baggage")
    command = [sys.executable, "-m", "tests.wire.fuzz", "--inputs", str(sizes["odd"]), "--seed", "18"]
    done = subprocess.run(command, cwd=children.CHECKOUT, capture_output=True, text=True)
    what = f"ended with {done.returncode}: {done.stderr[-800:]}" if done.returncode else "nothing raised"
    yield Row("fuzz", "core", "odd", not done.returncode, {"inputs": sizes["odd"], "": what})


# Plain and traced


def _same(inputs: int, libraries: tuple[str, ...], say: Callable[[str], None]) -> Iterator[Row]:
    given = [("same", library, way, 18, inputs) for library in libraries for way in ("plain", "traced")]
    reports = children.run_all("fuzz_adapters", given, 2400, say)
    for (_, plain), (arguments, traced) in zip(reports, reports, strict=True):
        library = str(arguments[1])
        if isinstance(plain, children.ChildFailed) or isinstance(traced, children.ChildFailed):
            yield Row("fuzz", library, "same", False, {"failed": [plain, traced]})
            continue
        wrong = list(differing(_became(plain), _became(traced)))
        for text in wrong[:5]:
            say(f"{library}: {text}")
        faults = sum(traced["faults"].values())
        counts = {
            "inputs": 2 * inputs,
            "kinds": len(traced["became"]),
            "wrong": len(wrong),
            "faults told": faults,
        }
        yield Row("fuzz", library, "same", not wrong, counts)


def _became(report: children.Report) -> list[str]:
    return [report["became"][number] for number in report["found"]]


def differing(plain: list[str], traced: list[str]) -> Iterator[str]:
    """The inputs of which something became that is worse than plain.

    What plain refuses may go out (an odd context is replaced), or be refused for another reason; nothing else differs.
    """
    for number, (before, after) in enumerate(zip(plain, traced, strict=True)):
        parts = zip(before.split("; "), after.split("; "), strict=True)
        if any(one != other and not _may_differ(one, other) for one, other in parts):
            yield f"input {number}: {after!r} instead of {before!r}"


def _may_differ(plain: str, traced: str) -> bool:
    """Whether the library itself refused to publish; or has sent a container whose class nobody can look into."""
    if plain == "publish sent unreadable":
        return traced.startswith("publish sent ") and not traced.endswith(" altered")
    return re.match(r"publish (?!sent\b)\w+", plain) is not None


# There and back


def _trips(inputs: int, libraries: tuple[str, ...], say: Callable[[str], None]) -> Iterator[Row]:
    given = [("trip", library, 18, inputs) for library in libraries]
    for (_, library, *_), report in children.run_all("fuzz_adapters", given, 1200, say):
        if isinstance(report, children.ChildFailed):
            yield Row("fuzz", str(library), "there and back", False, {"failed": report})
            continue
        for text in report["wrong"][:3]:
            say(f"{library}: {text}")
        counts = {"inputs": report["inputs"], "wrong": len(report["wrong"])}
        yield Row("fuzz", str(library), "there and back", not report["wrong"], counts)


# Guided by coverage


def _guided(sizes: dict[str, int], is_short: bool, say: Callable[[str], None]) -> Iterator[Row]:
    if importlib.util.find_spec("atheris") is None:
        yield Row(
            "fuzz",
            "all",
            "guided",
            True,
            {"left out": "there is no wheel of atheris for this Python or machine"},
        )
        return
    targets = ("text", "told", "containers", "pika") if is_short else GUIDED

    def one(target: str) -> Row:
        say(f"guided: {target}")
        return _guided_row(target, sizes.get(target, 300 if is_short else OF_LIBRARY))

    with ThreadPoolExecutor(2) as executor:
        yield from executor.map(one, targets)


def _guided_row(target: str, inputs: int) -> Row:
    command = [sys.executable, "-m", "integration.torture.fuzz_guided", target, str(inputs), "900"]
    done = subprocess.run(command, cwd=children.CHECKOUT, capture_output=True, text=True, errors="replace")
    ran = re.search(r"Done (\d+) runs", done.stderr)
    covered = re.findall(r"DONE +cov: (\d+) ft: (\d+)", done.stderr)
    counts: dict[str, object] = {"inputs": int(ran[1]) if ran else 0}
    if covered:
        counts |= {"edges": covered[-1][0], "features": covered[-1][1]}
    if done.returncode or not ran:
        counts["failed"] = _finding(done.stdout) + "\n" + _finding(done.stderr)
    return Row("fuzz", target, "guided", not done.returncode and ran is not None, counts)


def _finding(said: str) -> str:
    """The traceback and the input, without libFuzzer's progress."""
    lines = [line for line in said.splitlines() if not line.startswith(("#", "INFO"))]
    return "\n".join(lines[-40:])[-2500:]


# What the size costs


def _costs(libraries: tuple[str, ...], say: Callable[[str], None]) -> Iterator[Row]:
    given = [("cost", library) for library in libraries]
    for (_, library), report in children.run_all("fuzz_adapters", given, 1200, say):
        if isinstance(report, children.ChildFailed):
            yield Row("fuzz", str(library), "cost", False, {"failed": report})
            continue
        shape = max(report, key=lambda name: _ratio(report[name]))
        slowest = max(report, key=lambda name: float(report[name][1]))
        counts = {
            "shapes": len(report),
            "steepest": f"{shape}: {_times(report[shape])}",
            "slowest": f"{slowest}: {_times(report[slowest])}",
        }
        yield Row("fuzz", str(library), "cost", _ratio(report[shape]) <= LINEAR, counts)


def _ratio(times: list[float]) -> float:
    """Of the large to the small; what takes less than a tenth of a millisecond is no measure, and counts as that."""
    return times[1] / max(times[0], 0.1)


def _times(times: list[float]) -> str:
    return f"{times[0]:.2f} ms of 10 kB, {times[1]:.2f} ms of 1 MB, {_ratio(times):.0f} times"
