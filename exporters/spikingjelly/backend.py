"""SpikingJelly: its own layers and its own `ActivationAwareIFNode`, single-step or multi-step as the user likes."""

from __future__ import annotations

import logging
from functools import partial
from typing import cast

import nir
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from bridge.errors import GraphError
from bridge.graph import IntegrateFire
from bridge.nir_graph import from_nir
from bridge.records import SpikeRecord
from bridge.simulate.ops import tensor
from exporters.base import Availability, probe
from exporters.torch_module import build, run


class SpikingJelly:
    """Native object: a `torch.fx.GraphModule` of SpikingJelly layers, in step mode "s".

    ``functional.reset_net`` restores its initial state; ``functional.set_step_mode(net, "m")`` makes it take
    ``[T, B, ...]``. Example: docs/backends.md.
    """

    name = "spikingjelly"

    def available(self) -> Availability:
        # On its import, torch would tell every user without a GPU that Triton is missing, which nothing here needs.
        logging.getLogger("torch._library.triton").setLevel(logging.ERROR)
        return probe({"spikingjelly.activation_based": "spikingjelly"}, 'pip install "spikingjelly>=2.0.0"')

    def export(self, graph: nir.NIRGraph) -> fx.GraphModule:
        from spikingjelly.activation_based import layer

        network = from_nir(graph)
        return build(network, layer, partial(_neuron, integer=network.integer), "SpikingJellyNetwork")

    def run(
        self, native: fx.GraphModule, x: NDArray[np.float32], steps: int, *, membranes: bool = False
    ) -> SpikeRecord:
        from spikingjelly.activation_based import base, functional, neuron

        neurons = {name: m for name, m in native.named_modules() if isinstance(m, neuron.ActivationAwareIFNode)}
        modes = {m: m.step_mode for m in native.modules() if isinstance(m, base.StepModule)}
        functional.set_step_mode(native, "s")
        functional.reset_net(native)
        try:
            return run(self.name, native, neurons, _potential, x, steps, membranes)
        finally:
            functional.reset_net(native)
            for module, mode in modes.items():
                module.step_mode = mode


def _potential(node: nn.Module, spikes: Tensor) -> Tensor:
    threshold = torch.as_tensor(node.v_threshold, device=spikes.device)
    return cast(Tensor, node.v) + spikes * threshold.reshape(-1, *[1] * (spikes.dim() - 2))


def offset_for(level: NDArray[np.float32], threshold: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    """``v_offset`` with which the node fires exactly when u ≥ level, in float32.

    The node tests ``u + v_offset ≥ threshold`` with a rounded sum. For threshold 1 and level 1/2, an offset of 1/2
    would also fire at the float32 just below it, since that sum rounds up to 1; the next smaller offset does not. Both
    sides of the level are tried here, and since rounding is monotone, that settles it for every u.

    Raises:
        GraphError: no float32 offset does it; only levels other than half the threshold can meet this.
    """
    below = np.nextafter(level, np.float32(-np.inf))
    result = np.full_like(level, np.nan)
    candidate = np.nextafter(threshold - level, np.float32(np.inf))
    for _ in range(4):
        exact = (level + candidate >= threshold) & (below + candidate < threshold) & np.isnan(result)
        result = np.where(exact, candidate, result)
        candidate = np.nextafter(candidate, np.float32(-np.inf))
    if np.isnan(result).any():
        worst = float(level[np.isnan(result)][0])
        raise GraphError(f"layer {name!r}: SpikingJelly's ActivationAwareIFNode cannot fire exactly at u = {worst!r}")
    return result


def _neuron(layer: IntegrateFire, rank: int, integer: bool) -> nn.Module:
    from spikingjelly.activation_based import neuron

    threshold = layer.threshold
    # whole numbers add up exactly, and there is none just below the level
    offset = threshold - layer.level if integer else offset_for(layer.level, threshold, layer.name)
    module: nn.Module = neuron.ActivationAwareIFNode(
        v_threshold=_one_or_all(threshold), v_offset=_one_or_all(offset), channel_dim=1, v_reset=None
    )
    return module


def _one_or_all(values: NDArray[np.floating]) -> float | Tensor:
    """One number where all channels share it."""
    return float(values[0]) if (values == values[0]).all() else tensor(values)
