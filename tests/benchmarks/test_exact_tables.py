"""The scripts behind the tables of docs/exact.md: small runs, and what the saved figures have to show."""

from __future__ import annotations

import json
from pathlib import Path

import equal_to_ann
import one_pass

RESULTS = Path(equal_to_ann.__file__).parent.parent / "docs" / "results"
PAGE = f"before\n{equal_to_ann.MARK}\nold\n{equal_to_ann.MARK}\nafter\n"


def test_a_small_run_fills_the_table(tmp_path):
    page, out = tmp_path / "page.md", tmp_path / "out.json"
    page.write_text(PAGE)
    equal_to_ann.main(["digits", "--images", "30", "--reference", "--page", str(page), "--out", str(out)])
    equal_to_ann.main(["digits", "--images", "30", "--page", str(page), "--out", str(out)])
    saved = json.loads(out.read_text())["digits"]
    assert len(saved) == 8
    for row in saved.values():
        assert row["images"] == 30
        assert row["differing"] == row["unexplained"] == row["outputs_wrong"] == row["top1_differs"] == 0
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| staged | 22 |" in text
    assert "old" not in text


def test_the_saved_integers_differ_nowhere():
    saved = json.loads((RESULTS / "equal_to_ann.json").read_text())
    images = {"digits": 450, "mnist": 10_000, "resnet20-cifar10": 10_000}
    for name, count in images.items():
        for schedule in ("staged", "grouped"):
            floating, whole = (saved[name][f"{schedule}, {kind}, engine"] for kind in ("float", "8-bit"))
            assert floating["images"] == whole["images"] == count
            assert whole["differing"] == whole["outputs_wrong"] == whole["top1_differs"] == 0
            assert floating["unexplained"] == floating["outputs_wrong"] == 0


def test_passes_are_of_the_faster_ann(monkeypatch):
    monkeypatch.setattr(one_pass, "REST", 0.0)
    monkeypatch.setattr(one_pass, "LEAST", 0.0)
    found = one_pass.timed({"ANN, float32": lambda: sum(range(1000)), "ANN, float32, channels last": lambda: None}, 3)
    assert min(one["passes"] for one in found.values()) == 1.0
    text = one_pass.table({"resnet20": found})
    assert "| ANN, float32, channels last |" in text
    assert "1.00" in text
