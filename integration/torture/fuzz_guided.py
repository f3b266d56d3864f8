"""A coverage-guided fuzzer (atheris) over one target: inputs that reach new lines of queueprop are varied further.

    python -m integration.torture.fuzz_guided TARGET INPUTS SECONDS      ends at the first input that breaks a rule

``TARGET`` is ``text`` (the codec), ``containers``, ``told`` (what RQ's work horse leaves for its parent), or a library.
libFuzzer prints how many inputs it ran, and how much they have covered.
"""

from __future__ import annotations

import logging
import random
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import atheris
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider

with atheris.instrument_imports(include=["queueprop"]):
    from integration.torture.inputs import Inputs
    from integration.torture.lines import Line, instrumented, line_class
    from queueprop import Settings, guard
    from queueprop.adapters.rq import collector, lines
    from queueprop.engine import relay
    from queueprop.engine.metrics import Instruments
    from queueprop.wire import w3c
    from tests.wire import fuzz

Test = Callable[[bytes], None]


class Chance(random.Random):
    """Chooses by a fuzzer's bytes; zeros follow where they end."""

    def __new__(cls, data: bytes) -> Chance:
        return super().__new__(cls)

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def getrandbits(self, k: int) -> int:
        size = (k + 7) // 8
        found = int.from_bytes(self._data[self._at : self._at + size], "little")
        self._at += size
        return found & ((1 << k) - 1)

    def random(self) -> float:
        return self.getrandbits(16) / (1 << 16)


def of_text() -> Test:
    """Whatever the texts are: reading raises nothing, and what was read comes back after each hop."""

    def test(data: bytes) -> None:
        head, _, rest = data.partition(b"\xff")
        state, _, more = rest.partition(b"\xff")
        for headers in (
            {"traceparent": head, "tracestate": state, "baggage": more},
            {"traceparent": fuzz.TRACEPARENT, "tracestate": head, "baggage": data.decode("latin-1")},
            [("traceparent", head), ("Traceparent", state), ("baggage", more), ("baggage", head)],
        ):
            fuzz.check_read(headers)
        members = w3c.parse_baggage([data])
        assert w3c.parse_baggage([w3c.format_baggage(members)]) == members

    return test


def of_containers() -> Test:
    chooser = Inputs(random.Random(0), "dict").chooser

    def test(data: bytes) -> None:
        chooser.random = Chance(data)
        fuzz.check_read(chooser.container(chooser.pairs(fuzz.HEADERS)))
        fuzz.check_written(chooser.container(chooser.pairs(fuzz.HEADERS)))
        fuzz.check_baggage(chooser)

    return test


def of_told() -> Test:
    """Memory that a job may have written anything into: what is read of it raises nothing."""
    line = lines.Line(None)
    circuit = collector.Circuit()
    instruments = Instruments(MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False), "0")
    none = Instruments(NoOpMeterProvider(), "0")

    def test(data: bytes) -> None:
        line._memory[: len(data)] = data
        line._memory[0] = 1
        told = line.told()
        assert told is not None
        assert told.answered in (None, False, True)
        line._memory[4096 : 4096 + len(data)] = data
        assert len(line.measured()) <= lines.ROOM
        circuit.state = data[:16].ljust(16, b"\0")
        assert 0 <= circuit.patience(5.0) <= 5.0
        circuit.note(bool(data[:1] > b"\x80"), 5.0)
        relay.record(instruments, data, None)
        relay.record(none, b"[" + data + b"]", None)
        lines.Line.tell(line, lines.Told(True, None, *(data.decode("utf-8", "surrogateescape"),) * 3))

    return test


_KEPT = ExitStack()
"""What ends with the process."""


def of_library(library: str) -> Test:
    """What a publish or a delivery raises is not ours, and each delivery is handled."""
    settings = Settings(tracer_provider=TracerProvider(shutdown_on_exit=False), body_size=True)
    plain = line_class(library)(None)
    with atheris.instrument_imports(include=["queueprop"]):
        _KEPT.enter_context(instrumented(library, settings))
        line = line_class(library)(settings)
    given = Inputs(random.Random(0), line.carrier)

    def test(data: bytes) -> None:
        found = _raised(line, given, data)
        if not any(error is not None and guard._whose(error).startswith("Please") for error in found):
            return
        # What is raised in C, or made of a StopIteration, looks as if it were raised in our line that calls it.
        _KEPT.close()
        theirs = _raised(plain, given, data)
        _KEPT.enter_context(instrumented(library, settings))
        for error, its in zip(found, theirs, strict=True):
            if error is not None and type(error) is not type(its):
                raise error

    return test


def _raised(line: Line, given: Inputs, data: bytes) -> list[Exception | None]:
    """By a publish and a delivery of what these bytes choose."""
    given.chooser.random = Chance(data)
    headers, name = given.headers(), given.name()
    handled: list[str] = []
    found = [_error_of(lambda: line.publish(headers, "hello", name))]
    headers = given.headers()
    found.append(_error_of(lambda: line.deliver(headers, handled.append, "hello")))
    assert handled or found[-1] is not None, "nothing was handled"
    return found


def _error_of(act: Callable[[], object]) -> Exception | None:
    try:
        act()
    except Exception as error:
        return error
    return None


def main() -> None:
    target, inputs, seconds = sys.argv[1:]
    guard.raise_faults = False
    logging.disable(logging.CRITICAL)
    if target in (
        "text",
        "told",
    ):  # an odd class may raise in Python's own C, which looks as if it were in our line
        guard.fault = _strict
    made: dict[str, Callable[[], Test]] = {"text": of_text, "containers": of_containers, "told": of_told}
    test = made[target]() if target in made else of_library(target)
    options = [
        f"-runs={inputs}",
        f"-max_total_time={seconds}",
        "-max_len=256",
        "-len_control=0",
        "-timeout=60",
    ]
    with tempfile.TemporaryDirectory() as folder:
        _plant(Path(folder), target)
        atheris.Setup(
            [sys.argv[0], *options, "-rss_limit_mb=4096", f"-artifact_prefix={folder}/", folder], test
        )
        atheris.Fuzz()


def _plant(folder: Path, target: str) -> None:
    """What it begins with: choices at random, and legal texts."""
    chance = random.Random(0)
    texts = (
        "\xff".join((text, "a=1,9b=2", "k=v;p=1,l=%C3%A9")).encode("latin-1")
        for text in (fuzz.TRACEPARENT, "")
    )
    seeds = [chance.randbytes(chance.randint(1, 200)) for _ in range(100)]
    for number, seed in enumerate([*texts, *_TOLD, *seeds]):
        (folder / str(number)).write_bytes(seed)


_TOLD = (
    b'[["sent",{"messaging.system":"rq"},[1]],["process_duration",{"server.port":1},[0.5,1e3]]]',
    b"\x01\x01\x00\x05\x00\x05\x00\x05\x00helloworldagain",
)


def _strict(where: str, error: Exception, about: object = "") -> None:
    """A fault that nobody but us can have made is a finding."""
    if guard.is_not_ours(error) or guard._whose(error).startswith("Please"):
        raise error


if __name__ == "__main__":
    main()
