"""What the doctor makes of facts: libraries, settings, OpenTelemetry, and the end of a process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import pytest

from queueprop.cli.doctor import endings, endpoint, libraries, probe, telemetry, variables
from queueprop.cli.doctor.facts import Facts, variables_of
from queueprop.cli.doctor.findings import Finding, Report
from queueprop.kit.libraries import ADAPTERS, MissingExtra

SDK = {"opentelemetry-sdk": "1.45"}
RQ = "queueprop.adapters.rq.RQInstrumentor"


@pytest.fixture(autouse=True)
def _every_endpoint_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        endpoint, "finding", lambda address, is_grpc, facts: Finding("x", "endpoint", "ok", address)
    )


def facts(**found: Any) -> Facts:
    return Facts({"versions": {}, "variables": {}, **found})


def told(findings: Iterator[Finding]) -> dict[str, tuple[str, str]]:
    """Subject -> level and text, with the remedy."""
    return {it.subject: (it.level, f"{it.text} {it.remedy}".strip()) for it in findings}


# Facts are input


def test_facts_may_be_anything() -> None:
    """Of facts that are no such thing nothing is told, and nothing is raised."""
    for junk in ({}, dict.fromkeys(probe._LOOKS, 7), {name: [{"class": 7}, 7, {}] for name in probe._LOOKS}):
        empty = Facts(junk)
        assert not empty.variables
        assert not empty.versions
        assert empty.modules == frozenset()
        assert empty.instrumented == {}
        assert empty.settings == {}
        assert empty.provider is None
        assert not empty.is_configured_by_queueprop
        assert empty.processors == []
        assert empty.meter_provider is None
        assert empty.propagators == []
        assert isinstance(empty.sigterm, str)
        assert empty.green is None
        assert empty.running == frozenset()
        assert empty.worker_hooks in (0, 7)
        assert empty.uwsgi is None
        assert empty.said == []
        assert empty.title
        assert empty.python
        list(libraries.findings(empty, is_program=True))
        list(variables.findings(empty))
        list(telemetry.findings_of_program(empty))
        list(endings.findings(empty))


def test_variables_are_put_back() -> None:
    """Code that reads the environment is given the program's, for a while."""
    before = dict(os.environ)
    with variables_of(facts(variables={"QUEUEPROP_TRUST": "none"})):
        assert dict(os.environ) == {"QUEUEPROP_TRUST": "none"}
    assert dict(os.environ) == before


def test_reports_count_their_problems() -> None:
    """Notes are none. What is empty is not in the JSON."""
    report = Report("x", [Finding("s", "a", "problem", "t", "r"), Finding("s", "b", "note", "t")])
    assert report.problems == 1
    assert report.as_json()["findings"][1] == {"section": "s", "subject": "b", "level": "note", "text": "t"}


# Libraries


def test_a_version_that_is_supported() -> None:
    """It is ok, with the name by which the launcher knows ours."""
    found = told(libraries.findings(facts(versions={"rq": "2.0"}), is_program=False))
    assert found["rq"] == ("ok", "2.0, supported; opentelemetry-instrument knows ours as queueprop_rq")
    assert "pika" in found["not installed"][1]


def test_a_version_that_is_not() -> None:
    """It says which is."""
    found = told(libraries.findings(facts(versions={"rq": "1.0"}), is_program=False))
    assert found["rq"] == (
        "problem",
        '1.0 is not supported: queueprop wants rq >=1.16 pip install "rq>=1.16"',
    )


def test_nothing_is_installed() -> None:
    """Then nothing is traced."""
    found = told(libraries.findings(facts(), is_program=False))
    assert found["libraries"][0] == "problem"


