"""A staged network's spike counts are its ANN's activations, in every layer; trains, windows and files."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import networks, nir_primitives
from torch import nn

import bridge
from bridge import QCFS, GraphError, InputError
from bridge.graph import WindowFire
from bridge.nir_graph import from_nir, read


def hooked(model, x):
    """The model's own activations by call: how many levels of λ each is, and the output."""
    seen = []

    def keep(module, inputs, output):
        threshold = module.threshold
        threshold = threshold.reshape(1, -1, *[1] * (output.dim() - 2)) if threshold.dim() else threshold
        seen.append((output * module.levels / threshold).detach().numpy())

    hooks = [m.register_forward_hook(keep) for m in model.modules() if isinstance(m, QCFS)]
    with torch.no_grad():
        out = model.eval()(x)
    for hook in hooks:
        hook.remove()
    return seen, out.numpy()


def thermometer(counts, opens, steps, total):
    """Ones from step `opens` on, as many as `counts`, and zeros."""
    t = np.arange(total).reshape(-1, *[1] * counts.ndim)
    return (t >= opens) & (t - opens < np.rint(counts)) & (t < opens + steps)


@pytest.mark.parametrize("name", networks.ALL)
def test_every_train_is_the_activation_in_its_window(name):
    model, shape = networks.ALL[name]()
    x = networks.dyadic_images(6, shape)
    network = bridge.convert(model, x, schedule="staged")
    expected, output = hooked(model, x)
    record = network.run(x)
    assert record.steps == network.latency
    for layer, counts in zip(network.layers, expected, strict=True):
        node = network.graph[layer]
        assert isinstance(node, WindowFire)
        trains = thermometer(counts, node.opens, node.steps, record.steps)
        np.testing.assert_array_equal(record.spikes(layer), trains)
    np.testing.assert_allclose(record.outputs()[-1], output, atol=1e-6)
    longer = network.run(x, record.steps + 5)
    np.testing.assert_array_equal(longer.outputs()[-1], record.outputs()[-1])
    fast = network.simulate(x, record=True)
    assert fast.record is not None
    for layer in network.layers:
        np.testing.assert_array_equal(fast.record.packed[layer], record.packed[layer])
        neurons = tuple(range(2, record.spikes(layer).ndim))
        np.testing.assert_array_equal(fast.spikes[layer], record.spikes(layer).sum(neurons))
    np.testing.assert_allclose(fast.outputs, record.outputs(), atol=1e-6)


@pytest.mark.parametrize("name", networks.ALL)
def test_the_file_is_run_alike_by_who_knows_only_nirs_primitives(name, tmp_path):
    model, shape = networks.ALL[name]()
    x = networks.dyadic_images(3, shape)
    network = bridge.convert(model, x, schedule="staged")
    network.save(tmp_path / "net.nir")
    graph = read(tmp_path / "net.nir")
    record = network.run(x)
    orders: list[Callable[[list[str]], Sequence[str]]] = [
        lambda names: names,
        sorted,
        lambda names: sorted(names, reverse=True),
    ]
    orders.append(lambda names: random.Random(len(names)).sample(list(names), len(names)))
    for order in orders:
        values = nir_primitives.run(graph, x, record.steps, order)
        for layer in network.layers:
            np.testing.assert_array_equal(values[layer] == 1, record.spikes(layer))
        np.testing.assert_allclose(values["output"], record.readout, atol=1e-6)
    again = bridge.load(tmp_path / "net.nir")
    assert isinstance(again, bridge.SpikingNetwork)
    assert again.latency == network.latency
    for layer in network.layers:
        np.testing.assert_array_equal(again.run(x).packed[layer], record.packed[layer])


