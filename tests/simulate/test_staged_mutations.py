"""Staged networks with one thing wrong: each is caught, and blamed on the layer that is wrong."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import nir
import numpy as np
import pytest
import torch
from support import nir_primitives, staged_oracle
from support.networks import Residual, dyadic_images, make_dyadic, qcfs
from torch import Tensor, nn

import bridge
from bridge import GraphError, SpikingNetwork
from bridge.graph import Add, AtLeast, BiasOnce, Impulse, Layer, WindowFire
from bridge.nir_graph import from_nir

SEEDS = (8, 34)
BEYOND = 3
"""Steps that are looked at behind the latency."""


@cache
def drawn(seed: int) -> tuple[nn.Sequential, Tensor, SpikingNetwork, staged_oracle.Staged]:
    """A random network of `LAYERS`, images, what it converts to, and what is expected of it."""
    rng = random.Random(seed)

    def act(channels: int) -> nn.Module:
        return qcfs(rng.choice([2, 4]), channels)

    body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), act(4), nn.Conv2d(4, 4, 1))
    model = nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), act(4)),
        *(Residual(body, nn.Sequential()), act(4)),
        *(nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.Conv2d(4, 5, 1), act(5)),
        *(nn.Flatten(), nn.Linear(5 * 9, 6), act(6), nn.Linear(6, 3)),
    )
    make_dyadic(model, seed).eval()
    norm = model[4]
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, -0.75, 1.0, -0.5]))  # a maximum, and a minimum where it is negative
    x = dyadic_images(8, (2, 6, 6), seed)
    return model, x, bridge.convert(model, x, schedule="staged"), staged_oracle.of(model, x.numpy())


LAYERS = ("first", "inner", "joined", "pooled", "last")


class Patient:
    """The file of a network, to be spoilt; its spiking layers by the names in `LAYERS`."""

    def __init__(self, network: SpikingNetwork) -> None:
        self.network = network
        self.file = network.to_nir()
        self.nodes: dict[str, Any] = self.file.nodes
        self.names = dict(zip(LAYERS, network.layers, strict=True))

    def window(self, layer: str) -> WindowFire:
        found = self.network.graph[self.names[layer]]
        assert isinstance(found, WindowFire)
        return found

    def part(self, layer: str, key: str) -> Any:
        return self.nodes[f"{self.names[layer]}_{key}" if key else self.names[layer]]

    def only(self, kind: type[Layer]) -> str:
        (name,) = [layer.name for layer in self.network.graph if isinstance(layer, kind)]
        return name

    def affine(self, layer: str) -> Any:
        """The nearest layer with weights before the spiking `layer`."""
        name = self.names[layer]
        while not hasattr(self.nodes.get(name), "weight") or name == self.names[layer]:
            name = self.network.graph[name].inputs[0]
        return self.nodes[name]

    def shift(self, layer: str, key: str, by: float) -> None:
        node = self.part(layer, key)
        node.threshold = (node.threshold + np.float32(by)).astype(np.float32)

    def cut(self, source: str, target: str) -> None:
        self.file.edges.remove((source, target))

    def join(self, source: str, target: str) -> None:
        self.file.edges.append((source, target))

    def rewire(self, source: str, instead: str, target: str) -> None:
        self.cut(source, target)
        self.join(instead, target)

    def branch(self) -> tuple[str, str]:
        """The edge on which the first layer's spikes leave for the sum."""
        first = self.names["first"]
        (edge,) = [e for e in self.file.edges if e[0] == first and not hasattr(self.nodes[e[1]], "weight")]
        return edge


@dataclass(frozen=True)
class Fault:
    """``harm`` makes the layer ``wrong`` fire wrongly first ("" is the readout).

    ``refused``: what of the reader's message names the place, by layer; else it is read, and ``equals_ann`` blames that
    layer if ``counts``. Where it does not, all counts are the ANN's, but for ties.
    """

    wrong: str
    harm: Callable[[Patient], object]
    refused: str = ""
    counts: bool = True


def late(layer: str) -> Callable[[Patient], None]:
    def harm(p: Patient) -> None:
        p.shift(layer, "open", 1)
        p.shift(layer, "shut", 1)

    return harm


def early(p: Patient) -> None:
    p.shift("inner", "open", -1)
    p.shift("inner", "shut", -1)


def level_above(p: Patient) -> None:
    node = p.part("inner", "raw")
    node.threshold = np.nextafter(node.threshold, np.float32(np.inf))


def bias_kept(p: Patient) -> None:
    node = p.affine("inner")
    node.bias = node.bias - p.window("inner").level.reshape(len(node.bias), -1)[:, 0] - 0.5


def bias_forgotten(p: Patient) -> None:
    node = p.part("inner", "raw")
    node.threshold = np.nextafter(np.full_like(node.threshold, -0.5), np.float32(-np.inf))


