"""Builds a .cu file with g++ behind shim.h and runs its kernels on NumPy arrays.

:class:`Machine` takes the place of the CUDA compiler and device under the library's own launcher:
``machine.compile`` has the signature of the launcher's seam, and what it returns is launched with
grid, block and arguments as CUDA would be, but checks each argument against the kernel's signature.

Three ways to build:

=============  ====================================================================================
``fast``       plain
``trace``      every access of every thread is watched: see runtime.cpp
``sanitize``   AddressSanitizer and UndefinedBehaviorSanitizer; the process must preload libasan
=============  ====================================================================================
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import math
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from invocupy.backends import cuda

from . import wheel_file

HERE = Path(__file__).parent
CACHE = HERE / ".build"  # ignores itself in git; safe to delete
FLAGS = {
    "fast": ["-O1"],
    "trace": ["-O1", "-g", "-fsanitize=thread"],
    "sanitize": ["-O1", "-g", "-fsanitize=address,undefined"],
}
_ROOM = 1 << 16  # bytes
COMMON = ["-std=c++17", "-fPIC", "-w", "-fno-strict-aliasing", "-fno-gnu-unique", f"-I{HERE}"]


class LaunchError(Exception):
    """A launch that CUDA would refuse, or worse, would not."""


def headers() -> Path:
    """NVIDIA's include folder."""
    file = wheel_file("*/include/cuda_bf16.h")
    if file is None:
        raise RuntimeError("CUDA's headers are missing: pip install 'invocupy[proof]'")
    return file.parent


def substituted(text: str, replacements: Iterable[tuple[str, str]]) -> str:
    """``text`` with planted bugs; each pattern must occur, or the test tests nothing."""
    for old, new in replacements:
        if old not in text:
            raise LookupError(f"planted bug no longer matches the source: {old!r}")
        text = text.replace(old, new)
    return text


class _Param(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int), ("size", ctypes.c_int), ("type", ctypes.c_int))


class _Region(ctypes.Structure):
    _fields_ = (
        ("begin", ctypes.c_void_p),
        ("size", ctypes.c_size_t),
        ("argument", ctypes.c_int),
        ("writable", ctypes.c_int),
        ("written", ctypes.c_void_p),
    )


