"""Neurons against Lava's own LIF, and against loops over Python's integers, in both arithmetics."""

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
NEVER = 2**17  # as a level: one more than the largest threshold that Loihi has, and than any potential

seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    with as_it_was():
        yield


def synaptic_inputs(rng: np.random.Generator, steps: int, neurons: int) -> Values:
    """Sums as synapses may give them, ``[steps, neurons]``: each neuron has its own drift and spread, some wrap."""
    spread = 2 ** rng.uniform(0, 20, neurons)
    drift = rng.choice([0, 1, -1], neurons) * 2 ** rng.uniform(0, 18, neurons)
    values = np.rint(rng.normal(drift, spread, (steps, neurons)))
    edges = np.array([2**17 - 1, 2**17, 2**17 + 1, 3 * 2**17, 2**18, 2**23 - 1])  # once in a while, exactly those
    at_edge = rng.random((steps, neurons)) < 0.02
    values = np.where(at_edge, rng.choice([*edges, *-edges], (steps, neurons)), values)
    return np.clip(values, -(2**23), 2**23 - 1).astype(np.int32)


@pytest.mark.parametrize(("steps", "neurons"), [(10_000, 60), (300, 2000)])
def test_the_potential_is_that_of_lavas_own_lif(steps: int, neurons: int) -> None:
    from lava.proc.lif.process import LIF

    from exporters.lava.processes import IntegrateFire

    rng = np.random.default_rng(steps)
    bias: dict[str, Any] = {
        "bias_mant": rng.integers(-4096, 4096, neurons) * rng.integers(0, 2, neurons),
        "bias_exp": rng.integers(0, 8, neurons),
    }
    ours = Driven(IntegrateFire(shape=(neurons,), level=NEVER, threshold=NEVER, **bias), FIXED)
    lavas = Driven(LIF(shape=(neurons,), vth=NEVER, du=4095, dv=0, **bias), FIXED)
    saturated = 0.0
    for a_in in synaptic_inputs(rng, steps, neurons):
        sent = ours.step(a_in=a_in)
        lavas.step(a_in=a_in)
        np.testing.assert_array_equal(ours.model.u, lavas.model.v)
        np.testing.assert_array_equal(sent["u_out"] * 64, lavas.model.v)
        saturated += (np.abs(ours.model.u) == HALF - 1).mean() / steps
    assert not sent["s_out"].any()
    assert 0.02 < saturated < 0.9  # else this test did not see what it is for


def test_bias_currents_alone_are_biases_of_lavas_own_lif() -> None:
    from lava.proc.lif.process import LIF

    from exporters.lava.processes import IntegrateFire

    rng = np.random.default_rng(0)
    neurons = 300
    mantissas = rng.integers(-4096, 4096, neurons)
    ours = Driven(
        IntegrateFire(shape=(neurons,), level=NEVER * 64, threshold=0, bias_mant=7, bias_exp=3, shift=0), FIXED
    )
    lavas = Driven(LIF(shape=(neurons,), vth=NEVER, du=4095, dv=0, bias_mant=0, bias_exp=0), FIXED)
    for _ in range(5000):
        currents = (mantissas + rng.integers(-99, 100, neurons)).astype(np.int32)
        lavas.model.bias_mant[:] = currents + 7 * 2**3
        lavas.step()
        sent = ours.step(bias_in=currents)
        np.testing.assert_array_equal(sent["u_out"], lavas.model.v)
    assert (sent["u_out"] == HALF - 1).any()


def wrapped(current: int) -> int:
    """A current of 24 bits, −2^23 + 1 … 2^23."""
    return (current + HALF - 1) % (2 * HALF) - HALF + 1


def naive_neuron(
    inputs: list[int],
    currents: list[int],
    level: int,
    threshold: int,
    bias: int,
    shift: int,
    interval: int,
    offset: int,
) -> list[tuple[int, int]]:
    """One neuron in Python's integers: its spikes and potentials, in registers. `bias` is in registers as well."""
    u, record = 0, []
    for step, (a_in, current) in enumerate(zip(inputs, currents, strict=True)):
        if step < offset:
            record.append((0, 0))
            continue
        if interval and (step - offset) % interval == 0:
            u = 0
        u += wrapped(a_in * 64) + bias + current * 2**shift
        u = max(-HALF + 1, min(HALF - 1, u))
        fires = int(u > level * 2**shift - 1)
        record.append((fires, u))
        u -= fires * threshold * 2**shift
    return record


