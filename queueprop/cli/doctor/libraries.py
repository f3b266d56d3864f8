"""The libraries: installed, supported, instrumented, and who else instruments them."""

from __future__ import annotations

import difflib
import functools
import importlib
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata

from packaging.requirements import InvalidRequirement, Requirement

from queueprop.cli.doctor.facts import Facts
from queueprop.cli.doctor.findings import Finding, Level
from queueprop.cli.refusal import reason
from queueprop.kit import checks
from queueprop.kit.instrumentor import Adapter
from queueprop.kit.libraries import ADAPTERS, MissingExtra
from queueprop.kit.rivals import Rival, how_to_choose

SECTION = "libraries"
DISABLED = "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"
_GROUP = "opentelemetry_instrumentor"


def findings(facts: Facts, is_program: bool) -> Iterator[Finding]:
    """One for each library that is installed where the facts are from, and for the variable that switches them off."""
    yield _versions(facts)
    present = [library for library in ADAPTERS if library in facts.versions]
    for library in present:
        yield _library(library, facts, is_program)
        yield from _rivals(library, facts, is_program)
    absent = [library for library in ADAPTERS if library not in present]
    if not present:
        text = f"none that queueprop knows is installed ({', '.join(absent)})"
        yield Finding(SECTION, "libraries", "problem", text, 'pip install "queueprop[rq]", say')
    elif absent:
        yield Finding(SECTION, "not installed", "ok", ", ".join(absent))
    yield _switch(facts)
    yield from _disabled_names(facts)


def _switch(facts: Facts) -> Finding:
    given = facts.variables.get(DISABLED, "").strip()
    if given:
        return Finding(SECTION, "switched off", "ok", given, source=DISABLED)
    text = f"nothing; by its name in {DISABLED} opentelemetry-instrument leaves a library out"
    return Finding(SECTION, "switched off", "ok", text, source="default")


def _versions(facts: Facts) -> Finding:
    found = [f"{name} {facts.versions[name]}" for name in _OF_INTEREST if name in facts.versions]
    return Finding(SECTION, "versions", "ok", f"Python {facts.python}, {', '.join(found)}")


_OF_INTEREST = (
    *("queueprop", "opentelemetry-api", "opentelemetry-sdk", "opentelemetry-instrumentation"),
    *("opentelemetry-distro", "opentelemetry-exporter-otlp-proto-http"),
    "opentelemetry-exporter-otlp-proto-grpc",
)


def _library(library: str, facts: Facts, is_program: bool) -> Finding:
    version = facts.versions[library]
    wanted = supported(library)
    if wanted is not None and not wanted.specifier.contains(version, prereleases=True):
        text = f"{version} is not supported: queueprop wants {library} {wanted.specifier}"
        return Finding(SECTION, library, "problem", text, f'pip install "{library}{wanted.specifier}"')
    fault = _import_fault(library) if not is_program else None
    if fault is not None:
        text = f"{version}: its adapter cannot be imported, so it is not instrumented: {fault}"
        return Finding(SECTION, library, "problem", text)
    return _state(library, f"{version}, supported", facts, is_program)


def _state(library: str, known: str, facts: Facts, is_program: bool) -> Finding:
    switch, module = entry_point(library), checks.module_of(library)
    by = f"{DISABLED}={facts.variables.get(DISABLED, '')}"
    if is_program and facts.is_instrumented(ADAPTERS[library]):
        if any(facts.is_instrumented(rival.instrumentor) for rival in rivals_of(library)):
            return Finding(
                SECTION, library, "note", f"{known}; queueprop (as {switch}) stands down, as told below"
            )
        return Finding(SECTION, library, "ok", f"{known}, instrumented (as {switch})")
    if is_disabled(switch, facts):
        return Finding(
            SECTION, library, "note", f"{known}, switched off as {switch} for the launcher", source=by
        )
    if not is_program:
        return Finding(SECTION, library, "ok", f"{known}; opentelemetry-instrument knows ours as {switch}")
    if module not in facts.modules:
        return Finding(SECTION, library, "ok", f"{known}; this program has not imported it")
    if f"queueprop.adapters.{module}" in facts.modules:
        return Finding(
            SECTION, library, "ok", f"{known}, not instrumented; its adapter is imported: by hand?"
        )
    if any(facts.is_instrumented(path) for path in ADAPTERS.values()):
        text = f"{known}, imported and not instrumented, as others here are"
        return Finding(
            SECTION, library, "note", text, f'queueprop.instrument("{library}"), where it is yours'
        )
    text = f"{known}, imported and not instrumented: its messages carry no context"
    return Finding(
        SECTION, library, "problem", text, "queueprop.instrument(), or run it by opentelemetry-instrument"
    )


