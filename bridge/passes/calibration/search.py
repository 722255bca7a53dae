"""The best of several fits of a network to T time steps, chosen by images that none was fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from bridge.errors import InputError
from bridge.graph import LayerGraph
from bridge.passes.calibration.gradient import output_error, refine
from bridge.passes.calibration.layerwise import KINDS, calibrate
from bridge.passes.to_float32 import to_float32
from bridge.simulate.ann import activations
from bridge.simulate.engine.engine import Engine
from bridge.simulate.images import BATCH

CALIBRATIONS = (*KINDS, "weight")
"""What a fit can change."""
EMPHASES = (0.0, 0.3, 1.0)
"""Weights of a channel's mean error that are tried."""


def best_fit(graph: LayerGraph, ann: LayerGraph, x: Tensor, steps: int, kinds: Sequence[str]) -> LayerGraph:
    """The spiking `graph` fitted to its `ann` at T = `steps`, or itself, if no fit brings it nearer.

    Args:
        graph: with neurons of unit threshold.
        ann: the network it came from.
        x: images ``[B, *input]``. Three quarters are fitted to, every fourth chooses between the fits.
        steps: T.
        kinds: some of `CALIBRATIONS`.

    Raises:
        InputError: `kinds` names something else or nothing, or there are fewer than 4 images.
    """
    unknown = sorted({kinds} if isinstance(kinds, str) else set(kinds) - set(CALIBRATIONS))
    if unknown or not kinds:
        raise InputError(f"kinds: expected some of {list(CALIBRATIONS)}, got {kinds!r}")
    if len(x) < 4:
        raise InputError(f"data: expected at least 4 images, some hundred are better, got {len(x)}")
    target = torch.cat([activations(ann, part)[2].clone() for part in x.split(BATCH)])
    apart = torch.arange(len(x)) % 4 == 0
    unseen, target_of_unseen = x[apart], target[apart]
    x, target = x[~apart], target[~apart]

    @cache
    def error(candidate: LayerGraph) -> float:
        outputs = torch.from_numpy(Engine(candidate).run(unseen, steps).outputs)
        return float(output_error(outputs[-1], target_of_unseen))

    fits = [to_float32(calibrate(graph, ann, x, steps, kinds, emphasis)) for emphasis in EMPHASES]
    best = min([graph, *fits], key=error)
    refined = to_float32(refine(best, x, target, steps, kinds))
    return min([best, refined], key=error)
