"""The NIR graph: what is in it, what survives the file, and what a damaged one is told."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import h5py
import nir
import numpy as np
import pytest
import torch
from support import networks, oracle
from torch import nn

import bridge
from bridge import GraphError
from bridge.errors import FileError
from bridge.nir_graph import from_nir


def network(name="cnn"):
    model, shape = networks.ALL[name]()
    return bridge.convert(model, torch.zeros(1, *shape))


def test_the_motif_and_nothing_else():
    snn = network()
    graph = snn.to_nir()
    kinds = {name: type(node).__name__ for name, node in graph.nodes.items()}
    assert set(kinds.values()) == {
        "Input",
        "Output",
        "Conv2d",
        "Affine",
        "AvgPool2d",
        "Flatten",
        "I",
        "Threshold",
        "Scale",
    }
    for layer in snn.layers:
        threshold = graph.nodes[layer]
        assert isinstance(threshold, nir.Threshold)
        assert threshold.threshold.dtype == np.float32
        assert threshold.threshold.shape == snn.graph.shapes[layer]
        assert (threshold.threshold == np.nextafter(np.float32(0.5), np.float32(0))).all()
        (membrane,) = [a for a, b in graph.edges if b == layer]
        (reset,) = [b for a, b in graph.edges if a == layer and kinds[b] == "Scale"]
        assert (graph.nodes[membrane].r == 1).all()
        assert (graph.nodes[reset].scale == -1).all()
        assert (reset, membrane) in graph.edges


def pair(values) -> tuple[int, int]:
    one, other = np.broadcast_to(values, 2)
    return int(one), int(other)


def naive_nir(graph: nir.NIRGraph, x: np.ndarray, steps: int) -> dict[str, np.ndarray]:
    """NIR's own primitives, node by node, time step by time step, knowing nothing of neurons: float64, no batch."""
    modules = {nir.Affine: nn.Linear, nir.Conv2d: nn.Conv2d, nir.AvgPool2d: nn.AvgPool2d}

    def module(node):
        made: nn.Linear | nn.Conv2d
        if isinstance(node, nir.Affine):
            made = nn.Linear(node.weight.shape[1], node.weight.shape[0])
        elif isinstance(node, nir.Conv2d):
            out, per_group, *kernel = node.weight.shape
            made = nn.Conv2d(
                per_group * int(node.groups),
                out,
                tuple(kernel),
                pair(node.stride),
                pair(node.padding),
                pair(node.dilation),
                groups=int(node.groups),
            )
        else:
            return nn.AvgPool2d(pair(node.kernel_size), pair(node.stride), pair(node.padding))
        assert made.bias is not None
        made.weight.data, made.bias.data = torch.from_numpy(node.weight), torch.from_numpy(node.bias)
        return made

    before = {name: [a for a, b in graph.edges if b == name] for name in graph.nodes}
    feedback = {
        a for a, b in graph.edges if isinstance(graph.nodes[a], nir.Scale) and isinstance(graph.nodes[b], nir.I)
    }
    made = {name: module(node) for name, node in graph.nodes.items() if type(node) in modules}
    integral: dict[str, Any] = {}
    previous: dict[str, Any] = {}
    history: dict[str, list[Any]] = {name: [] for name in graph.nodes}
    for _ in range(steps):
        value: dict[str, Any] = {}
        while len(value) < len(graph.nodes):
            for name, node in graph.nodes.items():
                if name in value:
                    continue
                if name in feedback:
                    value[name] = previous.get(
                        name, np.zeros(node.scale.shape)
                    )  # feedback: what was computed one step ago arrives now
                    continue
                if any(source not in value for source in before[name]):
                    continue
                total = x if isinstance(node, nir.Input) else sum(value[source] for source in before[name])
                if isinstance(node, nir.I):
                    integral[name] = integral.get(name, 0) + node.r * total
                    value[name] = integral[name]
                elif isinstance(node, nir.Threshold):
                    value[name] = (total > node.threshold).astype(np.float64)
                elif isinstance(node, nir.Scale):
                    value[name] = node.scale * total
                elif isinstance(node, nir.Flatten):
                    value[name] = total.reshape(-1)
                elif type(node) in modules:
                    value[name] = oracle.transform(made[name], total[None])[0]
                else:
                    value[name] = total
        for name, node in graph.nodes.items():
            if isinstance(node, nir.Scale):
                previous[name] = node.scale * value[before[name][0]]
            history[name].append(value[name])
    return {name: np.stack(values) for name, values in history.items()}


