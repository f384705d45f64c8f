"""The one door to Numba: how kernels are compiled, and how they take addresses and tasks."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

__all__ = ["carray", "jit", "next_task", "pointer"]


def jit(function: Any) -> Any:
    """Compile ``function`` when it is first called: no GIL, no Python errors, no fast-math."""
    return njit(function, nogil=True, error_model="numpy")


@intrinsic
def pointer(typing: Any, address: Any, dtype: Any) -> Any:
    """The integer ``address`` as a pointer to ``dtype``: arrays come in by address.

    An array argument would mean a compilation for each layout, and another one for read-only arrays.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(dtype.dtype)(types.intp, dtype), codegen


@intrinsic
def next_task(typing: Any, counter: Any) -> Any:
    """Take the next number from the int64 at address ``counter``, which all threads share."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        int64 = ir.IntType(64)
        place = builder.inttoptr(args[0], ir.PointerType(int64))
        return builder.atomic_rmw("add", place, ir.Constant(int64, 1), "monotonic")

    return types.int64(types.int64), codegen
