"""Staged networks on the backends with neurons for them: the trains and windows that the ANN's activations give."""

from __future__ import annotations

import copy
from dataclasses import replace

import nir
import numpy as np
import pytest
import torch
from support import networks, oracle, staged_oracle
from support.backends import assert_equal, require
from torch import nn

import bridge
from bridge import GraphError, InputError
from bridge.graph import (
    AtLeast,
    BiasOnce,
    Conv2d,
    Flatten,
    Impulse,
    Input,
    IntegrateFire,
    LayerGraph,
    Linear,
    SumPool2d,
    WindowFire,
)
from bridge.nir_graph import to_nir

NATIVE = ("norse", "onnxruntime", "sinabs", "snntorch", "spikingjelly")
TORCH = tuple(name for name in NATIVE if name != "onnxruntime")
SEVERAL = ("cnn", "residual")


@pytest.fixture(params=NATIVE)
def native_backend(request):
    """Each backend that has staged neurons."""
    return require(request.param)


def staged(name: str, images: int = 3, levels: int | None = None):
    """The staged network of `networks.ALL[name]`, images, and what is expected."""
    model, shape = networks.ALL[name]()
    x = networks.dyadic_images(images, shape)
    expected = staged_oracle.of_network(name, images, levels)
    return bridge.convert(model, x, schedule="staged", steps=levels), x, expected


@pytest.mark.parametrize("levels", [None, 1])
@pytest.mark.parametrize("name", networks.ALL)
def test_trains_windows_and_membranes(native_backend, name, levels):
    """Twice, the second time with another number of images, and longer than the network takes."""
    network, x, expected = staged(name, levels=levels)
    assert network.latency == expected.latency
    native = native_backend.export(network.to_nir())
    for images, steps in ((3, expected.latency), (2, expected.latency + 3)):
        part = (slice(steps), slice(images))
        record = native_backend.run(native, x[:images].numpy(), steps, membranes=True)
        fired = {layer: spikes[part] for layer, spikes in zip(network.layers, expected.spikes, strict=True)}
        assert_equal(record, fired, expected.readout[part])
        for layer, membranes in zip(network.layers, expected.membranes, strict=True):
            np.testing.assert_array_equal(record.membranes[layer], membranes[part], err_msg=layer)
        assert record.summed
        assert not record.readout[expected.latency :].any()
        np.testing.assert_array_equal(record.outputs()[-1], expected.output[:images])


def test_the_oracle_itself():
    """Its output is the ANN's, and all kinds of trains occur."""
    for name in networks.ALL:
        model, shape = networks.ALL[name]()
        expected = staged_oracle.of_network(name, 3, None)
        ann = model.double().eval()(networks.dyadic_images(3, shape).double()).detach().numpy()
        np.testing.assert_array_equal(expected.output, ann)
        np.testing.assert_array_equal(expected.readout.sum(axis=0), ann)
        counts = [spikes.sum(axis=0) for spikes in expected.spikes]
        assert {0, 1, 2, 3, 4} <= set(np.concatenate([count.ravel() for count in counts]).tolist())


@pytest.mark.parametrize("name", SEVERAL)
def test_spikingjelly_by_hand(name):
    """Single-step, then all steps at once; `reset_net` between, and nothing else."""
    backend = require("spikingjelly")
    from spikingjelly.activation_based import functional

    network, x, expected = staged(name)
    net = backend.export(network.to_nir())
    for _ in range(2):
        functional.set_step_mode(net, "s")
        steps = [net(x).detach().numpy() for _ in range(expected.latency)]
        np.testing.assert_array_equal(steps, expected.readout[: expected.latency])
        functional.reset_net(net)
        functional.set_step_mode(net, "m")
        over_time = net(x[1:].expand(expected.latency, *x[1:].shape)).detach().numpy()
        np.testing.assert_array_equal(over_time, expected.readout[: expected.latency, 1:])
        functional.reset_net(net)


@pytest.mark.parametrize("name", SEVERAL)
def test_snntorch_by_hand(name):
    backend = require("snntorch")
    from snntorch import utils

    network, x, expected = staged(name)
    net = backend.export(network.to_nir())
    for part in (slice(3), slice(1, 3), slice(2)):
        steps = [net(x[part]).detach().numpy() for _ in range(expected.latency)]
        np.testing.assert_array_equal(steps, expected.readout[: expected.latency, part])
        utils.reset(net)


