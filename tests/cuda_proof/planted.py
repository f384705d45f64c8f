"""Mistakes planted in the CUDA source by substitution, and which check must find each of them.

A pattern that no longer matches the source is an error (:func:`host.substituted`): adapt it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bug:
    """``found`` maps a check (results, trace, sanitizers, ptx, table) to what it must say."""

    replacements: tuple[tuple[str, str], ...]
    found: dict[str, str]
    function: str = "forward"
    family: str = "k3"  # none: the huge arrays of the sanitizers


_STORE = "store<WIDTH>(at + k, from + k);"

BUGS = {
    # The value is not used, so no result shows it.
    "read one past the end": Bug(
        (("UNROLL(k, WIDTH) to[k] = widen(",
          "*reinterpret_cast<const volatile char*>(from + WIDTH);\n"
          "    UNROLL(k, WIDTH) to[k] = widen("),),
        {
            "trace": "out of bounds read: 1 bytes",
            "sanitizers": "AddressSanitizer: heap-buffer-overflow",
            "ptx": "ld.volatile.* out of bounds",
        },
    ),
    "missing lower bound": Bug(
        (("position + away >= 0", "true"),),
        {"results": "are wrong", "trace": "out of bounds read", "ptx": "out of bounds"},
    ),
    "missing upper bound": Bug(
        ((f"if (in_row(position, k, size)) {_STORE}", _STORE),),
        {"results": "are wrong", "trace": "race between threads"},
        family="k3-odd",
    ),
    "wrong stride": Bug(
        (("at.row * STRIDE_H", "at.row"),),
        {"results": "are wrong", "ptx": "are wrong"},
        family="k3-stride2",
    ),
    # Reads and writes back a neighbour's element, which goes well in any order of whole threads.
    "scatter without atomics": Bug(
        ((_STORE,
          f"{{ {_STORE} if (position + k + WIDTH < size) {{ volatile char* next = "
          "reinterpret_cast<volatile char*>(at + k + WIDTH); *next = *next; } }"),),
        {"trace": "race between blocks"},
        function="grad_x",
    ),
    "unwritten output": Bug(
        ((f"if (in_row(position, k, size)) {_STORE}",
          f"if (position + k + WIDTH < size) {_STORE}"),),
        {"results": "is nan", "trace": "bytes never written", "ptx": "is nan"},
        function="grad_kernel",
    ),
    "32-bit offsets": Bug(
        (("(long long)out_h * out_w", "(long long)(out_h * out_w)"),),
        {"sanitizers": "signed integer overflow"},
        family="",
    ),
    "too few registers": Bug(
        (("__launch_bounds__(BLOCK)", "__launch_bounds__(BLOCK, 16)"),), {"table": "spills"}
    ),
    "narrow loads": Bug(
        (("#define VECTOR_X 4", "#define VECTOR_X 1"),),
        {"table": "16-byte loads, was"},
    ),
}  # fmt: skip
