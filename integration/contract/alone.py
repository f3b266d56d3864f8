"""A fresh process that instruments a library and sends one message through it in each style.

``python alone.py {library|instrument} MODULE:DRIVER URL STYLE...``: the first word says what comes first, the
import of the library or ``queueprop.instrument()``. A message's body is the name of its style.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path


def main(first: str, driver_path: str, url: str, *styles: str) -> None:
    # Last, so that queueprop is the installed one.
    sys.path.append(str(Path(__file__).parents[2]))
    import queueprop
    from integration.contract.actions import do
    from integration.contract.telemetry import set_providers

    module, name = driver_path.split(":")
    library = module.rpartition(".")[2].removesuffix("_driver").removesuffix("_aio")
    providers = set_providers()
    if first == "library":
        importlib.import_module(library)
    else:
        assert library not in sys.modules
    queueprop.instrument(library)
    driver_class = getattr(importlib.import_module(module), name)
    for style in styles:
        driver = driver_class(style, "instrumentor", url)
        driver.open()
        driver.publish(style)
        driver.consume(do("observe"))
        driver.close()
    for provider in providers:
        provider.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