# Other instrumentations


def _rivals(library: str, facts: Facts, is_program: bool) -> Iterator[Finding]:
    ours_is_off = is_disabled(entry_point(library), facts)
    for rival in rivals_of(library):
        if rival.distribution not in facts.versions:
            continue
        subject = f"{library}, {rival.distribution}"
        if is_program:
            if facts.is_instrumented(rival.instrumentor):
                level: Level = "note" if ours_is_off else "problem"
                text = "instruments this program's messages, so queueprop stands down"
                yield Finding(SECTION, subject, level, text, how_to_choose(library, rival))
        elif rival.entry_point is None:
            text = "is installed too; where a program sets it up, queueprop stands down"
            yield Finding(SECTION, subject, "note", text, how_to_choose(library, rival))
        elif is_disabled(rival.entry_point, facts):
            yield Finding(
                SECTION,
                subject,
                "ok",
                f"is installed too, and switched off as {rival.entry_point}",
                source=DISABLED,
            )
        elif ours_is_off:
            text = "is installed too, and has it: queueprop's is switched off"
            yield Finding(SECTION, subject, "note", text, source=DISABLED)
        else:
            text = (
                "is installed too: under opentelemetry-instrument that one has it, and queueprop stands down (two "
                "would double every span)"
            )
            yield Finding(SECTION, subject, "problem", text, how_to_choose(library, rival))


def rivals_of(library: str) -> Sequence[Rival]:
    """Other instrumentations of it; none where its adapter cannot be imported here."""
    try:
        adapter = _adapter(library)
    except Exception:  # it is told of where the library is
        return ()
    return adapter.rivals.known


# The variable of the launcher


def is_disabled(name: str, facts: Facts) -> bool:
    """Whether the launcher is told to leave out the instrumentation of this name."""
    names = _disabled(facts)
    return name in names or "*" in names


def entry_point(library: str) -> str:
    """By which name the launcher knows ours."""
    return f"queueprop_{checks.module_of(library)}"


def _disabled(facts: Facts) -> list[str]:
    return [name.strip() for name in facts.variables.get(DISABLED, "").split(",") if name.strip()]


def _disabled_names(facts: Facts) -> Iterator[Finding]:
    """A name that no instrumentation has, and that is close to one that there is."""
    known = {entry.name for entry in metadata.entry_points(group=_GROUP)}
    known.update(entry_point(library) for library in ADAPTERS)
    for name in _disabled(facts):
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        if name not in known and name != "*" and near:
            text = f"no instrumentation has the name {name!r}, so none is switched off by it"
            yield Finding(
                SECTION, DISABLED, "problem", text, f"did you mean {near[0]}?", source="environment"
            )


# What queueprop itself says


def supported(library: str) -> Requirement | None:
    """The versions that queueprop's own metadata ask for."""
    return _requirements().get(library)


@functools.cache
def _requirements() -> Mapping[str, Requirement]:
    found: dict[str, Requirement] = {}
    for line in metadata.requires("queueprop") or ():
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if requirement.name in ADAPTERS:
            found.setdefault(requirement.name, requirement)
    return found


def _import_fault(library: str) -> str | None:
    try:
        _adapter(library)
    except MissingExtra:
        return None
    except Exception as error:
        return reason(error)
    return None


def _adapter(library: str) -> type[Adapter]:
    module, name = ADAPTERS[library].split(":")
    found: type[Adapter] = getattr(importlib.import_module(module), name)
    return found
