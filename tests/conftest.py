"""In our own suite a fault of ours fails the test instead of hiding in a log. (Nobody else's suite does this.)"""

import gc

import pytest

from queueprop import guard


@pytest.fixture(autouse=True)
def _faults_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "raise_faults", True)


@pytest.fixture(autouse=True, scope="module")
def _what_there_is_stays() -> None:
    """A collection in a test looks at what the tests of its file have made, and not at all that there is."""
    gc.collect()
    gc.freeze()
