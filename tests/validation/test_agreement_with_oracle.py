"""The promise itself: reference, file and every backend spike exactly as the independent oracle does."""

from __future__ import annotations

from typing import Any

import nir
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import networks, oracle
from support.backends import BACKENDS, require
from torch import nn

import bridge
from bridge.records import SpikeRecord


def assert_equal(record: SpikeRecord, layers: tuple[str, ...], spikes: list[np.ndarray], readout: np.ndarray) -> None:
    """`layers` names the network's spiking layers in the order of `spikes`; records of a file have another one."""
    assert set(record.layers) == set(layers)
    for layer, expected in zip(layers, spikes, strict=True):
        wrong = np.argwhere(record.spikes(layer) != expected)
        assert len(wrong) == 0, f"{record.backend}, {layer}: {len(wrong)} wrong, first (t, image, neuron) {wrong[0]}"
    np.testing.assert_array_equal(record.readout, readout)


@pytest.mark.parametrize("name", networks.ALL)
@pytest.mark.parametrize("steps", [1, 8])
def test_reference_and_file(name, steps, tmp_path):
    model, shape = networks.ALL[name]()
    x = networks.dyadic_images(5, shape)
    spikes, readout = oracle.spikes_of_network(name, 5, steps)
    if steps == 8:
        assert all(0.05 < layer.mean() < 0.95 for layer in spikes), "a silent or saturated layer would test little"
    network = bridge.convert(model, x)
    assert_equal(network.run(x, steps), network.layers, spikes, readout)
    nir.write(tmp_path / "net.nir", network.to_nir())
    assert_equal(bridge.load(tmp_path / "net.nir").run(x, steps), network.layers, spikes, readout)


CASES = [
    pytest.param(
        *(backend, name, steps, images),
        marks=[
            *([pytest.mark.lava] if backend == "lava" else []),
            *([pytest.mark.long] if steps == 1 and name != "residual" else []),
        ],
    )
    for backend in BACKENDS
    for name in networks.ALL
    for steps, images in ((1, 1), (6, 5))
]


@pytest.mark.parametrize(("backend", "name", "steps", "images"), CASES)
def test_backend(backend, name, steps, images):
    """Every network, and in one of them a single step of a single image, which for the others is `long`."""
    backend = require(backend)
    model, shape = networks.ALL[name]()
    x = networks.dyadic_images(images, shape)
    network = bridge.convert(model, x)
    native = backend.export(network.to_nir())
    expected = oracle.spikes_of_network(name, images, steps)
    assert_equal(backend.run(native, x.numpy(), steps), network.layers, *expected)
    if backend.name == "lava" and name != "residual":
        return  # every run of Lava is made of new Processes: once more is enough in one network
    # The same object again, on other images and another batch size: no state may be left over.
    again = networks.dyadic_images(images + 2, shape, seed=9)
    record = backend.run(native, again.numpy(), steps, membranes=True)
    assert_equal(record, network.layers, *oracle.spikes_of_network(name, images + 2, steps, seed=9))
    for layer in record.layers:
        np.testing.assert_array_equal(record.membranes[layer] >= 0.5, record.spikes(layer))


@st.composite
def topologies(draw):
    """A random network with a random input shape: chains, residual sums, concatenations, odd sizes."""
    channels = draw(st.integers(1, 4))
    shape = (channels, draw(st.integers(5, 9)), draw(st.integers(5, 9)))

    def activation(count: int) -> nn.Module:
        return networks.qcfs(draw(st.integers(1, 16)), count if draw(st.booleans()) else 0)

    def conv(inputs: int, outputs: int | None = None, **fixed: Any) -> nn.Conv2d:
        groups = draw(st.sampled_from([g for g in (1, 2, 3, 4) if inputs % g == 0 and (outputs or g) % g == 0]))
        outputs = outputs or groups * draw(st.integers(1, 3))
        if fixed:
            return nn.Conv2d(inputs, outputs, **fixed, groups=groups, bias=draw(st.booleans()))
        kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
        stride, padding, dilation = draw(st.integers(1, 2)), draw(st.integers(0, 1)), draw(st.integers(1, 2))
        return nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, draw(st.booleans()))

    layers: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["conv", "pool", "norm", "residual", "concat"]))
        if kind == "conv":
            layers.append(conv(channels))
            channels = layers[-1].out_channels
        elif kind == "pool":
            layers.append(nn.AvgPool2d(2, draw(st.integers(1, 2)), draw(st.integers(0, 1))))
        elif kind == "norm":
            layers.append(nn.BatchNorm2d(channels))
        elif kind == "residual":
            same = {"kernel_size": 3, "padding": 1}
            body = nn.Sequential(
                conv(channels, channels, **same), activation(channels), conv(channels, channels, **same)
            )
            skip = draw(st.sampled_from(["identity", "activation", "projection"]))
            parts = {"identity": [], "activation": [activation(channels)]}
            shortcut = nn.Sequential(*parts.get(skip, [conv(channels, channels, kernel_size=1)]))
            layers.append(networks.Residual(body, shortcut))
        else:
            grown = nn.Sequential(conv(channels, 3, kernel_size=3, padding=1), activation(3))
            layers.append(networks.Branches(nn.Sequential(), grown))
            channels += 3
        if draw(st.booleans()):
            layers.append(activation(channels))
    try:
        size = nn.Sequential(*layers).eval()(torch.zeros(1, *shape)).flatten(1).shape[1]
    except RuntimeError:  # the map has shrunk to nothing
        layers, size = [], int(np.prod(shape))
    layers += [nn.Flatten(), nn.Linear(size, 6), networks.qcfs(draw(st.integers(1, 16))), nn.Linear(6, 3)]
    return networks.make_dyadic(nn.Sequential(*layers), draw(st.integers(0, 999))), shape


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(network=topologies(), steps=st.integers(1, 9), images=st.integers(1, 4))
def test_random_networks(network, steps, images, tmp_path_factory):
    model, shape = network
    x = networks.dyadic_images(images, shape)
    expected = oracle.spikes_of(model, x.numpy(), steps)
    snn = bridge.convert(model, x)
    assert_equal(snn.run(x, steps), snn.layers, *expected)
    path = tmp_path_factory.mktemp("nir") / "net.nir"
    snn.save(path)
    assert_equal(bridge.load(path).run(x, steps), snn.layers, *expected)
    for name in ("spikingjelly", "snntorch"):
        backend = require(name)
        assert_equal(backend.run(backend.export(snn.to_nir()), x.numpy(), steps), snn.layers, *expected)
