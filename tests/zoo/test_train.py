"""What training does: random numbers, ReLU first, thresholds, precision, and its errors."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from support.training import STEPS, TINY, Interruption, observed, patterns, same, small_train, stopping
from torch import nn

import bridge
from bridge.errors import BridgeError, InputError
from bridge.zoo import models
from bridge.zoo.training import train as training
from bridge.zoo.training.run_files import CHECKPOINT, WEIGHTS
from bridge.zoo.training.train import train


def test_the_seed_decides_everything(tmp_path):
    torch.manual_seed(1)
    one = small_train(tmp_path / "one")
    following = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(following, torch.rand(1))  # the caller's random numbers are untouched
    assert same(one.model, small_train(tmp_path / "two").model)
    assert not same(one.model, small_train(tmp_path / "three", seed=1).model)


def test_every_step_has_random_numbers_of_its_own(tmp_path):
    seen = []

    def augment(x, mean, std, generator, **options):
        seen.append((generator.initial_seed(), tuple(x.flatten().tolist())))
        assert options == {"padding": 1, "flip": False, "autoaugment": False, "cutout": 2}
        return patterns().normalise(x)

    small_train(tmp_path, augment=augment)
    assert len(seen) == 4 * STEPS
    assert len({seed for seed, _ in seen}) == len({images for _, images in seen}) == 4 * STEPS


def test_a_module_is_trained_in_training_mode(tmp_path):
    model = models.build("digits", 10, (1, 8, 8), levels=8, threshold=2.0).eval()
    norm = model.get_submodule("norm1")
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    before = norm.running_mean.clone()
    train(model, patterns(), replace(TINY, epochs=1, relu_epochs=0), tmp_path, compile=False, device="cpu")
    assert not torch.equal(norm.running_mean, before)


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle"])
@pytest.mark.parametrize("relu_epochs", [0, 3])
def test_it_learns(schedule, relu_epochs, tmp_path):
    recipe = replace(TINY, epochs=10, relu_epochs=relu_epochs, schedule=schedule, padding=0, cutout=0)
    result = small_train(tmp_path, recipe)
    assert result.metrics[-1]["loss"] < result.metrics[0]["loss"] / 2
    assert result.accuracy > 0.9
    assert not result.model.training


def test_relu_comes_first_and_then_qcfs_with_fitted_thresholds(tmp_path):
    seen = observed(tmp_path, replace(TINY, epochs=3, relu_epochs=2))
    assert len(seen) == 3 * STEPS
    for z, a, threshold in seen[: 2 * STEPS]:
        assert torch.equal(a, z.relu())
        assert threshold == 3.0
    fitted = seen[2 * STEPS][2]
    assert fitted != 3.0
    assert 0 < fitted < max(a.max().item() for _, a, _ in seen[: 2 * STEPS])
    for z, a, threshold in seen[2 * STEPS :]:
        assert len(a.unique()) <= 9
        assert not torch.equal(a, z.relu())
        assert a.max() <= threshold * 1.0001


def test_without_relu_epochs_it_is_qcfs_from_the_start(tmp_path):
    seen = observed(tmp_path, replace(TINY, epochs=1, relu_epochs=0))
    assert seen[0][2] == 3.0
    assert all(len(a.unique()) <= 9 for _, a, _ in seen)


def test_qcfs_stays_in_float32_under_bfloat16(tmp_path):
    for z, a, _ in observed(tmp_path, replace(TINY, epochs=2, relu_epochs=1, precision="bfloat16")):
        assert z.dtype == a.dtype == torch.float32


def test_thresholds_have_a_decay_of_their_own(tmp_path):
    recipe = replace(TINY, epochs=1, relu_epochs=0, weight_decay=0.0)
    spared = observed(tmp_path / "spared", replace(recipe, threshold_weight_decay=0.0))[-1][2]
    decayed = observed(tmp_path / "decayed", replace(recipe, threshold_weight_decay=1.0))[-1][2]
    assert decayed < 0.95 * spared


def test_a_module_that_stops_half_way_gets_its_qcfs_back(tmp_path, monkeypatch):
    model = nn.Sequential(nn.Conv2d(1, 8, 3), bridge.QCFS(8, 3.0), nn.Flatten(), nn.Linear(8 * 36, 10))
    monkeypatch.setattr(training, "learning_rate", stopping(2))
    with pytest.raises(Interruption):
        train(model, patterns(), TINY, tmp_path, compile=False, device="cpu")
    assert len(model[1](torch.linspace(-1, 5, 100)[:, None]).unique()) == 9
    assert model[1].threshold.requires_grad


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_learns_where_the_caller_wants_no_gradients(mode, tmp_path):
    with mode():
        without = small_train(tmp_path / "without")
    assert same(without.model, small_train(tmp_path / "with").model)


def test_thresholds_of_channels_that_no_image_has_been_through(tmp_path):
    activation = bridge.QCFS(8, 3.0, per_channel=True)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), activation, nn.Flatten(), nn.Linear(8 * 36, 10))
    train(model, patterns(), TINY, tmp_path, compile=False, device="cpu")
    assert len(activation.threshold.detach().flatten().unique()) == 8


@pytest.mark.parametrize(
    ("name", "shape"),
    [("mnist", (1, 28, 28)), ("digits", (1, 8, 8)), ("resnet20", (3, 32, 32)), ("resnet18", (3, 32, 32))],
)
def test_the_zoo_by_name(name, shape):
    model = models.build(name, 10, shape, levels=4, threshold=3.0).eval()
    assert model(torch.rand(2, *shape)).shape == (2, 10)
    activations = [module for module in model.modules() if isinstance(module, bridge.QCFS)]
    assert {(module.levels, module.threshold.item()) for module in activations} == {(4, 3.0)}


def test_the_small_network_converts():
    x = torch.rand(2, 1, 28, 28)
    model = models.build("mnist", 10, (1, 28, 28), levels=4, threshold=2.0).eval()
    assert bridge.convert(model, x).run(x, 4).readout.shape == (4, 2, 10)


def test_a_loss_that_is_not_finite(tmp_path):
    message = r"loss became (nan|inf) in epoch 1, batch \d; .*Last checkpoint: .*checkpoint.pt, after epoch 0 and"
    with pytest.raises(BridgeError, match=message):
        small_train(tmp_path, replace(TINY, learning_rate=1e30), checkpoint_minutes=0.0)


def test_weights_that_the_last_step_of_an_epoch_ruined_are_not_kept(tmp_path, monkeypatch):
    rates = iter([0.05] * (4 * STEPS - 1) + [math.inf])
    monkeypatch.setattr(training, "learning_rate", lambda *_: next(rates))
    with pytest.raises(BridgeError, match=r"weights are no longer finite; .*checkpoint\.pt, after epoch 3$"):
        small_train(tmp_path)
    kept = torch.load(tmp_path / CHECKPOINT)["model"]
    assert all(value.isfinite().all() for value in kept.values())
    assert not (tmp_path / WEIGHTS).exists()


@pytest.mark.parametrize("relu_epochs", [0, 1])
def test_thresholds_that_do_not_learn_rest(relu_epochs, tmp_path):
    model = models.build("digits", 10, (1, 8, 8), levels=8, threshold=2.0)
    thresholds = [module.threshold.requires_grad_(False) for module in models.activations(model)]
    train(model, patterns(), replace(TINY, relu_epochs=relu_epochs), tmp_path, compile=False, device="cpu")
    assert not any(threshold.requires_grad for threshold in thresholds)
    if not relu_epochs:  # else they were fitted to the data
        assert all((threshold == 2.0).all() for threshold in thresholds)


@pytest.mark.parametrize(
    ("model", "recipe", "options", "message"),
    [
        ("resnet5", TINY, {}, "model 'resnet5': expected one of resnet18"),
        ("resnet20", TINY, {}, r"resnet20 does not take images \[1, 8, 8\]"),
        ("vgg16", TINY, {}, r"vgg16: it does not take images \[1, 8, 8\]: .*multiple of 32"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), TINY, {}, "Sequential has no QCFS"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 9), bridge.QCFS(8)), TINY, {}, r"gives \[9\] values .* 10 classes"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10), bridge.QCFS(4)), TINY, {}, r"has L = \[4\], the recipe L = 8"),
        ("digits", replace(TINY, batch_size=200), {}, "batch_size = 200, but there are only 170"),
        ("digits", TINY, {"held_out": 170}, "held_out from 0 to 169; got 1 and 170"),
        ("digits", TINY, {"evaluate_every": 0}, "evaluate_every must be at least 1"),
    ],
)
def test_bad_input(model, recipe, options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        train(model, patterns(), recipe, tmp_path, compile=False, device="cpu", **options)
    assert list(tmp_path.iterdir()) == []
