"""Mistakes planted in the kernels of involution_block, and which check must find each of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

from invocupy.backends import cuda

from . import host


@dataclass(frozen=True)
class Bug:
    """``found`` maps a check (results, trace, ptx, table, sanitizers) to what it must say.

    A kernel with its folder is one of another op, for ``layer_huge``, whose call is the function.
    """

    kernel: str
    replacements: tuple[tuple[str, str], ...]
    found: dict[str, str]
    family: str = "odd"
    function: str = "gradients"


@contextlib.contextmanager
def planted(bug: Bug) -> Iterator[None]:
    """The source of the bug's kernel, and of no other, is substituted."""
    whole = cuda.source

    def source(kernel: str, macros: Any) -> str:
        text = whole(kernel, macros)
        mine = kernel in {bug.kernel, f"involution_block/{bug.kernel}", f"spread/{bug.kernel}"}
        return host.substituted(text, bug.replacements) if mine else text

    with mock.patch.object(cuda, "source", source):
        yield


WRONG = {"results": "are wrong", "ptx": "are wrong"}
_TURN = "}\n            __syncthreads();\n            // Now each lane has a pixel"

BUGS = {
    "taps are read before they are written": Bug(
        "grad_involve",
        (("__syncthreads();\n            // The gradient of the shares", "//"),),
        {"trace": "race between threads|uninitialised read: shared", "results": "are wrong|is nan"},
    ),
    "sums of warps are read before they are written": Bug(
        "grad_involve",
        (("__syncthreads();\n            for (int k = thread; k < KERNEL_W * COLUMNS",
          "for (int k = thread; k < KERNEL_W * COLUMNS"),),
        {"trace": "race between threads|uninitialised read: shared"},
    ),
    "lanes turn to pixels too early": Bug(
        "grad_perceive",
        ((_TURN, "}\n            // Now each lane has a pixel"),),
        {"trace": "race between threads|uninitialised read: shared"},
    ),
    "a warp adds to sums that another still adds to": Bug(
        "grad_perceive",
        (("        __syncthreads();\n    }\n    for (int k = threadIdx.x; k < SLICE",
          "    }\n    __syncthreads();\n    for (int k = threadIdx.x; k < SLICE"),),
        {"trace": "race between threads"},
    ),
    "halo off by one": Bug(
        "grad_involve", (("left + i % SPAN_W - REACH_W", "left + i % SPAN_W - REACH_W + 1"),), WRONG
    ),
    "halo of one row too few": Bug(
        "grad_involve",
        (("SPAN_H = TILE_H + 2 * REACH_H,", "SPAN_H = TILE_H + 2 * REACH_H - 1,"),),
        {"trace": "uninitialised read: shared|race between threads|out of bounds"},
    ),
    "away with the wrong sign": Bug(
        "grad_involve",
        (("grad_out[c][from + (REACH_H - away) * SPAN_W]",
          "grad_out[c][from + (REACH_H + away) * SPAN_W]"),),
        WRONG,
    ),
    "no check of the upper and lower border": Bug(
        "grad_involve",
        (("if (!inside[k] || row < 0 || row >= height) continue;", "if (!inside[k]) continue;"),),
        {"results": "are wrong", "trace": "out of bounds read", "ptx": "out of bounds|are wrong"},
    ),
    "no check of the left and right border": Bug(
        "grad_involve",
        (("if (column < 0 || column >= width) continue;", ""),),
        {"results": "are wrong", "trace": "out of bounds read", "ptx": "out of bounds|are wrong"},
    ),
    "no check of the border in involve": Bug(
        "involve",
        (("if (row + away < 0 || row + away >= height) continue;", ""),),
        {"results": "are wrong", "trace": "out of bounds read", "ptx": "out of bounds|are wrong"},
        function="train",
    ),
    "the last pixels of a tile past the image": Bug(
        "grad_involve",
        (("            if (!inside[k]) continue;\n            const long long at = (long long)(top",
          "            const long long at = (long long)(top"),),
        {"trace": "race between|out of bounds write", "ptx": "out of bounds|are wrong"},
    ),
    "the last rows of the margin are left out": Bug(
        "evaluate",
        (("i < PLANE; i += BLOCK", "i < TILE_H * SPAN_W; i += BLOCK"),),
        {"trace": "uninitialised read: shared"},
        function="forward",
    ),
    "a margin that starts one column too late": Bug(
        "evaluate", (("TILE_W - REACH_W;", "TILE_W - REACH_W + 1;"),), WRONG, function="forward"
    ),
    "shares outside the image": Bug(
        "evaluate", (("there ? share", "true ? share"),), WRONG, function="forward"
    ),
    "a column of the kernel for a row": Bug(
        "evaluate",
        (("tap_at<VECTOR_F>((g * KERNEL_H + u) * KERNEL_W + v",
          "tap_at<VECTOR_F>((g * KERNEL_H + v) * KERNEL_W + u"),),
        WRONG,
        function="forward",
    ),
    "shares are read before they are written": Bug(
        "evaluate",
        (("__syncthreads();\n#pragma unroll 1\n        for (int v", "for (int v"),),
        {"trace": "race between threads|uninitialised read: shared"},
        function="forward",
    ),
    "shares of the next group are written too early": Bug(
        "evaluate",
        (("if (g > 0) __syncthreads();", ""),),
        {"trace": "race between threads"},
        function="forward",
    ),
    "pixels of a tile past the image": Bug(
        "evaluate",
        (("if (!inside[i]) continue;", ""),),
        {"trace": "race between|out of bounds write", "ptx": "out of bounds|are wrong"},
        function="forward",
    ),
    "32-bit offsets of evaluation": Bug(
        "evaluate",
        (("const long long row = ((long long)image", "const int row = ((long long)image"),),
        {"sanitizers": "signed integer overflow"},
        function="forward",
    ),
    "sums over the wrong rows": Bug(
        "merge",
        (("moments + (REDUCED + f) * rows, rows", "moments + (REDUCED + f) * (rows - 1), rows"),),
        WRONG,
        function="train",
    ),
    "the last row counts as a full one": Bug(
        "merge",
        (("min((long long)full, count - (long long)row * full)", "full"),),
        WRONG,
        function="train",
    ),
    "a row is left out": Bug(
        "merge_span", (("row < rows; row += WARPS", "row < rows - 1; row += WARPS"),), WRONG
    ),
    "unwritten gradient of a bias": Bug(
        "merge_span",
        (("grad_reduce_bias[k] = narrow(0);", ""),),
        {"results": "is nan", "trace": "bytes never written", "ptx": "is nan"},
    ),
    "the gradient of a bias, but for the last": Bug(
        "merge_hidden",
        (("grad_expand_bias[d] = narrow(0);", "if (d + 1 < HIDDEN) grad_expand_bias[d] = 0;"),),
        {"results": "is nan", "trace": "bytes never written"},
    ),
    "ReLU lets 0 through": Bug(
        "grad_involve", (("feature[f][own[k]] > 0", "feature[f][own[k]] >= 0"),), WRONG
    ),
    "slices left out": Bug("grad_x", (("UNROLL(s, SLICES)", "UNROLL(s, 1)"),), WRONG, "slices"),
    "channels past the last slice": Bug(
        "grad_perceive",
        (("        if (d < HIDDEN)\n            partial", "        partial"),),
        {"trace": "out of bounds|race between", "ptx": "out of bounds|are wrong"},
        "slices",
    ),
    "32-bit offsets of a block": Bug(
        "involve",
        (("const long long image = strip / per_row / height, plane = (long long)height * width;",
          "const int image = strip / per_row / height, plane = height * width;"),),
        {"sanitizers": "signed integer overflow"},
    ),
    "threads of a block counted in 32 bits": Bug(
        "involve",
        (("#define INDEX unsigned long long", "#define INDEX unsigned int"),),
        {"sanitizers": "huge involution_block.*nan in the last rows"},
    ),
    "32-bit offsets of a block's gradients": Bug(
        "grad_x",
        (("const long long image = vector / per_plane, plane = (long long)per_plane * VECTOR;",
          "const int image = vector / per_plane, plane = per_plane * VECTOR;"),),
        {"sanitizers": "signed integer overflow"},
    ),
    "32-bit offsets of a norm": Bug(
        "batch_norm/forward",
        (("(long long)vector * VECTOR", "int(vector) * VECTOR"),),
        {"sanitizers": "signed integer overflow"},
        function="norm_forward",
    ),
    "32-bit offsets of a channel": Bug(
        "batch_norm/moments",
        (("((long long)image * channels + channel) * per_plane + vector % per_plane)",
          "(int(image) * channels + channel) * per_plane + int(vector % per_plane))"),),
        {"sanitizers": "signed integer overflow"},
        function="norm_sums",
    ),
    "lanes without pixels count": Bug(
        "expansion/grad_expand", (("!inside || (RELU", "(RELU"),), WRONG, function="backward"
    ),
    "no mask": Bug(
        "expansion/grad_expand", (("(RELU && !(", "(0 && !("),), WRONG, function="backward"
    ),
    "half a warp sends its own sums": Bug(
        "expansion/grad_expand",
        (("upper ? value[k] : value[k + left]", "upper ? value[k + left] : value[k]"),),
        WRONG,
        function="backward",
    ),
    "sums of warps are added before they are all there": Bug(
        "expansion/grad_expand",
        (("    __syncthreads();\n    for (int k = threadIdx.x; k < HIDDEN * SUMS",
          "    for (int k = threadIdx.x; k < HIDDEN * SUMS"),),
        {"trace": "race between threads"},
        function="backward",
    ),
    "hidden channels past the last": Bug(
        "expansion/grad_expand",
        (("min(begin + i, HIDDEN - 1)", "(begin + i)"),),
        {"trace": "out of bounds read", "ptx": "out of bounds"},
        function="backward",
    ),
    "folded weights are read before they are written": Bug(
        "expansion/expand",
        (("__syncthreads();", ""),),
        {"trace": "race between threads|uninitialised read: shared"},
        function="forward",
    ),
    "a row of sums is left out": Bug(
        "expansion/merge_expand", (("row < rows", "row < rows - 1"),), WRONG, function="backward"
    ),
    "32-bit offsets of an expansion": Bug(
        "expansion/expand",
        (("long long image, plane, at;", "int image, plane, at;"),),
        {"sanitizers": "signed integer overflow"},
        function="expanding",
    ),
    "32-bit offsets of the gradients of an expansion": Bug(
        "expansion/grad_expand",
        (("long long image, plane, at;", "int image, plane, at;"),),
        {"sanitizers": "signed integer overflow"},
        function="expanding",
    ),
    "32-bit offsets of the channel of ones": Bug(
        "pointwise/with_ones",
        (("out + (long long)vector * VECTOR", "out + int(vector) * VECTOR"),),
        {"sanitizers": "signed integer overflow"},
        function="bias_sum",
    ),
    "32-bit offsets of fused involution": Bug(
        "involution/fused_forward",
        (("const long long step = g.out_step(), image", "const int step = g.out_step(), image"),),
        {"sanitizers": "signed integer overflow"},
        function="fused_forward",
    ),
    "too few registers": Bug(
        "grad_involve",
        (("__launch_bounds__(BLOCK, RESIDENT)", "__launch_bounds__(BLOCK, 12)"),),
        {"table": "spills"},
        "article",
    ),
}  # fmt: skip
