"""λ from data, against brute force in numpy."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from support import oracle
from torch import nn

import bridge
from bridge import QCFS, ConversionError, InputError, replace_activations
from bridge.prepare.thresholds import DEAD_THRESHOLD, fit_thresholds


def distribution(name: str, count: int = 20_000) -> np.ndarray:
    rng = np.random.default_rng(0)
    z = {
        "normal": lambda: rng.normal(size=count),
        "uniform": lambda: rng.random(count) * 3,
        "heavy": lambda: rng.standard_t(2, size=count) * 1e-3,
        "large": lambda: rng.exponential(size=count) * 1e4,
        "relu6": lambda: np.minimum(rng.normal(size=count) * 5, 6),
        "constant": lambda: np.full(count, 1.7),
    }[name]()
    return z.astype(np.float32)


LAMBDA_STEP = 0.004
"""λ is chosen among values about this share apart, which costs something where the best λ makes next to no error."""

DISTRIBUTIONS = ("normal", "uniform", "heavy", "large", "relu6", "constant")


def fitted(z: np.ndarray, levels: int = 4, **arguments) -> float:
    """λ of a bare QCFS that gets `z`."""
    model: Any = nn.Sequential(QCFS(levels))
    fit_thresholds(model, torch.from_numpy(z).reshape(-1, 10), **arguments)
    return model[0].threshold.item()


def squared_error(a: np.ndarray, levels: int, threshold: float) -> float:
    return float(((oracle.activation(a, levels, np.array(threshold)) - a) ** 2).mean())


@pytest.mark.parametrize("levels", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_mse_against_a_grid_search(name, levels):
    z = distribution(name)
    a = np.maximum(z, 0).astype(np.float64)
    best = min(squared_error(a, levels, threshold) for threshold in np.geomspace(a.max() / 300, a.max(), 500))
    reached = squared_error(a, levels, fitted(z, levels))
    assert reached <= 1.02 * best + (LAMBDA_STEP * a.max()) ** 2


@pytest.mark.parametrize("percentile", [50.1, 90, 99.9, 100])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_percentile(name, percentile):
    z = distribution(name)
    expected = np.percentile(np.maximum(z, 0), percentile)
    if expected == 0:
        expected = z.max()
    assert fitted(z, method="percentile", percentile=percentile) == pytest.approx(expected, rel=0.02)


def test_percentile_of_a_rare_activation_is_its_largest():
    z = np.full(20_000, -1, dtype=np.float32)
    z[:3] = 0.25, 0.5, 0.75
    assert fitted(z, method="percentile") == 0.75


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_max_is_exact(name):
    z = distribution(name)
    assert fitted(z, method="max") == z.max()


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, bias=False),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Conv2d(5, 4, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(64, 6),
        nn.ReLU(),
        nn.Linear(6, 3),
    )


def images(count: int = 50) -> torch.Tensor:
    return torch.randn(count, 2, 8, 8, generator=torch.Generator().manual_seed(1))


def relu_activations(model: nn.Sequential, x: torch.Tensor) -> list[np.ndarray]:
    """What each ReLU of `model` returns at inference."""
    found = []
    model.eval()
    for module in model:
        x = module(x)
        if isinstance(module, nn.ReLU):
            found.append(x.detach().double().numpy())
    return found


def activations(model: nn.Module) -> list[QCFS]:
    return [module for module in model.modules() if isinstance(module, QCFS)]


def test_each_layer_is_fitted_to_the_relu_network():
    relu = network()
    expected = [a.max() for a in relu_activations(relu, images())]
    model = replace_activations(copy.deepcopy(relu), levels=2, threshold=0.01)  # would silence every later layer
    assert fit_thresholds(model, images(), method="max") is model
    assert [module.threshold.item() for module in activations(model)] == pytest.approx(expected)


@pytest.mark.parametrize("levels", [2, 8])
def test_per_channel(levels):
    relu = network()
    expected = relu_activations(relu, images())
    model = replace_activations(relu, levels=4, per_channel=True)  # channels unknown until data come
    fit_thresholds(model, images(), levels=levels)
    for module, a in zip(activations(model), expected, strict=True):
        assert module.levels == levels
        assert module.threshold.shape == (a.shape[1],)
        for channel, threshold in enumerate(module.threshold.tolist()):
            values = a[:, channel]
            best = min(squared_error(values, levels, t) for t in np.geomspace(values.max() / 50, values.max(), 300))
            assert squared_error(values, levels, threshold) <= 1.1 * best + (LAMBDA_STEP * values.max()) ** 2
    fit_thresholds(model, images(), method="max")
    for module, a in zip(activations(model), expected, strict=True):
        peaks = a.max(axis=tuple(axis for axis in range(a.ndim) if axis != 1))
        np.testing.assert_allclose(module.threshold.detach().numpy(), peaks, rtol=1e-5)


def test_the_result_does_not_depend_on_batches_or_their_order():
    model = replace_activations(network(), levels=8, per_channel=True)
    x = torch.cat([images() * 1e-3, images(), images() * 50])

    def thresholds(data) -> list[torch.Tensor]:
        torch.manual_seed(0)
        fit_thresholds(model, data)
        return [module.threshold.detach().clone() for module in activations(model)]

    first = thresholds(x)
    # Not bit for bit: the convolution itself may round otherwise in another batch.
    for data in (x.flip(0), x.split(7), [(part, "labels") for part in x.split(31)], iter(x.split(50)[::-1])):
        for a, b in zip(first, thresholds(data), strict=True):
            torch.testing.assert_close(a, b, rtol=0.01, atol=0)
    for a, b in zip(first, thresholds(x), strict=True):
        assert torch.equal(a, b)


def test_a_data_loader():
    data = torch.utils.data.TensorDataset(images(), torch.zeros(50))
    model = replace_activations(network(), levels=8)
    other = fit_thresholds(copy.deepcopy(model), images())
    fit_thresholds(model, torch.utils.data.DataLoader(data, batch_size=20))
    for a, b in zip(activations(model), activations(other), strict=True):
        assert a.threshold.item() == pytest.approx(b.threshold.item(), rel=0.01)


def test_modes_statistics_and_gradients_are_left_alone():
    model: Any = replace_activations(network(), levels=4).train()
    model[1].eval()
    modes = [module.training for module in model.modules()]
    mean = model[1].running_mean.clone()
    fit_thresholds(model, images())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(model[1].running_mean, mean)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    model.eval()
    x = images(2)
    values = model[2](model[1](model[0](x)))
    steps = values / (model[2].threshold / 4)
    torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)  # QCFS again, not ReLU


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype):
    model = replace_activations(network(), levels=4)
    expected = [module.threshold.item() for module in activations(fit_thresholds(copy.deepcopy(model), images()))]
    fit_thresholds(model.to(dtype), images())
    for module, threshold in zip(activations(model), expected, strict=True):
        assert module.threshold.dtype == dtype
        assert module.threshold.item() == pytest.approx(threshold, rel=0.1)


def test_ceiling():
    z = distribution("normal") * 10
    assert fitted(z, method="max", ceiling=6) == 6
    model: Any = nn.Sequential(QCFS(4), nn.Linear(10, 2), QCFS(4))
    nn.init.ones_(model[1].weight)
    fit_thresholds(model, torch.from_numpy(z).reshape(-1, 10), method="max", ceiling=0.5)
    assert [module.threshold.item() for module in activations(model)] == [0.5, 0.5]


def test_a_shared_activation_sees_all_its_places():
    shared = QCFS(4)
    model: Any = nn.Sequential(shared, nn.Linear(3, 3), shared)
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(3) * 10)
        model[1].bias.zero_()
    fit_thresholds(model, torch.rand(20, 3).clamp(max=0.5) + 0.5, method="max")
    assert shared.threshold.item() == pytest.approx(10, rel=0.01)


@pytest.mark.parametrize("method", ["mse", "percentile", "max"])
def test_dead_layers_warn_and_get_a_positive_threshold(method):
    model: Any = nn.Sequential(nn.Linear(3, 4), QCFS(4, per_channel=True), nn.Linear(4, 2), QCFS(4, 0.3))
    with torch.no_grad():
        for linear in (model[0], model[2]):
            linear.weight.zero_()
            linear.bias.fill_(-1)
        model[0].bias[1] = 0.5
    with pytest.warns(UserWarning, match=r"no activation was positive in 3; λ is 1 there"):
        fit_thresholds(model, torch.rand(10, 3), method=method)
    assert model[3].threshold.item() == DEAD_THRESHOLD
    # A dead channel beside a living one: that one's λ, and no warning.
    torch.testing.assert_close(model[1].threshold, torch.full((4,), 0.5), rtol=0.02, atol=0)


def test_channels_of_very_different_size():
    model: Any = nn.Sequential(QCFS(4, per_channel=True))
    sizes = torch.tensor([1.0, 1e-3, 1e-9, 1e6])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for method in ("mse", "percentile", "max"):
            fit_thresholds(model, torch.full((100, 4), 1.0) * sizes, method=method)
            expected = sizes.clamp(min=bridge.prepare.qcfs.SMALLEST_THRESHOLD)
            torch.testing.assert_close(model[0].threshold.detach(), expected, rtol=0.02, atol=0)


def test_an_activation_never_called_keeps_its_threshold():
    model = nn.Sequential(QCFS(4))
    model[0].unused = QCFS(4, 0.7)
    fit_thresholds(model, torch.rand(5, 3), levels=8)
    assert model[0].unused.threshold.item() == pytest.approx(0.7)


def test_a_fitted_network_converts_and_is_nearly_right():
    relu = network().eval()
    x = images()
    expected = relu(x).detach()
    model = fit_thresholds(replace_activations(copy.deepcopy(relu), levels=32), x)
    outputs = torch.from_numpy(bridge.convert(model, x).run(x, 64).outputs()[-1])
    assert float((outputs - expected).abs().mean()) < 0.1 * float(expected.std())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"levels": 0}, "levels: expected a whole number of at least 1, got 0"),
        ({"levels": 2.0}, "levels: expected a whole number"),
        ({"levels": True}, "levels: expected a whole number"),
        ({"method": "median"}, "method must be one of mse, percentile, max; got 'median'"),
        ({"percentile": 0}, "percentile must be above 0"),
        ({"percentile": 101}, "percentile must be above 0"),
        ({"percentile": float("nan")}, "percentile must be above 0"),
        ({"percentile": "99"}, "percentile must be above 0 .* got '99'"),
        ({"ceiling": 0}, "ceiling must be positive"),
        ({"ceiling": "6"}, "ceiling must be positive"),
        ({"data": []}, "data holds no images"),
        ({"data": torch.zeros(0, 2, 8, 8)}, "data holds no images"),
        ({"data": iter(())}, "data holds no images"),
        ({"data": 3}, "data: expected a tensor"),
        ({"data": {"x": 1}}, "data: expected a tensor .* got dict"),
        ({"data": torch.tensor(3.0)}, r"batch 0: expected float images \[B, ...\]"),
        ({"data": [images(), torch.zeros(50, dtype=torch.int64)]}, r"batch 1: .* got torch\.int64 \[50\]"),
        ({"data": [()]}, r"batch 0: .* got tuple"),
        ({"data": torch.full((2, 2, 8, 8), float("nan"))}, "batch 0: holds 256 values that are NaN"),
        ({"data": torch.zeros(4, 3, 8, 8)}, r"batch 0: Sequential does not accept \[4, 3, 8, 8\]"),
    ],
)
def test_bad_arguments_and_data(arguments, message):
    model = replace_activations(network(), levels=4)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=message):
        fit_thresholds(model, **{"data": images(), **arguments})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.levels == 4 and not module._forward_hooks for module in activations(model))


def test_models_that_cannot_be_fitted():
    with pytest.raises(ConversionError, match=r"Sequential has no bridge\.QCFS.*replace_activations"):
        fit_thresholds(network(), images())
    model: Any = replace_activations(network(), levels=4)
    with torch.no_grad():
        model[3].weight[0, 0, 0, 0] = float("inf")
    with pytest.raises(ConversionError, match=r"what 4 gets holds \d+ values that are NaN or infinite"):
        fit_thresholds(model, images())
