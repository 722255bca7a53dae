"""What torch's exporters write is read as what torch itself gives: networks, the authors' activations, old opsets."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from support import networks
from support.onnx_models import EXPORTER_WARNINGS, EXPORTERS, assert_same, evaluated, export, kinds, runtime
from torch import nn

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


POOLS = {
    "adaptive": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    "mean": MeanOverSpace,
    "mean_kept": lambda: MeanOverSpace(True),
    "view": lambda: nn.Sequential(nn.AvgPool2d(4), View()),
}


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize(
    ("name", "batch"),
    [*((name, None) for name in networks.ALL), *((name, at) for name in ("cnn", "dense") for at in (1, 2))],
)
def test_torch_to_onnx_and_back_is_what_torch_gives(name, exporter, batch, tmp_path):
    if (name, exporter) == ("dense", "legacy"):
        pytest.skip("torch's older exporter has no ChannelShuffle")
    model, shape = networks.ALL[name]()
    got = capture(export(model, shape, tmp_path / "m.onnx", exporter, batch))
    expected = capture_torch(model, torch.zeros(2, *shape))
    # the exporters fold batch norms behind convolutions themselves
    assert_same(fold_batch_norm(got), fold_batch_norm(expected))
    spiking = [[layer.name for layer in graph if isinstance(layer, ClipFloorShift)] for graph in (got, expected)]
    assert spiking[0] == spiking[1]


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        *((lambda pool=pool: Residual(pool()), (2, 8, 8)) for pool in POOLS.values()),
        (Branches, (2, 8, 6)),
        (Signal1d, (2, 15)),
    ],
    ids=[*(f"residual-{pool}" for pool in POOLS), "branches", "signal"],
)
def test_joins_pools_and_signals(make, shape, exporter, tmp_path):
    model = networks.make_dyadic(make()).eval()
    path = export(model, shape, tmp_path / "m.onnx", exporter)
    graph = capture(path)
    x = networks.dyadic_images(5, shape)
    with torch.no_grad():
        expected = model(x).numpy()
    assert np.abs(expected).max() > 0
    np.testing.assert_array_equal(evaluated(graph, x), expected)
    write(graph, tmp_path / "again.onnx")
    np.testing.assert_array_equal(runtime(tmp_path / "again.onnx", x), expected)
    assert_same(capture(tmp_path / "again.onnx"), graph, names=True)


def test_names_are_those_of_torch_modules(tmp_path):
    for exporter in EXPORTERS:
        graph = capture(export(networks.make_dyadic(Branches()), (2, 8, 6), tmp_path / f"{exporter}.onnx", exporter))
        spiking = [layer.name for layer in graph if isinstance(layer, ClipFloorShift)]
        assert spiking == ["act", "wide_1", "thin_1", "pool_2"]
        assert {"stem", "wide_0", "thin_0", "fc"} <= {layer.name for layer in graph}
        assert all(layer.name.isidentifier() for layer in graph)


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("kind", [Official, Older])
def test_the_authors_layers(kind, exporter, tmp_path):
    given = [(levels, threshold) for levels in (1, 4, 6, 7, 10, 32) for threshold in (1.0, 8.0, 3.7, 0.013)]
    model = nn.Sequential(*(part for each in given for part in (nn.Linear(3, 3), kind(*each))), nn.Linear(3, 3))
    graph = capture(export(model, (3,), tmp_path / "m.onnx", exporter))
    assert kinds(graph) == [Input, *[Linear, ClipFloorShift] * len(given), Linear]
    found = [layer for layer in graph if isinstance(layer, ClipFloorShift)]
    assert [layer.levels for layer in found] == [levels for levels, _ in given]
    assert [layer.threshold.tolist() for layer in found] == [[float(np.float32(each))] * 3 for _, each in given]


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("channels", [0, 3])
def test_lambda_comes_back_to_the_last_bit(channels, exporter, tmp_path):
    generator = torch.Generator().manual_seed(1)
    given = [(levels, torch.rand(channels or (), generator=generator) * 3 + 0.01) for levels in (1, 3, 4, 7, 10)]
    model = nn.Sequential(*(part for each in given for part in (nn.Conv2d(3, 3, 1), QCFS(*each))))
    graph = capture(export(model, (3, 2, 2), tmp_path / "m.onnx", exporter))
    found = [layer for layer in graph if isinstance(layer, ClipFloorShift)]
    for layer, (levels, threshold) in zip(found, given, strict=True):
        assert layer.levels == levels
        np.testing.assert_array_equal(layer.threshold, threshold.expand(3).double().numpy())


def test_without_the_exporters_own_constant_folding(tmp_path):
    model, shape = networks.cnn()
    expected = capture_torch(model, torch.zeros(2, *shape))
    path = export(
        model, shape, tmp_path / "a.onnx", "legacy", do_constant_folding=False, keep_initializers_as_inputs=True
    )
    assert_same(fold_batch_norm(capture(path)), fold_batch_norm(expected))
    path = export(model, shape, tmp_path / "b.onnx", "dynamo", optimize=False)
    assert_same(fold_batch_norm(capture(path)), fold_batch_norm(expected))


@pytest.mark.parametrize("opset", [9, 11, 13, 17])
def test_older_opsets(opset, tmp_path):
    model = networks.make_dyadic(Residual(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())))
    path = export(model, (2, 8, 8), tmp_path / "m.onnx", "legacy", opset_version=opset)
    x = networks.dyadic_images(3, (2, 8, 8))
    with torch.no_grad():
        np.testing.assert_array_equal(evaluated(capture(path), x), model(x).numpy())


def test_external_data_beside_the_model_is_read(tmp_path):
    model, shape = networks.mlp()
    path = export(model, shape, tmp_path / "m.onnx", "dynamo")
    loaded = onnx.load(path)
    onnx.save(loaded, tmp_path / "outside.onnx", save_as_external_data=True, size_threshold=0, location="weights.bin")
    assert (tmp_path / "weights.bin").stat().st_size > 0
    assert_same(capture(tmp_path / "outside.onnx"), capture(path), names=True)
