"""One network, written in the many ways of people's scripts: each converts, and spikes as its own forward does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import own_forward
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import bridge
from bridge import QCFS, ConversionError
from bridge.simulate.ann import activations

Between = Callable[[Any, Tensor], Tensor]
SHAPE = (3, 4, 8, 8)


class Net(nn.Module):
    """Two convolutions with QCFS, what `between` does with the spikes ``[B, 4, 8, 8]`` of the first, and a readout."""

    def __init__(self, between: Between, features: int = 4, sizes: tuple[int, int] = (4, 4)) -> None:
        super().__init__()
        self.between = between
        self.conv1, self.act1 = nn.Conv2d(4, 4, 3, padding=1), QCFS(4, 1.0)
        self.conv2, self.act2 = nn.Conv2d(sizes[0], sizes[1], 3, padding=1), QCFS(3, torch.rand(sizes[1]) + 0.5)
        self.readout = nn.Linear(features, 3)
        self.gain = nn.Parameter(torch.rand(1, 4, 1, 1))
        self.register_buffer("mean", torch.rand(4, 1, 1))
        self.listed = [self.conv1, self.act1]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.between(self, self.first(x))))

    def first(self, x: Tensor) -> Tensor:
        return self.act1(self.conv1(x))

    def second(self, x: Tensor) -> Tensor:
        return self.act2(self.conv2(x))

    def last(self, x: Tensor) -> Tensor:
        return self.readout(x.mean((2, 3)))


SIGNALS: dict[str, Between] = {
    "a multiple": lambda net, x: x * 0.5,
    "a quotient": lambda net, x: x / 255,
    "a difference from a constant": lambda net, x: 1 - x,
    "normalised": lambda net, x: (x - net.mean) / (net.mean + 0.5),
    "layer scale": lambda net, x: x + net.gain * x,
    "alpha": lambda net, x: torch.add(x, x.flip(1), alpha=0.5),
    "a difference": lambda net, x: x - 0.5 * x[:, [1, 0, 3, 2]],
    "an average of two": lambda net, x: (x + x.roll(1, 1)) / 2,
    "Python's sum": lambda net, x: sum([x * 2, x.flip(1)], start=x),
    "Python's sum from 0": lambda net, x: sum_from_0([x, x * 2, x.flip(1)]),
    "a stack's mean": lambda net, x: torch.stack([x, x.flip(1), -x]).mean(0),
    "lerp": lambda net, x: torch.lerp(x, x.flip(1), 0.25),
    "addcmul": lambda net, x: torch.addcmul(net.mean, x, net.gain, value=2),
    "where": lambda net, x: torch.where(net.mean > 0.5, x, 2 * x),
    "masked": lambda net, x: x.masked_fill(net.mean > 0.5, 0.25),
    "like a constant": lambda net, x: x * net.mean.to(x).expand_as(x),
    "written over": lambda net, x: x + torch.zeros_like(x) + x.clone().zero_(),
    "a mask": lambda net, x: x * (torch.arange(256).view(4, 8, 8) % 3 > 0),
    "a mask and a value": lambda net, x: torch.where(net.mean > 0.5, x, 0.25),
    "constant channels": lambda net, x: torch.cat([x[:, :3], torch.ones_like(x[:, :1])], 1),
    "minus": lambda net, x: -x,
    "no-ops": lambda net, x: x.clone().contiguous().detach().to(x.device).type_as(x).requires_grad_(False),
    "one after the other in place": lambda net, x: x.clone().mul_(2).add_(net.mean).sub_(x),
    "assigned": lambda net, x: assigned(x),
    "joined again": lambda net, x: torch.cat(x.chunk(2, 1), 1),
    "parts swapped": lambda net, x: torch.cat([x[:, 2:], x[:, :2]], dim=1),
    "unbound and stacked": lambda net, x: torch.stack(x.unbind(1), 1),
    "shuffled": lambda net, x: F.channel_shuffle(x, 2),
    "shuffled by views": lambda net, x: x.view(x.size(0), 2, 2, 8, 8).transpose(1, 2).reshape(x.shape),
    "gathered": lambda net, x: x.index_select(1, torch.tensor([3, 0, 0, 1])),
    "cropped": lambda net, x: x[..., 1:-1, 2:],
    "every second": lambda net, x: x[:, :, ::2, 1::2],
    "padded": lambda net, x: F.pad(x, (1, 0, 2, 1)),
    "padded with a value": lambda net, x: F.pad(x, (0, 2), value=0.5),
    "a module that pads": lambda net, x: nn.ZeroPad2d((2, 0, 0, 1))(x),
    "padded channels": lambda net, x: F.pad(x[:, :3], (0, 0, 0, 0, 0, 1)),
    "mirrored and back": lambda net, x: net.conv2(x.flip(-1)).flip(-1),
    "mirrored": lambda net, x: x.flip(2),
    "transposed": lambda net, x: x.transpose(2, 3),
    "turned": lambda net, x: x.rot90(1, (2, 3)),
    "tokens and back": lambda net, x: tokens(x, net.readout.weight.new_ones(4, 4)),
    "einsum": lambda net, x: torch.einsum("bchw,oc->bohw", x, net.conv1.weight[:, :, 0, 0]),
    "a product with a matrix": lambda net, x: (net.conv1.weight[:, :, 1, 1] @ x.flatten(2)).view(x.shape),
    "a pool that leaves padding out": lambda net, x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "a pool that goes on": lambda net, x: F.avg_pool2d(x, 3, 2, ceil_mode=True),
    "another divisor": lambda net, x: F.avg_pool2d(x, 2, divisor_override=3),
    "a mean of patches": lambda net, x: x.unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean((3, 5)),
    "a sum of rows": lambda net, x: x.sum(3, keepdim=True),
    "an even kernel": lambda net, x: F.conv2d(x, net.conv1.weight[:, :, :2, :2], padding="same"),
    "a functional call": lambda net, x: F.conv2d(input=x, weight=net.conv1.weight, padding=(1, 1)),
    "another stride": lambda net, x: strided(net, x),
    "a lambda": lambda net, x: (lambda y: y + 1)(x),
    "a loop": lambda net, x: [x := net.act1(net.conv1(x)) for _ in range(2)][-1],
    "a list of modules": lambda net, x: net.listed[1](net.listed[0](x)),
    "a slice of a Sequential": lambda net, x: nn.Sequential(net.conv1, net.act1, nn.Softmax(1))[:2](x),
    "a shape that is tested": lambda net, x: x if x.shape[1] == 4 and x.ndim == 4 and len(x) else x * x,
    "a module of its own": lambda net, x: nn.Identity()(x),
    "a checkpoint": lambda net, x: torch.utils.checkpoint.checkpoint(net.first, x, use_reentrant=False),
    "no gradient": lambda net, x: no_gradient(net, x),
    "written-out QCFS": lambda net, x: ((x * 3 - 1).mul(4 / 1.5).add(0.5).floor() / 4).clamp(0, 1) * 1.5,
    "QCFS with a straight-through floor": lambda net, x: straight_through(x - 0.4, 4, 0.75),
}


NO_MODULE = {"a list of modules", "written-out QCFS", "QCFS with a straight-through floor"}


def sum_from_0(values: list[Any]) -> Any:
    return sum(values)


def assigned(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 0] = 0.0
    y[:, 1] += x[:, 2]
    return y


def tokens(x: Tensor, weight: Tensor) -> Tensor:
    y = x.flatten(2).transpose(1, 2)  # [B, N, C]
    return (y @ weight.t() + y).permute(0, 2, 1).unflatten(2, x.shape[2:])


def strided(net: Net, x: Tensor) -> Tensor:
    net.conv1.stride = (2, 2)
    y = net.conv1(x)
    net.conv1.stride = (1, 1)
    return y


def no_gradient(net: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        return net.first(x)


def straight_through(z: Tensor, levels: int, threshold: float) -> Tensor:
    level = z * levels / threshold + 0.5
    level = level + (torch.floor(level) - level).detach()
    return torch.clamp(level / levels, 0, 1) * threshold


def expect_same(model: nn.Module, x: Tensor, steps: int = 4) -> bridge.SpikingNetwork:
    """Convert `model` and hold the ANN against it, and the spikes against its own forward, step by step."""
    network = bridge.convert(model, x)
    with torch.no_grad():
        expected = model(x)
    assert network.ann is not None
    torch.testing.assert_close(activations(network.ann, x)[2], expected, rtol=1e-4, atol=1e-5)
    mean, nearest = own_forward.outputs(model, x, steps)
    assert nearest > 1e-6
    torch.testing.assert_close(torch.from_numpy(network.run(x, steps).outputs()), mean, rtol=1e-4, atol=1e-5)
    return network


@pytest.mark.parametrize("way", SIGNALS)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_a_signal_on_its_way(way, tmp_path):
    torch.manual_seed(len(way))
    model = Net(SIGNALS[way]).eval()
    x = torch.rand(SHAPE)
    if way in NO_MODULE:  # the oracle finds no module to put a neuron into: the ANN is held against the model only
        network = bridge.convert(model, x)
        assert len(network.layers) == 3
        assert network.ann is not None
        torch.testing.assert_close(activations(network.ann, x)[2], model(x), rtol=1e-4, atol=1e-5)
        return
    network = expect_same(model, x)
    network.save(tmp_path / "net.nir")
    again = bridge.load(tmp_path / "net.nir").run(x, 4)
    for name, packed in network.run(x, 4).packed.items():
        assert (again.packed[name] == packed).all()


WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "DataParallel": nn.DataParallel,
    "compiled": torch.compile,
    "synchronised": nn.SyncBatchNorm.convert_sync_batchnorm,
    "in double precision": lambda model: model.double(),
    "in train mode": lambda model: model.train(),
    "of torch.fx": lambda model: torch.fx.symbolic_trace(model, concrete_args={"features": False}),
    "exported": lambda model: torch.export.export(model, (torch.rand(SHAPE),)),
    "exported module": lambda model: torch.export.export(model, (torch.rand(SHAPE),)).module(),
}


class Whole(nn.Module):
    """With batch norm, an option and a wrapper inside."""

    def __init__(self, inside: Callable[[nn.Module], nn.Module] = lambda module: module) -> None:
        super().__init__()
        self.stem = inside(nn.Sequential(nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), QCFS(4, 0.7)))
        self.drop, self.readout = nn.AlphaDropout(0.5), nn.Linear(5, 3)
        norm: Any = next(module for module in self.stem.modules() if hasattr(module, "running_mean"))
        norm.running_mean.uniform_()
        norm.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor, features: bool = False) -> Tensor:
        h = self.drop(self.stem(x)).mean((2, 3))
        return h if features else self.readout(h)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
@pytest.mark.parametrize("way", WRAPPERS)
@pytest.mark.parametrize("inside", [False, True], ids=["around", "inside"])
def test_wrapped(way, inside):
    if inside and way in ("of torch.fx", "exported", "exported module", "in double precision"):
        pytest.skip("it wraps a whole model only")
    torch.manual_seed(0)
    model = (Whole(WRAPPERS[way]) if inside else Whole()).eval()
    x = torch.rand(SHAPE).to(next(model.parameters()).dtype)
    expected = model(x).detach()
    wrapped = model if inside else WRAPPERS[way](model)
    network = bridge.convert(wrapped, x)
    assert network.ann is not None
    torch.testing.assert_close(activations(network.ann, x.float())[2], expected.float(), rtol=1e-4, atol=1e-5)


PARAMETRIZATIONS: dict[str, Callable[[nn.Module], Any]] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "pruned": lambda module: prune.l1_unstructured(module, "weight", 0.5),
    "pruned channels": lambda module: prune.ln_structured(module, "weight", 0.5, n=2, dim=0),
}


@pytest.mark.parametrize("way", PARAMETRIZATIONS)
def test_parametrized(way):
    torch.manual_seed(1)
    model = Net(lambda net, x: x).eval()
    for module in (model.conv1, model.conv2, model.readout):
        PARAMETRIZATIONS[way](module)
    x = torch.rand(SHAPE)
    network = bridge.convert(model, x)
    assert network.ann is not None
    torch.testing.assert_close(activations(network.ann, x)[2], model(x).detach(), rtol=1e-4, atol=1e-5)


class Optional(Net):
    def forward(self, x: Tensor, labels: Any = None, *, layer: int = 100, **more: Any) -> Tensor:
        h = self.second(self.first(x))
        if layer < 2:
            return h
        return self.last(h) if labels is None else F.cross_entropy(self.last(h), labels)


def test_optional_arguments():
    expect_same(Optional(lambda net, x: x).eval(), torch.rand(SHAPE))


class Kept(Net):
    """It keeps what it computes, and counts its calls."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__(lambda net, x: x)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.kept = self.first(x)
        self.calls += 1
        return self.last(self.second(self.kept))


