"""What README and docs/ tell a reader to run, runs; what they list is what there is; their links lead somewhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.backends import BACKENDS, require

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]


@pytest.mark.lava
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_python_blocks_run(document, tmp_path, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```", document.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    if blocks:
        for name in BACKENDS:
            require(name)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, document.name, "exec"), names)
    if document.name == "README.md":
        assert names["agreement"].agreed  # type: ignore[attr-defined]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_local_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#]+)", document.read_text(encoding="utf-8")):
        if not target.startswith("https://"):
            assert (document.parent / target).exists(), target


def titled(document: str) -> list[tuple[str, str]]:
    """The blocks of a page in docs/ that say which file they are, in order: its name, and what is in the block."""
    text = (DOCS / document).read_text(encoding="utf-8")
    return re.findall(r"^```\w+ title=\"([^\"]+)\"\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def run(*command: str | Path, cwd: Path, paths: Sequence[Path] = ()) -> str:
    """What `command` prints, with `paths` before all else that Python imports from; its messages if it fails."""
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_backend_is_added_as_described(tmp_path):
    for name, text in titled("adding_a_backend.md"):
        (tmp_path / name).write_text(text, encoding="utf-8")
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--quiet", "--disable-pip-version-check"]
    run(sys.executable, "-m", "pip", "install", *options, "--target", tmp_path / "site", tmp_path, cwd=tmp_path)
    (tmp_path / "toy_backend.py").unlink()  # what is installed is what counts
    printed = run(sys.executable, "try_it.py", cwd=tmp_path, paths=[tmp_path / "site", ROOT])
    assert "toy has no Conv2d" in printed


def test_a_layer_is_added_as_described(tmp_path):
    for name in ("spikingjelly", "snntorch", "onnxruntime"):
        require(name)
    for package in ("bridge", "exporters"):
        # With what is compiled already, but not with what another process is writing just now.
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("*.pyc.*", "*.tmp.*"))
    *additions, (script, text) = titled("adding_a_layer.md")
    for name, addition in additions:
        with (tmp_path / name).open("a", encoding="utf-8") as file:  # a file that is there already
            assert file.tell(), name
            file.write(f"\n\n{addition}")
    (tmp_path / script).write_text(f"{text}\nprint(bridge.__file__)\n", encoding="utf-8")
    *_, refusal, where = run(sys.executable, script, cwd=tmp_path, paths=[tmp_path]).splitlines()
    assert Path(where).is_relative_to(tmp_path)
    assert "Window" in refusal


def test_the_command_line_is_listed():
    import typer

    from bridge.cli import app

    text = (DOCS / "command_line.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if line[:3] == "| `"]
    listed = {row[0].strip("`"): row[1] for row in rows if not row[0].startswith("`--")}
    options = {
        (row[0].strip("`").split()[0], name)
        for row in rows
        for name in re.findall(r"`(\w+)`", row[1])
        if row[0][1] == "-"
    }
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert set(listed) == set(commands)
    parameters = [(name, each) for name, command in commands.items() for each in command.params]
    known = {(option, name) for name, each in parameters for option in each.opts if option.startswith("--")}
    taken = {(option, name) for option, name in known if f"[{option} " in listed[name]}
    assert options | taken == known
    for name, command in commands.items():
        count = sum(each.param_type_name == "argument" for each in command.params)
        assert len(re.findall(r"\b[A-Z]+\b", listed[name])) == count, name


def agreements(tmp_path):
    """Of two backends, one of which is wrong; of a network with an ANN, and of one without."""
    import torch

    import bridge

    require("snntorch")
    from exporters.snntorch import SnnTorch

    class Wrong(SnnTorch):
        name = "wrong"

        def export(self, graph):
            native = super().export(graph)
            with torch.no_grad():
                native.get_parameter("layer_0.bias").add_(0.5)
            return native

    x = torch.rand(20, 4)
    network = bridge.convert(torch.nn.Sequential(torch.nn.Linear(4, 9), bridge.QCFS(4), torch.nn.Linear(9, 3)), x)
    network.save(tmp_path / "net.nir")
    loaded = bridge.load(tmp_path / "net.nir")
    assert isinstance(loaded, bridge.SpikingNetwork)
    yield network.validate(x, 4, [SnnTorch(), Wrong()], labels=torch.zeros(20, dtype=torch.int64))
    yield loaded.validate(x, 4, [SnnTorch()])


def test_the_schema_is_that_of_an_agreement(tmp_path):
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((DOCS / "agreement.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for number, agreement in enumerate(agreements(tmp_path)):
        agreement.save(tmp_path / "agreement.json")
        saved = json.loads((tmp_path / "agreement.json").read_text(encoding="utf-8"))
        assert [error.message for error in validator.iter_errors(saved)] == []
        for part in (saved, saved["reference"], saved["environment"], *saved["backends"].values()):
            for key, value in list(part.items()):
                del part[key]
                assert not validator.is_valid(saved), f"{key} may be missing"
                part[key] = value
            part["more"] = 1
            assert not validator.is_valid(saved)
            del part["more"]
        assert bool(number) == (saved["rate_error"] is None)
        assert bool(number) != bool(saved["backends"].get("wrong", {}).get("divergences"))
