"""Sum pooling folded into the layer behind it: the same numbers, without the pool."""

from __future__ import annotations

import numpy as np
import pytest
from support.whole_numbers import correlate

from bridge.graph import Conv2d, Flatten, Input, IntegrateFire, Layer, LayerGraph, Linear, SumPool2d
from bridge.passes.fold_pooling import fold_pooling

SHAPE = (2, 9, 8)
POOLS = {
    "side by side": {"kernel": (3, 2), "stride": (3, 2)},
    "overlapping": {"kernel": (3, 3), "stride": (2, 1)},
    "with gaps": {"kernel": (2, 1), "stride": (3, 2)},
    "padded": {"kernel": (3, 2), "stride": (2, 2), "padding": (1, 1)},
    "rest left over": {"kernel": (2, 3), "stride": (2, 3)},
    "all": {"kernel": (9, 8), "stride": (9, 8)},
}


def evaluate(graph: LayerGraph, x: np.ndarray) -> np.ndarray:
    """The output of `graph` for images ``[B, C, H, W]`` in int64, layer by layer."""
    y = x
    for layer in graph.layers[1:]:
        if isinstance(layer, SumPool2d):
            kernel = np.ones((y.shape[1], 1, *layer.kernel), np.int64)
            y = correlate(y, kernel, layer.stride, layer.padding, (1, 1), y.shape[1])
        elif isinstance(layer, Conv2d):
            y = correlate(y, integers(layer.weight), layer.stride, layer.padding, layer.dilation, layer.groups)
            y = y + integers(layer.bias)[:, None, None]
        elif isinstance(layer, Flatten):
            y = y.reshape(len(y), -1)
        elif isinstance(layer, Linear):
            y = np.einsum("oi,bi->bo", integers(layer.weight), y) + integers(layer.bias)
        else:
            assert isinstance(layer, IntegrateFire)
            y = (y >= integers(layer.level)[:, None, None]).astype(np.int64)
    return y


def integers(values: np.ndarray) -> np.ndarray:
    return np.rint(values).astype(np.int64)


def weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).integers(-9, 10, shape).astype(np.float32)


def spikes() -> np.ndarray:
    return np.random.default_rng(4).integers(0, 2, (4, *SHAPE))


def chain(*layers: Layer) -> LayerGraph:
    return LayerGraph((Input(name="x", shape=SHAPE), *layers))


def pool(source: str = "x", name: str = "pool", **sizes: tuple[int, int]) -> SumPool2d:
    return SumPool2d(name=name, inputs=(source,), **sizes)


@pytest.mark.parametrize("sizes", POOLS.values(), ids=POOLS)
def test_into_a_linear_layer(sizes):
    features = int(np.prod(pool(**sizes).output_shape(SHAPE)))
    graph = chain(
        pool(**sizes),
        Flatten(name="flat", inputs=("pool",)),
        Linear(name="fc", inputs=("flat",), weight=weights(5, features), bias=weights(5)),
    )
    folded = fold_pooling(graph)
    assert [layer.name for layer in folded] == ["x", "flat", "fc"]
    np.testing.assert_array_equal(evaluate(folded, spikes()), evaluate(graph, spikes()))


@pytest.mark.parametrize(
    ("sizes", "conv", "taken"),
    [
        ({"kernel": (3, 2), "stride": (3, 2)}, {}, True),
        ({"kernel": (3, 2), "stride": (3, 2)}, {"padding": (1, 1)}, True),  # no rest: the margin is zeros only
        ({"kernel": (2, 2), "stride": (2, 2)}, {"padding": (1, 1)}, False),  # the ninth row lies in the margin
        ({"kernel": (3, 2), "stride": (1, 1)}, {"padding": (1, 1)}, False),  # windows in the margin reach inputs
        ({"kernel": (3, 2), "stride": (1, 1)}, {"dilation": (2, 1), "stride": (2, 3)}, True),
        ({"kernel": (3, 2), "stride": (2, 2), "padding": (1, 1)}, {"groups": 2}, True),
        ({"kernel": (3, 2), "stride": (2, 2), "padding": (1, 0)}, {"padding": (1, 1)}, True),
        ({"kernel": (1, 1), "stride": (2, 2)}, {}, True),
    ],
)
def test_into_a_convolution_where_that_is_exact(sizes, conv, taken):
    groups = conv.get("groups", 1)
    graph = chain(
        pool(**sizes),
        Conv2d(name="conv", inputs=("pool",), weight=weights(4, 2 // groups, 2, 2), bias=weights(4), **conv),
    )
    folded = fold_pooling(graph)
    assert ("pool" not in folded.shapes) == taken
    np.testing.assert_array_equal(evaluate(folded, spikes()), evaluate(graph, spikes()))


def test_pools_in_a_row_go_together():
    graph = chain(
        pool(kernel=(2, 2), stride=(2, 2)),
        pool("pool", "again", kernel=(2, 2), stride=(2, 2)),
        Flatten(name="flat", inputs=("again",)),
        Linear(name="fc", inputs=("flat",), weight=weights(3, 2 * 2 * 2), bias=weights(3)),
    )
    folded = fold_pooling(graph)
    assert [layer.name for layer in folded] == ["x", "flat", "fc"]
    np.testing.assert_array_equal(evaluate(folded, spikes()), evaluate(graph, spikes()))


def test_a_pool_stays_where_neurons_or_nobody_read_it():
    neurons = IntegrateFire(name="a", inputs=("pool",), level=np.ones(2, np.float32), threshold=np.full(2, 2.0))
    for graph in (chain(pool(kernel=(2, 2), stride=(2, 2)), neurons), chain(pool(kernel=(2, 2), stride=(2, 2)))):
        assert fold_pooling(graph) is graph
