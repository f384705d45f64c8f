#include "channel.cuh"
// First stage of the gradient of the bias: partial[slice][channel], the sum of one slice of a
// channel's elements in all images. One warp per sum; its lanes are added up in a fixed order.

KERNEL(BLOCK) sum_planes(In grad, OutAccum partial, int batch, int channels, int per_plane,
    int slices)
{
    const index_t warp = thread_index() / 32;
    const Channel of = {int(warp % channels), channels, per_plane};
    const index_t slice = warp / channels;
    if (slice >= slices) return;
    const index_t vectors = index_t(batch) * per_plane;
    ACCUM sum[VECTOR] = {};
#pragma unroll 4
    for (index_t k = slice * 32 + threadIdx.x % 32; k < vectors; k += index_t(slices) * 32) {
        ACCUM value[VECTOR];
        load<VECTOR, true>(grad + of.offset(k), value);
        UNROLL(e, VECTOR) sum[e] += value[e];
    }
#pragma unroll
    for (int e = 1; e < VECTOR; ++e) sum[0] += sum[e];
    const ACCUM total = warp_sum(sum[0]);
    if (threadIdx.x % 32 == 0) partial[slice * channels + of.channel] = total;
}
