"""Weight files of every kind, made by hand."""

from __future__ import annotations

import pickle  # to write files, never to read one
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from invocupy import checkpoint

SOME = {
    "a.weight": np.arange(6, dtype="f4").reshape(2, 3),
    "b": np.array(2.5),
    "big": np.arange(4, dtype=">i8"),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
}


def write_npz(path: Path) -> None:
    np.savez_compressed(path, **SOME)


def write_safetensors(path: Path) -> None:
    from safetensors.numpy import save_file

    save_file(
        {
            name: np.ascontiguousarray(a, a.dtype.newbyteorder("=")) if a.ndim else a
            for name, a in SOME.items()
        },
        path,
    )


def write_own(path: Path) -> None:
    checkpoint.save(path, SOME, {})


def write_pickle(protocol: int, pairs: bool = False) -> Any:
    def write(path: Path) -> None:
        state: dict[str, Any] = {n: (n, a) if pairs else a for n, a in SOME.items()}
        extra = {"StructuredToParameterName@@": {"a.weight": "linear_0.w_0"}}
        path.write_bytes(pickle.dumps(state | extra, protocol))

    return write


VALUES = np.array([1.0, -2.5, 0.375], np.float32)


def text(value: str) -> bytes:
    """An instruction of a pickle."""
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def stored(path: Path, kind: str, content: bytes, count: int, more: bytes = b"") -> Path:
    """A PyTorch file with one tensor of one axis; ``more`` are instructions for its metadata."""
    storage = b"(" + text("storage") + b"ctorch\n" + kind.encode() + b"\n" + text("0") + text("cpu")
    storage += bytes([75, count]) + b"tQ"
    size = bytes([75, count]) + b"\x85"
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + size + b"K\x01\x85"
    rebuild += b"\x89ccollections\nOrderedDict\n)R" + more + b"tR"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}" + text("w") + rebuild + b"s.")
        archive.writestr("a/data/0", content)
    return path


def safetensors(path: Path, dtype: str, content: bytes, shape: str = "[3]") -> Path:
    header = f'{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{len(content)}]}}}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + content)
    return path


def npz(path: Path, content: bytes, **options: Any) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("w.npy", content)
    return path


def npy(header: str, content: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    size = struct.pack("<H" if version == b"\x01\x00" else "<I", len(header))
    return b"\x93NUMPY" + version + size + header.encode() + content


SHAPE = "{{'descr': {}, 'fortran_order': False, 'shape': {}}}"
