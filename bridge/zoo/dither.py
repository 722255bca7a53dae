"""Noise before the quantiser, in training: what makes a network bear that its spikes come unevenly.

At T steps a rate is off by about ``1 / (T·√12)`` of a threshold at every layer, whatever the conversion does, and the
errors add up over the layers. A network that has been trained without ever meeting such errors amplifies them. So
QCFS's shift φ, which is 1/2, is drawn anew for every activation and step of training from ``1/2 ± width``; at inference
it is 1/2 again, and nothing is left of this in the network.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bridge.capture.torch_model import at_inference
from bridge.qcfs import QCFS


class Dither:
    """Shifts for all QCFS layers of a model, 8 bits each: whole machine words of random bits cost next to nothing.

    Compiled training reads them like any other input; random numbers drawn inside compiled code took three times as
    long as all the rest of ResNet-20.
    """

    def __init__(self, model: nn.Module, images: Tensor, batch: int, width: float) -> None:
        """`images`: two or so ``[B, C, H, W]``, to learn the layers' sizes from; `batch`: images a step."""
        self.width = width
        self.active = True
        self.layers = [module for module in model.modules() if isinstance(module, QCFS)]
        sizes = dict.fromkeys(self.layers, 0)

        def measure(layer: QCFS, arguments: tuple[Tensor]) -> None:
            sizes[layer] = max(sizes[layer], arguments[0][0].numel() * batch)

        hooks = [layer.register_forward_pre_hook(measure) for layer in self.layers]
        try:
            with at_inference(model), torch.no_grad():
                model(images)
        finally:
            for hook in hooks:
                hook.remove()
        self._words = torch.empty(-(-sum(sizes.values()) // 8), dtype=torch.int64, device=images.device)
        shared = self._words.view(torch.uint8)[: sum(sizes.values())]
        self._bytes = dict(zip(sizes, shared.split(list(sizes.values())), strict=True))

    def draw(self, generator: torch.Generator) -> None:
        """New shifts, for the next step."""
        self._words.random_(-(2**63), None, generator=generator)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the model's QCFS layers in train mode use the shifts, while `active`."""
        hooks = [layer.register_forward_pre_hook(self._shift) for layer in self.layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _shift(self, layer: QCFS, arguments: tuple[Tensor]) -> tuple[Tensor] | None:
        if not (layer.training and self.active):
            return None
        (z,) = arguments
        drawn = self._bytes[layer][: z.numel()]
        if z.dim() == 4 and z.is_contiguous(memory_format=torch.channels_last):
            drawn = drawn.view(z.shape[0], *z.shape[2:], z.shape[1]).permute(0, 3, 1, 2)  # read in z's own order
        else:
            drawn = drawn.view(z.shape)
        threshold: Tensor = layer.threshold
        if layer.per_channel:
            threshold = threshold.reshape(1, -1, *[1] * (z.dim() - 2))
        # Added to z in thresholds, with λ's gradient, so that the shift itself does not depend on λ.
        return (z + threshold * ((drawn.float() - 127.5) * (self.width / (128 * layer.levels))),)
