#include "involution/grad_kernel.cuh"
// The gradients of the weight and bias from which the kernel is computed:
// grad_weight[k,f] = sum over n,i,j of grad_kernel[n,k,i,j] * features[n,f,i,j], and grad_bias[k]
// the same with 1 for the features.
//
// Two stages, so that the sums are the same each time. In the first, a warp has one tap row of a
// group, FEATURES features and a slice of all strips of COLUMNS columns; it sums in registers, then
// over its lanes, and writes partial[slice][k][f], with the bias at f = count. The second,
// sum_slices.cu, adds up the slices in order.

constexpr int RESIDENT = TAPS <= 4 ? 4 : sizeof(ACCUM) == 8 ? 2 : 3;
KERNEL(BLOCK, RESIDENT) grad_weight(In grad, In x, In features, OutAccum partial, Geometry g,
    int count, int slices)
{
    const int lane = threadIdx.x % 32;
    index_t rest = thread_index() / 32;
    const int r = int(rest % TAP_ROWS);
    rest /= TAP_ROWS;
    const int shares = (count - 1) / FEATURES + 1;
    const int begin = int(rest % shares) * FEATURES;
    rest /= shares;
    const int group = int(rest % g.groups);
    const index_t slice = rest / g.groups;
    if (slice >= slices) return;

    const int per_group = g.per_group();
    const long long x_step = g.x_step(), step = g.out_step();
    const index_t strips =
        index_t((g.out_w - 1) / COLUMNS + 1) * g.out_h IN_3D(* g.out_d) * g.batch;

#pragma unroll
    for (int part = 0; part < KERNEL_W; part += TAPS) {
        ACCUM sum[TAPS][FEATURES] = {}, bias_sum[TAPS] = {};
#pragma unroll 1
        for (index_t strip = slice * 32 + lane; strip < strips; strip += index_t(slices) * 32) {
            const Place at = place(strip, 1, IN_3D(g.out_d,) g.out_h, g.out_w);
            const long long image = at.unit;
            const long long channel = image * g.channels + (long long)group * per_group;
            const long long offset = g.out_offset(at);
            ACCUM slope[TAPS][COLUMNS];
            grad_taps<4>(grad + channel * step + offset, x + channel * x_step, g, per_group,
                         at, r, part, slope);
            UNROLL(t, TAPS)
                UNROLL(e, COLUMNS) {
                    // Past the end of the row, slope is 0 times a value that may be infinite.
                    if (e >= VECTOR_OUT && at.column + e >= g.out_w) slope[t][e] = 0;
                    bias_sum[t] += slope[t][e];
                }
            const SCALAR* from = features + (image * count + begin) * step + offset;
            UNROLL(f, FEATURES) {
                ACCUM feature[COLUMNS];
                load_run<VECTOR_OUT, COLUMNS>(from, at.column, 0, g.out_w, feature);
                // No branch, so that the loads of several features overlap. Past the last feature
                // it is read again, for sums that are not stored.
                from += begin + f + 1 < count ? step : 0;
                UNROLL(t, TAPS)
                    UNROLL(e, COLUMNS) sum[t][f] += slope[t][e] * feature[e];
            }
        }

        UNROLL(t, TAPS) {
            if (part + t >= KERNEL_W) continue;
            const long long k = ((long long)group * TAP_ROWS + r) * KERNEL_W + part + t;
            ACCUM* const to =
                partial + ((long long)slice * g.groups * (TAP_ROWS * KERNEL_W) + k) * (count + 1);
            UNROLL(f, FEATURES) {
                const ACCUM total = warp_sum(sum[t][f]);
                if (lane == 0 && begin + f < count) to[begin + f] = total;
            }
            const ACCUM total = warp_sum(bias_sum[t]);
            if (lane == 0 && begin == 0) to[count] = total;
        }
    }
}