class Drawn(nn.Module):
    """Branches of unequal depth that meet in sums and concatenations; the image again, deep inside."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        rng = random.Random(seed)
        self.kinds = [rng.choice(["layer", "residual", "cat", "image", "wide"]) for _ in range(rng.randint(1, 4))]
        self.layers = nn.ModuleList()
        for kind in self.kinds:
            levels = rng.choice([1, 2, 3, 4, 7])
            threshold = torch.rand(3) + 0.3 if rng.random() < 0.5 else rng.random() + 0.3
            convs = {"layer": 1, "residual": 1, "cat": 2, "image": 1, "wide": 2}[kind]
            self.layers.append(
                nn.ModuleList(
                    [
                        *(nn.Conv2d(3, 3, 3, padding=1) for _ in range(convs)),
                        *(QCFS(levels + at, threshold) for at in range(2)),
                    ]
                )
            )
        self.mix, self.last = nn.Conv2d(6, 3, 1), nn.Linear(3, 4)

    def forward(self, x):
        image = x
        for kind, parts in zip(self.kinds, self.layers, strict=True):
            *convs, act, other = list(parts.children())
            y = act(convs[0](x))
            if kind == "residual":
                y = other(y + x)
            elif kind == "cat":
                y = other(self.mix(torch.cat([y, convs[1](x)], 1)))
            elif kind == "image":
                y = other(y + image)
            elif kind == "wide":
                y = act(convs[1](y)) + y
            x = y
        return self.last(x.mean((2, 3)))


def nearest_edge(model, x):
    nearest = [1.0]

    def look(module, inputs, output):
        threshold = module.threshold
        threshold = threshold.reshape(1, -1, *[1] * (output.dim() - 2)) if threshold.dim() else threshold
        level = inputs[0].double() * module.levels / threshold.double() + 0.5
        nearest.append(float((level - level.round()).abs().min()))

    hooks = [m.register_forward_hook(look) for m in model.modules() if isinstance(m, QCFS)]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return min(nearest)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 10**6), st.sampled_from([None, 1, 5]))
def test_random_networks(seed, steps):
    torch.manual_seed(seed)
    model = Drawn(seed).eval()
    x = torch.rand(2, 3, 4, 4)
    network = bridge.convert(model, x, schedule="staged", steps=steps)
    if steps is not None:
        for module in model.modules():
            if isinstance(module, QCFS):
                module.levels = steps
    if nearest_edge(model, x) < 1e-5:
        return  # may fall either way
    expected, output = hooked(model, x)
    record = network.run(x)
    for layer, counts in zip(network.layers, expected, strict=True):
        np.testing.assert_array_equal(record.spikes(layer).sum(0), np.rint(counts))
    np.testing.assert_allclose(record.outputs()[-1], output, rtol=1e-4, atol=1e-5)


def small():
    return nn.Sequential(nn.Linear(4, 5), QCFS(4), nn.Linear(5, 6), QCFS(3), nn.Linear(6, 2)).eval()


def test_latency_steps_and_what_has_no_meaning():
    x = torch.rand(3, 4)
    network = bridge.convert(small(), schedule="staged")
    assert network.latency == 6
    assert "staged, 6 steps" in repr(network)
    assert bridge.convert(small(), schedule="staged", steps=2).latency == 3
    assert bridge.convert(small()).latency is None
    for call in (network.run, network.simulate):
        with pytest.raises(InputError, match="complete after 6 steps, got 5"):
            call(x, 5)
    with pytest.raises(InputError, match="steps"):
        bridge.convert(small()).run(x)
    refused = {
        "calibrate": lambda: network.calibrate(x, 4),
        "time_biased": lambda: network.time_biased(x, 4),
        "until": lambda: network.simulate(x, until="stable"),
        "neuron": lambda: network.to_nir("if"),
    }
    for name, refused_call in refused.items():
        with pytest.raises(InputError, match=f"{name}.*this network is staged"):
            refused_call()


def test_a_record_of_sums_is_kept(tmp_path):
    x = torch.rand(3, 4)
    record = bridge.convert(small(), schedule="staged").run(x)
    record.save(tmp_path / "r.npz")
    again = type(record).load(tmp_path / "r.npz")
    np.testing.assert_array_equal(again.outputs(), record.outputs())
    assert again.summed
    np.testing.assert_allclose(record.outputs(), record.readout.cumsum(0), atol=1e-6)


def test_a_layer_that_is_fed_after_its_window_has_opened_is_refused(tmp_path):
    graph = bridge.convert(small(), schedule="staged").to_nir()
    graph.nodes["layer_3_open"].threshold = graph.nodes["layer_3_open"].threshold - 1
    graph.nodes["layer_3_shut"].threshold = graph.nodes["layer_3_shut"].threshold - 1
    with pytest.raises(GraphError, match=r"layer_3.*complete when its window opens, at step 3, got input until step 4"):
        from_nir(graph)


def test_a_plain_networks_file_has_none_of_it(tmp_path):
    kinds = {type(node).__name__ for node in bridge.convert(small()).to_nir().nodes.values()}
    assert kinds == {"Input", "Affine", "I", "Threshold", "Scale", "Output"}
