"""A disagreement shrinks to what causes it, and its script shows it again anywhere."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import layers, networks
from support.backends import require

import bridge
from bridge import InputError, SpikeRecord
from bridge.graph import Affine, Input, IntegrateFire
from bridge.reduction import first_disagreement, reduce

STEPS = 6

BIAS_OFF = '''
"""snnTorch with one bias off."""

import torch

from exporters.snntorch import SnnTorch


class BiasOff(SnnTorch):
    name = "bias off"

    def export(self, graph):
        native = super().export(graph)
        with torch.no_grad():
            native.get_parameter("LAYER.bias")[1] += 0.5
        return native
'''


class Wrapped:
    """A real backend with a fault."""

    name = "faulty"

    def __init__(self, name: str) -> None:
        self.real = require(name)

    def available(self):
        return self.real.available()

    def export(self, graph):
        return self.real.export(graph)

    def run(self, native, x, steps, *, membranes=False):
        return self.real.run(native, x, steps, membranes=membranes)


class BiasOff(Wrapped):
    """One bias of `layer` is off."""

    def __init__(self, name: str, layer: str, by: float = 0.5) -> None:
        super().__init__(name)
        self.layer, self.by = layer, by

    def export(self, graph):
        native = super().export(graph)
        with torch.no_grad():
            native.get_parameter(f"{self.layer}.bias")[1] += self.by
        return native


class FromStepThree(Wrapped):
    """The neurons of `layer` get more from the third step on."""

    def __init__(self, name: str, layer: str) -> None:
        super().__init__(name)
        self.layer = layer

    def run(self, native, x, steps, *, membranes=False):
        calls = 0

        def hook(module, inputs):
            nonlocal calls
            calls += 1
            return (inputs[0] + (calls >= 3),)

        handle = native.get_submodule(self.layer).register_forward_pre_hook(hook)
        try:
            return super().run(native, x, steps, membranes=membranes)
        finally:
            handle.remove()


class Unreset(Wrapped):
    """Images run one after the other, and each finds the potentials the one before has left in `layer`."""

    def __init__(self, name: str, layer: str) -> None:
        super().__init__(name)
        self.layer = layer

    def run(self, native, x, steps, *, membranes=False):
        left = None

        def start(module, inputs):
            nonlocal left
            kept, left = left, None
            return inputs if kept is None else (inputs[0] + kept,)

        neurons = native.get_submodule(self.layer)
        records = []
        for image in x:
            handle = neurons.register_forward_pre_hook(start)
            records.append(super().run(native, image[None], steps, membranes=True))
            handle.remove()
            last = records[-1]
            left = torch.from_numpy(last.membranes[self.layer][-1] - last.spikes(self.layer)[-1])
        return SpikeRecord.concatenate(records)


@pytest.fixture(scope="module")
def case():
    """A residual network, images, its last affine layer before neurons and those neurons."""
    model, shape = networks.residual()
    x = networks.dyadic_images(10, shape)
    network = bridge.convert(model.eval(), x)
    layers = list(network.graph)
    place = max(i for i, one in enumerate(layers) if isinstance(one, IntegrateFire))
    affine = [one.name for one in layers[:place] if isinstance(one, Affine)][-1]
    return network, x, affine, layers[place].name


def still_wrong(found, backend):
    assert first_disagreement(found.network, found.images, found.steps, backend) == found.first
    if found.steps > 1:
        assert first_disagreement(found.network, found.images, found.steps - 1, backend) is None
    assert found.first.layer == found.network.graph.output.name


@pytest.mark.parametrize("name", ["snntorch", "spikingjelly"])
def test_one_bias_in_a_residual_network(case, name):
    network, x, affine, neurons = case
    backend = BiasOff(name, affine)
    found = reduce(network, x, STEPS, backend)
    still_wrong(found, backend)
    assert found.first.layer == neurons
    assert found.first.neuron[0] == 1  # the channel of that bias
    assert len(found.images) == 1
    assert [type(layer) for layer in found.network.graph][0::2] == [Input, IntegrateFire]
    assert found.network.graph.layers[1].name == affine
    # What the reference's potential is, worked out from the file's own numbers.
    assert found.first.step == found.steps
    assert found.first.backend is not None
    place: tuple[Any, ...] = (slice(None), *found.first.neuron)
    fired = found.network.run(found.images, found.steps).spikes(neurons)[:-1, 0][place]
    layer = layers.affine(found.network.graph, affine)  # one weight a channel
    drive = layer.weight[1].item() * found.images[(0, *found.first.neuron)] + layer.bias[1]
    assert found.first.reference == pytest.approx(found.steps * drive - fired.sum())
    assert found.first.backend == pytest.approx(found.first.reference + 0.5 * found.steps)


def test_whole_numbers():
    model, shape = networks.cnn()
    images = networks.dyadic_images(8, shape)
    network = bridge.convert(model.eval(), images).quantize(8, calibration=images)
    backend = BiasOff("snntorch", "layer_7", by=40.0)
    found = reduce(network, network.pixels(images), 16, backend)
    still_wrong(found, backend)
    assert found.network.graph.integer
    assert found.first.layer == "layer_8"
    assert found.network.graph.layers[-2].name == "layer_7"
    assert len(found.network.graph) <= 4
    assert len(found.images) == 1


@pytest.mark.parametrize("name", ["snntorch", "spikingjelly"])
def test_one_bias_in_a_staged_network(name):
    """One bias off in the first layer shows in the spikes of its window, in a network that stays staged."""
    model, shape = networks.cnn()
    x = networks.dyadic_images(6, shape)
    network = bridge.convert(model.eval(), x, schedule="staged")
    neurons, latency = network.layers[0], network.latency
    assert latency is not None
    affine = network.graph[neurons].inputs[0]
    backend = BiasOff(name, affine, by=2.0)
    found = reduce(network, x, latency, backend)
    assert first_disagreement(found.network, found.images, found.steps, backend) == found.first
    assert found.first.layer == found.network.graph.output.name == neurons
    assert found.network.graph.staged
    assert len(found.images) == 1


def test_wrong_from_the_third_step_on(case):
    network, x, _, _ = case
    backend = FromStepThree("spikingjelly", network.layers[2])
    found = reduce(network, x, STEPS, backend)
    still_wrong(found, backend)
    assert found.steps == found.first.step == 3
    assert found.first.layer == network.layers[2]
    assert len(found.network.graph) == 2  # neurons alone
    assert len(found.images) == 1


def test_state_left_by_another_image(case):
    network, x, _, _ = case
    backend = Unreset("snntorch", network.layers[1])
    found = reduce(network, x, STEPS, backend)
    still_wrong(found, backend)
    assert found.first.layer == network.layers[1]
    assert len(found.images) == 2
    assert found.first.image == 1
    for image in found.images:
        assert first_disagreement(found.network, image[None], found.steps, backend) is None


def test_a_wrong_readout(case):
    network, x, _, _ = case
    readout = network.graph.output.name
    backend = BiasOff("spikingjelly", readout)
    found = reduce(network, x, STEPS, backend)
    still_wrong(found, backend)
    assert (found.first.layer, found.first.neuron, found.first.step) == (readout, (1,), 1)
    assert found.first.backend == found.first.reference + 0.5
    assert len(found.network.layers) == 1
    assert (len(found.images), found.steps) == (1, 1)


def test_what_agrees_cannot_be_reduced(case):
    network, x, _, _ = case
    require("snntorch")
    with pytest.raises(InputError, match="snntorch and the reference agree on these 10 images for 6 steps"):
        reduce(network, x, STEPS, "snntorch")
    for wrong in (0, 2.5):
        with pytest.raises(InputError, match="steps: expected a whole number"):
            reduce(network, x, wrong, "snntorch")  # type: ignore[arg-type]


def test_the_script_shows_it_in_another_process(case, tmp_path, monkeypatch, capsys):
    network, x, affine, neurons = case
    require("snntorch")
    modules, elsewhere, out, more = (tmp_path / name for name in ("modules", "elsewhere", "deep/out", "more"))
    modules.mkdir()
    elsewhere.mkdir()
    (modules / "faulty_backend.py").write_text(BIAS_OFF.replace("LAYER", affine), encoding="utf-8")
    monkeypatch.syspath_prepend(str(modules))
    monkeypatch.chdir(elsewhere)
    import faulty_backend  # type: ignore[import-not-found]

    found = reduce(network, x, STEPS, faulty_backend.BiasOff(), out)
    assert found.backend == "faulty_backend:BiasOff"
    assert sorted(file.name for file in out.iterdir()) == ["images.npy", "network.nir", "reproduce.py"]
    done = subprocess.run(
        [sys.executable, out / "reproduce.py"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(modules), *sys.path])},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout.strip() == f"faulty_backend:BiasOff: {found.first}"
    assert repr(neurons) in done.stdout

    def here(script: Path, *arguments: str) -> Any:
        """Its exit status, in this process."""
        monkeypatch.setattr(sys, "argv", [str(script), *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(script), run_name="__main__")
        return ended.value.code

    assert here(out / "reproduce.py", "snntorch") == 0
    assert "every spike and the readout are the reference's" in capsys.readouterr().out

    class Hidden(faulty_backend.BiasOff):
        """Only here."""

    reduce(network, x, STEPS, Hidden(), more)
    assert here(more / "reproduce.py") == 2
    assert "python reproduce.py MODULE:ATTRIBUTE" in capsys.readouterr().err
    assert here(more / "reproduce.py", "faulty_backend:BiasOff") == 1
    assert np.load(more / "images.npy").shape == (1, *found.images.shape[1:])
