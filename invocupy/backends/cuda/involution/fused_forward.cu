#include "involution/forward.cuh"
// The involution with a kernel that is computed where it is used: forward.cuh with
// kernel[k,i,j] = bias[k] + sum over f of weight[k,f] * features[f,i,j], in ACCUM, never stored.

struct Generated {
    static constexpr bool AHEAD = false;

    const SCALAR* features;  // of the image, at the thread's first column
    const SCALAR* weight;    // of the group
    const SCALAR* bias;
    long long step;          // from one feature to the next
    int column, width, count;

    __device__ __forceinline__ void operator()(int r, int part, ACCUM (&tap)[TAPS][COLUMNS]) const
    {
        const SCALAR* const weight_row = weight + (long long)(r * KERNEL_W + part) * count;
        UNROLL(t, TAPS)
            UNROLL(e, COLUMNS)
                tap[t][e] = part + t < KERNEL_W ? widen(bias[r * KERNEL_W + part + t]) : ACCUM(0);
#pragma unroll 1
        for (int f = 0; f < count; f += VECTOR_F) {
            ACCUM feature[VECTOR_F][COLUMNS];
            UNROLL(k, VECTOR_F)
                load_run<VECTOR_OUT, COLUMNS>(features + (f + k) * step, column, 0, width,
                                              feature[k]);
            UNROLL(t, TAPS) {
                if (part + t >= KERNEL_W) continue;
                ACCUM w[VECTOR_F];
                load<VECTOR_F>(weight_row + t * count + f, w);
                UNROLL(k, VECTOR_F)
                    UNROLL(e, COLUMNS) tap[t][e] += w[k] * feature[k][e];
            }
        }
    }
};

constexpr bool MANY = TAPS > 4 || window::SPAN > 12 || (DIMS == 3 && sizeof(ACCUM) == 8);
constexpr int RESIDENT = MANY ? 0 : 3;
KERNEL(BLOCK, RESIDENT) fused_forward(In x, In features, In weight, In bias, Out out, Geometry g,
    int count)
{
    const Place at = place(thread_index(), shares_of(g), IN_3D(g.out_d,) g.out_h, g.out_w);
    if (at.unit >= index_t(g.batch) * g.groups) return;
    const long long step = g.out_step(), image = at.unit / g.groups;
    const int k = int(at.unit % g.groups) * (TAP_ROWS * KERNEL_W);
    const long long offset = g.out_offset(at);
    const Generated taps = {features + image * count * step + offset,
                            weight + (long long)k * count, bias + k, step, at.column, g.out_w,
                            count};
    forward_strip(x, taps, out, g, at, share_of(at, g));
}
