"""Every kind of ReLU and maximum pooling, as module and as function, is replaced or refused, and reported."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from bridge import QCFS, ConversionError, replace_activations


class Wrapped(nn.Module):
    """Two layers with a function between them."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.one, self.two, self.function = nn.Linear(4, 6), nn.Linear(6, 2), function
        nn.init.constant_(self.one.bias, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.function(self.one(x)))


RELUS: dict[str, Callable[..., Any]] = {
    "F.relu": F.relu,
    "F.relu_": F.relu_,
    "F.relu6": F.relu6,
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "method": lambda x: x.relu(),
    "method in place": lambda x: x.relu_(),
    "inplace": lambda x: F.relu(x, inplace=True),
    "relu6, by position": lambda x: F.relu6(x, True),
    "by keyword": lambda x: F.relu(input=x),
    "clamp": lambda x: torch.clamp(x, min=0),
    "clamp to 6": lambda x: torch.clamp(x, 0, 6),
    "clip": lambda x: torch.clip(x, 0.0),
    "clamp method": lambda x: x.clamp(min=0),
    "clamp_": lambda x: x.clamp_(0.0, 6.0),
    "clamp_min": lambda x: x.clamp_min(0),
    "torch.clamp_min": lambda x: torch.clamp_min(x, 0),
    "threshold": lambda x: F.threshold(x, 0, 0),
    "torch.threshold": lambda x: torch.threshold(x, 0.0, 0.0),
    "threshold in place": lambda x: F.threshold(x, 0, 0, True),
    "hardtanh": lambda x: F.hardtanh(x, 0, 6),
    "hardtanh, by keyword": lambda x: F.hardtanh(x, max_val=6.0, min_val=0.0),
}


@pytest.mark.parametrize("kind", RELUS)
def test_every_way_to_call_it(kind):
    model = Wrapped(RELUS[kind])
    got = replace_activations(model, levels=4)
    x = 6 * torch.rand(9, 4) - 3
    assert torch.equal(got(x), model.two(QCFS(4)(model.one(x))))
    assert isinstance(got, fx.GraphModule)
    assert got.replaced_activations == "1 ReLU (1 of them a call)"


@pytest.mark.parametrize("module", [nn.Threshold(0, 0), nn.Hardtanh(0, 6), nn.ReLU6(), nn.ReLU(inplace=True)])
def test_every_module_of_the_kind(module):
    model = nn.Sequential(nn.Linear(2, 2), module)
    assert replace_activations(model, levels=4) is model
    assert isinstance(model[1], QCFS)
    assert isinstance(replace_activations(module, levels=4), QCFS)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.clamp(min=-1),
        lambda x: x.clamp(0, 1),
        lambda x: x.clamp(max=6),
        lambda x: F.threshold(x, 0.1, 0),
        F.hardtanh,
        F.leaky_relu,
    ],
)
def test_what_is_no_relu_stays(function):
    with pytest.raises(ConversionError, match="nothing to replace"):
        replace_activations(Wrapped(function), levels=4)
    with pytest.raises(ConversionError, match="nothing to replace"):
        replace_activations(nn.Sequential(nn.Threshold(0, 1), nn.Hardtanh()), levels=4)


def test_a_clamped_parameter_is_no_activation():
    class Positive(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 3))

        def forward(self, x):
            return F.relu(F.linear(x, self.weight.clamp(min=0)))

    model = Positive()
    got = replace_activations(model, levels=4)
    x = torch.randn(5, 3)
    assert torch.equal(got(x), QCFS(4)(x @ model.weight.clamp(min=0).T))


@pytest.mark.parametrize("function", [F.relu_, lambda x: F.relu(x, inplace=True), nn.ReLU(inplace=True)])
def test_in_place_and_read_again(function):
    class Reread(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.act = nn.Linear(4, 6), nn.Linear(6, 2), function

        def forward(self, x):
            x = self.one(x)
            self.act(x)
            return self.two(x)

    model = Reread()
    got = replace_activations(model, levels=4)
    x = torch.randn(9, 4)
    assert torch.equal(got(x), model.two(QCFS(4)(model.one(x))))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_wrapped_models():
    model = nn.DataParallel(Wrapped(F.relu))
    got = replace_activations(model, levels=4)
    assert got is model
    assert isinstance(model.module, fx.GraphModule)
    assert model.replaced_activations == "1 ReLU (1 of them a call)"
    traced: Any = fx.symbolic_trace(Wrapped(F.relu))
    x = torch.rand(2, 4)
    assert torch.equal(replace_activations(traced, levels=4)(x), traced.two(QCFS(4)(traced.one(x))))
    odd: Any
    for odd, remedy in (
        (torch.compile(Wrapped(F.relu), backend="eager"), r"torch\.compile"),
        (torch.jit.script(nn.Sequential(nn.ReLU())), r"torch\.jit\.script"),
        (torch.export.export(Wrapped(F.relu), (x,)).module(), r"torch\.export"),
        (nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel), r"model\.module"),
    ):
        with pytest.raises(ConversionError, match=f"replace_activations: .*{remedy}"):
            replace_activations(odd, levels=4)


