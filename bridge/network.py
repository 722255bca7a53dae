"""What `bridge.convert` returns: a spiking network that can be run, written as NIR, and held against its ANN.

One file, though long: it is what users read first, and each of its methods is short and delegates.
"""

from __future__ import annotations

import html
import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import nir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import ExportedProgram

from bridge._util.checks import positive, time_steps, usable_device
from bridge._util.files import replacing
from bridge._util.neutral import neutral
from bridge.agreement import Agreement
from bridge.backends.protocol import Backend
from bridge.converters.nir_graphs import files, ours, third_party
from bridge.converters.onnx_files import capture as onnx_capture
from bridge.converters.onnx_files import writer as onnx_writer
from bridge.converters.torch_models import model as torch_model
from bridge.converters.torch_models.input_shape import checked_shape, shape_of_example, shape_of_model
from bridge.errors import BridgeError, ConversionError, GraphError, InputError, LossyWarning
from bridge.foreign import ForeignNetwork
from bridge.graph import ClipFloorShift, LayerGraph, Shape
from bridge.graph.about import About
from bridge.graph.pixel_grid import PixelGrid, normalised
from bridge.loihi.costs import LoihiReport, report
from bridge.passes.calibration.search import CALIBRATIONS, best_fit
from bridge.passes.calibration.time_bias import TimeBiased, time_biased
from bridge.passes.counting import counting, with_levels
from bridge.passes.fold_batch_norm import fold_batch_norm
from bridge.passes.group import group
from bridge.passes.lift_pools import lift_pools
from bridge.passes.lower_concat import lower_concat
from bridge.passes.plain import plain
from bridge.passes.quantization.integer_network import check_arguments, integer_network
from bridge.passes.stage import stage
from bridge.passes.to_float32 import to_float32
from bridge.passes.with_weights import changed, with_weights
from bridge.records import SpikeRecord
from bridge.reduction import Reduction, reduce
from bridge.simulate import reference
from bridge.simulate.cost import Cost, cost
from bridge.simulate.counts import CountSimulator
from bridge.simulate.engine.engine import MEMORY, Engine
from bridge.simulate.engine.simulation import Simulation
from bridge.simulate.images import Given, as_array, checked, checked_pixels, in_range, with_labels
from bridge.validation import backend_runs
from bridge.validation.lossy import loss_as_if

SCHEDULES = ("plain", "staged", "grouped")
"""When neurons fire: `convert`."""
NO_ANN = "this network has no ANN: it is from a file, which holds spikes only, or its weights were trained"
"""Why something that needs the ANN is refused."""
RATE_STEPS = 16
"""T that `SpikingNetwork.quantize` takes firing rates over."""


