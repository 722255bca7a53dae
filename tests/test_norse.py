"""Norse: exact on plain and residual networks, and usable as Norse's users use their own modules."""

from __future__ import annotations

import copy
import doctest
from dataclasses import replace

import networks
import nir
import numpy as np
import oracle
import pytest
import torch
import whole_networks
import whole_numbers
from conftest import require
from torch import nn

import bridge
from bridge import GraphError, InputError
from bridge.graph import Conv2d, Input, IntegrateFire, LayerGraph, Linear
from bridge.nir_graph import to_nir

STEPS = 5


@pytest.fixture
def norse():
    return require("norse")


@pytest.fixture(params=networks.ALL)
def case(request):
    """A model, its spiking network, and three images."""
    model, shape = networks.ALL[request.param]()
    x = networks.dyadic_images(3, shape)
    return model, bridge.convert(model, x), x


def test_exact_and_the_same_again(norse, case):
    model, network, x = case
    native = norse.export(network.to_nir())
    spikes, readout = oracle.spikes_of(model, x.numpy(), STEPS)
    for images in (3, 3, 1):
        record = norse.run(native, x[:images].numpy(), STEPS)
        assert set(record.layers) == set(network.layers)
        for layer, fired in zip(network.layers, spikes, strict=True):
            np.testing.assert_array_equal(record.spikes(layer), fired[:, :images], err_msg=layer)
        np.testing.assert_array_equal(record.readout, readout[:, :images])
        assert not record.membranes


@pytest.mark.parametrize("name", whole_networks.NETWORKS)
@pytest.mark.parametrize("seed", [0, 1])
def test_whole_numbers(norse, name, seed):
    graph = whole_networks.NETWORKS[name](seed)
    pixels = whole_networks.images(4, graph.input.shape, seed)
    record = norse.run(norse.export(to_nir(graph)), pixels, 9)
    spikes, readout = whole_numbers.spikes_of(to_nir(graph), pixels, 9)
    assert set(record.layers) == set(spikes)
    for layer, fired in spikes.items():
        np.testing.assert_array_equal(record.spikes(layer), fired, err_msg=layer)
    np.testing.assert_array_equal(record.readout, readout)


def test_a_level_and_a_threshold_for_each_channel(norse):
    level, threshold = np.array([0.25, 0.5, 0.875], np.float32), np.array([0.75, 1, 2], np.float32)
    weight = np.diag([1, 2, -3]).astype(np.float32)[:, :, None, None]
    bias = np.array([0.125, 0, 0.5], np.float32)
    graph = LayerGraph(
        (
            Input(name="input", shape=(3, 2, 4)),
            Conv2d(name="conv", inputs=("input",), weight=weight, bias=bias),
            IntegrateFire(name="fire", inputs=("conv",), level=level, threshold=threshold),
        )
    )
    x = networks.dyadic_images(4, (3, 2, 4)).numpy()
    record = norse.run(norse.export(to_nir(graph)), x, 7, membranes=True)
    u = np.zeros(x.shape)
    for t in range(7):
        u += x * np.array([1, 2, -3])[:, None, None] + bias[:, None, None]
        np.testing.assert_array_equal(record.membranes["fire"][t], u)
        fired = u >= level[:, None, None]
        np.testing.assert_array_equal(record.spikes("fire")[t], fired)
        np.testing.assert_array_equal(record.readout[t], fired)
        u -= threshold[:, None, None] * fired


def test_fires_at_the_level_and_not_just_below(norse):
    level = np.array([0.5, 0.75, 0.9, 1e-3, 37], np.float32)
    layers = (Input(name="input", shape=(5,)), IntegrateFire(name="fire", inputs=("input",), level=level))
    native = norse.export(to_nir(LayerGraph(layers)))
    x = np.stack([np.nextafter(level, np.float32(-1)), level, np.nextafter(level, np.float32(99))])
    expected = np.repeat([[0], [1], [1]], 5, axis=1)
    np.testing.assert_array_equal(norse.run(native, x, 1).spikes("fire")[0], expected)


def test_float_networks_agree_but_for_ties(norse):
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), bridge.QCFS(4), nn.AvgPool2d(2), nn.Conv2d(8, 8, 3), bridge.QCFS(8)),
        *(nn.Flatten(), nn.Linear(8 * 9, 10)),
    )
    x = torch.randn(40, 3, 10, 10)
    network = bridge.convert(model, x)
    for one in (network, network.calibrate(x, 4)):
        agreement = one.validate(x, 4, [norse])
        assert agreement.agreed
        assert agreement.backends["norse"].total_differing < 10  # of 170 000


