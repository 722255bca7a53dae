"""What an operation does to the data, found by giving it numbers, since no list of functions is complete."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bridge.converters.index_tracing import LARGEST_MATRIX, NOTHING
from bridge.converters.torch_models.signals import Floats, Part
from bridge.graph import Shape

SIZES = (1.0, 1e-4, 1e4, 1e12)
"""Magnitudes of the random numbers on which an operation must be what it was found to be."""

LARGE = 2**18
"""Values of arguments from which fewer magnitudes are tried, for the time it takes."""

CLOSE = 1e-9
"""Largest relative difference, in float64, between what an operation does and what it was found to do."""


def measure(
    function: Callable[..., Any], shapes: Sequence[Shape]
) -> list[tuple[tuple[Part | None, ...], Floats]] | None:
    """What `function` of tensors of these `shapes` does, if each element of its results is a sum of constants times one
    element of each argument, plus a constant; None if it does anything else.

    `function` takes float64 tensors and returns one or several; it must have no effect of its own. For each result: its
    parts, one for each argument (None where that contributes nothing), and its offset.
    """
    nothing = [torch.zeros(shape, dtype=torch.float64) for shape in shapes]
    offsets = _results(function, nothing)
    if offsets is None:
        return None
    parts: list[list[Part | None]] = [[] for _ in offsets]
    for at, shape in enumerate(shapes):
        ones = _results(function, [*nothing[:at], torch.ones(shape, dtype=torch.float64), *nothing[at + 1 :]])
        count = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64).reshape(shape)
        counts = _results(function, [*nothing[:at], count, *nothing[at + 1 :]])
        if ones is None or counts is None or len(ones) != len(offsets) or len(counts) != len(offsets):
            return None
        for found, offset, one, counted in zip(parts, offsets, ones, counts, strict=True):
            if one.shape != offset.shape or counted.shape != offset.shape:
                return None
            gain = one - offset
            there = np.abs(gain) > CLOSE * np.abs(offset)
            place = np.divide(counted - offset, gain, out=np.zeros_like(gain), where=there)
            index = np.where(there, np.rint(place).astype(np.int64) - 1, NOTHING)
            if (there & (index < 0)).any() or (index >= math.prod(shape)).any():
                return None
            found.append(Part(index, np.where(there, gain, 0.0)) if there.any() else None)
    result = [(tuple(each), offset) for each, offset in zip(parts, offsets, strict=True)]
    return result if _holds(function, shapes, result) else None


def _results(function: Callable[..., Any], arguments: Sequence[Tensor]) -> list[Floats] | None:
    """The results as arrays, if all are finite numbers; None otherwise, or where the function takes no such tensors."""
    try:
        given = function(*(each.clone() for each in arguments))
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
        return None
    results = list(given) if isinstance(given, tuple | list) else [given]
    if not all(isinstance(each, Tensor) and each.is_floating_point() for each in results):
        return None
    arrays = [each.detach().double().cpu().numpy() for each in results]
    return arrays if all(np.isfinite(each).all() for each in arrays) else None


def _holds(
    function: Callable[..., Any], shapes: Sequence[Shape], found: list[tuple[tuple[Part | None, ...], Floats]]
) -> bool:
    """Whether `function` does what was `found` on random numbers of either sign and of several sizes."""
    generator = torch.Generator().manual_seed(0)
    for size in SIZES if sum(map(math.prod, shapes)) < LARGE else SIZES[::2]:
        arguments = [torch.randn(shape, generator=generator, dtype=torch.float64) * size for shape in shapes]
        results = _results(function, arguments)
        if results is None or len(results) != len(found):
            return False
        for result, (parts, offset) in zip(results, found, strict=True):
            expected, largest = offset.copy(), np.abs(offset)
            for part, argument in zip(parts, arguments, strict=True):
                if part is not None:
                    term = part.gain * argument.reshape(-1).numpy()[part.index]
                    expected, largest = expected + term, np.maximum(largest, np.abs(term))
            if result.shape != expected.shape or (np.abs(result - expected) > CLOSE * largest).any():
                return False
    return True


MOST_MEASURED = 1024
"""Most values of an image for which a matrix is measured, one run for each."""


def measure_matrix(function: Callable[..., Any], shape: Shape) -> tuple[Floats, Floats] | None:
    """The matrix and the offsets of a `function` of one tensor ``[B, ...]`` that does ``A x + b`` with every image.

    ``A`` is ``[outputs, inputs]`` in C order. None if it does anything else, or is too large to be measured.
    """
    count = math.prod(shape[1:])
    if not 0 < count <= MOST_MEASURED or not _adds_up(function, shape):
        return None
    offsets = _results(function, [torch.zeros(shape, dtype=torch.float64)])
    if offsets is None or offsets[0].shape[:1] != tuple(shape[:1]) or offsets[0][0].size * count > LARGEST_MATRIX:
        return None
    offset = offsets[0]
    matrix = np.zeros((offset[0].size, count))
    for at in range(count):
        one = torch.zeros(shape, dtype=torch.float64)
        one[0].view(-1)[at] = 1.0
        results = _results(function, [one])
        if results is None or np.abs(results[0][1:] - offset[1:]).max(initial=0.0) > 0:  # images are mixed
            return None
        matrix[:, at] = (results[0][0] - offset[0]).reshape(-1)
    if any((each != offset[0]).any() for each in offset[1:]):
        return None
    return matrix, offset[0].reshape(-1)


def _adds_up(function: Callable[..., Any], shape: Shape) -> bool:
    """Whether f(x + y) − f(0) = (f(x) − f(0)) + (f(y) − f(0)) for random numbers of several sizes."""
    generator = torch.Generator().manual_seed(0)
    zero = _results(function, [torch.zeros(shape, dtype=torch.float64)])
    if zero is None or len(zero) != 1:
        return False
    for size in SIZES:
        x, y = (torch.randn(shape, generator=generator, dtype=torch.float64) * size for _ in range(2))
        results = [_results(function, [each]) for each in (x, y, x + y)]
        if any(each is None or len(each) != 1 or each[0].shape != zero[0].shape for each in results):
            return False
        one, other, both = (each[0] - zero[0] for each in results if each is not None)
        largest = max(float(np.abs(each).max(initial=0.0)) for each in (one, other, both, zero[0]))
        if np.abs(one + other - both).max(initial=0.0) > CLOSE * largest:
            return False
    return True
