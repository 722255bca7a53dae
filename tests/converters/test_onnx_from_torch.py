"""What torch's exporters write is read as what torch itself gives: networks, the authors' activations, old opsets."""

from __future__ import annotations

from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from support import networks
from support.onnx_models import EXPORTER_WARNINGS, EXPORTERS, assert_same, evaluated, export, kinds, runtime
from support.packages import needs
from support.same_nir import same_nir_up_to_names
from torch import nn

import bridge
from bridge import QCFS
from bridge.converters.onnx_files.capture import capture
from bridge.converters.onnx_files.writer import write
from bridge.converters.torch_models.model import capture as capture_torch
from bridge.graph import ClipFloorShift, Input, Linear
from bridge.passes.fold_batch_norm import fold_batch_norm

pytestmark = EXPORTER_WARNINGS


class Residual(nn.Module):
    """A block with an identity and one with a projection, batch norm, and a mean over space."""

    def __init__(self, pool):
        super().__init__()
        self.conv1, self.act1 = nn.Conv2d(2, 4, 3, padding=1), networks.qcfs(4, 4)
        self.conv2, self.bn2, self.act2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), networks.qcfs(4, 4)
        self.conv3, self.project, self.act3 = nn.Conv2d(4, 6, 3, 2, 1), nn.Conv2d(4, 6, 1, 2), networks.qcfs(8)
        self.pool, self.fc = pool, nn.Linear(6, 3)

    def forward(self, x):
        x = self.act1(self.conv1(x))
        x = self.act2(self.bn2(self.conv2(x)) + x)
        x = self.act3(self.conv3(x) + self.project(x))
        return self.fc(self.pool(x))


class Branches(nn.Module):
    """Concatenation, depthwise and dilated convolutions, a shuffle written out, slices, batch norm after the join."""

    def __init__(self):
        super().__init__()
        self.stem, self.act = nn.Conv2d(2, 4, 3, padding=1), networks.qcfs(4)
        self.wide = nn.Sequential(nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4), networks.qcfs(4, 4))
        self.thin = nn.Sequential(nn.Conv2d(2, 2, 1), networks.qcfs(8, 2), nn.Identity(), nn.Dropout())
        self.pool = nn.Sequential(nn.AvgPool2d(2, 2, 1), nn.BatchNorm2d(10), networks.qcfs(4, 10))
        self.fc = nn.Linear(10 * 5 * 4, 3)

    def forward(self, x):
        x = self.act(self.stem(x))
        left, right = x.chunk(2, 1)
        x = torch.cat((self.wide(x), self.thin(right), x[:, 3:], x[:, 1:3], left[:, :1]), 1)
        batch, channels, height, width = x.shape
        x = x.view(batch, 5, channels // 5, height, width).transpose(1, 2).contiguous()
        x = self.pool(x.view(batch, -1, height, width))
        return self.fc(x.view(x.size(0), -1))


class Signal1d(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv1d(2, 4, 3, stride=2, padding=1),
            networks.qcfs(4, 4),
            nn.Conv1d(4, 4, 3, dilation=2, groups=2),
            networks.qcfs(),
            nn.AvgPool1d(2),
            nn.Flatten(),
            nn.Linear(8, 3),
        )


class Floor(torch.autograd.Function):
    """A floor with its own gradient, as the official repositories have it."""

    @staticmethod
    def forward(ctx, x):
        return x.floor()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Official(nn.Module):
    """Written after the description of ANN_SNN_QCFS: divide, clamp, round with a shift of one half, multiply."""

    def __init__(self, levels=4, threshold=8.0):
        super().__init__()
        self.thresh, self.L = nn.Parameter(torch.tensor([threshold])), levels

    def forward(self, x):
        x = torch.clamp(x / self.thresh, 0, 1)
        return Floor.apply(x * self.L + 0.5) / self.L * self.thresh


class Older(nn.Module):
    """Written after the description of SNN_conversion_QCFS, with the straight-through difference."""

    def __init__(self, levels=8, threshold=2.0):
        super().__init__()
        self.up, self.t = nn.Parameter(torch.tensor([threshold])), levels

    def forward(self, x):
        x = torch.clip(x / self.up, 0, 1)
        level = x * self.t + 0.5
        return ((level.floor() - level).detach() + level) / self.t * self.up


class MeanOverSpace(nn.Module):
    def __init__(self, keepdim=False):
        super().__init__()
        self.keepdim = keepdim

    def forward(self, x):
        x = x.mean((2, 3), keepdim=self.keepdim)
        return x.flatten(1) if self.keepdim else x


class View(nn.Module):
    """Flattening as people write it, with sizes taken from the tensor."""

    def forward(self, x):
        return x.view(x.size(0), x.size(1) * x.size(2) * x.size(3))


def pooled(pool: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 6, 3, 2, 1), networks.qcfs(4, 6), pool, nn.Linear(6, 3))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (lambda: Residual(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())), (2, 8, 8)),
    "mean": (lambda: pooled(MeanOverSpace()), (2, 8, 8)),
    "mean, kept": (lambda: pooled(MeanOverSpace(True)), (2, 8, 8)),
    "view": (lambda: pooled(nn.Sequential(nn.AvgPool2d(4), View())), (2, 8, 8)),
    "branches": (Branches, (2, 8, 6)),
    "signal": (Signal1d, (2, 15)),
}
NAMES = {
    "branches": (["act", "wide_1", "thin_1", "pool_2"], {"stem", "wide_0", "thin_0", "fc"}),
    "signal": (["layer_1", "layer_3"], set()),
}
"""Of the activations, all of them, and of some other layers."""


