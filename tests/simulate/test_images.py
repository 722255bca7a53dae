"""One rule for images, wherever they are taken: integers are pixels, floats are the ANN's input."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import nir
import numpy as np
import pytest
import torch
from support.backends import require
from support.layers import ours
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bridge
from bridge import GraphError, InputError
from bridge.errors import RangeWarning
from bridge.simulate.ann import activations
from bridge.simulate.reference import simulate

STEPS = 4
MEAN, STD = [0.4, 0.5], [0.25, 0.2]
FLOAT = ("spikingjelly", "snntorch", "onnxruntime", "norse", "rockpool", "sinabs", "spyx", "nengo")
INTEGER = (*FLOAT, "slayer", "lava-twin")
NO_PIXELS = r"integers are pixels, and this network takes the ANN's input.*got .*int"


@cache
def networks():
    """A network in floats, the same in integers, pixels for it, what the ANN takes in their place, and classes."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (12, 2, 6, 6), generator=generator, dtype=torch.uint8)
    pixels[0, :, 0, 0], pixels[0, :, 0, 1] = 0, 255
    mean, std = (torch.tensor(values).reshape(1, 2, 1, 1) for values in (MEAN, STD))
    x = (pixels / 255 - mean) / std
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), bridge.QCFS(8), nn.Flatten(), nn.Linear(48, 6), bridge.QCFS(4))
    network = bridge.convert(nn.Sequential(*model, nn.Linear(6, 3)).eval(), x)
    whole = network.calibrate(x, 2).quantize(8, x, "per_layer", normalisation=(MEAN, STD))
    return network, whole, pixels, x, torch.arange(12) % 3


def forms(pixels, x, labels):
    """The same images in every way in which they may be given."""
    return {
        "uint8": pixels,
        "int64": pixels.long(),
        "int16 array": pixels.numpy().astype(np.int16),
        "uint64 array": pixels.numpy().astype(np.uint64),
        "DataLoader": DataLoader(TensorDataset(pixels, labels), batch_size=5),
        "list of batches": [pixels[:7].numpy(), pixels[7:]],
        "float32": x,
        "float64": x.double(),
        "float64 array": x.double().numpy(),
        "an array in another order": np.ascontiguousarray(x.numpy()[::-1, :, ::-1])[::-1, :, ::-1],
        "big-endian": x.numpy().astype(">f4"),
        "integers in another order": np.ascontiguousarray(pixels.numpy()[::-1])[::-1],
        "DataLoader of floats": DataLoader(TensorDataset(x), batch_size=5),
        "a tensor with gradients": x.clone().requires_grad_(),
    }


@pytest.mark.parametrize("form", forms(*networks()[2:]))
def test_a_network_in_integers_takes_all_of_these(form, tmp_path):
    """And so does the one that was read from its file."""
    _, whole, pixels, x, labels = networks()
    given = forms(pixels, x, labels)[form]
    expected = whole.run(pixels, STEPS)
    whole.save(tmp_path / "net.nir")
    for network in (whole, ours(bridge.load(tmp_path / "net.nir"))):
        assert torch.equal(network.pixels(given), pixels)
        assert network.pixels(given).dtype == torch.uint8
        assert np.array_equal(network.run(given, STEPS).readout, expected.readout)
        assert np.array_equal(network.simulate(given, STEPS).outputs, expected.outputs())
        agreement = network.validate(given, STEPS, ["lava-twin"])
        assert agreement.agreed
        assert agreement.reference.images == 12
        assert (agreement.reference.accuracy is not None) == (form == "DataLoader")
        assert len(bridge.SpikeRecord.concatenate([network.run(given, 1)]).layers) == 2


def test_labels_of_a_loader_are_those_of_its_images():
    _, whole, pixels, _, labels = networks()
    loader = DataLoader(TensorDataset(pixels, labels), batch_size=5)
    found = whole.validate(loader, STEPS, [])
    assert found.reference.accuracy == whole.validate(pixels, STEPS, [], labels=labels.tolist()).reference.accuracy
    others = whole.validate(loader, STEPS, [], labels=(labels + 1) % 3)
    assert others.reference.accuracy == whole.validate(pixels, STEPS, [], labels=(labels + 1) % 3).reference.accuracy


