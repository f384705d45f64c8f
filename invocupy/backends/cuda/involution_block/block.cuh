#include "moments.cuh"
#include "spread/spread.cuh"
// What the kernels of an involution block share. The algebra is in invocupy/ops/block.py.
//
// CHANNELS, HIDDEN and REDUCED are the channels of x, of the hidden layer (which exists in
// registers only) and of `reduced`, from which the kernel is computed. Arrays are (N, channels, H,
// W); VECTOR divides H*W, and W in involve.cu.

constexpr int GROUP = HIDDEN / GROUPS;         // hidden channels of a group
constexpr int WINDOW = KERNEL_H * KERNEL_W;    // taps
constexpr int SHARES = GROUPS * CHANNELS;      // of `shares`: CHANNELS per group
constexpr int REACH_H = KERNEL_H / 2 * DILATION_H, REACH_W = KERNEL_W / 2 * DILATION_W;

// Offsets in `stats`, behind mean and covariance of x: mean and variance of each of the three norms.
constexpr int MEAN_1 = COVARIANCE + PAIRS, VAR_1 = MEAN_1 + HIDDEN;
constexpr int MEAN_2 = VAR_1 + HIDDEN, VAR_2 = MEAN_2 + REDUCED;
constexpr int MEAN_3 = VAR_2 + REDUCED, VAR_3 = MEAN_3 + CHANNELS;

// The sum of a column of partial sums, in all lanes of the warp.
__device__ __forceinline__ ACCUM column_sum(const ACCUM* column, int rows)
{
    ACCUM sum = 0;
    for (int row = threadIdx.x % 32; row < rows; row += 32) sum += column[row];
    return warp_sum(sum);
}

// The moments of a channel, from partial[mean, squares][row]. Each row is of `full` values (the
// last may be of fewer), all rows together of `count`. Lane 0 has the result.
__device__ __forceinline__ Moments column_moments(const ACCUM* mean, const ACCUM* squares, int rows,
                                                  int full, long long count)
{
    Moments sum = {0, 0, 0};
    for (int row = threadIdx.x % 32; row < rows; row += 32)
        sum.add({ACCUM(min((long long)full, count - (long long)row * full)), mean[row], squares[row]});
    sum.add_lanes();
    return sum;
}
