#include "cuda.cuh"
// A 1x1 convolution from few channels to many, `expand`, and the norm after it: mean and variance of
// its HIDDEN channels follow from mean and covariance of the CHANNELS of x. The algebra is in
// invocupy/ops/block.py.
//
// Sums over all pixels take two stages: each block (in spread.cu each warp) writes a row of partial
// sums, and the kernels that need the sum add up the rows in order.

constexpr int WARPS = BLOCK / 32, PAIRS = CHANNELS * CHANNELS;
constexpr int CENTER = 0, COVARIANCE = CHANNELS;  // offsets in `stats`

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
        var = var < 0 ? ACCUM(0) : var;  // NaN stays NaN
        inverse = inverse_of(var, eps);
        scale = gamma * inverse;
    }
};

// Mean and covariance of x, from the rows of spread.cu. Block 0 writes them to stats.
__device__ __forceinline__ void collect(const ACCUM* partial, int rows, ACCUM (&center)[CHANNELS],
                                        ACCUM (&covariance)[PAIRS], ACCUM* stats)
{
    Spread all = {};
    for (int row = threadIdx.x % 32; row < rows; row += 32) {
        Spread one;
        one.count = partial[row];
        UNROLL(c, CHANNELS) one.mean[c] = partial[(1 + c) * rows + row];
        UNROLL(k, PAIRS) one.product[k] = partial[(1 + CHANNELS + k) * rows + row];
        all.add(one);
    }
    all.add_lanes();
    UNROLL(c, CHANNELS) center[c] = all.mean[c];
    UNROLL(k, PAIRS) covariance[k] = all.product[k] / all.count;
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        UNROLL(c, CHANNELS) stats[CENTER + c] = center[c];
        UNROLL(k, PAIRS) stats[COVARIANCE + k] = covariance[k];
    }
}

// Gradients of the parameters of hidden channel d, from sums over all pixels: `total` of the gradient
// of the norm's result, first[c] of that times x[c] - center[c]. `more` gets the two numbers from
// which grad_x.cu computes the gradient through the moments.
__device__ __forceinline__ void back(int d, const ACCUM* first, ACCUM total, ACCUM count,
                                     const SCALAR* expand, const SCALAR* gamma, const ACCUM* stats,
                                     ACCUM eps, SCALAR* grad_expand, SCALAR* grad_expand_bias,
                                     SCALAR* grad_gamma, SCALAR* grad_beta, ACCUM* more)
{
    ACCUM w[CHANNELS], total_x = 0;
    UNROLL(c, CHANNELS) {
        w[c] = widen(expand[d * CHANNELS + c]);
        total_x += w[c] * first[c];
    }
    const First norm(w, 0, widen(gamma[d]), stats + CENTER, stats + COVARIANCE, eps);
    const ACCUM slope = -norm.scale * norm.inverse * norm.inverse * total_x / count;
    UNROLL(i, CHANNELS) {
        ACCUM row = 0;
        UNROLL(j, CHANNELS) row += w[j] * stats[COVARIANCE + i * CHANNELS + j];
        grad_expand[d * CHANNELS + i] = narrow(norm.scale * first[i] + slope * count * row);
    }
    grad_expand_bias[d] = narrow(0);  // the norm subtracts the bias
    grad_gamma[d] = narrow(total_x * norm.inverse);
    grad_beta[d] = narrow(total);
    more[d] = slope;
    more[HIDDEN + d] = -norm.scale * total / count;
}
