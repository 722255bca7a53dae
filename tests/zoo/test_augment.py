"""Augmentation: each operation against Pillow's, the random ones against small cases and their own statistics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch.testing import assert_close

from bridge.errors import InputError
from bridge.zoo.data import normalise
from bridge.zoo.training import augment

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
SIZES = [(32, 32), (17, 24), (3, 3), (1, 1), (2, 7)]
FACTORS = [0.0, 1.0, 2.5] + [1 + sign * 0.9 * level / 9 for level in range(10) for sign in (1, -1)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(count, height=32, width=32, channels=3, seed=0):
    return torch.randint(256, (count, channels, height, width), dtype=torch.uint8, generator=generator(seed))


def pictures(height=32, width=32):
    """Noise, smooth pictures as of real things, few grey levels, low contrast, plain ones, nearly plain ones."""
    random = np.random.default_rng(0)
    down, across = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    found = [*noise(6, height, width).numpy()]
    for _ in range(10):
        waves = random.normal(size=(3, 4))[..., None, None]
        smooth = waves[:, 0] * np.sin(6 * down + 6 * waves[:, 1]) + waves[:, 2] * np.cos(6 * across * waves[:, 3])
        smooth = 128 + 60 * smooth + random.normal(size=smooth.shape) * 4
        smooth[:, height // 3 : height // 2, width // 4 : width // 2] = random.integers(256, size=(3, 1, 1))
        found.append(np.clip(smooth, 0, 255))
    found += [
        found[0] // 64 * 64,
        found[1] // 8 + 100,
        found[6] // 30 + 7,
        np.stack([down * 0, across * 0 + 9, down * 255]),
    ]
    found += [np.zeros((3, height, width)), np.full((3, height, width), 255.0), np.full((3, height, width), 77.0)]
    found.append((random.random((3, height, width)) < 0.01) * 255.0)
    return torch.from_numpy(np.stack(found).astype(np.uint8))


def by_pillow(x, operate):
    """`operate(picture, index)` on each image of `x` ``[N, C, H, W]``."""
    out = []
    for index, pixels in enumerate(x.numpy()):
        shown = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0).copy())
        changed = np.array(operate(shown, index))
        out.append(changed[None] if changed.ndim == 2 else changed.transpose(2, 0, 1))
    return torch.from_numpy(np.stack(out))


def amounts(values, count):
    """`values` repeated to `count`, float64."""
    return torch.tensor(list(values), dtype=torch.float64).repeat(count)[:count]


def grey_fill(x):
    return augment.FILL if x.shape[1] == 1 else (augment.FILL,) * 3


@pytest.fixture(params=SIZES, ids=str)
def x(request):
    return pictures(*request.param)


class TestTables:
    """Operations that replace each grey level by another: the same as Pillow's, pixel for pixel."""

    def test_invert(self, x):
        assert_close(augment.invert(x), by_pillow(x, lambda shown, _: ImageOps.invert(shown)), rtol=0, atol=0)

    @pytest.mark.parametrize("channels", [1, 3])
    def test_equalize(self, x, channels):
        x = x[:, :channels]
        assert_close(augment.equalize(x), by_pillow(x, lambda shown, _: ImageOps.equalize(shown)), rtol=0, atol=0)

    @pytest.mark.parametrize("channels", [1, 3])
    def test_autocontrast(self, x, channels):
        x = x[:, :channels]
        expected = by_pillow(x, lambda shown, _: ImageOps.autocontrast(shown))
        assert_close(augment.autocontrast(x), expected, rtol=0, atol=0)

    def test_autocontrast_of_every_range(self):
        levels = torch.arange(256, dtype=torch.uint8)
        x = torch.stack([levels.clamp(low, high) for low in range(0, 255, 15) for high in range(low, 256, 7)])
        x = x.view(-1, 1, 16, 16)
        expected = by_pillow(x, lambda shown, _: ImageOps.autocontrast(shown))
        assert_close(augment.autocontrast(x), expected, rtol=0, atol=0)

    def test_posterize(self, x):
        bits = [8 - index % 8 for index in range(len(x))]
        expected = by_pillow(x, lambda shown, index: ImageOps.posterize(shown, bits[index]))
        assert_close(augment.posterize(x, amounts(bits, len(x))), expected, rtol=0, atol=0)

    def test_solarize(self, x):
        threshold = amounts([0, 256, 255, 128, 1, *(256 - 256 * level / 9 for level in range(10))], len(x))
        expected = by_pillow(x, lambda shown, index: ImageOps.solarize(shown, threshold[index].item()))
        assert_close(augment.solarize(x, threshold), expected, rtol=0, atol=0)


