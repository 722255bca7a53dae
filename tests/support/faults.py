"""Faults to seed into a backend's own network, each with the spiking layers that are then wrong by themselves."""

from __future__ import annotations

import types
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest import mock

import nir
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bridge.backends.protocol import Availability, Backend
from bridge.records import SpikeRecord
from support.backends import require
from support.importers import IMPORTERS, Images, SpikingJellyImporter

STEPS = 6

Harm = Callable[[Any], AbstractContextManager[Any] | None]
"""Breaks a native model for good, or returns what breaks it while it runs."""


@dataclass(frozen=True)
class Fault:
    """One way to be wrong.

    ``layers`` compute wrongly, whatever they hear; what other layers then do wrong they inherit. ``readout`` says
    whether the readout is wrong by itself. ``step`` is the first at which a spike can be wrong, where that follows from
    the fault alone: the networks are large enough for it to be wrong then.
    """

    name: str
    network: str
    backend: str
    layers: tuple[str, ...]
    harm: Harm
    step: int | None = None
    readout: bool = False
    images: int = 3


@dataclass
class Faulty:
    """The backend of `fault`, with it."""

    fault: Fault

    def __post_init__(self) -> None:
        self.name = self.fault.name
        importer = IMPORTERS.get(self.fault.backend)
        self.healthy: Backend | SpikingJellyImporter
        self.healthy = require(self.fault.backend) if importer is None else importer()

    def available(self) -> Availability:
        return self.healthy.available()

    def export(self, graph: nir.NIRGraph) -> tuple[Any, AbstractContextManager[Any]]:
        native = self.healthy.export(graph)
        with torch.no_grad():
            return native, self.fault.harm(native) or nullcontext()

    def run(
        self, native: tuple[Any, AbstractContextManager[Any]], x: Images, steps: int, *, membranes: bool = False
    ) -> SpikeRecord:
        harmed, during = native
        with during:
            return self.healthy.run(harmed, x, steps, membranes=membranes)


FAULTS: list[Fault] = []


def fault(network: str, backend: str, *layers: str, **expected: Any) -> Callable[[Harm], Harm]:
    """Enter the decorated function, which does the harm, in the catalogue."""

    def enter(harm: Harm) -> Harm:
        name = harm.__name__.replace("_", " ")
        FAULTS.append(Fault(name, network, backend, layers, harm, **expected))
        return harm

    return enter


# ---- Neurons ---------------------------------------------------------------------------------------------------------


@fault("cnn", "spikingjelly", "layer_2", step=2)
def reset_to_zero(native: Any) -> None:
    native.layer_2.v_reset = 0.0


@fault("cnn", "snntorch", "layer_2", step=2, images=1)
def no_reset(native: Any) -> None:
    native.layer_2.threshold.zero_()


@fault("cnn", "snntorch", "layer_4", step=2)
def reset_by_the_level(native: Any) -> None:
    native.layer_4.threshold.fill_(0.5)


@fault("cnn", "snntorch", "layer_4", step=2, images=60)
def reset_taken_for_done(native: Any) -> None:
    """As a plain Leaky with ``reset_delay=False`` does when the potential is above the threshold after a reset."""
    import snntorch

    native.layer_4.mem_reset = types.MethodType(snntorch.Leaky.mem_reset, native.layer_4)


@fault("cnn", "snntorch", "layer_4", step=2)
def leak(native: Any) -> None:
    native.layer_4.beta.fill_(0.9)


@fault("cnn", "spikingjelly", "layer_4", step=1)
def initial_potential_zero(native: Any) -> None:
    native.layer_4.v_offset.fill_(0.0)


@fault("cnn", "spikingjelly", "layer_4", step=1)
def initial_potential_at_the_threshold(native: Any) -> None:
    native.layer_4.v_offset.fill_(1.0)


@fault("cnn", "snntorch", "layer_2", step=1)
def fires_above_the_level_only(native: Any) -> None:
    native.layer_2.below.fill_(0.5)


