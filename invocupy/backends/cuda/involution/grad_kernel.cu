#include "involution/grad_kernel.cuh"
// The gradient of the kernel, in memory. A thread computes COLUMNS columns of one row of one tap
// row of a group. Several tap rows per thread would save loads, but more threads save more time.

// Whether the threads for the tap rows of one row are neighbours (then they read the same row of
// `grad`, which saves a third of the sectors of narrow accesses), or a whole plane apart. For 8
// columns, and for full-width accesses, measurements decided which is faster.
constexpr bool TOGETHER = COLUMNS == 8 || VECTOR_OUT < COLUMNS;

constexpr int RESIDENT = TAPS * COLUMNS > 32 ? 4 : sizeof(ACCUM) == 8 ? 7 : 8;
KERNEL(BLOCK, RESIDENT) grad_kernel(In grad, In x, Out out, Geometry g)
{
    const int shares = TOGETHER ? TAP_ROWS : 1;
    const Place at = place(thread_index(), shares, IN_3D(g.out_d,) g.out_h, g.out_w);
    const index_t group = TOGETHER ? at.unit : at.unit / TAP_ROWS;  // counts (batch, group)
    const int r = TOGETHER ? at.share : int(at.unit % TAP_ROWS);
    if (group >= index_t(g.batch) * g.groups) return;

    const int per_group = g.per_group();
    const long long step = g.out_step(), offset = g.out_offset(at);
    x += (long long)group * per_group * g.x_step();
    grad += (long long)group * per_group * step + offset;
    out += ((long long)group * TAP_ROWS + r) * KERNEL_W * step + offset;

#pragma unroll
    for (int part = 0; part < KERNEL_W; part += TAPS) {
        ACCUM sum[TAPS][COLUMNS];
        grad_taps<COLUMNS == 8 ? 2 : 1>(grad, x, g, per_group, at, r, part, sum);
        UNROLL(t, TAPS)
            if (part + t < KERNEL_W)
                store_run<VECTOR_OUT, COLUMNS>(out + (part + t) * step, at.column, g.out_w,
                                               sum[t]);
    }
}
