"""The network as plain data: an ordered, immutable graph of small layers, ANN and SNN alike.

Arrays are numpy, without batch: a feature map is ``[C, H, W]``, a vector ``[F]``. A layer's equation is in its
docstring. Nothing here computes; `bridge.simulate` does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import cast

import numpy as np
from numpy.typing import NDArray

from bridge.errors import GraphError

Shape = tuple[int, ...]
Array = NDArray[np.floating]


@dataclass(frozen=True, eq=False, kw_only=True)
class Layer:
    """One operation: ``name`` identifies it in graphs, records and messages; ``inputs`` names its sources in order."""

    name: str
    inputs: tuple[str, ...]

    def output_shape(self, shape: Shape, *more: Shape) -> Shape:
        """Shape of the output, without batch, for inputs of these shapes. Raises `GraphError` if they do not fit."""
        return shape

    def expect(self, fits: bool, wanted: str, came: object) -> None:
        """Raise a `GraphError` naming this layer unless `fits`."""
        if not fits:
            raise GraphError(f"layer {self.name!r} ({type(self).__name__}): expected {wanted}, got {came}")


@dataclass(frozen=True, eq=False, kw_only=True)
class Input(Layer):
    """Where the data enters: ``y = x``, analog and the same at every time step (direct coding)."""

    shape: Shape
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class Affine(Layer):
    """Common to `Linear` and `Conv2d`: ``weight`` has its output channels first, ``bias`` one value for each."""

    weight: Array
    bias: Array

    def __post_init__(self) -> None:
        self.expect(
            self.bias.shape == self.weight.shape[:1],
            f"a bias of shape {self.weight.shape[:1]} for a weight of shape {self.weight.shape}",
            self.bias.shape,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Linear(Affine):
    """``y = W x + b``, weight ``[F_out, F_in]``, bias ``[F_out]``."""

    def output_shape(self, shape: Shape, *more: Shape) -> Shape:
        wanted = (self.weight.shape[1],)
        self.expect(shape == wanted, f"an input of shape {wanted} (flatten feature maps first)", shape)
        return (self.weight.shape[0],)


@dataclass(frozen=True, eq=False, kw_only=True)
class Conv2d(Affine):
    """``y = W * x + b`` (cross-correlation, zero padding), weight ``[C_out, C_in / groups, K_h, K_w]``."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def output_shape(self, shape: Shape, *more: Shape) -> Shape:
        channels = self.weight.shape[1] * self.groups
        self.expect(len(shape) == 3 and shape[0] == channels, f"a feature map of {channels} channels", shape)
        kernel = self.weight.shape[2:]
        return (self.weight.shape[0], *_window(self, shape, kernel, self.stride, self.padding, self.dilation))


@dataclass(frozen=True, eq=False, kw_only=True)
class Conv1d(Affine):
    """``y = W * x + b`` (cross-correlation, zero padding) on ``[C, N]``, weight ``[C_out, C_in / groups, K]``."""

    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1

    def output_shape(self, shape: Shape, *more: Shape) -> Shape:
        channels = self.weight.shape[1] * self.groups
        self.expect(len(shape) == 2 and shape[0] == channels, f"a signal of {channels} channels [C, N]", shape)
        window = (self.weight.shape[2],)
        sizes = _window(self, shape, window, (self.stride,), (self.padding,), (self.dilation,))
        return (self.weight.shape[0], *sizes)


@dataclass(frozen=True, eq=False, kw_only=True)
class Add(Layer):
    """``y = a + b`` of two layers of one shape, a residual join. Longer sums are chains of these."""

    def output_shape(self, shape: Shape, *more: Shape) -> Shape:
        self.expect(more == (shape,), f"two inputs of one shape {shape}", (shape, *more))
        return shape


@dataclass(frozen=True, eq=False, kw_only=True)
class Concat(Layer):
    """The channels of all inputs, one input after the other. An ANN's; the spiking graph has sums in its place."""

    def output_shape(self, shape: Shape, *more: Shape) -> Shape:
        alike = all(other[1:] == shape[1:] for other in more)
        self.expect(len(more) > 0 and alike, f"several inputs that differ in channels only from {shape}", more)
        return (shape[0] + sum(other[0] for other in more), *shape[1:])


@dataclass(frozen=True, eq=False, kw_only=True)
class BatchNorm(Layer):
    """``y_c = scale_c x_c + shift_c`` per channel: batch normalisation with its running statistics, as at inference."""

    scale: Array
    shift: Array

    def output_shape(self, shape: Shape, *more: Shape) -> Shape:
        self.expect(shape[:1] == self.scale.shape, f"{len(self.scale)} channels", shape)
        return shape


@dataclass(frozen=True, eq=False, kw_only=True)
class Scale(Layer):
    """``y_c = scale_c x_c`` per channel."""

    scale: Array

    def __post_init__(self) -> None:
        self.expect(bool(np.isfinite(self.scale).all()), "finite factors", self.scale)

    def output_shape(self, shape: Shape, *more: Shape) -> Shape:
        self.expect(shape[:1] == self.scale.shape, f"{len(self.scale)} channels", shape)
        return shape


