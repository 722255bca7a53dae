"""The table of spikes that differ: a small run of it, and what its cells say."""

from __future__ import annotations

import json

import every_backend
from support.backends import require


def test_a_small_run(tmp_path):
    require("snntorch")
    page = tmp_path / "page.md"
    page.write_text(f"before\n{every_backend.MARK}\nold\n{every_backend.MARK}\nafter\n", encoding="utf-8")
    out = tmp_path / "out.json"
    run = ["--backends", "snntorch", "lava-twin", "--images", "3", "--out", str(out), "--pages", str(page)]
    every_backend.main(run)
    found = json.loads(out.read_text(encoding="utf-8"))["digits"]
    assert set(found["float"]) == {"snntorch"}  # the twin takes whole numbers only
    assert found["8-bit"]["lava-twin"]["images"] == 3
    spikes = 3 * 8 * (16 * 64 + 32 * 64 + 64)  # T = 8; conv1 and conv2 of 8×8 pixels, hidden
    assert found["8-bit"]["snntorch"] == {"images": 3, "spikes": spikes, "differing": 0, "ties": 0, "agreed": 1}
    written = page.read_text(encoding="utf-8")
    assert "old" not in written
    assert f"| snntorch | 0 of {spikes / 1e6:.3g} M | 0 of {spikes / 1e6:.3g} M |" in written
    assert written.startswith("before\n")
    assert written.endswith("\nafter\n")
    every_backend.main(run)  # once more changes nothing
    assert page.read_text(encoding="utf-8") == written


def test_cells():
    found = {"spikes": 11_300_000, "differing": 1234, "ties": 2, "agreed": 1}
    assert every_backend.cell(found) == "1,234 of 11.3 M (2 ties)"
    assert every_backend.cell({**found, "agreed": 0, "ties": 0}) == "**1,234 of 11.3 M**"
    assert every_backend.cell(None) == "—"
