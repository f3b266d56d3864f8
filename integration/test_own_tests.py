"""The documentation's test of one's own traces, as a project has it: a pytest run of its own, with the plugin."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

JOBS = """
from opentelemetry import trace


def send_mail(order):
    with trace.get_tracer("mailer").start_as_current_span("send mail"):
        pass
"""

TEST = """
import os

from redis import Redis
from rq import Queue, {worker}

import queueprop
from jobs import send_mail
from queueprop.testing import assert_no_orphans


def test_the_mail_is_in_the_trace_of_the_order(captured_spans):
    queueprop.instrument("rq")
    redis = Redis.from_url(os.environ["REDIS_URL"])
    mails = Queue("own-tests", connection=redis)
    mails.enqueue(send_mail, 1)
    {worker}([mails], connection=redis).work(burst=True)
    assert_no_orphans(captured_spans, expect=1)
    (mail,), (process,) = captured_spans.named("send mail"), captured_spans.named("process own-tests")
    assert mail.parent.span_id == process.context.span_id
"""


@pytest.mark.parametrize("worker", ["Worker", "SimpleWorker"])
def test_a_worker_s_job_is_captured(worker: str, redis_url: str, tmp_path: Path) -> None:
    """RQ's Worker forks a work horse, which ends in `os._exit`: its spans are seen as SimpleWorker's are."""
    (tmp_path / "jobs.py").write_text(JOBS, encoding="utf-8")
    (tmp_path / "test_mails.py").write_text(TEST.format(worker=worker), encoding="utf-8")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mails.py"],
        cwd=tmp_path,
        env={**os.environ, "REDIS_URL": redis_url, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
