"""Capturing spans, judging them, and the pytest plugin."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, StatusCode, TraceFlags, TraceState
from opentelemetry.util._once import Once

import pytest_queueprop
import queueprop
from queueprop.process.flush import flush
from queueprop.testing import (
    CapturedSpans,
    MissingSDK,
    _capture,
    assert_no_orphans,
    capture_spans,
    orphans,
)
from queueprop.testing.tree import Reference, SpanRecord

pytest_plugins = ["pytester"]

# By module, and not a second time by its entry point where that is installed.
PLUGIN = ("-p", "no:queueprop", "-p", "pytest_queueprop", "-p", "no:cacheprovider")

MISSING_SDK = 'queueprop.testing needs the OpenTelemetry SDK: pip install "queueprop[sdk]"'


@pytest.fixture
def no_global_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenTelemetry's state as it is before anybody has set a provider; put back after the test."""
    monkeypatch.delenv("OTEL_PYTHON_TRACER_PROVIDER", raising=False)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER_SET_ONCE", Once())


@pytest.fixture
def spans() -> Iterator[CapturedSpans]:
    """A capture on a provider of its own."""
    with capture_spans(TracerProvider(shutdown_on_exit=False)) as captured:
        yield captured


def tracer(spans: CapturedSpans) -> trace.Tracer:
    return spans.tracer_provider.get_tracer("test")


def remote(span: Span) -> SpanContext:
    """The context of a span as it comes out of a message's headers."""
    context = span.get_span_context()
    return SpanContext(context.trace_id, context.span_id, is_remote=True, trace_flags=context.trace_flags)


def publish(spans: CapturedSpans, destination: str = "orders", kind: SpanKind = SpanKind.PRODUCER) -> Span:
    """An ended span whose context goes with a message."""
    span = tracer(spans).start_span(
        f"publish {destination}", kind=kind, attributes={"messaging.destination.name": destination}
    )
    span.end()
    return span


def process(
    spans: CapturedSpans,
    parent: SpanContext | None = None,
    links: tuple[SpanContext, ...] = (),
    destination: str | None = "orders",
) -> None:
    """An ended CONSUMER span."""
    context = trace.set_span_in_context(trace.NonRecordingSpan(parent or trace.INVALID_SPAN_CONTEXT))
    tracer(spans).start_span(
        f"process {destination}",
        context,
        SpanKind.CONSUMER,
        {"messaging.destination.name": destination} if destination else None,
        [Link(link) for link in links],
    ).end()


def test_a_capture_holds_the_spans_that_end_in_it() -> None:
    """Not those before and after it, and in the order of their end."""
    provider = TracerProvider(shutdown_on_exit=False)
    tracer = provider.get_tracer("test")
    tracer.start_span("before").end()
    with capture_spans(provider) as spans:
        with tracer.start_as_current_span("outer"):
            tracer.start_span("inner").end()
        assert spans.tracer_provider is provider
    tracer.start_span("after").end()
    assert [span.name for span in spans] == ["inner", "outer"]
    assert len(spans) == 2
    assert spans[-1].name == "outer"
    assert [span.name for span in spans[:1]] == ["inner"]
    assert repr(spans) == "<CapturedSpans 2: INTERNAL inner, INTERNAL outer>"


def test_captures_nest() -> None:
    """Each gets every span that ends while it is open."""
    provider = TracerProvider(shutdown_on_exit=False)
    tracer = provider.get_tracer("test")
    with capture_spans(provider) as outer:
        with capture_spans(provider) as inner:
            tracer.start_span("both").end()
        tracer.start_span("outer only").end()
    assert [span.name for span in inner] == ["both"]
    assert [span.name for span in outer] == ["both", "outer only"]


