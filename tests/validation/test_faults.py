"""Mutation tests of the validator: every fault of the catalogue is detected and blamed on the layer that has it."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from support import networks
from support.faults import FAULTS, STEPS, Fault, Faulty
from support.importers import IMPORTERS
from torch import nn

import bridge
from bridge.report.outcome import BackendAgreement

# What frameworks warn of while their importers run is not ours to test.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@cache
def example(name: str, images: int) -> tuple[bridge.SpikingNetwork, torch.Tensor]:
    """A network of the catalogue and images for it."""
    if name == "random":  # no grid: weights as training leaves them
        torch.manual_seed(0)
        linear = nn.Linear(16, 64), nn.Linear(64, 64), nn.Linear(64, 32)
        model = nn.Sequential(*(part for each in linear for part in (each, bridge.QCFS(8))), nn.Linear(32, 4))
        with torch.no_grad():
            for each in linear:
                each.weight *= 3
        x = torch.randn(images, 16)
        return bridge.convert(model, x), x
    model, shape = networks.ALL["cnn" if name == "whole" else name]()
    x = networks.dyadic_images(images, shape)
    network = bridge.convert(model, x)
    if name != "whole":
        return network, x
    network = network.quantize(8, calibration=x)
    return network, network.pixels(x)


def agreement_of(fault: Fault) -> BackendAgreement:
    network, x = example(fault.network, fault.images)
    agreement = network.validate(x, STEPS, [Faulty(fault)])
    assert not any(map(sum, agreement.reference.differing.values()))
    return agreement.backends[fault.name]


def cases(entries: list[Fault]) -> list[object]:
    return [pytest.param(e, id=e.name, marks=[pytest.mark.lava] if e.backend == "lava" else []) for e in entries]


@pytest.mark.parametrize("fault", cases(FAULTS))
def test_a_fault_is_detected_and_blamed_on_its_layer(fault):
    got = agreement_of(fault)
    assert got.images == fault.images
    assert not got.agreed
    assert got.ties == 0
    assert len(got.divergences) == got.unexplained, "the list is cut, so it may not show all layers: use fewer images"
    assert {divergence.layer for divergence in got.divergences} == set(fault.layers)
    assert (got.readouts_wrong > 0) == fault.readout
    if not fault.layers:
        assert got.first is None
        assert got.total_differing == 0
        return
    assert got.first is not None
    step, layer = got.first
    assert layer == fault.layers[0]
    if fault.step is not None:
        assert step == fault.step
    # What comes after the layer hears wrong spikes, and so differs, but is not blamed.
    *_, last = got.differing
    assert sum(got.differing[last]) > 0


HEALTHY = [
    Fault(f"{backend} on {network}, {images} images", network, backend, (), lambda native: None, images=images)
    for network, backend, images in dict.fromkeys((f.network, f.backend, f.images) for f in FAULTS)
    if backend not in IMPORTERS
]


@pytest.mark.parametrize("control", cases(HEALTHY))
def test_without_a_fault_there_is_nothing_to_find(control):
    got = agreement_of(control)
    assert got.agreed
    assert got.total_differing == 0
    assert got.divergences == []
    assert got.readout_error == 0


def test_the_catalogue():
    names = [fault.name for fault in FAULTS]
    assert len(names) == len(set(names)) >= 25


@pytest.mark.parametrize("value", ["several", "nan"])
def test_what_is_no_spike_is_not_recorded_as_one(value):
    """The next layer hears more than a record can say: it would be blamed for what it only heard."""

    def several(native):
        def fire(potential):
            found = (potential + 0.5).floor().clamp(min=0)
            return found if value == "several" else torch.where(found > 1, torch.nan, found)

        native.layer_4.fire = fire

    network, x = example("cnn", 10)
    fault = Fault("no spike", "cnn", "snntorch", ("layer_4",), several)
    with pytest.raises(bridge.ValidationError, match=r"'layer_4' says (\d\.0|nan) at step \d; a spike is 0 or 1"):
        network.validate(x, STEPS, [Faulty(fault)])
