#include "channel.cuh"
#include "moments.cuh"
// Mean and variance of each channel, from one pass over x.

// Sums are taken of the distances from the first value of the channel. If the mean is far from
// zero, this keeps the digits in which the values differ.
__device__ __forceinline__ ACCUM pivot_of(const SCALAR* x, int channel, int per_plane)
{
    const ACCUM first = ACCUM(x[(long long)channel * per_plane * VECTOR]);
    return first - first == 0 ? first : ACCUM(0);  // 0 for an infinity or NaN
}

// The moments of one slice.
KERNEL(BLOCK) moments(In x, OutAccum partial, int batch, int channels, int per_plane, int slices)
{
    const Slice mine = slice_of(batch, channels, per_plane, slices);
    if (mine.of.channel >= channels) return;
    const ACCUM pivot = pivot_of(x, mine.of.channel, per_plane);
    Moments sum = {0, 0, 0};
#pragma unroll 4
    for (index_t vector = mine.begin; vector < mine.end; vector += 32) {
        ACCUM value[VECTOR];
        load<VECTOR>(x + mine.of.offset(vector), value);
        Moments few = {VECTOR, 0, 0};
        UNROLL(k, VECTOR) few.mean += value[k] -= pivot;
        few.mean *= ACCUM(1) / VECTOR;
        UNROLL(k, VECTOR)
            few.squares += (value[k] - few.mean) * (value[k] - few.mean);
        sum.add(few);
    }
    sum.add_lanes();
    if (threadIdx.x % 32 == 0) {
        const long long at = (long long)mine.of.channel * slices + mine.slice;
        const long long row = (long long)channels * slices;
        partial[at] = sum.count;
        partial[row + at] = sum.mean;
        partial[2 * row + at] = sum.squares;
    }
}

// One warp combines the slices of a channel.
KERNEL(BLOCK) merge_moments(In x, InAccum partial, OutAccum mean, OutAccum var, int channels,
    int per_plane, int slices)
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
