"""Settings: from code, else from the environment, else the default. A wrong value is one warning and the default."""

from __future__ import annotations

import copy
import dataclasses
import logging
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.trace import NoOpTracerProvider

from queueprop import Destination, Message, Settings
from queueprop.engine.engine import engine_for

DEFAULTS: dict[str, Any] = {
    "propagation": "parent",
    "trust": "all",
    "baggage_allow": ("*",),
    "exclude": (),
    "settle_spans": False,
    "receive_spans": True,
    "loop_spans": True,
    "capture_headers": (),
    "body_size": False,
    "destination_templates": (),
    "destination_limit": 1000,
    "flush_timeout": 2.0,
}

IN_CODE: dict[str, Any] = {
    "tracer_provider": None,
    "meter_provider": None,
    "publish_hook": None,
    "consume_hook": None,
}

RIGHT: list[tuple[str, str, Any]] = [
    ("propagation", "link", "link"),
    ("propagation", " Parent ", "parent"),
    ("trust", "none", "none"),
    ("trust", "ALL", "all"),
    ("baggage_allow", "user,tenant", ("user", "tenant")),
    ("baggage_allow", "*", ("*",)),
    ("baggage_allow", " user , , tenant ", ("user", "tenant")),
    ("baggage_allow", ",", ()),
    ("exclude", "tmp.*,celeryev", ("tmp.*", "celeryev")),
    ("capture_headers", "X-Tenant", ("X-Tenant",)),
    *(("settle_spans", text, True) for text in ("true", "True", "1", "yes", "on")),
    *(("receive_spans", text, False) for text in ("false", "FALSE", "0", "no", "off")),
    ("body_size", "true", True),
    ("destination_templates", "orders.*=orders.{id}", (("orders.*", "orders.{id}"),)),
    ("destination_templates", " a.* = a.{id} , , b=c=d ", (("a.*", "a.{id}"), ("b", "c=d"))),
    ("destination_templates", ",", ()),
    ("destination_limit", "0", 0),
    ("destination_limit", " 50 ", 50),
    ("flush_timeout", "0", 0.0),
    ("flush_timeout", "0.5", 0.5),
]

WRONG: list[tuple[str, str]] = [
    ("propagation", "both"),
    ("trust", "some"),
    ("settle_spans", "maybe"),
    ("receive_spans", "2"),
    ("body_size", "nope"),
    ("destination_templates", "orders.*"),
    ("destination_templates", "orders.*=,a=b"),
    ("destination_templates", "=orders"),
    ("destination_limit", "many"),
    ("destination_limit", "-1"),
    ("destination_limit", "0.5"),
    ("flush_timeout", "soon"),
    ("flush_timeout", "-1"),
    ("flush_timeout", "nan"),
    ("flush_timeout", "inf"),
]


class Unprintable:
    """What has no representation, and is no value of anything."""

    def __repr__(self) -> str:
        raise LookupError("no repr")

    __str__ = __repr__


WRONG_IN_CODE: list[tuple[str, Any]] = [
    *WRONG,
    *((name, value) for name in DEFAULTS for value in (None, object(), Unprintable())),
    ("propagation", 7),
    ("baggage_allow", 7),
    ("baggage_allow", [1]),
    ("exclude", {"a": 1}),
    ("capture_headers", b"x"),
    ("destination_templates", {"orders.*": 1}),
    ("destination_templates", {1: "orders"}),
    ("destination_templates", ["orders.*"]),
    ("destination_templates", [("a", "b", "c")]),
    ("destination_templates", 7),
    ("destination_limit", True),
    ("destination_limit", 10.0),
    ("flush_timeout", 10**400),
    ("flush_timeout", 10**10_000),
    *((name, "junk") for name in IN_CODE),
    *((name, Unprintable()) for name in IN_CODE),
]


def names(parameter: Any) -> str | None:
    if isinstance(parameter, Unprintable):
        return "unprintable"
    return (
        f"{type(parameter).__name__} of {parameter.bit_length()} bits" if isinstance(parameter, int) else None
    )


def values(settings: Settings) -> dict[str, Any]:
    return {setting.name: getattr(settings, setting.name) for setting in dataclasses.fields(settings)}


def test_defaults(caplog: pytest.LogCaptureFixture) -> None:
    """Without anything given: the documented defaults, and not a word."""
    assert values(Settings()) == {**DEFAULTS, **IN_CODE}
    assert caplog.records == []


@pytest.mark.parametrize(("name", "text", "value"), RIGHT)
def test_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, text: str, value: Any
) -> None:
    """QUEUEPROP_<NAME> sets the field, whatever its case and the space around it."""
    monkeypatch.setenv(f"QUEUEPROP_{name.upper()}", text)
    assert values(Settings()) == {**DEFAULTS, **IN_CODE, name: value}
    assert caplog.records == []


