// The gradient of the kernel, stored. A thread owns COLUMNS columns of one row of `tap_rows` tap
// rows of a group.

extern "C" __global__ void __launch_bounds__(BLOCK)
grad_kernel(const SCALAR* __restrict__ grad, const SCALAR* __restrict__ x,
            SCALAR* __restrict__ out, Geometry g, int tap_rows)
{
    const Place at = place(thread_index(), g.out_h, g.out_w);
    const int shares = (KERNEL_H - 1) / tap_rows + 1;
    const index_t group = at.plane / shares;  // counts (batch, group)
    if (group >= index_t(g.batch) * g.groups) return;
    const int begin = int(at.plane % shares) * tap_rows;
    const int end = min(begin + tap_rows, KERNEL_H);

    const int per_group = g.channels / g.groups;
    const long long plane = (long long)g.out_h * g.out_w;
    const long long out_row = (long long)at.row * g.out_w;
    x += (long long)group * per_group * ((long long)g.height * g.width);
    grad += (long long)group * per_group * plane + out_row;
    out += (long long)group * (KERNEL_H * KERNEL_W) * plane + out_row;

#pragma unroll 1
    for (int u = begin; u < end; ++u) {
#pragma unroll
        for (int part = 0; part < KERNEL_W; part += TAPS) {
            ACCUM sum[TAPS][COLUMNS];
            grad_taps(grad, x, g, per_group, at.row, at.column, u, part, sum);
#pragma unroll
            for (int t = 0; t < TAPS; ++t)
                if (part + t < KERNEL_W)
                    store_run<VECTOR_OUT, COLUMNS>(out + (u * KERNEL_W + part + t) * plane,
                                                   at.column, g.out_w, sum[t]);
        }
    }
}
