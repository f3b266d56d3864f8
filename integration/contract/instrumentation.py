"""Behaviours of the instrumentor: 18, 19."""

from __future__ import annotations

import inspect
import itertools
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]

import queueprop
from integration.contract.actions import do
from integration.contract.driver import Driver
from integration.contract.run import Rig, Run
from integration.contract.scenario import scenario
from integration.contract.telemetry import PATIENCE
from queueprop.kit.instrumentor import Adapter
from queueprop.kit.rivals import Rival, Rivals

# What Python and its libraries write into classes by themselves.
_VOLATILE = frozenset(
    {"__dict__", "__weakref__", "__annotations_cache__", "_abc_impl", "__abstractmethods__"}
)

_numbers = itertools.count(1)

_ALONE = Path(__file__).with_name("alone.py")


class RivalInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Stands for another instrumentation of the library. What it would trace does not matter: it has the
    library.
    """

    def instrumentation_dependencies(self) -> Collection[str]:
        return ()

    def _instrument(self, **options: Any) -> None:
        pass

    def _uninstrument(self, **options: Any) -> None:
        pass


class Instrumentation:
    @scenario(18, "instrumentor")
    def test_instrument_twice_is_once(self, rig: Rig) -> None:
        """However often and by whatever way it is instrumented: one span a publish, one a delivery, and off
        at once.
        """
        with rig.run() as run:
            run.driver.instrumentor().instrument()
            queueprop.instrument(run.driver.library)
            _assert_traced(run)
            run.driver.instrumentor().uninstrument()
            _assert_silent(run)

    @scenario(18, "instrumentor")
    def test_uninstrument_puts_the_originals_back(self, rig: Rig) -> None:
        """Every attribute of every module and class of the library is the same object as before."""
        with rig.run(traced=False) as run:
            before = _members(run.driver)
            assert before
            with run.driver.tracing(queueprop.Settings()):
                changed = {
                    name for name, value in _members(run.driver).items() if before.get(name) is not value
                }
            assert changed, "the instrumentor patches something"
            after = _members(run.driver)
            assert {name for name in after if after[name] is not before.get(name)} == set()
            assert set(before) == set(after)

    @scenario(18, "instrumentor")
    def test_objects_made_meanwhile_fall_silent(self, rig: Rig) -> None:
        """A publish call kept from when it was instrumented emits nothing after uninstrument(), and works."""
        with rig.run() as run:
            publish = run.driver.kept_publish()
            run.driver.instrumentor().uninstrument()
            publish("hello")
            run.driver.consume(do("observe"))
            assert run.ours == []
            assert run.handled.body == "hello"

    @scenario(18, "instrumentor")
    def test_instrumenting_again_works(self, rig: Rig) -> None:
        """On, off, and on again: traced as the first time."""
        with rig.run() as run:
            run.driver.instrumentor().uninstrument()
            _assert_silent(run)
            run.driver.instrumentor().instrument()
            _assert_traced(run)

    @scenario(18, "instrumentor")
    @pytest.mark.parametrize("when", ["before", "after"])
    def test_subclasses_are_traced_once(self, rig: Rig, when: str) -> None:
        """Subclasses of the library's classes, made before or after instrument(), are traced, and once."""
        with rig.run(traced=False) as run:
            if when == "before":
                with run.driver.subclassed(), run.driver.tracing(queueprop.Settings()):
                    _assert_traced(run)
            else:
                with run.driver.tracing(queueprop.Settings()), run.driver.subclassed():
                    _assert_traced(run)

    @scenario(18, "instrumentor")
    @pytest.mark.parametrize("first", ["library", "instrument"])
    def test_the_order_of_imports_does_not_matter(self, rigs: list[Rig], first: str) -> None:
        """In a fresh process the library is imported before or after instrument(): traced the same, in every
        style.
        """
        with rigs[0].run(traced=False) as run:
            driver = type(run.driver)
            path = f"{driver.__module__}:{driver.__qualname__}"
            styles = [rig.column.style for rig in rigs]
            ended = subprocess.run(
                [sys.executable, str(_ALONE), first, path, run.driver.url or "", *styles],
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
            assert ended.returncode == 0, ended.stderr
            assert [seen.body for seen in run.seen] == styles
            assert [(span.trace_id, span.parent_id) for span in run.consumers] == [
                span.context for span in run.producers
            ]
            assert len(run.producers) == len(styles)

    @scenario(19, "instrumentor")
    @pytest.mark.parametrize("first", ["the other", "ours"])
    def test_another_instrumentation_keeps_the_library(
        self, rig: Rig, first: str, rival: type[BaseInstrumentor]
    ) -> None:
        """Whichever came first: no span of ours, no header, and one warning that names the other one."""
        with rig.run(traced=False) as run:
            if first == "the other":
                rival().instrument()
            with run.driver.tracing(queueprop.Settings()):
                if first == "ours":
                    rival().instrument()
                for body in ("one", "two"):
                    run.driver.publish(body)
                    run.driver.consume(do("observe"))
            assert run.ours == []
            assert [seen.body for seen in run.seen] == ["one", "two"]
            warnings = [text for text in run.complaints() if rival.__name__ in text]
            assert len(warnings) == 1, run.complaints()
            assert "uninstall rival-instrumentation or" in warnings[0]

    @scenario(19, "instrumentor")
    def test_when_the_other_goes_ours_is_back(self, rig: Rig, rival: type[BaseInstrumentor]) -> None:
        """An instrumentation that is switched off again leaves the library to ours."""
        with rig.run() as run:
            rival().instrument()
            _assert_silent(run)
            rival().uninstrument()
            _assert_traced(run)

    @pytest.fixture
    def rival(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[BaseInstrumentor]]:
        """Another instrumentation, which the adapter knows; one of a new name each time, since a warning is
        said once.
        """
        instrumentor = rig.driver_class.instrumentor()
        assert isinstance(instrumentor, Adapter)
        name = f"Rival{next(_numbers)}Instrumentor"
        rival = type(name, (RivalInstrumentor,), {})
        monkeypatch.setattr(sys.modules[__name__], name, rival, raising=False)
        rivals = Rivals(instrumentor.library, Rival(f"{__name__}:{name}", "rival-instrumentation"))
        monkeypatch.setattr(type(instrumentor), "rivals", rivals)
        yield rival
        if rival().is_instrumented_by_opentelemetry:
            rival().uninstrument()


def _assert_traced(run: Run) -> None:
    """One more message: one more PRODUCER span and one more CONSUMER span, its child."""
    producers, consumers = len(run.producers), len(run.consumers)
    run.driver.publish("traced")
    run.driver.consume(do("observe"))
    assert (len(run.producers), len(run.consumers)) == (producers + 1, consumers + 1)
    assert (run.consumers[-1].trace_id, run.consumers[-1].parent_id) == run.producers[-1].context


def _assert_silent(run: Run) -> None:
    spans, handled = len(run.ours), len(run.seen)
    run.driver.publish("silent")
    run.driver.consume(do("observe"))
    assert len(run.ours) == spans
    assert len(run.seen) == handled + 1


def _members(driver: Driver) -> dict[str, object]:
    """Every function, class and class attribute of the library, by its full name."""
    found: dict[str, object] = {}
    # In one step: garbage that is collected meanwhile may import something.
    for name, module in sys.modules.copy().items():
        if module is None or name.split(".")[0] not in driver.packages:
            continue
        for member, value in list(vars(module).items()):
            if callable(value):
                found[f"{name}.{member}"] = value
            if inspect.isclass(value) and value.__module__.split(".")[0] in driver.packages:
                for attribute, held in vars(value).items():
                    if attribute not in _VOLATILE:
                        found[f"{value.__module__}.{value.__qualname__}.{attribute}"] = held
    return found
