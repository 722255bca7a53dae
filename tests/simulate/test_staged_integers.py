"""Staged and grouped networks in integers: every train, window and output is what whole numbers say, and no sum passes.

The oracle reads the weights and thresholds of the integer ANN and computes with them in int64 by itself; the files are
run by an interpreter in int64 that knows NIR's primitives alone.

One file, though long: oracle, interpreter and the faults that they have to find are read together.
"""

from __future__ import annotations

import copy
import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from support import networks, nir_primitives, whole_numbers
from support.whole_numbers import Ints, whole
from torch import Tensor, nn

import bridge
from bridge import QCFS, ConversionError, GraphError, SpikingNetwork
from bridge.graph import (
    Add,
    Affine,
    AvgPool2d,
    BiasOnce,
    Conv1d,
    Conv2d,
    Flatten,
    GroupFire,
    GroupSum,
    Impulse,
    Input,
    Layer,
    LayerGraph,
    Linear,
    MaxPool,
    Scale,
    SpikeCount,
    SumPool2d,
    WindowFire,
)
from bridge.nir_graph import from_nir, read, to_nir

EXACT = 2**24
"""Up to here float32 holds every whole number."""
BEYOND = 2
"""Steps that are looked at behind the latency."""


# The integer ANN, by hand.


@dataclass(frozen=True)
class Expected:
    """``counts`` ``[B, ...]`` and ``windows`` (first step, counted from 0, and how many) by layer; the ``output``."""

    counts: dict[str, Ints]
    windows: dict[str, tuple[int, int]]
    output: Ints
    latency: int


def expected(ann: LayerGraph, pixels: NDArray[Any]) -> Expected:
    """What the integer `ann` makes of `pixels` ``[B, *input]``, in int64: n = clip((2d + θ) // 2θ, 0, T)."""
    values: dict[str, Ints] = {}
    lasts: dict[str, int] = {}
    counts: dict[str, Ints] = {}
    windows: dict[str, tuple[int, int]] = {}
    for layer in ann.layers:
        inputs = [values[source] for source in layer.inputs]
        last = max((lasts[source] for source in layer.inputs), default=0)
        if isinstance(layer, Input):
            value = whole(pixels)
        elif isinstance(layer, SpikeCount):
            theta = per_channel(layer.threshold, inputs[0])
            value = np.clip((2 * inputs[0] + theta) // (2 * theta), 0, layer.steps)
            counts[layer.name], windows[layer.name] = value, (last, layer.steps)
            last += layer.steps - 1
        else:
            value = stateless(layer, inputs)
        values[layer.name], lasts[layer.name] = value, last
    name = ann.layers[-1].name
    return Expected(counts, windows, values[name], lasts[name] + 1)


def per_channel(numbers: Any, like: Ints) -> Ints:
    """One number per channel, or one per position, to broadcast over `like` ``[B, C, ...]``."""
    array = whole(numbers)
    return array.reshape(*array.shape, *[1] * (like.ndim - 1 - array.ndim))


def stateless(layer: Layer, inputs: list[Ints]) -> Ints:
    x = inputs[0]
    if isinstance(layer, Linear):
        products: Ints = x @ whole(layer.weight).T
        return products + whole(layer.bias)
    if isinstance(layer, Conv2d):
        two = layer.stride, layer.padding, layer.dilation
        return whole_numbers.correlate(x, whole(layer.weight), *two, layer.groups) + per_channel(layer.bias, x)
    if isinstance(layer, Conv1d):
        sizes = (1, layer.stride), (0, layer.padding), (1, layer.dilation)
        wide = whole_numbers.correlate(x[:, :, None], whole(layer.weight)[:, :, None], *sizes, layer.groups)
        return wide[:, :, 0] + per_channel(layer.bias, x)
    if isinstance(layer, Add):
        return x + inputs[1]
    if isinstance(layer, Scale):
        return x * per_channel(layer.scale, x)
    if isinstance(layer, Flatten):
        return x.reshape(len(x), -1)
    if isinstance(layer, MaxPool):
        return largest(layer, x)
    assert isinstance(layer, SumPool2d), layer
    ones = np.ones((x.shape[1], 1, *layer.kernel), np.int64)
    return whole_numbers.correlate(x, ones, layer.stride, layer.padding, (1, 1), x.shape[1])


def largest(pool: MaxPool, x: Ints) -> Ints:
    """The largest of each window, or the smallest where the pool says so; one window at a time."""
    flip = np.ones(x.shape[1], np.int64) if pool.minimum is None else np.where(pool.minimum, -1, 1)
    signed = x * per_channel(flip, x)
    shape = pool.output_shape(x.shape[1:])[1:]
    y = np.empty((*x.shape[:2], *shape), np.int64)
    for place in np.ndindex(*shape):
        inside = []
        for at, size, k, s, p, d in zip(
            place, x.shape[2:], pool.kernel, pool.stride, pool.padding, pool.dilation, strict=True
        ):
            inside.append([i for i in (at * s - p + d * j for j in range(k)) if 0 <= i < size])
        window = signed[(slice(None), slice(None), *np.ix_(*inside))]
        y[(slice(None), slice(None), *place)] = window.reshape(*x.shape[:2], -1).max(axis=2)
    return y * per_channel(flip, y)


# The file, by who knows NIR alone.


def run(
    graph: nir.NIRGraph, pixels: NDArray[Any], steps: int, order: Callable[[list[str]], Sequence[str]] = list
) -> dict[str, Ints]:
    """What each node gives at each step, int64 ``[T, B, ...]``; an edge that closes a cycle carries the step before."""
    before: dict[str, list[str]] = {name: [] for name in graph.nodes}
    for source, target in graph.edges:
        before[target].append(source)
    plan: list[str] = []
    late: set[tuple[str, str]] = set()
    visited: dict[str, bool] = {}  # whether all before it is done

    def visit(name: str) -> None:
        visited[name] = False
        for source in order(before[name]):
            if source not in visited:
                visit(source)
            elif not visited[source]:
                late.add((source, name))
        visited[name] = True
        plan.append(name)

    for name in order([*graph.nodes]):
        if name not in visited:
            visit(name)
    sums: dict[str, Ints] = {}
    last: dict[str, Ints] = {}
    history: dict[str, list[Ints]] = {name: [] for name in plan}
    for _ in range(steps):
        now: dict[str, Ints] = {}
        for name in plan:
            node = graph.nodes[name]
            heard = [last.get(s) if (s, name) in late else now[s] for s in before[name]]
            total: Any = sum(each for each in heard if each is not None)
            if isinstance(node, nir.Input):
                now[name] = whole(pixels)
            elif isinstance(node, nir.I):
                sums[name] = now[name] = sums.get(name, np.int64(0)) + whole(node.r) * total
            elif isinstance(node, nir.Threshold):
                now[name] = (total > whole(node.threshold)).astype(np.int64)
            else:
                now[name] = whole_numbers.compute(node, total)
        last = now
        for name, value in now.items():
            history[name].append(value)
    return {name: np.stack([np.broadcast_to(v, rows[-1].shape) for v in rows]) for name, rows in history.items()}


def partial_sums(graph: nir.NIRGraph, values: dict[str, Ints]) -> dict[str, Ints]:
    """By node without state: the sum of the sizes of all terms that it adds up, of what its sources give in all steps.

    So much a partial sum can come to, in whatever order the terms are added, be it one step after another or at once.
    """
    totals = {name: np.abs(each.sum(axis=0)) for name, each in values.items()}
    sizes: dict[str, Ints] = {}
    for name, node in graph.nodes.items():
        sources = [totals[source] for source, target in graph.edges if target == name]
        if sources and not isinstance(node, nir.Threshold | nir.I):
            positive = copy.copy(node)
            for key in {"weight", "bias", "scale"} & {*vars(node)}:
                setattr(positive, key, np.abs(getattr(node, key)))
            sizes[name] = whole_numbers.compute(positive, np.sum(sources, axis=0))
    return sizes


# Networks.


def pooled() -> tuple[nn.Sequential, tuple[int, ...]]:
    """Maximum pools: of spikes, of a sum's spikes, behind a factor of either sign; padded, and going on at the end."""
    body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), networks.qcfs(2, 4), nn.Conv2d(4, 4, 1))
    model = nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), networks.qcfs(4, 4), nn.MaxPool2d(3, 1, 1)),
        *(networks.Residual(body, nn.Sequential()), networks.qcfs(8, 4), nn.BatchNorm2d(4)),
        *(nn.MaxPool2d(2, 2, ceil_mode=True), nn.Conv2d(4, 5, 1), networks.qcfs(3, 5), nn.MaxPool2d(2, dilation=2)),
        *(nn.Flatten(), nn.Linear(5 * 1, 6), networks.qcfs(1), nn.Linear(6, 3)),
    )
    networks.make_dyadic(model, 25)
    norm = model[5]
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, -0.75, 1.0, -0.5]))
    return model, (2, 7, 7)