@pytest.mark.parametrize("name", ["mlp", "cnn", "awkward"])
def test_the_primitives_alone_give_the_oracles_spikes(name, tmp_path):
    """Whoever runs the file's primitives as NIR defines them gets the network; no metadata, no names are needed."""
    model, shape = networks.ALL[name]()
    x = networks.dyadic_images(1, shape).numpy()
    network(name).save(tmp_path / "net.nir")
    graph = nir.read(tmp_path / "net.nir", type_check=False)
    got = naive_nir(graph, x[0].astype(np.float64), 6)
    spikes, readout = oracle.spikes_of(model, x, 6)
    for layer, expected in zip(network(name).layers, spikes, strict=True):
        np.testing.assert_array_equal(got[layer], expected[:, 0])
    np.testing.assert_array_equal(got["output"], readout[:, 0])


def test_nothing_depends_on_names_or_metadata():
    graph = network().to_nir()
    names = {name: f"n{number}" for number, name in enumerate(sorted(graph.nodes, key=lambda name: name[::-1]))}
    renamed = nir.NIRGraph(
        {names[name]: node for name, node in reversed(graph.nodes.items())},
        [(names[a], names[b]) for a, b in reversed(graph.edges)],
        type_check=False,
    )
    x = networks.dyadic_images(3, networks.cnn()[1])
    expected = network().run(x, 5)
    got = bridge.SpikingNetwork(from_nir(renamed)).run(x, 5)
    assert got.layers == tuple(names[layer] for layer in expected.layers)
    for layer in expected.layers:
        np.testing.assert_array_equal(got.packed[names[layer]], expected.packed[layer])


def test_nir_reads_the_file_with_its_own_type_check(tmp_path):
    model = networks.make_dyadic(
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), networks.qcfs(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64, 3))
    )
    bridge.convert(model, torch.zeros(1, 1, 8, 8)).save(tmp_path / "net.nir")
    graph = nir.read(tmp_path / "net.nir")
    assert graph.metadata["dt"] == 1


def test_saving_is_whole_or_not_at_all(tmp_path, monkeypatch):
    snn = network()
    path = tmp_path / "deep" / "net.nir"
    snn.save(str(path))
    before = path.read_bytes()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(nir, "write", fail)
    with pytest.raises(FileError, match=r"net\.nir: cannot be written: disk full"):
        snn.save(path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["net.nir"]


def test_paths_that_cannot_be_written(tmp_path):
    snn = network()
    (tmp_path / "file").write_text("")
    for path, says in {
        tmp_path: "is a folder",
        "": "path of a file",
        tmp_path / "file" / "net.nir": "cannot be written",
    }.items():
        with pytest.raises(bridge.InputError, match=says):
            snn.save(path)
    with pytest.raises(bridge.InputError, match="path of a file"):
        snn.save(["net.nir"])
    with pytest.raises(GraphError, match="path of a NIR file"):
        bridge.load(["net.nir"])  # type: ignore[arg-type]
    (tmp_path / "link.nir").symlink_to(tmp_path / "target.nir")
    snn.save(tmp_path / "link.nir")
    assert (tmp_path / "link.nir").is_symlink()
    assert (tmp_path / "target.nir").is_file()


def test_constant_arrays_are_small_on_disk(tmp_path):
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), networks.qcfs(), nn.AvgPool2d(8), nn.Flatten(), nn.Linear(4096, 3)
    )
    snn = bridge.convert(model, torch.zeros(1, 3, 64, 64))
    snn.save(tmp_path / "net.nir")
    weights = sum(parameter.numel() * 4 for parameter in model.parameters())
    assert (tmp_path / "net.nir").stat().st_size < weights + 150_000  # 262 144 neurons: 3 MB of ones if uncompressed


