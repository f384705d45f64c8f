"""CIFAR-10 from a folder or an archive: the right images, and damaged files refused."""

from __future__ import annotations

import gzip
import os
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pooch  # noqa: F401  (its logger keeps the standard error of its first import)
import pytest
from cifar_files import (
    RECORDS,
    check_content,
    make_archive,
    make_files,
    make_folder,
    official,
    plain,
    refuse,
)

from invocupy import data
from invocupy.data import DataError, cifar

USER_FOLDER = os.environ.get("INVOCUPY_DATA")  # which the tests themselves must not touch

# ---------------------------------------------------------------------------- CIFAR-10 files


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("inside", ["", cifar.TEN.folder])
def test_reads_a_folder(tmp_path: Path, inside: str) -> None:
    files = make_files()
    make_folder(tmp_path / inside, files)
    check_content(tmp_path, files)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("by_path", [True, False])
def test_reads_the_archive_and_extracts_nothing(tmp_path: Path, by_path: bool) -> None:
    files = make_files()
    archive = make_archive(tmp_path / cifar.TEN.archive, official(files))
    check_content(archive if by_path else tmp_path, files)
    assert os.listdir(tmp_path) == [cifar.TEN.archive]  # noqa: PTH208


def test_reads_files_of_the_official_size(tmp_path: Path) -> None:
    content = np.zeros((10_000, 3073), np.uint8)
    content[:, 0] = np.arange(10_000) % 10
    content[:, 1 + 1024 * 2] = np.arange(10_000) % 251  # first blue pixel
    archive = make_archive(
        tmp_path / "own-name.tar.gz", official({"test_batch.bin": content.tobytes()})
    )
    folder = make_folder(tmp_path / "folder", {"test_batch.bin": content.tobytes()})
    for root in (archive, folder):
        images, labels = data.cifar10(root, train=False)
        assert images.shape == (10_000, 3, 32, 32)
        np.testing.assert_array_equal(labels, np.arange(10_000) % 10)
        np.testing.assert_array_equal(images[:, 2, 0, 0], np.arange(10_000) % 251)
        assert images[:, :2].max() == images[:, 2, 0, 1:].max() == 0


def test_real_data() -> None:
    root = USER_FOLDER
    if not root or cifar._find(cifar.TEN, Path(root), (*cifar.TEN.train, *cifar.TEN.test)) is None:
        pytest.skip("INVOCUPY_DATA names no folder with CIFAR-10")
    images, labels = data.cifar10(root)
    assert np.bincount(labels).tolist() == [5000] * 10
    scaled = [images[:, c] / np.float64(255) for c in range(3)]
    np.testing.assert_allclose([c.mean() for c in scaled], data.CIFAR10_MEAN, atol=1e-5)
    np.testing.assert_allclose([c.std() for c in scaled], data.CIFAR10_STD, atol=1e-5)
    images, labels = data.cifar10(root, train=False)
    assert images.shape == (10_000, 3, 32, 32)
    assert np.bincount(labels).tolist() == [1000] * 10


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("change", [-3073, -1, 1, 3073])
@pytest.mark.parametrize("packed", [True, False])
def test_refuses_a_wrong_size(tmp_path: Path, change: int, packed: bool) -> None:
    files = make_files()
    content = files["data_batch_3.bin"]
    files["data_batch_3.bin"] = content[:change] if change < 0 else content + bytes(change)
    root = make_folder(tmp_path / "folder", files)
    if packed:
        root = make_archive(tmp_path / "a.tar.gz", official(files))
    refuse(root, "data_batch_3.bin", str(RECORDS * 3073), str(RECORDS * 3073 + change))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("packed", [True, False])
def test_refuses_a_label_above_nine(tmp_path: Path, packed: bool) -> None:
    files = make_files()
    content = bytearray(files["test_batch.bin"])
    content[7 * 3073] = 10
    files["test_batch.bin"] = bytes(content)
    root = make_folder(tmp_path / "folder", files)
    if packed:
        root = make_archive(tmp_path / "a.tar.gz", official(files))
    refuse(root, "test_batch.bin", "label 10", "record 7", train=False)
    assert len(data.cifar10(root)[0]) == 5 * RECORDS  # the training files are whole


@pytest.mark.usefixtures("small")
def test_refuses_missing_files(tmp_path: Path) -> None:
    files = make_files()
    del files["data_batch_4.bin"]
    refuse(make_folder(tmp_path / "folder", files), "data_batch_4.bin")
    refuse(make_archive(tmp_path / "a.tar.gz", official(files)), "data_batch_4.bin")
    refuse(tmp_path / "nowhere", cifar.TEN.archive)
    python_version = [plain("cifar-10-batches-py/data_batch_1", b"\x80\x02")]
    refuse(make_archive(tmp_path / "py.tar.gz", python_version), "binary version")
    elsewhere = [plain(name, content) for name, content in make_files().items()]
    refuse(
        make_archive(tmp_path / "flat.tar.gz", elsewhere), f"{cifar.TEN.folder}/data_batch_1.bin"
    )


ODD_TYPES = {
    "symlink": tarfile.SYMTYPE,
    "link": tarfile.LNKTYPE,
    "character device": tarfile.CHRTYPE,
    "block device": tarfile.BLKTYPE,
    "fifo": tarfile.FIFOTYPE,
    "sparse": tarfile.GNUTYPE_SPARSE,
}


