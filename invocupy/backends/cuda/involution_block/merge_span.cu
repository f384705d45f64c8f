#include "involution_block/block.cuh"
// Second stage of the sums of grad_involve: a block has 32 columns of `partial`, a warp every
// WARPS-th row. It gives the gradients of span, its bias and the norm; grad_perceive reads `sums`.

constexpr int COLUMNS = REDUCED + 1, TAPS = GROUPS * WINDOW, ALL = TAPS * COLUMNS + 2 * REDUCED;

extern "C" __global__ void __launch_bounds__(BLOCK)
merge_span(InAccum partial, InAccum stats, Out grad_span, Out grad_span_bias, Out grad_gamma,
           Out grad_beta, Out grad_reduce_bias, OutAccum sums, ACCUM eps, int rows)
{
    __shared__ ACCUM part[WARPS][32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, column = blockIdx.x * 32 + lane;
    ACCUM sum = 0;
    if (column < ALL)
        for (int row = warp; row < rows; row += WARPS) sum += partial[(long long)row * ALL + column];
    part[warp][lane] = sum;
    __syncthreads();
    if (warp != 0 || column >= ALL) return;
    for (int w = 1; w < WARPS; ++w) sum += part[w][lane];
    if (column < TAPS * COLUMNS) {
        const int tap = column / COLUMNS, f = column % COLUMNS;
        if (f < REDUCED)
            grad_span[tap * REDUCED + f] = narrow(sum);
        else
            grad_span_bias[tap] = narrow(sum);
        return;
    }
    const int k = column - TAPS * COLUMNS;
    sums[k] = sum;
    if (k < REDUCED) {
        grad_beta[k] = narrow(sum);
        grad_reduce_bias[k] = narrow(0);  // the norm subtracts the bias
    } else {
        grad_gamma[k - REDUCED] = narrow(sum * inverse_of(stats[VAR_2 + k - REDUCED], eps));
    }
}