@pytest.mark.parametrize("name", SEVERAL)
def test_norse_by_hand(name):
    """Lifted over time; and in two parts, with the state handed on."""
    backend = require("norse")
    import norse.torch as snn

    network, x, expected = staged(name)
    net, half = backend.export(network.to_nir()), expected.latency // 2
    over_time = x.expand(expected.latency, *x.shape)
    readout, state = snn.Lift(net)(over_time)
    np.testing.assert_array_equal(readout.detach().numpy(), expected.readout[: expected.latency])
    assert set(network.layers) < set(state)
    first, between = snn.Lift(net)(over_time[:half])
    for _ in range(2):  # a state is not changed by what follows it
        second, _ = snn.Lift(net)((over_time[half:], between))
        np.testing.assert_array_equal(torch.cat([first, second]).detach(), expected.readout[: expected.latency])


@pytest.mark.parametrize("name", SEVERAL)
def test_sinabs_by_hand(name):
    """All steps of an image one after the other, then step by step; the reset between them is Sinabs' own."""
    backend = require("sinabs")
    import sinabs

    network, x, expected = staged(name)
    net, steps = backend.export(network.to_nir()), expected.latency
    for images in ([0, 1, 2], [2, 0], [1, 2]):
        sinabs.set_batch_size(net, len(images))
        sinabs.reset_states(net)
        together = net(x[images].repeat_interleave(steps, dim=0)).detach()
        np.testing.assert_array_equal(
            together.unflatten(0, (len(images), steps)).transpose(0, 1).numpy(), expected.readout[:steps, images]
        )
        sinabs.reset_states(net)
        single = [net(x[images]).detach().numpy() for _ in range(steps)]
        np.testing.assert_array_equal(single, expected.readout[:steps, images])