@dataclass(frozen=True, eq=False, kw_only=True)
class AvgPool2d(Layer):
    """Mean over windows of ``kernel``; padded zeros count as values, as in ``torch.nn.AvgPool2d``'s default."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)

    def output_shape(self, shape: Shape, *more: Shape) -> Shape:
        self.expect(len(shape) == 3, "a feature map [C, H, W]", shape)
        return (shape[0], *_window(self, shape, self.kernel, self.stride, self.padding, (1, 1)))


@dataclass(frozen=True, eq=False, kw_only=True)
class SumPool2d(AvgPool2d):
    """Sum over windows of ``kernel``, zeros where they are padded: the average's part in whole numbers."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Flatten(Layer):
    """``[C, H, W]`` to ``[C·H·W]`` in C order."""

    def output_shape(self, shape: Shape, *more: Shape) -> Shape:
        return (int(np.prod(shape)),)


@dataclass(frozen=True, eq=False, kw_only=True)
class ClipFloorShift(Layer):
    """QCFS: ``a = λ · clip(floor(z·L/λ + 1/2) / L, 0, 1)`` (Bu et al., ICLR 2022, eq. 11).

    ``threshold`` is λ, one value per channel ``[C]``; ``levels`` is L.
    """

    levels: int
    threshold: Array

    def output_shape(self, shape: Shape, *more: Shape) -> Shape:
        self.expect(shape[:1] == self.threshold.shape, f"{len(self.threshold)} channels (one λ each)", shape)
        return shape


@dataclass(frozen=True, eq=False, kw_only=True)
class IntegrateFire(Layer):
    """Integrate-and-fire with soft reset, in the shifted potential ``u = v − v(0)``:

    ``u(0) = 0;  u += I;  s = [u ≥ level];  u −= threshold · s``, where ``level = threshold − v(0)``; both hold one
    value per channel ``[C]``.

    QCFS's twin starts at half its threshold, which is 1 unless the network is in whole numbers.
    """

    level: Array
    threshold: Array = field(default_factory=lambda: np.ones(1, np.float32))

    def __post_init__(self) -> None:
        self.expect(bool(np.all(np.isfinite(self.level))), "finite firing levels", self.level)
        self.expect(bool(np.all(np.isfinite(self.threshold) & (self.threshold > 0))), "thresholds > 0", self.threshold)
        self.expect(
            self.threshold.shape in ((1,), self.level.shape),
            f"one threshold for each of the {len(self.level)} levels, or one for all",
            self.threshold.shape,
        )
        object.__setattr__(self, "threshold", np.array(np.broadcast_to(self.threshold, self.level.shape)))

    def output_shape(self, shape: Shape, *more: Shape) -> Shape:
        self.expect(shape[:1] == self.level.shape, f"{len(self.level)} channels (one level each)", shape)
        return shape


def pointwise(name: str, source: str, matrix: Array, rank: int) -> Affine:
    """The affine layer that mixes the channels of `source` by `matrix` ``[C_out, C_in]`` at every position.

    `rank` is the number of dimensions of a signal: 1 for vectors, 2 for ``[C, N]``, 3 for ``[C, H, W]``.
    """
    kind: type[Affine] = {1: Linear, 2: Conv1d, 3: Conv2d}[rank]
    weight = matrix.reshape(*matrix.shape, *[1] * (rank - 1))
    return kind(name=name, inputs=(source,), weight=weight, bias=np.zeros(len(matrix)))


def average_pool(name: str, source: str, channels: int, kernel: Shape, stride: Shape, padding: Shape) -> Layer:
    """Average pooling of `channels`. NIR has none in one dimension: there a depthwise convolution takes its place."""
    if len(kernel) == 1:
        return Conv1d(
            name=name,
            inputs=(source,),
            weight=np.full((channels, 1, *kernel), 1 / kernel[0]),
            bias=np.zeros(channels),
            stride=stride[0],
            padding=padding[0],
            groups=channels,
        )
    sizes = {"kernel": kernel, "stride": stride, "padding": padding}
    return AvgPool2d(name=name, inputs=(source,), **{key: (value[0], value[1]) for key, value in sizes.items()})


