"""Spike records: packing, rates, joining."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge import InputError, SpikeRecord, ValidationError
from bridge.records import Recorder


def make(images: int = 3, steps: int = 4, backend: str = "test", seed: int = 0) -> tuple[SpikeRecord, np.ndarray]:
    spikes = np.random.default_rng(seed).random((steps, images, 3, 5)) < 0.4
    recorder = Recorder(backend, {"act": (3, 5)})
    for t in range(steps):
        recorder.spikes("act", spikes[t].astype(np.float32), membrane=spikes[t] * 0.5)
        recorder.readout(spikes[t].sum(axis=2))
    return recorder.finish(), spikes


def test_round_trip_and_rates():
    record, spikes = make()
    assert (record.steps, record.images, record.layers) == (4, 3, ("act",))
    np.testing.assert_array_equal(record.spikes("act"), spikes)
    assert record.packed["act"].nbytes == 4 * 3 * 2  # 15 neurons in 2 bytes
    for t in range(4):
        np.testing.assert_allclose(record.rates("act")[t], spikes[: t + 1].mean(axis=0), rtol=1e-6)
        np.testing.assert_allclose(record.outputs()[t], spikes[: t + 1].sum(axis=3).mean(axis=0), rtol=1e-6)


def test_a_layer_that_is_not_there():
    record, _ = make()
    for ask in (record.spikes, record.rates, lambda layer: next(record.running_rates(layer))):
        for kind in (InputError, KeyError):
            with pytest.raises(kind, match=r"^test: no layer is called 'relu'; there are act$"):
                ask("relu")


def test_concatenate():
    one, first = make(2, seed=1)
    two, second = make(5, seed=2)
    both = SpikeRecord.concatenate([one, two])
    np.testing.assert_array_equal(both.spikes("act"), np.concatenate([first, second], axis=1))
    assert both.membranes["act"].shape == (4, 7, 3, 5)
    for other in (make(steps=3)[0], make(backend="else")[0]):
        with pytest.raises(ValidationError, match="can be joined"):
            SpikeRecord.concatenate([one, other])


def test_a_missing_step_is_an_error():
    recorder = Recorder("test", {"act": (2,)})
    with pytest.raises(ValidationError):
        recorder.finish()
    recorder.readout(np.zeros((1, 2)))
    with pytest.raises(ValidationError, match="act"):
        recorder.finish()


@st.composite
def records(draw):
    """A record of any few layers, names and shapes, some with membranes."""
    steps, images = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    shape = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)
    shapes = draw(st.dictionaries(st.text(max_size=6), shape, min_size=1, max_size=4))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    recorder = Recorder(draw(st.text(max_size=6)), shapes)
    kept = draw(st.sets(st.sampled_from(sorted(shapes))))
    for _ in range(steps):
        for name, size in shapes.items():
            membrane = random.normal(size=(images, *size)).astype(np.float32) if name in kept else None
            recorder.spikes(name, random.random((images, *size)) < 0.3, membrane)
        recorder.readout(random.normal(size=(images, 3)))
    return recorder.finish()


def assert_same(one: SpikeRecord, other: SpikeRecord) -> None:
    assert (one.backend, one.shapes, one.layers) == (other.backend, other.shapes, other.layers)
    for name in one.layers:
        np.testing.assert_array_equal(one.packed[name], other.packed[name])
    assert one.membranes.keys() == other.membranes.keys()
    for name, values in one.membranes.items():
        np.testing.assert_array_equal(values, other.membranes[name])
    np.testing.assert_array_equal(one.readout, other.readout)


@settings(max_examples=40, deadline=None)
@given(record=records())
def test_a_saved_record_is_the_same(record, tmp_path_factory):
    path = tmp_path_factory.mktemp("records") / "record"  # no suffix, and none is added
    record.save(path)
    assert_same(record, SpikeRecord.load(path))
    assert [file.name for file in path.parent.iterdir()] == ["record"]


def test_spikes_are_saved_packed_and_compressed(tmp_path):
    recorder = Recorder("test", {"act": (100, 100)})
    for _ in range(8):
        recorder.spikes("act", np.zeros((16, 100, 100)))  # silence compresses as well as anything can
        recorder.readout(np.zeros((16, 10)))
    record = recorder.finish()
    record.save(tmp_path / "silent.npz")
    assert (tmp_path / "silent.npz").stat().st_size < 5000
    assert_same(record, SpikeRecord.load(tmp_path / "silent.npz"))


def test_window():
    record, spikes = make(images=5, steps=4)
    part = record.window(1, 4, 3)
    np.testing.assert_array_equal(part.spikes("act"), spikes[:3, 1:4])
    np.testing.assert_array_equal(part.readout, spikes.sum(axis=3)[:3, 1:4])
    np.testing.assert_array_equal(part.membranes["act"], spikes[:3, 1:4] * 0.5)
    for start, stop, steps in ((-1, 2, 3), (3, 6, 3), (2, 2, 3), (0, 5, 5), (0, 5, 0)):
        with pytest.raises(InputError, match="holds images 0 to 4 at time steps 1 to 4"):
            record.window(start, stop, steps)


def rewritten(path, **changes) -> None:
    """The file with other members, given as bytes; None takes one out."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members |= {f"{name.replace('_', '.')}.npy": value for name, value in changes.items()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in members.items():
            if value is not None:
                archive.writestr(name, value)


def npy(array, pickled: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(array), allow_pickle=pickled)
    return buffer.getvalue()


