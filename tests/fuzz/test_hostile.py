"""Files made to take all memory, or for ever, or what lies elsewhere: refused at once, with nothing read outside."""

from __future__ import annotations

import gzip
import os
import pickle
import time
import zipfile

import h5py
import numpy as np
import pytest
import torch

import bridge
from bridge import BridgeError, GraphError, InputError
from bridge.agreement import Agreement
from bridge.cli import sources
from bridge.zoo import data
from fuzz import mutants

TEXT = h5py.string_dtype()
WEIGHT = "node/nodes/layer_0/weight"


@pytest.fixture
def nir_path(tmp_path):
    return mutants.nir_file(tmp_path)


def refused(path, message, kind="nir"):
    """Refused with this message, in two seconds and 100 MB."""
    mutants.reset_peak()
    before, start = mutants.held(), time.perf_counter()
    with pytest.raises(BridgeError, match=message):
        mutants.KINDS[kind].read(path)
    assert time.perf_counter() - start < 2
    assert mutants.peak() - before < 100 * 2**20


def test_groups_that_double_by_hard_links(nir_path):
    with h5py.File(nir_path, "a") as file:
        for level in range(30):
            group = file.create_group(f"level{level}")
            group["type"] = "NIRGraph"
            inside = group.create_group("nodes")
            if level:
                inside["a"] = inside["b"] = file[f"level{level - 1}"]
            group.create_dataset("edges", data=np.array([("a", "b")], object), dtype=TEXT)
        file["node/nodes"]["bomb"] = file["level29"]
    refused(nir_path, r"/node/nodes/bomb/.* lies in 60 groups within each other")


def test_a_group_that_holds_itself(nir_path):
    with h5py.File(nir_path, "a") as file:
        file["node/nodes/again"] = file["node"]
    refused(nir_path, "/node/nodes/again is a second name")


def test_one_array_under_many_names(nir_path):
    with h5py.File(nir_path, "a") as file:
        zeros = file.create_dataset("node/zeros", data=np.zeros(2**22, np.float32), compression="gzip")
        for number in range(60):
            file[f"node/zeros{number}"] = zeros
    refused(nir_path, r"/node/zeros\d* is a second name")


@pytest.mark.parametrize("dtype", [TEXT, "S20", "f8", "i1"], ids=str)
def test_arrays_that_were_never_written(nir_path, dtype):
    with h5py.File(nir_path, "a") as file:
        del file["node/edges"]
        file.create_dataset("node/edges", (10**8, 2), dtype=dtype, chunks=(10**5, 2))
    refused(nir_path, r"/node/edges declares \d+ bytes, but the file holds 0 of it")


def test_arrays_that_compression_made_small(nir_path):
    with h5py.File(nir_path, "a") as file:
        for number in range(12):
            zeros = file.create_dataset(f"node/zeros{number}", (2**23,), "f8", chunks=(2**20,), compression="gzip")
            zeros[: 2**20] = 0.0
            for at in range(2**20, 2**23, 2**20):
                zeros[at : at + 2**20] = 0.0
    mutants.reset_peak()
    before = mutants.held()
    with pytest.raises(GraphError, match=r"/node/zeros\d+ takes \d+ bytes, and \d+ are left"):
        bridge.load(nir_path)
    assert mutants.peak() - before < 2**30


