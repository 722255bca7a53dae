"""The validator finds what is wrong, where it begins, and tells a float tie from a mistake."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from rich.console import Console
from support import networks, oracle
from support.backends import require
from support.layers import affine, ours
from torch import nn

import bridge
from bridge import BackendError, InputError, ValidationError
from bridge.backends.recorded import Recorded
from bridge.report import table
from bridge.report.plot import plot_rate_error
from bridge.simulate.engine.engine import Engine
from bridge.simulate.reference import simulate
from bridge.validation import compare as compare_module
from bridge.validation.compare import BackendRun, Batch, Subject, agreement_of, compare

STEPS = 6


@pytest.fixture
def case():
    """A network and images."""
    model, shape = networks.cnn()
    x = networks.dyadic_images(10, shape)
    return model, bridge.convert(model, x), x


def check(network, x, run):
    """The agreement of one runner, on one batch."""
    runs = {"other": BackendRun(lambda x, start, membranes: run(x, membranes))}
    findings = compare(Batch(0, x, None), Subject(network.graph, network.ann, STEPS), runs)
    agreement = agreement_of(network.graph, [findings], STEPS, {"other": {}})
    return agreement.backends["other"]


@pytest.mark.lava
def test_agreement_of_all_backends(case, tmp_path):
    _, network, x = case
    for name in ("spikingjelly", "snntorch", "lava"):
        require(name)
    labels = np.arange(10) % 4
    agreement = network.validate(x, STEPS, ["spikingjelly", "snntorch", "lava"], labels=labels, images={"lava": 7})
    assert agreement.agreed
    assert [backend.images for backend in agreement.backends.values()] == [10, 10, 7]
    assert all(backend.total_differing == 0 and not backend.divergences for backend in agreement.backends.values())
    agreement.save(tmp_path / "deep" / "agreement.json")
    saved = json.loads((tmp_path / "deep" / "agreement.json").read_text())
    assert saved["agreed"] is True
    assert saved["backends"]["lava"]["versions"]["lava-nc"] == "0.10.0"
    assert saved["backends"]["snntorch"]["differing"] == {name: [0] * STEPS for name in network.layers}
    plot_rate_error(agreement, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table(agreement))
    text = console.export_text()
    assert "spikingjelly" in text
    assert text.count("equal") >= 3


def test_numbers_are_the_oracles(case):
    """Rate errors, top-1 and accuracy, worked out from the oracle's spikes and the model's own activations."""
    model, network, x = case
    labels = np.arange(10) % 4
    result = network.validate(x, STEPS, [], labels=torch.from_numpy(labels))
    spikes, readout = oracle.spikes_of(model, x.numpy(), STEPS)
    with torch.no_grad():
        ann_top1 = model.eval()(x).argmax(1).numpy()
    signal, targets = x.double().numpy(), []
    for module in model:
        if isinstance(module, bridge.QCFS):
            threshold = oracle.per_channel(oracle.numpy(module.threshold), signal)
            signal = oracle.activation(signal, module.levels, threshold)
            targets.append(signal / threshold)
        else:
            signal = oracle.transform(module, signal)
    for t in range(1, STEPS + 1):
        top1 = readout[:t].mean(axis=0).argmax(axis=1)
        assert result.reference.top1_ann[t - 1] == pytest.approx((top1 == ann_top1).mean())
        assert result.reference.accuracy[t - 1] == pytest.approx((top1 == labels).mean())
        for layer, fired, target in zip(network.layers, spikes, targets, strict=True):
            error = np.abs(fired[:t].mean(axis=0) - target)
            assert result.reference.rate_error[layer][t - 1] == pytest.approx(error.mean(), rel=1e-5)
            assert result.reference.rate_error_max[layer][t - 1] == pytest.approx(error.max(), rel=1e-5)
    assert result.ann_accuracy == pytest.approx((ann_top1 == labels).mean())


def sabotage_spikingjelly(native):
    native.get_submodule("layer_4").v_offset.fill_(0.4)


def sabotage_snntorch(native):
    native.get_submodule("layer_4").below.fill_(0.6)


@pytest.mark.parametrize(
    ("name", "sabotage"), [("spikingjelly", sabotage_spikingjelly), ("snntorch", sabotage_snntorch)]
)
def test_a_wrong_level_is_found_where_it_is(case, name, sabotage):
    """v(0) off by 0.1 in the middle layer of the framework's own network."""
    _, network, x = case
    backend = require(name)
    native = backend.export(network.to_nir())
    sabotage(native)
    got = check(network, x, lambda batch, membranes: backend.run(native, batch.numpy(), STEPS, membranes=membranes))
    assert not got.agreed
    first, middle, last = network.layers
    assert sum(got.differing[first]) == 0
    assert sum(got.differing[middle]) > 0
    assert sum(got.differing[last]) > 0
    assert {divergence.layer for divergence in got.divergences} == {middle}  # the last layer only inherits
    assert got.unexplained == len(got.divergences) > 0
    assert got.readouts_wrong == 0  # given its spikes, the readout is right
    assert got.ties == 0


