"""CIFAR-10 from its binary files or their archive, which is read and never extracted.

The set: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. The binary
version has six files of 10,000 records: a label byte, then 1,024 red, green and blue bytes each.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from importlib import import_module
from itertools import count
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
from numpy.typing import NDArray

from invocupy import settings
from invocupy.messages import one_line
from invocupy.paths import AnyPath, expand

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"
)  # fmt: skip
# of the 50,000 training images, per channel, in units of 0..1
CIFAR10_MEAN = (0.49140, 0.48216, 0.44653)
CIFAR10_STD = (0.24703, 0.24349, 0.26159)

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
ARCHIVE = "cifar-10-binary.tar.gz"
ARCHIVE_SIZE = 170_052_171
ARCHIVE_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
FOLDER = "cifar-10-batches-bin"
TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILES = ("test_batch.bin",)

_RECORDS = 10_000
_RECORD_SIZE = 1 + 3 * 32 * 32
_FILE_SIZE = _RECORDS * _RECORD_SIZE
# Six files, a page of text and tar's own blocks; what unpacks to more is not this archive.
_UNPACKED_LIMIT = 6 * _FILE_SIZE + 2**20
_MEMBER_LIMIT = 100
_PACKED = {b"\x1f\x8b": ("gzip", ".gz"), b"BZh": ("bz2", ".bz2"), b"\xfd7zXZ\0": ("lzma", ".xz")}
"""How a packed file begins: the module that unpacks it, and how its name ends."""
_FILES = tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE
_EXTENSIONS = tarfile.XHDTYPE, tarfile.XGLTYPE  # about the next member; refused if they say:
_CHANGES = re.compile(rb"(^|\n)\d+ (path|size|GNU\.sparse[^=\n]*)=")
_RETRIES = 2
_PICKLES = "cifar-10-batches-py", "cifar-10-python.tar.gz", "data_batch_1"
"""What folders of the Python version hold."""

_WAY_OUT = f"download {ARCHIVE} from {URL}, or use --dataset shapes10, which needs no file"


class DataError(ValueError):
    """A data file that is invalid. One line: the file, the rule, the values."""


class DownloadError(OSError):
    """A download that failed. One line: address, reason, and what to do instead."""


def cifar10(
    root: AnyPath | None = None, train: bool = True
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read CIFAR-10; without ``root`` it is downloaded if it is not in the cache.

    Parameters
    ----------
    root
        A folder with the binary files, with a folder ``cifar-10-batches-bin`` of them, or with
        ``cifar-10-binary.tar.gz``; or the path of that archive, which may be packed differently
        (``.tar``, ``.tar.gz``, ``.tar.bz2``, ``.tar.xz``). None looks in the folder named by
        ``INVOCUPY_DATA``, or else in the user's cache folder, and downloads the archive (170 MB,
        checked by its SHA-256) into it if it is not there.
    train
        The 50,000 training images, or the 10,000 test images.

    Returns
    -------
    images : uint8 array (N, 3, 32, 32)
        Red, green and blue planes, in the official order.
    labels : int64 array (N,)
        Indices into ``CIFAR10_CLASSES``.

    Raises
    ------
    DataError
        If files are missing, of another size, hold a label above 9, or if the archive is damaged,
        hostile, or not the one that was to be downloaded.
    DownloadError
        If the archive cannot be downloaded or stored.

    Examples
    --------
    >>> cifar10("no/such/folder")
    Traceback (most recent call last):
    ...
    invocupy.data.cifar.DataError: root no/such/folder has no CIFAR-10: ...
    """
    names = TRAIN_FILES if train else TEST_FILES
    source = _default_source(names) if root is None else _find(data_path(root), names)
    if source is None and any((data_path(root or "") / name).exists() for name in _PICKLES):
        raise DataError(
            f"root {root} has the Python version of CIFAR-10, whose pickles are never read: "
            f"download the binary version, {ARCHIVE}, from {URL}, or use --dataset shapes10"
        )
    if source is None:
        raise DataError(
            f"root {root} has no CIFAR-10: it must be a folder with {', '.join(names)} (or with "
            f"{FOLDER} or {ARCHIVE}), or the path of {ARCHIVE}; {_WAY_OUT}"
        )
    images = np.empty((len(names), _RECORDS, 3, 32, 32), np.uint8)
    labels = np.empty((len(names), _RECORDS), np.int64)
    for name, content in (_from_archive if source.is_file() else _from_folder)(source, names):
        part = names.index(name)
        records = np.frombuffer(content, np.uint8).reshape(_RECORDS, _RECORD_SIZE)
        images[part] = records[:, 1:].reshape(_RECORDS, 3, 32, 32)
        labels[part] = records[:, 0]
        if labels[part].max() > 9:
            first = int(np.argmax(labels[part] > 9))
            raise DataError(
                f"{source}: {name} has label {labels[part, first]} in record {first}, but labels "
                f"go from 0 to 9: the file is damaged; {_WAY_OUT}"
            )
    return images.reshape(-1, 3, 32, 32), labels.reshape(-1)