@pytest.mark.parametrize(
    "use",
    [
        lambda network, x: network.run(x, STEPS),
        lambda network, x: network.simulate(x, STEPS),
        lambda network, x: network.validate(x, STEPS, []),
        lambda network, x: network.calibrate(x, STEPS),
        lambda network, x: network.time_biased(x, STEPS),
        lambda network, x: network.time_biased(networks()[3], STEPS).simulate(x),
        lambda network, x: network.to_nir("if", measured_on=x),
        lambda network, x: network.reduce(x, STEPS, "lava-twin"),
        lambda network, x: bridge.reduce(network, x, STEPS, "lava-twin"),
    ],
)
def test_a_float_network_refuses_pixels(use):
    network, _, pixels, _, labels = networks()
    for given in (pixels, pixels.numpy(), pixels.long(), DataLoader(TensorDataset(pixels, labels), batch_size=5)):
        with pytest.raises(InputError, match=NO_PIXELS):
            use(network, given)
    with pytest.raises(InputError, match=r"calibration: integers are pixels, got .*normalisation=\(mean, std\)"):
        network.quantize(8, pixels)
    with pytest.raises(InputError, match=r"pixels: this network takes the ANN's input itself; quantize"):
        network.pixels(pixels)


def test_quantized_from_pixels():
    """With their normalisation, they are as good as what the ANN takes."""
    network, _, pixels, x, _ = networks()
    one, other = (network.quantize(8, given, normalisation=(MEAN, STD)) for given in (pixels, x))
    assert np.array_equal(one.run(pixels, STEPS).readout, other.run(pixels, STEPS).readout)
    loader = network.quantize(8, DataLoader(TensorDataset(x), batch_size=5))
    assert np.array_equal(loader.run(x, STEPS).readout, network.quantize(8, x).run(x, STEPS).readout)


def plain_file(tmp_path):
    """The network in integers as a file that says nothing of pixels."""
    graph = networks()[1].to_nir()
    graph.metadata.clear()
    nir.write(tmp_path / "plain.nir", graph)
    return ours(bridge.load(tmp_path / "plain.nir"))


def test_without_the_range_floats_are_refused_by_name(tmp_path):
    _, whole, pixels, x, _ = networks()
    network = plain_file(tmp_path)
    assert network.grid is None
    assert np.array_equal(network.run(pixels, STEPS).readout, whole.run(pixels, STEPS).readout)
    assert torch.equal(network.pixels(pixels), pixels)
    remedy = r"takes pixels, integers from 0 to 255; got float32.*x\.to\(torch\.uint8\).*network\.pixels\(x\)"
    for use in (network.run, network.simulate, network.validate):
        with pytest.raises(InputError, match=remedy):
            use(x, STEPS)
    with pytest.raises(InputError, match=remedy):
        network.pixels(x)


@pytest.mark.parametrize("wrong", [256, -1])
def test_integers_that_are_no_pixels(wrong):
    with pytest.raises(InputError, match="integers are pixels from 0 to 255, got int"):
        networks()[1].run(np.full((1, 2, 6, 6), wrong), STEPS)


def of_few_shades(largest: int = 16):
    """A network whose images have 17 shades of grey, the ANN's input for it, 0…1, and their pixels."""
    pixels = torch.arange(6 * 64).reshape(6, 1, 8, 8) % (largest + 1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), bridge.QCFS(4), nn.Linear(5, 2))
    return bridge.convert(model.eval(), input_shape=(1, 8, 8)), pixels / largest, pixels


def test_values_outside_the_range_are_told(tmp_path):
    network, x, pixels = of_few_shades()
    whole = network.quantize(8, x)
    assert "8-bit integers, pixels 0…16, " in repr(whole)
    whole.save(tmp_path / "net.nir")
    loaded = ours(bridge.load(tmp_path / "net.nir"))
    assert "8-bit integers, pixels 0…16, " in repr(loaded)
    for one in (whole, loaded):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(one.pixels(x), pixels)
            few = pixels.clone()
            few[0, 0, 0, :3] = 255  # 3 of 384
            one.run(few, STEPS)
        with pytest.warns(RangeWarning, match=r"x: 88% of the values lie above 16, the largest pixel .* made for"):
            one.run((x * 255).to(torch.uint8), STEPS)
        with pytest.warns(RangeWarning, match=r"of the values lie outside 0…1, the ANN's input"):
            one.simulate(pixels.float(), STEPS)
        with pytest.warns(RangeWarning, match="outside 0…1"):
            one.pixels(x * 2 - 1)