def test_requirements_are_those_of_the_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every library has one; a line that is none is left out."""
    assert libraries._requirements().keys() == ADAPTERS.keys()
    libraries._requirements.cache_clear()
    monkeypatch.setattr(metadata, "requires", lambda name: ["rq>=1.16; extra == 'rq'", "~~~"])
    assert list(libraries._requirements()) == ["rq"]
    libraries._requirements.cache_clear()


def test_a_library_is_switched_off() -> None:
    """By its name or by the wildcard; a name that nearly is one switches off nothing."""
    off = facts(
        versions={"rq": "2.0", "pika": "1.3"},
        variables={libraries.DISABLED: "queueprop_rq, queueprop-pika, somebodys"},
    )
    found = told(libraries.findings(off, is_program=False))
    assert found["rq"][0] == "note"
    assert found["pika"][0] == "ok"
    assert found[libraries.DISABLED] == (
        "problem",
        "no instrumentation has the name 'queueprop-pika', so none is switched off by it did you mean queueprop_pika?",
    )
    everything = facts(versions={"rq": "2.0"}, variables={libraries.DISABLED: "*"})
    assert told(libraries.findings(everything, is_program=False))["rq"][0] == "note"


@pytest.mark.parametrize(
    ("found", "level", "said"),
    [
        ({}, "ok", "this program has not imported it"),
        ({"modules": ["rq"]}, "problem", "imported and not instrumented: its messages carry no context"),
        ({"modules": ["rq", "queueprop.adapters.rq"]}, "ok", "its adapter is imported: by hand?"),
        ({"instrumentors": [{"class": RQ, "instrumented": True}]}, "ok", "instrumented (as queueprop_rq)"),
        (
            {
                "modules": ["rq"],
                "instrumentors": [
                    {"class": "queueprop.adapters.pika.PikaInstrumentor", "instrumented": True}
                ],
            },
            "note",
            "imported and not instrumented, as others here are",
        ),
    ],
)
def test_a_library_inside_a_program(found: dict[str, Any], level: str, said: str) -> None:
    """Whether its messages carry a context there."""
    rq = told(libraries.findings(facts(versions={"rq": "2.0"}, **found), is_program=True))["rq"]
    assert rq[0] == level
    assert said in rq[1]


PIKA = {"pika": "1.3.2", "opentelemetry-instrumentation-pika": "0.51b0"}


@pytest.mark.parametrize(
    ("disabled", "level", "said"),
    [
        ("", "problem", "under opentelemetry-instrument that one has it"),
        ("pika", "ok", "switched off as pika"),
        ("queueprop_pika", "note", "queueprop's is switched off"),
    ],
)
def test_another_instrumentation_is_installed(disabled: str, level: str, said: str) -> None:
    """One of the two is to be switched off."""
    given = facts(versions=PIKA, variables={libraries.DISABLED: disabled})
    found = told(libraries.findings(given, is_program=False))["pika, opentelemetry-instrumentation-pika"]
    assert found[0] == level
    assert said in found[1]


def test_another_that_programs_set_up_by_themselves() -> None:
    """It is known to the launcher by no name."""
    given = facts(versions={"rq": "2.0", "opentelemetry-instrumentation-rq": "1"})
    found = told(libraries.findings(given, is_program=False))["rq, opentelemetry-instrumentation-rq"]
    assert found[0] == "note"


@pytest.mark.parametrize(("disabled", "level"), [("", "problem"), ("queueprop_pika", "note")])
def test_another_instruments_this_program(disabled: str, level: str) -> None:
    """Then queueprop stands down; that is well where it is meant."""
    theirs = "opentelemetry.instrumentation.pika.pika_instrumentor.PikaInstrumentor"
    ours = "queueprop.adapters.pika.PikaInstrumentor"
    given = facts(
        versions=PIKA,
        variables={libraries.DISABLED: disabled},
        instrumentors=[
            {"class": theirs, "instrumented": True},
            {"class": ours, "instrumented": not disabled},
        ],
    )
    found = told(libraries.findings(given, is_program=True))
    assert found["pika, opentelemetry-instrumentation-pika"][0] == level
    assert found["pika"][0] == "note"
    quiet = facts(versions=PIKA, instrumentors=[{"class": theirs, "instrumented": False}])
    assert len(told(libraries.findings(quiet, is_program=True))) == 4


def test_an_adapter_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken library is told of; one that is not where the doctor runs is not."""
    monkeypatch.setitem(ADAPTERS, "rq", "queueprop.adapters.no_such_module:RQInstrumentor")
    found = told(libraries.findings(facts(versions={"rq": "2.0"}), is_program=False))
    assert found["rq"][0] == "problem"
    assert "no_such_module" in found["rq"][1]
    assert libraries.rivals_of("rq") == ()
    monkeypatch.setattr(libraries, "_adapter", _missing)
    assert told(libraries.findings(facts(versions={"rq": "2.0"}), is_program=False))["rq"][0] == "ok"


def _missing(library: str) -> Any:
    raise MissingExtra("it is not here", name=library)


# Settings