def bias_always(p: Patient) -> None:
    name = p.only(BiasOnce)
    (readout,) = p.network.graph[name].inputs
    p.nodes[readout].bias = p.nodes[readout].bias + p.nodes[f"{name}_bias"].scale
    for key in ("one", "clock", "neg", "first", "bias"):
        p.nodes.pop(f"{name}_{key}")
    p.file.edges[:] = [e for e in p.file.edges if e[0] in p.nodes and e[1] in p.nodes]


def bias_at_every_step(p: Patient) -> None:
    node = p.nodes[f"{p.only(BiasOnce)}_first"]
    node.threshold = np.full_like(node.threshold, -1e9)


def image_held(p: Patient) -> None:
    once = p.only(Impulse)
    for key in ("shown", "minus"):
        p.nodes.pop(f"{once}_{key}")
    p.file.edges[:] = [e for e in p.file.edges if e[0] in p.nodes and e[1] in p.nodes]


def image_taken_back(p: Patient) -> None:
    p.nodes[f"{p.only(Impulse)}_minus"].scale *= 2


def branch_scaled(factor: float) -> Callable[[Patient], None]:
    """The first layer's part in the sum, times `factor`: its spikes go through a node of their own."""

    def harm(p: Patient) -> None:
        source, target = p.branch()
        scale = np.full(p.network.graph.shapes[source], factor, np.float32)
        p.nodes["between"] = nir.Scale(scale=scale)
        p.rewire(source, "between", target)
        p.join(source, "between")

    return harm


def times(layer: str, factor: float) -> Callable[[Patient], None]:
    def harm(p: Patient) -> None:
        p.affine(layer).weight = p.affine(layer).weight * np.float32(factor)

    return harm


def as_if_whole(p: Patient) -> None:
    """Spikes of the inner layer are worth λ, not λ / T, to who reads them."""
    node = p.nodes[p.network.graph[p.only(Add)].inputs[0]]
    node.weight = node.weight * np.float32(p.window("inner").steps)


def pool_level(minimum: bool) -> Callable[[Patient], None]:
    def harm(p: Patient) -> None:
        node = p.nodes[p.only(AtLeast)]
        node.threshold = np.full_like(node.threshold, 3.4 if minimum else 0.4)

    return harm


def pool_of(*layers: str) -> Callable[[Patient], None]:
    """The pool is over the trains of these layers together."""

    def harm(p: Patient) -> None:
        (summed,) = p.network.graph[p.only(AtLeast)].inputs
        p.cut(p.names["joined"], summed)
        for layer in layers:
            p.join(p.names[layer], summed)

    return harm


def branch_of(layer: str) -> Callable[[Patient], None]:
    def harm(p: Patient) -> None:
        source, target = p.branch()
        p.rewire(source, p.names[layer], target)

    return harm


def forgotten(p: Patient) -> None:
    source, target = p.branch()
    if target == p.only(Add):
        p.cut(source, target)
    else:
        p.cut(source, target)
        p.cut(target, p.only(Add))
        p.nodes.pop(target)


def spread(layer: str, key: str, attribute: str, factor: float) -> Callable[[Patient], None]:
    """One part of the neuron, times `factor`."""

    def harm(p: Patient) -> None:
        node = p.part(layer, key)
        setattr(node, attribute, getattr(node, attribute) * np.float32(factor))

    return harm


