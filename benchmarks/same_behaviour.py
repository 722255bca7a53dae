"""Whether two checkouts do the same: for whoever changes the inside and wants to show that nothing changes outside.

    PYTHONPATH=old python benchmarks/same_behaviour.py measure before.json    # some minutes
    PYTHONPATH=new python benchmarks/same_behaviour.py measure after.json     # same machine, same packages
    python benchmarks/same_behaviour.py compare before.json after.json    # exit status 1, and a list, if they differ

Some twenty networks, in floating point and in whole numbers: what is written (NIR, ONNX, records, reports), every spike
and readout of the reference, the engine and each backend that is usable, what the commands print, and what is said
about bad input. Only public names are used, so that one script measures any checkout. Text is kept as it is, all else
as its SHA-256; floats count to the last bit, which they keep from run to run on one machine.

One file, though long: it takes nothing else from this checkout, so that it can measure any other.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import functools
import hashlib
import json
import os
import platform
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nir
import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from typer.testing import CliRunner

import bridge
from bridge import QCFS, SpikeRecord, SpikingNetwork, registry
from bridge.zoo.pretrained import pretrained

Facts = dict[str, str]
Task = tuple[str, Callable[[], Facts]]
"""What is measured, and how."""

IMAGES, CALIBRATION = 6, 48
QUICK = ("onnxruntime", "snntorch", "spikingjelly")
"""Backends that are held against the reference; all others are only run."""
SLOW = ("lava", "lava-fixed", "nengo", "spyx")
"""Backends that take long: they get two images, fewer networks, and one run of all but the smallest of these."""


# Networks


class Joined(nn.Module):
    """What its branches make of the same input, added up or side by side."""

    def __init__(self, *branches: nn.Module, concat: bool = False) -> None:
        super().__init__()
        self.branches, self.concat = nn.ModuleList(branches), concat

    def forward(self, x: Tensor) -> Tensor:
        values = [branch(x) for branch in self.branches]
        return torch.cat(values, dim=1) if self.concat else functools.reduce(torch.add, values)


class Shuffled(nn.Module):
    """Half of the channels pass a convolution, the others do not; then all are shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = block(channels // 2, channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        x = torch.cat([left, self.body(right)], dim=1)
        images, channels, height, width = x.size()
        x = x.view(images, 2, channels // 2, height, width).transpose(1, 2).contiguous()
        return x.view(images, channels, height, width)


class Functions(nn.Module):
    """A network with ReLU and maximum pooling, called as functions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.readout = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3, padding=1), nn.Linear(54, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        return self.readout(torch.flatten(F.relu(self.conv2(x)), 1))


class Theirs(nn.Module):
    """QCFS as its authors' code has it."""

    def __init__(self, threshold: float, levels: int) -> None:
        super().__init__()
        self.thresh, self.L, self.T = nn.Parameter(torch.tensor([threshold])), levels, 0

    def forward(self, x: Tensor) -> Tensor:
        return torch.floor(torch.clamp(x / self.thresh, 0, 1) * self.L + 0.5) / self.L * self.thresh


def block(before: int, after: int, levels: int = 4, kernel: int = 3, **options: Any) -> nn.Sequential:
    """Convolution, batch norm, QCFS; the size stays, unless the options say otherwise."""
    conv = nn.Conv2d(before, after, kernel, bias=False, **{"padding": kernel // 2, **options})
    return nn.Sequential(conv, nn.BatchNorm2d(after), QCFS(levels, 1.0))


def mlp() -> nn.Module:
    return nn.Sequential(
        *(nn.Linear(12, 20), nn.BatchNorm1d(20), QCFS(4), nn.Dropout(), nn.Linear(20, 16, bias=False), QCFS(8)),
        nn.Linear(16, 4),
    )


def cnn() -> nn.Module:
    return nn.Sequential(block(1, 6), block(6, 8, stride=2), nn.Flatten(), nn.Linear(8 * 4 * 4, 10))


def residual() -> nn.Module:
    def body(before: int, after: int, stride: int = 1) -> nn.Sequential:
        conv = nn.Conv2d(after, after, 3, padding=1, bias=False)
        return nn.Sequential(block(before, after, stride=stride), conv, nn.BatchNorm2d(after))

    skip = nn.Sequential(nn.Conv2d(6, 8, 1, 2, bias=False), nn.BatchNorm2d(8))
    return nn.Sequential(
        *(block(3, 6), Joined(body(6, 6), nn.Identity()), QCFS(4), Joined(body(6, 8, 2), skip), QCFS(4)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    )


def dense() -> nn.Module:
    grow = nn.Sequential(nn.BatchNorm2d(4), QCFS(4), nn.Conv2d(4, 4, 3, padding=1, bias=False))
    wide = Joined(block(8, 2, kernel=1), block(8, 4), concat=True)
    return nn.Sequential(
        *(block(1, 4), Joined(nn.Identity(), grow, concat=True), nn.BatchNorm2d(8), QCFS(4), wide),
        *(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(6 * 4 * 4, 5)),
    )


def depthwise() -> nn.Module:
    separable = nn.Sequential(block(6, 6, groups=6), block(6, 10, kernel=1))
    return nn.Sequential(block(3, 6, stride=2), separable, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 4))


def strided() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(2, 6, (3, 2), padding="same", dilation=(1, 2)), QCFS(4)),
        *(nn.Conv2d(6, 8, 3, stride=(2, 1), padding=(0, 2), dilation=(2, 1), groups=2), QCFS(8)),
        *(nn.Conv2d(8, 4, (2, 3), padding="valid"), QCFS(4), nn.Flatten(), nn.Linear(4 * 2 * 7, 3)),
    )


def signal() -> nn.Module:
    skipped = Joined(nn.Conv1d(4, 4, 3, padding=2, dilation=2, groups=2), nn.Identity())
    return nn.Sequential(
        *(nn.Conv1d(2, 4, 5, stride=2, padding=2), nn.BatchNorm1d(4), QCFS(4), skipped, QCFS(4)),
        *(nn.AvgPool1d(2), nn.Flatten(), nn.Linear(16, 3)),
    )


def pooling() -> nn.Module:
    return nn.Sequential(
        *(block(1, 4), nn.AvgPool2d(3, stride=2, padding=1), block(4, 6), nn.AvgPool2d((2, 1), stride=(1, 2))),
        *(block(6, 6), nn.AdaptiveAvgPool2d((3, 1)), nn.Flatten(), nn.Linear(18, 3)),
    )


def shuffle() -> nn.Module:
    return nn.Sequential(
        block(1, 8), Shuffled(8), nn.ChannelShuffle(4), block(8, 6), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(24, 3)
    )


def thresholds() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 3), QCFS(4, torch.linspace(0.2, 0.7, 6)), nn.AvgPool2d(2)),
        *(nn.Conv2d(6, 8, 1), QCFS(8, torch.linspace(0.1, 0.3, 8)), nn.Flatten()),
        *(nn.Linear(8 * 3 * 3, 10), QCFS(4, torch.linspace(0.05, 0.4, 10)), nn.Linear(10, 3)),
    )


