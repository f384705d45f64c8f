// Running moments: a thread a channel takes a share `momentum` of the batch's, of which the
// variance is made unbiased by a factor.

extern "C" __global__ void __launch_bounds__(BLOCK)
running(const ACCUM* __restrict__ old_mean, const ACCUM* __restrict__ old_var,
        const ACCUM* __restrict__ mean, const ACCUM* __restrict__ var,
        ACCUM* __restrict__ new_mean, ACCUM* __restrict__ new_var, ACCUM momentum, ACCUM unbiased,
        int channels)
{
    const index_t c = index_t(blockIdx.x) * BLOCK + threadIdx.x;
    if (c >= channels) return;
    const ACCUM keep = 1 - momentum;
    new_mean[c] = keep * old_mean[c] + momentum * mean[c];
    new_var[c] = keep * old_var[c] + momentum * (var[c] * unbiased);
}