@fault("cnn", "spikingjelly", "layer_2", step=1)
def threshold_one_percent_high(native: Any) -> None:
    native.layer_2.v_threshold.mul_(1.01)


@fault("whole", "spikingjelly", "layer_4", step=1)
def level_one_unit_high(native: Any) -> None:
    native.layer_4.v_offset.sub_(1)


@fault("whole", "snntorch", "layer_2", images=1)
def thresholds_of_other_channels(native: Any) -> None:
    neuron = native.layer_2
    neuron.threshold, neuron.below = neuron.threshold.flip(0), neuron.below.flip(0)


@fault("cnn", "snntorch", "layer_4", step=2)
def potential_clipped_below(native: Any) -> None:
    native.layer_4.state_quant = lambda potential: potential.clamp(min=-1.0)


@fault("cnn", "spikingjelly", "layer_4", step=2)
def never_twice_in_a_row(native: Any) -> None:
    clock = clock_of(native)
    last: list[Tensor] = []

    def rest(module: nn.Module, inputs: tuple[Tensor, ...], spikes: Tensor) -> Tensor:
        if clock.t == 1:
            last.clear()
        allowed = spikes * (1 - last[-1]) if last else spikes
        last.append(allowed)
        return allowed

    native.layer_4.register_forward_hook(rest)


@fault("cnn", "spikingjelly", "layer_8", images=128)
def state_kept_between_batches(native: Any) -> None:
    native.layer_8.reset = lambda: None


@fault("cnn", "snntorch", "layer_4")
def neuron_stuck_at_0(native: Any) -> None:
    native.layer_4.register_forward_hook(lambda module, inputs, spikes: with_neuron(spikes, 0.0))


@fault("cnn", "spikingjelly", "layer_4")
def neuron_stuck_at_1(native: Any) -> None:
    native.layer_4.register_forward_hook(lambda module, inputs, spikes: with_neuron(spikes, 1.0))


@fault("cnn", "spikingjelly", "layer_4", step=STEPS)
def silent_in_the_last_step(native: Any) -> None:
    clock = clock_of(native)
    native.layer_4.register_forward_hook(lambda module, inputs, spikes: spikes * (clock.t < STEPS))


# ---- Weights and biases ----------------------------------------------------------------------------------------------


@fault("cnn", "snntorch", "layer_4", step=1)
def bias_twice(native: Any) -> None:
    native.layer_3.bias.mul_(2)


@fault("cnn", "spikingjelly", "layer_2", step=1, images=1)
def bias_dropped(native: Any) -> None:
    native.layer_0.bias.zero_()


@fault("cnn", "spikingjelly", "layer_4", step=2)
def bias_in_the_first_step_only(native: Any) -> None:
    clock, bias = clock_of(native), native.layer_3.bias.reshape(-1, 1, 1)
    native.layer_3.register_forward_hook(lambda module, inputs, output: output if clock.t == 1 else output - bias)


@fault("cnn", "snntorch", "layer_2", step=1, images=1)
def output_channels_swapped(native: Any) -> None:
    for parameter in native.layer_0.parameters():
        parameter[[0, 1]] = parameter[[1, 0]]


@fault("cnn", "spikingjelly", "layer_4", step=1)
def input_channels_swapped(native: Any) -> None:
    native.layer_3.weight[:, [0, 1]] = native.layer_3.weight[:, [1, 0]]


@fault("cnn", "snntorch", "layer_2", step=1, images=1)
def kernel_transposed(native: Any) -> None:
    native.layer_0.weight.copy_(native.layer_0.weight.transpose(2, 3).clone())


@fault("cnn", "spikingjelly", "layer_4", step=1)
def kernel_flipped(native: Any) -> None:
    native.layer_3.weight.copy_(native.layer_3.weight.flip(2, 3))


@fault("cnn", "snntorch", "layer_8", images=60)
def lowest_bits_of_one_weight(native: Any) -> None:
    """The four lowest of the mantissa of the most negative weight, 2⁻²⁰ of it: on a grid where sums are exact."""
    weight = native.layer_7.weight.view(-1)
    smallest = weight.argmin()
    weight.view(torch.int32)[smallest] ^= 0xF


