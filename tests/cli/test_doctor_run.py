"""``queueprop doctor`` from its arguments to its exit status."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from queueprop import guard
from queueprop.cli import main, urls
from queueprop.cli.doctor import endpoint, rounds, trial
from queueprop.cli.doctor.findings import Finding
from queueprop.cli.refusal import Refused
from queueprop.settings import Settings

BROKER = urls.parse("redis://127.0.0.1:1")


@pytest.fixture(autouse=True)
def _every_endpoint_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        endpoint, "finding", lambda address, is_grpc, facts: Finding("x", "endpoint", "ok", address)
    )
    monkeypatch.setenv(
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "aio-pika,aiokafka,celery,confluent_kafka,pika"
    )


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, "connect_once", lambda broker: None)


def doctor(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["doctor", *arguments])
    assert isinstance(end.value.code, int)
    return end.value.code


def test_this_environment(capsys: pytest.CaptureFixture[str]) -> None:
    """Where nothing is to be mended the status is 0, in plain text without a terminal."""
    assert doctor() == 0
    output = capsys.readouterr().out
    assert "ok       rq: " in output
    assert output.endswith("No problem.\n")
    assert "\x1b" not in output


def test_problems_are_the_status(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a line with what to do below it, they are counted, and the status is 1."""
    monkeypatch.setenv("QUEUEPROP_PROPAGATION", "side\x1bways")
    assert doctor() == 1
    output = capsys.readouterr().out
    assert "PROBLEM  QUEUEPROP_PROPAGATION: wants 'parent' or 'link'" in output
    assert output.endswith("1 problem.\n")
    assert "\x1b" not in output
    monkeypatch.setenv("QUEUEPROP_TRUST", "some")
    assert doctor() == 1
    assert capsys.readouterr().out.endswith("2 problems.\n")


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    """One object, with all findings."""
    assert doctor("--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["problems"] == 0
    (report,) = found["reports"]
    assert {"section": "libraries", "subject": "rq", "level": "ok"}.items() <= next(
        each for each in report["findings"] if each["subject"] == "rq"
    ).items()


def test_a_program(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """It is said what is done to it; what it prints is not among the findings."""
    script = tmp_path / "worker.py"
    script.write_text("print('hello')\nimport sys\nsys.exit(int(sys.argv[1]))\n")
    status = doctor("--seconds", "30", "--", sys.executable, str(script), "3")
    output, errors = capfd.readouterr()
    assert status == 1
    assert f"inside {sys.executable} {script} 3 (pid " in output
    assert "PROBLEM  the program: ended by itself with status 3" in output
    assert "is started, looked into after 30 s, and ended by SIGTERM" in errors
    assert "hello" in errors
    doctor("--json", "--", sys.executable, str(script), "0")
    output, errors = capfd.readouterr()
    assert json.loads(output)["reports"][0]["findings"][-1]["level"] == "note"
    assert errors.endswith("\nhello\n")


def test_a_program_that_goes_on(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """What is told of it says nothing of an end: it was the doctor's."""
    script = tmp_path / "worker.py"
    script.write_text("import time\ntime.sleep(60)\n")
    doctor("--json", "--seconds", "0.2", "--", sys.executable, str(script))
    findings = json.loads(capfd.readouterr().out)["reports"][0]["findings"]
    assert "the program" not in [each["subject"] for each in findings]


@pytest.mark.parametrize(
    "arguments",
    [["redi://h"], ["redis://127.0.0.1:1"], ["no-such-program"], ["redis://127.0.0.1:1", "--", "sh"]],
)
def test_what_cannot_be_looked_at(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """One line, nothing else, and the status 2."""
    assert doctor(*arguments) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("queueprop doctor: ")
    assert errors.count("\n") == 1


@pytest.mark.parametrize("command", [["doctor"], ["peek", "redis://h", "orders"]])
def test_without_rich(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line says what to install."""
    for name in [name for name in sys.modules if name == "rich" or name.startswith("rich.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)
    with pytest.raises(SystemExit) as end:
        main(command)
    assert end.value.code == 2
    assert capsys.readouterr().err == f'queueprop {command[0]} needs rich: pip install "queueprop[cli]"\n'


# A broker


def _round(broker: urls.BrokerURL, queue: str, settings: Settings) -> Generator[None, None, None]:
    """Through a list instead of a queue."""
    from queueprop import Destination, process_span, send_span

    headers: dict[str, str] = {}
    yield
    with send_span(Destination("x", queue), headers=headers, settings=settings):
        pass
    yield
    with process_span(Destination("x", queue), headers=headers, settings=settings):
        pass


def _losing(broker: urls.BrokerURL, queue: str, settings: Settings) -> Generator[None, None, None]:
    """It loses the headers."""
    from queueprop import Destination, process_span, send_span

    yield
    with send_span(Destination("x", queue), headers={}, settings=settings):
        pass
    yield
    with process_span(Destination("x", queue), headers={}, settings=settings):
        pass


def _raising(broker: urls.BrokerURL, queue: str, settings: Settings) -> Generator[None, None, None]:
    yield
    raise ConnectionError("gone")


def _complaining(broker: urls.BrokerURL, queue: str, settings: Settings) -> Generator[None, None, None]:
    yield
    guard.mistake("publishing", "no")
    yield


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> dict[str, rounds.Round]:
    """The rounds of Redis, to be filled."""
    found: dict[str, rounds.Round] = {}
    monkeypatch.setattr(trial, "ROUNDS", {"redis": found})
    return found


def test_a_message_goes_through(
    tried: dict[str, rounds.Round], live: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """The trace that came out is shown, beside this environment."""
    tried["rq"] = _round
    assert doctor("redis://127.0.0.1:1") == 0
    output = capsys.readouterr().out
    assert "this environment" in output
    assert "publish and process are one trace" in output
    assert "PRODUCER publish queueprop-doctor-" in output
    assert "CONSUMER process queueprop-doctor-" in output


def test_linked_by_the_settings(tried: dict[str, rounds.Round], monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings of the environment are in force: two traces that are linked are whole."""
    monkeypatch.setenv("QUEUEPROP_PROPAGATION", "link")
    monkeypatch.setenv("QUEUEPROP_TRUST", "some")  # told of by itself, and nothing of the broker's
    tried["rq"] = _round
    (found,) = trial.findings(BROKER)
    assert found.level == "ok"
    assert "two traces, linked" in found.text


@pytest.mark.parametrize(
    ("variables", "run", "said"),
    [
        ({}, _losing, "its process span is an orphan"),
        ({}, _raising, "no message went through: ConnectionError: gone"),
        ({"QUEUEPROP_EXCLUDE": "queueprop-*"}, _round, "has no spans of publish and process"),
        ({}, _complaining, "queueprop said: publishing: no"),
    ],
)
def test_what_is_wrong_with_a_message(
    variables: dict[str, str],
    run: rounds.Round,
    said: str,
    tried: dict[str, rounds.Round],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is a problem, and says which."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    tried["rq"] = run
    (found,) = trial.findings(BROKER)
    assert found.level == "problem"
    assert said in found.text


def test_no_library_speaks_to_it(tried: dict[str, rounds.Round]) -> None:
    """It says which would."""
    tried["no-such-library"] = _round
    with pytest.raises(Refused, match="it takes no-such-library"):
        list(trial.findings(BROKER))


def test_a_broker_is_tried_with_an_sdk(
    tried: dict[str, rounds.Round], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one there are no spans to show."""
    tried["rq"] = _round
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace.sampling", None)
    with pytest.raises(Refused, match=r"queueprop\[sdk\]"):
        list(trial.findings(BROKER))