def levels() -> nn.Module:
    return nn.Sequential(
        *(block(1, 6, levels=2), Joined(block(6, 6, levels=16), block(6, 6, levels=3)), block(6, 4, levels=1)),
        *(nn.Flatten(), nn.Linear(4 * 8 * 8, 8), QCFS(8, 1.0), nn.Linear(8, 3)),
    )


def replaced() -> nn.Module:
    return bridge.replace_activations(Functions().eval(), levels=8, per_channel=True, max_pool="avg")


def spikes_out() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 16), QCFS(4), nn.Linear(16, 5), QCFS(4))


def theirs() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), Theirs(0.5, 8), nn.Flatten(), nn.Linear(144, 8), Theirs(0.3, 4))


WHOLE = {"8-bit": (8, "per_channel")}
BOTH = {**WHOLE, "8-bit, per layer": (8, "per_layer")}
"""Weight bits and scheme of what a network is quantized to."""


@dataclass(frozen=True)
class Kind:
    """A network to measure: what makes it, its images' shape, T, how it is quantized.

    ``fitted``: its λ are fitted to the images. ``normalised``: the images are not 0…1 but about zero.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    steps: int
    whole: Mapping[str, tuple[int, str]]
    fitted: bool = True
    normalised: bool = False


KINDS = {
    "mlp": Kind(mlp, (12,), 8, BOTH, normalised=True),
    "cnn": Kind(cnn, (1, 8, 8), 8, {**BOTH, "4-bit": (4, "per_layer"), "12-bit": (12, "per_channel")}),
    "residual": Kind(residual, (3, 8, 8), 4, BOTH, normalised=True),
    "dense": Kind(dense, (1, 8, 8), 4, WHOLE),
    "depthwise": Kind(depthwise, (3, 8, 8), 4, WHOLE),
    "strided": Kind(strided, (2, 9, 7), 4, WHOLE, normalised=True),
    "signal": Kind(signal, (2, 16), 4, WHOLE),
    "pooling": Kind(pooling, (1, 8, 8), 4, WHOLE),
    "shuffle": Kind(shuffle, (1, 8, 8), 4, WHOLE),
    "thresholds": Kind(thresholds, (1, 8, 8), 4, WHOLE, fitted=False),
    "levels": Kind(levels, (1, 8, 8), 8, WHOLE),
    "replaced": Kind(replaced, (1, 8, 8), 4, WHOLE),
    "spikes out": Kind(spikes_out, (12,), 4, WHOLE),
    "theirs": Kind(theirs, (1, 8, 8), 4, WHOLE, fitted=False),
    "digits": Kind(lambda: pretrained("digits"), (1, 8, 8), 8, BOTH, fitted=False),
    "mnist": Kind(lambda: pretrained("mnist"), (1, 28, 28), 4, WHOLE, fitted=False),
    "resnet20-cifar10": Kind(
        lambda: pretrained("resnet20-cifar10"), (3, 32, 32), 4, WHOLE, fitted=False, normalised=True
    ),
}
LARGE = {"resnet18": bridge.zoo.resnet18, "resnet34": bridge.zoo.resnet34, "vgg16": bridge.zoo.vgg16}
"""Networks of the zoo, as they are before training, of which the reference runs one image and a backend none."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A network and images for it: pixels, if it is in whole numbers. ``twin``: its layers are those of another one."""

    network: SpikingNetwork
    x: Tensor
    steps: int
    twin: bool

    @property
    def integer(self) -> bool:
        return self.network.grid is not None


