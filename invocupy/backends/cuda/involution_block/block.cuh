#include "moments.cuh"
// What the kernels of an involution block share. The algebra is in invocupy/ops/block.py.
//
// CHANNELS, HIDDEN and REDUCED are the channels of x, of the hidden layer (which exists in
// registers only) and of `reduced`, from which the kernel is computed. Arrays are (N, channels, H,
// W); VECTOR divides H*W, and W in involve.cu. Sums over all pixels take two stages: each block
// writes a row of partial sums, and the kernels that need the sum add up the rows in order.

constexpr int WARPS = BLOCK / 32;
constexpr int GROUP = HIDDEN / GROUPS;         // hidden channels of a group
constexpr int WINDOW = KERNEL_H * KERNEL_W;    // taps
constexpr int SHARES = GROUPS * CHANNELS;      // of `shares`: CHANNELS per group
constexpr int PAIRS = CHANNELS * CHANNELS;
constexpr int REACH_H = KERNEL_H / 2 * DILATION_H, REACH_W = KERNEL_W / 2 * DILATION_W;

// Offsets in `stats`: mean and covariance of x, then mean and variance of each of the three norms.
constexpr int CENTER = 0, COVARIANCE = CHANNELS;
constexpr int MEAN_1 = COVARIANCE + PAIRS, VAR_1 = MEAN_1 + HIDDEN;
constexpr int MEAN_2 = VAR_1 + HIDDEN, VAR_2 = MEAN_2 + REDUCED;
constexpr int MEAN_3 = VAR_2 + REDUCED, VAR_3 = MEAN_3 + CHANNELS;

__device__ __forceinline__ ACCUM inverse_of(ACCUM var, ACCUM eps) { return 1 / sqrt(var + eps); }

// Sums over the threads of a block; all of them can read the totals in sum[0 .. COUNT).
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

// Count, means, and sums of products of distances from the means; they combine as Moments do.
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

    // Combines the lanes of a warp; all lanes have the result.
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

// The first norm: norm(expand(x)) = first @ (x - center) + offset, with first = scale * expand.
struct First {
    ACCUM inverse, scale, mean, var;

    // By the moments of the batch, which follow from those of x.
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
