"""Grouped networks, and integers of both schedules, on the backends with neurons for them: spike for spike the ANN."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from support import networks, staged_oracle
from support.backends import assert_equal, require
from torch import Tensor, nn

import bridge
from bridge import QCFS, GraphError, InputError, SpikingNetwork
from bridge.graph import (
    AtLeast,
    BiasOnce,
    Conv2d,
    EachLevel,
    Flatten,
    GroupFire,
    GroupSum,
    Impulse,
    Input,
    Layer,
    LayerGraph,
    Linear,
    SumPool2d,
    WindowFire,
)
from bridge.nir_graph import to_nir
from bridge.simulate.reference import simulate

NATIVE = ("norse", "onnxruntime", "sinabs", "snntorch", "spikingjelly")
TORCH = tuple(name for name in NATIVE if name != "onnxruntime")
SEVERAL = ("cnn", "residual", "signal")
SEEDS = (13, 20, 21)
"""Of `drawn`: networks all of whose layers fire."""


@pytest.fixture(params=NATIVE)
def native_backend(request):
    """Each backend that has grouped neurons."""
    return require(request.param)


def grouped(name: str, images: int = 3, levels: int | None = None) -> tuple[SpikingNetwork, Tensor, Any]:
    """The grouped network of `networks.ALL[name]`, images, and what the staged one fires."""
    model, shape = networks.ALL[name]()
    x = networks.dyadic_images(images, shape)
    expected = staged_oracle.of_network(name, images, levels)
    return bridge.convert(model, x, schedule="grouped", steps=levels), x, expected


@pytest.mark.parametrize("levels", [None, 1])
@pytest.mark.parametrize("name", networks.ALL)
def test_groups_and_membranes(native_backend, name, levels):
    """As many of a group as the staged neuron fires spikes; twice, with other numbers of images and of steps."""
    network, x, expected = grouped(name, levels=levels)
    assert network.latency == 1
    native = native_backend.export(network.to_nir())
    for images, steps in ((3, 1), (1, 3)):
        record = native_backend.run(native, x[:images].numpy(), steps, membranes=True)
        fired = {}
        for layer, trains in zip(network.layers, expected.spikes, strict=True):
            count = trains[:, :images].sum(axis=0)[:, None]
            number = np.arange(network.graph.shapes[layer][0]).reshape(-1, *[1] * (count.ndim - 2))
            fired[layer] = np.stack([number < count] * steps)
        assert_equal(record, fired, np.stack([expected.output[:images]] * steps))
        reference = simulate(network.graph, x[:images], steps, membranes=True)
        for layer in network.layers:
            np.testing.assert_array_equal(record.membranes[layer], reference.membranes[layer], err_msg=layer)
        assert not record.summed
        np.testing.assert_array_equal(record.outputs(), record.readout)


def drawn(seed: int) -> tuple[nn.Sequential, Tensor]:
    """A random network with maxima and minima, a join, and L and λ of their own in each layer; images for it."""
    generator = torch.Generator().manual_seed(seed)
    one_dimension = seed % 3 == 2
    conv: Any = nn.Conv1d if one_dimension else nn.Conv2d
    norm: Any = nn.BatchNorm1d if one_dimension else nn.BatchNorm2d
    pool: Any = nn.MaxPool1d if one_dimension else nn.MaxPool2d
    first, second, third = (int(n) for n in torch.randint(1, 6, (3,), generator=generator))
    model = nn.Sequential(
        *(conv(2, 4, 3, padding=1), norm(4), QCFS(first, torch.rand(4, generator=generator) + 0.3)),
        *(norm(4), pool(3, 2, 1)),  # a gain of either sign behind an activation: a minimum where it is negative
        networks.Residual(nn.Sequential(conv(4, 4, 3, padding=1), QCFS(second, 0.6), conv(4, 4, 1)), nn.Sequential()),
        *(conv(4, 3, 1), QCFS(third, torch.rand(3, generator=generator) + 1), pool(2, ceil_mode=True), nn.Flatten()),
        nn.Linear(3 * 2 if one_dimension else 3 * 2 * 2, 4),
    )
    with torch.no_grad():
        for name, values in (*model.named_parameters(), *model.named_buffers()):
            if "threshold" not in name and values.is_floating_point():
                values.copy_(torch.randn(values.shape, generator=generator) * 0.3)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_var = torch.rand(module.num_features, generator=generator) + 0.5
                module.weight.abs_().add_(0.2).mul_(torch.tensor([1.0, -1.0, 1.0, -1.0]))
    shape = (2, 7) if one_dimension else (2, 7, 6)
    return model.eval(), torch.rand(20, *shape, generator=generator)


@cache
def converted(seed: int, schedule: str, bits: int | None) -> tuple[SpikingNetwork, Tensor]:
    """The network of `drawn`, in integers with weights of so many `bits` or in floats, and images for it."""
    model, x = drawn(seed)
    network = bridge.convert(model, x, schedule=schedule)
    if bits is None:
        return network, x
    network = network.quantize(bits, x)
    return network, network.pixels(x)


@pytest.mark.parametrize("bits", [None, 4, 8, 16])
@pytest.mark.parametrize("schedule", ["staged", "grouped"])
@pytest.mark.parametrize("seed", SEEDS)
def test_random_networks(native_backend, seed, schedule, bits):
    network, x = converted(seed, schedule, bits)
    for images in (x, x[:1]):
        agreement = network.validate(images, backends=[native_backend])
        assert agreement.agreed
        assert agreement.steps == network.latency
        assert agreement.equals_ann is not None
        assert agreement.equals_ann.equal
        (found,) = agreement.backends.values()
        assert bits is None or found.total_differing == 0


@pytest.mark.parametrize("schedule", ["staged", "grouped"])
def test_membranes_in_integers(native_backend, schedule):
    """Thresholds of either parity; some steps longer than it takes."""
    for seed in SEEDS[:2]:
        network, x = converted(seed, schedule, 8)
        assert network.latency is not None
        steps = network.latency + 2
        expected = simulate(network.graph, x.float(), steps, membranes=True)
        record = native_backend.run(native_backend.export(network.to_nir()), x.numpy(), steps, membranes=True)
        assert_equal(record, {layer: expected.spikes(layer) for layer in expected.layers}, expected.readout)
        for layer in network.layers:
            np.testing.assert_array_equal(record.membranes[layer], expected.membranes[layer], err_msg=layer)
    thresholds = [layer.threshold for layer in network.ann or () if hasattr(layer, "threshold")]
    assert {0, 1} == set((np.concatenate(thresholds) % 2).tolist())


LEVELS, THRESHOLD = 4, np.array([3, 5, 4], np.float32)


def whole(schedule: str) -> LayerGraph:
    """Integers: neurons with thresholds of their own, the maximum in two channels of three and the minimum in one."""
    generator = np.random.default_rng(3)
    weight = generator.integers(-4, 5, (3, 2, 3, 3)).astype(np.float32)
    bias = generator.integers(-6, 7, 3).astype(np.float32)
    readout = generator.integers(-9, 10, (5, 18)).astype(np.float32)
    more = generator.integers(-9, 10, 5).astype(np.float32)
    half = np.ceil(THRESHOLD / 2)

    def conv(source: str, bias: np.ndarray) -> Conv2d:
        return Conv2d(name="conv", inputs=(source,), weight=weight, bias=bias, padding=(1, 1))

    def fc(bias: np.ndarray) -> Linear:
        return Linear(name="fc", inputs=("flat",), weight=readout, bias=bias)

    pool: tuple[Layer, ...] = (
        SumPool2d(name="any", inputs=("fire",), kernel=(2, 2), stride=(2, 2)),
        AtLeast(name="pool", inputs=("any",), level=np.array([1, 4, 1], np.float32)),
    )
    flat, image = Flatten(name="flat", inputs=("pool",)), Input(name="input", shape=(2, 4, 6))
    if schedule == "grouped":
        level = np.stack([half + k * THRESHOLD for k in range(LEVELS)])
        return LayerGraph(
            (
                image,
                conv("input", bias),
                GroupFire(name="fire", inputs=("conv",), level=level),
                *(EachLevel(name=part.name, inputs=part.inputs, layer=part) for part in pool),
                GroupSum(name="sum", inputs=("pool",)),
                Flatten(name="flat", inputs=("sum",)),
                fc(more),
            )
        )
    fall = np.broadcast_to((half - THRESHOLD - bias)[:, None, None], (3, 4, 6)).copy()
    return LayerGraph(
        (
            *(image, Impulse(name="once", inputs=("input",))),
            conv("once", 0 * bias),
            WindowFire(name="fire", inputs=("conv",), level=fall, threshold=THRESHOLD, opens=0, steps=LEVELS),
            *(*pool, flat, fc(0 * more)),
            BiasOnce(name="answer", inputs=("fc",), bias=more),
        )
    )


@pytest.mark.parametrize("schedule", ["staged", "grouped"])
def test_odd_thresholds_by_hand(native_backend, schedule):
    """The integer ANN in numpy: counts that round a half up, the largest or the smallest of four, the readout."""
    graph = whole(schedule)
    assert graph.integer
    x = np.random.default_rng(4).integers(0, 5, (6, 2, 4, 6)).astype(np.float32)
    conv, fc = graph["conv"], graph["fc"]
    bias, more = (layer.bias for layer in whole("grouped") if isinstance(layer, Conv2d | Linear))
    assert isinstance(conv, Conv2d)
    assert isinstance(fc, Linear)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    shifted = np.stack([padded[:, :, i : i + 4, j : j + 6] for i in range(3) for j in range(3)], axis=-1)
    drive = np.einsum("bchwk,ock->bohw", shifted, conv.weight.reshape(3, 2, 9)) + bias[:, None, None]
    theta = THRESHOLD[:, None, None]
    count = np.clip((2 * drive + theta) // (2 * theta), 0, LEVELS)
    windows = count.reshape(6, 3, 2, 2, 3, 2)
    pooled = np.where([[[0]], [[1]], [[0]]], windows.min(axis=(3, 5)), windows.max(axis=(3, 5)))
    halves = (2 * drive + theta) % (2 * theta) == 0
    assert halves[:, 2].any()  # exactly between two counts
    record = native_backend.run(native_backend.export(to_nir(graph)), x, LEVELS + 1)
    spikes = record.spikes("fire")
    np.testing.assert_array_equal(spikes.sum(axis=0) if schedule == "staged" else spikes[0].sum(axis=1), count)
    np.testing.assert_array_equal(record.outputs()[-1], pooled.reshape(6, -1) @ fc.weight.T + more)


@pytest.mark.parametrize("flushed", [False, True])
def test_just_below(flushed):
    """Whole levels of every size, 0 among them, also where subnormal numbers count as 0."""
    from exporters.torch_module import just_below

    sizes = torch.tensor([0, 1, 2, 3, 1000, 2**22 + 1, 2**23 - 1, 2**23, 2**23 + 1, 2**24 - 2, 2**24 - 1])
    level = torch.cat([sizes, -sizes]).float()
    if not torch.set_flush_denormal(flushed) and flushed:
        pytest.skip("this processor has no such setting")
    try:
        below = just_below(level, integer=True)
        for u, fires in ((level - 1, False), (level, True), (level + 1, True)):
            assert bool(((u - below > 0) == fires).all())
    finally:
        torch.set_flush_denormal(False)
    exact = just_below(level / 7, integer=False)
    assert bool((exact < level / 7).all())
    assert bool((torch.nextafter(exact, torch.tensor(torch.inf)) == level / 7).all())


@pytest.mark.parametrize("name", SEVERAL)
def test_spikingjelly_by_hand(name):
    """Single-step and multi-step, with nothing to reset."""
    backend = require("spikingjelly")
    from spikingjelly.activation_based import functional

    network, x, expected = grouped(name)
    net = backend.export(network.to_nir())
    np.testing.assert_array_equal(net(x).detach(), expected.output)
    np.testing.assert_array_equal(net(x[1:]).detach(), expected.output[1:])
    functional.set_step_mode(net, "m")
    several = net(torch.stack([x, x.flip(0)])).detach().numpy()
    np.testing.assert_array_equal(several, np.stack([expected.output, expected.output[::-1]]))
    np.testing.assert_array_equal(backend.run(net, x.numpy(), 1).readout[0], expected.output)  # whatever its mode


@pytest.mark.parametrize("seed", SEEDS)
def test_pools_in_multi_step_mode(seed):
    """SpikingJelly's own pools and convolutions inside of them, which take ``[T, B, ...]`` there."""
    backend = require("spikingjelly")
    from spikingjelly.activation_based import functional

    network, x = converted(seed, "grouped", 8)
    net = backend.export(network.to_nir())
    expected = network.run(x).readout[0]
    x = x.float()
    np.testing.assert_array_equal(net(x).detach(), expected)
    functional.set_step_mode(net, "m")
    over_time = net(torch.stack([x, x.flip(0), x])).detach()
    np.testing.assert_array_equal(over_time, np.stack([expected, expected[::-1], expected]))
    np.testing.assert_array_equal(net(x[None, :1]).detach(), expected[None, :1])


