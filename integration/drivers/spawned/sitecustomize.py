"""Python imports it at its start: the SDK for a worker program that knows nothing of the test that started it.

It stands for what ``opentelemetry-instrument`` does, save that it instruments nothing.
"""

import os
import sys
from pathlib import Path

if "_QUEUEPROP_CONTRACT_RECORDS" in os.environ:
    # Last, so that queueprop is the installed one.
    sys.path.append(str(Path(__file__).parents[3]))
    from integration.contract.telemetry import capture_logs, set_providers

    if os.environ.get("_QUEUEPROP_CONTRACT_SDK") == "1":
        set_providers()
    capture_logs()
