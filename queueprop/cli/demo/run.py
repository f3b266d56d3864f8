"""The demo itself: start everything, send the orders, collect the spans, show them, judge them."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Mapping
from typing import NamedTuple
from urllib.request import ProxyHandler, Request, build_opener

from rich.console import Console

from queueprop.cli.demo.brokers import READY, Broker, NoServer, Server
from queueprop.cli.demo.processes import STARTUP, Died, Process, Processes, accepts, free_port, until
from queueprop.cli.demo.screen import Screen
from queueprop.cli.demo.signals import Stopped, StopSignals
from queueprop.cli.demo.verdict import Verdict, deliveries, orphaned
from queueprop.cli.watch.forward import Forward
from queueprop.cli.watch.receiver import Receiver
from queueprop.cli.watch.store import NO_CONTEXT


class Order(NamedTuple):
    """What the demo orders, and how often its confirmation is delivered."""

    item: str
    email: str
    retries: int = 0
    delay: float = 0
    deliveries: int = 1


ORDERS = (
    Order("coffee", "ada@example.com"),
    Order("bread", "alan@example.com", delay=2),  # RQ counts whole seconds: 1 to 3 of them
    Order("milk", "busy@example.com", retries=1, deliveries=2),  # fails once, and is tried again
    Order("tea", "nobody@example.com"),  # fails for good
    Order("sugar", "grace@example.com"),
)
EXPECTED = sum(order.deliveries for order in ORDERS)

PATIENCE = 30.0
"""Seconds for all deliveries of a run."""

_WHOLE = ": every delivery is in the trace of its order."
_BROKEN = ": the messages carry no context, so each delivery starts a trace of its own."
_NOT_WHOLE = ": this should not be, see the traces above."


def main(broker: Broker, environ: Mapping[str, str] = os.environ, console: Console | None = None) -> int:
    """Runs the demo; returns the exit status: 0, 1, or 128 and the number of the signal that stopped it."""
    if console is None:
        # Not every terminal has the characters of the tree.
        with contextlib.suppress(AttributeError):
            sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
        console = Console(highlight=False)
    screen = Screen(console)
    with StopSignals() as signals:
        try:
            return _demo(broker, environ, screen, signals)
        except Stopped as stopped:
            screen.headline("Stopped; nothing is left running.")
            return stopped.status
        except (Died, NoServer, TimeoutError, OSError) as error:
            screen.error(f"queueprop demo: {error}")
            return 1


def _demo(broker: Broker, environ: Mapping[str, str], screen: Screen, signals: StopSignals) -> int:
    forward = Forward.of(environ)
    with (
        Receiver(forward) as receiver,
        Processes(screen.log, signals.held) as processes,
        broker.server(processes, environ) as server,
    ):
        screen.headline(
            f"order-service, notification-service, and {broker.title} on {server.what} between them"
        )
        if forward is not None:
            screen.step(f"spans also go to {forward.url}")
        run = _Run(broker, server, receiver, processes, screen, environ)
        verdicts = [run.one(with_queueprop) for with_queueprop in (True, False)]
    screen.comparison(verdicts)
    if receiver.failure is not None:
        screen.error(receiver.failure)
    on, off = verdicts
    return 0 if on.is_whole and off.deliveries == off.expected else 1


class _Run(NamedTuple):
    broker: Broker
    server: Server
    receiver: Receiver
    processes: Processes
    screen: Screen
    environ: Mapping[str, str]

    def one(self, with_queueprop: bool) -> Verdict:
        """The same traffic, with queueprop or without."""
        self.screen.headline("With queueprop" if with_queueprop else "The same without queueprop")
        self.receiver.clear()
        expected = EXPECTED + self.broker.further - (0 if with_queueprop else self.broker.untold)
        messages = self._traffic(self._environment(with_queueprop), expected)
        spans = self.receiver.spans()
        self.screen.traces(spans, dict.fromkeys(orphaned(spans), NO_CONTEXT))
        verdict = Verdict.of(spans, messages, expected)
        as_meant = _WHOLE if with_queueprop else _BROKEN
        self.screen.verdict(verdict, as_meant if verdict.is_whole == with_queueprop else _NOT_WHOLE)
        return verdict

    def _traffic(self, environment: Mapping[str, str], expected: int) -> int:
        port = free_port()
        self.screen.step("starting both services")
        http = self._start("order-service", self.broker.order_service, {**environment, "PORT": str(port)})
        worker = self._start("notification-service", self.broker.notification_service, environment)
        try:
            until(
                "both services to be ready",
                lambda: accepts(port) and worker.has_printed(READY),
                STARTUP,
                http,
                worker,
            )
            self.screen.step(f"sending {len(ORDERS)} orders to http://127.0.0.1:{port}/orders")
            for order in ORDERS:
                _send(order, port, http)
            self.screen.step("waiting for the deliveries: one is delayed, one fails, one is tried again")
            with contextlib.suppress(TimeoutError):  # the verdict says what is missing
                until("the deliveries", lambda: self._is_delivered(expected), PATIENCE, http, worker)
        finally:
            self.processes.stop(worker, http)  # in order, and so with their last spans
        return len(ORDERS)

    def _start(self, name: str, module: str, environment: Mapping[str, str]) -> Process:
        return self.processes.start(name, [sys.executable, "-m", module], environment)

    def _is_delivered(self, expected: int) -> bool:
        spans = self.receiver.spans()
        mails = sum(span.name == "send mail" for span in spans)
        return mails >= EXPECTED and len(deliveries(spans)) >= expected

    def _environment(self, with_queueprop: bool) -> dict[str, str]:
        """What the services get besides this process's environment: no setting of OpenTelemetry but the demo's."""
        inherited = {name: "" for name in self.environ if name.startswith("OTEL_")}
        attributes = [self.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")]
        attributes.append(f"queueprop.demo={'with' if with_queueprop else 'without'} queueprop")
        return {
            **inherited,
            **self.server.environment,
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.receiver.endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": "otel,process",  # the process id is shown
            "OTEL_RESOURCE_ATTRIBUTES": ",".join(filter(None, attributes)),
            "WITHOUT_QUEUEPROP": "" if with_queueprop else "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            "PYTHONUNBUFFERED": "1",
            "OBJC_DISABLE_INITIALIZE_FORK_SAFETY": "YES",  # macOS: a worker that forks, as RQ's does
        }


def _send(order: Order, port: int, service: Process) -> None:
    """Raises Died when it is not accepted."""
    content = {"item": order.item, "email": order.email, "retries": order.retries, "delay": order.delay}
    request = Request(
        f"http://127.0.0.1:{port}/orders",
        json.dumps(content).encode(),
        {"Content-Type": "application/json"},
        method="POST",
    )
    try:
        build_opener(ProxyHandler({})).open(request, timeout=10).close()
    except OSError as error:
        service.stop()  # after that all that it printed has been read
        raise service.died(f"did not take an order: {error}") from error
