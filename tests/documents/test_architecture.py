"""The layout is what docs/architecture.md says, import rules are kept, and light doors stay light."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import draw_architecture
import pytest
from importlinter.cli import lint_imports

import bridge

ROOT = Path(__file__).parents[2]
PACKAGES = ("bridge", "exporters")
TERMINAL = ("rich", "typer", "jinja2")
PLOTS = ("matplotlib", "plotly", "PIL")
FRAMEWORKS = (
    *("flax", "jax", "lava", "llvmlite", "nengo", "nirtorch", "norse", "numba", "onnx", "onnxruntime", "rockpool"),
    *("safetensors", "sinabs", "sklearn", "snntorch", "spikingjelly", "spyx"),
)
PORTABLE = (
    *("bridge.errors", "bridge.graph", "bridge.graph.ranges", "bridge.graph.loihi_registers", "bridge.nir_graph"),
    *("bridge.backends.protocol", "bridge.backends.subprocess_worker", "bridge.passes.fold_pooling", "bridge.records"),
    *("bridge.simulate.engine.engine", "bridge.simulate.ops", "bridge.simulate.reference", "exporters.base"),
)
BLOCK = """
import importlib, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Blocked())
"""


def sources() -> list[Path]:
    folders = (*PACKAGES, "benchmarks", "docs", "tests")
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def run(code: str, blocked: tuple[str, ...] = (), **variables: str) -> str:
    """What another Python prints that runs `code` and can import nothing `blocked`."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCK.format(blocked=set(blocked)) + code],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_rules_are_kept():
    assert lint_imports(str(ROOT / "pyproject.toml"), no_cache=True) == 0


def test_the_top_of_bridge_is_small_and_every_entry_says_what_it_is_for():
    entries = {p for p in (ROOT / "bridge").iterdir() if p.name not in ("__pycache__", "py.typed")}
    assert len(entries) <= 20
    assert all(draw_architecture.purpose(entry) for entry in entries)


def test_no_file_is_long_without_a_reason():
    for path in sources():
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > 500:
            assert "One file, though long: " in (ast.get_docstring(ast.parse(text)) or ""), path


def test_the_page_and_the_picture_are_of_this_code():
    """If this fails: python docs/draw_architecture.py."""
    page = draw_architecture.PAGE.read_text(encoding="utf-8")
    assert page == draw_architecture.page(page)
    assert draw_architecture.PICTURE.read_text(encoding="utf-8") == draw_architecture.picture()


def test_the_portable_core_and_every_exporter_need_no_framework_and_no_terminal_library():
    """All can be imported, and of a backend whose framework is numpy, everything runs; a progress bar is left out."""
    exporters = [path.parent for path in (ROOT / "exporters").glob("*/__init__.py")]
    modules = [*PORTABLE, *(f"exporters.{path.name}" for path in exporters)]
    assert len(modules) > len(PORTABLE) + 9
    code = (
        f"for name in {modules!r}: importlib.import_module(name)"
        + """
import numpy as np
import torch
from bridge.graph import Input, IntegrateFire, LayerGraph, Linear
from bridge.nir_graph import to_nir
from exporters.lava import LavaTwin

one = np.ones((2, 2), np.float32)
graph = LayerGraph((
    Input(name="x", shape=(2,)),
    Linear(name="l", inputs=("x",), weight=one, bias=one[0]),
    IntegrateFire(name="a", inputs=("l",), level=4 * one[0], threshold=8 * one[0]),
    Linear(name="y", inputs=("a",), weight=one, bias=one[0]),
))
backend = LavaTwin()
print(backend.run(backend.export(to_nir(graph)), one, 4).spikes("a").sum())
from bridge.simulate.layerwise import layer_by_layer
silent = layer_by_layer(graph, torch.from_numpy(one), 4, lambda layer, drive: torch.zeros_like(drive), "a bar's title")
assert (silent == 1).all()
"""
    )
    assert float(run(code, (*TERMINAL, *PLOTS, *FRAMEWORKS))) > 0


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        (["--help"], {}),
        (["--version"], {}),
        (["validate", "--help"], {}),
        ([], {"_QCFS_BRIDGE_COMPLETE": "complete_bash", "COMP_WORDS": "qcfs-bridge va", "COMP_CWORD": "1"}),
    ],
    ids=["help", "version", "help of a command", "completion"],
)
def test_help_version_and_completion_do_not_import_torch(arguments, variables):
    code = f"sys.argv = ['qcfs-bridge', *{arguments!r}]\nfrom bridge.cli import app\napp(prog_name='qcfs-bridge')"
    printed = run(code, ("torch", "numpy", "nir"), **variables)
    assert re.search(r"validate|[0-9]+\.[0-9]+", printed)


def test_import_bridge_is_light_and_shows_what_is_public():
    printed = run("import bridge\nprint(*dir(bridge))", ("torch", "numpy", "nir", *TERMINAL))
    assert printed.split() == sorted([*bridge.__all__, "__version__"])


def test_what_docs_name_works_after_a_plain_import():
    names = set()
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        if path.name != "architecture.md":  # which names modules
            names |= set(re.findall(r"\bbridge(?:\.[A-Za-z]\w*)+", path.read_text(encoding="utf-8")))
    assert len(names) > 50
    code = f"""
from operator import attrgetter
import bridge
for name in {sorted(names)!r}:
    attrgetter(name.partition(".")[2])(bridge)
"""
    run(code)


def test_the_old_public_modules_can_be_imported():
    for name in ("agreement", "errors", "graph", "nir_graph", "records", "registry"):
        run(f"import bridge.{name}\nfrom bridge.{name} import *")