def header(**changes) -> bytes:
    layers = [{"name": "act", "shape": [3, 5], "membranes": False}]
    return npy(json.dumps({"format": 1, "backend": "test", "layers": layers, **changes}))


def declaring(shape) -> bytes:
    """An array that says it is that large, and is not."""
    return npy(np.zeros(1, np.uint8)).replace(b"(1,), }" + b" " * 20, f"{shape}, }}".ljust(27).encode())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"header": None}, "damaged, or no spike record"),
        ({"header": npy("{")}, "damaged, or no spike record"),
        ({"header": npy(np.array([{}], object), pickled=True)}, "header|damaged"),
        ({"header": header(format=3)}, "written as format 3, this version reads 1 and 2"),
        ({"header": header(backend=3)}, "must be text"),
        ({"header": header(layers=[])}, "at least one"),
        ({"header": header(layers=[{"name": "act", "shape": [3, 5], "membranes": False}] * 2)}, "two layers"),
        (
            {"header": header(layers=[{"name": "act", "shape": [2**40, 2**40], "membranes": False}])},
            "expected packed spikes",
        ),
        ({"header": header(layers=[{"name": "act", "shape": [3, 6], "membranes": False}])}, "expected packed spikes"),
        (
            {"header": header(layers=[{"name": "act", "shape": [13], "membranes": False}])},
            "13 neurons, and spikes of more",
        ),
        ({"header": header(layers=[{"name": "act", "shape": [-15], "membranes": False}])}, "whole numbers above 0"),
        ({"header": header(layers=[{"name": "act", "shape": 15, "membranes": False}])}, "damaged, or no spike record"),
        ({"spikes_0": None}, "damaged, or no spike record"),
        ({"spikes_0": declaring((2**40,))}, r"spikes\.0: declares \[1099511627776\]"),
        ({"spikes_0": npy(np.zeros((4, 3, 2), np.int64))}, "of uint8"),
        ({"spikes_0": npy(np.zeros((4, 2, 2), np.uint8))}, "expected packed spikes"),
        ({"readout": npy(np.zeros((4, 3, 3)))}, "expected a readout"),
        ({"readout": npy(np.zeros((0, 3, 3), np.float32))}, "expected a readout"),
        (
            {
                "header": header(layers=[{"name": "act", "shape": [3, 5], "membranes": True}]),
                "membranes_0": npy(np.zeros((4, 3, 15))),
            },
            "expected membranes",
        ),
    ],
)
def test_a_file_that_was_changed_is_refused(tmp_path, changes, says):
    path = tmp_path / "record.npz"
    spikes = np.ones((4, 3, 3, 5), bool)
    recorder = Recorder("test", {"act": (3, 5)})
    for step in spikes:
        recorder.spikes("act", step)
        recorder.readout(np.zeros((3, 3)))
    recorder.finish().save(path)
    rewritten(path)
    SpikeRecord.load(path)  # by itself, rewriting does no harm
    rewritten(path, **changes)
    with pytest.raises(InputError, match=says) as caught:
        SpikeRecord.load(path)
    assert str(path) in str(caught.value)


def test_a_file_that_declares_more_than_it_holds_is_refused(tmp_path):
    """One block of zeros that a hundred entries of the zip's directory point to."""
    make()[0].save(tmp_path / "record.npz")
    whole = (tmp_path / "record.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "record.npz", "a") as archive:
        archive.filelist *= 100
        archive._didModify = True  # type: ignore[attr-defined]
    assert len((tmp_path / "record.npz").read_bytes()) > len(whole)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InputError, match="its parts take more than"):
            SpikeRecord.load(tmp_path / "record.npz")


def test_no_byte_of_a_damaged_file_is_trusted(tmp_path):
    record, _ = make()
    record.save(tmp_path / "record.npz")
    whole = (tmp_path / "record.npz").read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        harmed = bytearray(whole)
        harmed[random.integers(len(whole))] ^= 1 << random.integers(8)
        (tmp_path / "record.npz").write_bytes(harmed[: random.integers(len(whole) // 2, 2 * len(whole))])
        try:
            assert_same(SpikeRecord.load(tmp_path / "record.npz"), record)  # a date, or another byte that says nothing
        except InputError:
            refused += 1
    assert refused > 100


def test_what_is_no_record_is_refused(tmp_path):
    (tmp_path / "text.npz").write_text("spikes")
    np.savez(tmp_path / "foreign.npz", a=np.zeros(3))
    for path, says in (
        ("missing.npz", "No such file"),
        (".", "Is a directory"),
        ("text.npz", "damaged, or no spike record"),
        ("foreign.npz", "damaged, or no spike record"),
    ):
        with pytest.raises(InputError, match=says):
            SpikeRecord.load(tmp_path / path)
    with pytest.raises(InputError, match="expected the path"):
        SpikeRecord.load(None)  # type: ignore[arg-type]


def test_what_could_not_be_read_is_not_written(tmp_path):
    record, _ = make()
    record.save(tmp_path / "record.npz")
    harms: tuple[dict[str, Any], ...] = (
        {"readout": record.readout.astype(np.float64)},
        {"packed": {"act": record.packed["act"][:2]}},
        {"membranes": {"other": record.membranes["act"]}},
        {"shapes": {}},
    )
    for harm in harms:
        with pytest.raises(InputError, match=r"record\.npz"):
            replace(record, **harm).save(tmp_path / "record.npz")
    assert_same(record, SpikeRecord.load(tmp_path / "record.npz"))
