"""A grouped network's groups say its ANN's activations in one step: trains, files, names, and what knows NIR alone.

One file, though long: each kind of block is drawn for all of the tests that follow.
"""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Callable, Sequence
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
from bridge.graph import AtLeast, EachLevel
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
        levels = self.rng.choice([1, 2, 2, 4, 4, 8, 32] if self.dyadic else [1, 2, 3, 3, 4, 7, 32])
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
    if size > whole:
        return layer(d, size)
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
        **{
            "conv": d.conv(),
            "act": d.act(3),
            "norm": d.norm(),
            "pool": d.pool(size),
            "mix": d.conv(),
            "more": d.act(3),
        },
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

    def __init__(self, kinds: Sequence[Any], end: Any, seed: int, *, dimensions: int = 2, dyadic: bool = True) -> None:
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
    close: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-4}

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


@pytest.mark.parametrize("seed", range(14))
def test_random_networks(seed, tmp_path):
    """On a grid of powers of two, where ties are frequent, and sums exact."""
    model = drawn(seed, dyadic=True)
    check(model, model.images(), tmp_path, exact=True)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(14, 150))
def test_more_random_networks(seed, tmp_path):
    model = drawn(seed, dyadic=True)
    check(model, model.images(), tmp_path, exact=True)


def test_the_random_networks_have_what_hides_faults():
    """Neurons that reach each end, and levels exactly, in most layers; minima, and maxima."""
    found: Counter[str] = Counter()
    for seed in range(14):
        model = drawn(seed, dyadic=True)
        for levels, reached in expected(model, model.images())[0]:
            count = np.clip(np.floor(reached), 0, levels)
            found["layers"] += 1
            found[f"L = {levels}"] += 1
            found["saturated"] += bool((reached >= levels + 1).any())
            found["silent"] += bool((reached < 1).any())
            found["a tie"] += bool(((reached == np.rint(reached)) & (count == reached) & (count > 0)).any())
            found["in between"] += bool(((count > 0) & (count < levels)).any())
        for layer in bridge.convert(model, model.images(), schedule="grouped").graph:
            if isinstance(layer, EachLevel) and isinstance(layer.layer, AtLeast):
                found["minimum"] += bool((layer.layer.level > 1).any())
                found["maximum"] += bool((layer.layer.level < 1).any())
    assert all(found[f"L = {levels}"] for levels in (1, 2, 4, 8, 32))
    for what in ("saturated", "silent", "a tie", "in between"):
        assert found[what] > found["layers"] / 2, found
    assert found["minimum"] > 3
    assert found["maximum"] > 3


def off_the_grid(seed: int) -> tuple[Drawn, Tensor]:
    """A random network with any λ, weights and L, and images; no neuron lies within rounding of a level."""
    model = drawn(seed, dyadic=False)
    x = torch.rand(IMAGES, *SIZE[model.dimensions], generator=torch.Generator().manual_seed(seed))
    for _, reached in expected(model, x)[0]:
        if np.abs(reached - np.rint(reached)).min() < 1e-6 * (1 + np.abs(reached).max()):
            return off_the_grid(seed + 1000)
    return model, x


@pytest.mark.parametrize("seed", range(10))
def test_random_networks_off_the_grid(seed, tmp_path):
    model, x = off_the_grid(seed)
    check(model, x, tmp_path, exact=True)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(10, 100))
def test_more_random_networks_off_the_grid(seed, tmp_path):
    model, x = off_the_grid(seed)
    check(model, x, tmp_path, exact=True)


