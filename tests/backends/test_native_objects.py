"""The exported networks in the hands of the frameworks' own users."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from support import networks, oracle
from support.backends import require
from torch import nn

import bridge
from bridge import GraphError, InputError
from bridge.graph import Input, IntegrateFire, LayerGraph, Linear
from bridge.nir_graph import to_nir

STEPS = 5


@pytest.fixture(params=networks.ALL)
def case(request):
    """A model, its spiking network, and three images."""
    model, shape = networks.ALL[request.param]()
    x = networks.dyadic_images(3, shape)
    return model, bridge.convert(model, x).to_nir(), x


def test_spikingjelly_single_and_multi_step_by_hand(case):
    model, graph, x = case
    net = require("spikingjelly").export(graph)
    from spikingjelly.activation_based import functional

    _, readout = oracle.spikes_of(model, x.numpy(), STEPS)
    functional.reset_net(net)
    single = torch.stack([net(x) for _ in range(STEPS)])
    np.testing.assert_array_equal(single.detach().numpy(), readout)
    functional.set_step_mode(net, "m")
    functional.reset_net(net)
    multi = net(x.expand(STEPS, *x.shape))
    np.testing.assert_array_equal(multi.detach().numpy(), readout)


def test_spikingjelly_left_in_multi_step_mode(case):
    model, graph, x = case
    backend = require("spikingjelly")
    net = backend.export(graph)
    from spikingjelly.activation_based import functional

    functional.set_step_mode(net, "m")
    record = backend.run(net, x.numpy(), STEPS)
    np.testing.assert_array_equal(record.readout, oracle.spikes_of(model, x.numpy(), STEPS)[1])
    functional.reset_net(net)
    np.testing.assert_array_equal(net(x.expand(STEPS, *x.shape)).detach().numpy(), record.readout)


def test_snntorch_by_hand(case):
    model, graph, x = case
    net = require("snntorch").export(graph)
    from snntorch import utils

    _, readout = oracle.spikes_of(model, x.numpy(), STEPS)
    for images in (x, x[:1]):  # a new batch size, too
        utils.reset(net)
        got = torch.stack([net(images) for _ in range(STEPS)]).detach().numpy()
        np.testing.assert_array_equal(got, readout[:, : len(images)])


def test_gradients_reach_the_weights(torch_backend, case):
    _, graph, x = case
    net = torch_backend.export(graph)
    torch_backend.run(net, x.numpy(), 2)  # a run must leave no state that stands in the way
    sum(net(x) for _ in range(3)).sum().backward()
    gradients = [parameter.grad for parameter in net.parameters()]
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)


def test_copies_are_independent(torch_backend, case):
    model, graph, x = case
    net = torch_backend.export(graph)
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    np.testing.assert_array_equal(
        torch_backend.run(twin, x.numpy(), STEPS).readout, oracle.spikes_of(model, x.numpy(), STEPS)[1]
    )


def test_bad_input_to_run(backend):
    model, shape = networks.mlp()
    native = backend.export(bridge.convert(model, torch.zeros(1, *shape)).to_nir())
    for x, steps, says in (
        (np.zeros((2, 5), np.float32), 4, r"expected images \[B, 6\], got \[2, 5\]"),
        (np.zeros((0, 6), np.float32), 4, r"expected at least one image, \[B, 6\], got \[0, 6\]"),
        (np.full((2, 6), np.nan, np.float32), 4, "12 values that are NaN"),
        (np.zeros((2, 6), np.float32), 0, "steps: .* at least 1"),
    ):
        with pytest.raises(InputError, match=says):
            backend.run(native, x, steps)


@pytest.mark.parametrize("name", ["norse", "sinabs", "snntorch", "spikingjelly"])
def test_a_name_that_no_torch_module_can_have(name):
    linear = Linear(name="code", inputs=("x",), weight=np.eye(2, dtype=np.float32), bias=np.zeros(2, np.float32))
    fire = IntegrateFire(name="fire", inputs=("code",), level=np.full(2, 0.5, np.float32))
    with pytest.raises(GraphError, match=r"'code'.*rename"):
        require(name).export(to_nir(LayerGraph((Input(name="x", shape=(2,)), linear, fire))))


def test_levels_that_spikingjelly_can_fire_at_exactly():
    """Every float32 beside the level is tried against the node's own rounded test."""
    require("spikingjelly")
    from exporters.spikingjelly.neuron import offset_for

    level = np.array([0.5, 0.75, 0.625, 0.9], np.float32)
    offset = offset_for(level, np.ones_like(level), "act")
    for u, fires in (
        (level, True),
        (np.nextafter(level, np.float32(0)), False),
        (np.nextafter(level, np.float32(2)), True),
    ):
        assert ((u + offset >= np.float32(1)) == fires).all()
    below = np.linspace(-3, 0.4999999, 100_001, dtype=np.float32)
    assert not (below + offset[0] >= 1).any()


def test_names_as_autoencoders_have_them():
    class Autoencoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.graph = nn.Linear(4, 3)
            self.code = bridge.QCFS(4)
            self.train_ = nn.Linear(3, 4)

        def forward(self, x):
            return self.train_(self.code(self.graph(x)))

    network = bridge.convert(Autoencoder(), torch.rand(2, 4))
    assert network.layers == ("code_1",)
    for name in ("spikingjelly", "snntorch"):
        assert network.validate(torch.rand(5, 4), 3, [name]).agreed