def hostile(kind: str) -> tuple[tarfile.TarInfo, bytes]:
    info, content = plain(f"{cifar.TEN.folder}/extra", b"")
    if kind == "parent":
        return plain(f"{cifar.TEN.folder}/../../evil", b"evil")
    if kind == "absolute":
        return plain("/tmp/evil", b"evil")  # noqa: S108
    if kind == "fake link":  # under a name that is wanted
        info.name = f"{cifar.TEN.folder}/data_batch_1.bin"
    if kind == "newline":
        info.name = "a\nb\x1b[2J"
    info.type = ODD_TYPES.get(kind, tarfile.SYMTYPE)
    info.linkname = "../../../etc/passwd"
    return info, content


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", [*ODD_TYPES, "parent", "absolute", "fake link", "newline"])
def test_refuses_hostile_members(tmp_path: Path, kind: str, first: bool) -> None:
    members = official(make_files())
    members.insert(0 if first else len(members), hostile(kind))
    refuse(make_archive(tmp_path / "a.tar.gz", members), "member")
    assert os.listdir(tmp_path) == ["a.tar.gz"]  # noqa: PTH208


@pytest.mark.usefixtures("small")
def test_refuses_bombs(tmp_path: Path) -> None:
    members = official(make_files())
    big = plain(f"{cifar.TEN.folder}/big", bytes(2**22))
    refuse(make_archive(tmp_path / "big.tar.gz", [big, *members]), "unpacks to more")
    many = [plain(f"{cifar.TEN.folder}/{number}", b"") for number in range(101)]
    refuse(make_archive(tmp_path / "many.tar.gz", many), "more than 100 members")
    twins = [plain(f"{cifar.TEN.folder}/test_batch.bin", make_files()["test_batch.bin"])] * 2
    refuse(make_archive(tmp_path / "double.tar.gz", twins), "twice", train=False)
    tail = tmp_path / "tail.tar.gz"
    content = gzip.decompress(make_archive(tail, members).read_bytes())
    tail.write_bytes(gzip.compress(content + bytes(2**22)))
    refuse(tail, "unpacks to more")
    # a header that announces a name of eight gigabytes, of which a part follows
    info = tarfile.TarInfo("long")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**33
    name = tmp_path / "name.tar.gz"
    name.write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(2**22)))
    refuse(name, "unpacks to more")


@pytest.mark.usefixtures("small")
def test_refuses_what_is_no_archive(tmp_path: Path) -> None:
    for content in (b"", b"hello", gzip.compress(b""), gzip.compress(b"hello" * 1000)):
        path = tmp_path / "a.tar.gz"
        path.write_bytes(content)
        refuse(path)
    path.write_bytes(make_archive(path, official(make_files())).read_bytes() + b"more")
    refuse(path, "not a whole tar.gz")


@pytest.mark.usefixtures("small")
def test_compares_the_checksum_behind_the_last_member(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar, "TEN", cifar.TEN._replace(spare=2**23))
    path = make_archive(tmp_path / "a.tar.gz", official(make_files()))
    padded = gzip.compress(gzip.decompress(path.read_bytes()) + bytes(2**22))
    path.write_bytes(padded)
    check_content(path, make_files())
    path.write_bytes(padded[:-5] + bytes([padded[-5] ^ 1]) + padded[-4:])
    refuse(path, "CRC")


@pytest.mark.usefixtures("small")
def test_damaged_archives_are_refused_or_unchanged(tmp_path: Path) -> None:
    # gzip's checksum covers the content; a flip elsewhere (time, padding) may do no harm
    path = make_archive(tmp_path / "a.tar.gz", official(make_files()))
    whole = path.read_bytes()
    images, labels = data.cifar10(path)
    rng = np.random.default_rng(0)
    refused = 0
    for position in [*range(12), *rng.integers(0, len(whole), 150)]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            found = data.cifar10(path)
        except DataError:
            refused += 1
        else:
            np.testing.assert_array_equal(found[0], images)
            np.testing.assert_array_equal(found[1], labels)
    assert refused >= 150
    for length in rng.integers(0, len(whole), 50):
        path.write_bytes(whole[:length])
        refuse(path)
    unpacked = gzip.decompress(whole)
    for length in range(0, len(unpacked), 10_000):
        packer = zlib.compressobj(1, zlib.DEFLATED, 31)
        start = packer.compress(unpacked[:length]) + packer.flush(zlib.Z_FULL_FLUSH)
        path.write_bytes(start + b"\x07" * 100)  # a block of the type that does not exist
        refuse(path)


def test_the_archive_of_the_python_version_is_told(tmp_path: Path) -> None:
    members = [plain("cifar-10-batches-py/data_batch_1", b"pickle")]
    path = make_archive(tmp_path / "cifar-10-python.tar.gz", members)
    refuse(path, "the Python version: download the binary version", "cifar-10-binary.tar.gz")


@pytest.mark.parametrize("name", ["x" * 300, ""])
def test_a_path_that_no_folder_can_have(name: str) -> None:
    for read in (data.cifar10, lambda root: data.image_folder(root, True, 8)):
        with pytest.raises(DataError, match=r"too long|cannot be empty"):
            read(name)