def test_a_changed_weight_names_layer_step_and_neuron(case):
    _, network, x = case
    backend = require("spikingjelly")
    native = backend.export(network.to_nir())
    with torch.no_grad():
        native.get_submodule("layer_7").weight[3] += 0.25  # one output neuron
    got = check(network, x, lambda batch, membranes: backend.run(native, batch.numpy(), STEPS, membranes=membranes))
    assert {(divergence.layer, divergence.neuron) for divergence in got.divergences} == {(network.layers[2], (3,))}
    # Recomputed by hand from the spikes that the layer heard: the step and both potentials.
    heard = oracle.spikes_of(case[0], x.numpy(), STEPS)[0][1].astype(float)
    pooled = [oracle.pool(nn.AvgPool2d(2, (1, 2)), step).reshape(10, -1) for step in heard]
    layer = network.graph["layer_7"]
    seen = set()
    for divergence in got.divergences:
        b = divergence.image
        if b in seen:
            continue  # its first one is worked out below
        seen.add(b)
        u = v = 0.0
        for t in range(divergence.step):
            right = float(layer.weight[3].astype(float) @ pooled[t][b] + layer.bias[3])
            wrong = float((layer.weight[3].astype(float) + 0.25) @ pooled[t][b] + layer.bias[3])
            u, v = u + right, v + wrong
            if t + 1 < divergence.step:
                assert (u >= 0.5) == (v >= 0.5)
                u, v = u - (u >= 0.5), v - (v >= 0.5)
        assert (u >= 0.5) != (v >= 0.5)
        assert divergence.reference_membrane == pytest.approx(u)
        assert divergence.backend_membrane == pytest.approx(v)


@pytest.mark.lava
def test_float_ties_are_listed_and_accepted(tmp_path):
    """Rows that sum to the firing level but for rounding: float32 and Lava's float64 decide some differently."""
    require("lava")
    torch.manual_seed(0)
    weight = torch.rand(400, 37, dtype=torch.float64)
    weight *= 0.5 / weight.sum(dim=1, keepdim=True)
    first, second = nn.Linear(2, 37), nn.Linear(37, 400)
    model = nn.Sequential(first, networks.qcfs(1), second, networks.qcfs(4), nn.Linear(400, 2))
    with torch.no_grad():
        first.weight.zero_()
        first.bias.fill_(1.0)  # the first layer always fires
        second.weight.copy_(weight)
        second.bias.zero_()
    network = bridge.convert(model, torch.zeros(1, 2))
    x = torch.zeros(3, 2)
    agreement = network.validate(x, 1, ["lava"])
    got = agreement.backends["lava"]
    assert got.total_differing > 0, "no tie was decided differently, so this tests nothing"
    assert got.agreed
    assert got.ties == got.total_differing
    for divergence in got.divergences:
        assert divergence.tie
        assert divergence.backend_membrane is not None
        assert divergence.exact_membrane is not None
        assert divergence.rounding is not None
        assert (divergence.reference_membrane >= 0.5) != (divergence.backend_membrane >= 0.5)
        assert abs(divergence.reference_membrane - divergence.backend_membrane) < 1e-6
        assert 0 < divergence.rounding < 1e-5
        assert abs(divergence.backend_membrane - divergence.exact_membrane) <= divergence.rounding
    assert {divergence.image for divergence in got.divergences} == {0, 1, 2}
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table(agreement))
    assert "float tie" in console.export_text()
    # The same rows, wrong by a hundredth of a percent, are no tie.
    wrong = affine(network.graph, "layer_2")
    graph = network.graph.rewrite({"layer_2": [replace(wrong, weight=(wrong.weight * 0.9999).astype(np.float32))]})
    got = check(network, x, lambda batch, membranes: simulate(graph, batch, STEPS, membranes=membranes))
    assert not got.agreed
    assert got.unexplained > 0


