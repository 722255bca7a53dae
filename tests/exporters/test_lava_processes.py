"""The Lava Processes together, in Lava itself, against loops in int64; and fixed point refuses what is not whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from support.lava import FIXED, FLOAT, LAVA, Driven, Values, as_it_was, run_in_lava

from bridge.errors import BackendError

pytestmark = LAVA


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    with as_it_was():
        yield


def test_fixed_point_refuses_what_is_not_whole() -> None:
    from exporters.lava.processes import CurrentSource, Delay, IntegrateFire, Readout, TorchConv, TorchDense

    whole: dict[str, Any] = {"level": 1, "threshold": 2}
    kernel = np.ones((1, 1, 1, 1))
    for process, message in (
        (IntegrateFire(shape=(2,), name="n"), r"IntegrateFire 'n': level: .* whole numbers .* got 0\.5: quantise"),
        (IntegrateFire(shape=(2,), **{**whole, "threshold": 1.5}), r"threshold: .* got 1\.5"),
        (IntegrateFire(shape=(2,), **whole, bias_mant=[1, 0.25]), r"bias_mant: .* got 0\.25"),
        (IntegrateFire(shape=(2,), **whole, bias_mant=[1, np.nan]), r"bias_mant: .* got nan"),
        (Readout(shape=(1,), bias=2.0**31), r"bias: .* to 2147483647, got 2147483648\.0"),
        (CurrentSource(currents=np.array([[1, 0.5]]), interval=1), r"CurrentSource .* got 0\.5"),
        (Delay(shape=(2,), steps=1, gain=0.5), r"gain: .* got 0\.5"),
        (TorchDense(weights=np.array([[127, 128]])), r"TorchDense .* from -128 to 127, got 128"),
        (TorchDense(weights=np.array([[1, 0.5]])), r"TorchDense .* got 0\.5"),
        (TorchConv(weight=kernel / 2, input_shape=(1, 1, 1)), r"TorchConv .* got 0\.5"),
        (TorchConv(weight=kernel * 2**24, input_shape=(1, 1, 1)), r"TorchConv .* got 16777216"),
    ):
        with pytest.raises(ValueError, match=message):
            Driven(process, FIXED)
        Driven(process, FLOAT)


def naive_layers(
    x: Values, kernel: Values, matrix: Values, theta: int, steps: int
) -> tuple[list[Values], list[Values], list[Values]]:
    """``image → neurons → conv → neurons → matrix`` for one image ``[W, H, C]``, in int64: both layers' spikes and the
    output at each step.
    """
    width, height, _ = x.shape
    u0, u1 = np.zeros(x.shape, np.int64), np.zeros((width - 1, height - 1, len(kernel)), np.int64)
    first, second, outputs = [], [], []
    for _ in range(steps):
        u0 += x
        s0 = (u0 >= 64).astype(np.int64)
        u0 -= 128 * s0
        for i, j, c in np.ndindex(u1.shape):
            u1[i, j, c] += (s0[i : i + 2, j : j + 2] * kernel[c, ::-1, ::-1]).sum() + 5
        s1 = (u1 >= theta // 2).astype(np.int64)
        u1 -= theta * s1
        first.append(s0)
        second.append(s1)
        outputs.append(matrix @ s1.reshape(-1) - 3)
    return first, second, outputs


@pytest.mark.parametrize("tag", [FLOAT, FIXED, "bit_accurate_loihi"])
def test_a_network_in_lava_equals_a_loop(tag: str) -> None:
    from exporters.lava.processes import CurrentSource, IntegrateFire, Readout, Sink, TorchConv, TorchDense
    from exporters.lava.processes import shared_array as shared

    rng = np.random.default_rng(3)
    rounds, lanes, steps, theta = 2, 2, 5, 200
    x = rng.integers(0, 128, (rounds, lanes, 5, 4, 2))
    kernel, matrix = rng.integers(-60, 128, (3, 2, 2, 2)), rng.integers(-128, 128, (4, 36))
    source = CurrentSource(currents=x, interval=steps)
    first = IntegrateFire(shape=x.shape[1:], level=64, threshold=128, bias_exp=0, shift=0, interval=steps)
    conv = TorchConv(weight=kernel, input_shape=x.shape[2:], lanes=lanes)
    second = IntegrateFire(
        shape=conv.a_out.shape, level=theta // 2, threshold=theta, bias_mant=5, interval=steps, offset=1
    )
    dense = TorchDense(weights=matrix, lanes=lanes)
    readout = Readout(shape=(lanes, 4), bias=-3, interval=steps, offset=2)
    source.a_out.connect(first.bias_in)
    first.s_out.connect(conv.s_in)
    conv.a_out.connect(second.a_in)
    second.s_out.reshape((lanes, 36)).connect(dense.s_in)
    dense.a_out.connect(readout.a_in)
    total = rounds * steps
    spikes = [shared((total, *process.s_out.shape), bool) for process in (first, second)]
    outputs = shared((total, lanes, 4), np.int32)
    for port, buffer, offset in (
        (first.s_out, spikes[0], 0),
        (second.s_out, spikes[1], 1),
        (readout.y_out, outputs, 2),
    ):
        port.connect(Sink(buffer=buffer, offset=offset).a_in)
    run_in_lava(source, total + 2, tag)
    for image in range(rounds):
        for lane in range(lanes):
            expected = naive_layers(x[image, lane], kernel, matrix, theta, steps)
            rows = slice(image * steps, (image + 1) * steps)
            for got, wanted in zip((*spikes, outputs), expected, strict=True):
                np.testing.assert_array_equal(got[rows, lane], wanted)
    assert 0.1 < spikes[1].mean() < 0.9


def test_our_fixed_neurons_behind_lavas_own_synapses() -> None:
    from lava.proc.conv.process import Conv
    from lava.proc.dense.process import Dense

    from exporters.lava.processes import CurrentSource, Delay, IntegrateFire, Readout, Sink, shared_array

    rng = np.random.default_rng(4)
    steps, theta = 8, 200
    x = rng.integers(0, 128, (1, 5, 4, 2))
    kernel, matrix = rng.integers(-60, 128, (3, 2, 2, 2)), rng.integers(-128, 128, (4, 36))
    source = CurrentSource(currents=x, interval=steps)
    first = IntegrateFire(shape=(5, 4, 2), level=64, threshold=128, shift=0)
    conv = Conv(weight=kernel, input_shape=(5, 4, 2))
    second = IntegrateFire(shape=(4, 3, 3), level=theta // 2, threshold=theta, bias_mant=5 * 64, bias_exp=0, offset=1)
    dense, twice = Dense(weights=2 * matrix, weight_exp=-1), Delay(shape=(4,), steps=3, gain=-2)
    readout = Readout(shape=(4,), bias=-3, interval=steps, offset=2)
    source.a_out.connect(first.bias_in)
    first.s_out.connect(conv.s_in)
    conv.a_out.connect(second.a_in)
    second.s_out.reshape((36,)).connect(dense.s_in)
    dense.a_out.connect([readout.a_in, twice.a_in])
    outputs, late = shared_array((steps, 4), np.int32), shared_array((steps, 4), np.float32)
    potentials = shared_array((steps, 4, 3, 3), np.float32)
    readout.y_out.connect(Sink(buffer=outputs, offset=2).a_in)
    twice.a_out.connect(Sink(buffer=late, offset=5).a_in)
    second.u_out.connect(Sink(buffer=potentials, offset=1).a_in)
    run_in_lava(source, steps + 5, FIXED)
    first_spikes, _, expected = naive_layers(x[0], kernel, matrix, theta, steps)
    np.testing.assert_array_equal(outputs, expected)
    np.testing.assert_array_equal(late, -2 * (np.array(expected) + 3))
    sums = [(first_spikes[0][i : i + 2, j : j + 2] * kernel[c, ::-1, ::-1]).sum() for i, j, c in np.ndindex(4, 3, 3)]
    np.testing.assert_array_equal(potentials[0], np.reshape(sums, (4, 3, 3)) + 5)


@pytest.mark.parametrize("tag", [FLOAT, FIXED])
def test_sources_delays_and_sinks_keep_whole_numbers(tag: str) -> None:
    from exporters.lava.processes import CurrentSource, Delay, Sink, shared_array

    largest = 2**31 - 1
    currents = np.array([[[1, largest], [0, -5]], [[2, -largest], [0, 7]], [[3, 0], [1, 2**24 + 1]]])
    source = CurrentSource(currents=currents, interval=1, offset=1)
    lines = [Delay(shape=(2, 2), steps=0), Delay(shape=(2, 2), steps=2, gain=-1)]
    kept = [shared_array((6, 2, 2), np.int64), shared_array((6, 2, 2), np.int64), shared_array((2, 2, 2), bool)]
    source.a_out.connect([*(line.a_in for line in lines), Sink(buffer=kept[2], offset=2).a_in])
    for line, buffer in zip(lines, kept, strict=False):
        line.a_out.connect(Sink(buffer=buffer).a_in)
    run_in_lava(source, 6, tag)
    nothing = np.zeros((2, 2), int)
    np.testing.assert_array_equal(kept[0], [nothing, *currents, nothing, nothing])
    np.testing.assert_array_equal(kept[1], [nothing, nothing, nothing, *-currents])
    np.testing.assert_array_equal(kept[2], currents[1:] != 0)


def test_a_fraction_in_fixed_point_ends_the_run() -> None:
    from exporters.lava.processes import CurrentSource, Sink, shared_array

    source = CurrentSource(currents=np.array([[0.5]]), interval=1, name="half")
    source.a_out.connect(Sink(buffer=shared_array((1, 1), float)).a_in)
    with pytest.raises(BackendError, match=r"CurrentSource 'half': fixed point takes whole numbers"):
        run_in_lava(source, 1, FIXED)
