#include "involution_block/block.cuh"
// Gradients back through the hidden layer, which is computed again, to norm(expand(x)).
//
// A block has the hidden channels of one slice, EACH per lane; a lane has all weights and all sums
// of its channels in registers. Each warp fetches PIXELS pixels into shared memory and goes over
// them one by one. Then each lane has one pixel, and sums up its gradient of x over the channels of
// the slice; grad_x adds up the slices. Each block writes a row of `partial`: for each of its
// channels, the sums over its pixels for the gradients of reduce, project, first and offset.

constexpr int SLICE = 32 * EACH, SLICES = (HIDDEN + SLICE - 1) / SLICE;
constexpr int SIZE = (REDUCED + SHARES + CHANNELS) | 1;  // of a pixel; odd: no bank conflicts
constexpr int TURN = 16;                                 // pixels at a time
constexpr int SUMS = REDUCED + 2 * CHANNELS + 1;

extern "C" __global__ void __launch_bounds__(BLOCK)
grad_perceive(In x, In reduced, In grad_normed, In grad_shares, In expand, In expand_bias, In gamma_1,
              In beta_1, In reduce, In project, In gamma, InAccum stats, InAccum sums, Out grad_x,
              OutAccum partial, ACCUM eps_1, ACCUM eps, int batch, int plane, int blocks)
{
    __shared__ ACCUM pixel[WARPS][PIXELS][SIZE], back[WARPS][TURN][SLICE + 1];
    __shared__ ACCUM first_of[SLICE][CHANNELS], all[SLICE][SUMS];
    __shared__ ACCUM factor[REDUCED], slope[REDUCED], constant[REDUCED];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int slice = blockIdx.x / blocks, block = blockIdx.x % blocks;
    const long long pixels = (long long)batch * plane;
    for (int f = threadIdx.x; f < REDUCED; f += BLOCK) {
        const ACCUM mean = stats[MEAN_2 + f], inverse = inverse_of(stats[VAR_2 + f], eps);
        factor[f] = widen(gamma[f]) * inverse;
        slope[f] = -factor[f] * inverse * inverse * sums[REDUCED + f] / pixels;
        constant[f] = -factor[f] * sums[f] / pixels - slope[f] * mean;
    }
    ACCUM first[EACH][CHANNELS], offset[EACH], dense[EACH][REDUCED], grouped[EACH][CHANNELS];
    int group[EACH];
    UNROLL(r, EACH) {
        const int d = slice * SLICE + r * 32 + lane;
        const bool there = d < HIDDEN;
        group[r] = there ? d / GROUP : 0;
        offset[r] = there ? widen(beta_1[d]) : ACCUM(0);
        ACCUM w[CHANNELS];
        UNROLL(c, CHANNELS) {
            w[c] = there ? widen(expand[d * CHANNELS + c]) : ACCUM(0);
            grouped[r][c] = there ? widen(project[c * HIDDEN + d]) : ACCUM(0);
        }
        UNROLL(f, REDUCED) dense[r][f] = there ? widen(reduce[f * HIDDEN + d]) : ACCUM(0);
        const First norm(w, there ? widen(expand_bias[d]) : ACCUM(0),
                         there ? widen(gamma_1[d]) : ACCUM(0), stats + CENTER, stats + COVARIANCE,
                         eps_1);
        UNROLL(c, CHANNELS) {
            first[r][c] = norm.scale * w[c];
            if (warp == 0) first_of[r * 32 + lane][c] = first[r][c];
        }
    }
    ACCUM center[CHANNELS];
    UNROLL(c, CHANNELS) center[c] = stats[CENTER + c];
    ACCUM sum_dense[EACH][REDUCED] = {}, sum_grouped[EACH][CHANNELS] = {};
    ACCUM sum_first[EACH][CHANNELS] = {}, sum_offset[EACH] = {};
    __syncthreads();

    const long long step = (long long)blocks * WARPS * PIXELS;
#pragma unroll 1
    for (long long start = (long long)block * WARPS * PIXELS; start < pixels; start += step) {
        const long long number = start + warp * PIXELS + lane;
        if (lane < PIXELS) {
            const bool inside = number < pixels;
            const long long image = number / plane, at = number % plane;
            ACCUM* const to = pixel[warp][lane];
            UNROLL(f, REDUCED) {
                const long long here = (image * REDUCED + f) * plane + at;
                to[f] = inside ? factor[f] * widen(grad_normed[here]) +
                                     slope[f] * widen(reduced[here]) + constant[f]
                               : ACCUM(0);
            }
            UNROLL(s, SHARES)
                to[REDUCED + s] =
                    inside ? widen(grad_shares[(image * SHARES + s) * plane + at]) : ACCUM(0);
            UNROLL(c, CHANNELS)
                to[REDUCED + SHARES + c] =
                    inside ? widen(x[(image * CHANNELS + c) * plane + at]) - center[c] : ACCUM(0);
        }
        __syncthreads();
#pragma unroll 1
        for (int turn = 0; turn < PIXELS; turn += TURN) {
#pragma unroll 1
            for (int q = 0; q < TURN; ++q) {
                const ACCUM* const from = pixel[warp][turn + q];
                ACCUM in[CHANNELS], grad_reduced[REDUCED];
                UNROLL(c, CHANNELS) in[c] = from[REDUCED + SHARES + c];
                UNROLL(f, REDUCED) grad_reduced[f] = from[f];
                UNROLL(r, EACH) {
                    ACCUM h = offset[r], grad_h = 0, grad_share[CHANNELS];
                    UNROLL(c, CHANNELS) {
                        h += first[r][c] * in[c];
                        grad_share[c] = from[REDUCED + group[r] * CHANNELS + c];
                        grad_h += grouped[r][c] * grad_share[c];
                    }
                    UNROLL(f, REDUCED) grad_h += dense[r][f] * grad_reduced[f];
                    if (!(h > 0)) {
                        grad_h = 0;
                        h = h < 0 ? ACCUM(0) : h;  // NaN stays NaN
                    }
                    UNROLL(f, REDUCED) sum_dense[r][f] += grad_reduced[f] * h;
                    UNROLL(c, CHANNELS) {
                        sum_grouped[r][c] += grad_share[c] * h;
                        sum_first[r][c] += grad_h * in[c];
                    }
                    sum_offset[r] += grad_h;
                    back[warp][q][r * 32 + lane] = grad_h;
                }
            }
            __syncthreads();
            // Now each lane has a pixel; each half of the warp sums over half of the channels.
            const int q = lane % TURN, half = lane / TURN;
            ACCUM out[CHANNELS] = {};
            for (int d = half * (SLICE / 2); d < (half + 1) * (SLICE / 2); ++d) {
                const ACCUM grad_h = back[warp][q][d];
                UNROLL(c, CHANNELS) out[c] += grad_h * first_of[d][c];
            }
            const long long pixel_number = start + warp * PIXELS + turn + q;
            const long long image = pixel_number / plane, at = pixel_number % plane;
            UNROLL(c, CHANNELS) {
                out[c] += __shfl_xor_sync(0xffffffffu, out[c], TURN);
                if (half == 0 && pixel_number < pixels)
                    grad_x[((slice * (long long)batch + image) * CHANNELS + c) * plane + at] =
                        narrow(out[c]);
            }
            __syncthreads();
        }
    }
    // The warps of the block add their sums one after the other.
    for (int w = 0; w < WARPS; ++w) {
        if (w == warp)
            UNROLL(r, EACH) {
                ACCUM* const to = all[r * 32 + lane];
                UNROLL(f, REDUCED) to[f] = sum_dense[r][f] + (w ? to[f] : 0);
                UNROLL(c, CHANNELS) {
                    const int at = REDUCED + c;
                    to[at] = sum_grouped[r][c] + (w ? to[at] : 0);
                    to[at + CHANNELS] = sum_first[r][c] + (w ? to[at + CHANNELS] : 0);
                }
                to[SUMS - 1] = sum_offset[r] + (w ? to[SUMS - 1] : 0);
            }
        __syncthreads();
    }
    for (int k = threadIdx.x; k < SLICE * SUMS; k += BLOCK) {
        const int d = slice * SLICE + k / SUMS;
        if (d < HIDDEN)
            partial[((long long)block * HIDDEN + d) * SUMS + k % SUMS] = all[k / SUMS][k % SUMS];
    }
}