def test_where_a_setting_comes_from() -> None:
    """From a variable, from the program's code, or it is the default."""
    given = facts(
        variables={
            "QUEUEPROP_PROPAGATION": "link",
            "OTEL_SERVICE_NAME": "shop",
            "OTEL_EXPORTER_OTLP_HEADERS": "k=v",
        },
        instrumentors=[
            {"class": RQ, "instrumented": True, "settings": {"trust": "'none'", "propagation": "'link'"}}
        ],
    )
    found = {it.subject: it for it in variables.findings(given)}
    assert (found["propagation"].text, found["propagation"].source) == ("'link'", "QUEUEPROP_PROPAGATION")
    assert (found["trust"].text, found["trust"].source) == ("'none'", "the program's code")
    assert "flush_timeout" in found["defaults"].text
    assert found["OTEL_SERVICE_NAME"].text == "shop"
    assert found["OTEL_EXPORTER_OTLP_HEADERS"].text == "(set, not shown)"


def test_all_settings_are_given() -> None:
    """Then there are no defaults to name."""
    values = {it.subject: it.text for it in variables.findings(facts())}
    names = values["defaults"].split(", ")
    given = facts(instrumentors=[{"class": RQ, "instrumented": True, "settings": dict.fromkeys(names, "x")}])
    assert "defaults" not in {it.subject for it in variables.findings(given)}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("QUEUEPROP_PROPAGATION", "sideways", "wants 'parent' or 'link'"),
        ("QUEUEPROP_PROPOGATION", "link", "did you mean QUEUEPROP_PROPAGATION?"),
        ("QUEUEPORP_PROPAGATION", "link", "did you mean QUEUEPROP_PROPAGATION?"),
        ("OTLE_SERVICE_NAME", "x", "did you mean OTEL_SERVICE_NAME?"),
        ("OTEL_SERVICENAME", "x", "did you mean OTEL_SERVICE_NAME?"),
        ("otel_service_name", "x", "did you mean OTEL_SERVICE_NAME?"),
        ("OTEL_EXPORTER_OLTP_ENDPOINT", "x", "did you mean OTEL_EXPORTER_OTLP_ENDPOINT?"),
        ("OTEL_TRACE_EXPORTER", "x", "did you mean OTEL_TRACES_EXPORTER?"),
    ],
)
def test_misspelt(name: str, value: str, said: str) -> None:
    """A name that is nearly a setting's, and a value that it does not take, are problems that say what is meant."""
    problems = [it for it in variables.findings(facts(variables={name: value})) if it.level == "problem"]
    assert len(problems) == 1
    assert said in f"{problems[0].text} {problems[0].remedy}"


def test_it_is_told_each_time() -> None:
    """The guard says a thing once a process; the doctor is asked, and tells it of each program."""
    given = facts(variables={"QUEUEPROP_TRUST": "some"})
    for _ in range(2):
        assert [it.level for it in variables.findings(given)].count("problem") == 1


@pytest.mark.parametrize(
    "name", ["PATH", "OTEL_JAVA_GLOBAL_AUTOCONFIGURE", "HOSTNAME", "QUEUEPROP_REDIS_URL"]
)
def test_not_misspelt(name: str) -> None:
    """Other people's variables are theirs."""
    assert [it for it in variables.findings(facts(variables={name: "x"})) if it.level != "ok"] == []