def exported(model: nn.Module, shape: tuple[int, ...], path: Path, exporter: str, *batch: Any, **options: Any) -> Path:
    """`export`, where the exporter has what it needs."""
    if exporter == "dynamo":
        needs("onnxscript", "test-backends")
    return export(model, shape, path, exporter, *batch, **options)


def of_each_exporter(*cases: Any, long: Container[Any] = ()) -> list[Any]:
    """The `cases` with each exporter; "dynamo", which takes seconds, leaves those in `long` to `make test-long`."""
    return [
        pytest.param(*case, exporter, marks=[pytest.mark.long] if exporter == "dynamo" and case in long else [])
        for case in cases
        for exporter in EXPORTERS
    ]


@pytest.mark.parametrize(
    ("name", "batch", "exporter"),
    of_each_exporter(
        *((name, None) for name in networks.ALL),
        *((name, at) for name in ("cnn", "dense") for at in (1, 2)),
        long=[("cnn", 1), ("cnn", 2), ("dense", 2)],
    ),
)
def test_what_torch_exports_is_read_as_what_torch_has(name, batch, exporter, tmp_path):
    """The same layers of the ANN, and then the same NIR graph and the same spikes."""
    if (name, exporter) == ("dense", "legacy"):
        pytest.skip("torch's older exporter has no ChannelShuffle")
    model, shape = networks.ALL[name]()
    path = exported(model, shape, tmp_path / "m.onnx", exporter, batch)
    got = capture(path)
    expected = capture_torch(model, (2, *shape))
    # the exporters fold batch norms behind convolutions themselves
    assert_same(fold_batch_norm(got), fold_batch_norm(expected))
    spiking = [[layer.name for layer in graph if isinstance(layer, ClipFloorShift)] for graph in (got, expected)]
    assert spiking[0] == spiking[1]
    x = networks.dyadic_images(2, shape)
    network, direct = bridge.convert(path), bridge.convert(model, x)
    same_nir_up_to_names(network.to_nir(), direct.to_nir())
    np.testing.assert_array_equal(network.run(x, 4).readout, direct.run(x, 4).readout)


@pytest.mark.parametrize(("name", "exporter"), of_each_exporter(*((name,) for name in MODELS), long=[("residual",)]))
def test_joins_pools_and_signals(name, exporter, tmp_path):
    make, shape = MODELS[name]
    model = networks.make_dyadic(make()).eval()
    path = exported(model, shape, tmp_path / "m.onnx", exporter)
    graph = capture(path)
    assert all(layer.name.isidentifier() for layer in graph)
    if name in NAMES:  # those of torch's modules
        activations, others = NAMES[name]
        assert [layer.name for layer in graph if isinstance(layer, ClipFloorShift)] == activations
        assert others <= {layer.name for layer in graph}
    x = networks.dyadic_images(5, shape)
    with torch.no_grad():
        expected = model(x).numpy()
    assert np.abs(expected).max() > 0
    np.testing.assert_array_equal(evaluated(graph, x), expected)
    write(graph, tmp_path / "again.onnx")
    np.testing.assert_array_equal(runtime(tmp_path / "again.onnx", x), expected)
    assert_same(capture(tmp_path / "again.onnx"), graph, names=True)