def images(count: int, shape: tuple[int, ...], normalised: bool = False) -> Tensor:
    """Random images of 8 bits, `shape` each: 0…1, or about zero."""
    pixels = torch.randint(0, 256, (count, *shape), generator=torch.Generator().manual_seed(count)) / 255
    return (pixels - 0.5) / 0.25 if normalised else pixels


def model(kind: Kind, x: Tensor) -> nn.Module:
    """The network, with random weights unless it is a trained one; λ fitted to `x`."""
    torch.manual_seed(0)
    made = kind.make()
    for module in made.modules():
        if kind.fitted and isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for values, (low, high) in (
                *((module.running_mean, (-0.2, 0.2)), (module.running_var, (0.3, 1.5))),
                *((module.weight, (0.5, 1.5)), (module.bias, (-0.3, 0.3))),
            ):
                nn.init.uniform_(values, low, high)
    return bridge.fit_thresholds(made.eval(), x) if kind.fitted else made.eval()


def prepared() -> dict[str, Subject]:
    """All networks in all forms, by name."""
    found: dict[str, Subject] = {}

    def add(name: str, network: SpikingNetwork, whole: Mapping[str, tuple[int, str]], twin: bool = True) -> None:
        found[name] = Subject(network, x[:IMAGES], kind.steps, twin)
        for form, (bits, scheme) in whole.items():
            quantized = network.quantize(bits, x, scheme)
            found[f"{name}, {form}"] = Subject(quantized, quantized.pixels(x[:IMAGES]), kind.steps, twin)

    for name, kind in shown(KINDS.items(), "making networks", len(KINDS)):
        x = images(CALIBRATION, kind.shape, kind.normalised)
        network = bridge.convert(model(kind, x), x[:2])
        add(name, network, kind.whole, twin=False)
        if name in ("cnn", "residual"):
            network.ann_to_onnx("model.onnx")
            add(f"{name} from ONNX", bridge.convert("model.onnx"), WHOLE)
        if name == "residual":
            network.save("network.nir")
            add(f"{name} from NIR", loaded("network.nir"), WHOLE)
        if name == "cnn":
            add(f"{name} calibrated", network.calibrate(x, 2), WHOLE)
            add(f"{name} calibrated, bias and gain", network.calibrate(x, 4, kinds=["bias", "gain"]), {})
    return found


def loaded(path: str) -> SpikingNetwork:
    network = bridge.load(path)
    assert isinstance(network, SpikingNetwork)
    return network


# Facts


def digest(*values: Any) -> str:
    """SHA-256 of arrays (type, shape, content), bytes, text, numbers, and mappings and sequences of them."""
    found = hashlib.sha256()

    def take(value: Any) -> None:
        if isinstance(value, Tensor):
            value = value.detach().numpy()
        if isinstance(value, bytes):
            found.update(value)
        elif isinstance(value, np.ndarray):
            found.update(f"{value.dtype.str} {value.shape}:".encode())
            found.update(np.ascontiguousarray(value).tobytes())
        elif isinstance(value, Mapping):
            take(list(value.items()))
        elif isinstance(value, list | tuple):
            found.update(f"{len(value)} of".encode())
            for item in value:
                take(item)
        else:
            found.update(f"{value!r};".encode())

    take(values)
    return found.hexdigest()