def ends_in_a_pool() -> tuple[nn.Sequential, tuple[int, ...]]:
    model = nn.Sequential(
        *(nn.Conv1d(2, 3, 3, padding=1), networks.qcfs(4, 3), nn.Conv1d(3, 4, 3), networks.qcfs(6, 4)),
        *(nn.BatchNorm1d(4), nn.MaxPool1d(3, 2, 1, ceil_mode=True)),
    )
    return networks.make_dyadic(model, 7), (2, 10)


class Entangled(nn.Module):
    """An affine layer read by neurons and by the readout, the image deep inside, several readers, ends of any depth."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act = nn.Conv2d(2, 4, 3), networks.qcfs(4, 4)
        self.second, self.other = nn.Conv2d(4, 4, 3, padding=1), networks.qcfs(5)
        self.image, self.third = nn.Conv2d(2, 4, 3), networks.qcfs(2, 4)
        self.mix, self.last = nn.Conv2d(8, 4, 1), networks.qcfs(7, 4)
        self.fold, self.fired = nn.Linear(16, 5), networks.qcfs(3, 5)
        self.one, self.two = nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.first(x))
        deep = self.other(self.second(y))
        deep = self.third(self.second(deep) + self.image(x) + y)
        z = self.last(self.mix(torch.cat([deep, y], 1)))
        z = self.fold(F.avg_pool2d(z, 2).flatten(1))
        return self.one(self.fired(z)) + self.two(z)


def entangled() -> tuple[Entangled, tuple[int, ...]]:
    return networks.make_dyadic(Entangled(), 9), (2, 6, 6)


MODELS: dict[str, Callable[[], tuple[Any, tuple[int, ...]]]] = {
    **networks.ALL,
    "pooled": pooled,
    "ends_in_a_pool": ends_in_a_pool,
    "entangled": entangled,
}


@dataclass(frozen=True, eq=False)
class Pair:
    """A staged and a grouped network in integers, made from one model; pixels, extreme ones among them."""

    staged: SpikingNetwork
    grouped: SpikingNetwork
    pixels: NDArray[np.uint8]
    expected: Expected

    @property
    def ann(self) -> LayerGraph:
        assert self.staged.ann is not None
        return self.staged.ann


@cache
def pair(name: str, bits: int, scheme: str, steps: int | None) -> Pair:
    model, shape = MODELS[name]()
    x = networks.dyadic_images(12, shape)
    made = []
    numbers = [8 / 255] * shape[0]  # x = p / 8 − 1, where p is 0…16 in these images and up to 255 in others
    for schedule in ("staged", "grouped"):
        network = bridge.convert(model.eval(), x, schedule=schedule, steps=steps)
        made.append(network.quantize(bits, x, scheme, normalisation=(numbers, numbers)))
    staged, grouped = made
    assert staged.ann is not None
    pixels = extreme(staged.ann, np.concatenate([staged.pixels(x[:5]).numpy(), noise(5, shape)]))
    return Pair(staged, grouped, pixels, expected(staged.ann, pixels))


def noise(count: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (count, *shape)).astype(np.uint8)


def extreme(ann: LayerGraph, pixels: NDArray[np.uint8], each: int = 3) -> NDArray[np.uint8]:
    """`pixels`, and those that drive some neurons that the image reaches without others as far up or down as it can."""
    shape = pixels.shape[1:]
    size = int(np.prod(shape))
    ones = np.concatenate([np.zeros((1, size)), np.eye(size)]).reshape(-1, *shape)
    silent = {layer.name: [Scale(name=layer.name, inputs=layer.inputs, scale=np.zeros(ann.shapes[layer.name][0]))]
              for layer in ann if isinstance(layer, SpikeCount)}  # fmt: skip
    values: dict[str, Ints] = {}
    for layer in ann.rewrite(silent):
        values[layer.name] = whole(ones) if not layer.inputs else stateless(layer, [values[s] for s in layer.inputs])
    patterns = [np.zeros(shape), np.full(shape, 255.0)]
    rng = random.Random(size)
    for layer in ann:
        if isinstance(layer, SpikeCount) or layer is ann.output:
            drive = values[layer.inputs[0]].reshape(size + 1, -1)
            given = drive[1:] - drive[0]
            reached = [*np.flatnonzero(given.any(axis=0))]
            for neuron in rng.sample(reached, min(each, len(reached))):
                up = np.where(given[:, neuron] > 0, 255.0, 0.0).reshape(shape)
                patterns += [up, 255.0 - up]
    return np.concatenate([pixels, np.stack(patterns).astype(np.uint8)])


def trains(count: Ints, window: tuple[int, int], steps: int) -> NDArray[np.bool_]:
    """Ones from the window's first step on, as many as `count`, then zeros."""
    t = np.arange(steps).reshape(-1, *[1] * count.ndim)
    fired: NDArray[np.bool_] = (t >= window[0]) & (t < window[0] + count)
    return fired


