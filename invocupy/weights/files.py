"""Files of weights as mappings of names to arrays; no code in them is ever executed."""

from __future__ import annotations

import math
import warnings
import zipfile
from collections.abc import Callable
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from invocupy import checkpoint
from invocupy.arrays import Array
from invocupy.messages import one_line
from invocupy.paths import AnyPath, existing
from invocupy.weights.pickles import WeightsError, end_of_pickle, read_pickle
from invocupy.weights.states import find
from invocupy.weights.tensors import Pending, bfloat16, storages, table

_PADDLE_EXTRA = "StructuredToParameterName@@"
_SAFETENSORS = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4",
    "U64": "<u8", "I64": "<i8", "F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8",
    "C64": "<c8",
}  # fmt: skip
_SMALL, _RATIO = 1 << 30, 64  # an .npz unpacks to at most so many bytes, or times its size
_NUMPYS = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
_HEADERS = {(n, 0): getattr(np.lib.format, f"read_array_header_{n}_0") for n in (1, 2)}
_OLD_MAGIC = bytes.fromhex("8a0a6cfc9c46f9206aa850192e")  # in pickles of PyTorch before 1.6


def read(path: AnyPath, key: str | None = None) -> dict[str, Array]:
    """Read the arrays of a file without the program that wrote it.

    The content decides the format: safetensors (the digest of our own is checked), ``.npz``,
    PyTorch's files (``.pth``, ``.pt``; also from before version 1.6 and from Python 2), and pickles
    of NumPy arrays (Paddle's ``.pdparams``). The reader interprets only the opcodes that build
    arrays, and executes no code of a pickle.

    Parameters
    ----------
    path
        The file; ``~`` is expanded.
    key : str, optional
        Where the weights are in a checkpoint (``"ema"``, ``"checkpoint.state_dict"``), or the
        prefix of their names in a file without nested dictionaries.

    Returns
    -------
    dict of str to NumPy array
        Read-only; bfloat16 becomes float32 (16-bit unsigned integers in a ``.pdparams`` file and
        two-byte voids in an ``.npz`` are read as bfloat16). Of a checkpoint, only the weights:
        those under the first of ``state_dict``, ``model_state_dict``, ``model``, ``net``,
        ``weights``, ... that has any, an average (``ema``) only if there is nothing else.

    Raises
    ------
    WeightsError
        If the file is missing, damaged or of another kind, or has no array where weights are.

    Examples
    --------
    >>> import tempfile
    >>> from invocupy import weights
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "some.npz")
    ...     np.savez(path, weight=np.eye(2))
    ...     weights.read(path)["weight"].shape
    (2, 2)
    """
    try:
        path = existing(path)
        with path.open("rb") as file:
            start = file.read(64)
        arrays = find(_kind(start, path)(path), _is_array, key)
        arrays = {n: v.array if isinstance(v, Pending) else v for n, v in arrays.items()}
    except checkpoint.CheckpointError as error:
        raise WeightsError(str(error)) from error
    except WeightsError as error:
        raise WeightsError(f"{path} is refused: {one_line(error)}") from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({one_line(error)})") from error
    except Exception as error:
        # Damaged bytes make parsers raise any error (zipfile, lzma, tokenize, struct).
        raise WeightsError(f"{path} is damaged ({one_line(error)}): get it again") from error
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


def _kind(start: bytes, path: Path) -> Callable[[Path], Any]:
    """The reader for a file with these first bytes."""
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):  # the second has no members
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if len(set(names)) < len(names):
            raise WeightsError("it has two members of one name")
        return _torch if any(name.endswith("/data.pkl") for name in names) else _npz
    if len(start) > 8 and start[8:9] == b"{":
        return _safetensors
    if start[:1] == b"\x80":
        return _old_torch if _OLD_MAGIC in start else _pickle
    if start.startswith(b"\x93NUMPY"):
        raise WeightsError("an .npy file has no names: save an .npz file, with numpy.savez")
    raise WeightsError(
        "it is not a safetensors, .npz, PyTorch (.pth) or Paddle (.pdparams) file; pickles must be "
        "of protocol 2 or newer"
    )


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or (isinstance(value, Pending) and value.array is not None)


