"""deploy/compose.yaml: as far as it can be checked where no daemon is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jsonschema")
import yaml
from jsonschema import Draft202012Validator

DEPLOY = Path(__file__).parent.parent / "deploy"
SCHEMA = Path(__file__).parent / "deploy" / "compose-spec.json"


@pytest.fixture(scope="module")
def compose() -> Any:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def _faults(compose: Any) -> list[str]:
    validator = Draft202012Validator(json.loads(SCHEMA.read_text()))
    return [f"{fault.json_path}: {fault.message}" for fault in validator.iter_errors(compose)]


def test_by_the_specification(compose: Any) -> None:
    """The Compose specification's schema has nothing against it."""
    assert _faults(compose) == []


def test_the_schema_finds_a_fault(compose: Any) -> None:
    """A key that Compose does not know, and a number where it wants a list, are found."""
    compose["services"]["redis"].update(imagee="redis:8", ports=6379)
    assert len(_faults(compose)) == 2
    del compose["services"]["redis"]["imagee"]
    compose["services"]["redis"]["ports"] = ["127.0.0.1:6379:6379"]
    assert _faults(compose) == []


def test_every_mounted_file_is_there(compose: Any) -> None:
    """What a service mounts of this folder exists, and what it mounts by name is a volume of the file."""
    for service in compose["services"].values():
        for mount in service.get("volumes", ()):
            source = mount.split(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in compose["volumes"]


def test_the_collector_is_given_files_that_are_there(compose: Any) -> None:
    """Its --config options name files of deploy/collector, where they are mounted."""
    options = compose["services"]["collector"]["command"]
    names = [option.removeprefix("--config=/etc/otelcol/") for option in options]
    assert all((DEPLOY / "collector" / name).is_file() for name in names)


def test_every_port_is_on_the_loopback_address(compose: Any) -> None:
    """Nothing of it has a password, so nothing of it is offered to the network."""
    ports = [port for service in compose["services"].values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_datasources_lead_to_each_other() -> None:
    """Every data source that another one links to is there, and asks a service of the compose file."""
    path = DEPLOY / "grafana" / "provisioning" / "datasources" / "datasources.yaml"
    sources = yaml.safe_load(path.read_text())["datasources"]
    names = {source["uid"] for source in sources}
    linked = {
        source["jsonData"]["tracesToLogsV2"]["datasourceUid"]
        for source in sources
        if source["uid"] == "tempo"
    }
    linked |= {
        field["datasourceUid"]
        for source in sources
        for field in source.get("jsonData", {}).get("derivedFields", ())
    }
    assert linked == {"loki", "tempo"}
    assert linked <= names
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    assert {source["url"].split("/")[2].split(":")[0] for source in sources} <= services.keys()
