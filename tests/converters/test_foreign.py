"""Other tools' NIR files, run here as by the frameworks that wrote them."""

from __future__ import annotations

import nir
import numpy as np
import pytest
import torch
from support import layers, networks
from support.backends import require
from support.nir_graphs import dyadic
from torch import nn

import bridge
from bridge.foreign import ForeignNetwork

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

STEPS = 10
OFF_THE_GRID = 1 + 2.0**-20  # a threshold that no sum of the dyadic weights meets, so that > and ≥ are the same test

# Weights, decays and inputs are multiples of powers of two, so that float32 and float64 agree.


def dyadic_net(net: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim():
                parameter.copy_(networks.dyadic(tuple(parameter.shape), 1 / 8, 6, generator))
    return net


def spikes_of(net: nn.Module, x: torch.Tensor, modules: list[nn.Module]) -> list[np.ndarray]:
    """Spikes ``[T, B, ...]`` of `modules` while `net` runs on `x`, a step at a time."""
    kept: list[list[np.ndarray]] = [[] for _ in modules]
    for rows, module in zip(kept, modules, strict=True):
        module.register_forward_hook(
            lambda _, __, out, rows=rows: rows.append((out[0] if isinstance(out, tuple) else out).numpy() != 0)
        )
    with torch.no_grad():
        for now in x:
            net(now)
    return [np.stack(rows) for rows in kept]


def train(*shape: int) -> torch.Tensor:
    """An input that changes: spikes, of either sign so that negative potentials occur."""
    return torch.from_numpy(np.sign(dyadic(STEPS, 5, *shape)).astype(np.float32))


def test_spikingjellys_networks(tmp_path):
    require("spikingjelly")
    from spikingjelly.activation_based import layer, neuron
    from spikingjelly.activation_based.nir_exchange import export_to_nir

    spiking = [
        neuron.IFNode(v_threshold=OFF_THE_GRID, v_reset=0.0),
        neuron.LIFNode(tau=2.0, decay_input=False, v_threshold=OFF_THE_GRID, v_reset=0.0),
        neuron.LIFNode(tau=4.0, v_threshold=OFF_THE_GRID / 2, v_reset=0.0),
        neuron.CUBALIFNode(c_decay=0.5, v_decay=0.75, v_threshold=OFF_THE_GRID, v_reset=0.0),
    ]
    net = dyadic_net(
        nn.Sequential(
            *(layer.Conv2d(1, 4, 3, padding=1), spiking[0], layer.AvgPool2d(2), layer.Flatten()),
            *(layer.Linear(64, 12), spiking[1], layer.Linear(12, 8), spiking[2], layer.Linear(8, 4), spiking[3]),
        )
    )
    x = train(1, 8, 8)
    export_to_nir(net, x[0], tmp_path / "net.nir")
    network = layers.theirs(bridge.load(tmp_path / "net.nir"))
    assert network.dt == 1e-4
    record = network.run(x)
    for name, expected in zip(record.layers, spikes_of(net, x, spiking), strict=True):
        np.testing.assert_array_equal(record.spikes(name), expected)
        assert 0.01 < expected.mean() < 0.9


def test_snntorchs_networks(tmp_path):
    """With ``reset_delay=False``: with it, its recurrent neurons also lose the input of the step after a spike."""
    require("snntorch")
    import snntorch
    from snntorch.export_nir import export_to_nir

    reset = {"init_hidden": True, "reset_mechanism": "zero", "reset_delay": False}
    spiking = [
        snntorch.Leaky(torch.tensor([0.5, 0.75] * 6), threshold=torch.ones(12), **reset),
        snntorch.RLeaky(0.5, linear_features=10, **reset),
        snntorch.Synaptic(torch.full((8,), 0.5), torch.full((8,), 0.75), threshold=torch.ones(8), **reset),
        snntorch.RLeaky(0.75, V=torch.ones(4), all_to_all=False, threshold=0.5, **reset),
    ]
    net = dyadic_net(
        nn.Sequential(
            *(nn.Linear(6, 12), spiking[0], nn.Linear(12, 10), spiking[1], nn.Linear(10, 8), spiking[2]),
            *(nn.Linear(8, 4), spiking[3]),
        )
    )
    x = train(6)
    nir.write(tmp_path / "net.nir", export_to_nir(net, torch.zeros(6)))
    network = layers.theirs(bridge.load(tmp_path / "net.nir"))
    assert network.dt == 1e-4
    record = network.run(x)
    assert record.layers == ("1", "3.lif", "5", "7.lif")
    for name, expected in zip(record.layers, spikes_of(net, x, spiking), strict=True):
        np.testing.assert_array_equal(record.spikes(name), expected)
        assert 0.01 < expected.mean() < 0.9


@pytest.mark.parametrize(("mechanism", "alike"), [("zero", True), ("subtract", False)])
def test_a_soft_reset_does_not_survive_snntorchs_export(mechanism, alike):
    """A decay of 0.9 is not exact in float32, nor is its file's tau: what rounds differently is 1e-7 of a potential,
    and of these potentials none comes nearer to the threshold than that.
    """
    require("snntorch")
    import snntorch
    from snntorch.export_nir import export_to_nir

    spiking = snntorch.Leaky(
        torch.full((20,), 0.9), threshold=torch.ones(20), init_hidden=True, reset_mechanism=mechanism
    )
    net = nn.Sequential(nn.Linear(6, 20), spiking)
    x = torch.rand(50, 8, 6)
    network = ForeignNetwork(export_to_nir(net, torch.zeros(6)))
    (expected,) = spikes_of(net, x, [spiking])
    wrong = (network.run(x).spikes("1") != expected).mean()
    assert wrong == 0 if alike else wrong > 0.01


def test_norses_leaky_neurons(tmp_path):
    """Norse 1.1 writes tau = dt / tau_mem_inv, with its dt of 1e-3: dt too small. A time step of dt² undoes it."""
    require("norse")
    import norse.torch as norse

    p = norse.LIFBoxParameters(
        tau_mem_inv=torch.full((8,), 250.0), v_th=torch.ones(8) / 8, v_leak=torch.zeros(8), v_reset=torch.zeros(8)
    )
    spiking = norse.LIFBoxCell(p)
    net = norse.SequentialState(nn.Linear(6, 8), spiking)
    nir.write(tmp_path / "net.nir", norse.to_nir(net, torch.zeros(6)))
    network = layers.theirs(bridge.load(tmp_path / "net.nir", dt=1e-6))
    x = torch.rand(50, 8, 6)
    rows, state = [], None
    with torch.no_grad():
        for now in x:
            spikes, state = net(now, state)
            rows.append(spikes.numpy() != 0)
    np.testing.assert_array_equal(network.run(x).spikes("1"), np.stack(rows))
    assert 0.01 < np.mean(rows) < 0.9


def test_norses_integrate_and_fire_neurons():
    require("norse")
    import norse.torch as norse

    net = dyadic_net(norse.SequentialState(nn.Linear(6, 8), norse.IAFCell(norse.IAFParameters(v_th=torch.ones(8)))))
    network = ForeignNetwork(norse.to_nir(net, torch.zeros(6)))
    assert network.dt == 1
    x, rows, state = train(6), [], None
    with torch.no_grad():
        for now in x:
            spikes, state = net(now, state)
            rows.append(spikes.numpy() != 0)
    np.testing.assert_array_equal(network.run(x).spikes("1"), np.stack(rows))


@pytest.mark.parametrize("alike", [True, False])
def test_sinabs_networks(alike):
    """Sinabs' IAF is NIR's IF if told to spike once a step and to reset to zero; by default it does neither."""
    require("sinabs")
    import sinabs.activation
    import sinabs.layers
    import sinabs.nir

    reset = {"spike_fn": sinabs.activation.SingleSpike, "reset_fn": sinabs.activation.MembraneReset()}
    spiking = sinabs.layers.IAFSqueeze(
        batch_size=1, spike_threshold=torch.tensor(OFF_THE_GRID), min_v_mem=None, **(reset if alike else {})
    )
    net = dyadic_net(nn.Sequential(nn.Linear(6, 8), spiking))
    graph = sinabs.nir.to_nir(net, torch.zeros(1, 6))
    x = 2 * train(6)
    expected = []
    with torch.no_grad():
        for image in x.transpose(0, 1):
            spiking.reset_states()
            expected.append(net(image).numpy())
    got = ForeignNetwork(graph).run(x).spikes("1")
    assert got.any()
    assert np.array_equal(got, np.stack(expected, axis=1)) == alike
