#include "involution/grad_kernel.cuh"
// The gradient of the features from which the kernel is computed:
// grad_features[n,f,i,j] = sum over all k = (g,u,v) of weight[k,f] * grad_kernel[n,k,i,j].
//
// A thread computes COLUMNS columns of one row for FEATURES features. The gradient of the kernel
// exists in its registers only, one tap row at a time.

constexpr int RESIDENT = window::SPAN > 16 ? 3 : TAPS > 4 || DIMS == 3 ? 4 : 5;
KERNEL(BLOCK, RESIDENT) grad_features(In grad, In x, In weight, Out out, Geometry g, int count)
{
    const Place at =
        place(thread_index(), (count - 1) / FEATURES + 1, IN_3D(g.out_d,) g.out_h, g.out_w);
    const long long image = at.unit;
    if (image >= g.batch) return;
    const int begin = at.share * FEATURES;

    const int per_group = g.per_group();
    const long long x_group = (long long)per_group * IN_3D(g.depth *) g.height * g.width;
    const long long step = g.out_step();
    const long long offset = g.out_offset(at);
    x += image * g.groups * x_group;
    grad += image * g.channels * step + offset;
    weight += begin;

    ACCUM sum[FEATURES][COLUMNS] = {};
#pragma unroll 1
    for (int group = 0; group < g.groups; ++group, x += x_group, grad += per_group * step) {
#pragma unroll 1
        for (int r = 0; r < TAP_ROWS; ++r, weight += (long long)KERNEL_W * count) {
#pragma unroll
            for (int part = 0; part < KERNEL_W; part += TAPS) {
                ACCUM slope[TAPS][COLUMNS];
                grad_taps<4>(grad, x, g, per_group, at, r, part, slope);
                UNROLL(t, TAPS) {
                    if (part + t >= KERNEL_W) continue;
                    const SCALAR* const row = weight + (long long)(part + t) * count;
                    ACCUM w[FEATURES];
                    load_run<VECTOR_F, FEATURES>(row, 0, 0, count - begin, w);
                    UNROLL(f, FEATURES)
                        UNROLL(e, COLUMNS) sum[f][e] += w[f] * slope[t][e];
                }
            }
        }
    }
    out += (image * count + begin) * step + offset;
    UNROLL(f, FEATURES)
        if (begin + f < count)
            store_run<VECTOR_OUT, COLUMNS>(out + f * step, at.column, g.out_w, sum[f]);
}
