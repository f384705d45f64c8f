#include "involution_block/block.cuh"
// projected = bias + the sum over the groups of the involution of their shares, with a kernel that
// is computed from f = relu(norm(reduced)). A thread has VECTOR columns of one row.
//
// GIVEN: the last norm's moments are known, and out is that of finish.cu. Otherwise each block
// writes mean and sum of squared distances of its part of `projected` to moments[value][block].

constexpr int AWAY = round_up(REACH_W, VECTOR), STRETCH = VECTOR + 2 * AWAY;
// Blocks that must fit on a multiprocessor at a time: as many as is possible without spills.
constexpr int RESIDENT =
    KERNEL_W > 5 ? 2 : KERNEL_W > 3 || REDUCED > 16 || sizeof(ACCUM) > 4 || GIVEN ? 3 : 4;

extern "C" __global__ void __launch_bounds__(BLOCK, RESIDENT)
involve(In shares, In reduced, In gamma, In beta, InAccum mean, InAccum var, In span, In span_bias,
        In project_bias, In x, In gamma_3, In beta_3, InAccum mean_3, InAccum var_3, Out out,
        OutAccum moments, ACCUM eps, ACCUM eps_3, int batch, int height, int width)
{
    __shared__ ACCUM scale[REDUCED], shift[REDUCED], sum[WARPS * CHANNELS];
    for (int f = threadIdx.x; f < REDUCED; f += BLOCK) {
        scale[f] = widen(gamma[f]) * inverse_of(var[f], eps);
        shift[f] = widen(beta[f]) - mean[f] * scale[f];
    }
    __syncthreads();
    const int per_row = width / VECTOR;
    const index_t strip = thread_index(), strips = index_t(batch) * height * per_row;
    const bool inside = strip < strips;
    const int column = int(strip % per_row) * VECTOR, row = int(strip / per_row % height);
    const long long image = strip / per_row / height, plane = (long long)height * width;
    const long long at = (long long)row * width + column;
    ACCUM value[CHANNELS][VECTOR];
    UNROLL(c, CHANNELS) UNROLL(k, VECTOR) value[c][k] = widen(project_bias[c]);
    if (inside) {
        ACCUM feature[REDUCED][VECTOR];
        UNROLL(f, REDUCED) {
            load<VECTOR>(reduced + (image * REDUCED + f) * plane + at, feature[f]);
            UNROLL(k, VECTOR) {
                const ACCUM normed = scale[f] * feature[f][k] + shift[f];
                feature[f][k] = normed < 0 ? ACCUM(0) : normed;
            }
        }
#pragma unroll 1
        for (int tap_row = 0; tap_row < GROUPS * KERNEL_H; ++tap_row) {
            const int g = tap_row / KERNEL_H, away = tap_row % KERNEL_H * DILATION_H - REACH_H;
            if (row + away < 0 || row + away >= height) continue;
            ACCUM stretch[CHANNELS][STRETCH];
            UNROLL(c, CHANNELS)
                load_run<VECTOR, STRETCH>(
                    shares + ((image * GROUPS + g) * CHANNELS + c) * plane + at +
                        (long long)away * width,
                    column, -AWAY, width, stretch[c]);
            UNROLL(v, KERNEL_W) {
                const int tap = tap_row * KERNEL_W + v;
                ACCUM k[VECTOR];
                UNROLL(e, VECTOR) k[e] = widen(span_bias[tap]);
#pragma unroll
                for (int f = 0; f < REDUCED; f += VECTOR_F) {
                    ACCUM w[VECTOR_F];
                    load<VECTOR_F>(span + tap * REDUCED + f, w);
                    UNROLL(i, VECTOR_F) UNROLL(e, VECTOR) k[e] += w[i] * feature[f + i][e];
                }
                UNROLL(c, CHANNELS)
                    UNROLL(e, VECTOR)
                        value[c][e] += k[e] * stretch[c][AWAY - REACH_W + v * DILATION_W + e];
            }
        }
    }
    if (GIVEN) {
        if (!inside) return;
        UNROLL(c, CHANNELS) {
            const long long to = (image * CHANNELS + c) * plane + at;
            const ACCUM factor = widen(gamma_3[c]) * inverse_of(var_3[c], eps_3);
            const ACCUM offset = widen(beta_3[c]) - mean_3[c] * factor;
            ACCUM old[VECTOR];
            load<VECTOR>(x + to, old);
            UNROLL(k, VECTOR) {
                const ACCUM normed = factor * value[c][k] + offset;
                value[c][k] = old[k] + (RELU && normed < 0 ? ACCUM(0) : normed);
            }
            store<VECTOR>(out + to, value[c]);
        }
        return;
    }
    const index_t first = index_t(blockIdx.x) * BLOCK;
    const ACCUM count = ACCUM(min(index_t(BLOCK), strips - first)) * VECTOR;
    ACCUM part[CHANNELS] = {}, middle[CHANNELS];
    if (inside)
        UNROLL(c, CHANNELS) {
            store<VECTOR>(out + (image * CHANNELS + c) * plane + at, value[c]);
            UNROLL(k, VECTOR) part[c] += value[c][k];
        }
    block_sum(part, sum);
    UNROLL(c, CHANNELS) {
        middle[c] = sum[c] / count;
        part[c] = 0;
        UNROLL(k, VECTOR) {
            const ACCUM distance = inside ? value[c][k] - middle[c] : ACCUM(0);
            part[c] += distance * distance;
        }
    }
    block_sum(part, sum);
    UNROLL(c, CHANNELS) {
        if (threadIdx.x != c) continue;
        moments[c * gridDim.x + blockIdx.x] = middle[c];
        moments[(CHANNELS + c) * gridDim.x + blockIdx.x] = sum[c];
    }
}
