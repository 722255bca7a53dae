"""The notebooks run from top to bottom; what is committed of their outputs is whole, small and of no one machine."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from support.backends import require

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
NEEDS = {
    "2_one_graph_every_simulator": ("spikingjelly", "snntorch", "onnxruntime", "lava"),
    "3_on_loihis_terms": ("lava",),
    "5_bring_your_own_model": ("spikingjelly",),
}
LARGEST_OUTPUT = 150_000
"""Characters of a cell's outputs, pictures included."""
OF_ONE_MACHINE = re.compile(r"(?<![\w./])/(?:tmp|work|root|home|Users|usr|var|opt|mnt|private)/|\b[A-Z]:\\|file://")


def needing(path: Path) -> pytest.param:
    lava = "lava" in NEEDS.get(path.stem, ())
    return pytest.param(path, id=path.stem, marks=[pytest.mark.lava] if lava else [])


def text(output: dict) -> str:
    """What an output says in words; a picture's base64 would look like anything."""
    data = "".join(value for kind, value in output.get("data", {}).items() if kind.startswith("text/"))
    return output.get("text", "") + data


def code_cells(path: Path) -> list:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def test_there_are_five():
    assert [path.name[0] for path in NOTEBOOKS] == ["1", "2", "3", "4", "5"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Jupyter's own packages
@pytest.mark.parametrize("path", [needing(path) for path in NOTEBOOKS])
def test_runs(path):
    for name in NEEDS.get(path.stem, ()):
        require(name)
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.pop("outputs", None)
        if cell.cell_type == "code":
            cell.outputs = []
    client = NotebookClient(notebook, timeout=280, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}})
    client.execute()  # raises CellExecutionError, with the cell and its traceback
    said = "".join(text(output) for cell in notebook.cells for output in cell.get("outputs", ()))
    assert said
    assert not OF_ONE_MACHINE.search(said)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestCommitted:
    def test_is_one_whole_run(self, path):
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        assert notebook.metadata.kernelspec.name == "python3"
        cells = code_cells(path)
        assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
        assert not any("execution" in cell.metadata for cell in cells), "times of one run: of interest to nobody"

    def test_outputs_are_small(self, path):
        for cell in code_cells(path):
            assert len(nbformat.writes(nbformat.v4.new_notebook(cells=[cell]))) < LARGEST_OUTPUT, cell.source[:80]

    def test_outputs_are_pictures_and_text_without_warnings_or_paths(self, path):
        outputs = [output for cell in code_cells(path) for output in cell.outputs]
        assert sum("image/png" in output.get("data", {}) for output in outputs) >= 1
        for output in outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.text
            assert not any("widget" in kind for kind in output.get("data", {})), "a slider shows nothing in a file"
            found = OF_ONE_MACHINE.search(text(output))
            assert found is None, found
            assert not re.search(r"\w+Warning\b", text(output).replace("LossyWarning", ""))

    def test_links_lead_somewhere(self, path):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "markdown":
                for target in re.findall(r"\]\(([^)#]+)", cell.source):
                    assert target.startswith("https://") or (FOLDER / target).exists(), target
