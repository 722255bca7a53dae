"""The report on Loihi, against counting every connection and every spike one by one."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from io import StringIO
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from support import digits
from support.networks import cnn, dyadic_images

from bridge import ConversionError, InputError, SpikingNetwork, ValidationError, convert, loihi
from bridge.graph import (
    Add,
    Conv1d,
    Conv2d,
    Flatten,
    Input,
    IntegrateFire,
    LayerGraph,
    Linear,
    Scale,
    SumPool2d,
)
from bridge.loihi import chips
from bridge.records import Recorder


def whole(*shape, seed=0, largest=3):
    """Random whole numbers, about every fifth of them zero."""
    return np.random.default_rng([seed, *shape]).integers(-largest, largest + 1, shape).astype(np.float32)


def conv(name, source, outputs, inputs, kernel=(3, 3), **more):
    return Conv2d(
        name=name, inputs=(source,), weight=whole(outputs, inputs, *kernel), bias=whole(outputs, seed=1), **more
    )


def linear(name, source, outputs, inputs):
    return Linear(name=name, inputs=(source,), weight=whole(outputs, inputs), bias=whole(outputs, seed=1))


def neurons(name, source, channels, threshold=4):
    full = np.full(channels, threshold, np.float32)
    return IntegrateFire(name=name, inputs=(source,), level=full / 2, threshold=full)


def start(shape=(2, 5, 6)):
    """Neurons of `shape` called "a" that hear the images."""
    return Input(name="x", shape=shape), neurons("a", "x", shape[0], 300)


def network(*layers):
    graph = LayerGraph(layers)
    assert graph.integer
    return SpikingNetwork(graph)


NETWORKS = {
    "padding": (*start(), conv("c", "a", 3, 2, padding=(1, 1)), neurons("b", "c", 3), conv("y", "b", 2, 3)),
    "stride": (*start(), conv("c", "a", 3, 2, stride=(2, 3), padding=(1, 0)), neurons("b", "c", 3)),
    "dilation": (*start(), conv("c", "a", 3, 2, (2, 3), dilation=(3, 2), padding=(1, 2)), neurons("b", "c", 3)),
    "groups": (*start((4, 5, 4)), conv("c", "a", 6, 2, groups=2, padding=(1, 1)), neurons("b", "c", 6)),
    "depthwise": (*start((4, 5, 4)), conv("c", "a", 4, 1, groups=4), neurons("b", "c", 4)),
    "one dimension": (
        *start((2, 9)),
        Conv1d(name="c", inputs=("a",), weight=whole(3, 2, 4), bias=whole(3), stride=2, padding=2, dilation=2),
        neurons("b", "c", 3),
    ),
    "linear": (*start((7,)), linear("l", "a", 5, 7), neurons("b", "l", 5), linear("y", "b", 3, 5)),
    "pool": (
        *start((3, 4, 6)),
        SumPool2d(name="p", inputs=("a",), kernel=(2, 3), stride=(2, 3)),
        Flatten(name="f", inputs=("p",)),
        linear("y", "f", 4, 12),
    ),
    "pool with overlap": (
        *start(),
        SumPool2d(name="p", inputs=("a",), kernel=(3, 3), stride=(2, 1), padding=(1, 1)),
        neurons("b", "p", 2),
    ),
    "skip": (
        *start(),
        conv("c", "a", 2, 2, padding=(1, 1)),
        Scale(name="s", inputs=("a",), scale=np.array([3.0, 0.0], np.float32)),
        Add(name="j", inputs=("c", "s")),
        neurons("b", "j", 2),
    ),
    "skip over a layer": (
        *start(),
        conv("c", "a", 2, 2, padding=(1, 1)),
        neurons("b", "c", 2),
        conv("d", "b", 3, 2, padding=(1, 1), stride=(2, 2)),
        conv("s", "a", 3, 2, (1, 1), stride=(2, 2)),
        Add(name="j", inputs=("d", "s")),
        neurons("e", "j", 3),
        Flatten(name="f", inputs=("e",)),
        linear("y", "f", 4, 27),
    ),
    "images in a join": (
        *start(),
        conv("c", "a", 2, 2, padding=(1, 1)),
        conv("d", "x", 2, 2, padding=(1, 1)),
        Add(name="j", inputs=("c", "d")),
        neurons("b", "j", 2),
    ),
    "two in a row": (*start((7,)), linear("l", "a", 5, 7), linear("m", "l", 4, 5), neurons("b", "m", 4)),
}


def paths(layer, shape, out, zeros):
    """How many weights lead from each input to each output of `layer`, int64 ``[outputs, inputs]``, one at a time."""
    count = np.zeros((*out, *shape), np.int64)
    match layer:
        case Linear(weight=weight):
            for o, i in np.ndindex(*weight.shape):
                count[o, i] += bool(zeros or weight[o, i] != 0)
        case Conv1d(weight=weight, stride=stride, padding=padding, dilation=dilation, groups=groups):
            for o, n in np.ndindex(*out):
                for i, k in np.ndindex(*weight.shape[1:]):
                    at, channel = n * stride - padding + k * dilation, o // (out[0] // groups) * weight.shape[1] + i
                    if 0 <= at < shape[1]:
                        count[o, n, channel, at] += bool(zeros or weight[o, i, k] != 0)
        case Conv2d(weight=weight, stride=(sh, sw), padding=(ph, pw), dilation=(dh, dw), groups=groups):
            for o, h, w in np.ndindex(*out):
                for i, kh, kw in np.ndindex(*weight.shape[1:]):
                    y, x = h * sh - ph + kh * dh, w * sw - pw + kw * dw
                    channel = o // (out[0] // groups) * weight.shape[1] + i
                    if 0 <= y < shape[1] and 0 <= x < shape[2]:
                        count[o, h, w, channel, y, x] += bool(zeros or weight[o, i, kh, kw] != 0)
        case SumPool2d(kernel=kernel, stride=(sh, sw), padding=(ph, pw)):
            for c, h, w in np.ndindex(*out):
                for kh, kw in np.ndindex(*kernel):
                    y, x = h * sh - ph + kh, w * sw - pw + kw
                    if 0 <= y < shape[1] and 0 <= x < shape[2]:
                        count[c, h, w, c, y, x] += 1
        case Scale(scale=scale):
            for at in np.ndindex(*shape):
                count[(*at, *at)] += bool(zeros or scale[at[0]] != 0)
        case _:  # Add and Flatten hand every value on
            return np.eye(int(np.prod(shape)), dtype=np.int64)
    return count.reshape(int(np.prod(out)), -1)


def paths_into(graph, zeros):
    """By layer of neurons, and for the readout: by source, ``[neurons, neurons of the source]``; images are "x"."""
    reached: dict[str, Any] = {}
    result: dict[str, Any] = {}
    for layer in graph:
        size = int(np.prod(graph.shapes[layer.name]))
        if isinstance(layer, Input | IntegrateFire):
            if isinstance(layer, IntegrateFire):
                result[layer.name] = reached[layer.inputs[0]]
            reached[layer.name] = {layer.name: np.eye(size, dtype=np.int64)}
            continue
        total: dict[str, Any] = {}
        for source in layer.inputs:
            step = paths(layer, graph.shapes[source], graph.shapes[layer.name], zeros)
            for origin, matrix in reached[source].items():
                total[origin] = total.get(origin, 0) + step @ matrix
        reached[layer.name] = total
    if not isinstance(graph.output, IntegrateFire):
        result[graph.output.name] = reached[graph.output.name]
    return result


@pytest.mark.parametrize("name", NETWORKS)
def test_every_connection_and_every_spike_is_counted(name):
    net = network(*NETWORKS[name])
    graph = net.graph
    x = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, *graph.input.shape)))
    record = net.run(x, 6)
    report = loihi.report(net, record)
    nonzero, every = paths_into(graph, zeros=False), paths_into(graph, zeros=True)
    assert [layer.name for layer in report.layers] == [*nonzero]
    for layer in report.layers:
        heard = {source: matrix for source, matrix in nonzero[layer.name].items() if source != "x"}
        assert layer.neurons == int(np.prod(graph.shapes[layer.name]))
        assert layer.synapses == sum(int(matrix.sum()) for matrix in heard.values())
        assert layer.connections == sum(int(m.sum()) for source, m in every[layer.name].items() if source != "x")
        assert layer.largest_fan_in == (np.max(sum(m.sum(axis=1) for m in heard.values())) if heard else 0)
        operations = 0
        for source, matrix in heard.items():
            for _, _, *at in np.argwhere(record.spikes(source)):
                operations += int(matrix[:, np.ravel_multi_index(at, graph.shapes[source])].sum())
        assert layer.synaptic_operations == operations / 3
        assert layer.spikes == (record.spikes(layer.name).sum() / 3 if layer.fires else 0)
    assert record.spikes("a").any()
    assert report.synaptic_operations == pytest.approx(sum(layer.synaptic_operations or 0 for layer in report.layers))
    fired = sum(int(record.spikes(each).sum()) for each in graph.spiking)
    slots = sum(record.spikes(each).size for each in graph.spiking)
    assert report.activation_sparsity == pytest.approx(1 - fired / slots, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "stored"),
    {
        "padding": {"a": 0, "b": 3 * 2 * 9, "y": 2 * 3 * 9},
        "groups": {"a": 0, "b": 6 * 2 * 9},
        "pool": {"a": 0, "y": 4 * 12},
        "pool with overlap": {"a": 0, "b": 0},
        "skip": {"a": 0, "b": 2 * 2 * 9 + 2},
        "skip over a layer": {"a": 0, "b": 2 * 2 * 9, "e": 3 * 2 * 9 + 3 * 2, "y": 4 * 27},
        "images in a join": {"a": 0, "b": 2 * 2 * 9},  # those of the other branch stay on the host
        "two in a row": {"a": 0, "b": 5 * 7 + 4 * 5},
    }.items(),
)
def test_weights_that_are_stored_once(name, stored):
    net = network(*NETWORKS[name])
    report = loihi.report(net, silent(net))
    assert {layer.name: layer.weights for layer in report.layers} == stored
    on_host = 2 * 2 * 9 if name == "images in a join" else 0
    state = sum(8 * layer.neurons for layer in report.layers)
    assert report.footprint_bytes == sum(stored.values()) + on_host + state


def test_by_hand_at_the_border():
    """A 3×3 kernel padded by 1 on 4×4: 4 synapses from a corner, 6 from an edge, 9 from the middle, 100 in all."""
    kernel = Conv2d(
        name="c", inputs=("a",), weight=np.ones((1, 1, 3, 3), np.float32), bias=np.zeros(1, np.float32), padding=(1, 1)
    )
    net = network(*start((1, 4, 4)), kernel, neurons("b", "c", 1))
    for at, fan_out in (((0, 0), 4), ((0, 2), 6), ((1, 1), 9)):
        recorder = Recorder("hand", {"a": (1, 4, 4), "b": (1, 4, 4)})
        spikes = np.zeros((2, 1, 4, 4))
        spikes[0, 0][at] = 1
        recorder.spikes("a", spikes)
        recorder.spikes("b", np.ones_like(spikes))
        recorder.readout(spikes)
        report = loihi.report(net, recorder.finish())
        assert report.layers[1].synapses == 100
        assert report.layers[1].weights == 9
        assert report.layers[1].synaptic_operations == fan_out / 2  # one spike, two images
        assert report.layers[0].spikes == 1 / 2
        assert report.layers[1].spikes == 16


def test_weights_of_zero_are_no_synapses_and_cost_no_operation():
    weight = np.zeros((3, 4), np.float32)
    weight[0, 1] = 5
    net = network(*start((4,)), Linear(name="y", inputs=("a",), weight=weight, bias=np.ones(3, np.float32)))
    report = loihi.report(net, net.run(torch.full((1, 4), 255), 5))
    (_, readout) = report.layers
    assert report.spikes is not None
    spikes = report.spikes / 4  # of each neuron: all hear the same
    assert spikes > 0
    assert (readout.synapses, readout.connections, readout.weights) == (1, 12, 12)
    assert readout.synaptic_operations == spikes
    assert report.connection_sparsity == 11 / 12
    assert report.dense_operations == 5 * 12


def test_the_input_is_multiplied_once_on_the_host():
    """Each of 2 outputs sums 3 channels of a kernel of 2 over 4 positions without padding: 24 products an output."""
    weight = np.ones((2, 3, 2), np.float32)
    weight[0, 0, 0] = 0
    first = Conv1d(name="c", inputs=("x",), weight=weight, bias=np.zeros(2, np.float32))
    net = network(Input(name="x", shape=(3, 5)), first, neurons("a", "c", 2, 300), Flatten(name="y", inputs=("a",)))
    report = loihi.report(net, net.run(torch.full((1, 3, 5), 99), 4))
    assert report.input_macs == 48 - 4  # without the weight of zero, at 4 positions
    assert report.input_connections == 48
    assert report.ann_macs == 48
    assert report.to_dict()["input_macs_every_step"] == 4 * 44
    assert report.dense_operations == 4 * (48 + 8)
    assert report.layers[0].synapses == 0
    assert report.layers[1].synapses == 8
    assert report.notes[0].startswith("The ANN is not known")


def test_macs_of_the_ann():
    """`networks.cnn` on 2×9×7: padded products are none, so each kernel is counted where it lies on the map."""
    model, shape = cnn()
    net = convert(model, dyadic_images(2, shape)).quantize(8, calibration=dyadic_images(64, shape))
    report = loihi.report(net, net.run(net.pixels(dyadic_images(2, shape)), 2))
    rows, columns = (2 + 3 * 7 + 2), (2 + 3 * 5 + 2)  # 3×3 padded by 1 on 9×7, one direction at a time
    # (3, 2) kernels, stride 2, padded by (0, 1), dilated by (2, 1): 3 · 3 rows; columns −1|0, 1|2, 3|4, 5|6
    second = 8 * 3 * (3 * 3) * 7
    assert report.ann_macs == 6 * 2 * rows * columns + second + 32 * 10 + 10 * 4
    assert not report.notes


def test_energy_by_hand():
    """10 neurons hear 5 that spike 4 times in all, in 3 steps: 40 operations, 30 updates; and 15 of the first layer."""
    weight = np.ones((10, 5), np.float32)
    net = network(*start((5,)), Linear(name="y", inputs=("a",), weight=weight, bias=np.zeros(10, np.float32)))
    recorder = Recorder("hand", {"a": (5,)})
    for step in ([1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 1]):
        recorder.spikes("a", np.array([step]))
        recorder.readout(np.zeros((1, 10)))
    report = loihi.report(net, recorder.finish())
    first, readout = report.layers
    assert report.energy is not None
    assert first.energy is not None
    assert readout.energy is not None
    assert first.energy.low == pytest.approx(15 * 52e-12)
    assert first.energy.high == pytest.approx(10 * 15 * 81e-12)
    assert readout.energy.low == pytest.approx(40 * 23.6e-12 + 30 * 52e-12)
    assert readout.energy.high == pytest.approx(10 * (40 * 23.6e-12 + 30 * 81e-12))
    assert report.energy.low == pytest.approx(944e-12 + 45 * 52e-12)
    assert report.energy.high == pytest.approx(10 * (944e-12 + 45 * 81e-12))


def silent(net, steps=1):
    """A record of `net` in which nothing spikes."""
    graph = net.graph
    recorder = Recorder("hand", {name: graph.shapes[name] for name in graph.spiking})
    for _ in range(steps):
        for name in graph.spiking:
            recorder.spikes(name, np.zeros((1, *graph.shapes[name])))
        recorder.readout(np.zeros((1, *graph.shapes[graph.output.name])))
    return recorder.finish()


def ones(name, source, outputs, inputs):
    weight = np.ones((outputs, inputs), np.float32)
    return Linear(name=name, inputs=(source,), weight=weight, bias=np.zeros(outputs, np.float32))


def cores(net):
    """By layer and chip: ``(cores, limit)`` with weights shared and unshared."""
    return {
        layer.name: {
            chip: tuple((each.cores, each.limit) for each in (cost.shared, cost.unshared))
            for chip, cost in layer.chips.items()
        }
        for layer in loihi.report(net, silent(net)).layers
    }


def test_cores_bound_by_neurons():
    """2 049 neurons of 1 024 a core; each has a synapse of its own, 2 049 weights of 18 and 21 bits."""
    factor = Scale(name="s", inputs=("a",), scale=np.ones(3, np.float32))
    found = cores(network(*start((3, 1, 683)), factor, neurons("b", "s", 3)))
    assert found["b"]["Loihi 1"] == ((3, "neurons"), (3, "neurons"))
    assert found["b"]["Loihi 2"] == ((1, "neurons"), (1, "neurons"))


def test_cores_bound_by_memory():
    """600 × 700 weights: 420 000 bytes if stored as a matrix; as single synapses 18 bits each, 21 bits on Loihi 2."""
    net = network(*start((700,)), ones("l", "a", 600, 700), neurons("b", "l", 600))
    (_, layer) = loihi.report(net, silent(net)).layers
    one, two = layer.chips["Loihi 1"], layer.chips["Loihi 2"]
    assert (one.shared.bytes, one.shared.cores, one.shared.limit) == (420_000, 4, "memory")  # 3.2 of 131 072
    assert (one.unshared.bytes, one.unshared.cores, one.unshared.limit) == (945_000, 8, "memory")  # 7.2
    assert layer.state_bytes == 600 * 8  # 24 + 24 + 13 + 3 bits
    assert (two.shared.bytes, two.shared.cores) == (420_000, 3)  # 424 800 with the state: 2.2 of 196 608
    assert (two.unshared.bytes, two.unshared.cores) == (1_102_500, 6)  # 1 107 300: 5.6
    net = network(*start((327,)), ones("l", "a", 600, 327), neurons("b", "l", 600))
    (_, layer) = loihi.report(net, silent(net)).layers
    assert layer.chips["Loihi 2"].shared.cores == 2  # 196 200 bytes of weights would fit, but not with 4 800 of state


def test_cores_bound_by_input_axons():
    """One neuron hears 4 097, and a core of Loihi 1 has 4 096 input axons."""
    net = network(*start((4097,)), ones("y", "a", 1, 4097))
    found = cores(net)
    assert found["y"]["Loihi 1"] == ((1, "memory"), (2, "input axons"))
    assert found["y"]["Loihi 2"] == ((1, "memory"), (1, "memory"))
    assert any("4097" in note and "'y'" in note for note in loihi.report(net, silent(net)).notes)


def test_cores_bound_by_output_axons():
    """1 000 neurons each reach all 2 000 of a layer on 35 cores: 35 000 output axons, 8.5 cores' worth."""
    net = network(*start((1000,)), ones("l", "a", 2000, 1000), neurons("b", "l", 2000), ones("y", "b", 1, 2000))
    found = cores(net)
    assert found["b"]["Loihi 1"][1] == (35, "memory")  # 2 000 000 synapses of 18 bits: 34.3 cores
    # 58 neurons a core of the 35: a neuron that reaches all 2 000 reaches 35 cores
    assert found["a"]["Loihi 1"] == ((1, "neurons"), (9, "output axons"))
    assert found["a"]["Loihi 2"][1] == (1, "neurons")  # no limit on axons is published for it
    report = loihi.report(net, silent(net))
    assert report.cores("Loihi 1") == tuple(sum(found[name]["Loihi 1"][way][0] for name in found) for way in (0, 1))