@pytest.mark.parametrize(("name", "text", "value"), RIGHT)
def test_text_in_code(name: str, text: str, value: Any) -> None:
    """What may stand in the environment may be given in code, too."""
    given: dict[str, Any] = {name: text}
    assert values(Settings(**given)) == {**DEFAULTS, **IN_CODE, name: value}


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("exclude", ["a", "b"], ("a", "b")),
        ("exclude", ("a",), ("a",)),
        ("capture_headers", {"a"}, ("a",)),
        ("baggage_allow", frozenset({"a"}), ("a",)),
        ("baggage_allow", [], ()),
        ("body_size", True, True),
        ("destination_templates", {"a.*": "a.{id}", "b": "c"}, (("a.*", "a.{id}"), ("b", "c"))),
        ("destination_templates", [("a.*", "a.{id}")], (("a.*", "a.{id}"),)),
        ("destination_templates", {}, ()),
        ("destination_limit", 5, 5),
        ("receive_spans", False, False),
        ("flush_timeout", 3, 3.0),
    ],
)
def test_values_in_code(caplog: pytest.LogCaptureFixture, name: str, given: Any, value: Any) -> None:
    """Lists, tuples and sets of names, booleans, numbers."""
    assert getattr(Settings(**{name: given}), name) == value
    assert caplog.records == []


def test_code_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is given is not looked up; the other fields are."""
    monkeypatch.setenv("QUEUEPROP_PROPAGATION", "link")
    monkeypatch.setenv("QUEUEPROP_BODY_SIZE", "true")
    settings = Settings(propagation="parent")
    assert (settings.propagation, settings.body_size) == ("parent", True)


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_variable_is_not_set(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    """As for every OpenTelemetry variable: empty is the default, without a warning."""
    for name in DEFAULTS:
        monkeypatch.setenv(f"QUEUEPROP_{name.upper()}", text)
    assert values(Settings()) == {**DEFAULTS, **IN_CODE}
    assert caplog.records == []


@pytest.mark.parametrize(("name", "text"), WRONG)
def test_a_wrong_value_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, text: str
) -> None:
    """One warning, however often it is read: variable, value, what is wanted, what is used; and the default."""
    variable = f"QUEUEPROP_{name.upper()}"
    monkeypatch.setenv(variable, text)
    for _ in range(3):
        assert values(Settings()) == {**DEFAULTS, **IN_CODE}
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("queueprop", logging.WARNING)
    for part in (variable, repr(text), "wants", repr(DEFAULTS[name])):
        assert part in record.getMessage()
    assert "\n" not in record.getMessage()


@pytest.mark.parametrize(("name", "given"), WRONG_IN_CODE, ids=names)
def test_a_wrong_value_in_code(caplog: pytest.LogCaptureFixture, name: str, given: Any) -> None:
    """The same, naming the field: nothing is raised at import or in a worker, whatever the value is."""
    for _ in range(3):
        assert values(Settings(**{name: given})) == {**DEFAULTS, **IN_CODE}
    (record,) = caplog.records
    assert f"Settings({name}=...)" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_two_wrong_values_are_two_warnings(caplog: pytest.LogCaptureFixture) -> None:
    """Each one is told."""
    Settings(propagation="both", flush_timeout=-1)  # type: ignore[arg-type]
    assert len(caplog.records) == 2


def test_a_function_may_be_trusted_with_trust() -> None:
    """In code, trust may be a function of destination and message."""

    def trust(destination: Destination, message: Message) -> bool:
        return True

    assert Settings(trust=trust).trust is trust


def test_what_is_for_code_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Providers and hooks are no variables."""
    for name in IN_CODE:
        monkeypatch.setenv(f"QUEUEPROP_{name.upper()}", "x")
    assert values(Settings()) == {**DEFAULTS, **IN_CODE}
    given: dict[str, Any] = {
        "tracer_provider": NoOpTracerProvider(),
        "meter_provider": NoOpMeterProvider(),
        "publish_hook": lambda span, message: None,
        "consume_hook": lambda span, message: None,
    }
    settings = Settings(**given)
    assert all(getattr(settings, name) is value for name, value in given.items())


