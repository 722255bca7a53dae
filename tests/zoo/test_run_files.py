"""What a run leaves: metrics, weights that come back as the network, a card that says how to train it again."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.training import TINY, lines, observed, patterns, same, small_train
from torch import nn

import bridge
from bridge.errors import BridgeError, InputError
from bridge.zoo.models import load_weights
from bridge.zoo.recipes import Recipe
from bridge.zoo.training.augment import standard
from bridge.zoo.training.run_files import CARD, METRICS, WEIGHTS
from bridge.zoo.training.train import train


def test_metrics_are_lines_of_json(tmp_path):
    result = small_train(tmp_path, evaluate_every=3)
    assert lines(tmp_path) == result.metrics
    (tmp_path / METRICS).unlink()  # as if killed before they were written, but after the checkpoint was
    small_train(tmp_path, evaluate_every=3)
    assert lines(tmp_path) == result.metrics
    assert [line["epoch"] for line in result.metrics] == [1, 2, 3, 4]
    assert [line["activation"] for line in result.metrics] == ["relu", "relu", "qcfs", "qcfs"]
    assert [line["test_accuracy"] is None for line in result.metrics] == [True, True, False, False]
    assert result.metrics[-1]["test_accuracy"] == result.accuracy
    assert all(line["learning_rate"] > 0 and line["seconds"] >= 0 for line in result.metrics)


def test_weights_come_back_as_the_network(tmp_path):
    recipe = replace(TINY, levels=4, epochs=1, relu_epochs=0)
    result = small_train(tmp_path, recipe)
    loaded = load_weights(tmp_path / WEIGHTS)
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(loaded(x), result.model(x))
    assert not loaded.training
    assert {module.levels for module in loaded.modules() if isinstance(module, bridge.QCFS)} == {4}


def test_the_card_says_how_to_train_it_again(tmp_path):
    result = small_train(tmp_path)
    card = (tmp_path / CARD).read_text()
    assert f"{result.accuracy:.2%}" in card
    assert f"| epochs | {TINY.epochs} |" in card
    recipe = next(line for line in card.splitlines() if line.startswith("recipe = "))
    assert eval(recipe.removeprefix("recipe = "), {"Recipe": Recipe}) == TINY
    assert str(tmp_path) not in card


def test_the_card_of_a_module_of_ones_own(tmp_path):
    def shifted(*arguments, **options):
        return standard(*arguments, **options)

    model = nn.Sequential(nn.Conv2d(1, 8, 3), bridge.QCFS(8, 3.0), nn.Flatten(), nn.Linear(8 * 36, 10))
    result = train(model, patterns(), TINY, tmp_path, augment=shifted, compile=False, device="cpu")
    card = result.card.read_text()
    assert "means [0.5] and standard deviations [0.3]" in card
    use, again = (part.split("```")[0] for part in card.split("```python\n")[1:])
    compile(again, "card", "exec")
    assert "model = ...  # your Sequential" in again
    assert again.splitlines()[-1] == 'train(model, data, recipe, "out", seed=0, augment=augment, compile=False)'
    other = nn.Sequential(nn.Conv2d(1, 8, 3), bridge.QCFS(8, 3.0), nn.Flatten(), nn.Linear(8 * 36, 10))
    images = torch.rand(2, 1, 8, 8)
    found: dict[str, Any] = {"model": other, "images": images}
    exec(use.replace(WEIGHTS, str(result.weights)), found)
    assert same(found["model"], model)
    assert found["network"].run(images, 2).readout.shape == (2, 2, 10)


def test_held_out_images_are_reported_on_and_not_trained_on(tmp_path):
    result = small_train(tmp_path, held_out=40)
    assert all("test_accuracy" not in line and 0 <= line["held_out_accuracy"] <= 1 for line in result.metrics)
    assert 0 <= result.accuracy <= 1
    assert "40 of the training images held out" in (tmp_path / CARD).read_text()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        small_train(tmp_path / "file" / "out")


def test_weights_of_something_else(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(InputError, match=r"cannot be read|not weights"):
        load_weights(tmp_path / "none.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"not weights that bridge\.zoo\.training\.train wrote"):
        load_weights(tmp_path / "other.safetensors")
    observed(tmp_path, replace(TINY, epochs=1, relu_epochs=0))
    with pytest.raises(InputError, match=r"holds weights of Sequential; make that module and use"):
        load_weights(tmp_path / WEIGHTS)


def test_without_safetensors_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(BridgeError, match="pip install"):
        small_train(tmp_path)