def test_weights_beyond_eight_bits_are_named():
    """A skip's factors may be a power of two larger, which goes into the synapses' exponent."""
    scale = Scale(name="s", inputs=("a",), scale=np.array([127 * 8, 129], np.float32))
    net = network(*start((2, 1, 1)), scale, neurons("b", "s", 2))
    (_, note) = loihi.report(net, silent(net)).notes
    assert note.startswith("Layer 's': 1 of 2 weights need more than 8 bits")
    layer = ones("y", "a", 2, 3)
    net = network(*start((3,)), replace(layer, weight=layer.weight * 128))
    assert "6 of 6" in loihi.report(net, silent(net)).notes[1]
    net = network(*start((3,)), replace(layer, weight=layer.weight * -128))
    assert len(loihi.report(net, silent(net)).notes) == 1


def test_a_network_that_is_not_in_whole_numbers_is_refused():
    model, shape = cnn()
    net = convert(model, dyadic_images(2, shape))
    with pytest.raises(ConversionError, match="quantize"):
        loihi.report(net, net.run(dyadic_images(2, shape), 2))


def test_a_record_of_another_network_is_refused():
    net, other = network(*NETWORKS["linear"]), network(*NETWORKS["two in a row"])
    with pytest.raises(ValidationError, match="another network"):
        loihi.report(net, silent(other))
    smaller = network(*NETWORKS["linear"][:-1], ones("y", "b", 2, 5))
    with pytest.raises(ValidationError, match=r"readout.*\(2,\).*'y'.*\(3,\)"):
        loihi.report(net, silent(smaller))
    record = silent(net)
    empty = replace(record, packed={n: p[:, :0] for n, p in record.packed.items()}, readout=record.readout[:, :0])
    with pytest.raises(ValidationError, match="empty"):
        loihi.report(net, empty)


