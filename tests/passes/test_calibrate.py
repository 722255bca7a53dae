"""Calibration: nearer to the ANN at T steps, with neurons that are still the same for every backend."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from support import networks, whole_numbers
from support.backends import require
from torch import nn

import bridge
from bridge import QCFS, ConversionError, InputError, SpikingNetwork
from bridge.graph import Affine, IntegrateFire, LayerGraph, Scale
from bridge.passes.calibration import gradient
from bridge.passes.calibration.gradient import output_error, refine, spikes_with_gradients
from bridge.passes.calibration.layerwise import KINDS, calibrate, feeding
from bridge.passes.to_float32 import to_float32
from bridge.simulate.ann import activations
from bridge.simulate.layerwise import layer_by_layer
from bridge.zoo import models
from bridge.zoo.data import dataset
from bridge.zoo.pretrained import pretrained


@cache
def images() -> torch.Tensor:
    """The ones to calibrate with."""
    data = dataset("digits")
    return data.normalise(data.train.x)


@cache
def unseen() -> tuple[torch.Tensor, np.ndarray]:
    """The test split, with its labels."""
    data = dataset("digits")
    return data.normalise(data.test.x), data.test.y.numpy()


@cache
def coarse() -> SpikingNetwork:
    """The package's digits CNN with λ and L doubled: the same ANN below its old λ, and far poorer at few steps.

    Trained here, it would be another network on each kind of processor, for these round differently.
    """
    model = pretrained("digits")
    for module in models.activations(model):
        module.threshold.data *= 2
        module.levels *= 2
    return bridge.convert(model, images()[:1])


@cache
def ann() -> LayerGraph:
    """The network that `coarse` came from."""
    found = coarse().ann
    assert found is not None
    return found


@cache
def calibrated(steps: int) -> SpikingNetwork:
    """Fitted to enough images to tell: more of them where calibration has less to gain."""
    return coarse().calibrate(images()[: 400 if steps > 2 else 300], steps)


@pytest.fixture
def few_steps(monkeypatch):
    """Gradient descent ends before it has found much: for what holds whatever it finds."""
    monkeypatch.setattr(gradient, "FEWEST_STEPS", 30)
    monkeypatch.setattr(gradient, "MOST_STEPS", 30)


@pytest.mark.parametrize(
    ("steps", "gained", "least"),
    [
        (2, 0.06, 0.98),
        *(pytest.param(*case, marks=pytest.mark.long) for case in ((1, 0.4, 0.95), (4, 0.005, 0.99))),
    ],
)
def test_far_more_images_are_right(steps, gained, least):
    """On the test split, which calibration has not seen."""
    x, y = unseen()
    plain = coarse().simulate(x, steps).accuracy(y)[-1]
    better = calibrated(steps).simulate(x, steps).accuracy(y)[-1]
    assert better > plain + gained, (plain, better)
    assert better > least


def test_the_same_again_and_where_the_caller_wants_no_gradients(few_steps):
    """As evaluation scripts do."""
    x = images()[:60]
    one = coarse().calibrate(x, 2)
    with torch.inference_mode():
        other = coarse().calibrate(x.clone(), 2)
    for a, b in zip(one.graph, other.graph, strict=True):
        for name in ("weight", "bias", "level", "scale"):
            np.testing.assert_array_equal(getattr(a, name, 0), getattr(b, name, 0))


@pytest.mark.parametrize("steps", [2, 4])
def test_layer_by_layer_every_layer_is_nearer_to_the_ann(steps):
    """The mean rate error at T, as validate measures it on images that were not fitted to.

    The first layer hears what the ANN's does and has little to gain; what is made least there, squares, is not that.
    """
    errors = []
    fitted = calibrate(coarse().graph, ann(), images()[:200], steps)
    for network in (coarse(), SpikingNetwork(to_float32(fitted), ann())):
        found = network.validate(unseen()[0], steps, []).reference.rate_error
        assert found is not None
        errors.append(np.array([found[layer][-1] for layer in network.layers]))
    assert errors[1][0] < 1.01 * errors[0][0], errors
    assert (errors[1][1:] < 0.9 * errors[0][1:]).all(), errors


@pytest.mark.parametrize("steps", [1, *(pytest.param(more, marks=pytest.mark.long) for more in (2, 3))])
def test_all_layers_together_the_output_is_nearer_still(steps):
    x = images()[:200]
    start = calibrate(coarse().graph, ann(), x, steps)
    refined = refine(start, x, torch.from_numpy(run_ann(x)), steps)
    both = (SpikingNetwork(to_float32(one), ann()) for one in (start, refined))
    first, then = (divergence(one, unseen()[0], steps) for one in both)
    assert then < 0.6 * first, (first, then)


def test_both_many_neurons_take_fewer_images_at_once(monkeypatch):
    x, graph = images()[:40], coarse().graph
    sizes = []

    def counted(graph: LayerGraph, x: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        sizes.append(len(x))
        return layer_by_layer(graph, x, *arguments, **options)

    monkeypatch.setattr(gradient, "layer_by_layer", counted)
    monkeypatch.setattr(gradient, "FEWEST_STEPS", 1)
    monkeypatch.setattr(gradient, "MOST_STEPS", 1)
    for drives in (10**9, 10 * 3 * graph.neurons, 1):
        monkeypatch.setattr(gradient, "DRIVES", drives)
        refine(graph, x, torch.zeros(40, 10), steps=3)
    assert sizes == [40, 10, 1]


def run_ann(x: torch.Tensor) -> np.ndarray:
    """What the network's ANN puts out, by its own activations' formula."""
    return activations(ann(), x)[2].numpy()


def divergence(network: SpikingNetwork, x: torch.Tensor, steps: int) -> float:
    """Kullback and Leibler's, of the network's softmax from its ANN's, mean over images, in nats."""

    def softmax(scores: np.ndarray) -> np.ndarray:
        powers = np.exp(scores.astype(np.float64) - scores.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    wanted, found = softmax(run_ann(x)), softmax(network.simulate(x, steps).outputs[-1])
    return float((wanted * np.log(wanted / found)).sum(axis=1).mean())


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_it_is_never_further_from_the_ann_on_the_images_that_judge(steps, few_steps):
    """Every fourth image: on them, the network as it was is one of those to choose from."""
    x = images()[:60]
    fitted = coarse().calibrate(x, steps)
    assert divergence(fitted, x[::4], steps) <= divergence(coarse(), x[::4], steps)


def test_neurons_forwards_and_backwards():
    """Against a loop of autograd's own, with spikes that are steps forwards and ramps backwards."""
    generator = torch.Generator().manual_seed(0)
    drive = torch.randint(-24, 40, (5, 3, 4, 6), generator=generator).div(16).requires_grad_()
    level = torch.tensor([0.5, 0.75, 1.0, 0.5]).reshape(1, 4, 1)
    weights = torch.randn(5, 3, 4, 6, generator=generator)
    potential, fired = torch.zeros(3, 4, 6), []
    for now in drive:
        potential = potential + now
        above = potential - level
        ramp = torch.where(above.abs() < 0.5, above + 0.5, (above > 0).float())
        fired.append(ramp + ((above >= 0).float() - ramp).detach())
        potential = potential - fired[-1]
    (torch.stack(fired) * weights).sum().backward()
    expected, drive.grad = drive.grad, None
    spikes = spikes_with_gradients(drive, level)
    torch.testing.assert_close(spikes, torch.stack(fired))
    assert set(spikes.unique().tolist()) == {0.0, 1.0}
    (spikes * weights).sum().backward()
    torch.testing.assert_close(drive.grad, expected)


def test_the_neuron_is_the_plain_one_and_every_backend_runs_it():
    network = calibrated(2)
    assert [type(layer) for layer in network.graph] == [type(layer) for layer in coarse().graph]
    moved = 0
    for layer in network.graph:
        if isinstance(layer, IntegrateFire):
            assert (layer.threshold == 1).all()
            assert set((16 * (1 - layer.level)).tolist()) <= set(range(9))
            moved += (layer.level != 0.5).sum()
    assert moved > 0
    for name in ("spikingjelly", "snntorch"):
        require(name)
    agreement = network.validate(unseen()[0], 5, ["spikingjelly", "snntorch"])
    assert agreement.agreed


@pytest.mark.lava
def test_lava_runs_it(few_steps):
    require("lava")
    fitted = coarse().calibrate(images()[:60], 2)
    assert fitted is not coarse()
    assert fitted.validate(unseen()[0][:8], 2, ["lava"]).agreed


def test_it_can_be_quantized():
    (x, y), network = unseen(), calibrated(2)
    whole = network.quantize(8, calibration=images()[:200])
    pixels = whole.pixels(x)
    spikes, readout = whole_numbers.spikes_of(whole.to_nir(), pixels[:40].numpy(), 2)
    record = whole.run(pixels[:40], 2)
    assert all(np.array_equal(record.spikes(layer), spikes[layer]) for layer in whole.layers)
    assert np.array_equal(record.readout, readout)
    assert whole.simulate(pixels, 2).accuracy(y)[-1] > network.simulate(x, 2).accuracy(y)[-1] - 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_changes_only_its_own(kind, few_steps):
    before = coarse().graph
    after = coarse().calibrate(images()[:40], 3, kinds=[kind]).graph
    changed = set()
    for old, new in zip(before, after, strict=True):
        if isinstance(old, IntegrateFire):
            assert isinstance(new, IntegrateFire)
            if not np.array_equal(old.level, new.level):
                changed.add("potential")
        if not isinstance(old, Affine):
            continue
        assert isinstance(new, Affine)
        if not np.array_equal(old.weight, new.weight):
            rows = old.weight.reshape(len(old.weight), -1), new.weight.reshape(len(old.weight), -1)
            used = np.abs(rows[0]).argmax(axis=1)
            gain = rows[1][range(len(used)), used] / rows[0][range(len(used)), used]
            np.testing.assert_allclose(rows[1], rows[0] * gain[:, None], rtol=1e-5)
            np.testing.assert_allclose(new.bias, old.bias * gain, rtol=1e-5)
            changed.add("gain")
        elif not np.array_equal(old.bias, new.bias):
            changed.add("bias")
    assert changed == {kind}


def test_weights_alone_move_a_little(few_steps):
    before = coarse().graph
    after = coarse().calibrate(images()[:100], 3, kinds=["weight"]).graph
    for old, new in zip(before, after, strict=True):
        for name in ("bias", "level", "scale", "threshold"):
            assert np.array_equal(getattr(old, name, 0), getattr(new, name, 0)), (old.name, name)
        if isinstance(old, Affine):
            assert isinstance(new, Affine)
            moved = np.sqrt(np.square(new.weight - old.weight).mean() / np.square(old.weight).mean())
            assert 0.001 < moved < 0.2, old.name


@pytest.mark.parametrize("name", networks.ALL)
def test_all_kinds_of_networks(name, few_steps):
    """Residual sums and their scales, concatenations, signals, outputs that spike: nearer at the output, or as near."""
    model, shape = networks.ALL[name]()
    x = torch.rand(64, *shape)
    network = bridge.convert(model, x)
    fitted = network.calibrate(x, 3)
    with torch.no_grad():
        wanted = model.eval()(x)
    outputs = [torch.from_numpy(one.simulate(x, 3).outputs[-1]) for one in (network, fitted)]
    errors = [output_error(output, wanted).item() for output in outputs]
    assert errors[1] <= errors[0] * 1.05, errors
    for layer in fitted.graph:
        assert layer.inputs == network.graph[layer.name].inputs


def test_what_may_be_changed_for_a_layer(few_steps):
    """A join's branches; a scale of its own; not what another layer hears too."""
    network = bridge.convert(networks.residual()[0], torch.rand(1, *networks.residual()[1]))
    found = {
        layer.name: [one.name for one in feeding(network.graph, layer.inputs[0])]
        for layer in network.graph
        if isinstance(layer, IntegrateFire)
    }
    assert found["layer_1"] == ["layer_0"]
    assert found["layer_3"] == ["layer_2_branches_0_3", "layer_1_to_add"]
    assert found["layer_5"] == ["layer_4_branches_0_3", "layer_4_branches_1_0"]
    assert found["layer_6_branches_2_0"] == ["layer_5_to_layer_6_branches_2_0"]
    fitted = network.calibrate(torch.rand(20, *networks.residual()[1]), 3, kinds=["bias"]).graph
    for name in ("layer_1_to_add", "layer_5_to_layer_6_branches_2_0"):
        before, after = network.graph[name], fitted[name]
        assert isinstance(before, Scale)
        assert isinstance(after, Scale)
        assert np.array_equal(before.scale, after.scale)


def test_bad_input(tmp_path):
    x = images()[:8]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"steps": 0}, "steps"),
        ({"kinds": ["colour"]}, "kinds"),
        ({"kinds": []}, "kinds"),
        ({"kinds": "bias"}, "kinds"),
        ({"data": x[:3]}, "at least 4 images"),
        ({"data": x[:, :, 1:]}, r"data: expected images \[B, 1, 8, 8\], got \[8, 1, 7, 8\]"),
    ]
    for arguments, message in cases:
        with pytest.raises(InputError, match=message):
            coarse().calibrate(**{"data": x, "steps": 2, **arguments})
    whole = coarse().quantize(8, calibration=images()[:50])
    with pytest.raises(InputError, match=r"calibrate: .*give the one it was made from"):
        whole.calibrate(whole.pixels(x), 2)
    coarse().save(tmp_path / "net.nir")
    loaded = bridge.load(tmp_path / "net.nir")
    assert isinstance(loaded, SpikingNetwork)
    with pytest.raises(ConversionError, match="no ANN"):
        loaded.calibrate(x, 2)


def test_a_network_without_neurons_to_correct(few_steps):
    """Neurons right behind the input: there are no weights to put a bias in."""
    model = nn.Sequential(QCFS(4, 1.0), nn.Linear(3, 2))
    network = bridge.convert(model, torch.rand(8, 3))
    fitted = network.calibrate(torch.rand(40, 3), 2)
    assert fitted.simulate(torch.rand(5, 3), 2).outputs.shape == (2, 5, 2)
