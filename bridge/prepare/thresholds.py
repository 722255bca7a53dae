"""Set the λ of freshly placed QCFS layers from data, so that a ReLU network converts without training."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, TypeVar, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bridge._util.checks import is_real, positive
from bridge._util.neutral import without_autocast
from bridge._util.progress import progress
from bridge.errors import BridgeError, ConversionError, InputError
from bridge.prepare.inference import at_inference, device_and_dtype
from bridge.prepare.qcfs import QCFS, SMALLEST_THRESHOLD

Model = TypeVar("Model", bound=nn.Module)
Method = Literal["mse", "percentile", "max"]
Counts = NDArray[np.int64]
Array = NDArray[np.float64]

BATCH = 64
"""Images run together where `data` is one tensor."""
MANTISSA_BITS = 5
"""A bin for each 32nd of an octave: 2 to 3 % wide."""
BINS = 16 << MANTISSA_BITS
"""16 octaves below the layer's largest activation; what is smaller counts as zero."""
FINER = 4
"""Values of λ tried per bin."""
CHANNELS_AT_ONCE = 1024
ACTIVATIONS_AT_ONCE = 1 << 22
"""Limits of what is worked on at a time, for the memory's sake."""
DEAD_THRESHOLD = 1.0
"""λ of a layer none of whose activations was positive: any positive one gives the same zeros."""


def fit_thresholds(
    model: Model,
    data: Tensor | Iterable[Any],
    levels: int | None = None,
    method: Method = "mse",
    *,
    percentile: float = 99.9,
    ceiling: float = math.inf,
) -> Model:
    """Set the λ of every `bridge.QCFS` in `model` from the activations that `data` causes. Changes and returns `model`.

    For a network trained with ReLU whose activations `bridge.replace_activations` has replaced. While the data run
    through it, in one pass, each QCFS acts as the ReLU that was there: the λ are yet to be found, and quantising with
    arbitrary ones would change what every later layer gets. So each layer is fitted to the network as it was trained.

    Memory does not grow with the data: a layer (or channel, where λ is per channel) keeps a histogram, 4 KB, and its
    largest activation. The result does not depend on the order of the data or on how they are batched. Example:
    docs/thresholds.md.

    Args:
        model: in any mode, precision and on any device; batch norm runs as at inference. λ per channel that have no
            channels yet get them. A QCFS that `forward` never calls keeps its λ.
        data: images ``[N, ...]``, or an iterable of batches: tensors ``[B, ...]``, or tuples of them whose first is
            the images, as a DataLoader gives. A few hundred images of the training set are enough.
        levels: L for every QCFS; by default each keeps its own.
        method: ``"mse"``: the λ, up to the largest activation, with the least squared error of QCFS (with the
            layer's L) against ReLU. ``"percentile"``: that percentile of the activations, zeros included (Rueckauer et
            al., Front. Neurosci. 2017, section 2.2.2), or the largest where that is zero. ``"max"``: the largest
            (Diehl et al., IJCNN 2015). All but ``"max"`` are read from the histogram, to about 1 %.
        percentile: for ``method="percentile"``, above 0 and at most 100.
        ceiling: what activations were clipped at in training: 6 for ReLU6.

    Raises:
        ConversionError: `model` has no QCFS, or its activations are not finite.
        InputError: no data, data that are not finite float images or that `model` does not take, or a bad argument.

    Warns:
        UserWarning: no activation of a layer was positive; its λ is `DEAD_THRESHOLD`. (A channel without any, in a
            layer with some, gets the largest λ of its layer, silently.)
    """
    choose = _chooser(method, percentile)
    _check_arguments(levels, ceiling)
    found = {
        module: name or type(module).__name__ for name, module in model.named_modules() if isinstance(module, QCFS)
    }
    if not found:
        raise ConversionError(
            f"fit_thresholds: {type(model).__name__} has no bridge.QCFS; "
            "call bridge.replace_activations(model, levels=...) first"
        )
    collected = {module: _Histogram() for module in found}
    with at_inference(model), torch.no_grad(), _as_relu(found, collected, ceiling):
        _run(model, data)
    dead = []
    for module, histogram in collected.items():
        if levels is not None:
            module.levels = int(levels)
        if histogram.total == 0:
            continue
        if not histogram.largest.any():
            dead.append(found[module])
        _set_threshold(module, _alive(choose(histogram, module.levels), histogram.largest))
    if dead:
        warnings.warn(
            f"fit_thresholds: no activation was positive in {', '.join(dead)}; λ is {DEAD_THRESHOLD:g} there. "
            "Are the data what the network was trained on?",
            stacklevel=2,
        )
    return model


