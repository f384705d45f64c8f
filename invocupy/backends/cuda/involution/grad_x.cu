#include "involution/grad_x.cuh"
// The gradient of x: grad_x.cuh with a kernel that is read from memory.

struct Stored {
    const SCALAR* kernel;  // of the group, at the column `position`
    long long step;          // from the values of one tap to those of the next
    int position, IN_3D(height,) width;

    __device__ __forceinline__ void operator()(int r, IN_3D(int d,) int i, int part,
                                               ACCUM (&tap)[TAPS][LIVE]) const
    {
        const SCALAR* from =
            kernel + (r * KERNEL_W + part) * step + ((long long)IN_3D(d * height +) i) * width;
#pragma unroll
        for (int t = 0; t < TAPS; ++t, from += step) {
            if (part + t >= KERNEL_W) continue;
            // The columns needed start at any offset: load the aligned stretch around them.
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

KERNEL(BLOCK) grad_x(In grad, In kernel, Out out, Geometry g)
{
    const Place at =
        place(thread_index(), shares_of(g), IN_3D(g.depth,) round_up(g.height, STRIDE_H), g.width);
    const int y = phased_row(at.row, g.height);
    if (at.unit >= index_t(g.batch) * g.groups || y >= g.height) return;
    const int position = at.column / STRIDE_W;
    kernel += (long long)at.unit * (TAP_ROWS * KERNEL_W) * g.out_step() + position;
    const Stored taps = {kernel, g.out_step(), position, IN_3D(g.out_h,) g.out_w};
    grad_x_strip(grad, taps, out, g, at, y, share_of(at, g));
}
