"""Celery's own tests end the same with queueprop on as off: those of publishing, tasks, canvas, beat and workers."""

from __future__ import annotations

import pytest

pytest.importorskip("celery")
pytest.importorskip("freezegun", reason="Celery's own tests want it")

from integration.brokers import Unavailable, in_ci
from integration.celery_suite import Outcomes, Run, differences

FILES = (
    "t/unit/app/test_amqp.py",
    "t/unit/app/test_amqp_callback_publish.py",
    "t/unit/app/test_app.py",
    "t/unit/app/test_beat.py",
    "t/unit/app/test_builtins.py",
    "t/unit/app/test_celery.py",
    "t/unit/app/test_control.py",
    "t/unit/app/test_trace.py",
    "t/unit/test_canvas.py",
    "t/unit/tasks",
    "t/unit/worker",
    "t/unit/concurrency",
    "t/unit/contrib/test_worker.py",
)

LEFT_OUT = (
    "t/unit/concurrency/test_prefork.py",
    "t/unit/tasks/test_stamping.py::test_canvas_stamping::test_stamp_in_options",
    "t/unit/tasks/test_stamping.py::test_canvas_stamping::test_stamping_headers_in_options",
    "t/unit/worker/test_worker.py::test_WorkController::test_with_autoscaler_file_descriptor_safety",
    "t/unit/worker/test_worker.py::test_WorkController::test_with_file_descriptor_safety",
    "t/unit/worker/test_native_delayed_delivery.py::test_DelayedDelivery::test_retry_over_time_with_float_return",
    "t/unit/worker/test_native_delayed_delivery.py::test_DelayedDelivery::test_bind_retries_on_retried_exception",
)
"""What takes most of the time, and has no message in it: a pool's pipes, 27,000 combinations of options, sleeps."""

DIFFERENT: dict[str, str] = {}
"""What must differ: a test's id, and why."""

TRACED = ("celery", "kombu")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcomes, Outcomes]:
    """Plain and traced, both at once."""
    try:
        plain, traced = (
            Run(tmp_path_factory.mktemp(name), FILES, LEFT_OUT, libraries)
            for name, libraries in (("plain", ()), ("traced", TRACED))
        )
    except Unavailable as reason:
        if in_ci():
            pytest.fail(str(reason), pytrace=False)
        pytest.skip(str(reason))
    return plain.result(), traced.result()


def test_celery_s_own_tests_end_the_same(runs: tuple[Outcomes, Outcomes]) -> None:
    """Every test of Celery's has the outcome, and every subtest, that it has without queueprop."""
    plain, traced = runs
    assert len(plain.of) > 1500, plain.log[-5000:]
    different = differences(plain, traced)
    unexpected = {name: both for name, both in different.items() if name not in DIFFERENT}
    assert unexpected == {}, traced.log[-20_000:]
    assert set(different) == set(DIFFERENT)


def test_queueprop_was_on_in_one_of_them(runs: tuple[Outcomes, Outcomes]) -> None:
    """The comparison says something: in the one no span was made, in the other there were both kinds."""
    plain, traced = runs
    assert plain.spans == {}
    assert traced.spans["queueprop PRODUCER"] > 100
    assert traced.spans["queueprop CONSUMER"] > 500