def test_a_package_whose_variables_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the others are known all the same."""

    class Broken:
        def load(self) -> None:
            raise ImportError

    variables.known_names.cache_clear()
    monkeypatch.setattr(metadata, "entry_points", lambda group: [Broken()])
    try:
        assert "QUEUEPROP_TRUST" in variables.known_names()
    finally:
        variables.known_names.cache_clear()


# OpenTelemetry, by the variables


def by_variables(**given: str) -> dict[str, tuple[str, str]]:
    return told(telemetry.findings_of_variables(facts(versions=SDK, variables=given)))


def test_without_an_sdk() -> None:
    """There are no spans, and that is all there is to say."""
    found = told(telemetry.findings_of_variables(facts()))
    assert found == {
        "SDK": (
            "problem",
            'no OpenTelemetry SDK is installed: there are no spans pip install "queueprop[sdk]"',
        )
    }


def test_defaults() -> None:
    """What is in force where nothing is set."""
    found = by_variables()
    assert found["propagators"] == ("ok", "tracecontext, baggage")
    assert found["sampler"][0] == "ok"
    assert found["resource"][0] == "note"
    assert found["exporter"] == ("ok", "OTLPSpanExporter to http://localhost:4318/v1/traces")
    assert found["endpoint"] == ("ok", "http://localhost:4318/v1/traces")
    assert found["opentelemetry-instrument"][0] == "note"


def test_what_is_given() -> None:
    """Each with its source."""
    found = by_variables(
        OTEL_PROPAGATORS="tracecontext",
        OTEL_TRACES_SAMPLER="parentbased_traceidratio",
        OTEL_TRACES_SAMPLER_ARG="0.1",
        OTEL_SERVICE_NAME="shop",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://collector:1",
    )
    assert found["propagators"] == ("ok", "tracecontext")
    assert found["sampler"] == ("ok", "parentbased_traceidratio 0.1")
    assert found["resource"] == ("ok", "service.name=shop")
    assert found["exporter"] == ("ok", "OTLPSpanExporter to http://collector:1/v1/traces")


def test_resource_attributes() -> None:
    """The name may be one of them, and the others are told, too."""
    given = facts(versions=SDK, variables={"OTEL_RESOURCE_ATTRIBUTES": "service.name=shop,team=a"})
    found = [it.text for it in telemetry.findings_of_variables(given) if it.subject == "resource"]
    assert found == ["service.name=shop", "team=a"]


@pytest.mark.parametrize(
    ("given", "subject", "level", "said"),
    [
        ({"OTEL_SDK_DISABLED": "true"}, "SDK", "note", "switched off"),
        ({"OTEL_TRACES_SAMPLER": "sometimes"}, "sampler", "problem", "there is no sampler 'sometimes'"),
        ({"OTEL_TRACES_SAMPLER": "always_off"}, "sampler", "note", "always_off"),
        ({"OTEL_TRACES_EXPORTER": "none"}, "exporter", "note", "no span leaves a process"),
        ({"OTEL_TRACES_EXPORTER": "pigeons"}, "exporter pigeons", "problem", "'pigeons' is not installed"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:1/v1/traces"},
            "exporter otlp",
            "problem",
            "exporters append the path",
        ),
        ({"OTEL_TRACES_EXPORTER": "console"}, "exporter", "ok", "ConsoleSpanExporter"),
    ],
)
def test_what_is_wrong_or_unusual(given: dict[str, str], subject: str, level: str, said: str) -> None:
    """A value that is not taken is a problem, one that switches something off is a note."""
    found = by_variables(**given)[subject]
    assert found[0] == level
    assert said in found[1]


def test_an_exporter_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it raises is told, with its name."""
    monkeypatch.setattr("queueprop.sdk.exporters.factory", lambda *given: lambda: 1 / 0)
    assert by_variables()["exporter otlp"] == ("problem", "ZeroDivisionError: division by zero")


