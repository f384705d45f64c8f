"""CUDA graphs of the stand-in: what a stream is given while it captures is recorded, not done.

A node is a launch of a kernel or a call of an array function, with the addresses of its arrays. To
launch the graph does the nodes on those addresses; a block of memory that is gone by then, or is
another one's, is a :class:`GraphError`. As with CuPy 14.0.1 a capture refuses what waits for the
device, copies from or to the host, and cuBLAS; what it makes has no values before the launch.
"""

from __future__ import annotations

import ctypes
import functools
import inspect
import threading
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from cupy import cuda
from cupy._streams import Block, get_current_stream

MAKERS = (
    "arange", "array", "asarray", "ascontiguousarray", "asfortranarray", "concatenate", "einsum",
    "full", "full_like", "linspace", "matmul", "ones", "ones_like", "pad", "stack", "take",
    "tensordot", "where", "zeros", "zeros_like",
)  # fmt: skip
METHODS = (
    "__getitem__", "all", "any", "argmax", "astype", "copy", "flatten", "max", "mean", "min",
    "ravel", "reshape", "sum", "take",
)  # fmt: skip
BLAS = "matmul", "tensordot", "einsum"
UPLOADS = "array", "asarray", "ascontiguousarray", "asfortranarray"
TOGETHER = 8  # arrays that CuPy joins without sending their addresses to the device

local = threading.local()


class GraphError(RuntimeError):
    """A graph would use memory that was freed, or is somebody else's, since it was captured."""


class Frozen(NamedTuple):
    """An array as a captured launch knows it: an address in a block of memory."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: Any
    device: Any
    block: Block

    def thaw(self, name: str) -> Any:
        if cuda._blocks.get(self.block.start) is not self.block:
            raise GraphError(
                f"the graph's {name} uses memory that was freed since the capture: keep the array, "
                "or capture with a pool that outlives the graph"
            )
        import cupy

        array = cupy.ndarray.__new__(cupy.ndarray)
        start, size = self.block.start, self.block.size
        memory = (ctypes.c_char * size).from_address(start)
        array._host = np.ndarray(
            self.shape, self.dtype, memory, self.address - start, self.strides
        )  # fmt: skip
        array._device, array._block, array.base = self.device, self.block, None
        return array


class Node(NamedTuple):
    """One launch."""

    name: str
    function: Callable[..., Any]
    args: Any
    options: Any
    made: Frozen | None

    def run(self) -> None:
        args, options = (_each(given, Frozen, lambda f: f.thaw(self.name)) for given in self[2:4])
        result = self.function(*args, **options)
        if self.made is not None:
            self.made.thaw(self.name)._host[...] = result._host


class Graph:
    """What was captured."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes

    def launch(self, stream: Any = None) -> None:
        if nodes() is not None:
            raise RuntimeError("the stand-in captures no graph within a graph")
        cuda.calls += 1
        with stream or get_current_stream():
            local.inside = True
            try:
                for node in self.nodes:
                    local.name = node.name
                    node.run()
            finally:
                local.inside, local.name = False, ""

    def upload(self, stream: Any = None) -> None:
        pass


def end(stream: Any) -> Graph:
    """What a stream has captured."""
    captured, stream._nodes = stream._nodes, None
    if captured is None or stream._invalid:
        raise cuda.runtime.CUDARuntimeError("cudaErrorStreamCaptureInvalidated")
    return Graph(captured)


def nodes() -> list[Node] | None:
    """Where the work of the current stream is recorded, while it captures."""
    return get_current_stream()._nodes


def name() -> str:
    """Of the node that a graph does now."""
    return getattr(local, "name", "")


def refuse(what: str) -> None:
    """Raise CuPy's error for this, while the current stream captures."""
    if nodes() is None:
        return
    if what == "cuBLAS":
        raise NotImplementedError(
            "calling cuBLAS API during stream capture is currently unsupported"
        )
    if what == "synchronize":
        get_current_stream()._invalid = True
        raise cuda.runtime.CUDARuntimeError(
            "cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing"
        )
    raise RuntimeError(f"the current stream is capturing, so {what} transfers are disallowed")