@pytest.mark.parametrize("harm", ["int8", "bfloat16", "one percent"])
def test_wrong_weights_at_a_large_fan_in_are_no_ties(harm):
    """4608 inputs, as in VGG's 512·3·3: a bound on rounding must not be so wide that wrong weights pass as ties."""
    torch.manual_seed(0)
    first, second = nn.Linear(16, 4608), nn.Linear(4608, 64)
    model = nn.Sequential(first, bridge.QCFS(8, 1.0), second, bridge.QCFS(8, 2.0), nn.Linear(64, 4))
    with torch.no_grad():
        for linear in (first, second):
            linear.weight *= 3
    network = bridge.convert(model, torch.zeros(1, 16))
    layer = affine(network.graph, "layer_2")
    weight = layer.weight
    step = np.abs(weight).max() / 127
    harmed = {
        "int8": np.round(weight / step) * step,
        "bfloat16": torch.from_numpy(weight).bfloat16().float().numpy(),
        "one percent": weight * 1.01,
    }[harm].astype(np.float32)
    graph = network.graph.rewrite({"layer_2": [replace(layer, weight=harmed)]})
    x = torch.randn(8, 16)
    got = check(network, x, lambda batch, membranes: simulate(graph, batch, STEPS, membranes=membranes))
    assert got.total_differing > 0
    assert got.unexplained > 0
    assert not got.agreed
    # The same sums in another order and precision are ties at the most.
    other = check(
        network, x, lambda batch, membranes: simulate(network.graph, batch.double(), STEPS, membranes=membranes)
    )
    assert other.agreed


@pytest.mark.parametrize("harm", ["sign", "bias"])
def test_a_wrong_readout_is_no_agreement(case, harm):
    _, network, x = case
    backend = require("snntorch")
    native = backend.export(network.to_nir())
    readout = native.get_submodule("layer_9")
    with torch.no_grad():
        readout.weight.neg_() if harm == "sign" else readout.bias.add_(1e-3)
    got = check(network, x, lambda batch, membranes: backend.run(native, batch.numpy(), STEPS, membranes=membranes))
    assert got.total_differing == 0
    assert got.readouts_wrong == 10 * STEPS
    assert not got.agreed


def test_a_mismatch_that_cannot_be_reproduced_is_no_tie(case):
    _, network, x = case

    def flaky(batch, membranes):
        record = simulate(network.graph, batch, STEPS, membranes=membranes)
        if membranes:
            return record
        packed = {name: bits.copy() for name, bits in record.packed.items()}
        packed[network.layers[0]][2, 4, 0] ^= 128  # one bit, in the first run only
        return replace(record, packed=packed)

    got = check(network, x, flaky)
    assert not got.agreed
    assert got.divergences[0].step == 3
    assert got.divergences[0].image == 4
    assert got.divergences[0].backend_membrane is None


def spoil_nan(record):
    record.readout[0, 0, 0] = np.nan
    return record


def spoil_layer(record):
    _, *rest = record.layers
    return replace(record, packed={name: record.packed[name] for name in rest})


def spoil_steps(record):
    return replace(record, readout=record.readout[:-1])


def spoil_shape(record):
    return replace(record, shapes={**record.shapes, record.layers[0]: (1, 2)})