@settings(max_examples=80, deadline=None)
@given(
    seeds, st.integers(0, 9), st.integers(0, 3), st.sampled_from([6, 0]), st.sampled_from(["ties", "biases", "wild"])
)
def test_fixed_neurons_equal_a_loop(seed: int, interval: int, offset: int, shift: int, kind: str) -> None:
    from exporters.lava.processes import IntegrateFire

    rng = np.random.default_rng(seed)
    steps, shape = 25, (3, 2, 5)
    unit = 64 // 2**shift
    threshold = 2 * rng.integers(1, 4 if kind == "ties" else 2**16, shape[2:]) * unit
    scale = 2**17 if kind == "wild" else int(threshold.max())
    a_in = rng.integers(-scale, scale + 1, (steps, *shape)) if shift else np.zeros((steps, *shape), int)
    currents = rng.integers(-scale, scale + 1, (steps, *shape)) // rng.integers(1, 9)
    mantissa, bias_exp = rng.integers(-4096, 4096, shape) * (kind != "ties"), rng.integers(0, 8, shape)
    neurons = IntegrateFire(
        shape=shape,
        level=threshold // 2,
        threshold=threshold,
        bias_mant=mantissa,
        bias_exp=bias_exp,
        shift=shift,
        interval=interval,
        offset=offset,
    )
    driven = Driven(neurons, FIXED)
    sent = [
        driven.step(a_in=a.astype(np.int32), bias_in=b.astype(np.int32)) for a, b in zip(a_in, currents, strict=True)
    ]
    spikes, potentials = (np.array([step[port] for step in sent]) for port in ("s_out", "u_out"))
    assert spikes.dtype == np.int8
    for at in np.ndindex(shape):
        inputs, injected = a_in[:, *at].tolist(), currents[:, *at].tolist()
        theta, bias = int(threshold[at[-1]]), int(mantissa[at]) * 2 ** int(bias_exp[at])
        expected = naive_neuron(inputs, injected, theta // 2, theta, bias, shift, interval, offset)
        assert list(zip(spikes[:, *at].tolist(), (potentials[:, *at] * 2**shift).tolist(), strict=True)) == expected


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(0, 7), st.sampled_from([0, 6]), st.integers(0, 4))
def test_both_arithmetics_agree_where_nothing_wraps(seed: int, bias_exp: int, shift: int, interval: int) -> None:
    from exporters.lava.processes import IntegrateFire, Readout

    rng = np.random.default_rng(seed)
    neurons, steps = 50, 12
    threshold = 128 * rng.integers(1, 500, neurons)
    bias: dict[str, Any] = {"bias_mant": rng.integers(-2000, 2000, neurons), "bias_exp": bias_exp}
    built = [
        Driven(
            IntegrateFire(
                shape=(neurons,), level=threshold // 2, threshold=threshold, shift=shift, interval=interval, **bias
            ),
            tag,
        )
        for tag in (FLOAT, FIXED)
    ]
    readouts = [Driven(Readout(shape=(neurons,), bias=threshold, interval=interval), tag) for tag in (FLOAT, FIXED)]
    for _ in range(steps):
        data = {"bias_in": rng.integers(-3000, 3000, neurons).astype(np.int32)}
        if shift:
            data["a_in"] = rng.integers(-3000, 3000, neurons).astype(np.int32)
        in_float, in_fixed = (driven.step(**data) for driven in built)
        for port in ("s_out", "u_out"):
            np.testing.assert_array_equal(in_float[port], in_fixed[port])
        in_float, in_fixed = (driven.step(**data) for driven in readouts)
        expected = sum(array.astype(np.int64) for array in data.values()) + threshold
        np.testing.assert_array_equal(in_float["y_out"], expected)
        np.testing.assert_array_equal(in_fixed["y_out"], expected)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"shift": 3}, r"IntegrateFire 'n': expected a shift of 6 or 0, got 3"),
        ({"shift": 0, "level": 64, "threshold": [128, 160]}, r"multiples of 64 as threshold with shift=0.*got 160"),
        ({"shift": 0, "level": 32, "threshold": 64}, r"multiples of 64 as level with shift=0.*got 32"),
        ({"bias_exp": [6, 8]}, r"bias exponents from 0 to 7.*got 6 to 8"),
        ({"bias_exp": -1}, r"bias exponents from 0 to 7"),
    ],
)
def test_refuses_registers_that_loihi_does_not_have(parameters: dict[str, Any], message: str) -> None:
    from exporters.lava.processes import IntegrateFire

    with pytest.raises(ValueError, match=message):
        IntegrateFire(shape=(2,), name="n", **parameters)
