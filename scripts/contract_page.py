"""docs/contract.md, of the matrix that the contract suite has written last: `make contract-page`.

The suite writes `.tox/contract.md` (`make test`: each library's first style; `make integration`: every style).
"""

from __future__ import annotations

import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
MATRIX = CHECKOUT / ".tox" / "contract.md"
PAGE = CHECKOUT / "docs" / "contract.md"

BEGIN = "<!-- the suite's matrix -->\n"


def main(matrix: Path = MATRIX) -> int:
    if not matrix.exists():
        print(f"{matrix} is not there: run `make test` first, whose contract suite writes it")
        return 1
    before, begin, _ = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    if not begin:
        print(f"{PAGE} has no line {BEGIN.strip()}")
        return 1
    table = matrix.read_text(encoding="utf-8").removeprefix("# Contract matrix").strip()
    PAGE.write_text(f"{before}{begin}\n{table}\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
