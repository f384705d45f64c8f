#include "involution/forward.cuh"
// The involution itself: forward.cuh with a kernel that is read from memory.

struct Stored {
    // Loading ahead takes registers: it pays if there are several tap rows of not too many values.
    static constexpr bool AHEAD = TAP_ROWS > 3 && TAPS * COLUMNS * sizeof(ACCUM) <= 128;

    const SCALAR* kernel;  // the group's values at the thread's first column
    long long step;          // from the values of one tap to those of the next
    int column, width;

    __device__ __forceinline__ void operator()(int r, int part, ACCUM (&tap)[TAPS][COLUMNS]) const
    {
        const SCALAR* from = kernel + (r * KERNEL_W + part) * step;
#pragma unroll
        for (int t = 0; t < TAPS; ++t, from += step)
            if (part + t < KERNEL_W)
                load_run<VECTOR_OUT, COLUMNS, KERNEL_ONCE>(from, column, 0, width, tap[t]);
    }
};

KERNEL(BLOCK) forward(In x, In kernel, Out out, Geometry g)
{
    const Place at = place(thread_index(), shares_of(g), IN_3D(g.out_d,) g.out_h, g.out_w);
    if (at.unit >= index_t(g.batch) * g.groups) return;
    const long long step = g.out_step();
    const long long first = (long long)at.unit * (TAP_ROWS * KERNEL_W) * step;
    const long long offset = g.out_offset(at);
    const Stored taps = {kernel + first + offset, step, at.column, g.out_w};
    forward_strip(x, taps, out, g, at, share_of(at, g));
}
