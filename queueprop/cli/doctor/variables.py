"""The settings and variables: what is in force, where it comes from, and what is misspelt."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterator
from dataclasses import fields
from importlib import metadata

from queueprop import guard
from queueprop.cli.doctor.facts import Facts, variables_of
from queueprop.cli.doctor.findings import Finding
from queueprop.settings import Settings

SECTION = "settings"
_PREFIX = "QUEUEPROP_"
_SECRETS = re.compile(r"HEADERS|KEY|TOKEN|SECRET|PASSWORD|URL")


def findings(facts: Facts) -> Iterator[Finding]:
    """Of queueprop's settings, then of OpenTelemetry's variables that are set."""
    yield from _settings(facts)
    yield from _misspelt(facts)
    for name in sorted(facts.variables):
        if name in known_names():
            yield Finding(SECTION, name, "ok", shown(name, facts.variables[name]), source="environment")


def shown(name: str, value: str) -> str:
    """A variable's value, where it is no secret: headers mostly are."""
    return "(set, not shown)" if _SECRETS.search(name) else guard.one_line(value, 200)


def _settings(facts: Facts) -> Iterator[Finding]:
    with variables_of(facts), guard.collecting() as complaints:
        settings = Settings()
    defaults = []
    for setting in fields(Settings):
        if "default" not in setting.metadata:
            continue
        name, value = setting.name, repr(getattr(settings, setting.name))
        variable = _PREFIX + name.upper()
        in_code = facts.settings.get(name)
        if in_code is not None and in_code != value:
            yield Finding(SECTION, name, "ok", in_code, source="the program's code")
        elif facts.variables.get(variable, "").strip():
            yield Finding(SECTION, name, "ok", value, source=variable)
        else:
            defaults.append(name)
    if defaults:
        yield Finding(SECTION, "defaults", "ok", ", ".join(defaults), source="default")
    for complaint in complaints:
        subject, _, text = complaint.removeprefix("reading ").partition(": ")
        yield Finding(SECTION, subject, "problem", text, source="environment")


def _misspelt(facts: Facts) -> Iterator[Finding]:
    """Names that are close to one that means something, and mean nothing. Ours with our prefix are told of above."""
    known = known_names()
    for name in sorted(facts.variables):
        if name in known or name.upper().startswith(_PREFIX) or len(name) < _SHORTEST:
            continue
        # Two wrong letters of twenty are a slip; what differs in a word is another variable.
        near = difflib.get_close_matches(name.upper().replace("-", "_"), known, n=1, cutoff=_CLOSE)
        if near and near[0] != name:
            text = "it changes nothing: no setting has this name"
            yield Finding(SECTION, name, "problem", text, f"did you mean {near[0]}?", source="environment")


_SHORTEST = 8
_CLOSE = 0.91


@functools.cache
def known_names() -> frozenset[str]:
    """The variables of queueprop's settings, and those that OpenTelemetry's packages here say they read."""
    found = {_PREFIX + setting.name.upper() for setting in fields(Settings) if "default" in setting.metadata}
    for entry in metadata.entry_points(group="opentelemetry_environment_variables"):
        try:
            found.update(name for name in dir(entry.load()) if name.startswith("OTEL_"))
        except Exception:  # somebody's package is broken; the others are read
            continue
    return frozenset(found)
