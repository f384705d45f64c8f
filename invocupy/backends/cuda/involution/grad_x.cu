#include "involution/grad_x.cuh"
// The gradient of x: grad_x.cuh with a kernel that is read from memory.

struct Stored {
    const SCALAR* kernel;  // of the group, at the column `position`
    long long plane;
    int position, width;

    __device__ __forceinline__ void operator()(int u, int i, int part,
                                               ACCUM (&tap)[TAPS][LIVE]) const
    {
        const SCALAR* from = kernel + (u * KERNEL_W + part) * plane + (long long)i * width;
#pragma unroll
        for (int t = 0; t < TAPS; ++t, from += plane) {
            if (part + t >= KERNEL_W) continue;
            // The columns wanted start anywhere: load the aligned stretch around them.
            constexpr int AROUND = round_up(LIVE + VECTOR_OUT - 1, VECTOR_OUT);
            const int first = window_x::first(part + t);
            const int begin = window_x::floor_to(first, VECTOR_OUT);
            ACCUM around[AROUND];
            load_run<VECTOR_OUT, AROUND, KERNEL_ONCE, window_x::INSIDE>(from, position, begin,
                                                                        width, around);
            UNROLL(l, LIVE) tap[t][l] = around[first - begin + l];
        }
    }
};

extern "C" __global__ void __launch_bounds__(BLOCK)
grad_x(In grad, In kernel, Out out, Geometry g)
{
    const Place at = place(thread_index(), shares_of(g), round_up(g.height, STRIDE_H), g.width);
    const int y = phased_row(at.row, g.height);
    if (at.unit >= index_t(g.batch) * g.groups || y >= g.height) return;
    const int position = at.column / STRIDE_W;
    kernel += (long long)at.unit * (KERNEL_H * KERNEL_W) * g.out_plane() + position;
    const Stored taps = {kernel, g.out_plane(), position, g.out_w};
    grad_x_strip(grad, taps, out, g, y, at.column, share_of(at, g));
}
