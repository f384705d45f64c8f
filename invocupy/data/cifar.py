"""CIFAR-10 and CIFAR-100 from their binary files or archives, which are never extracted.

The sets: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. A record of
the binary versions is a label byte (of CIFAR-100 two: coarse and fine), then 1,024 red, green and
blue bytes each.
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
from invocupy.data.versions import HUNDRED, TEN, Version
from invocupy.messages import one_line
from invocupy.paths import AnyPath, expand

_MEMBER_LIMIT = 100
_PACKED = {b"\x1f\x8b": ("gzip", ".gz"), b"BZh": ("bz2", ".bz2"), b"\xfd7zXZ\0": ("lzma", ".xz")}
"""How a packed file begins: the module that unpacks it, and how its name ends."""
_FILES = tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE
_EXTENSIONS = tarfile.XHDTYPE, tarfile.XGLTYPE  # about the next member; refused if they say:
_CHANGES = re.compile(rb"(^|\n)\d+ (path|size|GNU\.sparse[^=\n]*)=")
_RETRIES = 2


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
    images, labels = _read(TEN, root, train)
    return images, labels[0]


def cifar100(
    root: AnyPath | None = None, train: bool = True, coarse: bool = False
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read CIFAR-100, as :func:`cifar10` does CIFAR-10.

    Parameters
    ----------
    root
        As there, with the folder ``cifar-100-binary`` and the archive ``cifar-100-binary.tar.gz``
        (169 MB).
    train
        The 50,000 training images, or the 10,000 test images.
    coarse
        Labels from 0 to 19 of ``CIFAR100_COARSE_CLASSES`` instead of ``CIFAR100_CLASSES``.

    Returns
    -------
    images : uint8 array (N, 3, 32, 32)
    labels : int64 array (N,)
        Indices into ``CIFAR100_CLASSES``, 0 to 99.

    Raises
    ------
    DataError, DownloadError
        As :func:`cifar10`.

    Examples
    --------
    >>> cifar100("no/such/folder")
    Traceback (most recent call last):
    ...
    invocupy.data.cifar.DataError: root no/such/folder has no CIFAR-100: ...
    """
    images, labels = _read(HUNDRED, root, train)
    return images, labels[0 if coarse else 1]