def test_many_captures_add_one_processor() -> None:
    """A provider cannot lose a processor again, so a suite of tests must not pile them up."""
    added: list[SpanProcessor] = []

    class Counting(TracerProvider):
        def add_span_processor(self, span_processor: SpanProcessor) -> None:
            added.append(span_processor)
            super().add_span_processor(span_processor)

    provider = Counting(shutdown_on_exit=False)
    for _ in range(3):
        with capture_spans(provider) as spans:
            provider.get_tracer("test").start_span("one").end()
        assert len(spans) == 1
    assert len(added) == 1


def test_an_exception_ends_the_capture() -> None:
    """It goes through, and nothing is captured after it."""
    provider = TracerProvider(shutdown_on_exit=False)
    with pytest.raises(ValueError, match="mine"), capture_spans(provider) as spans:
        raise ValueError("mine")
    provider.get_tracer("test").start_span("after").end()
    assert list(spans) == []


def test_what_would_not_be_exported_is_not_captured() -> None:
    """A span that was sampled out leaves nothing, as with an exporter; so does one that is only recorded."""
    provider = TracerProvider(ALWAYS_OFF, shutdown_on_exit=False)
    with capture_spans(provider) as spans:
        provider.get_tracer("test").start_span("dropped").end()
        recorder = _capture.recorder_of(provider)
        recorder.on_end(ReadableSpan("recorded only", SpanContext(1, 1, False)))
        recorder.on_end(ReadableSpan("without a context"))
    assert list(spans) == []


def test_spans_are_found_by_name_kind_and_trace(spans: CapturedSpans) -> None:
    """`named`, `kind` and `trace` give the spans that match, all of them and no others."""
    first, second = publish(spans), publish(spans)
    process(spans, remote(first))
    assert [span.context for span in spans.named("publish orders")] == [
        first.get_span_context(),
        second.get_span_context(),
    ]
    assert [span.name for span in spans.kind(SpanKind.CONSUMER)] == ["process orders"]
    assert [span.name for span in spans.trace(first.get_span_context().trace_id)] == [
        "publish orders",
        "process orders",
    ]
    assert spans.tree().count("trace ") == 2


def test_clear_forgets_and_goes_on(spans: CapturedSpans) -> None:
    """What ends after `clear()` is captured."""
    publish(spans, "first")
    spans.clear()
    publish(spans, "second")
    assert [span.name for span in spans] == ["publish second"]


def test_wait_for_wakes_at_the_span_of_another_thread(spans: CapturedSpans) -> None:
    """It blocks until the count is reached by spans that match, and returns those."""
    waiting = threading.Event()

    def work() -> None:
        waiting.wait()
        publish(spans)
        process(spans)
        process(spans)

    thread = threading.Thread(target=work)
    thread.start()
    waiting.set()
    found = spans.wait_for(2, timeout=60, kind=SpanKind.CONSUMER)
    thread.join()
    assert [span.name for span in found] == ["process orders", "process orders"]
    assert len(spans.wait_for(1, timeout=0, name="publish orders")) == 1
    assert len(spans.wait_for(3, timeout=0)) == 3


@pytest.mark.parametrize(
    ("name", "kind", "wanted"),
    [
        (None, None, "2 spans to end, 1 did"),
        ("publish orders", None, "2 spans named 'publish orders' to end, 1 did"),
        (None, SpanKind.CONSUMER, "2 CONSUMER spans to end, 0 did"),
    ],
)
def test_wait_for_gives_up_with_what_came(
    spans: CapturedSpans, name: str | None, kind: SpanKind | None, wanted: str
) -> None:
    """TimeoutError says what was waited for and draws what there is."""
    publish(spans)
    with pytest.raises(TimeoutError) as error:
        spans.wait_for(2, timeout=0.01, name=name, kind=kind)
    assert str(error.value).startswith(f"waited 0.01 s for {wanted}\n\ntrace ")
    assert "PRODUCER publish orders" in str(error.value)


