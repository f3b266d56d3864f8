"""What of the context goes out where a library has a limit of bytes."""

from __future__ import annotations

from typing import Any

import pytest

from queueprop.kit.fitting import fitted, sent_shorter

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


@pytest.mark.parametrize(
    ("limit", "sent"),
    [
        (355, [{"tenant", "traceparent", "tracestate"}]),
        (155, [{"tenant", "traceparent", "tracestate"}, {"tenant", "traceparent"}]),
        (54, [{"tenant", "traceparent", "tracestate"}, {"tenant", "traceparent"}, {"tenant"}]),
        (0, [{"tenant", "traceparent", "tracestate"}, {"tenant", "traceparent"}, {"tenant"}]),
    ],
)
def test_a_library_that_alone_knows_its_limit(
    limit: int, sent: list[set[str]], caplog: pytest.LogCaptureFixture
) -> None:
    """It is asked with less and less, up to the first that it takes; a stale context goes with ours. One line tells of
    a message that went out without one."""
    tried: list[set[str]] = []

    def send(headers: dict[str, str]) -> bool:
        tried.append(set(headers))
        return sum(map(len, headers.values())) <= limit

    assert sent_shorter(WRITTEN, dict(GIVEN), send, "publishing in a test", "orders") is (limit > 0)
    assert tried == sent
    assert len(WRITTEN) == 4
    assert ("leaves no room" in caplog.text) is (limit == 54)
