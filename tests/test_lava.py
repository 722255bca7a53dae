"""The Lava backend against a naive loop, spike for spike, on a dyadic grid where every arithmetic is exact."""

from __future__ import annotations

import logging
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bridge.errors import BackendError, GraphError, InputError
from bridge.graph import (
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Flatten,
    Input,
    IntegrateFire,
    Layer,
    LayerGraph,
    Linear,
    Scale,
    Shape,
)
from bridge.nir_graph import to_nir
from bridge.records import SpikeRecord
from exporters.lava import Lava, compat
from exporters.lava.backend import build_network

if TYPE_CHECKING:
    from exporters.lava.network import LavaNetwork

pytestmark = [
    pytest.mark.lava,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not Lava().available().usable, reason="Lava is not installed"),
]

ROOT = Path(__file__).parents[1]


# ---- an independent simulator: one image, one step, one window at a time -------------------------------------------


def naive_layer(layer: Layer, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """One affine, pooling, scaling or flattening layer on one image, by loops."""
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


def naive_run(graph: LayerGraph, x: NDArray[Any], steps: int) -> tuple[dict[str, Any], dict[str, Any], NDArray[Any]]:
    """Spikes and membranes by layer ``[T, B, *shape]`` and readout ``[T, B, ...]``."""
    spikes: dict[str, Any] = {name: np.zeros((steps, len(x), *graph.shapes[name])) for name in graph.spiking}
    membranes = {name: array.copy() for name, array in spikes.items()}
    readout = np.zeros((steps, len(x), *graph.shapes[graph.output.name]))
    for b, image in enumerate(x):
        u = {name: np.zeros(graph.shapes[name]) for name in graph.spiking}
        for t in range(steps):
            value = image.astype(np.float64)
            for layer in graph.layers[1:]:
                if not isinstance(layer, IntegrateFire):
                    value = naive_layer(layer, value)
                    continue
                u[layer.name] = u[layer.name] + value
                membranes[layer.name][t, b] = u[layer.name]
                level = np.stack([np.full(u[layer.name].shape[1:], one) for one in layer.level])
                value = (u[layer.name] >= level).astype(np.float64)
                u[layer.name] = u[layer.name] - value
                spikes[layer.name][t, b] = value
            readout[t, b] = value
    return spikes, membranes, readout


# ---- networks ------------------------------------------------------------------------------------------------------

Make = Callable[[np.random.Generator], LayerGraph]


def grid(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    """Weights on a dyadic grid, somewhat above zero on average, so that deep layers spike too."""
    return (rng.integers(-6, 10, shape) / 16).astype(np.float32)


def chain(rng: np.random.Generator, shape: Shape, *makers: Any) -> LayerGraph:
    """A chain of layers made by `makers`, each from the name, inputs and shape it gets."""
    built: list[Layer] = [Input(name="x", shape=shape)]
    for i, maker in enumerate(makers):
        shape = LayerGraph(tuple(built)).shapes[built[-1].name]
        built.append(maker(rng, {"name": f"layer{i}", "inputs": (built[-1].name,)}, shape))
    return LayerGraph(tuple(built))


def conv(channels: int, kernel: tuple[int, int], groups: int = 1, **options: Any) -> Any:
    def make(rng: np.random.Generator, names: Any, shape: Shape) -> Layer:
        weight = grid(rng, channels, shape[0] // groups, *kernel)
        return Conv2d(**names, weight=weight, bias=grid(rng, channels) / 2, groups=groups, **options)

    return make


def linear(features: int) -> Any:
    return lambda rng, names, shape: Linear(**names, weight=grid(rng, features, *shape), bias=grid(rng, features))


def spike(*levels: float) -> Any:
    def make(rng: np.random.Generator, names: Any, shape: Shape) -> Layer:
        return IntegrateFire(**names, level=np.resize(levels or (0.5,), shape[0]).astype(np.float32))

    return make


def pool(kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int] = (0, 0)) -> Any:
    return lambda rng, names, shape: AvgPool2d(**names, kernel=kernel, stride=stride, padding=padding)


def scale() -> Any:
    return lambda rng, names, shape: Scale(**names, scale=1 + grid(rng, shape[0]) / 2)


def flatten() -> Any:
    return lambda rng, names, shape: Flatten(**names)


NETWORKS: dict[str, tuple[Shape, tuple[Any, ...]]] = {
    "mlp": ((6,), (linear(9), spike(), linear(7), spike(0.5, 0.25, 0.75), linear(3))),
    "conv": (
        (2, 9, 7),
        (
            conv(4, (3, 2), stride=(2, 1), padding=(1, 0)),
            spike(0.5, 0.375),
            conv(6, (2, 3), groups=2, padding=(0, 2), dilation=(2, 1)),
            spike(),
            conv(4, (3, 3), dilation=(1, 2), padding=(2, 1), stride=(1, 3)),
            spike(),
            pool((2, 1), (2, 1)),
            flatten(),
            linear(5),
        ),
    ),
    "conv readout": ((3, 5, 4), (conv(3, (3, 3)), spike(), conv(2, (2, 1), padding=(1, 0)))),
    "pool readout": ((1, 6, 4), (conv(2, (3, 3), padding=(1, 1)), spike(), pool((2, 4), (2, 1), (1, 1)))),
    "affine after affine": (
        (1, 5, 6),
        (
            conv(3, (1, 1)),
            pool((2, 2), (1, 2), (1, 1)),
            spike(),
            conv(4, (2, 2)),
            pool((2, 2), (2, 2), (1, 1)),
            conv(2, (2, 2)),
            spike(),
            flatten(),
            linear(6),
            linear(4),
            spike(),
            linear(5),
            linear(3),
        ),
    ),
    "spikes at once": ((4,), (spike(), linear(3), spike(), spike(0.25), scale(), scale(), spike())),
    "scales": ((2, 3, 4), (scale(), spike(), scale(), conv(2, (2, 2)), spike(), flatten(), scale(), linear(3))),
    "flattened neurons": ((2, 3, 4), (conv(3, (2, 1)), spike(), flatten(), spike(0.5, 0.25), linear(2))),
    "flat readout": ((2, 3, 4), (conv(3, (2, 1)), spike(), conv(2, (1, 2)), flatten())),
    "deep": ((3,), (*[linear(4), spike()] * 7, linear(2))),
    "no spikes": ((1, 3, 3), (conv(2, (2, 2)), flatten(), linear(3))),
    "many groups": ((130, 1, 1), (spike(), conv(130, (1, 1), groups=130), spike())),
}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


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


# ---- agreement -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_the_naive_loop(name: str, rng: np.random.Generator) -> None:
    shape, makers = NETWORKS[name]
    graph = chain(rng, shape, *makers)
    x = images(rng, graph, 7)
    record = Lava().run(build_network(graph), x, 5, membranes=True)
    assert record.backend == "lava"
    assert set(record.membranes) == set(graph.spiking)
    for layer in graph.spiking:
        assert 0 < record.spikes(layer).mean() < 1, f"{layer} is silent or saturated, which proves nothing"
    expect_equal(record, graph, x, 5)


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_exports_from_nir(name: str, rng: np.random.Generator) -> None:
    shape, makers = NETWORKS[name]
    graph = chain(rng, shape, *makers)
    x = images(rng, graph, 3)
    backend = Lava()
    expect_equal(backend.run(backend.export(to_nir(graph)), x, 4), graph, x, 4)


def test_one_native_network_runs_again_with_other_sizes(rng: np.random.Generator) -> None:
    graph = chain(rng, *NETWORKS["mlp"][:1], *NETWORKS["mlp"][1])
    network = build_network(graph)
    for count, steps in ((1, 1), (3, 4), (3, 4), (1, 9)):
        x = images(rng, graph, count)
        record = Lava().run(network, x, steps)
        assert not record.membranes
        expect_equal(record, graph, x, steps)


def test_processes_are_lavas_own_and_layouts_restore_the_order(rng: np.random.Generator) -> None:
    from lava.proc.conv.process import Conv
    from lava.proc.dense.process import Dense

    from exporters.lava.processes import IntegrateFire as LavaIntegrateFire

    graph = chain(rng, *NETWORKS["conv"][:1], *NETWORKS["conv"][1])
    network = build_network(graph)
    processes = network.build(images(rng, graph, 2), steps=3)
    kinds = [LavaIntegrateFire, Conv, LavaIntegrateFire, Conv, LavaIntegrateFire, Conv, Dense]
    assert [type(process) for process in processes.layers.values()] == kinds
    assert list(processes.offsets.values()) == [0, 1, 2]
    assert processes.steps == 2 * 3 + 4
    for name, layout in network.layouts.items():
        values = rng.random((2, *graph.shapes[name]))
        assert layout.to_lava(values).shape[1:] == processes.layers[name].s_out.shape
        np.testing.assert_array_equal(layout.from_lava(layout.to_lava(values)), values)


def test_the_neuron_works_in_a_lava_program_of_ones_own() -> None:
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg

    from exporters.lava.processes import CurrentSource, Readout, Sink, shared_array
    from exporters.lava.processes import IntegrateFire as LavaIntegrateFire

    source = CurrentSource(currents=np.array([[0.25, 0.75], [1.5, -0.5]]), interval=2)
    neuron, readout = LavaIntegrateFire(shape=(2,), interval=2), Readout(shape=(2,), bias=0.5, interval=2)
    spikes = shared_array((4, 2), bool)
    sink = Sink(buffer=spikes)
    source.a_out.connect(neuron.a_in)
    neuron.s_out.connect([sink.a_in, readout.a_in])
    try:
        source.run(condition=RunSteps(4), run_cfg=Loihi2SimCfg(select_tag="floating_pt"))
        potential, total = neuron.u.get(), readout.v.get()
    finally:
        source.stop()
    np.testing.assert_array_equal(spikes, [[0, 1], [1, 1], [1, 0], [1, 0]])
    np.testing.assert_array_equal(potential, [1.0, -1.0])
    np.testing.assert_array_equal(total, [3.0, 1.0])


# ---- refusals ------------------------------------------------------------------------------------------------------


def test_refuses_what_it_cannot_run_exactly(rng: np.random.Generator) -> None:
    ones = np.ones(2, dtype=np.float32)
    x = Input(name="x", shape=(2,))
    norm = BatchNorm(name="norm", inputs=("x",), scale=ones, shift=ones)
    with pytest.raises(GraphError, match=r"'norm' \(BatchNorm.*rewrite"):
        build_network(LayerGraph((x, norm)))


def test_refuses_a_branch() -> None:
    class Add(Layer):
        arity = 2

        def output_shape(self, *shapes: Shape) -> Shape:
            return shapes[0]

    ones = np.ones(2, dtype=np.float32)
    layers = (
        Input(name="x", shape=(2,)),
        Scale(name="left", inputs=("x",), scale=ones),
        Scale(name="right", inputs=("x",), scale=ones),
        Add(name="sum", inputs=("left", "right")),
    )
    with pytest.raises(GraphError, match=r"'x' feeds \['left', 'right'\].*chains"):
        build_network(LayerGraph(layers))


@pytest.mark.parametrize(
    ("x", "steps", "message"),
    [
        (np.zeros((2, 5)), 1, r"expected images \[B, 6\], got \(2, 5\)"),
        (np.zeros((0, 6)), 1, "expected images"),
        (np.full((1, 6), np.nan), 1, "NaN"),
        (np.zeros((1, 6)), 0, "at least one time step"),
    ],
)
def test_refuses_wrong_inputs(x: Any, steps: int, message: str, rng: np.random.Generator) -> None:
    network = build_network(chain(rng, *NETWORKS["mlp"][:1], *NETWORKS["mlp"][1]))
    with pytest.raises(InputError, match=message):
        Lava().run(network, x.astype(np.float32), steps)


# ---- failures and what is left behind ------------------------------------------------------------------------------


def traces(segments: list[str]) -> dict[str, Any]:
    """What a run could leave behind. `segments` are the names of Lava's shared memory."""
    from lava.magma.core.process.process import ProcessServer
    from lava.magma.core.process.variable import VarServer

    return {
        "children": sorted(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()),
        "multiprocessing": multiprocessing.active_children(),
        "threads": threading.active_count(),
        "shared memory": [name for name in segments if Path("/dev/shm", name).exists()],
        "files": len(list(Path("/proc/self/fd").iterdir())),
        "log handlers": len(logging.getLogger().handlers),
        "processes": len(ProcessServer().processes),
        "vars": len(VarServer().vars),
        "start method": multiprocessing.get_start_method(allow_none=True),
    }


@pytest.fixture
def small(rng: np.random.Generator) -> tuple[LavaNetwork, NDArray[np.float32]]:
    """A network that has run before, so that what Python itself keeps (its resource tracker) is there, and images."""
    graph = chain(rng, (3,), linear(3), spike(), linear(2))
    network, x = build_network(graph), images(rng, graph, 2)
    Lava().run(network, x, 2)
    return network, x


@pytest.fixture
def leaves_nothing(small: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import gc

    from lava.magma.runtime.message_infrastructure.shared_memory_manager import SharedMemoryManager

    create = SharedMemoryManager.create_shared_memory
    segments: list[str] = []

    def create_and_note(manager: Any, size: int) -> Any:
        segments.append((memory := create(manager, size)).name)
        return memory

    monkeypatch.setattr(SharedMemoryManager, "create_shared_memory", create_and_note)
    gc.collect()
    before = traces(segments)
    yield
    assert segments, "Lava's shared memory was not watched"
    gc.collect()
    for _ in range(100):  # threads and memory go a moment after the processes
        after = traces(segments)
        if after == before:
            break
        threading.Event().wait(0.02)
    assert after == before


def fail(model: Any, *_: Any) -> None:
    raise ArithmeticError(f"a fault in {type(model).__name__}")


def die(*_: Any) -> None:
    os._exit(3)


def hang(*_: Any) -> None:
    threading.Event().wait()


class UnpicklableError(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__("of two arguments")


def fail_unpicklably(*_: Any) -> None:
    raise UnpicklableError(1, 2)


@pytest.mark.parametrize(
    ("model", "method", "fault", "message"),
    [
        ("neurons.PyIntegrateFireModelFloat", "run_spk", fail, "a fault in PyIntegrateFireModelFloat"),
        ("neurons.PyReadoutModelFloat", "run_spk", fail, "a fault in PyReadoutModelFloat"),
        ("streams.PyCurrentSourceModel", "__init__", fail, "a fault in PyCurrentSourceModel"),
        ("streams.PySinkModel", "run_spk", die, "exit code 3"),
        ("streams.PySinkModel", "__init__", die, "exit code 3"),
        ("streams.PySinkModel", "run_spk", fail_unpicklably, "an error that cannot be shown"),
        ("streams.PySinkModel", "run_spk", hang, "did not finish within 3 s"),
        ("streams.PySinkModel", "__init__", hang, "did not finish within 3 s"),
    ],
)
def test_a_failing_child_ends_the_run(
    model: str,
    method: str,
    fault: Any,
    message: str,
    small: tuple[LavaNetwork, NDArray[np.float32]],
    leaves_nothing: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(f"exporters.lava.processes.{model}.{method}", fault)
    with pytest.raises(BackendError, match=message):
        Lava(time_limit=3 if fault is hang else 60).run(*small, steps=4)


def test_success_leaves_nothing_either(
    small: tuple[LavaNetwork, NDArray[np.float32]], leaves_nothing: None, capfd: pytest.CaptureFixture[str]
) -> None:
    Lava().run(*small, steps=4)
    assert capfd.readouterr() == ("", "")


# ---- compat --------------------------------------------------------------------------------------------------------


def run_script(script: str) -> None:
    """Run `script` in a fresh interpreter with every warning an error."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == ""


def test_the_backend_does_not_import_lava() -> None:
    run_script("import sys, exporters.lava; assert not [name for name in sys.modules if name.startswith('lava')]")


@pytest.mark.parametrize("chosen", [None, "fork", "spawn"])
def test_compat_imports_lava_and_changes_nothing_else(chosen: str | None) -> None:
    run_script(f"""
import dataclasses, multiprocessing, numpy as np
decorator = dataclasses.dataclass
if {chosen!r}:
    multiprocessing.set_start_method({chosen!r})
from exporters.lava import Lava, compat
from exporters.lava.backend import build_network
from bridge.graph import Input, IntegrateFire, LayerGraph
compat.apply(), compat.apply()
assert dataclasses.dataclass is decorator
assert multiprocessing.get_start_method(allow_none=True) == ({chosen!r} or "fork")
graph = LayerGraph((Input(name="x", shape=(2,)), IntegrateFire(name="a", inputs=("x",), level=np.full(2, 0.5))))
record = Lava().run(build_network(graph), np.array([[0.5, 0.25]], dtype=np.float32), 2)
assert record.spikes("a")[:, 0].tolist() == [[True, False], [False, True]]
assert multiprocessing.get_start_method(allow_none=True) == ({chosen!r} or "fork")
""")


def test_reshaped_ports_need_no_newshape() -> None:
    from lava.magma.core.process.ports.ports import ReshapePort

    compat.apply()
    port = ReshapePort(new_shape=(2, 3), old_shape=(6,))
    data = np.arange(6)
    assert port.get_transform_func_fwd()(data).shape == (2, 3)
    assert port.get_transform_func_bwd()(data.reshape(2, 3)).shape == (6,)
