"""The spiking network in whole numbers: int8 weights, whole biases and thresholds, sums instead of averages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bridge.errors import ConversionError, GraphError
from bridge.graph import (
    Affine,
    AvgPool2d,
    Input,
    IntegrateFire,
    Layer,
    LayerGraph,
    Scale,
    SpikeCount,
    SumPool2d,
    aligned,
)
from bridge.graph.loihi_registers import (
    LARGEST_BIAS_MANTISSA,
    LARGEST_INPUT,
    LARGEST_STATE,
    LARGEST_THRESHOLD,
    LARGEST_WEIGHT,
    UNIT,
    WEIGHT_BITS,
)
from bridge.graph.ranges import EXACT, Range, ranges
from bridge.passes.fold_pooling import fold_pooling
from bridge.passes.quantization.scale_groups import Known, ScaleGroup, tied
from bridge.passes.scaling import scale_inputs
from bridge.simulate.at_rest import at_rest
from bridge.simulate.ops import evaluate, tensor
from bridge.simulate.reference import simulate
from bridge.simulate.registers import expect_registers

Floats = NDArray[np.float64]

FACTORS = np.geomspace(0.5, 2.0, 33)
"""Scales that are tried, times the one at which the largest weight just fits. Larger ones clip it."""
ROOM = 32
"""Time steps for which potentials must have room in their registers, on the calibration images."""
LARGEST_SCALE_EXPONENT = 7
"""Of a `Scale`'s power of two, as of Loihi's weight exponent."""
BARE = 2.0**12
"""The scale of a layer without weights: a bias below 1 then fits Loihi's mantissa."""
UNHEARD = 1e-12
"""Mean square with which a channel counts at least before a layer that only passes values on. One that is silent on the
calibration images would else have its weights rounded at any scale, and what reads them would need weights that fit no
other channel."""
SMALL_LOSS = 1e-4
"""Below it, rounding is no concern; 8 bits lose as much."""
LARGEST_LOSS = 0.1
"""Of the mean square of what a layer's weights do, the share that rounding may lose; 4 bits lose 0.02."""
ROUNDS = 50
"""How often scales are lowered to meet the bounds before giving up."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """Of a layer's output over the calibration images and positions, at the float network's firing rates, ``[C]`` each.

    ``excess`` is the most by which it leaves [0, 1], the drive that a neuron can answer: that much is added to the
    potential in each step.
    """

    mean: Floats
    square: Floats
    excess: Floats


def quantize(
    graph: LayerGraph, batches: Iterable[Tensor], weight_bits: int, *, per_channel: bool, steps: int
) -> LayerGraph:
    """The spiking or counting `graph`, whose input is in pixels, with weights of `weight_bits` bits and all else whole.

    A neuron's drive and its threshold are multiplied by a scale σ and rounded; it does not notice σ. What is added up
    shares a σ (`scale_groups`), and so all branches of a residual sum meet in the same units. σ is the one that makes
    the error of the drive least, weighted by how strongly the calibration images in `batches` use each input: less
    than the largest weight would allow where a bound asks for it, more where clipping a few weights pays. What
    rounding shifts the drive by on average is taken back in the bias. Rates are those of the first `steps` time steps;
    of a counting graph (`bridge.passes.counting`), the counts.

    For up to 8 bits the bounds are those of Loihi's registers (`bridge.graph.loihi_registers`) for one step; for more,
    sums below 2^24 alone. Of a counting graph, all sums over a run and potentials keep within 2^24 (up to 8 bits, 2^23
    for potentials, as Loihi's registers do), with the biases in their layers and without. A `Scale`, such as a skip
    connection has, is a mantissa of at least 8 bits times a power of two.

    Raises:
        ConversionError: a layer cannot meet a bound at any scale; the message names it, the bound and the numbers.
    """
    graph, known, groups = tied(graph)
    statistics = _statistics(graph, batches, steps)
    plans = [_Plan(graph, group, per_channel, statistics) for group in groups]
    for _ in range(ROUNDS):
        result = _rounded(graph, known, plans, statistics, weight_bits)
        most, quiet = ranges(result), at_rest(result)
        reach = _without_biases(result)
        changed: set[str] = set()
        problems: list[tuple[_Plan, ConversionError]] = []
        for plan in plans:
            try:
                changed |= set(plan.group.gains if plan.lower(result, most, quiet, reach, weight_bits) else ())
            except ConversionError as problem:
                problems.append((plan, problem))
        if not changed and not problems:
            for plan in plans:
                changed |= _relieve(plan, plans)
            if not changed:
                for plan in plans:
                    plan.expect_precision()
                if weight_bits <= WEIGHT_BITS:
                    _expect_registers(result)
                return result
        for plan, error in problems:
            relieved = _relieve(plan, plans)
            if not relieved:
                raise error
            changed |= relieved
        for plan in plans:
            if any(source in changed for layer in plan.group.weighted for source in layer.inputs):
                plan.scale = None
    raise ConversionError(
        f"layers {sorted(changed)}: in {ROUNDS} rounds no scales were found at which they keep their bounds. "
        "Affine layers in a row use up the range of whole numbers: put a QCFS between them"
    )


def _expect_registers(graph: LayerGraph) -> None:
    """Raise `ConversionError` unless the exporters for Loihi take `graph`: by the very check that they make."""
    try:
        expect_registers(fold_pooling(graph, LARGEST_WEIGHT))
    except GraphError as error:
        raise ConversionError(str(error)) from error


def _relieve(plan: _Plan, plans: Sequence[_Plan]) -> set[str]:
    """Halve the scales of what `plan` hears without a neuron between, if that leaves it less range than those need."""
    heard = {source for member in plan.members for source in member.layer.inputs}
    halved = [
        other
        for other in plans
        if not heard.isdisjoint(other.group.gains) and max(SMALL_LOSS, other.loss(0.5)) < plan.loss()
    ]
    for other in halved:
        assert other.scale is not None
        other.scale = other.scale / 2
    return {name for other in halved for name in other.group.gains}


class _Plan:
    """A group's scale σ, ``[channels]``, as far as it is chosen, and what it must heed."""

    def __init__(
        self, graph: LayerGraph, group: ScaleGroup, per_channel: bool, statistics: Mapping[str, Statistics]
    ) -> None:
        self.group = group
        self.statistics = statistics
        self.channels = group.channels if per_channel else 1
        self.scale: Floats | None = None
        self.members: list[_Member] = []
        self.bias_step = 1
        self.pixels_only = bool(group.neurons) and all(n.inputs[0] in graph.constant for n in group.neurons)
        gain = int(np.gcd.reduce([group.gains[neuron.inputs[0]] for neuron in group.neurons] or [1]))
        self.counting = any(isinstance(layer, SpikeCount) for layer in graph)
        # The thresholds of plain neurons are even, so that half of one is whole.
        self.even = self.step = (1 if self.counting else 2) / gain
        self.stuck = False

    def of(self, name: str, channels: int) -> Floats:
        """σ of the member `name`, which has that many channels."""
        assert self.scale is not None
        return np.repeat(self.scale * self.group.gains[name], channels // self.channels)

    def loss(self, factor: float = 1.0) -> float:
        """Of the mean square of what its weights do, the share that rounding loses at `factor` times its scale.

        The largest of its layers; everything if a bound could not be met.
        """
        assert self.scale is not None
        return 1.0 if self.stuck else max(self._losses(self.scale * factor), default=0.0)

    def expect_precision(self) -> None:
        """Raise `ConversionError` if the bounds leave a layer's weights too few of their bits."""
        assert self.scale is not None
        for member, lost in zip(self.members, self._losses(self.scale), strict=True):
            if lost > LARGEST_LOSS:
                largest = np.abs(member.rounded(self.scale)).max()
                raise ConversionError(
                    f"layer {member.layer.name!r}: to keep every sum within its bound, its weights would be whole up "
                    f"to {largest:.0f}, off by {100 * lost**0.5:.0f} %. Affine layers in a row, those of a "
                    "concatenation among them, use up the range: put a QCFS between them"
                )

    def _losses(self, scale: Floats) -> list[float]:
        return [member.loss(scale) for member in self.members]

    def choose(self) -> None:
        """Set σ to the one of least error. Raises `ConversionError` for weights too large for any."""
        self.step = self.even
        fitting = np.full(self.channels, np.inf)
        for member in self.members:
            largest = np.abs(member.weight.reshape(self.channels, -1)).max(axis=1)
            with np.errstate(divide="ignore"):
                fitting = np.minimum(fitting, member.largest / largest)
            if (fitting * FACTORS[-1] < self.step).any():
                raise ConversionError(
                    f"layer {member.layer.name!r}: for a weight of {largest.max():.4g} thresholds to fit the largest "
                    f"whole weight, {member.largest}, the threshold would be below {self.step:.0f}; "
                    "is a λ far too small?"
                )
        # A channel without weights, such as a pruned one, still has a bias, which a threshold like the others' keeps.
        bare = ~np.isfinite(fitting)
        fitting = np.where(bare, BARE if bare.all() else np.median(fitting[~bare]), fitting)
        if self.pixels_only and not self.counting and (fitting > 8 * UNIT * self.even).all():
            self.step = UNIT * self.even  # so that registers can hold them in units of 1 (`graph.loihi_registers`)
        best = np.full(self.channels, np.inf)
        self.scale = np.full(self.channels, self.step)
        factors = [*FACTORS]
        if not self.group.neurons:  # weights that only pass values on, such as a concatenation's, need not exceed 1
            self.step = 0.0
            factors = [1 / max(member.largest for member in self.members), *FACTORS]
        for factor in factors:
            scale = fitting * factor
            if self.step:
                scale = self.step * np.maximum(1, np.rint(scale / self.step))
            error = sum(member.error(scale) + bare * member.bias_error(scale) for member in self.members)
            self.scale = np.where(error < best * (1 - 1e-9), scale, self.scale)
            best = np.minimum(best, error)

    def lower(
        self,
        graph: LayerGraph,
        most: Mapping[str, Range],
        quiet: Mapping[str, Floats],
        reach: Mapping[str, Floats],
        weight_bits: int,
    ) -> bool:
        """Lower σ where a layer of the whole-number `graph` is out of bounds; say whether that was needed.

        `quiet` is what each layer gives without an image or a spike, `reach` is `_without_biases`.

        Raises `ConversionError` if it cannot be lowered any further.
        """
        assert self.scale is not None
        self.stuck = True  # until the end
        largest = LARGEST_STATE if self.counting and weight_bits <= WEIGHT_BITS else EXACT
        bounds = [(name, "a partial sum", most[name].partial, largest) for name in self.group.gains]
        bounds += [(name, "a sum over a run", reach[name], largest) for name in self.group.gains if name in reach]
        for neuron in self.group.neurons:
            if self.counting:
                bounds.append(self._over_a_run(graph[neuron.name], most, reach, weight_bits))
            else:
                bounds += self._potentials(graph[neuron.name], most, weight_bits)
        if weight_bits <= WEIGHT_BITS and not self.counting:
            if graph.output.name in self.group.gains:
                bounds.append((graph.output.name, "the readout's input", most[graph.output.name].size, LARGEST_INPUT))
            for neuron in () if self.pixels_only else self.group.neurons:
                bias = quiet[neuron.inputs[0]]
                if np.abs(bias).max() > LARGEST_BIAS_MANTISSA and not _hears_pixels(graph, neuron.inputs[0]):
                    coarse, self.bias_step = self.bias_step, 2
                    even = not (bias % 2).any()  # what affine layers in a row come to need not be, if each bias is
                    limit = (2 if even else 1) * LARGEST_BIAS_MANTISSA
                    bounds.append((neuron.name, "a bias", np.abs(bias), limit))
                    if coarse == 1:
                        self.stuck = False
                        return True
        scale = self.scale.copy()
        for name, what, values, limit in bounds:
            value = values.reshape(self.channels, -1).max(axis=1)
            with np.errstate(divide="ignore"):
                allowed = np.where(value > limit, self.scale * (limit / value) * 0.99, self.scale)
            lowered = np.minimum(scale, self.step * np.floor(allowed / self.step) if self.step else allowed)
            if (lowered < self.step).any():
                worst = float(value.max())
                fewer = weight_bits > WEIGHT_BITS
                remedy = "fewer weight bits" if fewer else "more than 8 where Loihi's registers do not matter"
                raise ConversionError(
                    f"layer {name!r}: {what} reaches {worst:.0f}, the limit is {limit}, and its threshold cannot be "
                    f"lowered to meet it; use {remedy}"
                )
            scale = lowered
        changed = bool((scale != self.scale).any())
        self.scale = scale
        self.stuck = False
        return changed

    def _over_a_run(
        self, neuron: Layer, most: Mapping[str, Range], reach: Mapping[str, Floats], weight_bits: int
    ) -> tuple[str, str, Floats, int]:
        """The bound on the potential of a `SpikeCount`: layer, quantity, its size a channel, its limit."""
        assert isinstance(neuron, SpikeCount)
        (source,) = neuron.inputs
        limit = LARGEST_STATE if weight_bits <= WEIGHT_BITS else EXACT
        drive = np.maximum(most[source].partial, reach[source])
        return neuron.name, "the potential", drive + neuron.steps * neuron.threshold.astype(np.float64), limit

    def _potentials(
        self, neuron: Layer, most: Mapping[str, Range], weight_bits: int
    ) -> list[tuple[str, str, Floats, int]]:
        """The bounds on threshold and potential of `neuron`: layer, quantity, its size a channel, its limit."""
        assert isinstance(neuron, IntegrateFire)
        (source,) = neuron.inputs
        threshold = neuron.threshold.astype(np.float64)
        if weight_bits > WEIGHT_BITS:
            limits = (EXACT, EXACT)
        elif self.pixels_only and (threshold % UNIT == 0).all():  # held in units of 1, not of 64
            limits = (LARGEST_THRESHOLD * UNIT, LARGEST_STATE)
        else:
            limits = (LARGEST_THRESHOLD, LARGEST_INPUT)
        later = (ROOM * self.statistics[source].excess + 1) * threshold
        return [
            (neuron.name, "the threshold", threshold, limits[0]),
            (neuron.name, "the potential after one step", most[source].size + threshold, limits[1]),
            (neuron.name, f"the potential after {ROOM} steps of the calibration images", later, limits[1]),
        ]


class _Member:
    """A layer with weights, as its group's search sees it: weights for whole-number inputs at σ = 1.

    ``weight`` is ``[C, ...]``; ``use`` broadcasts against it: how much the square of an error in each weight counts.
    """

    def __init__(
        self, layer: Affine | Scale, gain: int, source: Floats, statistics: Statistics, bits: int, *, passes_on: bool
    ) -> None:
        """`source` is σ of its input, a channel, `statistics` are that input's; it `passes_on` what no neuron reads."""
        self.layer = layer
        self.gain = gain
        if isinstance(layer, Scale):
            self.mantissa = 2 ** (max(bits, WEIGHT_BITS) - 1) - 1
            self.largest = self.mantissa * 2**LARGEST_SCALE_EXPONENT
            self.weight: Floats = layer.scale.astype(np.float64) * gain / aligned(source, layer.scale.ndim)
        else:
            self.mantissa = self.largest = 2 ** (bits - 1) - 1
            self.weight = scale_inputs(layer, gain / source).weight.astype(np.float64)
        least = UNHEARD if passes_on or isinstance(layer, Scale) else 0.0
        self.use = self._spread(source**2 * np.maximum(statistics.square, least))
        self.real_use = self._spread(source**2 * statistics.square)
        self.mean = self._spread(source * statistics.mean)

    def error(self, scale: Floats) -> Floats:
        """The mean square error of the drive, one a channel of `scale`, if weights are rounded at it."""
        error = np.square(self.rounded(scale) / self._rows(scale) - self.weight) * self.use
        total: Floats = error.reshape(len(scale), -1).sum(axis=1)
        return total

    def bias_error(self, scale: Floats) -> Floats:
        """The square of what rounding its bias at `scale` shifts the drive by, one a channel of `scale`."""
        if isinstance(self.layer, Scale):
            return np.zeros(len(scale))
        rows = self._rows(scale).reshape(-1) * self.gain
        bias = self.layer.bias * rows
        total: Floats = np.square((np.rint(bias) - bias) / rows).reshape(len(scale), -1).sum(axis=1)
        return total

    def loss(self, scale: Floats) -> float:
        """Of the mean square of what its weights do, the share that rounding at `scale` loses."""
        whole = float(np.sum(np.square(self.weight) * self.real_use))
        lost = np.square(self.rounded(scale) / self._rows(scale) - self.weight) * self.real_use
        return float(lost.sum()) / max(whole, 1e-300)

    def rounded(self, scale: Floats) -> Floats:
        """The whole weights at `scale`."""
        values = self.weight * self._rows(scale)
        unit = 1.0
        if isinstance(self.layer, Scale):  # 2^exponent
            unit = 2.0 ** np.ceil(np.log2(np.maximum(np.abs(values) / self.mantissa, 1))).clip(
                0, LARGEST_SCALE_EXPONENT
            )
        whole: Floats = unit * np.clip(np.rint(values / unit), -self.mantissa, self.mantissa)
        return whole

    def whole(self, scale: Floats, bias_step: int) -> Layer:
        """The layer in whole numbers, its output ``scale · gain`` times what it was."""
        weight = self.rounded(scale)
        if isinstance(self.layer, Scale):
            return replace(self.layer, scale=weight.astype(np.float32))
        rows = self._rows(scale)
        missed = (self.weight * rows - weight) * self.mean
        bias = self.layer.bias * rows.reshape(-1) * self.gain + missed.reshape(len(weight), -1).sum(axis=1)
        bias = bias_step * np.rint(bias / bias_step)
        return replace(self.layer, weight=weight.astype(np.float32), bias=bias.astype(np.float32))

    def _rows(self, scale: Floats) -> Floats:
        """`scale` for each output channel, to broadcast against the weights."""
        return scale.repeat(len(self.weight) // len(scale)).reshape(-1, *[1] * (self.weight.ndim - 1))

    def _spread(self, values: Floats) -> Floats:
        """One value an input channel, to broadcast against the weights."""
        if isinstance(self.layer, Scale):
            return aligned(values, self.weight.ndim)
        groups = getattr(self.layer, "groups", 1)
        per_output = np.repeat(values.reshape(groups, -1), len(self.weight) // groups, axis=0)
        return per_output.reshape(*self.weight.shape[:2], *[1] * (self.weight.ndim - 2))


def _rounded(
    graph: LayerGraph, known: Known, plans: Sequence[_Plan], statistics: Mapping[str, Statistics], bits: int
) -> LayerGraph:
    """The graph at the plans' scales, which are chosen where they are not yet."""
    scales = {name: np.full(graph.shapes[name][0], float(gain)) for name, gain in known.items()}
    changes: dict[str, list[Layer]] = {}
    for plan in plans:
        plan.members = [
            _Member(
                *(w, plan.group.gains[w.name], scales[w.inputs[0]], statistics[w.inputs[0]], bits),
                passes_on=not plan.group.neurons,
            )
            for w in plan.group.weighted
        ]
        if plan.scale is None:
            plan.choose()
        assert plan.scale is not None
        scales |= {name: plan.of(name, graph.shapes[name][0]) for name in plan.group.gains}
        changes |= {member.layer.name: [member.whole(plan.scale, plan.bias_step)] for member in plan.members}
        for neuron in plan.group.neurons:
            threshold = scales[neuron.inputs[0]].astype(np.float32)
            rounded = np.ceil if isinstance(neuron, SpikeCount) else np.rint  # the first whole number that reaches it
            changes[neuron.name] = [replace(neuron, level=rounded(neuron.level * threshold), threshold=threshold)]
    for layer in graph:
        if type(layer) is AvgPool2d:
            sizes = {"kernel": layer.kernel, "stride": layer.stride, "padding": layer.padding}
            changes[layer.name] = [SumPool2d(name=layer.name, inputs=layer.inputs, **sizes)]
    return graph.rewrite(changes)


def _without_biases(graph: LayerGraph) -> dict[str, Floats]:
    """By layer of the counting `graph`: how far it can go without any bias, and what biases then come to beside it.

    A staged network has its biases in its levels, and so other sums than the counting network it is made from. Empty
    for a spiking network.
    """
    if not any(isinstance(layer, SpikeCount) for layer in graph):
        return {}
    bare = graph.rewrite(
        {layer.name: [replace(layer, bias=0 * layer.bias)] for layer in graph if isinstance(layer, Affine)}
    )
    rest = at_rest(graph)
    sizes = {name: np.abs(value).reshape(len(value), -1).max(axis=1) for name, value in rest.items()}
    return {name: found.partial + sizes[name] for name, found in ranges(bare).items()}


def _hears_pixels(graph: LayerGraph, name: str) -> bool:
    layer = graph[name]
    if isinstance(layer, Input | IntegrateFire):
        return isinstance(layer, Input)
    return any(_hears_pixels(graph, source) for source in layer.inputs)


def _statistics(graph: LayerGraph, batches: Iterable[Tensor], steps: int) -> dict[str, Statistics]:
    """Of each layer of the float `graph`, its spiking layers at the rates they have on the calibration images."""
    count = 0
    sums = {layer.name: np.zeros((2, graph.shapes[layer.name][0])) for layer in graph}
    excess = {layer.name: np.zeros(graph.shapes[layer.name][0]) for layer in graph}
    for x in batches:
        counting = any(isinstance(layer, SpikeCount) for layer in graph)
        record = None if counting else simulate(graph, x, steps)
        values: dict[str, Tensor] = {}
        for layer in graph:
            name = layer.name
            if isinstance(layer, Input):
                values[name] = x
            elif isinstance(layer, IntegrateFire) and record is not None:
                values[name] = tensor(record.spikes(name).mean(axis=0, dtype=np.float32))
            else:
                values[name] = evaluate(layer, *(values[source] for source in layer.inputs))
            flat = values[name].double().reshape(len(x), graph.shapes[name][0], -1)
            sums[name] += torch.stack([flat.mean(2).sum(0), flat.square().mean(2).sum(0)]).numpy()
            outside = (flat - flat.clamp(0, 1)).abs().amax(dim=(0, 2)).numpy()
            excess[name] = np.maximum(excess[name], outside)
        count += len(x)
    return {name: Statistics(total[0] / count, total[1] / count, excess[name]) for name, total in sums.items()}
