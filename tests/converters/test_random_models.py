"""Models drawn at random from everything that is affine, and some of what is not: converted or refused, never wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from support import own_forward
from torch import Tensor, nn

import bridge
from bridge import QCFS, BridgeError
from bridge.simulate.ann import activations

Function = Callable[[Tensor], Tensor]
LEVELS = 3
STEPS = 3
EDGE = 1e-4
"""Inputs of a QCFS nearer than this to an edge between two levels may round either way."""


class Drawn(nn.Module):
    """A forward that was put together from `steps`, each a function of the module and the tensors made so far."""

    def __init__(self, title: str) -> None:
        super().__init__()
        self.title, self.layers = title, nn.ModuleList()
        self.steps: list[Callable[[Drawn, Tensor], Tensor]] = []

    def add(self, module: nn.Module) -> int:
        """Keep a module, and return its number."""
        self.layers.append(module)
        return len(self.layers) - 1

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(self, x)
        return x


def random(*shape: int) -> Tensor:
    return torch.randn(*shape)


def layer(module: nn.Module) -> Callable[[Drawn], Any]:
    def make(drawn: Drawn) -> Any:
        at = drawn.add(module)
        return lambda self, x: self.layers[at](x)

    return make


def function(of: Function) -> Callable[[Drawn], Any]:
    return lambda drawn: lambda self, x: of(x)


def both(one: Function, other: Function, join: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Drawn], Any]:
    return function(lambda x: join(one(x), other(x)))


def choices(shape: tuple[int, ...], draw: Any) -> dict[str, Callable[[Drawn], Any]]:
    """What can be done with images of this shape."""
    rank = len(shape)
    channels = shape[0]
    number = draw(st.sampled_from([0.5, -1.0, 3.0, 1 / 255]))
    vector = random(channels, *[1] * (rank - 1))
    found: dict[str, Callable[[Drawn], Any]] = {
        "x * c": function(lambda x: x * number),
        "c - x": function(lambda x: number - x),
        "x / c": function(lambda x: x / 3),
        "x * vector": function(lambda x: x * vector),
        "vector + x": function(lambda x: vector + x),
        "(x - m) / s": function(lambda x: (x - vector) / (vector.abs() + 0.5)),
        "x + x * c": function(lambda x: x + x * number),
        "sum": function(lambda x: sum([x, x * 2, -x])),  # type: ignore[arg-type, return-value]
        "stack.mean": function(lambda x: torch.stack([x, x * number]).mean(0)),
        "cat": function(lambda x: torch.cat([x, x * number], 1)),
        "flip channels": function(lambda x: x.flip(1)),
        "half": function(lambda x: x[:, : max(1, channels // 2)]),
        "cat of parts": function(lambda x: torch.cat([x[:, 1:], x[:, :1]], 1)),
        "clone +=": function(lambda x: x.clone().add_(1).mul_(vector)),
        "product": function(lambda x: x * x),
        "relu": function(F.relu),
        "qcfs": layer(QCFS(LEVELS, 0.7)),
        "qcfs per channel": layer(QCFS(LEVELS, torch.rand(channels) + 0.3)),
        "identity": layer(nn.Sequential(nn.Identity(), nn.Dropout(0.5))),
        "assert": function(lambda x: x if x.shape[0] and x.dim() == rank + 1 else x * 2),
        "reshape": function(lambda x: x.reshape(x.shape[0], -1).view(x.shape)),
        "roll": function(lambda x: x.roll(1, -1)),
        "softmax": function(lambda x: x.softmax(1)),
        "mean of batch": function(lambda x: x - x.mean(0)),
    }
    if rank == 1:
        out = draw(st.integers(1, 6))
        weight, bias = random(out, channels), random(out)
        found |= {
            "linear": layer(nn.Linear(channels, out)),
            "matmul": function(lambda x: x @ weight.T + bias),
            "batch norm": layer(normalised(nn.BatchNorm1d(channels))),
            "einsum": function(lambda x: torch.einsum("bc,oc->bo", x, weight)),
            "gather": function(lambda x: x[:, torch.arange(channels) // 2]),
            "unflatten": function(lambda x: x[:, None]),
            "cumsum": function(lambda x: x.cumsum(1)),
        }
    else:
        size = shape[-1]
        found |= {
            "flatten": function(lambda x: x.flatten(1)),
            "mean of space": function(lambda x: x.flatten(2).mean(-1)),
            "mean in steps": function(
                lambda x: x.mean(-1, keepdim=True).mean(-1) if rank == 2 else x.mean(-1).mean(-1)
            ),
            "flip space": function(lambda x: x.flip(-1)),
            "every second": function(lambda x: x[..., ::2]),
            "crop": function(lambda x: x[..., 1:] if size > 1 else x),
            "pad one side": function(lambda x: F.pad(x, (1, 0))),
            "pad value": function(lambda x: F.pad(x, (1, 2), value=0.3)),
            "sum of space": function(lambda x: x.sum(-1, keepdim=True)),
            "mean of channels": function(lambda x: x.mean(1, keepdim=True)),
            "upsample": function(lambda x: F.interpolate(x, scale_factor=2)),
            "positions": function(lambda x: x * torch.linspace(0.5, 1.5, size)),
            "position bias": function(lambda x: x + torch.linspace(0.5, 1.5, size)),
            "tokens": function(lambda x: (x.flatten(2).transpose(1, 2) @ token).transpose(1, 2).reshape(x.shape)),
            "token mixing": function(lambda x: (x.flatten(2) @ mixing).reshape(x.shape)),
        }
        token, mixing = random(channels, channels), random(*[int(np.prod(shape[1:]))] * 2)
    if rank == 2:
        out, kernel = draw(st.integers(1, 4)), draw(st.integers(1, 3))
        found |= {
            "conv": layer(nn.Conv1d(channels, out, kernel, padding=draw(st.integers(0, 2)))),
            "conv same": layer(nn.Conv1d(channels, out, kernel, padding="same", dilation=draw(st.integers(1, 2)))),
            "pool": layer(nn.AvgPool1d(2, ceil_mode=draw(st.booleans()))),
            "pool no pad": layer(nn.AvgPool1d(2, padding=1, count_include_pad=draw(st.booleans()))),
            "adaptive": layer(nn.AdaptiveAvgPool1d(draw(st.integers(1, 3)))),
            "max pool": layer(nn.MaxPool1d(2)),
            "batch norm": layer(normalised(nn.BatchNorm1d(channels))),
        }
    if rank == 3:
        out, kernel = draw(st.integers(1, 4)), draw(st.integers(1, 3))
        options = {"stride": draw(st.integers(1, 2)), "padding": (draw(st.integers(0, 1)), draw(st.integers(0, 2)))}
        found |= {
            "conv": layer(nn.Conv2d(channels, out, (kernel, 1), **options)),
            "conv same": layer(nn.Conv2d(channels, out, (kernel, 2), padding="same")),
            "depthwise": layer(nn.Conv2d(channels, channels * 2, 2, groups=channels)),
            "pool": layer(nn.AvgPool2d(2, 1, ceil_mode=draw(st.booleans()))),
            "ceil pool": layer(nn.AvgPool2d(3, 2, ceil_mode=True, padding=draw(st.integers(0, 1)))),
            "pool no pad": layer(nn.AvgPool2d(2, padding=1, count_include_pad=draw(st.booleans()))),
            "divisor": layer(nn.AvgPool2d(2, divisor_override=3)),
            "adaptive": layer(nn.AdaptiveAvgPool2d(draw(st.integers(1, 3)))),
            "unshuffle": function(lambda x: F.pixel_unshuffle(x, 2) if x.shape[2] % 2 == x.shape[3] % 2 == 0 else x),
            "shuffle channels": function(lambda x: F.channel_shuffle(x, 2) if channels % 2 == 0 else x),
            "transpose space": function(lambda x: x.transpose(2, 3)),
            "pad all": function(lambda x: F.pad(x, (0, 1, 2, 0))),
            "batch norm": layer(normalised(nn.BatchNorm2d(channels))),
            "rows": function(lambda x: x.mean(2)),
            "patches": function(lambda x: x.unflatten(3, (-1, 2)).mean(4) if x.shape[3] % 2 == 0 else x),
        }
    return found


def normalised(norm: Any) -> nn.Module:
    with torch.no_grad():
        for tensor in (norm.running_mean, norm.weight, norm.bias):
            tensor.copy_(torch.randn(tensor.shape))
        norm.running_var.copy_(torch.rand(norm.running_var.shape) + 0.5)
    return norm  # type: ignore[no-any-return]


@st.composite
def models(draw: Any) -> tuple[Drawn, tuple[int, ...]]:
    torch.manual_seed(draw(st.integers(0, 1000)))
    shape = draw(st.sampled_from([(5,), (2, 6), (3, 4, 4), (2, 5, 3), (4, 4, 6)]))
    drawn = Drawn("")
    at = shape
    for _ in range(draw(st.integers(1, 6))):
        possible = choices(at, draw)
        name = draw(st.sampled_from(sorted(possible)))
        drawn.steps.append(possible[name](drawn))
        drawn.title += f"; {name}"
        with torch.no_grad():
            try:
                after = drawn.eval()(torch.zeros(2, *shape))
            except Exception:
                drawn.steps.pop()
                drawn.title += " (does not run)"
                continue
        if after.dim() not in (2, 3, 4) or len(after) != 2 or after.numel() == 0:
            drawn.steps.pop()
            drawn.title += " (left out)"
            continue
        at = tuple(after.shape[1:])
    last = choices(at, draw)
    end = [last["qcfs"]] if draw(st.booleans()) else [last["qcfs"], last["linear" if len(at) == 1 else "conv"]]
    for each in end:
        drawn.steps.append(each(drawn))
    return drawn.eval(), shape


def distance_to_an_edge(model: nn.Module, x: Tensor) -> float:
    """How near any input of a QCFS comes to an edge between two levels, in levels."""
    nearest = [1.0]

    def look(module: Any, args: tuple[Tensor, ...], out: Tensor) -> None:
        (z,) = args
        threshold = module.threshold.reshape(1, -1, *[1] * (z.dim() - 2)) if module.per_channel else module.threshold
        level = z * module.levels / threshold + 0.5
        nearest.append(float((level - level.round()).abs().min()))

    hooks = [module.register_forward_hook(look) for module in model.modules() if isinstance(module, QCFS)]
    model(x)
    for hook in hooks:
        hook.remove()
    return min(nearest)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(models())
def test_converted_or_refused_never_wrong(drawn):
    model, shape = drawn
    x = torch.rand(3, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        try:
            expected = model(x)
        except RuntimeError:
            return  # not a model of images
        try:
            network = bridge.convert(model, x)
        except BridgeError:
            return
        if distance_to_an_edge(model, x) < EDGE:
            return
        assert network.ann is not None
        actual = activations(network.ann, x)[2]
    mean, nearest = own_forward.outputs(model, x, STEPS)
    if nearest > EDGE:
        spiking = torch.from_numpy(network.run(x, STEPS).outputs())
        torch.testing.assert_close(spiking, mean.float(), rtol=1e-3, atol=1e-4 * float(mean.abs().max()) + 1e-6)
    assert actual.shape == expected.shape, model.title
    torch.testing.assert_close(
        actual,
        expected,
        rtol=1e-3,
        atol=1e-4 * float(expected.abs().max()) + 1e-6,
        msg=lambda text: f"{model.title}: {text}",
    )
