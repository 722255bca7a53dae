"""Augmentation of image batches on tensors: random crops, flips, cutout and AutoAugment's policy for CIFAR-10.

Whole batches at once, every image with random numbers of its own. All of them come from the `torch.Generator` handed
in, and their number depends only on the shape of the batch: a saved state of the generator resumes training exactly.

The operations of AutoAugment (Cubuk et al., CVPR 2019) compute what Pillow's ImageOps, ImageEnhance and
Image.transform do, pixel for pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bridge.errors import InputError
from bridge.zoo.data import normalise

FILL = 128
"""Grey level of pixels that come from outside the image."""
FIXED = 16
"""Bits after the point in Pillow's affine coordinates."""


def standard(
    x: Tensor,
    dataset_mean: Sequence[float],
    dataset_std: Sequence[float],
    generator: torch.Generator,
    *,
    padding: int = 4,
    flip: bool = True,
    autoaugment: bool = False,
    cutout: int = 0,
) -> Tensor:
    """A training batch from pixels `x` uint8 ``[N, C, H, W]``: float32 of the same shape, augmented and normalised.

    The order is that of the authors' code (``putshua/ANN_SNN_QCFS``): crop, flip, AutoAugment, normalise, cutout. They
    use all of it for CIFAR-10, with `padding` 4 and `cutout` 16. A padding or cutout of 0 leaves that step out.

    Raises:
        InputError: as the steps do.
    """
    if padding:
        x = crop(x, padding, generator)
    if flip:
        x = _flip(x, generator)
    if autoaugment:
        x = autoaugment_cifar10(x, generator)
    out = normalise(x, dataset_mean, dataset_std)
    return _cutout(out, cutout, generator) if cutout else out