def test_what_a_network_tells_of_itself(tmp_path):
    """Of L, T, bits and pixels, in memory and from its file; and whether its ANN is known."""
    network, whole, *_ = networks()
    assert network.about.levels == (4, 8)
    assert "L = 4, 8" in repr(network)
    assert (whole.about.calibrated_steps, whole.about.weight_bits) == (2, 8)
    said = (
        "8-bit integers, pixels 0…255, [2, 6, 6] -> [3], 2 spiking layers, 54 neurons, L = 4, 8, calibrated for T = 2"
    )
    assert repr(whole) == f"SpikingNetwork({said})"
    whole.save(tmp_path / "net.nir")
    loaded = ours(bridge.load(tmp_path / "net.nir"))
    assert repr(loaded) == f"SpikingNetwork({said}, its ANN not known)"
    assert "pixels 0…255" in loaded._repr_html_()
    assert loaded.grid is not None
    assert whole.grid is not None
    for name in ("low", "step"):
        assert np.array_equal(getattr(loaded.grid, name), getattr(whole.grid, name))
    loaded.save(tmp_path / "again.nir")
    assert (tmp_path / "again.nir").read_bytes() == (tmp_path / "net.nir").read_bytes()
    staged = bridge.convert(nn.Sequential(nn.Linear(3, 3), bridge.QCFS(5)), schedule="staged")
    assert repr(staged) == "SpikingNetwork(staged, 5 steps, [3] -> [3], 1 spiking layer, 3 neurons, L = 5)"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pixel_step", np.array([1.0, 0.0])),
        ("pixel_step", np.array([1.0])),
        ("pixel_low", np.array([np.nan, 0])),
        ("pixel_low", "zero"),
        ("largest_pixel", 256),
        ("largest_pixel", 1.5),
        ("weight_bits", -1),
        ("calibrated_steps", np.array([1, 2])),
        ("qcfs_levels", np.array([0])),
        ("qcfs_levels", np.array([[4]])),
    ],
)
def test_a_file_that_says_what_cannot_be(name, value, tmp_path):
    graph = networks()[1].to_nir()
    graph.metadata[name] = value
    nir.write(tmp_path / "net.nir", graph)
    with pytest.raises(GraphError, match=rf"net\.nir: metadata '{name}': expected"):
        bridge.load(tmp_path / "net.nir")


@pytest.mark.parametrize("name", INTEGER)
def test_a_backend_in_integers(name):
    """Its own run takes pixels, and what is none it refuses by name."""
    backend = require(name)
    _, whole, pixels, x, _ = networks()
    native, some = backend.export(whole.to_nir()), pixels[:2]
    expected = whole.run(some, STEPS).readout
    for given in (some.numpy(), some.numpy().astype(np.int64), some.float().numpy(), some):
        assert np.array_equal(backend.run(native, given, STEPS).readout, expected)
    with pytest.raises(InputError, match=r"takes pixels, whole from 0 to 255; got values from -.*network\.pixels\(x\)"):
        backend.run(native, x[:2].numpy(), STEPS)
    with pytest.raises(InputError, match="integers are pixels from 0 to 255"):
        backend.run(native, some.numpy().astype(np.int64) * 2, STEPS)


@pytest.mark.parametrize("name", FLOAT)
def test_a_backend_in_floats(name):
    backend = require(name)
    network, _, pixels, x, _ = networks()
    native = backend.export(network.to_nir())
    expected = backend.run(native, x[:2].numpy(), STEPS).readout
    assert np.array_equal(backend.run(native, x[:2].double().numpy(), STEPS).readout, expected)
    with pytest.raises(InputError, match=NO_PIXELS):
        backend.run(native, pixels[:2].numpy(), STEPS)


@pytest.mark.lava
@pytest.mark.parametrize(("name", "integer"), [("lava", False), ("lava", True), ("lava-fixed", True)])
def test_lava(name, integer):
    backend = require(name)
    network, whole, pixels, x, _ = networks()
    native = backend.export((whole if integer else network).to_nir())
    if integer:
        expected = whole.run(pixels[:2], STEPS).readout
        assert np.array_equal(backend.run(native, pixels[:2].numpy(), STEPS).readout, expected)
    with pytest.raises(InputError, match="takes pixels, whole" if integer else NO_PIXELS):
        backend.run(native, (x if integer else pixels)[:2].numpy(), STEPS)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            torch.zeros(2, 6, 6),
            r"expected images \[B, 2, 6, 6\], got \[2, 6, 6\]: one image without its batch; .*x\[None\]",
        ),
        (torch.zeros(5, 6, 6, 2), r"got \[5, 6, 6, 2\]: the channels come last; give x\.permute\(0, 3, 1, 2\)"),
        (torch.zeros(4, 5, 2, 6, 6), r"images over time; each is held constant here"),
        (torch.zeros(5, 2, 6, 7), r"expected images \[B, 2, 6, 6\], got \[5, 2, 6, 7\]$"),
        (torch.zeros(0, 2, 6, 6), "expected at least one image"),
        ([], "expected"),
        ("digits", "expected images as a tensor, an array or batches of them .*got str"),
        ({"x": 1}, "expected images as a tensor.* got dict"),
        (3, "expected images as a tensor.* got int"),
        ([[1.0]], "expected batches that are images .* got float"),
        ([torch.zeros(2, 2, 6, 6), torch.zeros(2, 2, 6, 5)], "batches .* of one shape"),
    ],
    ids=str,
)
def test_bad_images(given, message):
    with pytest.raises(InputError, match=message):
        networks()[0].run(given, STEPS)