def of_file(path: str | Path) -> str:
    """SHA-256 of its bytes: neither HDF5 nor ONNX nor ``.npz`` files hold a time or a path here."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def of_graph(graph: nir.NIRGraph) -> Facts:
    """Each node with its arrays, and the edges."""
    nodes = {f"node {name}": digest(type(node).__name__, vars(node)) for name, node in graph.nodes.items()}
    return {"nodes": digest([*graph.nodes]), "edges": digest(graph.edges), **nodes}


def of_record(record: SpikeRecord) -> Facts:
    return {
        "shapes": digest([(name, tuple(record.shapes[name])) for name in record.layers], record.backend),
        "readout": digest(record.readout),
        **{f"spikes of {name}": digest(bits) for name, bits in record.packed.items()},
        **{f"membranes of {name}": digest(values) for name, values in record.membranes.items()},
    }


def without_environment(path: str | Path) -> dict[str, Any]:
    """What an agreement.json says, but for when and where it was made, and by which command."""
    saved = json.loads(Path(path).read_text(encoding="utf-8"))
    del saved["environment"]
    return saved


def of_agreement(agreement: bridge.Agreement) -> Facts:
    """Of what is saved, by key; and whether it can be read back."""
    agreement.save("agreement.json")
    saved = without_environment("agreement.json")
    bridge.Agreement.load("agreement.json").save("again.json")
    assert without_environment("again.json") == saved
    backends = {f"backend {name}": digest(found) for name, found in saved.pop("backends").items()}
    return {**{key: digest(value) for key, value in saved.items()}, **backends}


def told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".replace(f"{Path.cwd()}{os.sep}", "")


def outcome(work: Callable[[], Any]) -> Facts:
    """What `work` returns, warns of or raises."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = {"result": digest(work())}
        except (bridge.BridgeError, AssertionError, TypeError, ValueError) as error:
            found = {"error": told(error)}
    lossy = [one.message for one in caught if isinstance(one.message, bridge.LossyWarning)]
    return found | {f"warning {number}": told(warning) for number, warning in enumerate(lossy)}


# What is measured of a network


def of_network(name: str, subject: Subject) -> Iterator[Task]:
    """All but what other backends than the quick ones make of it."""
    network, x, steps = subject.network, subject.x, subject.steps

    def nir_file() -> Facts:
        network.save("written.nir")
        again = of_graph(loaded("written.nir").to_nir())
        graph = of_graph(network.to_nir())
        differing = [key for key in graph if again.get(key) != graph[key]]
        return {"file": of_file("written.nir"), "changed by reading": f"{differing}", "text": repr(network), **graph}

    def ann() -> Facts:
        network.ann_to_onnx("ann.onnx")
        return {"file": of_file("ann.onnx")}

    def onnx() -> Facts:
        exported = registry.usable("onnxruntime").export(network.to_nir())
        exported.save("network.onnx")
        exported.save("step.onnx", one_step=True)
        return {
            "file": of_file("network.onnx"),
            "one step": of_file("step.onnx"),
            "output": digest(exported(x.numpy(), 3)),
        }

    def reference() -> Facts:
        record = network.run(x, steps)
        record.save("record.npz")
        with np.load("record.npz") as arrays:
            found = {key: arrays[key] for key in arrays}
        return of_record(record) | {
            "file": of_file("record.npz"),
            "arrays": digest(found),
            "read again": digest(of_record(SpikeRecord.load("record.npz"))),
            "outputs": digest(record.outputs(), [record.rates(layer) for layer in record.layers]),
        }

    def simulate() -> Facts:
        found = network.simulate(x, steps, record=True)
        assert found.record is not None
        parts = {"outputs": digest(found.outputs), "counts": digest(dict(found.spikes)), "steps": digest(found.steps)}
        return of_record(found.record) | parts

    def until_stable() -> Facts:
        found = network.simulate(x, 4 * steps, until="stable", patience=2, memory=2**20)
        return {"outputs": digest(found.outputs), "counts": digest(dict(found.spikes)), "steps": digest(found.steps)}

    def agreement() -> Facts:
        backends = [*QUICK, "lava-twin"] if subject.integer else [*QUICK]
        labels = [image % 3 for image in range(len(x))]
        return of_agreement(network.validate(x, steps, backends, labels=labels, images={"snntorch": 3}))

    def loihi() -> Facts:
        bridge.loihi.report(network, network.run(x, steps)).save("loihi.json")
        bridge.loihi.report(network).save("idle.json")
        return {"measured": of_file("loihi.json"), "without a record": of_file("idle.json")}

    parts = [nir_file, ann, onnx, reference, simulate, until_stable, agreement, loihi]
    return ((f"{name}/{part.__name__}", part) for part in parts)


