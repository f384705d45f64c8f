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
    family: str = "k3"  # or the huge arrays of the sanitizers: 2d, 3d


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
        (("(long long)IN_3D(out_d *) out_h * out_w", "(long long)(out_h * out_w)"),),
        {"sanitizers": "signed integer overflow"},
        family="2d",
    ),
    "32-bit offset of a plane": Bug(
        (("(long long)IN_3D(plane * height +) row", "IN_3D(plane * height +) row"),),
        {"sanitizers": "signed integer overflow"},
        family="3d",
    ),
    "wrong stride from plane to plane": Bug(
        (("IN_3D(plane * out_h +) row", "IN_3D(plane * (out_h - 1) +) row"),),
        {"results": "are wrong", "trace": "race between", "ptx": "are wrong"},
        family="3d-k3",
    ),
    "wrong tap plane": Bug(
        (("taps((s + 1) * KERNEL_H + begin, 0, next)", "taps(s * KERNEL_H + begin, 0, next)"),),
        {"results": "are wrong", "ptx": "are wrong"},
        family="3d-k3",
    ),
    "missing front bound": Bug(
        (("z < 0 || z >= g.depth", "z >= g.depth"),),
        {"results": "are wrong", "trace": "out of bounds read", "ptx": "out of bounds"},
        function="grad_kernel",
        family="3d-k3",
    ),
    "missing back bound": Bug(
        (("d >= g.out_d) continue", "false) continue"),),
        {"results": "are wrong", "trace": "out of bounds read", "ptx": "out of bounds"},
        function="grad_x",
        family="3d-k3",
    ),
    "the channels of a share past its group": Bug(
        (("if (RAGGED && c >= mine.count) break;", ""),),
        {"trace": "race between|out of bounds write", "ptx": "out of bounds|are wrong"},
        family="k3-ragged-17",
    ),
    "too few registers": Bug(
        (("KERNEL(BLOCK)", "KERNEL(BLOCK, 16)"),), {"table": "spills"}
    ),
    "narrow loads": Bug(
        (("#define VECTOR_X 4", "#define VECTOR_X 1"),),
        {"table": "16-byte loads, was"},
    ),
}  # fmt: skip
