#include "involution/involution.cuh"
// grad_kernel[n,g,u,v,i,j] = sum over the group's channels c of
//     grad[n,c,i,j] * x[n,c,i*sh+u*dh-ph,j*sw+v*dw-pw]
// In three dimensions (s,u,v) are taps and (d,i,j) positions, of which s and d count planes.

// One tap row (or a part of it) at COLUMNS columns: sum[t][e] becomes the gradient of the kernel
// value of tap part + t of tap row r at column e of the thread; past the end of the row it has no
// meaning. `x` starts at the first channel of the group, `grad` at the thread's row and column of
// it. The loads of AT_ONCE channels overlap.
template <int AT_ONCE>
__device__ __forceinline__ void grad_taps(const SCALAR* grad, const SCALAR* x, const Geometry& g,
                                          int channels, const Place& at, int r, int part,
                                          ACCUM (&sum)[TAPS][COLUMNS])
{
    UNROLL(t, TAPS)
        UNROLL(e, COLUMNS) sum[t][e] = ACCUM(0);
    const int y = at.row * STRIDE_H - PADDING_H + (r IN_3D(% KERNEL_H)) * DILATION_H;
    IN_3D(const int z = at.plane * STRIDE_D - PADDING_D + r / KERNEL_H * DILATION_D;)
    // No branch: for a row outside x the loop over the channels is empty.
    if (IN_3D(z < 0 || z >= g.depth ||) y < 0 || y >= g.height) channels = 0;
    const long long x_step = g.x_step(), out_step = g.out_step();
    x += g.x_row(IN_3D(z,) y) + at.column * STRIDE_W;
#pragma unroll AT_ONCE
    for (int c = 0; c < channels; ++c, x += x_step, grad += out_step) {
        ACCUM slope[COLUMNS], stretch[window::SPAN];
        load_run<VECTOR_OUT, COLUMNS>(grad, at.column, 0, g.out_w, slope);
        load_run<VECTOR_X, window::SPAN, false, window::INSIDE>(x, at.column * STRIDE_W,
                                                                window::BEGIN, g.width, stretch);
        UNROLL(t, TAPS)
            if (part + t < KERNEL_W)
                UNROLL(e, COLUMNS)
                    sum[t][e] += slope[e] * stretch[window::seen(part + t, e)];
    }
}
