#include "involution/involution.cuh"
// grad_kernel[n,g,u,v,i,j] = sum over the group's channels c of
//     grad[n,c,i,j] * x[n,c,i*sh+u*dh-ph,j*sw+v*dw-pw]

// One tap row (or a part of it) at COLUMNS columns: sum[t][e] becomes the gradient of the kernel
// value of tap (u, part + t) at column + e; past the end of the row it is of no use. `grad` and `x`
// start at the group's first channel, `grad` at the row and column. AT_ONCE channels are loaded
// together.
template <int AT_ONCE>
__device__ __forceinline__ void grad_taps(const SCALAR* grad, const SCALAR* x, const Geometry& g,
                                          int channels, int row, int column, int u, int part,
                                          ACCUM (&sum)[TAPS][COLUMNS])
{
    UNROLL(t, TAPS)
        UNROLL(e, COLUMNS) sum[t][e] = ACCUM(0);
    const int y = row * STRIDE_H - PAD_H + u * DILATION_H;
    // No branch: of a row outside of x nothing is read, as if there were no channels.
    if (y < 0 || y >= g.height) channels = 0;
    const long long x_plane = g.x_plane(), out_plane = g.out_plane();
    x += (long long)y * g.width + column * STRIDE_W;
#pragma unroll AT_ONCE
    for (int c = 0; c < channels; ++c, x += x_plane, grad += out_plane) {
        ACCUM slope[COLUMNS], stretch[window::SPAN];
        load_run<VECTOR_OUT, COLUMNS>(grad, column, 0, g.out_w, slope);
        load_run<VECTOR_X, window::SPAN, false, window::INSIDE>(x, column * STRIDE_W,
                                                                window::BEGIN, g.width, stretch);
        UNROLL(t, TAPS)
            if (part + t < KERNEL_W)
                UNROLL(e, COLUMNS)
                    sum[t][e] += slope[e] * stretch[window::seen(part + t, e)];
    }
}