def _read(
    version: Version, root: AnyPath | None, train: bool
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The images (N, 3, 32, 32), and a row of labels (N,) for each label byte."""
    names, bytes_ = version.train if train else version.test, len(version.classes)
    if root is None:
        source: Path | None = _default_source(version, names)
    else:
        source = _find(version, data_path(root), names)
    if source is None and any((data_path(root or "") / name).exists() for name in version.pickles):
        raise DataError(
            f"root {root} has the Python version of {version.name}, whose pickles are never read: "
            f"download the binary version, {version.archive}, from {version.url}, or use "
            "--dataset shapes10"
        )
    if source is None:
        raise DataError(
            f"root {root} has no {version.name}: it must be a folder with {', '.join(names)} (or "
            f"with {version.folder} or {version.archive}), or the path of {version.archive}; "
            f"{version.way_out}"
        )
    count = version.count(names[0])
    images = np.empty((len(names), count, 3, 32, 32), np.uint8)
    labels = np.empty((bytes_, len(names), count), np.int64)
    read = _from_archive if source.is_file() else _from_folder
    for name, content in read(version, source, names):
        part = names.index(name)
        records = np.frombuffer(content, np.uint8).reshape(count, version.record)
        images[part] = records[:, bytes_:].reshape(count, 3, 32, 32)
        labels[:, part] = records[:, :bytes_].T
        for row, classes in zip(labels[:, part], version.classes, strict=True):
            if row.max() >= classes:
                first = int(np.argmax(row >= classes))
                raise DataError(
                    f"{source}: {name} has label {row[first]} in record {first}, but labels "
                    f"go from 0 to {classes - 1}: the file is damaged; {version.way_out}"
                )
    return images.reshape(-1, 3, 32, 32), labels.reshape(bytes_, -1)


def data_path(path: AnyPath) -> Path:
    """A path from settings or the environment, with ``~`` expanded."""
    try:
        found = expand(path)
        found.exists()  # as pathlib's other questions, it may fail for a name that is too long
    except OSError as error:
        raise DataError(f"{os.fspath(path)} {error.strerror}") from error
    return found


def data_folder() -> Path:
    """The default folder of CIFAR-10 and CIFAR-100."""
    return settings.folder("INVOCUPY_DATA") or settings.cache_root()


def _find(version: Version, root: Path, names: tuple[str, ...]) -> Path | None:
    """The archive, or the folder with all the files, that ``root`` means; None if neither."""
    if root.is_file():
        return root
    for folder in (root, root / version.folder):
        if all((folder / name).is_file() for name in names):
            return folder
    plain = version.archive.removesuffix(".gz")
    archives = (root / f"{plain}{ending}" for ending in (".gz", "", ".bz2", ".xz"))
    return next((archive for archive in archives if archive.is_file()), None)


def _default_source(version: Version, names: tuple[str, ...]) -> Path:
    folder = data_folder()
    found = _find(version, folder, names)
    # The user's own folder is never changed. In ours, pooch checks the digest of the archive and
    # downloads a damaged one again.
    keep = found is not None and (os.environ.get("INVOCUPY_DATA") or found.is_dir())
    return found if found is not None and keep else _download(version, folder)


def _from_folder(
    version: Version, folder: Path, names: tuple[str, ...]
) -> Iterator[tuple[str, bytes]]:
    for name in names:
        with (folder / name).open("rb") as file:
            _check_size(version, f"{folder}: {name}", name, os.fstat(file.fileno()).st_size)
            yield name, file.read(version.count(name) * version.record)


def _check_size(version: Version, where: str, name: str, size: int) -> None:
    wanted = version.count(name) * version.record
    if size != wanted:
        raise DataError(
            f"{where} must have {wanted} bytes ({version.count(name)} records of "
            f"{version.record}), got {size}: the file is damaged or another one; {version.way_out}"
        )


def _members(version: Version, file: IO[bytes], path: Path) -> Iterator[tuple[str, bytes]]:
    """The plain files of a tar file, which is read once to its end: names and contents.

    ``tarfile`` only parses each header: its own reader follows sizes and chains of headers without
    a limit. What the official archive cannot have is refused, although nothing is extracted.
    """
    left = version.unpacked

    def read(size: int) -> bytes:
        nonlocal left
        if size < 0:
            raise ValueError(f"a member has a size of {size}")
        block = file.read(min(size, left + 1))
        left -= len(block)
        if left < 0:
            raise DataError(
                f"{path} unpacks to more than {version.unpacked} bytes, which {version.archive} "
                f"does not: {version.way_out}"
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
            (
                name.startswith(version.pickles[0]),
                "but the Python version: download the binary version",
            ),
            (not known, f"member {name!r} is neither a plain file nor a folder"),
            (outside, f"member {name!r} points outside the archive"),
            (number >= _MEMBER_LIMIT, f"it has more than {_MEMBER_LIMIT} members"),
            (changes, f"member {name!r} changes the name or size of the next one"),
        ):
            if wrong:
                raise DataError(f"{path} is not {version.archive}, {what}: {version.way_out}")
        if len(content) < size:
            raise EOFError(f"it ends within {name!r}")
        read(-size % tarfile.BLOCKSIZE)
        if member.type in _FILES:
            yield str(PurePosixPath(name)), content  # without ./
    while read(2**20):  # to the end, where the checksum is
        pass


def _from_archive(
    version: Version, path: Path, names: tuple[str, ...]
) -> Iterator[tuple[str, bytes]]:
    wanted = {f"{version.folder}/{name}": name for name in names}
    missing = set(wanted)
    with path.open("rb") as file:
        size, start = os.fstat(file.fileno()).st_size, file.read(8)
        if size > version.unpacked + 2**20:
            raise DataError(
                f"{path} has {size} bytes, more than {version.archive} unpacked: {version.way_out}"
            )
        file.seek(0)
        module, ending = next((_PACKED[m] for m in _PACKED if start.startswith(m)), ("", ""))
        try:
            plain: IO[bytes] = import_module(module).open(file) if module else file
            for member, content in _members(version, plain, path):
                if member not in wanted:
                    continue
                if member not in missing:
                    raise DataError(f"{path} has {member} twice: {version.way_out}")
                missing.remove(member)
                _check_size(version, f"{path}: {wanted[member]}", wanted[member], len(content))
                yield wanted[member], content
        except DataError:
            raise
        except Exception as error:  # of tarfile, gzip, zlib, bz2 and lzma
            raise DataError(
                f"{path} is not a whole tar{ending} archive ({one_line(error)}): {version.way_out}"
            ) from error
    if missing:
        raise DataError(
            f"{path} lacks {', '.join(sorted(missing))}: give the binary version of "
            f"{version.name}, {version.archive}; {version.way_out}"
        )


def _download(version: Version, cache: Path) -> Path:
    """Download the archive into ``cache`` unless it is there and whole; its path."""
    import pooch
    import requests
    from tqdm import tqdm

    def download(url: str, path: str, keeper: object) -> None:
        # disable=None: no bar where standard error is not a terminal
        with (
            requests.get(url, stream=True, timeout=30) as answer,
            Path(path).open("wb") as file,
            tqdm(total=version.size, unit="B", unit_scale=True, disable=None) as bar,
        ):
            answer.raise_for_status()
            for block in answer.iter_content(2**16):
                file.write(block)
                bar.update(len(block))
                if file.tell() > version.size:
                    raise ValueError(f"more than {version.size} bytes")

    by_hand = (
        f"put {version.archive} ({version.size} bytes, SHA-256 {version.sha256}) by hand at "
        f"{cache / version.archive}, or use --dataset shapes10, which needs no network"
    )
    keeper = pooch.create(
        cache, "", registry={version.archive: f"sha256:{version.sha256}"},
        urls={version.archive: version.url}, retry_if_failed=_RETRIES,
    )  # fmt: skip
    try:
        return Path(keeper.fetch(version.archive, downloader=download))
    except OSError as error:  # also what requests raises
        raise DownloadError(
            f"could not download {version.url} ({one_line(error)}): {by_hand}"
        ) from error
    except ValueError as error:
        raise DataError(
            f"{version.url} gave another file ({one_line(error)}): {by_hand}"
        ) from error