class TestBlends:
    """Pillow blends in float32. Where a compiler joins its product and sum into one rounding, one level can differ."""

    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("name", ["Brightness", "Color", "Contrast", "Sharpness"])
    def test_as_pillow(self, x, name, channels):
        x = x[:, :channels]
        for shift in range(0, len(FACTORS), 6):
            factor = amounts([*FACTORS[shift:], *FACTORS[:shift]], len(x))
            enhanced = by_pillow(
                x, lambda shown, index, by=factor: getattr(ImageEnhance, name)(shown).enhance(by[index].item())
            )
            ours = getattr(augment, name.lower())(x, factor)
            assert ours.dtype == torch.uint8
            difference = (ours.int() - enhanced.int()).abs()
            assert difference.max() <= 1
            assert difference.float().mean() < 1e-3

    def test_a_factor_an_image(self):
        x = noise(2)
        factor = amounts([0.5, 1.7], 2)
        both = augment.color(x, factor)
        alone = [augment.color(x[[which]], factor[[which]])[0] for which in range(2)]
        assert_close(both, torch.stack(alone), rtol=0, atol=0)


class TestMovements:
    """Nearest neighbour with grey outside: Pillow's fixed point, so the same pixels at every border."""

    @pytest.mark.parametrize("sign", [1, -1])
    @pytest.mark.parametrize("name", ["shear_x", "shear_y", "translate_x", "translate_y"])
    def test_as_pillow(self, x, name, sign):
        of_levels = [sign * augment.OPERATIONS[name].amount(level) for level in range(10)]
        self._compare(x, name, of_levels)
        self._compare(x, name, of_levels[3:] + of_levels[:3])
        self._compare(x, name, torch.empty(len(x)).uniform_(-0.5, 0.5, generator=generator()).tolist())

    def _compare(self, x, name, values):
        amount = amounts(values, len(x))
        matrices = {
            "shear_x": lambda a: (1, a, 0, 0, 1, 0),
            "shear_y": lambda a: (1, 0, 0, a, 1, 0),
            "translate_x": lambda a: (1, 0, a * x.shape[3], 0, 1, 0),
            "translate_y": lambda a: (1, 0, 0, 0, 1, a * x.shape[2]),
        }

        def move(shown, index):
            matrix = matrices[name](amount[index].item())
            return shown.transform(shown.size, Image.Transform.AFFINE, matrix, fillcolor=grey_fill(x))

        assert_close(getattr(augment, name)(x, amount), by_pillow(x, move), rtol=0, atol=0)

    @pytest.mark.parametrize("channels", [1, 3])
    def test_rotate(self, x, channels):
        x = x[:, :channels]
        for seed in range(2):
            turns = torch.empty(len(x)).uniform_(-180, 180, generator=generator(seed)).tolist()
            self._compare_turns(x, turns)
        self._compare_turns(x, [sign * 30 * level / 9 for level in range(10) for sign in (1, -1)])

    def _compare_turns(self, x, turns):
        degrees = amounts(turns, len(x))
        expected = by_pillow(x, lambda shown, index: shown.rotate(degrees[index].item(), fillcolor=grey_fill(x)))
        assert_close(augment.rotate(x, degrees), expected, rtol=0, atol=0)

    def test_a_quarter_turn_is_exact(self):
        x = noise(1, 5, 5)
        assert_close(augment.rotate(x, amounts([90.0], 1)), x.rot90(1, (2, 3)), rtol=0, atol=0)

    def test_small_case(self):
        x = torch.arange(1, 5, dtype=torch.uint8).view(1, 1, 1, 4)
        assert augment.translate_x(x, amounts([0.5], 1)).flatten().tolist() == [3, 4, 128, 128]
        assert augment.translate_x(x, amounts([-0.25], 1)).flatten().tolist() == [128, 1, 2, 3]


