"""The commands of ``queueprop``."""

from __future__ import annotations

import importlib.util
import sys

import click

from queueprop.cli.demo.brokers import BROKERS, load
from queueprop.version import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="queueprop")
def app() -> None:
    """OpenTelemetry context through message queues."""


@app.command()
@click.option(
    "--broker",
    type=click.Choice(sorted(BROKERS)),
    default="rq",
    show_default=True,
    help="What is between them.",
)
def demo(broker: str) -> None:
    """Two services, a queue between them, and their traces in the terminal.

    An order-service takes a few orders over HTTP, and a notification-service, another process, mails their
    confirmations: first with queueprop, then without, so that the broken traces are seen beside the whole ones.
    Everything is started and stopped by itself. With OTEL_EXPORTER_OTLP_ENDPOINT the spans also go there.

    The exit status is 0 when, with queueprop, no message is lost and none is orphaned; else 1.
    """
    missing = [module for module in load(broker).needs if not _is_installed(module)]
    if missing:
        click.echo(f'queueprop demo needs {", ".join(missing)}: pip install "queueprop[demo]"', err=True)
        sys.exit(2)
    from queueprop.cli.demo.run import main

    sys.exit(main(load(broker)))


@app.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")
@click.option(
    "--seconds",
    type=click.FloatRange(0, 600),
    default=5.0,
    show_default=True,
    help="How long a program is let be before it is looked into.",
)
@click.argument("arguments", nargs=-1, metavar="[URL]... [-- PROGRAM [ARGUMENT]...]", type=click.UNPROCESSED)
def doctor(as_json: bool, seconds: float, arguments: tuple[str, ...]) -> None:
    """What is installed, instrumented and in force, and whether spans would come out.

    Of a broker (amqp://, redis://, kafka://) it publishes a message into a queue of its own, handles it, and shows
    the trace that came out; the queue is gone afterwards.

    A program is started and looked into: queueprop doctor -- python worker.py. It runs as it always does, and is
    ended by SIGTERM after that.

    The exit status is 0; 1 when something is to be mended; 2 when what was asked for cannot be looked at.
    """
    _refuse_without_rich("doctor")
    from queueprop.cli.doctor.run import main

    sys.exit(main(arguments, seconds, as_json))


@app.command()
@click.argument("url")
@click.argument("queue")
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many messages."
)
@click.option(
    "--library",
    type=click.Choice(["rq", "dramatiq", "bullmq", "celery"]),
    help="On Redis: whose queue it is; without it, whichever has one of this name.",
)
@click.option("--group", help="On Kafka: what this group has not committed; without it, the newest records.")
@click.option("--bodies", is_flag=True, help="Show the first kilobyte of each body, too.")
@click.option("--yes", is_flag=True, help="On RabbitMQ: take the messages and give them back.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")
def peek(
    url: str,
    queue: str,
    limit: int,
    library: str | None,
    group: str | None,
    bodies: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """The trace context and baggage of the messages that wait in a queue or topic, without consuming them.

    In Redis (RQ, Dramatiq, BullMQ, Celery) and Kafka it only reads. RabbitMQ shows a message by delivering it, and
    has it back marked as redelivered: that is said first, and done with --yes alone.

    The exit status is 0, or 2 when the queue cannot be looked at.
    """
    _refuse_without_rich("peek")
    from queueprop.cli.peek.run import main

    sys.exit(
        main(
            url,
            queue,
            limit=limit,
            library=library,
            group=group,
            with_bodies=bodies,
            is_allowed=yes,
            in_json=as_json,
        )
    )


def _refuse_without_rich(command: str) -> None:
    if not _is_installed("rich"):
        click.echo(f'queueprop {command} needs rich: pip install "queueprop[cli]"', err=True)
        sys.exit(2)


@app.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Where it listens.")
@click.option("--port", type=click.IntRange(0, 65535), default=4318, show_default=True, help="0: a free one.")
@click.option("--web", is_flag=True, help="The same as a page, on 127.0.0.1 alone.")
@click.option(
    "--web-port", type=click.IntRange(0, 65535), default=4319, show_default=True, help="The page's."
)
@click.option("--forward", metavar="URL", help="A Collector that everything is handed on to.")
def watch(host: str, port: int, web: bool, web_port: int, forward: str | None) -> None:
    """Receives OTLP/HTTP and shows the traces as they come.

    Any program, in any language, sends to it: OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318 with
    OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf. Deliveries that are orphaned, outside of their message's trace, are
    marked with the reason: no context, a malformed one, an untrusted source, a parent that was never seen. The newest
    10,000 traces and 200,000 spans are kept, in memory.

    It ends with Ctrl-C. The exit status is 1 where it cannot listen.
    """
    missing = [module for module in _FOR_WATCH if not _is_installed(module)]
    if missing:
        click.echo(f'queueprop watch needs {", ".join(missing)}: pip install "queueprop[watch]"', err=True)
        sys.exit(2)
    from queueprop.cli.watch.run import Options, main

    sys.exit(main(Options(host, port, web, web_port, forward)))


_FOR_WATCH = ("google.rpc", "opentelemetry.proto", "rich", "sse_starlette", "starlette", "uvicorn")


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False
