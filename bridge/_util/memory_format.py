"""The order in memory that a network's images and weights have while it learns.

Convolutions with the channels last take a CPU a quarter less time. But for one kind of them oneDNN, which torch leaves
them to, then writes past the end of its workspace when it goes back (its issue 6035, open; torch 2.13): wrong
gradients, or the end of the program. Those are convolutions of one pixel that step over others, with fewer channels
than a vector register holds.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

VECTOR = 16
"""Of float32, in the largest registers that there are."""

Convolution = tuple[tuple[int, ...], tuple[int, ...], int]
"""Its kernel, its stride and the channels that it hears."""


def while_learning(convolutions: Iterable[Convolution]) -> torch.memory_format:
    """The quickest order in which all these `convolutions` can go backwards."""
    for kernel, stride, channels in convolutions:
        if set(kernel) == {1} and max(stride) > 1 and channels < VECTOR:
            return torch.contiguous_format
    return torch.channels_last
