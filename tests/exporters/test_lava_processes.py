"""The Lava Processes against Lava's own, and against loops over Python's integers, in both arithmetics."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bridge.errors import BackendError
from exporters.lava import Lava

pytestmark = [
    pytest.mark.lava,
    pytest.mark.skipif(not Lava().available().usable, reason="Lava is not installed"),
]

FLOAT, FIXED = "floating_pt", "fixed_pt"
HALF = 2**23
NEVER = 2**17  # as a level: one more than the largest threshold that Loihi has, and than any potential

Values = NDArray[Any]
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """Synapses set torch's threads, and every Process adds a log handler."""
    from exporters.lava.runtime import quiet

    threads = torch.get_num_threads()
    with quiet(), torch.backends.nnpack.flags(enabled=True):
        yield
    torch.set_num_threads(threads)


MODELS: dict[type, list[Any]] = {}  # Lava searches folders for them, which takes a while


def models(process: Any) -> list[Any]:
    """The models that Lava finds for `process`."""
    from lava.magma.compiler.compiler_graphs import ProcGroupDiGraphs

    if type(process) not in MODELS:
        MODELS[type(process)] = ProcGroupDiGraphs._find_proc_models(process)
    return MODELS[type(process)]


class Driven:
    """A Process's model, chosen and built as Lava does it, but stepped here instead of in a forked child.

    ``step(port=data, ...)`` delivers data and returns what is sent, in the ports' own types as Lava's channels would.
    """

    def __init__(self, process: Any, tag: str) -> None:
        from lava.magma.compiler.builders.py_builder import PyProcessBuilder
        from lava.magma.compiler.utils import PortInitializer, VarInitializer
        from lava.magma.core.run_configs import Loihi2SimCfg

        model = Loihi2SimCfg(select_tag=tag).select(process, models(process))
        builder = PyProcessBuilder(model, 0, process.proc_params)
        builder.set_variables([VarInitializer(var.name, var.shape, var.init, var.id) for var in process.vars])
        ports = [*process.in_ports, *process.out_ports]
        builder.set_py_ports([PortInitializer(port.name, port.shape, int, type(port).__name__, 1) for port in ports])
        self.model = builder.build()
        self.model.time_step = 0
        self.inputs = [port.name for port in process.in_ports]
        self.outputs = [port.name for port in process.out_ports]

    def step(self, **data: Values) -> dict[str, Values]:
        sent: dict[str, Values] = {}
        assert set(data) <= set(self.inputs)
        for name in self.inputs:
            arriving = [SimpleNamespace(recv=lambda given=data[name]: given)] if name in data else []
            getattr(self.model, name)._csp_ports = arriving
        for name in self.outputs:
            port = getattr(self.model, name)

            def send(what: Values, name: str = name, port: Any = port) -> None:
                assert what.shape == port.shape
                sent[name] = np.empty(port.shape, port._d_type)
                sent[name][:] = what

            port._csp_ports = [SimpleNamespace(send=send)]
        self.model.time_step += 1
        self.model.run_spk()
        return sent


def run(process: Any, steps: int, tag: str) -> None:
    """Run `process` and all connected to it in Lava itself."""
    from lava.magma.core.run_configs import Loihi2SimCfg

    from exporters.lava import compat
    from exporters.lava.runtime import WatchedRuntime, quiet

    with compat.forking(), quiet():
        runtime = WatchedRuntime(process.compile(Loihi2SimCfg(select_tag=tag), {"pypy_channel_size": 2}), 60)
        try:
            runtime.initialize()
            runtime.run_steps(steps)
        finally:
            runtime.end()


# ---- neurons -------------------------------------------------------------------------------------------------------


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
    bias = {
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
    assert spikes.dtype == np.int32
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
    bias = {"bias_mant": rng.integers(-2000, 2000, neurons), "bias_exp": bias_exp}
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


def test_fixed_point_refuses_what_is_not_whole() -> None:
    from exporters.lava.processes import CurrentSource, Delay, IntegrateFire, Readout, TorchConv, TorchDense

    whole = {"level": 1, "threshold": 2}
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


# ---- synapses ------------------------------------------------------------------------------------------------------


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


# ---- in Lava itself ------------------------------------------------------------------------------------------------


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
        first.append(s0), second.append(s1), outputs.append(matrix @ s1.reshape(-1) - 3)
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
    run(source, total + 2, tag)
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
    run(source, steps + 5, FIXED)
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
    run(source, 6, tag)
    nothing = np.zeros((2, 2), int)
    np.testing.assert_array_equal(kept[0], [nothing, *currents, nothing, nothing])
    np.testing.assert_array_equal(kept[1], [nothing, nothing, nothing, *-currents])
    np.testing.assert_array_equal(kept[2], currents[1:] != 0)


def test_a_fraction_in_fixed_point_ends_the_run() -> None:
    from exporters.lava.processes import CurrentSource, Sink, shared_array

    source = CurrentSource(currents=np.array([[0.5]]), interval=1, name="half")
    source.a_out.connect(Sink(buffer=shared_array((1, 1), float)).a_in)
    with pytest.raises(BackendError, match=r"CurrentSource 'half': fixed point takes whole numbers"):
        run(source, 1, FIXED)
