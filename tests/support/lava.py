"""What the tests of Lava share: their marks, a Process's model stepped without Lava's runtime, a naive simulator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bridge.graph import Add, AvgPool2d, Conv1d, Conv2d, Flatten, IntegrateFire, Layer, LayerGraph, Linear, Scale
from bridge.records import SpikeRecord
from exporters.lava import Lava

LAVA = [
    pytest.mark.lava,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not Lava().available().usable, reason="Lava is not installed"),
]
"""The marks of a test file that needs Lava."""
FLOAT, FIXED = "floating_pt", "fixed_pt"
"""Lava's names of its two arithmetics."""

Values = NDArray[Any]


# ---- Processes -----------------------------------------------------------------------------------------------------


@contextmanager
def as_it_was() -> Iterator[None]:
    """Put back what Processes change for the whole program: torch's threads, which synapses set, and log handlers."""
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


def run_in_lava(process: Any, steps: int, tag: str) -> None:
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


# ---- an independent simulator: one image, one step, one window at a time -------------------------------------------


def naive_layer(layer: Layer, x: NDArray[np.float64], *more: NDArray[np.float64]) -> NDArray[np.float64]:
    """One layer without neurons on one image, by loops."""
    if isinstance(layer, Add):
        return x + more[0]
    if isinstance(layer, Conv1d):
        return naive_conv1d(layer, x)
    if isinstance(layer, Flatten):
        return x.reshape(-1)
    if isinstance(layer, Linear):
        return np.array([sum(w * v for w, v in zip(row, x, strict=True)) for row in layer.weight]) + layer.bias
    if isinstance(layer, Scale):
        return np.stack([factor * channel for factor, channel in zip(layer.scale, x, strict=True)])
    if isinstance(layer, AvgPool2d):
        return np.stack([slide(channel[None], layer, np.ones((1, *layer.kernel)), (1, 1)) for channel in x]) / np.prod(
            layer.kernel
        )
    assert isinstance(layer, Conv2d)
    per_group_in, per_group_out = layer.weight.shape[1], len(layer.weight) // layer.groups
    maps = []
    for out, kernel in enumerate(layer.weight):
        first = out // per_group_out * per_group_in
        maps.append(slide(x[first : first + per_group_in], layer, kernel, layer.dilation) + layer.bias[out])
    return np.stack(maps)


def slide(x: NDArray[Any], layer: Any, kernel: NDArray[Any], dilation: tuple[int, int]) -> NDArray[np.float64]:
    """Sum of `kernel` ``[C, kh, kw]`` times every window of `x` ``[C, H, W]``, with `layer`'s stride and padding."""
    (pad_h, pad_w), (step_h, step_w), (far_h, far_w) = layer.padding, layer.stride, dilation
    padded = np.zeros((len(x), x.shape[1] + 2 * pad_h, x.shape[2] + 2 * pad_w))
    padded[:, pad_h : pad_h + x.shape[1], pad_w : pad_w + x.shape[2]] = x
    span_h, span_w = far_h * (kernel.shape[1] - 1) + 1, far_w * (kernel.shape[2] - 1) + 1
    rows = range(0, padded.shape[1] - span_h + 1, step_h)
    columns = range(0, padded.shape[2] - span_w + 1, step_w)
    return np.array(
        [[(padded[:, i : i + span_h : far_h, j : j + span_w : far_w] * kernel).sum() for j in columns] for i in rows]
    )


def naive_conv1d(layer: Conv1d, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """`layer` on one signal ``[C, N]``, one product at a time, counted from the output."""
    per_group_in, per_group_out = layer.weight.shape[1], len(layer.weight) // layer.groups
    far = layer.dilation * (layer.weight.shape[2] - 1)
    signals = []
    for out, kernel in enumerate(layer.weight):
        signal = []
        for start in range(-layer.padding, x.shape[1] + layer.padding - far, layer.stride):
            total = float(layer.bias[out])
            for c, row in enumerate(kernel):
                for k, weight in enumerate(row):
                    position = start + k * layer.dilation
                    if 0 <= position < x.shape[1]:
                        total += weight * x[out // per_group_out * per_group_in + c, position]
            signal.append(total)
        signals.append(signal)
    return np.array(signals)


def naive_run(graph: LayerGraph, x: NDArray[Any], steps: int) -> tuple[dict[str, Any], dict[str, Any], NDArray[Any]]:
    """Spikes and membranes by layer ``[T, B, *shape]`` and readout ``[T, B, ...]``."""
    spikes: dict[str, Any] = {name: np.zeros((steps, len(x), *graph.shapes[name])) for name in graph.spiking}
    membranes = {name: array.copy() for name, array in spikes.items()}
    readout = np.zeros((steps, len(x), *graph.shapes[graph.output.name]))
    for b, image in enumerate(x):
        u = {name: np.zeros(graph.shapes[name]) for name in graph.spiking}
        for t in range(steps):
            values = {graph.input.name: image.astype(np.float64)}
            for layer in graph.layers[1:]:
                inputs = [values[source] for source in layer.inputs]
                if not isinstance(layer, IntegrateFire):
                    values[layer.name] = naive_layer(layer, *inputs)
                    continue
                u[layer.name] = u[layer.name] + inputs[0]
                membranes[layer.name][t, b] = u[layer.name]
                level = np.stack([np.full(u[layer.name].shape[1:], one) for one in layer.level])
                fired = (u[layer.name] >= level).astype(np.float64)
                u[layer.name] = u[layer.name] - fired
                spikes[layer.name][t, b] = values[layer.name] = fired
            readout[t, b] = values[graph.output.name]
    return spikes, membranes, readout


def images(rng: np.random.Generator, graph: LayerGraph, count: int) -> NDArray[np.float32]:
    return (rng.integers(-4, 17, (count, *graph.input.shape)) / 16).astype(np.float32)


def expect_equal(record: SpikeRecord, graph: LayerGraph, x: NDArray[np.float32], steps: int) -> None:
    """Every spike, membrane (where recorded) and readout value of `record` is the naive simulator's."""
    spikes, membranes, readout = naive_run(graph, x, steps)
    assert record.layers == graph.spiking
    for name in graph.spiking:
        np.testing.assert_array_equal(record.spikes(name), spikes[name] == 1, err_msg=name)
    for name, membrane in record.membranes.items():
        np.testing.assert_array_equal(membrane, membranes[name], err_msg=name)
    np.testing.assert_array_equal(record.readout, readout.astype(np.float32))
