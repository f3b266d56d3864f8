"""``make sampling``: 3,000 orders through ``examples/orders``, a real Collector and a real Jaeger, and what is kept.

ORDERS_QUEUE names the queue: bullmq if it is not set, which is the quickest. Both programs are built where they are not
in the cache, which takes minutes.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import ExitStack, closing
from pathlib import Path

from integration.brokers import BrokerError, Unavailable, find
from integration.postgresql import PostgreSQL, postgresql
from queueprop.cli.demo.processes import Died

from . import orders
from .build import built
from .collector import Collector
from .jaeger import Jaeger
from .sampling import Plan, kept_of, traces_in


def main() -> int:
    """The exit status: 1 where the programs cannot be had, or where the services lose an order or a span."""
    arguments = argparse.ArgumentParser(prog="make sampling", description=__doc__)
    arguments.add_argument("--orders", type=int, default=Plan.orders)
    arguments.add_argument("--failing", type=int, default=Plan.failing)
    arguments.add_argument("--slow", type=int, default=Plan.slow)
    arguments.add_argument("--seed", type=int, default=Plan.seed)
    arguments.add_argument(
        "--queue",
        choices=orders.BROKERS,
        default=os.environ.get("ORDERS_QUEUE") or "bullmq",
        help="(default: ORDERS_QUEUE, else bullmq)",
    )
    arguments.add_argument("--workers", type=int, default=8, help="processes (default: 8)")
    arguments.add_argument("--at-once", type=int, default=8, help="orders on their way (default: 8)")
    arguments.add_argument("--build", nargs="+", metavar="PROGRAM", help="build these, and run nothing")
    given = arguments.parse_args()
    try:
        if given.build:
            print(*map(built, given.build), sep="\n")
        else:
            run(given, built("otelcol"), built("jaeger"))
    except (Unavailable, BrokerError, orders.Lost, Died, TimeoutError) as reason:
        print(reason, file=sys.stderr)
        return 1
    return 0


def run(given: argparse.Namespace, collector: Path, jaeger_program: Path) -> None:
    plan = Plan(given.orders, given.failing, given.slow, given.seed)
    with ExitStack() as stack:
        broker = stack.enter_context(closing(find(orders.BROKERS[given.queue])))
        database = _database(stack)
        jaeger = stack.enter_context(closing(Jaeger(jaeger_program)))
        witness = stack.enter_context(orders.witness())
        # As it is in deploy/, but for where Jaeger is; the services have the SDK's own settings, too.
        gateway = Collector(
            collector, ["gateway.yaml", witness.configuration], TRACES_ENDPOINT=jaeger.start()
        )
        stack.enter_context(closing(gateway))
        environ = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": gateway.start(),
            **orders.queue_of(given.queue, broker.start(), given.workers),
            **({"ORDERS_DATABASE_URL": database.url} if database else {}),
        }
        print(
            f"{plan.orders} orders: HTTP, {given.queue} on {broker}, {given.workers} workers, "
            f"{'PostgreSQL' if database else 'SQLite'}",
            flush=True,
        )
        planned = orders.orders_of(plan)
        began = time.monotonic()
        with orders.shop(environ, given.workers, given.at_once) as shop:
            shop.take(planned)
        print(
            f"in {time.monotonic() - began:.0f} s; the Collector decides, and Jaeger is asked\n", flush=True
        )
        made = orders.made_of(planned, witness.spans_of(gateway))
        kept = kept_of(made, [gateway], jaeger)
        _show_one(jaeger, database)
        print(kept)


def _database(stack: ExitStack) -> PostgreSQL | None:
    try:
        return stack.enter_context(postgresql())
    except Unavailable as reason:
        print(f"{reason}: SQLite is used instead")
        return None


def _show_one(jaeger: Jaeger, database: PostgreSQL | None) -> None:
    """A trace as Jaeger has it, and what PostgreSQL logged with its id."""
    spans = max(traces_in(jaeger).values(), key=len)
    trace = spans[0].trace_id
    print(f"trace {trace}, by Jaeger's API\n{orders.told(spans)}\n")
    lines = database.log().splitlines() if database else ()
    inserts = [line for line in lines if f"traceparent='00-{trace}-" in line and "INSERT" in line]
    print(*(f"PostgreSQL: {line}" for line in inserts), "", sep="\n")


if __name__ == "__main__":
    sys.exit(main())
