"""Staged and grouped networks in integers: every train, window and output is what whole numbers say, and no sum passes.

The oracle reads the weights and thresholds of the integer ANN and computes with them in int64 by itself; the files are
run by an interpreter in int64 that knows NIR's primitives alone.
"""

from __future__ import annotations

import copy
import itertools
import random
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
from bridge import QCFS, GraphError, SpikingNetwork
from bridge.graph import (
    Add,
    Affine,
    AvgPool2d,
    BiasOnce,
    Conv1d,
    Conv2d,
    Flatten,
    GroupFire,
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
from bridge.nir_graph import from_nir, read

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
    networks.make_dyadic(model, 2)
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
    pixels: NDArray[np.float32]
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
    for schedule in ("staged", "grouped"):
        network = bridge.convert(model.eval(), x, schedule=schedule, steps=steps)
        made.append(network.quantize(bits, x, scheme))
    staged, grouped = made
    assert staged.ann is not None
    pixels = extreme(staged.ann, np.concatenate([staged.pixels(x[:5]).numpy(), noise(5, shape)]))
    return Pair(staged, grouped, pixels, expected(staged.ann, pixels))


def noise(count: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.random.default_rng(1).integers(0, 256, (count, *shape)).astype(np.float32)


def extreme(ann: LayerGraph, pixels: NDArray[np.float32], each: int = 3) -> NDArray[np.float32]:
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
    return np.concatenate([pixels, np.stack(patterns)]).astype(np.float32)


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
    floats = nir_primitives.run(graph, torch.from_numpy(p.pixels), steps)
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
    floats = nir_primitives.run(graph, torch.from_numpy(p.pixels), 2)
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


CASES = [*itertools.product(MODELS, (4, 5, 8, 12, 16), ("per_channel", "per_layer"), (None, 1, 3, 32))]


@pytest.mark.parametrize(("name", "bits", "scheme", "steps"), CASES)
def test_all(name, bits, scheme, steps, tmp_path):
    check(pair(name, bits, scheme, steps), tmp_path, bits)
