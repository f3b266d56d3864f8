"""A spawned work horse is a program of its own, which begins with lines of ours."""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import types
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from queueprop import guard
from queueprop.adapters.rq import collector
from queueprop.adapters.rq.lines import End
from queueprop.settings import Settings


class JoiningOs:
    """``os`` for SpawnWorker: a Python program that it starts begins with ours."""

    def __init__(self, prologue: str) -> None:
        self._prologue = prologue

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def spawnv(self, mode: int, file: str, args: Iterable[str]) -> int:
        return os.spawnve(mode, file, self._joining(args), {**os.environ, **guard.environment()})

    def posix_spawn(self, path: str, argv: Iterable[str], env: Mapping[str, str], **options: Any) -> int:
        return os.posix_spawn(path, self._joining(argv), {**env, **guard.environment()}, **options)

    def _joining(self, argv: Iterable[str]) -> list[str]:
        arguments = list(argv)
        with contextlib.suppress(ValueError):
            program = arguments.index("-c") + 1
            arguments[program] = self._prologue + arguments[program]
        return arguments


def prologue(end: End, what: str, settings: Settings) -> str:
    joined = (*end, collector.circuit.state, what, AUTO_INSTRUMENTATION in sys.modules, pickled(settings))
    return f"""
try:
    from queueprop.adapters import rq as _queueprop
except ImportError:
    pass
else:
    _queueprop._join_parent{joined!r}
"""


AUTO_INSTRUMENTATION = "opentelemetry.instrumentation.auto_instrumentation"


def pickled(settings: Settings) -> dict[str, bytes]:
    """What of the settings can be told to another program: no provider, and no hook that is a local function."""
    pickled = {}
    for setting in fields(settings):
        with contextlib.suppress(Exception):
            pickled[setting.name] = pickle.dumps(getattr(settings, setting.name))
    return pickled


def unpickled(settings: dict[str, bytes]) -> Settings:
    values = {}
    for name, pickled in settings.items():
        with contextlib.suppress(Exception):  # a hook that lies in the parent's __main__
            values[name] = pickle.loads(pickled)
    return Settings(**values)


def rebuilt(function: types.FunctionType, names: dict[str, Any], closure: Any) -> types.FunctionType:
    """The same function over other globals, or another closure."""
    rebuilt = types.FunctionType(function.__code__, names, function.__name__, function.__defaults__, closure)
    rebuilt.__kwdefaults__ = function.__kwdefaults__
    return rebuilt