@pytest.mark.parametrize("name", SEVERAL)
def test_snntorch_by_hand(name):
    network, x, expected = grouped(name)
    net = require("snntorch").export(network.to_nir())
    for part in (slice(3), slice(1, 3), slice(1)):
        np.testing.assert_array_equal(net(x[part]).detach(), expected.output[part])


@pytest.mark.parametrize("name", SEVERAL)
def test_norse_by_hand(name):
    """The state is empty, and may be handed on or not."""
    network, x, expected = grouped(name)
    net = require("norse").export(network.to_nir())
    import norse.torch as snn

    readout, state = net(x)
    assert state == {}
    np.testing.assert_array_equal(readout.detach(), expected.output)
    np.testing.assert_array_equal(net(x[:1], state)[0].detach(), expected.output[:1])
    over_time, _ = snn.Lift(net)(torch.stack([x, x.flip(0)]))
    np.testing.assert_array_equal(over_time.detach(), np.stack([expected.output, expected.output[::-1]]))


@pytest.mark.parametrize("name", SEVERAL)
def test_sinabs_by_hand(name):
    """``[B·T, ...]``, and Sinabs' own functions find nothing to do."""
    network, x, expected = grouped(name)
    net = require("sinabs").export(network.to_nir())
    import sinabs

    sinabs.set_batch_size(net, 3)
    sinabs.reset_states(net)
    together = net(x.repeat_interleave(2, dim=0)).detach().numpy()
    np.testing.assert_array_equal(together, expected.output.repeat(2, axis=0))


