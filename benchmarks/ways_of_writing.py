"""Small models, each written in one way that is common in other people's code: what benchmarks/capture.py captures."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from bridge import QCFS

SHAPE = (4, 8, 8)


class Net(nn.Module):
    """What the models are made of; each has a forward of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act = nn.Conv2d(4, 4, 3, padding=1), QCFS(4, 1.0)
        self.second, self.last = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)
        self.matrix = nn.Parameter(torch.randn(3, 4))
        self.layers = nn.Sequential(self.first, self.act, self.second)

    def head(self, x: Tensor) -> Tensor:
        """The classifier on the mean over space."""
        return self.last(x.mean((2, 3)))  # type: ignore[no-any-return]


WAYS: dict[str, type[Net]] = {}
"""By what is special about it: a class of models that take images of the shape `SHAPE`."""


def way(title: str) -> Callable[[type[Net]], type[Net]]:
    """Note a class of models as one way of writing."""

    def noted(kind: type[Net]) -> type[Net]:
        WAYS[title] = kind
        return kind

    return noted


@way("an optional argument: `mask=None`")
class Optional(Net):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.act(self.first(x))
        if mask is not None:
            x = x * mask
        return self.head(x)


@way("a keyword-only flag: `*, features=False`")
class Flag(Net):
    def forward(self, x: Tensor, *, features: bool = False) -> Tensor:
        x = self.act(self.first(x))
        return x if features else self.head(x)


@way("a test on a shape: `if x.shape[-1] > 4`")
class ShapeTest(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x))
        if x.shape[-1] > 4:
            x = self.second(x)
        return self.head(x)


@way("an assert on a shape")
class Assert(Net):
    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == 4, "four channels are expected"
        return self.head(self.act(self.first(x)))


@way("a size made a number: `int(c * 0.5)`")
class Number(Net):
    def forward(self, x: Tensor) -> Tensor:
        one, other = self.act(self.first(x)).split([int(x.shape[1] * 0.25), int(x.shape[1] * 0.75)], 1)
        return self.head(torch.cat([other, one], 1))


@way("a loop over a tensor: `for part in x.split(1, 1)`")
class Loop(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x))
        return self.head(torch.cat([part * at for at, part in enumerate(x.split(1, 1))], 1))


@way("zeros of the batch's size: `torch.zeros(len(x), …)`")
class Zeros(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x))[:, :3]
        return self.head(torch.cat([x, torch.zeros(len(x), 1, *x.shape[2:])], 1))


@way("a test on a parameter: `if self.gain > 0`")
class ParameterTest(Net):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x))
        return self.head(x * self.gain if self.gain > 0 else x)


@way("a parameter as a number: `self.gain.item()`")
class Item(ParameterTest):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.first(x)) * round(self.gain.item(), 2))


@way("an assert on the data: `assert x.min() >= 0`")
class DataAssert(Net):
    def forward(self, x: Tensor) -> Tensor:
        assert x.min() >= 0, "images are expected"
        return self.head(self.act(self.first(x)))


@cache
def scripted() -> Callable[[Tensor], Tensor]:
    """A function that torch.jit has compiled, on first use: it warns."""

    def twice(x: Tensor) -> Tensor:
        return x * 2

    compiled: Callable[[Tensor], Tensor] = torch.jit.script(twice)
    return compiled


@way("a function that `torch.jit.script` made")
class Scripted(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(scripted()(self.act(self.first(x))))


@way("`autocast` in forward")
class Autocast(Net):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return self.head(self.act(self.first(x)))


@way("`weight_norm`")
class WeightNorm(Net):
    def __init__(self) -> None:
        super().__init__()
        parametrizations.weight_norm(self.first)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.first(x)))


@way("`spectral_norm`")
class SpectralNorm(WeightNorm):
    def __init__(self) -> None:
        Net.__init__(self)
        parametrizations.spectral_norm(self.first)


@way("tied weights: `F.linear(x, w.t())`")
class Tied(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.head(self.act(self.first(x))), self.last.weight.t())


@way("`x @ self.matrix.T`")
class Matrix(Net):
    def forward(self, x: Tensor) -> Tensor:
        means: Tensor = self.act(self.first(x)).mean((2, 3))
        return means @ self.matrix.T


@way("`einsum`")
class Einsum(Net):
    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bc,oc->bo", self.act(self.first(x)).mean((2, 3)), self.matrix)


@way("a slice of a Sequential: `self.layers[:2]`")
class Slice(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers[:2](x))


@way("a module in a plain list")
class PlainList(Net):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = [nn.Conv2d(4, 4, 1)]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.hidden[0](x)))


@way("`nn.DataParallel` inside")
class Parallel(Net):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.DataParallel(self.layers)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x))


@way("a compiled module inside")
class Compiled(Net):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.compile(self.layers, backend="eager")  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x))


@way("checkpointing: `checkpoint(self.layers, x)`")
class Checkpoint(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.layers, x, use_reentrant=False))


@way("a stride set in forward")
class Stride(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.first.stride = (1, 1)
        x = self.act(self.first(x))
        self.first.stride = (2, 2)
        return self.head(self.act(self.first(x)))


@way("a sum in place: `y += x`")
class InPlace(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.act(self.first(x)))
        y += x
        return self.head(self.act(y))


@way("`sum([a, b])`")
class Sum(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(sum([self.first(x), self.second(x)])))


@way("a forward hook on a block")
class Hook(Net):
    def __init__(self) -> None:
        super().__init__()
        self.layers.register_forward_hook(lambda module, args, output: output * 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x))


@way("a forward replaced on the object: `block.forward = lambda x: …`")
class Lambda(Net):
    def __init__(self) -> None:
        super().__init__()
        self.second.forward = lambda x: 0.5 * F.conv2d(x, self.second.weight)  # type: ignore[method-assign, assignment]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.act(self.first(x))))


@way("a block that returns a dict")
class Dictionary(Net):
    def block(self, x: Tensor) -> dict[str, Tensor]:
        """Two outputs by name."""
        x = self.act(self.first(x))
        return {"out": x, "more": self.second(x)}

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.add(*self.block(x).values()))


@way("a count kept in a buffer: `self.calls += 1`")
class Count(Net):
    def __init__(self) -> None:
        super().__init__()
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.head(self.act(self.first(x)))


class Round(torch.autograd.Function):
    """Floor, with a gradient of one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.floor()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def qcfs(x: Tensor) -> Tensor:
    """QCFS with L = 4 and λ = 1.5, written out."""
    return 1.5 * torch.clamp(torch.floor(x * 4 / 1.5 + 0.5) / 4, 0, 1)


@way("QCFS written out with `floor` and `clamp`")
class WrittenOut(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(qcfs(self.first(x)))


@way("QCFS written out with an `autograd.Function`")
class Straight(Net):
    def forward(self, x: Tensor) -> Tensor:
        floor: Callable[[Tensor], Tensor] = Round.apply
        return self.head(1.5 * (floor(self.first(x) * 4 / 1.5 + 0.5) / 4).clamp(0, 1))
