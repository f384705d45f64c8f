#include "involution_block/block.cuh"
// Gradients from the result back through the last norm and the involution to norm(reduced).
//
// A block has a tile of TILE_H x TILE_W pixels of an image. Shared memory holds, for the tile and a
// margin as wide as the kernel reaches, the features f = relu(norm(reduced)) and the gradient of
// `projected`. For each tap row of each group, the block computes KERNEL_W taps of the kernel, at
// the pixels that read from the tile, and the gradient of the kernel, at the pixels of the tile.
// The taps give the gradient of the shares (a gather), that of the kernel those of features, span
// and its bias.
//
// Each block writes a row of `partial`: for each tap the gradients of its row of span and of its
// bias, for each feature the sums of h and h * (reduced - mean), where h is the gradient of
// norm(reduced). Block 0 also writes the gradients of the last norm's parameters.

constexpr int AREA = TILE_H * TILE_W, EACH = AREA / BLOCK;  // pixels of the tile, and of a thread
constexpr int SPAN_H = TILE_H + 2 * REACH_H, SPAN_W = TILE_W + 2 * REACH_W;
constexpr int SPAN_AREA = SPAN_H * SPAN_W;
constexpr int PLANE = round_up(SPAN_AREA - 2, 8) + 2;  // four planes start in different banks
constexpr int SEEN = TILE_H * SPAN_W, SEEN_EACH = (SEEN + BLOCK - 1) / BLOCK;
constexpr int QUADS = (REDUCED + 3) / 4;  // of features
constexpr int QUAD_LANES = QUADS <= 1 ? 1 : QUADS <= 2 ? 2 : QUADS <= 4 ? 4 : QUADS <= 8 ? 8 : 16;
constexpr int SPLITS = BLOCK / QUAD_LANES;  // parts of a sum over the tile
constexpr int SUMS = 4 * QUADS + 1;         // of a tap: features, and the bias
constexpr int COLUMNS = REDUCED + 1;
// Blocks that must fit on a multiprocessor at a time: as many as is possible without spills.
constexpr int RESIDENT = KERNEL_W > 3 || REDUCED > 16 ? 3 : 4;

