"""Files of weights as mappings of names to arrays; nothing in them is ever run."""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from collections.abc import Callable
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from invocupy import checkpoint
from invocupy.checkpoint import AnyPath
from invocupy.weights.arrays import (
    TORCH,
    Array,
    Pending,
    numpy_table,
    storage_sizes,
    storages,
)
from invocupy.weights.pickles import WeightsError, end_of_pickle, read_pickle

_WRAPPERS = "state_dict", "model", "model_state_dict"
_PADDLE_EXTRA = "StructuredToParameterName@@"
_LIMIT = 1 << 34  # bytes of an .npz, unpacked
_OLD_MAGIC = bytes.fromhex("8a0a6cfc9c46f9206aa850192e")  # in pickles of PyTorch before 1.6


def read(path: AnyPath) -> dict[str, Array]:
    """Read the arrays of a file, whatever program wrote it, without that program.

    Known are safetensors (our own, with their digest checked, and others'), ``.npz``, PyTorch's
    files (``.pth``, ``.pt``; also from before version 1.6), and pickles of NumPy arrays (Paddle's
    ``.pdparams``). What it is is seen from the content. Pickles are not unpickled: of their
    instructions only those that describe arrays are followed, anything else is refused.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    dict of str to NumPy array
        Read-only; bfloat16 as float32. Of a PyTorch checkpoint with more in it (an epoch, an
        optimiser), what is under ``state_dict``, ``model`` or ``model_state_dict``.

    Raises
    ------
    WeightsError
        If the file is missing, damaged, of another kind, or holds something that is no array.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from pathlib import Path
    >>> from invocupy import weights
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "some.npz")
    ...     np.savez(path, weight=np.eye(2))
    ...     weights.read(path)["weight"].shape
    (2, 2)
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(64)
        kind = _kind(start, path)
        return kind(path)
    except checkpoint.CheckpointError as error:
        raise WeightsError(str(error)) from error
    except WeightsError as error:
        raise WeightsError(f"{path} is refused: {error}") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise WeightsError(f"{path} cannot be read ({reason})") from error
    except (
        zipfile.BadZipFile, zlib.error, struct.error, EOFError, KeyError, ValueError, TypeError,
        RuntimeError, NotImplementedError, MemoryError,
    ) as error:  # fmt: skip
        raise WeightsError(f"{path} is damaged ({error}): get it again") from error


def _kind(start: bytes, path: Path) -> Callable[[Path], dict[str, Array]]:
    """How to read a file that begins so."""
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):  # the second has no members
        with zipfile.ZipFile(path) as archive:
            torch = any(name.endswith("/data.pkl") for name in archive.namelist())
        return _torch if torch else _npz
    if len(start) > 8 and start[8:9] == b"{":
        return _safetensors
    if start[:1] == b"\x80" and _OLD_MAGIC in start:
        return _old_torch
    if start[:1] == b"\x80":
        return _pickle
    raise WeightsError("it is no safetensors, .npz, PyTorch (.pth) or Paddle (.pdparams) file")


def _safetensors(path: Path) -> dict[str, Array]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            own = (file.metadata() or {}).get("format") == checkpoint.FORMAT
            if not own:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"it is no whole safetensors file of NumPy's dtypes ({error})"
        ) from error
    return checkpoint.load(path)[0]


def _npz(path: Path) -> dict[str, Array]:
    with zipfile.ZipFile(path) as archive:
        if sum(info.file_size for info in archive.infolist()) > _LIMIT:
            raise WeightsError(f"unpacked it would be larger than {_LIMIT >> 30} GiB")
        return {
            info.filename.removesuffix(".npy"): _npy(archive.read(info))
            for info in archive.infolist()
        }


def _npy(content: bytes) -> Array:
    file = BytesIO(content)
    version = np.lib.format.read_magic(file)
    header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in header:
        raise WeightsError(f"it has an array of format {version}, which is not known")
    shape, fortran, dtype = header[version](file)
    if dtype.hasobject:
        raise WeightsError("it has an array of Python objects, which would have to be unpickled")
    rest = content[file.tell() :]
    if len(rest) != math.prod(shape) * dtype.itemsize:
        raise WeightsError("it has an array with more or less bytes than its shape has")
    return np.frombuffer(rest, dtype).reshape(shape, order="F" if fortran else "C")


def _torch(path: Path) -> dict[str, Array]:
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        (main,) = (name for name in names if name.endswith("/data.pkl"))
        root = main.removesuffix("data.pkl")
        left = path.stat().st_size

        def member(name: str) -> bytes:
            nonlocal left
            info = archive.getinfo(root + name)
            left -= info.file_size
            # As PyTorch writes them, side by side and plain: no file unpacks to more than itself.
            if info.compress_type != zipfile.ZIP_STORED or left < 0:
                raise WeightsError("its members are packed in a way that PyTorch does not use")
            return archive.read(info)

        big = f"{root}byteorder" in names and member("byteorder") == b"big"
        find = storages(lambda key: member(f"data/{key}"), big)
        return _state(read_pickle(member("data.pkl"), TORCH, find))


def _old_torch(path: Path) -> dict[str, Array]:
    """Five pickles, the fourth with the tensors and the last with the storages' order; these."""
    content = path.read_bytes()
    ends = [0]
    for _ in range(5):
        ends.append(end_of_pickle(content, ends[-1]))
    _, _, about, main, order = (content[a:b] for a, b in pairwise(ends))
    sizes, place = storage_sizes(main), ends[-1]
    places: dict[str, memoryview] = {}
    for key in read_pickle(order, {}):
        place += 8  # the number of elements, which the pickle has, too
        places[key] = memoryview(content)[place : place + sizes[key]]
        place += sizes[key]
    big = read_pickle(about, {})["little_endian"] is not True
    return _state(read_pickle(main, TORCH, storages(places.__getitem__, big)))


def _pickle(path: Path) -> dict[str, Array]:
    content = read_pickle(path.read_bytes(), numpy_table())
    if isinstance(content, dict):
        content.pop(_PADDLE_EXTRA, None)
        # newer versions: (name, array)
        content = {
            name: value[1] if type(value) is tuple and len(value) == 2 else value
            for name, value in content.items()
        }
    return _state(content)


def _state(content: Any) -> dict[str, Array]:
    """The arrays of a dictionary, or of the one in it that has the weights."""
    if isinstance(content, dict):
        inner = (content[name] for name in _WRAPPERS if isinstance(content.get(name), dict))
        content = next(inner, content)
    if not isinstance(content, dict):
        raise WeightsError("its pickle is no dictionary of arrays")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Pending) or value.array is None:
            raise WeightsError(
                f"its pickle has something under {str(name)[:80]!r} that is no array"
            )
    return {name: value.array for name, value in content.items()}
