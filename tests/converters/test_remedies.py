"""Each refusal of a torch model names the layer and a remedy, and the remedy, carried out, converts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bridge
from bridge import QCFS, BridgeError, ConversionError
from bridge.converters import remedies
from bridge.converters.torch_models.refusals import REMEDIES

IMAGES = (2, 4, 8, 8)


class Net(nn.Module):
    """``conv``, QCFS, whatever `between` does with maps ``[B, 4, 8, 8]``, and a readout."""

    def __init__(self, between: Callable[[Tensor], Tensor], features: int = 4, **modules: nn.Module) -> None:
        super().__init__()
        self.conv, self.act, self.norm = nn.Conv2d(4, 4, 3, padding=1), QCFS(4), nn.BatchNorm2d(4)
        self.between, self.readout = between, nn.Linear(features, 3)
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        x = self.between(self.act(self.conv(x)))
        return self.readout(x if x.dim() == 2 else x.mean((2, 3)))


def same(x: Tensor) -> Tensor:
    return x


def doubled(x: Tensor) -> Tensor:
    return x * 2


class Writes(Net):
    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros(2, 4)
        out[:] = self.act(self.conv(x)).mean((2, 3))
        return self.readout(out)


class Joins(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.conv(x)).mean((2, 3))
        return self.readout(torch.cat([h[:, :1], h[:, 1:]], 1))


class InPlace(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.conv(x))
        part = h[:, :2]
        part += 1
        return self.readout(h.mean((2, 3)))


class NewTensor(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.conv(x))
        h = torch.cat([h[:, :2] + 1, h[:, 2:]], 1)
        return self.readout(h.mean((2, 3)))


class Tripled(QCFS):
    def forward(self, z: Tensor) -> Tensor:
        return super().forward(3 * z)


class Inside(Net):
    extra: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.extra(self.act(self.conv(x))).mean((2, 3)))


class Transposed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(2, 3)


def replaced(**options: Any) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3))
    return bridge.replace_activations(model, levels=4, **options)


def relu(*more: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), *more, nn.Flatten(), nn.Linear(144, 3))


def attention() -> nn.Module:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.attention = QCFS(4), nn.MultiheadAttention(4, 1, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.act(x.flatten(2).transpose(1, 2))
            return self.attention(x, x, x)[0]

    return Tokens()


def mixed() -> nn.Module:
    return Net(lambda x: (x.flatten(2) @ torch.ones(64, 64)).transpose(1, 2).flatten(1), 256)


def quantised() -> nn.Module:
    float_model = Net(same)
    return torch.ao.quantization.quantize_dynamic(float_model, {nn.Linear})


def track(value: bool) -> nn.Module:
    return Inside(same, extra=nn.BatchNorm2d(4, track_running_stats=value).eval())


def kernel(x: Tensor, stride: Any = 1) -> Tensor:
    """A convolution, which reads maps."""
    return F.conv2d(x, torch.ones(4, 4, 1, 1), stride=stride)


position = torch.linspace(0, 1, 8)

CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "BY_QCFS": (relu, lambda: bridge.replace_activations(relu(), levels=4)),
    "BY_AVERAGE": (replaced, lambda: replaced(max_pool="avg")),
    "ONLY_QCFS": (lambda: Net(F.gelu), lambda: Net(QCFS(4))),
    "BATCH_NORM": (lambda: Net(nn.GroupNorm(2, 4)), lambda: Inside(same, extra=nn.BatchNorm2d(4))),
    "LEAVE_OUT": (lambda: nn.Sequential(Net(same), nn.Softmax(1)), lambda: nn.Sequential(Net(same))),
    "PRODUCT": (lambda: Net(lambda x: x * x.mean((2, 3), keepdim=True)), lambda: Net(same)),
    "ATTENTION": (attention, mixed),
    "DEPENDS_ON_DATA": (
        lambda: Net(lambda x: x if x.sum() > 0 else -x),
        lambda: Net(lambda x: x if x.shape[1] > 0 else -x),
    ),
    "IN_PLACE": (lambda: InPlace(same), lambda: NewTensor(same)),
    "WRITES": (lambda: Writes(same), lambda: Joins(same)),
    "ONE_BIAS": (
        lambda: Net(lambda x: kernel(x + position)),
        lambda: Net(lambda x: kernel(x + position[:4, None, None])),
    ),
    "ENLARGES": (
        lambda: Inside(same, extra=nn.ConvTranspose2d(4, 4, 2, 2)),
        lambda: Inside(same, extra=nn.Conv2d(4, 4, 2)),
    ),
    "REPEATS": (
        lambda: Net(lambda x: kernel(F.pad(x, (1, 1, 1, 1), mode="reflect"))),
        lambda: Net(lambda x: kernel(F.pad(x, (1, 1, 1, 1)))),
    ),
    "RESAMPLES": (
        lambda: Net(lambda x: kernel(F.interpolate(x, scale_factor=0.5, mode="bicubic"))),
        lambda: Net(lambda x: kernel(F.avg_pool2d(x, 2))),
    ),
    "OUTSIDE": (lambda: Net(lambda x: x.topk(2, 1)[0]), lambda: Net(same)),
    "ONE_NUMBER": (
        lambda: nn.Sequential(Net(same), nn.Linear(3, 1), nn.Flatten(0)),
        lambda: nn.Sequential(Net(same), nn.Linear(3, 1)),
    ),
    "NOT_REPEATED": (lambda: Net(lambda x: x * torch.rand(1)), lambda: Net(lambda x: x * 0.5)),
    "UNEVEN": (
        lambda: Net(lambda x: kernel(F.adaptive_avg_pool2d(x, 3))),
        lambda: Net(lambda x: kernel(F.adaptive_avg_pool2d(x, 4))),
    ),
    "AS_MATRIX": (
        lambda: Net(lambda x: kernel(x.cumsum(3))),
        lambda: Net(lambda x: x.cumsum(3).flatten(1), 256),
    ),
    "UNFLATTENS": (
        lambda: Net(lambda x: kernel(F.linear(x.flatten(1), torch.ones(64, 256)).view(2, 4, 4, 4))),
        lambda: Net(lambda x: kernel(x)),
    ),
    "TURNS": (
        lambda: nn.Sequential(Net(same, 4).conv, QCFS(4), Transposed()),
        lambda: nn.Sequential(Net(same, 4).conv, QCFS(4), Transposed(), nn.Conv2d(4, 4, 3), Transposed()),
    ),
    "MIRRORED": (
        lambda: Net(lambda x: kernel(x.flip(3), 2)),
        lambda: Net(lambda x: kernel(x[..., 1:].flip(3), (1, 2))),
    ),
    "MIXES_IMAGES": (
        lambda: Net(lambda x: x - x.mean(0)),
        lambda: Net(lambda x: x.mean((2, 3)) - x.flatten(2).mean(2)[:, [1]]),
    ),
    "NOT_AFFINE": (lambda: Net(torch.special.erf), lambda: Net(QCFS(4))),
    "SCRIPTED": (lambda: torch.jit.script(nn.Sequential(nn.Conv2d(4, 4, 3), nn.Identity())), lambda: Net(same)),
    "OUT_OF_SIGHT": (
        lambda: Net(lambda x: x + torch.jit.script(doubled)(x).mean()),
        lambda: Net(lambda x: x + doubled(x)),
    ),
    "QUANTISED": (quantised, lambda: Net(same)),
    "THREE_DIMENSIONS": (
        lambda: Net(lambda x: F.conv3d(x[:, :, None], torch.ones(4, 4, 1, 1, 1))[:, :, 0]),
        lambda: Net(lambda x: kernel(x)),
    ),
    "DROPS": (lambda: Net(lambda x: F.dropout(x)), lambda: Net(lambda x: F.dropout(x, training=False))),
    "EMBEDDING": (
        lambda: Net(lambda x: F.embedding(x.long()[:, 0, 0], torch.ones(9, 4)).flatten(1), 32),
        lambda: Net(same),
    ),
    "RUNNING": (lambda: track(False), lambda: track(True)),
}


TEXTS = {name: text for name, text in vars(remedies).items() if name.isupper()}


def test_every_text_has_a_case():
    assert set(TEXTS) == set(CASES) | {"NO_BATCH"}  # the last one is an example's, see test_input_shape
    assert set(REMEDIES.values()) <= set(TEXTS.values())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("name", CASES)
def test_the_remedy_works(name):
    broken, mended = CASES[name]
    with pytest.raises(BridgeError) as caught:
        bridge.convert(broken(), torch.rand(IMAGES))
    assert TEXTS[name] in str(caught.value)
    bridge.convert(mended(), torch.rand(IMAGES))


def test_an_override_is_the_other_reason_of_in_place():
    model = nn.Sequential(nn.Conv2d(4, 4, 3), Tripled(4))
    with pytest.raises(ConversionError, match="remove the override"):
        bridge.convert(model, torch.rand(IMAGES))