def test_the_model_is_as_before(tmp_path):
    model = Kept().eval()
    bridge.convert(model, torch.rand(SHAPE))
    assert not hasattr(model, "kept")
    assert float(model.calls) == 0
    torch.save(model.state_dict(), tmp_path / "m.pt")
    copy.deepcopy(model)


class Called(nn.Sequential):
    def __call__(self, x: Tensor) -> Any:
        return super().__call__(x * 0.5)


def test_an_overridden_call_and_one_output_in_a_container():
    class InDict(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Called(nn.Linear(3, 4), QCFS(4, 0.5), nn.Linear(4, 2))

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": self.net(x)}

    model, x = InDict().eval(), torch.rand(5, 3)
    network = bridge.convert(model, x)
    assert network.ann is not None
    torch.testing.assert_close(activations(network.ann, x)[2], model(x)["logits"].detach())
    network = bridge.convert(model.net, x)
    assert network.ann is not None
    torch.testing.assert_close(activations(network.ann, x)[2], model.net(x).detach())


def test_an_ensemble_of_vectors():
    class Ensemble(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.members = nn.ModuleList(
                nn.Sequential(nn.Linear(3, 4), QCFS(4, 0.5), nn.Linear(4, 2)) for _ in range(3)
            )

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([member(x) for member in self.members]).mean(axis=0)  # type: ignore[call-overload]

    expect_same(Ensemble().eval(), torch.rand(5, 3))


def test_names_are_the_users():
    network = bridge.convert(Net(lambda net, x: x + net.first(x)).eval(), torch.rand(SHAPE))
    assert network.layers == ("act1", "act1_1", "act2")
    names = ["conv1", "act1", "conv1_1", "act1_1", "add", "conv2", "act2", "mean", "mean_1", "readout"]
    assert [layer.name for layer in network.graph][1:] == names


def test_a_pool_in_front_of_its_activation():
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.AvgPool2d(2), QCFS(4), nn.Conv2d(4, 3, 3), QCFS(4)).eval()
    expect_same(model, torch.rand(SHAPE))
    maximum = nn.Sequential(nn.Conv2d(4, 4, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(4, 3, 3))
    with pytest.raises(ConversionError, match="average pooling"):
        bridge.convert(bridge.replace_activations(maximum, levels=4), torch.rand(SHAPE))
