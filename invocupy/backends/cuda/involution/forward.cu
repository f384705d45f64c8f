#include "involution/forward.cuh"
// The involution itself: forward.cuh with a kernel that is read from memory.

struct Stored {
    // Worth its registers if there are several steps, and not too many values to a step.
    static constexpr bool AHEAD = KERNEL_H > 3 && TAPS * COLUMNS * sizeof(ACCUM) <= 128;

    const SCALAR* kernel;  // the group's values at the thread's first column
    long long plane;
    int column, width;

    __device__ __forceinline__ void operator()(int u, int part, ACCUM (&tap)[TAPS][COLUMNS]) const
    {
        const SCALAR* from = kernel + (u * KERNEL_W + part) * plane;
#pragma unroll
        for (int t = 0; t < TAPS; ++t, from += plane)
            if (part + t < KERNEL_W)
                load_run<VECTOR_OUT, COLUMNS, KERNEL_ONCE>(from, column, 0, width, tap[t]);
    }
};

extern "C" __global__ void __launch_bounds__(BLOCK)
forward(In x, In kernel, Out out, Geometry g)
{
    const Place at = place(thread_index(), shares_of(g), g.out_h, g.out_w);
    if (at.unit >= index_t(g.batch) * g.groups) return;
    const long long plane = g.out_plane();
    const long long first = (long long)at.unit * (KERNEL_H * KERNEL_W) * plane;
    const long long offset = g.out_offset(at.row, at.column);
    const Stored taps = {kernel + first + offset, plane, at.column, g.out_w};
    forward_strip(x, taps, out, g, at, share_of(at, g));
}