class Machine:
    """One way of building and one order of running; remembers what its launches wrote.

    Parameters
    ----------
    mode
        ``"fast"``, ``"trace"`` or ``"sanitize"``.
    order
        0: blocks and threads first to last; 1: last to first; else shuffled by this seed.
    blocks
        Which blocks of each grid run (all by default): huge grids need not run whole.
    replacements
        Text substituted in the source: planted bugs.
    """

    def __init__(
        self,
        mode: str = "fast",
        order: int = 0,
        blocks: slice = slice(None),
        replacements: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.mode, self.order, self.blocks, self.replacements = mode, order, blocks, replacements
        self.findings: list[str] = []
        self.launches: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
        self._written: dict[tuple[int, int], np.ndarray] = {}
        self._alive: list[Any] = []  # addresses identify arrays, so none may be freed

    def compile(self, kernel: str, macros: Mapping[str, Any]) -> Callable[..., None]:
        """The launcher's seam: build one kernel, return what launches it."""
        return self.compile_source(cuda.name_of(kernel), cuda.source(kernel, macros))

    def compile_source(self, name: str, source: str) -> Callable[..., None]:
        """Build one kernel from its whole text."""
        source = substituted(source, self.replacements)
        library = ctypes.CDLL(str(build(self.mode, name, source)))
        library.shim_launch.restype = ctypes.c_char_p
        library.shim_params.restype = ctypes.POINTER(_Param)
        params = []
        for param in library.shim_params():
            if param.kind < 0:
                break
            params.append(param)
        return functools.partial(self._launch, library, name, params)

    def unwritten(self) -> list[str]:
        """After traced launches: the arrays that kernels were given to fill, and did not."""
        return [
            f"{int((~flags.view(bool)).sum())} of {flags.size} bytes never written"
            for flags in self._written.values()
            if not flags.all()
        ]

    def _launch(
        self, library: Any, name: str, params: list[_Param], grid: Any, block: Any, args: Any
    ) -> None:
        grid, block = (three(what, size) for what, size in (("grid", grid), ("block", block)))
        if math.prod(block) > 1024 or block[2] > 64 or max(grid[1:]) > 65535 or grid[0] >= 2**31:
            raise LaunchError(f"{name}: grid {grid}, block {block} is beyond CUDA's limits")
        if len(args) != len(params):
            raise LaunchError(f"{name} takes {len(params)} arguments, got {len(args)}")
        self.launches.append((name, grid, block))
        regions, values, copies = [], [], []
        for number, (arg, param) in enumerate(zip(args, params, strict=True)):
            check_argument(f"{name}, argument {number}", arg, param)
            if param.kind and isinstance(arg, np.ndarray):
                address = arg.ctypes.data
                if self.mode != "fast" and arg.nbytes < 1 << 30:
                    copy = _guarded(arg) if self.mode == "trace" else _exact(arg)
                    address = copy.ctypes.data
                    copies.append((arg, copy, param.kind == 2))
                if self.mode == "trace":
                    regions.append(self._region(arg, address, number, param))
                values.append(ctypes.c_void_p(address))
            elif param.kind:
                values.append(ctypes.c_void_p(None))
            else:
                values.append(ctypes.create_string_buffer(arg.tobytes(), param.size))
        first, last, _ = self.blocks.indices(math.prod(grid))
        found = library.shim_launch(
            (ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block),
            (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values)),
            first, last, self.order, (_Region * len(regions))(*regions), len(regions),
        )  # fmt: skip
        for original, copy, writable in copies:
            if writable:
                original[...] = copy
        lines = [f"{name}: {line_of(library, line)}" for line in found.decode().splitlines()]
        self.findings += lines
        if lines and self.mode != "trace":
            raise LaunchError("\n".join(lines))

    def _region(self, array: np.ndarray, address: int, number: int, param: _Param) -> _Region:
        # What is first met as a pointer to const was filled by the caller; what is first met as a
        # kernel's output holds nothing yet, and stays on the list of what must be filled.
        key = (array.ctypes.data, array.nbytes)
        if key in self._written:
            flags = self._written[key]
        elif param.kind == 1:
            flags = np.ones(array.nbytes, np.uint8)
        else:
            flags = self._written[key] = np.zeros(array.nbytes, np.uint8)
        self._alive += [array, flags]
        return _Region(address, array.nbytes, number, param.kind == 2, flags.ctypes.data)


@contextlib.contextmanager
def installed(compile_: Callable[..., Any]) -> Iterator[None]:
    """Stand in for CUDA under the library's launcher, which then takes NumPy arrays.

    Those that it makes have room around them, so that no mistake of a kernel reaches Python's own.
    """

    def workspace(like: np.ndarray, *shape: int) -> np.ndarray:
        return roomy(shape, cuda.accumulator(like))

    def stored(like: np.ndarray, *shape: int) -> np.ndarray:
        return roomy(shape, like.dtype)

    with (
        mock.patch.object(cuda, "compile", compile_),
        mock.patch.object(cuda, "address", lambda array: array.ctypes.data),
        mock.patch.object(cuda, "workspace", workspace),
        mock.patch.object(cuda, "stored", stored),
    ):
        yield


def roomy(shape: Sequence[int], dtype: Any, offset: int = 0) -> np.ndarray:
    """A new array, ``offset`` elements after a 256-byte boundary, with room on both sides."""
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    room = np.empty(size + 2 * _ROOM + 256 + offset * kind.itemsize, np.uint8)
    start = _ROOM + -(room.ctypes.data + _ROOM) % 256 + offset * kind.itemsize
    return room[start : start + size].view(kind).reshape(shape)


def check_argument(where: str, arg: Any, param: _Param) -> None:
    """Refuse what CUDA would silently misread: unsized scalars, wrong item sizes, wrong kinds."""
    if param.kind:
        if isinstance(arg, np.ndarray):
            if not arg.flags.c_contiguous:
                raise LaunchError(f"{where}: the array is not contiguous")
            if arg.dtype.itemsize != param.size:
                raise LaunchError(f"{where}: {arg.dtype} for items of {param.size} bytes")
            if param.kind == 2 and not arg.flags.writeable:
                raise LaunchError(f"{where}: read-only array for a pointer that is written")
        elif not (isinstance(arg, np.generic) and arg.nbytes == 8 and int(arg) == 0):
            raise LaunchError(f"{where}: {type(arg).__name__} for a pointer")
        return
    kind = {"f": "f", "i": "iub", "V": "V"}[chr(param.type)]
    if not isinstance(arg, np.generic):
        raise LaunchError(f"{where}: {type(arg).__name__} for a value; give a NumPy scalar")
    if arg.dtype.itemsize != param.size or arg.dtype.kind not in kind:
        raise LaunchError(f"{where}: {arg.dtype} for a value of {param.size} bytes, kind {kind}")


