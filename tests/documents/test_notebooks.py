"""The notebooks run from top to bottom; what is committed of their outputs is whole, small and of no one machine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from support.backends import require
from support.packages import needs

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
NEEDS = {
    "2_one_graph_every_simulator": ("spikingjelly", "snntorch", "onnxruntime", "lava"),
    "3_on_loihis_terms": ("lava",),
    "5_bring_your_own_model": ("spikingjelly",),
    "6_equal_to_ann": ("spikingjelly", "snntorch"),
    "7_fine_tune_and_back": ("spikingjelly", "lava"),
}
QUICKER = {
    "4_latency_against_accuracy": """
from bridge.passes.calibration import gradient, search
gradient.FEWEST_STEPS = gradient.MOST_STEPS = 20
search.EMPHASES = (1.0,)
""",
}
"""What is run before a notebook's first cell, so that it takes less time; `make test-long` runs it as it is."""
LARGEST_OUTPUT = 150_000
"""Characters of a cell's outputs, pictures included."""
OF_ONE_MACHINE = re.compile(r"(?<![\w./])/(?:tmp|work|root|home|Users|usr|var|opt|mnt|private)/|\b[A-Z]:\\|file://")


def runs() -> list[Any]:
    """Each notebook and what is run before it."""
    found = []
    for path in NOTEBOOKS:
        lava = [pytest.mark.lava] if "lava" in NEEDS.get(path.stem, ()) else []
        found.append(pytest.param(path, QUICKER.get(path.stem, ""), id=path.stem, marks=lava))
        if path.stem in QUICKER:
            found.append(pytest.param(path, "", id=f"{path.stem}, as it is", marks=[*lava, pytest.mark.long]))
    return found


def text(output: dict[str, Any]) -> str:
    """What an output says in words; a picture's base64 would look like anything."""
    data = [value for kind, value in output.get("data", {}).items() if kind.startswith("text/")]
    return "".join("".join(part) for part in (output.get("text", ""), *data))


def cells(path: Path) -> list[dict[str, Any]]:
    """As the file has them."""
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return found


def code_cells(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in cells(path) if cell["cell_type"] == "code"]


def test_there_are_seven():
    assert [path.name[0] for path in NOTEBOOKS] == ["1", "2", "3", "4", "5", "6", "7"]


@pytest.fixture(scope="module")
def kernel():
    """A Python of Jupyter's, for one notebook after the other: its start takes longer than most of them do."""
    for module in ("nbclient", "nbformat", "ipykernel"):
        needs(module, "test-notebooks")
    from jupyter_client.manager import KernelManager

    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(FOLDER))
    yield manager
    manager.shutdown_kernel(now=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Jupyter's own packages
@pytest.mark.parametrize(("path", "before"), runs())
def test_runs(path, before, kernel):
    for name in NEEDS.get(path.stem, ()):
        require(name)
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    first = nbformat.v4.new_code_cell(f"%reset -f\n{before}")  # no notebook finds another one's names
    notebook.cells.insert(0, first)
    client = NotebookClient(notebook, timeout=280, km=kernel)
    try:
        client.execute()  # raises CellExecutionError, with the cell and its traceback
    finally:
        if client.kc is not None:
            client.kc.stop_channels()
    said = "".join(text(output) for cell in notebook.cells for output in cell.get("outputs", ()))
    assert said
    assert not OF_ONE_MACHINE.search(said)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestCommitted:
    def test_is_one_whole_run(self, path):
        nbformat = needs("nbformat", "test-notebooks")
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        assert notebook.metadata.kernelspec.name == "python3"
        code = code_cells(path)
        assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
        assert not any("execution" in cell["metadata"] for cell in code), "times of one run: of interest to nobody"

    def test_outputs_are_small(self, path):
        for cell in code_cells(path):
            assert len(json.dumps(cell)) < LARGEST_OUTPUT, cell["source"][:3]

    def test_outputs_are_pictures_and_text_without_warnings_or_paths(self, path):
        outputs = [output for cell in code_cells(path) for output in cell["outputs"]]
        assert sum("image/png" in output.get("data", {}) for output in outputs) >= 1
        for output in outputs:
            assert output["output_type"] != "error"
            assert output.get("name") != "stderr", text(output)
            assert not any("widget" in kind for kind in output.get("data", {})), "a slider shows nothing in a file"
            found = OF_ONE_MACHINE.search(text(output))
            assert found is None, found
            assert not re.search(r"\w+Warning\b", text(output).replace("LossyWarning", ""))

    def test_links_lead_somewhere(self, path):
        for cell in cells(path):
            if cell["cell_type"] == "markdown":
                for target in re.findall(r"\]\(([^)#]+)", "".join(cell["source"])):
                    assert target.startswith("https://") or (FOLDER / target).exists(), target
