"""Names of a package that are imported where somebody asks for them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

PACKAGE = "queueprop_test_on_demand"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """One whose ``Patches`` lies in a module of it."""
    folder = tmp_path / PACKAGE
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from queueprop.kit.on_demand import on_demand\n"
        "__getattr__, __dir__ = on_demand(__name__, Patches='patches')\n"
        "word = 1\n"
    )
    (folder / "patches.py").write_text("class Patches: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module(PACKAGE)
    for name in [it for it in sys.modules if it.partition(".")[0] == PACKAGE]:
        del sys.modules[name]


def test_a_name_is_imported_when_it_is_asked_for(package: ModuleType) -> None:
    """Not with the package; and from then on it is the package's own, the same object as the module's."""
    assert f"{PACKAGE}.patches" not in sys.modules
    found = package.Patches
    assert found is sys.modules[f"{PACKAGE}.patches"].Patches
    assert vars(package)["Patches"] is found


def test_a_name_is_listed_before_it_is_asked_for(package: ModuleType) -> None:
    """Beside the package's own, each once, as ``dir`` and a console's completion have them; nothing is imported."""
    listed = dir(package)
    assert {"Patches", "word", "__name__"} <= set(listed)
    assert f"{PACKAGE}.patches" not in sys.modules
    assert package.Patches
    assert dir(package).count("Patches") == 1


def test_another_name_is_missing_as_in_any_module(package: ModuleType) -> None:
    """A typo is an AttributeError with Python's own words, and an ImportError where it is imported."""
    with pytest.raises(AttributeError, match=f"^module '{PACKAGE}' has no attribute 'Patch'$"):
        _ = package.Patch
    with pytest.raises(ImportError, match="cannot import name 'Patch'"):
        exec(f"from {PACKAGE} import Patch", {})
    assert not hasattr(package, "__wrapped__")
