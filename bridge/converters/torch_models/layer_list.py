"""The layers made of a model so far, and the ways in which a signal becomes a layer's output."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from bridge.converters.index_tracing import NOTHING, Indices, layers_of, of_one_image
from bridge.converters.remedies import IN_PLACE, MIXES_IMAGES, ONE_BIAS, ONE_NUMBER
from bridge.converters.torch_models.signals import Floats, Signal
from bridge.errors import ConversionError, GraphError
from bridge.graph import BatchNorm, ClipFloorShift, Input, Layer, Scale, Shape, aligned
from bridge.simulate.ops import evaluate, parameter

Result = TypeVar("Result")


@dataclass(frozen=True)
class Turn:
    """A transposition of the last two dimensions of an array, or none, and then mirrorings of the last ones."""

    transposed: bool = False
    mirrored: tuple[int, ...] = ()

    def of(self, array: NDArray[Any]) -> NDArray[Any]:
        """`array`, turned."""
        return np.flip(array.swapaxes(-1, -2) if self.transposed else array, self.mirrored).copy()

    def back(self, array: NDArray[Any]) -> NDArray[Any]:
        """The array that is `array` when it is turned."""
        array = np.flip(array, self.mirrored)
        return (array.swapaxes(-1, -2) if self.transposed else array).copy()

    def pairs(self, values: Sequence[int]) -> tuple[int, ...]:
        """One value for each dimension of space, as it was before the turn."""
        return tuple(values[::-1]) if self.transposed else tuple(values)


def turns(rank: int) -> list[Turn]:
    """All turns of maps of so many dimensions, but for the one that does nothing."""
    axes = [(), (-1,)] if rank == 1 else [(), (-1,), (-2,), (-2, -1)]
    return [Turn(swap, axis) for swap in ((False,) if rank == 1 else (False, True)) for axis in axes][1:]


class LayerList:
    """Layers in the order in which they are made, each held against what the model did with the same input.

    ``shapes`` are those of their outputs, without batch; ``outputs`` what they give for ``images`` ``[B, ...]``.
    ``maximum`` says whether maximum pools may be layers. ``matrices`` says why a layer that gives a vector is a matrix
    in the place of something else.
    """

    input = "input"

    def __init__(self, images: Tensor, maximum: bool = False) -> None:
        self.images = images
        self.maximum = maximum
        self.layers: list[Layer] = []
        self.shapes: dict[str, Shape] = {}
        self.outputs: dict[str, Tensor] = {}
        self.matrices: dict[str, str] = {}
        self.precision = 0.0
        self._taken = {self.input, "output"}
        self._laid_out: dict[tuple[Any, ...], str] = {}
        self._start(self.input, images)

    @property
    def batch(self) -> int:
        """Images in a batch."""
        return len(self.images)

    def note_precision(self, value: Tensor) -> None:
        """The model computes in the type of `value`: what it rounds is rounding from here on."""
        if value.is_floating_point():
            self.precision = max(self.precision, torch.finfo(value.dtype).eps)

    def constant(self, value: Tensor) -> Signal:
        """A signal that is a constant `value`."""
        nothing = np.full(tuple(value.shape), NOTHING)
        offset = value.detach().cpu().double().numpy().copy()
        return Signal(self.input, self.whole(self.input), nothing, None, offset)

    def stand_in(self, value: Tensor) -> Signal:
        """A signal in the place of one that no layer makes, so that what follows can be looked at."""
        name = self.name("refused")
        self._start(name, value if value.dim() else value.reshape(1))
        return Signal(name, tuple(value.shape))

    def _start(self, name: str, value: Tensor) -> None:
        self.shapes[name] = tuple(value.shape[1:])
        self.layers.append(Input(name=name, shape=self.shapes[name]))
        self.outputs[name] = value.detach().cpu().clone()

    def name(self, title: str) -> str:
        """A name for a layer that is called `title`: unique, and a Python identifier."""
        base = "".join(each if each.isalnum() or each == "_" else "_" for each in title)
        base = base if base[:1].isalpha() else f"layer_{base.lstrip('_')}"
        name, count = base, 1
        while name in self._taken or hasattr(fx.GraphModule, name):  # exporters make attributes of these names
            name, count = f"{base}_{count}", count + 1
        self._taken.add(name)
        return name

    def shape_of(self, layer: Layer) -> Shape:
        """The shape that `layer` gives, without batch. Raises `ConversionError` if it does not fit its inputs."""
        try:
            return layer.output_shape(*(self.shapes[source] for source in layer.inputs))
        except GraphError as error:
            raise ConversionError(str(error)) from error

    def add(self, layer: Layer, value: Tensor | None = None) -> str:
        """Add `layer` and return its name. `value` is what the model computed in its place.

        Raises `ConversionError` if the layer does not fit its inputs, or computes something else.
        """
        shape = self.shape_of(layer)
        with torch.no_grad():
            output = evaluate(layer, *(self.outputs[source] for source in layer.inputs))
        if value is not None:
            value = value.detach().cpu().reshape(output.shape)
            edges = None
            if isinstance(layer, ClipFloorShift):
                edges = _edges(layer, self.outputs[layer.inputs[0]], self.precision)
            self._expect(output, value, edges)
            output = value.clone()
        self.layers.append(layer)
        self.shapes[layer.name], self.outputs[layer.name] = shape, output
        return layer.name

    def trying(self, attempt: Callable[[], Result]) -> Result:
        """What `attempt` returns; if it raises, the layers that it has made are dropped."""
        count, taken = len(self.layers), set(self._taken)
        try:
            return attempt()
        except (ConversionError, GraphError):
            dropped = {layer.name for layer in self.layers[count:]}
            del self.layers[count:]
            self._taken = taken
            self._laid_out = {key: name for key, name in self._laid_out.items() if name not in dropped}
            raise

    def settled(self, signal: Signal, value: Tensor) -> str:
        """The name of a layer whose output is `signal` as it stands, ``[B, *shape]``; it is made if there is none.

        `value` is what the model computed. Raises `ConversionError` if no layers do this.
        """
        if signal.index is None and signal.plain:
            self._expect(self.outputs[signal.origin], value.detach().cpu())
            return signal.origin
        pattern = self.pattern(signal)
        if len(signal.shape) == 1 and signal.shape[0] == self.batch:
            raise ConversionError(ONE_NUMBER)
        if pattern is None:
            raise ConversionError(f"it reads {list(signal.shape)}: {MIXES_IMAGES}")
        gain = None if signal.gain is None else signal.gain[0]
        offset = None if signal.offset is None else signal.offset[0]
        name = self.trying(lambda: self.laid_out(signal, pattern, gain, offset))
        self._expect(self.outputs[name], value.detach().cpu())
        return name

    def check(self, signal: Signal, value: Tensor) -> None:
        """Raise `ConversionError` unless `signal` is what the model computed, `value`, but for rounding."""
        if signal.index is None and signal.plain:
            self._expect(self.outputs[signal.origin], value.detach().cpu())
            return
        self._expect(torch.from_numpy(signal.of(self.outputs[signal.origin])), value.detach().cpu())

    def _expect(self, actual: Tensor, value: Tensor, edges: Tensor | None = None) -> None:
        """Raise `ConversionError` unless `actual` is what the model computed, `value`, but for rounding.

        Where `edges` are given, a value at one of them may fall either way.
        """
        expected = value.reshape(actual.shape)
        if expected.dtype in (torch.float16, torch.bfloat16):
            expected = expected.float()
        if bool(expected.isnan().any()):  # of a parameter that is NaN, which has been refused
            return
        largest = float(expected.abs().max()) if expected.numel() else 0.0
        difference = (actual - expected).abs_()
        wrong = ~(difference <= max(1e-4, 16 * self.precision) * largest + 1e-6)
        if edges is not None:
            wrong &= ~edges
        if bool(wrong.any()):
            raise ConversionError(IN_PLACE)

    def pattern(self, signal: Signal) -> Indices | None:
        """Where the elements of one image come from, if the batch is first; else None."""
        if len(signal.shape) < 2 or signal.shape[0] != self.batch:
            return None
        return of_one_image(signal.indices(), self.size(signal.origin))

    def whole(self, name: str) -> Shape:
        """The shape of a layer's output, batch included."""
        return (self.batch, *self.shapes[name])

    def size(self, name: str) -> int:
        """Elements of an image in a layer's output."""
        return math.prod(self.shapes[name])

    def laid_out(self, signal: Signal, pattern: Indices, gain: Floats | None, offset: Floats | None) -> str:
        """The name of a layer that gives this `pattern` of the output of the signal's origin, times and plus these.

        The same one if it is asked for again.
        """
        parts = (pattern, gain, offset)
        key = (signal.origin, *(None if each is None else (each.shape, each.tobytes()) for each in parts))
        if key not in self._laid_out:
            self._laid_out[key] = self._lay_out(signal, pattern, gain, offset)
        return self._laid_out[key]

    def _lay_out(self, signal: Signal, pattern: Indices, gain: Floats | None, offset: Floats | None) -> str:
        origin, title = signal.origin, signal.title or "flatten"
        here = pattern >= 0
        if pattern.shape == self.shapes[origin] and bool(
            (pattern.reshape(-1) == np.arange(pattern.size))[here.reshape(-1)].all()
        ):
            # In its place, but for what a mask has taken away.
            gain = gain if here.all() else np.where(here, 1.0 if gain is None else gain, 0.0)
            pattern = np.arange(pattern.size).reshape(pattern.shape)
        elif offset is not None and gain is None and not _per_channel(offset):
            filled = self._filled(origin, pattern, offset, title)
            if filled is not None:
                origin, offset = filled
        try:
            new = layers_of(pattern, origin, self.shapes[origin], lambda: self.name(title))
        except ConversionError as error:
            if origin not in self.matrices:
                raise
            raise ConversionError(f"{self.matrices[origin]} ({error})") from error
        for layer in new:
            origin = self.add(layer)
        return self.scaled(origin, gain, offset, title)

    def _filled(self, origin: str, pattern: Indices, offset: Floats, title: str) -> tuple[str, Floats] | None:
        """For maps that are padded with other values than zero: the origin less these values, and the values.

        Then zeros can be padded and the values added everywhere, one per channel.
        """
        shape = self.shapes[origin]
        here = pattern >= 0
        if len(shape) < 2 or pattern.shape[:1] != shape[:1]:
            return None
        channel = np.where(
            here, pattern // math.prod(shape[1:]), np.arange(len(pattern)).reshape(-1, *[1] * len(shape[1:]))
        )
        values = np.zeros(len(pattern))
        before = np.zeros(len(pattern))
        for at in range(len(pattern)):
            outside, inside = np.unique(offset[at][~here[at]]), np.unique(offset[at][here[at]])
            if len(outside) > 1 or len(inside) > 1 or (channel[at] != at).any():
                return None
            values[at] = outside[0] if len(outside) else inside[0]
            before[at] = inside[0] - values[at] if len(inside) else 0.0
        layer = BatchNorm(name=self.name(title), inputs=(origin,), scale=np.ones(len(values)), shift=before)
        return self.add(layer), np.broadcast_to(values.reshape(-1, *[1] * len(shape[1:])), pattern.shape).copy()

    def scaled(self, origin: str, gain: Floats | None, offset: Floats | None, title: str) -> str:
        """The name of a layer that gives the output of `origin` times `gain` plus `offset`, which have its shape."""
        if offset is not None and not _per_channel(offset):
            raise ConversionError(ONE_BIAS)
        if gain is not None and not _per_channel(gain):
            origin, gain = self.add(Scale(name=self.name(title), inputs=(origin,), scale=gain)), None
        channels = self.shapes[origin][0]
        scale = np.ones(channels) if gain is None else gain.reshape(channels, -1)[:, 0].copy()
        if offset is not None:
            shift = offset.reshape(channels, -1)[:, 0].copy()
            return self.add(BatchNorm(name=self.name(title), inputs=(origin,), scale=scale, shift=shift))
        return origin if gain is None else self.add(Scale(name=self.name(title), inputs=(origin,), scale=scale))

    def turned(self, signal: Signal, value: Tensor) -> tuple[str, Turn]:
        """A layer whose output, turned, is `signal` as it stands ``[B, C, ...]``, and how it is to be turned.

        Convolutions and pools give the same of a map that is mirrored or transposed, if they are, too.
        """
        try:
            return self.settled(signal, value), Turn()
        except ConversionError:
            pattern = self.pattern(signal)
            if pattern is None or pattern.ndim != len(self.shapes[signal.origin]):
                raise
            gain = None if signal.gain is None else signal.gain[0]
            offset = None if signal.offset is None else signal.offset[0]
            for turn in turns(pattern.ndim - 1):
                parts = [None if each is None else turn.back(each) for each in (pattern, gain, offset)]
                assert parts[0] is not None
                try:
                    return self.trying(lambda parts=parts: self.laid_out(signal, *parts)), turn  # type: ignore[misc]
                except ConversionError:
                    continue
            raise

    def turned_signal(self, name: str, turn: Turn, title: str) -> Signal:
        """The output of the layer `name`, turned."""
        whole = self.whole(name)
        index = np.arange(math.prod(whole)).reshape(whole)
        return Signal(name, whole, turn.of(index), title=title) if turn != Turn() else Signal(name, whole)

    def somewhere(self, signal: Signal, value: Tensor) -> tuple[str, Indices | None]:
        """A layer that holds the elements of `signal`, each once, and where each is in it; None if in its place.

        So nothing need be moved for what is done with every element alike.
        """
        index = signal.index
        if index is None and signal.plain:
            return self.settled(signal, value), None
        count = self.batch * self.size(signal.origin)
        if index is None or (index.size == count and bool((np.sort(index.reshape(-1)) == np.arange(count)).all())):
            self.check(signal, value)
            if signal.plain:
                return signal.origin, index
            try:
                return self.trying(lambda: self._scaled_in_place(signal)), index
            except ConversionError:
                if index is None:
                    raise
        return self.settled(signal, value), None

    def _scaled_in_place(self, signal: Signal) -> str:
        """The name of a layer that gives the output of the signal's origin with its gains and offsets."""
        shape, size = self.shapes[signal.origin], self.size(signal.origin)

        def there(values: Floats | None) -> Floats | None:
            if values is None:
                return None
            result = np.zeros(self.batch * size)
            result[signal.indices().reshape(-1)] = values.reshape(-1)
            if (result.reshape(self.batch, size) != result[:size]).any():
                raise ConversionError(MIXES_IMAGES)
            return result[:size].reshape(shape)

        return self.scaled(signal.origin, there(signal.gain), there(signal.offset), signal.title)

    def needed_for(self, last: str) -> tuple[Layer, ...]:
        """The layers that `last` depends on, itself included, and the input."""
        used = {last, self.input}
        for layer in reversed(self.layers):
            if layer.name in used:
                used.update(layer.inputs)
        return tuple(layer for layer in self.layers if layer.name in used)


def _per_channel(values: Floats) -> bool:
    return bool((values.reshape(len(values), -1) == values.reshape(len(values), -1)[:, :1]).all())


def _edges(layer: ClipFloorShift, z: Tensor, precision: float) -> Tensor:
    """Which inputs of `layer` lie at the edge between two levels, where rounding decides."""
    level = z.double() * layer.levels / parameter(aligned(layer.threshold, z.dim() - 1), z.double()) + 0.5
    return (level - level.round()).abs() <= torch.clamp(level.abs() * 16 * precision, min=1e-3)
