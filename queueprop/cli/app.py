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


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False
