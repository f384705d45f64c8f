#include "moments.cuh"
// What the kernels of an involution block share. The algebra is in invocupy/ops/block.py.
//
// CHANNELS is the width of the stream x, HIDDEN that of the hidden layer, which exists in registers
// only, REDUCED that of what the kernel is made from. Arrays are (N, channels, H, W); VECTOR divides
// W. Sums over all pixels take two stages: each block writes a row of partial sums, and those that
// need the sum add up the rows, in their order.

constexpr int WARPS = BLOCK / 32;
constexpr int GROUP = HIDDEN / GROUPS;         // hidden channels of a group
constexpr int WINDOW = KERNEL_H * KERNEL_W;    // taps
constexpr int SHARES = GROUPS * CHANNELS;      // what project sees, group by group
constexpr int PAIRS = CHANNELS * CHANNELS;
constexpr int REACH_H = KERNEL_H / 2 * DILATION_H, REACH_W = KERNEL_W / 2 * DILATION_W;

// Where the statistics of a block are: moments of x, and mean and variance of the three norms.
constexpr int CENTER = 0, COVARIANCE = CHANNELS;
constexpr int MEAN_1 = COVARIANCE + PAIRS, VAR_1 = MEAN_1 + HIDDEN;
constexpr int MEAN_2 = VAR_1 + HIDDEN, VAR_2 = MEAN_2 + REDUCED;
constexpr int MEAN_3 = VAR_2 + REDUCED, VAR_3 = MEAN_3 + CHANNELS;

__device__ __forceinline__ ACCUM inverse_of(ACCUM var, ACCUM eps) { return 1 / sqrt(var + eps); }

// Sums over the threads of a block; all of them find the totals in sum[0 .. COUNT).
template <int COUNT>
__device__ __forceinline__ void block_sum(const ACCUM (&value)[COUNT], ACCUM (&sum)[WARPS * COUNT])
{
    __syncthreads();
    UNROLL(k, COUNT) {
        const ACCUM total = warp_sum(value[k]);
        if (threadIdx.x % 32 == 0) sum[threadIdx.x / 32 * COUNT + k] = total;
    }
    __syncthreads();
    for (int k = threadIdx.x; k < COUNT; k += BLOCK)
        for (int warp = 1; warp < WARPS; ++warp) sum[k] += sum[warp * COUNT + k];
    __syncthreads();
}

// The sum of a column of partial sums, for all lanes of a warp.
__device__ __forceinline__ ACCUM column_sum(const ACCUM* column, int rows)
{
    ACCUM sum = 0;
    for (int row = threadIdx.x % 32; row < rows; row += 32) sum += column[row];
    return warp_sum(sum);
}

// Mean and variance of a channel from partial[mean, squares][row]; each row is of `full` values,
// but for the last, and all are of `count`. The result is lane 0's.
__device__ __forceinline__ Moments column_moments(const ACCUM* mean, const ACCUM* squares, int rows,
                                                  int full, long long count)
{
    Moments sum = {0, 0, 0};
    for (int row = threadIdx.x % 32; row < rows; row += 32)
        sum.add({ACCUM(min((long long)full, count - (long long)row * full)), mean[row], squares[row]});
    sum.add_lanes();
    return sum;
}

// Count, means and products of distances from them, of some pixels; they combine as Moments do.
struct Spread {
    ACCUM count, mean[CHANNELS], product[PAIRS];

    __device__ __forceinline__ void add(const Spread& other)
    {
        if (other.count == 0) return;
        const ACCUM total = count + other.count, part = other.count / total, both = count * part;
        ACCUM distance[CHANNELS];
        UNROLL(c, CHANNELS) {
            distance[c] = other.mean[c] - mean[c];
            mean[c] += distance[c] * part;
        }
        UNROLL(k, PAIRS)
            product[k] += other.product[k] + distance[k / CHANNELS] * distance[k % CHANNELS] * both;
        count = total;
    }

    // Of all lanes, for all lanes.
    __device__ __forceinline__ void add_lanes()
    {
#pragma unroll
        for (int step = 16; step > 0; step /= 2) {
            Spread other;
            other.count = __shfl_down_sync(0xffffffffu, count, step);
            UNROLL(c, CHANNELS) other.mean[c] = __shfl_down_sync(0xffffffffu, mean[c], step);
            UNROLL(k, PAIRS) other.product[k] = __shfl_down_sync(0xffffffffu, product[k], step);
            if (threadIdx.x % 32 < step) add(other);
        }
        count = __shfl_sync(0xffffffffu, count, 0);
        UNROLL(c, CHANNELS) mean[c] = __shfl_sync(0xffffffffu, mean[c], 0);
        UNROLL(k, PAIRS) product[k] = __shfl_sync(0xffffffffu, product[k], 0);
    }
};

// The first norm, folded into expand: first @ (x - center) + offset.
struct First {
    ACCUM inverse, scale, mean, var;

    // With the moments of the batch, which follow from those of x.
    __device__ __forceinline__ First(const ACCUM (&weight)[CHANNELS], ACCUM bias, ACCUM gamma,
                                     const ACCUM* center, const ACCUM* covariance, ACCUM eps)
    {
        mean = bias;
        var = 0;
        UNROLL(i, CHANNELS) {
            mean += weight[i] * center[i];
            ACCUM row = 0;
            UNROLL(j, CHANNELS) row += weight[j] * covariance[i * CHANNELS + j];
            var += weight[i] * row;
        }
        var = max(var, ACCUM(0));
        inverse = inverse_of(var, eps);
        scale = gamma * inverse;
    }
};
