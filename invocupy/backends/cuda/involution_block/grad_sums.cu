#include "involution_block/block.cuh"
// First stage of the sums for the gradient of the last norm: of h and h * (projected - mean), where
// h is grad, or 0 where the ReLU gave 0. Each block writes a row of partial[value][block].

extern "C" __global__ void __launch_bounds__(BLOCK)
grad_sums(In grad, In projected, In gamma, In beta, InAccum stats, OutAccum partial, ACCUM eps,
          int batch, int per_plane)
{
    __shared__ ACCUM sum[WARPS * 2 * CHANNELS];
    const index_t vector = thread_index();
    ACCUM value[2 * CHANNELS] = {};
    if (vector < index_t(batch) * per_plane) {
        const long long image = vector / per_plane, plane = (long long)per_plane * VECTOR;
        UNROLL(c, CHANNELS) {
            const long long at = (image * CHANNELS + c) * plane + vector % per_plane * VECTOR;
            const ACCUM mean = stats[MEAN_3 + c];
            const ACCUM scale = widen(gamma[c]) * inverse_of(stats[VAR_3 + c], eps);
            const ACCUM shift = widen(beta[c]) - mean * scale;
            ACCUM h[VECTOR], z[VECTOR];
            load<VECTOR>(grad + at, h);
            load<VECTOR>(projected + at, z);
            UNROLL(k, VECTOR) {
                if (RELU && !(scale * z[k] + shift > 0)) h[k] = 0;
                value[c] += h[k];
                value[CHANNELS + c] += h[k] * (z[k] - mean);
            }
        }
    }
    block_sum(value, sum);
    for (int k = threadIdx.x; k < 2 * CHANNELS; k += BLOCK)
        partial[k * gridDim.x + blockIdx.x] = sum[k];
}