@pytest.mark.parametrize("steps", [1, 5, 32])
def test_so_many_levels_in_every_activation(steps, tmp_path):
    model = Drawn([minimum_behind, several_readers], ends_in_a_pool, 5)
    x = model.images()
    network = bridge.convert(model, x, schedule="grouped", steps=steps)
    for module in model.modules():
        if isinstance(module, QCFS):
            module.levels = steps
    seen, output = expected(model, x)
    record = network.run(x)
    wrong = 0
    for name, (_, reached) in zip(network.layers, seen, strict=True):
        wrong += int((record.spikes(name)[0] != groups(steps, reached)).sum())
        assert record.shapes[name] == (steps, *reached.shape[1:])
    if steps != 5:  # λ / 5 is on no grid
        assert wrong == 0
        np.testing.assert_allclose(record.outputs()[0], output, rtol=1e-5, atol=1e-4)
    equality = network.validate(x, backends=[]).equals_ann
    assert equality is not None
    assert equality.equal


# Names.


class Named(nn.Module):
    """Layers that are called like parts of others."""

    def __init__(self) -> None:
        super().__init__()
        acts = {"act": 4, "act_2": 2, "act_2_": 2, "act_2_2": 4, "act_sum": 1, "act_any": 2, "pool_any_2": 4}
        self.acts = [*acts]
        for name, levels in acts.items():
            self.add_module(name, networks.qcfs(levels, 3))
        self.pools = ["pool", "pool_any", "pool_2", "pool_sum", "act_3"]
        for name in self.pools:
            self.add_module(name, nn.MaxPool2d(2, 1))
        self.convs = ["input_", "output", "output_", "act_sum_", "pool_any_", "act_4", "pool_sum_2"]
        for name in self.convs:
            self.add_module(name, nn.Conv2d(3, 3, 3, padding=1))
        make_dyadic(self, 1).eval()

    def forward(self, x: Tensor) -> Tensor:
        for number, name in enumerate(self.acts):
            x = self.get_submodule(name)(self.get_submodule(self.convs[number])(x))
            if number < len(self.pools):
                x = self.get_submodule(self.pools[number])(x)
        return x


def test_names_that_are_taken(tmp_path):
    model = Named()
    x = networks.dyadic_images(IMAGES, (3, 9, 9))
    seen, output = expected(model, x)
    network = bridge.convert(model, x, schedule="grouped")
    assert {*model.acts} == {*network.layers}
    network.save(tmp_path / "net.nir")
    graph = read(tmp_path / "net.nir")
    thresholds = sum(isinstance(node, nir.Threshold) for node in graph.nodes.values())
    in_pools = sum(levels for levels, _ in seen[: len(model.pools)])
    assert thresholds == sum(levels for levels, _ in seen) + in_pools
    np.testing.assert_array_equal(nir_primitives.run(graph, x, 1)["output"][0], output)
    again = bridge.load(tmp_path / "net.nir")
    assert isinstance(again, bridge.SpikingNetwork)
    record, other = network.run(x), again.run(x)
    np.testing.assert_array_equal(other.outputs()[0], output)
    for name, (levels, reached) in zip(network.layers, seen, strict=True):
        np.testing.assert_array_equal(record.spikes(name)[0], groups(levels, reached))
        np.testing.assert_array_equal(other.packed[name], record.packed[name])
    assert len(again.to_nir().nodes) == len(graph.nodes)


class OfOneDrive(nn.Module):
    """Several activations of one drive, and several pools of one activation: which thresholds belong together?"""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.one, self.same, self.other = networks.qcfs(4, 3), networks.qcfs(4, 3), networks.qcfs(2)
        self.wide, self.narrow, self.again = nn.MaxPool2d(3, 1, 1), nn.MaxPool2d(1, 1), nn.MaxPool2d(3, 1, 1)
        self.mix, self.last = nn.Conv2d(18, 3, 1), nn.Conv2d(3, 2, 1)
        make_dyadic(self, 3).eval()
        with torch.no_grad():
            self.same.threshold.copy_(self.one.threshold)

    def forward(self, x: Tensor) -> Tensor:
        z = self.conv(x)
        one, same, other = self.one(z), self.same(z), self.other(z)
        pools = [self.wide(one), self.narrow(one), self.wide(same), self.again(other), self.again(self.wide(one)), one]
        mixed: Tensor = self.last(self.same(self.mix(torch.cat(pools, 1))))
        return mixed