FAULTS = {
    "opens a step late": Fault("inner", lambda p: p.shift("inner", "open", 1)),
    "opens a step early": Fault("inner", lambda p: p.shift("inner", "open", -1), refused="inner"),
    "shuts a step late": Fault("last", lambda p: p.shift("last", "shut", 1)),
    "shuts a step early": Fault("inner", lambda p: p.shift("inner", "shut", -1)),
    "shuts when its readers are open": Fault("inner", lambda p: p.shift("inner", "shut", 1), refused="joined"),
    "never shuts": Fault("inner", lambda p: p.cut(f"{p.names['inner']}_not", p.names["inner"]), refused="inner"),
    "fires as soon as the level is reached": Fault(
        "inner", lambda p: p.cut(f"{p.names['inner']}_open", p.names["inner"]), refused="inner"
    ),
    "a window early": Fault("inner", early, refused="inner"),
    "a window late": Fault("inner", late("inner"), refused="joined"),
    "the last window late": Fault("last", late("last"), counts=False),
    "fires above its level only": Fault("inner", level_above, counts=False),
    "level too high": Fault("joined", lambda p: p.shift("joined", "raw", 0.3)),
    "level too low": Fault("last", lambda p: p.shift("last", "raw", -0.3)),
    "no fall": Fault(
        "inner",
        lambda p: p.cut(f"{p.names['inner']}_fall", f"{p.names['inner']}_membrane"),
        refused="inner",
    ),
    "falls by half": Fault("inner", spread("inner", "fall", "scale", 0.5), refused="inner"),
    "counts steps in twos": Fault("inner", spread("inner", "clock", "r", 2.0), refused="inner"),
    "clock stands still without input": Fault("inner", spread("inner", "one", "threshold", 0.0), refused="inner"),
    "fires in its window whatever it got": Fault("inner", spread("inner", "", "threshold", 0.3), refused="inner"),
    "bias in every step": Fault("inner", bias_kept),
    "bias forgotten": Fault("inner", bias_forgotten),
    "readout's bias in every step": Fault("", bias_always),
    "readout's bias never ends": Fault("", bias_at_every_step, refused="clock"),
    "image held on": Fault("first", image_held),
    "image taken back": Fault("first", image_taken_back, refused="once"),
    "branch forgotten": Fault("joined", forgotten),
    "branch doubled": Fault("joined", branch_scaled(2.0)),
    "branch against its sign": Fault("joined", branch_scaled(-1.0)),
    "edge twice": Fault("joined", lambda p: p.join(*p.branch()), refused="twice"),
    "sum of the wrong branch": Fault("joined", branch_of("inner")),
    "spikes worth λ": Fault("joined", as_if_whole),
    "charge doubled": Fault("first", times("first", 2.0)),
    "charge halved": Fault("pooled", times("pooled", 0.5)),
    "minimum for a maximum": Fault("pooled", pool_level(minimum=True)),
    "maximum for a minimum": Fault("pooled", pool_level(minimum=False)),
    "pool of another layer": Fault("pooled", pool_of("inner"), refused="joined"),
    "pool of two layers": Fault("pooled", pool_of("inner", "joined")),
}


@pytest.mark.parametrize("seed", SEEDS)
def test_the_networks_are_right_and_have_what_hides_faults(seed):
    """Saturated neurons, ties and the silent, in every layer."""
    _, x, network, expected = drawn(seed)
    values = nir_primitives.run(network.to_nir(), x, expected.latency + BEYOND)
    for layer, spikes, membrane in zip(network.layers, expected.spikes, expected.membranes, strict=True):
        np.testing.assert_array_equal(values[layer] == 1, spikes[: expected.latency + BEYOND])
        node = network.graph[layer]
        assert isinstance(node, WindowFire)
        counts = spikes.sum(0)
        assert (counts == node.steps).any()
        assert (counts == 0).any()
        above = membrane[node.opens] + 1 - node.level
        assert ((above == np.rint(above)) & (above >= 1) & (above <= node.steps)).any()
    np.testing.assert_allclose(values["output"].sum(0), expected.output, atol=1e-5)


def first_wrong(trains: dict[str, Any], expected: staged_oracle.Staged) -> str | None:
    """The first layer whose trains are not the expected ones."""
    for (layer, fired), spikes in zip(trains.items(), expected.spikes, strict=True):
        if not np.array_equal(fired, spikes[: len(fired)]):
            return layer
    return None


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", FAULTS)
def test_is_caught_and_blamed_on_its_layer(name, seed):
    fault = FAULTS[name]
    _, x, network, expected = drawn(seed)
    patient = Patient(network)
    fault.harm(patient)
    steps = expected.latency + BEYOND
    values = nir_primitives.run(patient.file, x, steps)
    trains = {layer: values[layer] == 1 for layer in network.layers}
    blamed = patient.names.get(fault.wrong)
    assert first_wrong(trains, expected) == blamed
    if blamed is None:
        assert not np.allclose(values["output"].sum(0), expected.output, atol=1e-3)
    if fault.refused:
        with pytest.raises(GraphError, match=re.escape(patient.names.get(fault.refused, fault.refused))):
            from_nir(patient.file)
        return
    read = SpikingNetwork(from_nir(patient.file), network.ann)
    record = read.run(x, max(steps, read.latency or 0))
    for layer in network.layers:
        np.testing.assert_array_equal(record.spikes(layer)[:steps], trains[layer])
    equality = read.validate(x, backends=[]).equals_ann
    assert equality is not None
    unexplained = [layer for layer, count in equality.unexplained.items() if count]
    assert unexplained[:1] == ([blamed] if blamed is not None and fault.counts else [])
    assert unexplained[1:] == []  # the layers behind it do right by what they receive
    assert bool(equality.outputs_wrong) == (blamed is None)
    assert equality.equal == (not unexplained and blamed is not None)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if not fault.refused])
def test_what_is_read_is_simulated_as_it_is_run(name, seed):
    _, x, network, _ = drawn(seed)
    patient = Patient(network)
    FAULTS[name].harm(patient)
    read = SpikingNetwork(from_nir(patient.file))
    record = read.run(x, 40)
    fast = read.simulate(x, 40, record=True)
    assert fast.record is not None
    for layer in network.layers:
        np.testing.assert_array_equal(fast.record.packed[layer], record.packed[layer])
    np.testing.assert_allclose(fast.outputs, record.outputs(), atol=1e-5)
