"""`TorchConv` and `TorchDense` against Lava's own Conv and Dense, in both arithmetics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.lava import FIXED, FLOAT, LAVA, Driven, Values, as_it_was

pytestmark = LAVA

HALF = 2**23

seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    with as_it_was():
        yield


@st.composite
def convolutions(draw: st.DrawFn) -> dict[str, Any]:
    """What Lava's Conv and ours are made of, but for the weights: their shape comes as `weight`."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 3)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 3)))
    span = [far * (size - 1) + 1 for far, size in zip(dilation, kernel, strict=True)]
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    width, height = (
        draw(st.integers(max(1, reach - 2 * pad), reach + 5)) for reach, pad in zip(span, padding, strict=True)
    )
    each_in, each_out = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    return {
        "weight": (each_out * groups, *kernel, each_in),
        "input_shape": (width, height, each_in * groups),
        "stride": draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "num_message_bits": draw(st.sampled_from([0, 24])),
    }


def messages(rng: np.random.Generator, shape: tuple[int, ...], largest: int) -> Values:
    """Mostly silent, as spikes are; the others up to `largest`."""
    return (rng.integers(-largest, largest + 1, shape) * (rng.random(shape) < 0.4)).astype(np.int32)


def expect_equal_steps(ours: Any, lavas: Any, tag: str, stream: Values) -> Values:
    """Both Processes send the same at every step of `stream`; returns what. The first step sends nothing yet."""
    ours, lavas = Driven(ours, tag), Driven(lavas, tag)
    sent = []
    for data in stream:
        sent.append(ours.step(s_in=data)["a_out"])
        np.testing.assert_array_equal(sent[-1], lavas.step(s_in=data)["a_out"])
    assert not sent[0].any()
    return np.array(sent)


@settings(max_examples=80, deadline=None)
@given(convolutions(), seeds, st.sampled_from([FLOAT, FIXED]), st.sampled_from([1, 255, 2**15, 2**19]))
def test_the_convolution_is_lavas_own(parameters: dict[str, Any], seed: int, tag: str, largest: int) -> None:
    from lava.proc.conv.process import Conv

    from exporters.lava.processes import TorchConv

    rng = np.random.default_rng(seed)
    parameters = {**parameters, "weight": rng.integers(-128, 128, parameters["weight"])}
    stream = messages(rng, (4, *parameters["input_shape"]), largest)
    if tag == FLOAT:
        parameters["weight"] = parameters["weight"] / 8
        stream = stream / 4
    expect_equal_steps(TorchConv(**parameters), Conv(**parameters), tag, stream)


def test_the_convolution_wraps_at_24_bits_as_lavas_own() -> None:
    from lava.proc.conv.process import Conv

    from exporters.lava.processes import TorchConv

    weight = np.array([127, 1, -128, 3]).reshape(4, 1, 1, 1)
    edges = np.array([2**23 - 1, 2**23 - 2, -(2**23), 2**22 + 1, 2**16 + 1, 66053, -66053, 0])
    stream = np.concatenate([edges[None, :, None, None], np.zeros((1, 8, 1, 1), int)]).astype(np.int32)
    parameters: dict[str, Any] = {"weight": weight, "input_shape": (8, 1, 1), "num_message_bits": 24}
    sent = expect_equal_steps(TorchConv(**parameters), Conv(**parameters), FIXED, stream)
    expected = [[[(int(w) * int(s) + HALF) % (2 * HALF) - HALF for w in weight.flat]] for s in edges]
    np.testing.assert_array_equal(sent[1], expected)


@settings(max_examples=50, deadline=None)
@given(seeds, st.sampled_from([FLOAT, FIXED]), st.sampled_from([0, 24]), st.sampled_from([1, 255, 2**15, 2**19]))
def test_the_matrix_is_lavas_own(seed: int, tag: str, num_message_bits: int, largest: int) -> None:
    from lava.proc.dense.process import Dense

    from exporters.lava.processes import TorchDense

    rng = np.random.default_rng(seed)
    weights = rng.integers(-128, 128, rng.integers(1, 60, 2))
    weights.flat[:2] = [-128, 127][: weights.size]
    low, high = weights.min(), weights.max()
    if low < 0 < high or tag == FLOAT:  # else Dense holds another range
        stream = messages(rng, (4, weights.shape[1]), largest)
        twice = {"weights": 2 * weights, "weight_exp": -1} if tag == FIXED else {"weights": weights / 8}
        ours = TorchDense(weights=weights if tag == FIXED else weights / 8, num_message_bits=num_message_bits)
        expect_equal_steps(ours, Dense(**twice, num_message_bits=num_message_bits), tag, stream)


@pytest.mark.parametrize("tag", [FLOAT, FIXED])
@pytest.mark.parametrize("bits", [0, 24])
def test_lanes_are_images_apart(tag: str, bits: int) -> None:
    from exporters.lava.processes import IntegrateFire, TorchConv, TorchDense

    rng = np.random.default_rng(0)
    lanes, steps, shape = 3, 6, (7, 5, 4)
    kernel, matrix = rng.integers(-128, 128, (6, 3, 2, 2)), rng.integers(-128, 128, (9, 140))
    level = rng.integers(1, 99, shape[-1])  # a channel
    stream = messages(rng, (steps, lanes, *shape), 2**19)
    convolution: dict[str, Any] = {
        "weight": kernel,
        "input_shape": shape,
        "groups": 2,
        "padding": (1, 0),
        "stride": (2, 1),
        "num_message_bits": bits,
    }

    def neurons(*lanes: int) -> IntegrateFire:
        return IntegrateFire(shape=(*lanes, *shape), level=level, threshold=2 * level, bias_mant=level[::-1])

    for wide, single, entry, exit_, data in (
        (TorchConv(**convolution, lanes=lanes), lambda: TorchConv(**convolution), "s_in", "a_out", stream),
        (
            TorchDense(weights=matrix, num_message_bits=bits, lanes=lanes),
            lambda: TorchDense(weights=matrix, num_message_bits=bits),
            "s_in",
            "a_out",
            stream.reshape(steps, lanes, -1),
        ),
        (neurons(lanes), neurons, "a_in", "s_out", stream % 64),
    ):
        together, apart = Driven(wide, tag), [Driven(single(), tag) for _ in range(lanes)]
        for step in data:
            sent = together.step(**{entry: step})[exit_]
            for lane, alone in enumerate(apart):
                np.testing.assert_array_equal(sent[lane], alone.step(**{entry: step[lane]})[exit_])
        assert sent.any()


def test_refuses_channels_that_do_not_fit() -> None:
    from exporters.lava.processes import TorchConv

    with pytest.raises(ValueError, match=r"TorchConv 'c': expected weights .* for 4 channels in 2 groups, got \(2, 1"):
        TorchConv(weight=np.ones((2, 1, 1, 4)), input_shape=(3, 3, 4), groups=2, name="c")
    with pytest.raises(ValueError, match="in 2 groups"):
        TorchConv(weight=np.ones((3, 1, 1, 2)), input_shape=(3, 3, 4), groups=2)