@pytest.mark.parametrize("argument", ["2", "half"])
def test_a_ratio_that_is_none(argument: str) -> None:
    """It is told with the variable that has it."""
    given = {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": argument}
    found = list(telemetry.findings_of_variables(facts(versions=SDK, variables=given)))
    assert [it.source for it in found if it.level == "problem"] == ["OTEL_TRACES_SAMPLER_ARG"]


def test_a_propagator_that_is_not_there() -> None:
    """OpenTelemetry's API cannot be imported with it."""
    given = {"OTEL_PROPAGATORS": "tracecontext,pigeons"}
    found = list(telemetry.findings_of_variables(facts(versions=SDK, variables=given)))
    assert [it.text for it in found if it.level == "problem"] == [
        "there is no propagator 'pigeons' here, and OpenTelemetry cannot be imported with that"
    ]


def test_an_sdk_that_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be imported is told of."""
    import sys

    monkeypatch.setitem(sys.modules, "queueprop.sdk.exporters", None)
    monkeypatch.delattr("queueprop.sdk.exporters")
    found = by_variables()
    assert found["exporter"][0] == "problem"


def test_the_launcher() -> None:
    """It sends by gRPC, unless it is told otherwise."""
    distro = {**SDK, "opentelemetry-distro": "0.66b1"}
    found = told(telemetry.findings_of_variables(facts(versions=distro)))
    assert found["opentelemetry-instrument"][0] == "note"
    both = {**distro, "opentelemetry-exporter-otlp-proto-grpc": "1.45"}
    assert told(telemetry.findings_of_variables(facts(versions=both)))["opentelemetry-instrument"][0] == "ok"


# OpenTelemetry, inside a program


def traced(**tracing: Any) -> dict[str, Any]:
    return {"tracing": {"provider": "sdk.TracerProvider", "sampler": "AlwaysOn", "processors": [], **tracing}}


BATCH = {"exporter": "otlp.http.OTLPSpanExporter", "endpoint": "http://c/v1/traces", "is_batch": True}


def test_a_program_without_a_provider() -> None:
    """There are no spans; where that is meant, it is a note."""
    assert told(telemetry.findings_of_program(facts()))["SDK"][0] == "problem"
    off = facts(variables={"OTEL_SDK_DISABLED": "TRUE"})
    assert told(telemetry.findings_of_program(off))["SDK"] == ("note", "switched off")


@pytest.mark.parametrize(
    ("found", "source"),
    [
        (traced(is_configured_by_queueprop=True), "configure_tracing()"),
        (traced(), "the program's code"),
        (
            {**traced(), "modules": ["opentelemetry.instrumentation.auto_instrumentation"]},
            "opentelemetry-instrument",
        ),
    ],
)
def test_who_has_set_up_the_sdk(found: dict[str, Any], source: str) -> None:
    """It is told as the provider's source."""
    assert next(telemetry.findings_of_program(facts(**found))).source == source


def test_what_is_in_force_in_a_program() -> None:
    """Its resource, exporters with their endpoints, propagators and meter provider."""
    found = told(
        telemetry.findings_of_program(
            facts(
                **traced(
                    processors=[BATCH, {"exporter": "x.ConsoleSpanExporter"}],
                    resource={"service.name": "shop"},
                ),
                propagators=["o.p.B3Propagator"],
                metering={"provider": "sdk.MeterProvider"},
            )
        )
    )
    assert found["resource"] == ("ok", "service.name=shop")
    assert found["propagators"] == ("ok", "B3Propagator")
    assert found["endpoint"] == ("ok", "http://c/v1/traces")
    assert found["meter provider"] == ("ok", "sdk.MeterProvider")


def test_a_provider_without_an_exporter() -> None:
    """No span leaves the process."""
    assert told(telemetry.findings_of_program(facts(**traced())))["exporter"][0] == "problem"


# The end of a process


def ending(**found: Any) -> dict[str, tuple[str, str]]:
    processors = found.pop("processors", [BATCH])
    return told(endings.findings(facts(**{**traced(processors=processors), **found})))


def test_nothing_is_lost() -> None:
    """Where queueprop hands over, where SIGTERM is handled, and where nothing waits."""
    ours = told(endings.findings(facts(**traced(processors=[BATCH], is_configured_by_queueprop=True))))
    assert ours == {"end of the process": ("ok", ours["end of the process"][1])}
    assert "configure_tracing()" in ours["end of the process"][1]
    for found in ({"sigterm": "x.handler"}, {"sigterm": "default", "processors": []}):
        assert list(ending(**found)) == ["end of the process"]


@pytest.mark.parametrize(
    ("found", "subject"),
    [
        ({"sigterm": "default"}, "SIGTERM"),
        ({"green": {"gevent": True}, "processors": [{**BATCH, "locks": ["native"]}]}, "gevent"),
        ({"running": ["rq"]}, "RQ's work horses"),
        ({"running": ["celery"], "modules": ["celery.concurrency.prefork"]}, "Celery's prefork pool"),
        ({"uwsgi": {"threads": False, "lazy": True}}, "uWSGI"),
        ({"uwsgi": {"threads": True, "lazy": False}}, "uWSGI"),
    ],
)
def test_what_is_lost(found: dict[str, Any], subject: str) -> None:
    """By a signal, under gevent, in children that run no exit hooks, and under uWSGI."""
    assert [(it, level) for it, (level, _) in ending(**{"sigterm": "x.handler", **found}).items()] == [
        (subject, "problem")
    ]


@pytest.mark.parametrize(
    "found",
    [
        {"green": {"gevent": True}, "processors": [{**BATCH, "locks": ["green"]}]},
        {"green": {"gevent": True}},
        {"running": ["rq"], "instrumentors": [{"class": RQ, "instrumented": True}]},
        {"running": ["celery"], "modules": ["celery.concurrency.prefork"], "worker_hooks": 1},
        {"running": ["celery"]},
        {"uwsgi": {"threads": True, "lazy": True}},
    ],
)
def test_what_is_not(found: dict[str, Any]) -> None:
    """The same with a hook, an instrumentation, or the right order."""
    assert list(ending(**{"sigterm": "x.handler", **found})) == ["end of the process"]


def test_what_was_said_and_what_could_not_be_seen() -> None:
    """What queueprop told the program is told again, but for what the libraries' section has."""
    found = ending(
        sigterm="x.handler", said=["reading X: wants Y", "z: queueprop stands down"], troubles=["tracing: no"]
    )
    assert found["queueprop said"] == ("problem", "reading X: wants Y")
    assert found["not looked at"] == ("note", "tracing: no")
    assert ending(sigterm="x.handler", importing=True)["imports"][0] == "note"
