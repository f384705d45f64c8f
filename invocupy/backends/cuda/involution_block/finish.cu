#include "involution_block/block.cuh"
// out = x + norm(projected), or x + relu(norm(projected)) if RELU. Each block combines the partial
// moments of `projected` by itself; block 0 also writes them to stats. A thread has VECTOR pixels.

extern "C" __global__ void __launch_bounds__(BLOCK, 8)
finish(In x, In projected, InAccum moments, In gamma, In beta, Out out, OutAccum stats, ACCUM eps,
       int batch, int per_plane, int rows, int full)
{
    __shared__ ACCUM scale[CHANNELS], shift[CHANNELS];
    const index_t vector = thread_index(), vectors = index_t(batch) * per_plane;
    for (int c = threadIdx.x / 32; c < CHANNELS; c += WARPS) {
        const Moments sum = column_moments(moments + c * rows, moments + (CHANNELS + c) * rows, rows,
                                           full, (long long)vectors * VECTOR);
        if (threadIdx.x % 32 != 0) continue;
        const ACCUM var = sum.squares / sum.count;
        scale[c] = widen(gamma[c]) * inverse_of(var, eps);
        shift[c] = widen(beta[c]) - sum.mean * scale[c];
        if (blockIdx.x == 0) {
            stats[MEAN_3 + c] = sum.mean;
            stats[VAR_3 + c] = var;
        }
    }
    __syncthreads();
    if (vector >= vectors) return;
    const long long image = vector / per_plane, plane = (long long)per_plane * VECTOR;
    UNROLL(c, CHANNELS) {
        const long long at = (image * CHANNELS + c) * plane + vector % per_plane * VECTOR;
        ACCUM old[VECTOR], value[VECTOR];
        load<VECTOR>(x + at, old);
        load<VECTOR>(projected + at, value);
        UNROLL(k, VECTOR) {
            const ACCUM normed = scale[c] * value[k] + shift[c];
            value[k] = old[k] + (RELU && normed < 0 ? ACCUM(0) : normed);
        }
        store<VECTOR>(out + at, value);
    }
}
