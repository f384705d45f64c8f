#include "batch_norm/moments.cuh"
// First stage of mean and variance: the moments of one slice of a channel. Reads x once.

extern "C" __global__ void __launch_bounds__(BLOCK)
moments(In x, OutAccum partial, int batch, int channels, int per_plane, int slices)
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
