"""SLAYER, lava-dl's training library: its own synapses and adaptive-threshold neurons, all time steps in one call.

SLAYER has no neuron with a soft reset, but its ALIF neuron never resets at all. It sums its input up, and each spike
adds twice the firing level to what the sum is compared with. With a level of θ/2 and nothing that decays, that is
``Σ I − θ · spikes ≥ θ/2``: integrate-and-fire that starts at half its threshold.
"""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import nir
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from bridge.errors import BackendError
from bridge.graph.ranges import EXACT
from bridge.nir_graph import from_nir
from bridge.records import Recorder, SpikeRecord
from bridge.simulate.ops import tensor
from exporters.base import Availability, check_input, probe
from exporters.lava.backend import INSTALL as LAVA_INSTALL
from exporters.lava_dl import compat
from exporters.lava_dl.thresholds import layer_thresholds
from exporters.torch_module import ChannelScale, build

PACKAGES = {"lava.lib.dl.slayer": "lava-dl", "lava": "lava-nc", "matplotlib": "matplotlib"}
INSTALL = f"{LAVA_INSTALL} && pip install matplotlib && pip install --no-deps --ignore-requires-python lava-dl==0.6.0"


class Slayer:
    """Native object: a `torch.fx.GraphModule` of SLAYER's layers, ``x [B, C, H, W, T] → readout [B, F, T]``.

    It starts afresh at each call, and SLAYER's surrogate gradient trains it. On a GPU, SLAYER compiles its own kernels.

    SLAYER's neurons keep the sum of all they have heard, in float32 whatever the module's type. While that stays below
    2^24, all is exact; `run` makes sure of it. Raises `BackendError` where lava-dl cannot be imported. Example:
    docs/loihi.md.
    """

    name = "slayer"

    def available(self) -> Availability:
        """Whether SLAYER can be imported with `exporters.lava_dl.compat`'s help."""
        try:
            compat.apply()
        except Exception as error:
            reason = f"import {compat.SLAYER} failed: {type(error).__name__}: {error}"
            return Availability(usable=False, reason=reason, install=INSTALL)
        return probe(PACKAGES, INSTALL)

    def export(self, graph: nir.NIRGraph) -> fx.GraphModule:
        """SLAYER's module for `graph`. Raises `GraphError` unless it is in whole numbers, with one θ a layer."""
        try:
            compat.apply()
        except ImportError as error:
            raise BackendError(f"the SLAYER backend needs lava-dl ({error}): {INSTALL}") from error
        network = from_nir(graph)
        thresholds = layer_thresholds(network)
        module = build(network, nn, lambda layer, rank: _neuron(thresholds[layer.name]), "SlayerNetwork")
        for name, child in list(module.named_children()):
            if name not in thresholds:
                setattr(module, name, over_time(child))
        module.meta["neurons"] = network.spiking
        return module

    def run(
        self, native: fx.GraphModule, x: NDArray[np.float32], steps: int, *, membranes: bool = False
    ) -> SpikeRecord:
        """Run `native` for `steps` time steps on images `x` ``[B, *input]``, held constant, from a fresh state.

        Raises `InputError` if `x` does not fit, and `BackendError` if the numbers grow too large for SLAYER.
        """
        check_input(native.meta["input_shape"], x, steps)
        images = tensor(x).to(next(native.parameters()))
        fired: dict[str, Tensor] = {}
        potentials: dict[str, Tensor] = {}

        def keep(name: str) -> Any:
            def hook(neuron: Any, inputs: tuple[Tensor], spikes: Tensor) -> None:
                _expect_exact(name, inputs[0], 2 * neuron.threshold)
                fired[name] = spikes.cpu()
                if membranes:
                    _, heard, _, taken_off = neuron.dynamics(*inputs)
                    potentials[name] = (heard - taken_off).cpu()

            return hook

        names = native.meta["neurons"]
        handles = [native.get_submodule(name).register_forward_hook(keep(name)) for name in names]
        try:
            with torch.no_grad():
                readout = native(images.unsqueeze(-1).expand(*images.shape, steps)).cpu()
        finally:
            for handle in handles:
                handle.remove()
        recorder = Recorder(self.name, {name: tuple(spikes.shape[1:-1]) for name, spikes in fired.items()})
        for t in range(steps):
            for name, spikes in fired.items():
                recorder.spikes(name, spikes[..., t].numpy(), potentials[name][..., t].numpy() if membranes else None)
            recorder.readout(readout[..., t].numpy())
        return recorder.finish()


