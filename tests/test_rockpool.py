"""Rockpool: exact on plain and residual networks, and usable as Rockpool's users use their own modules."""

from __future__ import annotations

import copy
import doctest

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
from bridge.graph import Affine, Conv2d, Input, IntegrateFire, LayerGraph, Linear
from bridge.nir_graph import to_nir

STEPS = 5


@pytest.fixture
def rockpool():
    return require("rockpool")


@pytest.fixture(params=networks.ALL)
def case(request):
    """A model, its spiking network, and three images."""
    model, shape = networks.ALL[request.param]()
    x = networks.dyadic_images(3, shape)
    return model, bridge.convert(model, x), x


def over_time(x: torch.Tensor, steps: int = STEPS) -> torch.Tensor:
    """Images ``[B, ...]`` held constant, as Rockpool wants them: ``[B, T, N]``."""
    return x.flatten(1).unsqueeze(1).expand(-1, steps, -1)


def flat(readout: np.ndarray) -> np.ndarray:
    """A readout ``[T, B, ...]`` as Rockpool gives it: ``[B, T, N]``."""
    return readout.reshape(*readout.shape[:2], -1).swapaxes(0, 1)


def test_exact_and_the_same_again(rockpool, case):
    model, network, x = case
    native = rockpool.export(network.to_nir())
    spikes, readout = oracle.spikes_of(model, x.numpy(), STEPS)
    for images in (3, 3, 1):
        record = rockpool.run(native, x[:images].numpy(), STEPS)
        assert set(record.layers) == set(network.layers)
        for layer, fired in zip(network.layers, spikes, strict=True):
            np.testing.assert_array_equal(record.spikes(layer), fired[:, :images], err_msg=layer)
        np.testing.assert_array_equal(record.readout, readout[:, :images])
        assert not record.membranes


@pytest.mark.parametrize("name", whole_networks.NETWORKS)
@pytest.mark.parametrize("seed", [0, 1])
def test_whole_numbers(rockpool, name, seed):
    graph = whole_networks.NETWORKS[name](seed)
    pixels = whole_networks.images(4, graph.input.shape, seed)
    record = rockpool.run(rockpool.export(to_nir(graph)), pixels, 9)
    spikes, readout = whole_numbers.spikes_of(to_nir(graph), pixels, 9)
    assert set(record.layers) == set(spikes)
    for layer, fired in spikes.items():
        np.testing.assert_array_equal(record.spikes(layer), fired, err_msg=layer)
    np.testing.assert_array_equal(record.readout, readout)


def test_a_level_and_a_threshold_for_each_channel(rockpool):
    """Drives of several thresholds are among them: one spike a step all the same."""
    level, threshold = np.array([0.25, 0.5, 0.875], np.float32), np.array([0.75, 1, 2], np.float32)
    weight = np.diag([1, 8, -3]).astype(np.float32)[:, :, None, None]
    bias = np.array([0.125, 0, 0.5], np.float32)
    graph = LayerGraph(
        (
            Input(name="input", shape=(3, 2, 4)),
            Conv2d(name="conv", inputs=("input",), weight=weight, bias=bias),
            IntegrateFire(name="fire", inputs=("conv",), level=level, threshold=threshold),
        )
    )
    x = networks.dyadic_images(4, (3, 2, 4)).numpy()
    record = rockpool.run(rockpool.export(to_nir(graph)), x, 7, membranes=True)
    u = np.zeros(x.shape)
    for t in range(7):
        u += x * np.array([1, 8, -3])[:, None, None] + bias[:, None, None]
        np.testing.assert_array_equal(record.membranes["fire"][t], u)
        fired = u >= level[:, None, None]
        np.testing.assert_array_equal(record.spikes("fire")[t], fired)
        np.testing.assert_array_equal(record.readout[t], fired)
        u -= threshold[:, None, None] * fired
    assert u.max() > 4 * threshold.max()


def test_fires_at_the_level_and_not_just_below(rockpool):
    level = np.array([0.5, 0.75, 0.9, 1e-3, 37], np.float32)
    layers = (Input(name="input", shape=(5,)), IntegrateFire(name="fire", inputs=("input",), level=level))
    native = rockpool.export(to_nir(LayerGraph(layers)))
    x = np.stack([np.nextafter(level, np.float32(-1)), level, np.nextafter(level, np.float32(99))])
    expected = np.repeat([[0], [1], [1]], 5, axis=1)
    np.testing.assert_array_equal(rockpool.run(native, x, 1).spikes("fire")[0], expected)


def test_float_networks_agree_but_for_ties(rockpool):
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), bridge.QCFS(4), nn.AvgPool2d(2), nn.Conv2d(8, 8, 3), bridge.QCFS(8)),
        *(nn.Flatten(), nn.Linear(8 * 9, 10)),
    )
    x = torch.randn(40, 3, 10, 10)
    network = bridge.convert(model, x)
    for one in (network, network.calibrate(x, 4)):
        agreement = one.validate(x, 4, [rockpool])
        assert agreement.agreed
        assert agreement.backends["rockpool"].total_differing < 10  # of 170 000