def spoil_packed(record):
    return replace(record, packed={name: bits[:, :1] for name, bits in record.packed.items()})


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (spoil_packed, "packed spikes"),
        (spoil_nan, "NaN"),
        (spoil_layer, "layers"),
        (spoil_steps, "readout"),
        (spoil_shape, "layers"),
    ],
)
def test_records_that_do_not_fit_are_refused(case, spoil, says):
    _, network, x = case
    with pytest.raises(ValidationError, match=says):
        check(network, x, lambda batch, membranes: spoil(simulate(network.graph, batch, STEPS, membranes=membranes)))


def test_a_record_without_the_membranes_asked_for(case):
    _, network, x = case
    wrong = network.graph.rewrite({"layer_9": [network.graph["layer_9"]]})
    first = network.graph.layers[1]
    wrong = wrong.rewrite({first.name: [replace(first, bias=first.bias + 1)]})
    with pytest.raises(ValidationError, match="asked for membranes"):
        check(network, x, lambda batch, membranes: simulate(wrong, batch, STEPS))


def test_no_data_is_an_error(case):
    _, network, _ = case
    with pytest.raises(ValidationError, match="no image"):
        agreement_of(network.graph, [], STEPS, {})


def test_batches_give_what_one_image_at_a_time_gives():
    model, shape = networks.mlp()
    x = networks.dyadic_images(150, shape)  # three batches, the last one short
    network = bridge.convert(model, x)
    labels = np.arange(150) % 5
    result = network.validate(x, 4, ["snntorch"], labels=labels, images={"snntorch": 70})
    spikes, readout = oracle.spikes_of(model, x.numpy(), 4)
    top1 = readout.mean(axis=0).argmax(axis=1)
    assert result.reference.images == 150
    assert result.backends["snntorch"].images == 70
    accuracy = {"reference": result.reference.accuracy, "snntorch": result.backends["snntorch"].accuracy}
    assert (accuracy["reference"] or [])[-1] == pytest.approx((top1 == labels).mean())
    assert (accuracy["snntorch"] or [])[-1] == pytest.approx((top1[:70] == labels[:70]).mean())
    record = network.run(x, 4)
    np.testing.assert_array_equal(record.spikes(network.layers[0]), spikes[0])


def test_a_loaded_network_has_no_ann(case, tmp_path):
    _, network, x = case
    network.save(tmp_path / "net.nir")
    agreement = ours(bridge.load(tmp_path / "net.nir")).validate(x, STEPS, ["snntorch"], labels=[0] * 10)
    assert agreement.agreed
    assert agreement.reference.rate_error is None
    assert agreement.reference.top1_ann is None
    assert agreement.reference.accuracy is not None
    Console(quiet=True).print(table(agreement))
    with pytest.raises(InputError, match="ANN"):
        plot_rate_error(agreement, tmp_path / "plot.png")


def test_bad_arguments(case):
    _, network, x = case
    with pytest.raises(BackendError, match=r"no backend is called 'brian'.*lava, .*snntorch, spikingjelly"):
        network.validate(x, 2, ["brian"])
    with pytest.raises(InputError, match="labels"):
        network.validate(x, 2, [], labels=[1, 2])
    with pytest.raises(InputError, match="labels"):
        network.validate(x, 2, [], labels=[0.5] * 10)
    classes = network.graph.shapes[network.graph.output.name][0]
    with pytest.raises(InputError, match=rf"labels go from 0 to {classes - 1}; image 2 has {classes}"):
        network.validate(x[:3], 2, [], labels=[0, 1, classes])
    with pytest.raises(InputError, match="backends: expected"):
        network.validate(x, 2, 7)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="backends: expected"):
        network.validate(x, 2, [None])  # type: ignore[list-item]
    with pytest.raises(InputError, match="images: expected"):
        network.validate(x, 2, [], images=7)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="not among the backends"):
        network.validate(x, 2, ["snntorch"], images={"lava": 2})
    with pytest.raises(InputError, match="steps"):
        network.validate(x, 0, [])
    for limit in (0, -1, 2.5, True):
        with pytest.raises(InputError, match=r"images\['snntorch'\]: expected a whole number"):
            network.validate(x, 2, ["snntorch"], images={"snntorch": limit})
    assert network.validate(x, np.int64(2), "snntorch").agreed  # one name, and numpy's whole numbers, will do
    assert not network.validate(x, 2, []).agreed, "no backend is no agreement"


