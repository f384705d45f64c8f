"""Running a task kernel on arrays: addresses, a shared counter, as many threads as pay."""
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import typeof, void
from numba.extending import intrinsic

from invocupy.backends.cpu import pool, threads
from invocupy.backends.cpu.compiling import whole
from invocupy.backends.cpu.jit import machine_code

# units of work per thread below which a helper does not pay, and in all one that must be woken
GRAIN, WAKE = 1 << 14, 1 << 18
LONG = 1 << 27  # units of work that take some tenth of a second: a person may want to interrupt

_WORD = ir.IntType(64)


class Fixed:
    """Integers and arrays that a kernel takes as one tuple, in every call the same."""

    def __init__(self, *values: Any) -> None:
        self.values = values  # which are so kept
        self.kind = typeof(values)
        self.words: list[int] = []  # as compiled functions take them
        for value in values:
            if isinstance(value, np.ndarray):  # no owner, no parent
                place = threads.address(value)
                self.words += 0, 0, value.size, value.itemsize, place, *value.shape, *value.strides
            else:
                self.words.append(value)


def launch(
    kernel: Callable[..., None], tasks: int, work: int, scratch: int, *arguments: Any
) -> None:
    """Run ``kernel(tasks, scratch, counter, *arguments)`` in one or more threads.

    Each thread takes tasks from ``counter`` (:func:`invocupy.backends.cpu.jit.next_task`) until
    ``tasks`` are taken. ``work`` is roughly the number of elements read or vector operations done;
    ``scratch`` the number of bytes that each thread gets for itself. Arrays are passed by address,
    integers, tuples of integers and :class:`Fixed` as they are; ``None`` is passed as 0.
    """
    if tasks == 0:
        return
    words: list[int] = []
    for argument in arguments:
        if isinstance(argument, np.ndarray):
            words.append(threads.address(argument))
        elif argument is None:
            words.append(0)
        elif isinstance(argument, Fixed):
            words += argument.words
        elif isinstance(argument, tuple):
            words += argument
        else:
            words.append(argument)
    helpers = min(threads.get_num_threads(), tasks, work // GRAIN + 1) - 1
    code = _codes.get((kernel, len(words))) or whole(_compile, kernel, arguments, len(words))
    pool.run(*code, tasks, helpers, work > WAKE, work > LONG, scratch, words, arguments)


_codes: dict[tuple[Any, int], tuple[int, int]] = {}


def _compile(kernel: Any, arguments: tuple[Any, ...], words: int) -> tuple[int, int]:
    """The addresses of the thunk and of the kernel's machine code."""
    integer = typeof(0)
    kinds = [
        a.kind if isinstance(a, Fixed) else typeof(a) if isinstance(a, tuple) else integer
        for a in arguments
    ]
    result = kernel.get_compile_result(void(*(integer,) * 3, *kinds))
    function = result.library.get_pointer_to_function(result.fndesc.llvm_func_name)
    code = _codes[kernel, words] = _thunk(words), function
    return code


@cache
def _thunk(number: int) -> int:
    """Calls the function of a job with ``number`` words of arguments: (job, scratch)."""

    def write(builder: Any, given: Any) -> None:
        job, scratch = given
        function, tasks, counter, first = (
            builder.add(job, ir.Constant(_WORD, place)) for place in pool.PLACES
        )

        def word(address: Any) -> Any:
            return builder.load(builder.inttoptr(address, ir.PointerType()), typ=_WORD)

        # where compiled functions put their result and their exception: these have neither
        unused = [builder.alloca(_WORD), builder.alloca(_WORD)]
        arguments = [word(builder.add(first, ir.Constant(_WORD, 8 * i))) for i in range(number)]
        kind = ir.FunctionType(ir.IntType(32), [ir.PointerType()] * 2 + [_WORD] * (3 + number))
        builder.call(
            builder.inttoptr(word(function), kind.as_pointer()),
            [*unused, word(tasks), scratch, counter, *arguments],
        )

    address: int = machine_code(f"thunk_{number}", 2, write)
    return address


@intrinsic
def plus(typing: Any, a: Any, b: Any) -> Any:
    """``a + b``, of which the compiler may reorder a sum: lanes of vectors, in a fixed order."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fadd(*args, flags=("reassoc",))

    return a(a, a), codegen
