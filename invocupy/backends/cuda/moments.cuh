#include "cuda.cuh"
// Count, mean, and sum of squared distances from the mean, of some elements. Two of these combine
// without cancellation, however far the mean is from zero (Chan, Golub and LeVeque 1979).
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

    // Combines the lanes of a warp; lane 0 has the result.
    __device__ __forceinline__ void add_lanes()
    {
#pragma unroll
        for (int step = 16; step > 0; step /= 2)
            add({__shfl_down_sync(0xffffffffu, count, step),
                 __shfl_down_sync(0xffffffffu, mean, step),
                 __shfl_down_sync(0xffffffffu, squares, step)});
    }
};