def operators(model: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in model.graph.node}


@pytest.mark.parametrize("name", SEVERAL)
def test_onnx_by_hand(name, tmp_path):
    """Without a loop, and T and the number of images are inputs; that of one step has no state."""
    import onnxruntime

    network, x, expected = grouped(name)
    net = require("onnxruntime").export(network.to_nir())
    assert not {"Loop", "Scan", "If"} & operators(net.model)
    for steps in (1, 3):
        np.testing.assert_array_equal(net(x.numpy(), steps), expected.output)
    net.save(tmp_path / "net.onnx")
    net.save(tmp_path / "step.onnx", one_step=True)
    over_time, one_step = (
        onnxruntime.InferenceSession(tmp_path / file, providers=["CPUExecutionProvider"])
        for file in ("net.onnx", "step.onnx")
    )
    output, readout = over_time.run(["output", "readout"], {"x": x[:1].numpy(), "steps": np.array(2)})
    np.testing.assert_array_equal(output, expected.output[:1])
    np.testing.assert_array_equal(readout, expected.output[None, :1].repeat(2, axis=0))
    assert [value.name for value in one_step.get_inputs()] == ["x"]
    np.testing.assert_array_equal(one_step.run(["readout"], {"x": x.numpy()})[0], expected.output)
    readout, state = net.step(x.numpy(), net.initial_state(3))
    np.testing.assert_array_equal(readout, expected.output)
    assert state == {}
    with pytest.raises(InputError, match="at least 1"):
        net(x.numpy(), 0)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_onnx_checker(seed):
    """Every value has a shape, with a number or a name for each size."""
    from exporters.onnx_runtime.models import over_time

    native = require("onnxruntime").export(converted(seed, "grouped", None)[0].to_nir())
    for model in (native.model, native.step_model, over_time(native.graph, spikes=True, membranes=True)):
        onnx.checker.check_model(model, full_check=True)
        values = [(value.name, value.type.tensor_type) for value in (*model.graph.value_info, *model.graph.output)]
        sized = {name for name, kind in values if all(s.dim_param or s.HasField("dim_value") for s in kind.shape.dim)}
        assert sized >= {name for node in model.graph.node for name in node.output}


