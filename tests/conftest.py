"""In our own suite a fault of ours fails the test instead of hiding in a log. (Nobody else's suite does this.)"""

import gc

import pytest

from queueprop import guard


@pytest.fixture(autouse=True)
def _faults_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "raise_faults", True)


def pytest_collection_finish() -> None:
    """What there is before the first test stays to the end: a collection in a test looks at what tests have made."""
    gc.collect()
    gc.freeze()
