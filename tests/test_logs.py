from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from queueprop.logs import TraceContextFilter, add_trace_context, patch_record

IDS = {
    "trace_id": "0000000000000000000000000000abcd",
    "span_id": "000000000000000f",
    "trace_flags": "01",
}


@contextmanager
def current_span(flags: int = 1) -> Iterator[None]:
    context = SpanContext(0xABCD, 0xF, is_remote=False, trace_flags=TraceFlags(flags))
    with trace.use_span(NonRecordingSpan(context)):
        yield


def record(**extra: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"msg": "hello", **extra})
    assert TraceContextFilter().filter(made) is True
    return made


def test_records_in_a_span_have_its_ids() -> None:
    """Lowercase hex of full length, as the conventions for log formats say."""
    with current_span():
        made = record()
    assert {name: made.__dict__[name] for name in IDS} == IDS


def test_records_without_a_span_have_empty_ids() -> None:
    """A format that names them works everywhere, and nothing looks like a trace."""
    made = record()
    assert {made.__dict__[name] for name in IDS} == {""}


def test_ids_that_a_record_has_already_stay() -> None:
    """A QueueHandler's filter has set them in the thread that logged; the listener's has another span."""
    with current_span():
        assert record(trace_id="theirs", span_id="", trace_flags="").__dict__["trace_id"] == "theirs"
        assert record(trace_id="", span_id="", trace_flags="").__dict__["span_id"] == ""


def test_a_handlers_format_can_name_them(caplog: pytest.LogCaptureFixture) -> None:
    """The filter works on a handler, for loggers below it as well."""
    handler = caplog.handler
    handler.addFilter(correlated := TraceContextFilter())
    try:
        with current_span():
            logging.getLogger("some.module").warning("hello")
    finally:
        handler.removeFilter(correlated)
    formatter = logging.Formatter("%(message)s %(trace_id)s %(span_id)s %(trace_flags)s")
    assert formatter.format(caplog.records[0]) == f"hello {' '.join(IDS.values())}"


@pytest.mark.parametrize(("flags", "text"), [(0, "00"), (2, "02"), (3, "03")])
def test_flags_are_two_digits(flags: int, text: str) -> None:
    """Sampled out, and the random flag of newer SDKs."""
    with current_span(flags):
        assert record().__dict__["trace_flags"] == text
        assert add_trace_context(None, "info", {})["trace_flags"] == text


def test_the_processor_adds_the_ids() -> None:
    """It changes the event that structlog hands it, and returns it."""
    event = {"event": "hello"}
    with current_span():
        assert add_trace_context(None, "info", event) is event
    assert event == {"event": "hello", **IDS}


def test_the_processor_adds_nothing_without_a_span() -> None:
    """No empty keys in structured logs."""
    assert add_trace_context(None, "info", {"event": "hello"}) == {"event": "hello"}


def test_the_processor_leaves_keys_of_the_users() -> None:
    """Who binds a trace id by hand keeps it."""
    with current_span():
        assert add_trace_context(None, "info", {"trace_id": "theirs"})["trace_id"] == "theirs"


def test_the_processor_fits_structlog() -> None:
    """In a real chain of processors."""
    structlog = pytest.importorskip("structlog")
    log = structlog.wrap_logger(
        structlog.PrintLogger(), processors=[add_trace_context, lambda _, __, event: pytest.fail(repr(event))]
    )
    with current_span(), pytest.raises(pytest.fail.Exception, match=IDS["trace_id"]):
        log.info("hello")


def test_lines_of_loguru_have_the_ids_of_where_they_were_logged() -> None:
    """Also when a thread of loguru's writes them; without a span they are empty, and what was bound stays."""
    loguru = pytest.importorskip("loguru", reason="loguru is not installed here")
    written: list[str] = []
    logger = loguru.logger
    handler = logger.add(written.append, format="{extra[trace_id]} {extra[span_id]} {message}", enqueue=True)
    try:
        logger.configure(patcher=patch_record)
        with current_span():
            logger.info("inside")
            logger.bind(trace_id="theirs").info("bound")
        logger.info("outside")
        logger.complete()
    finally:
        logger.remove(handler)
        logger.configure(patcher=lambda record: None)
    ids = f"{IDS['trace_id']} {IDS['span_id']}"
    assert written == [f"{ids} inside\n", f"theirs {IDS['span_id']} bound\n", "  outside\n"]


def test_a_record_of_loguru_needs_no_loguru() -> None:
    """What a patcher is given is a mapping with a dict `extra`."""
    with current_span():
        made: dict[str, dict[str, str]] = {"extra": {"trace_id": "theirs"}}
        patch_record(made)
    assert made["extra"] == {**IDS, "trace_id": "theirs"}
