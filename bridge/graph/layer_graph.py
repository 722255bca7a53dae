"""The network as plain data: an ordered, immutable graph of layers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import cast

import numpy as np

from bridge._util.shown import Shown, Words
from bridge.errors import GraphError, UnknownLayerError
from bridge.graph.grouped import EachLevel, GroupFire, GroupSum
from bridge.graph.layers import (
    Add,
    Affine,
    Concat,
    Flatten,
    Input,
    IntegrateFire,
    Layer,
    MaxPool,
    Scale,
    Shape,
    SumPool2d,
)
from bridge.graph.staged import AtLeast, BiasOnce, Impulse, WindowFire

NEURONS = IntegrateFire | WindowFire | GroupFire
"""The layers that spike."""


@dataclass(frozen=True, eq=False, repr=False)
class LayerGraph(Shown):
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

    def _shown_facts(self) -> dict[str, object]:
        """From what to what, and of how much."""
        shapes = f"{list(self.shapes[self.input.name])} -> {list(self.shapes[self.output.name])}"
        return {"shapes": Words(shapes), "layers": len(self.layers), "spiking": len(self.spiking)}

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, name: str) -> Layer:
        for layer in self.layers:
            if layer.name == name:
                return layer
        names = ", ".join(layer.name for layer in self.layers)
        raise UnknownLayerError(f"no layer is called {name!r}; there are {names}")

    @property
    def input(self) -> Input:
        return cast(Input, self.layers[0])

    @property
    def output(self) -> Layer:
        return self.layers[-1]

    @property
    def spiking(self) -> tuple[str, ...]:
        """Names of the spiking layers, in order."""
        return tuple(layer.name for layer in self.layers if isinstance(layer, NEURONS))

    @property
    def neurons(self) -> int:
        """How many neurons the spiking layers have together."""
        return sum(math.prod(self.shapes[name]) for name in self.spiking)

    def activation_shape(self, name: str) -> Shape:
        """Of the ANN's activation that the layer `name` stands for: without the levels of groups."""
        shape = self.shapes[name]
        return shape[1:] if isinstance(self[name], GroupFire | EachLevel) else shape

    @cached_property
    def constant(self) -> frozenset[str]:
        """Layers that the images reach without passing a neuron, and no spike does: the same at every time step."""
        names = {self.input.name}
        for layer in self.layers[1:]:
            changing = isinstance(layer, NEURONS | Impulse | BiasOnce)
            if not changing and names.issuperset(layer.inputs):
                names.add(layer.name)
        return frozenset(names)

    @cached_property
    def lasts(self) -> dict[str, int]:
        """By layer of a staged network: the last step, counted from 0, at which it gives anything new."""
        result: dict[str, int] = {}
        for layer in self.layers:
            if isinstance(layer, WindowFire):
                result[layer.name] = layer.opens + layer.steps - 1
            else:
                result[layer.name] = max((result[source] for source in layer.inputs), default=0)
        return result

    @property
    def staged(self) -> bool:
        """Whether its neurons fire in windows."""
        return any(isinstance(layer, WindowFire) for layer in self.layers)

    @property
    def grouped(self) -> bool:
        """Whether its neurons are groups of thresholds that fire at once."""
        return any(isinstance(layer, GroupFire) for layer in self.layers)

    @property
    def latency(self) -> int | None:
        """Steps after which the output is complete; None for a network whose neurons fire at any time."""
        return self.lasts[self.output.name] + 1 if self.staged else 1 if self.grouped else None

    @cached_property
    def integer(self) -> bool:
        """Whether this is a spiking network in whole numbers: from whole-number images, it computes nothing else."""
        kinds = Input | Affine | Add | Scale | SumPool2d | Flatten | MaxPool
        kinds |= Impulse | BiasOnce | AtLeast | GroupSum
        inner = [layer.layer if isinstance(layer, EachLevel) else layer for layer in self.layers]
        neurons = [layer for layer in inner if isinstance(layer, NEURONS)]
        others = [layer for layer in inner if isinstance(layer, kinds)]
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
