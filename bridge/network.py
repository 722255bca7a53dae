"""What `bridge.convert` returns: a spiking network that can be run, written as NIR, and held against its ANN."""

from __future__ import annotations

import os
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nir
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bridge._util.files import replacing
from bridge._util.progress import progress
from bridge.agreement import Agreement
from bridge.backends import registry
from bridge.backends.recorded import Recorded
from bridge.converters.nir_graphs import ours as nir_graph
from bridge.converters.nir_graphs.third_party import FOREIGN
from bridge.converters.torch_models.model import capture
from bridge.errors import BackendError, ConversionError, GraphError, InputError, LossyWarning
from bridge.foreign import ForeignNetwork
from bridge.graph import LayerGraph
from bridge.graph.pixel_grid import PixelGrid, fitted, normalised
from bridge.graph.ranges import LARGEST_PIXEL
from bridge.passes.calibration.gradient import output_error, refine
from bridge.passes.calibration.layerwise import KINDS, calibrate
from bridge.passes.calibration.time_bias import TimeBiased, time_biased
from bridge.passes.fold_batch_norm import fold_batch_norm
from bridge.passes.fold_thresholds import fold_thresholds
from bridge.passes.lower_concat import lower_concat
from bridge.passes.quantization.on_pixels import ann_on_pixels, on_pixels
from bridge.passes.quantization.quantize import quantize
from bridge.passes.to_float32 import to_float32
from bridge.records import SpikeRecord, differing
from bridge.simulate.ann import activations
from bridge.simulate.engine.engine import MEMORY, Engine
from bridge.simulate.engine.simulation import Simulation
from bridge.simulate.ops import tensor
from bridge.simulate.reference import simulate
from bridge.validation.compare import REFERENCE, Batch, Contestant, Findings, Runner, compare
from bridge.validation.compare import validate as hold_against

if TYPE_CHECKING:  # the protocol's type alone: at run time bridge knows no exporter but by its entry point
    from bridge.backends.protocol import Backend

LOADED_IN = os.getpid()
POTENTIALS = 2**29
"""Bytes that the potentials of one batch may take when they are held against each other, roughly."""
CALIBRATIONS = (*KINDS, "weight")
"""What `SpikingNetwork.calibrate` can change."""
EMPHASES = (0.0, 0.3, 1.0)
"""Weights of a channel's mean error that `SpikingNetwork.calibrate` tries."""
RATE_STEPS = 16
"""T that `SpikingNetwork.quantize` takes firing rates over."""
MEASURED_STEPS = 8
"""T of what `SpikingNetwork.to_nir` measures."""
BATCH = 64
"""Images simulated together. Float results can depend on it in the last bit, so every backend gets the same batches."""