def crop(x: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Each image of `x` uint8 ``[N, C, H, W]``, framed by `padding` black pixels, cut to H×W at a random place.

    Raises:
        InputError: `x` holds no pixels, or `padding` is negative.
    """
    _require_pixels(x)
    if padding < 0:
        raise InputError(f"crop: expected a padding of 0 or more pixels, got {padding}")
    count, channels, height, width = x.shape
    framed = F.pad(x, (padding, padding, padding, padding))
    rows = torch.arange(height, device=x.device) + _integers(2 * padding + 1, (count, 1), generator, x.device)
    columns = torch.arange(width, device=x.device) + _integers(2 * padding + 1, (count, 1), generator, x.device)
    places = rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]
    return _picked(framed, places).view(count, channels, height, width)


def flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image of `x` uint8 ``[N, C, H, W]``, mirrored left to right with probability 1/2.

    Raises:
        InputError: `x` holds no pixels.
    """
    _require_pixels(x)
    mirrored = _integers(2, (len(x), 1, 1, 1), generator, x.device).bool()
    return torch.where(mirrored, x.flip(3), x)


def cutout(x: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Each image of `x` float ``[N, C, H, W]``, already normalised, with 0 in a square (DeVries and Taylor, 2017).

    The square is size×size pixels, its centre anywhere in the image, and what of it is outside is cut off. An even
    square reaches one pixel further up and left of its centre. 0 is the mean colour, since `x` is normalised.

    Raises:
        InputError: `x` holds no normalised images, or `size` is negative.
    """
    if not x.is_floating_point() or x.ndim != 4:
        raise InputError(f"cutout: expected normalised float [N, C, H, W], got {x.dtype} {list(x.shape)}")
    if size < 0:
        raise InputError(f"cutout: expected a square of 0 or more pixels, got {size}")
    rows = _within_reach(x.shape[2], size, len(x), generator, x.device)
    columns = _within_reach(x.shape[3], size, len(x), generator, x.device)
    return x * ~(rows[:, :, None] & columns[:, None, :])[:, None]


_flip, _cutout = flip, cutout  # `standard` has arguments of these names


def _within_reach(length: int, size: int, count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Bool ``[count, length]``: True in `size` places about a random one."""
    first = _integers(length, (count, 1), generator, device) - size // 2
    places = torch.arange(length, device=device)
    return (places >= first) & (places < first + size)


# Operations of AutoAugment: uint8 ``[N, C, H, W]`` in and out, one amount an image, float64 ``[N]``.


def invert(x: Tensor) -> Tensor:
    """255 − p."""
    return 255 - x


def solarize(x: Tensor, threshold: Tensor) -> Tensor:
    """255 − p where p ≥ `threshold` (0…256)."""
    return torch.where(x < _by_image(threshold.ceil().to(torch.int16)), x, 255 - x)


def posterize(x: Tensor, bits: Tensor) -> Tensor:
    """The `bits` (0…8) highest bits of each pixel, the others 0."""
    step = torch.pow(2, 8 - bits).to(torch.int16)
    return x & _by_image(256 - step).to(torch.uint8)


def autocontrast(x: Tensor) -> Tensor:
    """Each channel stretched so that its darkest pixel is 0 and its brightest 255."""
    pixels = x.flatten(2)
    low, high = pixels.amin(2, keepdim=True).double(), pixels.amax(2, keepdim=True).double()
    # Pillow's order of operations, for the same rounding; ``255 / tensor`` would multiply by the reciprocal
    scale = torch.full_like(low, 255).div((high - low).clamp(min=1))
    levels = torch.arange(256, dtype=torch.float64, device=x.device)
    stretched = (levels * scale + -low * scale).clamp(0, 255)
    return _looked_up(x, torch.where(high > low, stretched, levels))


def equalize(x: Tensor) -> Tensor:
    """Each channel with its histogram made as even as a table of grey levels can."""
    count, channels = x.shape[:2]
    pixels = x.flatten(2).view(count * channels, -1).to(torch.int64)
    histogram_of = torch.arange(len(pixels), device=x.device)[:, None] * 256
    histogram = torch.bincount((pixels + histogram_of).flatten(), minlength=256 * len(pixels)).view(-1, 256)
    brightest = histogram.gather(1, pixels.amax(1, keepdim=True))
    step = (pixels.shape[1] - brightest) // 255
    darker = histogram.cumsum(1) - histogram
    table = ((step // 2 + darker) // step.clamp(min=1)).clamp(max=255)
    table = torch.where(step > 0, table, torch.arange(256, device=x.device))
    return _looked_up(x, table.view(count, channels, 256))


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Between black (`factor` 0), the image (1), and beyond."""
    return _blended(torch.zeros_like(x), x, factor)


def color(x: Tensor, factor: Tensor) -> Tensor:
    """Between grey (`factor` 0), the image (1), and beyond."""
    return _blended(_grey(x), x, factor)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Between a plain image of its mean grey (`factor` 0), the image (1), and beyond."""
    count = x.shape[2] * x.shape[3]
    rounded_mean = (2 * _grey(x).sum((1, 2, 3), dtype=torch.int64) + count) // (2 * count)
    return _blended(_by_image(rounded_mean), x, factor)


def sharpness(x: Tensor, factor: Tensor) -> Tensor:
    """Between the image smoothed over 3×3 pixels, its border left alone (`factor` 0), the image (1), and beyond."""
    return _blended(_smoothed(x), x, factor)


def shear_x(x: Tensor, slope: Tensor) -> Tensor:
    """Row y moved `slope`·y pixels to the left."""
    one, zero = torch.ones_like(slope), torch.zeros_like(slope)
    return _affine(x, one, slope, zero, zero, one, zero)


def shear_y(x: Tensor, slope: Tensor) -> Tensor:
    """Column x moved `slope`·x pixels up."""
    one, zero = torch.ones_like(slope), torch.zeros_like(slope)
    return _affine(x, one, zero, zero, slope, one, zero)


def translate_x(x: Tensor, share: Tensor) -> Tensor:
    """Moved to the left by `share` of the width."""
    one, zero = torch.ones_like(share), torch.zeros_like(share)
    return _affine(x, one, zero, share * x.shape[3], zero, one, zero)


def translate_y(x: Tensor, share: Tensor) -> Tensor:
    """Moved up by `share` of the height."""
    one, zero = torch.ones_like(share), torch.zeros_like(share)
    return _affine(x, one, zero, zero, zero, one, share * x.shape[2])


def rotate(x: Tensor, degrees: Tensor) -> Tensor:
    """Turned counterclockwise about the centre."""
    angle = -torch.deg2rad(degrees)
    cos, sin = angle.cos().round(decimals=15), angle.sin().round(decimals=15)
    across, down = x.shape[3] / 2, x.shape[2] / 2
    right = cos * -across + sin * -down + across
    below = -sin * -across + cos * -down + down
    return _affine(x, cos, sin, right, -sin, cos, below)


def _blended(plain: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    """``plain + factor · (x − plain)`` in float32, cut to 0…255 and then to whole numbers, as Pillow's Image.blend."""
    start = plain.to(torch.float32)
    mixed = (x.to(torch.float32) - start).mul_(_by_image(factor.to(torch.float32))).add_(start)
    return mixed.clamp_(0, 255).to(torch.uint8)


def _grey(x: Tensor) -> Tensor:
    """ITU-R 601 luma in Pillow's whole numbers, ``[N, 1, H, W]``."""
    if x.shape[1] == 1:
        return x
    red, green, blue = x.to(torch.int32).unbind(1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).to(torch.uint8)[:, None]


def _smoothed(x: Tensor) -> Tensor:
    """Pillow's SMOOTH filter: weights 1 about a 5, over 13, rounded; the border stays, as it has too few neighbours."""
    if min(x.shape[2:]) < 3:
        return x
    values = x.to(torch.int16)
    rows = values[:, :, :-2] + values[:, :, 1:-1] + values[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * values[:, :, 1:-1, 1:-1]
    out = x.clone()
    out[:, :, 1:-1, 1:-1] = (total / 13 + 0.5).to(torch.uint8)  # no total is halfway: 13 is odd
    return out


def _affine(x: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, e: Tensor, f: Tensor) -> Tensor:
    """Pixel (x, y) from the pixel that holds ``(a·x + b·y + c, d·x + e·y + f)``, in Pillow's fixed point.

    Coordinates are of pixels' centres, rounded to 1/65536 of a pixel; there is no interpolation, and pixels from
    outside the image are grey. The six are float64 ``[N]``.
    """
    height, width = x.shape[2:]
    across = torch.arange(width, device=x.device)
    down = torch.arange(height, device=x.device)[:, None]
    from_x = _place(a, b, c, across, down)
    from_y = _place(d, e, f, across, down)
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    places = (from_y * width + from_x).masked_fill_(~inside, 0)
    return _picked(x, places).view_as(x).masked_fill_(~inside[:, None], FILL)


def _place(by_x: Tensor, by_y: Tensor, constant: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """One coordinate of where each pixel comes from, whole numbers ``[N, H, W]``."""
    start = _fixed(constant + by_x * 0.5 + by_y * 0.5)[:, None, None]
    return (start + _fixed(by_x)[:, None, None] * across + _fixed(by_y)[:, None, None] * down) >> FIXED


def _fixed(value: Tensor) -> Tensor:
    whole: Tensor = (value * 2.0**FIXED + 0.5).floor().to(torch.int64)
    return whole


# The policy


class Operation(NamedTuple):
    """`apply` takes images and their amounts, which `amount` makes of a level 0…9; `signed` ones go either way."""

    apply: Callable[[Tensor, Tensor], Tensor]
    amount: Callable[[int], float]
    signed: bool


def _up_to(largest: float) -> Callable[[int], float]:
    return lambda level: largest * level / 9


OPERATIONS = {
    "shear_x": Operation(shear_x, _up_to(0.3), True),
    "shear_y": Operation(shear_y, _up_to(0.3), True),
    "translate_x": Operation(translate_x, _up_to(150 / 331), True),
    "translate_y": Operation(translate_y, _up_to(150 / 331), True),
    "rotate": Operation(rotate, _up_to(30), True),
    "color": Operation(lambda x, amount: color(x, 1 + amount), _up_to(0.9), True),
    "contrast": Operation(lambda x, amount: contrast(x, 1 + amount), _up_to(0.9), True),
    "brightness": Operation(lambda x, amount: brightness(x, 1 + amount), _up_to(0.9), True),
    "sharpness": Operation(lambda x, amount: sharpness(x, 1 + amount), _up_to(0.9), True),
    "posterize": Operation(posterize, lambda level: round(8 - 4 * level / 9), False),
    "solarize": Operation(solarize, lambda level: 256 - 256 * level / 9, False),
    "autocontrast": Operation(lambda x, amount: autocontrast(x), _up_to(0), False),
    "equalize": Operation(lambda x, amount: equalize(x), _up_to(0), False),
    "invert": Operation(lambda x, amount: invert(x), _up_to(0), False),
}
"""The operations and their ranges as the common implementations have them; 150/331 is the paper's 150 pixels of 331."""

Step = tuple[str, float, int]
CIFAR10_POLICY: tuple[tuple[Step, Step], ...] = (
    (("invert", 0.1, 7), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.5, 8), ("equalize", 0.9, 2)),
    (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
    (("color", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, 5), ("equalize", 0.5, 1)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("color", 0.7, 7), ("translate_x", 0.5, 8)),
    (("equalize", 0.3, 7), ("autocontrast", 0.4, 8)),
    (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("color", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, 3)),
    (("equalize", 0.2, 0), ("autocontrast", 0.6, 0)),
    (("equalize", 0.2, 8), ("equalize", 0.6, 4)),
    (("color", 0.9, 9), ("equalize", 0.6, 6)),
    (("autocontrast", 0.8, 4), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("color", 0.7, 0)),
    (("solarize", 0.4, 5), ("autocontrast", 0.9, 3)),
    (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.9, 2), ("solarize", 0.8, 3)),
    (("equalize", 0.8, 8), ("invert", 0.1, 3)),
    (("translate_y", 0.7, 9), ("autocontrast", 0.9, 1)),
)
"""The sub-policies of the paper's table for CIFAR-10: operation, probability, level 0…9; one after the other."""


def autoaugment_cifar10(x: Tensor, generator: torch.Generator) -> Tensor:
    """AutoAugment's policy for CIFAR-10 (Cubuk et al., CVPR 2019, appendix): a random sub-policy for each image.

    Pixels `x` are uint8 ``[N, 3, H, W]``, and so is the result. Levels mean what they do in the common implementations,
    the authors' among them, with two differences from the latter: shears take the nearest pixel, as all other
    movements do, not a cubic mix; rotations go either way.

    Raises:
        InputError: `x` holds no pixels in three channels.
    """
    _require_pixels(x)
    if x.shape[1] != 3:
        raise InputError(f"AutoAugment's policy for CIFAR-10: expected 3 channels, got {x.shape[1]}")
    policy = _integers(len(CIFAR10_POLICY), (len(x),), generator, x.device)
    chance = torch.rand((len(x), 2), generator=generator, device=generator.device).to(x.device)
    sign = 2 * _integers(2, (len(x), 2), generator, x.device) - 1
    out = x.clone()
    for which in (0, 1):
        steps = [pair[which] for pair in CIFAR10_POLICY]
        drawn = chance[:, which] < torch.tensor([probability for _, probability, _ in steps], device=x.device)[policy]
        amounts = _amounts(steps, x.device)[policy]
        for name in sorted({name for name, _, _ in steps}):
            asks = torch.tensor([step[0] == name for step in steps], device=x.device)
            chosen = (drawn & asks[policy]).nonzero()[:, 0]
            if len(chosen):
                operation = OPERATIONS[name]
                amount = amounts[chosen] * sign[chosen, which] if operation.signed else amounts[chosen]
                out.index_copy_(0, chosen, operation.apply(out[chosen], amount))
    return out


def _amounts(steps: list[Step], device: torch.device) -> Tensor:
    """The amount of each step, without its sign, float64."""
    amounts = [OPERATIONS[name].amount(level) for name, _, level in steps]
    return torch.tensor(amounts, dtype=torch.float64, device=device)


# What many operations need


def _require_pixels(x: Tensor) -> None:
    if x.dtype != torch.uint8 or x.ndim != 4:
        raise InputError(f"augmentation: expected pixels, uint8 [N, C, H, W], got {x.dtype} {list(x.shape)}")


def _integers(end: int, shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    """Random whole numbers 0…end − 1, drawn where the generator is."""
    return torch.randint(end, shape, generator=generator, device=generator.device).to(device)


def _picked(x: Tensor, places: Tensor) -> Tensor:
    """The pixels of `x` ``[N, C, h, w]`` at `places` ``[N, H, W]`` (row · w + column), ``[N, C, H · W]``."""
    return x.flatten(2).gather(2, places.flatten(1)[:, None].expand(-1, x.shape[1], -1))


def _looked_up(x: Tensor, table: Tensor) -> Tensor:
    """Each pixel's entry in its channel's `table` ``[N, C, 256]``, cut to a whole number."""
    return table.to(torch.uint8).gather(2, x.flatten(2).to(torch.int64)).view_as(x)


def _by_image(value: Tensor) -> Tensor:
    return value.view(-1, 1, 1, 1)
