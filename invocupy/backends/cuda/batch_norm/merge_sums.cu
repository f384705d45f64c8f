#include "channel.cuh"
// Second stage of the sums over a channel: a warp adds up the slices of one row of `partial`, of
// which the first `channels` belong to `sum_grad` and the others to `sum_grad_x`.

extern "C" __global__ void __launch_bounds__(BLOCK)
merge_sums(InAccum partial, OutAccum sum_grad, OutAccum sum_grad_x, int channels, int slices)
{
    const index_t row = thread_index() / 32;
    if (row >= 2 * index_t(channels)) return;
    ACCUM sum = 0;
    for (int slice = threadIdx.x % 32; slice < slices; slice += 32)
        sum += partial[(long long)row * slices + slice];
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) {
        if (row < channels)
            sum_grad[row] = sum;
        else
            sum_grad_x[row - channels] = sum;
    }
}
