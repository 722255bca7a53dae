"""Every promise in docs/promises.md names a test that there is."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")


def test_every_promise_has_its_test():
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and "promise |" not in line]
    assert len(rows) > 20
    for row in rows:
        found = re.search(r"`(tests/[\w/]+\.py)::(\w+)` \|$", row)
        assert found is not None, row
        tree = ast.parse((ROOT / found[1]).read_text(encoding="utf-8"))
        assert found[2] in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, row


def test_the_numbers_are_those_of_the_code():
    from bridge._util import pickles
    from bridge.cli import sources
    from bridge.converters.nir_graphs import files
    from bridge.zoo import data

    said = PAGE.replace(",", "")
    for number, unit in (
        (files.MEMORY // 2**20, "MB and 8 times"),
        (files.OBJECTS, "objects"),
        (files.LEVELS, "groups within"),
        (sources.MEMORY // 2**20, "MB and 16 times"),
        (pickles.MEMORY // 2**20, "MB and 8 times"),
        (data.LARGEST // 10**6, "MB"),
    ):
        assert f"{number} {unit}" in said
    assert (files.EXPANSION, pickles.EXPANSION, sources.EXPANSION) == (8, 8, 16)
    assert f"more than {pickles.DEEPEST} deep" in said
    assert f"{sources.LARGEST_PICTURE / 10**6:.1f} million pixels" == "33.6 million pixels"
