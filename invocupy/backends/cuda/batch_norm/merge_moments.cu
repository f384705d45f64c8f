#include "batch_norm/moments.cuh"
// Second stage of mean and variance: a warp puts the slices of a channel together.

extern "C" __global__ void __launch_bounds__(BLOCK)
merge_moments(In x, InAccum partial, OutAccum mean, OutAccum var, int channels, int per_plane,
              int slices)
{
    const index_t channel = thread_index() / 32;
    if (channel >= channels) return;
    const long long row = (long long)channels * slices;
    Moments sum = {0, 0, 0};
    for (int slice = threadIdx.x % 32; slice < slices; slice += 32) {
        const long long at = (long long)channel * slices + slice;
        sum.add({partial[at], partial[row + at], partial[2 * row + at]});
    }
    sum.add_lanes();
    if (threadIdx.x % 32 == 0) {
        mean[channel] = pivot_of(x, channel, per_plane) + sum.mean;
        var[channel] = sum.squares / sum.count;
    }
}
