"""The commands on files: networks in three forms, images in three, exit statuses, JSON, and nothing half-written."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import networks
from support.backends import require
from typer.testing import CliRunner

import bridge
from bridge import InputError, SpikingNetwork
from bridge.cli import app, sources
from bridge.graph import Conv2d, IntegrateFire
from bridge.passes.calibration import gradient
from bridge.records import SpikeRecord

MODEL = """
import torch, bridge

def small():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), bridge.QCFS(4), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 3)
    ).eval()

def any_size():
    return torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), bridge.QCFS(4), torch.nn.AdaptiveAvgPool2d(1))

def number():
    return 3

def broken():
    raise ValueError("no weights here")
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a model, a network of each kind, and images."""
    path = tmp_path_factory.mktemp("files")
    (path / "mymodels.py").write_text(MODEL)
    model, shape = networks.cnn()
    x = networks.dyadic_images(6, shape)
    network = bridge.convert(model, x)
    network.save(path / "cnn.nir")
    network.ann_to_onnx(path / "cnn.onnx")
    network.quantize(8, calibration=x).save(path / "whole.nir")
    np.save(path / "x.npy", x.numpy())
    np.savez(path / "both.npz", x=x.numpy(), y=np.arange(6) % 4)
    np.save(path / "y.npy", np.arange(6) % 4)
    (path / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(path / "pictures" / f"{number}.png")
    return path


@pytest.fixture
def folder(files, tmp_path, monkeypatch):
    """A copy of it; the current folder."""
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("mymodels", None)
    return tmp_path


def call(*arguments: str, status: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output + result.stderr
    return result.stdout if status < 2 else result.stderr.replace("\n", "")


def loaded(path: str) -> SpikingNetwork:
    network = bridge.load(path)
    assert isinstance(network, SpikingNetwork)
    return network


def test_inspect(folder):
    rows = json.loads(call("inspect", "cnn.nir", "--json"))
    network = loaded("cnn.nir")
    assert [row["name"] for row in rows] == [layer.name for layer in network.graph]
    assert rows[0] == {"name": "input", "kind": "Input", "inputs": [], "shape": [2, 9, 7], "parameters": 0}
    conv = next(row for row in rows if row["name"] == "layer_0")
    layer = network.graph["layer_0"]
    assert isinstance(layer, Conv2d)
    assert conv["parameters"] == layer.weight.size + 6
    for source in ("cnn.nir", "cnn.onnx"):
        text = call("inspect", source)
        assert "IntegrateFire" in text
        assert "2 × 9 × 7" in text
    assert "layer_1" not in call("inspect", "mymodels:small", "--images", "pictures", "--json").split('"layer_3"')[1]


def test_convert(folder):
    call("convert", "cnn.onnx", "again.nir")
    x = torch.from_numpy(np.load("x.npy"))
    one, other = bridge.load("cnn.nir").run(x, 4), bridge.load("again.nir").run(x, 4)
    assert [one.packed[a].tobytes() for a in one.layers] == [other.packed[b].tobytes() for b in other.layers]
    call("convert", "mymodels:small", "small.nir")
    assert loaded("small.nir").graph.input.shape == (1, 8, 8)
    quantize = "convert", "mymodels:small", "whole8.nir", "--images", "pictures", "--weight-bits", "8"
    assert "these are pixels" in call(*quantize, status=2)
    call(*quantize, "--mean", "0.5", "--std", "0.25")
    whole = loaded("whole8.nir")
    assert whole.graph.integer
    assert whole.grid is not None
    np.testing.assert_allclose((whole.grid.low, whole.grid.step), ([-2], [4 / 255]), rtol=1e-6)
    assert "go together" in call(*quantize, "--mean", "0.5", status=2)
    assert "expected numbers" in call(*quantize, "--mean", "a", "--std", "1", status=2)
    assert "means and stds for 1 channels" in call(*quantize, "--mean", "0,0,0", "--std", "1", status=2)


def test_run_and_compare(folder):
    for name in ("snntorch", "spikingjelly"):
        require(name)
    call("run", "cnn.nir", "x.npy", "reference.npz", "--steps", "5")
    call("run", "cnn.nir", "both.npz:x", "snntorch.npz", "--steps", "5", "--backend", "snntorch")
    expected = bridge.load("cnn.nir").run(np.load("x.npy"), 5)
    assert np.array_equal(SpikeRecord.load("reference.npz").readout, expected.readout)
    found = json.loads(call("compare", "reference.npz", "snntorch.npz", "--json"))
    assert found == {"differing": {name: [0] * 5 for name in expected.layers}, "readout_difference": 0}
    other = bridge.load("cnn.nir").run(-np.load("x.npy"), 5)
    other.save("other.npz")
    found = json.loads(call("compare", "reference.npz", "other.npz", "--json", status=1))
    for name in expected.layers:
        wrong = (expected.spikes(name) != other.spikes(name)).sum(axis=(1, 2) if name == "layer_8" else (1, 2, 3, 4))
        assert found["differing"][name] == wrong.tolist()
    assert "differs by up to" in call("compare", "reference.npz", "other.npz", status=1)
    call("run", "cnn.nir", "x.npy", "short.npz", "--steps", "4")
    assert "cannot be compared" in call("compare", "reference.npz", "short.npz", status=2)


def test_validate(folder):
    for name in ("snntorch", "spikingjelly"):
        require(name)
    backends = ("--backend", "snntorch", "--backend", "spikingjelly")
    text = call("validate", "cnn.nir", "x.npy", "--steps", "4", *backends, "--labels", "y.npy", "--out", "out")
    assert "equal" in text
    saved = json.loads((folder / "out" / "agreement.json").read_text())
    assert saved["agreed"] is True
    assert saved["backends"]["snntorch"]["images"] == 6
    assert (folder / "out" / "report.html").read_text().startswith("<!DOCTYPE html>")
    shown = json.loads(
        call("validate", "cnn.onnx", "both.npz:x", "--steps", "4", *backends, "--json", "--limit", "snntorch=2")
    )
    assert shown["backends"]["snntorch"]["images"] == 2
    assert shown["rate_error"] is not None  # the ONNX file has the ANN in it
    call("report", "out/agreement.json", "again.html")
    assert (folder / "again.html").read_text() == (folder / "out" / "report.html").read_text()


def test_a_recorded_run_is_one_more_backend(folder):
    network, x = bridge.load("cnn.nir"), np.load("x.npy")
    network.run(x, 4).save("hardware.npz")
    assert json.loads(call("validate", "cnn.nir", "x.npy", "--steps", "4", "--backend", "hardware.npz", "--json"))[
        "agreed"
    ]
    network.run(x[::-1].copy(), 4).save("hardware.npz")
    call("validate", "cnn.nir", "x.npy", "--steps", "4", "--backend", "hardware.npz", status=1)


def test_pictures_are_pixels(folder):
    """To a network in integers, which takes the ANN's input too; a float network refuses them by name."""
    require("snntorch")
    quantize = "convert", "mymodels:small", "whole8.nir", "--images", "pictures", "--weight-bits", "8"
    call(*quantize, "--mean", "0", "--std", "1")
    call("run", "whole8.nir", "pictures", "spikes.npz", "--steps", "3")
    pixels = np.stack([np.asarray(Image.open(folder / "pictures" / f"{n}.png"))[None] for n in range(3)])
    expected = bridge.load("whole8.nir").run(pixels, 3)
    np.save("pixels.npy", pixels.astype(np.int16))
    np.save("floats.npy", pixels / 255)
    for images in ("pictures", "pixels.npy", "floats.npy"):
        for backend in ("reference", "snntorch"):
            call("run", "whole8.nir", images, "spikes.npz", "--steps", "3", "--backend", backend)
            assert np.array_equal(SpikeRecord.load("spikes.npz").readout, expected.readout)
        call("validate", "whole8.nir", images, "--backend", "snntorch")
    call("convert", "mymodels:small", "small.nir")
    for command in (("run", "small.nir", "pictures", "out.npz"), ("validate", "small.nir", "pixels.npy")):
        refused = call(*command, "--backend", "snntorch", status=2)
        assert re.search(r"integers are pixels, and this network takes the ANN's input.*std", refused)
    assert "pixels 0…255" in call("inspect", "whole8.nir").replace("\n", " ")


