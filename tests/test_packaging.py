"""What is published: a wheel and an sdist hold the packages and their data, and install where nothing else is."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
LIBRARIES = str(Path(torch.__file__).parent.parent)
DATA = {"bridge/py.typed", "exporters/py.typed", "bridge/report/page.html.j2", "bridge/zoo/trained/digits.safetensors"}


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    """What `command` prints; its own messages if it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """A folder with both, built from a copy: building leaves files beside the sources."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    for name in ("bridge", "exporters", "tests", "docs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools import build_meta as b; b.build_sdist(r'{0}'); b.build_wheel(r'{0}')"
    run(sys.executable, "-W", "ignore", "-c", build.format(out), cwd=source)
    return out


def packaged() -> set[str]:
    """The files of the two packages in the source tree that belong into both."""
    paths = (path for package in ("bridge", "exporters") for path in (ROOT / package).rglob("*"))
    kept = (path for path in paths if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in kept}


def test_the_wheel_holds_the_packages_and_nothing_else(dist):
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        licenses = [name for name in archive.namelist() if name.endswith("LICENSE")]
    assert names == packaged()
    assert names >= DATA
    assert licenses


def test_the_sdist_holds_the_packages_and_what_builds_them(dist):
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    assert names >= packaged() | {"pyproject.toml", "README.md", "LICENSE"}
    assert not [name for name in names if name.startswith(("tests/", "docs/"))]


def test_the_sdist_makes_the_same_wheel(dist, tmp_path):
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    build = f"from setuptools import build_meta as b; b.build_wheel(r'{tmp_path}')"
    run(sys.executable, "-W", "ignore", "-c", build, cwd=tmp_path / sdist.name.removesuffix(".tar.gz"))
    (again,), (wheel,) = tmp_path.glob("*.whl"), dist.glob("*.whl")
    with zipfile.ZipFile(again) as one, zipfile.ZipFile(wheel) as other:
        assert {each.filename: each.CRC for each in one.infolist()} == {
            each.filename: each.CRC for each in other.infolist()
        }


def test_the_wheel_installs_into_an_empty_environment(dist, tmp_path):
    """Dependencies come from the environment of these tests, whose own copy of this package is not on that path."""
    (wheel,) = dist.glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv/bin/python"
    options = ["--no-deps", "--no-index", "--no-compile", "--quiet", "--disable-pip-version-check"]
    # Where PYTHONPATH names a checkout, pip would take that for the package, installed.
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel, cwd=tmp_path, PYTHONPATH="")
    script = (
        "import bridge, torch\n"
        "from bridge.zoo.pretrained import pretrained\n"
        "network = bridge.convert(pretrained('digits'), torch.rand(1, 1, 8, 8))\n"
        "print(bridge.__file__, len(network.layers))"
    )
    where, layers = run(python, "-W", "ignore", "-c", script, cwd=tmp_path, PYTHONPATH=LIBRARIES).split()
    assert Path(where).is_relative_to(tmp_path / "venv")
    assert layers == "3"
    assert "validate" in run(tmp_path / "venv/bin/qcfs-bridge", "--help", cwd=tmp_path, PYTHONPATH=LIBRARIES)


def test_the_index_will_take_them(dist):
    if importlib.util.find_spec("twine") is None:
        pytest.skip("twine is not installed")
    run(sys.executable, "-m", "twine", "check", "--strict", *dist.iterdir(), cwd=dist)
