"""The console script and its commands."""

from __future__ import annotations

import sys

import pytest

from queueprop.cli import main
from queueprop.cli.demo import run
from queueprop.cli.demo.brokers import BROKERS, load
from queueprop.version import __version__


def _exit_status(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert isinstance(end.value.code, int)
    return end.value.code


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """``queueprop --version`` names the version of the package."""
    assert _exit_status("--version") == 0
    assert __version__ in capsys.readouterr().out


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    """``queueprop --help`` lists what there is."""
    assert _exit_status("--help") == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in ("demo", "doctor", "peek", "watch"))


def test_unknown_broker_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """A broker that is not there is a usage error that names those that are."""
    assert _exit_status("demo", "--broker", "pigeons") == 2
    assert "rq" in capsys.readouterr().err


def test_without_the_command_line_library(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the extra there is one line that says what to install, and the status 2."""
    monkeypatch.delitem(sys.modules, "queueprop.cli.app", raising=False)
    monkeypatch.setitem(sys.modules, "click", None)
    assert main(["demo"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert 'click: pip install "queueprop[cli]"' in message


def test_our_own_missing_module_is_not_explained_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken installation of queueprop itself is not told as a missing extra."""
    monkeypatch.delitem(sys.modules, "queueprop.cli.app", raising=False)
    monkeypatch.setitem(sys.modules, "queueprop.cli.demo.brokers", None)
    with pytest.raises(ModuleNotFoundError):
        main(["demo"])


@pytest.mark.parametrize("module", ["rich", "opentelemetry.exporter", "rq"])
def test_demo_without_what_it_needs(
    module: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is started, one line names what is missing and what to install; the status is 2."""
    for name in [name for name in sys.modules if name == module or name.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    assert _exit_status("demo") == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert module in message
    assert 'pip install "queueprop[demo]"' in message


def test_exit_status_is_that_of_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the run returns is the exit status of the command."""
    monkeypatch.setattr(run, "main", lambda broker: 1)
    assert _exit_status("demo") == 1


@pytest.mark.parametrize("name", sorted(BROKERS))
def test_broker_is_there(name: str) -> None:
    """Every broker that can be named can be loaded, without its library being imported for that."""
    broker = load(name)
    assert broker.order_service.endswith("order_service")
    assert broker.notification_service.endswith("notification_service")
