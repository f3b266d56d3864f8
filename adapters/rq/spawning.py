"""A spawned work horse is a program of its own, with lines of ours in it."""

from __future__ import annotations

import importlib
import math
import os
import pickle
import re
import struct
import sys
import types
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from opentelemetry.trace import SpanContext, TraceFlags, TraceState

from queueprop import guard
from queueprop.adapters.rq import collector, performing
from queueprop.adapters.rq.lines import End, Line
from queueprop.kit.jobs import AUTO_INSTRUMENTATION
from queueprop.settings import Settings

if TYPE_CHECKING:
    from rq.worker import SpawnWorker as SpawnWorker
else:
    SpawnWorker = getattr(importlib.import_module("rq.worker"), "SpawnWorker", None)  # from RQ 2.2 on


def spawns(worker: Any) -> bool:
    """Whether the work horses of this worker are programs of their own."""
    return SpawnWorker is not None and isinstance(worker, SpawnWorker)


class JoiningOs:
    """``os`` for SpawnWorker: a Python program that it starts joins this one before it imports RQ."""

    def __init__(self, prologue: str) -> None:
        self._prologue = prologue

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def spawnv(self, mode: int, file: str, args: Iterable[str]) -> int:
        return os.spawnve(mode, file, *self._joining(args, os.environ))

    def posix_spawn(self, path: str, argv: Iterable[str], env: Mapping[str, str], **options: Any) -> int:
        return os.posix_spawn(path, *self._joining(argv, env), **options)

    def _joining(self, argv: Iterable[str], env: Mapping[str, str]) -> _Start:
        plain = [*argv], env
        try:
            return self._joined(*plain) or plain
        except Exception as error:
            guard.fault("telling a work horse how to join its worker", error)
            return plain

    def _joined(self, argv: list[str], env: Mapping[str, str]) -> _Start | None:
        """None for what is no program that could join, or would not be started any more."""
        if "-c" not in argv[:-1]:
            return None
        at = argv.index("-c") + 1
        program = joining(argv[at], self._prologue)
        if program is None:
            guard.mistake(_SPAWNING, _UNKNOWN_PROGRAM)
            return None
        joined = [*argv[:at], program, *argv[at + 1 :]], {**env, **guard.environment()}
        if not _is_startable(*joined):
            guard.mistake(_SPAWNING, _NO_ROOM)
            return None
        return joined


_Start = tuple[list[str], Mapping[str, str]]
"""A program's arguments and its environment."""


def joining(program: str, prologue: str) -> str | None:
    """RQ's program with ours in it: in front of its first import that is not of the standard library.

    What stands above that says where modules are found (``sys.path`` from RQ 3 on). Ours imports RQ, and would import
    another one, or none at all. None for a program that imports nothing of the kind.
    """
    found = _FIRST_IMPORT.search(program)
    return None if found is None else program[: found.start()] + prologue + program[found.start() :]


_FIRST_IMPORT = re.compile(r"^(?:from|import) +(?:redis|rq)\b", re.MULTILINE)
"""It begins a line, as nothing does that RQ's program quotes above it: ``repr`` leaves no line breaks."""


_SPAWNING = "spawning a work horse"


_UNKNOWN_PROGRAM = (
    "this RQ starts a program that queueprop does not know, so what is recorded inside of jobs is not in their traces; "
    "please upgrade queueprop"
)


_NO_ROOM = (
    "its program and environment are as long as the system takes, so what is recorded inside of jobs is not in their "
    "traces; a shorter environment or sys.path, or smaller settings (hooks that are functions of a module), leave room"
)


def _is_startable(argv: Iterable[str], env: Mapping[str, str]) -> bool:
    """Whether the system takes so much. It refuses more, RQ 2's ``spawnv`` only in the child: the job would be lost."""
    sizes = [len(os.fsencode(argument)) + 1 for argument in argv]
    sizes += [len(os.fsencode(name)) + len(os.fsencode(value)) + 2 for name, value in env.items()]
    return max(sizes) <= _LONGEST_ARGUMENT and sum(sizes) + _POINTER * len(sizes) <= _most_arguments()


_LONGEST_ARGUMENT = 1 << 17
"""Bytes of one argument or variable, with its end. Linux has it (``MAX_ARG_STRLEN``), others only a limit for all."""


_POINTER = struct.calcsize("P")


def _most_arguments() -> float:
    """Bytes of all of them, some left for the system's own."""
    try:
        most = os.sysconf("SC_ARG_MAX")
    except (AttributeError, ValueError, OSError):
        return math.inf
    return min(most, _MOST_OF_LINUX) - 4096 if most > 0 else math.inf


_MOST_OF_LINUX = 6 << 20
"""Of which ``sysconf`` does not know, where the stack is unlimited."""


def prologue(end: End, span: SpanContext, what: str, settings: Settings) -> str:
    """Where a horse's program joins its parent. ``span`` is the one that its parent has begun.

    Nothing of it stops the program, whichever queueprop is installed by now.
    """
    launched = AUTO_INSTRUMENTATION in sys.modules
    told = (FORM, *end, collector.circuit.state, _told(span), what, launched, pickled(settings))
    return f"""
try:
    from queueprop.adapters.rq import spawning as _queueprop
    _queueprop.join_parent{told!r}
except Exception:
    import os
    if os.environ.get("_QUEUEPROP_RAISE_FAULTS") == "1":
        raise
"""


