"""Files of CIFAR-10 as small as the tests need them, and archives of them."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pooch  # noqa: F401  (its logger keeps the standard error of its first import)
import pytest

from invocupy import data
from invocupy.data import DataError, cifar

RECORDS = 20  # a file in most tests, in place of 10,000


def make_files(records: int = RECORDS) -> dict[str, bytes]:
    """Contents by name: labels count up, pixels are random multiples of 64, so that they pack."""
    files = {}
    for number, name in enumerate((*cifar.TEN.train, *cifar.TEN.test)):
        content = np.random.default_rng(number).integers(0, 4, (records, 3073), np.uint8) * 64
        content[:, 0] = (np.arange(records) + number) % 10
        files[name] = content.tobytes()
    return files


def make_folder(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def plain(name: str, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info, content


def official(files: dict[str, bytes]) -> list[tuple[tarfile.TarInfo, bytes]]:
    """Members in the official archive's manner: folder, files out of order, a page."""
    folder = tarfile.TarInfo(cifar.TEN.folder + "/")
    folder.type = tarfile.DIRTYPE
    names = sorted(files, key=lambda name: hashlib.md5(name.encode()).hexdigest())  # noqa: S324
    members = [plain(f"{cifar.TEN.folder}/{name}", files[name]) for name in names]
    return [(folder, b""), *members, plain(f"{cifar.TEN.folder}/readme.html", b"<html>")]


def make_archive(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return path


def check_content(root: Path | None, files: dict[str, bytes]) -> None:
    for train, names in ((True, cifar.TEN.train), (False, cifar.TEN.test)):
        images, labels = data.cifar10(root, train=train)
        records = np.frombuffer(b"".join(files[name] for name in names), np.uint8)
        records = records.reshape(-1, 3073)
        assert images.dtype == np.uint8
        assert labels.dtype == np.int64
        assert images.shape == (len(records), 3, 32, 32)
        np.testing.assert_array_equal(images.reshape(len(records), -1), records[:, 1:])
        np.testing.assert_array_equal(labels, records[:, 0])


def refuse(root: Path, *words: str, train: bool = True) -> None:
    """DataError, in one line, that names the file and says the words."""
    with pytest.raises(DataError) as caught:
        data.cifar10(root, train=train)
    message = str(caught.value)
    assert "\n" not in message
    for word in (str(root), "shapes10", *words):
        assert word in message