def record(name: str, function: Any, args: Any, options: Any, made: Any = None) -> None:
    """Add a node to the graph."""
    import cupy

    found = nodes()
    assert found is not None
    frozen = [_each(given, cupy.ndarray, _frozen) for given in (args, options, made)]
    found.append(Node(name, function, *frozen))


def recorded(function: Callable[..., Any], name: str, in_place: int | None = None) -> Any:
    """A function of arrays that is recorded while its stream captures.

    ``in_place`` is the place of the argument that it writes; one of the name ``out`` is found.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        self = args[0] if args else None
        if nodes() is None or getattr(local, "inside", False):
            return function(*args, **options)
        title = f"cupy.{getattr(self, '__name__', None) or name}"
        if name in BLAS:
            refuse("cuBLAS")
        if name in UPLOADS and not hasattr(self, "_block"):
            refuse("H2D")
        if name in ("concatenate", "stack") and len(args[0]) > TOGETHER:
            refuse("H2D")
        out = signature.bind(*args, **options).arguments.get("out")
        if in_place is not None or out is not None:
            record(title, function, args, options)
            return out if in_place is None else args[in_place]
        local.inside = True
        try:
            result = function(*args, **options)
        finally:
            local.inside = False
        if result.base is None and result is not self:
            result._host.T.reshape(-1).view(np.uint8)[...] = 0xFF
            record(title, function, args, options, result)
        return result

    return run


def install(functions: dict[str, Any], array: Any, ufunc: Any, add: Any) -> None:
    """Let what this package does with arrays be recorded."""
    for name in MAKERS:
        functions[name] = recorded(functions[name], name)
    functions["copyto"] = recorded(functions["copyto"], "copyto", 0)
    ufunc.__call__ = recorded(ufunc.__call__, "ufunc")
    add.at = recorded(add.at, "add.at", 1)
    for name in METHODS:
        setattr(array, name, recorded(getattr(array, name), name))
    for name in [name for name in vars(array) if name.startswith("__i") and name.endswith("__")]:
        if name not in ("__init__", "__int__", "__iter__", "__index__", "__invert__"):
            setattr(array, name, recorded(getattr(array, name), name, 0))
    for name in ("fill", "__setitem__"):
        setattr(array, name, recorded(getattr(array, name), name, 0))


def lease(pool: Any, size: int) -> tuple[Any, Block]:
    """Memory of a pool that keeps what was freed: it comes back with the last array on it."""
    idle = pool.idle[size]
    raw, block = idle.pop() if idle else _fresh(size)
    held = _kind(size).from_address(block.start)
    held.of = weakref.ref(pool), raw, block
    pool.take(size)
    return np.frombuffer(held, np.uint8), block


@functools.cache
def _kind(size: int) -> Any:
    def give_back(held: Any) -> None:
        pool, raw, block = held.of
        if pool() is None:
            del cuda._blocks[block.start]
            return
        pool().take(-size)
        pool().idle[size].append((raw, block))

    return type("Lease", (ctypes.c_char * size,), {"__del__": give_back})


def _fresh(size: int) -> tuple[Any, Block]:
    raw = np.empty(size + 512, np.uint8)
    block = Block(size, get_current_stream())
    block.start = raw.ctypes.data + -raw.ctypes.data % 512
    cuda._blocks[block.start] = block
    return raw, block


def _frozen(array: Any) -> Frozen:
    host = array._host
    return Frozen(
        host.ctypes.data, host.shape, host.strides, host.dtype, array._device, array._block
    )


def _each(value: Any, kind: Any, change: Callable[[Any], Any]) -> Any:
    """``value`` with all of a kind in it changed."""
    if isinstance(value, kind):
        return change(value)
    if type(value) in (list, tuple):
        return type(value)(_each(one, kind, change) for one in value)
    if type(value) is dict:
        return {key: _each(one, kind, change) for key, one in value.items()}
    return value.copy() if isinstance(value, np.ndarray) else value