def test_converting_for_few_steps(folder, monkeypatch):
    """The file holds the calibrated network: levels of its own, the same layers."""
    monkeypatch.setattr(gradient, "FEWEST_STEPS", 20)  # is quicker, and good enough to differ
    call("convert", "cnn.onnx", "plain.nir")
    call("convert", "cnn.onnx", "two.nir", "--images", "x.npy", "--calibrate", "2")
    plain, two = loaded("plain.nir"), loaded("two.nir")
    assert set(plain.layers) == set(two.layers)
    neurons = [(plain.graph[name], two.graph[name]) for name in plain.layers]
    levels = [(a.level, b.level) for a, b in neurons if isinstance(a, IntegrateFire) and isinstance(b, IntegrateFire)]
    assert len(levels) == len(plain.layers)
    assert any((a != b).any() for a, b in levels)


def test_training(folder):
    arguments = ["train", "digits", "digits", "trained", "--recipe", "short", "--set", "epochs=2"]
    call(*arguments, "--set", "relu_epochs=0", "--held-out", "90")
    assert {path.name for path in (folder / "trained").iterdir()} >= {"weights.safetensors", "card.md", "metrics.jsonl"}
    assert len((folder / "trained" / "metrics.jsonl").read_text().splitlines()) == 2


def test_staged(folder):
    require("spikingjelly")
    call("convert", "mymodels:small", "staged.nir", "--schedule", "staged")
    staged = bridge.load("staged.nir")
    assert isinstance(staged, SpikingNetwork)
    assert staged.latency == 4
    assert "staged, 4 steps" in call("inspect", "staged.nir")
    np.save("floats.npy", np.random.default_rng(0).random((3, 1, 8, 8), np.float32))
    call("run", "staged.nir", "floats.npy", "r.npz")
    assert SpikeRecord.load("r.npz").steps == 4
    call("validate", "mymodels:small", "floats.npy", "--backend", "spikingjelly")
    out = call("validate", "staged.nir", "floats.npy", "--backend", "spikingjelly", "--out", "out")
    assert "T = 4" in out
    call("convert", "mymodels:small", "two.nir", "--schedule", "staged", "--steps", "2")
    assert "staged, 2 steps" in repr(bridge.load("two.nir"))
    assert "complete after 4 steps" in call("run", "staged.nir", "floats.npy", "r.npz", "--steps", "3", status=2)
    refused = call("convert", "mymodels:small", "x.nir", "--steps", "2", status=2)
    assert "plain schedule has no number of steps" in refused
    assert "of the plain schedule" in call("convert", "cnn.nir", "x.nir", "--schedule", "staged", status=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "nothing.nir"], "nothing.nir: no such file"),
        (["inspect", "cnn.txt"], "cnn.txt: expected a .nir file, an .onnx file, or module:function"),
        (["inspect", "mymodels:any_size"], "does not tell the shape of its input .* give them with --images"),
        (["inspect", "mymodels:nobody", "--images", "x.npy"], "mymodels:nobody: cannot be called: AttributeError"),
        (["inspect", "mymodels:number", "--images", "x.npy"], "expected a torch.nn.Module .* got int"),
        (["inspect", "mymodels:broken", "--images", "x.npy"], "ValueError: no weights here"),
        (["run", "cnn.nir", "nothing.npy", "out.npz"], "nothing.npy: no array can be read"),
        (["run", "cnn.nir", "both.npz", "out.npz"], r"both.npz: holds the arrays \['x', 'y'\]; say which"),
        (["run", "cnn.nir", "both.npz:z", "out.npz"], "none called 'z'"),
        (["run", "cnn.nir", "cnn.onnx", "out.npz"], "expected a .npy or .npz file, or a folder"),
        (["run", "cnn.nir", "pictures", "out.npz"], r"expected images \[B, 2, 9, 7\], got \[3, 1, 8, 8\]"),
        (["run", "cnn.nir", "x.npy", "out.npz", "--backend", "brian"], "no backend is called 'brian'"),
        (["validate", "cnn.nir", "x.npy", "--limit", "lava"], "expected name=N"),
        (["validate", "cnn.nir", "x.npy", "--labels", "x.npy"], "one class an image"),
        (["convert", "cnn.onnx", "out.nir", "--weight-bits", "8"], "give them with --images"),
        (["convert", "cnn.onnx", "out.nir", "--calibrate", "2"], "give them with --images"),
        (["convert", "cnn.onnx", "out.nir", "--scheme", "per_layer"], "--scheme per_layer is for --weight-bits"),
        (["convert", "cnn.onnx", "out.nir", "--mean", "0", "--std", "1"], "for --weight-bits and --calibrate"),
        (["convert", "cnn.nir", "out.onnx"], "out.onnx: convert writes NIR"),
        (["train", "resnet5", "digits", "out"], "model .resnet5.: expected one of"),
        (["train", "digits", "letters", "out"], "letters"),
        (["train", "digits", "digits", "out"], r"3 channels, and digits has 1: .*--recipe short"),
        (["train", "digits", "digits", "out", "--set", "epoch=3"], "epoch=3"),
        (["report", "cnn.nir", "out.html"], "no agreement can be read"),
        (["compare", "x.npy", "x.npy"], "x.npy"),
    ],
)
def test_bad_input(folder, arguments, message):
    before = sorted(path.name for path in folder.iterdir() if path.name != "__pycache__")
    assert re.search(message, call(*arguments, status=2))
    assert sorted(path.name for path in folder.iterdir() if path.name != "__pycache__") == before