def test_names_that_the_onnx_models_use_themselves():
    """Layers that are called as parts of others, and as the values that the file is about."""
    backend = require("onnxruntime")
    graph = whole("grouped")
    new = {"conv": "fire_driven", "any": "times", "pool": "times_each.weight", "sum": "readout.shape", "flat": "steps"}

    def renamed(layer: Layer) -> Layer:
        changed = replace(
            layer, name=new.get(layer.name, layer.name), inputs=tuple(new.get(one, one) for one in layer.inputs)
        )
        return replace(changed, layer=renamed(changed.layer)) if isinstance(changed, EachLevel) else changed

    x = np.random.default_rng(4).integers(0, 5, (2, 2, 4, 6)).astype(np.float32)
    expected = backend.run(backend.export(to_nir(graph)), x, 2, membranes=True)
    native = backend.export(to_nir(LayerGraph(tuple(renamed(layer) for layer in graph))))
    record = backend.run(native, x, 2, membranes=True)
    np.testing.assert_array_equal(record.readout, expected.readout)
    np.testing.assert_array_equal(record.membranes["fire"], expected.membranes["fire"])
    np.testing.assert_array_equal(native.step(x, {})[0], expected.readout[0])


@pytest.mark.parametrize("schedule", ["staged", "grouped"])
def test_large_linear_layers_in_bytes(schedule, monkeypatch):
    """Behind counts and behind pools, in integers: the same to the last bit, with integer operators."""
    from exporters.onnx_runtime import rules

    backend = require("onnxruntime")
    network, x = converted(SEEDS[0], schedule, 8)
    expected = network.run(x)
    assert "MatMulInteger" not in operators(backend.export(network.to_nir()).step_model)
    monkeypatch.setattr(rules, "LARGE", 1)
    native = backend.export(network.to_nir())
    assert "MatMulInteger" in operators(native.step_model)
    record = backend.run(native, x.numpy(), expected.steps)
    assert_equal(record, {layer: expected.spikes(layer) for layer in expected.layers}, expected.readout)


