"""Whether a process is one in which spans would be lost: at its end, in its children, or under gevent."""

from __future__ import annotations

from collections.abc import Iterator

from queueprop.cli.doctor.facts import Facts
from queueprop.cli.doctor.findings import Finding
from queueprop.kit.libraries import ADAPTERS

SECTION = "process"
_STANDS_DOWN = "queueprop stands down"
_CONFIGURE = "set up the SDK by queueprop.sdk.configure_tracing(), which hands spans over at every end"


def findings(facts: Facts) -> Iterator[Finding]:
    """Of a program: how it may end, and what would be lost by that."""
    if facts.is_importing:
        text = "it still imported when it was looked into, so what it sets up later is not seen"
        yield Finding(SECTION, "imports", "note", text, "--seconds gives it longer")
    found = list(_losses(facts))
    yield from found
    if not found and facts.provider is not None:
        how = "configure_tracing() hands spans over at exit, on SIGTERM and in children"
        text = how if facts.is_configured_by_queueprop else "nothing is seen by which spans would be lost"
        yield Finding(SECTION, "end of the process", "ok", text)
    for line in facts.said:
        if _STANDS_DOWN in line:
            continue  # it is told of with its library
        yield Finding(SECTION, "queueprop said", "problem", line)
    for line in facts.troubles:
        yield Finding(SECTION, "not looked at", "note", line)


def _losses(facts: Facts) -> Iterator[Finding]:
    batches = [each for each in facts.processors if each.get("is_batch") is True]
    if facts.provider is None or not batches:
        return  # nothing waits in a batch, so nothing is lost
    if facts.uwsgi is not None:
        yield from _uwsgi(facts)
    if facts.is_configured_by_queueprop:
        return
    if facts.sigterm == "default":
        text = "SIGTERM ends this process at once, and the spans that wait in a batch (by default up to 5 s) are lost"
        yield Finding(SECTION, "SIGTERM", "problem", text, _CONFIGURE)
    if facts.green and any("native" in _locks(each) for each in batches):
        text = (
            f"{facts.green} has patched threads after the batch processor was made: that one's native locks stop every "
            "greenlet, or its thread never runs"
        )
        yield Finding(SECTION, facts.green, "problem", text, f"patch first, or {_CONFIGURE}")
    if "celery" in facts.running and "celery.concurrency.prefork" in facts.modules:
        yield from _celery(facts)
    if "rq" in facts.running and not _is_instrumented("rq", facts):
        text = "a work horse ends in os._exit, and its last spans are lost (SimpleWorker has none)"
        yield Finding(
            SECTION, "RQ's work horses", "problem", text, f'queueprop.instrument("rq"), or {_CONFIGURE}'
        )


def _celery(facts: Facts) -> Iterator[Finding]:
    if _is_instrumented("celery", facts) or facts.worker_hooks:
        return
    text = "the children of the prefork pool have no hook at their end: the last spans of each are lost"
    yield Finding(
        SECTION, "Celery's prefork pool", "problem", text, f'queueprop.instrument("celery"), or {_CONFIGURE}'
    )


def _uwsgi(facts: Facts) -> Iterator[Finding]:
    options = facts.uwsgi or {}
    if options.get("threads") is not True:
        text = "uWSGI runs without threads, so nothing is exported"
        yield Finding(SECTION, "uWSGI", "problem", text, "enable-threads = true")
    if options.get("lazy") is not True:
        text = "uWSGI forks after the application was loaded, and its fork tells Python's hooks nothing"
        yield Finding(SECTION, "uWSGI", "problem", text, "lazy-apps = true, or set up the SDK in @postfork")


def _locks(processor: object) -> list[str]:
    found = processor.get("locks") if isinstance(processor, dict) else None
    return found if isinstance(found, list) else []


def _is_instrumented(library: str, facts: Facts) -> bool:
    return facts.is_instrumented(ADAPTERS[library])
