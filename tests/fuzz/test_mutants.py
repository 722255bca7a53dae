"""Damaged files of every kind: a few here, as many as one likes by `mutants.py`; and those that once broke a reader."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuzz import mutants

CORPUS = Path(__file__).parent / "corpus"
FOUND = sorted(path for path in CORPUS.glob("*/*") if path.is_file())


@pytest.mark.parametrize("kind", mutants.KINDS)
def test_damaged_at_random(kind, tmp_path):
    if kind == "picture":
        pytest.importorskip("PIL")
    outcomes = []
    for seed in range(12):
        folder = tmp_path / str(seed)
        folder.mkdir()
        outcomes.append(mutants.judged(kind, mutants.damaged(kind, folder, seed)))
    assert "refused" in outcomes  # something was damaged


@pytest.mark.parametrize("kind", mutants.KINDS)
def test_whole_files_are_read(kind, tmp_path):
    if kind == "picture":
        pytest.importorskip("PIL")
    assert mutants.judged(kind, mutants.KINDS[kind].write(tmp_path)) == "read"


@pytest.mark.parametrize("path", FOUND, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_broke_a_reader_once(path, tmp_path):
    if path.parent.name == "picture":
        pytest.importorskip("PIL")
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes())
    assert mutants.judged(path.parent.name, copy) == "refused"


def test_a_reader_that_breaks_is_found(tmp_path, monkeypatch):
    def breaks(path):
        raise KeyError(path)

    def hoards(path):
        return b"x" * (mutants.MEMORY + 2**26)

    path = mutants.KINDS["npy"].write(tmp_path)
    for read, message in ((breaks, "KeyError"), (hoards, "MB")):
        monkeypatch.setitem(mutants.KINDS, "npy", mutants.Kind(mutants.array_file, read))
        with pytest.raises(mutants.BrokenError, match=message):
            mutants.judged("npy", path)
