"""The global providers, as they are asked for every message."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from opentelemetry import metrics, trace

from queueprop.engine import providers
from queueprop.engine.providers import kept_until_set


class Api(ModuleType):
    """OpenTelemetry's API, with a stand-in for as long as nobody has set a provider."""

    def __init__(self) -> None:
        super().__init__("api")
        self.SET: Any = None
        self.stand_in = object()
        self.asked = 0

    def ask(self) -> object:
        self.asked += 1
        return self.stand_in if vars(self).get("SET") is None else self.SET


def test_it_is_asked_once_until_one_is_set() -> None:
    """The stand-in is kept; one that is set is seen at the next message, and so is another one."""
    api = Api()
    provider = kept_until_set(api.ask, vars(api), "SET")
    assert [provider() for _ in range(3)] == [api.stand_in] * 3
    assert api.asked == 1
    for _ in range(2):
        api.SET = object()
        assert provider() is api.SET
    api.SET = None
    assert provider() is api.stand_in


def test_one_that_asking_sets() -> None:
    """What the environment names is made by the first question, and kept by the API."""
    api = Api()

    def ask() -> object:
        api.SET = object()
        return api.SET

    provider = kept_until_set(ask, vars(api), "SET")
    assert provider() is api.SET
    assert provider() is api.SET


def test_an_api_that_keeps_it_elsewhere() -> None:
    """It is asked each time, and so is one that is written in C."""
    assert providers._home_of(len) == {}
    api = Api()
    provider = kept_until_set(api.ask, vars(api), "GONE")
    assert [provider() for _ in range(3)] == [api.stand_in] * 3
    assert api.asked == 3


def test_what_cannot_be_made() -> None:
    """The error is whoever's it is, each time."""

    def ask() -> object:
        raise LookupError("no such provider")

    provider = kept_until_set(ask, vars(Api()), "SET")
    for _ in range(2):
        with pytest.raises(LookupError):
            provider()


def test_the_name_is_the_one_of_this_api() -> None:
    """Where the API keeps what is set: else all is right, and slower."""
    assert "_TRACER_PROVIDER" in providers._home_of(trace.get_tracer_provider)
    assert "_METER_PROVIDER" in providers._home_of(metrics.get_meter_provider)
    assert providers.get_tracer_provider() is trace.get_tracer_provider()
    assert providers.get_meter_provider() is metrics.get_meter_provider()
