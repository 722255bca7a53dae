"""Who takes part in benchmarks/simulation.py: networks, the engine, and the frameworks as one uses them by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import bridge
from bridge import registry
from bridge.errors import BackendError
from bridge.graph import IntegrateFire
from bridge.network import SpikingNetwork
from bridge.zoo import resnet20, vgg16
from bridge.zoo.digits import digits_model

LEVELS = 4
VIA_BACKEND = ("lava-fixed",)
"""These run through their backend's own `run`, which also records every spike."""
MEMORY_BATCH = 32
"""Images of a run whose memory is measured."""
INT8, FLOAT32 = "engine, int8", "engine, float32"
ANN = "T × ANN"

Run = Callable[[int, int], Any]
"""Simulates so many steps of so many images: ``run(steps, batch)`` gives the mean outputs ``[B, ...]``."""


class MissingError(Exception):
    """A contender, or a network, that cannot take part; the message says why."""


# --- networks


def resnet34() -> nn.Module:
    """torchvision's: the zoo's, without pools at its start, has sums over 28×28 pixels, too wide for 8-bit weights."""
    try:
        from torchvision_table import torchvision_models

        models = torchvision_models()
    except ImportError as error:
        raise MissingError("torchvision is not installed") from error
    return bridge.replace_activations(models.resnet34(weights=None), levels=LEVELS, max_pool="avg")


@dataclass(frozen=True)
class Subject:
    """A network to simulate; `images` are how many set its batch norms and its whole numbers."""

    title: str
    make: Callable[[], nn.Module]
    shape: tuple[int, int, int]
    images: int


SUBJECTS = {
    "digits": Subject("digits CNN, 8×8", digits_model, (1, 8, 8), 32),
    "resnet20": Subject("ResNet-20, 32×32", partial(resnet20, levels=LEVELS), (3, 32, 32), 32),
    "vgg16": Subject("VGG-16, 32×32", partial(vgg16, levels=LEVELS), (3, 32, 32), 32),
    "resnet34": Subject("ResNet-34, 224×224", resnet34, (3, 224, 224), 8),
}


@dataclass(frozen=True)
class Networks:
    """One network in its three forms; uint8 `pixels` for it, and `images`, the same as the ANN takes them."""

    model: nn.Module
    floating: SpikingNetwork
    whole: SpikingNetwork
    pixels: Tensor
    images: Tensor

    def save(self, folder: Path) -> None:
        torch.save((self.model.state_dict(), self.pixels), folder / "model.pt")
        self.floating.save(folder / "float.nir")
        self.whole.save(folder / "whole.nir")

    @staticmethod
    def load(subject: Subject, folder: Path) -> Networks:
        state, pixels = torch.load(folder / "model.pt")
        model = subject.make().eval()
        model.load_state_dict(state)
        floating, whole = bridge.load(folder / "float.nir"), bridge.load(folder / "whole.nir")
        return Networks(model, floating, whole, pixels, pixels / 255)


def networks(subject: Subject, batch: int) -> Networks:
    """The network with random weights, settled, converted and quantized; `batch` images to run it on."""
    torch.manual_seed(0)
    model = subject.make()
    pixels = torch.randint(0, 256, (max(batch, subject.images), *subject.shape)).to(torch.uint8)
    few = pixels[: subject.images] / 255
    settle(model, few)
    channels = subject.shape[0]
    floating = bridge.convert(model, few[:1])
    whole = floating.quantize(
        8, calibration=few, scheme="per_channel", normalisation=([0.0] * channels, [1.0] * channels)
    )
    return Networks(model, floating, whole, pixels, pixels / 255)


def settle(model: nn.Module, x: Tensor) -> None:
    """Scale the weights of `model` so that signals keep their size, and set batch norm's statistics on images `x`.

    Without it they die out on the way, and a network in which nothing fires is simulated in no time.
    """
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                spread = 1.4 / math.sqrt(module.weight[0].numel())
                module.weight.copy_(torch.randn(module.weight.shape) * spread)
            elif isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the mean over all passes
        model.train()
        for _ in range(3):
            model(x)
    model.eval()


# --- contenders


def engine_int8(subject: Networks) -> Run:
    return lambda steps, batch: subject.whole.simulate(subject.pixels[:batch], steps).outputs[-1]


def engine_float32(subject: Networks) -> Run:
    return lambda steps, batch: subject.floating.simulate(subject.images[:batch], steps).outputs[-1]