def integers(name: str = "cnn", images: int = 10, **arguments):
    """A network in integers, and pixels."""
    model, shape = networks.ALL[name]()
    x = torch.rand(images, *shape, generator=torch.Generator().manual_seed(1))
    network = bridge.convert(model, x, **arguments).quantize(8, x)
    return network, network.pixels(x)


@pytest.mark.parametrize(("name", "schedule"), [("cnn", "plain"), ("residual", "plain"), ("cnn", "staged")])
def test_in_integers_the_engine_decides_as_the_reference_does(name, schedule, tmp_path):
    """The whole agreement is the same, but for who decided: against the emulator, which is the engine, it may not."""
    require("snntorch")
    network, x = integers(name, 70, schedule=schedule)
    steps = 11 if schedule == "plain" else None
    by_engine = network.validate(x, steps, ["snntorch"], labels=np.arange(70) % 3)
    by_reference = network.validate(x, steps, ["snntorch", "lava-twin"], labels=np.arange(70) % 3)
    assert (by_engine.simulator, by_engine.checked_images) == ("engine", 64)
    assert (by_reference.simulator, by_reference.checked_images) == ("reference", 70)
    assert by_engine.agreed
    assert by_reference.agreed
    both = [agreement.to_dict() for agreement in (by_engine, by_reference)]
    for found in both:
        for name in ("simulator", "checked_images", "between", "environment"):
            del found[name]
    del both[1]["backends"]["lava-twin"]
    clipping = [found.pop("rate_error") for found in both]
    assert both[0] == both[1]
    if schedule == "plain":  # the only sums that are not whole
        for part, layers in clipping[0]["parts"].items():
            for layer, row in layers.items():
                assert row == pytest.approx(clipping[1]["parts"][part][layer], abs=1e-7)
    by_engine.save(tmp_path / "agreement.json")
    assert bridge.Agreement.load(tmp_path / "agreement.json").simulator == "engine"


def test_floats_and_records_of_the_engine_are_judged_by_the_reference(case):
    _, network, x = case
    assert network.validate(x, STEPS, []).simulator == "reference"
    whole, pixels = integers()
    for record in (whole.simulate(pixels, STEPS, record=True).record, whole.run(pixels, STEPS)):
        agreement = whole.validate(pixels, STEPS, [Recorded(record, "recorded")])
        assert agreement.agreed
        assert agreement.simulator == ("reference" if record.backend == "engine" else "engine")


def test_an_engine_that_differs_does_not_decide(monkeypatch):
    """It is held against the reference in every validation, and what is wrong is named."""
    network, x = integers()
    run = Engine.run

    def wrong(self, *arguments, **options):
        found = run(self, *arguments, **options)
        assert found.record is not None
        found.record.packed[network.layers[1]][0, 0, 0] ^= 1 << 6
        return found

    monkeypatch.setattr(Engine, "run", wrong)
    with pytest.raises(ValidationError, match=rf"first in {network.layers[1]}.*\{{'{network.layers[1]}': 1\}}"):
        network.validate(x, STEPS, [])


def test_a_fault_in_a_long_run_in_integers_is_explained_some_images_at_a_time(monkeypatch):
    """Potentials of a staged network take much memory, its spikes do not: the batch is large, what is looked at not."""
    require("snntorch")
    network, x = integers("cnn", 12, schedule="staged")
    expected = network.validate(x, None, [sabotaged(monkeypatch)]).backends["snntorch"]
    assert not expected.agreed
    monkeypatch.setattr(compare_module, "POTENTIALS", 8 * network.latency * network.graph.neurons * 5)
    assert compare_module.potentials_at_once(network.graph, network.latency) == 5
    assert asdict(network.validate(x, None, [sabotaged(monkeypatch)]).backends["snntorch"]) == asdict(expected)


def sabotaged(monkeypatch):
    """A backend with a weight off."""
    backend = require("snntorch")
    export = backend.export

    def wrong(graph):
        native = export(graph)
        with torch.no_grad():
            next(p for p in native.parameters() if p.dim() > 1).view(-1)[0] += 3
        return native

    monkeypatch.setattr(backend, "export", wrong)
    return backend
