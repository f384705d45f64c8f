"""Checkpoints: named arrays and JSON in one safetensors file that is whole or refused.

safetensors alone writes wrong data for arrays that are not C-contiguous, and loads files with
flipped bits. So arrays are made contiguous, a SHA-256 digest of all names, dtypes, shapes, bytes
and the JSON is stored with them and checked at load, and files are written atomically. Nothing is
ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from invocupy.arrays import Array
from invocupy.atomic import sweep, write_atomically
from invocupy.docstrings import documented
from invocupy.messages import one_line
from invocupy.paths import AnyPath, existing

__all__ = ["CheckpointError", "is_own", "load", "save", "strict", "sweep", "write_atomically"]

FORMAT = "invocupy checkpoint 1"

_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32",
    "I32": "int32", "U64": "uint64", "I64": "int64", "F16": "float16", "F32": "float32",
    "F64": "float64",
}  # fmt: skip
_WAY_OUT = "use another checkpoint of the run (last or best), or train again"


class CheckpointError(ValueError):
    """A file that is not a valid checkpoint of this program. One line: file, rule, way out."""


@documented
def save(path: AnyPath, arrays: Mapping[str, Any], info: Mapping[str, Any]) -> None:
    """Write arrays and JSON to one file, atomically (:func:`write_atomically`).

    Parameters
    ----------
    path
        The file, in a folder that exists.
    arrays
        NumPy arrays by name: boolean, integer or floating up to 64 bits, in any layout.
    info
        Anything that JSON can hold, without NaN and infinities.

    Raises
    ------
    TypeError, ValueError
        If a dtype cannot be stored, or ``info`` is not JSON.
    OSError
        If the file cannot be written; an older file of that name is then untouched.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(path := f"{folder}/state.safetensors", {"weight": np.ones(2)}, {"epoch": 3})
    ...     load(path)
    ({'weight': array([1., 1.])}, {'epoch': 3})
    """
    from safetensors.numpy import save as serialize

    plain = {name: _plain(name, array) for name, array in arrays.items()}
    text = json.dumps(info, allow_nan=False)
    header = {"format": FORMAT, "sha256": _digest(plain, text), "info": text}
    write_atomically(path, serialize(plain, header))


@documented
def load(path: AnyPath) -> tuple[dict[str, Array], dict[str, Any]]:
    """Read what :func:`save` wrote, every bit of it checked: the arrays, and the JSON.

    Raises
    ------
    CheckpointError
        If the file is missing, cut short, damaged anywhere, or not a checkpoint of this program.

    >>> load("no/such/file")
    Traceback (most recent call last):
    invocupy.checkpoint.CheckpointError: no/such/file cannot be read (...): ...
    """
    from safetensors import SafetensorError, safe_open

    try:
        path = existing(path)
        with path.open("rb"), safe_open(path, "numpy") as file:
            header = file.metadata() or {}
            if not is_own(header):
                raise CheckpointError(
                    f"{path} is a safetensors file, but not of the format {FORMAT!r}: weights "
                    "from elsewhere are loaded by invocupy.weights.import_state"
                )
            if header.get("format") != FORMAT:
                raise CheckpointError(
                    f"{path} states the format {header.get('format')!r}, not {FORMAT!r}, so it is "
                    f"damaged or of another version: {_WAY_OUT}"
                )
            names = file.keys()
            unknown = {file.get_slice(name).get_dtype() for name in names} - _DTYPES.keys()
            if unknown:
                raise CheckpointError(f"{path} is damaged (dtype {unknown.pop()}): {_WAY_OUT}")
            arrays = {name: file.get_tensor(name) for name in names}
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({one_line(error)}): {_WAY_OUT}") from error
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({one_line(error)}): {_WAY_OUT}"
        ) from error
    text = header.get("info", "")
    if _digest(arrays, text) != header.get("sha256"):
        raise CheckpointError(
            f"{path} is damaged, its content does not have the digest that it states: {_WAY_OUT}"
        )
    with suppress(ValueError, RecursionError):
        if isinstance(info := json.loads(text), dict):
            return arrays, info
    raise CheckpointError(f"{path} lacks the JSON object of {FORMAT!r}: {_WAY_OUT}")


@documented
def is_own(header: Mapping[str, str]) -> bool:
    """Whether metadata of a safetensors file are those of :func:`save`, even if one is damaged.

    Parameters
    ----------
    header
        The metadata: names to text.

    >>> is_own({"format": "invocupz checkpoint 1", "sha256": "00", "info": "{}"})
    True
    """
    return header.get("format") == FORMAT or header.keys() >= {"sha256", "info"}


@documented
def strict(value: Any) -> Any:
    """A copy of a value for strict JSON: NumPy's numbers as Python's, NaN and infinities as None.

    Parameters
    ----------
    value
        Mappings, lists and tuples are copied, with all that they hold.

    >>> strict({"loss": float("nan"), "epoch": np.int64(3), "rates": (0.1, np.float32(0.5))})
    {'loss': None, 'epoch': 3, 'rates': [0.1, 0.5]}
    """
    if isinstance(value, Mapping):
        return {name: strict(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return strict(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(name: str, array: Any) -> Array:
    if not isinstance(array, np.ndarray) or array.dtype.name not in _DTYPES.values():
        kind = array.dtype if isinstance(array, np.ndarray) else f"a {type(array).__name__}"
        raise TypeError(
            f"arrays must be NumPy arrays of {', '.join(_DTYPES.values())}; {name} is {kind}"
        )
    # not ascontiguousarray, which makes (1,) of ()
    return np.asarray(array, array.dtype.newbyteorder("="), order="C")


def _digest(arrays: Mapping[str, Array], text: str) -> str:
    digest = hashlib.sha256(f"{len(text)} {text}".encode())
    for name, array in sorted(arrays.items()):
        # self-delimiting: the shape and dtype say how many bytes follow
        digest.update(json.dumps([name, array.dtype.name, array.shape]).encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
