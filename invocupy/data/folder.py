"""Images of the user's own in folders: ``DIR/train/CLASS/*`` and ``DIR/test/CLASS/*``."""

from __future__ import annotations

import hashlib
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from invocupy.checkpoint import CheckpointError, load, save, sweep
from invocupy.data.cifar import DataError, data_path
from invocupy.data.images import sized_image
from invocupy.data.own import Images
from invocupy.docstrings import documented
from invocupy.geometry import integer
from invocupy.messages import one_line, printable
from invocupy.paths import AnyPath
from invocupy.settings import cache_root

_VERSION = 1  # of what is kept of the decoded images


@documented
def folder_listing(root: AnyPath) -> tuple[tuple[str, ...], int, int]:
    """The sorted class names, the folders in ``root/train``; numbers of training and test files.

    Raises
    ------
    DataError
        If there is no such folder, fewer than two classes, one without a file, or a class in
        ``root/test`` that ``root/train`` lacks.

    >>> folder_listing("no/such/folder")
    Traceback (most recent call last):
    invocupy.data.cifar.DataError: data_dir no/such/folder has no folder train: ...
    """
    train, test = (_files(root, part) for part in ("train", "test"))
    counted, tested = (sum(map(len, files.values())) for files in (train, test))
    return tuple(train), counted, tested


@documented
def image_folder(root: AnyPath, train: bool, size: int, skip_broken: bool = False) -> Images:
    """The images of ``root/train`` or ``root/test``: uint8 (N, 3, size, size), and labels (N,).

    Each is read by :func:`read_image`. The first image of each class comes first, then the second
    ones, so that the first N are of all classes; labels are those of :func:`folder_listing`. What
    was decoded is cached in ``folders`` of the cache folder, with a digest and the names, sizes and
    times of the files. It is renewed when they change, and may be deleted at any time.

    Parameters
    ----------
    train
        True for ``root/train``, False for ``root/test``.
    size
        Height and width of the images.
    skip_broken
        Skip files that are damaged or too small, in place of an error.

    Raises
    ------
    DataError
        As :func:`folder_listing`; for files that are damaged or smaller than ``size``. With
        ``skip_broken`` these are named on standard error instead, unless a class has no other.

    >>> image_folder("no/such/folder", True, 32)
    Traceback (most recent call last):
    invocupy.data.cifar.DataError: data_dir no/such/folder has no folder train: ...
    """
    from tqdm import tqdm

    size, part = integer("size", size, 1), "train" if train else "test"
    names = [*_files(root, "train")]
    turns = [
        (turn, names.index(name), path)
        for name, paths in _files(root, part).items()
        for turn, path in enumerate(paths)
    ]
    paths = [path for _, _, path in sorted(turns)]
    images, broken = _decoded(data_path(root) / part, paths, size)
    good = [path for path in paths if str(path) not in broken]
    if broken:
        first, reason = next(iter(broken.items()))
        if not skip_broken:
            raise DataError(
                f"{len(broken)} of {len(paths)} files cannot be used, the first is {first} "
                f"({reason}): mend or remove them, or leave them out with --skip-broken"
            )
        for name, reason in broken.items():
            tqdm.write(printable(f"invocupy: left out {name} ({reason})"), file=sys.stderr)
    labels = np.array([names.index(path.parent.name) for path in good], np.int64)
    empty = {path.parent.name for path in paths} - {path.parent.name for path in good}
    if empty:
        raise DataError(f"{data_path(root) / part / min(empty)} has no image that can be used")
    return images, labels


def _files(root: AnyPath, part: str) -> dict[str, list[Path]]:
    """The sorted files of each class, without hidden files."""
    place = data_path(root)
    found: dict[str, dict[str, list[Path]]] = {}
    for which in ("train", "test"):
        if not (place / which).is_dir():
            raise DataError(
                f"data_dir {root} has no folder {which}: it must hold train/CLASS/* and "
                "test/CLASS/*, with image files in a folder for each class"
            )
        folders = sorted(path for path in (place / which).iterdir() if path.is_dir())
        found[which] = {
            path.name: sorted(file for file in path.iterdir() if not _is_hidden(file.name))
            for path in folders
            if path.name[0] != "."
        }
        for path in (place / which).iterdir():  # such as one on a disk that is not mounted
            if path.is_symlink() and not path.exists() and path.name[0] != ".":
                raise DataError(f"{path} is a link to nothing: mend it, or remove it")
        for name, files in found[which].items():
            if not files:
                raise DataError(f"{place / which / name} is empty: a class needs an image")
    if len(found["train"]) < 2:
        raise DataError(
            f"{place / 'train'} must have a folder for each of at least two classes, "
            f"got {', '.join(found['train']) or 'none'}"
        )
    if unknown := sorted(found["test"].keys() - found["train"].keys()):
        raise DataError(
            f"{place / 'test'} has the class {unknown[0]}, which {place / 'train'} lacks: "
            "classes are the folders of train"
        )
    if not found["test"]:
        raise DataError(f"{place / 'test'} has no folder of a class")
    return found[part]


def _is_hidden(name: str) -> bool:
    """Whether it is a file of a file manager: .DS_Store, Thumbs.db, desktop.ini."""
    return name.startswith(".") or name.lower() in ("thumbs.db", "desktop.ini")


def _decoded(place: Path, paths: list[Path], size: int) -> tuple[Any, dict[str, str]]:
    """The images of files, and why others failed, by path; from the cache if possible."""
    stats = (path.stat() if path.exists() else None for path in paths)
    facts = [(str(p), s and (s.st_size, s.st_mtime_ns)) for p, s in zip(paths, stats, strict=True)]
    listing = hashlib.sha256(json.dumps([_VERSION, size, facts]).encode()).hexdigest()
    key = hashlib.sha256(json.dumps([str(place.resolve()), size]).encode()).hexdigest()[:16]
    kept = cache_root() / "folders" / f"{key}.safetensors"
    with suppress(CheckpointError):
        arrays, info = load(kept)
        if info.get("listing") == listing:
            # Permissions may have changed since, or the formats that Pillow reads.
            broken = _read([path for path in paths if str(path) in info["broken"]], size)[1]
            if broken.keys() == info["broken"].keys():
                return arrays["images"], broken
    images, broken = _read(paths, size)
    # Without a cache everything works, but more slowly.
    with suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        sweep(kept.parent, [kept.name])  # of a killed process; it may be as large as the images
        save(kept, {"images": images}, {"listing": listing, "broken": broken})
    return images, broken


def _read(paths: list[Path], size: int) -> tuple[NDArray[np.uint8], dict[str, str]]:
    from tqdm import tqdm

    images = np.empty((len(paths), 3, size, size), np.uint8)
    broken: dict[str, str] = {}
    count = 0
    # disable=None: no bar where standard error is not a terminal
    for path in tqdm(paths, desc="reading images", leave=False, disable=None):
        try:
            images[count], shape = sized_image(path, size)
        except DataError as error:
            broken[str(path)] = one_line(error.__cause__ or error)
            continue
        if min(shape) < size:
            broken[str(path)] = f"{shape[0]} x {shape[1]} pixels, smaller than {size} x {size}"
            continue
        count += 1
    return images[:count], broken
