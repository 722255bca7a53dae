"""What the layers of a network give while nothing comes in: their biases, as they reach the neurons."""

from __future__ import annotations

import numpy as np
import torch

from bridge.graph import IntegrateFire, LayerGraph
from bridge.simulate.ops import evaluate


@torch.inference_mode()
def at_rest(graph: LayerGraph) -> dict[str, np.ndarray]:
    """What each layer of a plain or counting network gives for a zero image and no spikes, in float64."""
    values: dict[str, torch.Tensor] = {}
    for layer in graph:
        if not layer.inputs or isinstance(layer, IntegrateFire):
            values[layer.name] = torch.zeros(1, *graph.shapes[layer.name], dtype=torch.float64)
        else:
            values[layer.name] = evaluate(layer, *(values[source] for source in layer.inputs))
    return {name: value[0].numpy() for name, value in values.items()}
