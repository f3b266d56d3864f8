"""notification-service: the worker that notifies customers of their orders.

python -m examples.orders.notification_service
"""

from __future__ import annotations

from . import logs, queues, telemetry
from .notifications import notify


def main() -> None:
    telemetry.configure("notification-service")
    logs.configure()
    queues.chosen().work(notify)


if __name__ == "__main__":
    main()
