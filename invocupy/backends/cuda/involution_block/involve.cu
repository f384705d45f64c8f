#include "involution_block/forward.cuh"
// projected = bias + the sum over the groups of the involution of their shares, with a kernel that
// is computed from f = relu(norm(reduced)). A thread has VECTOR columns of one row.
//
// Each block writes mean and sum of squared distances of its part of `projected` to
// moments[value][block].

constexpr int AWAY = round_up(REACH_W, VECTOR), STRETCH = VECTOR + 2 * AWAY;
// Blocks that must fit on a multiprocessor at a time: as many as is possible without spills.
constexpr int RESIDENT =
    KERNEL_W > 5 ? 2 : KERNEL_W > 3 || REDUCED > 16 || sizeof(ACCUM) > 4 ? 3 : 4;

extern "C" __global__ void __launch_bounds__(BLOCK, RESIDENT)
involve(In shares, In reduced, In gamma, In beta, InAccum mean, InAccum var, In span, In span_bias,
        In project_bias, Out out, OutAccum moments, ACCUM eps, int batch, int height, int width)
{
    __shared__ ACCUM scale[REDUCED], shift[REDUCED], sum[WARPS * CHANNELS];
    fold(gamma, beta, mean, var, eps, scale, shift);
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
            to_feature(scale[f], shift[f], feature[f]);
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
                ACCUM k[VECTOR];
                tap_at<VECTOR_F>(tap_row * KERNEL_W + v, span, span_bias, feature, k);
                UNROLL(c, CHANNELS)
                    UNROLL(e, VECTOR)
                        value[c][e] += k[e] * stretch[c][AWAY - REACH_W + v * DILATION_W + e];
            }
        }
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