@pytest.mark.parametrize("seed", range(4))
def test_groups_are_found_whatever_nodes_are_called(seed):
    """By structure alone, in any order of nodes and edges."""
    model = OfOneDrive()
    x = networks.dyadic_images(IMAGES, (2, 6, 6))
    seen, output = expected(model, x)
    network = bridge.convert(model, x, schedule="grouped")
    graph = network.to_nir()
    rng = random.Random(seed)
    names = rng.sample([*graph.nodes], len(graph.nodes))
    called = {name: f"n{rng.randrange(1000)}_{number}" for number, name in enumerate(names)}
    edges = [(called[a], called[b]) for a, b in rng.sample(graph.edges, len(graph.edges))]
    other = nir.NIRGraph({called[name]: graph.nodes[name] for name in names}, edges, type_check=False)
    read_anew = bridge.SpikingNetwork(from_nir(other))
    record = read_anew.run(x)
    assert {*read_anew.layers} == {called[name] for name in network.layers}
    for name, (levels, reached) in zip(network.layers, seen, strict=True):
        np.testing.assert_array_equal(record.spikes(called[name])[0], groups(levels, reached))
    np.testing.assert_array_equal(record.outputs()[0], output)


# Files that say something else.


def damaged(harm: Callable[[nir.NIRGraph], object]) -> nir.NIRGraph:
    model = nn.Sequential(
        *(nn.Conv2d(1, 2, 2), networks.qcfs(3, 2), nn.MaxPool2d(2, 1), nn.Conv2d(2, 2, 1), networks.qcfs(2)),
        *(nn.Flatten(), nn.Linear(18, 2)),
    )
    graph = bridge.convert(make_dyadic(model), torch.rand(1, 1, 5, 5), schedule="grouped").to_nir()
    harm(graph)
    return graph


def connect(graph: nir.NIRGraph, source: str, target: str) -> None:
    graph.edges.append((source, target))


def cross(graph: nir.NIRGraph) -> None:
    """One neuron fires at its second level before its first."""
    one, other = graph.nodes["layer_4"].threshold, graph.nodes["layer_4_2"].threshold
    one[0, 0, 0], other[0, 0, 0] = other[0, 0, 0], one[0, 0, 0]


def another_pool(graph: nir.NIRGraph) -> None:
    graph.nodes["layer_2_any_2"].stride = np.array([2, 2])


def one_neuron_alone(graph: nir.NIRGraph) -> None:
    graph.edges.remove(("layer_4_sum", "layer_5"))
    connect(graph, "layer_4", "layer_5")