def test_by_hand_and_from_a_fresh_state(rockpool, case):
    model, network, x = case
    net = rockpool.export(network.to_nir())
    _, readout = oracle.spikes_of(model, x.numpy(), STEPS)
    for images in (x, x[:1]):  # a new batch size, too
        net.reset_state()
        output, state, record = net(over_time(images), record=True)
        np.testing.assert_array_equal(output.detach(), flat(readout)[: len(images)])
        assert set(record) == set(network.layers)
        assert any(bool(state[layer]["vmem"].any()) for layer in network.layers)


def test_in_a_sequence_of_rockpools_own(rockpool):
    from rockpool.nn.combinators import Sequential
    from rockpool.nn.modules import LinearTorch

    model, shape = networks.residual()
    x = networks.dyadic_images(3, shape)
    net = Sequential(rockpool.export(bridge.convert(model, x).to_nir()), LinearTorch((3, 2), weight=torch.ones(3, 2)))
    output, _, _ = net(over_time(x))
    expected = flat(oracle.spikes_of(model, x.numpy(), STEPS)[1]).sum(axis=2, keepdims=True)
    np.testing.assert_array_equal(output.detach(), np.repeat(expected, 2, axis=2))


def test_the_example(rockpool, tmp_path, monkeypatch):
    model, shape = networks.residual()
    x = networks.dyadic_images(6, shape)
    bridge.convert(model, x).save(tmp_path / "net.nir")
    monkeypatch.chdir(tmp_path)
    names = {"Rockpool": type(rockpool), "nir": nir, "images": x}
    example = doctest.DocTestParser().get_doctest(type(rockpool).__doc__, names, "Rockpool", None, 0)
    result = doctest.DocTestRunner().run(example, clear_globs=False)
    assert (result.failed, result.attempted) == (0, 7)
    spikes, readout = oracle.spikes_of(model, x.numpy(), 8)
    got = example.globs
    np.testing.assert_array_equal(got["prediction"], readout.mean(axis=0).argmax(axis=1))
    np.testing.assert_allclose([*got["rate"].values()], [fired.mean() for fired in spikes], rtol=1e-6)
    assert not any(bool(layer["vmem"].any()) for layer in got["net"].state().values() if layer)
    affine = [layer for layer in bridge.load("net.nir").graph if isinstance(layer, Affine)]
    assert len(got["weights_and_biases"]) == 2 * len(affine)


def test_gradients_reach_the_weights(rockpool, case):
    _, network, x = case
    net = rockpool.export(network.to_nir())
    rockpool.run(net, x.numpy(), 2)  # a run must leave no state that stands in the way
    output, _, _ = net(over_time(x))
    output.sum().backward()
    gradients = [parameter.grad for parameter in net.parameters().astorch()]
    assert gradients
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)


def test_copies_are_independent(rockpool, case):
    model, network, x = case
    net = rockpool.export(network.to_nir())
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in net.parameters().astorch():
            parameter.zero_()
        for name in network.layers:
            net.get_submodule(name).level.fill_(100)
    _, expected = oracle.spikes_of(model, x.numpy(), STEPS)
    np.testing.assert_array_equal(rockpool.run(twin, x.numpy(), STEPS).readout, expected)


def test_refused_layers(rockpool):
    linear = Linear(name="state", inputs=("x",), weight=np.eye(2, dtype=np.float32), bias=np.zeros(2, np.float32))
    fire = IntegrateFire(name="fire", inputs=("state",), level=np.full(2, 0.5, np.float32))
    with pytest.raises(GraphError, match=r"'state'.*rename"):
        rockpool.export(to_nir(LayerGraph((Input(name="x", shape=(2,)), linear, fire))))
    fire = IntegrateFire(name="fire", inputs=("x",), level=np.array([0.5, -0.25], np.float32))
    with pytest.raises(GraphError, match=r"'fire'.*levels > 0.*got -0.25"):
        rockpool.export(to_nir(LayerGraph((Input(name="x", shape=(2,)), fire))))
    hard = nir.NIRGraph.from_list(nir.IF(r=np.ones(2), v_threshold=np.ones(2)))
    with pytest.raises(GraphError, match=r"'if'.*soft reset"):
        rockpool.export(hard)


@pytest.mark.parametrize(
    ("x", "steps", "says"),
    [
        (np.zeros((2, 5), np.float32), 4, "expected images"),
        (np.full((2, 6), np.nan, np.float32), 4, "12 values that are NaN"),
        (np.zeros((2, 6), np.float32), 0, "at least one time step"),
    ],
)
def test_bad_input_to_run(rockpool, x, steps, says):
    model, shape = networks.mlp()
    native = rockpool.export(bridge.convert(model, torch.zeros(1, *shape)).to_nir())
    with pytest.raises(InputError, match=says):
        rockpool.run(native, x, steps)
