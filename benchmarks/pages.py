"""Tables in pages of the documentation, each between two equal marks."""

from __future__ import annotations

from pathlib import Path

from bridge._util.files import replacing


def renew(path: Path, mark: str, table: str) -> None:
    """Write the page at `path` with `table` in the place of what is between its two `mark`s."""
    before, _, rest = path.read_text(encoding="utf-8").partition(mark)
    after = rest.partition(mark)[2]
    with replacing(path) as file:
        file.write(f"{before}{mark}\n{table}\n{mark}{after}".encode())