class TestPolicy:
    def test_table(self):
        assert len(augment.CIFAR10_POLICY) == 25
        for name, probability, level in (step for pair in augment.CIFAR10_POLICY for step in pair):
            assert name in augment.OPERATIONS
            assert 0 <= probability <= 1
            assert level in range(10)
        assert sum(probability for pair in augment.CIFAR10_POLICY for _, probability, _ in pair) == pytest.approx(26.5)

    def test_amounts(self):
        amount = {
            name: [operation.amount(level) for level in range(10)] for name, operation in augment.OPERATIONS.items()
        }
        assert amount["posterize"] == np.round(np.linspace(8, 4, 10)).tolist()
        assert amount["solarize"] == pytest.approx(np.linspace(256, 0, 10))
        assert amount["rotate"] == pytest.approx(np.linspace(0, 30, 10))
        assert amount["translate_x"] == pytest.approx(np.linspace(0, 150 / 331, 10))

    def test_every_image_is_one_that_the_policy_can_make(self):
        """One image many times over: each result must be among those of Pillow, by every path through the table."""
        x = pictures(12, 12)[[8]]
        found = {
            image.numpy().tobytes() for image in augment.autoaugment_cifar10(x.expand(2000, -1, -1, -1), generator())
        }
        possible = set()
        for first, second in augment.CIFAR10_POLICY:
            for start in self._results(x, first):
                possible |= {image.numpy().tobytes() for end in self._results(start, second) for image in end}
        assert found <= possible
        assert len(found) > 0.8 * len(possible)

    def _results(self, x, step):
        """`x` as it is, and with the operation in either direction, unless its probability is 0 or 1."""
        name, probability, level = step
        operation = augment.OPERATIONS[name]
        results = [x]
        if probability:
            for sign in (1, -1) if operation.signed else (1,):
                results.append(operation.apply(x, amounts([sign * operation.amount(level)], 1)))
        return results

    def test_how_often(self):
        """The share of images inverted twice over, or not at all, is the table's."""
        x = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(3000, 3, -1, -1)
        out = augment.autoaugment_cifar10(x, generator())
        inverted = (out == 255 - x).flatten(1).all(1).double().mean().item()
        # sub-policies 0 and 23 of 25; equalize and autocontrast change nothing here, the contrast after the first does
        assert inverted == pytest.approx((0.1 * 0.8 + 0.1) / 25, abs=0.004)

    def test_the_batch_handed_in_is_left_alone(self):
        x = noise(64)
        before = x.clone()
        augment.autoaugment_cifar10(x, generator())
        augment.standard(x, MEAN, STD, generator(), autoaugment=True, cutout=8)
        assert_close(x, before)

    def test_needs_three_channels(self):
        with pytest.raises(InputError, match="expected 3 channels, got 1"):
            augment.autoaugment_cifar10(noise(2, channels=1), generator())


class TestCrop:
    def test_every_place_is_drawn_and_the_outside_is_black(self):
        x = noise(1, 5, 4) | 1  # no pixel is black
        out = augment.crop(x.expand(2000, -1, -1, -1), 2, generator())
        framed = torch.nn.functional.pad(x[0], (2, 2, 2, 2))
        windows = {
            framed[:, top : top + 5, left : left + 4].contiguous().numpy().tobytes()
            for top in range(5)
            for left in range(5)
        }
        assert len(windows) == 25
        assert {image.numpy().tobytes() for image in out} == windows

    def test_no_padding_changes_nothing(self):
        x = noise(3, 5, 7)
        assert_close(augment.crop(x, 0, generator()), x)

    def test_negative_padding(self):
        with pytest.raises(InputError, match="0 or more pixels, got -1"):
            augment.crop(noise(1), -1, generator())


class TestFlip:
    def test_half_the_images(self):
        x = torch.tensor([[1, 2, 3]], dtype=torch.uint8).view(1, 1, 1, 3).expand(4000, -1, -1, -1)
        out = augment.flip(x, generator())
        mirrored = (out[:, 0, 0] == torch.tensor([3, 2, 1])).all(1)
        kept = (out[:, 0, 0] == torch.tensor([1, 2, 3])).all(1)
        assert (mirrored ^ kept).all()
        assert mirrored.double().mean().item() == pytest.approx(0.5, abs=0.03)


