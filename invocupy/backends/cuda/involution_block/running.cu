#include "involution_block/block.cuh"
// New running statistics of the three norms: (1 - momentum) * old + momentum * that of the batch,
// with the unbiased variance; and the number of batches so far. One thread per channel. The new
// arrays may be the old ones.

__device__ __forceinline__ void run(int k, int size, const ACCUM* old_mean, const ACCUM* old_var,
                                    const long long* old_count, ACCUM* mean, ACCUM* var,
                                    long long* count, const ACCUM* of_mean, const ACCUM* of_var,
                                    ACCUM momentum, ACCUM unbiased)
{
    if (k == 0) *count = *old_count + 1;
    if (k >= size) return;
    mean[k] = (1 - momentum) * old_mean[k] + momentum * of_mean[k];
    var[k] = (1 - momentum) * old_var[k] + momentum * (of_var[k] * unbiased);
}

extern "C" __global__ void __launch_bounds__(BLOCK)
running(InAccum stats, const ACCUM* mean_1, const ACCUM* var_1, const long long* count_1, const ACCUM* mean_2,
        const ACCUM* var_2, const long long* count_2, const ACCUM* mean_3, const ACCUM* var_3,
        const long long* count_3, ACCUM* new_mean_1, ACCUM* new_var_1, long long* new_count_1,
        ACCUM* new_mean_2, ACCUM* new_var_2, long long* new_count_2, ACCUM* new_mean_3,
        ACCUM* new_var_3, long long* new_count_3, ACCUM momentum_1, ACCUM momentum_2,
        ACCUM momentum_3, ACCUM unbiased)
{
    const int k = thread_index();
    run(k, HIDDEN, mean_1, var_1, count_1, new_mean_1, new_var_1, new_count_1, stats + MEAN_1,
        stats + VAR_1, momentum_1, unbiased);
    run(k, REDUCED, mean_2, var_2, count_2, new_mean_2, new_var_2, new_count_2, stats + MEAN_2,
        stats + VAR_2, momentum_2, unbiased);
    run(k, CHANNELS, mean_3, var_3, count_3, new_mean_3, new_var_3, new_count_3, stats + MEAN_3,
        stats + VAR_3, momentum_3, unbiased);
}