POOLS: dict[str, tuple[Callable[..., Any], nn.Module, tuple[int, ...]]] = {
    "F.max_pool1d": (lambda x: F.max_pool1d(x, 2), nn.AvgPool1d(2), (2, 3, 7)),
    "torch.max_pool1d": (lambda x: torch.max_pool1d(x, 3, 2, 1), nn.AvgPool1d(3, 2, 1), (2, 3, 7)),
    "1d, ceil": (lambda x: F.max_pool1d(x, 2, ceil_mode=True), nn.AvgPool1d(2, ceil_mode=True), (2, 3, 7)),
    "2d, ceil": (lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True), nn.AvgPool2d(3, 2, ceil_mode=True), (2, 3, 8, 8)),
    "torch.max_pool2d": (lambda x: torch.max_pool2d(x, (2, 3)), nn.AvgPool2d((2, 3)), (2, 3, 8, 9)),
    "adaptive 1d": (lambda x: F.adaptive_max_pool1d(x, 2), nn.AdaptiveAvgPool1d(2), (2, 3, 7)),
    "adaptive 2d": (lambda x: F.adaptive_max_pool2d(x, (1, 2)), nn.AdaptiveAvgPool2d((1, 2)), (2, 3, 7, 5)),
    "MaxPool1d": (nn.MaxPool1d(3, 2, 1), nn.AvgPool1d(3, 2, 1), (2, 3, 7)),
    "MaxPool1d, ceil": (nn.MaxPool1d(2, ceil_mode=True), nn.AvgPool1d(2, ceil_mode=True), (2, 3, 7)),
    "MaxPool2d, ceil": (nn.MaxPool2d(3, 2, ceil_mode=True), nn.AvgPool2d(3, 2, ceil_mode=True), (2, 3, 8, 8)),
    "AdaptiveMaxPool1d": (nn.AdaptiveMaxPool1d(3), nn.AdaptiveAvgPool1d(3), (2, 3, 7)),
    "AdaptiveMaxPool2d": (nn.AdaptiveMaxPool2d(2), nn.AdaptiveAvgPool2d(2), (2, 3, 6, 6)),
}


class Pooled(nn.Module):
    def __init__(self, pool: Callable[..., Any]) -> None:
        super().__init__()
        self.relu, self.pool = nn.ReLU(), pool

    def forward(self, x: Tensor) -> Any:
        return self.pool(self.relu(x))


@pytest.mark.parametrize("kind", POOLS)
def test_every_pooling(kind):
    pool, average, shape = POOLS[kind]
    got = replace_activations(Pooled(pool), levels=4, max_pool="avg")
    x = 4 * torch.rand(shape)
    assert torch.equal(got(x), average(QCFS(4)(x)))
    assert str(got.replaced_activations).startswith("1 ReLU and 1 maximum pool")


@pytest.mark.parametrize(
    ("pool", "reason"),
    [
        (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], r"max_pool2d_with_indices: it returns the indices"),
        (lambda x: torch.adaptive_max_pool1d(x, 2)[0], r"adaptive_max_pool1d: it returns the indices"),
        (nn.MaxPool1d(2, return_indices=True), r"pool: it returns the indices"),
        (nn.AdaptiveMaxPool2d(2, return_indices=True), r"pool: it returns the indices"),
        (lambda x: F.max_pool1d(x, 2, dilation=2), r"max_pool1d: .* is dilated"),
        (lambda x: F.max_pool2d(x, x.shape[2:]), r"max_pool2d: its size depends on the data.*AdaptiveMaxPool2d\(1\)"),
    ],
)
def test_pooling_that_no_average_can_replace(pool, reason):
    model = Pooled(pool)
    with pytest.raises(ConversionError, match=reason):
        replace_activations(model, levels=4, max_pool="avg")
    assert isinstance(model.relu, nn.ReLU)  # nothing was changed
    replace_activations(model, levels=4)


def test_what_was_replaced_is_reported(caplog):
    model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.ReLU(), nn.MaxPool1d(2), nn.ReLU6(), nn.MaxPool1d(2), Wrapped(F.relu))
    with caplog.at_level(logging.INFO, logger="bridge"):
        got = replace_activations(model, levels=4, max_pool="avg")
    assert got.replaced_activations == "3 ReLU (1 of them a call) and 2 maximum pools"
    assert caplog.messages == ["Sequential: replaced 3 ReLU (1 of them a call) and 2 maximum pools"]


def test_a_subclass_with_a_forward_of_its_own_is_not_taken_for_its_kind():
    class Padded(nn.MaxPool2d):
        def forward(self, x):
            return super().forward(F.pad(x, (0, 1, 0, 1), value=-float("inf")))

    class Shifted(nn.ReLU):
        def forward(self, x):
            return super().forward(x - 1)

    pool = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), Padded(3, 2))
    with pytest.raises(ConversionError, match="2: Padded has a forward of its own"):
        replace_activations(pool, levels=4, max_pool="avg")
    x = torch.randn(20, 3)
    shifted = replace_activations(nn.Sequential(Shifted()), levels=4)  # the call inside is one
    torch.testing.assert_close(shifted(x), QCFS(4)(x - 1))
    assert isinstance(replace_activations(pool, levels=4), nn.Module)