class TestCutout:
    def test_one_square_an_image_cut_at_the_border(self):
        out = augment.cutout(torch.ones(3000, 2, 6, 5), 4, generator())
        assert_close(out[:, 0], out[:, 1])
        expected = set()
        for y in range(6):
            for x in range(5):
                image = torch.ones(6, 5)
                image[max(y - 2, 0) : y + 2, max(x - 2, 0) : x + 2] = 0
                expected.add(image.numpy().tobytes())
        assert {image.contiguous().numpy().tobytes() for image in out[:, 0]} == expected

    def test_odd_squares(self):
        out = augment.cutout(torch.ones(500, 1, 9, 9), 3, generator())
        zeros = (out == 0).sum((1, 2, 3))
        assert set(zeros.tolist()) == {4, 6, 9}
        middle = out[:, 0, 4, 4] == 0
        assert (zeros[middle] == 9).all()

    def test_size_0_changes_nothing(self):
        x = torch.randn(3, 1, 4, 4)
        assert_close(augment.cutout(x, 0, generator()), x)

    def test_needs_normalised_images(self):
        with pytest.raises(InputError, match="expected normalised float"):
            augment.cutout(noise(1), 4, generator())
        with pytest.raises(InputError, match="got -2"):
            augment.cutout(torch.ones(1, 1, 4, 4), -2, generator())


class TestStandard:
    @pytest.mark.parametrize("count", [0, 1, 5])
    @pytest.mark.parametrize(("height", "width"), [(32, 32), (9, 14), (1, 1)])
    def test_shapes(self, count, height, width):
        out = augment.standard(noise(count, height, width), MEAN, STD, generator(), autoaugment=True, cutout=4)
        assert out.shape == (count, 3, height, width)
        assert out.dtype == torch.float32
        assert out.isfinite().all()

    def test_one_channel(self):
        assert augment.standard(noise(2, 28, 28, 1), (0.1,), (0.3,), generator()).shape == (2, 1, 28, 28)

    def test_nothing_but_normalisation(self):
        x = noise(4)
        out = augment.standard(x, MEAN, STD, generator(), padding=0, flip=False)
        expected = (x.double() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        assert_close(out, expected.float())

    def test_steps_in_order(self):
        x, one, other = noise(16), generator(3), generator(3)
        out = augment.standard(x, MEAN, STD, one, padding=2, autoaugment=True, cutout=6)
        expected = augment.autoaugment_cifar10(augment.flip(augment.crop(x, 2, other), other), other)
        expected = augment.cutout(normalise(expected, MEAN, STD), 6, other)
        assert_close(out, expected, rtol=0, atol=0)

    def test_cut_out_pixels_are_0(self):
        out = augment.standard(noise(8) | 1, MEAN, STD, generator(), padding=0, cutout=64)
        assert (out == 0).all(1).float().mean() > 0.9

    def test_the_generator_decides(self):
        x = noise(16)

        def augmented(random):
            return augment.standard(x, MEAN, STD, random, autoaugment=True, cutout=8)

        random = generator(1)
        first, state = augmented(random), random.get_state()
        second = augmented(random)
        assert_close(first, augmented(generator(1)), rtol=0, atol=0)
        assert not torch.equal(first, second)
        assert_close(augmented(generator(5).set_state(state)), second, rtol=0, atol=0)

    def test_the_global_random_numbers_are_left_alone(self):
        before = torch.get_rng_state()
        augment.standard(noise(16), MEAN, STD, generator(), autoaugment=True, cutout=8)
        assert torch.equal(torch.get_rng_state(), before)

    def test_as_many_random_numbers_whatever_the_images(self):
        states = []
        for seed in range(2):
            random = generator()
            augment.standard(noise(7, seed=seed), MEAN, STD, random, autoaugment=True, cutout=8)
            states.append(random.get_state())
        assert torch.equal(*states)

    @pytest.mark.parametrize(
        "operate", [lambda x: augment.crop(x, 1, generator()), lambda x: augment.flip(x, generator())]
    )
    def test_needs_pixels(self, operate):
        with pytest.raises(
            InputError, match=r"expected pixels, uint8 \[N, C, H, W\], got torch.float32 \[1, 3, 4, 4\]"
        ):
            operate(torch.ones(1, 3, 4, 4))
        with pytest.raises(InputError, match="expected pixels"):
            operate(torch.ones(3, 4, 4, dtype=torch.uint8))
