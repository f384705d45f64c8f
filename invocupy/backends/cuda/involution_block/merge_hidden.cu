#include "involution_block/block.cuh"
// Second stage of the sums of grad_perceive, one block per hidden channel: gradients of reduce,
// project, expand and the parameters of the first norm.

constexpr int SUMS = REDUCED + 2 * CHANNELS + 1;

extern "C" __global__ void __launch_bounds__(BLOCK)
merge_hidden(InAccum partial, In expand, In gamma, InAccum stats, Out grad_expand,
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
    UNROLL(c, CHANNELS) grad_project[c * HIDDEN + d] = narrow(part[0][REDUCED + c]);
    back(d, &part[0][REDUCED + CHANNELS], part[0][SUMS - 1], ACCUM(plane) * batch, expand, gamma, stats,
         eps, grad_expand, grad_expand_bias, grad_gamma, grad_beta, more);
}
