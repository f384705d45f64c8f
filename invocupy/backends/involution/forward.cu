// The involution itself: forward.cuh with a kernel that is read from memory.

struct Stored {
    const SCALAR* kernel;  // the group's values for this row
    long long plane;
    int column, width;

    __device__ __forceinline__ void operator()(int u, int part, ACCUM (&tap)[TAPS][COLUMNS]) const
    {
        const SCALAR* const row = kernel + (u * KERNEL_W + part) * plane;
#pragma unroll
        for (int t = 0; t < TAPS; ++t)
            if (part + t < KERNEL_W)
                load_run<VECTOR_OUT, COLUMNS>(row + t * plane, column, width, tap[t]);
    }
};

extern "C" __global__ void __launch_bounds__(BLOCK)
forward(const SCALAR* __restrict__ x, const SCALAR* __restrict__ kernel, SCALAR* __restrict__ out,
        Geometry g)
{
    const Place at = place(thread_index(), g.out_h, g.out_w);
    const Share mine = share(at.plane, g);
    if (mine.group >= index_t(g.batch) * g.groups) return;
    const long long plane = (long long)g.out_h * g.out_w;
    const long long first = (long long)mine.group * (KERNEL_H * KERNEL_W) * plane;
    const Stored taps = {kernel + first + (long long)at.row * g.out_w, plane, at.column, g.out_w};
    forward_strip(x, taps, out, g, at, mine);
}