def test_the_file_runs_where_there_is_no_model_and_no_framework_is_imported(tmp_path):
    """A fresh interpreter, the file and numpy data: nothing else, not even onnx, which ONNX files alone need."""
    model, shape = networks.cnn()
    x = networks.dyadic_images(2, shape)
    network().save(tmp_path / "net.nir")
    np.save(tmp_path / "x.npy", x.numpy())
    code = (
        "import bridge, json, numpy as np, sys\n"
        "import exporters.lava, exporters.onnx_runtime, exporters.snntorch, exporters.spikingjelly\n"
        "import bridge.converters.onnx_files.capture, bridge.converters.onnx_files.writer\n"
        "net = bridge.load(sys.argv[1]); record = net.run(np.load(sys.argv[2]), 4)\n"
        "spikes = {name: record.spikes(name).astype(int).tolist() for name in record.layers}\n"
        "print(json.dumps([spikes, sorted(sys.modules)]))"
    )
    files = [str(tmp_path / "net.nir"), str(tmp_path / "x.npy")]
    done = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, check=True)
    got, modules = json.loads(done.stdout)
    assert not set(modules) & {
        *("lava", "onnx", "onnxruntime", "snntorch", "spikingjelly"),
        *("torchvision", "matplotlib", "sklearn", "numba"),
    }
    for spikes, expected in zip(got.values(), oracle.spikes_of(model, x.numpy(), 4)[0], strict=True):
        np.testing.assert_array_equal(spikes, expected)


def break_edge(graph):
    graph.edges.append(("layer_0", "nowhere"))


def drop_reset(graph):
    graph.edges.remove(("layer_2_reset", "layer_2_membrane"))


def rising_reset(graph):
    graph.nodes["layer_2_reset"].scale *= -1


def wrong_r(graph):
    graph.nodes["layer_2_membrane"].r *= 2


def second_reader(graph):
    graph.edges.append(("layer_2_membrane", "layer_3"))


def cycle(graph):
    graph.edges.append(("layer_7", "layer_6"))


def cut(graph):
    graph.edges.remove(("layer_6", "layer_7"))


def hard_reset(graph):
    one = np.ones(10, np.float32)
    graph.nodes.pop("layer_8_membrane"), graph.nodes.pop("layer_8_reset")
    graph.nodes["layer_8"] = nir.IF(r=one, v_threshold=one, v_reset=0 * one)
    graph.edges[:] = [edge for edge in graph.edges if not any(end.startswith("layer_8_") for end in edge)]
    graph.edges.append(("layer_7", "layer_8"))


def mismatch(graph):
    graph.nodes["layer_7"].weight = graph.nodes["layer_7"].weight[:, :-1]


def short_bias(graph):
    graph.nodes["layer_0"].bias = graph.nodes["layer_0"].bias[:-1]


def not_a_number(graph):
    graph.nodes["layer_0"].weight[0, 0, 0, 0] = np.nan


def uneven_threshold(graph):
    graph.nodes["layer_2"].threshold[0, 0, 0] = 0.25


def wrong_type(graph):
    graph.nodes["layer_3"].stride = "wide"


def no_output(graph):
    del graph.nodes["output"]
    graph.edges.pop()


def twice(graph):
    graph.edges.append(graph.edges[0])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (break_edge, "no node 'nowhere'"),
        (drop_reset, "'layer_2'.*expected the neuron"),
        (rising_reset, "not a Scale by −θ"),
        (wrong_r, "an r other than 1"),
        (second_reader, "another reader"),
        (cycle, "'layer_6'|cycle"),
        (cut, "'layer_7'.*no edge leads into it"),
        (hard_reset, "IF resets to v_reset"),
        (mismatch, "'layer_7'.*expected an input of shape"),
        (short_bias, "'layer_0'.*a bias of shape"),
        (not_a_number, "'layer_0'.*finite"),
        (uneven_threshold, "'layer_2'.*one value a channel"),
        (wrong_type, "'layer_3': stride: expected a whole number.*'wide'"),
        (no_output, "one Output"),
        (twice, "there twice"),
    ],
)
def test_damaged_graphs(damage, says):
    graph = network().to_nir()
    assert "layer_7" in graph.nodes
    damage(graph)
    with pytest.raises(GraphError, match=says):
        from_nir(graph)


