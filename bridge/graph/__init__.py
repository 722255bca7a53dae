"""The network as plain data: layers, and the graph of them; what can be told of one without running it."""

from bridge._util.lazy import lazily
from bridge.graph.grouped import EachLevel, GroupFire, GroupSum
from bridge.graph.layer_graph import NEURONS, LayerGraph
from bridge.graph.layers import (
    Add,
    Affine,
    Array,
    AvgPool2d,
    BatchNorm,
    ClipFloorShift,
    Concat,
    Conv1d,
    Conv2d,
    Flatten,
    Input,
    IntegrateFire,
    Layer,
    Linear,
    MaxPool,
    Scale,
    Shape,
    SumPool2d,
    aligned,
    average_pool,
    pointwise,
    same_padding,
    spread,
)
from bridge.graph.staged import AtLeast, BiasOnce, Impulse, SpikeCount, WindowFire

__all__ = [
    "NEURONS",
    "Add",
    "Affine",
    "Array",
    "AtLeast",
    "AvgPool2d",
    "BatchNorm",
    "BiasOnce",
    "ClipFloorShift",
    "Concat",
    "Conv1d",
    "Conv2d",
    "EachLevel",
    "Flatten",
    "GroupFire",
    "GroupSum",
    "Impulse",
    "Input",
    "IntegrateFire",
    "Layer",
    "LayerGraph",
    "Linear",
    "MaxPool",
    "Scale",
    "Shape",
    "SpikeCount",
    "SumPool2d",
    "WindowFire",
    "aligned",
    "average_pool",
    "pointwise",
    "same_padding",
    "spread",
]

__getattr__, _ = lazily(__name__)
