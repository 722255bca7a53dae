"""The layers of a network as plain data, ANN and SNN alike: one frozen dataclass a kind.

Arrays are numpy, without batch: a feature map is ``[C, H, W]``, a vector ``[F]``. A layer's equation is in its
docstring. Nothing here computes; `bridge.simulate` does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from bridge._util.shown import Shown
from bridge.errors import GraphError

Shape = tuple[int, ...]
Array = NDArray[np.floating]
Number = TypeVar("Number", bound=np.generic)


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Layer(Shown):
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


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Input(Layer):
    """Where the data enters: ``y = x``, analog and the same at every time step (direct coding)."""

    shape: Shape
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
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


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Linear(Affine):
    """``y = W x + b``, weight ``[F_out, F_in]``, bias ``[F_out]``."""

    def output_shape(self, shape: Shape, *more: Shape) -> Shape:
        wanted = (self.weight.shape[1],)
        self.expect(shape == wanted, f"an input of shape {wanted} (flatten feature maps first)", shape)
        return (self.weight.shape[0],)


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
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


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
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


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Add(Layer):
    """``y = a + b`` of two layers of one shape, a residual join. Longer sums are chains of these."""

    def output_shape(self, shape: Shape, *more: Shape) -> Shape:
        self.expect(more == (shape,), f"two inputs of one shape {shape}", (shape, *more))
        return shape


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Concat(Layer):
    """The channels of all inputs, one input after the other. An ANN's; the spiking graph has sums in its place."""

    def output_shape(self, shape: Shape, *more: Shape) -> Shape:
        alike = all(other[1:] == shape[1:] for other in more)
        self.expect(len(more) > 0 and alike, f"several inputs that differ in channels only from {shape}", more)
        return (shape[0] + sum(other[0] for other in more), *shape[1:])


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class BatchNorm(Layer):
    """``y_c = scale_c x_c + shift_c`` per channel: batch normalisation with its running statistics, as at inference."""

    scale: Array
    shift: Array

    def output_shape(self, shape: Shape, *more: Shape) -> Shape:
        self.expect(shape[:1] == self.scale.shape, f"{len(self.scale)} channels", shape)
        return shape


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Scale(Layer):
    """``y = scale · x``; ``scale`` holds one factor per channel ``[C]``, or one per position, in the input's shape."""

    scale: Array

    def __post_init__(self) -> None:
        self.expect(bool(np.isfinite(self.scale).all()), "finite factors", self.scale)

    @property
    def per_position(self) -> bool:
        """Whether it holds one factor per position of a feature map, where no convolution can take its place."""
        return self.scale.ndim > 1

    def output_shape(self, shape: Shape, *more: Shape) -> Shape:
        expected = f"an input of shape {self.scale.shape}" if self.per_position else f"{len(self.scale)} channels"
        self.expect(self.scale.shape in (shape, shape[:1]), expected, shape)
        return shape


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class AvgPool2d(Layer):
    """Mean over windows of ``kernel``; padded zeros count as values, as in ``torch.nn.AvgPool2d``'s default."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)

    def output_shape(self, shape: Shape, *more: Shape) -> Shape:
        self.expect(len(shape) == 3, "a feature map [C, H, W]", shape)
        return (shape[0], *_window(self, shape, self.kernel, self.stride, self.padding, (1, 1)))


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class SumPool2d(AvgPool2d):
    """Sum over windows of ``kernel``, zeros where they are padded: the average's part in whole numbers."""


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class MaxPool(Layer):
    """Maximum over windows of ``kernel``, in one or two dimensions; what is padded counts for nothing.

    An ANN's. ``minimum`` says for which channels it is the minimum instead, as behind a negative factor. With ``ceil``,
    windows that begin inside the map or its first padding are counted though they end beyond it.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    ceil: bool = False
    minimum: NDArray[np.bool_] | None = None

    def output_shape(self, shape: Shape, *more: Shape) -> Shape:
        self.expect(len(shape) == len(self.kernel) + 1, f"a map of {len(self.kernel)} dimensions and channels", shape)
        if not self.ceil:
            return (shape[0], *_window(self, shape, self.kernel, self.stride, self.padding, self.dilation))
        sizes = []
        for size, k, s, p, d in zip(shape[1:], self.kernel, self.stride, self.padding, self.dilation, strict=True):
            left = size + 2 * p - d * (k - 1) - 1
            count = -(-left // s) + 1
            sizes.append(count - 1 if (count - 1) * s >= size + p else count)  # as torch does
        self.expect(min(sizes) >= 1, f"a feature map at least as large as the {self.kernel} window", shape)
        return (shape[0], *sizes)


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Flatten(Layer):
    """``[C, H, W]`` to ``[C·H·W]`` in C order."""

    def output_shape(self, shape: Shape, *more: Shape) -> Shape:
        return (int(np.prod(shape)),)


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class ClipFloorShift(Layer):
    """QCFS: ``a = λ · clip(floor(z·L/λ + 1/2) / L, 0, 1)`` (Bu et al., ICLR 2022, eq. 11).

    ``threshold`` is λ, one value per channel ``[C]``; ``levels`` is L.
    """

    levels: int
    threshold: Array

    def output_shape(self, shape: Shape, *more: Shape) -> Shape:
        self.expect(shape[:1] == self.threshold.shape, f"{len(self.threshold)} channels (one λ each)", shape)
        return shape


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
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


def aligned(values: NDArray[Number], rank: int) -> NDArray[Number]:
    """`values`, one per channel ``[C]`` or one per position, shaped to broadcast over a signal of `rank` dimensions."""
    return values.reshape(*values.shape, *[1] * (rank - values.ndim))


def spread(values: NDArray[Number], shape: Shape) -> NDArray[Number]:
    """`values`, one per channel ``[C]`` or one per position, repeated over `shape` ``[C, ...]``: a read-only view."""
    return np.broadcast_to(aligned(values, len(shape)), shape)


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
