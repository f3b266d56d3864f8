"""Adapter: patching and restoring, standing down, and queueprop.instrument()."""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]
from opentelemetry.trace import Span

import queueprop
from queueprop import Message, Settings, guard
from queueprop.engine.engine import Engine, engine_for
from queueprop.kit import checks, libraries
from queueprop.kit.calls import Wrapped
from queueprop.kit.instrumentor import Adapter, Companions, Patch
from queueprop.kit.libraries import MissingExtra, missing_extra
from queueprop.kit.rivals import Rival, Rivals
from tests.telemetry import ORDERS, Telemetry


class Library:
    """A library to instrument, made anew for each test."""

    def __init__(self) -> None:
        class Base:
            def inherited(self, body: str) -> tuple[object, str]:
                return self, body

        class Queue(Base):
            def put(self, body: str) -> tuple[object, str]:
                """Puts."""
                return self, body

            @staticmethod
            def static(body: str) -> str:
                return body

            @classmethod
            def of_class(cls, body: str) -> tuple[type, str]:
                return cls, body

        def publish(body: str) -> str:
            return body

        self.Base, self.Queue = Base, Queue
        self.module = ModuleType("my_library")
        vars(self.module)["publish"] = publish

    def owners(self) -> list[tuple[Any, str]]:
        return [
            (self.Queue, "put"),
            (self.Queue, "static"),
            (self.Queue, "of_class"),
            (self.Queue, "inherited"),
            (self.module, "publish"),
        ]

    def calls(self) -> list[Callable[[str], object]]:
        queue = self.Queue()
        return [queue.put, queue.static, self.Queue.of_class, queue.inherited, self.module.publish]