def test_a_warning_points_at_the_caller():
    network, x, _ = of_few_shades()
    whole = network.quantize(8, x)
    with pytest.warns(RangeWarning) as found:
        whole.run(np.full((1, 1, 8, 8), 255), STEPS)
    assert found[0].filename == __file__


def test_a_normalisation_that_is_not_that_of_the_images_is_told():
    """Such as one in units of pixels."""
    network, _, pixels, x, _ = networks()
    with pytest.warns(RangeWarning, match="calibration: .* of the values lie outside"):
        network.quantize(8, x, normalisation=([102.0, 127.0], [64.0, 51.0]))
    with pytest.raises(InputError, match="normalisation: expected a mean and a std"):
        network.quantize(8, pixels, normalisation=[0.5] * 3)
    with pytest.raises(InputError, match=r"weight_bits: .* got float32 \[12, 2, 6, 6\]; images are given as"):
        network.quantize(x)


def test_what_stands_beside_images_and_is_no_class_is_told():
    _, whole, pixels, _, labels = networks()
    loader = DataLoader(TensorDataset(pixels, nn.functional.one_hot(labels)), batch_size=12)
    with pytest.warns(UserWarning, match=r"int64 \[12, 3\] beside the images, and no classes \[B\]"):
        assert whole.validate(loader, STEPS, []).reference.accuracy is None
    with pytest.raises(InputError, match=r"of one batch \(images, labels\), give the images"):
        whole.run((pixels, labels), STEPS)


def test_what_is_no_record_no_graph_and_no_backend():
    network, whole, pixels, *_ = networks()
    fast = whole.simulate(pixels, STEPS)
    for use in (whole.loihi, whole.cost):
        with pytest.raises(InputError, match=r"record: expected a SpikeRecord.*record=True.* got Simulation"):
            use(fast)
    with pytest.raises(InputError, match='spikes: expected "binary" or "graded", got \'grade\''):
        whole.loihi(spikes="grade")
    with pytest.raises(GraphError, match=r"expected a NIR graph, such as network\.to_nir\(\) .* got SpikingNetwork"):
        require("snntorch").export(network)
    with pytest.raises(bridge.BackendError, match=r"expected one backend, or its name.* got list"):
        whole.reduce(pixels, STEPS, ["snntorch"])
    with pytest.raises(InputError, match=r"executor: expected one, such as .*ThreadPoolExecutor\(2\)"):
        whole.validate(pixels, STEPS, [], executor=ThreadPoolExecutor)
    with pytest.raises(InputError, match=r"a plain network runs for as many time steps as you say, such as steps=8"):
        network.run(networks()[3])


def test_verbs_of_the_objects(tmp_path):
    """They are the functions of that name."""
    _, whole, pixels, _, _ = networks()
    agreement = whole.validate(pixels, STEPS, ["lava-twin"])
    agreement.report(tmp_path / "report.html")
    bridge.report.html.write(agreement, tmp_path / "same.html")
    assert (tmp_path / "report.html").read_text() == (tmp_path / "same.html").read_text()
    shown = [replace_ids(one.renderables) for one in (agreement.table(), bridge.report.table(agreement))]
    assert shown[0] == shown[1]
    assert "lava-twin" in str(agreement.table())
    assert "lava-twin" in agreement.table()._repr_mimebundle_([], [])["text/html"]
    record = whole.run(pixels, STEPS)
    assert repr(whole.loihi(record)) == repr(bridge.loihi.report(whole, record))
    with pytest.raises(InputError, match="lava-twin and the reference agree"):
        whole.reduce(pixels, STEPS, "lava-twin", tmp_path / "case")


def replace_ids(tables):
    return [(table.title, [[*column.cells] for column in table.columns]) for table in tables]


def test_simulators_by_themselves_compute_pixels_in_floats():
    _, whole, pixels, *_ = networks()
    assert whole.ann is not None
    for given in (pixels, pixels.long()):
        assert np.array_equal(simulate(whole.graph, given, STEPS).readout, whole.run(pixels, STEPS).readout)
        assert torch.equal(activations(whole.ann, given)[2], activations(whole.ann, pixels.float())[2])