def line_of(library: Any, finding: str) -> str:
    """A finding with its source line in the place of its position in the machine code."""
    text, _, offset = finding.partition(" @")
    if not offset or shutil.which("addr2line") is None:
        return text
    # The call returns to the instruction after the access.
    where = _run(["addr2line", "-e", library._name, hex(int(offset, 16) - 1)]).decode().strip()
    return f"{text} ({where})"


def three(what: str, size: Any) -> tuple[int, int, int]:
    """A grid or block size with its three dimensions."""
    size = (*size, 1, 1)[:3]
    if not all(type(n) is int and n > 0 for n in size):
        raise LaunchError(f"{what} {size} must be positive Python integers")
    return size


def _guarded(array: np.ndarray, guard: int = 1 << 20) -> np.ndarray:
    """A copy, aligned as the original is to 256 bytes, with room on both sides that nobody owns."""
    room = np.empty(array.nbytes + 2 * guard + 512, np.uint8)
    start = guard + (array.ctypes.data - room.ctypes.data - guard) % 256
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def _exact(array: np.ndarray) -> np.ndarray:
    """A copy whose last byte is the last of its allocation, which the address sanitizer watches."""
    room = np.empty(array.nbytes + array.ctypes.data % 16, np.uint8)
    copy = room[array.ctypes.data % 16 :].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


@functools.cache
def build(mode: str, name: str, source: str) -> Path:
    """Compile one kernel to a shared library, once: the file's name is a hash of what went in."""
    code = f'#include "shim.h"\n{source}\nSHIM_EXPORT({name})\n'
    folder = _prepare(mode)
    target = folder / f"{name}-{hashlib.sha256(code.encode()).hexdigest()[:20]}.so"
    if not target.exists():
        stem = target.with_suffix(f".{os.getpid()}")
        unit, built = stem.with_suffix(f"{stem.suffix}.cpp"), stem.with_suffix(f"{stem.suffix}.o")
        unit.write_text(code)
        flags = [f"-I{folder}", *COMMON, f"-I{headers()}", *FLAGS[mode]]
        _run(["g++", *flags, "-c", unit, "-o", built])
        # The trace's call-outs stand in for the thread sanitizer's library.
        link = [flag for flag in FLAGS[mode] if flag != "-fsanitize=thread"]
        _run(["g++", "-shared", *link, built, folder / "runtime.o", "-o", stem])
        stem.rename(target)
        unit.unlink()
        built.unlink()
    return target


@functools.cache
def _prepare(mode: str) -> Path:
    """The folder of a mode's builds, with the compiled runtime and precompiled shim.h."""
    parts = [(HERE / file).read_bytes() for file in ("shim.h", "runtime.cpp", "nv/target")]
    parts += [repr((FLAGS[mode], COMMON, headers())).encode(), _run(["g++", "--version"])]
    folder = CACHE / f"{mode}-{hashlib.sha256(b''.join(parts)).hexdigest()[:12]}"
    if not folder.exists():
        new = folder.with_suffix(f".{os.getpid()}")
        new.mkdir(parents=True)
        (CACHE / ".gitignore").write_text("*\n")
        flags = [*COMMON, f"-I{headers()}", *(f for f in FLAGS[mode] if f != "-fsanitize=thread")]
        _run(["g++", *flags, "-c", HERE / "runtime.cpp", "-o", new / "runtime.o"])
        flags = [*COMMON, f"-I{headers()}", *FLAGS[mode]]
        _run(["g++", *flags, "-x", "c++-header", HERE / "shim.h", "-o", new / "shim.h.gch"])
        try:
            new.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(new)
    return folder


def _run(command: Sequence[Any]) -> bytes:
    done = subprocess.run([str(c) for c in command], capture_output=True, check=False)
    if done.returncode:
        message = done.stderr.decode(errors="replace")[:4000]
        raise RuntimeError(f"{' '.join(map(str, command))}\n{message}")
    return done.stdout
