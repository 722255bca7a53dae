"""A file is the old one or the new one, whole, and nothing else is there: whatever the target, the disk, the signal."""

from __future__ import annotations

import os
import random
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bridge._util.files import replacing
from bridge.errors import BridgeError, FileError, InputError

OLD, NEW = b"old" * 1000, b"new" * 100_000


def write(path: str | Path, content: bytes = NEW) -> None:
    with replacing(path) as file:
        file.write(content)


def alone(path: Path, content: bytes) -> bool:
    """Whether the file at `path` has this content, and its folder holds nothing else."""
    return path.read_bytes() == content and [*path.parent.iterdir()] == [path]


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "folder" / "file.bin"
    write(path, OLD)
    return path


def test_replaces_and_makes_folders(old):
    assert alone(old, OLD)
    write(str(old))
    assert alone(old, NEW)


def test_a_block_that_fails_changes_nothing(old, tmp_path):
    with pytest.raises(ZeroDivisionError), replacing(old) as file:
        file.write(NEW + bytes([1 // 0]))
    assert alone(old, OLD)
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "new" / "one") as file:
        file.write(bytes([1 // 0]))
    assert [*(tmp_path / "new").iterdir()] == []


def test_permissions(old, tmp_path):
    before = os.umask(0o027)
    try:
        write(tmp_path / "fresh")
        old.chmod(0o604)
        write(old)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "fresh").stat().st_mode) == 0o640
    assert stat.S_IMODE(old.stat().st_mode) == 0o604


def test_a_link_stays_and_its_target_is_replaced(old, tmp_path):
    link, nowhere = tmp_path / "link", tmp_path / "nowhere"
    link.symlink_to(old)
    nowhere.symlink_to(tmp_path / "later")
    write(link)
    write(nowhere)
    assert link.is_symlink()
    assert alone(old, NEW)
    assert (tmp_path / "later").read_bytes() == NEW


def test_what_is_no_file(tmp_path):
    pipe, loop = tmp_path / "pipe", tmp_path / "loop"
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    refused = {tmp_path: "is a folder", "": "expected the path", 3: "expected the path"}
    for path, message in refused.items():
        with pytest.raises(InputError, match=message):
            write(path)  # type: ignore[arg-type]
    for path in (pipe, loop, Path("/dev/full"), tmp_path / ("x" * 256), tmp_path / "loop" / "file"):
        with pytest.raises(FileError, match="cannot be written"):
            write(path)
    assert stat.S_ISFIFO(pipe.lstat().st_mode)
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)
    write(Path("/dev/null"))
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    write(tmp_path / ("x" * 255))  # as long as a name may be


def program(line: str) -> list[str]:
    return [sys.executable, "-c", f"from bridge._util.files import replacing\n{line}"]


def test_standard_output_and_a_pipe_with_a_reader(tmp_path):
    lines = "with replacing('/dev/stdout') as file: file.write(b'all of it')"
    assert subprocess.run(program(lines), capture_output=True, check=True).stdout == b"all of it"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE)
    for _ in range(100):  # until it listens
        try:
            write(pipe, b"through it")
            break
        except FileError:
            time.sleep(0.05)
    assert reader.communicate(timeout=10)[0] == b"through it"


def test_no_space(old):
    """A limit on the size of files is what a full disk is, and needs no rights."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
        with pytest.raises(FileError, match=r"file\.bin: cannot be written: File too large"):
            write(old)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert alone(old, OLD)
    assert issubclass(FileError, BridgeError)


def test_no_permission(old):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    old.parent.chmod(0o500)
    try:
        with pytest.raises(FileError, match="Permission denied"):
            write(old)
    finally:
        old.parent.chmod(0o700)


@pytest.mark.parametrize("kills", [10, pytest.param(200, marks=pytest.mark.long)])
def test_killed_at_any_moment(old, kills):
    """Old or new, whole, and nothing else there."""
    lines = f"""
print(flush=True)
for number in range(10**9):
    with replacing({str(old)!r}) as file:
        file.write((b'new', b'old')[number % 2] * 1_000_000)
"""
    rng = random.Random(kills)
    for _ in range(kills):
        child = subprocess.Popen(program(lines), stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(rng.uniform(0, 0.05))
        child.kill()
        child.communicate()
        content = old.read_bytes()
        assert content in (OLD, b"new" * 1_000_000, b"old" * 1_000_000)
    left = [path for path in old.parent.iterdir() if path != old]
    assert len(left) <= kills / 4  # a name can be there between two calls of the system; this program does little else
    for path in left:
        os.utime(path, (0, 0))
    write(old)
    assert alone(old, NEW)