def test_copies_are_independent(native_backend):
    network, x, expected = grouped("residual")
    native = native_backend.export(network.to_nir())
    twin = copy.deepcopy(native)
    if isinstance(native, nn.Module):
        with torch.no_grad():
            for tensor in (*native.parameters(), *native.buffers()):
                tensor.zero_()
    np.testing.assert_array_equal(native_backend.run(twin, x.numpy(), 1).readout[0], expected.output)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("framework", TORCH)
def test_gradients_reach_the_weights(framework, seed):
    """Through groups and pools of them, with the framework's own surrogate gradient."""
    network, x = converted(seed, "grouped", None)
    net = require(framework).export(network.to_nir())
    readout = net(x)[0] if framework == "norse" else net(x)
    readout.square().sum().backward()
    weights = {name: p.grad for name, p in net.named_parameters() if p.requires_grad and name.endswith("weight")}
    assert weights
    for weight, gradient in weights.items():
        assert gradient is not None, weight
        assert bool(gradient.isfinite().all()), weight
        assert bool(gradient.any()), weight


@pytest.mark.parametrize("framework", TORCH)
def test_a_wrong_level_is_found(framework):
    backend = require(framework)

    class Wrong:
        name = "wrong"
        available, run = backend.available, backend.run

        def export(self, graph):
            net = backend.export(graph)
            [*_, last] = [module for module in net.children() if getattr(module, "level", None) is not None]
            last.level[0] += 0.5
            return net

    network, x, _ = grouped("ends_in_spikes", 20)
    agreement = network.validate(x, backends=[Wrong()])
    assert not agreement.agreed
    (found,) = agreement.backends.values()
    assert {one.layer for one in found.divergences} == {network.layers[-1]}


def test_onnx_names_the_layer_that_it_has_no_operator_for():
    from bridge.graph import MaxPool
    from exporters.onnx_runtime.models import check

    image = Input(name="image", shape=(1, 2, 2))
    fire = GroupFire(name="fire", inputs=("image",), level=np.ones((1, 1), np.float32))
    size = (2, 2)
    pool = MaxPool(name="pool", inputs=("fire",), kernel=size, stride=size, padding=(0, 0), dilation=(1, 1))
    with pytest.raises(GraphError, match="layer 'pool': there is no ONNX operator for a MaxPool"):
        check(LayerGraph((image, fire, EachLevel(name="pool", inputs=("fire",), layer=pool))))
