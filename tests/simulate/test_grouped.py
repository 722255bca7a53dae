"""A grouped network's groups say its ANN's activations in one step: trains, files, names, and what knows NIR alone."""

from __future__ import annotations

import copy
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import nir
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support import networks, nir_primitives
from support.networks import make_dyadic
from torch import Tensor, nn

import bridge
from bridge import QCFS, ConversionError, GraphError, InputError
from bridge.nir_graph import from_nir, read

SIZE = {1: (2, 12), 2: (2, 6, 6)}
"""Of the images of `Drawn`, by dimensions."""
IMAGES = 3


class Layers(NamedTuple):
    conv: Any
    norm: Any
    largest: Any
    average: Any


KINDS = {
    1: Layers(nn.Conv1d, nn.BatchNorm1d, nn.MaxPool1d, nn.AvgPool1d),
    2: Layers(nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d),
}


class Lifted(nn.Module):
    """A pool in front of its activation: they change places, and the pool is of spikes."""

    def __init__(self, pool: nn.Module, norm: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.pool, self.norm, self.act = pool, norm, act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.pool(x)))


class Block(nn.Module):
    """Modules of a random network, and what `run` makes with them of the signal and the image."""

    def __init__(self, run: Callable[[Any, Tensor, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        return self.run(self, x, image)


class Draw:
    """Random modules of a network with so many dimensions; on a grid of powers of two if `dyadic`."""

    def __init__(self, rng: random.Random, dimensions: int, dyadic: bool) -> None:
        self.rng, self.of, self.dyadic, self.dimensions = rng, KINDS[dimensions], dyadic, dimensions

    def act(self, channels: int) -> QCFS:
        levels = self.rng.choice([1, 2, 4, 8, 32] if self.dyadic else [1, 2, 3, 4, 7, 32])
        size = (channels,) if self.rng.random() < 0.6 else ()
        return QCFS(levels, torch.rand(size) * 0.8 + 0.2)

    def conv(self, inputs: int = 3, outputs: int = 3, kernel: int = 3) -> nn.Module:
        conv: nn.Module = self.of.conv(inputs, outputs, kernel, padding=kernel // 2, bias=self.rng.random() < 0.8)
        return conv

    def norm(self, channels: int = 3) -> nn.Module:
        """Whose gains are of either sign."""
        norm: nn.Module = self.of.norm(channels)
        with torch.no_grad():
            for values in (norm.weight, norm.bias, norm.running_mean):
                assert isinstance(values, Tensor)
                values.normal_()
        return norm

    def pool(self, size: int) -> nn.Module:
        """A maximum pool of maps of so many values that leaves at least two of them."""
        while True:
            kernel, stride, dilation = (self.rng.choice(of) for of in ([2, 3], [1, 2, 3], [1, 1, 2]))
            padding, ceil = self.rng.randint(0, kernel // 2), self.rng.random() < 0.5
            pool: nn.Module = self.of.largest(kernel, stride, padding, dilation, ceil_mode=ceil)
            if size + 2 * padding > dilation * (kernel - 1) and side(pool, size, self.dimensions) >= 2:
                return pool


def side(module: nn.Module, size: int, dimensions: int) -> int:
    """How long what `module` gives is, for maps that are `size` long."""
    return int(module(torch.zeros(1, 1, *[size] * dimensions)).shape[-1])


def layer(d: Draw, size: int) -> Block:
    return Block(lambda m, x, _: m.act(m.conv(x)), conv=d.conv(), act=d.act(3))


def unequal_depth(d: Draw, size: int) -> Block:
    body = nn.Sequential(d.conv(), d.act(3), d.conv(), d.act(3), d.conv(), d.norm())
    return Block(lambda m, x, _: m.act(m.body(x) + x), body=body, act=d.act(3))


def several_readers(d: Draw, size: int) -> Block:
    return Block(
        lambda m, x, _: (lambda y: m.last(m.deep(m.more(m.one(y))) + m.other(y) + y))(m.act(m.conv(x))),
        **{name: d.conv() for name in ("conv", "one", "deep", "other")},
        **{name: d.act(3) for name in ("act", "more", "last")},
    )


def concatenation(d: Draw, size: int) -> Block:
    return Block(
        lambda m, x, _: m.more(m.mix(torch.cat([m.act(m.conv(x)), x], 1))),
        **{"conv": d.conv(), "act": d.act(3), "mix": d.conv(6, 3, 1), "more": d.act(3)},
    )


def image_deep_inside(d: Draw, size: int) -> Block:
    whole = SIZE[d.dimensions][-1]
    shown = d.of.conv(2, 3, whole - size + 1)
    return Block(lambda m, x, image: m.act(m.conv(x) + m.shown(image)), conv=d.conv(), shown=shown, act=d.act(3))


def average(d: Draw, size: int) -> Block:
    pool = d.of.average(2, 1)
    return Block(lambda m, x, _: m.act(m.conv(m.pool(x))), pool=pool, conv=d.conv(), act=d.act(3))


def average_of_a_sum(d: Draw, size: int) -> Block:
    pool = d.of.average(2, 1)
    return Block(lambda m, x, _: m.act(m.pool(m.conv(x) + x)), pool=pool, conv=d.conv(), act=d.act(3))


def pool_of_spikes(d: Draw, size: int) -> Block:
    return Block(lambda m, x, _: m.pool(m.act(m.conv(x))), conv=d.conv(), act=d.act(3), pool=d.pool(size))


def pool_in_front(d: Draw, size: int) -> Block:
    lifted = Lifted(d.pool(size), nn.Identity(), d.act(3))
    return Block(lambda m, x, _: m.lifted(m.conv(x)), conv=d.conv(), lifted=lifted)


def minimum_in_front(d: Draw, size: int) -> Block:
    lifted = Lifted(d.pool(size), d.norm(), d.act(3))
    return Block(lambda m, x, _: m.lifted(m.conv(x)), conv=d.conv(), lifted=lifted)


def minimum_behind(d: Draw, size: int) -> Block:
    return Block(
        lambda m, x, _: m.more(m.mix(m.pool(m.norm(m.act(m.conv(x)))))),
        **{"conv": d.conv(), "act": d.act(3), "norm": d.norm(), "pool": d.pool(size), "mix": d.conv(), "more": d.act(3)},
    )


def pool_of_a_concatenation(d: Draw, size: int) -> Block:
    return Block(
        lambda m, x, _: m.last(m.mix(m.pool(torch.cat([m.act(m.conv(x)), m.more(m.other(x))], 1)))),
        **{"conv": d.conv(), "act": d.act(3), "other": d.conv(3, 2), "more": d.act(2)},
        **{"pool": d.pool(size), "mix": d.conv(5, 3, 1), "last": d.act(3)},
    )


def pool_of_a_pool(d: Draw, size: int) -> Block:
    first = d.of.largest(2, 1, 1)
    pool = nn.Sequential(first, d.pool(side(first, size, d.dimensions)))
    return Block(lambda m, x, _: m.pool(m.act(m.conv(x))), conv=d.conv(), act=d.act(3), pool=pool)


def pool_beside_its_spikes(d: Draw, size: int) -> Block:
    pool = d.of.largest(3, 1, 1)
    return Block(
        lambda m, x, _: (lambda y: m.more(m.mix(torch.cat([m.pool(y), y, m.other(y)], 1))))(m.act(m.conv(x))),
        **{"conv": d.conv(), "act": d.act(3), "pool": pool, "other": d.conv(), "mix": d.conv(9, 3), "more": d.act(3)},
    )


def one_activation_twice(d: Draw, size: int) -> Block:
    return Block(lambda m, x, _: m.act(m.other(m.act(m.conv(x)))), conv=d.conv(), act=d.act(3), other=d.conv())


def activation_of_an_activation(d: Draw, size: int) -> Block:
    return Block(lambda m, x, _: m.more(m.act(m.conv(x))), conv=d.conv(), act=d.act(3), more=d.act(3))


BLOCKS = (
    layer,
    unequal_depth,
    several_readers,
    concatenation,
    image_deep_inside,
    average,
    average_of_a_sum,
    pool_of_spikes,
    pool_in_front,
    minimum_in_front,
    minimum_behind,
    pool_of_a_concatenation,
    pool_of_a_pool,
    pool_beside_its_spikes,
    one_activation_twice,
    activation_of_an_activation,
)


def ends_in_an_affine_layer(d: Draw, values: int) -> Block:
    return Block(
        lambda m, x, _: m.last(m.act(m.first(x.flatten(1)))),
        **{"first": nn.Linear(values, 5), "act": d.act(5), "last": nn.Linear(5, 4)},
    )


def ends_in_spikes(d: Draw, values: int) -> Block:
    return Block(lambda m, x, _: m.act(m.first(x.flatten(1))), first=nn.Linear(values, 5), act=d.act(5))


def ends_in_a_pool(d: Draw, values: int) -> Block:
    return Block(lambda m, x, _: m.pool(m.act(m.conv(x))), conv=d.conv(), act=d.act(3), pool=d.of.largest(2))


def ends_in_a_minimum(d: Draw, values: int) -> Block:
    pool = d.of.largest(2, 1, 1)
    return Block(
        lambda m, x, _: m.pool(m.norm(m.act(m.conv(x)))), conv=d.conv(), act=d.act(3), norm=d.norm(), pool=pool
    )


def read_by_neurons_and_readout(d: Draw, values: int) -> Block:
    return Block(
        lambda m, x, _: (lambda z: m.one(m.act(z)) + m.other(z))(m.first(x.flatten(1))),
        **{"first": nn.Linear(values, 5), "act": d.act(5), "one": nn.Linear(5, 4), "other": nn.Linear(5, 4)},
    )


def the_affine_layer_itself_too(d: Draw, values: int) -> Block:
    return Block(
        lambda m, x, _: (lambda z: torch.cat([z, m.act(z)], 1))(m.first(x.flatten(1))),
        **{"first": nn.Linear(values, 5), "act": d.act(5)},
    )


def ends_in_a_map(d: Draw, values: int) -> Block:
    return Block(lambda m, x, _: m.conv(x) + x, conv=d.conv())


ENDS = (
    ends_in_an_affine_layer,
    ends_in_spikes,
    ends_in_a_pool,
    ends_in_a_minimum,
    read_by_neurons_and_readout,
    the_affine_layer_itself_too,
    ends_in_a_map,
)


class Drawn(nn.Module):
    """Blocks one behind the other, and an end. In evaluation mode; on a grid of powers of two if `dyadic`."""

    def __init__(
        self, kinds: Sequence[Any], end: Any, seed: int, *, dimensions: int = 2, dyadic: bool = True
    ) -> None:
        super().__init__()
        d = Draw(random.Random(seed), dimensions, dyadic)
        torch.manual_seed(seed)
        self.dimensions = dimensions
        self.first, self.act = d.conv(2, 3), d.act(3)
        self.blocks = nn.ModuleList()
        image = torch.zeros(1, *SIZE[dimensions])
        x = self.first(image)
        for kind in kinds:
            if x.shape[-1] < 3 and kind is not layer:
                continue  # too small for a pool
            self.blocks.append(kind(d, x.shape[-1]).eval())
            x = self.blocks[-1](x, image)
        self.end = end(d, x[0].numel())
        if dyadic:
            make_dyadic(self, seed)
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        x = self.act(self.first(image))
        for block in self.blocks:
            x = block(x, image)
        output: Tensor = self.end(x, image)
        return output

    def images(self) -> Tensor:
        return networks.dyadic_images(IMAGES, SIZE[self.dimensions], 1)


Levels = list[NDArray[np.float64]]


class Counted(nn.Module):
    """QCFS as it is defined, in float64; notes ``z·L/λ + 1/2``, whose floor is the count."""

    def __init__(self, act: QCFS, seen: list[tuple[int, NDArray[np.float64]]]) -> None:
        super().__init__()
        self.levels, self.seen = act.levels, seen
        self.register_buffer("charge", act.threshold.detach().double() / act.levels)

    def forward(self, z: Tensor, note: bool = True) -> Tensor:
        assert isinstance(self.charge, Tensor)
        charge = self.charge.reshape(1, -1, *[1] * (z.dim() - 2)) if self.charge.dim() else self.charge
        level = z / charge + 0.5
        if note:
            self.seen.append((self.levels, level.numpy()))
        return charge * level.floor().clamp(0, self.levels)


class LiftedCounted(nn.Module):
    """`Lifted`, which notes what its activation is of every value in front of the pool."""

    def __init__(self, lifted: Lifted, seen: list[tuple[int, NDArray[np.float64]]]) -> None:
        super().__init__()
        assert isinstance(lifted.act, QCFS)
        self.pool, self.norm, self.act = lifted.pool, lifted.norm, Counted(lifted.act, seen)

    def forward(self, z: Tensor) -> Tensor:
        self.act(self.norm(z))
        value: Tensor = self.act(self.norm(self.pool(z)), note=False)
        return value


def expected(model: nn.Module, x: Tensor) -> tuple[list[tuple[int, NDArray[np.float64]]], NDArray[np.float64]]:
    """By call of a QCFS its L and, exactly, the level that each neuron reaches; and the output. All in float64."""
    seen: list[tuple[int, NDArray[np.float64]]] = []

    def counted(parent: nn.Module) -> nn.Module:
        if isinstance(parent, QCFS):
            return Counted(parent, seen)
        if isinstance(parent, Lifted):
            return LiftedCounted(parent, seen)
        for name, child in parent.named_children():
            setattr(parent, name, counted(child))
        return parent

    with torch.no_grad():
        output = counted(copy.deepcopy(model).double())(x.double())
    return seen, output.numpy()


def groups(levels: int, reached: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The spikes ``[B, L, ...]``: the k-th of a group fires if at least k levels are reached."""
    count = np.clip(np.floor(reached).astype(np.int64), 0, levels)
    at_least = np.arange(1, levels + 1).reshape(1, -1, *[1] * (count.ndim - 1))
    fired: NDArray[np.bool_] = count[:, None] >= at_least
    return fired


def members(name: str, levels: int) -> list[str]:
    """The nodes of the group `name`."""
    return [name, *(f"{name}_{number}" for number in range(2, levels + 1))]


def shuffled(names: list[str]) -> list[str]:
    return random.Random(len(names)).sample(names, len(names))


def same_graph(one: nir.NIRGraph, other: nir.NIRGraph) -> None:
    """Both have the same nodes by the same names, to the last bit, and the same edges."""
    assert one.nodes.keys() == other.nodes.keys()
    assert sorted(one.edges) == sorted(other.edges)
    for name, node in one.nodes.items():
        mine, theirs = ({k: v for k, v in n.to_dict().items() if k != "metadata"} for n in (node, other.nodes[name]))
        assert type(node) is type(other.nodes[name])
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            np.testing.assert_array_equal(value, theirs[key], err_msg=f"{name}.{key}")


def check(model: Drawn, x: Tensor, path: Path, *, exact: bool) -> None:
    """All that holds of the grouped network of `model`: see below."""
    seen, output = expected(model, x)
    trains = [groups(*each) for each in seen]
    close = {"rtol": 1e-5, "atol": 1e-4}

    network = bridge.convert(model, x, schedule="grouped")
    assert network.latency == 1
    record = network.run(x)
    assert record.steps == 1
    for name, fired in zip(network.layers, trains, strict=True):
        np.testing.assert_array_equal(record.spikes(name)[0], fired, err_msg=name)
    np.testing.assert_allclose(record.outputs()[-1], output, **close)
    with torch.no_grad():
        np.testing.assert_allclose(record.outputs()[-1], model(x), **close)
    equality = network.validate(x, backends=[]).equals_ann
    assert equality is not None
    assert equality.equal
    assert equality.compared == {name: fired[:, 0].size for name, fired in zip(network.layers, trains, strict=True)}
    if exact:
        assert not any(equality.differing.values())

    # By path: the file is all that there is.
    network.save(path / "net.nir")
    graph = read(path / "net.nir")
    for order in (lambda names: names, shuffled):
        values = nir_primitives.run(graph, x, 2, order)
        for name, fired in zip(network.layers, trains, strict=True):
            for number, node in enumerate(members(name, fired.shape[1])):
                for step in range(2):
                    np.testing.assert_array_equal(values[node][step] == 1, fired[:, number], err_msg=node)
        for step in range(2):
            np.testing.assert_allclose(values["output"][step], output, **close)
    again = bridge.load(path / "net.nir")
    assert isinstance(again, bridge.SpikingNetwork)
    assert again.latency == 1
    assert sorted(again.layers) == sorted(network.layers)
    longer = again.run(x, 3)
    for name in network.layers:
        for step in range(3):
            np.testing.assert_array_equal(longer.packed[name][step], record.packed[name][0], err_msg=name)
    for step in range(3):
        np.testing.assert_allclose(longer.outputs()[step], output, **close)
    np.testing.assert_array_equal(longer.outputs(), longer.readout)
    again.save(path / "again.nir")
    same_graph(read(path / "again.nir"), graph)

    fast = network.simulate(x, 2, record=True)
    assert fast.record is not None
    for name in network.layers:
        for step in range(2):
            np.testing.assert_array_equal(fast.record.packed[name][step], record.packed[name][0], err_msg=name)
        np.testing.assert_array_equal(fast.spikes[name], fast.record.spikes(name).reshape(2, len(x), -1).sum(2))
    np.testing.assert_allclose(fast.outputs, longer.outputs()[:2], **close)


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
def test_each_end(end, tmp_path):
    model = Drawn([layer, unequal_depth], end, 3)
    check(model, model.images(), tmp_path, exact=True)


@pytest.mark.parametrize("dimensions", [1, 2])
@pytest.mark.parametrize("kind", BLOCKS, ids=lambda kind: kind.__name__)
def test_each_block(kind, dimensions, tmp_path):
    model = Drawn([kind, layer], ends_in_an_affine_layer, len(kind.__name__), dimensions=dimensions)
    check(model, model.images(), tmp_path, exact=True)


def drawn(seed: int, dyadic: bool) -> Drawn:
    rng = random.Random(seed)
    kinds = rng.choices(BLOCKS, k=rng.randint(2, 5))
    return Drawn(kinds, rng.choice(ENDS), seed, dimensions=rng.choice([1, 2, 2]), dyadic=dyadic)


@pytest.mark.parametrize("seed", range(24))
def test_random_networks(seed, tmp_path):
    """On a grid of powers of two, where ties are frequent, and sums exact."""
    model = drawn(seed, dyadic=True)
    check(model, model.images(), tmp_path, exact=True)


@cache
def nearest(seed: int) -> float:
    """How near a level any neuron of the random network comes, images included, in parts of what float32 may miss."""
    model = drawn(seed, dyadic=False)
    seen, _ = expected(model, torch.rand(IMAGES, *SIZE[model.dimensions], generator=torch.Generator().manual_seed(seed)))
    off = [np.abs(reached - np.rint(reached)).min() / (1 + np.abs(reached).max()) for _, reached in seen]
    return float(min(off))


@pytest.mark.parametrize("seed", [seed for seed in range(16)])
def test_random_networks_off_the_grid(seed, tmp_path):
    """Any λ, weights and L; a network of which a neuron lies within rounding of a level is drawn again."""
    while nearest(seed) < 1e-6:
        seed += 1000
    model = drawn(seed, dyadic=False)
    x = torch.rand(IMAGES, *SIZE[model.dimensions], generator=torch.Generator().manual_seed(seed))
    check(model, x, tmp_path, exact=True)