def members(name: str, levels: int) -> list[str]:
    """The nodes of the group `name`."""
    return [name, *(f"{name}_{number}" for number in range(2, levels + 1))]


def same_layers(one: LayerGraph, other: LayerGraph) -> None:
    assert [layer.name for layer in one] == [layer.name for layer in other]
    for mine, theirs in zip(one, other, strict=True):
        assert type(mine) is type(theirs)
        for key, value in vars(mine).items():
            np.testing.assert_array_equal(value, getattr(theirs, key), err_msg=f"{mine.name}.{key}")


def check(p: Pair, path: Path, bits: int) -> None:
    same_layers(p.ann, p.grouped.ann or p.ann)
    for layer in p.ann:
        if isinstance(layer, SpikeCount):
            assert (whole(layer.threshold) >= 1).all()
        elif isinstance(layer, Affine):
            assert np.abs(whole(layer.weight)).max() < 2 ** (bits - 1)
        else:
            assert type(layer) is not AvgPool2d
    staged_file(p, path / "staged.nir", bits)
    grouped_file(p, path / "grouped.nir")
    x = torch.from_numpy(p.pixels)
    for network in (p.staged, p.grouped):
        assert network.graph.integer
        equality = network.validate(x, backends=[]).equals_ann
        assert equality is not None
        assert equality.equal
        assert not any(equality.differing.values())
        assert equality.compared == {name: count.size for name, count in p.expected.counts.items()}


def staged_file(p: Pair, path: Path, bits: int) -> None:
    """The saved staged network, in int64 and in float32, and what this package makes of it."""
    steps = p.expected.latency + BEYOND
    assert p.staged.latency == p.expected.latency
    p.staged.save(path)
    graph = read(path)
    values = run(graph, p.pixels, steps)
    floats = nir_primitives.run(graph, torch.from_numpy(p.pixels).float(), steps)
    again = bridge.load(path)
    assert isinstance(again, SpikingNetwork)
    record = again.run(p.pixels, steps)
    mine = p.staged.run(p.pixels, steps)
    fast = p.staged.simulate(p.pixels, steps, record=True).record
    assert fast is not None
    for name, count in p.expected.counts.items():
        fired = trains(count, p.expected.windows[name], steps)
        np.testing.assert_array_equal(values[name] == 1, fired, err_msg=name)
        np.testing.assert_array_equal(floats[name] == 1, fired, err_msg=name)
        for each in (record, mine, fast):
            np.testing.assert_array_equal(each.spikes(name), fired, err_msg=name)
    output = values["output"].cumsum(axis=0)
    for step in range(p.expected.latency - 1, steps):
        np.testing.assert_array_equal(output[step], p.expected.output)
    np.testing.assert_array_equal(floats["output"].astype(np.int64), values["output"])
    for each in (record, mine, fast):
        np.testing.assert_array_equal(each.outputs(), output)

    # Nothing passes the bounds, in any order of adding.
    sizes = partial_sums(graph, {name: each[: p.expected.latency] for name, each in values.items()})
    for layer in p.staged.graph:
        if layer.name in sizes and not isinstance(layer, Impulse):
            assert sizes[layer.name].max() <= EXACT, layer.name
    for layer in p.staged.graph:
        if isinstance(layer, WindowFire):
            last = layer.opens + layer.steps
            potential = np.abs(values[f"{layer.name}_membrane"][:last]).max()
            theta = per_channel(layer.threshold, values[layer.name][0])
            reach = (sizes[layer.inputs[0]] + layer.steps * theta).max()
            assert potential <= reach <= (2**23 - 1 if bits <= 8 else EXACT), layer.name
            assert np.abs(whole(graph.nodes[f"{layer.name}_raw"].threshold)).max() <= EXACT


