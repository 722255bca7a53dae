"""Data sets from files: every layout as its authors wrote it, every kind of damage, and a pickle that means harm."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from bridge.errors import InputError
from bridge.zoo import data

TRAIN_BATCHES = [f"data_batch_{number}" for number in range(1, 6)]
BATCHES = [*TRAIN_BATCHES, "test_batch"]


def cifar_batch(name, count=20):
    """Pixels ``[count, 3072]`` and labels of a batch, the same each time."""
    random = np.random.default_rng(BATCHES.index(name))
    return random.integers(256, size=(count, 3072), dtype=np.uint8), [int(label) for label in np.arange(count) % 10]


def write_binary(folder: Path) -> Path:
    batches = folder / "cifar-10-batches-bin"
    batches.mkdir(parents=True)
    for name in BATCHES:
        pixels, labels = cifar_batch(name)
        records = np.concatenate([np.array(labels, np.uint8)[:, None], pixels], axis=1)
        (batches / f"{name}.bin").write_bytes(records.tobytes())
    (batches / "batches.meta.txt").write_text("\n".join(data.CIFAR10_CLASSES) + "\n\n")
    return batches


def python2_pickle(pixels, labels):
    """The bytes that Python 2's cPickle wrote: protocol 2, strings of bytes, NumPy's old module names."""

    def text(value):
        return b"U" + bytes([len(value)]) + value

    def number(value):
        return b"K" + bytes([value])

    raw = pixels.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n" + b"cnumpy\nndarray\n" + number(0) + b"\x85" + text(b"b") + b"\x87R"
    )
    kind = b"cnumpy\ndtype\n" + text(b"u1") + number(0) + number(1) + b"\x87R"
    kind += b"(" + number(3) + text(b"|") + b"NNN" + b"J\xff\xff\xff\xff" * 2 + number(0) + b"tb"
    shape = b"M" + struct.pack("<H", len(pixels)) + b"M" + struct.pack("<H", 3072) + b"\x86"
    array += b"(" + number(1) + shape + kind + b"\x89" + b"T" + struct.pack("<I", len(raw)) + raw + b"tb"
    numbers = b"](" + b"".join(map(number, labels)) + b"e"
    entries = text(b"batch_label") + text(b"training batch 1 of 5") + text(b"labels") + numbers + text(b"data") + array
    return b"\x80\x02}(" + entries + b"u."


def python3_pickle(protocol):
    return lambda pixels, labels: pickle.dumps({"labels": labels, "data": pixels}, protocol)


def old_names(write):
    """As NumPy 1 would have called its own module."""
    return lambda *batch: write(*batch).replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


PICKLES = {
    "python 2": python2_pickle,
    "protocol 2": python3_pickle(2),
    "protocol 2, numpy 1": old_names(python3_pickle(2)),
    "protocol 4": python3_pickle(4),
}


def write_pickles(folder: Path, write=python2_pickle) -> Path:
    batches = folder / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    for name in BATCHES:
        (batches / name).write_bytes(write(*cifar_batch(name)))
    names = [name.encode() for name in data.CIFAR10_CLASSES]
    (batches / "batches.meta").write_bytes(pickle.dumps({b"label_names": names, b"num_vis": 3072}, 2))
    return batches


def idx(array):
    """An IDX file's bytes."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def mnist_part(part):
    count = {"train": 40, "t10k": 10}[part]
    random = np.random.default_rng(count)
    return random.integers(256, size=(count, 28, 28), dtype=np.uint8), (np.arange(count) % 10).astype(np.uint8)


def packed(contents: bytes) -> bytes:
    """As gzip writes it, without the time: tests are named after their bytes, which no two processes may see differ."""
    return gzip.compress(contents, mtime=0)