class SpikingNetwork:
    """Integrate-and-fire layers with unit threshold, soft reset and v(0) = 1/2, and the affine layers between them.

    ``graph`` is the spiking network, ``ann`` the network it came from (None when read from a file, which holds spikes
    only). Both are immutable and share nothing with the model that was converted. `quantize` returns the same in
    integers, with thresholds of their own. ``about`` tells how it was made: L, the T it was calibrated for, the bits of
    its weights, and which pixels stand for the ANN's input. docs/tutorial.md has an example of every method.

    Wherever images are taken, as a tensor, an array or a DataLoader, integers are pixels and floats are the ANN's
    input. A float network takes floats alone, a network in integers either; see `pixels`.
    """

    def __init__(self, graph: LayerGraph, ann: LayerGraph | None = None, about: About | None = None) -> None:
        self.graph = graph
        self.ann = ann
        self.about = About() if about is None else about
        self._engines: dict[str, Engine | CountSimulator] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_engines": {}}  # made anew where they are needed

    def __repr__(self) -> str:
        return f"SpikingNetwork({', '.join(self._said())})"

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><td>{html.escape(one)}</td></tr>" for one in self._said())
        return f"<b>SpikingNetwork</b><table>{rows}</table>"

    def _said(self) -> list[str]:
        """What the network is, and what is known of it, a few words each."""
        shapes, about, layers = self.graph.shapes, self.about, len(self.graph.spiking)
        said = []
        if self.graph.integer:
            said.append("integers" if about.weight_bits is None else f"{about.weight_bits}-bit integers")
            fitted = "" if about.grid is None or about.grid.exact else ", fitted to values between them"
            said.append("pixels" if about.grid is None else f"pixels 0…{about.grid.largest}{fitted}")
        if self.latency is not None:
            staged = f"staged, {self.latency} step{'s' * (self.latency != 1)}"
            said.append(staged if self.graph.staged else "grouped, 1 step")
        said.append(f"{list(shapes[self.graph.input.name])} -> {list(shapes[self.graph.output.name])}")
        said.append(f"{layers} spiking layer{'s' * (layers != 1)}, {self.graph.neurons} neurons")
        if about.levels:
            said.append(f"L = {', '.join(map(str, about.levels))}")
        if about.calibrated_steps is not None:
            said.append(f"calibrated for T = {about.calibrated_steps}")
        return said if self.ann is not None else [*said, "its ANN not known"]

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the spiking layers, in order; the keys of every `bridge.SpikeRecord` of this network."""
        return self.graph.spiking

    @property
    def grid(self) -> PixelGrid | None:
        """Which pixels stand for the ANN's input; None of a float network, and where it is not known."""
        return self.about.grid

    def _images(self, x: Given, what: str = "x") -> Tensor:
        """`x` as the network computes on it. Raises `InputError` as `run`."""
        return checked(self.graph, x, what, self.grid)

    @property
    def latency(self) -> int | None:
        """Steps after which the output is the ANN's: 1 of a grouped network. None of a plain one, which nears it."""
        return self.graph.latency

    def _steps(self, steps: int | None) -> int:
        """`steps`, or the latency if they are left out. Raises `InputError` for none, or too few."""
        if self.latency is None and steps is None:
            raise InputError("steps: a plain network runs for as many time steps as you say, such as steps=8; got none")
        if self.latency is None:
            return time_steps(steps)
        if steps is not None and time_steps(steps) < self.latency:
            raise InputError(
                f"steps: this staged network's output is complete after {self.latency} steps, got {steps}; leave steps "
                "out, or convert with fewer steps per layer: convert(..., schedule='staged', steps=T)"
            )
        return self.latency if steps is None else int(steps)

    def _expect_plain(self, what: str, instead: str) -> None:
        """Raise `InputError` for what has no meaning in a staged or grouped network."""
        if self.latency is not None:
            raise InputError(f"{what}: this network is {'staged' if self.graph.staged else 'grouped'}; {instead}")

    def to_nir(self, neuron: str = "exact", *, measured_on: Given | None = None) -> nir.NIRGraph:
        """The network as a NIR graph: all that a backend needs. `bridge.nir_graph` says how the neuron is written.

        Its metadata says, as a courtesy, how the network was made (``about``): `bridge.load` reads it.

        Args:
            neuron: "exact", or "if" for tools whose importer knows no neuron but ``nir.IF``. Its hard reset makes
                another network of it, of which a `bridge.errors.LossyWarning` warns.
            measured_on: with "if", images as for `run`. The warning then tells how much is lost on them at T = 8.

        Raises:
            InputError: an argument is not as above.
        """
        if neuron not in ("exact", "if"):
            raise InputError(f'neuron: expected "exact" or "if", got {neuron!r}')
        if neuron == "if":
            self._expect_plain('neuron="if"', 'nir.IF fires at any step; convert with schedule="plain" for it')
        graph = ours.to_nir(self.graph, neuron)
        graph.metadata |= self.about.metadata()
        if neuron == "if":
            images = None if measured_on is None else self._images(measured_on, "measured_on")
            with neutral():
                lost = loss_as_if(self.graph, graph, images)
            warnings.warn(lost, LossyWarning, stacklevel=2)
        elif measured_on is not None:
            raise InputError('measured_on: only neuron="if" loses anything that could be measured')
        return graph

    def save(self, path: str | Path, neuron: str = "exact", *, measured_on: Given | None = None) -> None:
        """Write `to_nir`, whose arguments these are, to a ``.nir`` file, whole or not at all, for `bridge.load`."""
        graph = self.to_nir(neuron, measured_on=measured_on)
        with replacing(path) as file:
            nir.write(file, graph)  # in memory: HDF5 ends the whole process when a disk is full

    @neutral()
    def cost(self, record: SpikeRecord | None = None, *, steps: int | None = None) -> Cost:
        """What the network costs in time, units, delays, spikes and synaptic operations (docs/exact.md).

        Args:
            record: of a run of this network; without it, spikes and operations are None.
            steps: T of a plain network, by default the record's.

        Raises:
            InputError: a plain network needs a record or `steps`.
            ValidationError: the record is of another network.
        """
        if record is not None and not isinstance(record, SpikeRecord):
            raise InputError(
                f"record: expected a SpikeRecord, as run returns, or simulate(..., record=True).record, got "
                f"{type(record).__name__}"
            )
        if steps is None and record is not None:
            steps = record.steps
        return cost(self.graph, self._steps(steps), record)

    @neutral()
    def ann_to_onnx(self, path: str | Path) -> None:
        """Write the ANN that was converted as an ONNX file of standard operators, whole or not at all.

        Raises:
            ConversionError: the network was read from a NIR file, which holds no ANN.
            BridgeError: onnx is not installed.
        """
        if self.ann is None:
            raise ConversionError(f"ann_to_onnx: {NO_ANN}")
        onnx_writer.write(self.ann, path)

    @neutral()
    def with_weights(self, module: nn.Module | Mapping[str, Any]) -> SpikingNetwork:
        """The network with the weights of `module`, a framework's own model of it that was trained, or its state dict.

        For the torch modules that SpikingJelly, snnTorch, Norse and Sinabs get: `exporters`, docs/backends.md. The ANN
        is not that of the new weights, so that what needs it is not there: ``ann`` is None.

        Raises:
            InputError: this network is in integers, staged or grouped; or the weights do not fit, or a constant of a
                neuron was changed, of which a state dict tells the threshold alone: the message lists every name.
        """
        if not isinstance(module, nn.Module | Mapping):
            raise InputError(
                f"with_weights: expected a torch.nn.Module or a state dict, got {type(module).__name__}; of a file, "
                "give torch.load(path)"
            )
        if isinstance(module, Mapping) and isinstance(module.get("state_dict"), Mapping):
            raise InputError('with_weights: this is a checkpoint; give the state dict in it, checkpoint["state_dict"]')
        if isinstance(module, nn.Module):
            inner = getattr(module, "_orig_mod", module)  # of a compiled one
            inner = inner.module if isinstance(inner, nn.DataParallel) else inner
            before = getattr(inner, "meta", {}).get("constants")
            if before is None:
                raise InputError(
                    "with_weights: expected the torch module that the backend of SpikingJelly, snnTorch, Norse or "
                    f"Sinabs exported, got {type(module).__name__}; of weights that came another way, give a state "
                    "dict with this network's names"
                )
            if moved := changed(inner, before):
                raise InputError("with_weights: the neurons are others:\n" + "\n".join(f"  {one}" for one in moved))
        state = module.state_dict() if isinstance(module, nn.Module) else module
        return SpikingNetwork(with_weights(self.graph, state))

    @neutral()
    def calibrate(self, data: Given, steps: int, *, kinds: Sequence[str] = CALIBRATIONS) -> SpikingNetwork:
        """The network fitted to run `steps` time steps: nearer to its ANN there, with the same plain neurons.

        Each channel of neurons gets a bias, a gain and an initial potential of its own, and then all weights move a
        little: constants all, the same for every image and step, so the result is exported and quantized like any other
        (docs/calibration.md). Fit one network for each number of steps that you mean to run. What is found depends on
        nothing but these arguments.

        Args:
            data: images ``[B, *input]`` as the ANN takes them, floats, without labels: a few thousand, if there are,
                not the test data. Three quarters are fitted to, the rest chooses between fits, of which this network as
                it is is one. Few are soon learnt by heart: small networks gain from a few hundred, a ResNet-20 from a
                thousand on (docs/calibration.md).
            steps: T.
            kinds: which of "bias", "gain", "potential" and "weight" may change.

        Raises:
            InputError: an argument is not as above, or the network is in whole numbers: calibrate first.
            ConversionError: the network was read from a file, which holds no ANN.
        """
        self._expect_plain("calibrate", "its activations are the ANN's already, and there is nothing to fit")
        ann = self._to_be_fitted("calibrate")
        x, steps = self._images(data, "data"), time_steps(steps)
        fitted = best_fit(self.graph, ann, x, steps, kinds)
        return SpikingNetwork(fitted, ann, replace(self.about, calibrated_steps=steps))

    @neutral()
    def time_biased(self, data: Given, steps: int) -> TimeBiased:
        """The network with a bias for each channel *and step* (FTBC, ECCV 2024): to compare, not to export.

        It asks of hardware T biases a channel and a count of steps that all cores share, which neither NIR nor Loihi
        has (`bridge.passes.calibration.time_bias`); `calibrate` asks for neither.

        Args:
            data: images ``[B, *input]`` as the ANN takes them, without labels: a few hundred, not the test data.
            steps: T.

        Raises:
            InputError: an argument is not as above, or the network is in whole numbers.
            ConversionError: the network was read from a file, which holds no ANN.
        """
        self._expect_plain("time_biased", "its activations are the ANN's already, and there is nothing to fit")
        ann = self._to_be_fitted("time_biased")
        return time_biased(self.graph, ann, self._images(data, "data"), time_steps(steps))

    def _to_be_fitted(self, what: str) -> LayerGraph:
        """The ANN that `what` fits this network to."""
        if self.graph.integer:
            raise InputError(f"{what}: this network is in whole numbers; give the one it was made from, then quantize")
        if self.ann is None:
            raise ConversionError(f"{what}: {NO_ANN}")
        return self.ann

    @neutral()
    def quantize(
        self,
        weight_bits: int = 8,
        calibration: Given | None = None,
        scheme: str = "per_channel",
        *,
        normalisation: tuple[Sequence[float], Sequence[float]] | None = None,
        steps: int = RATE_STEPS,
    ) -> SpikingNetwork:
        """The network in integers, as Loihi computes it: all backends run it bit for bit alike.

        Weights have `weight_bits` bits; biases, thresholds and the images' pixels 0…255 are whole; windows are summed
        and not averaged. All sums stay below 2^24, so float32, int32 and Loihi's registers hold them exactly. It takes
        pixels, as integers, or the ANN's input, as floats, of which it makes pixels as `pixels` does. The readout is in
        units of its own.

        Args:
            weight_bits: 4 to 16. Up to 8, every bound of Loihi's registers is met; more are for exactness alone.
            calibration: images as the ANN takes them, float ``[B, *input]``; a few hundred do. Scales and biases are
                fitted to the firing rates on them. With `normalisation`, also pixels, as integers.
            scheme: "per_channel" thresholds, or "per_layer", one for all channels, as Lava's own neurons need.
            normalisation: mean and std, one a channel, if the ANN's input is made from pixels by
                ``(p / 255 − mean) / std``. By default it is found from the calibration images: exactly, if they are
                8-bit images that include black, else as 255 steps between the smallest and the largest value.
            steps: T that firing rates are taken over. At few steps they are not those of many: if you mean to run few,
                as after `calibrate`, give the same T.

        Raises:
            InputError: an argument is not as above, or the network is in whole numbers already.
            ConversionError: a layer cannot meet a bound; the message names it, with the numbers.
        """
        if self.graph.integer:
            raise InputError("quantize: this network is in whole numbers already; quantize the one it was made from")
        check_arguments(weight_bits, scheme)
        if calibration is None:
            raise InputError("quantize: needs calibration images, as the ANN takes them: quantize(8, calibration=x)")
        x, steps = self._calibration(calibration, normalisation), time_steps(steps)
        made = replace(self.about, weight_bits=int(weight_bits))
        if self.latency is None:
            found = integer_network(self.graph, self.ann, x, weight_bits, scheme, normalisation, steps)
            return SpikingNetwork(*found[:2], replace(made, grid=found[2]))
        if self.ann is None:
            raise ConversionError(
                "quantize: this staged or grouped network has no ANN, as one read from a NIR file; quantize the "
                "one that convert returns, and save that"
            )
        ann, _, grid = integer_network(_counted(self.ann), None, x, weight_bits, scheme, normalisation, steps)
        arranged = _arranged(ann, "staged" if self.graph.staged else "grouped")
        return SpikingNetwork(arranged, ann, replace(made, grid=grid))

    def _calibration(self, images: Given, normalisation: tuple[Sequence[float], Sequence[float]] | None) -> Tensor:
        """The ANN's input, from which `quantize` fits: floats, or pixels of which the normalisation is known."""
        values = as_array(images, "calibration")
        if normalisation is not None and not (isinstance(normalisation, tuple | list) and len(normalisation) == 2):
            raise InputError(f"normalisation: expected a mean and a std, each one per channel, got {normalisation!r}")
        if values.dtype.kind not in "biu":
            x = self._images(values, "calibration")
            if normalisation is not None:
                in_range(x, "calibration", normalised(*normalisation, x.shape[1], vectors=x.dim() == 2))
            return x
        if normalisation is None:
            raise InputError(
                f"calibration: integers are pixels, got {values.dtype}; give their normalisation=(mean, std) too, or "
                "the images as the ANN takes them, floats"
            )
        shape = self.graph.input.shape
        grid = normalised(*normalisation, shape[0], vectors=len(shape) == 1)
        return grid.decode(checked_pixels(values, shape, "calibration", grid))

    @neutral()
    def pixels(self, x: Given) -> Tensor:
        """The pixels of `x` ``[B, *input]``, uint8: of floats, the ANN's input, those nearest to it.

        Integers are pixels already. Values beyond the pixels' range become 0 or 255, and a
        `bridge.RangeWarning` says so if they are many.

        Raises:
            InputError: the network is none in integers; or the images are floats, and it was read from a file that does
                not say how pixels and the ANN's input relate.
        """
        if not self.graph.integer:
            raise InputError("pixels: this network takes the ANN's input itself; quantize gives one that takes pixels")
        return self._images(x).to(torch.uint8)

    @neutral()
    def run(self, x: Given, steps: int | None = None, *, membranes: bool = False) -> SpikeRecord:
        """Run the reference simulator (float32) on images `x` ``[B, *input]`` for `steps` time steps.

        `x` is a tensor, an array or batches of either, such as a DataLoader, which is gathered: integers are pixels,
        floats are the ANN's input.

        A staged or grouped network takes at least its `latency`, which is what it takes if `steps` are left out. With
        `membranes`, the record also holds each layer's potential after integration, before reset.

        Raises:
            InputError: `x` is empty, of another shape than the network's input, or not finite; or it is pixels, and
                this network is none in integers; `steps` is below 1, or below a staged network's latency.
        """
        return reference.run(self.graph, self._images(x), self._steps(steps), membranes=membranes)

    @neutral()
    def simulate(
        self,
        x: Given,
        steps: int | None = None,
        *,
        record: bool = False,
        until: str | None = None,
        patience: int = 4,
        memory: int = MEMORY,
        device: str | torch.device = "cpu",
    ) -> Simulation:
        """Run images `x` ``[B, *input]`` for `steps` time steps as fast as this machine can: for results, not proof.

        A network in whole numbers runs in int8 arithmetic where it is exact, and gives the very spikes of `run`. One of
        floats gives them but for float ties, since its sums are added in another order. ``torch.get_num_threads()``
        threads are used. The first call packs the weights, and compiles a loop if numba is there (docs/speed.md).
        A staged or grouped network is computed from its spike counts: each layer's weights are applied once.

        Args:
            x: as for `run`, whatever the number of images: they are taken some at a time.
            steps: T, at least 1; as for `run`.
            record: keep every spike, as a `bridge.SpikeRecord`; T · N / 8 bytes an image.
            until: None, or "stable": an image ends once its largest output has been the same for `patience` steps. Its
                output stays what it was then; ``Simulation.steps`` tells when. Fewer steps on average, at some cost in
                accuracy, which `Simulation.accuracy` measures.
            patience: see `until`.
            memory: bytes to keep to, roughly, beside the images and the result; at least one image's are taken.
            device: where to run, such as "cuda"; elsewhere than on the processor all arithmetic is float32.

        Raises:
            InputError: as in `run`; or an argument is not as above; or there is no such device here; or a potential of
                a network in whole numbers passes 2^24, beyond which the arithmetic is not exact.
        """
        x, steps = self._images(x), self._steps(steps)
        if until not in (None, "stable"):
            raise InputError(f'until: expected None or "stable", got {until!r}')
        if until and record:
            raise InputError("record: an image that ends early has no further spikes to keep; leave out `until`")
        memory, patience = positive(memory, "memory"), positive(patience, "patience")
        if until:
            self._expect_plain('until="stable"', "its output is there after its latency, and not before")
        where = str(device)
        if where not in self._engines:
            kind = Engine if self.latency is None else CountSimulator
            self._engines[where] = kind(self.graph, usable_device(device))
        engine = self._engines[where]
        if isinstance(engine, CountSimulator):
            return engine.run(x, steps, record=record, memory=memory)
        return engine.run(x, steps, record=record, patience=patience if until else None, memory=memory)

    @neutral()
    def validate(
        self,
        x: Given,
        steps: int | None = None,
        backends: Sequence[str | Backend] | None = None,
        *,
        labels: Tensor | NDArray[Any] | Sequence[int] | None = None,
        images: Mapping[str, int] | None = None,
        executor: Executor | None = None,
        error_parts: bool = True,
    ) -> Agreement:
        """Run `x` on the reference and on every backend, and count what differs, per layer and time step.

        In floats the reference is the plain simulator of `run`. In integers the engine of `simulate` stands for it,
        which is quicker and exact: in each validation, the first batch of images (64, or fewer of a large network) is
        run on both. Against a backend that itself is the engine ("lava-twin") the reference stays. The agreement says
        which of them decided.

        Args:
            x: images ``[B, *input]``, as for `run`; held constant over time.
            steps: T, at least 1; as for `run`.
            backends: names, such as ``["spikingjelly", "snntorch", "lava"]``, or `exporters.base.Backend` objects.
                Default: all that are usable here and can run this network exactly. An empty list holds the network
                against its ANN alone.
            labels: true classes ``[B]``, for accuracies. Default: those of a DataLoader's batches, if these are images
                and classes.
            images: by backend, run only that many of the images, the first ones; for slow backends.
            executor: where to run batches, such as a `concurrent.futures.ProcessPoolExecutor` or dask's
                ``client.get_executor()``. The result is the same to the last bit.
            error_parts: take the rate error of a plain network apart (``Agreement.rate_error``).

        Returns:
            The `bridge.Agreement`: its ``table()`` is for a terminal or a notebook, ``report("report.html")`` writes a
            page, ``save`` the data.

        Raises:
            InputError: as in `run`, or labels that do not match the images.
            BackendError: a backend is unknown or not usable (the message says what to install), or it failed.
            ValidationError: a backend's record does not fit the network.
        """
        x, labels = with_labels(x, labels)
        return backend_runs.validate(
            self.graph, self.ann, self._images(x), self._steps(steps), backends,
            labels=labels, images=images, executor=executor, error_parts=error_parts,
        )  # fmt: skip

    def reduce(
        self, x: Given, steps: int | None, backend: str | Backend, out: str | Path | None = None
    ) -> Reduction[SpikingNetwork]:
        """Shrink a disagreement of `backend` to the smallest case that still shows it: as `bridge.reduce`."""
        return reduce(self, x, steps, backend, out)

    def loihi(
        self, record: SpikeRecord | None = None, *, spikes: Literal["binary", "graded"] = "binary"
    ) -> LoihiReport:
        """What the network asks of Loihi, and what the run in `record` cost there: as `bridge.loihi.report`."""
        return report(self, record, spikes=spikes)


