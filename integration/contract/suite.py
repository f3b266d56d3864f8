"""All of the contract's behaviours in one class."""

from __future__ import annotations

from typing import ClassVar

from integration.contract.batches import Batches
from integration.contract.contexts import Contexts
from integration.contract.driver import Driver
from integration.contract.failures import Failures
from integration.contract.instrumentation import Instrumentation
from integration.contract.measurements import Measurements
from integration.contract.origins import Origins
from integration.contract.receiving import Receiving
from integration.contract.sending import Sending
from integration.contract.workers import Workers


class Contract(
    Sending, Receiving, Failures, Contexts, Batches, Instrumentation, Workers, Measurements, Origins
):
    """Derive a ``Test`` class from it, name the driver, and every scenario runs in each of the driver's
    columns.
    """

    driver: ClassVar[type[Driver]]
