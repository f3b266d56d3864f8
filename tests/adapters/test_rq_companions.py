"""rq-scheduler and django-rq: whatever fails in queueprop, the call goes on. What works is shown live."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

pytest.importorskip("rq")
pytest.importorskip("rq_scheduler", reason="rq-scheduler is not installed")

import rq_scheduler
from rq import Queue

from queueprop.adapters import rq as adapter
from queueprop.adapters.rq import companions
from queueprop.adapters.rq.instrumentor import django_patches
from queueprop.engine.engine import engine_for
from queueprop.kit.instrumentor import Adapter, Companions, Patch
from queueprop.kit.rivals import Rivals
from queueprop.testing import CapturedSpans

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def work() -> None: ...


def _raise(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("ours")


@pytest.fixture
def scheduler() -> Any:
    connection = MagicMock()
    connection.connection_pool.connection_kwargs = {"host": "redis.example", "port": 6380}
    setattr(connection, "__rq_redis_server_version", (7, 0, 0))  # RQ 1.16 keeps it there, and compares it
    return rq_scheduler.Scheduler(queue_name="orders", connection=connection)


@pytest.fixture(params=["explicit", "instrumentor"])
def traced(request: pytest.FixtureRequest) -> Iterator[Callable[[Any], Any]]:
    if request.param == "explicit":
        yield adapter.traced_publish
        return
    instrumentor = adapter.RQInstrumentor()
    instrumentor.instrument()
    yield lambda call: call
    instrumentor.uninstrument()


@pytest.mark.parametrize("broken", ["destination_of", "with_carrier", "carrier_for"])
def test_a_schedule_is_made_whatever_fails_in_us(
    captured_spans: CapturedSpans,
    scheduler: Any,
    traced: Callable[[Any], Any],
    broken: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the caller's own meta, and nothing current that was not before."""
    monkeypatch.setattr("queueprop.guard.raise_faults", False)
    monkeypatch.setattr(companions, broken, _raise)
    job = traced(scheduler.enqueue_in)(timedelta(9), work, meta={"own": 1})
    assert job.meta == {"own": 1}
    scheduler.connection.zadd.assert_called_once()


def test_what_a_job_is_made_of_may_be_given_by_place(
    captured_spans: CapturedSpans, scheduler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a subclass may do where it makes the job: the context joins the caller's own meta."""

    def enqueue_in(self: Any, time_delta: timedelta, func: Any) -> Any:
        given = (None, None, True, None, None, "mine", None, "payments", None, {"own": 1})
        return self._create_job(func, *given)

    monkeypatch.setattr(rq_scheduler.Scheduler, "enqueue_in", enqueue_in)
    hooks = companions.Schedulers(engine_for())
    traced_scheduler = hooks.traced(scheduler, lambda wrapped, _, args, kwargs: wrapped(*args, **kwargs))
    job = traced_scheduler.enqueue_in(timedelta(9), work)
    [span] = captured_spans
    assert (job.id, job.meta["own"], list(job.meta["queueprop"])) == ("mine", 1, ["traceparent"])
    assert span.name == "publish payments"
    assert (span.attributes or {})["messaging.message.id"] == "mine"


def test_a_time_that_is_none_of_rq_scheduler_s_is_refused_by_it(
    captured_spans: CapturedSpans, scheduler: Any, traced: Callable[[Any], Any]
) -> None:
    """Its own exception comes out, and is on the span, which tells no delay."""
    with pytest.raises(AttributeError, match="utctimetuple"):
        traced(scheduler.enqueue_at)("tomorrow", work)
    [span] = captured_spans
    assert "queueprop.message.delay" not in (span.attributes or {})
    assert (span.attributes or {})["error.type"] == "AttributeError"


class Postponing(Queue):
    """As django-rq's, whose import wants Django's settings."""

    postponed: list[Callable[[], Any]]

    def original_enqueue_call(self, *args: Any, **kwargs: Any) -> Any:
        return args

    def enqueue_call(self, *args: Any, **kwargs: Any) -> Any:
        self.postponed.append(lambda: self.original_enqueue_call(*args, **kwargs))


class DjangoAdapter(Adapter):
    library = "rq"
    requires = ()
    rivals = Rivals("rq")

    def patches(self) -> Iterator[Patch]:
        return django_patches(SimpleNamespace(DjangoRQ=Postponing))

    def companions(self) -> Companions:
        return {}


def test_a_publish_is_postponed_whatever_fails_in_us(scheduler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same arguments, once."""
    monkeypatch.setattr("queueprop.guard.raise_faults", False)
    monkeypatch.setattr(companions, "stay_in_context", _raise)
    queue = Postponing("orders", connection=scheduler.connection)
    queue.postponed = []
    instrumentor = DjangoAdapter()
    instrumentor.instrument()
    try:
        queue.enqueue_call(1, 2)
    finally:
        instrumentor.uninstrument()
    assert [publish() for publish in queue.postponed] == [(1, 2)]