def of_backends(names: Iterable[str], subjects: Mapping[str, Subject]) -> Iterator[Task]:
    """Each of these backends on each network."""
    for backend in names:
        yield f"{backend}/available", functools.partial(available, backend)
        for name, subject in subjects.items():
            if taken(backend, name, subject):
                yield f"{name}/{backend}", functools.partial(of_backend, backend, subject)


def taken(backend: str, name: str, subject: Subject) -> bool:
    """Whether the backend runs this network; slow ones leave out what another network shows as well."""
    if backend == "lava" and (name.startswith("resnet20") or (subject.integer and not name.startswith(("mlp", "cnn")))):
        return False  # to its floating point, whole numbers are as any others
    return backend not in SLOW or not subject.twin


def available(name: str) -> Facts:
    found = registry.get(name).available()
    return {"usable": f"{found.usable}", "versions": f"{dict(found.versions)}", "install": found.install}


def of_backend(name: str, subject: Subject) -> Facts:
    backend = registry.usable(name)
    x = subject.x.numpy()[: 2 if name in SLOW else None]
    native = backend.export(subject.network.to_nir())
    if name in SLOW and x.ndim > 2:
        return of_record(backend.run(native, x, subject.steps, membranes=True))
    found = of_record(backend.run(native, x, subject.steps))
    again = of_record(backend.run(native, x[:1], 2, membranes=True))
    return found | {f"with membranes: {key}": value for key, value in again.items()}


# What is measured once


class Faulty:
    """snnTorch, with all biases off."""

    name = "faulty"

    def __init__(self) -> None:
        self.own = registry.usable("snntorch")

    def available(self) -> Any:
        return self.own.available()

    def export(self, graph: nir.NIRGraph) -> Any:
        native = self.own.export(graph)
        with torch.no_grad():
            for name, values in native.named_parameters():
                if name.endswith("bias"):
                    values[0] += 0.5
        return native

    def run(self, native: Any, x: Any, steps: int, *, membranes: bool = False) -> SpikeRecord:
        return self.own.run(native, x, steps, membranes=membranes)


def others(subjects: Mapping[str, Subject]) -> Iterator[Task]:
    """The rest of what the package does."""
    mlp_, cnn_, whole = (subjects[name] for name in ("mlp", "cnn", "cnn, 8-bit"))

    def large(make: Callable[[], nn.Module]) -> Facts:
        torch.manual_seed(0)
        x = images(1, (3, 32, 32), normalised=True)
        network = bridge.convert(make().eval(), x)
        return of_graph(network.to_nir()) | of_record(network.run(x, 2)) | {"text": repr(network)}

    def fitted() -> Facts:
        x = images(CALIBRATION, (1, 8, 8))
        found = {}
        for method in ("mse", "percentile", "max"):
            torch.manual_seed(0)
            state = bridge.fit_thresholds(replaced(), x, levels=4, method=method, ceiling=6.0).state_dict()
            found[method] = digest({name: value for name, value in state.items() if name.endswith("threshold")})
        return found

    def checkpoint() -> Facts:
        state = {
            name.replace("threshold", "thresh"): value
            for name, value in model(KINDS["cnn"], cnn_.x).state_dict().items()
        }
        torch.save({"state_dict": state}, "weights.pt")
        return {"weights": digest(dict(bridge.load_checkpoint(cnn(), "weights.pt").state_dict()))}

    def time_biased() -> Facts:
        found = cnn_.network.time_biased(images(CALIBRATION, (1, 8, 8)), 3)
        return {"biases": digest(dict(found.biases)), "outputs": digest(found.simulate(cnn_.x))}

    def foreign() -> Facts:
        rng = np.random.default_rng(0)
        graph = nir.NIRGraph.from_list(
            nir.Affine(rng.standard_normal((5, 3)), rng.standard_normal(5)),
            nir.LIF(tau=np.full(5, 4e-4), r=np.full(5, 4.0), v_leak=np.zeros(5), v_threshold=np.ones(5)),
            nir.Linear(rng.standard_normal((4, 5))),
            nir.CubaLIF(
                *(np.full(4, value) for value in (3e-4, 5e-4, 6.0, 0.0, 0.7)), w_in=np.full(4, 2.0), v_reset=np.zeros(4)
            ),
        )
        nir.write("theirs.nir", graph)
        network = bridge.load("theirs.nir")
        return of_record(network.run(rng.random((3, 3)) * 4, 20)) | {"text": repr(network)}

    def hard_reset() -> Facts:
        return outcome(lambda: of_graph(cnn_.network.to_nir("if", measured_on=cnn_.x)))

    def reduced() -> Facts:
        found = bridge.reduce(cnn_.network, cnn_.x, 4, Faulty(), out="case")
        files = {name: of_file(Path("case") / name) for name in ("network.nir", "images.npy")}  # the script has imports
        return files | {"first": f"{found.first}", "steps": f"{found.steps}", "text": repr(found.network)}

    def disagreed() -> Facts:
        agreement = cnn_.network.validate(cnn_.x, 4, [Faulty(), "snntorch"])
        return of_agreement(agreement) | outcome(lambda: bridge.assert_agreement(agreement))

    def elsewhere() -> Facts:
        with variables(QCFS_BRIDGE_PYTHON_SNNTORCH=sys.executable):
            return of_backend("snntorch", mlp_)

    def uint8() -> Facts:
        return of_record(whole.network.run(whole.x.numpy().astype(np.uint8), 4))

    for name, make in LARGE.items():
        yield f"large/{name}", functools.partial(large, make)
    for part in (fitted, checkpoint, time_biased, foreign, hard_reset, reduced, disagreed, elsewhere, uint8):
        yield f"others/{part.__name__}", part