THRESHOLDS = (1.0, 8.0, 3.7, 0.013)
EVERY = [(levels, threshold) for levels in (1, 4, 6, 7, 10, 32) for threshold in THRESHOLDS]
SOME = [*zip((1, 6, 7, 10), THRESHOLDS, strict=True), *zip((4, 7, 32, 1), THRESHOLDS, strict=True)]


@pytest.mark.parametrize(
    ("given", "exporter"),
    [
        pytest.param(EVERY, "legacy", id="legacy"),
        pytest.param(SOME, "dynamo", id="dynamo, some"),
        pytest.param(EVERY, "dynamo", id="dynamo", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("kind", [Official, Older])
def test_the_authors_layers(kind, given, exporter, tmp_path):
    model = nn.Sequential(*(part for each in given for part in (nn.Linear(3, 3), kind(*each))), nn.Linear(3, 3))
    graph = capture(exported(model, (3,), tmp_path / "m.onnx", exporter))
    assert kinds(graph) == [Input, *[Linear, ClipFloorShift] * len(given), Linear]
    found = [layer for layer in graph if isinstance(layer, ClipFloorShift)]
    assert [layer.levels for layer in found] == [levels for levels, _ in given]
    assert [layer.threshold.tolist() for layer in found] == [[float(np.float32(each))] * 3 for _, each in given]


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_lambda_comes_back_to_the_last_bit(exporter, tmp_path):
    """One λ for all channels, and one for each."""
    generator = torch.Generator().manual_seed(1)
    shapes: list[tuple[int, ...]] = [(), (3,)]
    given = [
        (levels, torch.rand(shape, generator=generator) * 3 + 0.01) for levels in (1, 3, 4, 7, 10) for shape in shapes
    ]
    if exporter == "dynamo":  # takes seconds for each
        given = given[::3]
    model = nn.Sequential(*(part for each in given for part in (nn.Conv2d(3, 3, 1), QCFS(*each))))
    graph = capture(exported(model, (3, 2, 2), tmp_path / "m.onnx", exporter))
    found = [layer for layer in graph if isinstance(layer, ClipFloorShift)]
    for layer, (levels, threshold) in zip(found, given, strict=True):
        assert layer.levels == levels
        np.testing.assert_array_equal(layer.threshold, threshold.expand(3).double().numpy())


def test_without_the_exporters_own_constant_folding(tmp_path):
    model, shape = networks.cnn()
    expected = capture_torch(model, (2, *shape))
    path = exported(
        model, shape, tmp_path / "a.onnx", "legacy", do_constant_folding=False, keep_initializers_as_inputs=True
    )
    assert_same(fold_batch_norm(capture(path)), fold_batch_norm(expected))
    path = exported(model, shape, tmp_path / "b.onnx", "dynamo", optimize=False)
    assert_same(fold_batch_norm(capture(path)), fold_batch_norm(expected))


@pytest.mark.parametrize("opset", [9, 11, 13, 17])
def test_older_opsets(opset, tmp_path):
    model = networks.make_dyadic(Residual(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())))
    path = exported(model, (2, 8, 8), tmp_path / "m.onnx", "legacy", opset_version=opset)
    x = networks.dyadic_images(3, (2, 8, 8))
    with torch.no_grad():
        np.testing.assert_array_equal(evaluated(capture(path), x), model(x).numpy())


def test_external_data_beside_the_model_is_read(tmp_path):
    model, shape = networks.mlp()
    path = exported(model, shape, tmp_path / "m.onnx", "legacy")
    loaded = onnx.load(path)
    onnx.save(loaded, tmp_path / "outside.onnx", save_as_external_data=True, size_threshold=0, location="weights.bin")
    assert (tmp_path / "weights.bin").stat().st_size > 0
    assert_same(capture(tmp_path / "outside.onnx"), capture(path), names=True)