def test_python_objects_are_never_read(folder):
    np.save("objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert "no array can be read" in call("run", "cnn.nir", "objects.npy", "out.npz", status=2)


def test_pictures_of_two_sizes(folder):
    Image.new("L", (5, 5)).save("pictures/9.png")
    assert "9.png: is (1, 5, 5)" in call("run", "cnn.nir", "pictures", "out.npz", status=2)


VALIDATE = ("validate", "cnn.nir", "x.npy", "--steps", "60", "--backend", "snntorch", "--out", "out")
KILLS = """
import sys
import torch
torch.set_num_threads(1)
sys.path[:0] = {folders!r}
import test_commands
test_commands.kill_again_and_again()
"""


def kill_again_and_again() -> None:
    """Validate in children of this process, and kill them at any moment: what they leave is whole.

    At last, a run that is not killed is as if nothing had been.
    """
    app(VALIDATE, standalone_mode=False)  # once here: what children find imported they need not import
    written = [Path("out", name) for name in ("agreement.json", "report.html")]
    started = time.monotonic()
    run_and_kill(after=None)
    took = time.monotonic() - started
    for eighth in range(1, 9):
        for path in written:
            path.unlink(missing_ok=True)
        run_and_kill(after=took * eighth / 8)
        whole(*(path for path in written if path.exists()))
    run_and_kill(after=None)
    whole(*written)


def run_and_kill(after: float | None) -> None:
    child = multiprocessing.get_context("fork").Process(target=app, args=(VALIDATE,), kwargs={"standalone_mode": False})
    child.start()
    if after is not None:
        time.sleep(after)
        child.kill()
    child.join()
    assert after is not None or child.exitcode == 0


def whole(*paths: Path) -> None:
    for path in paths:
        if path.suffix == ".json":
            assert json.loads(path.read_text())["agreed"] is True
        else:
            assert path.read_text().rstrip().endswith("</html>")


def test_kill_leaves_nothing_half_written(folder):
    """The children are those of a fresh program: this one has threads, which a fork would lose."""
    require("snntorch")
    script = folder / "kills.py"
    script.write_text(
        KILLS.format(folders=[str(path) for path in reversed(Path(__file__).parents[:3])]), encoding="utf-8"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr


def test_no_progress_bars_but_on_a_terminal(folder):
    require("snntorch")
    command = [sys.executable, "-m", "bridge.cli", "validate", "cnn.nir", "x.npy", "--backend", "snntorch", "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env={**os.environ, "TERM": "xterm"}, check=True
    )
    assert json.loads(done.stdout)["agreed"] is True
    assert done.stderr == ""


def test_pictures_of_16_bits_and_of_an_unknown_range(tmp_path):
    values = np.array([[0, 100], [32768, 65535]])
    Image.fromarray(values.astype(np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png: holds values of 16 bits .* pixels have 8"):
        sources.images(tmp_path)
    (tmp_path / "a.png").unlink()
    for kind in (np.int32, np.float32):
        Image.fromarray(values.astype(kind)).save(tmp_path / "a.tiff")
        with pytest.raises(InputError, match=r"a\.tiff: holds values of 32 bits .* pixels have 8"):
            sources.images(tmp_path)
