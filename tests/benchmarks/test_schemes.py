"""Other schemes for few steps, neuron by neuron, and the page of accuracies from a small run of all of it."""

from __future__ import annotations

import json
from statistics import mean

import accuracy
import numpy as np
import pytest
import schemes
import torch
from torch import nn

import bridge
from bridge import QCFS, InputError
from bridge.passes.calibration import gradient, search
from bridge.zoo.data import dataset
from bridge.zoo.digits import load_digits
from bridge.zoo.pretrained import DATA, FOLDER, pretrained


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(4, 40), QCFS(4, 0.6), nn.Linear(40, 30), QCFS(4, 0.6), nn.Linear(30, 3))
    return bridge.convert(model, torch.rand(1, 4))


def layers(network):
    """Weights and biases of the three affine layers, in float64."""
    return [(network.graph[i].weight.astype(float), network.graph[i].bias.astype(float)) for i in names(network)]


def names(network):
    return [layer.name for layer in network.graph if hasattr(layer, "weight")]


def neuron(drive, start):
    """Spikes of one neuron and v at the end."""
    v, spikes = start, []
    for now in drive:
        v += now
        spikes.append(float(v >= 1))
        v -= spikes[-1]
    return spikes, v


def through(network, x, steps, neurons):
    """The readout [S, 3] for one image; `neurons` makes spikes of the drive of one neuron."""
    heard = np.repeat(x.numpy().astype(float)[None], steps, axis=0)
    *hidden, (last, bias) = layers(network)
    for weight, shift in hidden:
        drive = heard @ weight.T + shift
        heard = np.stack([neurons(drive[:, i]) for i in range(drive.shape[1])], axis=1)
    return heard @ last.T + bias