extern "C" __global__ void __launch_bounds__(BLOCK, RESIDENT)
grad_involve(In grad, In projected, In shares, In reduced, In span, In span_bias, In gamma, In beta, In gamma_3,
             In beta_3, InAccum stats, InAccum sums, Out grad_shares, Out grad_normed,
             Out grad_gamma_3, Out grad_beta_3, Out grad_project_bias, OutAccum partial, ACCUM eps,
             ACCUM eps_3, int batch, int height, int width, int rows)
{
    __shared__ ACCUM feature[REDUCED][PLANE], grad_out[CHANNELS][SPAN_AREA];
    __shared__ ACCUM taps[KERNEL_W][SEEN], grad_taps[KERNEL_W][AREA];
    __shared__ ACCUM part[WARPS][KERNEL_W * SUMS];
    __shared__ ACCUM scale[REDUCED], shift[REDUCED], total[WARPS * 2 * REDUCED];
    __shared__ ACCUM scale_3[CHANNELS], shift_3[CHANNELS], slope_3[CHANNELS], constant_3[CHANNELS];
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int tiles_w = (width + TILE_W - 1) / TILE_W, tiles_h = (height + TILE_H - 1) / TILE_H;
    const int tile = blockIdx.x % (tiles_w * tiles_h);
    const long long image = blockIdx.x / (tiles_w * tiles_h), plane = (long long)height * width;
    const int top = tile / tiles_w * TILE_H, left = tile % tiles_w * TILE_W;

    for (int f = thread; f < REDUCED; f += BLOCK) {
        scale[f] = widen(gamma[f]) * inverse_of(stats[VAR_2 + f], eps);
        shift[f] = widen(beta[f]) - stats[MEAN_2 + f] * scale[f];
    }
    for (int c = warp; c < CHANNELS; c += WARPS) {
        const ACCUM sum = column_sum(sums + c * rows, rows);
        const ACCUM sum_z = column_sum(sums + (CHANNELS + c) * rows, rows);
        if (lane != 0) continue;
        const ACCUM mean = stats[MEAN_3 + c], inverse = inverse_of(stats[VAR_3 + c], eps_3);
        const ACCUM count = ACCUM(plane) * batch, factor = widen(gamma_3[c]) * inverse;
        scale_3[c] = factor;
        shift_3[c] = widen(beta_3[c]) - mean * factor;
        slope_3[c] = -factor * inverse * inverse * sum_z / count;
        constant_3[c] = -factor * sum / count - slope_3[c] * mean;
        if (blockIdx.x == 0) {
            grad_gamma_3[c] = narrow(sum_z * inverse);
            grad_beta_3[c] = narrow(sum);
            grad_project_bias[c] = narrow(0);  // the norm subtracts the bias
        }
    }
    __syncthreads();
    for (int i = thread; i < SPAN_AREA; i += BLOCK) {
        const int row = top + i / SPAN_W - REACH_H, column = left + i % SPAN_W - REACH_W;
        const bool inside = row >= 0 && row < height && column >= 0 && column < width;
        const long long at = (long long)row * width + column;
        UNROLL(f, REDUCED) {
            const ACCUM normed =
                inside ? scale[f] * widen(reduced[(image * REDUCED + f) * plane + at]) + shift[f] : 0;
            feature[f][i] = normed < 0 ? ACCUM(0) : normed;
        }
        UNROLL(c, CHANNELS) {
            ACCUM value = 0;
            if (inside) {
                const long long here = (image * CHANNELS + c) * plane + at;
                const ACCUM z = widen(projected[here]);
                if (!RELU || scale_3[c] * z + shift_3[c] > 0) value = scale_3[c] * widen(grad[here]);
                value += slope_3[c] * z + constant_3[c];
            }
            grad_out[c][i] = value;
        }
    }
    __syncthreads();

    // Where the pixels of this thread are: in what is shared (own), and in the tile.
    int own[EACH], row_of[EACH], column_of[EACH];
    bool inside[EACH];
    UNROLL(k, EACH) {
        const int p = thread + k * BLOCK;
        row_of[k] = p / TILE_W, column_of[k] = p % TILE_W;
        own[k] = (row_of[k] + REACH_H) * SPAN_W + column_of[k] + REACH_W;
        inside[k] = top + row_of[k] < height && left + column_of[k] < width;
    }
    ACCUM grad_feature[EACH][REDUCED] = {};
    ACCUM* const out = partial + (long long)blockIdx.x * (GROUPS * WINDOW * COLUMNS + 2 * REDUCED);
#pragma unroll 1
    for (int g = 0; g < GROUPS; ++g) {
        const SCALAR* const shares_g = shares + (image * GROUPS + g) * CHANNELS * plane;
        ACCUM grad_share[EACH][CHANNELS] = {};
#pragma unroll 1
        for (int u = 0; u < KERNEL_H; ++u) {
            const int away = u * DILATION_H - REACH_H;
            const long long tap = (long long)(g * KERNEL_H + u) * KERNEL_W;
            // The gradient of the kernel, at the pixels of this thread.
            ACCUM grad_tap[EACH][KERNEL_W] = {};
            UNROLL(k, EACH) {
                const int row = top + row_of[k] + away;
                if (!inside[k] || row < 0 || row >= height) continue;
                UNROLL(v, KERNEL_W) {
                    const int column = left + column_of[k] + v * DILATION_W - REACH_W;
                    if (column < 0 || column >= width) continue;
                    const SCALAR* from = shares_g + (long long)row * width + column;
                    UNROLL(c, CHANNELS)
                        grad_tap[k][v] += grad_out[c][own[k]] * widen(from[c * plane]);
                }
            }
            // The kernel at the pixels that read from the tile, and the gradient of the features.
            ACCUM value[SEEN_EACH][KERNEL_W];
            UNROLL(j, SEEN_EACH) UNROLL(v, KERNEL_W) value[j][v] = 0;
#pragma unroll
            for (int f = 0; f < REDUCED; f += VECTOR_F) {
                ACCUM w[KERNEL_W][VECTOR_F];
                UNROLL(v, KERNEL_W) load<VECTOR_F>(span + (tap + v) * REDUCED + f, w[v]);
                UNROLL(i, VECTOR_F) {
                    UNROLL(j, SEEN_EACH) {
                        const int seen = min(thread + j * BLOCK, SEEN - 1);
                        const ACCUM there = feature[f + i][seen + (REACH_H - away) * SPAN_W];
                        UNROLL(v, KERNEL_W) value[j][v] += w[v][i] * there;
                    }
                    UNROLL(k, EACH)
                        UNROLL(v, KERNEL_W) grad_feature[k][f + i] += w[v][i] * grad_tap[k][v];
                }
            }
            // All threads have read the last taps: they did so before the last __syncthreads().
            UNROLL(j, SEEN_EACH) {
                const int seen = thread + j * BLOCK;
                if (seen < SEEN)
                    UNROLL(v, KERNEL_W) taps[v][seen] = value[j][v] + widen(span_bias[tap + v]);
            }
            UNROLL(k, EACH) UNROLL(v, KERNEL_W) grad_taps[v][thread + k * BLOCK] = grad_tap[k][v];
            __syncthreads();
            // The gradient of the shares: what the tile gets from the pixels that read from it.
            UNROLL(k, EACH) {
                UNROLL(v, KERNEL_W) {
                    const int back = v * DILATION_W - REACH_W;
                    const int from = row_of[k] * SPAN_W + column_of[k] + REACH_W - back;
                    const ACCUM weight = taps[v][from];
                    UNROLL(c, CHANNELS)
                        grad_share[k][c] += weight * grad_out[c][from + (REACH_H - away) * SPAN_W];
                }
            }
            // The gradient of span: products of features and grad_taps, summed over the tile.
            const int quad = thread % QUAD_LANES, split = thread / QUAD_LANES;
            ACCUM product[KERNEL_W][4] = {}, plain[KERNEL_W] = {};
            for (int p = split; p < AREA; p += SPLITS) {
                const int at = (p / TILE_W + REACH_H) * SPAN_W + p % TILE_W + REACH_W;
                ACCUM there[4];
                UNROLL(i, 4) there[i] = quad * 4 + i < REDUCED ? feature[quad * 4 + i][at] : 0;
                UNROLL(v, KERNEL_W) {
                    const ACCUM back = grad_taps[v][p];
                    plain[v] += back;
                    UNROLL(i, 4) product[v][i] += back * there[i];
                }
            }
#pragma unroll
            for (int step = QUAD_LANES; step < 32; step *= 2)
                UNROLL(v, KERNEL_W) {
                    UNROLL(i, 4)
                        product[v][i] += __shfl_xor_sync(0xffffffffu, product[v][i], step);
                    plain[v] += __shfl_xor_sync(0xffffffffu, plain[v], step);
                }
            if (lane < QUADS)
                UNROLL(v, KERNEL_W) {
                    UNROLL(i, 4) part[warp][v * SUMS + quad * 4 + i] = product[v][i];
                    if (quad == 0) part[warp][v * SUMS + SUMS - 1] = plain[v];
                }
            __syncthreads();
            for (int k = thread; k < KERNEL_W * COLUMNS; k += BLOCK) {
                const int v = k / COLUMNS, f = k % COLUMNS;
                const int from = v * SUMS + (f < REDUCED ? f : SUMS - 1);
                ACCUM sum = 0;
                for (int w = 0; w < WARPS; ++w) sum += part[w][from];
                out[tap * COLUMNS + k] = sum;
            }
        }
        UNROLL(k, EACH) {
            if (!inside[k]) continue;
            const long long at = (long long)(top + row_of[k]) * width + left + column_of[k];
            UNROLL(c, CHANNELS)
                grad_shares[((image * GROUPS + g) * CHANNELS + c) * plane + at] =
                    narrow(grad_share[k][c]);
        }
    }
    ACCUM sum[2 * REDUCED] = {};
    UNROLL(k, EACH) {
        if (!inside[k]) continue;
        const long long at = (long long)(top + row_of[k]) * width + left + column_of[k];
        UNROLL(f, REDUCED) {
            const long long here = (image * REDUCED + f) * plane + at;
            const ACCUM h = feature[f][own[k]] > 0 ? grad_feature[k][f] : ACCUM(0);
            grad_normed[here] = narrow(h);
            sum[f] += h;
            sum[REDUCED + f] += h * (widen(reduced[here]) - stats[MEAN_2 + f]);
        }
    }
    block_sum(sum, total);
    for (int k = thread; k < 2 * REDUCED; k += BLOCK) out[GROUPS * WINDOW * COLUMNS + k] = total[k];
}