def write_mnist(folder: Path, separator="-", compressed=False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("train", "t10k"):
        for kind, array in zip(("images", "labels"), mnist_part(part), strict=True):
            contents = idx(array)
            name = f"{part}-{kind}{separator}idx{array.ndim}-ubyte"
            if compressed:
                (folder / f"{name}.gz").write_bytes(packed(contents))
            else:
                (folder / name).write_bytes(contents)
    return folder


def check_cifar(found):
    assert found.name == "cifar10"
    assert found.classes == data.CIFAR10_CLASSES
    expected = np.concatenate([cifar_batch(name)[0] for name in TRAIN_BATCHES]).reshape(-1, 3, 32, 32)
    assert_close(found.train.x, torch.from_numpy(expected))
    assert_close(found.test.x, torch.from_numpy(cifar_batch("test_batch")[0].reshape(-1, 3, 32, 32)))
    assert found.train.y.tolist() == cifar_batch("test_batch")[1] * 5
    assert found.test.y.tolist() == cifar_batch("test_batch")[1]
    assert found.mean == pytest.approx((expected / 255).mean((0, 2, 3)))
    assert found.std == pytest.approx((expected / 255).std((0, 2, 3)))


def check_mnist(found):
    x, y = mnist_part("train")
    assert_close(found.train.x, torch.from_numpy(x)[:, None])
    assert found.train.y.tolist() == y.tolist()
    assert_close(found.test.x, torch.from_numpy(mnist_part("t10k")[0])[:, None])
    assert found.mean == pytest.approx(((x / 255).mean(),))


class TestCifar10:
    @pytest.mark.parametrize("level", ["the folder above", "the folder itself"])
    @pytest.mark.parametrize("kind", [Path, str])
    def test_binary(self, tmp_path, level, kind):
        batches = write_binary(tmp_path)
        check_cifar(data.cifar10(kind(tmp_path if level == "the folder above" else batches)))

    @pytest.mark.parametrize("level", ["the folder above", "the folder itself"])
    @pytest.mark.parametrize("write", PICKLES.values(), ids=PICKLES)
    def test_pickled(self, tmp_path, level, write):
        batches = write_pickles(tmp_path, write)
        check_cifar(data.cifar10(tmp_path if level == "the folder above" else batches))

    def test_an_array_stored_by_columns(self, tmp_path):
        write_pickles(tmp_path, lambda pixels, labels: python3_pickle(4)(np.asfortranarray(pixels), labels))
        check_cifar(data.cifar10(tmp_path))

    @pytest.mark.parametrize(("write", "names"), [(write_binary, "batches.meta.txt"), (write_pickles, "batches.meta")])
    def test_names_of_classes_are_optional(self, tmp_path, write, names):
        (write(tmp_path) / names).unlink()
        check_cifar(data.cifar10(tmp_path))

    def test_names_of_classes_are_read(self, tmp_path):
        (write_binary(tmp_path) / "batches.meta.txt").write_text("a b c d e f g h i j")
        assert data.cifar10(tmp_path).classes == tuple("abcdefghij")

    def test_too_few_names(self, tmp_path):
        (write_binary(tmp_path) / "batches.meta.txt").write_text("a\nb\n")
        with pytest.raises(InputError, match=r"batches\.meta\.txt: expected the names of 10 classes, got 2"):
            data.cifar10(tmp_path)

    @pytest.mark.parametrize("names", [{}, {"label_names": 3}, {"label_names": ["a"]}])
    def test_wrong_names_in_a_pickle(self, tmp_path, names):
        (write_pickles(tmp_path) / "batches.meta").write_bytes(pickle.dumps(names))
        with pytest.raises(InputError, match=r"batches\.meta: expected"):
            data.cifar10(tmp_path)

    @pytest.mark.parametrize("contents", [b"", b"\0" * 3072, b"\0" * (2 * 3073 + 1)])
    def test_no_whole_records(self, tmp_path, contents):
        (write_binary(tmp_path) / "data_batch_3.bin").write_bytes(contents)
        with pytest.raises(InputError, match=rf"data_batch_3\.bin: expected whole records.*got {len(contents)} bytes"):
            data.cifar10(tmp_path)

    @pytest.mark.parametrize(("write", "ending"), [(write_binary, ".bin"), (write_pickles, "")])
    def test_a_batch_is_missing(self, tmp_path, write, ending):
        (write(tmp_path) / f"data_batch_4{ending}").unlink()
        with pytest.raises(InputError, match=rf"data_batch_4{ending}: is missing.*cs\.toronto\.edu"):
            data.cifar10(tmp_path)

    def test_no_batches_at_all(self, tmp_path):
        with pytest.raises(InputError, match=r"holds no CIFAR-10: looked for data_batch_1\.bin.*cs\.toronto\.edu"):
            data.cifar10(tmp_path)

    def test_a_label_out_of_range(self, tmp_path):
        path = write_binary(tmp_path) / "test_batch.bin"
        contents = bytearray(path.read_bytes())
        contents[3073 * 7] = 10
        path.write_bytes(contents)
        with pytest.raises(InputError, match=r"test_batch\.bin: expected labels 0…9, got 10 at image 7"):
            data.cifar10(tmp_path)

    def test_a_file_that_cannot_be_read(self, tmp_path, monkeypatch):
        write_binary(tmp_path)
        monkeypatch.setattr(Path, "read_bytes", _denied)
        with pytest.raises(InputError, match=r"data_batch_1\.bin: cannot be read: Permission denied"):
            data.cifar10(tmp_path)


def _denied(path):
    raise PermissionError(13, "Permission denied")


class _Harm:
    """Pickled, it calls `function` when it is loaded."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class TestPickles:
    @pytest.mark.parametrize("protocol", [0, 2, 4])
    def test_a_program_in_a_pickle_does_not_run(self, tmp_path, protocol):
        batches, witness = write_pickles(tmp_path), tmp_path / "witness"
        harm = pickle.dumps({"data": _Harm(os.mkdir, str(witness)), "labels": []}, protocol)
        (batches / "data_batch_2").write_bytes(harm)
        with pytest.raises(InputError, match=r"data_batch_2: asks for (posix|nt)\.mkdir, .*was not loaded"):
            data.cifar10(tmp_path)
        assert not witness.exists()
        pickle.loads(harm)
        assert witness.exists()  # it would have run

    @pytest.mark.parametrize(
        "name",
        [
            "builtins\neval",
            "os\nsystem",
            "numpy\nload",
            "numpy.core.multiarray\nscalar",
            "_codecs\ndecode",
            "numpy\ndtype.type",
        ],
    )
    def test_other_names_are_refused(self, tmp_path, name):
        (write_pickles(tmp_path) / "data_batch_1").write_bytes(b"\x80\x02c" + name.encode() + b"\n.")
        with pytest.raises(InputError, match=rf"data_batch_1: asks for {re.escape(name.replace(chr(10), '.'))}, "):
            data.cifar10(tmp_path)

    def test_a_name_with_dots_is_no_way_around(self, tmp_path):
        sneaky = io.BytesIO()
        sneaky.write(b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93.")
        (write_pickles(tmp_path) / "data_batch_1").write_bytes(sneaky.getvalue())
        with pytest.raises(InputError, match=r"asks for numpy\.ndarray\.__init__"):
            data.cifar10(tmp_path)

    @pytest.mark.parametrize(
        ("contents", "message"),
        [
            (b"", "cannot be read as a Python pickle"),
            (b"this is no pickle", "cannot be read as a Python pickle"),
            (python2_pickle(*cifar_batch("test_batch"))[:-5], "cannot be read as a Python pickle"),
            (python2_pickle(*cifar_batch("test_batch"))[:40_000], "cannot be read as a Python pickle"),
            (pickle.dumps([1, 2]), "expected a dictionary, got list"),
            (pickle.dumps({b"data": 1, b"fine_labels": []}), r"expected the entries data and labels, got \['data'"),
            (pickle.dumps({"data": 1, "labels": []}), "got int"),
            (pickle.dumps({"data": np.zeros((2, 3072)), "labels": [0, 0]}, 4), "not one of uint8"),
            (pickle.dumps({"data": np.array([{}]), "labels": [0, 0]}, 4), "not one of uint8"),
            (pickle.dumps({"data": np.zeros((2, 9), np.uint8), "labels": [0, 0]}, 4), r"got uint8 \(2, 9\)"),
            (pickle.dumps({"data": np.zeros((0, 3072), np.uint8), "labels": []}, 4), r"got uint8 \(0, 3072\)"),
            (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}, 4), "2 images and 1 labels"),
            (pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": ["cat"]}, 4), "list of whole numbers"),
            (pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": 5}, 4), "list of whole numbers"),
            (pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [-1]}, 4), "got -1 at image 0"),
            (pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [2**70]}, 4), "labels 0…9"),
        ],
    )
    def test_damaged_or_other_pickles(self, tmp_path, contents, message):
        (write_pickles(tmp_path) / "data_batch_5").write_bytes(contents)
        with pytest.raises(InputError, match=rf"(?s)data_batch_5: .*{message}"):
            data.cifar10(tmp_path)


class TestMnist:
    @pytest.mark.parametrize("compressed", [False, True])
    @pytest.mark.parametrize("separator", "-.")
    @pytest.mark.parametrize("kind", [Path, str])
    def test_all_names(self, tmp_path, compressed, separator, kind):
        found = data.mnist(kind(write_mnist(tmp_path, separator, compressed)))
        check_mnist(found)
        assert (found.name, found.classes) == ("mnist", tuple("0123456789"))

    @pytest.mark.parametrize(("name", "under"), [("mnist", "MNIST/raw"), ("fashion-mnist", "FashionMNIST/raw")])
    def test_where_torchvision_puts_them(self, tmp_path, name, under):
        write_mnist(tmp_path / under)
        check_mnist(data.mnist(tmp_path, name))

    def test_fashion(self, tmp_path):
        found = data.mnist(write_mnist(tmp_path), "fashion-mnist")
        assert found.name == "fashion-mnist"
        assert found.classes[9] == "Ankle boot"

    def test_unpacked_under_the_name_of_the_archive(self, tmp_path):
        for path in write_mnist(tmp_path).iterdir():
            path.rename(f"{path}.gz")
        check_mnist(data.mnist(tmp_path))

    def test_a_missing_file(self, tmp_path):
        (write_mnist(tmp_path) / "t10k-labels-idx1-ubyte").unlink()
        with pytest.raises(
            InputError, match=r"looked for t10k-labels-idx1-ubyte, t10k-labels-idx1-ubyte\.gz.*https://"
        ):
            data.mnist(tmp_path)

    @pytest.mark.parametrize(
        ("contents", "message"),
        [
            (b"", "expected a header of 16 bytes, got 0 bytes"),
            (idx(mnist_part("train")[1]), r"expected the magic number 2051 \(bytes, 3-D\), got 2049"),
            (idx(mnist_part("train")[0])[:-1], "header says 40 × 28 × 28 bytes, so 31376 with itself, got 31375"),
            (idx(mnist_part("train")[0]) + b"\0", "got 31377"),
            (idx(np.zeros((0, 28, 28), np.uint8)), "it is empty"),
            (bytes([0, 0, 8, 3]) + b"\xff" * 12, "cut short"),
            (packed(idx(mnist_part("train")[0]))[:-9], "gzip file is damaged or cut short"),
            (packed(idx(mnist_part("train")[0]))[:9], "gzip file is damaged or cut short"),
            (b"\x1f\x8b" + b"x" * 100, "gzip file is damaged or cut short"),
            (packed(idx(mnist_part("train")[0]))[:-8] + b"\0" * 8, "gzip file is damaged or cut short"),
            (packed(idx(mnist_part("train")[0]))[:30] + b"\xff" * 999, "gzip file is damaged or cut short"),
            (idx(mnist_part("train")[0][:39]), "holds 39 images, train-labels-idx1-ubyte 40 labels"),
        ],
    )
    def test_damaged_images(self, tmp_path, contents, message):
        (write_mnist(tmp_path) / "train-images-idx3-ubyte").write_bytes(contents)
        with pytest.raises(InputError, match=f"train-images-idx3-ubyte.*{message}"):
            data.mnist(tmp_path)

    def test_a_label_out_of_range(self, tmp_path):
        labels = mnist_part("train")[1]
        labels[3] = 200
        (write_mnist(tmp_path) / "train-labels-idx1-ubyte").write_bytes(idx(labels))
        with pytest.raises(InputError, match=r"train-labels-idx1-ubyte: expected labels 0…9, got 200 at image 3"):
            data.mnist(tmp_path)

    def test_training_and_test_images_of_different_sizes(self, tmp_path):
        (write_mnist(tmp_path) / "t10k-images-idx3-ubyte").write_bytes(idx(np.zeros((10, 8, 9), np.uint8)))
        with pytest.raises(InputError, match="training images are 28×28, test images 8×9 pixels"):
            data.mnist(tmp_path)

    def test_other_names(self, tmp_path):
        with pytest.raises(InputError, match="is called 'emnist'"):
            data.mnist(tmp_path, "emnist")


class TestFolders:
    @pytest.mark.parametrize("read", [data.cifar10, data.mnist])
    def test_no_folder(self, tmp_path, read):
        with pytest.raises(InputError, match="nowhere: expected a folder with a data set: not found"):
            read(tmp_path / "nowhere")
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match="file: expected a folder with a data set: is a file"):
            read(tmp_path / "file")
        for wrong in ("", 3, None):
            with pytest.raises(InputError, match="expected the path of a folder"):
                read(wrong)

    def test_home(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("USERPROFILE", str(tmp_path))
        write_mnist(tmp_path / "data")
        check_mnist(data.mnist("~/data"))


class TestDataset:
    def test_by_name(self, tmp_path):
        write_binary(tmp_path)
        write_mnist(tmp_path)
        check_cifar(data.dataset("cifar10", tmp_path))
        check_mnist(data.dataset("mnist", tmp_path))
        assert data.dataset("fashion-mnist", tmp_path).name == "fashion-mnist"

    def test_digits(self):
        pytest.importorskip("sklearn")
        found = data.dataset("digits")
        assert found.train.x.shape == (1347, 1, 8, 8)
        assert found.test.x.shape == (450, 1, 8, 8)
        levels = [int(np.floor(255 * level / 16 + 0.5)) for level in range(17)]
        assert found.train.x.unique().tolist() == levels
        assert found.test.y.bincount(minlength=10).min() > 40

    def test_other_names(self, tmp_path):
        with pytest.raises(InputError, match="no data set is called 'cifar11'"):
            data.dataset("cifar11", tmp_path)
        with pytest.raises(InputError, match="cifar10: is read from a folder"):
            data.dataset("cifar10")

    def test_normalise(self):
        x = torch.randint(256, (4, 3, 2, 2), dtype=torch.uint8)
        images = data.Images(x, torch.zeros(4, dtype=torch.int64))
        found = data.Dataset("any", images, images, ("a",), (0.1, 0.2, 0.3), (0.5, 0.25, 0.0))
        out = found.normalise(x)
        assert out.dtype == torch.float32
        expected = (x.double() / 255 - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.25, 1]).view(
            3, 1, 1
        )
        assert_close(out, expected.float())

    def test_normalise_refuses_what_is_no_pixels(self):
        with pytest.raises(InputError, match=r"expected uint8 \[N, C, H, W\], got float32 \[1, 1, 2, 2\]"):
            data.normalise(torch.ones(1, 1, 2, 2), (0.1,), (0.2,))
        with pytest.raises(InputError, match="1 channels, but 3 means"):
            data.normalise(torch.ones(1, 1, 2, 2, dtype=torch.uint8), (0.1,) * 3, (0.2,) * 3)

    def test_images_are_checked(self):
        x, y = torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
        assert len(data.Images(x, y)) == 2
        with pytest.raises(InputError, match=r"images: expected uint8 .*, got float32 \[2, 1, 3, 3\]"):
            data.Images(x.float(), y)
        with pytest.raises(InputError, match="not empty"):
            data.Images(x[:0], y[:0])
        for wrong in (y[:1], y.int(), y[:, None]):
            with pytest.raises(InputError, match=r"labels: expected int64 \[2\], one an image"):
                data.Images(x, wrong)


class TestSplit:
    @pytest.fixture
    def images(self):
        """Each image holds its number; classes of 100, 60, 0 and 7."""
        y = torch.tensor([0] * 100 + [1] * 60 + [3] * 7)[torch.randperm(167)]
        return data.Images(torch.arange(167, dtype=torch.uint8).view(-1, 1, 1, 1), y)

    @pytest.mark.parametrize("held_out", [1, 3, 40, 83, 160, 166])
    def test_stratified(self, images, held_out):
        rest, held = data.split(images, held_out, seed=0)
        assert (len(rest), len(held)) == (167 - held_out, held_out)
        numbers = rest.x.flatten().tolist() + held.x.flatten().tolist()
        assert sorted(numbers) == list(range(167))
        assert_close(images.y[rest.x.flatten().int()], rest.y)
        assert_close(images.y[held.x.flatten().int()], held.y)
        share = torch.tensor([100, 60, 0, 7]) * held_out / 167
        assert ((held.y.bincount(minlength=4) - share).abs() < 1).all()

    def test_deterministic(self, images):
        one, same, other = (data.split(images, 50, seed)[1].x.flatten().tolist() for seed in (1, 1, 2))
        assert one == same != other
        assert one == sorted(one)

    def test_leaves_the_global_random_numbers_alone(self, images):
        before = torch.get_rng_state()
        data.split(images, 50, 0)
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("held_out", [-1, 0, 167, 200])
    def test_both_parts_need_images(self, images, held_out):
        with pytest.raises(InputError, match=f"can hold out 1 to 166 of 167 images, not {held_out}"):
            data.split(images, held_out, 0)


REAL = {
    "cifar10": (50_000, 10_000, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "mnist": (60_000, 10_000, (0.1307,), (0.3081,)),
    "fashion-mnist": (60_000, 10_000, (0.2860,), (0.3530,)),
}


@pytest.mark.parametrize("name", REAL)
def test_real_data(name):
    """The official files, if ``QCFS_BRIDGE_DATA`` names a folder with folders called as the data sets."""
    folder = Path(os.environ.get("QCFS_BRIDGE_DATA", "")) / name
    if "QCFS_BRIDGE_DATA" not in os.environ or not folder.is_dir():
        pytest.skip(f"QCFS_BRIDGE_DATA names no folder with a folder {name} in it")
    found = data.dataset(name, folder)
    train, test, mean, std = REAL[name]
    assert (len(found.train), len(found.test)) == (train, test)
    assert found.mean == pytest.approx(mean, abs=1e-4)
    assert found.std == pytest.approx(std, abs=1e-4)
    assert found.test.y.bincount().tolist() == (
        [1000] * 10 if name != "mnist" else [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    )
