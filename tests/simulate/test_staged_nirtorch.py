"""The file of a staged network, run by NIRTorch: it needs to be told what NIR's primitives are, and no more."""

from __future__ import annotations

from typing import Any

import nir
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import networks
from torch import Tensor, nn

import bridge
from bridge.nir_graph import read

nirtorch = pytest.importorskip("nirtorch")


class Sum(nn.Module):
    """``I``: the sum of what came, times r."""

    r: Tensor

    def __init__(self, r: Tensor) -> None:
        super().__init__()
        self.register_buffer("r", r)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Tensor]:
        total = x * self.r if state is None else state + x * self.r
        return total, total


class Call(nn.Module):
    """A function of a tensor and of parameters that do not change."""

    def __init__(self, function: Any, *parameters: Any) -> None:
        super().__init__()
        self.function = function
        self.parameters_ = [torch.from_numpy(np.array(each, np.float32)) for each in parameters]

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.function(x, *self.parameters_)
        return result


def pair(value: Any) -> tuple[int, int]:
    first, second = (int(each) for each in np.broadcast_to(value, 2))
    return first, second


def pooled(node: Any, divisor: int | None = None) -> Call:
    sizes = pair(node.kernel_size), pair(node.stride), pair(node.padding)
    return Call(lambda x: F.avg_pool2d(x, *sizes, divisor_override=divisor))


def conv2d(node: Any) -> Call:
    sizes: Any = pair(node.stride), pair(node.padding), pair(node.dilation), int(node.groups)
    return Call(lambda x, weight, bias: F.conv2d(x, weight, bias, *sizes), node.weight, node.bias)


NODES = {
    nir.I: lambda node: Sum(torch.from_numpy(np.array(node.r, np.float32))),
    nir.Threshold: lambda node: Call(lambda x, level: (x > level).to(x.dtype), node.threshold),
    nir.Scale: lambda node: Call(torch.mul, node.scale),
    nir.Affine: lambda node: Call(F.linear, node.weight, node.bias),
    nir.Linear: lambda node: Call(F.linear, node.weight),
    nir.Conv2d: conv2d,
    nir.SumPool2d: lambda node: pooled(node, 1),
    nir.AvgPool2d: pooled,
    nir.Flatten: lambda node: Call(lambda x: x.flatten(1)),
}


def with_pools() -> tuple[nn.Module, tuple[int, ...]]:
    model = nn.Sequential(
        *(nn.Conv2d(2, 4, 3), networks.qcfs(4, 4), nn.MaxPool2d(3, 2, 1)),
        *(networks.Residual(nn.Sequential(nn.Conv2d(4, 4, 1), networks.qcfs(2), nn.Conv2d(4, 4, 1)), nn.Sequential()),),
        *(networks.qcfs(4), nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.Conv2d(4, 3, 1), networks.qcfs(4)),
        *(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(3, 4)),
    )
    return networks.make_dyadic(model, 2), (2, 10, 10)


NETWORKS = {
    "with maximum pools": with_pools,
    **{name: networks.ALL[name] for name in ("mlp", "cnn", "awkward", "ends_in_spikes", "residual", "dense")},
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_every_train_is_the_references(name, tmp_path):
    model, shape = NETWORKS[name]()
    x = networks.dyadic_images(3, shape)
    network = bridge.convert(model.eval(), x, schedule="staged")
    network.save(tmp_path / "net.nir")
    record = network.run(x)
    module = nirtorch.nir_to_torch(read(tmp_path / "net.nir"), NODES)
    seen: dict[str, list[Any]] = {layer: [] for layer in network.layers}
    for layer, trains in seen.items():
        getattr(module, layer).register_forward_hook(lambda _m, _i, out, trains=trains: trains.append(out.numpy() == 1))
    state, readout = None, []
    with torch.no_grad():
        for _ in range(record.steps):
            out, state = module(x, state)
            readout.append(out.numpy())
    for layer, trains in seen.items():
        np.testing.assert_array_equal(np.stack(trains), record.spikes(layer))
    np.testing.assert_allclose(np.stack(readout), record.readout, atol=1e-6)
