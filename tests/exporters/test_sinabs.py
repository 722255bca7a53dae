"""Sinabs: its own neurons, spike for spike, in the hands of the validator and of Sinabs' users."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from support import networks, oracle
from support.backends import assert_equal, require

import bridge
from bridge.graph import Conv2d, Flatten, Input, IntegrateFire, LayerGraph
from bridge.nir_graph import to_nir
from bridge.simulate.reference import simulate

STEPS = 5


@pytest.fixture
def sinabs():
    """The backend."""
    return require("sinabs")


@pytest.fixture(params=networks.ALL)
def case(request):
    """A model, its spiking network, and three images."""
    model, shape = networks.ALL[request.param]()
    x = networks.dyadic_images(3, shape)
    return model, bridge.convert(model, x), x


def test_spikes_are_those_of_the_oracle(sinabs, case):
    """Run twice, and with other numbers of images in between: nothing of a run is left over."""
    model, network, x = case
    native = sinabs.export(network.to_nir())
    for images, steps in ((3, STEPS), (1, 8), (2, 1), (3, STEPS)):
        spikes, readout = oracle.spikes_of(model, x[:images].numpy(), steps)
        record = sinabs.run(native, x[:images].numpy(), steps)
        assert_equal(record, dict(zip(network.layers, spikes, strict=True)), readout)


def test_membranes_are_those_of_the_reference(sinabs, case):
    _, network, x = case
    expected = simulate(network.graph, x, STEPS, membranes=True)
    record = sinabs.run(sinabs.export(network.to_nir()), x.numpy(), STEPS, membranes=True)
    for layer in expected.layers:
        np.testing.assert_array_equal(record.membranes[layer], expected.membranes[layer])


def test_by_hand(sinabs, case):
    """All steps in one call, as Sinabs' users do it; a reset, and then other images and fewer of them."""
    import sinabs as framework

    model, network, x = case
    net = sinabs.export(network.to_nir())
    sinabs.run(net, x.numpy(), 2)
    _, readout = oracle.spikes_of(model, x.numpy(), STEPS)
    for images in (range(3), [2, 0], [1]):
        framework.set_batch_size(net, len(images))
        framework.reset_states(net)
        folded = x[list(images)].repeat_interleave(STEPS, dim=0)  # [B·T, ...]
        got = net(folded).detach().unflatten(0, (len(images), STEPS)).transpose(0, 1)
        np.testing.assert_array_equal(got.numpy(), readout[:, list(images)])
    one = sinabs.export(network.to_nir())  # as exported, it takes the steps of one image, here one by one
    got = torch.cat([one(x[:1]) for _ in range(STEPS)]).detach().numpy()
    np.testing.assert_array_equal(got, readout[:, 0])


def test_it_is_made_of_sinabs_own_parts(sinabs):
    from sinabs.activation import MembraneSubtract, SingleSpike
    from sinabs.layers import IAFSqueeze

    model, shape = networks.residual()
    network = bridge.convert(model, torch.zeros(1, *shape))
    net = sinabs.export(network.to_nir())
    for layer in network.layers:
        neuron = net.get_submodule(layer)
        assert type(neuron) is IAFSqueeze
        assert (neuron.spike_fn, neuron.min_v_mem, neuron.tau_syn) == (SingleSpike, None, None)
        assert neuron.reset_fn == MembraneSubtract(subtract_value=1.0)
        assert float(neuron.spike_threshold) == 0.5


def per_channel(level: list[float], threshold: list[float], unit: float = 1, zero: int = 0) -> LayerGraph:
    """Three channels that pass `unit` · (p − `zero`) of images p on to neurons with a level and a threshold each."""
    weight = unit * np.eye(3, dtype=np.float32)
    bias = np.full(3, -unit * zero, np.float32)
    return LayerGraph(
        (
            Input(name="input", shape=(3, 2, 2)),
            Conv2d(name="conv", inputs=("input",), weight=weight[:, :, None, None], bias=bias),
            IntegrateFire(
                name="fire",
                inputs=("conv",),
                level=np.array(level, np.float32),
                threshold=np.array(threshold, np.float32),
            ),
            Flatten(name="flatten", inputs=("fire",)),
        )
    )


@pytest.mark.parametrize(
    ("level", "threshold", "unit"),
    [
        ([0.25, 0.5, 0.875], [1, 1, 1], 1 / 8),
        ([0.5, 0.5, 0.5], [1, 0.75, 2], 1 / 8),
        ([3, 20, 100], [100, 40, 200], 40),
        ([-1, 0, 1], [2, 2, 2], 1),
    ],
)
def test_levels_and_thresholds_of_each_channel(sinabs, level, threshold, unit):
    """Against a loop over steps; every sum is exact, and ties are frequent."""
    zero = 4
    x = np.random.default_rng(0).integers(0, 13, (4, 3, 2, 2)).astype(np.float32)
    drive = (x - zero) * np.float32(unit)
    u = np.zeros_like(x)
    fires, takes = (np.array(values, np.float32)[:, None, None] for values in (level, threshold))
    native = sinabs.export(to_nir(per_channel(level, threshold, unit, zero)))
    record = sinabs.run(native, x, 9, membranes=True)
    for t in range(9):
        u = u + drive
        np.testing.assert_array_equal(record.membranes["fire"][t], u)
        np.testing.assert_array_equal(record.spikes("fire")[t], u >= fires)
        u = u - takes * (u >= fires)
    twin = copy.deepcopy(native)
    np.testing.assert_array_equal(sinabs.run(twin, x, 9).readout, record.readout)


def test_both_sides_of_a_level(sinabs):
    """The float32 just below the level must not fire, however the difference is rounded."""
    levels = np.array([0.5, 0.1, 1e-30], np.float32)
    for value, fires in ((levels, True), (np.nextafter(levels, np.float32(-1)), False)):
        x = np.broadcast_to(value[:, None, None], (1, 3, 2, 2)).astype(np.float32)
        record = sinabs.run(sinabs.export(to_nir(per_channel([*levels], [1, 1, 1]))), x, 1)
        assert (record.spikes("fire") == fires).all()


def test_float_networks_as_validated(sinabs):
    """Random weights off any grid: not one spike that is wrong by itself, in a plain and a residual network."""
    for make in (networks.cnn, networks.residual):
        model, shape = make()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1 + 0.2 * torch.rand(parameter.shape, generator=generator))
        x = torch.rand(32, *shape, generator=generator)
        agreement = bridge.convert(model, x).validate(x, 8, [sinabs])
        assert agreement.agreed


def test_gradients_reach_the_weights(sinabs, case):
    import sinabs as framework

    _, network, x = case
    net = sinabs.export(network.to_nir())
    sinabs.run(net, x.numpy(), 2)  # a run must leave no state that stands in the way
    framework.set_batch_size(net, 3)
    net(x.repeat_interleave(3, dim=0)).sum().backward()
    gradients = {name: p.grad for name, p in net.named_parameters() if p.requires_grad}
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients.values())
