#include "involution_block/forward.cuh"
// reduced = reduce @ h + bias, and for each group shares = (its columns of project) @ (its part of
// h), where h = relu(norm(expand(x))) stays in registers. A thread has VECTOR pixels.
//
// The moments of the norm follow from `partial` (the rows of spread.cu), and block 0 writes them to
// stats. Each block writes the mean and the sum of squared distances of its part of `reduced` to
// moments[value][block].

extern "C" __global__ void __launch_bounds__(BLOCK)
perceive(In x, InAccum partial, In expand, In expand_bias, In gamma, In beta, In reduce,
         In reduce_bias, In project, Out reduced, Out shares, OutAccum stats, OutAccum moments,
         ACCUM eps, int batch, int per_plane, int rows)
{
    __shared__ __align__(16) ACCUM weights[HIDDEN][ROW];
    __shared__ ACCUM sum[WARPS * REDUCED];
    ACCUM center[CHANNELS] = {}, covariance[PAIRS] = {};
    collect(partial, rows, center, covariance, stats);
    fill(weights, expand, beta, reduce, project,
         [&](int d, const ACCUM (&w)[CHANNELS], ACCUM&) {
             const First norm(w, widen(expand_bias[d]), widen(gamma[d]), center, covariance, eps);
             if (blockIdx.x == 0) {
                 stats[MEAN_1 + d] = norm.mean;
                 stats[VAR_1 + d] = norm.var;
             }
             return norm.scale;
         });
    __syncthreads();

    const index_t vector = thread_index();
    const bool inside = vector < index_t(batch) * per_plane;
    const long long image = vector / per_plane, plane = (long long)per_plane * VECTOR;
    const long long at = vector % per_plane * VECTOR;
    ACCUM in[CHANNELS][VECTOR] = {}, out[REDUCED][VECTOR];
    if (inside)
        UNROLL(c, CHANNELS) load<VECTOR>(x + (image * CHANNELS + c) * plane + at, in[c]);
    UNROLL(c, CHANNELS) UNROLL(k, VECTOR) in[c][k] -= center[c];
    UNROLL(f, REDUCED) UNROLL(k, VECTOR) out[f][k] = widen(reduce_bias[f]);
#pragma unroll 1
    for (int g = 0; g < GROUPS; ++g) {
        ACCUM share[CHANNELS][VECTOR] = {};
#pragma unroll 1
        for (int d = g * GROUP; d < (g + 1) * GROUP; ++d) {
            ACCUM w[ROW], h[VECTOR];
            UNROLL(i, ROW) w[i] = weights[d][i];
            activate(w, in, h);
            UNROLL(k, VECTOR) {
                UNROLL(f, REDUCED) out[f][k] += w[CHANNELS + 1 + f] * h[k];
                UNROLL(c, CHANNELS) share[c][k] += w[CHANNELS + 1 + REDUCED + c] * h[k];
            }
        }
        if (inside)
            UNROLL(c, CHANNELS)
                store<VECTOR>(shares + ((image * GROUPS + g) * CHANNELS + c) * plane + at, share[c]);
    }
    if (inside)
        UNROLL(f, REDUCED) store<VECTOR>(reduced + (image * REDUCED + f) * plane + at, out[f]);

    const index_t first = index_t(blockIdx.x) * BLOCK, vectors = index_t(batch) * per_plane;
    const ACCUM count = ACCUM(min(index_t(BLOCK), vectors - first)) * VECTOR;
    ACCUM value[REDUCED];
    UNROLL(f, REDUCED) {
        value[f] = 0;
        UNROLL(k, VECTOR) value[f] += inside ? out[f][k] : ACCUM(0);
    }
    block_sum(value, sum);
    ACCUM middle[REDUCED];
    UNROLL(f, REDUCED) {
        middle[f] = sum[f] / count;
        value[f] = 0;
        UNROLL(k, VECTOR) {
            const ACCUM distance = inside ? out[f][k] - middle[f] : ACCUM(0);
            value[f] += distance * distance;
        }
    }
    block_sum(value, sum);
    UNROLL(f, REDUCED) {
        if (threadIdx.x != f % BLOCK) continue;
        moments[f * gridDim.x + blockIdx.x] = middle[f];
        moments[(REDUCED + f) * gridDim.x + blockIdx.x] = sum[f];
    }
}
