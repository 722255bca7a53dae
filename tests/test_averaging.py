"""The mean of trained networks: of their weights, with batch norm's statistics as the mean has them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_train import TINY, patterns, small_train
from torch import nn

from bridge.errors import InputError
from bridge.zoo.averaging import average
from bridge.zoo.models import load_weights
from bridge.zoo.recipes import Recipe
from bridge.zoo.train import CARD, WEIGHTS, train

PLAIN = replace(TINY, epochs=2, relu_epochs=0, padding=0, cutout=0)
"""Images as they are."""


@pytest.fixture
def runs(tmp_path):
    first = small_train(tmp_path / "first", PLAIN)
    return first, small_train(tmp_path / "second", replace(PLAIN, epochs=1), seed=5, initial=first.weights)


def test_weights_are_the_mean_and_statistics_are_measured(runs, tmp_path):
    path = average([run.weights for run in runs], patterns(), tmp_path / "mean.safetensors")
    mean, (one, other) = load_weights(path), (run.model for run in runs)
    for (name, found), a, b in zip(mean.named_parameters(), one.parameters(), other.parameters(), strict=True):
        np.testing.assert_allclose(found.detach(), (a.detach().numpy() + b.detach().numpy()) / 2, atol=1e-6)
        assert not torch.equal(a, b), name
    assert isinstance(mean[1], nn.BatchNorm2d)
    data = patterns()
    with torch.no_grad():
        heard = mean[0](data.normalise(data.train.x)).numpy().astype(np.float64)  # 170 images, one batch
    np.testing.assert_allclose(mean[1].running_mean, heard.mean(axis=(0, 2, 3)), atol=1e-5)
    np.testing.assert_allclose(mean[1].running_var, heard.var(axis=(0, 2, 3), ddof=1), rtol=1e-4)


def test_a_run_can_begin_with_it_and_its_card_says_how(runs, tmp_path):
    path = average([run.weights for run in runs], patterns(), tmp_path / "mean.safetensors")
    recipe = replace(PLAIN, epochs=1)
    third = small_train(tmp_path / "third", recipe, initial=path)
    card = third.card.read_text()
    first, second = (f"{run.accuracy:.2%}" for run in runs)
    assert f"the mean of the weights of 2 runs, of 2 epochs ({first}) and 1 epochs ({second})" in card
    script = card.split("```python\n")[2].split("```")[0]
    calls = []
    names = {
        "train": lambda *arguments, **options: calls.append((arguments[2:], options)),
        "average": lambda *arguments: calls.append(arguments),
        "Recipe": Recipe,
        "data": "data",
    }
    exec("\n".join(line for line in script.splitlines() if not line.startswith(("from ", "data = "))), names)
    (one, _), (other, began), mean, (last, options) = calls
    assert (one[0], other[0], last[0]) == (PLAIN, replace(PLAIN, epochs=1), recipe)
    assert began["initial"] == f"{one[1]}/{WEIGHTS}"
    assert mean == ([f"{one[1]}/{WEIGHTS}", f"{other[1]}/{WEIGHTS}"], "data", options["initial"])
    assert (tmp_path / "third" / CARD).exists()


def test_bad_input(runs, tmp_path):
    data, path = patterns(), runs[0].weights
    with pytest.raises(InputError, match="at least two weights files, got 1"):
        average([path], data, tmp_path / "mean.safetensors")
    with pytest.raises(InputError, match="cannot be read"):
        average([path, tmp_path / "none.safetensors"], data, tmp_path / "mean.safetensors")
    named = replace(data, classes=tuple("abcdefghix"))
    other = train("digits", named, PLAIN, tmp_path / "other", compile=False, device="cpu").weights
    with pytest.raises(InputError, match="of one model and data set"):
        average([path, other], data, tmp_path / "mean.safetensors")
    torch.save({}, tmp_path / "theirs.pt")
    with pytest.raises(InputError, match="of one model"):
        average([path, tmp_path / "theirs.pt"], data, tmp_path / "mean.safetensors")
    assert not (tmp_path / "mean.safetensors").exists()