def convert(
    model: nn.Module | ExportedProgram | str | os.PathLike[str],
    example_input: Tensor | NDArray[Any] | Sequence[Any] | None = None,
    *,
    input_shape: Sequence[int] | None = None,
    schedule: str = "plain",
    steps: int | None = None,
) -> SpikingNetwork:
    """Convert a QCFS-trained `model` to the spiking network that computes the same, spike by spike.

    The model is taken as it stands at inference, whatever mode it is in, and is not changed. It is run on random images
    to see what it computes, and each layer is checked on them.

    Args:
        model: a torch module, what torch.export made of one, or the path of an ``.onnx`` file. docs/conversion.md lists
            what it may consist of.
        example_input: for a torch module, float images ``[B, ...]`` of the shape it takes; also as an array, or as a
            DataLoader's batch. Only the shape matters.
        input_shape: the shape of one image instead, such as (3, 32, 32). Neither is needed where the model tells its
            input's shape: by a first layer that is linear, by a linear layer that images of one square size alone fit,
            or by an attribute ``input_shape``, as the zoo's networks have.
        schedule: when neurons fire. "plain": at every step at which they reach their threshold; the output nears the
            ANN's with the number of steps. "staged": each layer in a window of its own, once its input is complete;
            every activation of the ANN comes out as its spike count, after `SpikingNetwork.latency` steps. "grouped":
            each neuron is a group of L thresholds, of which as many fire at once; one step, no state (docs/exact.md).
        steps: for "staged" and "grouped", the steps of each layer's window, or the thresholds of a group, which make it
            a QCFS of so many levels; None: each layer's own L. The plain schedule has none: `SpikingNetwork.run` takes
            its number.

    Raises:
        ConversionError: something in the model has no exact spiking form; the message lists every such layer.
        GraphError: an ONNX file is missing or damaged.
        InputError: the model does not accept such images, or does not tell their shape; or another argument is not as
            above.
    """
    if schedule not in SCHEDULES:
        raise InputError(f"schedule: expected one of {', '.join(map(repr, SCHEDULES))}, got {schedule!r}")
    if schedule == "plain" and steps is not None:
        raise InputError(
            f"steps: the plain schedule has no number of steps of its own, got {steps!r}; "
            "pass it to run, simulate or validate"
        )
    steps = None if steps is None else time_steps(steps)
    with neutral():
        if isinstance(model, ExportedProgram):
            told = example_input is not None or input_shape is not None
            shape = _given_shape(nn.Module(), example_input, input_shape) if told else None
            ann = torch_model.capture_exported(model, shape, maximum=schedule != "plain")
        elif isinstance(model, nn.Module) and "drives" in getattr(model, "meta", {}):
            raise ConversionError(
                f"convert: {type(model).__name__} is a spiking network that a backend made; its trained weights go "
                "back with network.with_weights(model), where network is the one that it was made from"
            )
        elif isinstance(model, nn.Module):
            given = _given_shape(model, example_input, input_shape)
            ann = torch_model.capture(model, given, maximum=schedule != "plain")
        elif isinstance(model, str | os.PathLike) and str(model).lower().endswith(".onnx"):
            ann = onnx_capture.capture(Path(model), maximum=schedule != "plain")
        else:
            came = repr(model) if isinstance(model, str | os.PathLike) else type(model).__name__
            hints = {
                ".nir": "; bridge.load reads a .nir file",
                ".pt": "; torch.load reads it",
                ".pth": "; torch.load reads it",
            }
            hint = hints.get(Path(model).suffix.lower(), "") if isinstance(model, str | os.PathLike) else ""
            if isinstance(model, SpikingNetwork):
                hint = ", which is converted already"
            elif isinstance(model, Mapping):
                hint = "; of a state dict, give the model that load_state_dict has filled"
            raise ConversionError(f"convert: expected a torch.nn.Module or the path of an .onnx file, got {came}{hint}")
        ann = to_float32(ann)  # before folding, so that an ANN written by ann_to_onnx converts to the same network
        if schedule != "plain":
            ann = lift_pools(with_levels(ann, steps))
            return SpikingNetwork(_arranged(_counted(ann), schedule), ann, _about(ann))
        return SpikingNetwork(plain(ann), ann, _about(ann))


