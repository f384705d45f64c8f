#include "expansion/expansion.cuh"
// h is grad, or 0 where RELU and not out > 0. For each pixel, product = the folded weights,
// transposed, @ h; each block writes a row of partial[block][hidden channel][SUMS]: the sums over its
// pixels of h * (x[c] - center[c]) and, as the last one, of h.

constexpr int COUNT = SUMS <= 2 ? 2 : SUMS <= 4 ? 4 : SUMS <= 8 ? 8 : 16, LANES = 32 / COUNT;
constexpr int AHEAD = 4;  // hidden channels whose gradients a thread fetches at once

// The sum over the warp of value[lane / LANES]: where each half has sums for the other, one shuffle
// sums up two of them.
__device__ __forceinline__ ACCUM sum_each(ACCUM (&value)[COUNT])
{
#pragma unroll
    for (int step = 16, left = COUNT / 2; step > 0; step /= 2, left /= 2) {
        const bool upper = threadIdx.x & step;
        UNROLL(k, left) {
            const ACCUM other = upper ? value[k] : value[k + left];
            value[k] = (upper ? value[k + left] : value[k]) + __shfl_xor_sync(0xffffffffu, other, step);
        }
        if (left == 0) value[0] += __shfl_xor_sync(0xffffffffu, value[0], step);
    }
    return value[0];
}

KERNEL(BLOCK) grad_expand(In grad, In x, InAccum stats, Out product, OutAccum partial,
    int batch, int per_plane)
{
    __shared__ __align__(16) ACCUM weights[HIDDEN][ROW];
    __shared__ ACCUM sum[WARPS][HIDDEN * SUMS];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int k = threadIdx.x; k < HIDDEN * ROW; k += BLOCK)
        weights[k / ROW][k % ROW] = k % ROW < SUMS ? stats[FOLDED + k / ROW * SUMS + k % ROW] : 0;
    for (int k = lane; k < HIDDEN * SUMS; k += 32) sum[warp][k] = 0;
    ACCUM center[CHANNELS];
    UNROLL(c, CHANNELS) center[c] = stats[CENTER + c];
    __syncthreads();
    const index_t vectors = index_t(batch) * per_plane, step = index_t(gridDim.x) * BLOCK;
#pragma unroll 1
    for (index_t start = thread_index() - lane; start < vectors; start += step) {
        const bool inside = start + lane < vectors;
        const Place here(inside ? start + lane : start, per_plane);
        const SCALAR* const from = grad + here.image * HIDDEN * here.plane + here.at;
        ACCUM in[CHANNELS][VECTOR], out[CHANNELS][VECTOR] = {};
        here.load_x(x, center, in);
#pragma unroll 1
        for (int begin = 0; begin < HIDDEN; begin += AHEAD) {
            ACCUM h[AHEAD][VECTOR];
            UNROLL(i, AHEAD)
                load<VECTOR, true>(from + min(begin + i, HIDDEN - 1) * here.plane, h[i]);
            UNROLL(i, AHEAD) {
                const int d = begin + i;
                if (HIDDEN % AHEAD && d >= HIDDEN) break;
                ACCUM w[ROW], z[VECTOR], value[COUNT] = {};
                UNROLL(j, ROW) w[j] = weights[d][j];
                normed(w, in, z);
                UNROLL(k, VECTOR) {
                    if (!inside || (RELU && !(widen(narrow(z[k])) > 0))) h[i][k] = 0;
                    UNROLL(c, CHANNELS) {
                        out[c][k] += w[c] * h[i][k];
                        value[c] += h[i][k] * in[c][k];
                    }
                    value[CHANNELS] += h[i][k];
                }
                const ACCUM total = sum_each(value);
                if (lane % LANES == 0 && lane / LANES < SUMS)
                    sum[warp][d * SUMS + lane / LANES] += total;
            }
        }
        if (inside)
            UNROLL(c, CHANNELS)
                store<VECTOR>(product + (here.image * CHANNELS + c) * here.plane + here.at, out[c]);
    }
    __syncthreads();
    for (int k = threadIdx.x; k < HIDDEN * SUMS; k += BLOCK) {
        ACCUM total = sum[0][k];
        UNROLL(w, WARPS - 1) total += sum[w + 1][k];
        partial[(long long)blockIdx.x * (HIDDEN * SUMS) + k] = total;
    }
}
