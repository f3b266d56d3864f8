"""In our own suite a fault of ours fails the test instead of hiding in a log. (Nobody else's suite does this.)"""

import contextlib
import gc

import pytest

from queueprop import guard

with contextlib.suppress(ImportError):  # the environment without any extra has none
    from hypothesis import HealthCheck, settings

    # A property has no time limit, neither for an example nor for making one: a busy machine is no failure. It is here
    # and not beside most of them, because a profile holds for what is decorated after it was loaded.
    settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("tests")


@pytest.fixture(autouse=True)
def _faults_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "raise_faults", True)


@pytest.fixture(autouse=True, scope="module")
def _what_there_is_stays() -> None:
    """A collection in a test looks at what the tests of its file have made, and not at all that there is."""
    gc.collect()
    gc.freeze()