def grouped_file(p: Pair, path: Path) -> None:
    """The saved grouped network, likewise."""
    assert p.grouped.latency == 1
    p.grouped.save(path)
    graph = read(path)
    values = run(graph, p.pixels, 2, lambda names: random.Random(3).sample(list(names), len(names)))
    floats = nir_primitives.run(graph, torch.from_numpy(p.pixels).float(), 2)
    again = bridge.load(path)
    assert isinstance(again, SpikingNetwork)
    record = again.run(p.pixels, 2)
    fast = p.grouped.simulate(p.pixels, 2, record=True).record
    assert fast is not None
    for name, count in p.expected.counts.items():
        _, levels = p.expected.windows[name]
        for number, node in enumerate(members(name, levels), start=1):
            for step in range(2):
                np.testing.assert_array_equal(values[node][step] == 1, count >= number, err_msg=node)
                np.testing.assert_array_equal(floats[node][step] == 1, count >= number, err_msg=node)
                for each in (record, fast):
                    np.testing.assert_array_equal(each.spikes(name)[step, :, number - 1], count >= number, err_msg=node)
    for step in range(2):
        np.testing.assert_array_equal(values["output"][step], p.expected.output)
        np.testing.assert_array_equal(floats["output"][step], p.expected.output)
        for each in (record, fast):
            np.testing.assert_array_equal(each.outputs()[step], p.expected.output)
    for name, size in partial_sums(graph, {name: each[:1] for name, each in values.items()}).items():
        assert size.max() <= EXACT, name


BITS = (4, 5, 8, 12, 16)
SCHEMES = ("per_channel", "per_layer")


def fits(name: str, bits: int, scheme: str) -> bool:
    """Whether some scale suits all of the network's weights; else it is refused, as it is under the plain schedule."""
    coarse = {"residual": 5, "entangled": 8, "awkward": 5, "ends_in_a_pool": 5, "dense": 5}
    return bits >= coarse.get(name, 4) and not (name == "dense" and scheme == "per_layer")


ALL_CASES = [
    case for case in itertools.product(MODELS, BITS, SCHEMES, (None, 1, 3, 32)) if fits(case[0], case[1], case[2])
]
CASES = [
    *(case for number, case in enumerate(ALL_CASES) if case[3] != 32 and number % 7 == 0),
    *(("mlp", 5, "per_layer", 32), ("ends_in_spikes", 4, "per_channel", 32), ("ends_in_a_pool", 12, "per_layer", 32)),
]


@pytest.mark.parametrize(("name", "bits", "scheme", "steps"), CASES)
def test_every_train_is_the_integer_anns_count(name, bits, scheme, steps, tmp_path):
    check(pair(name, bits, scheme, steps), tmp_path, bits)


@pytest.mark.long
@pytest.mark.parametrize(("name", "bits", "scheme", "steps"), ALL_CASES)
def test_all_of_them(name, bits, scheme, steps, tmp_path):
    check(pair(name, bits, scheme, steps), tmp_path, bits)


def test_what_the_networks_have():
    """All models, widths and schemes, thresholds of either parity, and counts of every size, in all."""
    assert {case[0] for case in CASES} == {*MODELS}
    assert {case[1:3] for case in CASES} == {*itertools.product(BITS, SCHEMES)}
    parities: Counter[int] = Counter()
    reached: Counter[str] = Counter()
    for case in CASES:
        p = pair(*case)
        for layer in p.ann:
            if isinstance(layer, SpikeCount):
                parities.update((whole(layer.threshold) % 2).tolist())
                count = p.expected.counts[layer.name]
                reached["layers"] += 1
                reached["silent"] += bool((count == 0).any())
                reached["saturated"] += bool((count == layer.steps).any())
                reached["between"] += bool(((count > 0) & (count < layer.steps)).any()) or layer.steps == 1
    assert min(parities[0], parities[1]) > 100
    assert min(reached.values()) > 0.8 * reached["layers"]