FORM = 1
"""What a worker tells its horses, and they it (``lines``). Another number for every change: a horse has the queueprop
that is installed when it begins, its worker the one from when that began.
"""


def _told(span: SpanContext) -> tuple[int, int, int, str]:
    return span.trace_id, span.span_id, int(span.trace_flags), span.trace_state.to_header()


def join_parent(form: object = None, *told: Any) -> None:
    """In a spawned work horse, before it imports RQ: does what its parent has done, as far as that can be told.

    ``told`` is what ``prologue`` writes, by whichever version.
    """
    try:
        if form == FORM:
            _join_parent(*told)
        else:
            guard.mistake("joining the worker of a spawned work horse", _ANOTHER_FORM)
    except Exception as error:
        guard.fault("instrumenting a spawned work horse", error)


_ANOTHER_FORM = (
    "the worker runs another version of queueprop than is installed now, so what is recorded inside of its jobs is not "
    "in their traces; restart the worker"
)


def _join_parent(
    fd: int,
    device: int,
    inode: int,
    circuit: bytes,
    span: tuple[int, int, int, str],
    what: str,
    launched: bool,
    settings: dict[str, bytes],
) -> None:
    performing.parent_line = Line.of_parent(End(fd, device, inode))
    performing.parent_span = _span_told(*span)
    collector.circuit.state = circuit
    if launched and AUTO_INSTRUMENTATION not in sys.modules:
        # Until 0.65 it takes itself out of PYTHONPATH, and wants the variable to exist.
        os.environ.setdefault("PYTHONPATH", "")
        importlib.import_module(f"{AUTO_INSTRUMENTATION}.sitecustomize")
    from queueprop.adapters.rq import instrumentor

    adapter = instrumentor.RQInstrumentor() if what == "all" else instrumentor.WorkerInstrumentor()
    if not adapter.is_instrumented_by_opentelemetry:
        adapter.instrument(settings=unpickled(settings))


def _span_told(trace_id: int, span_id: int, flags: int, state: str) -> SpanContext | None:
    """The span that the parent has begun; None where it makes none."""
    trace_state = TraceState.from_header([state]) if state else None
    span = SpanContext(trace_id, span_id, True, TraceFlags(flags), trace_state)
    return span if span.is_valid else None


def pickled(settings: Settings) -> dict[str, bytes]:
    """What of the settings can be told to another program: no provider, and no hook that is a local function.

    Nor what is large: all of it stands in one argument of a program. The smallest first, so that one large table costs
    no other setting.
    """
    told: dict[str, bytes] = {}
    for setting in fields(settings):
        try:
            told[setting.name] = _pickled(getattr(settings, setting.name))
        except _TooLarge:
            _say_too_large(setting.name)
        except Exception:
            _say_strictest(setting.name)
    left = _MOST_TOLD
    for name in sorted(told, key=lambda name: len(repr(told[name]))):
        left -= len(repr(told[name]))
        if left < 0:
            _say_too_large(name)
            del told[name]
    return {**_pickled_strictest(), **told}


def _pickled(value: object) -> bytes:
    room = _Room()
    pickle.Pickler(room).dump(value)
    return bytes(room.taken)


class _Room:
    """Where something is pickled that may be of any size, each job anew: no further than it matters."""

    def __init__(self) -> None:
        self.taken = bytearray()

    def write(self, part: bytes | memoryview) -> int:
        if len(self.taken) + len(part) > _MOST_TOLD:
            raise _TooLarge
        self.taken += part
        return len(part)


class _TooLarge(Exception):
    pass


_MOST_TOLD = 1 << 16
"""Bytes of all settings, as they are written into a program: half of what an argument may have."""


def _say_too_large(name: str) -> None:
    guard.mistake(_TELLING, _TOO_LARGE % (name, name), name)


_TELLING = "telling a spawned work horse the settings"


_TOO_LARGE = (
    f"%s is more than {_MOST_TOLD >> 10} KiB when it is pickled, and horses go without it; make %s a function of a "
    "module that finds by itself what it needs"
)


_STRICTEST = {"trust": "none", "baggage_allow": ()}
"""What a horse does where it cannot be told whom to trust, and what may leave: not what it does by default."""


def _say_strictest(name: str) -> None:
    if name in _STRICTEST:
        guard.mistake(_TELLING, _UNTOLD % (name, name), name)


_UNTOLD = (
    "%s is nothing that a horse could import, so it is as strict as can be: it continues nobody's context; make %s a "
    "function of a module"
)


def _pickled_strictest() -> dict[str, bytes]:
    return {name: pickle.dumps(value) for name, value in _STRICTEST.items()}


def unpickled(settings: dict[str, bytes]) -> Settings:
    """The settings of a parent, of whichever version."""
    known = {setting.name for setting in fields(Settings)}
    values: dict[str, Any] = {}
    for name in known.intersection(settings):
        try:
            values[name] = pickle.loads(settings[name])
        except Exception:  # a hook that lies in the parent's __main__
            if name in _STRICTEST:
                values[name] = _STRICTEST[name]
                _say_strictest(name)
    return Settings(**values)


def rebuilt(function: types.FunctionType, names: dict[str, Any], closure: Any) -> types.FunctionType:
    """The same function over other globals, or another closure."""
    rebuilt = types.FunctionType(function.__code__, names, function.__name__, function.__defaults__, closure)
    rebuilt.__kwdefaults__ = function.__kwdefaults__
    return rebuilt