class _Histogram:
    """How often each size of activation occurred in a layer, per channel; all that is kept of the data.

    A bin is a range of float32 bit patterns, which for positive numbers grow as the numbers do: the exponent and the
    first bits of the mantissa. ``counts`` is ``[C, BINS]``; its first bin holds what is zero or too small to matter.
    When a larger activation than any before comes, the range moves up and its lowest bins join the first one, which
    gives the same counts as if the range had been known from the start. ``largest`` is ``[C]``, exact.
    """

    def __init__(self) -> None:
        self.low = 0
        self.counts: Counts = np.zeros((1, BINS), dtype=np.int64)
        self.largest: Array = np.zeros(1)

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    @property
    def edges(self) -> Array:
        """Where the bins begin and the last one ends, ``[BINS + 1]``."""
        patterns = (np.arange(BINS + 1) + self.low).astype(np.int32) << (23 - MANTISSA_BITS)
        return patterns.view(np.float32).astype(np.float64)

    def add(self, a: Tensor, channels: int) -> None:
        """Count activations `a`, float32, at least 0: ``[B, C, ...]`` with C = `channels`, any shape if that is 1."""
        if self.total == 0:
            self.counts, self.largest = np.zeros((channels, BINS), dtype=np.int64), np.zeros(channels)
        rows = a.transpose(0, 1).reshape(channels, -1) if channels > 1 else a.reshape(1, -1)
        largest = rows.amax(dim=1)
        patterns = rows.contiguous().view(torch.int32) >> (23 - MANTISSA_BITS)
        self._make_room(int(patterns.max()))
        bins = (patterns - self.low).clamp_(min=0) + torch.arange(channels, device=a.device).reshape(-1, 1) * BINS
        counted = torch.bincount(bins.flatten(), minlength=channels * BINS)
        self.counts += counted.reshape(channels, BINS).cpu().numpy()
        self.largest = np.maximum(self.largest, largest.cpu().numpy())

    def _make_room(self, top: int) -> None:
        shift = top - (BINS - 1) - self.low
        if shift <= 0:
            return
        self.low += shift
        joined = min(shift, BINS - 1)
        moved = np.zeros_like(self.counts)
        moved[:, 0] = self.counts[:, : joined + 1].sum(axis=1)
        moved[:, 1 : BINS - joined] = self.counts[:, joined + 1 :]
        self.counts = moved