def test_with_sixteen_bits_the_counts_are_the_models():
    """Off any grid: the integer ANN is the float one, but where a neuron is nearly at a level."""
    model = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), QCFS(6, 0.3), nn.MaxPool2d(2), nn.Conv2d(4, 5, 2), QCFS(3, torch.rand(5) * 0.2 + 0.1)),
        *(nn.Flatten(), nn.Linear(45, 4)),
    ).eval()
    x = torch.randint(0, 256, (20, 1, 10, 10)) / 255
    network = bridge.convert(model, x, schedule="grouped").quantize(16, x)
    assert network.ann is not None
    found = expected(network.ann, network.pixels(x).numpy())
    with torch.no_grad():
        for number, (name, count) in zip((2, 5), found.counts.items(), strict=True):
            act = model[number - 1]
            assert isinstance(act, QCFS)
            assert isinstance(act.threshold, Tensor)
            threshold = act.threshold.reshape(-1, 1, 1) if act.threshold.dim() else act.threshold
            of_model = np.rint((model[:number](x) * act.levels / threshold).numpy())
            assert np.abs(count - of_model).max() <= 1, name
            assert (count != of_model).mean() < 2e-3, name
            assert 0.05 < (count > 0).mean() < 0.95, name


# Bounds.


def by_hand(
    first: list[float], theta: int, steps: int, last: list[float], bias: int = 0, level: int | None = None
) -> LayerGraph:
    """A staged network in integers: pixels, two neurons with the weights `first` and their reverse, the sum of both."""
    weight = np.array([first, first[::-1]], np.float32)
    levels = np.full(2, -(theta // 2) if level is None else level, np.float32)
    zeros = {"bias": np.zeros(2, np.float32)}
    return LayerGraph(
        (
            Input(name="x", shape=(2,)),
            Impulse(name="once", inputs=("x",)),
            Linear(name="drive", inputs=("once",), weight=weight, **zeros),
            WindowFire(
                name="a",
                inputs=("drive",),
                level=levels,
                threshold=np.full(1, theta, np.float32),
                opens=0,
                steps=steps,
            ),
            Linear(name="out", inputs=("a",), weight=np.array([last], np.float32), bias=np.zeros(1, np.float32)),
            BiasOnce(name="y", inputs=("out",), bias=np.array([bias], np.float32)),
        )
    )


def grouped_by_hand(first: list[float], theta: int, steps: int, last: list[float], bias: int = 0) -> LayerGraph:
    """The same, grouped; the `bias` is the neurons'."""
    weight = np.array([first, first[::-1]], np.float32)
    levels = [np.full(2, k * theta - theta // 2, np.float32) for k in range(1, steps + 1)]
    return LayerGraph(
        (
            Input(name="x", shape=(2,)),
            Linear(name="drive", inputs=("x",), weight=weight, bias=np.full(2, bias, np.float32)),
            GroupFire(name="a", inputs=("drive",), level=np.stack(levels)),
            GroupSum(name="a_sum", inputs=("a",)),
            Linear(name="out", inputs=("a_sum",), weight=np.array([last], np.float32), bias=np.zeros(1, np.float32)),
        )
    )


def joined_by_hand(size: float) -> LayerGraph:
    """Two layers that each stay within the bound, and their sum."""
    graph = by_hand([1.0, 1.0], 9, 1, [EXACT / 2, -EXACT / 2])
    *layers, out, _ = graph.layers
    assert isinstance(out, Linear)
    other = Linear(name="other", inputs=("a",), weight=np.array([[0.0, size]], np.float32), bias=out.bias)
    return LayerGraph((*layers, out, other, Add(name="join", inputs=("out", "other"))))


BOUNDS: dict[str, tuple[LayerGraph, LayerGraph, str]] = {
    # 255 · 65793 = 2^24 − 1
    "a potential": (by_hand([65793, 0], 1, 1, [1, 1]), by_hand([65793, 0], 2, 1, [1, 1]), "'a'.*potential"),
    "a potential of weights that cancel": (
        by_hand([32000, -33792], 64, 4, [1, 1]),  # 255 · 65792 + 4 · 64 = 2^24
        by_hand([32000, -33792], 64, 5, [1, 1]),
        "'a'.*potential",
    ),
    "pixels": (by_hand([1, -65791], 1, 9, [1, 1]), by_hand([1, -65793], 1, 1, [1, 1]), "'drive'.*sums"),
    "spikes of a window": (by_hand([1, 1], 9, 4, [2**21, -(2**21)]), by_hand([1, 1], 9, 5, [2**21, -(2**21)]), "'out'"),
    "a bias of the readout": (
        by_hand([1, 1], 9, 4, [2**21, -(2**21) + 2], bias=8),
        by_hand([1, 1], 9, 4, [2**21, -(2**21) + 2], bias=-9),
        "'y'",
    ),
    "a join": (joined_by_hand(EXACT / 2), joined_by_hand(EXACT / 2 + 2), "'join'"),
    "the bias of a group": (
        grouped_by_hand([30000, -35793], 70, 3, [1, 1], bias=-1),
        grouped_by_hand([30000, -35793], 70, 3, [1, 1], bias=2),
        "'drive'",
    ),
    "spikes of a group": (
        grouped_by_hand([7, -9], 70, 4, [2**21, -(2**21)]),
        grouped_by_hand([7, -9], 70, 4, [2**21 + 1, -(2**21)]),
        "'out'",
    ),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_up_to_the_bound_and_no_further(name, tmp_path):
    below, above, layer = BOUNDS[name]
    path = tmp_path / "net.nir"
    for graph in (below, above):
        assert graph.integer
    with pytest.raises(GraphError, match=f"layer {layer}"):
        from_nir(to_nir(above))
    nir.write(path, to_nir(below))
    network = bridge.load(path)
    assert isinstance(network, SpikingNetwork)
    pixels = np.array([[0, 0], [255, 255], [255, 0], [0, 255], [254, 1], [1, 254], [128, 255]], np.uint8)
    steps = network.latency or 0
    values = run(read(path), pixels, steps)
    floats = nir_primitives.run(read(path), torch.from_numpy(pixels).float(), steps)
    record = network.run(pixels)
    fast = network.simulate(pixels, record=True)
    assert fast.record is not None
    fired = record.spikes("a")
    if network.graph.grouped:
        nodes = members("a", fired.shape[2])
        np.testing.assert_array_equal(np.stack([values[node] for node in nodes], axis=2) == 1, fired)
        np.testing.assert_array_equal(np.stack([floats[node] for node in nodes], axis=2) == 1, fired)
    else:
        np.testing.assert_array_equal(values["a"] == 1, fired)
        np.testing.assert_array_equal(floats["a"] == 1, fired)
    np.testing.assert_array_equal(fast.record.packed["a"], record.packed["a"])
    output = values["output"].sum(axis=0)
    assert np.abs(output).max() <= EXACT
    np.testing.assert_array_equal(record.outputs()[-1], output)
    np.testing.assert_array_equal(fast.outputs[-1], output)
    assert 0 < fired.mean() < 1


@pytest.mark.parametrize("name", BOUNDS)
def test_a_file_beyond_the_bound_is_refused_by_name(name, tmp_path):
    """And not taken for another tool's, which would be run in floating point."""
    _, above, layer = BOUNDS[name]
    nir.write(tmp_path / "net.nir", to_nir(above))
    with pytest.raises(GraphError, match=f"layer {layer}"):
        bridge.load(tmp_path / "net.nir")


def test_a_network_that_no_scale_brings_below_the_bound_is_refused_by_name():
    """25 000 neurons that may fire 1000 times each leave weights below 1."""
    model = nn.Sequential(nn.Linear(2, 25_000), QCFS(1000, 0.5), nn.Linear(25_000, 2), QCFS(4, 0.1), nn.Linear(2, 2))
    x = torch.rand(4, 2)
    network = bridge.convert(model.eval(), x, schedule="staged")
    for bits in (8, 16):
        with pytest.raises(ConversionError, match=r"layer 'layer_[23]'"):
            network.quantize(bits, x)


# One thing wrong.


class Patient:
    """The file of a network, to be spoilt."""

    def __init__(self, network: SpikingNetwork) -> None:
        self.graph = network.to_nir()
        self.nodes: dict[str, Any] = self.graph.nodes
        self.layers = network.graph

    def add(self, node: str, by: float, at: Any = ...) -> None:
        """Add to what the node has: its weights, factors or thresholds."""
        key = next(key for key in ("weight", "scale", "threshold") if hasattr(self.nodes[node], key))
        values = np.array(getattr(self.nodes[node], key))
        values[at] += by
        setattr(self.nodes[node], key, values)

    def add_bias(self, node: str, by: float) -> None:
        self.nodes[node].bias = self.nodes[node].bias + np.float32(by)

    def drop(self, *names: str) -> None:
        for name in names:
            del self.nodes[name]
        self.graph.edges[:] = [edge for edge in self.graph.edges if not {*edge} & {*names}]

    def feed(self, source: str, target: str) -> None:
        self.graph.edges.append((source, target))


PATIENT = ("pooled", 4, "per_channel", None)


@cache
def patients() -> tuple[SpikingNetwork, SpikingNetwork, NDArray[np.uint8], Expected]:
    """The staged and the grouped network that are spoilt, pixels in two batches, and what is expected of both."""
    p = pair(*PATIENT)
    pixels = np.concatenate([p.pixels, noise(70 - len(p.pixels), p.pixels.shape[1:])])
    return p.staged, p.grouped, pixels, expected(p.ann, pixels)


@dataclass(frozen=True)
class Fault:
    """``harm`` makes the layer ``wrong`` fire wrongly first ("" is the output).

    ``refused`` is what of the reader's message names the place; without it the file is read, and ``equals_ann`` blames
    the layer.
    """

    wrong: str
    harm: Callable[[Patient], object]
    refused: str = ""


def busiest(layer: str) -> tuple[int, ...]:
    """The neuron of `layer` that is neither silent nor saturated on most images."""
    _, _, _, right = patients()
    count, (_, steps) = right.counts[layer], right.windows[layer]
    often = ((count > 0) & (count < steps)).sum(axis=0)
    return tuple(int(at) for at in np.unravel_index(int(often.argmax()), often.shape))


def window(layer: str, by: int) -> Callable[[Patient], None]:
    def harm(p: Patient) -> None:
        p.add(f"{layer}_open", by)
        p.add(f"{layer}_shut", by)

    return harm


def another_theta(p: Patient) -> None:
    p.nodes["layer_8_fall"].scale = np.roll(p.nodes["layer_8_fall"].scale, 1, axis=0)


def spoilt_fall(factor: float) -> Callable[[Patient], None]:
    def harm(p: Patient) -> None:
        p.nodes["layer_8_fall"].scale = p.nodes["layer_8_fall"].scale * np.float32(factor)

    return harm


def without_bias(p: Patient) -> None:
    """As if the layer had none: its level is that of the threshold alone."""
    fired = p.layers["layer_1"]
    assert isinstance(fired, WindowFire)
    level = -(fired.threshold // 2) - 1
    p.nodes["layer_1_raw"].threshold = np.array(np.broadcast_to(level.reshape(-1, 1, 1), fired.level.shape))


def without_the_readouts(p: Patient) -> None:
    p.drop(*(f"layer_13_once_{key}" for key in ("one", "clock", "neg", "first", "bias")))


STAGED = {
    "level one too high": Fault("layer_4", lambda p: p.add("layer_4_raw", 1)),
    "level one too low": Fault("layer_8", lambda p: p.add("layer_8_raw", -1)),
    "level of one neuron": Fault("layer_4", lambda p: p.add("layer_4_raw", 2, busiest("layer_4"))),
    "another channel's threshold": Fault("layer_8", another_theta),
    "threshold one more": Fault("layer_3_branches_0_1", lambda p: p.add("layer_3_branches_0_1_fall", -1)),
    "twice the threshold": Fault("layer_8", spoilt_fall(2.0)),
    "window a step late": Fault("layer_4", window("layer_4", 1), refused="layer_8"),
    "window a step early": Fault("layer_4", window("layer_4", -1), refused="layer_4"),
    "opens a step late": Fault("layer_4", lambda p: p.add("layer_4_open", 1)),
    "opens a step early": Fault("layer_8", lambda p: p.add("layer_8_open", -1), refused="layer_8"),
    "shuts a step early": Fault("layer_8", lambda p: p.add("layer_8_shut", -1)),
    "shuts a step late": Fault("layer_12", lambda p: p.add("layer_12_shut", 1)),
    "bias dropped": Fault("layer_1", without_bias),
    "bias in every step": Fault("layer_4", lambda p: p.add_bias("layer_3_branches_0_2", 1)),
    "readout's bias dropped": Fault("", without_the_readouts),
    "a weight one more": Fault("layer_1", lambda p: p.add("layer_0", 1, busiest("layer_1")[:1])),
    "a weight one less": Fault("layer_8", lambda p: p.add("layer_7", -1, busiest("layer_8")[:1])),
    "a skip one more": Fault("layer_4", lambda p: p.add("layer_2_to_add", 1, 0)),
    "a weight of the readout": Fault("", lambda p: p.add("layer_13", 1, 0)),
    "a maximum of two": Fault("layer_3_branches_0_1", lambda p: p.add("layer_2", 1)),
    "a minimum of all but one": Fault("layer_8", lambda p: p.add("layer_6_first", -1, 1)),
    "image twice": Fault("layer_1", lambda p: p.add("input_once", 1), refused="input_once"),
    "pixels from another zero": Fault("layer_1", lambda p: p.add_bias("input_centred", 1)),
    "a spike for every gate": Fault("layer_4", lambda p: p.add("layer_4", -1), refused="layer_4"),
}


def another_group(p: Patient) -> None:
    for node in members("layer_8", 3):
        p.nodes[node].threshold = np.roll(p.nodes[node].threshold, 1, axis=0)


def one_neuron(p: Patient) -> None:
    for node in members("layer_4", 8):
        p.add(node, 2, busiest("layer_4"))


def missing(p: Patient) -> None:
    p.drop("layer_8_2", "layer_9_any_2", "layer_9_2")


def twice(p: Patient) -> None:
    p.nodes["more"] = copy.deepcopy(p.nodes["layer_4_3"])
    p.feed("add", "more")
    for node in ("layer_6_first_any", "layer_6_first"):
        p.nodes[f"{node}_more"] = copy.deepcopy(p.nodes[f"{node}_3"])
    p.feed("more", "layer_6_first_any_more")
    p.feed("layer_6_first_any_more", "layer_6_first_more")
    p.feed("layer_6_first_more", "layer_6_first_sum")


def without(nodes: Sequence[str], attribute: str) -> Callable[[Patient], None]:
    def harm(p: Patient) -> None:
        for name in nodes:
            setattr(p.nodes[name], attribute, 0 * getattr(p.nodes[name], attribute))

    return harm


def every(name: str, by: float, at: Any = ...) -> Callable[[Patient], None]:
    """Add to every node of the pool or group `name`."""

    def harm(p: Patient) -> None:
        for node in [*p.nodes]:
            if node == name or node.removeprefix(f"{name}_").isdigit():
                p.add(node, by, at)

    return harm


GROUPED = {
    "a threshold one too high": Fault("layer_4", lambda p: p.add("layer_4_3", 1)),
    "a threshold one too low": Fault("layer_8", lambda p: p.add("layer_8_2", -1)),
    "thresholds of one neuron": Fault("layer_4", one_neuron),
    "another channel's threshold": Fault("layer_8", another_group),
    "levels that cross": Fault("layer_4", lambda p: p.add("layer_4_2", 1000, (0, 0, 0)), refused="layer_4.*order"),
    "a threshold missing": Fault("layer_8", missing),
    "a threshold twice": Fault("layer_4", twice),
    "a threshold that nothing counts": Fault(
        "layer_12", lambda p: p.graph.edges.remove(("layer_12", "layer_12_sum")), refused="layer_12"
    ),
    "bias dropped": Fault("layer_8", without(["layer_7"], "bias")),
    "a weight one more": Fault("layer_1", lambda p: p.add("layer_0", 1, busiest("layer_1")[:1])),
    "a weight one less": Fault("layer_8", lambda p: p.add("layer_7", -1, busiest("layer_8")[:1])),
    "a skip one more": Fault("layer_4", lambda p: p.add("layer_2_to_add", 1, 0)),
    "a bias of the readout": Fault("", lambda p: p.add_bias("layer_13", 1)),
    "a maximum of two": Fault("layer_3_branches_0_1", every("layer_2", 1)),
    "a maximum of two at one level": Fault("layer_3_branches_0_1", lambda p: p.add("layer_2_3", 1), refused="layer_2"),
    "a minimum of all but one": Fault("layer_8", every("layer_6_first", -1, 1)),
    "a pool of one level missing": Fault(
        "layer_3_branches_0_1", lambda p: p.drop("layer_2_any_2", "layer_2_2"), refused="layer_1_2"
    ),
}


def counted(graph: nir.NIRGraph, values: dict[str, Any], name: str, staged: bool) -> Ints:
    """How often the neurons `name` fire, by who knows NIR alone."""
    if staged:
        return whole(values[name].sum(axis=0))
    drive = next(source for source, target in graph.edges if target == name)
    group = [b for a, b in graph.edges if a == drive and isinstance(graph.nodes[b], nir.Threshold)]
    return whole(np.sum([values[each][-1] for each in group], axis=0))


@pytest.mark.parametrize("kind", ["staged", "grouped"])
def test_the_patients_are_well(kind):
    staged, grouped, pixels, right = patients()
    network = staged if kind == "staged" else grouped
    graph = network.to_nir()
    values = run(graph, pixels, network.latency or 0)
    for name, count in right.counts.items():
        np.testing.assert_array_equal(counted(graph, values, name, kind == "staged"), count)
    equality = network.validate(pixels, backends=[]).equals_ann
    assert equality is not None
    assert equality.equal


@pytest.mark.parametrize(
    ("kind", "name"), [*(("staged", name) for name in STAGED), *(("grouped", name) for name in GROUPED)]
)
def test_is_caught_and_blamed_on_its_layer(kind, name):
    staged, grouped, pixels, right = patients()
    network, fault = (staged, STAGED[name]) if kind == "staged" else (grouped, GROUPED[name])
    p = Patient(network)
    fault.harm(p)
    steps = right.latency + BEYOND if kind == "staged" else 1
    values: dict[str, Any] = nir_primitives.run(p.graph, torch.from_numpy(pixels).float(), steps)
    counts = {layer: counted(p.graph, values, layer, kind == "staged") for layer in right.counts}
    wrong = [layer for layer, count in right.counts.items() if not np.array_equal(counts[layer], count)]
    output = values["output"].sum(axis=0) if kind == "staged" else values["output"][0]
    assert wrong[:1] == ([fault.wrong] if fault.wrong else []) or fault.refused
    assert wrong or fault.refused or not np.array_equal(output, right.output)
    if fault.refused:
        with pytest.raises(GraphError, match=fault.refused):
            from_nir(p.graph)
        return
    mutant = SpikingNetwork(from_nir(p.graph), network.ann)
    record = mutant.run(pixels, steps)
    for layer, count in counts.items():
        spikes = record.spikes(layer)
        np.testing.assert_array_equal(spikes.sum(axis=0) if kind == "staged" else spikes[0].sum(axis=1), count)
    np.testing.assert_array_equal(record.outputs()[-1], output)
    equality = mutant.validate(pixels, backends=[]).equals_ann
    assert equality is not None
    assert not equality.equal
    unexplained = [layer for layer, count in equality.unexplained.items() if count]
    assert unexplained[:1] == ([fault.wrong] if fault.wrong else [])
    assert equality.differing == {layer: int((counts[layer] != count).sum()) for layer, count in right.counts.items()}


FRACTIONS: dict[str, tuple[str, str, Callable[[Patient], object]]] = {
    "half a threshold": ("staged", "layer_8", spoilt_fall(0.5)),
    "an eighth of a bias in every step": (
        "staged",
        "layer_3_branches_0_1",
        lambda p: p.add_bias("layer_3_branches_0_0", 0.125),
    ),
    "half a bias": ("grouped", "layer_8", lambda p: p.add_bias("layer_7", 0.5)),
    "a weight and a half": ("grouped", "layer_8", lambda p: p.add("layer_7", 0.5, busiest("layer_8")[:1])),
}


@pytest.mark.parametrize("name", FRACTIONS)
def test_what_is_not_whole_is_refused_or_read_for_what_it_is(name):
    """Though all thresholds are whole, one more than a threshold is not what a neuron has to reach."""
    staged, grouped, pixels, _ = patients()
    kind, layer, harm = FRACTIONS[name]
    network = staged if kind == "staged" else grouped
    p = Patient(network)
    harm(p)
    try:
        mutant = SpikingNetwork(from_nir(p.graph), network.ann)
    except GraphError:
        return
    steps = mutant.latency or 0
    values = nir_primitives.run(p.graph, torch.from_numpy(pixels).float(), steps)
    given = pixels if mutant.graph.integer else pixels.astype(np.float32)
    spikes = mutant.run(given).spikes(layer)
    fired = spikes.sum(axis=0) if kind == "staged" else spikes[0].sum(axis=1)
    np.testing.assert_array_equal(fired, counted(p.graph, values, layer, kind == "staged"))
    equality = mutant.validate(given, backends=[]).equals_ann
    assert equality is not None
    assert not equality.equal


def test_a_last_window_that_is_late_counts_alike_and_is_told():
    """Nothing is lost by it but a step, which the windows show."""
    staged, _, pixels, _ = patients()
    p = Patient(staged)
    window("layer_12", 1)(p)
    mutant = SpikingNetwork(from_nir(p.graph), staged.ann)
    late, right = (network.validate(pixels, backends=[]).equals_ann for network in (mutant, staged))
    assert late is not None
    assert right is not None
    assert late.equal
    assert late.windows["layer_12"] == [step + 1 for step in right.windows["layer_12"]]
    assert mutant.latency == (staged.latency or 0) + 1
