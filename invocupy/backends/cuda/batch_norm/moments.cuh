#include "channel.cuh"
// All values are taken as distances from one of their own, the first: where the mean is far from
// zero, that keeps the digits in which the values differ.
__device__ __forceinline__ ACCUM pivot_of(const SCALAR* x, int channel, int per_plane)
{
    const ACCUM first = ACCUM(x[(long long)channel * per_plane * VECTOR]);
    return first - first == 0 ? first : ACCUM(0);  // not an infinity, and not NaN
}

// Mean and sum of squared distances from it, of a number of elements. Two of these combine without
// cancellation, however far the mean is from zero (Chan, Golub and LeVeque 1979).
struct Moments {
    ACCUM count, mean, squares;

    __device__ __forceinline__ void add(const Moments& other)
    {
        const ACCUM total = count + other.count;
        if (other.count == 0) return;
        const ACCUM distance = other.mean - mean, part = other.count / total;
        mean += distance * part;
        squares += other.squares + distance * distance * (count * part);
        count = total;
    }

    // All lanes in lane 0.
    __device__ __forceinline__ void add_lanes()
    {
#pragma unroll
        for (int step = 16; step > 0; step /= 2)
            add({__shfl_down_sync(0xffffffffu, count, step),
                 __shfl_down_sync(0xffffffffu, mean, step),
                 __shfl_down_sync(0xffffffffu, squares, step)});
    }
};
