"""The numbers of an agreement, each against its definition, over several batches."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import networks, oracle
from support.backends import require

import bridge
from bridge import Agreement, InputError, ValidationError
from bridge.records import differing
from bridge.simulate.images import BATCH
from bridge.validation.backend_runs import batch_size

STEPS = 5


class Altered:
    """snnTorch, but that some spikes of a layer are said to be others than they were."""

    def __init__(self, name: str, layer: str, flips: list[tuple[int, int]]) -> None:
        self.name, self.layer, self.flips = name, layer, flips

    def available(self):
        return require("snntorch").available()

    def export(self, graph):
        return require("snntorch").export(graph)

    def run(self, native, x, steps, *, membranes=False):
        record = require("snntorch").run(native, x, steps, membranes=membranes)
        if len(x) == BATCH:  # in the first batch only
            for step, image in self.flips:
                record.packed[self.layer][step - 1, image, 0] ^= 128
        return record


@pytest.fixture(scope="module")
def case():
    model, shape = networks.cnn()
    x = networks.dyadic_images(BATCH + 9, shape)
    return model.eval(), bridge.convert(model, x), x


def test_measures_against_the_ann(case):
    model, network, x = case
    agreement = network.validate(x, STEPS, [])
    spikes, _ = oracle.spikes_of(model, x.numpy(), STEPS)
    signal, targets = x.double().numpy(), []
    for module in model:
        if isinstance(module, bridge.QCFS):
            height = oracle.per_channel(oracle.numpy(module.threshold), signal)
            signal = oracle.activation(signal, module.levels, height)
            targets.append(signal / height)
        else:
            signal = oracle.transform(module, signal)
    assert agreement.reference.cosine is not None
    assert agreement.reference.within is not None
    for layer, fired, target in zip(network.layers, spikes, targets, strict=True):
        for t in range(1, STEPS + 1):
            rate = fired[:t].sum(axis=0) / t
            cosine = (rate * target).sum() / np.sqrt((rate**2).sum() * (target**2).sum())
            assert agreement.reference.cosine[layer][t - 1] == pytest.approx(cosine, abs=1e-6)
            within = (np.abs(rate - target) <= 1 / t + 1e-6).mean()
            assert agreement.reference.within[layer][t - 1] == pytest.approx(within)


def test_backends_against_each_other_and_what_comes_first(case):
    _, network, x = case
    early = Altered("early", "layer_4", [(2, 3), (4, 3)])
    late = Altered("late", "layer_8", [(4, 0), (2, 5)])
    agreement = network.validate(x, STEPS, ["snntorch", early, late])
    none = {layer: [0] * STEPS for layer in network.layers}
    assert agreement.between == {
        "snntorch | early": {**none, "layer_4": [0, 1, 0, 1, 0]},
        "snntorch | late": {**none, "layer_8": [0, 1, 0, 1, 0]},
        "early | late": {**none, "layer_4": [0, 1, 0, 1, 0], "layer_8": [0, 1, 0, 1, 0]},
    }
    assert agreement.backends["snntorch"].first is None
    assert agreement.backends["early"].first == (2, "layer_4")
    assert agreement.backends["late"].first == (2, "layer_8")
    assert not agreement.backends["late"].agreed
    # A layer that heard a spike that was not fired would have fired otherwise: that is seen, too.
    assert {d.layer for d in agreement.backends["late"].divergences} == {"layer_8"}


def test_no_backend_takes_another_ones_name(case):
    """Or the later of the two would silently stand for both."""
    _, network, x = case
    for name in ("snntorch", "reference"):
        wrong = Altered(name, "layer_4", [(2, 3)])
        with pytest.raises(InputError, match=f"'{name}'.* a name of its own"):
            network.validate(x, STEPS, [wrong, "snntorch"])


def test_what_was_saved_is_read_again(case, tmp_path):
    _, network, x = case
    agreement = network.validate(x, STEPS, ["snntorch", Altered("late", "layer_8", [(4, 0)])], labels=[0] * len(x))
    agreement.save(tmp_path / "agreement.json")
    again = Agreement.load(tmp_path / "agreement.json")
    assert json.dumps(again.to_dict()) == json.dumps(agreement.to_dict())
    assert again.backends["late"].divergences == agreement.backends["late"].divergences
    assert again.agreed is False
    saved = json.loads((tmp_path / "agreement.json").read_text())
    contents: tuple[object, ...] = ({**saved, "format": 1}, {**saved, "backends": 3}, {}, [])
    for broken in contents:
        (tmp_path / "broken.json").write_text(json.dumps(broken))
        with pytest.raises(InputError, match=r"broken\.json"):
            Agreement.load(tmp_path / "broken.json")
    with pytest.raises(InputError, match=r"nothing\.json"):
        Agreement.load(tmp_path / "nothing.json")


def test_records_that_do_not_belong_together(case):
    _, network, x = case
    record = network.run(x[:3], 4)
    assert not any(counts.any() for counts in differing(record, record).values())
    with pytest.raises(ValidationError, match=r"4 steps .* 5 of"):
        differing(record, network.run(x[:3], 5))
    with pytest.raises(ValidationError, match="cannot be compared"):
        differing(record, replace(record, shapes={"other": (3,)}))


def test_batches_are_smaller_where_potentials_are_large():
    """Their bytes stay within bounds, whatever the network and the steps."""
    model, shape = networks.cnn()
    graph = bridge.convert(model, torch.zeros(1, *shape)).graph
    assert batch_size(graph, 4, 2) == BATCH
    neurons = sum(int(np.prod(graph.shapes[name])) for name in graph.spiking)
    for steps in (10_000, 100_000, 10**7):
        size = batch_size(graph, steps, 2)
        assert size == 1 or size * steps * neurons * 8 <= 2**29
    assert batch_size(graph, 10**9, 2) == 1


def test_samples_are_of_the_first_images(case):
    _, network, x = case
    agreement = network.validate(x, STEPS, [])
    record = network.run(x[:4], STEPS)
    for layer in network.layers:
        chosen = agreement.samples["neurons"][layer]
        fired = record.spikes(layer).reshape(STEPS, 4, -1)
        for image in range(4):
            for neuron, steps in zip(chosen, agreement.samples["raster"][layer][image], strict=True):
                assert steps == [t for t in range(1, STEPS + 1) if fired[t - 1, image, neuron]]
        points = np.array(agreement.samples["scatter"][layer])
        assert points.shape[1] == 2
        assert ((points >= 0) & (points <= 1)).all()
    assert agreement.environment["packages"]["torch"] == torch.__version__