def test_every_constant_says_where_it_is_from():
    figures = [
        getattr(chip, field.name)
        for chip in chips.CHIPS
        for field in fields(chip)
        if isinstance(getattr(chip, field.name), chips.Figure)
    ]
    figures += [value for value in vars(chips).values() if isinstance(value, chips.Figure)]
    assert len(figures) == 5 + 3 + 4
    for figure in figures:
        assert "20" in figure.source  # a year
        assert len(figure.source) > 40
    numbers = [f.name for f in fields(chips.Chip) if f.type in ("int", "float")]
    assert numbers == []


def test_saved_and_shown(tmp_path):
    net = network(*NETWORKS["skip over a layer"])
    report = loihi.report(net, net.run(torch.full((2, 2, 5, 6), 200), 3))
    report.save(tmp_path / "new" / "loihi.json")
    saved = json.loads((tmp_path / "new" / "loihi.json").read_text(encoding="utf-8"))
    assert saved == json.loads(json.dumps(report.to_dict()))
    assert [layer["name"] for layer in saved["layers"]] == ["a", "b", "e", "y"]
    assert saved["synapses"] == report.synapses == sum(layer["synapses"] for layer in saved["layers"])
    assert "proxy" in saved["energy"]["note"]
    assert saved["energy"]["low"] < saved["energy"]["high"]
    assert saved["constants"]["Loihi 1"]["neurons"]["value"] == 1024
    assert saved["cores"]["Loihi 2"]["shared"] == report.cores("Loihi 2")[0]
    with pytest.raises(InputError, match="folder"):
        report.save(tmp_path)
    written = StringIO()
    screen = Console(file=written, width=100)
    screen.print(loihi.table(report))
    shown = written.getvalue()
    for layer in report.layers:
        assert f" {layer.name} " in shown
        assert f"{layer.synaptic_operations:,.1f}" in shown
    assert " nJ to " in shown
    assert "not measured" in shown


def test_without_a_record_what_must_be_measured_is_not_known(tmp_path):
    network = digits.quantized()
    report = loihi.report(network)
    measured = loihi.report(network, network.run(network.pixels(digits.test_images()[0][:2]), 2))
    assert report.steps == report.images == 0
    assert report.spikes is None
    assert report.synaptic_operations is report.energy is report.activation_sparsity is None
    assert (report.neurons, report.synapses, report.ann_macs) == (
        measured.neurons,
        measured.synapses,
        measured.ann_macs,
    )
    assert report.cores("Loihi 1") == measured.cores("Loihi 1")
    assert 2 * report.dense_operations == measured.dense_operations
    report.save(tmp_path / "loihi.json")
    assert json.loads((tmp_path / "loihi.json").read_text())["energy"] is None
    shown = StringIO()
    Console(width=120, file=shown).print(loihi.table(report))
    assert "no run recorded" in shown.getvalue()
