#include "involution_block/block.cuh"
// Second stage of the moments of `reduced`: one warp per channel.

extern "C" __global__ void __launch_bounds__(BLOCK)
merge(InAccum moments, OutAccum stats, int rows, int full, int batch, int plane)
{
    const int f = thread_index() / 32;
    if (f >= REDUCED) return;
    const Moments sum = column_moments(moments + f * rows, moments + (REDUCED + f) * rows, rows,
                                       full, (long long)batch * plane);
    if (threadIdx.x % 32 == 0) {
        stats[MEAN_2 + f] = sum.mean;
        stats[VAR_2 + f] = sum.squares / sum.count;
    }
}