def _about(ann: LayerGraph) -> About:
    """What is known of a network that was just converted."""
    return About(levels=tuple(sorted({layer.levels for layer in ann if isinstance(layer, ClipFloorShift)})))


def _counted(ann: LayerGraph) -> LayerGraph:
    """The counting network of `ann`, from which staged and grouped ones are made."""
    return counting(lower_concat(fold_batch_norm(ann)))


def _arranged(counted: LayerGraph, schedule: str) -> LayerGraph:
    return stage(counted) if schedule == "staged" else group(counted)


def _given_shape(model: nn.Module, example_input: Any, input_shape: Any) -> Shape:
    """The shape of a batch that `model` takes, as far as that is known."""
    if example_input is not None and input_shape is not None:
        raise InputError("convert: pass example_input or input_shape, not both")
    if example_input is not None:
        return shape_of_example(example_input)
    return (1, *(checked_shape(input_shape) if input_shape is not None else shape_of_model(model)))


@neutral()
def load(path: str | Path, dt: float | None = None) -> SpikingNetwork | ForeignNetwork:
    """The network in the NIR file at `path`.

    One that `SpikingNetwork.save` or `nir.write` wrote comes back as a `SpikingNetwork`, whose ANN is not known.
    Another tool's comes as a `bridge.foreign.ForeignNetwork`: its neurons are others, and `dt` is the time step to run
    them with, which may be left out where the file leaves no doubt about it (docs/foreign_graphs.md).

    Raises:
        GraphError: the file is missing or damaged, or a node in it, which the message names, is unknown or ambiguous.
        InputError: `dt` is given for a network of this package, which counts time in steps.
    """
    try:
        return _network_of(files.read(path), path, dt)
    except BridgeError:
        raise
    except Exception as error:  # what no rule has foreseen is still the file's fault
        raise GraphError(f"{path}: damaged, or not a NIR graph ({type(error).__name__}: {error})") from error


def _network_of(graph: nir.NIRGraph, path: str | Path, dt: float | None) -> SpikingNetwork | ForeignNetwork:
    try:
        layers = ours.from_nir(graph)
    except ours.RuleError as refused:
        raise GraphError(f"{path}: {refused}") from refused
    except GraphError as refused:
        try:
            return ForeignNetwork(graph, dt)
        except GraphError as error:
            foreign = any(isinstance(node, third_party.FOREIGN) for node in graph.nodes.values())
            raise GraphError(f"{path}: {error if foreign else refused}") from error
    if not layers.spiking:
        raise GraphError(f"{path}: no neuron in it, so nothing spikes")
    if dt not in (None, 1):
        raise InputError(f"dt: {path} is a network of this package, which counts time in steps: leave dt out")
    try:
        about = About.of(graph.metadata, layers.input.shape[0], integer=layers.integer)
    except GraphError as error:
        raise GraphError(f"{path}: {error}") from error
    return SpikingNetwork(layers, about=about)
