"""Devices, streams, memory pools, cuBLAS and kernels of the stand-in."""

from __future__ import annotations

import ctypes
import importlib
import itertools
import math
import re
import sys
import threading
import weakref
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from cupy._streams import Block, Event, Stream, StreamError, done, get_current_stream, of_device

from cupy import _graphs  # isort: skip
from cupy import _nccl as nccl  # isort: skip
from cupy._graphs import Graph, GraphError  # isort: skip

__all__ = ["Event", "Graph", "GraphError", "Stream", "StreamError", "nccl"]

_COUNT = 2
_MEMORY = 8 << 30

waits = 0
"""How often the host has looked at an array since the start, or waited for a stream."""

calls = 0  # of the host to a device since the start; a graph is one

_local = threading.local()
_launching = threading.Lock()


def wait() -> None:
    """Count one."""
    global waits
    _graphs.refuse("synchronize")
    waits += 1


class Operation(NamedTuple):
    """What a device was asked to do: one launch, of whomever."""

    name: str  # of a kernel of ours; else ``cublas`` or ``cupy.`` and the function that was called
    threads: int  # of a kernel of ours, else 0
    bytes: int  # of the arrays that it reads and writes, each once
    stream: int  # the ptr of the stream that does it


_operations: list[Operation] | None = None
_idle = False
_read = 0


@contextmanager
def recording(idle: bool = False) -> Iterator[list[Operation]]:
    """The operations that the devices are asked for from here on.

    With ``idle`` kernels and cuBLAS do nothing: results are NaN, at next to no time.
    """
    global _operations, _idle, _read
    before, _operations, _idle, _read = (_operations, _idle), [], idle, 0
    try:
        yield _operations
    finally:
        _operations, _idle = before


def read(array: Any) -> None:
    """The operation that comes reads it."""
    global _read
    if _graphs.nodes() is not None:
        return
    _read += array.nbytes
    array._block.read(get_current_stream())


def wrote(array: Any, size: int = 0) -> None:
    """An operation wrote it: ``size`` bytes that were not counted as read."""
    if _graphs.nodes() is not None:
        return
    array._block.write(get_current_stream())
    operation(size)


def on_host(array: Any, stream: Any = None) -> None:
    """The host waits for an array."""
    _graphs.refuse("D2H")
    wait()
    stream = get_current_stream(array._device.id) if stream is None else stream
    array._block.read(stream)
    stream.count += 1
    done(stream.clock())


def operation(written: int, name: str = "", threads: int = 0) -> None:
    """Record one that writes so many bytes and reads those counted since the last one."""
    global _read, calls
    if _graphs.nodes() is not None:
        return
    stream = get_current_stream()
    stream.count += 1
    calls += not _graphs.name()
    if _operations is not None:
        name = _graphs.name() or name or _called()
        _operations.append(Operation(name, threads, _read + written, stream.ptr))
    _read = 0


def _called() -> str:
    """The function of this package that was called from outside."""
    frame, found = sys._getframe(2), ""
    while frame is not None and frame.f_globals["__name__"].partition(".")[0] == "cupy":
        own = frame.f_locals.get("self")
        found = getattr(own, "__name__", None) or frame.f_locals.get("name", frame.f_code.co_name)
        frame = frame.f_back  # type: ignore[assignment]
    return f"cupy.{found}"


def is_available() -> bool:
    return True


class Device:
    """One of two; the current one of the thread without a number."""

    def __init__(self, device: Any = None) -> None:
        self.id = getattr(_local, "device", 0) if device is None else int(device)
        if not 0 <= self.id < _COUNT:
            raise runtime.CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        self._before: list[int] = []

    def use(self) -> None:
        _local.device = self.id

    def synchronize(self) -> None:
        wait()
        for stream in of_device(self.id):
            done(stream.clock())

    def __enter__(self) -> Device:
        self._before.append(Device().id)
        self.use()
        return self

    def __exit__(self, *error: object) -> None:
        _local.device = self._before.pop()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and self.id == other.id

    def __hash__(self) -> int:
        return self.id

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"


class MemoryPool:
    """Counts bytes, and the most that were in use; one made by hand gives the same out again."""

    def __init__(self, allocator: Any = "its own") -> None:
        self._used = self._most = 0
        self._lock = threading.Lock()
        self.own = allocator is not None
        self.idle: Any = defaultdict(list)

    def __del__(self) -> None:
        for _, block in itertools.chain(*self.idle.values()):
            del _blocks[block.start]

    def malloc(self, size: int) -> None:
        raise NotImplementedError("only its pool is looked at: see using_allocator")

    def take(self, size: int) -> None:
        with self._lock:
            self._used += size
            self._most = max(self._most, self._used)

    def used_bytes(self) -> int:
        return self._used

    def total_bytes(self) -> int:
        return self._most

    def free_bytes(self) -> int:
        return self._most - self._used

    def free_all_blocks(self) -> None:
        self._most = self._used


_pools: defaultdict[int, MemoryPool] = defaultdict(lambda: MemoryPool(None))


def pool(default: bool = False) -> MemoryPool:
    """Where new arrays of this thread are counted; by default, that of the current device."""
    mine = None if default else getattr(_local, "pool", None)
    return mine or _pools[Device().id]


_blocks: dict[int, Block] = {}  # by address