def same_padding(kernel: Shape, dilation: Shape) -> Shape | None:
    """The padding on each side that keeps a signal's size at stride 1; None if it would take more on one side."""
    reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    return None if any(r % 2 for r in reach) else tuple(r // 2 for r in reach)


def _window(
    layer: Layer, shape: Shape, kernel: Shape, stride: Shape, padding: Shape, dilation: Shape
) -> tuple[int, ...]:
    """The sizes after sliding a window over the dimensions of `shape` behind the channels."""
    valid = min(kernel) >= 1 and min(stride) >= 1 and min(dilation) >= 1 and min(padding) >= 0
    layer.expect(valid, "positive kernel, stride and dilation", (kernel, stride, dilation, padding))
    sizes = tuple(
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, p, d in zip(shape[1:], kernel, stride, padding, dilation, strict=True)
    )
    layer.expect(min(sizes) >= 1, f"a feature map at least as large as the {kernel} window", shape)
    return sizes


@dataclass(frozen=True, eq=False)
class LayerGraph:
    """Layers in topological order: one `Input` first, every source before its use, the last layer is the output.

    ``shapes`` holds each layer's output shape, without batch. Building the graph checks all of this and raises
    `GraphError` with the layer's name.
    """

    layers: tuple[Layer, ...]
    shapes: dict[str, Shape] = field(init=False)

    def __post_init__(self) -> None:
        shapes: dict[str, Shape] = {}
        if [type(layer) for layer in self.layers].count(Input) != 1 or not isinstance(self.layers[0], Input):
            raise GraphError("a layer graph has exactly one Input, and it comes first")
        for layer in self.layers:
            if layer.name in shapes:
                raise GraphError(f"two layers are called {layer.name!r}: names must be unique")
            missing = [source for source in layer.inputs if source not in shapes]
            if missing:
                raise GraphError(
                    f"layer {layer.name!r} takes its input from {missing}, which no earlier layer provides"
                )
            if isinstance(layer, Input):
                shapes[layer.name] = layer.shape
            else:
                joins = isinstance(layer, Add | Concat)
                layer.expect(joins or len(layer.inputs) == 1, "one input", list(layer.inputs))
                layer.expect(len(layer.inputs) > 0, "an input", "none")
                shapes[layer.name] = layer.output_shape(*(shapes[source] for source in layer.inputs))
        used = {source for layer in self.layers for source in layer.inputs}
        unused = [layer.name for layer in self.layers[:-1] if layer.name not in used]
        if unused:
            raise GraphError(f"the output of {unused} goes nowhere; only the last layer may be the output")
        object.__setattr__(self, "shapes", shapes)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, name: str) -> Layer:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    @property
    def input(self) -> Input:
        return cast(Input, self.layers[0])

    @property
    def output(self) -> Layer:
        return self.layers[-1]

    @property
    def spiking(self) -> tuple[str, ...]:
        """Names of the spiking layers, in order."""
        return tuple(layer.name for layer in self.layers if isinstance(layer, IntegrateFire))

    @property
    def neurons(self) -> int:
        """How many neurons the spiking layers have together."""
        return sum(math.prod(self.shapes[name]) for name in self.spiking)

    @cached_property
    def constant(self) -> frozenset[str]:
        """Layers that the images reach without passing a neuron, and no spike does: the same at every time step."""
        names = {self.input.name}
        for layer in self.layers[1:]:
            if not isinstance(layer, IntegrateFire) and names.issuperset(layer.inputs):
                names.add(layer.name)
        return frozenset(names)

    @cached_property
    def integer(self) -> bool:
        """Whether this is a spiking network in whole numbers: from whole-number images, it computes nothing else."""
        kinds = Input | Affine | Add | Scale | SumPool2d | Flatten | IntegrateFire
        neurons = [layer for layer in self.layers if isinstance(layer, IntegrateFire)]
        others = [layer for layer in self.layers if isinstance(layer, kinds) and not isinstance(layer, IntegrateFire)]
        if not neurons or len(neurons) + len(others) < len(self.layers):
            return False
        # neurons first: in a network that is not in whole numbers their levels of 1/2 settle it at once
        values = ((layer, f.name) for layer in (*neurons, *others) for f in fields(layer))
        arrays = (getattr(layer, name) for layer, name in values)
        return all(bool((array == np.rint(array)).all()) for array in arrays if isinstance(array, np.ndarray))

    def free(self, name: str) -> str:
        """`name`, or `name` with as many underscores as it takes to be no layer's."""
        while name in self.shapes:
            name += "_"
        return name

    def consumers(self, name: str) -> list[Layer]:
        """The layers that read the output of `name`."""
        return [layer for layer in self.layers if name in layer.inputs]

    def rewrite(self, changes: Mapping[str, Sequence[Layer]]) -> LayerGraph:
        """A copy in which each layer named in `changes` gives way to the layers listed for it.

        Readers of a replaced layer read the last of its replacements; those of a layer replaced by nothing read that
        layer's own input.
        """
        layers: list[Layer] = []
        renamed: dict[str, str] = {}
        for layer in self.layers:
            moved = tuple(renamed.get(source, source) for source in layer.inputs)
            if layer.name not in changes:
                layers.append(layer if moved == layer.inputs else replace(layer, inputs=moved))
                continue
            replacements = changes[layer.name]
            for new in replacements:
                layers.append(replace(new, inputs=tuple(renamed.get(source, source) for source in new.inputs)))
            renamed[layer.name] = replacements[-1].name if replacements else moved[0]
        return LayerGraph(tuple(layers))
