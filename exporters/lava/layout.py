"""How Lava orders the neurons of a layer, and images that run side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from bridge.graph import Shape

Kind = TypeVar("Kind", bound=np.generic)


@dataclass(frozen=True)
class Layout:
    """How Lava orders a layer's neurons: a feature map ``[C, H, W]`` as ``[W, H, C]``, a signal ``[C, N]`` as the
    feature map of height 1, ``[N, 1, C]``, a vector as it is. ``shape`` is the layer's own.
    """

    shape: Shape

    @property
    def grid(self) -> Shape:
        """``shape`` with the height that a signal lacks."""
        return (self.shape[0], 1, self.shape[1]) if len(self.shape) == 2 else self.shape

    @property
    def lava_shape(self) -> Shape:
        """The shape of Lava's ports for this layer."""
        return self.grid[::-1] if len(self.grid) == 3 else self.grid

    @property
    def map_shape(self) -> Shape:
        """The same for a convolution, to which a vector is a feature map of one pixel."""
        return self.lava_shape if len(self.grid) == 3 else (1, 1, *self.grid)

    def ports(self, lanes: int) -> Shape:
        """The shape of its ports with `lanes` images side by side: ``[lanes, *lava_shape]``, one without that axis."""
        return (lanes, *self.lava_shape) if lanes > 1 else self.lava_shape

    def to_lava(self, values: NDArray[Kind]) -> NDArray[Kind]:
        """``[..., *shape]`` in Lava's order and shape."""
        values = values.reshape(*values.shape[: values.ndim - len(self.shape)], *self.grid)
        return np.swapaxes(values, -1, -3) if len(self.grid) == 3 else values

    def from_lava(self, values: NDArray[Kind]) -> NDArray[Kind]:
        """``[..., *lava_shape]`` in the layer's order and shape."""
        values = np.swapaxes(values, -1, -3) if len(self.grid) == 3 else values
        return values.reshape(*values.shape[: values.ndim - len(self.grid)], *self.shape)


def side_by_side(values: NDArray[Kind], lanes: int) -> NDArray[Kind]:
    """``[B, *shape]`` as ``[rounds, lanes, *shape]``, or as it is for one lane. The last image fills the last round."""
    if lanes == 1:
        return values
    rounds = -(-len(values) // lanes)
    chosen = np.minimum(np.arange(rounds * lanes), len(values) - 1)
    rows: NDArray[Kind] = values[chosen].reshape(rounds, lanes, *values.shape[1:])
    return rows
