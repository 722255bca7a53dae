"""The parts of the rate error by their definitions, in float64, from spikes: shares no code with the package's sums."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

import bridge
from bridge.graph import ClipFloorShift, spread
from bridge.report.outcome import PARTS
from bridge.simulate.ann import activations
from bridge.simulate.reference import simulate
from support.layers import neurons, of_kind


def expected(network: bridge.SpikingNetwork, x: torch.Tensor, steps: int) -> dict[str, dict[str, NDArray[np.float64]]]:
    """By layer: what each part contributes to the mean ``|φ(t) − a/λ|`` at each step, and "isolated", ``[T]``.

    The mean drive ẑ(t) follows from the potentials of a run in float64 on the spikes of the float32 one.
    """
    assert network.ann is not None
    record = simulate(network.graph, x.float(), steps)
    potentials = simulate(network.graph, x.double(), steps, membranes=True, heard=record).membranes
    values, drives, _ = activations(network.ann, x.float())
    result = {}
    for name in network.layers:
        layer, ann = neurons(network.graph, name), of_kind(network.ann, name, ClipFloorShift)
        shape = network.graph.shapes[name]
        theta, level = spread(layer.threshold, shape).astype(np.float64), spread(layer.level, shape).astype(np.float64)
        z = drives[name].numpy() / spread(ann.threshold, shape)
        target = np.rint(values[name].numpy().astype(np.float64) * ann.levels) / ann.levels
        spikes = record.spikes(name).astype(np.float64)
        rows: dict[str, list[float]] = {part: [] for part in (*PARTS, "isolated")}
        for t in range(1, steps + 1):
            before, count = spikes[: t - 1].sum(axis=0), spikes[:t].sum(axis=0)
            heard = potentials[name][t - 1] / theta + before
            even = np.clip(np.floor(heard - level / theta + 1), 0, t) / t
            alone = np.clip(np.floor(z * np.float32(t) + np.float32(0.5)), 0, t) / t if t != ann.levels else target
            heard = heard / t
            clipping = (np.clip(heard, 0, 1) - heard) - (np.clip(z, 0, 1) - z)
            parts = {
                "inherited": (even - alone) - clipping,
                "clipping": clipping,
                "quantisation": alone - target,
                "unevenness": count / t - even,
            }
            error = count / t - target
            sign = np.sign(np.where(np.abs(error) < 1e-9, 0, error))
            for part, values_of_part in parts.items():
                rows[part].append(float((values_of_part * sign).mean()))
            rows["isolated"].append(float(np.abs(parts["quantisation"]).mean()))
        result[name] = {part: np.array(row) for part, row in rows.items()}
    return result