class TestMisspelt:
    """Variables that look like a setting's."""

    ALMOST: ClassVar[dict[str, str]] = {
        "QUEUEPROP_PROPAGATE": "did you mean QUEUEPROP_PROPAGATION?",
        "QUEUEPROP_EXCLUDES": "did you mean QUEUEPROP_EXCLUDE?",
        "QUEUEPROP_RECIEVE_SPANS": "did you mean QUEUEPROP_RECEIVE_SPANS?",
        "QUEUEPROP_HEADERS": "did you mean QUEUEPROP_CAPTURE_HEADERS?",
        "QUEUEPROP_TIMEOUT": "did you mean QUEUEPROP_FLUSH_TIMEOUT?",
        "QueueProp_Trust": "did you mean QUEUEPROP_TRUST?",
        "QUEUEPROP_PUBLISH_HOOK": "publish_hook is given in code alone: Settings(publish_hook=...)",
        "QUEUEPROP_TRACE_PROVIDER": "tracer_provider is given in code alone: Settings(tracer_provider=...)",
    }

    @pytest.mark.parametrize(("variable", "hint"), ALMOST.items())
    def test_one_line(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variable: str, hint: str
    ) -> None:
        """However often settings are made: that it changes nothing, and what may be meant."""
        monkeypatch.setenv(variable, "link")
        for _ in range(3):
            assert values(Settings()) == {**DEFAULTS, **IN_CODE}
        (record,) = caplog.records
        assert record.getMessage().startswith(f"queueprop, reading {variable}: it changes nothing: ")
        assert record.getMessage().endswith(hint)

    @pytest.mark.parametrize(
        "variable",
        [
            "QUEUEPROP_REDIS_URL",
            "QUEUEPROP_KAFKA_URL",
            "QUEUEPROP_TEST_TRACED",
            "_QUEUEPROP_TRUSTS",
            "PROPAGATION",
        ],
    )
    def test_what_is_somebody_else_s(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variable: str
    ) -> None:
        """A variable that is like no setting's is not ours to complain of."""
        monkeypatch.setenv(variable, "x")
        Settings()
        assert caplog.records == []

    def test_what_stands_there_is_not_told(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Whatever the name, it is one line of bounded length; the value may be anybody's secret."""
        monkeypatch.setenv("QUEUEPROP_EXCLUDED\n\x1b[31m", "secret")
        Settings()
        (record,) = caplog.records
        assert "QUEUEPROP_EXCLUDED\\n\\x1b[31m" in record.getMessage()
        assert "secret" not in record.getMessage()


class TestSeparators:
    """Lists of names are separated by commas."""

    WRONG: ClassVar[list[str]] = [
        "a.*;b.*",
        "a.*|b.*",
        "a.* b.*",
        "a.*\nb.*",
        '"a.*,b.*"',
        "'a.*'",
        '["a.*", "b.*"]',
    ]

    @pytest.mark.parametrize("name", ["exclude", "capture_headers", "baggage_allow"])
    @pytest.mark.parametrize("text", WRONG)
    def test_others_are_told(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, text: str
    ) -> None:
        """One line that names the setting and what was taken for one name. It is used as it stands: it may be one."""
        monkeypatch.setenv(f"QUEUEPROP_{name.upper()}", text)
        for _ in range(2):
            settings = Settings()
        assert getattr(settings, name) == tuple(it.strip() for it in text.split(","))
        (record,) = caplog.records
        assert record.getMessage().startswith(f"queueprop, reading the setting {name} (")
        assert "separated by commas" in record.getMessage()
        assert "\n" not in record.getMessage()

    def test_text_in_code(self, caplog: pytest.LogCaptureFixture) -> None:
        """The same."""
        Settings(exclude="a.*;b.*")  # type: ignore[arg-type]
        assert len(caplog.records) == 1

    def test_a_list_in_code_says_what_is_one_name(self, caplog: pytest.LogCaptureFixture) -> None:
        """What the line says to do: nothing is said then."""
        assert Settings(exclude=["a.*;b.*"]).exclude == ("a.*;b.*",)  # type: ignore[arg-type]
        assert caplog.records == []


def test_it_cannot_be_changed() -> None:
    """One Settings object may be shared by everybody."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().exclude = ("x",)  # type: ignore[misc]


def test_equal_and_hashable() -> None:
    """Settings with the same values are equal, from wherever they came."""
    assert Settings(exclude=("a",)) == Settings(exclude="a")  # type: ignore[arg-type]
    assert hash(Settings(exclude=("a",))) == hash(Settings(exclude=["a"]))  # type: ignore[arg-type]
    templates = {"orders.*": "orders.{id}"}
    assert hash(Settings(destination_templates=templates)) == hash(Settings(destination_templates=templates))


@pytest.mark.parametrize(
    "transfer", [copy.copy, copy.deepcopy, lambda settings: pickle.loads(pickle.dumps(settings))]
)
def test_it_can_be_handed_on(transfer: Callable[[Settings], Settings]) -> None:
    """Copied, or pickled for a spawned worker, also when it is in use already; the copy has an engine of its own."""
    settings = Settings(exclude=("tmp.*",), propagation="link")
    engine = engine_for(settings)
    with engine.process(Destination("my-queue", "orders"), Message({})):
        pass
    other = transfer(settings)
    assert other == settings
    assert engine_for(other) is not engine
    assert engine_for(settings) is engine


def test_replacing_a_field(monkeypatch: pytest.MonkeyPatch) -> None:
    """dataclasses.replace keeps what the environment had said, and the other object as it was."""
    monkeypatch.setenv("QUEUEPROP_BODY_SIZE", "true")
    settings = Settings()
    monkeypatch.delenv("QUEUEPROP_BODY_SIZE")
    other = dataclasses.replace(settings, propagation="link")
    assert (other.propagation, other.body_size, settings.propagation) == ("link", True, "parent")
    assert engine_for(other) is not engine_for(settings)


def test_its_representation_before_it_is_made() -> None:
    """The signature says where a field that is not given comes from."""
    import inspect

    assert "from the environment" in str(inspect.signature(Settings))