def test_damaged_files(tmp_path):
    path = tmp_path / "net.nir"
    with pytest.raises(GraphError, match="no such file"):
        bridge.load(path)
    with pytest.raises(GraphError, match="no such file"):
        bridge.load(tmp_path)
    path.write_bytes(b"not a network")
    with pytest.raises(GraphError, match="not a NIR file"):
        bridge.load(path)
    network().save(path)
    whole = path.read_bytes()
    for size in (len(whole) // 2, len(whole) - 100, 600):
        path.write_bytes(whole[:size])
        with pytest.raises(GraphError):
            bridge.load(str(path))
    with h5py.File(path, "w") as file:
        file["something"] = 1
    with pytest.raises(GraphError, match="damaged, or not a NIR graph"):
        bridge.load(path)
    nir.write(path, nir.Linear(np.ones((2, 2))))
    with pytest.raises(GraphError, match="not a NIR graph"):
        bridge.load(path)
    nir.write(path, nir.NIRGraph.from_list(nir.Affine(np.ones((2, 3)), np.zeros(2))))
    with pytest.raises(GraphError, match="nothing spikes"):
        bridge.load(path)


def test_sums_written_as_several_edges():
    """Another tool's way to write a residual join: two edges into one node, here the neuron's own integrator."""
    model, shape = networks.residual()
    snn = bridge.convert(model, torch.zeros(1, *shape))
    graph = snn.to_nir()
    joins = [name for name, node in graph.nodes.items() if sum(b == name for _, b in graph.edges) > 1]
    for name in joins:
        node = graph.nodes[name]
        if isinstance(node, nir.Scale):  # the node of an Add: send its inputs to its readers directly
            sources = [a for a, b in graph.edges if b == name]
            readers = [b for a, b in graph.edges if a == name]
            graph.edges[:] = [edge for edge in graph.edges if name not in edge]
            graph.edges += [(source, reader) for source in sources for reader in readers]
            del graph.nodes[name]
    x = networks.dyadic_images(3, shape)
    expected = snn.run(x, 4)
    got = bridge.SpikingNetwork(from_nir(graph)).run(x, 4)
    for layer in snn.layers:
        np.testing.assert_array_equal(got.packed[layer], expected.packed[layer])


def write_hdf5(path, change):
    """A valid file with one thing in it changed."""
    network().save(path)
    with h5py.File(path, "r+") as file:
        change(file["node"])


def huge(node):
    del node["nodes/layer_0/weight"]
    node["nodes/layer_0"].create_dataset("weight", shape=(10**6, 10**6, 3, 3), dtype="f4", chunks=(1, 1, 3, 3))


def text(node):
    del node["nodes/layer_0/weight"]
    node["nodes/layer_0"]["weight"] = "not numbers"


def no_edges(node):
    del node["edges"]


def no_nodes(node):
    del node["nodes"]


def unknown_type(node):
    del node["nodes/layer_0/type"]
    node["nodes/layer_0"]["type"] = "Teleport"


def odd_edges(node):
    del node["edges"]
    node["edges"] = [[b"input", b"layer_0", b"layer_2"]]


def vast_input(node):
    del node["nodes/input/shape"]
    node["nodes/input"]["shape"] = np.array([2, 10**9, 10**9])


def negative_stride(node):
    del node["nodes/layer_0/stride"]
    node["nodes/layer_0"]["stride"] = np.array([0, -1])


def pickled(node):
    del node["nodes/layer_0/weight"]
    node["nodes/layer_0"].create_dataset("weight", data=np.void(b"\x80\x04cos\nsystem\n."))


@pytest.mark.parametrize(
    "change",
    [huge, text, no_edges, no_nodes, unknown_type, odd_edges, vast_input, negative_stride, pickled],
)
@pytest.mark.timeout(60)
def test_hostile_files(tmp_path, change):
    write_hdf5(tmp_path / "net.nir", change)
    with pytest.raises(GraphError):
        bridge.load(tmp_path / "net.nir")
