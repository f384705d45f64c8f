#include "involution/grad_x.cuh"
// The gradient of x with a kernel that is made where it is used: grad_x.cuh with
// kernel[k,i,j] = bias[k] + sum over f of weight[k,f] * features[f,i,j], in ACCUM, never stored.

struct Generated {
    const SCALAR* features;  // of the image, at the column `position`
    const SCALAR* weight;    // of the group
    const SCALAR* bias;
    long long plane;
    int position, width, count;

    __device__ __forceinline__ void operator()(int u, int i, int part,
                                               ACCUM (&tap)[TAPS][LIVE]) const
    {
        const SCALAR* const weight_row = weight + (long long)(u * KERNEL_W + part) * count;
        const SCALAR* const feature_row = features + (long long)i * width;
        UNROLL(t, TAPS)
            UNROLL(l, LIVE)
                tap[t][l] = part + t < KERNEL_W ? widen(bias[u * KERNEL_W + part + t]) : ACCUM(0);
#pragma unroll 1
        for (int f = 0; f < count; f += VECTOR_F) {
            ACCUM w[TAPS][VECTOR_F];
            UNROLL(t, TAPS)
                if (part + t < KERNEL_W) load<VECTOR_F>(weight_row + t * count + f, w[t]);
            UNROLL(k, VECTOR_F) {
                ACCUM feature[window_x::SPAN];
                load_run<VECTOR_OUT, window_x::SPAN, false, window_x::INSIDE>(
                    feature_row + (f + k) * plane, position, window_x::BEGIN, width, feature);
                UNROLL(t, TAPS) {
                    if (part + t >= KERNEL_W) continue;
                    UNROLL(l, LIVE)
                        tap[t][l] += w[t][k] *
                                     feature[window_x::first(part + t) - window_x::BEGIN + l];
                }
            }
        }
        // Nothing comes from outside of the result, where 0 times an infinite weight is NaN.
        UNROLL(t, TAPS)
            UNROLL(l, LIVE) {
                const int away = window_x::floor_to(window_x::first(part + t) + l, VECTOR_OUT);
                if (!in_row<window_x::INSIDE>(position, away, width)) tap[t][l] = ACCUM(0);
            }
    }
};

// Blocks on a multiprocessor, so many that nothing spills; 0: let the compiler choose.
constexpr int HELD = TAPS * LIVE;
constexpr int RESIDENT = sizeof(ACCUM) == 8 || DILATION_W > 1 || HELD > 16 ? 0 : TAPS > 3 ? 3 : 4;

extern "C" __global__ void __launch_bounds__(BLOCK, RESIDENT)
fused_grad_x(In grad, In features, In weight, In bias, Out out, Geometry g, int count)
{
    const Place at = place(thread_index(), shares_of(g), round_up(g.height, STRIDE_H), g.width);
    const int y = phased_row(at.row, g.height);
    if (at.unit >= index_t(g.batch) * g.groups || y >= g.height) return;
    const int k = int(at.unit % g.groups) * (KERNEL_H * KERNEL_W);
    const int position = at.column / STRIDE_W;
    features += (long long)(at.unit / g.groups) * count * g.out_plane() + position;
    const Generated taps = {features, weight + (long long)k * count, bias + k, g.out_plane(),
                            position, g.out_w, count};
    grad_x_strip(grad, taps, out, g, y, at.column, share_of(at, g));
}
