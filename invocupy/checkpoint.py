"""Checkpoints: named arrays and JSON in one safetensors file that is whole or refused.

The format alone does not suffice: safetensors writes wrong data for arrays that are not
C-contiguous, and loads files with flipped bits. So arrays are made contiguous, a SHA-256 digest
over all names, dtypes, shapes, bytes and the JSON is kept beside them and compared at load, and a
file appears under its name complete or not at all. Nothing is ever unpickled.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import secrets
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from invocupy.messages import one_line
from invocupy.paths import AnyPath, existing, expand

FORMAT = "invocupy checkpoint 1"

_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32",
    "I32": "int32", "U64": "uint64", "I64": "int64", "F16": "float16", "F32": "float32",
    "F64": "float64",
}  # fmt: skip
_WAY_OUT = "use another checkpoint of the run (last or best), or train again"


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

    try:
        path = existing(path)
        with path.open("rb"), safe_open(path, "numpy") as file:
            header = file.metadata() or {}
            if is_own(header) and header.get("format") != FORMAT:
                raise CheckpointError(
                    f"{path} states the format {header.get('format')!r}, not {FORMAT!r}, so it is "
                    f"damaged or of another version: {_WAY_OUT}"
                )
            if not is_own(header):
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
    try:
        info = json.loads(text)
    except (ValueError, RecursionError):
        info = None
    if not isinstance(info, dict):
        raise CheckpointError(f"{path} lacks the JSON object of {FORMAT!r}: {_WAY_OUT}")
    return arrays, info


def is_own(header: Mapping[str, str]) -> bool:
    """Whether metadata of a safetensors file are those of :func:`save`, even if one is damaged.

    Parameters
    ----------
    header : mapping of str to str

    Returns
    -------
    bool

    Examples
    --------
    >>> is_own({"format": "invocupz checkpoint 1", "sha256": "00", "info": "{}"})
    True
    >>> is_own({"format": "pt"})
    False
    """
    return header.get("format") == FORMAT or header.keys() >= {"sha256", "info"}


def write_atomically(path: AnyPath, content: bytes) -> None:
    """Write a file so that its name always means the whole old or the whole new content.

    The content is written to another name in the same folder, forced to the disk and renamed; then
    the folder's entry is forced to the disk where the file system can do that. A killed process may
    leave the other name behind: :func:`sweep`.

    A symbolic link stays, and the file that it points to is written. A file that exists keeps its
    permissions and, as far as the system allows it, its owner. What is no regular file (a pipe, a
    device, ``/dev/stdout``) is written to directly.

    Parameters
    ----------
    path
        In a folder that exists. A leading ``~`` is the home folder.
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
    path = expand(path)
    try:
        old = path.stat()
    except FileNotFoundError:
        old = None
    descriptor = _descriptor(path)
    if descriptor is not None or (old is not None and not stat.S_ISREG(old.st_mode)):
        with open(path if descriptor is None else os.dup(descriptor), "wb") as file:  # noqa: PTH123
            file.write(content)
        return
    if old is not None and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    target = Path(os.path.realpath(path))
    # Cut, as the longest name that a file system takes leaves no room for more.
    temporary = target.with_name(f".{target.name[:40]}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            if old is not None:
                # some systems have neither, some file systems refuse them
                with suppress(OSError, AttributeError):
                    os.chown(temporary, old.st_uid, old.st_gid)
                with suppress(OSError):
                    temporary.chmod(stat.S_IMODE(old.st_mode))
            file.write(content)
            file.flush()
            _sync(file.fileno())
        temporary.replace(target)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(path)  # also where the disk is full, which names no file
        raise
    # The file is there; some file systems cannot sync a folder, some systems not even open one.
    with suppress(OSError):
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            _sync(folder)
        finally:
            os.close(folder)


def _sync(descriptor: int) -> None:
    """Force a file to the disk, if its file system can do that at all."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise


def _descriptor(path: Path) -> int | None:
    """The file descriptor of this process that a path such as ``/dev/stdout`` stands for."""
    for _ in range(40):  # links
        folder = os.path.realpath(path.parent)
        if folder in ("/dev/fd", f"/proc/{os.getpid()}/fd") and path.name.isdecimal():
            return int(path.name)
        if not path.is_symlink():
            return None
        path = Path(folder, path.readlink())
    return None


def sweep(folder: AnyPath, names: Iterable[str] | None = None) -> None:
    """Remove what processes that were killed in :func:`write_atomically` have left in a folder.

    Parameters
    ----------
    folder
    names : iterable of str, optional
        Of files that no process is writing now; by default of all. Up to 40 characters each.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Path(folder, ".a.json.0123456789abcdef.tmp").touch()
    ...     sweep(folder)
    ...     list(Path(folder).iterdir())
    []
    """
    wanted = ".+" if names is None else "|".join(map(re.escape, names))
    for path in Path(folder).iterdir():
        if re.fullmatch(rf"\.({wanted})\.[0-9a-f]{{16}}\.tmp", path.name) and path.is_file():
            path.unlink(missing_ok=True)


def strict(value: Any) -> Any:
    """A copy of a value for strict JSON: NumPy's numbers as Python's, NaN and infinities as None.

    Parameters
    ----------
    value
        Mappings, lists and tuples are copied, with all that they hold.

    Returns
    -------
    value

    Examples
    --------
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
