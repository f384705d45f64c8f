"""Checkpoints: named arrays and JSON in one safetensors file that is whole or refused.

The format alone does not suffice: safetensors writes wrong data for arrays that are not
C-contiguous, and loads files with flipped bits. So arrays are made contiguous, a SHA-256 digest
over all names, dtypes, shapes, bytes and the JSON is kept beside them and compared at load, and a
file appears under its name complete or not at all. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT = "invocupy checkpoint 1"

_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32",
    "I32": "int32", "U64": "uint64", "I64": "int64", "F16": "float16", "F32": "float32",
    "F64": "float64",
}  # fmt: skip
_WAY_OUT = "use another checkpoint of the run (last or best), or train again"

AnyPath = str | os.PathLike[str]


class CheckpointError(ValueError):
    """A file that is not a whole checkpoint of this program. One line: file, rule, way out."""


def save(path: AnyPath, arrays: Mapping[str, Any], info: Mapping[str, Any]) -> None:
    """Write arrays and JSON to one file, atomically (:func:`write_atomically`).

    Parameters
    ----------
    path
        The file; its folder must exist.
    arrays : mapping of str to NumPy array
        Of boolean, integer or floating dtypes up to 64 bits, in any layout and byte order.
    info
        Anything that JSON can hold, without NaN and infinities.

    Raises
    ------
    TypeError
        If a dtype cannot be stored, or ``info`` is not JSON.
    OSError
        If the file cannot be written; an older file of that name is then untouched.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = Path(folder.name, "state.safetensors")
    >>> save(path, {"weight": np.eye(2)}, {"epoch": 3})
    >>> arrays, info = load(path)
    >>> arrays["weight"].tolist(), info["epoch"]
    ([[1.0, 0.0], [0.0, 1.0]], 3)
    >>> folder.cleanup()
    """
    from safetensors.numpy import save as serialize

    plain = {name: _plain(name, array) for name, array in arrays.items()}
    text = json.dumps(info, allow_nan=False)
    header = {"format": FORMAT, "sha256": _digest(plain, text), "info": text}
    write_atomically(path, serialize(plain, header))


def load(path: AnyPath) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read what :func:`save` wrote, every bit of it checked.

    Parameters
    ----------
    path

    Returns
    -------
    arrays : dict of str to NumPy array
    info : dict

    Raises
    ------
    CheckpointError
        If the file is missing, cut short, damaged anywhere, or not a checkpoint of this program.

    Examples
    --------
    >>> load("no/such/file")
    Traceback (most recent call last):
    ...
    invocupy.checkpoint.CheckpointError: no/such/file cannot be read (...): ...
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    try:
        with path.open("rb"), safe_open(path, "numpy") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise CheckpointError(
                    f"{path} is a safetensors file, but not of the format {FORMAT!r}: weights "
                    "from elsewhere are loaded by invocupy.weights.import_state"
                )
            names = file.keys()
            unknown = {file.get_slice(name).get_dtype() for name in names} - _DTYPES.keys()
            if unknown:
                raise CheckpointError(f"{path} is damaged (dtype {unknown.pop()}): {_WAY_OUT}")
            arrays = {name: file.get_tensor(name) for name in names}
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(f"{path} cannot be read ({reason}): {_WAY_OUT}") from error
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({error}): {_WAY_OUT}"
        ) from error
    text = header.get("info", "")
    if _digest(arrays, text) != header.get("sha256"):
        raise CheckpointError(
            f"{path} is damaged, its content does not have the digest that it states: {_WAY_OUT}"
        )
    return arrays, json.loads(text)


def write_atomically(path: AnyPath, content: bytes) -> None:
    """Write a file so that its name always means the whole old or the whole new content.

    Written under another name in the same folder, forced to the disk, renamed; then the folder's
    entry is forced to the disk. A killed process may leave the other name behind: :func:`sweep`.

    Parameters
    ----------
    path
        In a folder that exists.
    content : bytes

    Raises
    ------
    OSError
        If the file cannot be written; nothing has changed then.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_atomically(Path(folder, "a.json"), b"{}")
    ...     [path.name for path in Path(folder).iterdir()]
    ['a.json']
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def sweep(folder: AnyPath) -> None:
    """Remove what processes killed while writing left in a folder that nobody else writes to.

    Parameters
    ----------
    folder

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Path(folder, ".a.json.0123456789abcdef.tmp").touch()
    ...     sweep(folder)
    ...     list(Path(folder).iterdir())
    []
    """
    for path in Path(folder).glob(f".*.{'[0-9a-f]' * 16}.tmp"):
        path.unlink(missing_ok=True)


def _plain(name: str, array: Any) -> NDArray[Any]:
    if not isinstance(array, np.ndarray) or array.dtype.name not in _DTYPES.values():
        kind = array.dtype if isinstance(array, np.ndarray) else f"a {type(array).__name__}"
        raise TypeError(
            f"arrays must be NumPy arrays of {', '.join(_DTYPES.values())}; {name} is {kind}"
        )
    # not ascontiguousarray, which makes (1,) of ()
    return np.asarray(array, array.dtype.newbyteorder("="), order="C")


def _digest(arrays: Mapping[str, NDArray[Any]], text: str) -> str:
    digest = hashlib.sha256(f"{len(text)} {text}".encode())
    for name, array in sorted(arrays.items()):
        # self-delimiting: the shape and dtype say how many bytes follow
        digest.update(json.dumps([name, array.dtype.name, array.shape]).encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
