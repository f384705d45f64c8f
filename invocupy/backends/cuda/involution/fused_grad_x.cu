#include "involution/grad_x.cuh"
// The gradient of x with a kernel that is computed where it is used: grad_x.cuh with
// kernel[k,i,j] = bias[k] + sum over f of weight[k,f] * features[f,i,j], in ACCUM, never stored.

struct Generated {
    const SCALAR* features;  // of the image, at the column `position`
    const SCALAR* weight;    // of the group
    const SCALAR* bias;
    long long step;          // from one feature to the next
    int position, IN_3D(height,) width, count;

    __device__ __forceinline__ void operator()(int r, IN_3D(int d,) int i, int part,
                                               ACCUM (&tap)[TAPS][LIVE]) const
    {
        const SCALAR* const weight_row = weight + (long long)(r * KERNEL_W + part) * count;
        const SCALAR* const feature_row = features + ((long long)IN_3D(d * height +) i) * width;
        UNROLL(t, TAPS)
            UNROLL(l, LIVE)
                tap[t][l] = part + t < KERNEL_W ? widen(bias[r * KERNEL_W + part + t]) : ACCUM(0);
#pragma unroll 1
        for (int f = 0; f < count; f += VECTOR_F) {
            ACCUM w[TAPS][VECTOR_F];
            UNROLL(t, TAPS)
                if (part + t < KERNEL_W) load<VECTOR_F>(weight_row + t * count + f, w[t]);
            UNROLL(k, VECTOR_F) {
                ACCUM feature[window_x::SPAN];
                load_run<VECTOR_OUT, window_x::SPAN, false, window_x::INSIDE>(
                    feature_row + (f + k) * step, position, window_x::BEGIN, width, feature);
                UNROLL(t, TAPS) {
                    if (part + t >= KERNEL_W) continue;
                    UNROLL(l, LIVE)
                        tap[t][l] += w[t][k] *
                                     feature[window_x::first(part + t) - window_x::BEGIN + l];
                }
            }
        }
        // Columns outside the result must give 0, but 0 times an infinite weight is NaN.
        UNROLL(t, TAPS)
            UNROLL(l, LIVE) {
                const int away = window_x::floor_to(window_x::first(part + t) + l, VECTOR_OUT);
                if (!in_row<window_x::INSIDE>(position, away, width)) tap[t][l] = ACCUM(0);
            }
    }
};

constexpr bool MANY = sizeof(ACCUM) == 8 || DILATION_W > 1 || TAPS * LIVE > 16;
constexpr int RESIDENT = MANY ? 0 : TAPS > 3 || DIMS == 3 ? 3 : 4;
KERNEL(BLOCK, RESIDENT) fused_grad_x(In grad, In features, In weight, In bias, Out out, Geometry g,
    int count)
{
    const Place at =
        place(thread_index(), shares_of(g), IN_3D(g.depth,) round_up(g.height, STRIDE_H), g.width);
    const int y = phased_row(at.row, g.height);
    if (at.unit >= index_t(g.batch) * g.groups || y >= g.height) return;
    const int k = int(at.unit % g.groups) * (TAP_ROWS * KERNEL_W);
    const int position = at.column / STRIDE_W;
    features += (long long)(at.unit / g.groups) * count * g.out_step() + position;
    const Generated taps = {features, weight + (long long)k * count, bias + k, g.out_step(),
                            position, IN_3D(g.out_h,) g.out_w, count};
    grad_x_strip(grad, taps, out, g, at, y, share_of(at, g));
}
