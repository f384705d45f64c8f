#include "involution_block/block.cuh"
// Second stage of the sums of grad_perceive, one block per hidden channel: gradients of reduce,
// project, expand and the parameters of the first norm. `more` gets the two numbers per channel
// from which grad_x computes the gradient through the moments of that norm.

constexpr int SUMS = REDUCED + 2 * CHANNELS + 1;

extern "C" __global__ void __launch_bounds__(BLOCK)
merge_hidden(InAccum partial, In expand, In expand_bias, In gamma, InAccum stats, Out grad_expand,
             Out grad_expand_bias, Out grad_gamma, Out grad_beta, Out grad_reduce, Out grad_project,
             OutAccum more, ACCUM eps, int batch, int plane, int rows)
{
    __shared__ ACCUM part[WARPS][SUMS];
    const int d = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int k = lane; k < SUMS; k += 32) {
        ACCUM sum = 0;
        for (int row = warp; row < rows; row += WARPS)
            sum += partial[((long long)row * HIDDEN + d) * SUMS + k];
        part[warp][k] = sum;
    }
    __syncthreads();
    for (int k = threadIdx.x; k < SUMS; k += BLOCK)
        for (int w = 1; w < WARPS; ++w) part[0][k] += part[w][k];
    __syncthreads();
    for (int f = threadIdx.x; f < REDUCED; f += BLOCK)
        grad_reduce[f * HIDDEN + d] = narrow(part[0][f]);
    if (threadIdx.x != 0) return;
    const ACCUM* const first = &part[0][REDUCED + CHANNELS];
    const ACCUM total = part[0][SUMS - 1], count = ACCUM(plane) * batch;
    ACCUM w[CHANNELS], total_x = 0;
    UNROLL(c, CHANNELS) {
        w[c] = widen(expand[d * CHANNELS + c]);
        total_x += w[c] * first[c];
        grad_project[c * HIDDEN + d] = narrow(part[0][REDUCED + c]);
    }
    const First norm(w, widen(expand_bias[d]), widen(gamma[d]), stats + CENTER, stats + COVARIANCE,
                     eps);
    const ACCUM slope = -norm.scale * norm.inverse * norm.inverse * total_x / count;
    UNROLL(i, CHANNELS) {
        ACCUM row = 0;
        UNROLL(j, CHANNELS) row += w[j] * stats[COVARIANCE + i * CHANNELS + j];
        grad_expand[d * CHANNELS + i] = narrow(norm.scale * first[i] + slope * count * row);
    }
    grad_expand_bias[d] = narrow(0);  // the norm subtracts the bias
    grad_gamma[d] = narrow(total_x * norm.inverse);
    grad_beta[d] = narrow(total);
    more[d] = slope;
    more[HIDDEN + d] = -norm.scale * total / count;
}
