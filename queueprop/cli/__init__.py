"""The console script ``queueprop``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import cast

_HINT = 'queueprop: the command line needs {missing}: pip install "queueprop[cli]"'


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``queueprop`` with these arguments, else with those of the process; returns, or raises, the exit status.

    Without the packages that it needs, one line says what to install, and the status is 2.
    """
    try:
        from queueprop.cli.app import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "queueprop":
            raise
        print(_HINT.format(missing=error.name), file=sys.stderr)
        return 2
    return cast(int, app(arguments, prog_name="queueprop"))  # it ends in sys.exit