def images():
    return torch.rand(6, 4, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("steps", [2, 5, 12])
def test_srp(network, steps):
    first = min(4, steps // 2)
    silenced = 0

    def neurons(drive):
        nonlocal silenced
        heard, left = neuron(drive[:first], 0.5)
        second, _ = neuron(drive[first:], 0.5)
        silenced += left <= 1e-3 and any(second)
        return [*heard, *(second if left > 1e-3 else [0.0] * len(second))]

    found = schemes.srp(network, images(), steps)
    for x, output in zip(images(), found, strict=True):
        wanted = through(network, x, steps, neurons)[first:].mean(axis=0)
        np.testing.assert_allclose(output, wanted, atol=1e-5)
    assert silenced > 0 or steps < 12


@pytest.mark.parametrize("steps", [2, 5, 12])
def test_cos(network, steps):
    first = min(4, steps // 2)
    shifted = {"less": 0, "more": 0}

    def neurons(drive):
        v = 0.5
        at_spikes: list[float] = []
        at_silences: list[float] = []
        for now in drive[:first]:
            v += now
            (at_spikes if v >= 1 else at_silences).append(v)
            v -= v >= 1
        start = 0.5
        if v < 0 and at_spikes:
            start -= max(1.0, min(at_spikes) - 1 + 1e-3)
            shifted["less"] += 1
        elif v >= 1:
            start += max(1.0, 1 + 1e-3 - max(at_silences, default=-np.inf)) if at_silences else 1.0
            shifted["more"] += 1
        return neuron(drive, start)[0]

    found = schemes.cos(network, images(), steps)
    for x, output in zip(images(), found, strict=True):
        wanted = through(network, x, steps - first, neurons).mean(axis=0)
        np.testing.assert_allclose(output, wanted, atol=1e-5)
    assert shifted["less"] + shifted["more"] > 0


def test_delayed_readout(network):
    """Of 8 steps the last 6 count; of 3 all do."""
    for x in images():
        for steps, left_out in ((8, 2), (3, 0)):
            readout = through(network, x, steps, lambda drive: neuron(drive, 0.5)[0])
            found = schemes.delayed_readout(network, x.unsqueeze(0), steps)[0]
            np.testing.assert_allclose(found, readout[left_out:].mean(axis=0), atol=1e-5)


def test_the_page(tmp_path, monkeypatch):
    """Measured once, kept, and written as tables whose figures are those of the file."""
    monkeypatch.setattr(accuracy, "IMAGES", 100)  # to calibrate on, and few steps: accuracy is not what is tested
    monkeypatch.setattr(gradient, "MOST_STEPS", 5)
    monkeypatch.setattr(search, "EMPHASES", (1.0,))
    run = ["digits", "--steps", "1", "2", "--compare", "2", "--out", str(tmp_path / "a.json")]
    accuracy.main([*run, "--page", str(tmp_path / "a.md")])
    first = (tmp_path / "a.json").read_text(encoding="utf-8")
    result = json.loads(first)["digits"]
    of: dict[tuple[str, int, int | None], list[float]] = {}
    for row in result["rows"]:
        of.setdefault((row["scheme"], row["steps"], row.get("images")), []).append(row["accuracy"])
    labels = load_digits()[3]
    with torch.no_grad():
        data = dataset("digits")
        right = pretrained("digits")(data.normalise(data.test.x)).argmax(dim=1).numpy() == labels
    assert result["ann"] == pytest.approx(right.mean())
    assert len(of["calibrated", 2, None]) == 3
    assert len(of["SRP", 2, 2000]) == 1
    page = (tmp_path / "a.md").read_text(encoding="utf-8")
    plain = " | ".join(f"{100 * of['plain', t, None][0]:.2f}" for t in (1, 2))
    assert f"| ours, plain | {100 * right.mean():.2f} | {plain} |" in page
    assert f"{100 * mean(of['calibrated', 2, None]):.2f}" in page
    result["rows"][0]["accuracy"] = 0.1234  # what is there is not measured again
    (tmp_path / "a.json").write_text(json.dumps({"digits": result}), encoding="utf-8")
    accuracy.main([*run, "--page", str(tmp_path / "a.md")])
    assert "12.34" in (tmp_path / "a.md").read_text(encoding="utf-8")


def test_the_documents_say_what_was_measured():
    results = json.loads((accuracy.DOCS / "results" / "accuracy.json").read_text(encoding="utf-8"))
    assert (accuracy.DOCS / "accuracy.md").read_text(encoding="utf-8") == accuracy.page(results)
    rows = [row for row in results["resnet20-cifar10"]["rows"] if row["steps"] == 2 and "images" not in row]
    after, before = (
        100 * mean(row["accuracy"] for row in rows if row["scheme"] == scheme) for scheme in ("calibrated", "plain")
    )
    readme = " ".join((accuracy.DOCS.parent / "README.md").read_text(encoding="utf-8").split())
    assert f"is right on {after:.1f} % of the test images, not on {before:.1f} %" in readme


def test_photographs_are_more_and_given_mirrored_too(monkeypatch):
    given = []
    monkeypatch.setattr(accuracy, "IMAGES", 3)
    monkeypatch.setattr(accuracy, "MORE", 5)
    monkeypatch.setattr(accuracy.SpikingNetwork, "calibrate", lambda self, x, steps: given.append(x.numpy()))
    subject = accuracy.Subject("digits", dataset("digits"))
    subject.calibrated(1, 4)
    monkeypatch.setattr(accuracy, "PHOTOGRAPHS", ("digits",))
    subject.calibrated(1, 4)
    plain, both = given
    assert plain.shape == (3, 1, 8, 8)
    assert np.array_equal(both[:3], plain)
    assert both.shape == (10, 1, 8, 8)
    assert np.array_equal(both[5:], both[:5, ..., ::-1])


@pytest.mark.parametrize("name", DATA)
def test_trained_networks(name):
    """Each comes with a card that says what its weights say."""
    model = pretrained(name)
    assert not model.training
    card = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
    assert f'load_weights("{name}.safetensors")' in card
    shape = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "resnet20-cifar10": (3, 32, 32)}[name]
    assert bridge.convert(model, torch.rand(1, *shape)).simulate(torch.rand(2, *shape), 2).outputs.shape == (2, 2, 10)


def test_no_such_network():
    with pytest.raises(InputError, match="there are digits, mnist, resnet20-cifar10"):
        pretrained("vgg")