def test_one_long_text_many_times(nir_path):
    """Every element of an array of text may name the same letters."""
    with h5py.File(nir_path, "a") as file:
        del file["node/edges"]
        edges = file.create_dataset(
            "node/edges", data=np.array([["x" * 60_000, "y"], *[["y"] * 2] * 19_999], object), dtype=TEXT
        )
        start, stored = edges.id.get_offset(), edges.id.get_storage_size()
    content = bytearray(nir_path.read_bytes())
    content[start : start + stored] = content[start : start + 16] * (stored // 16)
    nir_path.write_bytes(content)
    refused(nir_path, r"/node/edges takes 2400000000 bytes")


def test_text_that_claims_to_be_long(nir_path):
    with h5py.File(nir_path) as file:
        start = file["node/edges"].id.get_offset()
    content = bytearray(nir_path.read_bytes())
    content[start : start + 4] = b"\xff\xff\xff\x7f"
    nir_path.write_bytes(content)
    refused(nir_path, r"/node/edges takes 2147\d+ bytes, and \d+ are left")


@pytest.mark.parametrize("way", ["external link", "soft link", "external storage", "virtual"])
def test_what_lies_in_other_files(nir_path, tmp_path, way):
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["weight"] = np.full((3, 1, 3, 3), 7, np.float32)
    with h5py.File(nir_path, "a") as file:
        shape, dtype = file[WEIGHT].shape, file[WEIGHT].dtype
        del file[WEIGHT]
        if way == "external link":
            file[WEIGHT] = h5py.ExternalLink(str(secret), "weight")
        elif way == "soft link":
            file[WEIGHT] = h5py.SoftLink("/node/nodes/layer_4/weight")
        elif way == "external storage":
            file.create_dataset(WEIGHT, shape, dtype, external=[(str(secret), 0, h5py.h5f.UNLIMITED)])
        else:
            layout = h5py.VirtualLayout(shape, dtype)
            layout[...] = h5py.VirtualSource(str(secret), "weight", shape)
            file.create_virtual_dataset(WEIGHT, layout)
    refused(nir_path, f"/{WEIGHT} (is a link to somewhere else|has its values in another file)")


def test_graphs_within_each_other(nir_path):
    with h5py.File(nir_path, "a") as file:
        group = file["node/nodes"]
        for _ in range(900):
            group = group.create_group("inner")
            group["type"] = "NIRGraph"
            group = group.create_group("nodes")
    refused(nir_path, "lies in 60 groups within each other")


def test_a_link_to_a_pipe_is_not_followed(nir_path, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with h5py.File(nir_path, "a") as file:
        del file[WEIGHT]
        file[WEIGHT] = h5py.ExternalLink(str(tmp_path / "pipe"), "weight")
    refused(nir_path, "is a link to somewhere else")
    with pytest.raises(GraphError, match="no such file"):
        bridge.load(tmp_path / "pipe")


def test_gzip_bombs(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "LARGEST", 2**22)  # or the test itself would take as much
    path = mutants.mnist_files(tmp_path)
    path.write_bytes(gzip.compress(bytes(2**26)))
    refused(path, "holds more than 4,194,304 bytes", "mnist")
    assert path.stat().st_size < 2**17


def test_arrays_in_zip_files(tmp_path):
    path = tmp_path / "x.npz"
    header = b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr': '|u1', 'fortran_order': False, 'shape': (6000000000,), }".ljust(
        117
    )
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w", force_zip64=True) as file,
    ):
        file.write(header + b"\n")
        for _ in range(6 * 2**4):
            file.write(bytes(2**24))
    refused(path, "'x' takes 1610612864 bytes, more than", "npz")


def deep(levels):
    value: tuple[object, object] = ("a", "b")
    for _ in range(levels):
        value = (value, value)
    return value


def test_pickles_whose_hash_takes_for_ever(tmp_path):
    path = mutants.cifar_pickle(tmp_path)
    whole = path.read_bytes()
    bomb = pickle.dumps([deep(60)], protocol=2)  # as a list's, which is not hashed; then as a key
    path.write_bytes(bomb.replace(b"]q\x00", b"}q\x00").replace(b"a.", b"K\x01s."))
    refused(path, "nests tuples more than 20 deep", "cifar-pickle")
    path.write_bytes(whole)
    assert len(data.cifar10(tmp_path).train) == 10
    torch.save({"weight": torch.zeros(2), "more": deep(30)}, tmp_path / "c.pt")
    refused(tmp_path / "c.pt", "nests tuples more than 20 deep", "checkpoint")


def test_checkpoints_that_compression_made_small(tmp_path):
    path = mutants.checkpoint_file(tmp_path)
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
        with archive.open("c/data/99", "w", force_zip64=True) as file:
            for _ in range(40):
                file.write(bytes(2**24))
    refused(path, r"declares \d+ bytes, which is more than", "checkpoint")


def test_pipes_among_pictures(tmp_path):
    pytest.importorskip("PIL")
    mutants.picture_file(tmp_path)
    os.mkfifo(tmp_path / "b.png")
    assert sources.images(tmp_path).shape == (1, 1, 6, 6)


def test_names_that_are_none(tmp_path):
    for path in ("a" * 300, "a\0b", tmp_path):
        with pytest.raises(GraphError):
            bridge.load(path)
        with pytest.raises(InputError):
            mutants.network().save(path)
    with pytest.raises(InputError, match="File name too long"):
        data.mnist("a" * 300)


def test_json_of_any_depth(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(InputError, match="no agreement can be read"):
        Agreement.load(path)