def _safetensors(path: Path) -> dict[str, Array]:
    from safetensors import SafetensorError, deserialize, safe_open

    try:
        with safe_open(path, "numpy") as file:
            header = file.metadata() or {}
        if checkpoint.is_own(header):
            return checkpoint.load(path)[0]
        members = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise WeightsError(f"it is not a whole safetensors file ({error})") from error
    arrays = {}
    for name, member in members:
        dtype = member["dtype"]
        if dtype not in _SAFETENSORS:
            raise WeightsError(
                f"{name!r} has dtype {dtype}, which is not read: convert it to F32, F16 or BF16"
            )
        array = np.frombuffer(member["data"], _SAFETENSORS[dtype]).reshape(member["shape"])
        arrays[name] = bfloat16(array) if dtype == "BF16" else array
    return arrays


def _npz(path: Path) -> dict[str, Array]:
    limit = max(_SMALL, _RATIO * path.stat().st_size)
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        other = next((info for info in members if not info.filename.endswith(".npy")), None)
        if other:
            raise WeightsError(f"it is no .npz or PyTorch file: it has a member {other.filename!r}")
        if sum(info.file_size for info in members) > limit:
            raise WeightsError(f"unpacked it would be larger than {limit >> 20} MiB")
        if any(info.compress_type not in _NUMPYS for info in members):
            raise WeightsError("its members are packed in a way that NumPy does not use")
        return {info.filename.removesuffix(".npy"): _npy(archive, info) for info in members}


def _npy(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Array:
    """An array; NumPy reads only the header, since it would allocate any size stated there."""
    name, content = info.filename, archive.read(info)  # which unpacks no more than is stated
    if len(content) < info.file_size:
        raise EOFError(f"{name} is cut short")
    file = BytesIO(content)
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise WeightsError(f"{name} is an array of format {version}, which is not known")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's word that Python 2 wrote it
        shape, fortran, dtype = _HEADERS[version](file)
    rest = content[file.tell() :]
    if dtype.hasobject:
        raise WeightsError(f"{name} is an array of Python objects, which would be unpickled")
    if len(rest) != math.prod(shape) * dtype.itemsize:
        raise WeightsError(f"{name} is an array with more or less bytes than its shape has")
    if dtype.kind == "V" and dtype != np.dtype("V2"):
        raise WeightsError(
            f"{name} is an array of dtype {dtype}, which is not read: convert it to float32"
        )
    array = np.frombuffer(rest, dtype).reshape(shape, order="F" if fortran else "C")
    return bfloat16(array) if dtype.kind == "V" else array


def _torch(path: Path) -> Any:
    left = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        (main,) = (name for name in names if name.endswith("/data.pkl"))
        root = main.removesuffix("data.pkl")

        def member(name: str) -> bytes:
            nonlocal left
            info = archive.getinfo(root + name)
            left -= info.file_size
            # As PyTorch writes them, side by side and plain: no file unpacks to more than itself.
            if info.compress_type != zipfile.ZIP_STORED or left < 0:
                raise WeightsError("its members are packed in a way that PyTorch does not use")
            return archive.read(info)

        big = f"{root}byteorder" in names and member("byteorder") == b"big"
        storage = storages(lambda key, _: member(f"data/{key}"), big)
        return read_pickle(member("data.pkl"), table(), storage)


def _old_torch(path: Path) -> Any:
    """Five pickles, the fourth with the tensors and the last with the storages' order; these."""
    content = path.read_bytes()
    ends = [0]
    for _ in range(5):
        ends.append(end_of_pickle(content, ends[-1]))
    _, _, about, main, order = (content[a:b] for a, b in pairwise(ends))
    sizes: dict[str, int] = {}
    read_pickle(main, table(), storages(sizes.__setitem__))
    places, place = {}, ends[-1]
    for key in read_pickle(order, {}):
        place += 8  # the number of elements, also in the pickle
        places[key] = place
        place += sizes[key]

    def storage(key: str, size: int) -> memoryview:
        return memoryview(content)[places[key] : places[key] + size]

    big = read_pickle(about, {})["little_endian"] is not True
    return read_pickle(main, table(), storages(storage, big))


def _pickle(path: Path) -> Any:
    content = read_pickle(path.read_bytes(), table())
    if not isinstance(content, dict):
        return content
    content.pop(_PADDLE_EXTRA, None)
    return {name: _paddle(value) for name, value in content.items()}


def _paddle(value: Any) -> Any:
    """An array of Paddle's: newer versions have (name, array), and bfloat16 as integers."""
    if type(value) is tuple and len(value) == 2:
        value = value[1]
    array = value.array if isinstance(value, Pending) else None
    return bfloat16(array) if array is not None and array.dtype == np.uint16 else value
