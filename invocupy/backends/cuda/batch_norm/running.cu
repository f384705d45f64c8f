#include "cuda.cuh"
// Running moments: a thread a channel takes a share `momentum` of the batch's, of which the
// variance is made unbiased by a factor.

extern "C" __global__ void __launch_bounds__(BLOCK)
running(InAccum old_mean, InAccum old_var, InAccum mean, InAccum var, OutAccum new_mean,
        OutAccum new_var, ACCUM momentum, ACCUM unbiased, int channels)
{
    const index_t c = thread_index();
    if (c >= channels) return;
    const ACCUM keep = 1 - momentum;
    new_mean[c] = keep * old_mean[c] + momentum * mean[c];
    new_var[c] = keep * old_var[c] + momentum * (var[c] * unbiased);
}
