// out[n,c,i,j] = sum over (u,v) of kernel[n,g,u,v,i,j] * x[n,c,i*sh+u*dh-ph,j*sw+v*dw-pw]
//
// A thread owns COLUMNS columns of one row of CHANNELS channels of a group. Row of taps by row of
// taps it loads the kernel values once, and then for each channel the stretch of x that they see.

// The stretch of a row of x that all taps see: it starts LEAD elements early, to be aligned.
constexpr int LEAD = (VECTOR_X - PAD_W % VECTOR_X) % VECTOR_X;
constexpr int SPAN =
    round_up(LEAD + (COLUMNS - 1) * STRIDE_W + (KERNEL_W - 1) * DILATION_W + 1, VECTOR_X);

extern "C" __global__ void __launch_bounds__(BLOCK)
forward(const SCALAR* __restrict__ x, const SCALAR* __restrict__ kernel, SCALAR* __restrict__ out,
        Geometry g)
{
    const int per_group = g.channels / g.groups;
    const int parts = (per_group + CHANNELS - 1) / CHANNELS;
    const Place at = place(g.out_h, g.out_w);
    const index_t group = at.plane / parts;  // counts (batch, group)
    if (group >= index_t(g.batch) * g.groups) return;
    const int begin = int(at.plane % parts) * CHANNELS;
    const int channels = RAGGED ? min(CHANNELS, per_group - begin) : CHANNELS;

    const long long x_plane = (long long)g.height * g.width;
    const long long out_plane = (long long)g.out_h * g.out_w;
    const long long first_channel = (long long)group * per_group + begin;
    const long long out_row = (long long)at.row * g.out_w;
    x += first_channel * x_plane;
    out += first_channel * out_plane + out_row;
    kernel += (long long)group * (KERNEL_H * KERNEL_W) * out_plane + out_row;

    const int top = at.row * STRIDE_H - PAD_H;
    const int left = at.column * STRIDE_W - PAD_W - LEAD;
    ACCUM sum[CHANNELS][COLUMNS] = {};

#pragma unroll 1
    for (int u = 0; u < KERNEL_H; ++u) {
        const int y = top + u * DILATION_H;
        if (y < 0 || y >= g.height) continue;
        const SCALAR* const x_row = x + (long long)y * g.width;
        const SCALAR* const kernel_row = kernel + u * KERNEL_W * out_plane;
#pragma unroll
        for (int part = 0; part < KERNEL_W; part += TAPS) {
            ACCUM tap[TAPS][COLUMNS];
#pragma unroll
            for (int t = 0; t < TAPS; ++t)
                if (part + t < KERNEL_W)
                    load_run<VECTOR_OUT, COLUMNS>(kernel_row + (part + t) * out_plane, at.column,
                                                  g.out_w, tap[t]);
#pragma unroll
            for (int c = 0; c < CHANNELS; ++c) {
                if (c >= channels) break;
                ACCUM seen[SPAN];
                load_run<VECTOR_X, SPAN>(x_row + c * x_plane, left, g.width, seen);
#pragma unroll
                for (int t = 0; t < TAPS; ++t)
                    if (part + t < KERNEL_W)
#pragma unroll
                        for (int e = 0; e < COLUMNS; ++e)
                            sum[c][e] +=
                                tap[t][e] * seen[LEAD + e * STRIDE_W + (part + t) * DILATION_W];
            }
        }
    }
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) {
        if (c >= channels) break;
        store_run<VECTOR_OUT, COLUMNS>(out + c * out_plane, at.column, g.out_w, sum[c]);
    }
}