def _expect_exact(name: str, heard: Tensor, threshold: int) -> None:
    """Raise `BackendError` unless float32 holds what the neurons sum up when they hear `heard` ``[B, ..., T]``."""
    largest = float(heard.double().cumsum(-1).abs().max()) + threshold
    if largest >= EXACT:
        raise BackendError(
            f"layer {name!r}: SLAYER's neurons sum up their input in float32, and in {heard.shape[-1]} time steps it "
            f"comes to {largest:.0f}, beyond 2^24, where whole numbers are lost: run fewer time steps"
        )


def _neuron(threshold: int) -> nn.Module:
    from lava.lib.dl.slayer.neuron import alif

    neuron: nn.Module = alif.Neuron(
        threshold=threshold // 2,
        threshold_step=0,
        current_decay=1,  # the input itself: nothing is left of the last step's
        voltage_decay=0,
        threshold_decay=0,
        refractory_decay=0,
        scale=1,  # whole numbers, as Loihi has them; SLAYER's own default is units of 1/64
    )
    return neuron


@singledispatch
def over_time(layer: nn.Module) -> nn.Module:
    """SLAYER's layer for all time steps ``[B, ..., T]`` that computes what `layer` does for one, ``[B, ...]``.

    It takes over the parameters of `layer`. Where SLAYER's own cannot do it, it is one of torch's.
    """
    raise NotImplementedError(f"no layer over time for a {type(layer).__name__}")


@over_time.register
def _(layer: nn.Conv2d) -> nn.Module:
    from lava.lib.dl.slayer import synapse

    sizes = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    conv: nn.Module = synapse.Conv(layer.in_channels, layer.out_channels, *sizes, layer.groups)
    return _with_parameters(conv, layer)


@over_time.register
def _(layer: nn.Linear) -> nn.Module:
    from lava.lib.dl.slayer import synapse

    dense: nn.Module = synapse.Dense(layer.in_features, layer.out_features)
    return _with_parameters(dense, layer)


@over_time.register
def _(layer: nn.Conv1d) -> nn.Module:
    kernel, stride, dilation = (_and_time(size, 1) for size in (layer.kernel_size, layer.stride, layer.dilation))
    sizes = (kernel, stride, _and_time(layer.padding, 0), dilation)
    return _with_parameters(nn.Conv2d(layer.in_channels, layer.out_channels, *sizes, layer.groups), layer)


@over_time.register
def _(layer: nn.AvgPool2d) -> nn.Module:
    # SLAYER's Pool rounds odd sizes up, where NIR's and torch's round them down.
    kernel, stride, padding = _and_time(layer.kernel_size, 1), _and_time(layer.stride, 1), _and_time(layer.padding, 0)
    return nn.AvgPool3d(kernel, stride, padding, divisor_override=layer.divisor_override)


@over_time.register
def _(layer: nn.Flatten) -> nn.Module:
    return nn.Flatten(1, -2)


@over_time.register
def _(layer: ChannelScale) -> nn.Module:
    return ChannelScale(layer.scale, layer.scale.dim() + 1)


def _and_time(sizes: Any, time: int) -> Any:
    """`sizes` of a window, one a dimension of a signal, with that of the time axis behind them."""
    return (*sizes, time)


def _with_parameters(module: nn.Module, layer: nn.Module) -> nn.Module:
    """`module` with the weight and the bias of `layer`; SLAYER's synapses have none, but the place for one."""
    weight = layer.get_parameter("weight")
    module.weight = nn.Parameter(weight.detach().reshape(module.get_parameter("weight").shape))
    module.bias = nn.Parameter(layer.get_parameter("bias").detach())
    return module
