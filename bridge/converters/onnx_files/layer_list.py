"""The layers made of an ONNX file so far. They are known by their shapes: nothing is computed, so no file can make the
reader compute for long.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bridge.converters.index_tracing import NOTHING
from bridge.converters.onnx_files.tensors import LARGEST
from bridge.converters.onnx_files.values import Node
from bridge.converters.remedies import MIXES_IMAGES
from bridge.converters.torch_models.layer_list import LayerList
from bridge.converters.torch_models.signals import Signal
from bridge.errors import ConversionError, GraphError
from bridge.graph import Input, Layer, Shape

NO_FEATURES = "it leaves nothing but a number for each image; keep a dimension, with keepdims=1 or a Reshape to [0, 1]"


def placeholder(shape: Shape) -> Tensor:
    """A tensor of this `shape` that takes no memory."""
    return torch.zeros(()).expand(shape)


class Source(NamedTuple):
    """A signal, as the rules that are shared with torch models take it. ``plain`` tells the shape only."""

    signal: Signal
    plain: Tensor


class ShapedLayers(LayerList):
    """Layers with the nodes that they were made for: ``made_by`` names these, ``places`` counts them in the file.

    `place` is where the next layers belong; ``handed`` names the node that made a signal.
    """

    def __init__(self, shape: Shape, batch: int) -> None:
        self.place, self.where = -1, ""
        self.places: dict[str, int] = {self.input: -1}
        self.made_by: dict[str, str] = {}
        self.handed: dict[Signal, str] = {}
        super().__init__(placeholder((batch, *shape)))

    def _start(self, name: str, value: Tensor) -> None:
        self.shapes[name] = tuple(value.shape[1:])
        self.layers.append(Input(name=name, shape=self.shapes[name]))

    def add(self, layer: Layer, value: Tensor | None = None) -> str:
        """Add `layer` and return its name. Raises `ConversionError` if it does not fit its inputs."""
        shape = self.shape_of(layer)
        expect_size(shape)
        self.layers.append(layer)
        self.shapes[layer.name], self.made_by[layer.name] = shape, self.where
        self.places[layer.name] = max([self.place, *(self.places[source] for source in layer.inputs)])
        return layer.name

    @contextmanager
    def at(self, node: Node) -> Iterator[None]:
        """Have layers belong to `node`, which need not be the one at hand: some are made when they are first read."""
        before = self.place, self.where
        self.place, self.where = node.index, node.where
        try:
            yield
        finally:
            self.place, self.where = before

    def in_order(self, last: str) -> tuple[Layer, ...]:
        """The layers that `last` depends on, in the order of the file."""
        return tuple(sorted(self.needed_for(last), key=lambda layer: self.places[layer.name]))

    def settled(self, signal: Signal, value: Tensor) -> str:
        """The name of a layer whose output is `signal` as it stands, ``[B, *shape]``; it is made if there is none.

        Raises `ConversionError` if no layers do this, naming the node that made the signal.
        """
        if signal.index is None and signal.plain:
            return signal.origin
        try:
            pattern = self.pattern(signal)
            if pattern is None:
                raise ConversionError(f"{list(signal.shape)}: {NO_FEATURES if len(signal.shape) < 2 else MIXES_IMAGES}")
            gain = None if signal.gain is None else signal.gain[0]
            offset = None if signal.offset is None else signal.offset[0]
            return self.trying(lambda: self.laid_out(signal, pattern, gain, offset))
        except ConversionError as error:
            maker = self.handed.get(signal)
            raise ConversionError(f"what {maker} hands it: {error}" if maker else str(error)) from error

    def check(self, signal: Signal, value: Tensor) -> None:
        """There is nothing to check: nothing was computed."""

    def expect_alike(self, signal: Signal) -> None:
        """Raise `ConversionError` unless gains and offsets are the same for each image of the batch."""
        arrays = [each for each in (signal.gain, signal.offset) if each is not None and (each != each.flat[0]).any()]
        if not arrays:
            return
        index = signal.indices()
        image = np.where(index >= 0, index // self.size(signal.origin), NOTHING)
        for axis, length in enumerate(signal.shape):  # the batch may be any dimension, or the outer part of one
            if length % self.batch:
                continue
            split = (*signal.shape[:axis], self.batch, length // self.batch, *signal.shape[axis + 1 :])
            expected = np.arange(self.batch).reshape(-1, *[1] * (len(split) - axis - 1))
            if not ((image.reshape(split) == expected) | (image.reshape(split) == NOTHING)).all():
                continue
            by_image = [np.moveaxis(each.reshape(split), axis, 0) for each in arrays]
            if all((each == each[:1]).all() for each in by_image):
                return
        raise ConversionError("its constants differ between the images of a batch; treat all images alike")


def expect_size(shape: Shape) -> None:
    """Raise `GraphError` if a tensor of this `shape`, without batch, is too large."""
    if math.prod(shape) > LARGEST:
        raise GraphError(f"its output {list(shape)} is larger than {LARGEST} numbers")