def test_a_forks_spans_stay_out_of_the_way(spans: CapturedSpans, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that was forked while another thread held the capture's lock does not wait for it."""
    publish(spans, "parent")
    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: -1)
        ended = threading.Thread(target=publish, args=(spans, "child"), daemon=True)
        with spans._changed:
            ended.start()
            ended.join(60)
            assert not ended.is_alive()
        assert [span.name for span in spans] == ["publish parent"]  # in the child: it reads nothing
    assert [span.name for span in spans] == ["publish parent", "publish child"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_spans_of_a_fork_are_captured_whole() -> None:
    """A child that ends in `os._exit`, as RQ's work horse does: its span has all that it had there, in order of end."""
    provider = TracerProvider(resource=Resource({"service.name": "mailer"}), shutdown_on_exit=False)
    state = TraceState.from_header(["vendor=1"])
    producer = SpanContext(7, 8, is_remote=True, trace_flags=TraceFlags(1), trace_state=state)
    with capture_spans(provider) as spans:
        if not (child := os.fork()):
            try:
                parent = trace.set_span_in_context(trace.NonRecordingSpan(producer))
                span = provider.get_tracer("horse", "1.0").start_span(
                    "process mails",
                    parent,
                    SpanKind.CONSUMER,
                    {"messaging.destination.name": "mails", "numbers": (1, 2)},
                    [Link(producer, {"opentracing.ref_type": "child_of"})],
                )
                span.record_exception(ValueError("no such mailbox"))
                span.set_status(StatusCode.ERROR, "no such mailbox")
                span.end()
            finally:
                os._exit(0)
        (found,) = spans.wait_for(1, timeout=60)
        os.waitpid(child, 0)
        publish(spans, "afterwards")
    assert [span.name for span in spans] == ["process mails", "publish afterwards"]
    assert (found.kind, found.parent) == (SpanKind.CONSUMER, producer)
    assert found.parent is not None
    assert found.parent.is_remote
    assert found.parent.trace_state == state
    assert [(link.context, dict(link.attributes or {})) for link in found.links] == [
        (producer, {"opentracing.ref_type": "child_of"})
    ]
    assert dict(found.attributes or {}) == {"messaging.destination.name": "mails", "numbers": (1, 2)}
    assert (found.status.status_code, found.status.description) == (StatusCode.ERROR, "no such mailbox")
    assert [event.name for event in found.events] == ["exception"]
    assert found.resource.attributes["service.name"] == "mailer"
    assert found.instrumentation_scope is not None
    assert (found.instrumentation_scope.name, found.instrumentation_scope.version) == ("horse", "1.0")
    assert orphans(spans) == []


def test_a_child_that_closed_what_it_inherited_writes_nowhere_else(
    spans: CapturedSpans, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As a daemon does: where the descriptor is closed, or another file's by now, the span is lost and nothing else."""
    assert spans._forks is not None
    theirs = (tmp_path / "theirs").open("wb+")
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with monkeypatch.context() as closed:
        closed.setattr(spans._forks._file, "close", lambda: None)
        kept = os.dup(spans._forks._file.fileno())
        os.dup2(theirs.fileno(), spans._forks._file.fileno())
        publish(spans, "into another's file")
        os.dup2(kept, spans._forks._file.fileno())
        os.close(kept)
    spans._forks.close()
    publish(spans, "into nothing")
    monkeypatch.undo()
    assert theirs.read() == b""
    assert list(spans) == []


def test_a_span_that_is_still_being_written_is_waited_for(spans: CapturedSpans) -> None:
    """The parent reads whole spans alone, and a span without resource and scope is one."""
    assert spans._forks is not None
    spans._forks.append(ReadableSpan("first", SpanContext(1, 2, False), resource=Resource({})))
    whole = os.pread(spans._forks._file.fileno(), 1 << 16, 0)
    spans._forks._file.write(whole[:50])
    assert [span.name for span in spans] == ["first"]
    spans._forks._file.write(whole[50:])
    assert [span.name for span in spans] == ["first", "first"]


@pytest.mark.usefixtures("no_global_provider")
def test_the_global_provider_is_captured() -> None:
    """The one that the program has set, with its own processors as they are."""
    provider = TracerProvider(shutdown_on_exit=False)
    trace.set_tracer_provider(provider)
    with capture_spans() as spans:
        trace.get_tracer("test").start_span("one").end()
    assert spans.tracer_provider is provider
    assert [span.name for span in spans] == ["one"]


@pytest.mark.usefixtures("no_global_provider")
def test_a_provider_is_set_where_there_is_none() -> None:
    """Tracers taken before, outside and inside of captures record inside, again and again, and only there."""
    before = trace.get_tracer("before")

    @before.start_as_current_span("decorated")
    def decorated() -> Span:
        return trace.get_current_span()

    with capture_spans() as spans:
        decorated()
        before.start_span("early tracer").end()
        inside = trace.get_tracer("inside")
        inside.start_span("inside").end()
    assert [span.name for span in spans] == ["decorated", "early tracer", "inside"]
    assert not decorated().is_recording()
    assert not inside.start_span("between").is_recording()
    with capture_spans() as again:
        decorated()
        inside.start_span("again").end()
        trace.get_tracer("inside").start_span("same tracer").end()
    assert [span.name for span in again] == ["decorated", "again", "same tracer"]
    assert len(spans) == 3


@pytest.mark.usefixtures("no_global_provider")
def test_outside_of_captures_there_is_as_good_as_no_sdk() -> None:
    """A context that came in is carried on unrecorded, and without one there is no valid span."""
    with capture_spans():
        tracer = trace.get_tracer("test")
    incoming = SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(1))
    with trace.use_span(trace.NonRecordingSpan(incoming)), tracer.start_as_current_span("a") as span:
        assert span.get_span_context() == incoming
        assert not span.is_recording()
    assert not tracer.start_span("b").get_span_context().is_valid


@pytest.mark.usefixtures("no_global_provider")
def test_a_provider_that_cannot_be_captured_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    """The capture has a provider of its own to pass on, and the failure says why nothing came."""
    theirs = trace.NoOpTracerProvider()
    trace.set_tracer_provider(theirs)
    with capture_spans() as spans:
        trace.get_tracer("test").start_span("lost").end()
        assert trace.get_tracer_provider() is theirs
        with pytest.raises(AssertionError, match="NoOpTracerProvider, is not the captured one"):
            assert_no_orphans(spans)
        tracer(spans).start_span("found").end()
    assert [span.name for span in spans] == ["found"]
    assert not caplog.records


def test_a_provider_without_processors_is_refused_clearly() -> None:
    """Passed by hand it is a mistake, told in one line."""
    with (
        pytest.raises(TypeError, match=r"wants the SDK's TracerProvider, not NoOpTracerProvider"),
        capture_spans(trace.NoOpTracerProvider()),  # type: ignore[arg-type]
    ):
        pass


def test_without_the_sdk_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """`capture_spans` raises MissingSDK, and the module itself has been imported."""
    monkeypatch.delitem(sys.modules, "queueprop.testing._capture")
    monkeypatch.delattr(sys.modules["queueprop.testing"], "_capture")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(MissingSDK) as error, capture_spans():
        pass
    assert str(error.value) == MISSING_SDK


def test_a_broken_import_is_not_taken_for_a_missing_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another module that is not there is told as it is."""
    monkeypatch.delitem(sys.modules, "queueprop.testing._capture")
    monkeypatch.delattr(sys.modules["queueprop.testing"], "_capture")
    monkeypatch.setitem(sys.modules, "opentelemetry.util.types", None)
    with pytest.raises(ModuleNotFoundError, match=r"opentelemetry\.util\.types"), capture_spans():
        pass


def test_traced_messages_are_no_orphans(spans: CapturedSpans) -> None:
    """Parent and link, link only (also beside an ambient parent), a batch of two traces."""
    first, second = publish(spans), publish(spans)
    process(spans, remote(first), (remote(first),))
    process(spans, None, (remote(first),))
    process(spans, None, (remote(first), remote(second)))
    with tracer(spans).start_as_current_span("poll") as poll:
        process(spans, poll.get_span_context(), (remote(second),))
    assert orphans(spans) == []
    assert_no_orphans(spans)
    assert_no_orphans(spans, expect=4)


def test_a_handler_that_runs_within_the_publish_is_no_orphan(spans: CapturedSpans) -> None:
    """Eager modes run the job inside the PRODUCER span, whose local child it is."""
    process(spans, publish(spans).get_span_context())
    assert orphans(spans) == []


def test_a_remote_context_needs_no_captured_producer(spans: CapturedSpans) -> None:
    """The producer may live elsewhere, or be no PRODUCER span: a context that came from headers is enough."""
    process(spans, SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(1)))
    process(spans, remote(publish(spans, kind=SpanKind.SERVER)))
    assert orphans(spans) == []


def test_other_kinds_are_never_orphans(spans: CapturedSpans) -> None:
    """Only CONSUMER spans come from a message."""
    publish(spans)
    assert orphans(spans) == []


@pytest.mark.parametrize("published", [True, False])
def test_a_root_is_an_orphan(spans: CapturedSpans, published: bool) -> None:
    """Also when it links to the local span that was current around it, captured or still open."""
    if published:
        publish(spans)
        publish(spans, "others")
    with tracer(spans).start_as_current_span("poll") as poll:
        process(spans)
        process(spans, None, (poll.get_span_context(),))
    assert orphans(spans) == spans.kind(SpanKind.CONSUMER)
    with pytest.raises(AssertionError) as error:
        assert_no_orphans(spans)
    message = str(error.value)
    assert message.startswith(
        "2 of 2 CONSUMER spans orphaned, outside the trace of their message:\n  process orders (span "
    )
    assert ("although a publish to that destination was captured" in message) is published
    assert ("Likely the producer is not instrumented" in message) is not published
    assert "from orders: a root without a link" in message
    assert "from orders: a root that links only to a local span" in message
    assert message.endswith(spans.tree())


def test_rabbitmqs_longer_consumer_name_is_the_publishs(spans: CapturedSpans) -> None:
    """A consumer's destination that appends the queue is recognised as the one that was published to."""
    publish(spans, "shop:orders")
    process(spans, destination="shop:orders:mail-queue")
    with pytest.raises(AssertionError, match="although a publish to that destination was captured"):
        assert_no_orphans(spans)


def test_a_child_of_the_local_span_around_it_is_an_orphan(spans: CapturedSpans) -> None:
    """It is in a trace, even the producer's, but by accident: the message's context was not read."""
    with tracer(spans).start_as_current_span("request") as request:
        publish(spans)
        process(spans, request.get_span_context(), destination=None)
        with pytest.raises(
            AssertionError, match=r"from an unnamed destination: a child of span [0-9a-f]{16}, which"
        ):
            assert_no_orphans(spans)
    assert len(orphans(spans)) == 1
    with pytest.raises(AssertionError, match="a child of INTERNAL request, which was current"):
        assert_no_orphans(spans)


def test_spans_of_several_processes_are_judged_as_json() -> None:
    """The parsed `to_json()` is given back as it was, and judged by process where nothing says remote."""

    def capture(service: str) -> CapturedSpans:
        return CapturedSpans(
            TracerProvider(resource=Resource({"service.name": service}), shutdown_on_exit=False)
        )

    shop, mailer = capture("shop"), capture("mailer")
    with capture_spans(shop.tracer_provider) as sent, capture_spans(mailer.tracer_provider) as handled:
        by_hand = publish(shop, kind=SpanKind.SERVER)
        process(mailer, by_hand.get_span_context())
        process(mailer, publish(shop).get_span_context())
        process(mailer, None, (SpanContext(7, 8, is_remote=True, trace_flags=TraceFlags(1)),))
        local = publish(mailer, "local", kind=SpanKind.INTERNAL)
        process(mailer, local.get_span_context(), destination="lost")
    parsed = [json.loads(span.to_json()) for span in [*sent, *handled]]
    assert orphans(parsed) == [span for span in parsed if span["name"] == "process lost"]


def test_records_are_judged_too() -> None:
    """`SpanRecord` is taken as it is."""
    root = SpanRecord("process orders", "1" * 32, "2" * 16, "CONSUMER")
    child = SpanRecord("process orders", "1" * 32, "3" * 16, "CONSUMER", Reference("1" * 32, "4" * 16, True))
    assert orphans([root, child]) == [root]


def test_an_assertion_on_nothing_fails(spans: CapturedSpans) -> None:
    """Without a CONSUMER span there was nothing to judge, unless none is what was expected."""
    publish(spans)
    with pytest.raises(
        AssertionError, match=r"0 CONSUMER spans, expected at least 1\. A span counts once it has ended"
    ):
        assert_no_orphans(spans)
    with pytest.raises(AssertionError, match="0 CONSUMER spans, expected at least 1"):
        assert_no_orphans([])
    assert_no_orphans(spans, expect=0)


def test_expect_is_an_exact_number(spans: CapturedSpans) -> None:
    """More or fewer CONSUMER spans than expected fail: doubles and losses are bugs too."""
    process(spans, remote(publish(spans)))
    assert_no_orphans(spans, expect=1)
    for wrong in (0, 2):
        with pytest.raises(AssertionError, match=f"1 CONSUMER spans, expected {wrong}"):
            assert_no_orphans(spans, expect=wrong)


def test_allow_names_destinations_without_a_context(spans: CapturedSpans) -> None:
    """Messages of producers that are known not to be instrumented may be roots, by name or pattern."""
    process(spans, destination="legacy.orders")
    assert_no_orphans(spans, allow=["legacy.*"])
    assert_no_orphans(spans, allow="legacy.orders")
    with pytest.raises(AssertionError, match=r"1 of 1 CONSUMER spans orphaned"):
        assert_no_orphans(spans, allow=["other"])


@pytest.mark.usefixtures("no_global_provider")
def test_the_fixture_captures_each_test_by_itself(pytester: pytest.Pytester) -> None:
    """A test sees the spans of its own, with nothing set up, and none of the test before it."""
    pytester.makepyfile(
        """
        import pytest
        from opentelemetry import trace

        @pytest.mark.parametrize("name", ["first", "second"])
        def test_one(captured_spans, name):
            trace.get_tracer("app").start_span(name).end()
            assert [span.name for span in captured_spans] == [name]

        def test_off():
            assert not trace.get_tracer("app").start_span("off").is_recording()
        """
    )
    pytester.runpytest_inprocess(*PLUGIN).assert_outcomes(passed=3)


def test_the_fixture_fails_with_one_line_without_the_sdk(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test that wants it errs with what to install, no traceback; the tests beside it run."""
    pytester.makepyfile(
        """
        def test_wants(captured_spans): ...

        def test_beside(): ...
        """
    )
    monkeypatch.delitem(sys.modules, "queueprop.testing._capture")
    monkeypatch.delattr(sys.modules["queueprop.testing"], "_capture")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    result = pytester.runpytest_inprocess(*PLUGIN)
    result.assert_outcomes(passed=1, errors=1)
    assert MISSING_SDK in result.outlines
    result.stdout.no_fnmatch_line("*exception*")


NO_SDK = """
    import sys

    class Blocker:
        def find_spec(self, name, path=None, target=None):
            if name.startswith("opentelemetry.sdk"):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Blocker())
"""


def test_the_plugin_loads_in_a_process_without_the_sdk(pytester: pytest.Pytester) -> None:
    """A run of its own, where the SDK cannot be imported at all: only the fixture fails."""
    pytester.makepyfile(
        no_sdk=NO_SDK,
        test_it="""
        def test_wants(captured_spans): ...

        def test_judges():
            from queueprop.testing import assert_no_orphans
            assert_no_orphans([], expect=0)
        """,
    )
    result = pytester.runpytest_subprocess("-p", "no_sdk", *PLUGIN)
    result.assert_outcomes(passed=1, errors=1)
    assert MISSING_SDK in result.outlines


def test_the_plugin_costs_a_run_nothing_that_it_does_not_use(pytester: pytest.Pytester) -> None:
    """Nothing of the package, nor the SDK, is imported before a test asks for the fixture: coverage sees all of it."""
    seen_as_a_wheel(pytester)
    pytester.makepyfile(
        """
        import sys

        def test_lazy(request):
            assert "pytest_queueprop" in sys.modules
            heavy = ("opentelemetry.sdk", "queueprop")
            assert not [name for name in sys.modules if name.startswith(heavy)]
            request.getfixturevalue("captured_spans")
            assert "opentelemetry.sdk.trace" in sys.modules
        """
    )
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_the_package_is_not_rewritten_for_asserts(pytester: pytest.Pytester) -> None:
    """Pytest compiles every package that comes with a plugin for itself; ours has nothing to gain by that."""
    seen_as_a_wheel(pytester)
    pytester.makepyfile(
        """
        import queueprop.engine.engine
        import queueprop.testing.tree

        def test_loader():
            for module in (queueprop, queueprop.engine.engine, queueprop.testing.tree):
                assert "assertion" not in type(module.__loader__).__module__
        """
    )
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_a_run_that_has_imported_the_package_before_is_not_warned(pytester: pytest.Pytester) -> None:
    """With warnings as errors such a run would fail: of a package that it cannot rewrite any more, pytest warns."""
    seen_as_a_wheel(pytester)
    pytester.makepyfile("def test_it(captured_spans): ...")
    program = pytester.makepyfile(
        run="""
        import sys

        import queueprop.testing
        import pytest

        sys.exit(pytest.main(["-W", "error::pytest.PytestAssertRewriteWarning", "-p", "no:cacheprovider"]))
        """
    )
    result = pytester.runpython(program)
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*rewritten*")


def seen_as_a_wheel(pytester: pytest.Pytester) -> None:
    """Pytest sees the package as one that is installed from a wheel, also where it is installed from a checkout."""
    assert queueprop.__file__ is not None
    assert pytest_queueprop.__file__ is not None
    (pytester.path / "queueprop").symlink_to(
        Path(queueprop.__file__).parent
    )  # a file that is missing counts for none
    (pytester.path / "pytest_queueprop.py").symlink_to(pytest_queueprop.__file__)
    home = pytester.mkdir("as_a_wheel-1.dist-info")
    (home / "METADATA").write_text("Metadata-Version: 2.1\nName: as_a_wheel\nVersion: 1\n")
    (home / "entry_points.txt").write_text("[pytest11]\nqueueprop = pytest_queueprop\n")
    (home / "RECORD").write_text("pytest_queueprop.py,,\nqueueprop/__init__.py,,\nqueueprop/guard.py,,\n")


def test_a_flush_while_spans_are_captured_is_no_failure(captured_spans: CapturedSpans) -> None:
    """Nothing is held back, and so nothing was not handed over: with the oldest SDK as well."""
    assert flush(5.0)


def test_a_child_of_spans_that_nobody_captures_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """`CapturedSpans` outside of a capture has no file for its forks: what a child adds is left out."""
    spans = CapturedSpans(TracerProvider(shutdown_on_exit=False))
    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: -1)
        spans._add(ReadableSpan("child", SpanContext(1, 2, False)))
    assert list(spans) == []
