"""What of the context goes out where a library has a limit of bytes."""

from __future__ import annotations

from typing import Any

import pytest

from queueprop.kit.fitting import fitted

GIVEN = {"tenant": "a", "traceparent": "stale"}
WRITTEN = {"tenant": "a", "traceparent": "t" * 55, "tracestate": "s" * 100, "baggage": "b" * 200}


def _fitted(limit: int) -> Any:
    def fits(headers: dict[str, str]) -> bool:
        return sum(map(len, headers.values())) <= limit

    return fitted(WRITTEN, lambda: dict(GIVEN), fits, "publishing in a test", "orders")


def test_all_of_it_where_it_fits() -> None:
    """The very headers that were written."""
    assert _fitted(356) is WRITTEN


@pytest.mark.parametrize(
    ("limit", "names"), [(355, {"tenant", "traceparent", "tracestate"}), (155, {"tenant", "traceparent"})]
)
def test_baggage_goes_first_then_the_tracestate(
    limit: int, names: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The message stays in its trace, and nothing is said; what was written is left alone."""
    assert set(_fitted(limit)) == names
    assert len(WRITTEN) == 4
    assert caplog.records == []


def test_without_room_for_a_traceparent_it_goes_out_without_a_context(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nor with the stale one that a forwarded message has; one line says so."""
    assert _fitted(54) == {"tenant": "a"}
    assert "publishing in a test (to orders): a message leaves no room for a trace context" in caplog.text


def test_what_is_too_large_without_us_goes_out_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    """The library answers what it would have answered."""
    assert _fitted(3) == GIVEN
    assert caplog.records == []
