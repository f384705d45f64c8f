#include "involution_block/forward.cuh"
// The whole block with known moments: out = x + norm(projected), or x + relu(norm(projected)) if
// RELU, as in finish.cu.
//
// A block has a tile of TILE_H x TILE_W pixels of an image, a thread EACH pixels below each other.
// Shared memory holds x of the tile and of a margin as wide as the kernel reaches and, for one group
// at a time, the shares there, which are 0 outside the image. The features stay in registers: the
// kernel at a pixel is made of the features of that pixel alone.

constexpr int EACH = TILE_H * TILE_W / BLOCK;
constexpr int SPAN_H = TILE_H + 2 * REACH_H, SPAN_W = TILE_W + 2 * REACH_W;
constexpr int PLANE = round_up(SPAN_H * SPAN_W, STEP * BLOCK);  // STEP pixels per thread at a time
constexpr int MIDDLE = REACH_H * SPAN_W + REACH_W;  // from the corner of a window
constexpr int COLUMN = EACH + 2 * REACH_H;
// Blocks that must fit on a multiprocessor at a time: as many as is possible without spills.
constexpr int RESIDENT =
    KERNEL_W > 5 && REDUCED > 16 ? 2 : REDUCED > 32 || CHANNELS > 4 || sizeof(ACCUM) > 4 ? 3 : 4;

extern "C" __global__ void __launch_bounds__(BLOCK, RESIDENT)
evaluate(In x, In expand, In expand_bias, In gamma_1, In beta_1, In reduce, In reduce_bias,
         In gamma_2, In beta_2, In span, In span_bias, In project, In project_bias, In gamma_3,
         In beta_3, InAccum mean_1, InAccum var_1, InAccum mean_2, InAccum var_2, InAccum mean_3,
         InAccum var_3, Out out, ACCUM eps_1, ACCUM eps_2, ACCUM eps_3, int height, int width)
{
    __shared__ __align__(16) ACCUM weights[HIDDEN][ROW];
    __shared__ ACCUM here[CHANNELS][PLANE], shares[CHANNELS][PLANE];
    __shared__ bool inside[PLANE];  // whether a pixel is in the image
    __shared__ ACCUM scale_2[REDUCED], shift_2[REDUCED], scale_3[CHANNELS], shift_3[CHANNELS];
    const int thread = threadIdx.x;
    const int tiles_w = (width + TILE_W - 1) / TILE_W, tiles_h = (height + TILE_H - 1) / TILE_H;
    const int tile = blockIdx.x % (tiles_w * tiles_h);
    const int image = blockIdx.x / (tiles_w * tiles_h);
    const int top = tile / tiles_w * TILE_H - REACH_H, left = tile % tiles_w * TILE_W - REACH_W;
    // Where pixel i of tile and margin is in an array.
    const auto at = [&](int c, int i) {
        const long long row = ((long long)image * CHANNELS + c) * height + top + i / SPAN_W;
        return row * width + left + i % SPAN_W;
    };

    fill(weights, expand, beta_1, reduce, project,
         [&](int d, const ACCUM (&)[CHANNELS], ACCUM& offset) {
             const ACCUM scale = widen(gamma_1[d]) * inverse_of(var_1[d], eps_1);
             offset += scale * (widen(expand_bias[d]) - mean_1[d]);
             return scale;
         });
    fold(gamma_2, beta_2, mean_2, var_2, eps_2, scale_2, shift_2);
    fold(gamma_3, beta_3, mean_3, var_3, eps_3, scale_3, shift_3);
    for (int i = thread; i < PLANE; i += BLOCK) {
        const int row = top + i / SPAN_W, column = left + i % SPAN_W;
        inside[i] = row >= 0 && row < height && column >= 0 && column < width;
        UNROLL(c, CHANNELS) here[c][i] = inside[i] ? widen(x[at(c, i)]) : ACCUM(0);
    }
    __syncthreads();

    // Where the window of this thread's first pixel starts.
    const int corner = thread / TILE_W * EACH * SPAN_W + thread % TILE_W;
    ACCUM feature[REDUCED][EACH], value[CHANNELS][EACH], in[CHANNELS][EACH];
    UNROLL(f, REDUCED) UNROLL(e, EACH) feature[f][e] = widen(reduce_bias[f]);
    UNROLL(c, CHANNELS) UNROLL(e, EACH) {
        in[c][e] = here[c][corner + MIDDLE + e * SPAN_W];
        value[c][e] = widen(project_bias[c]);
    }
#pragma unroll 1
    for (int d = 0; d < HIDDEN; ++d) {
        ACCUM w[ROW], h[EACH];
        UNROLL(i, ROW) w[i] = weights[d][i];
        activate(w, in, h);
        UNROLL(f, REDUCED) UNROLL(e, EACH) feature[f][e] += w[CHANNELS + 1 + f] * h[e];
    }
    UNROLL(f, REDUCED) to_feature(scale_2[f], shift_2[f], feature[f]);

#pragma unroll 1
    for (int g = 0; g < GROUPS; ++g) {
        if (g > 0) __syncthreads();  // all threads have used the shares of the last group
#pragma unroll 1
        for (int first = thread; first < PLANE; first += STEP * BLOCK) {
            ACCUM around[CHANNELS][STEP], share[CHANNELS][STEP] = {};
            UNROLL(c, CHANNELS) UNROLL(k, STEP) around[c][k] = here[c][first + k * BLOCK];
#pragma unroll 1
            for (int d = g * GROUP; d < (g + 1) * GROUP; ++d) {
                ACCUM w[ROW], h[STEP];
                UNROLL(i, ROW) w[i] = weights[d][i];
                activate(w, around, h);
                UNROLL(c, CHANNELS)
                    UNROLL(k, STEP) share[c][k] += w[CHANNELS + 1 + REDUCED + c] * h[k];
            }
            UNROLL(k, STEP) {
                const bool there = inside[first + k * BLOCK];
                UNROLL(c, CHANNELS) shares[c][first + k * BLOCK] = there ? share[c][k] : ACCUM(0);
            }
        }
        __syncthreads();
#pragma unroll 1
        for (int v = 0; v < KERNEL_W; ++v) {
            ACCUM run[CHANNELS][COLUMN];  // what all pixels of this thread read of a column
            UNROLL(c, CHANNELS)
                UNROLL(r, COLUMN) run[c][r] = shares[c][corner + r * SPAN_W + v * DILATION_W];
            UNROLL(u, KERNEL_H) {
                ACCUM k[EACH];
                tap_at<VECTOR_F>((g * KERNEL_H + u) * KERNEL_W + v, span, span_bias, feature, k);
                UNROLL(c, CHANNELS)
                    UNROLL(e, EACH) value[c][e] += k[e] * run[c][e + u * DILATION_H];
            }
        }
    }
    UNROLL(e, EACH) {
        const int i = corner + MIDDLE + e * SPAN_W;
        if (!inside[i]) continue;
        UNROLL(c, CHANNELS) {
            const ACCUM normed = scale_3[c] * value[c][e] + shift_3[c];
            out[at(c, i)] = narrow(here[c][i] + (RELU && normed < 0 ? ACCUM(0) : normed));
        }
    }
}
