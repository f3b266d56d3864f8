"""The pytest plugin: the fixture `captured_spans`.

Every pytest run of an environment with queueprop loads this module: it imports nothing that the run may not
need.
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