@pytest.mark.parametrize("name", SEVERAL)
def test_onnx_by_hand(name, tmp_path):
    """T is an input of the file; one step at a time, the number of the step is part of the state."""
    backend = require("onnxruntime")
    import onnxruntime

    network, x, expected = staged(name)
    net = backend.export(network.to_nir())
    for steps in (expected.latency, expected.latency + 4):
        np.testing.assert_array_equal(net(x.numpy(), steps), expected.output)
    net.save(tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    (output,) = session.run(["output"], {"x": x[:1].numpy(), "steps": np.array(expected.latency)})
    np.testing.assert_array_equal(output, expected.output[:1])
    state = net.initial_state(3)
    for t in range(expected.latency):
        again, _ = net.step(x.numpy(), state)
        readout, state = net.step(x.numpy(), state)
        np.testing.assert_array_equal(readout, expected.readout[t])
        np.testing.assert_array_equal(readout, again)
    assert state["iteration"] == expected.latency
    with pytest.raises(InputError, match="state of 2 images"):
        net.step(x[:2].numpy(), state)


def test_copies_are_independent(native_backend):
    network, x, expected = staged("residual")
    native = native_backend.export(network.to_nir())
    native_backend.run(native, x[:1].numpy(), 2)
    twin = copy.deepcopy(native)
    if isinstance(native, nn.Module):
        with torch.no_grad():
            for tensor in (*native.parameters(), *native.buffers()):
                tensor.zero_()
    record = native_backend.run(twin, x.numpy(), expected.latency)
    np.testing.assert_array_equal(record.readout, expected.readout[: expected.latency])


@pytest.mark.parametrize("name", networks.ALL)
@pytest.mark.parametrize("framework", TORCH)
def test_gradients_reach_the_weights(framework, name):
    backend = require(framework)
    network, x, expected = staged(name, 2)
    net = backend.export(network.to_nir())
    backend.run(net, x.numpy(), 2)  # a run must leave no state that stands in the way
    over_steps(framework, net, x, expected.latency).square().sum().backward()
    weights = {name: p.grad for name, p in net.named_parameters() if p.requires_grad and name.endswith("weight")}
    assert weights
    for weight, gradient in weights.items():
        assert gradient is not None, weight
        assert bool(gradient.isfinite().all()), weight
        assert bool(gradient.any()), weight


def over_steps(framework: str, net: nn.Module, x: torch.Tensor, steps: int) -> torch.Tensor:
    """The sum of the readout over `steps`, of a network that has just been exported or reset."""
    state, total = None, torch.zeros(())
    if framework == "sinabs":
        import sinabs

        sinabs.set_batch_size(net, len(x))
    for _ in range(steps):
        if framework == "norse":
            readout, state = net(x, state)
        else:
            readout = net(x)
        total = total + readout
    return total


CHANNELS, LEVELS = 3, 4


def pooling() -> LayerGraph:
    """Four neurons behind each output: the maximum in two channels of three, the minimum in the third."""
    generator = np.random.default_rng(3)

    def dyadic(*shape: int) -> np.ndarray:
        return (generator.integers(-6, 7, shape) / 8).astype(np.float32)

    return LayerGraph(
        (
            Input(name="input", shape=(2, 4, 6)),
            Impulse(name="once", inputs=("input",)),
            Conv2d(
                name="conv",
                inputs=("once",),
                weight=4 * dyadic(CHANNELS, 2, 3, 3),
                bias=np.zeros(CHANNELS, np.float32),
                padding=(1, 1),
            ),
            WindowFire(name="fire", inputs=("conv",), level=-0.5 - dyadic(CHANNELS, 4, 6), opens=0, steps=LEVELS),
            SumPool2d(name="any", inputs=("fire",), kernel=(2, 2), stride=(2, 2)),
            AtLeast(name="pool", inputs=("any",), level=np.array([1, 4, 1], np.float32)),
            Flatten(name="flat", inputs=("pool",)),
            Linear(name="fc", inputs=("flat",), weight=dyadic(5, CHANNELS * 2 * 3), bias=np.zeros(5, np.float32)),
            BiasOnce(name="answer", inputs=("fc",), bias=dyadic(5)),
        )
    )


def test_maxima_and_minima(native_backend):
    """By hand: the counts of four neurons, of which the pool's is the largest or the smallest."""
    graph = pooling()
    x = networks.dyadic_images(4, graph.input.shape).numpy()
    conv, fire, fc, answer = (graph[name] for name in ("conv", "fire", "fc", "answer"))
    assert isinstance(conv, Conv2d)
    assert isinstance(fire, WindowFire)
    assert isinstance(fc, Linear)
    assert isinstance(answer, BiasOnce)
    module = nn.Conv2d(2, CHANNELS, 3, padding=1, bias=False)
    module.weight = nn.Parameter(torch.from_numpy(conv.weight))
    count = np.clip(np.floor(oracle.convolve(module, x) - fire.level), 0, LEVELS)
    windows = count.reshape(4, CHANNELS, 2, 2, 3, 2)
    pooled = np.where([[[0]], [[1]], [[0]]], windows.min(axis=(3, 5)), windows.max(axis=(3, 5)))
    assert (windows.min(axis=(3, 5)) < windows.max(axis=(3, 5))).mean() > 0.5
    record = native_backend.run(native_backend.export(to_nir(graph)), x, LEVELS + 1)
    np.testing.assert_array_equal(record.spikes("fire").sum(axis=0), count)
    np.testing.assert_array_equal(record.outputs()[-1], pooled.reshape(4, -1) @ fc.weight.T + answer.bias)


def test_maxima_over_time_and_their_gradients():
    backend = require("spikingjelly")
    from spikingjelly.activation_based import functional

    graph = pooling()
    x = networks.dyadic_images(4, graph.input.shape)
    net = backend.export(to_nir(graph))
    expected = backend.run(net, x.numpy(), LEVELS).readout
    functional.set_step_mode(net, "m")
    readout = net(x.expand(LEVELS, *x.shape))
    np.testing.assert_array_equal(readout.detach(), expected)
    readout.sum().backward()
    assert bool(net.get_parameter("conv.weight").grad.any())


def test_names_that_the_onnx_models_use_themselves():
    """Layers that are called as parts of others, and as the values that the file is about."""
    backend = require("onnxruntime")
    names = {"once": "iteration", "conv": "fire_above", "any": "iteration_next", "pool": "answer_first"}
    graph = pooling()
    renamed = LayerGraph(
        tuple(
            replace(
                layer,
                name=names.get(layer.name, layer.name),
                inputs=tuple(names.get(source, source) for source in layer.inputs),
            )
            for layer in graph
        )
    )
    x = networks.dyadic_images(2, graph.input.shape).numpy()
    native = backend.export(to_nir(renamed))
    expected = backend.run(backend.export(to_nir(graph)), x, LEVELS)
    np.testing.assert_array_equal(backend.run(native, x, LEVELS).readout, expected.readout)
    np.testing.assert_array_equal(native.step(x, native.initial_state(2))[0], expected.readout[0])


def test_an_impulse_before_plain_neurons(native_backend):
    """No window, so the output is a mean; each of the steps has its number all the same."""
    graph = LayerGraph(
        (
            Input(name="input", shape=(3,)),
            Impulse(name="once", inputs=("input",)),
            IntegrateFire(name="fire", inputs=("once",), level=np.full(3, 0.5, np.float32)),
        )
    )
    x = np.array([[0.25, 0.5, 2.75]], np.float32)
    native = native_backend.export(to_nir(graph))
    record = native_backend.run(native, x, 4)
    np.testing.assert_array_equal(record.readout[:, 0], [[0, 1, 1], [0, 0, 1], [0, 0, 1], [0, 0, 0]])
    assert not record.summed
    if native_backend.name == "onnxruntime":
        np.testing.assert_array_equal(native(x, 4), record.readout.mean(axis=0))
        _, state = native.step(x, native.initial_state(1))
        np.testing.assert_array_equal(native.step(x, state)[0], record.readout[1])


def test_validated_all_together():
    """Random weights off any grid; every count is the ANN's, to the last bit of the rate."""
    backends = [require(name) for name in NATIVE]
    model, shape = networks.residual()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 0.2 * torch.rand(parameter.shape, generator=generator))
    x = torch.rand(16, *shape, generator=generator)
    network = bridge.convert(model, x, schedule="staged", steps=6)
    agreement = network.validate(x, backends=backends)
    assert agreement.agreed
    assert set(agreement.backends) == set(NATIVE)
    assert agreement.steps == network.latency
    for found in (agreement.reference, *agreement.backends.values()):
        assert found.rate_error is not None
        assert all(errors[-1] == 0 for errors in found.rate_error.values())
        assert all(errors[0] > 0 for errors in found.rate_error.values())