REFUSED: dict[str, tuple[Callable[[nir.NIRGraph], object], str]] = {
    "levels that cross": (cross, r"layer_4.*order differs between neurons"),
    "a pool of one level more": (another_pool, r"layer_2_any.*nothing does the same to 'layer_1_2'"),
    "another threshold of one level's pool": (
        lambda graph: setattr(graph.nodes["layer_2_3"], "threshold", graph.nodes["layer_2_3"].threshold + 1),
        r"'layer_2'.*nothing does the same to 'layer_2_any_3'",
    ),
    "something reads one neuron of a group": (one_neuron_alone, r"layer_4_sum.*expected the sum of the group"),
    "a sum of a group and the image": (lambda graph: connect(graph, "layer_3", "layer_4_sum"), "layer_4_sum"),
    "one threshold of the group for each neuron": (
        lambda graph: setattr(graph.nodes["layer_4_2"], "threshold", np.array(1.4, np.float32)),
        "layer_4_2.*full neuron shape",
    ),
    "a threshold that is no number": (
        lambda graph: setattr(graph.nodes["layer_4_2"], "threshold", graph.nodes["layer_4_2"].threshold * np.nan),
        "layer_4_2.*finite",
    ),
    "an edge twice": (lambda graph: connect(graph, "layer_4_2", "layer_4_sum"), "layer_4_2.*twice"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_no_group(name):
    harm, message = REFUSED[name]
    with pytest.raises(GraphError, match=message):
        from_nir(damaged(harm))


def test_what_has_no_meaning(tmp_path):
    model = nn.Sequential(nn.Linear(4, 5), QCFS(4), nn.Linear(5, 2)).eval()
    x = torch.rand(3, 4)
    network = bridge.convert(model, schedule="grouped")
    assert "grouped, 1 step" in repr(network)
    refused = {
        "calibrate": lambda: network.calibrate(x, 4),
        "time_biased": lambda: network.time_biased(x, 4),
        "until": lambda: network.simulate(x, until="stable"),
        "neuron": lambda: network.to_nir("if"),
    }
    for name, call in refused.items():
        with pytest.raises(InputError, match=f"{name}.*this network is grouped"):
            call()
    network.save(tmp_path / "net.nir")
    again = bridge.load(tmp_path / "net.nir")
    assert isinstance(again, bridge.SpikingNetwork)
    with pytest.raises(ConversionError, match=r"quantize.*read from a NIR file"):
        again.quantize(8, x)
    with pytest.raises(InputError, match="steps"):
        bridge.convert(model, schedule="grouped", steps=0)


@pytest.mark.parametrize("fraction", [0.0, 0.25])
def test_whole_thresholds_alone_make_no_integer_network(fraction):
    """What NIR says of a threshold t is d > t. Only where d is whole is that d ≥ t + 1."""
    nodes = {
        "input": nir.Input(input_type={"input": np.array([2])}),
        "fc": nir.Affine(weight=np.array([[1, fraction], [-1, 1]], np.float32), bias=np.full(2, fraction, np.float32)),
        "a": nir.Threshold(threshold=np.array([0, 1], np.float32)),
        "a_2": nir.Threshold(threshold=np.array([1, 2], np.float32)),
        "sum": nir.Scale(scale=np.ones(2, np.float32)),
        "output": nir.Output(output_type={"output": np.array([2])}),
    }
    edges = [("input", "fc"), ("fc", "a"), ("fc", "a_2"), ("a", "sum"), ("a_2", "sum"), ("sum", "output")]
    graph = nir.NIRGraph(nodes, edges, type_check=False)
    x = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0))
    network = bridge.SpikingNetwork(from_nir(graph))
    assert network.graph.integer == (fraction == 0)
    given = x.to(torch.uint8) if network.graph.integer else x
    np.testing.assert_array_equal(network.run(given).readout, nir_primitives.run(graph, x, 1)["output"])


def test_an_average_makes_no_integer_network():
    nodes = {
        "input": nir.Input(input_type={"input": np.array([1, 2, 2])}),
        "mean": nir.AvgPool2d(kernel_size=np.array([2, 2]), stride=np.array([2, 2]), padding=np.array([0, 0])),
        "a": nir.Threshold(threshold=np.ones((1, 1, 1), np.float32)),
        "a_2": nir.Threshold(threshold=np.full((1, 1, 1), 2, np.float32)),
        "sum": nir.Scale(scale=np.ones((1, 1, 1), np.float32)),
        "output": nir.Output(output_type={"output": np.array([1, 1, 1])}),
    }
    edges = [("input", "mean"), ("mean", "a"), ("mean", "a_2"), ("a", "sum"), ("a_2", "sum"), ("sum", "output")]
    graph = nir.NIRGraph(nodes, edges, type_check=False)
    x = torch.cartesian_prod(*[torch.arange(4.0)] * 4).reshape(-1, 1, 2, 2)
    network = bridge.SpikingNetwork(from_nir(graph))
    np.testing.assert_array_equal(network.run(x).readout, nir_primitives.run(graph, x, 1)["output"])