@fault("whole", "spikingjelly", "layer_4", images=60)
def one_weight_one_unit_off(native: Any) -> None:
    native.layer_3.weight[0, 0, 0, 0] += 1


@fault("whole", "snntorch", "layer_4", images=60)
def one_bias_one_unit_off(native: Any) -> None:
    native.layer_3.bias[0] += 1


@fault("random", "spikingjelly", "layer_3", images=256)
def weights_of_8_bits(native: Any) -> None:
    step = native.layer_2.weight.abs().max() / 127
    native.layer_2.weight.copy_((native.layer_2.weight / step).round() * step)


@fault("random", "snntorch", "layer_3", images=256)
def weights_in_float16(native: Any) -> None:
    native.layer_2.weight.copy_(native.layer_2.weight.half().float())


# ---- Other layers ----------------------------------------------------------------------------------------------------


@fault("cnn", "snntorch", "layer_2", step=1)
def padding_goes_round(native: Any) -> None:
    native.layer_0.padding_mode = "circular"


@fault("residual", "spikingjelly", "layer_4_branches_0_2", step=1)
def padding_at_the_end_only(native: Any) -> None:
    """What TensorFlow's SAME does at stride 2."""
    native.layer_4_branches_0_0.padding = (0, 0)
    native.layer_4_branches_0_0.register_forward_pre_hook(lambda module, inputs: F.pad(inputs[0], (0, 1, 0, 1)))


@fault("residual", "snntorch", "layer_5", step=1)
def stride_counted_from_the_second(native: Any) -> None:
    native.layer_4_branches_1_0.register_forward_pre_hook(lambda module, inputs: inputs[0].roll((-1, -1), (2, 3)))


@fault("awkward", "snntorch", "layer_3", step=1)
def pool_does_not_count_padding(native: Any) -> None:
    native.layer_2.count_include_pad = False


@fault("cnn", "spikingjelly", "layer_8", step=1)
def maximum_for_average(native: Any) -> None:
    native.layer_5 = nn.MaxPool2d(native.layer_5.kernel_size, native.layer_5.stride)


@fault("cnn", "snntorch", "layer_8", step=1)
def channels_flattened_last(native: Any) -> None:
    native.layer_6.register_forward_pre_hook(lambda module, inputs: inputs[0].permute(0, 2, 3, 1))


@fault("cnn", "snntorch", "layer_8", step=1)
def dropout_left_on(native: Any) -> None:
    native.layer_7.register_forward_pre_hook(lambda module, inputs: F.dropout(inputs[0], 0.5))


@fault("cnn", "spikingjelly", "layer_4", step=1)
def layer_one_step_late(native: Any) -> None:
    native.layer_3 = late(native.layer_3)


@fault("residual", "spikingjelly", "layer_3", step=1)
def skip_one_step_late(native: Any) -> None:
    native.layer_1_to_add = late(native.layer_1_to_add)


@fault("residual", "snntorch", "layer_3", step=1, images=2)
def skip_missing(native: Any) -> None:
    native.layer_1_to_add.scale.zero_()


@fault("residual", "spikingjelly", "layer_5", step=1)
def branch_missing(native: Any) -> None:
    native.layer_4_branches_0_3.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))


@fault("residual", "snntorch", "layer_8", step=1)
def skip_counted_twice(native: Any) -> None:
    native.layer_5_to_add_2.scale.mul_(2)


# ---- Input and readout -----------------------------------------------------------------------------------------------


@fault("cnn", "spikingjelly", "layer_2", step=1, images=1)
def input_clipped_to_0_1(native: Any) -> None:
    native.register_forward_pre_hook(lambda module, inputs: inputs[0].clamp(0, 1))


@fault("cnn", "snntorch", "layer_2", step=1, images=1)
def input_scaled_twice(native: Any) -> None:
    native.register_forward_pre_hook(lambda module, inputs: inputs[0] / 255)