class SpikingNetwork:
    """Integrate-and-fire layers with unit threshold, soft reset and v(0) = 1/2, and the affine layers between them.

    ``graph`` is the spiking network, ``ann`` the network it came from (None when read from a file, which holds spikes
    only). Both are immutable and share nothing with the model that was converted. `quantize` returns the same in whole
    numbers, with thresholds of their own; ``grid`` says which pixels stand for the ANN's input there. docs/tutorial.md
    has an example of every method.
    """

    def __init__(self, graph: LayerGraph, ann: LayerGraph | None = None, grid: PixelGrid | None = None) -> None:
        self.graph = graph
        self.ann = ann
        self.grid = grid
        self._engines: dict[str, Engine] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_engines": {}}  # made anew where they are needed

    def __repr__(self) -> str:
        shapes = self.graph.shapes
        kind = "whole numbers, " if self.graph.integer else ""
        return (
            f"SpikingNetwork({kind}{list(shapes[self.graph.input.name])} -> {list(shapes[self.graph.output.name])}, "
            f"{len(self.graph.spiking)} spiking layers, {self.graph.neurons} neurons)"
        )

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the spiking layers, in order; the keys of every `bridge.SpikeRecord` of this network."""
        return self.graph.spiking

    def to_nir(self, neuron: str = "exact", *, measured_on: Tensor | NDArray[Any] | None = None) -> nir.NIRGraph:
        """The network as a NIR graph: all that a backend needs. `bridge.nir_graph` says how the neuron is written.

        Args:
            neuron: "exact", or "if" for tools whose importer knows no neuron but ``nir.IF``. Its hard reset makes
                another network of it, of which a `bridge.errors.LossyWarning` warns.
            measured_on: with "if", images as for `run`. The warning then tells how much is lost on them at T = 8.

        Raises:
            InputError: an argument is not as above.
        """
        if neuron not in ("exact", "if"):
            raise InputError(f'neuron: expected "exact" or "if", got {neuron!r}')
        graph = nir_graph.to_nir(self.graph, neuron)
        if neuron == "if":
            warnings.warn(self._lost(graph, measured_on), LossyWarning, stacklevel=2)
        elif measured_on is not None:
            raise InputError('measured_on: only neuron="if" loses anything that could be measured')
        return graph

    def _lost(self, graph: nir.NIRGraph, x: Tensor | NDArray[Any] | None) -> str:
        """What `graph`, its neurons written as ``nir.IF``, loses; on images `x` also how much, as NIR defines it."""
        message = (
            "nir.IF starts at 0 and resets to 0, where this network's neurons start part full and keep what exceeds "
            "their threshold: its spikes differ, and no number of time steps makes up for it"
        )
        if x is None:
            return f'{message}. How much, to_nir(neuron="if", measured_on=images) measures'
        exact = self.run(x, MEASURED_STEPS)
        lossy = ForeignNetwork(graph, 1.0).run(self._images(x), MEASURED_STEPS)
        wrong = sum(int(counts.sum()) for counts in differing(exact, lossy).values())
        spikes = exact.images * MEASURED_STEPS * self.graph.neurons
        top1 = [record.outputs()[-1].reshape(record.images, -1).argmax(axis=-1) for record in (exact, lossy)]
        return (
            f"{message}. On these {exact.images} images at T = {MEASURED_STEPS}, {wrong / spikes:.1%} of all spikes "
            f"are wrong, and {float((top1[0] == top1[1]).mean()):.1%} of the images keep their largest output"
        )

    def save(
        self, path: str | Path, neuron: str = "exact", *, measured_on: Tensor | NDArray[Any] | None = None
    ) -> None:
        """Write `to_nir`, whose arguments these are, to a ``.nir`` file, whole or not at all, for `bridge.load`."""
        graph = self.to_nir(neuron, measured_on=measured_on)
        with replacing(path) as temporary:
            nir.write(temporary, graph)

    def ann_to_onnx(self, path: str | Path) -> None:
        """Write the ANN that was converted as an ONNX file of standard operators, whole or not at all.

        Raises:
            ConversionError: the network was read from a NIR file, which holds no ANN.
            BridgeError: onnx is not installed.
        """
        from bridge.converters.onnx_files import writer  # onnx is an optional extra

        if self.ann is None:
            raise ConversionError("ann_to_onnx: this network was read from a NIR file, which holds spikes only, no ANN")
        writer.write(self.ann, path)

    def calibrate(
        self, data: Tensor | NDArray[Any], steps: int, *, kinds: Sequence[str] = CALIBRATIONS
    ) -> SpikingNetwork:
        """The network fitted to run `steps` time steps: nearer to its ANN there, with the same plain neurons.

        Each channel of neurons gets a bias, a gain and an initial potential of its own, and then all weights move a
        little: constants all, the same for every image and step, so the result is exported and quantized like any other
        (docs/calibration.md). Fit one network for each number of steps that you mean to run. What is found depends on
        nothing but these arguments.

        Args:
            data: images ``[B, *input]`` as the ANN takes them, without labels: a few thousand, if there are,
                not the test data. Three quarters are fitted to, the rest chooses between fits, of which this network as
                it is is one. Few are soon learnt by heart: small networks gain from a few hundred, a ResNet-20 from a
                thousand on (docs/calibration.md).
            steps: T.
            kinds: which of "bias", "gain", "potential" and "weight" may change.

        Raises:
            InputError: an argument is not as above, or the network is in whole numbers: calibrate first.
            ConversionError: the network was read from a file, which holds no ANN.
        """
        ann = self._to_be_fitted("calibrate")
        unknown = sorted({kinds} if isinstance(kinds, str) else set(kinds) - set(CALIBRATIONS))
        if unknown or not kinds:
            raise InputError(f"kinds: expected some of {list(CALIBRATIONS)}, got {kinds!r}")
        x, steps = self._images(data, "data"), _whole(steps, "steps")
        if len(x) < 4:
            raise InputError(f"data: expected at least 4 images, some hundred are better, got {len(x)}")
        wanted = torch.cat([activations(ann, part)[2].clone() for part in x.split(BATCH)])
        apart = torch.arange(len(x)) % 4 == 0
        unseen, wanted_of_unseen = x[apart], wanted[apart]
        x, wanted = x[~apart], wanted[~apart]

        @cache
        def error(network: SpikingNetwork) -> float:
            outputs = torch.from_numpy(network.simulate(unseen, steps).outputs)
            return float(output_error(outputs[-1], wanted_of_unseen))

        fits = [calibrate(self.graph, ann, x, steps, kinds, emphasis) for emphasis in EMPHASES]
        best = min([self, *(SpikingNetwork(to_float32(graph), ann) for graph in fits)], key=error)
        refined = refine(best.graph, x, wanted, steps, kinds)
        return min([best, SpikingNetwork(to_float32(refined), ann)], key=error)

    def time_biased(self, data: Tensor | NDArray[Any], steps: int) -> TimeBiased:
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
        ann = self._to_be_fitted("time_biased")
        return time_biased(self.graph, ann, self._images(data, "data"), _whole(steps, "steps"))

    def _to_be_fitted(self, what: str) -> LayerGraph:
        """The ANN that `what` fits this network to."""
        if self.graph.integer:
            raise InputError(f"{what}: this network is in whole numbers; give the one it was made from, then quantize")
        if self.ann is None:
            raise ConversionError(f"{what}: this network was read from a NIR file, which holds spikes only, no ANN")
        return self.ann

    def quantize(
        self,
        weight_bits: int = 8,
        calibration: Tensor | NDArray[Any] | None = None,
        scheme: str = "per_channel",
        *,
        normalisation: tuple[Sequence[float], Sequence[float]] | None = None,
        steps: int = RATE_STEPS,
    ) -> SpikingNetwork:
        """The network in whole numbers, as Loihi computes it: all backends run it bit for bit alike.

        Weights have `weight_bits` bits; biases, thresholds and the images' pixels 0…255 are whole; windows are summed
        and not averaged. All sums stay below 2^24, so float32, int32 and Loihi's registers hold them exactly. Give its
        `run` and `validate` pixels, which `pixels` makes of the ANN's input. The readout is in units of its own.

        Args:
            weight_bits: 4 to 16. Up to 8, every bound of Loihi's registers is met; more are for exactness alone.
            calibration: images as the ANN takes them, float ``[B, *input]``; a few hundred do. Scales and biases are
                fitted to the firing rates on them.
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
        if isinstance(weight_bits, bool) or not isinstance(weight_bits, int | np.integer) or not 4 <= weight_bits <= 16:
            raise InputError(f"weight_bits: expected a whole number from 4 to 16, got {weight_bits!r}")
        if scheme not in ("per_channel", "per_layer"):
            raise InputError(f'scheme: expected "per_channel" or "per_layer", got {scheme!r}')
        if calibration is None:
            raise InputError("quantize: needs calibration images, as the ANN takes them: quantize(8, calibration=x)")
        x, steps = self._images(calibration, "calibration"), _whole(steps, "steps")
        grid = fitted(x) if normalisation is None else normalised(*normalisation, x.shape[1])
        batches = [grid.encode(x[at : at + BATCH]) for at in range(0, len(x), BATCH)]
        graph = quantize(
            on_pixels(self.graph, grid),
            progress(batches, "calibrating"),
            int(weight_bits),
            per_channel=scheme == "per_channel",
            steps=steps,
        )
        return SpikingNetwork(to_float32(graph), ann_on_pixels(self.ann, grid) if self.ann else None, grid)

    def pixels(self, x: Tensor | NDArray[Any]) -> Tensor:
        """The pixels of `x` ``[B, *input]``, images as the ANN takes them: whole numbers 0…255, float32.

        Values beyond the pixels' range become 0 or 255. Raises `InputError` if the network was not made by `quantize`.
        """
        if self.grid is None:
            raise InputError(
                "pixels: only a network that quantize returned knows how pixels and the ANN's input relate"
            )
        return self.grid.encode(self._images(x, as_pixels=False))

    def run(self, x: Tensor | NDArray[Any], steps: int) -> SpikeRecord:
        """Run the reference simulator (float32) on images `x` ``[B, *input]`` for `steps` time steps.

        Raises:
            InputError: `x` is empty, of another shape than the network's input, or not finite; `steps` is below 1.
        """
        x, steps = self._images(x), _whole(steps, "steps")
        return SpikeRecord.concatenate(
            [simulate(self.graph, x[at : at + BATCH], steps) for at in range(0, len(x), BATCH)]
        )

    def simulate(
        self,
        x: Tensor | NDArray[Any],
        steps: int,
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

        Args:
            x: as for `run`, whatever the number of images: they are taken some at a time.
            steps: T, at least 1.
            record: keep every spike, as a `bridge.SpikeRecord`; T · N / 8 bytes an image.
            until: None, or "stable": an image ends once its largest output has been the same for `patience` steps. Its
                output stays what it was then; ``Simulation.steps`` tells when. Fewer steps on average, at some cost in
                accuracy, which `Simulation.accuracy` measures.
            patience: see `until`.
            memory: bytes to keep to, roughly, beside the images and the result; at least one image's are taken.
            device: where to run, such as "cuda"; elsewhere than on the processor all arithmetic is float32.

        Raises:
            InputError: as in `run`; or an argument is not as above; or a potential of a network in whole numbers passes
                2^24, beyond which the arithmetic is not exact.
        """
        x, steps = self._images(x), _whole(steps, "steps")
        if until not in (None, "stable"):
            raise InputError(f'until: expected None or "stable", got {until!r}')
        if until and record:
            raise InputError("record: an image that ends early has no further spikes to keep; leave out `until`")
        memory, patience = _whole(memory, "memory"), _whole(patience, "patience")
        where = str(device)
        if where not in self._engines:
            self._engines[where] = Engine(self.graph, where)
        engine = self._engines[where]
        return engine.run(x, steps, record=record, patience=patience if until else None, memory=memory)

    def validate(
        self,
        x: Tensor | NDArray[Any],
        steps: int,
        backends: Sequence[str | Backend] | None = None,
        *,
        labels: Tensor | NDArray[Any] | Sequence[int] | None = None,
        images: Mapping[str, int] | None = None,
        executor: Executor | None = None,
    ) -> Agreement:
        """Run `x` on the reference and on every backend, and count what differs, per layer and time step.

        Args:
            x: images ``[B, *input]``, float; held constant over time.
            steps: T, at least 1.
            backends: names, such as ``["spikingjelly", "snntorch", "lava"]``, or `exporters.base.Backend` objects.
                Default: all that are usable here and can run this network exactly.
            labels: true classes ``[B]``, for accuracies.
            images: by backend, run only that many of the images, the first ones; for slow backends.
            executor: where to run batches, such as a `concurrent.futures.ProcessPoolExecutor` or dask's
                ``client.get_executor()``. The result is the same to the last bit.

        Returns:
            The `bridge.Agreement`: print it with `bridge.report.table`, write it with ``save``.

        Raises:
            InputError: as in `run`, or labels that do not match the images.
            BackendError: a backend is unknown or not usable (the message says what to install), or it failed.
            ValidationError: a backend's record does not fit the network.
        """
        x, steps = self._images(x), _whole(steps, "steps")
        truth = _labels(labels, len(x))
        limits = {name: _whole(limit, f"images[{name!r}]") for name, limit in (images or {}).items()}
        native = self._exported(backends)
        if not limits.keys() <= native.keys():
            raise InputError(f"images: {sorted(limits.keys() - native.keys())} are not among the backends {[*native]}")
        contest = Contest(self.graph, self.ann, steps, {n: backend for n, (backend, _) in native.items()}, limits)
        contest.own.native = {name: model for name, (_, model) in native.items()}
        size = _batch(self.graph, steps)

        def batches() -> Iterator[Batch]:
            for start in progress(range(0, len(x), size), ", ".join(("reference", *native))):
                part = slice(start, start + size)
                yield Batch(start, x[part], None if truth is None else truth[part])

        versions = {name: backend.available().versions for name, (backend, _) in native.items()}
        return hold_against(self.graph, self.ann, batches(), steps, contest, versions, executor)

    def _exported(self, wanted: Sequence[str | Backend] | None) -> dict[str, tuple[Backend, Any]]:
        """The backends asked for, or all that are usable and take this network, by name, and their native models."""
        graph = self.to_nir()
        if wanted is not None:
            chosen = [registry.usable(one) for one in ([wanted] if isinstance(wanted, str) else wanted)]
            counts = Counter([REFERENCE, *(backend.name for backend in chosen)])
            twice = [name for name, count in counts.items() if count > 1]
            if twice:
                raise InputError(f"backends: {twice} would each name more than one; give it a name of its own")
            return {backend.name: (backend, backend.export(graph)) for backend in chosen}
        result: dict[str, tuple[Backend, Any]] = {}
        reasons = []
        for backend in map(registry.get, registry.names()):
            availability = backend.available()
            if not availability.usable:
                reasons.append(f"{backend.name}: {availability.install}")
                continue
            try:
                result[backend.name] = backend, backend.export(graph)
            except GraphError as error:
                reasons.append(f"{backend.name}: {error}")
        if not result:
            raise BackendError(f"no backend is usable here. To get one: {'; '.join(reasons)}")
        return result

    def _images(self, x: Tensor | NDArray[Any], what: str = "x", *, as_pixels: bool = True) -> Tensor:
        """`x` as a float32 CPU tensor, checked against the network's input: pixels, if that is in whole numbers."""
        if not isinstance(x, Tensor | np.ndarray):
            raise InputError(f"{what}: expected a torch tensor or numpy array of images, got {type(x).__name__}")
        if isinstance(x, np.ndarray):
            if x.dtype.kind not in "biuf":
                raise InputError(f"{what}: expected an array of real numbers, got {x.dtype}")
            x = tensor(x)
        elif x.is_complex():
            raise InputError(f"{what}: expected real numbers, got {x.dtype}")
        x = x.detach().to(device="cpu", dtype=torch.float32).contiguous()
        wanted = self.graph.shapes[self.graph.input.name]
        if tuple(x.shape[1:]) != wanted or len(x) == 0:
            raise InputError(
                f"{what}: expected at least one image, [B, {', '.join(map(str, wanted))}], got {list(x.shape)}"
            )
        values = x.numpy()  # on one image, numpy's checks take a tenth of the time that torch's take
        if not (finite := np.isfinite(values)).all():
            raise InputError(f"{what}: holds {np.count_nonzero(~finite)} values that are NaN or infinite")
        if self.graph.integer and as_pixels:
            low, high = float(values.min()), float(values.max())
            if not (low >= 0 and high <= LARGEST_PIXEL and (values == np.rint(values)).all()):
                raise InputError(
                    f"{what}: this network is in whole numbers and takes pixels, whole from 0 to {LARGEST_PIXEL}; got "
                    f"values from {low:.6g} to {high:.6g}. network.pixels(x) makes pixels of the ANN's input"
                )
        return x


def convert(model: nn.Module | str | os.PathLike[str], example_input: Tensor | None = None) -> SpikingNetwork:
    """Convert a QCFS-trained `model` to the spiking network that computes the same, spike by spike.

    The model is taken as it stands at inference, whatever mode it is in, and is not changed.

    Args:
        model: a torch module, or the path of an ``.onnx`` file. docs/conversion.md lists what it may consist of.
        example_input: for a torch module, float images ``[B, ...]`` of the shape it takes. Each layer is run on them
            and checked.

    Raises:
        ConversionError: something in the model has no exact spiking form; the message lists every such layer.
        GraphError: an ONNX file is missing or damaged.
        InputError: there is no `example_input`, or the model does not accept it.
    """
    if isinstance(model, nn.Module):
        if example_input is None:
            raise InputError("convert: a torch module needs an example_input, float images [B, ...] that it takes")
        ann = capture(model, example_input)
    elif isinstance(model, str | os.PathLike) and str(model).lower().endswith(".onnx"):
        from bridge.converters.onnx_files import reader  # onnx is an optional extra

        ann = reader.capture(Path(model))
    else:
        came = repr(model) if isinstance(model, str | os.PathLike) else type(model).__name__
        raise ConversionError(f"convert: expected a torch.nn.Module or the path of an .onnx file, got {came}")
    ann = to_float32(ann)  # before folding, so that an ANN written by ann_to_onnx converts to the same network
    return SpikingNetwork(to_float32(fold_thresholds(lower_concat(fold_batch_norm(ann)))), ann)


def load(path: str | Path, dt: float | None = None) -> SpikingNetwork | ForeignNetwork:
    """The network in the NIR file at `path`.

    One that `SpikingNetwork.save` or `nir.write` wrote comes back as a `SpikingNetwork`, whose ANN is not known.
    Another tool's comes as a `bridge.foreign.ForeignNetwork`: its neurons are others, and `dt` is the time step to run
    them with, which may be left out where the file leaves no doubt about it (docs/foreign_graphs.md).

    Raises:
        GraphError: the file is missing or damaged, or a node in it, which the message names, is unknown or ambiguous.
        InputError: `dt` is given for a network of this package, which counts time in steps.
    """
    graph = nir_graph.read(path)
    try:
        layers = nir_graph.from_nir(graph)
    except GraphError as refused:
        try:
            return ForeignNetwork(graph, dt)
        except GraphError as error:
            foreign = any(isinstance(node, FOREIGN) for node in graph.nodes.values())
            raise GraphError(f"{path}: {error if foreign else refused}") from error
    if not layers.spiking:
        raise GraphError(f"{path}: no neuron in it, so nothing spikes")
    if dt not in (None, 1):
        raise InputError(f"dt: {path} is a network of this package, which counts time in steps: leave dt out")
    return SpikingNetwork(layers)


@dataclass(eq=False)
class Contest:
    """Measures batches: what `compare` needs. Other threads and processes export their own models."""

    graph: LayerGraph
    ann: LayerGraph | None
    steps: int
    backends: dict[str, Backend]
    limits: dict[str, int]
    own: threading.local = field(default_factory=threading.local)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "own"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, own=threading.local())
        if os.getpid() != LOADED_IN:
            torch.set_num_threads(1)  # a forked child lacks the threads that torch may have started: it would wait

    def __call__(self, batch: Batch) -> Findings:
        if not hasattr(self.own, "native"):
            graph = nir_graph.to_nir(self.graph)
            self.own.native = {name: backend.export(graph) for name, backend in self.backends.items()}
        contestants = {
            name: Contestant(_runner(backend, self.own.native[name], self.steps), self.limits.get(name))
            for name, backend in self.backends.items()
        }
        return compare(batch, self.graph, self.ann, self.steps, contestants)


def _runner(backend: Backend, native: Any, steps: int) -> Runner:
    def run(x: Tensor, start: int, membranes: bool) -> SpikeRecord | None:
        if isinstance(backend, Recorded):
            return backend.run_from(native, start, len(x), steps, membranes=membranes)
        return backend.run(native, x.numpy(), steps, membranes=membranes)

    return run


def _batch(graph: LayerGraph, steps: int) -> int:
    """Images that are validated together: as many as `BATCH`, fewer where their potentials would take much memory."""
    return max(1, min(BATCH, POTENTIALS // (8 * steps * graph.neurons)))


def _whole(value: int, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InputError(f"{what}: expected a whole number of at least 1, got {value!r}")
    return int(value)


def _labels(labels: Tensor | NDArray[Any] | Sequence[int] | None, count: int) -> NDArray[np.integer] | None:
    if labels is None:
        return None
    values = np.asarray(labels)
    if values.shape != (count,) or not np.issubdtype(values.dtype, np.integer):
        raise InputError(f"labels: expected {count} whole numbers, one an image, got {values.dtype} {values.shape}")
    return values
