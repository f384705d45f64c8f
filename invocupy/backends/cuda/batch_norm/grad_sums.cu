#include "channel.cuh"
// The two sums over each channel that the gradients need: of h and of h * (x - mean), where h is
// grad, or 0 where MASKED and not out > 0.

// The sums of one slice.
KERNEL(BLOCK) grad_sums(In grad, In x, In out, InAccum mean, OutAccum partial, int batch,
    int channels, int per_plane, int slices)
{
    const Slice mine = slice_of(batch, channels, per_plane, slices);
    if (mine.of.channel >= channels) return;
    const ACCUM centre = mean[mine.of.channel];
    ACCUM sum[VECTOR] = {}, sum_x[VECTOR] = {};
#pragma unroll 2
    for (index_t vector = mine.begin; vector < mine.end; vector += 32) {
        const long long at = mine.of.offset(vector);
        ACCUM h[VECTOR], value[VECTOR], mask[VECTOR];
        load<VECTOR>(grad + at, h);
        load<VECTOR>(x + at, value);
        if (MASKED) load<VECTOR>(out + at, mask);
        UNROLL(k, VECTOR) {
            if (MASKED && !(mask[k] > 0)) h[k] = 0;
            sum[k] += h[k];
            sum_x[k] += h[k] * (value[k] - centre);
        }
    }
#pragma unroll
    for (int k = 1; k < VECTOR; ++k) {
        sum[0] += sum[k];
        sum_x[0] += sum_x[k];
    }
    const ACCUM total = warp_sum(sum[0]), total_x = warp_sum(sum_x[0]);
    if (threadIdx.x % 32 == 0) {
        const long long at = (long long)mine.of.channel * slices + mine.slice;
        partial[at] = total;
        partial[(long long)channels * slices + at] = total_x;
    }
}

// One warp per row of `partial`: the first `channels` rows give sum_grad, the others sum_grad_x.
KERNEL(BLOCK) merge_sums(InAccum partial, OutAccum sum_grad, OutAccum sum_grad_x, int channels,
    int slices)
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