def data_path(path: AnyPath) -> Path:
    """A path from settings or the environment, with ``~`` expanded."""
    try:
        return expand(path)
    except OSError as error:
        raise DataError(f"{os.fspath(path)} {error.strerror}") from error


def data_folder() -> Path:
    """The default folder of CIFAR-10."""
    return settings.folder("INVOCUPY_DATA") or settings.cache_root()


def _find(root: Path, names: tuple[str, ...]) -> Path | None:
    """The archive, or the folder with all the files, that ``root`` means; None if neither."""
    if root.is_file():
        return root
    for folder in (root, root / FOLDER):
        if all((folder / name).is_file() for name in names):
            return folder
    plain = ARCHIVE.removesuffix(".gz")
    archives = (root / f"{plain}{ending}" for ending in (".gz", "", ".bz2", ".xz"))
    return next((archive for archive in archives if archive.is_file()), None)


def _default_source(names: tuple[str, ...]) -> Path:
    folder = data_folder()
    found = _find(folder, names)
    # The user's own folder is never changed. In ours, pooch checks the digest of the archive and
    # downloads a damaged one again.
    keep = found is not None and (os.environ.get("INVOCUPY_DATA") or found.is_dir())
    return found if found is not None and keep else _download(folder)


def _from_folder(folder: Path, names: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    for name in names:
        with (folder / name).open("rb") as file:
            _check_size(f"{folder}: {name}", os.fstat(file.fileno()).st_size)
            yield name, file.read(_FILE_SIZE)


def _check_size(where: str, size: int) -> None:
    if size != _FILE_SIZE:
        raise DataError(
            f"{where} must have {_FILE_SIZE} bytes ({_RECORDS} records of {_RECORD_SIZE}), "
            f"got {size}: the file is damaged or another one; {_WAY_OUT}"
        )


def _members(file: IO[bytes], path: Path) -> Iterator[tuple[str, bytes]]:
    """The plain files of a tar file, which is read once to its end: names and contents.

    ``tarfile`` only parses each header: its own reader follows sizes and chains of headers without
    a limit. What the official archive cannot have is refused, although nothing is extracted.
    """
    left = _UNPACKED_LIMIT

    def read(size: int) -> bytes:
        nonlocal left
        if size < 0:
            raise ValueError(f"a member has a size of {size}")
        block = file.read(min(size, left + 1))
        left -= len(block)
        if left < 0:
            raise DataError(
                f"{path} unpacks to more than {_UNPACKED_LIMIT} bytes, which {ARCHIVE} "
                f"does not: {_WAY_OUT}"
            )
        return block

    for number in count():
        header = read(tarfile.BLOCKSIZE)
        if not header.strip(b"\0"):
            break
        member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        name, size = member.name, 0 if member.isdir() else member.size
        content = read(size)
        known = member.isdir() or member.type in (*_FILES, *_EXTENSIONS)
        outside = name[:1] in ("", "/") or ".." in name.split("/")
        changes = member.type in _EXTENSIONS and _CHANGES.search(content)
        for wrong, what in (
            (name.startswith(_PICKLES[0]), "but the Python version: download the binary version"),
            (not known, f"member {name!r} is neither a plain file nor a folder"),
            (outside, f"member {name!r} points outside the archive"),
            (number >= _MEMBER_LIMIT, f"it has more than {_MEMBER_LIMIT} members"),
            (changes, f"member {name!r} changes the name or size of the next one"),
        ):
            if wrong:
                raise DataError(f"{path} is not {ARCHIVE}, {what}: {_WAY_OUT}")
        if len(content) < size:
            raise EOFError(f"it ends within {name!r}")
        read(-size % tarfile.BLOCKSIZE)
        if member.type in _FILES:
            yield str(PurePosixPath(name)), content  # without ./
    while read(2**20):  # to the end, where the checksum is
        pass


def _from_archive(path: Path, names: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    wanted = {f"{FOLDER}/{name}": name for name in names}
    missing = set(wanted)
    with path.open("rb") as file:
        size, start = os.fstat(file.fileno()).st_size, file.read(8)
        if size > _UNPACKED_LIMIT + 2**20:
            raise DataError(f"{path} has {size} bytes, more than {ARCHIVE} unpacked: {_WAY_OUT}")
        file.seek(0)
        module, ending = next((_PACKED[m] for m in _PACKED if start.startswith(m)), ("", ""))
        try:
            plain: IO[bytes] = import_module(module).open(file) if module else file
            for member, content in _members(plain, path):
                if member not in wanted:
                    continue
                if member not in missing:
                    raise DataError(f"{path} has {member} twice: {_WAY_OUT}")
                missing.remove(member)
                _check_size(f"{path}: {wanted[member]}", len(content))
                yield wanted[member], content
        except DataError:
            raise
        except Exception as error:  # of tarfile, gzip, zlib, bz2 and lzma
            raise DataError(
                f"{path} is not a whole tar{ending} archive ({one_line(error)}): {_WAY_OUT}"
            ) from error
    if missing:
        raise DataError(
            f"{path} lacks {', '.join(sorted(missing))}: give the binary version of CIFAR-10, "
            f"{ARCHIVE}; {_WAY_OUT}"
        )


def _download(cache: Path) -> Path:
    """Download the archive into ``cache`` unless it is there and whole; its path."""
    import pooch
    import requests
    from tqdm import tqdm

    def download(url: str, path: str, keeper: object) -> None:
        # disable=None: no bar where standard error is not a terminal
        with (
            requests.get(url, stream=True, timeout=30) as answer,
            Path(path).open("wb") as file,
            tqdm(total=ARCHIVE_SIZE, unit="B", unit_scale=True, disable=None) as bar,
        ):
            answer.raise_for_status()
            for block in answer.iter_content(2**16):
                file.write(block)
                bar.update(len(block))
                if file.tell() > ARCHIVE_SIZE:
                    raise ValueError(f"more than {ARCHIVE_SIZE} bytes")

    by_hand = (
        f"put {ARCHIVE} ({ARCHIVE_SIZE} bytes, SHA-256 {ARCHIVE_SHA256}) by hand at "
        f"{cache / ARCHIVE}, or use --dataset shapes10, which needs no network"
    )
    keeper = pooch.create(
        cache, "", registry={ARCHIVE: f"sha256:{ARCHIVE_SHA256}"}, urls={ARCHIVE: URL},
        retry_if_failed=_RETRIES,
    )  # fmt: skip
    try:
        return Path(keeper.fetch(ARCHIVE, downloader=download))
    except OSError as error:  # also what requests raises
        raise DownloadError(f"could not download {URL} ({one_line(error)}): {by_hand}") from error
    except ValueError as error:
        raise DataError(f"{URL} gave another file ({one_line(error)}): {by_hand}") from error