@contextmanager
def _as_relu(found: dict[QCFS, str], collected: dict[QCFS, _Histogram], ceiling: float) -> Iterator[None]:
    """Every QCFS returns ReLU of its input, clipped at `ceiling`, and what it returns is counted."""

    def collect(module: QCFS, arguments: tuple[Tensor, ...], _: Tensor) -> Tensor:
        z = arguments[0].float()
        if not bool(z.isfinite().all()):
            raise ConversionError(
                f"fit_thresholds: what {found[module]} gets holds {int((~z.isfinite()).sum())} values that are NaN or "
                "infinite; look for such weights, or run the model in float32"
            )
        a = z.clamp(0, ceiling)
        if a.numel() > 0:
            for part in a.split(max(ACTIVATIONS_AT_ONCE * len(a) // a.numel(), 1)):
                collected[module].add(part, module.threshold.numel())
        return a.to(arguments[0].dtype)

    hooks = [module.register_forward_hook(collect) for module in found]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _run(model: nn.Module, data: Tensor | Iterable[Any]) -> None:
    """Run all `data` through `model`. Raises `InputError` naming the batch."""
    like = device_and_dtype(model)
    images = 0
    for number, batch in enumerate(_batches(data)):
        x = _images(batch, f"fit_thresholds: data, batch {number}")
        try:
            with without_autocast():
                model(x.to(**like))
        except BridgeError:
            raise
        except Exception as error:
            raise InputError(
                f"fit_thresholds: data, batch {number}: {type(model).__name__} does not accept {list(x.shape)}: {error}"
            ) from error
        images += len(x)
    if images == 0:
        raise InputError(
            "fit_thresholds: data holds no images; give a tensor [N, ...] or an iterable of batches "
            "(a generator that was used up gives none)"
        )


def _batches(data: Tensor | Iterable[Any]) -> Iterable[Any]:
    if isinstance(data, np.ndarray):
        data = torch.from_numpy(np.require(data, requirements=["W"])) if data.dtype.kind in "biuf" else (data,)
    if isinstance(data, Tensor):
        data = data.split(BATCH) if data.dim() > 0 else (data,)
    if isinstance(data, str | dict) or not isinstance(data, Iterable):
        raise InputError(
            f"fit_thresholds: data: expected a tensor [N, ...] or an iterable of batches, got {type(data).__name__}"
        )
    if not isinstance(data, Sized):
        return data
    return progress(cast("Sequence[Any]", data), "fitting thresholds")  # a bar needs a length, and no indexing


def _images(batch: object, where: str) -> Tensor:
    x = batch[0] if isinstance(batch, tuple | list) and len(batch) > 0 else batch
    if isinstance(x, np.ndarray) and x.dtype.kind in "biuf":
        x = torch.from_numpy(np.require(x, requirements=["W"]))
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 2:
        came = f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"{where}: expected float images [B, ...], or a tuple that begins with them; got {came}")
    if not bool(x.isfinite().all()):
        raise InputError(f"{where}: holds {int((~x.isfinite()).sum())} values that are NaN or infinite")
    return x


def _check_arguments(levels: int | None, ceiling: float) -> None:
    if levels is not None:
        positive(levels, "fit_thresholds: levels")
    if not is_real(ceiling) or not ceiling > 0:
        raise InputError(f"fit_thresholds: ceiling must be positive, 6 for ReLU6; got {ceiling!r}")


def _chooser(method: Method, percentile: float) -> Callable[[_Histogram, int], Array]:
    """The function that chooses the λ, ``[C]``, of a layer with L levels."""
    if not is_real(percentile) or not 0 < percentile <= 100:
        raise InputError(f"fit_thresholds: percentile must be above 0 and at most 100, got {percentile!r}")
    choosers: dict[str, Callable[[_Histogram, int], Array]] = {
        "mse": _least_squares,
        "percentile": partial(_percentile, percentile),
        "max": lambda histogram, levels: histogram.largest,
    }
    if method not in choosers:
        raise InputError(f"fit_thresholds: method must be one of {', '.join(get_args(Method))}; got {method!r}")
    return choosers[method]


def _percentile(percentile: float, histogram: _Histogram, levels: int) -> Array:
    """The `percentile` of each channel's activations, linear inside a bin; the largest where that is zero."""
    edges, below = histogram.edges, np.cumsum(histogram.counts, axis=1)
    chosen = np.empty(len(below))
    for channel, wanted in enumerate(below[:, -1] * percentile / 100):
        at = int(np.searchsorted(below[channel], wanted))
        inside = 1 - (below[channel, at] - wanted) / histogram.counts[channel, at]
        chosen[channel] = edges[at] + inside * (edges[at + 1] - edges[at]) if at > 0 else histogram.largest[channel]
    return np.minimum(chosen, histogram.largest)


def _least_squares(histogram: _Histogram, levels: int) -> Array:
    """The λ of each channel that minimises ``Σ (q − a)²`` over its activations a, where q is a quantised by QCFS.

    With the step d = λ/L, q is the sum over k = 1…L of d where a ≥ (k − 1/2)·d. With the tails ``N(t)``, the number of
    activations ≥ t, and ``S(t)``, their sum, and tₖ = (k − 1/2)·d, the error is therefore
    ``Σ a² − 2d·Σₖ S(tₖ) + d²·Σₖ (2k − 1)·N(tₖ)``. Its first term does not depend on λ. Inside a bin activations are
    taken to be spread evenly, so that both tails are linear in the counts, and the error of every λ of a fine grid is
    one matrix product.
    """
    edges = histogram.edges
    grid = np.interp(np.arange(FINER, FINER * BINS + 1) / FINER, np.arange(BINS + 1), edges)
    in_bin, beyond = _error_weights(edges, grid, levels)
    middles = (edges[:-1] + edges[1:]) / 2
    chosen = []
    for start in range(0, len(histogram.counts), CHANNELS_AT_ONCE):
        part = slice(start, start + CHANNELS_AT_ONCE)
        counts = histogram.counts[part].astype(np.float64)
        tails = [_tail(counts), _tail(counts * middles)]
        error = counts @ in_bin + tails[0] @ beyond[0] + tails[1] @ beyond[1]
        largest = histogram.largest[part, None]
        error[grid[None, :] > largest] = np.inf
        best = grid[error.argmin(axis=1)]
        # No λ of the grid is small enough where a channel's activations all lie in the lowest bin.
        chosen.append(np.where(np.isfinite(error.min(axis=1)), best, largest[:, 0]))
    return np.concatenate(chosen)


def _error_weights(edges: Array, grid: Array, levels: int) -> tuple[Array, tuple[Array, Array]]:
    """What multiplies the counts, and the tails' numbers and sums, to give the error of every λ: each ``[BINS, G]``."""
    in_bin, number, total = np.zeros((BINS, len(grid))), np.zeros((BINS, len(grid))), np.zeros((BINS, len(grid)))
    columns = np.arange(len(grid))
    step = grid / levels
    for k in range(1, levels + 1):
        t = (k - 0.5) * step
        at = (np.searchsorted(edges, t, side="right") - 1).clip(0, BINS - 1)
        upper = edges[at + 1]
        # The share of the bin that lies at or above t. The lowest bin counts as zero and lies below every t.
        share = np.where(at > 0, (upper - t) / (upper - edges[at]), 0)
        weight = (2 * k - 1) * step**2
        in_bin[at, columns] += share * (weight - step * (t + upper))
        number[at, columns] += weight
        total[at, columns] -= 2 * step
    return in_bin, (number, total)


def _tail(values: Array) -> Array:
    """For each bin the sum over the bins above it, along the last axis."""
    from_here: Array = np.cumsum(values[:, ::-1], axis=1)[:, ::-1]
    return from_here - values


def _alive(threshold: Array, largest: Array) -> Array:
    """Positive λ: a dead channel gets its layer's largest, a dead layer `DEAD_THRESHOLD`."""
    fallback = threshold[largest > 0].max() if largest.any() else DEAD_THRESHOLD
    alive: Array = np.maximum(np.where(largest > 0, threshold, fallback), SMALLEST_THRESHOLD)
    return alive


def _set_threshold(module: QCFS, values: Array) -> None:
    with torch.no_grad():
        module.threshold.copy_(torch.from_numpy(values).reshape(module.threshold.shape))
