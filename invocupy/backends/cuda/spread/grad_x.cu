#include "spread/spread.cuh"
// The gradient of x: of the residual path, through the hidden layer (SLICES parts), and through the
// moments of the first norm, matrix @ (x - center) + constant. A thread has VECTOR pixels.

extern "C" __global__ void __launch_bounds__(BLOCK)
grad_x(In grad, In x, In parts, In expand, InAccum stats, InAccum more, Out out, int batch,
       int per_plane)
{
    __shared__ ACCUM sum[WARPS * (PAIRS + CHANNELS)];
    ACCUM value[PAIRS + CHANNELS] = {};
    for (int d = threadIdx.x; d < HIDDEN; d += BLOCK) {
        ACCUM w[CHANNELS];
        UNROLL(c, CHANNELS) {
            w[c] = widen(expand[d * CHANNELS + c]);
            value[PAIRS + c] += w[c] * more[HIDDEN + d];
        }
        UNROLL(k, PAIRS) value[k] += w[k / CHANNELS] * w[k % CHANNELS] * more[d];
    }
    block_sum(value, sum);
    const index_t vector = thread_index();
    if (vector >= index_t(batch) * per_plane) return;
    const long long image = vector / per_plane, plane = (long long)per_plane * VECTOR;
    const long long at = vector % per_plane * VECTOR;
    ACCUM in[CHANNELS][VECTOR];
    UNROLL(c, CHANNELS) {
        load<VECTOR>(x + (image * CHANNELS + c) * plane + at, in[c]);
        UNROLL(k, VECTOR) in[c][k] -= stats[CENTER + c];
    }
    UNROLL(c, CHANNELS) {
        const long long here = (image * CHANNELS + c) * plane + at;
        ACCUM result[VECTOR];
        load<VECTOR>(grad + here, result);
        UNROLL(s, SLICES) {
            ACCUM share[VECTOR];
            load<VECTOR>(parts + s * (batch * CHANNELS * plane) + here, share);
            UNROLL(k, VECTOR) result[k] += share[k];
        }
        UNROLL(k, VECTOR) {
            result[k] += sum[PAIRS + c];
            UNROLL(j, CHANNELS) result[k] += sum[c * CHANNELS + j] * in[j][k];
        }
        store<VECTOR>(out + here, result);
    }
}