@fault("mlp", "snntorch", "layer_2", step=1)
def two_images_exchanged(native: Any) -> None:
    native.register_forward_pre_hook(lambda module, inputs: exchanged(inputs[0]))


@fault("cnn", "spikingjelly", "layer_4", step=1)
def two_images_exchanged_within(native: Any) -> None:
    native.layer_3.register_forward_hook(lambda module, inputs, output: exchanged(output))


@fault("cnn", "spikingjelly", readout=True)
def readout_without_bias(native: Any) -> None:
    native.layer_9.bias.zero_()


@fault("cnn", "snntorch", readout=True)
def classes_in_another_order(native: Any) -> None:
    for parameter in native.layer_9.parameters():
        parameter.copy_(parameter.flip(0))


@fault("cnn", "spikingjelly", readout=True)
def readout_one_step_late(native: Any) -> None:
    native.layer_9 = late(native.layer_9)


# ---- Lava ------------------------------------------------------------------------------------------------------------


@fault("residual", "lava", "layer_3", step=1)
def lava_delay_left_out(native: Any) -> AbstractContextManager[Any]:
    """The skip reaches the first join as soon as it can, ahead of the other branch."""
    from exporters.lava.processes.streams import PyDelayModelFloat

    return in_processes(PyDelayModelFloat, "run_spk", "layer_1_to_add_delay", pass_on)


@fault("cnn", "lava", "layer_4")
def lava_state_kept_between_images(native: Any) -> AbstractContextManager[Any]:
    from exporters.lava.processes.neurons import PyIntegrateFireModelFloat

    return in_processes(PyIntegrateFireModelFloat, "first_of_image", "layer_4", lambda model: False)


@fault("cnn", "lava", "layer_8", step=1, readout=True)
def lava_layer_starts_one_step_late(native: Any) -> None:
    """Its spikes are also recorded a step late, so the readout hears others than the record says."""
    native.depths["layer_8"] += 1


# ---- The frameworks' own importers, given NIR's own IF where the exact neuron stood ----------------------------------


@fault("mlp", "spikingjelly's importer", "layer_2", "layer_5", step=1)
def imported_by_spikingjelly(native: Any) -> None:
    """Nothing to add."""


@fault("mlp", "snntorch's importer", "layer_2", "layer_5", step=1)
def imported_by_snntorch(native: Any) -> None:
    """Nothing to add."""


# ---- What the faults are made of -------------------------------------------------------------------------------------


def clock_of(native: nn.Module) -> Any:
    """Has ``t``, the time step 1..T; SpikingJelly resets it with the network."""
    from spikingjelly.activation_based import base

    clock = base.MemoryModule()
    clock.register_memory("t", 0)
    native.clock = clock
    native.register_forward_pre_hook(lambda module, inputs: setattr(clock, "t", clock.t + 1))
    return clock


def late(module: nn.Module) -> nn.Module:
    """What `module` makes of its input, a step later; zero at first."""
    from spikingjelly.activation_based import layer

    return nn.Sequential(layer.Delay(1), module)


def with_neuron(spikes: Tensor, value: float) -> Tensor:
    """`spikes` ``[B, C, H, W]`` in which one neuron always says `value`."""
    changed = spikes.clone()
    changed[:, 3, 1, 2] = value
    return changed


def exchanged(batch: Tensor) -> Tensor:
    """The batch with its first two images in each other's place."""
    return torch.cat([batch[[1, 0]], batch[2:]])


def in_processes(model: type, method: str, part: str, instead: Callable[[Any], Any]) -> AbstractContextManager[Any]:
    """While it lasts, Lava's Processes whose names begin with `part` do `instead`."""
    original = getattr(model, method)

    def changed(self: Any) -> Any:
        return instead(self) if self.proc_params["name"].startswith(part) else original(self)

    return mock.patch.object(model, method, changed)


def pass_on(delay: Any) -> None:
    """What a Delay of no steps does."""
    delay.a_out.send(delay.gain * delay.a_in.recv())
