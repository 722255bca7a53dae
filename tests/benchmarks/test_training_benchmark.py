"""The recipes of the networks that come with the package and of the paper's larger ones: ready, and what was used."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from training import TRAININGS, main, run

import bridge
from bridge.zoo.data import Dataset, Images
from bridge.zoo.models import load_weights
from bridge.zoo.pretrained import FOLDER
from bridge.zoo.recipes import Recipe


def noise(images: int = 24) -> Dataset:
    """As large as CIFAR-10's, and as coloured."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (images, 3, 32, 32), generator=generator).to(torch.uint8)
    part = Images(x, torch.arange(images) % 10)
    return Dataset("cifar10", part, part, tuple("abcdefghij"), (0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize(
    "name", ["resnet20-cifar10", "resnet18-cifar10", pytest.param("vgg16-cifar10", marks=pytest.mark.long)]
)
def test_a_fraction_of_an_epoch(name, tmp_path):
    """Three steps of each stage, in the paper's own batches' stead of 8 images."""
    planned = TRAININGS[name]
    stages = tuple(replace(stage, epochs=1, batch_size=8, precision="float32") for stage in planned.stages)
    result = run(replace(planned, stages=stages), noise(), tmp_path)
    assert [folder.name for folder in sorted(tmp_path.iterdir())] == [f"stage{k + 1}" for k in range(len(stages))]
    again = run(replace(planned, stages=stages), noise(), tmp_path)
    assert again.accuracy == result.accuracy
    model = load_weights(result.weights)
    x = torch.rand(2, 3, 32, 32)
    found = result.model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())
    assert bridge.convert(model, x).simulate(x, 2).outputs.shape == (2, 2, 10)


@pytest.mark.parametrize("name", ["digits", "mnist", "resnet20-cifar10"])
def test_the_weights_of_the_package_say_the_same_recipes(name):
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        found = file.metadata()
    assert (found["model"], found["data"], found["seed"]) == (TRAININGS[name].model, TRAININGS[name].data, "0")
    used = [Recipe(**json.loads(one["recipe"])) for one in [*json.loads(found.get("earlier", "[]")), found]]
    planned = TRAININGS[name].stages
    assert [replace(stage, precision=one.precision) for stage, one in zip(planned, used, strict=True)] == used


def test_every_recipe_for_cifar10_is_tried_here():
    assert {name for name, one in TRAININGS.items() if one.data == "cifar10"} == {
        "resnet18-cifar10",
        "resnet20-cifar10",
        "vgg16-cifar10",
    }


def test_by_name(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["resnet5"])
    assert "resnet20-cifar10" in capsys.readouterr().err
