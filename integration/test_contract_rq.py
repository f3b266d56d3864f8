"""The contract, through RQ on a live Redis."""

from __future__ import annotations

import pytest

pytest.importorskip("rq")

from integration.contract.suite import Contract
from integration.drivers.rq import RQDriver

# Workers fork while the SDK has threads, as they do wherever they are traced.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


class TestRQ(Contract):
    driver = RQDriver