@contextlib.contextmanager
def variables(**values: str) -> Iterator[None]:
    """Environment variables for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def errors(subjects: Mapping[str, Subject]) -> Iterator[Task]:
    """Bad input, and what is said about it."""
    network, whole, bare = (subjects[name].network for name in ("cnn", "cnn, 8-bit", "residual from NIR"))
    x, pixels = subjects["cnn"].x, subjects["cnn, 8-bit"].x
    refused = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.GELU(), nn.ConvTranspose2d(4, 4, 2), nn.Sigmoid()),
        *(nn.LayerNorm([4, 4, 4]), QCFS(4), nn.Softmax(dim=1), nn.Flatten(), nn.Linear(64, 3)),
    )
    convert, load, validate = bridge.convert, bridge.load, functools.partial(network.validate, x, 2)
    Path("damaged.txt").write_text("not a network\n", encoding="utf-8")
    for name in ("damaged.nir", "damaged.onnx", "damaged.npz", "damaged.json", "damaged.pt"):
        Path(name).write_bytes(b"not what its name says")
    cases: dict[str, Callable[[], Any]] = {
        "convert what has no exact form": lambda: convert(refused.eval(), torch.rand(1, 1, 8, 8)),
        "convert without QCFS": lambda: convert(nn.Linear(3, 2), torch.rand(1, 3)),
        "convert without example": lambda: convert(cnn()),
        "convert with a wrong example": lambda: convert(cnn(), torch.rand(1, 3, 8, 8)),
        "convert with whole numbers": lambda: convert(cnn(), torch.ones(1, 1, 8, 8, dtype=torch.int64)),
        "convert text": lambda: convert("damaged.txt"),
        "convert a number": lambda: convert(3),  # type: ignore[arg-type]
        "convert no file": lambda: convert("missing.onnx"),
        "convert a damaged file": lambda: convert("damaged.onnx"),
        "load no file": lambda: load("missing.nir"),
        "load a damaged file": lambda: load("damaged.nir"),
        "load with dt": lambda: load("network.nir", dt=0.5),
        "a record of no file": lambda: SpikeRecord.load("missing.npz"),
        "a damaged record": lambda: SpikeRecord.load("damaged.npz"),
        "a damaged agreement": lambda: bridge.Agreement.load("damaged.json"),
        "a damaged checkpoint": lambda: bridge.load_checkpoint(cnn(), "damaged.pt"),
        "another network's checkpoint": lambda: bridge.load_checkpoint(mlp(), "weights.pt"),
        "images of another shape": lambda: network.run(torch.rand(2, 1, 7, 8), 4),
        "no images": lambda: network.run(torch.rand(0, 1, 8, 8), 4),
        "a list of images": lambda: network.run([1.0], 4),  # type: ignore[arg-type]
        "complex images": lambda: network.run(np.ones((1, 1, 8, 8), complex), 4),
        "NaN": lambda: network.run(torch.full((1, 1, 8, 8), torch.nan), 4),
        "no steps": lambda: network.run(x, 0),
        "half a step": lambda: network.simulate(x, 0.5),  # type: ignore[arg-type]
        "until never": lambda: network.simulate(x, 2, until="never"),
        "a record until stable": lambda: network.simulate(x, 2, until="stable", record=True),
        "no pixels": lambda: SpikingNetwork(whole.graph).run(x, 4),
        "pixels beyond 255": lambda: whole.simulate(pixels.int() + 200, 4),
        "pixels of floats": lambda: network.pixels(x),
        "3 bits": lambda: network.quantize(3, x),
        "no such scheme": lambda: network.quantize(8, x, "per_image"),
        "no calibration": lambda: network.quantize(8),
        "quantize twice": lambda: whole.quantize(8, x),
        "wrong normalisation": lambda: network.quantize(8, x, normalisation=([0.5, 0.5], [1.0, 1.0])),
        "calibrate whole numbers": lambda: whole.calibrate(x, 2),
        "calibrate without ANN": lambda: bare.calibrate(images(4, (3, 8, 8)), 2),
        "calibrate nothing": lambda: network.calibrate(x, 2, kinds=["all"]),
        "calibrate with few images": lambda: network.calibrate(x[:2], 2),
        "bias steps of whole numbers": lambda: whole.time_biased(x, 2),
        "no ANN to write": lambda: bare.ann_to_onnx("ann.onnx"),
        "no folder to write to": lambda: network.save("damaged.txt/network.nir"),
        "no such neuron": lambda: network.to_nir("lif"),
        "a neuron that loses": lambda: of_graph(network.to_nir("if")),
        "nothing lost to measure": lambda: network.to_nir(measured_on=x),
        "no such backend": lambda: validate(["brian"]),
        "no such backend to get": lambda: registry.get("brian"),
        "a backend twice": lambda: validate(["snntorch", "snntorch"]),
        "labels that do not fit": lambda: validate(["snntorch"], labels=[1, 2]),
        "a limit for no backend": lambda: validate(["snntorch"], images={"norse": 1}),
        "nothing to reduce": lambda: bridge.reduce(network, x, 2, "snntorch"),
        "Loihi in floats": lambda: bridge.loihi.report(network),
        "Loihi, another network's record": lambda: bridge.loihi.report(
            whole, subjects["mlp"].network.run(images(1, (12,)), 2)
        ),
        "no levels": lambda: QCFS(0),
        "a negative threshold": lambda: QCFS(4, -1.0),
        "nothing to replace": lambda: bridge.replace_activations(cnn(), levels=4),
        "no such pooling": lambda: bridge.replace_activations(Functions(), levels=4, max_pool="min"),  # type: ignore[arg-type]
        "nothing to fit": lambda: bridge.fit_thresholds(nn.Linear(3, 2), torch.rand(2, 3)),
        "no such method": lambda: bridge.fit_thresholds(cnn(), x, method="median"),  # type: ignore[arg-type]
        "no such trained network": lambda: pretrained("imagenet"),
        "VGG of odd images": lambda: bridge.zoo.vgg16(image_size=30),
        "an activation that is none": lambda: bridge.register_activation(3, QCFS),  # type: ignore[arg-type]
    }
    for name, work in cases.items():
        yield f"error/{name}", functools.partial(outcome, work)


def command(line: str, *written: str) -> Facts:
    """What `line`, the command without its name, prints and writes."""
    (entry,) = entry_points(group="console_scripts", name="qcfs-bridge")
    result = CliRunner().invoke(entry.load(), line.split(), env={"COLUMNS": "120", "NO_COLOR": "1"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    facts = {"status": f"{result.exit_code}", "output": result.stdout, "messages": result.stderr}
    return facts | {name: of_file(name) for name in written}


def commands(subjects: Mapping[str, Subject]) -> Iterator[Task]:
    """What the commands print and write."""
    np.save("images.npy", subjects["cnn"].x.numpy())
    np.save("pixels.npy", subjects["cnn, 8-bit"].x.numpy())
    subjects["cnn"].network.save("float.nir")
    subjects["cnn"].network.ann_to_onnx("float.onnx")
    subjects["cnn, 8-bit"].network.save("whole.nir")

    def validated() -> Facts:
        facts = command("validate float.nir images.npy --steps 4 --backend snntorch --backend float.npz --out results")
        saved = without_environment("results/agreement.json")
        Path("bare.json").write_text(json.dumps({**saved, "environment": {}}), encoding="utf-8")
        return facts | {"agreement": digest(saved)}

    helps = ("convert", "demo", "doctor", "inspect", "run", "train", "validate", "compare", "report")
    lines: list[tuple[str, ...]] = [
        ("--help",),
        *((f"{name} --help",) for name in helps),
        ("inspect float.nir",),
        ("inspect whole.nir --json",),
        ("convert float.onnx converted.nir", "converted.nir"),
        ("convert float.onnx small.nir --images images.npy --weight-bits 6 --scheme per_layer", "small.nir"),
        ("run float.nir images.npy float.npz --steps 4", "float.npz"),
        ("run whole.nir pixels.npy whole.npz --steps 4 --backend snntorch", "whole.npz"),
        ("run whole.nir pixels.npy lava.npz --steps 2 --backend lava-fixed", "lava.npz"),
        ("run float.nir images.npy twin.npz --steps 4 --backend lava-twin",),
        ("run whole.nir images.npy none.npz",),
        ("compare float.npz float.npz",),
        ("compare float.npz whole.npz",),
        ("compare float.npz whole.npz --json",),
        ("inspect missing.nir",),
        ("inspect damaged.txt",),
        ("validate float.nir images.npy --backend brian",),
        ("validate float.nir images.npy --limit lava=some",),
        ("train resnet20 imagenet out",),
    ]
    for line, *written in lines:
        yield f"command/{line}", functools.partial(command, line, *written)
    yield "command/validate", validated
    yield "command/report", functools.partial(command, "report bare.json report.html", "report.html")


# The two commands of this script


def shown(items: Iterable[Any], what: str, count: int) -> Iterable[Any]:
    return track(items, description=what, total=count, console=Console(stderr=True))


def measure(out: Path) -> None:
    """Measure the package that Python finds, and write the facts as JSON."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # frameworks warn of much
    print(f"measuring {Path(bridge.__file__).parent}", file=sys.stderr)
    found = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    with TemporaryDirectory() as folder, contextlib.chdir(folder):  # so that no message names a folder
        subjects = prepared()
        lava, jax = ([name for name in registry.names() if name.startswith(one)] for one in ("lava", "spyx"))
        rest = [name for name in registry.names() if name not in (*lava, *jax)]
        tasks = [
            *of_backends(lava, subjects),  # it forks, which is quick before the rest is loaded
            *of_backends(rest, subjects),
            *(task for name, subject in subjects.items() for task in of_network(name, subject)),
            *others(subjects),
            *errors(subjects),
            *commands(subjects),
            *of_backends(jax, subjects),  # nothing should fork after it
            ("command/doctor", functools.partial(command, "doctor")),
        ]
        for name, work in shown(tasks, "measuring", len(tasks)):
            try:
                facts = work()
            except Exception as error:  # a refusal is a fact too
                facts = {"error": told(error)}
                if not isinstance(error, bridge.BridgeError):
                    print(f"{name}: not a refusal, but a failure:", file=sys.stderr)
                    traceback.print_exc()
            found |= {f"{name}/{key}": value for key, value in facts.items()}
    out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(found)} facts: wrote {out}", file=sys.stderr)


def compare(one: Path, other: Path) -> int:
    """Print what differs between two files of facts; the exit status."""
    before, after = (json.loads(path.read_text(encoding="utf-8")) for path in (one, other))
    differing = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    for name in differing:
        print(f"{name}:")
        texts = [facts.get(name, "(not there)") for facts in (before, after)]
        if all(re.fullmatch("[0-9a-f]{64}", text) for text in texts):
            texts = [text[:12] for text in texts]
        lines = difflib.unified_diff(*(text.split("\n") for text in texts), n=0, lineterm="")
        print("\n".join(f"    {line}" for line in [*lines][3:]))
    print(f"{len(differing)} of {len({**before, **after})} facts differ")
    return 1 if differing else 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    chosen = parser.add_subparsers(dest="command", required=True)
    measuring = chosen.add_parser("measure", help="write the facts of this checkout")
    measuring.add_argument("out", type=Path)
    comparing = chosen.add_parser("compare", help="exit status 1 if two files of facts differ")
    comparing.add_argument("one", type=Path)
    comparing.add_argument("other", type=Path)
    given = parser.parse_args(arguments)
    if given.command == "compare":
        return compare(given.one, given.other)
    measure(given.out.resolve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