def hold(memory: Any, address: int, size: int) -> Block:
    """Count ``size`` bytes as long as ``memory`` lives."""
    where, block = pool(), Block(size, get_current_stream())
    where.take(size)
    block.start = address
    _blocks[address] = block

    def give_back() -> None:
        where.take(-size)
        block.free()
        del _blocks[address]

    weakref.finalize(memory, give_back).atexit = False
    return block


def _at(address: int) -> tuple[int, Any]:
    """How many bytes are left from an address on, and the block that it is in."""
    found = [
        (start + b.size - address, b) for start, b in _blocks.copy().items() if start <= address
    ]
    return max(found, key=lambda pair: pair[0], default=(0, None))


def room(address: int) -> int:
    """How many bytes are left from an address on."""
    return _at(address)[0]


@contextmanager
def using_allocator(allocator: Any) -> Iterator[None]:
    before = getattr(_local, "pool", None)
    _local.pool = allocator.__self__
    try:
        yield
    finally:
        _local.pool = before


def set_allocator(allocator: Any = None) -> None:
    assert allocator is None, "only the pool of the device can be left out"


@cache
def _proof(module: str) -> Any:
    """A module of the proof, whose folder needs not be on Python's path."""
    tests = str(Path(__file__).parents[2])
    if tests not in sys.path:
        sys.path.append(tests)
    return importlib.import_module(f"cuda_proof.{module}")


@cache
def _machine() -> Any:
    return _proof("host").Machine()


def check_options(options: tuple[str, ...]) -> None:
    _proof("nvrtc").check_options(options)


class Function:
    """A kernel, called as CuPy's are: ``(grid, block, args)``."""

    def __init__(self, name: str, code: str) -> None:
        self._name, self._code = name, code
        self._file = "".join(re.findall(r'#line 1 "invocupy/backends/cuda/(.*)\.cu"', code)) or name
        self._launch: Any = None

    def __call__(self, grid: Any, block: Any, args: Any) -> None:
        import cupy

        if _graphs.nodes() is not None:
            _graphs.record(self._file, self, (grid, block, args), {})
            return
        given, arrays = [], {}
        for place, arg in enumerate(args):
            if isinstance(arg, cupy.ndarray):
                given.append(cupy._operand(arg))
                arrays[place] = arg
            elif isinstance(arg, np.ndarray):  # CuPy takes one element by value
                if arg.size != 1:
                    raise TypeError("You are trying to pass a numpy.ndarray as a kernel parameter.")
                given.append(arg.reshape(())[()])
            elif isinstance(arg, np.void):
                raise TypeError(f"Unsupported type {type(arg)}. (size={arg.nbytes})")
            else:
                given.append(arg)
        if not _idle:
            with _launching:  # the builds have variables of their own
                if self._launch is None:
                    self._launch = _machine().compile_source(self._name, self._code)
                self._launch(grid, block, given)
            for place, array in arrays.items():
                if self._launch.args[2][place].kind == 2:
                    array._block.write(get_current_stream())
        operation(0, self._file, math.prod((*grid, *block)))


class _CUDARuntimeError(RuntimeError):
    pass


def _properties(device: int) -> dict[str, Any]:
    return {
        "name": b"stand-in", "major": 9, "minor": 0, "totalGlobalMem": _MEMORY,
        "multiProcessorCount": 132,
    }  # fmt: skip


runtime = SimpleNamespace(
    CUDARuntimeError=_CUDARuntimeError,
    CUDA_R_32F=0,
    CUDA_R_64F=1,
    CUDA_R_16F=2,
    CUDA_R_16BF=14,
    getDeviceCount=lambda: _COUNT,
    getDeviceProperties=_properties,
    memGetInfo=lambda: (_MEMORY - pool(default=True).total_bytes(), _MEMORY),
    driverGetVersion=lambda: 13000,
    runtimeGetVersion=lambda: 13000,
    deviceSynchronize=lambda: wait(),
)


def get_cublas_handle() -> int:
    return Device().id + 1


def __getattr__(name: str) -> Any:
    if name != "cublas":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _cublas()


def _factor(address: int, kind: int) -> float:
    return (ctypes.c_double if kind == 1 else ctypes.c_float).from_address(address).value


@cache
def _cublas() -> Any:
    """The library, whose products are recorded."""
    library = _proof("gemm").cublas(room, get_cublas_handle)
    compute = library.gemmStridedBatchedEx

    def product(handle: int, turn_a: int, turn_b: int, m: int, n: int, k: int, *rest: Any) -> None:
        a, b, c = rest[1:5], rest[5:9], rest[10:14]  # address, kind, leading dimension, step
        _graphs.refuse("cuBLAS")
        stream, size = get_current_stream(), 0
        for (address, kind, _, step), area in ((a, m * k), (b, k * n), (c, m * n)):
            size += {0: 4, 1: 8}.get(kind, 2) * area * (rest[14] if step else 1)
            block = _at(address)[1]
            (block.write if address == c[0] else block.read)(stream)
        if _factor(rest[9], c[1]):  # what the result held is read
            size += {0: 4, 1: 8}.get(c[1], 2) * m * n * rest[14]
        operation(size, "cublas")
        if not _idle:
            compute(handle, turn_a, turn_b, m, n, k, *rest)

    library.gemmStridedBatchedEx = product
    return library