class OneStepLate:
    """snnTorch's backend with the last window one step late: `validate` must see it."""

    name = "late"

    def __init__(self) -> None:
        self.backend = require("snntorch")
        self.available, self.run = self.backend.available, self.backend.run

    def export(self, graph: nir.NIRGraph) -> nn.Module:
        """The network, with its fault."""
        net = self.backend.export(graph)
        late = [module for module in net.children() if hasattr(module, "opened")][-1]
        for counter in (late.opened, late.shut):
            counter.threshold += 1
        return net


def test_a_record_of_means_is_refused():
    """A record that takes the mean would be compared by another output."""
    backend = require("snntorch")
    network, x, _ = staged("cnn")

    class Means:
        name = "means"
        available, export = backend.available, backend.export

        def run(self, native, x, steps, *, membranes=False):
            return replace(backend.run(native, x, steps, membranes=membranes), summed=False)

    with pytest.raises(bridge.ValidationError, match=r"snntorch: .*mean.* the network's is the sum.*summed=True"):
        network.validate(x, backends=[Means()])


def test_a_late_window_is_found():
    network, x, _ = staged("ends_in_spikes")
    agreement = network.validate(x, backends=[OneStepLate()])
    assert not agreement.agreed
    (found,) = agreement.backends.values()
    layers = {one.layer for one in found.divergences}
    assert layers == {network.layers[-1]}
    assert not any(found.differing[network.layers[0]])


@pytest.mark.lava
def test_slayer_refuses():
    backend = require("slayer")
    network, _, _ = staged("cnn")
    with pytest.raises(GraphError, match=rf"layer '{network.layers[0]}'.*in a window.*count none.*schedule='plain'"):
        backend.export(network.to_nir())


def test_netx_refuses():
    from exporters.lava_dl.netx import NetX

    network, _, _ = staged("mlp")
    with pytest.raises(GraphError, match=rf"layer '{network.layers[0]}'.*in a window.*for lava-dl"):
        NetX(network.to_nir())
