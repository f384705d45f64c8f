#include "spread/spread.cuh"
// Second stage of the sums of grad_expand, one block per hidden channel: gradients of expand and of
// the parameters of its norm. AT_ONCE rows of `partial` are read at a time.

constexpr int SUMS = CHANNELS + 1, AT_ONCE = BLOCK / SUMS;

KERNEL(BLOCK) merge_expand(InAccum partial, In weight, In gamma, InAccum stats, Out grad_weight,
    Out grad_bias, Out grad_gamma, Out grad_beta, OutAccum more, ACCUM eps, int batch, int plane,
    int rows)
{
    __shared__ ACCUM part[AT_ONCE][SUMS];
    const int k = threadIdx.x % SUMS, first = threadIdx.x / SUMS;
    if (first < AT_ONCE) {
        ACCUM sum = 0;
        for (int row = first; row < rows; row += AT_ONCE)
            sum += partial[((long long)row * HIDDEN + blockIdx.x) * SUMS + k];
        part[first][k] = sum;
    }
    __syncthreads();
    if (first == 0)
        for (int i = 1; i < AT_ONCE; ++i) part[0][k] += part[i][k];
    __syncthreads();
    if (threadIdx.x == 0)
        back(blockIdx.x, part[0], part[0][CHANNELS], ACCUM(plane) * batch, weight, gamma, stats, eps,
             grad_weight, grad_bias, grad_gamma, grad_beta, more);
}
