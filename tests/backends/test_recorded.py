"""A record brought in from elsewhere is held against the reference as the backend that made it would be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support import networks
from support.backends import require

import bridge
from bridge import InputError, ValidationError
from bridge.backends.recorded import Recorded
from bridge.records import SpikeRecord
from bridge.simulate.reference import simulate

STEPS = 5


@pytest.fixture(scope="module")
def case():
    """A network, and images in three batches, all different."""
    model, shape = networks.mlp()
    x = networks.dyadic_images(150, shape)
    return bridge.convert(model, x), x


def test_a_frameworks_run_comes_back_from_a_file(case, tmp_path):
    """Every batch is held against its own images, beside the framework's own run."""
    network, x = case
    backend = require("spikingjelly")
    native = backend.export(network.to_nir())
    backend.run(native, x.numpy(), STEPS + 2).save(tmp_path / "run.npz")
    recorded = Recorded(tmp_path / "run.npz")
    agreement = network.validate(x, STEPS, [recorded, "spikingjelly"])
    assert list(agreement.backends) == ["spikingjelly (recorded)", "spikingjelly"]
    for result in agreement.backends.values():
        assert (result.images, result.total_differing, result.agreed) == (150, 0, True)
    some = network.validate(x, STEPS, [recorded], images={recorded.name: 70})
    assert some.backends[recorded.name].images == 70
    assert some.agreed


def test_images_in_another_order_are_found_out(case):
    network, x = case
    record = network.run(x.flip(0), STEPS)
    agreement = network.validate(x, STEPS, [Recorded(record, "flipped")])
    expected = network.run(x, STEPS)
    differing = {name: (record.spikes(name) != expected.spikes(name)).sum(axis=(1, 2)) for name in record.layers}
    assert agreement.backends["flipped"].differing == {name: row.tolist() for name, row in differing.items()}
    assert not agreement.agreed


@pytest.mark.parametrize("membranes", [True, False])
def test_recorded_membranes_explain_what_differs(case, membranes, tmp_path):
    """One neuron's wrong bias: the recorded potential is told where there is one, and unknown where there is none."""
    network, x = case
    first = next(layer for layer in network.graph.layers if hasattr(layer, "bias"))
    bias = first.bias.copy()
    bias[0] += 0.25
    wrong = network.graph.rewrite({first.name: [replace(first, bias=bias)]})
    record = simulate(wrong, x, STEPS, membranes=membranes)
    record.save(tmp_path / "wrong.npz")
    result = network.validate(x, STEPS, [Recorded(tmp_path / "wrong.npz", "wrong")]).backends["wrong"]
    assert not result.agreed
    for found in result.divergences:
        index = (found.step - 1, found.image, *found.neuron)
        expected = float(record.membranes[found.layer][index]) if membranes else None
        assert found.backend_membrane == expected
    assert {found.image // 64 for found in result.divergences} == {0, 1, 2}  # of all batches


def test_what_was_not_recorded_cannot_be_asked_for(case):
    network, x = case
    record = network.run(x[:70], STEPS)
    with pytest.raises(
        InputError, match="asked for images 64 to 127 at time steps 1 to 5, but the record holds images"
    ):
        network.validate(x, STEPS, [Recorded(record)])
    with pytest.raises(InputError, match="at time steps 1 to 6"):
        network.validate(x[:70], STEPS + 1, [Recorded(record)])
    recorded = Recorded(record)
    assert recorded.run(recorded.export(network.to_nir()), x[:70].numpy(), STEPS).images == 70
    with pytest.raises(InputError, match="6 images were given, and 70 are recorded"):
        recorded.run(record, x[:6].numpy(), STEPS)
    with pytest.raises(InputError, match="no membranes"):
        recorded.run(record, x[:70].numpy(), STEPS, membranes=True)


def test_a_record_of_another_network_is_refused(case):
    network, x = case
    other, shape = networks.cnn()
    images = networks.dyadic_images(4, shape)
    record = bridge.convert(other, images).run(images, STEPS)
    with pytest.raises(ValidationError, match="was another network recorded"):
        network.validate(x, STEPS, [Recorded(record)])


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        Recorded(tmp_path / "missing.npz")


def test_a_name_of_its_own(case):
    network, x = case
    record = network.run(x, STEPS)
    assert isinstance(record, SpikeRecord)
    agreement = network.validate(x, STEPS, [Recorded(record), Recorded(record, "chip 2")])
    assert list(agreement.backends) == ["reference (recorded)", "chip 2"]
    assert agreement.between["reference (recorded) | chip 2"] == {name: [0] * STEPS for name in network.layers}
    assert np.array_equal(record.readout, network.run(x, STEPS).readout)