def spikingjelly_single(subject: Networks) -> Run:
    native = _exported("spikingjelly", subject.floating)
    from spikingjelly.activation_based import functional

    @torch.inference_mode()
    def run(steps: int, batch: int) -> Tensor:
        x = subject.images[:batch]
        functional.reset_net(native)
        return sum(native(x) for _ in range(steps)) / steps

    return run


def spikingjelly_multi(subject: Networks) -> Run:
    native = _exported("spikingjelly", subject.floating)
    from spikingjelly.activation_based import functional

    functional.set_step_mode(native, "m")

    @torch.inference_mode()
    def run(steps: int, batch: int) -> Tensor:
        x = subject.images[:batch]
        functional.reset_net(native)
        return native(x.unsqueeze(0).repeat(steps, *[1] * x.dim())).mean(dim=0)

    return run


def snntorch(subject: Networks) -> Run:
    try:
        import snntorch as framework
        from snntorch import utils
    except ImportError as error:
        raise MissingError("not installed") from error
    # utils.reset resets every neuron of the process: without this, those of networks measured before, too
    framework.SpikingNeuron.instances.clear()
    native = _exported("snntorch", subject.floating)

    @torch.inference_mode()
    def run(steps: int, batch: int) -> Tensor:
        x = subject.images[:batch]
        utils.reset(native)
        return sum(native(x) for _ in range(steps)) / steps

    return run


def sinabs(subject: Networks) -> Run:
    """Sinabs' own neuron, which fires once a step and takes off more than its threshold: no state to begin with."""
    try:
        import sinabs as framework
        from sinabs import activation, layers
    except ImportError as error:
        raise MissingError("not installed") from error
    from exporters.torch_module import build

    def neuron(layer: IntegrateFire, rank: int) -> nn.Module:
        return layers.IAFSqueeze(
            batch_size=1,
            spike_threshold=torch.tensor(float(layer.level[0])),
            spike_fn=activation.SingleSpike,
            reset_fn=activation.MembraneSubtract(subtract_value=float(layer.threshold[0])),
            min_v_mem=None,
        )

    native = build(subject.floating.graph, nn, neuron, "SinabsNetwork")

    @torch.inference_mode()
    def run(steps: int, batch: int) -> Tensor:
        framework.set_batch_size(native, batch)
        framework.reset_states(native)
        rows = native(subject.images[:batch].repeat_interleave(steps, dim=0))
        return rows.reshape(batch, steps, -1).mean(dim=1)

    return run


def onnx_runtime(subject: Networks) -> Run:
    native, x = _exported("onnxruntime", subject.floating), subject.images.numpy()
    return lambda steps, batch: native(x[:batch], steps)


def lava_fixed(subject: Networks) -> Run:
    try:
        registry.usable("lava-fixed")
    except BackendError as error:
        raise MissingError("not installed") from error
    from exporters.lava import LavaFixed

    backend = LavaFixed(synapses="stock")
    native = backend.export(subject.whole.to_nir())
    x = subject.pixels.numpy()
    return lambda steps, batch: backend.run(native, x[:batch], steps).outputs()[-1]


def one_pass(subject: Networks) -> Run:
    """One pass of the ANN, to be multiplied by T."""

    @torch.inference_mode()
    def run(steps: int, batch: int) -> Tensor:
        return subject.model(subject.images[:batch])

    return run


def _exported(name: str, network: SpikingNetwork) -> Any:
    try:
        return registry.usable(name).export(network.to_nir())
    except BackendError as error:
        raise MissingError("not installed") from error


CONTENDERS: dict[str, Callable[[Networks], Run]] = {
    INT8: engine_int8,
    FLOAT32: engine_float32,
    "SpikingJelly, single-step": spikingjelly_single,
    "SpikingJelly, multi-step": spikingjelly_multi,
    "snnTorch": snntorch,
    "Sinabs": sinabs,
    "ONNX Runtime": onnx_runtime,
    "lava-fixed": lava_fixed,
    ANN: one_pass,
}


def contenders(subject: Networks, *, lava: bool) -> tuple[dict[str, Run], dict[str, str]]:
    """Those that can take part, made ready, and why each of the others cannot."""
    runs: dict[str, Run] = {}
    skipped: dict[str, str] = {}
    for name, make in CONTENDERS.items():
        if name == "lava-fixed" and not lava:
            skipped[name] = "runs with --lava only"
            continue
        try:
            runs[name] = make(subject)
        except MissingError as error:
            skipped[name] = str(error)
    return runs, skipped