class MyAdapter(Adapter):
    """Each patched call is one publish."""

    library = "my_library"
    requires = ()
    rivals = Rivals(
        "my_library",
        Rival("rival_instrumentation:RivalInstrumentor", "rival-instrumentation", entry_point="rival"),
    )

    patched: list[tuple[Any, str]]

    def patches(self) -> Iterable[Patch]:
        for owner, name in self.patched:
            yield Patch(owner, name, self._send)

    def _send(self, wrapped: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with self.engine.send(ORDERS, Message({})):
            return wrapped(*args, **kwargs)


class RivalInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Another instrumentation of the same library."""

    def instrumentation_dependencies(self) -> tuple[str, ...]:
        return ()

    def _uninstrument(self, **options: Any) -> None: ...


@pytest.fixture
def library() -> Library:
    return Library()


@pytest.fixture
def ours(library: Library) -> Iterator[MyAdapter]:
    MyAdapter._instance = None
    instance = MyAdapter()
    instance.patched = library.owners()
    yield instance
    if instance.is_instrumented_by_opentelemetry:
        instance.uninstrument()


@pytest.fixture
def rival(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """It is installed, and its module imported."""
    module = SimpleNamespace(RivalInstrumentor=RivalInstrumentor)
    monkeypatch.setitem(sys.modules, "rival_instrumentation", module)
    instance = RivalInstrumentor()
    yield instance
    if instance.is_instrumented_by_opentelemetry:
        instance.uninstrument()


class TestPatching:
    """What is patched and put back."""

    def test_every_kind_of_function(self, telemetry: Telemetry, library: Library, ours: MyAdapter) -> None:
        """Methods, static and class methods, inherited ones, functions of a module: traced, results as before."""
        ours.instrument(settings=telemetry.settings())
        queue = library.Queue()
        assert queue.put("a") == (queue, "a")
        assert queue.static("b") == library.Queue.static("b") == "b"
        assert queue.of_class("c") == library.Queue.of_class("c") == (library.Queue, "c")
        assert queue.inherited("d") == (queue, "d")
        assert library.module.publish("e") == "e"
        assert len(telemetry.spans) == 7

    def test_the_originals_come_back_by_identity(
        self, telemetry: Telemetry, library: Library, ours: MyAdapter
    ) -> None:
        """After uninstrument() each owner has the very object that it had, and no inherited one of its own."""
        before = [dict(vars(owner)) for owner, _ in library.owners()]
        ours.instrument(settings=telemetry.settings())
        assert all(
            vars(owner)[name] is not old.get(name)
            for (owner, name), old in zip(library.owners(), before, strict=True)
        )
        ours.uninstrument()
        for (owner, _), old in zip(library.owners(), before, strict=True):
            now = dict(vars(owner))
            assert now.keys() == old.keys()
            assert all(now[name] is old[name] for name in old)

    def test_a_patched_function_looks_as_before(
        self, telemetry: Telemetry, library: Library, ours: MyAdapter
    ) -> None:
        """Name, docstring and signature are the library's."""
        signature = inspect.signature(library.Queue.put)
        ours.instrument(settings=telemetry.settings())
        assert (library.Queue.put.__name__, library.Queue.put.__doc__) == ("put", "Puts.")
        assert inspect.signature(library.Queue.put) == signature

    def test_twice_is_once(
        self, telemetry: Telemetry, library: Library, ours: MyAdapter, caplog: pytest.LogCaptureFixture
    ) -> None:
        """instrument() twice makes one span a call; uninstrument() twice is quiet as well."""
        ours.instrument(settings=telemetry.settings())
        ours.instrument(settings=telemetry.settings())
        library.Queue().put("a")
        assert len(telemetry.spans) == 1
        ours.uninstrument()
        ours.uninstrument()
        library.Queue().put("a")
        assert len(telemetry.spans) == 1

    def test_again(self, telemetry: Telemetry, library: Library, ours: MyAdapter) -> None:
        """Instrumenting after uninstrumenting works, also with other settings."""
        for exclude in ((), ("orders",), ()):
            ours.instrument(settings=telemetry.settings(exclude=exclude))
            library.Queue().put("a")
            ours.uninstrument()
        assert len(telemetry.spans) == 2

    def test_objects_and_functions_of_before(
        self, telemetry: Telemetry, library: Library, ours: MyAdapter
    ) -> None:
        """An object made before is traced; what was taken while instrumented falls silent afterwards."""
        queue = library.Queue()
        ours.instrument(settings=telemetry.settings())
        queue.put("a")
        assert len(telemetry.spans) == 1
        taken = library.calls()
        ours.uninstrument()
        for call in taken:
            call("b")
        assert len(telemetry.spans) == 1

    def test_subclasses(self, telemetry: Telemetry, library: Library, ours: MyAdapter) -> None:
        """Subclasses made before or after, with or without super(): one span a call."""

        class Before(library.Queue):  # type: ignore[name-defined,misc]
            def put(self, body: str) -> tuple[object, str]:
                result: tuple[object, str] = super().put(body)
                return result

        ours.instrument(settings=telemetry.settings())

        class After(library.Queue):  # type: ignore[name-defined,misc]
            pass

        for kind in (Before, After):
            queue = kind()
            assert queue.put("a") == (queue, "a")
            assert queue.inherited("b") == (queue, "b")
        assert len(telemetry.spans) == 4
        ours.uninstrument()
        Before().put("a")
        After().put("a")
        assert len(telemetry.spans) == 4

    def test_the_base_of_an_inherited_function_is_left_alone(
        self, telemetry: Telemetry, library: Library, ours: MyAdapter
    ) -> None:
        """What is patched on a class does not reach its siblings."""

        class Sibling(library.Base):  # type: ignore[name-defined,misc]
            pass

        ours.instrument(settings=telemetry.settings())
        Sibling().inherited("a")
        assert len(telemetry.spans) == 0

    def test_somebody_patched_over_us(self, telemetry: Telemetry, library: Library, ours: MyAdapter) -> None:
        """Their patch stays where it is when we go; ours below it is silent, and never doubles a later one."""
        original = vars(library.Queue)["put"]
        ours.instrument(settings=telemetry.settings())
        ours_on_it = library.Queue.put
        called: list[str] = []

        @functools.wraps(ours_on_it)
        def theirs(self: Any, body: str) -> Any:
            called.append(body)
            return ours_on_it(self, body)

        library.Queue.put = theirs  # type: ignore[method-assign]
        library.Queue().put("a")
        assert len(telemetry.spans) == 1
        ours.uninstrument()
        assert vars(library.Queue)["put"] is theirs
        library.Queue().put("b")
        assert len(telemetry.spans) == 1
        ours.instrument(settings=telemetry.settings())
        library.Queue().put("c")
        assert len(telemetry.spans) == 2
        assert called == ["a", "b", "c"]
        ours.uninstrument()
        assert vars(library.Queue)["put"] is theirs
        library.Queue.put = original  # type: ignore[method-assign]

    def test_a_version_that_lacks_a_function(
        self, telemetry: Telemetry, library: Library, ours: MyAdapter
    ) -> None:
        """All or nothing: when a patch fails, those before it are taken back, and a later attempt doubles nothing."""
        original = vars(library.Queue)["put"]
        ours.patched = [(library.Queue, "put"), (library.Queue, "not_there")]
        with pytest.raises(AttributeError):
            ours.instrument(settings=telemetry.settings())
        assert vars(library.Queue)["put"] is original
        assert not ours.is_active
        ours.patched = [(library.Queue, "put")]
        ours.instrument(settings=telemetry.settings())
        library.Queue().put("a")
        assert len(telemetry.spans) == 1

    def test_it_is_one_object(self) -> None:
        """As every OpenTelemetry instrumentor: MyAdapter() is always the same."""
        assert MyAdapter() is MyAdapter()


class TestOptions:
    """instrument(settings=None, tracer_provider=None, meter_provider=None, publish_hook=None, consume_hook=None)."""

    def test_options_win_over_settings(self, telemetry: Telemetry, library: Library, ours: MyAdapter) -> None:
        """What is given by name replaces the field of the settings; the others stay."""
        called: list[object] = []

        def hook(span: Span, message: object) -> None:
            called.append(message)

        settings = Settings(exclude=("tmp",))
        ours.instrument(settings=settings, tracer_provider=telemetry.spans.tracer_provider, publish_hook=hook)
        library.Queue().put("a")
        assert len(telemetry.spans) == len(called) == 1
        assert ours.engine.settings.exclude == ("tmp",)
        assert settings.tracer_provider is None

    def test_options_alone(self, telemetry: Telemetry, library: Library, ours: MyAdapter) -> None:
        """Without settings they are added to those of the environment; what is None is not given."""
        ours.instrument(
            tracer_provider=telemetry.spans.tracer_provider,
            meter_provider=None,
            consume_hook=None,
            skip_dep_check=True,
        )
        library.Queue().put("a")
        assert len(telemetry.spans) == 1

    WRONG: ClassVar[dict[str, tuple[dict[str, Any], str]]] = {
        "a setting": ({"propagation": "link"}, "instrument(settings=queueprop.Settings(propagation=...))"),
        "misspelt": ({"publsh_hook": print}, "did you mean publish_hook?"),
        "something else": (
            {"shape": 1},
            "settings, tracer_provider, meter_provider, publish_hook, consume_hook",
        ),
    }

    @pytest.mark.parametrize("instrument", ["function", "method"])
    @pytest.mark.parametrize(("options", "hint"), WRONG.values(), ids=WRONG.keys())
    def test_an_option_that_there_is_not(
        self, ours: MyAdapter, instrument: str, options: dict[str, Any], hint: str
    ) -> None:
        """A TypeError of one line that says where it belongs; nothing is instrumented."""
        call = queueprop.instrument if instrument == "function" else ours.instrument
        with pytest.raises(TypeError, match=f"^instrument has no option {next(iter(options))}; ") as raised:
            call(**options)
        assert hint in str(raised.value)
        assert "\n" not in str(raised.value)
        assert not ours.is_instrumented_by_opentelemetry

    @pytest.mark.parametrize("option", ["skip_dep_check", "raise_exception_on_conflict"])
    def test_an_option_of_a_distribution_of_the_launcher(
        self, ours: MyAdapter, library: Library, caplog: pytest.LogCaptureFixture, option: str
    ) -> None:
        """What it gives to every instrumentor that it finds may not end its start: it is left out, with one line."""
        options: dict[str, Any] = {option: True, "sanitize": True}
        ours.instrument(**options)
        assert ours.is_instrumented_by_opentelemetry
        (record,) = caplog.records
        assert "instrument has no option sanitize; " in record.getMessage()
        assert record.getMessage().endswith("; it is left out")

    @pytest.mark.parametrize("settings", [{"propagation": "link"}, Settings, "link"])
    def test_what_are_no_settings(self, ours: MyAdapter, settings: Any) -> None:
        """A TypeError of one line that shows the right form."""
        for call in (queueprop.instrument, ours.instrument):
            with pytest.raises(
                TypeError, match=r"^instrument wants Settings, as in settings=queueprop\.Settings\("
            ):
                call(settings=settings)
        assert not ours.is_instrumented_by_opentelemetry

    @pytest.mark.parametrize("instrument", [queueprop.instrument, MyAdapter.instrument])
    def test_type_checkers_and_help_see_them(self, instrument: Any) -> None:
        """Each option has its name and type, and there is no room for others."""
        parameters = inspect.signature(instrument).parameters.values()
        options = {it.name for it in parameters if it.kind is it.KEYWORD_ONLY}
        assert options >= {"settings", "tracer_provider", "meter_provider", "publish_hook", "consume_hook"}
        assert not any(it.kind is it.VAR_KEYWORD for it in parameters)
        assert "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=queueprop_" in (queueprop.instrument.__doc__ or "")

    def test_none_at_all(self, ours: MyAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
        """As the launcher calls it: the settings of the environment, and their one engine."""
        monkeypatch.setenv("QUEUEPROP_EXCLUDE", "tmp.*")
        ours.instrument()
        assert ours.engine.settings.exclude == ("tmp.*",)
        assert isinstance(ours.engine, Engine)
        assert ours.engine is engine_for()


class TestRivals:
    """Another instrumentation of the same library keeps it, whichever was first."""

    def test_it_was_first(
        self,
        telemetry: Telemetry,
        library: Library,
        ours: MyAdapter,
        rival: Any,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Ours stands down: no span, one warning when it is instrumented, which names it and says what to do."""
        rival.instrument()
        ours.instrument(settings=telemetry.settings())
        for _ in range(3):
            library.Queue().put("a")
        assert len(telemetry.spans) == 0
        (record,) = [record for record in caplog.records if record.name == "queueprop"]
        assert record.levelno == logging.WARNING
        assert record.getMessage() == (
            "queueprop, instrumenting my_library: rival_instrumentation.RivalInstrumentor instruments it already, so "
            "queueprop stands down, and no span of my_library is queueprop's; to have queueprop's, uninstall "
            "rival-instrumentation or disable it: OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=rival; to keep the other's, "
            "disable queueprop's: OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=queueprop_my_library"
        )

    @pytest.mark.usefixtures("rival")
    def test_one_that_the_launcher_does_not_know(self, rival: Any, caplog: pytest.LogCaptureFixture) -> None:
        """A program has instrumented it: no variable would switch it off, so none is named."""
        rival.instrument()
        unknown = Rival("rival_instrumentation:RivalInstrumentor", "rival-instrumentation")
        assert Rivals("my_library", unknown).active()
        (record,) = [record for record in caplog.records if record.name == "queueprop"]
        assert "or do not call instrument() of its RivalInstrumentor; " in record.getMessage()
        assert "=rival" not in record.getMessage()

    def test_it_came_later(
        self,
        telemetry: Telemetry,
        library: Library,
        ours: MyAdapter,
        rival: Any,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Ours stands down from then on, with one warning; when the other goes, ours is back."""
        ours.instrument(settings=telemetry.settings())
        library.Queue().put("a")
        assert ours.is_active
        rival.instrument()
        library.Queue().put("b")
        library.Queue().put("c")
        assert not ours.is_active
        assert len(telemetry.spans) == 1
        assert len([record for record in caplog.records if record.name == "queueprop"]) == 1
        rival.uninstrument()
        library.Queue().put("d")
        assert len(telemetry.spans) == 2

    def test_installed_is_not_active(
        self,
        telemetry: Telemetry,
        library: Library,
        ours: MyAdapter,
        rival: Any,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """One that is there but instruments nothing is no rival; nor is a module of that name without the class."""
        ours.instrument(settings=telemetry.settings())
        library.Queue().put("a")
        monkeypatch.setitem(sys.modules, "rival_instrumentation", ModuleType("rival_instrumentation"))
        library.Queue().put("b")
        assert len(telemetry.spans) == 2

    def test_not_installed(self, telemetry: Telemetry, library: Library, ours: MyAdapter) -> None:
        """It is not even looked for: nothing is imported on its account."""
        ours.instrument(settings=telemetry.settings())
        library.Queue().put("a")
        assert "rival_instrumentation" not in sys.modules
        assert len(telemetry.spans) == 1

    def test_none_are_known(self) -> None:
        """A library without another instrumentation."""
        assert not Rivals("my_library").active()


class TestInstrument:
    """queueprop.instrument() and uninstrument()."""

    @pytest.fixture(autouse=True)
    def _registry(
        self, monkeypatch: pytest.MonkeyPatch, ours: MyAdapter, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        monkeypatch.setitem(
            sys.modules,
            "my_adapter",
            SimpleNamespace(MyAdapter=MyAdapter),
        )
        installed = tmp_path_factory.mktemp("site-packages")
        (installed / "my_library.py").touch()
        monkeypatch.syspath_prepend(str(installed))
        monkeypatch.setattr(
            libraries, "ADAPTERS", {"my_library": "my_adapter:MyAdapter", "not_here": "nowhere:NoAdapter"}
        )

    def test_all_that_is_installed(self, telemetry: Telemetry, library: Library, ours: MyAdapter) -> None:
        """Without names: every supported library that is there, and no error about the others."""
        queueprop.instrument(settings=telemetry.settings())
        library.Queue().put("a")
        assert len(telemetry.spans) == 1
        queueprop.uninstrument()
        assert not ours.is_instrumented_by_opentelemetry

    def test_a_library_that_is_hidden(self, ours: MyAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
        """``None`` in its place in ``sys.modules`` is Python's way to say that it is not to be imported."""
        monkeypatch.setitem(sys.modules, "my_library", None)
        queueprop.instrument()
        assert not ours.is_instrumented_by_opentelemetry

    def test_by_name(self, telemetry: Telemetry, ours: MyAdapter) -> None:
        """With names: those; twice is once, without a word about it."""
        queueprop.instrument("my_library", settings=telemetry.settings())
        assert ours.is_instrumented_by_opentelemetry
        queueprop.uninstrument("my_library")
        assert not ours.is_instrumented_by_opentelemetry

    def test_twice_is_quiet(
        self, telemetry: Telemetry, library: Library, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A second call of either changes nothing and logs nothing."""
        settings = telemetry.settings()
        queueprop.instrument(settings=settings)
        queueprop.instrument(settings=settings)
        queueprop.instrument()
        library.Queue().put("a")
        assert len(telemetry.spans) == 1
        queueprop.uninstrument()
        queueprop.uninstrument()
        assert caplog.records == []

    def test_options(self, telemetry: Telemetry, library: Library) -> None:
        """They are those of the instrumentor."""
        queueprop.instrument(tracer_provider=telemetry.spans.tracer_provider)
        library.Queue().put("a")
        assert len(telemetry.spans) == 1

    def test_other_settings_come_too_late(
        self, telemetry: Telemetry, library: Library, ours: MyAdapter, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A second call that asks for something else changes nothing, and one line says so, with what to do."""
        queueprop.instrument(settings=telemetry.settings())
        queueprop.instrument(settings=Settings(propagation="link"))
        queueprop.instrument(publish_hook=lambda span, message: None)
        library.Queue().put("a")
        assert len(telemetry.spans) == 1
        (record,) = caplog.records
        assert record.getMessage().startswith(
            "queueprop, instrumenting my_library: that was done before, with other "
        )
        assert "queueprop.uninstrument()" in record.getMessage()
        ours.instrument(settings=Settings(propagation="link"))
        assert [it.name for it in caplog.records] == [
            "queueprop",
            "opentelemetry.instrumentation.instrumentor",
        ]

    def test_other_settings_in_time(self, telemetry: Telemetry, library: Library, ours: MyAdapter) -> None:
        """What the line says to do works."""
        queueprop.instrument()
        queueprop.uninstrument()
        queueprop.instrument(settings=telemetry.settings())
        library.Queue().put("a")
        assert len(telemetry.spans) == 1

    def test_other_settings_come_too_late_for_the_method(
        self, telemetry: Telemetry, ours: MyAdapter, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The same of the instrumentor itself."""
        ours.instrument(settings=telemetry.settings())
        ours.instrument(settings=Settings(propagation="link"))
        assert "that was done before, with other settings" in caplog.records[0].getMessage()

    def test_nothing_is_installed(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """No library that it knows: one line says that it traces nothing, and what to install; nothing is raised."""
        monkeypatch.setitem(sys.modules, "my_library", None)
        for _ in range(2):
            queueprop.instrument()
        (record,) = caplog.records
        assert record.getMessage().startswith(
            "queueprop, instrument(): no library that it knows is installed here "
        )
        assert 'pip install "queueprop[rq]"' in record.getMessage()

    @pytest.mark.parametrize(
        "name", [["my_library", "other"], ("my_library",), MyAdapter, Settings(), None, b"rq"]
    )
    def test_what_is_no_name(self, ours: MyAdapter, name: Any) -> None:
        """A TypeError of one line that shows the right form; nothing is instrumented."""
        for word, call in (("instrument", queueprop.instrument), ("uninstrument", queueprop.uninstrument)):
            with pytest.raises(
                TypeError, match=rf'^{word} wants names of .* queueprop\.{word}\("rq", "pika"\), not '
            ):
                call("my_library", name)
        assert not ours.is_instrumented_by_opentelemetry

    def test_an_unknown_name(self) -> None:
        """A library that nobody has an adapter for is a ValueError that lists those that there are."""
        for call in (queueprop.instrument, queueprop.uninstrument):
            with pytest.raises(ValueError, match=r"'celery'.*my_library, not_here"):
                call("celery")

    def test_a_missing_library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A library that is named but not installed is a ModuleNotFoundError."""
        with pytest.raises(ModuleNotFoundError):
            queueprop.instrument("not_here")


def test_what_to_install() -> None:
    """A missing extra is an ImportError with one line that says what to install; its name is the extra's."""
    error = missing_extra("queueprop.adapters.rq", "RQ", "rq")
    assert isinstance(error, MissingExtra)
    assert isinstance(error, ModuleNotFoundError)
    assert str(error) == 'queueprop.adapters.rq needs RQ: pip install "queueprop[rq]"'
    assert error.name == "rq"


def test_the_registry() -> None:
    """Every adapter that is named can be found: module and class, whose library is the name."""
    for library, path in libraries.ADAPTERS.items():
        module, _, name = path.partition(":")
        assert module == f"queueprop.adapters.{checks.module_of(library)}"
        assert name.endswith("Instrumentor")


def test_dependencies_are_what_is_required() -> None:
    """What BaseInstrumentor checks before it instruments are the versions that the adapter supports."""
    assert MyAdapter().instrumentation_dependencies() == MyAdapter.requires


def test_how_opentelemetry_names_its_own() -> None:
    """By the library's module, with dashes where pip and the launcher have them."""
    assert Rival.contrib("aio_pika", "AioPikaInstrumentor") == Rival(
        "opentelemetry.instrumentation.aio_pika:AioPikaInstrumentor",
        "opentelemetry-instrumentation-aio-pika",
        entry_point="aio-pika",
    )


class CompanionAdapter(Adapter):
    """Patches what is built upon its library, once that is imported."""

    library = "my_library"
    requires = ()
    rivals = Rivals("my_library")
    published: ClassVar[list[str]] = []

    def patches(self) -> Iterable[Patch]:
        return ()

    def companions(self) -> Companions:
        return {"queueprop_test_companion": self._patches_in}

    def _patches_in(self, module: Any) -> Iterable[Patch]:
        def publish(wrapped: Wrapped, owner: Any, args: Any, kwargs: Any) -> Any:
            self.published.append(*args)
            return wrapped(*args, **kwargs)

        yield Patch(module, "put", publish)


class TestCompanions:
    """Modules of other distributions, which may be imported later or never."""

    @pytest.fixture
    def companion(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Adapter]:
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "queueprop_test_companion.py").write_text("def put(body): return body")
        monkeypatch.delitem(sys.modules, "queueprop_test_companion", raising=False)
        monkeypatch.setattr(CompanionAdapter, "_instance", None)
        monkeypatch.setattr(CompanionAdapter, "published", [])
        adapter = CompanionAdapter()
        yield adapter
        if adapter.is_instrumented_by_opentelemetry:
            adapter.uninstrument()
        sys.modules.pop("queueprop_test_companion", None)

    def imported(self) -> Any:
        return importlib.import_module("queueprop_test_companion")

    def test_it_is_not_imported_by_us_and_patched_when_it_is(self, companion: Adapter) -> None:
        """Whoever imports it after instrument() has it patched, once, and uninstrument() puts it back."""
        companion.instrument()
        assert "queueprop_test_companion" not in sys.modules
        module = self.imported()
        assert module.put("one") == "one"
        assert CompanionAdapter.published == ["one"]
        companion.uninstrument()
        assert isinstance(module.put, FunctionType)
        module.put("two")
        assert CompanionAdapter.published == ["one"]

    def test_one_that_is_imported_already_is_patched_at_once(self, companion: Adapter) -> None:
        """And again after uninstrument(), once each time."""
        module = self.imported()
        for body in ("one", "two"):
            companion.instrument()
            module.put(body)
            companion.uninstrument()
        assert CompanionAdapter.published == ["one", "two"]

    def test_one_that_is_imported_after_uninstrument_stays_as_it_is(self, companion: Adapter) -> None:
        """However often it was waited for; and once it is instrumented again it is patched once."""
        for _ in range(2):
            companion.instrument()
            companion.uninstrument()
        module = self.imported()
        assert isinstance(module.put, FunctionType)
        companion.instrument()
        module.put("one")
        assert CompanionAdapter.published == ["one"]

    def test_one_that_looks_different_stays_as_it_is(
        self, companion: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its import succeeds, and a line says that it is not traced."""
        monkeypatch.setattr(guard, "raise_faults", False)
        told: list[str] = []
        monkeypatch.setattr(guard, "fault", lambda doing, error: told.append(doing))
        (tmp_path / "queueprop_test_companion.py").write_text("def send(body): return body")
        companion.instrument()
        assert self.imported().send("one") == "one"
        assert told == ["instrumenting queueprop_test_companion"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("celry", "did you mean 'celery'? it has: aio-pika, "),
        ("AIO_Pika ", "did you mean 'aio-pika'? it has: "),
        ("RabbitMQ", "that is a broker, instrument its client (pika or aio-pika or kombu); it has: "),
        ("kafka", "that is a broker, instrument its client (aiokafka or confluent-kafka); it has: "),
        ("sqs", "queueprop has no adapter for 'sqs'; it has: "),
    ],
)
def test_a_name_that_is_none_is_told_with_the_one_that_is_meant(name: str, hint: str) -> None:
    """A typo, and a broker instead of its client; of anything else, what there is."""
    with pytest.raises(ValueError, match="has no adapter for") as raised:
        queueprop.instrument(name)
    assert hint in str(raised.value)
