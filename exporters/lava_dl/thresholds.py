"""What lava-dl's neurons ask of a network: whole numbers, and one threshold a layer."""

from __future__ import annotations

import numpy as np

from bridge.backends.protocol import expect_plain
from bridge.errors import GraphError
from bridge.graph import IntegrateFire, LayerGraph


def layer_thresholds(graph: LayerGraph) -> dict[str, int]:
    """The threshold θ of each spiking layer, even.

    Raises `GraphError` if the network is staged or grouped or not in whole numbers, or if the neurons of a layer differ
    or start elsewhere than at θ/2; the message names the layer.
    """
    expect_plain(graph, "lava-dl")
    if not graph.integer:
        raise GraphError("lava-dl computes in whole numbers: quantize the network first, network.quantize(...)")
    thresholds: dict[str, int] = {}
    for layer in graph:
        if isinstance(layer, IntegrateFire):
            values = np.unique(layer.threshold)
            if len(values) > 1:
                raise GraphError(
                    f"layer {layer.name!r}: lava-dl's neurons have one threshold a layer, and this one has "
                    f'{len(values)} of them, {values[0]:g}…{values[-1]:g}; use network.quantize(scheme="per_layer")'
                )
            if not np.all(2 * layer.level == layer.threshold):
                raise GraphError(
                    f"layer {layer.name!r}: lava-dl's neurons start at half their threshold {values[0]:g}; here the "
                    f"initial potential is {', '.join(f'{v:g}' for v in np.unique(layer.threshold - layer.level))}"
                )
            thresholds[layer.name] = int(values[0])
    return thresholds
