// The involution itself: forward.cuh with a kernel that is read from memory.

struct Stored {
    // Worth its registers if there are several steps, and not too many values to a step.
    static constexpr bool AHEAD = KERNEL_H > 3 && TAPS * COLUMNS * sizeof(ACCUM) <= 128;

    const SCALAR* kernel;  // the group's values for this row
    long long plane;
    int column, width;

    __device__ __forceinline__ void operator()(int u, int part, ACCUM (&tap)[TAPS][COLUMNS]) const
    {
        const SCALAR* const row = kernel + (u * KERNEL_W + part) * plane;
#pragma unroll
        for (int t = 0; t < TAPS; ++t)
            if (part + t < KERNEL_W)
                load_run<VECTOR_OUT, COLUMNS, KERNEL_ONCE>(row + t * plane, column, width,
                                                           tap[t]);
    }
};

extern "C" __global__ void __launch_bounds__(BLOCK)
forward(const SCALAR* __restrict__ x, const SCALAR* __restrict__ kernel, SCALAR* __restrict__ out,
        Geometry g)
{
    const Place at = place(thread_index(), shares_of(g), g.out_h, g.out_w);
    if (at.unit >= index_t(g.batch) * g.groups) return;
    const long long plane = (long long)g.out_h * g.out_w;
    const long long first = (long long)at.unit * (KERNEL_H * KERNEL_W) * plane;
    const Stored taps = {kernel + first + (long long)at.row * g.out_w, plane, at.column, g.out_w};
    forward_strip(x, taps, out, g, at, share_of(at, g));
}
