"""The pytest plugin of queueprop: the fixture `captured_spans`.

Every pytest run of an environment with queueprop loads this module, before coverage measures anything. So it lies
beside the package, and imports none of it until a test asks for the fixture.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from queueprop.testing import CapturedSpans


@pytest.fixture
def captured_spans() -> Iterator[CapturedSpans]:
    """The spans that end during the test, by `queueprop.testing.capture_spans`. Fails without the SDK."""
    from queueprop.testing import MissingSDK, capture_spans

    with ExitStack() as capture:
        try:
            spans = capture.enter_context(capture_spans())
        except MissingSDK as missing:
            raise pytest.fail.Exception(str(missing), pytrace=False) from None
        yield spans


def pytest_addoption(pluginmanager: pytest.PytestPluginManager) -> None:
    """Takes the package from pytest's list of modules to rewrite, as early as a plugin is called.

    Pytest rewrites the assert statements of every package that is installed with a plugin: a compilation of all its
    modules, for nothing here. It has no way to say so but a word in each module's docstring. Where its list is kept
    otherwise some day, the package is rewritten again.
    """
    marked = getattr(pluginmanager.rewrite_hook, "_must_rewrite", None)
    if isinstance(marked, set):
        marked.discard("queueprop")
