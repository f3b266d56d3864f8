"""What the import of an adapter brings along: each test asks an interpreter of its own, which has imported nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from queueprop.kit.libraries import ADAPTERS

INSTRUMENTORS = [tuple(path.split(":")) for path in ADAPTERS.values()]
"""Each adapter, and the name of its instrumentor."""

HEAVY = ("wrapt", "packaging", "opentelemetry.instrumentation")
"""What patching stands on."""

ALSO_HEAVY = ("asyncio", "multiprocessing.util", "importlib.metadata")
"""Of Python itself, some of which that brings along."""

FOUND = f"""
import sys

def found():
    heavy = tuple(f"{{it}}." for it in {(*HEAVY, *ALSO_HEAVY)!r})
    return [name for name in sys.modules if f"{{name}}.".startswith(heavy)]
"""


def told_by(program: str) -> Any:
    """What a fresh interpreter says, as JSON."""
    command = [sys.executable, "-c", program]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize(("adapter", "name"), INSTRUMENTORS)
def test_who_traces_by_hand_imports_nothing_of_the_patches(adapter: str, name: str) -> None:
    """Neither wrapt nor OpenTelemetry's instrumentor, nor what those import, unless the library or the API does."""
    with_ours = told_by(f"""
import json, {adapter}
{FOUND}
print(json.dumps({{"imported": list(sys.modules), "heavy": found()}}))
""")
    library = adapter.rpartition(".")[2]
    its_own = [it for it in with_ours["imported"] if it.partition(".")[0] == library]
    assert its_own
    without_ours = told_by(f"""
import importlib, json
import opentelemetry.baggage, opentelemetry.metrics, opentelemetry.propagate, opentelemetry.trace
{FOUND}
for module in {its_own!r}:
    importlib.import_module(module)
print(json.dumps(found()))
""")
    assert set(with_ours["heavy"]) <= set(without_ours)


@pytest.mark.parametrize(("adapter", "name"), INSTRUMENTORS)
def test_the_instrumentor_is_there_when_it_is_asked_for(adapter: str, name: str) -> None:
    """It is listed from the start, is the same by every way, and tells and pickles as a class of the adapter's."""
    found = told_by(f"""
import json, pickle, sys
import {adapter} as adapter

listed, imported = dir(adapter), list(vars(adapter))
from {adapter} import {name}
everything = {{}}
exec("from {adapter} import *", everything)
from {adapter}.instrumentor import {name} as by_its_module
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor
print(json.dumps({{
    "is listed": {name!r} in listed and set(imported) <= set(listed),
    "was imported": {name!r} in imported,
    "is one": len({{{name}, adapter.{name}, vars(adapter)[{name!r}], everything[{name!r}], by_its_module}}),
    "is an instrumentor": issubclass({name}, BaseInstrumentor),
    "is called": f"{{{name}.__module__}}:{{{name}.__qualname__}}",
    "is pickled": pickle.loads(pickle.dumps({name})) is {name},
    "has a doc": bool({name}.__doc__),
}}))
""")
    assert found == {
        "is listed": True,
        "was imported": False,
        "is one": 1,
        "is an instrumentor": True,
        "is called": f"{adapter}:{name}",
        "is pickled": True,
        "has a doc": True,
    }