def test_lifted_over_time_in_a_sequence(norse, case):
    model, network, x = case
    net = norse.export(network.to_nir())
    import norse.torch as snn

    _, expected = oracle.spikes_of(model, x.numpy(), STEPS)
    over_time = x.expand(STEPS, *x.shape)
    readout, state = snn.Lift(net)(over_time)
    np.testing.assert_array_equal(readout.detach().numpy(), expected)
    assert set(state) == set(network.layers)
    assert all(isinstance(one, snn.IAFState) for one in state.values())
    readout, _ = snn.Lift(snn.SequentialState(net, nn.Identity()))(over_time)
    np.testing.assert_array_equal(readout.detach().numpy(), expected)


def test_a_run_in_two_parts(norse, case):
    model, network, x = case
    net = norse.export(network.to_nir())
    _, expected = oracle.spikes_of(model, x.numpy(), STEPS)
    readout, state = net(x)
    for t in range(1, STEPS):
        again, _ = net(x, state)  # a state is not changed by what follows it
        readout, state = net(x, state)
        np.testing.assert_array_equal(readout.detach().numpy(), expected[t])
        assert torch.equal(readout, again)


def test_the_example(norse, tmp_path, monkeypatch):
    model, shape = networks.residual()
    x = networks.dyadic_images(6, shape)
    bridge.convert(model, x).save(tmp_path / "net.nir")
    monkeypatch.chdir(tmp_path)
    names = {"Norse": type(norse), "nir": nir, "images": x}
    example = doctest.DocTestParser().get_doctest(type(norse).__doc__, names, "Norse", None, 0)
    result = doctest.DocTestRunner().run(example, clear_globs=False)
    assert (result.failed, result.attempted) == (0, 6)
    spikes, readout = oracle.spikes_of(model, x.numpy(), 9)
    got = example.globs
    np.testing.assert_array_equal(got["prediction"], readout[:8].mean(axis=0).argmax(axis=1))
    np.testing.assert_array_equal(got["readout"].detach(), readout[8])
    np.testing.assert_allclose([*got["rate"].values()], [fired[8].mean() for fired in spikes], rtol=1e-6)


def test_gradients_reach_the_weights(norse, case):
    _, network, x = case
    net = norse.export(network.to_nir())
    state, total = None, 0
    for _ in range(3):
        readout, state = net(x, state)
        total = total + readout.sum()
    total.backward()
    gradients = [parameter.grad for parameter in net.parameters()]
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)


def test_copies_are_independent(norse, case):
    model, network, x = case
    net = norse.export(network.to_nir())
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    _, expected = oracle.spikes_of(model, x.numpy(), STEPS)
    np.testing.assert_array_equal(norse.run(twin, x.numpy(), STEPS).readout, expected)


def test_a_layer_called_state(norse):
    graph = whole_networks.mlp(0)
    rename = {"a1": "state", "fc2": "x"}
    layers = (
        replace(
            layer,
            name=rename.get(layer.name, layer.name),
            inputs=tuple(rename.get(name, name) for name in layer.inputs),
        )
        for layer in graph
    )
    net = norse.export(to_nir(LayerGraph(tuple(layers))))
    import norse.torch as snn

    pixels = whole_networks.images(4, (6,), 0)
    readout, state = snn.Lift(net)(torch.from_numpy(pixels).expand(6, 4, 6))
    np.testing.assert_array_equal(readout.detach(), whole_numbers.spikes_of(to_nir(graph), pixels, 6)[1])
    assert set(state) == {"state", "a2"}


def test_refused_layers(norse):
    linear = Linear(name="code", inputs=("x",), weight=np.eye(2, dtype=np.float32), bias=np.zeros(2, np.float32))
    fire = IntegrateFire(name="fire", inputs=("code",), level=np.full(2, 0.5, np.float32))
    with pytest.raises(GraphError, match=r"'code'.*rename"):
        norse.export(to_nir(LayerGraph((Input(name="x", shape=(2,)), linear, fire))))
    hard = nir.NIRGraph.from_list(nir.IF(r=np.ones(2), v_threshold=np.ones(2)))
    with pytest.raises(GraphError, match=r"'if'.*soft reset"):
        norse.export(hard)


@pytest.mark.parametrize(
    ("x", "steps", "says"),
    [
        (np.zeros((2, 5), np.float32), 4, "expected images"),
        (np.full((2, 6), np.nan, np.float32), 4, "12 values that are NaN"),
        (np.zeros((2, 6), np.float32), 0, "at least one time step"),
    ],
)
def test_bad_input_to_run(norse, x, steps, says):
    model, shape = networks.mlp()
    native = norse.export(bridge.convert(model, torch.zeros(1, *shape)).to_nir())
    with pytest.raises(InputError, match=says):
        norse.run(native, x, steps)
